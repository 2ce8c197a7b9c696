//! When a schedule fires: five fields of cron in a time zone.
//!
//! Invariant: a clock that is put forward or back neither loses a fire nor doubles one. A pattern that names hours is
//! read as times on the clock of the zone, each of which happens once: a time that the clock leaves out happens at the
//! first moment after the gap, one that comes twice happens the first time. A pattern whose field of hours begins with
//! `*` means a rhythm and is read hour by hour as they pass, so the hour that comes twice counts twice, the one that is
//! left out does not count. These are the rules of Vixie cron.

use std::str::FromStr;

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};

use crate::error::{Code, Refusal};

/// The widest gap that a clock was ever put forward by, and more: Samoa left out a day in 2011.
const WIDEST_GAP: TimeDelta = TimeDelta::hours(26);

/// Fires that the way from a local time to the next one may meet before it gives up: each minute of that gap.
const MOST_STEPS: usize = 26 * 60 + 2;

/// The most characters of a pattern.
const MAX_PATTERN: usize = 200;

/// A pattern in a zone.
#[derive(Debug, Clone)]
pub struct Pattern {
    cron: Cron,
    zone: Tz,
    /// Whether the field of hours begins with `*`.
    rhythm: bool,
}

/// A time zone by its IANA name.
///
/// # Errors
/// `time_zone_unknown`.
pub fn zone(name: &str) -> Result<Tz, Refusal> {
    Tz::from_str(name).map_err(|_| {
        Refusal::new(
            Code::TimeZoneUnknown,
            "time_zone is no IANA time zone, such as Europe/Paris.",
        )
    })
}

impl Pattern {
    /// Reads five fields: minute, hour, day of the month, month, day of the week.
    ///
    /// # Errors
    /// `cron_invalid`, also for a pattern that names no time that ever comes; `time_zone_unknown`.
    pub fn parse(pattern: &str, time_zone: &str, now: DateTime<Utc>) -> Result<Self, Refusal> {
        let invalid = |detail: String| Refusal::new(Code::CronInvalid, detail);
        let fields: Vec<&str> = pattern.split_whitespace().collect();
        if fields.len() != 5 || pattern.len() > MAX_PATTERN {
            let detail = "cron has five fields: minute, hour, day of the month, month, day of the week; such as `0 9 * * 1-5`.";
            return Err(invalid(detail.to_owned()));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser
            .parse(pattern)
            .map_err(|error| invalid(format!("cron cannot be read: {error}")))?;
        let parsed = Self {
            cron,
            zone: zone(time_zone)?,
            rhythm: fields[1].starts_with('*'),
        };
        if parsed.next(now).is_none() {
            return Err(invalid("cron names no time that ever comes.".to_owned()));
        }
        Ok(parsed)
    }

    /// The first fire behind `after`.
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = after.with_timezone(&self.zone);
        if self.rhythm {
            let next = self.cron.find_next_occurrence(&local, false).ok()?;
            return Some(next.to_utc());
        }
        // From well before, since a time that was left out stands for a later moment.
        let mut from = local.naive_local() - WIDEST_GAP;
        let mut inclusive = true;
        // At most a fire a minute lies between there and the answer.
        for _ in 0..2 * MOST_STEPS {
            let named: NaiveDateTime = self.cron.find_next_occurrence(&from, inclusive).ok()?;
            let instant = self.instant(named)?;
            if instant > after {
                return Some(instant);
            }
            (from, inclusive) = (named, false);
        }
        None
    }

    /// The moment that a time on the zone's clock stands for.
    fn instant(&self, named: NaiveDateTime) -> Option<DateTime<Utc>> {
        let mut local = named;
        for _ in 0..MOST_STEPS {
            match self.zone.from_local_datetime(&local) {
                MappedLocalTime::Single(found) | MappedLocalTime::Ambiguous(found, _) => {
                    return Some(found.to_utc());
                }
                MappedLocalTime::None => local = local.checked_add_signed(TimeDelta::minutes(1))?,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fires(pattern: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let mut at: DateTime<Utc> = after.parse().unwrap();
        let pattern = Pattern::parse(pattern, zone, at).unwrap();
        (0..count)
            .map(|_| {
                at = pattern.next(at).unwrap();
                at.format("%m-%dT%H:%M").to_string()
            })
            .collect()
    }

    const BERLIN: &str = "Europe/Berlin"; // 2026-03-29 02:00 → 03:00 at 01:00 UTC; 2026-10-25 03:00 → 02:00 at 01:00 UTC

    #[test]
    fn a_time_that_the_clock_leaves_out_happens_at_the_first_moment_after_it() {
        let spring = "2026-03-28T00:00:00Z";
        assert_eq!(
            fires("30 2 * * *", BERLIN, spring, 3),
            ["03-28T01:30", "03-29T01:00", "03-30T00:30"]
        );
        // Several of them are one moment, and so one fire.
        assert_eq!(
            fires("*/20 2 * * *", BERLIN, "2026-03-28T12:00:00Z", 3),
            ["03-29T01:00", "03-30T00:00", "03-30T00:20"]
        );
        assert_eq!(
            fires("30 2,14 * * *", BERLIN, "2026-03-28T14:00:00Z", 2),
            ["03-29T01:00", "03-29T12:30"]
        );
        // Half an hour is left out, and a whole day.
        assert_eq!(
            fires("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", 1),
            ["10-03T15:30"]
        );
        assert_eq!(
            fires("0 12 30 12 *", "Pacific/Apia", "2011-12-29T12:00:00Z", 1),
            ["12-30T10:00"]
        );
    }

    #[test]
    fn a_time_that_comes_twice_happens_the_first_time() {
        assert_eq!(
            fires("30 2 * * *", BERLIN, "2026-10-24T12:00:00Z", 2),
            ["10-25T00:30", "10-26T01:30"]
        );
        assert_eq!(
            fires("0,30 1,2,3 * * *", BERLIN, "2026-10-24T20:00:00Z", 6),
            [
                "10-24T23:00",
                "10-24T23:30",
                "10-25T00:00",
                "10-25T00:30",
                "10-25T02:00",
                "10-25T02:30"
            ]
        );
        // Asked in the second pass, too.
        assert_eq!(
            fires("30 2 * * *", BERLIN, "2026-10-25T01:10:00Z", 1),
            ["10-26T01:30"]
        );
    }

    #[test]
    fn a_rhythm_goes_on_while_the_clock_is_put() {
        assert_eq!(
            fires("0 * * * *", BERLIN, "2026-03-28T23:30:00Z", 3),
            ["03-29T00:00", "03-29T01:00", "03-29T02:00"]
        );
        assert_eq!(
            fires("30 * * * *", BERLIN, "2026-10-24T23:45:00Z", 3),
            ["10-25T00:30", "10-25T01:30", "10-25T02:30"]
        );
    }

    #[test]
    fn what_is_no_pattern_or_never_comes_is_refused() {
        let now = Utc::now();
        for pattern in [
            "",
            "* * * *",
            "* * * * * *",
            "0 0 * * * 2027",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "@daily",
            "x * * * *",
            "0 0 30 2 *",
            "5-1 * * * *",
            "*/0 * * * *",
        ] {
            let refused = Pattern::parse(pattern, "UTC", now).map(|_| pattern).unwrap_err();
            assert_eq!(refused.code, Code::CronInvalid, "{pattern}");
        }
        assert!(Pattern::parse("0 0 29 2 *", "UTC", now).is_ok());
        let refused = Pattern::parse("* * * * *", "Mars/Olympus", now)
            .map(drop)
            .unwrap_err();
        assert_eq!(refused.code, Code::TimeZoneUnknown);
    }
}
