//! Times as people write them in a file, read in the book's time zone.
//!
//! Invariant: a bare date means "through that day": the coupon expires when the next day begins there.

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

/// Reads RFC 3339, the same as PostgreSQL writes it (`2026-12-31 22:00:00.5+00`), or `YYYY-MM-DD[ HH:MM[:SS]]` in `zone`. A local time that occurs twice means the later one, one that
/// a change of the clocks leaves out means the first moment after it.
pub(super) fn parse(text: &str, zone: Tz) -> Option<DateTime<Utc>> {
    let text = text.trim();
    let read = if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        local(
            date.checked_add_days(Days::new(1))?.and_time(NaiveTime::MIN),
            zone,
        )
    } else if let Ok(time) = DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z"))
    {
        Some(time.with_timezone(&Utc))
    } else {
        let text = text.replacen('T', " ", 1);
        ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"]
            .iter()
            .find_map(|format| NaiveDateTime::parse_from_str(&text, format).ok())
            .and_then(|time| local(time, zone))
    };
    read.filter(|time| (1..=9999).contains(&time.year()))
}

fn local(time: NaiveDateTime, zone: Tz) -> Option<DateTime<Utc>> {
    // A gap is an hour nearly everywhere; a whole day was left out once (Samoa, 2011).
    (0..=96)
        .filter_map(|quarters| time.checked_add_signed(TimeDelta::minutes(15 * quarters)))
        .find_map(|time| zone.from_local_datetime(&time).latest())
        .map(|time| time.with_timezone(&Utc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_the_zone_of_the_book() {
        let read = |text| parse(text, chrono_tz::Europe::Paris).map(|time| time.to_rfc3339());
        for (text, want) in [
            ("2026-07-01", "2026-07-01T22:00:00+00:00"),
            (" 2026-07-01 12:30 ", "2026-07-01T10:30:00+00:00"),
            ("2026-01-01T12:30:15", "2026-01-01T11:30:15+00:00"),
            ("2026-07-01T12:30:15Z", "2026-07-01T12:30:15+00:00"),
            ("2026-07-01T12:30:15+05:00", "2026-07-01T07:30:15+00:00"),
            ("2026-12-31 22:00:00+00", "2026-12-31T22:00:00+00:00"),
            ("2026-12-31 22:00:00.25-03", "2027-01-01T01:00:00.250+00:00"),
            ("2026-12-31 22:00:00+05:30", "2026-12-31T16:30:00+00:00"),
            ("2026-03-29 02:30", "2026-03-29T01:00:00+00:00"),
            ("2026-10-25 02:30", "2026-10-25T01:30:00+00:00"),
        ] {
            assert_eq!(read(text).as_deref(), Some(want), "{text}");
        }
        for text in [
            "",
            "tomorrow",
            "01/02/2026",
            "2026-02-30",
            "2026-01-01 25:00",
            "+12026-01-01",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
