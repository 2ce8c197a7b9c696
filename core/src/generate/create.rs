//! Accepting a job that makes codes: the pattern is read and held to its bounds, the job is written.
//!
//! Invariant: whatever was accepted together keeps the bound of [`Outlook`]: requests for one book are accepted one
//! after another, under the lock of the book's row, and what is still to be made counts.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    MAX_CODES,
    key::BookKey,
    outlook::{self, Outlook},
    pattern::{Given, Pattern},
};
use crate::{
    caller::Actor,
    coupon::slot,
    error::{Error, Result},
    job::{
        enqueue::{NewJob, enqueue},
        payload::Payload,
    },
};

/// Codes that are wanted.
#[derive(Debug)]
pub struct NewGeneration<'a> {
    /// The book.
    pub book_id: Uuid,
    /// How many.
    pub count: i64,
    /// How they are spelled; the book's pattern if none is given.
    pub pattern: Option<&'a str>,
    /// What `*` stands for.
    pub alphabet: Option<&'a str>,
    /// Whether they get a check character.
    pub check: bool,
    /// When the coupons expire.
    pub expires_at: Option<DateTime<Utc>>,
    /// The coupons' own fields, an object.
    pub metadata: serde_json::Value,
    /// Who asks.
    pub actor: Actor,
    /// The request that asks.
    pub request_id: Option<&'a str>,
}

/// Checks how many codes are wanted.
///
/// # Errors
/// `validation_failed` at `/count`.
pub(super) fn check_count(count: i64) -> Result<()> {
    if (1..=MAX_CODES).contains(&count) {
        Ok(())
    } else {
        let detail = format!("A job makes 1 to {MAX_CODES} codes.");
        Err(Error::invalid("/count", "out_of_range", detail))
    }
}

/// Accepts a job. When another job is adding codes to the book, this one waits for its end.
///
/// # Errors
/// `not_found`, `book_not_active` (archived), `pattern_invalid`, `pattern_space_too_small`, `validation_failed`.
pub async fn create(connection: &mut PgConnection, new: &NewGeneration<'_>) -> Result<Uuid> {
    check_count(new.count)?;
    slot::lock_book(connection, new.book_id).await?;
    let (own, exact): (Option<String>, bool) =
        sqlx::query_as("SELECT pattern, exact_codes FROM books WHERE id = $1")
            .bind(new.book_id)
            .fetch_one(&mut *connection)
            .await?;
    let Some(text) = new.pattern.or(own.as_deref()) else {
        let detail = "The book has no pattern of its own: say how the codes are spelled.";
        return Err(Error::invalid("/pattern", "required", detail));
    };
    let given = Given {
        pattern: text,
        alphabet: new.alphabet,
        check: new.check,
    };
    let pattern = Pattern::parse(given, exact)?;
    let tweak = pattern.tweak();
    let existing = outlook::existing(connection, new.book_id, &tweak).await?;
    Outlook::of(&pattern, existing + u128::try_from(new.count).unwrap_or(0)).require()?;
    BookKey::ensure(connection, new.book_id).await?;
    let job = NewJob {
        payload: &Payload::GenerateCodes,
        actor: new.actor,
        book_id: Some(new.book_id),
        total: Some(new.count),
        request_id: new.request_id,
        beneficiary: None,
    };
    let job_id = enqueue(connection, job).await?;
    let metadata = new.metadata.as_object().is_some_and(|fields| !fields.is_empty());
    sqlx::query(
        "INSERT INTO generations (job_id, book_id, count, tweak, pattern, alphabet, checked, expires_at, metadata)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(job_id)
    .bind(new.book_id)
    .bind(new.count)
    .bind(&tweak[..])
    .bind(given.pattern)
    .bind(given.alphabet)
    .bind(given.check)
    .bind(new.expires_at)
    .bind(metadata.then_some(&new.metadata))
    .execute(connection)
    .await?;
    Ok(job_id)
}
