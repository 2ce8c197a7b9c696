//! The headers that answers carry, declared for every operation by what the operation is.
//!
//! Invariant: what is declared as required is in every such answer, and nothing else of these is sent (tests/it/manners.rs
//! looks at real answers). To add a header: a row in [`HEADERS`], its rule in [`of`].

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Name, whether it is always there, type, description. The key of a component is the name, `?` where it may be absent.
const HEADERS: [(&str, bool, &str, &str); 10] = [
    (
        X_REQUEST_ID,
        true,
        "string",
        "The request's id as it was sent, else a new one.",
    ),
    (
        RATE_LIMIT,
        false,
        "string",
        "What is left of the caller's limit (draft-ietf-httpapi-ratelimit-headers-10).",
    ),
    (
        RATE_LIMIT_POLICY,
        false,
        "string",
        "The limit itself: requests and seconds.",
    ),
    (
        RETRY_AFTER,
        true,
        "integer",
        "Seconds until asking again makes sense.",
    ),
    (
        RETRY_AFTER_PERHAPS,
        false,
        "integer",
        "Seconds until asking again makes sense, if it is known.",
    ),
    (LOCATION, true, "string", "Where the job is."),
    (LOCATION_PERHAPS, false, "string", "Where the new object is."),
    (
        ETAG,
        true,
        "string",
        "The version, for If-Match or If-None-Match.",
    ),
    (
        REPLAYED,
        false,
        "string",
        "`true` when the answer was given before to the same Idempotency-Key.",
    ),
    (CHALLENGE, true, "string", "How to say who calls."),
];

const X_REQUEST_ID: &str = "X-Request-Id";
const RATE_LIMIT: &str = "RateLimit";
const RATE_LIMIT_POLICY: &str = "RateLimit-Policy";
const RETRY_AFTER: &str = "Retry-After";
const RETRY_AFTER_PERHAPS: &str = "Retry-After-Perhaps";
const LOCATION: &str = "Location";
const LOCATION_PERHAPS: &str = "Location-Perhaps";
const ETAG: &str = "ETag";
const REPLAYED: &str = "Idempotency-Replayed";
const CHALLENGE: &str = "WWW-Authenticate";

/// Statuses of refusals that are kept for an Idempotency-Key.
const KEPT: [&str; 5] = ["404", "409", "410", "412", "422"];

/// Declares the headers of every answer of the document.
pub(super) fn declare(document: &mut Value) {
    document["components"]["headers"] = HEADERS
        .iter()
        .map(|(name, required, ty, description)| {
            let mut header = json!({ "description": description, "schema": { "type": ty } });
            if *required {
                header["required"] = json!(true);
            }
            ((*name).to_owned(), header)
        })
        .collect::<Map<_, _>>()
        .into();
    let versioned = versioned_schemas(document);
    for (_, item) in super::members(&mut document["paths"]) {
        for (method, operation) in super::members(item) {
            let facts = Facts::of(method, operation);
            for (status, response) in super::members(&mut operation["responses"]) {
                let is_job = schema(response) == Some("Job");
                let has_version = schema(response).is_some_and(|name| versioned.contains(name));
                let headers: Map<String, Value> = of(&facts, status, is_job, has_version)
                    .into_iter()
                    .map(|name| {
                        let shown = name.strip_suffix("-Perhaps").unwrap_or(name);
                        (
                            shown.to_owned(),
                            json!({ "$ref": format!("#/components/headers/{name}") }),
                        )
                    })
                    .collect();
                response["headers"] = headers.into();
            }
        }
    }
}

/// What of an operation decides about its headers.
struct Facts {
    is_health: bool,
    is_keyed: bool,
    /// It is asked with If-None-Match.
    is_polled: bool,
    makes_a_job: bool,
    is_post: bool,
}

impl Facts {
    fn of(method: &str, operation: &Value) -> Self {
        let takes = |wanted: &str| {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            parameters
                .filter_map(|parameter| parameter["name"].as_str())
                .any(|name| name.eq_ignore_ascii_case(wanted))
        };
        Self {
            is_health: operation["tags"] == json!(["Health"]),
            is_keyed: takes("Idempotency-Key"),
            is_polled: takes("If-None-Match"),
            makes_a_job: operation["responses"].get("202").is_some(),
            is_post: method == "post",
        }
    }
}

/// The headers of one answer.
fn of(facts: &Facts, status: &str, is_job: bool, has_version: bool) -> Vec<&'static str> {
    let mut headers = vec![X_REQUEST_ID];
    if !facts.is_health {
        headers.extend([RATE_LIMIT, RATE_LIMIT_POLICY]);
    }
    if facts.is_keyed && (status.starts_with('2') || KEPT.contains(&status)) {
        headers.push(REPLAYED);
    }
    match status {
        "401" => headers.push(CHALLENGE),
        "423" | "429" | "503" => headers.push(RETRY_AFTER),
        "409" if facts.is_keyed => headers.push(RETRY_AFTER_PERHAPS),
        "202" => headers.extend([LOCATION, RETRY_AFTER]),
        "200" if facts.makes_a_job && is_job => headers.push(LOCATION),
        "200" if facts.makes_a_job => headers.push(LOCATION_PERHAPS), // or only what the job would do
        "200" | "304" if facts.is_polled => headers.extend([ETAG, RETRY_AFTER_PERHAPS]),
        "201" if facts.is_post => headers.push(LOCATION_PERHAPS),
        _ => {}
    }
    if has_version && matches!(status, "200" | "201") {
        headers.push(ETAG);
    }
    headers
}

/// The schemas of objects that are changed with If-Match: they always come with their version.
fn versioned_schemas(document: &Value) -> BTreeSet<String> {
    let operations = document["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(_, item)| item.as_object().into_iter().flatten());
    operations
        .filter(|(_, operation)| {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            parameters
                .filter_map(|parameter| parameter["name"].as_str())
                .any(|name| name.eq_ignore_ascii_case("if-match"))
        })
        .filter_map(|(_, operation)| schema(&operation["responses"]["200"]).map(str::to_owned))
        .collect()
}

/// The schema that an answer's JSON refers to.
fn schema(response: &Value) -> Option<&str> {
    response
        .pointer("/content/application~1json/schema/$ref")?
        .as_str()
}
