//! The OpenAPI document and the page that shows it: built once from the code, served as it is.
//!
//! Invariant: the document is what the clients of this service are generated from, so it says nothing that the service
//! does not keep: operations that several files declare for one path are merged, refusals that an operation cannot give
//! are taken out, and bodies that refuse unknown fields say so. The page loads nothing from elsewhere and runs under
//! a policy without `unsafe-inline`.

mod headers;

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    sync::Arc,
};

use poem::{
    Endpoint, Request, Response, Route,
    endpoint::make_sync,
    get,
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, IF_NONE_MATCH},
    },
};
use poem_openapi::{OpenApi, OpenApiService, Webhook};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{etag, operations::Operations, problem::CONTENT_TYPE_PROBLEM};

/// Only the page's own files, and the document that it reads.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Members that some callers do not get: poem-openapi calls those of a flattened `Option` required.
const FOR_SOME: [(&str, &[&str]); 1] = [(
    "Book",
    &[
        "exact_codes",
        "redemptions_per_coupon",
        "max_assignments_per_user",
        "max_redemptions_per_user",
        "rollback_days",
        "pattern",
        "draw_commitment",
        "metadata",
        "created_by",
        "created_at",
        "updated_at",
    ],
)];

/// The finished document.
pub struct Document {
    value: Value,
    text: Arc<str>,
    operations: Operations,
}

impl Document {
    /// Builds the document of a service.
    ///
    /// # Panics
    /// If two operations have the same method and path, a mistake in this program that is found when it starts.
    pub fn new<T: OpenApi, W: Webhook>(service: &OpenApiService<T, W>) -> Self {
        let Merged(mut value) = serde_json::from_str(&service.spec()).expect("the document is JSON");
        value["info"] = json!({
            "title": "coupon-book",
            "description": "Coupon books: codes, assignments, locks, redemptions.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT" },
        });
        value["servers"] = json!([{ "url": "/" }]);
        for (path, item) in members(&mut value["paths"]) {
            for (method, operation) in members(item) {
                operation["operationId"] = operation_id(method, path).into();
                plain_media_types(operation);
                describe_events(operation);
                drop_impossible_answers(method == "get", operation);
            }
        }
        let schemas = &mut value["components"]["schemas"];
        for (schema, members) in FOR_SOME {
            if let Some(required) = schemas[schema]["required"].as_array_mut() {
                required.retain(|name| !members.iter().any(|member| name == member));
            }
        }
        deny_unknown_fields(&mut value);
        headers::declare(&mut value);
        let operations = Operations::read(&value);
        let text = serde_json::to_string_pretty(&value)
            .expect("a value is JSON")
            .into();
        Self {
            value,
            text,
            operations,
        }
    }

    /// The document as JSON.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The document as text, as it is served.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The table of its operations.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Adds `/openapi.json` and `/docs` to a route.
    pub fn routes(&self, route: Route) -> Route {
        let page = |content_type, text: &'static str| file(content_type, text.into());
        route
            .at("/openapi.json", get(file("application/json", self.text.clone())))
            .at(
                "/docs",
                get(page("text/html; charset=utf-8", include_str!("docs/index.html"))),
            )
            .at(
                "/docs/docs.css",
                get(page("text/css; charset=utf-8", include_str!("docs/docs.css"))),
            )
            .at(
                "/docs/docs.js",
                get(page(
                    "text/javascript; charset=utf-8",
                    include_str!("docs/docs.js"),
                )),
            )
    }
}

/// Text that never changes while the process runs; asked for again with its tag it costs no body.
fn file(content_type: &'static str, text: Arc<str>) -> impl Endpoint<Output = Response> {
    let digest: String = Sha256::digest(text.as_bytes())
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let tag = format!("\"{digest}\"");
    make_sync(move |request: Request| {
        let response = Response::builder()
            .header(ETAG, &tag)
            .header(CACHE_CONTROL, "no-cache") // kept, but asked about each time
            .header(CONTENT_SECURITY_POLICY, PAGE_POLICY);
        match etag::is_known(request.header(IF_NONE_MATCH), &tag) {
            true => response.status(StatusCode::NOT_MODIFIED).finish(),
            false => response.content_type(content_type).body(text.as_bytes().to_vec()),
        }
    })
}

fn members(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flatten()
}

/// `post_coupons_lock_by_code`: as stable as method and path, which are the contract.
fn operation_id(method: &str, path: &str) -> String {
    let segments = path.split('/').filter(|segment| !matches!(*segment, "" | "v1"));
    let words = segments.map(
        |segment| match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
            Some(name) => format!("by_{name}"),
            None => segment.replace(['-', '.'], "_"),
        },
    );
    std::iter::once(method.to_owned())
        .chain(words)
        .collect::<Vec<_>>()
        .join("_")
}

/// JSON has no charset parameter (RFC 8259), and generators look for the plain name.
fn plain_media_types(operation: &mut Value) {
    let rename = |content: &mut Value| {
        let Some(content) = content.as_object_mut() else {
            return;
        };
        if let Some(schema) = content.remove("application/json; charset=utf-8") {
            content.insert("application/json".to_owned(), schema);
        }
    };
    rename(&mut operation["requestBody"]["content"]);
    if operation["requestBody"]["content"].is_null() {
        members_of(operation).remove("requestBody");
    }
    for (_, response) in members(&mut operation["responses"]) {
        if response.get("content").is_some() {
            rename(&mut response["content"]);
        }
    }
}

/// One event of a stream as it is on the wire; poem-openapi describes an array of what the data stand for.
fn describe_events(operation: &mut Value) {
    for (_, response) in members(&mut operation["responses"]) {
        if let Some(schema) = response.pointer_mut("/content/text~1event-stream/schema") {
            let name = schema["items"]["$ref"]
                .as_str()
                .and_then(|target| target.rsplit('/').next());
            let data = format!("A {} as JSON, on one line.", name.unwrap_or("value"));
            *schema = json!({
                "type": "object",
                "description": "Server-sent events; this is one.",
                "required": ["data"],
                "properties": { "data": { "type": "string", "description": data } },
            });
        }
    }
}

fn members_of(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("an operation is an object")
}

/// [`crate::problem::Problem`] declares every status; these an operation cannot answer with.
fn drop_impossible_answers(is_get: bool, operation: &mut Value) {
    let has_body = operation.get("requestBody").is_some();
    let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
    let if_match = parameters.iter().any(|p| {
        p["name"]
            .as_str()
            .is_some_and(|n| n.eq_ignore_ascii_case("if-match"))
    });
    let impossible = [
        ("400", !has_body),
        ("413", !has_body),
        ("415", !has_body),
        ("412", !if_match),
        ("423", is_get),
    ];
    let Some(responses) = operation["responses"].as_object_mut() else {
        return;
    };
    for (status, _) in impossible.iter().filter(|(_, impossible)| *impossible) {
        if responses
            .get(*status)
            .is_some_and(|response| response["content"].get(CONTENT_TYPE_PROBLEM).is_some())
        {
            responses.remove(*status);
        }
    }
}

/// Null in a request means absent, so whatever may be left out may be null.
fn allow_null_for_absent(schema: &mut Value) {
    let required = schema["required"].clone();
    for (name, property) in members(&mut schema["properties"]) {
        let is_required = required
            .as_array()
            .is_some_and(|required| required.iter().any(|known| known == name));
        if is_required {
            continue;
        }
        if property.get("$ref").is_some() {
            *property = json!({ "allOf": [property.take()] }); // nothing counts beside a reference
        }
        property["nullable"] = Value::Bool(true);
    }
}

/// Schemas that only requests use say that they take no other fields; those of answers may grow.
fn deny_unknown_fields(document: &mut Value) {
    let mut requests = Vec::new();
    let mut answers = Vec::new();
    for item in document["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, item)| item)
    {
        for operation in item
            .as_object()
            .into_iter()
            .flatten()
            .map(|(_, operation)| operation)
        {
            requests.extend(references(&operation["requestBody"]));
            answers.extend(references(&operation["responses"]));
        }
    }
    let reach = |from: Vec<String>| {
        let mut reached = BTreeSet::new();
        let mut queue = VecDeque::from(from);
        while let Some(name) = queue.pop_front() {
            if reached.insert(name.clone()) {
                queue.extend(references(&document["components"]["schemas"][&name]));
            }
        }
        reached
    };
    let (requests, answers) = (reach(requests), reach(answers));
    for name in requests.difference(&answers) {
        let schema = &mut document["components"]["schemas"][name];
        if schema["type"] == "object" && schema.get("additionalProperties").is_none() {
            schema["additionalProperties"] = Value::Bool(false);
            allow_null_for_absent(schema);
        }
    }
}

/// The names of the schemas that a value refers to.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(object) => object
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value.as_str()) {
                ("$ref", Some(target)) => vec![target.rsplit('/').next().unwrap_or(target).to_owned()],
                _ => references(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// JSON whose duplicate keys are merged: poem-openapi writes a path once per `impl` block that has an operation on it.
struct Merged(Value);

impl<'de> Deserialize<'de> for Merged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut object = Map::new();
                while let Some((key, Merged(value))) = map.next_entry::<String, Merged>()? {
                    match (object.get_mut(&key), value) {
                        (Some(Value::Object(old)), Value::Object(new)) => {
                            for (method, operation) in new {
                                let before = old.insert(method.clone(), operation);
                                assert!(before.is_none(), "{method} {key} is declared twice");
                            }
                        }
                        (_, value) => drop(object.insert(key, value)),
                    }
                }
                Ok(Value::Object(object))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(Merged(item)) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Value::Array(items))
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }
        }

        deserializer.deserialize_any(Read).map(Self)
    }
}
