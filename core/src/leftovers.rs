//! What is kept only for a while is forgotten here, a bounded number of rows at a time.
//!
//! Invariant: nothing that a client may still ask for is touched; history and audit are never.
//!
//! Each of these tables is empty for a long time and then has millions of rows at once, of which the planner knows
//! nothing. So the rows of a batch are deleted by their place in the table (`ctid`): joined by key, the table might be
//! read as often as the batch has rows. And the statements are not kept prepared: they are planned for the table as it is.

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

/// A batch of ticks.
pub const DELETE_TICKS: &str = "DELETE FROM ticks WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM ticks WHERE tick < now() - interval '1 day' LIMIT $1))";

/// A batch of idempotency keys.
pub const DELETE_IDEMPOTENCY_KEYS: &str = "DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM idempotency_keys WHERE created_at < now() - interval '2 days'
         ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED))";

/// A batch of the marks of jobs at work. One stays when its row was dropped by hand or its removal failed; the table holds
/// what is at work, no more.
pub const DELETE_MARKS: &str = "DELETE FROM job_marks WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM job_marks WHERE marked_at < now() - interval '1 day' LIMIT $1 FOR UPDATE SKIP LOCKED))";

/// Forgets a batch of what is over: ticks after a day, idempotency keys after two, refresh tokens, budgets whose window
/// has passed, uploads that were cut, members of deleted pools, notes of crashes that nobody came upon; and what is
/// over by setting (`keep`). Gives whether there may be more.
///
/// # Errors
/// When the database fails.
pub async fn sweep_leftovers(connection: &mut PgConnection, keep: &Retention) -> Result<bool> {
    let gone = [
        delete(connection, DELETE_TICKS, BATCH).await?,
        delete(connection, DELETE_IDEMPOTENCY_KEYS, BATCH).await?,
        delete(connection, session::DELETE_EXPIRED, BATCH).await?,
        delete(connection, budget::DELETE_PASSED, BATCH).await?,
        sweep::sweep_dead_uploads(connection).await?,
        sweep::sweep_old_texts(connection, i64::from(keep.uploads) * DAY).await?,
        delete(connection, sweep::DELETE_SEEN, sweep::KEYS).await?,
        pool::sweep(&mut *connection).await?,
        delete(connection, DELETE_MARKS, BATCH).await?,
        retention::sweep(connection, keep).await?,
    ];
    Ok(gone.iter().any(|rows| *rows > 0))
}

async fn delete(connection: &mut PgConnection, sql: &'static str, batch: i64) -> Result<u64> {
    Ok(sqlx::query(sql)
        .persistent(false)
        .bind(batch)
        .execute(connection)
        .await?
        .rows_affected())
}
