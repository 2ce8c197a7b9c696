//! A book's one slot for jobs that add codes, and what such jobs share around it.
//!
//! Invariant: whoever adds codes holds the slot from its first step to its end; it is given back by the statement that
//! settles the job, or with the job when that is cancelled before its first step.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Code, Refusal, Result};

/// How long a step waits for another job to give the book's slot back.
pub(crate) const SLOT_WAIT: Duration = Duration::from_millis(500);

/// New coupons of one job from which on the planner is told of them at its end.
pub(crate) const STATISTICS_FROM: i64 = 10_000;

/// Takes the book's slot for jobs that add codes, unless another job has it.
pub(crate) async fn take(connection: &mut PgConnection, book_id: Uuid, job_id: Uuid) -> Result<bool> {
    sqlx::query("INSERT INTO code_job_slots (book_id, job_id) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(book_id)
        .bind(job_id)
        .execute(&mut *connection)
        .await?;
    Ok(
        sqlx::query_scalar("SELECT job_id = $2 FROM code_job_slots WHERE book_id = $1")
            .bind(book_id)
            .bind(job_id)
            .fetch_optional(connection)
            .await?
            .unwrap_or(false),
    )
}

/// Locks the book's row against other jobs that add codes being accepted; coupons may be written all the while.
///
/// # Errors
/// `not_found`, `book_not_active` (archived).
pub(crate) async fn lock_book(connection: &mut PgConnection, book_id: Uuid) -> Result<()> {
    let status: Option<String> =
        sqlx::query_scalar("SELECT status FROM books WHERE id = $1 FOR NO KEY UPDATE")
            .bind(book_id)
            .fetch_optional(connection)
            .await?;
    match status.as_deref() {
        None => Err(Refusal::not_found().into()),
        Some("archived") => Err(Refusal::new(
            Code::BookNotActive,
            "The book is archived and takes no more codes.",
        )
        .into()),
        Some(_) => Ok(()),
    }
}

/// Lets the planner know of many new coupons at once; until then it may take a book for a small one. The book's draw is
/// held meanwhile, so the sample is a fifth of the usual one: a tenth of a second. The server takes the usual one when a
/// tenth of the coupons has changed since.
pub(crate) async fn refresh_statistics(connection: &mut PgConnection) -> Result<()> {
    sqlx::query("SET LOCAL default_statistics_target = 20")
        .execute(&mut *connection)
        .await?;
    sqlx::query("ANALYZE coupons").execute(connection).await?;
    Ok(())
}

/// Whether the server logs errors without the values that they are about.
pub(crate) async fn log_is_terse(connection: &mut PgConnection) -> Result<bool> {
    Ok(
        sqlx::query_scalar("SELECT current_setting('log_error_verbosity') = 'terse'")
            .fetch_one(connection)
            .await?,
    )
}
