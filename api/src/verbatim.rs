//! `Verbatim<T>`: a member of an answer that the database keeps as JSON and that goes out as it is.
//!
//! A job is polled many times: to read its result into a tree of values and to write that out again would cost more than
//! the rest of the poll.

use std::{borrow::Cow, marker::PhantomData};

use poem_openapi::{
    registry::{MetaSchemaRef, Registry},
    types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

/// JSON as it stands in the database, declared as a `T`.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Verbatim<T> {
    text: Box<RawValue>,
    #[serde(skip)]
    shape: PhantomData<fn() -> T>,
}

impl<T> From<Box<RawValue>> for Verbatim<T> {
    fn from(text: Box<RawValue>) -> Self {
        Self {
            text,
            shape: PhantomData,
        }
    }
}

impl<T: Type> Type for Verbatim<T> {
    const IS_REQUIRED: bool = T::IS_REQUIRED;

    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        T::name()
    }

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl<T: Type> ToJSON for Verbatim<T> {
    fn to_json(&self) -> Option<Value> {
        serde_json::from_str(self.text.get()).ok()
    }
}

impl<T: Type> ParseFromJSON for Verbatim<T> {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        let text = value.unwrap_or_default().to_string();
        RawValue::from_string(text)
            .map(Self::from)
            .map_err(ParseError::custom)
    }
}
