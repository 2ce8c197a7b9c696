//! Proofs of draws: all that is needed to do a book's draws and a distribution's order again, in one document.
//!
//! Invariant: [`verify`] asks nothing but the document. The seed of a book is in none before the book is archived, which
//! is for good: nothing is drawn from it any more. What a proof shows, and what it cannot, is argued in docs/draws.md.
//! The document is written by [`mod@write`], a part at a time, and its shape is [`Proof`].

pub mod verify;
pub mod write;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

/// What `format` says.
pub const FORMAT: &str = "couponbook-draw-proof-1";

/// A proof as a verifier reads it. Keys and cursors have 63 bits and are texts: many readers of JSON lose digits.
#[derive(Debug, Clone, Deserialize)]
pub struct Proof {
    /// [`FORMAT`].
    pub format: String,
    /// The book and where its draw ended.
    pub book: BookDraw,
    /// The distribution.
    pub distribution: Seeded,
    /// Codes that came together, in the order of their arrival.
    pub chunks: Vec<Chunk>,
    /// Every code and when it expires, chunk by chunk, in the order of their arrival numbers.
    pub codes: Vec<(String, Option<DateTime<Utc>>)>,
    /// When what was left was keyed anew.
    pub epochs: Vec<Epoch>,
    /// Codes that came back into the draw, in the order of their arrival numbers.
    pub returns: Vec<Return>,
    /// Codes that left the draw, in the order in which they did.
    pub leavings: Vec<Leaving>,
    /// The people of the distribution in their order.
    pub items: Vec<Item>,
    /// The coupons of the distribution in the order in which they were drawn.
    pub coupons: Vec<Given>,
}

/// A book's seed and where its draw ended.
#[derive(Debug, Clone, Deserialize)]
pub struct BookDraw {
    /// The book.
    pub id: Uuid,
    /// 64 hexadecimal digits.
    pub seed: String,
    /// SHA-256 of the seed's bytes, hexadecimal; shown since the book was made.
    pub commitment: String,
    /// How often what was left was keyed anew.
    pub epoch: i32,
    /// The last key drawn in that epoch.
    pub cursor: String,
    /// How many codes have arrived or come back.
    pub arrivals: i64,
}

/// A distribution: what was asked, and its own seed.
#[derive(Debug, Clone, Deserialize)]
pub struct Seeded {
    /// The distribution.
    pub id: Uuid,
    /// The seed, hexadecimal.
    pub seed: String,
    /// SHA-256 of the seed's bytes, hexadecimal; shown since the distribution was accepted.
    pub commitment: String,
    /// `equal`, `random` or `top_up`.
    pub mode: String,
    /// Modes `equal` and `top_up`.
    pub per_user: Option<i32>,
    /// Coupons of the plan.
    pub planned: i64,
}

/// Codes that came together.
#[derive(Debug, Clone, Deserialize)]
pub struct Chunk {
    /// The arrival number of the first.
    pub first_arrival: i64,
    /// How many.
    pub count: i64,
    /// The epoch then.
    pub epoch: i32,
    /// The cursor then: they were laid at or above it.
    pub cursor: String,
}

/// What was left, keyed anew.
#[derive(Debug, Clone, Deserialize)]
pub struct Epoch {
    /// The epoch that began.
    pub epoch: i32,
    /// The codes in the order in which they would have been drawn; their places are their numbers in the new keys.
    pub left: Vec<String>,
}

/// A code that came back.
#[derive(Debug, Clone, Deserialize)]
pub struct Return {
    /// Which.
    pub code: String,
    /// Its new arrival number.
    pub arrival: i64,
    /// The epoch then.
    pub epoch: i32,
    /// The cursor then.
    pub cursor: String,
}

/// How a code left the draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// It was drawn.
    Drawn,
    /// It was given by name.
    Given,
    /// It had a holder when it came, and never was in the draw.
    Held,
    /// It was voided.
    Voided,
}

/// A code that left the draw.
#[derive(Debug, Clone, Deserialize)]
pub struct Leaving {
    /// The event, UUIDv7.
    pub id: Uuid,
    /// The beginning of its transaction.
    pub at: DateTime<Utc>,
    /// Which.
    pub code: String,
    /// How.
    pub how: How,
    /// For whom.
    pub user_id: Option<Uuid>,
}

/// One person of a distribution.
#[derive(Debug, Clone, Deserialize)]
pub struct Item {
    /// Who.
    pub user_id: Uuid,
    /// Whose turn it is.
    pub place: String,
    /// Mode `random`: how many they could take.
    pub room: Option<u32>,
    /// Coupons of the plan.
    pub wanted: i32,
    /// Coupons given.
    pub assigned: i32,
    /// `planned`, `given`, `short`, `left_out` or `not_drawn`.
    pub state: String,
}

/// A coupon that the distribution gave.
#[derive(Debug, Clone, Deserialize)]
pub struct Given {
    /// From 1.
    pub seq: i64,
    /// Which.
    pub code: String,
    /// Where it lay.
    pub draw_key: String,
    /// To whom.
    pub user_id: Uuid,
}
