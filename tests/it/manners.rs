//! The manners of every answer: limits that are told of and kept, request ids, pages, and the headers that the document
//! declares.

use std::collections::BTreeSet;

use coupon_core::{caller::Role, config::Settings};
use coupon_tests::{Service, document::Document, http::Answer};
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

async fn limited(limits: &str) -> Service {
    Service::with(Settings {
        rate_limits: limits.parse().expect("a setting"),
        registration: coupon_core::config::Switch::On,
        ..Settings::default()
    })
    .await
}

#[track_caller]
fn fields(answer: &Answer) -> (Option<&str>, Option<&str>) {
    (answer.header("ratelimit"), answer.header("ratelimit-policy"))
}

/// Asserts a refusal with its three headers.
#[track_caller]
fn refused(answer: Answer, policy: &str) {
    let seconds: u64 = answer
        .header("retry-after")
        .expect("seconds")
        .parse()
        .expect("a number");
    assert!((1..=3_600).contains(&seconds), "{seconds}");
    let (limit, told) = fields(&answer);
    assert_eq!(told, Some(policy));
    let name = policy.split(';').next().expect("a name");
    assert!(
        limit.is_some_and(|limit| limit.starts_with(&format!("{name};r=0;t="))),
        "{limit:?}"
    );
    answer.refused(429, "rate_limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_back_and_the_others_are_not_hurt() {
    let service = limited("reads=4/3600, writes=2/3600, trusted=6/3600").await;
    let (one, _) = service.user(Role::User).await;
    let (two, _) = service.user(Role::User).await;
    for left in [3, 2, 1, 0] {
        let answer = one.get("/v1/me").await;
        let (limit, policy) = fields(&answer);
        assert_eq!(policy, Some("\"reads\";q=4;w=3600"));
        assert!(
            limit.is_some_and(|limit| limit.starts_with(&format!("\"reads\";r={left};t="))),
            "{limit:?}"
        );
        answer.expect(200);
    }
    for _ in 0..3 {
        refused(one.get("/v1/me").await, "\"reads\";q=4;w=3600");
    }
    // Changes are counted apart, and a refusal for another reason counts as well.
    one.patch("/v1/me", json!({ "name": "N" })).await.expect(200);
    one.post("/v1/books", json!({ "name": "B" }))
        .await
        .refused(403, "forbidden");
    refused(
        one.patch("/v1/me", json!({ "name": "N" })).await,
        "\"writes\";q=2;w=3600",
    );
    two.get("/v1/me").await.expect(200);
    // Administrators and keys have one bucket each for everything.
    let admin = service.admin().await;
    let key = admin
        .post("/v1/api-keys", json!({ "name": "k", "scopes": ["read"] }))
        .await
        .expect(201);
    for _ in 0..5 {
        admin.get("/v1/books").await.expect(200);
    }
    refused(admin.get("/v1/books").await, "\"trusted\";q=6;w=3600");
    let machine = service.nobody().key(key["key"].as_str().expect("a key"));
    for _ in 0..6 {
        machine.get("/v1/books").await.expect(200);
    }
    refused(machine.get("/v1/books").await, "\"trusted\";q=6;w=3600");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_counted_by_their_address_and_health_is_never_refused() {
    let service = limited("address=5/3600").await;
    let nobody = service.nobody();
    let (user, _) = service.user(Role::User).await;
    let login = json!({ "email": "nobody@example.com", "password": "wrong" });
    nobody
        .post("/v1/auth/login", login.clone())
        .await
        .refused(401, "invalid_credentials");
    nobody.get("/v1/setup").await.expect(200);
    for client in [&nobody, &nobody.bearer("garbage"), &nobody.key("cb_garbage")] {
        let answer = client.get("/v1/books").await;
        assert_eq!(answer.header("ratelimit-policy"), Some("\"address\";q=5;w=3600"));
        answer.refused(401, "unauthenticated");
    }
    refused(nobody.get("/v1/books").await, "\"address\";q=5;w=3600");
    refused(
        nobody.post("/v1/auth/login", login).await,
        "\"address\";q=5;w=3600",
    );
    for path in ["/livez", "/readyz"] {
        for _ in 0..10 {
            let answer = nobody.get(path).await;
            assert_eq!(fields(&answer), (None, None));
            answer.expect(200);
        }
    }
    for path in ["/openapi.json", "/docs"] {
        assert_eq!(nobody.get(path).await.status, 200, "{path}");
    }
    // Good credentials from the same address are somebody of their own.
    user.get("/v1/me").await.expect(200);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_limits_nothing_is_told_of_them_but_a_budget_is() {
    let service = limited("off").await;
    let (user, _) = service.user(Role::User).await;
    for _ in 0..20 {
        let answer = user.get("/v1/coupons/NO-SUCH").await;
        assert_eq!(fields(&answer), (None, None));
        answer.refused(404, "not_found");
    }
    // The budget against guessing is another matter and says so in the same fields.
    refused(
        user.get("/v1/coupons/NO-SUCH").await,
        "\"code-misses\";q=20;w=3600",
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_taken_or_made_and_stands_in_answer_and_problem() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let long = "x".repeat(128);
    for id in ["abc-1", long.as_str(), "~!@#$%^&*()_+{}|:<>?"] {
        let answer = admin.with("X-Request-Id", id).get("/v1/books").await;
        assert_eq!(answer.header("x-request-id"), Some(id));
        let problem = admin.with("X-Request-Id", id).get("/v1/books/x").await;
        assert_eq!(problem.refused(404, "not_found")["request_id"], id);
        let nowhere = service
            .nobody()
            .with("X-Request-Id", id)
            .post("/nowhere", json!({}))
            .await;
        assert_eq!(nowhere.refused(404, "not_found")["request_id"], id);
    }
    let too_long = "x".repeat(129);
    let mut made = BTreeSet::new();
    for unfit in ["", "a b", "ä", too_long.as_str()] {
        let answer = admin.with("X-Request-Id", unfit).get("/v1/books").await;
        let id: Uuid = answer
            .header("x-request-id")
            .expect("an id")
            .parse()
            .expect("a UUID");
        assert_eq!(id.get_version_num(), 7);
        assert!(made.insert(id));
    }
    let twice = admin
        .request(Method::GET, "/v1/books")
        .header("X-Request-Id", "a")
        .header("X-Request-Id", "b");
    let answer = admin.send(twice).await;
    assert!(!["a", "b"].contains(&answer.header("x-request-id").expect("an id")));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_of_1_to_100_rows_wherever_there_are_pages() {
    let service = Service::without_workers().await;
    let document = Document::of(&service);
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await.to_string();
    let mut lists = 0;
    for operation in document.operations() {
        if !operation
            .parameters("query")
            .any(|parameter| parameter["name"] == "limit")
        {
            continue;
        }
        lists += 1;
        let names: BTreeSet<&str> = operation
            .parameters("query")
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        assert!(names.contains("cursor"), "{} has no cursor", operation.name());
        let path = operation.path.replace("{id}", &book_id).replace("{code}", "X");
        for (limit, code) in [
            ("0", "out_of_range"),
            ("101", "out_of_range"),
            ("-1", "out_of_range"),
            ("x", "wrong_type"),
            ("1.5", "wrong_type"),
            ("", "wrong_type"),
        ] {
            admin
                .get(&format!("{path}?limit={limit}"))
                .await
                .invalid("?limit", code);
        }
        for bad in ["x", "", "AAAA"] {
            let answer = admin.get(&format!("{path}?cursor={bad}")).await;
            assert!(
                matches!(answer.status.as_u16(), 404 | 422),
                "{path} {bad}: {}",
                answer.body
            );
        }
    }
    assert!(lists >= 10, "{lists}");
    service.stop().await;
}

/// The headers of this service's own that an answer may carry.
const OWN: [&str; 9] = [
    "x-request-id",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "location",
    "etag",
    "idempotency-replayed",
    "www-authenticate",
    "x-accel-buffering",
];

/// Asserts that an answer of an operation is declared, with every header it must and no other of [`OWN`].
#[track_caller]
fn is_declared(document: &Document, operation: &str, answer: &Answer) {
    let (method, path) = operation.split_once(' ').expect("a method and a path");
    let responses = &document.0["paths"][path][method.to_lowercase()]["responses"];
    let declared = &responses[answer.status.as_str()];
    assert!(
        declared.is_object(),
        "{operation} does not declare {}: {}",
        answer.status,
        answer.body
    );
    let mut known = BTreeSet::new();
    for (name, header) in declared["headers"].as_object().expect("headers") {
        let reference = header["$ref"]
            .as_str()
            .expect("a reference")
            .trim_start_matches('#');
        let header = document.0.pointer(reference).expect("a component");
        known.insert(name.to_lowercase());
        let there = answer.header(name).is_some();
        assert!(
            there || header["required"] != true,
            "{operation} {}: no {name}",
            answer.status
        );
    }
    for name in OWN.iter().filter(|name| answer.header(name).is_some()) {
        assert!(
            known.contains(*name),
            "{operation} {}: {name} is not declared",
            answer.status
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_carry_the_headers_that_the_document_declares() {
    let mut service = Service::with(Settings::default()).await;
    service.start_workers();
    let document = Document::of(&service);
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let keyed = admin.with("Idempotency-Key", "k-1");
    let mut seen = Vec::new();
    let made = keyed.post("/v1/books", json!({ "name": "B" })).await;
    let path = made.header("location").expect("a location").to_owned();
    let book_id = made.body["id"].clone();
    seen.push(("POST /v1/books", made));
    seen.push((
        "POST /v1/books",
        keyed.post("/v1/books", json!({ "name": "B" })).await,
    ));
    seen.push((
        "POST /v1/books",
        keyed.post("/v1/books", json!({ "name": "C" })).await,
    ));
    seen.push((
        "POST /v1/books",
        user.post("/v1/books", json!({ "name": "C" })).await,
    ));
    seen.push((
        "POST /v1/books",
        service.nobody().post("/v1/books", json!({})).await,
    ));
    seen.push((
        "POST /v1/coupons",
        admin.post("/v1/coupons", json!({ "name": "B" })).await,
    ));
    seen.push(("GET /v1/books/{id}", admin.get(&path).await));
    seen.push((
        "PATCH /v1/books/{id}",
        admin.patch(&path, json!({ "name": "D" })).await,
    ));
    seen.push((
        "PATCH /v1/books/{id}",
        admin
            .with("If-Match", "\"0\"")
            .patch(&path, json!({ "name": "D" }))
            .await,
    ));
    seen.push(("GET /v1/books", admin.get("/v1/books?cursor=x").await));
    let job = admin
        .post(&format!("{path}/codes"), json!({ "codes": ["H-1"] }))
        .await;
    let job_path = job.header("location").expect("a location").to_owned();
    seen.push(("POST /v1/books/{id}/codes", job));
    admin.job_end(job_path.rsplit('/').next().expect("an id")).await;
    let polled = admin.get(&job_path).await;
    let tag = polled.header("etag").expect("a tag").to_owned();
    seen.push(("GET /v1/jobs/{id}", polled));
    seen.push((
        "GET /v1/jobs/{id}",
        admin.with("If-None-Match", &tag).get(&job_path).await,
    ));
    seen.push(("GET /v1/jobs/{id}", user.get(&job_path).await));
    let assign = json!({ "book_id": book_id, "user_id": user_id });
    let waited = keyed.with("Prefer", "wait=20").with("Idempotency-Key", "k-2");
    seen.push((
        "POST /v1/coupons/assign",
        waited.post("/v1/coupons/assign", assign.clone()).await,
    ));
    seen.push((
        "POST /v1/coupons/assign",
        waited.post("/v1/coupons/assign", assign).await,
    ));
    let lock = user.with("Idempotency-Key", "k-3");
    seen.push((
        "POST /v1/coupons/lock/{code}",
        lock.post("/v1/coupons/lock/H-1", json!({})).await,
    ));
    seen.push((
        "POST /v1/coupons/lock/{code}",
        user.post("/v1/coupons/lock/H-1", json!({})).await,
    ));
    seen.push((
        "POST /v1/coupons/redeem/{code}",
        user.post("/v1/coupons/redeem/X-1", json!({})).await,
    ));
    let account = json!({ "email": "h@example.com", "name": "H" });
    seen.push(("POST /v1/users", admin.post("/v1/users", account.clone()).await));
    seen.push((
        "POST /v1/users",
        admin
            .with("Idempotency-Key", "k-4")
            .post("/v1/users", account)
            .await,
    ));
    let key = json!({ "name": "k", "scopes": ["read"] });
    seen.push(("POST /v1/api-keys", admin.post("/v1/api-keys", key).await));
    seen.push(("GET /livez", admin.get("/livez").await));
    seen.push(("GET /v1/setup", service.nobody().get("/v1/setup").await));
    for (operation, answer) in &seen {
        is_declared(&document, operation, answer);
    }
    for (operation, answer) in seen.iter().filter(|(operation, _)| !operation.contains("livez")) {
        assert!(
            answer.header("ratelimit").is_some(),
            "{operation} {}",
            answer.status
        );
    }
    service.stop().await;
}
