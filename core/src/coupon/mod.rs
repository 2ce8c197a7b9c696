//! Coupons: one code of one book with its state, and what may happen to it.
//!
//! ```text
//!             assign                lock                 redeem (last use)
//! UNASSIGNED ───────▶ ASSIGNED ───────────▶ LOCKED ───────────────────────▶ REDEEMED (final)
//!                       ▲ ▲                   │ │
//!                       │ └─ unlock/expire ───┘ │
//!                       └── redeem, uses left ──┘
//! any state but REDEEMED ── void ──▶ VOID (final)
//! ```
//! Invariant: every transition is one guarded statement (`UPDATE … WHERE state = …`), never a read and then a write.
//! What zero rows meant is found out afterwards, by [`explain`], to give the exact refusal.
//! A lock past its time is no lock: every guard and every read compares `locked_until` with the database's clock.

pub mod abreast;
pub mod accept;
pub mod assign;
pub mod batch;
pub mod code;
pub mod draw;
pub mod explain;
pub mod list;
pub mod locate;
pub mod lock;
pub mod redeem;
pub mod rollback;
pub mod sweep;
pub mod withdraw;

pub(crate) mod add;
pub(crate) mod slot;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The state of a coupon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In the draw.
    Unassigned,
    /// Somebody holds it.
    Assigned,
    /// Its holder is about to redeem it.
    Locked,
    /// Every use is spent.
    Redeemed,
    /// Withdrawn for good.
    Void,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Unassigned,
        Self::Assigned,
        Self::Locked,
        Self::Redeemed,
        Self::Void,
    ];

    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unassigned => "unassigned",
            Self::Assigned => "assigned",
            Self::Locked => "locked",
            Self::Redeemed => "redeemed",
            Self::Void => "void",
        }
    }

    /// From that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A coupon as its holder or an administrator sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Coupon {
    /// The code as shown.
    pub code: String,
    /// The book.
    pub book_id: Uuid,
    /// The effective state: a lapsed lock shows `assigned`.
    pub state: State,
    /// The holder.
    pub assigned_user_id: Option<Uuid>,
    /// Since when.
    pub assigned_at: Option<DateTime<Utc>>,
    /// When the live lock lapses.
    pub locked_until: Option<DateTime<Utc>>,
    /// Uses spent.
    pub redemptions_used: i32,
    /// Uses in all.
    pub redemptions_allowed: i32,
    /// When the coupon expires, by itself or by its assignment.
    pub expires_at: Option<DateTime<Utc>>,
    /// The owner's own fields.
    pub metadata: serde_json::Value,
    /// When it came into the book.
    pub created_at: DateTime<Utc>,
    /// When its state last changed.
    pub updated_at: DateTime<Utc>,
}

/// A row of [`coupon_columns!`].
#[derive(sqlx::FromRow)]
pub(crate) struct CouponRow {
    book_id: Uuid,
    code_key: String,
    code: Option<String>,
    state: String,
    assigned_user_id: Option<Uuid>,
    assigned_at: Option<DateTime<Utc>>,
    locked_until: Option<DateTime<Utc>>,
    redemptions_used: i32,
    redemptions_allowed: i32,
    expires_at: Option<DateTime<Utc>>,
    metadata: Option<serde_json::Value>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// The columns of a coupon named `c`, with the effective state by the database's clock.
macro_rules! coupon_columns {
    () => {
        "c.book_id, c.code_key, c.code,
         CASE WHEN c.state = 'locked' AND c.locked_until <= clock_timestamp() THEN 'assigned' ELSE c.state END AS state,
         c.assigned_user_id, c.assigned_at,
         CASE WHEN c.locked_until > clock_timestamp() THEN c.locked_until END AS locked_until,
         c.redemptions_used, c.redemptions_allowed, LEAST(c.expires_at, c.valid_until) AS expires_at,
         c.metadata, c.created_at, c.updated_at"
    };
}
pub(crate) use coupon_columns;

impl CouponRow {
    pub(crate) fn key(&self) -> &str {
        &self.code_key
    }
}

impl From<CouponRow> for Coupon {
    fn from(row: CouponRow) -> Self {
        Self {
            code: row.code.unwrap_or(row.code_key),
            book_id: row.book_id,
            state: State::parse(&row.state).unwrap_or(State::Void),
            assigned_user_id: row.assigned_user_id,
            assigned_at: row.assigned_at,
            locked_until: row.locked_until,
            redemptions_used: row.redemptions_used,
            redemptions_allowed: row.redemptions_allowed,
            expires_at: row.expires_at,
            metadata: row
                .metadata
                .unwrap_or_else(|| serde_json::Value::Object(serde_json::Map::new())),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// On whose behalf somebody acts on a coupon, and so which coupons exist for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behalf {
    /// Whoever holds it: administrators and machines.
    Anybody,
    /// One user: coupons of others look like none.
    Holder(Uuid),
}

impl Behalf {
    /// The holder it is narrowed to.
    pub fn holder(self) -> Option<Uuid> {
        match self {
            Self::Anybody => None,
            Self::Holder(user_id) => Some(user_id),
        }
    }
}

/// Which coupon is meant: its book and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CouponId {
    /// The book.
    pub book_id: Uuid,
    /// The code's key in that book.
    pub code_key: String,
}

/// Who does something and in which request, as the audit trail keeps it.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Who.
    pub actor: crate::caller::Actor,
    /// In which request.
    pub request_id: Option<&'a str>,
}
