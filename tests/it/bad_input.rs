//! Bad input of every kind to every operation of the document: the exact status, code and pointer, as a problem.

mod targets;

use coupon_core::caller::Role;
use coupon_tests::{
    Client, Service,
    document::{Document, Operation},
    http::Answer,
};
use futures_util::stream;
use reqwest::Method;
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// The most bytes of a JSON body.
const MAX_JSON: usize = 1024 * 1024;

struct Scene {
    service: Service,
    document: Document,
    admin: Client,
    book_id: Uuid,
    user_id: Uuid,
    job_id: String,
    key_id: String,
}

impl Scene {
    async fn new() -> Self {
        let mut service = Service::start().await;
        let admin = service.admin().await;
        let (_, user_id) = service.user(Role::User).await;
        let book_id = admin.book(json!({})).await;
        admin.codes(book_id, &["CODE-1".to_owned()]).await;
        // The pool of every path that wants one.
        sqlx::query("INSERT INTO pools (id, created_by, name) VALUES ($1, $1, 'A pool')")
            .bind(Uuid::nil())
            .execute(service.db.pool())
            .await
            .expect("a pool");
        service.stop_workers().await; // what is accepted from here on stays queued
        let job = admin.get("/v1/jobs").await.expect(200)["data"][0].clone();
        let key = admin
            .post("/v1/api-keys", json!({ "name": "A key", "scopes": ["read"] }))
            .await
            .expect(201);
        let text = |value: &Value| value["id"].as_str().expect("an id").to_owned();
        Self {
            document: Document::of(&service),
            service,
            admin,
            book_id,
            user_id,
            job_id: text(&job),
            key_id: text(&key),
        }
    }

    fn path(&self, operation: &Operation) -> String {
        operation.present_path(self.book_id, &self.job_id, self.user_id, &self.key_id, "CODE-1")
    }

    /// Every operation with a JSON body, the body's schema and a body that it takes.
    fn bodies(&self) -> Vec<(Operation, Map<String, Value>, Value)> {
        let all = self.document.operations().into_iter();
        let bodies: Vec<_> = all
            .filter_map(|operation| {
                let schema = operation.json_body()?.clone();
                Some((
                    operation,
                    self.document.flat(&schema),
                    self.document.sample(&schema),
                ))
            })
            .collect();
        assert!(bodies.len() > 15, "the document has lost its bodies");
        bodies
    }

    /// Sends bytes as JSON, with what the operation needs in its query.
    async fn send(&self, operation: &Operation, body: impl Into<reqwest::Body>) -> Answer {
        let request = self
            .admin
            .request(operation.method.clone(), &self.path(operation));
        self.admin
            .send(request.header("Content-Type", "application/json").body(body))
            .await
    }
}

/// One fault that a body can have: the body, and where and what the fault is.
struct Fault {
    body: Value,
    pointer: String,
    code: &'static str,
}

/// Every fault that the properties of `schema` allow, each in an otherwise good body.
fn faults(document: &Document, schema: &Map<String, Value>, good: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |name: &str, value: Option<Value>, inner: &str, code| {
        let mut body = good.clone();
        let members = body.as_object_mut().expect("an object");
        match value {
            Some(value) => drop(members.insert(name.to_owned(), value)),
            None => drop(members.remove(name)),
        }
        let pointer = format!("/{name}{inner}");
        faults.push(Fault { body, pointer, code });
    };
    fault("no_such_field", Some(json!(1)), "", "unknown_field");
    for name in schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        fault(name.as_str().expect("a name"), None, "", "required");
    }
    for (name, property) in schema["properties"].as_object().expect("properties") {
        for (value, inner, code) in wrong_values(document, property) {
            fault(name, Some(value), &inner, code);
        }
    }
    faults
}

/// Values that a schema refuses, with the place within them and the code.
fn wrong_values(document: &Document, schema: &Value) -> Vec<(Value, String, &'static str)> {
    let schema = document.flat(schema);
    let get = |name: &str| schema.get(name).cloned().unwrap_or_default();
    let mut wrong = Vec::new();
    let mut add = |value: Value, inner: &str, code| wrong.push((value, inner.to_owned(), code));
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => {
            for value in [json!(7), json!(true), json!([]), json!({})] {
                add(value, "", "wrong_type");
            }
            add(json!("a\0b"), "", "bad_character");
            if let Some(most) = get("maxLength").as_u64() {
                add(json!("x".repeat(most as usize + 1)), "", "too_long");
            }
            if get("minLength").as_u64() == Some(1) {
                add(json!(""), "", "too_short");
            }
            if get("enum").is_array() {
                add(json!("no such word"), "", "not_in_enum");
            } else if get("format").is_string() {
                add(json!("no such thing"), "", "bad_format");
            }
        }
        Some("integer") => {
            for value in [json!("7"), json!(1.5), json!(true), json!([])] {
                add(value, "", "wrong_type");
            }
            for value in [json!(i64::MAX), json!(i64::MIN), json!(1e300)] {
                add(value, "", "out_of_range");
            }
            if let Some(least) = get("minimum").as_f64() {
                add(json!(least as i64 - 1), "", "out_of_range");
            }
            if let Some(most) = get("maximum").as_f64() {
                add(json!(most as i64 + 1), "", "out_of_range");
            }
        }
        Some("boolean") => {
            for value in [json!("true"), json!(1), json!({})] {
                add(value, "", "wrong_type");
            }
        }
        Some("array") => {
            let one = document.sample(&schema["items"]);
            for value in [json!("x"), json!({}), json!(1), one.clone()] {
                add(value, "", "wrong_type");
            }
            if let Some(most) = get("maxItems").as_u64() {
                add(json!(vec![one; most as usize + 1]), "", "too_many");
            }
            if get("minItems").as_u64() == Some(1) {
                add(json!([]), "", "too_few");
            }
            for (value, inner, code) in wrong_values(document, &schema["items"]) {
                add(json!([value]), &format!("/0{inner}"), code);
            }
        }
        Some("object") => {
            for value in [json!("x"), json!([]), json!(1)] {
                add(value, "", "wrong_type");
            }
            if get("additionalProperties").is_object() {
                add(json!({ "a": { "b": "c\0" } }), "/a/b", "bad_character");
                add(json!({ "a\0": 1 }), "/a\0", "bad_character");
                add(json!({ "a": "x".repeat(20_000) }), "", "too_long");
            }
        }
        other => panic!("a member of type {other:?} needs its wrong values here"),
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_every_member_is_named() {
    let scene = Scene::new().await;
    let mut asked = 0;
    for (operation, schema, good) in scene.bodies() {
        for Fault { body, pointer, code } in faults(&scene.document, &schema, &good) {
            let answer = scene.send(&operation, body.to_string()).await;
            let errors = answer.body["errors"].as_array().cloned().unwrap_or_default();
            let named = errors
                .iter()
                .any(|fault| fault["pointer"] == pointer && fault["code"] == code);
            let shown: String = body.to_string().chars().take(200).collect();
            assert!(
                named,
                "{}: no {code} at {pointer} for {shown}: {}",
                operation.name(),
                answer.body
            );
            answer.invalid(&pointer, code);
            asked += 1;
        }
    }
    assert!(asked > 400, "{asked}");
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn null_means_absent() {
    let scene = Scene::new().await;
    let mut made = 0;
    // What no two accounts have, and what no password may be.
    let mut distinct = |body: &mut Value| {
        made += 1;
        for (name, value) in [
            ("email", format!("{made}@example.com")),
            ("password", "correct horse battery".to_owned()),
        ] {
            if let Some(slot) = body.get_mut(name) {
                *slot = value.into();
            }
        }
    };
    for (operation, schema, mut good) in scene.bodies() {
        if operation.path.contains("/void/") || operation.path.contains("/revoke/") {
            continue; // done once, they are done
        }
        distinct(&mut good);
        let plain = scene.send(&operation, good.to_string()).await;
        assert!(plain.status.as_u16() < 500, "{} {}", operation.name(), plain.body);
        let mut nulls = good.clone();
        distinct(&mut nulls);
        for name in schema["properties"].as_object().expect("properties").keys() {
            let slot = &mut nulls[name.as_str()];
            *slot = slot.take(); // makes it null where it was absent
        }
        let answer = scene.send(&operation, nulls.to_string()).await;
        assert_eq!(
            answer.status,
            plain.status,
            "{} {}",
            operation.name(),
            answer.body
        );
        for name in schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let name = name.as_str().expect("a name");
            let mut body = good.clone();
            body[name] = Value::Null;
            scene
                .send(&operation, body.to_string())
                .await
                .invalid(&format!("/{name}"), "required");
        }
    }
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_json_object_is_refused() {
    let scene = Scene::new().await;
    let deep = |open: &str, close: &str| open.repeat(1_000) + "1" + &close.repeat(1_000);
    for (operation, ..) in scene.bodies() {
        for bytes in [
            "{",
            "}",
            "{\"name\":}",
            "{'name':1}",
            "{\"a\":1,}",
            "nul",
            "{}{}",
            "{\"a\":\"\u{1}\"}",
            "NaN",
        ] {
            scene.send(&operation, bytes).await.refused(400, "malformed_json");
        }
        for bytes in [
            &b"{\"a\":\"\xff\"}"[..],
            b"\xef\xbb\xbf{}",
            b"\xfe\xff\x00{\x00}",
            b" ",
        ] {
            scene.send(&operation, bytes).await.refused(400, "malformed_json");
        }
        for text in ["[]", "null", "7", "\"text\"", "true"] {
            scene.send(&operation, text).await.invalid("", "wrong_type");
        }
        for text in [deep("[", "]"), deep("{\"a\":", "}")] {
            scene.send(&operation, text).await.invalid("", "too_deep");
        }
        scene
            .send(&operation, "{\"a\":1e400}")
            .await
            .invalid("", "out_of_range");
    }
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_content_types_and_too_large_bodies_are_refused() {
    let scene = Scene::new().await;
    for (operation, _, good) in scene.bodies() {
        let request = || {
            scene
                .admin
                .request(operation.method.clone(), &scene.path(&operation))
        };
        for content_type in [
            "text/plain",
            "application/xml",
            "application/merge-patch+json",
            "application/json; charset=latin1",
            "application/x-www-form-urlencoded",
            "json",
            "",
        ] {
            let request = request()
                .header("Content-Type", content_type)
                .body(good.to_string());
            scene
                .admin
                .send(request)
                .await
                .refused(415, "unsupported_media_type");
        }
        scene
            .admin
            .send(request().body(good.to_string()))
            .await
            .refused(415, "unsupported_media_type");
        let padded = |length: usize| {
            let mut text = good.to_string().into_bytes();
            text.resize(length, b' ');
            text
        };
        let fits = scene.send(&operation, padded(MAX_JSON)).await;
        assert!(
            !matches!(fits.status.as_u16(), 400 | 413 | 500..),
            "{} {}",
            operation.name(),
            fits.body
        );
        scene
            .send(&operation, padded(MAX_JSON + 1))
            .await
            .refused(413, "payload_too_large");
        let chunks: Vec<_> = padded(MAX_JSON + 1)
            .chunks(10_000)
            .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()))
            .collect();
        let chunked = reqwest::Body::wrap_stream(stream::iter(chunks));
        scene
            .send(&operation, chunked)
            .await
            .refused(413, "payload_too_large");
    }
    for operation in scene.document.operations() {
        let takes_csv = operation
            .value
            .pointer("/requestBody/content/text~1csv")
            .is_some();
        if !takes_csv || operation.json_body().is_some() {
            continue;
        }
        let path = format!("{}?book_id={}", scene.path(&operation), scene.book_id);
        let path = if operation.path.contains("{id}") {
            scene.path(&operation)
        } else {
            path
        };
        for content_type in [
            "application/json",
            "multipart/form-data; boundary=x",
            "image/png",
            "",
        ] {
            let request = scene
                .admin
                .request(Method::POST, &path)
                .header("Content-Type", content_type);
            scene
                .admin
                .send(request.body("code\nA\n"))
                .await
                .refused(415, "unsupported_media_type");
        }
    }
    scene.service.stop().await;
}
