//! Bad input of every kind → the exact status, code and pointer.

use std::{cell::RefCell, io};

use poem::{
    Endpoint, Request,
    http::{HeaderMap, Method, StatusCode, header::CONTENT_TYPE},
};
use serde_json::{Value, json};

use super::{app, document};

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// `code` and every `pointer code` of `errors`, sorted.
    fn faults(&self) -> (u16, &str, Vec<String>) {
        let errors = self.body["errors"].as_array().into_iter().flatten();
        let text = |fault: &Value, name: &str| fault[name].as_str().unwrap().to_owned();
        let mut faults: Vec<_> = errors
            .map(|f| format!("{} {}", text(f, "pointer"), text(f, "code")))
            .collect();
        faults.sort();
        (
            self.status,
            self.body["code"].as_str().unwrap_or_default(),
            faults,
        )
    }
}

async fn ask(method: Method, uri: &str, headers: &[(&str, &str)], body: impl Into<poem::Body>) -> Answer {
    let mut request = Request::builder().method(method).uri_str(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = app(&Default::default())
        .call(request.body(body.into()))
        .await
        .unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.into_body().into_bytes().await.unwrap();
    let answer = Answer {
        status: status.as_u16(),
        headers,
        body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
    };
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("referrer-policy"), "no-referrer");
    assert!(
        answer
            .header("content-security-policy")
            .contains("frame-ancestors 'none'")
    );
    assert!(!answer.header("x-request-id").is_empty());
    if status.is_client_error() || status.is_server_error() {
        assert_eq!(answer.header("content-type"), "application/problem+json");
        if !bytes.is_empty() {
            assert_eq!(answer.body["request_id"], answer.header("x-request-id"));
            assert_eq!(answer.body["status"], answer.status);
            let code = answer.body["code"].as_str().unwrap();
            assert_eq!(answer.body["type"], format!("urn:couponbook:problem:{code}"));
        }
    }
    answer
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

async fn create(body: impl Into<poem::Body>) -> Answer {
    ask(Method::POST, "/v1/books", JSON, body).await
}

async fn get(uri: &str) -> Answer {
    ask(Method::GET, uri, &[], "").await
}

fn invalid(faults: &[&str]) -> (u16, &'static str, Vec<String>) {
    (
        422,
        "validation_failed",
        faults.iter().map(|fault| (*fault).to_owned()).collect(),
    )
}

#[tokio::test]
async fn each_fault_of_a_body_has_its_pointer_and_code() {
    for (body, faults) in [
        (json!({}), "/name required"),
        (json!({ "name": null }), "/name required"),
        (json!({ "name": 7 }), "/name wrong_type"),
        (json!({ "name": "" }), "/name too_short"),
        (json!({ "name": "ÄÖÜÄÖÜÄÖÜÄÖ" }), "/name too_long"),
        (json!({ "name": "a\0" }), "/name bad_character"),
        (json!({ "name": "a", "nmae": 1 }), "/nmae unknown_field"),
        (json!({ "name": "a", "nmae": null }), "/nmae unknown_field"),
        (json!({ "name": "a", "count": "1" }), "/count wrong_type"),
        (json!({ "name": "a", "count": 1.5 }), "/count wrong_type"),
        (json!({ "name": "a", "count": 1.0 }), "/count wrong_type"),
        (json!({ "name": "a", "count": true }), "/count wrong_type"),
        (json!({ "name": "a", "count": 0 }), "/count out_of_range"),
        (json!({ "name": "a", "count": 101 }), "/count out_of_range"),
        (json!({ "name": "a", "count": u64::MAX }), "/count out_of_range"),
        (json!({ "name": "a", "count": 1e40 }), "/count out_of_range"),
        (json!({ "name": "a", "status": "gone" }), "/status not_in_enum"),
        (json!({ "name": "a", "status": 1 }), "/status wrong_type"),
        (json!({ "name": "a", "owner": "1234" }), "/owner bad_format"),
        (
            json!({ "name": "a", "starts_at": "tomorrow" }),
            "/starts_at bad_format",
        ),
        (
            json!({ "name": "a", "starts_at": "2026-02-30T00:00:00Z" }),
            "/starts_at bad_format",
        ),
        (
            json!({ "name": "a", "starts_at": "2026-02-03" }),
            "/starts_at bad_format",
        ),
        (json!({ "name": "a", "tags": "x" }), "/tags wrong_type"),
        (
            json!({ "name": "a", "tags": ["1", "2", "3", "4"] }),
            "/tags too_many",
        ),
        (json!({ "name": "a", "tags": ["1", 2] }), "/tags/1 wrong_type"),
        (json!({ "name": "a", "tags": [null] }), "/tags/0 wrong_type"),
        (json!({ "name": "a", "inner": {} }), "/inner/a~1b~0c required"),
        (
            json!({ "name": "a", "inner": { "a/b~c": "x" } }),
            "/inner/a~1b~0c wrong_type",
        ),
        (
            json!({ "name": "a", "inner": { "a/b~c": 1, "x": 1 } }),
            "/inner/x unknown_field",
        ),
        (json!({ "name": "a", "inner": [] }), "/inner wrong_type"),
        (json!({ "name": "a", "exact": "true" }), "/exact wrong_type"),
        (json!({ "name": "a", "metadata": 1 }), "/metadata wrong_type"),
        (
            json!({ "name": "a", "metadata": { "k": ["\0"] } }),
            "/metadata/k/0 bad_character",
        ),
        (
            json!({ "name": "a", "metadata": { "k\0": 1 } }),
            "/metadata/k\0 bad_character",
        ),
        (json!([]), " wrong_type"),
        (json!(null), " wrong_type"),
        (json!("x"), " wrong_type"),
    ] {
        assert_eq!(
            create(body.to_string()).await.faults(),
            invalid(&[faults]),
            "{body}"
        );
    }
}

#[tokio::test]
async fn every_fault_is_named_at_once() {
    let answer = create(json!({ "count": 0, "tags": [1], "x": 1, "owner": 3 }).to_string()).await;
    let all = [
        "/count out_of_range",
        "/name required",
        "/owner wrong_type",
        "/tags/0 wrong_type",
        "/x unknown_field",
    ];
    assert_eq!(answer.faults(), invalid(&all));
    let flood = format!("{{\"name\":\"a\",\"tags\":[{}1]}}", "1,".repeat(10_000));
    assert_eq!(create(flood).await.body["errors"].as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn numbers_that_no_machine_has_are_out_of_range_not_malformed() {
    assert_eq!(
        create(r#"{"name":"a","count":1e400}"#).await.faults(),
        invalid(&[" out_of_range"])
    );
}

#[tokio::test]
async fn a_valid_body_arrives_with_nulls_absent_but_metadata_as_it_is() {
    let sent = json!({
        "name": "ÄÖÜÄÖÜÄÖÜÄ", "owner": null, "count": null, "status": "draft",
        "metadata": { "a": null, "b": { "c": [null, 1.5] } },
    });
    let bytes = sent.to_string();
    let answer = create(bytes.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["metadata"], sent["metadata"]);
    assert_eq!(answer.body["owner"], Value::Null);
    assert_eq!(answer.body["status"], "draft");
    use sha2::{Digest, Sha256};
    let hash: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(answer.body["hash"], hash);
    assert_eq!(answer.header("cache-control"), "no-store");
}

#[tokio::test]
async fn of_duplicate_keys_the_last_wins() {
    assert_eq!(create(r#"{"name":"a","name":"b"}"#).await.body["name"], "b");
}

#[tokio::test]
async fn only_what_is_not_json_is_malformed() {
    let deep = format!("{{\"name\":{}", "[".repeat(200_000));
    let bodies: [&[u8]; 8] = [
        b"{",
        b"name=a",
        b"{\"name\":\"a\"} x",
        b"{'name':'a'}",
        b"\xff\xfe",
        b"{\"name\":\"\xff\"}",
        b" ",
        deep.as_bytes(),
    ];
    for body in bodies {
        let answer = create(body.to_vec()).await;
        assert_eq!(
            answer.faults(),
            (400, "malformed_json", vec![]),
            "{}",
            answer.body
        );
    }
}

#[tokio::test]
async fn another_content_type_is_refused_before_anything_else() {
    for content_type in [
        "text/plain",
        "application/xml",
        "application/json; charset=latin1",
        "application/ld+json",
    ] {
        let answer = ask(Method::POST, "/v1/books", &[("content-type", content_type)], "{").await;
        assert_eq!(
            answer.faults(),
            (415, "unsupported_media_type", vec![]),
            "{content_type}"
        );
    }
    let missing = ask(Method::POST, "/v1/books", &[], r#"{"name":"a"}"#).await;
    assert_eq!(missing.faults(), (415, "unsupported_media_type", vec![]));
    for fine in ["application/json; charset=UTF-8", "Application/JSON"] {
        let answer = ask(
            Method::POST,
            "/v1/books",
            &[("content-type", fine)],
            r#"{"name":"a"}"#,
        )
        .await;
        assert_eq!(answer.status, 200, "{fine}");
    }
}

#[tokio::test]
async fn a_body_may_have_a_mebibyte_and_not_a_byte_more() {
    let padded = |size: usize| format!("{}{}", r#"{"name":"a"}"#, " ".repeat(size - 12));
    assert_eq!(create(padded(1024 * 1024)).await.status, 200);
    let answer = create(padded(1024 * 1024 + 1)).await;
    assert_eq!(answer.faults(), (413, "payload_too_large", vec![]));
}

#[tokio::test]
async fn an_absent_body_is_an_empty_object() {
    let unlock = "/v1/coupons/unlock/ABC";
    assert_eq!(ask(Method::POST, unlock, &[], "").await.body, json!("3"));
    assert_eq!(ask(Method::POST, unlock, JSON, "").await.status, 200);
    assert_eq!(ask(Method::POST, unlock, JSON, "{}").await.status, 200);
    assert_eq!(
        ask(Method::POST, "/v1/books", &[], "").await.faults(),
        invalid(&["/name required"])
    );
}

#[tokio::test]
async fn each_fault_of_a_query_has_its_pointer_and_code() {
    for (query, fault) in [
        ("limit=0", "?limit out_of_range"),
        ("limit=101", "?limit out_of_range"),
        ("limit=99999999999999999999999", "?limit out_of_range"),
        ("limit=ten", "?limit wrong_type"),
        ("limit=1.5", "?limit wrong_type"),
        ("limit=+5", "?limit wrong_type"),
        ("limit=", "?limit wrong_type"),
        ("limit=1&limit=2", "?limit duplicate"),
        ("exact=1", "?exact wrong_type"),
        ("status=gone", "?status not_in_enum"),
        ("cursor=abc", "?cursor bad_cursor"),
        ("cursor=%00", "?cursor bad_character"),
        ("limti=5", "?limti unknown_parameter"),
    ] {
        assert_eq!(
            get(&format!("/v1/books?{query}")).await.faults(),
            invalid(&[fault]),
            "{query}"
        );
    }
    let both = get("/v1/books?limit=0&x=1").await;
    assert_eq!(
        both.faults(),
        invalid(&["?limit out_of_range", "?x unknown_parameter"])
    );
    let unknown = ask(Method::POST, "/v1/coupons/unlock/A?x=1", &[], "").await;
    assert_eq!(unknown.faults(), invalid(&["?x unknown_parameter"]));
}

#[tokio::test]
async fn a_list_is_walked_by_its_cursor_to_the_end() {
    let first = get("/v1/books").await;
    assert_eq!(first.body["data"].as_array().unwrap().len(), 50);
    let (mut seen, mut next) = (
        Vec::new(),
        "/v1/books?limit=40&status=active&exact=true".to_owned(),
    );
    loop {
        let page = get(&next).await.body;
        seen.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row.as_u64().unwrap()),
        );
        let members = page.as_object().unwrap();
        assert!(members.contains_key("next_cursor"));
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        next = format!("/v1/books?limit=40&cursor={cursor}");
    }
    assert_eq!(seen, (1..=120).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_ill_formed_id_looks_like_a_missing_one() {
    let missing = get("/v1/books/01890000-0000-7000-8000-000000000000").await;
    assert_eq!(missing.faults(), (404, "not_found", vec![]));
    for path in [
        "/v1/books/1",
        "/v1/books/%00",
        "/v1/nothing",
        "/",
        "/v1/coupons/unlock/%00",
    ] {
        let mut other = get(path).await;
        other.body["request_id"] = missing.body["request_id"].clone();
        assert_eq!(other.body, missing.body, "{path}");
    }
}

#[tokio::test]
async fn faults_of_headers_name_the_header() {
    let path = "/v1/books/01890000-0000-7000-8000-000000000000";
    let patch = |name, value| async move { ask(Method::PATCH, path, &[(name, value)], "").await };
    for value in ["x", "4"] {
        assert_eq!(
            patch("X-Times", value).await.faults(),
            invalid(&["header:X-Times invalid"])
        );
    }
    assert_eq!(patch("If-Match", "\"7\"").await.status, 200);
    assert_eq!(patch("If-Match", "\"6\"").await.faults(), (412, "stale", vec![]));
}

#[tokio::test]
async fn other_methods_are_told_which_there_are() {
    let wrong = ask(Method::DELETE, "/v1/books", &[], "").await;
    assert_eq!(wrong.faults(), (405, "method_not_allowed", vec![]));
    assert_eq!(wrong.header("allow"), "GET, HEAD, OPTIONS, POST");
    let merged = ask(Method::PUT, "/v1/books/1", &[], "").await;
    assert_eq!(merged.header("allow"), "GET, HEAD, OPTIONS, PATCH");
    let head = ask(Method::HEAD, "/v1/coupons/unlock/A", &[], "").await;
    assert_eq!(
        (head.status, head.header("allow"), &head.body),
        (405, "OPTIONS, POST", &Value::Null)
    );
    let docs = ask(Method::POST, "/docs", &[], "").await;
    assert_eq!((docs.status, docs.header("allow")), (405, "GET, HEAD"));
}

#[tokio::test]
async fn head_answers_like_get_without_a_body_and_options_says_what_there_is() {
    let head = ask(Method::HEAD, "/v1/books?limit=1", &[], "").await;
    assert_eq!(
        (head.status, head.header("content-type")),
        (200, "application/json; charset=utf-8")
    );
    assert_eq!(ask(Method::HEAD, "/v1/books?limit=0", &[], "").await.status, 422);
    let options = ask(Method::OPTIONS, "/v1/books", &[], "").await;
    assert_eq!(
        (options.status, options.header("allow")),
        (204, "GET, HEAD, OPTIONS, POST")
    );
    assert_eq!(ask(Method::OPTIONS, "/v1/nothing", &[], "").await.status, 404);
}

#[tokio::test]
async fn a_panic_and_a_fault_say_nothing_of_the_inside() {
    for (method, path, inside) in [
        (Method::POST, "/v1/panic", "planted"),
        (Method::GET, "/v1/fault", "secret"),
    ] {
        let answer = ask(method, path, &[], "").await;
        assert_eq!(answer.faults(), (500, "internal", vec![]));
        assert!(!answer.body.to_string().contains(inside));
    }
}

#[tokio::test]
async fn a_bare_status_gets_a_problem_body() {
    let answer = get("/readyz").await;
    assert_eq!(
        (answer.faults(), answer.header("retry-after")),
        ((503, "unavailable", vec![]), "1")
    );
}

#[tokio::test]
async fn refusals_carry_their_headers() {
    let locked = ask(
        Method::POST,
        "/v1/coupons/unlock/A",
        JSON,
        r#"{"lock_token":"x"}"#,
    )
    .await;
    assert_eq!(
        (locked.faults(), locked.header("retry-after")),
        ((423, "coupon_locked", vec![]), "1")
    );
}

#[tokio::test]
async fn the_request_id_is_taken_made_echoed_and_given_to_handlers() {
    let headers = [("content-type", "application/json"), ("x-request-id", "mine-1")];
    let answer = ask(Method::POST, "/v1/books", &headers, r#"{"name":"a"}"#).await;
    assert_eq!(
        (answer.header("x-request-id"), &answer.body["request_id"]),
        ("mine-1", &json!("mine-1"))
    );
    let made = ask(Method::GET, "/v1/books", &[("x-request-id", "not fit")], "").await;
    assert_eq!(made.header("x-request-id").len(), 36);
}

#[tokio::test]
async fn the_document_says_what_the_service_does() {
    let document = document();
    let paths = &document.value()["paths"];
    let statuses = |operation: &Value| {
        operation["responses"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let (create, get) = (&paths["/v1/books"]["post"], &paths["/v1/books/{id}"]["get"]);
    let patch = &paths["/v1/books/{id}"]["patch"];
    assert_eq!(
        statuses(create),
        "200 400 401 403 404 409 410 413 415 422 423 429 500 503"
    );
    assert_eq!(statuses(get), "200 401 403 404 409 410 422 429 500 503");
    assert!(statuses(patch).contains("412"));
    let problem = &create["responses"]["422"]["content"]["application/problem+json"]["schema"]["$ref"];
    assert_eq!(problem, "#/components/schemas/Problem");
    let schemas = &document.value()["components"]["schemas"];
    let codes = schemas["Problem"]["properties"]["code"]["enum"]
        .as_array()
        .unwrap();
    assert_eq!(codes.len(), coupon_core::Code::ALL.len());
    assert_eq!(create["requestBody"]["required"], true);
    assert_eq!(
        paths["/v1/coupons/unlock/{code}"]["post"]["requestBody"]["required"],
        false
    );
    assert!(create["responses"]["200"]["content"]["application/json"].is_object());
    assert_eq!(schemas["NewBook"]["additionalProperties"], false);
    assert_eq!(schemas["Inner"]["additionalProperties"], false);
    assert_eq!(schemas["Echo"].get("additionalProperties"), None);
    let owner = &schemas["Echo"]["properties"]["owner"];
    assert_eq!(
        (&owner["nullable"], &owner["format"]),
        (&json!(true), &json!("uuid"))
    );
    assert!(
        schemas["Echo"]["required"]
            .as_array()
            .unwrap()
            .contains(&json!("owner"))
    );
    let limit = &paths["/v1/books"]["get"]["parameters"][0];
    assert_eq!(
        (&limit["required"], &limit["schema"]["maximum"]),
        (&json!(false), &json!(100.0))
    );
}

#[tokio::test]
async fn the_document_and_its_page_are_served_whole_and_then_by_tag() {
    for (path, content_type) in [
        ("/openapi.json", "application/json"),
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/docs.js", "text/javascript; charset=utf-8"),
        ("/docs/docs.css", "text/css; charset=utf-8"),
    ] {
        let answer = get(path).await;
        assert_eq!(
            (answer.status, answer.header(CONTENT_TYPE.as_str())),
            (200, content_type)
        );
        assert!(!answer.header("content-security-policy").contains("unsafe"));
        let again = ask(Method::GET, path, &[("if-none-match", answer.header("etag"))], "").await;
        assert_eq!(again.status, StatusCode::NOT_MODIFIED.as_u16());
    }
    assert_eq!(&get("/openapi.json").await.body, document().value());
    let page = [
        include_str!("../docs/index.html"),
        include_str!("../docs/docs.js"),
        include_str!("../docs/docs.css"),
    ];
    for text in page {
        assert!(!text.contains("http:") && !text.contains("https:") && !text.contains("style=\""));
        assert!(!text.contains("innerHTML"));
    }
}

thread_local! {
    /// What this test's thread has logged.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.with_borrow_mut(|log| log.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_names_the_template_and_never_the_path() {
    // For all threads: one without a subscriber could switch the call sites off for this one.
    tracing_subscriber::fmt().json().with_writer(|| Log).init();
    for uri in [
        "/v1/coupons/unlock/PLANTED",
        "/v1/coupons/unlock/PLANTED?x=PLANTED",
        "/PLANTED/PLANTED",
    ] {
        ask(Method::POST, uri, JSON, r#"{"lock_token":"PLANTED"}"#).await;
    }
    ask(Method::POST, "/v1/panic", &[("x-request-id", "mine-2")], "").await;
    let log = String::from_utf8(LOG.take()).unwrap();
    assert!(
        log.contains("\"route\":\"/v1/coupons/unlock/{code}\"") && log.contains("\"status\":423"),
        "{log}"
    );
    assert!(
        log.contains("\"latency_ms\":") && log.contains("\"request_id\":\"mine-2\""),
        "{log}"
    );
    assert!(!log.contains("PLANTED") && !log.contains("planted"), "{log}");
}
