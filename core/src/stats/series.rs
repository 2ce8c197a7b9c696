//! Reading the sums as series of points, one per hour or day.
//!
//! Invariant: a series has a point for every interval that lies before [`Window::complete_until`], with zeros where
//! nothing happened; so two neighbours tell what changed, and nobody has to fill gaps.

use std::collections::BTreeMap;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{ALL_BOOKS, time_of};
use crate::{
    book,
    error::{Error, Result},
};

/// Points of one series at most: six weeks of hours, or almost three years of days.
pub const MAX_POINTS: i64 = 1_000;

/// Without a step, a longer time is told by days: two weeks.
const HOURS_UP_TO: TimeDelta = TimeDelta::days(14);

/// How long an interval is; both begin as UTC has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// An hour.
    Hour,
    /// A day.
    Day,
}

impl Step {
    /// The unit as PostgreSQL and clients spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    fn length(self) -> TimeDelta {
        match self {
            Self::Hour => TimeDelta::hours(1),
            Self::Day => TimeDelta::days(1),
        }
    }

    /// What is shown if no beginning is given.
    fn usual(self) -> TimeDelta {
        match self {
            Self::Hour => TimeDelta::days(7),
            Self::Day => TimeDelta::days(90),
        }
    }

    fn floor(self, time: DateTime<Utc>) -> DateTime<Utc> {
        time.duration_trunc(self.length()).unwrap_or(time)
    }
}

/// What somebody asked for; what is left out has a default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    /// The beginning; by default a week (hours) or 90 days (days) before the end.
    pub from: Option<DateTime<Utc>>,
    /// The end; by default now.
    pub to: Option<DateTime<Utc>>,
    /// The length of an interval; by default hours for up to two weeks, else days.
    pub step: Option<Step>,
}

/// The time that a series is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The beginning of the first interval.
    pub from: DateTime<Utc>,
    /// The end of the last.
    pub to: DateTime<Utc>,
    /// How long each is.
    pub step: Step,
    /// What happened before is in the sums; a point that begins later does not exist yet.
    pub complete_until: DateTime<Utc>,
}

impl Window {
    /// Settles what was asked for.
    ///
    /// # Errors
    /// `validation_failed`: an end that is not behind the beginning, more than [`MAX_POINTS`].
    pub fn settle(asked: Asked, now: DateTime<Utc>, complete_until: DateTime<Utc>) -> Result<Self> {
        let to = asked.to.unwrap_or(now);
        let step = asked.step.unwrap_or(match asked.from {
            Some(from) if to - from > HOURS_UP_TO => Step::Day,
            _ => Step::Hour,
        });
        let from = asked.from.unwrap_or(to - step.usual());
        if from >= to {
            let detail = "The end lies behind the beginning.";
            return Err(Error::invalid("?to", "out_of_range", detail));
        }
        let from = step.floor(from);
        let whole = step.floor(to);
        let to = if whole < to { whole + step.length() } else { whole };
        let points = (to - from).num_seconds() / step.length().num_seconds();
        if points > MAX_POINTS {
            let detail = format!(
                "That would be {points} points, {MAX_POINTS} are the most; ask for a shorter time or a longer step."
            );
            return Err(Error::invalid("?from", "too_many_points", detail));
        }
        Ok(Self {
            from,
            to,
            step,
            complete_until,
        })
    }

    /// The beginning of each interval that there is.
    fn begins(self) -> impl Iterator<Item = DateTime<Utc>> {
        let end = self.to.min(self.complete_until);
        std::iter::successors(Some(self.from), move |at| Some(*at + self.step.length()))
            .take_while(move |at| *at < end)
    }

    async fn read(connection: &mut PgConnection, asked: Asked) -> Result<Self> {
        let (now, events_before): (DateTime<Utc>, Uuid) =
            sqlx::query_as("SELECT now(), events_before FROM roll_up_state")
                .fetch_one(connection)
                .await?;
        Self::settle(asked, now, time_of(events_before))
    }
}

/// Coupons by state at the end of an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct States {
    /// In the draw.
    pub unassigned: i64,
    /// Held, not locked.
    pub assigned: i64,
    /// Held and locked; a lapsed lock counts until it is swept, some seconds later.
    pub locked: i64,
    /// Used up.
    pub redeemed: i64,
    /// Withdrawn.
    pub void: i64,
    /// Uses spent, less those given back.
    pub redemptions: i64,
}

impl States {
    /// All coupons.
    pub fn total(self) -> i64 {
        self.unassigned + self.assigned + self.locked + self.redeemed + self.void
    }
}

/// What happened in an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
#[expect(
    missing_docs,
    reason = "the comments of book_hours say what each column counts"
)]
pub struct Counts {
    pub added_count: i64,
    pub assigned_count: i64,
    pub locked_count: i64,
    pub unlocked_count: i64,
    pub lock_expired_count: i64,
    pub redeemed_count: i64,
    pub rolled_back_count: i64,
    pub revoked_count: i64,
    pub voided_count: i64,
}

/// One interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Point {
    /// Its beginning.
    pub at: DateTime<Utc>,
    /// At its end, or so far.
    #[sqlx(flatten)]
    pub states: States,
    /// In it.
    #[sqlx(flatten)]
    pub counts: Counts,
}

/// What stood before a time ($2).
pub const STATES_BEFORE: &str =
    "SELECT unassigned, assigned, locked, redeemed, void, redemptions FROM book_hours
     WHERE book_id = $1 AND hour < $2 ORDER BY hour DESC LIMIT 1";

/// The intervals ($4: hour or day) from $2 to $3 in which something happened.
pub const POINTS: &str = "SELECT p.*, l.unassigned, l.assigned, l.locked, l.redeemed, l.void, l.redemptions
     FROM (
         SELECT date_trunc($4, hour, 'UTC') AS at, max(hour) AS last,
                sum(added_count)::bigint AS added_count, sum(assigned_count)::bigint AS assigned_count,
                sum(locked_count)::bigint AS locked_count, sum(unlocked_count)::bigint AS unlocked_count,
                sum(lock_expired_count)::bigint AS lock_expired_count, sum(redeemed_count)::bigint AS redeemed_count,
                sum(rolled_back_count)::bigint AS rolled_back_count, sum(revoked_count)::bigint AS revoked_count,
                sum(voided_count)::bigint AS voided_count
         FROM book_hours WHERE book_id = $1 AND hour >= $2 AND hour < $3 GROUP BY 1) AS p
     JOIN book_hours l ON l.book_id = $1 AND l.hour = p.last";

async fn points(connection: &mut PgConnection, book_id: Uuid, window: Window) -> Result<Vec<Point>> {
    let before: Option<States> = sqlx::query_as(STATES_BEFORE)
        .bind(book_id)
        .bind(window.from)
        .fetch_optional(&mut *connection)
        .await?;
    let rows: Vec<Point> = sqlx::query_as(POINTS)
        .bind(book_id)
        .bind(window.from)
        .bind(window.to)
        .bind(window.step.as_str())
        .fetch_all(connection)
        .await?;
    let mut rows: BTreeMap<DateTime<Utc>, Point> = rows.into_iter().map(|point| (point.at, point)).collect();
    let mut states = before.unwrap_or_default();
    let filled = window.begins().map(|at| {
        let point = rows.remove(&at).unwrap_or(Point {
            at,
            states,
            counts: Counts::default(),
        });
        states = point.states;
        point
    });
    Ok(filled.collect())
}

/// What happened to a book's coupons, and how they stood.
///
/// # Errors
/// `not_found`; those of [`Window::settle`].
pub async fn of_book(
    connection: &mut PgConnection,
    book_id: Uuid,
    asked: Asked,
) -> Result<(Window, Vec<Point>)> {
    book::find(connection, book_id).await?;
    let window = Window::read(connection, asked).await?;
    let points = points(connection, book_id, window).await?;
    Ok((window, points))
}

/// Jobs of a kind that ended in an interval.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobsEnded {
    /// How many, by final state.
    pub by_state: BTreeMap<String, i64>,
    /// From acceptance to end, summed.
    pub seconds: f64,
}

/// How deep a queue was in an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Depth {
    /// Due jobs, the mean of a sample per minute.
    pub mean: f64,
    /// The most.
    pub max: i64,
}

/// One interval of the whole service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServicePoint {
    /// All books together.
    pub coupons: Point,
    /// Jobs by kind; no entry for kinds of which none ended.
    pub jobs: BTreeMap<String, JobsEnded>,
    /// Queues by name; no entry where nobody looked.
    pub queues: BTreeMap<String, Depth>,
}

/// Jobs that ended from $1 to $2 by interval ($3).
pub const JOBS: &str =
    "SELECT date_trunc($3, hour, 'UTC') AS at, kind, state, sum(jobs)::bigint, sum(seconds)
     FROM job_hours WHERE hour >= $1 AND hour < $2 GROUP BY 1, kind, state";

/// How deep the queues were from $1 to $2 by interval ($3).
pub const QUEUES: &str = "SELECT date_trunc($3, hour, 'UTC') AS at, queue,
            (sum(due_sum) / sum(samples))::float8, max(due_max)
     FROM queue_hours WHERE hour >= $1 AND hour < $2 GROUP BY 1, queue";

/// What happened in all books, and to the jobs.
///
/// # Errors
/// Those of [`Window::settle`].
pub async fn of_service(connection: &mut PgConnection, asked: Asked) -> Result<(Window, Vec<ServicePoint>)> {
    let window = Window::read(connection, asked).await?;
    let coupons = points(connection, ALL_BOOKS, window).await?;
    let jobs: Vec<(DateTime<Utc>, String, String, i64, f64)> = sqlx::query_as(JOBS)
        .bind(window.from)
        .bind(window.to)
        .bind(window.step.as_str())
        .fetch_all(&mut *connection)
        .await?;
    let queues: Vec<(DateTime<Utc>, String, f64, i64)> = sqlx::query_as(QUEUES)
        .bind(window.from)
        .bind(window.to)
        .bind(window.step.as_str())
        .fetch_all(&mut *connection)
        .await?;
    let mut by_time: BTreeMap<DateTime<Utc>, ServicePoint> = coupons
        .into_iter()
        .map(|coupons| {
            let point = ServicePoint {
                coupons,
                jobs: BTreeMap::new(),
                queues: BTreeMap::new(),
            };
            (coupons.at, point)
        })
        .collect();
    for (at, kind, state, count, seconds) in jobs {
        // Newer than what is complete of the coupons: the next look tells it with them.
        if let Some(point) = by_time.get_mut(&at) {
            let ended = point.jobs.entry(kind).or_default();
            ended.seconds += seconds;
            ended.by_state.insert(state, count);
        }
    }
    for (at, queue, mean, max) in queues {
        if let Some(point) = by_time.get_mut(&at) {
            point.queues.insert(queue, Depth { mean, max });
        }
    }
    Ok((window, by_time.into_values().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn windows_are_whole_steps_and_bounded() {
        let now = time("2026-03-04T05:06:07Z");
        let week = Window::settle(Asked::default(), now, now).unwrap();
        assert_eq!(
            (week.from, week.to),
            (time("2026-02-25T05:00:00Z"), time("2026-03-04T06:00:00Z"))
        );
        assert_eq!(week.begins().count(), 7 * 24 + 1);
        let long = Asked {
            from: Some(time("2026-01-01T12:00:00Z")),
            ..Asked::default()
        };
        let days = Window::settle(long, now, time("2026-01-03T00:00:00Z")).unwrap();
        assert_eq!(
            (days.step, days.from, days.to),
            (
                Step::Day,
                time("2026-01-01T00:00:00Z"),
                time("2026-03-05T00:00:00Z")
            )
        );
        assert_eq!(
            days.begins().count(),
            2,
            "no point begins behind what is complete"
        );
        let hours = Asked {
            step: Some(Step::Hour),
            ..long
        };
        assert!(Window::settle(hours, now, now).is_err(), "1,481 points");
        let backwards = Asked {
            to: long.from,
            ..long
        };
        assert!(Window::settle(backwards, now, now).is_err());
    }
}
