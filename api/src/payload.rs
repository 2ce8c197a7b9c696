//! `Body<T>`: a JSON request body that is exactly what the document says, or refused with every fault named.
//!
//! Invariant: the checks come in this order, the first that fails answers: content type (415), size counted in the
//! stream whatever `Content-Length` says (413), JSON (400), then types, ranges, unknown fields and the type's own rules
//! (422). A handler that runs has a valid `T`. An absent body (zero bytes) is `{}`, so one with no required field may
//! be left out. Of duplicate keys in one object the last wins, as in most JSON readers.

use std::{
    any::TypeId,
    collections::HashMap,
    ops::Deref,
    sync::{LazyLock, RwLock},
};

use bytes::{Bytes, BytesMut};
use coupon_core::Code;
use futures_util::StreamExt;
use poem::{Request, RequestBody, Result};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, Registry},
    types::ParseFromJSON,
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{problem::Problem, schema::Schema};

/// Bytes of a JSON body.
pub const MAX_JSON_BYTES: usize = 1024 * 1024;

/// The content type that is taken and declared.
const JSON: &str = "application/json";

/// A checked JSON body and the hash of its bytes.
#[derive(Debug, Clone)]
pub struct Body<T> {
    /// What the client sent.
    pub value: T,
    hash: [u8; 32],
}

impl<T> Body<T> {
    /// SHA-256 of the body as it was sent, for "same key, same request".
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }
}

impl<T> Deref for Body<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: ParseFromJSON + 'static> Body<T> {
    async fn read(request: &Request, body: &mut RequestBody) -> Result<Self, Problem> {
        check_content_type(request)?;
        let bytes = match body.take() {
            Ok(body) => read_to_end(body, MAX_JSON_BYTES).await?,
            Err(_) => Bytes::new(), // no body at all, as in a test
        };
        if request.content_type().is_none() && !bytes.is_empty() {
            return Err(unsupported());
        }
        let mut value = parse(&bytes)?;
        let faults = schema_of::<T>().check(&mut value);
        if !faults.is_empty() {
            return Err(Problem::invalid(faults));
        }
        let hash = Sha256::digest(&bytes).into();
        match T::parse_from_json(Some(value)) {
            Ok(value) => Ok(Self { value, hash }),
            // A rule that only the type knows, such as a validated newtype.
            Err(error) => Err(Problem::field("", "invalid", error.into_message())),
        }
    }
}

fn check_content_type(request: &Request) -> Result<(), Problem> {
    let Some(content_type) = request.content_type() else {
        return Ok(());
    };
    let mut parts = content_type.split(';').map(str::trim);
    let is_json = parts
        .next()
        .is_some_and(|essence| essence.eq_ignore_ascii_case(JSON));
    let is_utf8 = parts
        .filter_map(|part| part.split_once('='))
        .all(|(name, value)| {
            !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        });
    if is_json && is_utf8 {
        Ok(())
    } else {
        Err(unsupported())
    }
}

fn unsupported() -> Problem {
    Problem::new(
        Code::UnsupportedMediaType,
        "This takes a body with Content-Type: application/json.",
    )
}

/// Reads a body of at most `limit` bytes, counted as they arrive.
///
/// # Errors
/// `payload_too_large` beyond the limit (the edge reads on, so that the answer arrives), `malformed_json` if the body
/// breaks off.
pub async fn read_to_end(body: poem::Body, limit: usize) -> Result<Bytes, Problem> {
    let mut stream = body.into_bytes_stream();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|_| Problem::new(Code::MalformedJson, "The body did not arrive completely."))?;
        if bytes.len() + chunk.len() > limit {
            let detail = format!("The body is larger than the {limit} bytes that are allowed here.");
            return Err(Problem::new(Code::PayloadTooLarge, detail));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    if bytes.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let reason = error.to_string();
        if reason.starts_with("number out of range") {
            // 1e400 is JSON, only no number that a computer of today has.
            return Problem::field("", "out_of_range", format!("A number is too large: {reason}."));
        }
        // Read without being kept, JSON may be as deep as it likes.
        let is_json = || serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok();
        if reason.starts_with("recursion limit exceeded") && is_json() {
            return Problem::field(
                "",
                "too_deep",
                format!("The body is nested too deeply: {reason}."),
            );
        }
        // The reason names a position and what was expected there, never the text itself.
        Problem::new(Code::MalformedJson, format!("The body is not JSON: {reason}."))
    })
}

/// The compiled schema of a type, made at its first use.
fn schema_of<T: ParseFromJSON + 'static>() -> Schema {
    static CACHE: LazyLock<RwLock<HashMap<TypeId, Schema>>> = LazyLock::new(RwLock::default);
    let id = TypeId::of::<T>();
    let poisoned = "no code panics while it holds this lock";
    if let Some(schema) = CACHE.read().expect(poisoned).get(&id) {
        return schema.clone();
    }
    let mut registry = Registry::new();
    T::register(&mut registry);
    let json = |value| serde_json::to_value(value).expect("a schema is JSON");
    let components = registry
        .schemas
        .into_iter()
        .map(|(name, schema)| (name, json(schema)))
        .collect();
    let root = serde_json::to_value(T::schema_ref()).expect("a schema is JSON");
    let schema = Schema::compile(&root, &components);
    CACHE.write().expect(poisoned).insert(id, schema.clone());
    schema
}

impl<'a, T: ParseFromJSON + 'static> ApiExtractor<'a> for Body<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: JSON,
                schema: T::schema_ref(),
            }],
            required: schema_of::<T>().has_required(),
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        Ok(Self::read(request, body).await?)
    }
}
