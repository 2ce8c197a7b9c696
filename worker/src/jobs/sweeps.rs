//! The service's own upkeep: sweeps are reconcilers without input, one bounded batch a step.

use coupon_core::{
    Error,
    coupon::sweep::{SWEEP_BATCH, sweep_lapsed_locks},
    job::claim::{Outcome, Step},
    leftovers::sweep_leftovers,
    retention::Retention,
    schedule::fire,
    stats,
};
use sqlx::PgConnection;

/// Turns lapsed locks back; a full batch means that there may be more.
pub(crate) async fn locks(connection: &mut PgConnection) -> Result<Outcome, Error> {
    let swept = sweep_lapsed_locks(connection).await?;
    Ok(again_if(swept >= SWEEP_BATCH.unsigned_abs()))
}

/// Forgets what is kept only for a while.
pub(crate) async fn leftovers(connection: &mut PgConnection, keep: &Retention) -> Result<Outcome, Error> {
    let more = sweep_leftovers(connection, keep).await?;
    Ok(again_if(more))
}

/// Adds what has happened to the sums of statistics.
pub(crate) async fn roll_up(connection: &mut PgConnection) -> Result<Outcome, Error> {
    let more = stats::roll_up::roll_up(connection, stats::MARGIN).await?;
    Ok(again_if(more))
}

/// Starts what schedules have due.
pub(crate) async fn schedules(connection: &mut PgConnection) -> Result<Outcome, Error> {
    let more = fire::step(connection).await?;
    Ok(again_if(more))
}

fn again_if(more: bool) -> Outcome {
    if more {
        Outcome::NextStep(Step::default())
    } else {
        Outcome::UpkeepDone
    }
}
