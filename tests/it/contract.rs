//! The document is what clients are generated from: it is complete, it is the committed one, and answers keep to it.

use std::{collections::BTreeSet, path::Path};

use coupon_core::caller::Role;
use coupon_tests::{
    Service,
    document::{Document, Operation},
};
use serde_json::{Value, json};

/// What strangers may ask; everything else needs a token or a key.
const OPEN: [&str; 9] = [
    "GET /livez",
    "GET /metrics",
    "GET /readyz",
    "GET /v1/setup",
    "POST /v1/auth/login",
    "POST /v1/auth/logout",
    "POST /v1/auth/refresh",
    "POST /v1/auth/register",
    "POST /v1/setup",
];

/// Every operation that is promised, its good answers, and the refusals that clients meet beside those of every operation.
/// Clients outside this repository are written against it: a row may be added, none may go or lose a word.
#[rustfmt::skip] // one row, one line
const DUE: &[(&str, &str, &str)] = &[
    ("GET /livez", "200", ""),
    ("GET /readyz", "200", "503"),
    ("GET /metrics", "200", ""),
    ("POST /v1/auth/register", "201", "403 409 422 429"),
    ("POST /v1/auth/login", "200", "401 429"),
    ("POST /v1/auth/refresh", "200", "401"),
    ("POST /v1/auth/logout", "204", ""),
    ("GET /v1/setup", "200", ""),
    ("POST /v1/setup", "201", "403 409 422"),
    ("GET /v1/me", "200", ""),
    ("PATCH /v1/me", "200", "422"),
    ("POST /v1/me/password", "200", "401 422"),
    ("GET /v1/me/coupons", "200", "422"),
    ("GET /v1/users", "200", "422"),
    ("POST /v1/users", "201", "409 422"),
    ("GET /v1/users/{id}", "200", "404"),
    ("PATCH /v1/users/{id}", "200", "404 409 422"),
    ("DELETE /v1/users/{id}", "204", "404 409"),
    ("GET /v1/users/{id}/coupons", "200", "404 422"),
    ("GET /v1/api-keys", "200", "422"),
    ("POST /v1/api-keys", "201", "422"),
    ("DELETE /v1/api-keys/{id}", "204", "404"),
    ("POST /v1/books", "201", "422"),
    ("POST /v1/coupons", "201", "422"),
    ("GET /v1/books", "200", "422"),
    ("GET /v1/books/{id}", "200", "404"),
    ("PATCH /v1/books/{id}", "200", "404 409 412 422"),
    ("GET /v1/books/{id}/stats", "200", "404"),
    ("GET /v1/books/{id}/history", "200", "404 422"),
    ("GET /v1/stats", "200", "422"),
    ("GET /v1/books/{id}/coupons", "200", "404 422"),
    ("POST /v1/books/{id}/codes", "200 202", "404 409 422 503"),
    ("POST /v1/books/{id}/codes/import", "200 202", "404 409 413 415 422 503"),
    ("POST /v1/books/{id}/codes/preview", "200", "404 422"),
    ("POST /v1/books/{id}/codes/generate", "200 202", "404 409 422 503"),
    ("POST /v1/coupons/codes", "200 202", "404 409 413 415 422 503"),
    ("GET /v1/coupons/{code}", "200", "404 409 429"),
    ("GET /v1/coupons/{code}/events", "200", "404 409 422 429"),
    ("POST /v1/coupons/check", "200", "404 422"),
    ("POST /v1/coupons/assign", "200 202", "403 404 422 503"),
    ("POST /v1/coupons/assign/{code}", "200 202", "403 404 409 422 429 503"),
    ("POST /v1/coupons/assign-batch", "200 202", "404 413 415 422 503"),
    ("POST /v1/coupons/lock/{code}", "200", "403 404 409 410 423 429"),
    ("POST /v1/coupons/unlock/{code}", "200", "403 404 409 423 429"),
    ("POST /v1/coupons/redeem/{code}", "200", "403 404 409 410 423 429"),
    ("POST /v1/coupons/revoke/{code}", "200", "404 409 423"),
    ("POST /v1/coupons/void/{code}", "200", "404 409"),
    ("GET /v1/redemptions", "200", "409 422"),
    ("POST /v1/pools", "201", "422"),
    ("GET /v1/pools", "200", "422"),
    ("GET /v1/pools/{id}", "200", "404"),
    ("PATCH /v1/pools/{id}", "200", "404 412 422"),
    ("DELETE /v1/pools/{id}", "204", "404"),
    ("GET /v1/pools/{id}/members", "200", "404 422"),
    ("POST /v1/pools/{id}/members", "200", "404 422"),
    ("DELETE /v1/pools/{id}/members", "200", "404 422"),
    ("POST /v1/pools/{id}/members/import", "200 202", "404 413 415 422 503"),
    ("POST /v1/distributions", "200 202", "404 409 422 503"),
    ("GET /v1/distributions", "200", "422"),
    ("GET /v1/distributions/{id}", "200", "404"),
    ("GET /v1/distributions/{id}/items", "200", "404 422"),
    ("GET /v1/distributions/{id}/items.csv", "200", "404 422"),
    ("POST /v1/distributions/{id}/undo", "200 202", "404 409"),
    ("GET /v1/distributions/{id}/proof", "200", "404 409"),
    ("POST /v1/schedules", "201", "404 409 422"),
    ("GET /v1/schedules", "200", "422"),
    ("POST /v1/schedules/preview", "200", "422"),
    ("GET /v1/schedules/{id}", "200", "404"),
    ("PATCH /v1/schedules/{id}", "200", "404 409 412 422"),
    ("DELETE /v1/schedules/{id}", "204", "404"),
    ("GET /v1/schedules/{id}/next", "200", "404 422"),
    ("POST /v1/schedules/{id}/run", "200 202", "404 409"),
    ("POST /v1/exports", "200 202", "404 422 503"),
    ("GET /v1/exports/{id}/file", "200 206", "404 409 410"),
    ("POST /v1/redemptions/{id}/rollback", "201", "404 409"),
    ("GET /v1/audit", "200", "409 422"),
    ("GET /v1/jobs", "200", "422"),
    ("GET /v1/jobs/{id}", "200 304", "404"),
    ("GET /v1/jobs/{id}/events", "200", "404"),
    ("GET /v1/jobs/{id}/errors", "200", "404 422"),
    ("GET /v1/jobs/{id}/errors.csv", "200", "404 410"),
    ("POST /v1/jobs/{id}/cancel", "200 202", "404 409"),
    ("POST /v1/jobs/{id}/retry", "200 202", "404 409"),
    ("GET /v1/jobs/counts", "200", ""),
    ("POST /v1/jobs/bulk", "200", "409 422"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_that_is_promised_is_there_with_its_answers() {
    let service = Service::without_workers().await;
    let document = Document::of(&service);
    let declared: BTreeSet<String> = document.operations().iter().map(Operation::name).collect();
    let due: BTreeSet<String> = DUE.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let missing: Vec<_> = due.difference(&declared).collect();
    assert!(missing.is_empty(), "promised, but not there: {missing:?}");
    let unknown: Vec<_> = declared.difference(&due).collect();
    assert!(
        unknown.is_empty(),
        "each operation needs its row in this file: {unknown:?}"
    );
    for operation in document.operations() {
        let name = operation.name();
        let (_, good, refusals) = DUE.iter().find(|(due, ..)| *due == name).expect("a row");
        let responses = operation.value["responses"].as_object().expect("answers");
        let is_good = |status: &&str| status.starts_with(['2', '3']);
        let declared: BTreeSet<&str> = responses.keys().map(String::as_str).filter(is_good).collect();
        assert_eq!(declared, good.split(' ').collect(), "{name}: good answers");
        for status in refusals.split(' ').filter(|status| !status.is_empty()) {
            let problem =
                &responses.get(status).unwrap_or(&Value::Null)["content"]["application/problem+json"];
            assert!(problem.is_object(), "{name} does not declare {status}");
        }
        // What stands in the answer can be relied on.
        for (status, response) in responses {
            assert!(
                response["headers"]["X-Request-Id"].is_object(),
                "{name} {status}: headers"
            );
            let described = response["description"].as_str().is_some();
            assert!(described, "{name} {status} is not described");
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_committed_document_is_that_of_the_code() {
    let service = Service::without_workers().await;
    let made = coupon_api::openapi(&service.app) + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    if made != committed {
        let line = made
            .lines()
            .zip(committed.lines())
            .position(|(made, committed)| made != committed);
        let line = line.unwrap_or_else(|| made.lines().count().min(committed.lines().count())) + 1;
        panic!(
            "docs/openapi.json is not what the code says (from line {line} on): run `./x openapi` and look at the difference"
        );
    }
    let served = service.nobody().get("/openapi.json").await.expect(200);
    assert_eq!(served, serde_json::from_str::<Value>(&made).unwrap());
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_is_described_guarded_and_declares_its_refusals() {
    let service = Service::without_workers().await;
    let document = Document::of(&service);
    let (mut ids, mut open) = (BTreeSet::new(), BTreeSet::new());
    for operation in document.operations() {
        let (name, value) = (operation.name(), &operation.value);
        assert!(
            value["summary"].as_str().is_some_and(|text| text.len() > 10),
            "{name} has no summary"
        );
        assert!(
            value["tags"].as_array().is_some_and(|tags| tags.len() == 1),
            "{name} has no tag"
        );
        let id = value["operationId"].as_str().expect("an operationId").to_owned();
        assert!(ids.insert(id.clone()), "{id} is there twice");
        let guarded = value["security"].as_array().is_some_and(|ways| ways.len() == 2);
        let mut refusals = vec!["422", "500", "503"];
        if guarded {
            refusals.extend(["401", "403", "429"]);
        } else {
            open.insert(name.clone());
        }
        if value.get("requestBody").is_some() {
            refusals.extend(["413", "415"]);
        }
        if operation.json_body().is_some() {
            refusals.push("400");
        }
        if operation.path.contains('{') {
            refusals.push("404");
        }
        for status in refusals {
            let refusal = &value["responses"][status]["content"]["application/problem+json"]["schema"];
            assert_eq!(refusal["$ref"], "#/components/schemas/Problem", "{name} {status}");
        }
        let answers = value["responses"].as_object().unwrap();
        assert!(
            answers.keys().any(|status| status.starts_with('2')),
            "{name} has no good answer"
        );
        // A request that makes or does something can be repeated safely; credentials are never stored.
        let keyed = operation
            .parameters("header")
            .any(|parameter| parameter["name"] == "Idempotency-Key");
        let wanted = operation.method == "POST" && !operation.path.starts_with("/v1/auth/");
        assert_eq!(keyed, wanted, "{name}: Idempotency-Key");
    }
    assert_eq!(open, OPEN.map(str::to_owned).into());
    for (name, schema) in document.0["components"]["schemas"].as_object().unwrap() {
        let described = schema["description"]
            .as_str()
            .is_some_and(|text| !text.is_empty());
        assert!(
            described || name.starts_with("Page_"),
            "the schema {name} has no description"
        );
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_six_paths_answer_without_their_version() {
    let service = Service::start().await;
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let book = admin.post("/coupons", json!({ "name": "Unversioned" })).await;
    assert!(book.header("location").unwrap().starts_with("/v1/books/"));
    let book = book.expect(201);
    let book_id = book["id"].as_str().unwrap();
    let job = admin
        .post_csv(
            &format!("/coupons/codes?book_id={book_id}"),
            "code\nA-1\nA-2\nA%2F3\n",
        )
        .await
        .expect(202);
    assert_eq!(
        admin.job_end(job["id"].as_str().unwrap()).await["result"]["accepted"],
        3
    );
    let job = admin
        .post(
            "/coupons/assign",
            json!({ "book_id": book_id, "user_id": user_id }),
        )
        .await
        .expect(202);
    assert_eq!(
        admin.job_end(job["id"].as_str().unwrap()).await["state"],
        "succeeded"
    );
    let mine = user.get("/v1/me/coupons").await.expect(200);
    let code = mine["data"][0]["code"].as_str().unwrap().replace('%', "%25");
    for (path, status) in [("lock", 200), ("assign", 202)] {
        admin
            .post(&format!("/coupons/{path}/{code}"), json!({ "user_id": user_id }))
            .await
            .expect(status);
    }
    user.post(&format!("/coupons/redeem/{code}"), json!({}))
        .await
        .refused(423, "coupon_locked");
    // No other path loses its version.
    for path in [
        "/books",
        "/jobs",
        "/me",
        "/coupons/unlock/A-1",
        "/coupons/A-1",
        "/coupons/assign/",
        "/coupons/lock/a/b",
    ] {
        admin.get(path).await.refused(404, "not_found");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_the_document_refers_only_to_its_own_files() {
    let service = Service::without_workers().await;
    let nobody = service.nobody();
    let page = nobody.get("/docs").await;
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .starts_with("default-src 'none'")
    );
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let Value::String(html) = page.expect(200) else {
        panic!("no page")
    };
    let links: Vec<&str> = html
        .split(['"', '\''])
        .filter(|text| text.starts_with('/') || text.contains("://"))
        .collect();
    assert!(
        links.contains(&"/docs/docs.js") && links.contains(&"/openapi.json"),
        "{links:?}"
    );
    for link in links {
        let answer = nobody.get(link).await;
        assert_eq!(answer.status, 200, "{link}");
        let tag = answer.header("etag").unwrap().to_owned();
        let again = nobody.with("If-None-Match", &tag).get(link).await;
        assert_eq!(again.status, 304, "{link}");
        let Value::String(text) = answer.body else {
            continue;
        };
        assert!(!text.contains("://"), "{link} refers to elsewhere");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_rfc_3339_in_utc_and_members_are_those_declared() {
    let service = Service::start().await;
    let document = Document::of(&service);
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let given = "2020-02-03T04:05:06.7+02:00";
    let book = admin
        .post("/v1/books", json!({ "name": "Times", "starts_at": given }))
        .await
        .expect(201);
    assert_eq!(book["starts_at"], "2020-02-03T02:05:06.700000Z");
    let book_id: uuid::Uuid = book["id"].as_str().unwrap().parse().unwrap();
    admin.codes(book_id, &["TIME-1".to_owned()]).await;
    let assign = json!({ "book_id": book_id, "user_id": user_id });
    let assigned = admin
        .with("Prefer", "wait=10")
        .post("/v1/coupons/assign", assign)
        .await;
    let assigned = document.check("Job", assigned.expect(200));
    document.check("Coupon", assigned["result"]["coupons"][0].clone());
    let lock = user.post("/v1/coupons/lock/TIME-1", json!({})).await.expect(200);
    document.check("Lock", lock.clone());
    user.post(
        "/v1/coupons/lock/TIME-1",
        json!({ "lock_token": lock["lock_token"] }),
    )
    .await
    .expect(200);
    user.post(
        "/v1/coupons/unlock/TIME-1",
        json!({ "lock_token": lock["lock_token"] }),
    )
    .await
    .expect(200);
    let lock = user.post("/v1/coupons/lock/TIME-1", json!({})).await.expect(200);
    let redeem = json!({ "lock_token": lock["lock_token"], "metadata": { "till": 7 } });
    document.check(
        "Redemption",
        user.post("/v1/coupons/redeem/TIME-1", redeem).await.expect(200),
    );
    document.check("User", user.get("/v1/me").await.expect(200));
    document.check(
        "Book",
        admin.get(&format!("/v1/books/{book_id}")).await.expect(200),
    );
    let key = admin
        .post(
            "/v1/api-keys",
            json!({ "name": "k", "scopes": ["read"], "expires_at": "2050-01-01T00:00:00Z" }),
        )
        .await;
    document.check("ApiKeyWithSecret", key.expect(201));
    for (path, schema) in [
        (format!("/v1/books/{book_id}/coupons"), "Coupon"),
        ("/v1/books".to_owned(), "Book"),
        ("/v1/jobs".to_owned(), "Job"),
        ("/v1/users".to_owned(), "User"),
        ("/v1/api-keys".to_owned(), "ApiKey"),
        ("/v1/coupons/TIME-1/events".to_owned(), "Event"),
    ] {
        let page = admin.get(&path).await.expect(200);
        let rows = page["data"].as_array().unwrap();
        assert!(!rows.is_empty(), "{path}");
        for row in rows {
            document.check(schema, row.clone());
        }
    }
    service.stop().await;
}
