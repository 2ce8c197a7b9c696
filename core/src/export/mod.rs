//! Exports: a book's coupons or redemptions as a CSV file (RFC 4180), written by a job in steps, kept in pieces.
//!
//! Invariant: a step's piece of the file and the place where the next one goes on commit together, so the file has each
//! row once however often a worker is killed. A piece is one gzip member (RFC 1952, 2.2: members one after another are
//! one file), so the packed file is the pieces as they are, and the text from any byte on needs only one piece unpacked.
//!
//! What an export shows: steps are transactions of their own, so each row is as it was when its step read it. Every row
//! that was there when the export was accepted is in it (coupons and redemptions are never deleted); one that came
//! later may be.
//!
//! To add a column: [`csv`], at the end of its header, and docs/api.md.

pub mod create;
pub mod file;
pub mod step;

pub(crate) mod csv;

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The coupons of a book, in the order of their keys.
    Coupons,
    /// Its redemptions and rollbacks, oldest first.
    Redemptions,
}

impl Kind {
    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coupons => "coupons",
            Self::Redemptions => "redemptions",
        }
    }

    /// From that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Coupons, Self::Redemptions]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}
