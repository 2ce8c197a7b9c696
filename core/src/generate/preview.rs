//! What a pattern would give, before anything is made: its outlook, and codes that show the form.
//!
//! Invariant: no code that is shown is or becomes a coupon of the pattern: they are spelled from the last numbers of its
//! space, and a pattern of which more than a tenth is used is refused.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    create::check_count,
    key::BookKey,
    outlook::{self, Outlook},
    pattern::{Given, Pattern},
};
use crate::{book, error::Result};

/// How many codes are shown.
const SAMPLES: u128 = 5;

/// What a pattern would give.
#[derive(Debug)]
pub struct Preview {
    /// How hard its codes are to guess.
    pub outlook: Outlook,
    /// Codes that show the form.
    pub sample: Vec<String>,
}

/// Looks ahead to `count` more codes of a pattern.
///
/// # Errors
/// `not_found`, `pattern_invalid`, `validation_failed`.
pub async fn preview(
    connection: &mut PgConnection,
    book_id: Uuid,
    given: Given<'_>,
    count: i64,
) -> Result<Preview> {
    check_count(count)?;
    let book = book::find(connection, book_id).await?;
    let pattern = Pattern::parse(given, book.settings.exact_codes)?;
    let existing = outlook::existing(connection, book_id, &pattern.tweak()).await?;
    let outlook = Outlook::of(&pattern, existing + u128::try_from(count).unwrap_or(0));
    let permutation = BookKey::ensure(connection, book_id).await?.permutation(&pattern);
    let mut speller = pattern.speller();
    let sample = (1..=SAMPLES.min(pattern.space()))
        .map(|from_the_end| {
            let (key, shown) = speller.spell(permutation.apply(pattern.space() - from_the_end));
            shown.unwrap_or(key).to_owned()
        })
        .collect();
    Ok(Preview { outlook, sample })
}
