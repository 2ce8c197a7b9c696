//! What is kept only for a while is forgotten here, a bounded number of rows at a time.
//!
//! Invariant: nothing that a client may still ask for is touched; history and audit are never.

use sqlx::PgConnection;

use crate::error::StoreError;

/// Rows of one table that one run forgets: a few milliseconds each.
const BATCH: i64 = 5_000;

/// Forgets what is over: ticks after a day, idempotency keys after two, refresh tokens a month past their end, budgets
/// whose window has passed. Gives whether more is left.
///
/// # Errors
/// When the database fails.
pub async fn sweep_leftovers(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let mut more = false;
    for sql in [
        "DELETE FROM ticks WHERE ctid = ANY(ARRAY(
             SELECT ctid FROM ticks WHERE tick < now() - interval '1 day' LIMIT $1))",
        "DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
             SELECT ctid FROM idempotency_keys WHERE created_at < now() - interval '2 days' LIMIT $1))",
        "DELETE FROM refresh_tokens WHERE ctid = ANY(ARRAY(
             SELECT ctid FROM refresh_tokens WHERE expires_at < now() - interval '30 days' LIMIT $1))",
        "DELETE FROM security_budgets WHERE ctid = ANY(ARRAY(
             SELECT ctid FROM security_budgets WHERE window_until < now() LIMIT $1))",
    ] {
        let gone = sqlx::query(sql)
            .bind(BATCH)
            .execute(&mut *connection)
            .await?
            .rows_affected();
        more |= gone >= BATCH.unsigned_abs();
    }
    Ok(more)
}
