//! Jobs: work that is accepted now, done by a worker, and polled by the client.
//!
//! Two rows tell of a job that is due, written in one transaction: its line in the ledger (`jobs`), which clients read,
//! and its row in the queue (`apalis.jobs`), which workers claim. When it ends, the ledger gets the outcome and the
//! queue's row is deleted, in the transaction of the effect. So the queue holds only work that is due, and an effect
//! happens exactly once.
//! To add a kind: a variant of [`Kind`] and of [`payload::Payload`], a file in `worker/src/jobs/`, a row in docs/jobs.md.

pub mod bulk;
pub mod claim;
pub mod depth;
pub mod enqueue;
pub mod ledger;
pub mod payload;
pub mod signals;
pub mod wait;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::error::{Code, Refusal, Result};

/// The queues; each has workers of its own, so that assigns overtake imports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Short jobs that somebody waits for, run in batches.
    Assign,
    /// Long jobs, run in steps, the jobs taking turns.
    Bulk,
    /// The service's own upkeep.
    System,
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 3] = [Self::Assign, Self::Bulk, Self::System];

    /// The stable name in the database and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Assign => "assign",
            Self::Bulk => "bulk",
            Self::System => "system",
        }
    }

    /// From that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|queue| queue.name() == name)
    }
}

/// What a job does, as clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Give coupons to one user.
    Assign,
    /// Give coupons to many users.
    AssignBatch,
    /// Put given codes into a book.
    Import,
    /// Put people into a pool.
    PoolImport,
    /// Give coupons to the people of a pool.
    Distribute,
    /// Take back what a distribution gave.
    UndoDistribution,
    /// Write a book's coupons or redemptions to a file.
    Export,
    /// Make codes from a pattern.
    Generate,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Assign,
        Self::AssignBatch,
        Self::Import,
        Self::PoolImport,
        Self::Distribute,
        Self::UndoDistribution,
        Self::Export,
        Self::Generate,
    ];

    /// The spelling on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Assign => "assign",
            Self::AssignBatch => "assign_batch",
            Self::Import => "import",
            Self::PoolImport => "pool_import",
            Self::Distribute => "distribute",
            Self::UndoDistribution => "undo_distribution",
            Self::Export => "export",
            Self::Generate => "generate",
        }
    }

    /// What its progress counts.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Assign | Self::Distribute | Self::UndoDistribution => "coupons",
            Self::AssignBatch => "items",
            Self::Import | Self::PoolImport | Self::Export => "rows",
            Self::Generate => "codes",
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Waiting for a worker.
    Queued,
    /// At work, between steps or in one.
    Running,
    /// Done, wholly.
    Succeeded,
    /// Done as far as it goes; the rest is listed.
    PartiallySucceeded,
    /// Nothing done, with a reason; or given up.
    Failed,
    /// Somebody asked to stop it; it stops at the next step.
    Cancelling,
    /// Stopped; what was committed stays.
    Cancelled,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::PartiallySucceeded,
        Self::Failed,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::PartiallySucceeded => "partially_succeeded",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// From that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::PartiallySucceeded | Self::Failed | Self::Cancelled
        )
    }
}

/// A job as its owner sees it.
#[derive(Debug, Clone)]
pub struct Job {
    /// UUIDv7.
    pub id: Uuid,
    /// What it does, as [`Kind::as_str`] spells it.
    pub kind: String,
    /// Where it stands.
    pub state: State,
    /// How far it is.
    pub progress: Progress,
    /// Counters by name.
    pub counts: BTreeMap<String, i64>,
    /// What came of it, as JSON.
    pub result: Option<Box<RawValue>>,
    /// Why it failed: stable code and sentence.
    pub error: Option<(String, String)>,
    /// Runs that ended in trouble or in a crash.
    pub attempts: i32,
    /// The book it is about.
    pub book_id: Option<Uuid>,
    /// The user or API key that asked for it.
    pub created_by: Uuid,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When a worker first took it.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Whether there is a list of what it could not do.
    pub has_errors: bool,
    /// When retention began to remove that list, or its file; `None` while they are kept.
    pub expired_at: Option<DateTime<Utc>>,
}

impl Job {
    /// What came of it, read.
    pub fn result_value(&self) -> Option<serde_json::Value> {
        serde_json::from_str(self.result.as_deref()?.get()).ok()
    }
}

impl Job {
    /// Asks that what the job has left, a list of errors or a file, is kept still.
    ///
    /// # Errors
    /// `expired`.
    pub fn require_kept(&self) -> Result<()> {
        match self.expired_at {
            None => Ok(()),
            Some(_) => Err(Refusal::new(
                Code::Expired,
                "This was kept for a while and is no longer kept; settings of the service say for how long.",
            )
            .into()),
        }
    }
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Units done.
    pub done: i64,
    /// Units in all; `None` while unknown.
    pub total: Option<i64>,
    /// What is counted.
    pub unit: String,
    /// Units per second since it started; `None` before.
    pub rate: Option<f64>,
    /// Seconds to go at that rate; `None` while unknown.
    pub eta_seconds: Option<f64>,
}
