//! What is kept only for a while is forgotten here, a bounded number of rows at a time.
//!
//! Invariant: nothing that a client may still ask for is touched; history and audit are never.

use sqlx::PgConnection;

use crate::{
    error::Result,
    import::sweep,
    pool,
    retention::{self, Retention},
    user::{budget, session},
};

/// Rows of one table that one run forgets: some milliseconds each.
const BATCH: i64 = 5_000;

/// In seconds.
const DAY: i64 = 24 * 60 * 60;

/// Forgets a batch of what is over: ticks after a day, idempotency keys after two, refresh tokens, budgets whose window
/// has passed, uploads that were cut, members of deleted pools, notes of crashes that nobody came upon; and what is
/// over by setting (`keep`). Gives whether there may be more.
///
/// # Errors
/// When the database fails.
pub async fn sweep_leftovers(connection: &mut PgConnection, keep: &Retention) -> Result<bool> {
    let gone = [
        delete(
            connection,
            "DELETE FROM ticks WHERE (schedule, tick) IN (
                 SELECT schedule, tick FROM ticks WHERE tick < now() - interval '1 day' LIMIT $1)",
        )
        .await?,
        delete(
            connection,
            "DELETE FROM idempotency_keys WHERE (caller_id, key) IN (
                 SELECT caller_id, key FROM idempotency_keys WHERE created_at < now() - interval '2 days'
                 ORDER BY created_at LIMIT $1)",
        )
        .await?,
        session::sweep(&mut *connection, BATCH).await?,
        budget::sweep(&mut *connection, BATCH).await?,
        sweep::sweep_dead_uploads(connection).await?,
        sweep::sweep_old_texts(connection, i64::from(keep.uploads) * DAY).await?,
        sweep::sweep_seen(&mut *connection).await?,
        pool::sweep(&mut *connection).await?,
        // A mark stays when its row was dropped by hand or its removal failed; the table holds what is at work, no more.
        delete(
            connection,
            "DELETE FROM job_marks WHERE job_id IN (
                 SELECT job_id FROM job_marks WHERE marked_at < now() - interval '1 day' LIMIT $1)",
        )
        .await?,
        retention::sweep(connection, keep).await?,
    ];
    Ok(gone.iter().any(|rows| *rows > 0))
}

async fn delete(connection: &mut PgConnection, sql: &'static str) -> Result<u64> {
    Ok(sqlx::query(sql)
        .bind(BATCH)
        .execute(connection)
        .await?
        .rows_affected())
}
