//! The audit trail across books: what it tells, narrowed, and page by page while more happens.

use coupon_core::caller::Role;
use coupon_tests::{Client, Service};
use serde_json::{Value, json};
use uuid::Uuid;

fn rows(page: &Value) -> &Vec<Value> {
    page["data"].as_array().expect("rows")
}

async fn kinds(admin: &Client, query: &str) -> Vec<String> {
    let page = admin
        .get(&format!("/v1/audit?limit=100&{query}"))
        .await
        .expect(200);
    assert_eq!(page["next_cursor"], Value::Null);
    rows(&page)
        .iter()
        .map(|event| event["kind"].as_str().expect("a kind").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_is_narrowed_by_actor_book_and_code() {
    let service = Service::start().await;
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let (book_id, other_id) = (admin.book(json!({})).await, admin.book(json!({})).await);
    admin.codes(book_id, &["T-1", "T-2"].map(str::to_owned)).await;
    admin.codes(other_id, &["T-2".to_owned()]).await;
    for code in ["T-1", "T-2"] {
        let body = json!({ "user_id": user_id, "book_id": book_id });
        let path = format!("/v1/coupons/assign/{code}");
        let job = admin
            .with("Prefer", "wait=20")
            .with("X-Request-Id", "trail-1")
            .post(&path, body)
            .await
            .expect(200);
        assert_eq!(job["state"], "succeeded");
    }
    let lock = user
        .with("X-Request-Id", "trail-2")
        .post("/v1/coupons/lock/T-1", json!({}))
        .await
        .expect(200);
    let token = json!({ "lock_token": lock["lock_token"] });
    user.post("/v1/coupons/redeem/T-1", token).await.expect(200);
    let own = ["coupon_redeemed", "coupon_locked", "coupon_assigned"];
    assert_eq!(
        kinds(&admin, "code=T-1")
            .await
            .iter()
            .filter(|kind| own.contains(&kind.as_str()))
            .collect::<Vec<_>>(),
        own
    );
    assert_eq!(
        kinds(&admin, &format!("actor={user_id}")).await,
        ["coupon_redeemed", "coupon_locked"]
    );
    let of_book = kinds(&admin, &format!("book_id={book_id}")).await;
    assert_eq!(
        of_book.iter().filter(|kind| *kind == "coupon_assigned").count(),
        2
    );
    assert!(of_book.iter().any(|kind| kind == "book_created"), "{of_book:?}");
    assert!(
        !kinds(&admin, &format!("book_id={other_id}"))
            .await
            .contains(&"coupon_assigned".to_owned())
    );
    let both = format!("code=T-2&book_id={book_id}&actor={user_id}");
    for none in [
        both.as_str(),
        "code=NO-SUCH",
        "actor=01890000-0000-7000-8000-000000000000",
    ] {
        assert!(kinds(&admin, none).await.is_empty(), "{none}");
    }
    admin
        .get("/v1/audit?code=T-2")
        .await
        .refused(409, "code_ambiguous");
    admin
        .get("/v1/audit?actor=me")
        .await
        .refused(422, "validation_failed");
    user.get("/v1/audit").await.refused(403, "forbidden");

    let page = admin.get(&format!("/v1/audit?actor={user_id}")).await.expect(200);
    let [redeemed, locked] = &rows(&page)[..] else {
        panic!("two: {page}")
    };
    assert_eq!(locked["request_id"], "trail-2");
    assert_eq!(
        (&locked["actor"], &locked["code"]),
        (&json!(format!("user:{user_id}")), &json!("T-1"))
    );
    assert_eq!(
        (&locked["before"]["state"], &locked["after"]["state"]),
        (&json!("assigned"), &json!("locked"))
    );
    assert_eq!(
        (&redeemed["book_id"], &redeemed["job_id"]),
        (&json!(book_id), &Value::Null)
    );
    let assigned = admin.get("/v1/audit?limit=100&code=T-1").await.expect(200);
    let assigned = rows(&assigned)
        .iter()
        .find(|event| event["kind"] == "coupon_assigned")
        .expect("an event")
        .clone();
    assert!(
        assigned["job_id"].is_string() && assigned["request_id"] == "trail-1",
        "{assigned}"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_the_trail_hold_every_event_once_while_more_happens() {
    let service = Service::start().await;
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let book_id = admin
        .book(json!({ "require_lock": false, "redemptions_per_coupon": 1_000 }))
        .await;
    admin.codes(book_id, &["T-1".to_owned()]).await;
    let body = json!({ "user_id": user_id });
    admin
        .with("Prefer", "wait=20")
        .post("/v1/coupons/assign/T-1", body)
        .await
        .expect(200);
    for _ in 0..9 {
        user.post("/v1/coupons/redeem/T-1", json!({})).await.expect(200);
    }
    let all: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM events ORDER BY id DESC")
        .fetch_all(service.db.pool())
        .await
        .expect("events");
    let (mut seen, mut cursor) = (Vec::<Uuid>::new(), String::new());
    loop {
        let page = admin.get(&format!("/v1/audit?limit=2{cursor}")).await.expect(200);
        seen.extend(rows(&page).iter().map(|event| {
            event["id"]
                .as_str()
                .expect("an id")
                .parse::<Uuid>()
                .expect("an id")
        }));
        user.post("/v1/coupons/redeem/T-1", json!({})).await.expect(200);
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, all);
    // A cursor belongs to its filters.
    admin
        .get(&format!("/v1/audit?limit=2&code=T-1{cursor}"))
        .await
        .invalid("?cursor", "bad_cursor");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_a_coupon_sees_nothing_of_who_held_it_before() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (first, first_id) = service.user(Role::User).await;
    let (second, second_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({})).await;
    admin.codes(book_id, &["HAND-1".to_owned()]).await;
    let give = async |user_id: Uuid| {
        let body = json!({ "book_id": book_id, "user_id": user_id });
        let wait = admin.with("Prefer", "wait=20");
        let job = wait.post("/v1/coupons/assign", body).await.expect(200);
        assert_eq!(job["state"], "succeeded", "{job}");
    };
    let kinds = async |client: &Client| -> Vec<String> {
        let events = client.get("/v1/coupons/HAND-1/events").await.expect(200);
        let events = events["data"].as_array().unwrap().iter();
        events
            .map(|event| event["kind"].as_str().unwrap().to_owned())
            .collect()
    };
    give(first_id).await;
    let lock = first.post("/v1/coupons/lock/HAND-1", json!({})).await.expect(200);
    let token = json!({ "lock_token": lock["lock_token"] });
    first.post("/v1/coupons/unlock/HAND-1", token).await.expect(200);
    assert_eq!(
        kinds(&first).await,
        ["coupon_assigned", "coupon_locked", "coupon_unlocked"]
    );
    let reason = json!({ "reason": "between the two of us" });
    admin.post("/v1/coupons/revoke/HAND-1", reason).await.expect(200);
    give(second_id).await;
    assert_eq!(kinds(&second).await, ["coupon_assigned"]);
    assert_eq!(kinds(&admin).await.len(), 5);
    let all = admin.get("/v1/coupons/HAND-1/events?limit=2").await.expect(200);
    let path = format!(
        "/v1/coupons/HAND-1/events?cursor={}",
        all["next_cursor"].as_str().unwrap()
    );
    assert_eq!(
        admin.get(&path).await.expect(200)["data"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    service.stop().await;
}
