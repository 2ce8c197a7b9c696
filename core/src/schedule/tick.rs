//! Ticks: which process runs what a clock says.
//!
//! Invariant: of all processes that see a tick, exactly one takes it.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::error::StoreError;

/// Takes a tick; `false` when another process has it.
///
/// # Errors
/// When the database fails.
pub async fn take_tick(
    connection: &mut PgConnection,
    schedule: &str,
    tick: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let taken = sqlx::query("INSERT INTO ticks (schedule, tick) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(schedule)
        .bind(tick)
        .execute(connection)
        .await?;
    Ok(taken.rows_affected() == 1)
}
