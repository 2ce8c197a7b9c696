//! `Time`: an instant on the wire, always written as RFC 3339 in UTC with microseconds and `Z`.
//!
//! Invariant: every time in an answer has this one spelling, which is also that of PostgreSQL's precision; so text that
//! is compared is time that is compared. In requests any offset is taken.

use std::borrow::Cow;

use chrono::{DateTime, SecondsFormat, Utc};
use poem_openapi::{
    registry::MetaSchemaRef,
    types::{ParseError, ParseFromJSON, ParseFromParameter, ParseResult, ToJSON, Type},
};
use serde_json::Value;

use crate::Nullable;

/// An instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub DateTime<Utc>);

impl From<DateTime<Utc>> for Time {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time)
    }
}

impl From<Option<DateTime<Utc>>> for Nullable<Time> {
    fn from(time: Option<DateTime<Utc>>) -> Self {
        Self(time.map(Time))
    }
}

impl Type for Time {
    const IS_REQUIRED: bool = true;

    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        DateTime::<Utc>::name()
    }

    fn schema_ref() -> MetaSchemaRef {
        DateTime::<Utc>::schema_ref()
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl serde::Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl ToJSON for Time {
    fn to_json(&self) -> Option<Value> {
        Some(self.0.to_rfc3339_opts(SecondsFormat::Micros, true).into())
    }
}

impl ParseFromJSON for Time {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        match value.unwrap_or_default() {
            Value::String(text) => Self::parse_from_parameter(&text),
            other => Err(ParseError::expected_type(other)),
        }
    }
}

impl ParseFromParameter for Time {
    fn parse_from_parameter(value: &str) -> ParseResult<Self> {
        let time = DateTime::parse_from_rfc3339(value).map_err(ParseError::custom)?;
        Ok(Self(time.into()))
    }
}

/// What PostgreSQL has written as JSON, with its times (`…_at`, `…_until`) spelled as everywhere else.
pub fn in_utc(mut value: Value) -> Value {
    for (name, member) in value.as_object_mut().into_iter().flatten() {
        let is_time = name.ends_with("_at") || name.ends_with("_until");
        let time = member
            .as_str()
            .filter(|_| is_time)
            .map(Time::parse_from_parameter);
        if let Some(Ok(time)) = time {
            *member = time.to_json().unwrap_or_default();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_with_any_offset_and_written_in_utc() {
        let written = |text| Time::parse_from_parameter(text).unwrap().to_json().unwrap();
        assert_eq!(
            written("2026-01-02T03:04:05+01:00"),
            "2026-01-02T02:04:05.000000Z"
        );
        assert_eq!(
            written("2026-01-02T03:04:05.123456789Z"),
            "2026-01-02T03:04:05.123456Z"
        );
        assert!(Time::parse_from_parameter("2026-01-02").is_err());
    }
}
