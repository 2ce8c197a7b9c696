//! How hard the codes of a pattern would be to guess, before they are made.
//!
//! Invariant: among the codes that a pattern spells, at most one in [`REFUSED_BELOW`] is a coupon. The bound counts what
//! was made of the pattern, what is being made, and what is asked for.

use sqlx::PgConnection;
use uuid::Uuid;

use super::pattern::Pattern;
use crate::error::{Code, Result, Unfit};

/// Codes that a pattern must spell for each coupon.
pub const REFUSED_BELOW: u128 = 10;

/// Codes that it should spell for each: one guess in a million.
pub const WARNED_BELOW: u128 = 1_000_000;

/// How often somebody tries, for the odds that are shown.
const TRIES: f64 = 1_000.0;

/// What is to be expected of a pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    /// How many codes it spells.
    pub space: u128,
    /// How many coupons of the pattern there would be.
    pub total: u128,
    /// Which share of the codes would be coupons.
    pub density: f64,
    /// The odds of meeting one of them in 1,000 tries.
    pub guess_odds: f64,
    /// Whether it is accepted.
    pub ok: bool,
    /// How long codes would have to be to be accepted, if these are not; `None` also when no length would do.
    pub needed_length: Option<usize>,
    /// How long they would have to be so that a guess is one in a million; `None` when these are, or no length would do.
    pub safe_length: Option<usize>,
}

impl Outlook {
    /// Of `total` coupons with codes of the pattern.
    pub fn of(pattern: &Pattern, total: u128) -> Self {
        let space = pattern.space();
        let density = (total as f64 / space as f64).min(1.0);
        let short_of = |times: u128| space < total.saturating_mul(times);
        let length = |times: u128| {
            let wanted = total.saturating_mul(times);
            short_of(times).then(|| pattern.length_for(wanted)).flatten()
        };
        Self {
            space,
            total,
            density,
            guess_odds: -(TRIES * (-density).ln_1p()).exp_m1(),
            ok: !short_of(REFUSED_BELOW),
            needed_length: length(REFUSED_BELOW),
            safe_length: length(WARNED_BELOW),
        }
    }

    /// What a person should know before the codes are made.
    pub fn warning(&self) -> Option<String> {
        let advice = |length: Option<usize>| match length {
            Some(length) => format!("Codes of {length} characters would do."),
            None => "Take a pattern with more placeholders.".to_owned(),
        };
        let (space, total) = (self.space, self.total);
        if !self.ok {
            let advice = advice(self.needed_length);
            return Some(format!(
                "The pattern spells {space} codes, which is fewer than {REFUSED_BELOW} for each of {total} coupons: they \
                 could be guessed. {advice}"
            ));
        }
        (space < total.saturating_mul(WARNED_BELOW)).then(|| {
            let (share, advice) = (space / total.max(1), advice(self.safe_length));
            format!("One in {share} codes would be a coupon; one in {WARNED_BELOW} or fewer is hard to guess. {advice}")
        })
    }

    /// Refuses a pattern that is too small.
    ///
    /// # Errors
    /// `pattern_space_too_small`, with the length that would do.
    pub fn require(&self) -> Result<(), Unfit> {
        if self.ok {
            return Ok(());
        }
        let detail = self.warning().unwrap_or_default();
        let unfit = Unfit::at(Code::PatternSpaceTooSmall, "/pattern", "too_few_codes", detail);
        Err(Unfit {
            needed_length: self.needed_length,
            ..unfit
        })
    }
}

/// How many coupons of a pattern a book has or is about to get.
///
/// # Errors
/// When the database fails.
pub async fn existing(connection: &mut PgConnection, book_id: Uuid, tweak: &[u8; 32]) -> Result<u128> {
    let existing: i64 = sqlx::query_scalar(
        "SELECT coalesce((SELECT made FROM code_patterns WHERE book_id = $1 AND tweak = $2), 0)
              + coalesce((SELECT sum(g.count - g.made)::bigint FROM generations g JOIN jobs j ON j.id = g.job_id
                          WHERE g.book_id = $1 AND g.tweak = $2 AND j.finished_at IS NULL), 0)",
    )
    .bind(book_id)
    .bind(&tweak[..])
    .fetch_one(connection)
    .await?;
    Ok(u128::try_from(existing).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{super::pattern::Given, *};

    fn of(pattern: &str, total: u128) -> Outlook {
        let given = Given {
            pattern,
            alphabet: None,
            check: false,
        };
        Outlook::of(&Pattern::parse(given, false).unwrap(), total)
    }

    #[test]
    fn ten_codes_for_each_coupon_are_the_least() {
        let (enough, short) = (of("A-####", 1_000), of("A-####", 1_001));
        assert!(enough.ok && enough.require().is_ok() && enough.needed_length.is_none());
        assert_eq!(
            (short.ok, short.needed_length, short.safe_length),
            (false, Some(7), Some(12))
        );
        let unfit = short.require().unwrap_err();
        assert_eq!(
            (unfit.code, unfit.needed_length),
            (Code::PatternSpaceTooSmall, Some(7))
        );
    }

    #[test]
    fn odds_are_those_of_a_thousand_tries() {
        let outlook = of("A-####", 1_000);
        assert!((outlook.density - 0.1).abs() < 1e-12 && outlook.guess_odds > 0.999_999);
        let outlook = of("########", 100); // one in a million
        assert!((outlook.guess_odds - (1.0 - 0.999_999f64.powi(1_000))).abs() < 1e-12);
        assert_eq!((outlook.warning(), outlook.safe_length), (None, None));
        let outlook = of("########", 101);
        assert!(outlook.ok && outlook.warning().is_some());
        assert_eq!(outlook.safe_length, Some(9));
        assert!(of("***********************", 10_000_000).guess_odds > 0.0);
        assert_eq!(of("#", 1_000_000).density, 1.0);
    }
}
