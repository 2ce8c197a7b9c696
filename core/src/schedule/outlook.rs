//! When a schedule would fire that nobody has made yet.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{
    cron::{self, Pattern},
    store,
};
use crate::error::{Error, Result};

/// When a schedule fires, without what it starts.
#[derive(Debug, Clone)]
pub struct When {
    /// The one time; or
    pub run_at: Option<DateTime<Utc>>,
    /// five fields.
    pub cron: Option<String>,
    /// IANA name; in whose clock cron is read.
    pub time_zone: String,
    /// From this on it does not fire.
    pub ends_at: Option<DateTime<Utc>>,
}

impl When {
    /// Checks that it is one time or a pattern, and that the first comes before the end; gives the pattern, if it has
    /// one.
    ///
    /// # Errors
    /// `validation_failed`, `cron_invalid`, `time_zone_unknown`.
    pub fn check(&self, now: DateTime<Utc>) -> Result<Option<Pattern>> {
        cron::zone(&self.time_zone)?;
        match (&self.run_at, &self.cron) {
            (None, None) => Err(Error::invalid(
                "/run_at",
                "required",
                "Say when: run_at for one time, cron for again and again.",
            )),
            (Some(_), Some(_)) => Err(Error::invalid(
                "/cron",
                "unexpected",
                "A schedule has one of run_at and cron.",
            )),
            (Some(run_at), None) if self.ends_at.is_some_and(|ends_at| ends_at <= *run_at) => Err(
                Error::invalid("/ends_at", "out_of_range", "It would end before it fires."),
            ),
            (Some(_), None) => Ok(None),
            (None, Some(cron)) => Ok(Some(Pattern::parse(cron, &self.time_zone, now)?)),
        }
    }

    /// The first fire behind `after`, if there is one before the end.
    pub(super) fn next(&self, pattern: Option<&Pattern>, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let next = match pattern {
            Some(pattern) => pattern.next(after),
            None => self.run_at.filter(|run_at| *run_at > after),
        };
        next.filter(|next| self.ends_at.is_none_or(|ends_at| *next < ends_at))
    }
}

/// The next `count` fires by the database's clock.
///
/// # Errors
/// As [`When::check`].
pub async fn outlook(connection: &mut PgConnection, when: &When, count: usize) -> Result<Vec<DateTime<Utc>>> {
    let now = store::now(connection).await?;
    let pattern = when.check(now)?;
    let next = |after: &DateTime<Utc>| when.next(pattern.as_ref(), *after);
    Ok(std::iter::successors(next(&now), next).take(count).collect())
}
