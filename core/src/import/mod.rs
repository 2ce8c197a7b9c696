//! Import of codes from CSV (RFC 4180): received as a stream, kept as plain UTF-8 text, put into the book step by step.
//!
//! Invariant: what is kept is exactly what is parsed. Packing, encoding and the byte order mark are undone while the
//! bytes come in, so a byte offset into the text is an exact place to go on from after a crash, on any machine.
//!
//! The way of a file: [`upload::Receiver`] keeps it → [`create::create`] reads its head, finds the dialect and accepts
//! the job → [`step::step`] runs once per chunk of records, each in one transaction with its cursor, two of them abreast where
//! that is possible ([`crate::coupon::abreast`]) → [`report`] tells
//! of every bad line. Members of a pool come in the same way ([`crate::pool::import`]). To add a column that is understood: [`dialect::Layout`], then [`row::read`].

pub mod create;
pub mod decode;
pub mod dialect;
pub mod inflate;
pub mod records;
pub mod report;
pub mod row;
pub mod step;
pub mod sweep;
pub mod upload;

mod abreast;
mod ahead;
pub(crate) mod chunk;
mod clock;
mod plan;
mod text;
pub(crate) mod write;

use serde::{Deserialize, Serialize};

/// What is done about bad lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Good lines are imported, bad ones are listed.
    #[default]
    SkipInvalid,
    /// Everything is validated before the first code is written; one bad line and nothing is.
    AllOrNothing,
    /// Nothing is written; the report says what would be.
    ValidateOnly,
}

impl Mode {
    /// The spelling on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SkipInvalid => "skip_invalid",
            Self::AllOrNothing => "all_or_nothing",
            Self::ValidateOnly => "validate_only",
        }
    }

    /// From that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::SkipInvalid, Self::AllOrNothing, Self::ValidateOnly]
            .into_iter()
            .find(|mode| mode.as_str() == text)
    }
}

/// How a file is to be read, as the caller asks; what is `None` is found out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Settings {
    /// What is done about bad lines.
    #[serde(default)]
    pub mode: Mode,
    /// Between fields; one of [`dialect::DELIMITERS`].
    #[serde(default)]
    pub delimiter: Option<char>,
    /// The column of the codes: its name, or its number from 1.
    #[serde(default)]
    pub column: Option<String>,
    /// Whether the first record names the columns.
    #[serde(default)]
    pub has_header: Option<bool>,
    /// A label of the WHATWG Encoding standard. It was obeyed when the file was received and is kept for the record.
    #[serde(default)]
    pub encoding: Option<String>,
    /// Whether columns that are not understood become metadata.
    #[serde(default)]
    pub metadata_columns: bool,
}
