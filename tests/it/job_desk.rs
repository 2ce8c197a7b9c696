//! Jobs as operators handle them: tried again, counted, changed by the many, and watched until their end.

use coupon_core::caller::Role;
use coupon_tests::{Client, Service};
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::truth;

async fn assign(client: &Client, book_id: Uuid, user_id: Uuid) -> String {
    let body = json!({ "book_id": book_id, "user_id": user_id });
    let job = client.post("/v1/coupons/assign", body).await.expect(202);
    job["id"].as_str().expect("an id").to_owned()
}

/// Ends a queued job as a worker does that has given it up.
async fn give_up(pool: &PgPool, job_id: &str, code: &str) {
    let id: Uuid = job_id.parse().expect("an id");
    let mut tx = pool.acquire().await.expect("a connection");
    sqlx::query("DELETE FROM apalis.jobs WHERE id = $1")
        .bind(coupon_core::id::to_ulid_text(id))
        .execute(&mut *tx)
        .await
        .expect("dequeued");
    sqlx::query(
        "UPDATE jobs SET state = 'failed', error_code = $2, error_detail = 'Given up.', attempts = 6, finished_at = now()
         WHERE id = $1",
    )
    .bind(id)
    .bind(code)
    .execute(&mut *tx)
    .await
    .expect("given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_given_up_can_be_tried_again_and_a_refused_one_not() {
    let mut service = Service::without_workers().await;
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let book_id = admin.book(json!({ "self_service": true })).await;
    let mut jobs = Vec::new();
    for code in [
        "attempts_exhausted",
        "payload_undecodable",
        "internal",
        "book_exhausted",
    ] {
        let job_id = assign(&user, book_id, user_id).await;
        give_up(service.db.pool(), &job_id, code).await;
        jobs.push(job_id);
    }
    let retry = |job_id: &str| format!("/v1/jobs/{job_id}/retry");
    let (stranger, _) = service.user(Role::User).await;
    stranger
        .post(&retry(&jobs[0]), json!({}))
        .await
        .refused(404, "not_found");
    for job_id in &jobs[..3] {
        let again = user.send(user.request(Method::POST, &retry(job_id))).await;
        assert_eq!(
            again.header("location"),
            Some(format!("/v1/jobs/{job_id}").as_str())
        );
        let again = again.expect(202);
        assert_eq!(
            (&again["state"], &again["attempts"]),
            (&json!("queued"), &json!(0)),
            "{again}"
        );
        assert_eq!(
            (&again["error"], &again["finished_at"]),
            (&Value::Null, &Value::Null),
            "{again}"
        );
        // It is no failed job any more.
        let twice = user.send(user.request(Method::POST, &retry(job_id))).await;
        twice.refused(409, "job_not_retryable");
    }
    let refused = user.send(user.request(Method::POST, &retry(&jobs[3]))).await;
    refused.refused(409, "job_not_retryable");
    // It runs indeed: there is no code, which is a refusal by the rules now.
    service.start_workers();
    for job_id in &jobs[..3] {
        let job = user.job_end(job_id).await;
        assert_eq!(job["error"]["code"], "book_exhausted", "{job}");
    }
    let ended = user
        .send(user.request(Method::POST, &format!("/v1/jobs/{}/cancel", jobs[0])))
        .await;
    ended.refused(409, "job_finished");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_jobs_are_changed_only_if_they_are_as_many_as_expected() {
    let mut service = Service::without_workers().await;
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let (book_id, other_id) = (admin.book(json!({})).await, admin.book(json!({})).await);
    let mut jobs = Vec::new();
    for book in [book_id, book_id, book_id, other_id] {
        jobs.push(assign(&admin, book, user_id).await);
    }
    for job_id in &jobs[..2] {
        give_up(service.db.pool(), job_id, "attempts_exhausted").await;
    }
    let counts = async || {
        let counts = admin.get("/v1/jobs/counts").await.expect(200);
        [
            "queued",
            "running",
            "succeeded",
            "partially_succeeded",
            "failed",
            "cancelling",
            "cancelled",
        ]
        .map(|state| counts[state].as_i64().expect("a count"))
    };
    assert_eq!(counts().await, [2, 0, 0, 0, 2, 0, 0]);
    user.get("/v1/jobs/counts").await.refused(403, "forbidden");
    let bulk = async |action: &str, filter: Value, expected: i64| {
        let body = json!({ "action": action, "filter": filter, "expected_count": expected });
        admin.post("/v1/jobs/bulk", body).await
    };
    for (action, filter, wrong, right) in [
        ("retry", json!({}), [1, 3], 2),
        (
            "cancel",
            json!({ "kind": "assign", "state": "queued" }),
            [3, 0],
            2,
        ),
    ] {
        for expected in wrong {
            bulk(action, filter.clone(), expected)
                .await
                .refused(409, "count_changed");
        }
        // Of another book, kind or state there are none.
        for none in [
            json!({ "book_id": Uuid::now_v7() }),
            json!({ "kind": "import" }),
            json!({ "state": "succeeded" }),
        ] {
            assert_eq!(bulk(action, none, 0).await.expect(200)["changed"], 0);
        }
        assert_eq!(
            counts().await,
            [2, 0, 0, 0, 2, 0, 0],
            "{action} {right}: nothing has happened yet"
        );
    }
    assert_eq!(
        bulk("retry", json!({ "book_id": book_id }), 2).await.expect(200)["changed"],
        2
    );
    assert_eq!(counts().await, [4, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        bulk("cancel", json!({ "book_id": other_id }), 1)
            .await
            .expect(200)["changed"],
        1
    );
    assert_eq!(counts().await, [3, 0, 0, 0, 0, 0, 1]);
    assert_eq!(
        admin.get(&format!("/v1/jobs/{}", jobs[3])).await.expect(200)["state"],
        "cancelled"
    );
    bulk("cancel", json!({}), -1)
        .await
        .invalid("/expected_count", "out_of_range");
    bulk("cancel", json!({}), 10_001)
        .await
        .invalid("/expected_count", "out_of_range");
    bulk("stop", json!({}), 0).await.invalid("/action", "not_in_enum");
    let body = json!({ "action": "cancel", "expected_count": 0 });
    user.post("/v1/jobs/bulk", body).await.refused(403, "forbidden");
    // Those that were queued again are jobs like any other.
    service.start_workers();
    for job_id in &jobs[..3] {
        assert_eq!(admin.job_end(job_id).await["error"]["code"], "book_exhausted");
    }
    assert_eq!(counts().await, [0, 0, 0, 0, 3, 0, 1]);
    service.stop().await;
}

/// The jobs of a stream of events as they come, until it ends; the first is handed to `seen_first` before the rest is read.
async fn watch(client: &Client, job_id: &str, seen_first: impl FnOnce()) -> Vec<Value> {
    let request = client.request(Method::GET, &format!("/v1/jobs/{job_id}/events"));
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    let content_type = response.headers()["content-type"]
        .to_str()
        .expect("text")
        .to_owned();
    assert!(content_type.starts_with("text/event-stream"), "{content_type}");
    let (mut chunks, mut text, mut seen_first) = (response.bytes_stream(), String::new(), Some(seen_first));
    while let Some(chunk) = chunks.next().await {
        text.push_str(std::str::from_utf8(&chunk.expect("a chunk")).expect("text"));
        if text.contains("\n\n")
            && let Some(seen_first) = seen_first.take()
        {
            seen_first();
        }
    }
    let events = text
        .split("\n\n")
        .filter_map(|event| event.trim().strip_prefix("data:"));
    events
        .map(|data| serde_json::from_str(data).expect("a job"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_job_is_told_of_until_its_end() {
    let mut service = Service::without_workers().await;
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let book_id = admin.book(json!({ "self_service": true })).await;
    let job_id = assign(&user, book_id, user_id).await;
    let (first, come) = tokio::sync::oneshot::channel();
    let watching = tokio::spawn({
        let (user, job_id) = (user.clone(), job_id.clone());
        async move { watch(&user, &job_id, || first.send(()).expect("awaited")).await }
    });
    tokio::time::timeout(truth::PATIENCE, come)
        .await
        .expect("in time")
        .expect("an event");
    service.start_workers();
    let events = tokio::time::timeout(truth::PATIENCE, watching)
        .await
        .expect("it ends")
        .expect("watched");
    let states: Vec<&str> = events
        .iter()
        .map(|job| job["state"].as_str().expect("a state"))
        .collect();
    assert_eq!(
        (states.first(), states.last()),
        (Some(&"queued"), Some(&"failed")),
        "{states:?}"
    );
    assert!(events.iter().all(|job| job["id"] == json!(job_id)));
    assert_eq!(
        events.last().expect("an event")["error"]["code"],
        "book_exhausted"
    );
    // Of a job that has ended one event is enough, for its owner and for administrators.
    for client in [&user, &admin] {
        assert_eq!(watch(client, &job_id, || {}).await.len(), 1);
    }
    let (stranger, _) = service.user(Role::User).await;
    let path = format!("/v1/jobs/{job_id}/events");
    stranger.get(&path).await.refused(404, "not_found");
    admin
        .get(&format!("/v1/jobs/{}/events", Uuid::now_v7()))
        .await
        .refused(404, "not_found");
    service.nobody().get(&path).await.refused(401, "unauthenticated");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_that_go_away_leave_nothing_behind() {
    let mut service = Service::without_workers().await;
    let (admin, (_, user_id)) = (service.admin().await, service.user(Role::User).await);
    let book_id = admin.book(json!({})).await;
    let job_id = assign(&admin, book_id, user_id).await;
    // More than there are connections to the database: a watcher holds none, and one that has gone holds nothing.
    for _ in 0..40 {
        let client = admin.on_own_connection();
        let request = client.request(Method::GET, &format!("/v1/jobs/{job_id}/events"));
        let mut chunks = request.send().await.expect("an answer").bytes_stream();
        chunks.next().await.expect("an event").expect("a chunk");
    }
    let busy: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'",
    )
    .fetch_one(service.db.pool())
    .await
    .expect("a count");
    assert_eq!(busy, 0);
    service.start_workers();
    assert_eq!(admin.job_end(&job_id).await["state"], "failed");
    service.stop().await; // which fails when a connection had to be cut
}
