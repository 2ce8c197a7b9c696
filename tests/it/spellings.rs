//! How codes are spelled: percent-encoded in paths, like the words of fixed paths, and checked without a look-up.

use coupon_core::{caller::Role, config::Settings};
use coupon_tests::Service;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_code_in_a_path_is_whatever_it_decodes_to() {
    let service = Service::start().await;
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let book_id = admin
        .book(json!({ "exact_codes": true, "require_lock": false }))
        .await;
    let spelled = [
        ("A B", "A%20B"),
        ("A/B", "A%2FB"),
        ("A%2FB", "A%252FB"),
        ("Q?x=1#y", "Q%3Fx=1%23y"),
        ("a+b&c", "a+b&c"),
        ("~!@$^*()=|;", "~!@$%5E*()=%7C;"),
        ("PLAIN", "%50%4c%41%49%4E"), // ASCII, every letter escaped
        ("..x", "..x"),
        // What fixed paths are called.
        ("check", "check"),
        ("assign", "assign"),
        ("assign-batch", "assign-batch"),
        ("codes", "codes"),
        ("events", "events"),
        ("lock", "lock"),
    ];
    let codes: Vec<String> = spelled.iter().map(|(code, _)| (*code).to_owned()).collect();
    admin.codes(book_id, &codes).await;
    for (code, path) in spelled {
        let found = admin.get(&format!("/v1/coupons/{path}")).await.expect(200);
        assert_eq!(found["code"], code, "{path}");
        let listed = admin
            .get(&format!("/v1/coupons/{path}/events?book_id={book_id}"))
            .await
            .expect(200);
        assert!(listed["data"].is_array(), "{path}");
        let body = json!({ "user_id": user_id });
        let job = admin
            .with("Prefer", "wait=20")
            .post(&format!("/v1/coupons/assign/{path}"), body)
            .await
            .expect(200);
        assert_eq!(job["result"]["coupons"][0]["code"], code, "{path}: {job}");
        let lock = user
            .post(&format!("/v1/coupons/lock/{path}"), json!({}))
            .await
            .expect(200);
        assert_eq!(lock["code"], code);
        let token = json!({ "lock_token": lock["lock_token"] });
        let redeemed = user
            .post(&format!("/v1/coupons/redeem/{path}"), token)
            .await
            .expect(200);
        assert_eq!(redeemed["code"], code);
        assert_eq!(
            user.get(&format!("/v1/coupons/{path}")).await.expect(200)["state"],
            "redeemed"
        );
    }
    // The fixed paths themselves are what they were.
    let check = json!({ "code": "A B", "book_id": book_id });
    assert_eq!(
        admin.post("/v1/coupons/check", check).await.expect(200),
        json!({ "well_formed": true, "canonical": "A B" })
    );
    for (method, path) in [
        (Method::DELETE, "/v1/coupons/check"),
        (Method::PUT, "/v1/coupons/assign"),
    ] {
        let answer = admin.send(admin.request(method, path)).await;
        assert_eq!(answer.header("allow"), Some("GET, HEAD, OPTIONS, POST"), "{path}");
        answer.refused(405, "method_not_allowed");
    }
    admin.get("/v1/coupons/A/B").await.refused(404, "not_found");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_checked_without_being_looked_up() {
    let service = Service::with(Settings::default()).await; // budgets against guessing are on
    let (admin, (user, _)) = (service.admin().await, service.user(Role::User).await);
    let (loose, exact) = (
        json!({ "self_service": true }),
        json!({ "self_service": true, "exact_codes": true }),
    );
    let (loose, exact) = (admin.book(loose).await, admin.book(exact).await);
    let closed = admin.book(json!({})).await;
    let check = async |code: &str, book_id: Uuid| {
        user.post("/v1/coupons/check", json!({ "code": code, "book_id": book_id }))
            .await
    };
    for (code, book_id, canonical) in [
        (" ab-12 ", loose, json!("AB12")),
        (" ab-12 ", exact, json!("ab-12")),
        ("--- ", loose, Value::Null),
        ("", loose, Value::Null),
        ("ä", exact, Value::Null),
        (&"x".repeat(101), exact, Value::Null),
        (&"x".repeat(100), exact, json!("x".repeat(100))),
        ("..", loose, Value::Null),
    ] {
        let answer = check(code, book_id).await.expect(200);
        assert_eq!(
            answer,
            json!({ "well_formed": !canonical.is_null(), "canonical": canonical }),
            "{code}"
        );
    }
    // However often: no code is looked for, so nothing can be found out.
    for number in 0..30 {
        check(&format!("GUESS-{number}"), loose).await.expect(200);
    }
    check("A", closed).await.refused(404, "not_found");
    check("A", Uuid::now_v7()).await.refused(404, "not_found");
    check(&"x".repeat(1_001), loose)
        .await
        .invalid("/code", "too_long");
    service.stop().await;
}
