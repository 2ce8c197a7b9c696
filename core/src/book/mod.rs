//! Books: a set of codes with one configuration.
//!
//! Invariant: `exact_codes` never changes once the book has codes; the version counts every change (it is the ETag).

mod store;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use store::{
    COUNT_FROM_SUMS, Stats, find, find_for, find_several, find_to_check, insert, list, stats, update,
};

use crate::{
    error::{Error, FieldError, Result, Unfit},
    generate::pattern::{Given, Pattern},
};

/// Whether a book moves coupons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Being prepared.
    Draft,
    /// In use.
    Active,
    /// Stopped for a while.
    Paused,
    /// Over for good; kept for the record.
    Archived,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Draft, Self::Active, Self::Paused, Self::Archived];

    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Archived => "archived",
        }
    }

    /// From that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// What a person may set of a book.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// For people.
    pub name: String,
    /// For people.
    pub description: String,
    /// Whether it moves coupons.
    pub status: Status,
    /// Whether case, spaces and dashes make codes different.
    pub exact_codes: bool,
    /// Uses that a new coupon gets.
    pub redemptions_per_coupon: i32,
    /// Coupons a user may be given.
    pub max_assignments_per_user: Option<i32>,
    /// Redemptions a user may make.
    pub max_redemptions_per_user: Option<i32>,
    /// Whether a redemption needs a lock first.
    pub require_lock: bool,
    /// How long a lock lasts, in seconds.
    pub lock_seconds: i32,
    /// How often one lock may be renewed.
    pub lock_renewals: i32,
    /// Whether users see the book and may assign to themselves.
    pub self_service: bool,
    /// Before this nothing moves.
    pub starts_at: Option<DateTime<Utc>>,
    /// From this on nothing moves.
    pub ends_at: Option<DateTime<Utc>>,
    /// Days a coupon stays valid once assigned.
    pub valid_days_after_assignment: Option<i32>,
    /// Days in which a redemption may be rolled back.
    pub rollback_days: i32,
    /// IANA name.
    pub time_zone: String,
    /// How generated codes are spelled.
    pub pattern: Option<String>,
    /// The owner's own fields.
    pub metadata: serde_json::Value,
}

impl Settings {
    /// The defaults of a new book.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            status: Status::Active,
            exact_codes: false,
            redemptions_per_coupon: 1,
            max_assignments_per_user: None,
            max_redemptions_per_user: None,
            require_lock: true,
            lock_seconds: 300,
            lock_renewals: 3,
            self_service: false,
            starts_at: None,
            ends_at: None,
            valid_days_after_assignment: None,
            rollback_days: 90,
            time_zone: "UTC".to_owned(),
            pattern: None,
            metadata: serde_json::Value::Object(serde_json::Map::new()),
        }
    }

    /// Checks what one field alone cannot tell; ranges are checked where the request is read, and by the database.
    ///
    /// # Errors
    /// `validation_failed`, every fault listed.
    pub fn check(&self) -> Result<()> {
        let mut faults = Vec::new();
        if self.name.trim().is_empty() {
            faults.push(FieldError {
                pointer: "/name".into(),
                code: "too_short",
                detail: "A book needs a name that is not blank.".into(),
            });
        }
        if let (Some(starts_at), Some(ends_at)) = (self.starts_at, self.ends_at)
            && ends_at <= starts_at
        {
            faults.push(FieldError {
                pointer: "/ends_at".into(),
                code: "out_of_range",
                detail: "A book must end after it starts.".into(),
            });
        }
        if self.time_zone.parse::<chrono_tz::Tz>().is_err() {
            faults.push(FieldError {
                pointer: "/time_zone".into(),
                code: "time_zone_unknown",
                detail: "This is no IANA time zone, such as Europe/Paris.".into(),
            });
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid(faults))
        }
    }

    /// Checks that the pattern can be read, with the alphabet that is taken when none is given.
    ///
    /// # Errors
    /// `pattern_invalid`.
    pub fn check_pattern(&self) -> Result<(), Unfit> {
        if let Some(pattern) = &self.pattern {
            let given = Given {
                pattern,
                alphabet: None,
                check: false,
            };
            Pattern::parse(given, self.exact_codes)?;
        }
        Ok(())
    }
}

/// A book.
#[derive(Debug, Clone, PartialEq)]
pub struct Book {
    /// UUIDv7.
    pub id: Uuid,
    /// What a person may set.
    pub settings: Settings,
    /// SHA-256 of the seed that the order of draws follows from.
    pub draw_commitment: Vec<u8>,
    /// Counts changes.
    pub version: i64,
    /// The user or API key that made it.
    pub created_by: Uuid,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}
