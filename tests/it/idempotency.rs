//! Idempotency keys over HTTP: a repeated request has one effect and one answer, whatever that was.

use coupon_core::caller::Role;
use coupon_tests::{Client, Service, http::Answer};
use serde_json::{Value, json};
use uuid::Uuid;

fn keyed(client: &Client, key: &str) -> Client {
    client.with("Idempotency-Key", key)
}

#[track_caller]
fn is_replayed(answer: &Answer) -> bool {
    match answer.header("idempotency-replayed") {
        Some("true") => true,
        None => false,
        Some(other) => panic!("{other}"),
    }
}

async fn count(service: &Service, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql)
        .fetch_one(service.db.pool())
        .await
        .expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_gets_its_answer_again_and_another_is_refused() {
    let service = Service::without_workers().await;
    let (admin, other) = (service.admin().await, service.admin().await);
    let body = json!({ "name": "Once" });
    let first = keyed(&admin, "one").post("/v1/books", body.clone()).await;
    let again = keyed(&admin, "one").post("/v1/books", body.clone()).await;
    assert_eq!((is_replayed(&first), is_replayed(&again)), (false, true));
    for name in ["location", "etag", "content-type"] {
        assert!(
            first.header(name).is_some() && first.header(name) == again.header(name),
            "{name}"
        );
    }
    assert_eq!(first.expect(201), again.expect(201));
    for (path, body) in [
        ("/v1/books", json!({ "name": "Twice" })),
        ("/v1/coupons", body.clone()),
        ("/v1/books/", json!({})),
    ] {
        let answer = keyed(&admin, "one").post(path, body).await;
        assert!(
            matches!(answer.status.as_u16(), 404 | 422),
            "{path} {}",
            answer.body
        );
        if answer.status == 422 {
            answer.refused(422, "idempotency_key_reused");
        }
    }
    // Another caller's key is another key.
    let theirs = keyed(&other, "one")
        .post("/v1/books", json!({ "name": "Theirs" }))
        .await;
    assert!(!is_replayed(&theirs));
    theirs.expect(201);
    assert_eq!(count(&service, "SELECT count(*) FROM books").await, 2);
    assert_eq!(count(&service, "SELECT count(*) FROM idempotency_keys").await, 2);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_shown_as_it_is_now_and_waiting_is_no_part_of_the_request() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let (list, file) = (
        format!("/v1/books/{book_id}/codes"),
        format!("/v1/books/{book_id}/codes/import"),
    );
    let first = keyed(&admin, "list")
        .post(&list, json!({ "codes": ["A-1"] }))
        .await
        .expect(202);
    let upload = keyed(&admin, "file")
        .post_csv(&file, "code\nB-1\nB-2\n")
        .await
        .expect(202);
    assert_eq!(
        (&first["state"], &upload["state"]),
        (&json!("queued"), &json!("queued"))
    );
    keyed(&admin, "file")
        .post_csv(&file, "code\nB-1\nB-3\n")
        .await
        .refused(422, "idempotency_key_reused");
    keyed(&admin, "file")
        .post_csv(&format!("{file}?mode=validate_only"), "code\nB-1\nB-2\n")
        .await
        .refused(422, "idempotency_key_reused");
    service.start_workers();
    for job in [&first, &upload] {
        assert_eq!(
            admin.job_end(job["id"].as_str().unwrap()).await["state"],
            "succeeded"
        );
    }
    let waiting = keyed(&admin, "list")
        .with("Prefer", "wait=5")
        .post(&list, json!({ "codes": ["A-1"] }))
        .await;
    let plain = keyed(&admin, "list")
        .post(&list, json!({ "codes": ["A-1"] }))
        .await;
    let again = keyed(&admin, "file").post_csv(&file, "code\nB-1\nB-2\n").await;
    for (answer, status, before) in [
        (waiting, 200, &first),
        (plain, 202, &first),
        (again, 202, &upload),
    ] {
        assert!(is_replayed(&answer) && answer.header("location").is_some());
        let job = answer.expect(status);
        assert_eq!((&job["id"], &job["state"]), (&before["id"], &json!("succeeded")));
    }
    assert_eq!(count(&service, "SELECT count(*) FROM jobs").await, 2);
    let left = count(
        &service,
        "SELECT count(*) FROM uploads u WHERE NOT EXISTS (SELECT FROM imports i WHERE i.upload_id = u.id)",
    )
    .await;
    assert_eq!(left, 0, "files that nobody will read");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_will_not_change_are_kept_and_others_not() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({})).await;
    let lock = "/v1/coupons/lock/KEPT-1";
    let (missing, locked, early) = (
        keyed(&user, "missing"),
        keyed(&user, "locked"),
        keyed(&user, "early"),
    );
    missing.post(lock, json!({})).await.refused(404, "not_found");
    early
        .post("/v1/books", json!({ "name": "B" }))
        .await
        .refused(403, "forbidden");
    keyed(&service.nobody(), "nobody")
        .post(lock, json!({}))
        .await
        .refused(401, "unauthenticated");
    let import = format!("/v1/books/{book_id}/codes/import");
    keyed(&admin, "header")
        .post_csv(&import, "a,b\n1,2\n")
        .await
        .refused(422, "csv_header_missing");

    admin.codes(book_id, &["KEPT-1".to_owned()]).await;
    let assign = json!({ "book_id": book_id, "user_id": user_id });
    admin
        .with("Prefer", "wait=10")
        .post("/v1/coupons/assign", assign)
        .await
        .expect(200);
    let unlocked = keyed(&user, "unlocked")
        .post("/v1/coupons/redeem/KEPT-1", json!({}))
        .await;
    unlocked.refused(409, "lock_required");
    let held = user.post(lock, json!({})).await.expect(200);
    locked.post(lock, json!({})).await.refused(423, "coupon_locked");
    let token = json!({ "lock_token": held["lock_token"] });
    user.post("/v1/coupons/unlock/KEPT-1", token).await.expect(200);

    for (answer, status, code) in [
        (missing.post(lock, json!({})).await, 404, "not_found"),
        (
            keyed(&user, "unlocked")
                .post("/v1/coupons/redeem/KEPT-1", json!({}))
                .await,
            409,
            "lock_required",
        ),
        (
            keyed(&admin, "header").post_csv(&import, "a,b\n1,2\n").await,
            422,
            "csv_header_missing",
        ),
    ] {
        assert!(is_replayed(&answer), "{}", answer.body);
        answer.refused(status, code); // with a request id of its own
    }
    let now = locked.post(lock, json!({})).await;
    assert!(!is_replayed(&now));
    now.expect(200);
    admin
        .patch(&format!("/v1/users/{user_id}"), json!({ "role": "admin" }))
        .await
        .expect(200);
    early.post("/v1/books", json!({ "name": "B" })).await.expect(201);

    let ended = json!({ "starts_at": "2020-01-01T00:00:00Z", "ends_at": "2020-01-02T00:00:00Z" });
    let path = format!("/v1/books/{book_id}");
    admin.patch(&path, ended).await.expect(200);
    let over = keyed(&user, "over");
    let unlock = json!({ "lock_token": locked.post(lock, json!({})).await.expect(200)["lock_token"] });
    user.post("/v1/coupons/unlock/KEPT-1", unlock).await.expect(200);
    over.post(lock, json!({})).await.refused(410, "book_ended");
    admin
        .patch(&path, json!({ "clear": ["ends_at"] }))
        .await
        .expect(200);
    let again = over.post(lock, json!({})).await;
    assert!(is_replayed(&again));
    again.refused(410, "book_ended");
    keyed(&user, "later").post(lock, json!({})).await.expect(200);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_request_that_is_being_answered_is_sent_away() {
    let service = Service::without_workers().await;
    let (admin, admin_id) = service.user(Role::Admin).await;
    let mut holder = service.db.begin().await.expect("a transaction");
    // The number under which the first of the two holds the key.
    sqlx::query(
        "SELECT pg_advisory_xact_lock(('x' || encode(substring(sha256(uuid_send($1) || convert_to('busy', 'UTF8')) FOR 8), 'hex'))::bit(64)::bigint)",
    )
    .bind(admin_id)
    .execute(&mut *holder)
    .await
    .expect("the lock");
    let busy = keyed(&admin, "busy")
        .post("/v1/books", json!({ "name": "B" }))
        .await;
    assert_eq!(busy.header("retry-after"), Some("1"));
    busy.refused(409, "idempotency_in_progress");
    keyed(&admin, "free")
        .post("/v1/books", json!({ "name": "B" }))
        .await
        .expect(201);
    holder.rollback().await.expect("rolled back");
    let done = keyed(&admin, "busy")
        .post("/v1/books", json!({ "name": "B" }))
        .await;
    assert!(!is_replayed(&done));
    done.expect(201);

    // Ten copies at once: one effect, and every answer is that effect or "wait".
    let copies: Vec<_> = (0..10)
        .map(|_| {
            let client = keyed(&admin, "ten").on_own_connection();
            tokio::spawn(async move { client.post("/v1/books", json!({ "name": "Ten" })).await })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    for copy in copies {
        let answer = copy.await.expect("answered");
        if answer.status == 201 {
            ids.insert(answer.body["id"].to_string());
        } else {
            answer.refused(409, "idempotency_in_progress");
        }
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(
        count(&service, "SELECT count(*) FROM books WHERE name = 'Ten'").await,
        1
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_stored_answers_are_sealed_and_come_back() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({})).await;
    admin.codes(book_id, &["SEALED-1".to_owned()]).await;
    let assign = json!({ "book_id": book_id, "user_id": user_id });
    admin
        .with("Prefer", "wait=10")
        .post("/v1/coupons/assign", assign)
        .await
        .expect(200);
    let new_key = json!({ "name": "k", "scopes": ["read"] });
    let lock = keyed(&user, "lock")
        .post("/v1/coupons/lock/SEALED-1", json!({}))
        .await
        .expect(200);
    let key = keyed(&admin, "key")
        .post("/v1/api-keys", new_key.clone())
        .await
        .expect(201);
    let secrets = [lock["lock_token"].as_str().unwrap(), key["key"].as_str().unwrap()];
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT k::text || coalesce(encode(body, 'escape'), '') FROM idempotency_keys k")
            .fetch_all(service.db.pool())
            .await
            .expect("rows");
    assert_eq!(rows.len(), 2);
    for secret in secrets {
        assert!(
            secret.len() > 20 && !rows.iter().any(|row| row.contains(secret)),
            "{rows:?}"
        );
    }
    assert!(
        !rows
            .iter()
            .any(|row| row.contains("SEALED") || row.contains("lock_token")),
        "{rows:?}"
    );
    let again = keyed(&user, "lock")
        .post("/v1/coupons/lock/SEALED-1", json!({}))
        .await;
    assert!(is_replayed(&again));
    assert_eq!(again.expect(200), lock);
    assert_eq!(
        keyed(&admin, "key")
            .post("/v1/api-keys", new_key)
            .await
            .expect(201),
        key
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_1_to_255_printable_characters_given_once() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    for fine in [
        "x".repeat(255),
        "a b/ü?".replace('ü', "~"),
        Uuid::nil().to_string(),
    ] {
        keyed(&admin, &fine)
            .post("/v1/books", json!({ "name": "B" }))
            .await
            .expect(201);
    }
    for unfit in ["x".repeat(256), String::new(), "a\tb".to_owned(), "ä".to_owned()] {
        let answer = keyed(&admin, &unfit)
            .post("/v1/books", json!({ "name": "B" }))
            .await;
        answer.invalid("header:Idempotency-Key", "invalid");
    }
    let request = admin
        .request(reqwest::Method::POST, "/v1/books")
        .json(&json!({ "name": "B" }));
    let twice = request
        .header("Idempotency-Key", "a")
        .header("Idempotency-Key", "b");
    admin
        .send(twice)
        .await
        .invalid("header:Idempotency-Key", "invalid");
    assert_eq!(count(&service, "SELECT count(*) FROM books").await, 3);
    let page: Value = admin.get("/v1/books").await.expect(200);
    assert_eq!(page["data"].as_array().unwrap().len(), 3);
    service.stop().await;
}
