//! Lists by keyset: `?limit=1..100&cursor=…` in, `{data, next_cursor}` out.
//!
//! Invariant: a cursor holds the last row's key and a tag over the list's name (with its filters) and that key, so one
//! that was altered or belongs to another list is refused instead of answering something odd. It is no secret and
//! grants nothing: every page is authorised anew. `next_cursor` is always present and null at the end.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use poem_openapi::{
    Object,
    registry::{MetaSchema, MetaSchemaRef},
    types::{ParseError, ParseFromJSON, ParseFromParameter, ParseResult, ToJSON, Type},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{nullable::Nullable, problem::Problem};

/// Rows of a page if the client does not say.
pub const DEFAULT_LIMIT: u32 = 50;
/// Rows of a page at most.
pub const MAX_LIMIT: u32 = 100;
/// Bytes of the tag; enough against accident, and nothing depends on it against intent.
const TAG_BYTES: usize = 8;

/// One page of a list.
#[derive(Debug, Clone, Object)]
pub struct Page<T: ParseFromJSON + ToJSON> {
    /// The rows, in the order of the list.
    pub data: Vec<T>,
    /// Give it as `?cursor=` for the next page; null at the end.
    pub next_cursor: Nullable<String>,
}

impl<T: ParseFromJSON + ToJSON> Page<T> {
    /// A page on which nothing can be.
    pub fn empty() -> Self {
        Self {
            data: Vec::new(),
            next_cursor: Nullable(None),
        }
    }

    /// A page of fetched rows.
    ///
    /// `list` names the list and its filters; `key` gives the keyset key of a row, by which the query went on.
    pub fn of<R, K: Serialize>(
        page: coupon_core::page::Page<R>,
        list: &str,
        key: impl Fn(&R) -> K,
        render: impl Fn(R) -> T,
    ) -> Self {
        let last = page
            .rows
            .last()
            .filter(|_| page.more)
            .map(|row| encode_cursor(list, &key(row)));
        Self {
            data: page.rows.into_iter().map(render).collect(),
            next_cursor: Nullable(last),
        }
    }
}

/// An opaque cursor for `key` in `list`.
pub fn encode_cursor(list: &str, key: &impl Serialize) -> String {
    let key = serde_json::to_vec(key).expect("a keyset key is plain data");
    let mut bytes = tag(list, &key).to_vec();
    bytes.extend(key);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The key in a cursor, if there is one.
///
/// # Errors
/// `validation_failed` at `?cursor` for what is not a cursor of this list.
pub fn decode_cursor<K: DeserializeOwned>(list: &str, cursor: Option<&str>) -> Result<Option<K>, Problem> {
    let Some(cursor) = cursor else { return Ok(None) };
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (claimed, key) = bytes.split_at_checked(TAG_BYTES)?;
        (claimed == tag(list, key)).then(|| serde_json::from_slice(key).ok())?
    };
    read().map(Some).ok_or_else(|| {
        Problem::field(
            "?cursor",
            "bad_cursor",
            "This is no cursor of this list with these filters; start without one.",
        )
    })
}

fn tag(list: &str, key: &[u8]) -> [u8; TAG_BYTES] {
    let digest = Sha256::new()
        .chain_update(list)
        .chain_update([0])
        .chain_update(key)
        .finalize();
    *digest.first_chunk().expect("SHA-256 is longer")
}

/// `?limit=`: rows of a page, as `limit: Query<Limit>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(u32);

impl Limit {
    /// Rows to show.
    pub fn rows(self) -> i64 {
        i64::from(self.0)
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(DEFAULT_LIMIT)
    }
}

impl Type for Limit {
    const IS_REQUIRED: bool = false;

    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "limit".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            description: Some("Rows of a page."),
            default: Some(Value::from(DEFAULT_LIMIT)),
            minimum: Some(1.0),
            maximum: Some(MAX_LIMIT.into()),
            ..MetaSchema::new_with_format("integer", "int32")
        }))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ParseFromParameter for Limit {
    fn parse_from_parameter(value: &str) -> ParseResult<Self> {
        match value.parse() {
            Ok(limit @ 1..=MAX_LIMIT) => Ok(Self(limit)),
            _ => Err(ParseError::custom(format!("a limit is 1 to {MAX_LIMIT}"))),
        }
    }

    fn parse_from_parameters<I: IntoIterator<Item = A>, A: AsRef<str>>(values: I) -> ParseResult<Self> {
        match values.into_iter().next() {
            Some(value) => Self::parse_from_parameter(value.as_ref()),
            None => Ok(Self::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_where_the_rows_do_and_the_cursor_goes_on_from_its_last_row() {
        let page = |rows: Vec<u32>| {
            Page::<u32>::of(
                coupon_core::page::Page::cut(rows, Limit(2).rows()),
                "numbers",
                |row| *row,
                |row| row,
            )
        };
        let full = page(vec![1, 2, 3]);
        assert_eq!(full.data, [1, 2]);
        assert_eq!(
            decode_cursor::<u32>("numbers", full.next_cursor.0.as_deref()).unwrap(),
            Some(2)
        );
        let last = page(vec![3, 4]);
        assert_eq!(last.data, [3, 4]);
        assert_eq!(
            last.to_json().unwrap(),
            serde_json::json!({ "data": [3, 4], "next_cursor": null })
        );
    }

    #[test]
    fn altered_and_foreign_cursors_are_refused() {
        let cursor = encode_cursor("numbers", &7);
        let refused = |list: &str, cursor: &str| {
            let problem = decode_cursor::<u32>(list, Some(cursor)).unwrap_err();
            assert_eq!(
                (problem.errors()[0].pointer.as_str(), problem.errors()[0].code),
                ("?cursor", "bad_cursor")
            );
        };
        refused("letters", &cursor);
        for position in 0..cursor.len() {
            let mut altered = cursor.clone().into_bytes();
            altered[position] = if altered[position] == b'A' { b'B' } else { b'A' };
            refused("numbers", &String::from_utf8(altered).unwrap());
        }
        for nonsense in ["", "A", "!!!", "AAAAAAAAAAAAAAAA"] {
            refused("numbers", nonsense);
        }
        assert_eq!(decode_cursor::<u32>("numbers", None).unwrap(), None);
    }
}
