//! Distributions: coupons of a book for the people of a pool, planned, run and undone.
//!
//! ```text
//! planned ──▶ running ──▶ completed · completed_with_shortfall · failed · cancelled
//!                             └──────────┴──────────┴────────┴──▶ undoing ──▶ undone · partially_undone ──▶ undoing
//! ```
//! Invariant: what a step gives, its items and its place commit together under the lock of the distribution's row, so
//! nobody gets two shares however often a worker is killed. Who is left out is decided by one set of SQL ([`plan`]), the
//! same for a dry run and for a run; whose turn it is, and in mode random who gets how many, follow from the seed
//! ([`order`]), whose SHA-256 is shown from the start.
//! The way of a distribution: [`create`] accepts it → [`step`] gathers the members, decides, and gives ([`give`]) →
//! [`undo`] takes back. To add a mode: [`Mode`], the shares of [`plan`], the share of [`give`], its CHECKs.

pub mod create;
pub mod give;
pub mod items_csv;
pub mod order;
pub mod plan;
pub mod step;
mod store;
pub mod undo;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use store::{Filter, LIST_ITEMS, find, list, list_items};

use crate::error::{Error, FieldError, Result};

/// The most coupons that one person gets in the modes `equal` and `top_up`: as many as one assign draws.
pub const MAX_PER_USER: i32 = 1_000;

/// The most coupons of one distribution in mode `random`.
pub const MAX_TOTAL: i32 = 10_000_000;

/// The longest seed of a caller's own, in bytes.
const MAX_SEED: usize = 200;

/// Who gets how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The same number each, all or none.
    Equal,
    /// So many in all, each drawn for a random person.
    Random,
    /// Everybody is brought up to a number.
    TopUp,
}

impl Mode {
    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Random => "random",
            Self::TopUp => "top_up",
        }
    }

    /// From that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Equal, Self::Random, Self::TopUp]
            .into_iter()
            .find(|mode| mode.as_str() == text)
    }
}

/// What happens when there are too few coupons, or too little room for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnShortage {
    /// Nothing is given.
    Fail,
    /// As far as it goes, in the order that the seed gives.
    Partial,
}

impl OnShortage {
    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Partial => "partial",
        }
    }

    /// From that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Fail, Self::Partial]
            .into_iter()
            .find(|on_shortage| on_shortage.as_str() == text)
    }
}

/// What is asked for; schedules keep it as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Coupons of which book.
    pub book_id: Uuid,
    /// For the members of which pool.
    pub pool_id: Uuid,
    /// Who gets how many.
    pub mode: Mode,
    /// Modes `equal` and `top_up`: how many each gets, or is brought up to.
    pub per_user: Option<i32>,
    /// Mode `random`: how many in all.
    pub total: Option<i32>,
    /// Mode `random`: how many one person may get at most.
    pub max_per_user: Option<i32>,
    /// What happens when there are too few.
    pub on_shortage: OnShortage,
    /// The caller's own seed; without one, a random seed is made.
    pub seed: Option<String>,
}

impl Request {
    /// Whether the numbers fit the mode.
    ///
    /// # Errors
    /// `validation_failed` with every fault.
    pub fn check(&self) -> Result<()> {
        let mut faults = Vec::new();
        let mut fault = |pointer: &str, code, detail: String| {
            faults.push(FieldError {
                pointer: pointer.to_owned(),
                code,
                detail,
            });
        };
        let random = self.mode == Mode::Random;
        let mode = self.mode.as_str();
        let mut number =
            |pointer: &str, value: Option<i32>, wanted: bool, needed: bool, most: i32| match value {
                Some(_) if !wanted => {
                    fault(
                        pointer,
                        "unexpected",
                        format!("This says nothing in mode {mode}; leave it out."),
                    );
                }
                None if needed => fault(pointer, "required", format!("Mode {mode} needs this number.")),
                Some(value) if !(1..=most).contains(&value) => {
                    fault(
                        pointer,
                        "out_of_range",
                        format!("This is a number from 1 to {most}."),
                    );
                }
                _ => {}
            };
        number("/per_user", self.per_user, !random, !random, MAX_PER_USER);
        number("/total", self.total, random, random, MAX_TOTAL);
        number("/max_per_user", self.max_per_user, random, false, MAX_TOTAL);
        if self
            .seed
            .as_ref()
            .is_some_and(|seed| seed.is_empty() || seed.len() > MAX_SEED)
        {
            fault(
                "/seed",
                "out_of_range",
                format!("A seed has 1 to {MAX_SEED} bytes."),
            );
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid(faults))
        }
    }
}

/// Why somebody is left out, or comes away with less than planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The account is disabled.
    Disabled,
    /// The book's limit per user does not allow the share.
    LimitReached,
    /// Has as many as wanted already.
    Ineligible,
    /// No coupon was left.
    Shortage,
}

impl Reason {
    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::LimitReached => "limit_reached",
            Self::Ineligible => "ineligible",
            Self::Shortage => "shortage",
        }
    }

    /// The same for people.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Disabled => "The account is disabled.",
            Self::LimitReached => "The book allows a user no more coupons, or too few for this share.",
            Self::Ineligible => "Has been given as many coupons as wanted already.",
            Self::Shortage => "No coupon was left.",
        }
    }
}

/// A distribution as administrators see it.
#[derive(Debug, Clone)]
pub struct Distribution {
    /// UUIDv7.
    pub id: Uuid,
    /// The book.
    pub book_id: Uuid,
    /// The pool.
    pub pool_id: Uuid,
    /// Who gets how many.
    pub mode: Mode,
    /// See [`Request`].
    pub per_user: Option<i32>,
    /// See [`Request`].
    pub total: Option<i64>,
    /// See [`Request`].
    pub max_per_user: Option<i32>,
    /// See [`Request`].
    pub on_shortage: OnShortage,
    /// Where it stands, with how its jobs ended.
    pub state: String,
    /// SHA-256 of the seed.
    pub seed_commitment: Vec<u8>,
    /// Counters by name.
    pub counts: BTreeMap<String, i64>,
    /// Members that the plan leaves out, by reason.
    pub excluded: Vec<(&'static str, i64)>,
    /// Items that became otherwise than planned, by reason.
    pub changed: BTreeMap<String, i64>,
    /// Coupons that the last undoing could not take back, by reason.
    pub kept: Option<BTreeMap<String, i64>>,
    /// The job that runs it.
    pub job_id: Uuid,
    /// The latest job that undoes it.
    pub undo_job_id: Option<Uuid>,
    /// The schedule that started it.
    pub schedule_id: Option<Uuid>,
    /// Who asked for it.
    pub created_by: Uuid,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When its plan was complete.
    pub planned_at: Option<DateTime<Utc>>,
    /// When its run ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// When it had been undone wholly.
    pub undone_at: Option<DateTime<Utc>>,
}

/// One person of a distribution.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Item {
    /// Whose turn it is; with the user the order of the items.
    pub place: i64,
    /// Who.
    pub user_id: Uuid,
    /// Coupons of the plan.
    pub wanted: i32,
    /// Coupons assigned.
    pub assigned: i32,
    /// Those of them that undoing took back.
    pub undone: i32,
    /// `planned`, `given`, `short`, `left_out` or `not_drawn`.
    pub state: String,
    /// Why short or left out.
    pub reason: Option<String>,
}
