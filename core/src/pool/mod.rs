//! Pools: named sets of people to whom coupons are distributed.
//!
//! Invariant: whoever adds or removes members holds the pool's row meanwhile, so `members` is exact without counting. A
//! deleted pool is gone at once for everybody; its members are removed behind it, a batch at a time ([`sweep`]).

pub mod import;
pub mod members;
mod store;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use store::{Change, DELETE_MEMBERS, delete, find, insert, list, sweep, update};

/// A pool as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Pool {
    /// UUIDv7.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// For people.
    pub description: String,
    /// How many members it has.
    pub members: i64,
    /// Counts changes of name and description: the ETag.
    pub version: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}
