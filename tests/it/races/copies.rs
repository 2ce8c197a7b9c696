//! Copies of one request with one key: one effect, and every answer tells of it.

use std::{collections::BTreeSet, time::Duration};

use coupon_core::caller::Role;
use coupon_tests::{Service, http::Answer, seed};
use serde_json::json;

use super::{agrees, at_once, clients, held, seed_codes, short};

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_request_with_one_key_have_one_effect() {
    const KEYS: usize = 200;
    const COPIES: usize = 5;
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 1_000, 1, None).await;
    let users = seed::users(&service.db, KEYS).await;
    let clients = clients(&admin, COPIES);
    let answers = at_once((0..KEYS * COPIES).map(|number| {
        let (key, copy) = (number / COPIES, number % COPIES);
        let client = clients[copy].with("Idempotency-Key", &format!("key {key}"));
        // One copy waits for the end and the others do not: that is no part of the request.
        let client = if copy == 0 {
            client.with("Prefer", "wait=20")
        } else {
            client
        };
        let body = json!({ "book_id": book_id, "user_id": users[key] });
        async move { client.post("/v1/coupons/assign", body).await }
    }))
    .await;
    for (key, copies) in answers.chunks(COPIES).enumerate() {
        let said: Vec<String> = copies.iter().map(short).collect();
        assert!(
            said.iter()
                .all(|said| matches!(said.as_str(), "200" | "202" | "409 idempotency_in_progress")),
            "key {key}: {said:?}"
        );
        let done: Vec<&Answer> = copies.iter().filter(|copy| copy.status.is_success()).collect();
        let ids: BTreeSet<&str> = done.iter().filter_map(|copy| copy.body["id"].as_str()).collect();
        let fresh = done
            .iter()
            .filter(|copy| copy.header("idempotency-replayed").is_none())
            .count();
        assert_eq!((ids.len(), fresh), (1, 1), "key {key}: {said:?}");
    }
    let job = |key: usize| {
        answers[key * COPIES..][..COPIES]
            .iter()
            .find_map(|copy| copy.body["id"].as_str())
            .unwrap()
    };
    for key in 0..KEYS {
        assert_eq!(admin.job_end(job(key)).await["state"], "succeeded");
    }
    let keyed = admin.with("Idempotency-Key", "key 0");
    let again = keyed
        .post(
            "/v1/coupons/assign",
            json!({ "book_id": book_id, "user_id": users[0] }),
        )
        .await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.expect(202)["id"], job(0));
    keyed
        .post(
            "/v1/coupons/assign",
            json!({ "book_id": book_id, "user_id": users[1] }),
        )
        .await
        .refused(422, "idempotency_key_reused");
    assert_eq!(held(&service, book_id).await, (200, 200, 200, 200));
    agrees(&service, book_id).await;
    service.stop().await;
}

/// Lets every try for an advisory lock of the service's coming connections take a while, as a busy server may.
async fn slow_down_advisory_locks(service: &Service) {
    sqlx::raw_sql(
        "CREATE SCHEMA slow;
         CREATE FUNCTION slow.pg_try_advisory_xact_lock(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_sleep(0.06); RETURN pg_catalog.pg_try_advisory_xact_lock($1); END $$;
         DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = slow, pg_catalog, public', current_database()); END $$",
    )
    .execute(service.db.pool())
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_comes_while_the_first_commits_gets_its_answer_and_no_other() {
    let service = Service::without_workers().await;
    slow_down_advisory_locks(&service).await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({ "require_lock": false })).await;
    seed_codes(&service, book_id, 8, 1, Some(user_id)).await;
    let clients = clients(&user, 6);
    // So that what is measured is the copies and not the opening of connections.
    at_once(
        clients
            .clone()
            .into_iter()
            .map(|client| async move { client.get("/v1/me/coupons").await.expect(200) }),
    )
    .await;
    for number in 1..=8 {
        let answers = at_once(clients.iter().enumerate().map(|(copy, client)| {
            let client = client.with("Idempotency-Key", &format!("key {number}"));
            async move {
                // One after another within the time that the first one takes.
                tokio::time::sleep(Duration::from_millis(15 * copy as u64)).await;
                client
                    .post(&format!("/v1/coupons/redeem/C{number}"), json!({}))
                    .await
            }
        }))
        .await;
        let said: Vec<String> = answers.iter().map(short).collect();
        assert!(
            said.iter()
                .all(|said| matches!(said.as_str(), "200" | "409 idempotency_in_progress")),
            "{said:?}"
        );
        let ids: BTreeSet<&str> = answers
            .iter()
            .filter_map(|answer| answer.body["id"].as_str())
            .collect();
        assert_eq!(ids.len(), 1, "{said:?}");
    }
    agrees(&service, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_with_a_key_is_that_refusal_also_when_it_is_asked_for_again() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 1, 1, None).await;
    for number in 0..40 {
        let keyed = admin.with("Idempotency-Key", &format!("key {number}"));
        for replayed in [None, Some("true")] {
            let answer = keyed.post("/v1/coupons/redeem/C1", json!({})).await;
            assert_eq!(
                (short(&answer).as_str(), answer.header("idempotency-replayed")),
                ("409 invalid_state", replayed),
                "key {number}"
            );
        }
    }
    service.stop().await;
}
