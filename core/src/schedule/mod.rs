//! Schedules: what is started at a time, or again and again.
//!
//! Invariant: a fire happens once, however many processes run and whatever is killed: its row, what it starts and the
//! schedule's next time commit together under the lock of the schedule's row, and the primary key of the fires allows
//! no second one ([`fire`]). Times are the database's; patterns are read in the schedule's own zone ([`cron`]).
//! To add something that can be started: a variant of [`Task`], its arm in [`fire`], the CHECK of `kind`.

pub mod cron;
pub mod fire;
pub mod outlook;
mod store;
mod tick;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

pub use store::{delete, find, insert, list, update};
pub use tick::take_tick;

use self::{cron::Pattern, outlook::When};
use crate::{
    distribution,
    error::{Error, Result},
    export::create::NewExport,
};

/// A fire that is dealt with later than this is one that nobody was there for.
pub const GRACE: TimeDelta = TimeDelta::seconds(60);

/// What becomes of fires that nobody was there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// None of them happens.
    Skip,
    /// One happens for all of them.
    RunOnce,
}

impl Missed {
    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::RunOnce => "run_once",
        }
    }

    fn parse(text: &str) -> Self {
        if text == "run_once" {
            Self::RunOnce
        } else {
            Self::Skip
        }
    }
}

/// What becomes of a fire while an earlier job of the schedule is not at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// It does not happen.
    Skip,
    /// It waits for that end.
    Queue,
}

impl Overlap {
    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Queue => "queue",
        }
    }

    fn parse(text: &str) -> Self {
        if text == "queue" { Self::Queue } else { Self::Skip }
    }
}

/// What a schedule starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// A distribution.
    Distribution(distribution::Request),
    /// An export.
    Export(NewExport),
}

impl Task {
    /// The spelling of its kind in the database and on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Distribution(_) => "distribution",
            Self::Export(_) => "export",
        }
    }

    /// The book that it is about.
    pub fn book_id(&self) -> Uuid {
        match self {
            Self::Distribution(request) => request.book_id,
            Self::Export(new) => new.book_id,
        }
    }

    /// Checks what it asks for; pointers begin with its kind.
    fn check(&self) -> Result<()> {
        let checked = match self {
            Self::Distribution(request) => request.check(),
            Self::Export(new) => new.check(),
        };
        checked.map_err(|error| match error {
            Error::Invalid(mut faults) => {
                for fault in &mut faults {
                    fault.pointer.insert_str(0, &format!("/{}", self.kind()));
                }
                Error::Invalid(faults)
            }
            error => error,
        })
    }

    fn has_seed(&self) -> bool {
        matches!(self, Self::Distribution(request) if request.seed.is_some())
    }

    fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Distribution(request) => serde_json::to_value(request),
            Self::Export(new) => serde_json::to_value(new),
        }
        .expect("requests are plain data")
    }

    fn from_json(kind: &str, body: serde_json::Value) -> Result<Self, serde_json::Error> {
        match kind {
            "distribution" => serde_json::from_value(body).map(Self::Distribution),
            "export" => serde_json::from_value(body).map(Self::Export),
            other => Err(serde::de::Error::custom(format!("no schedule starts a {other}"))),
        }
    }
}

/// What a person may set of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// For people.
    pub name: String,
    /// What it starts.
    pub task: Task,
    /// The one time at which it fires; or
    pub run_at: Option<DateTime<Utc>>,
    /// five fields.
    pub cron: Option<String>,
    /// IANA name; in whose clock cron is read.
    pub time_zone: String,
    /// What becomes of fires that nobody was there for.
    pub missed: Missed,
    /// What becomes of a fire while an earlier job is not at its end.
    pub overlap: Overlap,
    /// From this on it does not fire.
    pub ends_at: Option<DateTime<Utc>>,
    /// Whether it rests.
    pub paused: bool,
}

impl Settings {
    /// Checks what one field alone cannot tell; gives the pattern, if it has one.
    ///
    /// # Errors
    /// `validation_failed`, `cron_invalid`, `time_zone_unknown`.
    pub fn check(&self, now: DateTime<Utc>) -> Result<Option<Pattern>> {
        if self.name.trim().is_empty() {
            return Err(Error::invalid(
                "/name",
                "required",
                "A name has at least one visible character.",
            ));
        }
        self.task.check()?;
        let when = self.when();
        if when.run_at.is_none() && when.cron.is_some() && self.task.has_seed() {
            return Err(Error::invalid(
                "/distribution/seed",
                "unexpected",
                "A seed that is used again is no secret any more; leave it out, and each fire makes its own.",
            ));
        }
        when.check(now)
    }

    fn when(&self) -> When {
        When {
            run_at: self.run_at,
            cron: self.cron.clone(),
            time_zone: self.time_zone.clone(),
            ends_at: self.ends_at,
        }
    }

    /// The first fire behind `after`, if there is one before the end.
    fn next(&self, pattern: Option<&Pattern>, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.when().next(pattern, after)
    }
}

/// What became of a fire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fire {
    /// The time that the schedule names.
    pub fire_at: DateTime<Utc>,
    /// When it was dealt with.
    pub fired_at: DateTime<Utc>,
    /// `started`, `refused`, `overlapped` or `missed`.
    pub outcome: String,
    /// Whether somebody asked for it.
    pub by_hand: bool,
    /// The job that it started.
    pub job_id: Option<Uuid>,
    /// Why it was refused: stable code and sentence.
    pub error: Option<(String, String)>,
}

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// UUIDv7.
    pub id: Uuid,
    /// What a person may set.
    pub settings: Settings,
    /// The next fire; `None` when it is paused or over.
    pub next_fire_at: Option<DateTime<Utc>>,
    /// The latest fire.
    pub last_fire: Option<Fire>,
    /// Counts changes by people.
    pub version: i64,
    /// The user or API key that made it.
    pub created_by: Uuid,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When somebody last changed it.
    pub updated_at: DateTime<Utc>,
    pub(crate) created_by_kind: String,
    pub(crate) noticed_at: Option<DateTime<Utc>>,
}

impl Schedule {
    /// The next `count` fires, by the database's clock; of a paused schedule those that it would have if it went on now.
    ///
    /// # Errors
    /// `cron_invalid` or `time_zone_unknown`, if an older version took what this one does not.
    pub fn preview(&self, now: DateTime<Utc>, count: usize) -> Result<Vec<DateTime<Utc>>> {
        let pattern = self.settings.check(now)?;
        let first = match self.next_fire_at {
            Some(first) => Some(first),
            None if self.settings.paused => self.settings.next(pattern.as_ref(), now),
            None => None,
        };
        let further = |at: &DateTime<Utc>| self.settings.next(pattern.as_ref(), *at);
        Ok(std::iter::successors(first, further).take(count).collect())
    }
}
