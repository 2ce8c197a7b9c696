//! One file per kind of job; this one sends each row of a batch to its own.
//!
//! To add a kind: a variant of `Payload`, a file here, an arm in [`run`].

mod assign;
mod sweeps;

use coupon_core::{
    Error,
    coupon::{abreast::Abreast, batch},
    distribution, export, generate, import,
    job::{
        claim::{Claimed, Finished, Outcome},
        payload::{AssignCoupons, Payload},
    },
    pool,
    retention::Retention,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::verdict::{Verdict, verdict};

/// Runs the rows of a batch in the caller's transaction; gives an outcome for each.
///
/// # Errors
/// Trouble that concerns the whole batch: it is rolled back.
pub(crate) async fn run(
    connection: &mut PgConnection,
    rows: Vec<Claimed>,
    keep: &Retention,
    abreast: &Abreast,
) -> Result<Vec<(Uuid, Outcome)>, Error> {
    let mut outcomes = Vec::with_capacity(rows.len());
    let mut assigns: Vec<(Uuid, AssignCoupons)> = Vec::new();
    for row in rows {
        // A row that was in trouble goes step by step: one that goes well clears what was charged.
        let abreast = (row.attempts == 0).then_some(abreast);
        let step = match row.payload {
            None => Ok(Finished::undecodable()),
            Some(Payload::AssignCoupons(request)) => {
                assigns.push((row.id, request));
                continue;
            }
            Some(Payload::AssignBatch) => batch::step(connection, row.id).await,
            Some(Payload::ImportCodes) => import::step::step(connection, row.id, abreast).await,
            Some(Payload::ImportMembers) => pool::import::step(connection, row.id).await,
            Some(Payload::Distribute(of)) => distribution::step::step(connection, row.id, &of).await,
            Some(Payload::UndoDistribution(of)) => distribution::undo::step(connection, row.id, &of).await,
            Some(Payload::ExportBook) => export::step::step(connection, row.id).await,
            Some(Payload::GenerateCodes) => generate::step::step(connection, row.id, abreast).await,
            Some(Payload::SweepLocks) => sweeps::locks(connection).await,
            Some(Payload::SweepLeftovers) => sweeps::leftovers(connection, keep).await,
            Some(Payload::RollUp) => sweeps::roll_up(connection).await,
            Some(Payload::FireSchedules) => sweeps::schedules(connection).await,
        };
        let outcome = match step {
            Ok(outcome) => outcome,
            Err(error) => match verdict(error) {
                Verdict::Fail(outcome) => outcome,
                Verdict::TryAgain(error) => return Err(error),
            },
        };
        outcomes.push((row.id, outcome));
    }
    outcomes.extend(assign::run(connection, assigns).await?);
    Ok(outcomes)
}
