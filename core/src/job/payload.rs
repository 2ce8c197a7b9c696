//! What a queue's row holds: a small struct of ids, tagged with what to do.
//!
//! Invariant: a payload that an older version wrote can be read by this one; fields are added with a default, never renamed.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Kind, Queue};
use crate::caller::Actor;

/// The task of one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum Payload {
    /// Give coupons to a user.
    AssignCoupons(AssignCoupons),
    /// Give coupons to many users; who and how many is in `assign_batches`.
    AssignBatch,
    /// Put the codes of an upload into a book; where it stands is in `imports`.
    ImportCodes,
    /// Put the people of an upload into a pool; where it stands is in `pool_imports`.
    ImportMembers,
    /// Run a distribution; where it stands is in `distributions`.
    Distribute(OfDistribution),
    /// Undo a distribution; where it stands is in `distributions`.
    UndoDistribution(OfDistribution),
    /// Write a book's coupons or redemptions to a file; where it stands is in `exports`.
    ExportBook,
    /// Make codes from a pattern; where it stands is in `generations`.
    GenerateCodes,
    /// Turn lapsed locks back.
    SweepLocks,
    /// Forget what is kept only for a while.
    SweepLeftovers,
    /// Add what has happened to the sums of statistics.
    RollUp,
    /// Start what schedules have due.
    FireSchedules,
}

impl Payload {
    /// The queue whose workers run it.
    pub fn queue(&self) -> Queue {
        match self {
            Self::AssignCoupons(_) => Queue::Assign,
            Self::AssignBatch
            | Self::ImportCodes
            | Self::ImportMembers
            | Self::Distribute(_)
            | Self::UndoDistribution(_)
            | Self::ExportBook
            | Self::GenerateCodes => Queue::Bulk,
            Self::SweepLocks | Self::SweepLeftovers | Self::RollUp | Self::FireSchedules => Queue::System,
        }
    }

    /// The kind that clients see; `None` for the service's own upkeep, which has no line in the ledger.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::AssignCoupons(_) => Some(Kind::Assign),
            Self::AssignBatch => Some(Kind::AssignBatch),
            Self::ImportCodes => Some(Kind::Import),
            Self::ImportMembers => Some(Kind::PoolImport),
            Self::Distribute(_) => Some(Kind::Distribute),
            Self::UndoDistribution(_) => Some(Kind::UndoDistribution),
            Self::ExportBook => Some(Kind::Export),
            Self::GenerateCodes => Some(Kind::Generate),
            Self::SweepLocks | Self::SweepLeftovers | Self::RollUp | Self::FireSchedules => None,
        }
    }
}

/// Which distribution a job is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfDistribution {
    /// The book.
    pub book_id: Uuid,
    /// The distribution.
    pub distribution_id: Uuid,
}

/// Coupons of one book for one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignCoupons {
    /// The book.
    pub book_id: Uuid,
    /// Who gets them.
    pub user_id: Uuid,
    /// Which.
    pub wanted: Wanted,
    /// Who asked.
    pub actor: Actor,
    /// Whether the asker is a plain user, to whom another's coupon looks like none.
    #[serde(default)]
    pub as_user: bool,
    /// The request that asked.
    #[serde(default)]
    pub request_id: Option<String>,
}

/// Which coupons are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// So many, drawn at random, all or none.
    Draw(u32),
    /// The one with this key.
    Code(String),
}

/// The most coupons that one assign may draw.
pub const MAX_DRAW: u32 = 1_000;
