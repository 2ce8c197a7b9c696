//! Many who want coupons: the right number of them gets some, and each its own.

use std::collections::BTreeSet;

use coupon_core::caller::Role;
use coupon_tests::{Client, Service, seed, size};
use serde_json::json;

use super::{agrees, assign, at_once, clients, codes_of, count, counts, held, outcome, seed_codes};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_users_on_a_hundred_codes_make_a_hundred_winners() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let clients = clients(&admin, 10);
    for _ in 0..size(3, 100) {
        a_hundred_winners(&service, &admin, &clients).await;
    }
    service.stop().await;
}

async fn a_hundred_winners(service: &Service, admin: &Client, clients: &[Client]) {
    let book_id = admin.book(json!({})).await;
    seed_codes(service, book_id, 100, 1, None).await;
    let users = seed::users(&service.db, 1_000).await;
    let jobs = at_once(users.iter().enumerate().map(|(number, user_id)| {
        let client = clients[number % clients.len()].clone();
        let body = json!({ "book_id": book_id, "user_id": user_id });
        async move { assign(&client, "/v1/coupons/assign", body).await }
    }))
    .await;
    assert_eq!(
        count(jobs.iter().map(outcome)),
        counts([("book_exhausted", 900), ("succeeded", 100)])
    );
    let told: BTreeSet<String> = jobs.iter().flatten().flat_map(codes_of).collect();
    assert_eq!(told.len(), 100);
    assert_eq!(held(service, book_id).await, (100, 100, 100, 100));
    agrees(service, book_id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_coupon_goes_to_one_of_fifty_users() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({ "self_service": true })).await;
    seed_codes(&service, book_id, 1, 1, None).await;
    let mut users = Vec::new();
    for _ in 0..50 {
        users.push(service.user(Role::User).await.0.on_own_connection());
    }
    let jobs =
        at_once(users.into_iter().map(|user| async move {
            assign(&user, "/v1/coupons/assign", json!({ "book_id": book_id })).await
        }))
        .await;
    assert_eq!(
        count(jobs.iter().map(outcome)),
        counts([("book_exhausted", 49), ("succeeded", 1)])
    );
    assert_eq!(held(&service, book_id).await, (1, 1, 1, 1));
    agrees(&service, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_more_coupons_than_the_book_allows() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let user_id = seed::user(&service.db, Role::User).await;
    // One at a time, and mixed with pairs, which are all or nothing.
    for pairs in [0, 2, 3] {
        let book_id = admin.book(json!({ "max_assignments_per_user": 3 })).await;
        seed_codes(&service, book_id, 100, 1, None).await;
        let clients = clients(&admin, 8);
        let jobs = at_once((0..40).map(|number| {
            let client = clients[number % clients.len()].clone();
            let size = if pairs > 0 && number % pairs == 0 { 2 } else { 1 };
            let by_name = number % 5 == 4;
            async move {
                if by_name {
                    let body = json!({ "book_id": book_id, "user_id": user_id });
                    assign(&client, &format!("/v1/coupons/assign/C{number}"), body).await
                } else {
                    let body = json!({ "book_id": book_id, "user_id": user_id, "count": size });
                    assign(&client, "/v1/coupons/assign", body).await
                }
            }
        }))
        .await;
        // Different ones: to be given by name what one has drawn before is a success, too. There are singles enough to
        // fill up whatever the pairs leave.
        let got: BTreeSet<String> = jobs.iter().flatten().flat_map(codes_of).collect();
        assert_eq!(got.len(), 3, "{:?}", count(jobs.iter().map(outcome)));
        let kinds: BTreeSet<String> = jobs.iter().map(outcome).collect();
        assert_eq!(
            kinds,
            BTreeSet::from(["assignment_limit_reached".to_owned(), "succeeded".to_owned()])
        );
        assert_eq!(held(&service, book_id).await, (3, 1, 3, 3));
        agrees(&service, book_id).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_code_goes_to_one_of_thirty_users() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let clients = clients(&admin, 6);
    // First all in one batch, which waits for its worker; then as they come.
    for queued in [true, false] {
        let book_id = admin.book(json!({})).await;
        seed_codes(&service, book_id, 1, 1, None).await;
        let users = seed::users(&service.db, 30).await;
        let asking = at_once(users.into_iter().enumerate().map(|(number, user_id)| {
            let client = clients[number % clients.len()].clone();
            let body = json!({ "book_id": book_id, "user_id": user_id });
            async move { client.post("/v1/coupons/assign/C1", body).await.expect(202) }
        }))
        .await;
        if queued {
            service.start_workers();
        }
        let mut jobs = Vec::new();
        for job in asking {
            jobs.push(Ok(admin.job_end(job["id"].as_str().unwrap()).await));
        }
        assert_eq!(
            count(jobs.iter().map(outcome)),
            counts([("already_assigned", 29), ("succeeded", 1)])
        );
        assert_eq!(held(&service, book_id).await, (1, 1, 1, 1));
        agrees(&service, book_id).await;
    }
    service.stop().await;
}
