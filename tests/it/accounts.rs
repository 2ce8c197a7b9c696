//! Accounts over HTTP: the first administrator by the one-time token, and the life of a user until it is deleted.

use coupon_core::{caller::Role, user::setup::setup_token};
use coupon_tests::{Client, Service};
use serde_json::{Value, json};
use uuid::Uuid;

const PASSWORD: &str = "correct horse battery";

async fn log_in(client: &Client, email: &str, password: &str) -> coupon_tests::http::Answer {
    let body = json!({ "email": email, "password": password });
    client.post("/v1/auth/login", body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_time_token_makes_the_first_administrator_and_nothing_more() {
    let service = Service::without_workers().await;
    let nobody = service.nobody();
    let token = setup_token(service.app.authenticator().keys());
    let body = |token: &str, email: &str| json!({ "token": token, "email": email, "name": "First", "password": PASSWORD });
    assert_eq!(
        nobody.get("/v1/setup").await.expect(200),
        json!({ "needed": true })
    );
    let wrong = body("not-the-token", "a@example.com");
    nobody
        .post("/v1/setup", wrong.clone())
        .await
        .refused(403, "forbidden");
    let mut weak = body(&token, "a@example.com");
    weak["password"] = json!("password12");
    nobody.post("/v1/setup", weak).await.refused(422, "weak_password");
    // Of many at once one makes it, and its answer can be had again with its key.
    let at_once: Vec<_> = (0..5)
        .map(|number| {
            let client = nobody
                .with("Idempotency-Key", &format!("setup-{number}"))
                .on_own_connection();
            let body = body(&token, &format!("first{number}@example.com"));
            tokio::spawn(async move { (client.post("/v1/setup", body.clone()).await, client, body) })
        })
        .collect();
    let mut made = Vec::new();
    for request in at_once {
        let (answer, client, body) = request.await.expect("answered");
        match answer.status.as_u16() {
            201 => {
                let id = answer.body["id"].as_str().expect("an id");
                assert_eq!(
                    answer.header("location"),
                    Some(format!("/v1/users/{id}").as_str())
                );
                assert_eq!(answer.body["role"], "admin");
                assert_eq!(client.post("/v1/setup", body).await.expect(201), answer.body);
                made.push(answer.body["email"].as_str().expect("an address").to_owned());
            }
            _ => drop(answer.refused(409, "already_set_up")),
        }
    }
    let [email] = &made[..] else {
        panic!("one: {made:?}")
    };
    assert_eq!(
        nobody.get("/v1/setup").await.expect(200),
        json!({ "needed": false })
    );
    for token in [token.as_str(), "not-the-token"] {
        nobody
            .post("/v1/setup", body(token, "second@example.com"))
            .await
            .refused(409, "already_set_up");
    }
    let session = log_in(&nobody, email, PASSWORD).await.expect(200);
    let admin = nobody.bearer(session["access_token"].as_str().expect("a token"));
    assert_eq!(
        admin.get("/v1/users").await.expect(200)["data"]
            .as_array()
            .expect("rows")
            .len(),
        1
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_made_changed_disabled_and_deleted() {
    let service = Service::start().await;
    let (admin, admin_id) = service.user(Role::Admin).await;
    let new = json!({ "email": "Life@Example.com", "name": "Life", "password": PASSWORD });
    let user = admin.post("/v1/users", new.clone()).await.expect(201);
    let path = format!("/v1/users/{}", user["id"].as_str().expect("an id"));
    admin
        .post(
            "/v1/users",
            json!({ "email": "life@example.COM", "name": "Twin" }),
        )
        .await
        .refused(409, "email_taken");
    let session = log_in(&service.nobody(), "LIFE@example.com", PASSWORD)
        .await
        .expect(200);
    let person = service
        .nobody()
        .bearer(session["access_token"].as_str().expect("a token"));
    let book_id = admin
        .book(json!({ "require_lock": false, "redemptions_per_coupon": 2 }))
        .await;
    admin.codes(book_id, &["LIFE-1".to_owned()]).await;
    let assign = json!({ "user_id": user["id"] });
    admin
        .with("Prefer", "wait=20")
        .post("/v1/coupons/assign/LIFE-1", assign)
        .await
        .expect(200);
    let redeemed = person
        .post("/v1/coupons/redeem/LIFE-1", json!({}))
        .await
        .expect(200);

    let renamed = admin
        .patch(&path, json!({ "name": "Changed", "email": "new@example.com" }))
        .await
        .expect(200);
    assert_eq!(
        (&renamed["name"], &renamed["email"], &renamed["role"]),
        (&json!("Changed"), &json!("new@example.com"), &json!("user"))
    );
    log_in(&service.nobody(), "life@example.com", PASSWORD)
        .await
        .refused(401, "invalid_credentials");

    // Disabled: out at once, also with the tokens that are still valid; the coupons stay, but do not move.
    assert_eq!(
        admin.patch(&path, json!({ "disabled": true })).await.expect(200)["disabled"],
        true
    );
    person
        .patch("/v1/me", json!({ "name": "N" }))
        .await
        .refused(401, "unauthenticated");
    log_in(&service.nobody(), "new@example.com", PASSWORD)
        .await
        .refused(401, "invalid_credentials");
    let refresh = json!({ "refresh_token": session["refresh_token"] });
    assert_eq!(
        service.nobody().post("/v1/auth/refresh", refresh).await.status,
        401
    );
    admin
        .post("/v1/coupons/redeem/LIFE-1", json!({}))
        .await
        .refused(409, "user_disabled");
    assert_eq!(
        admin.patch(&path, json!({ "disabled": false })).await.expect(200)["disabled"],
        false
    );
    let session = log_in(&service.nobody(), "new@example.com", PASSWORD)
        .await
        .expect(200);
    let person = service
        .nobody()
        .bearer(session["access_token"].as_str().expect("a token"));
    person.get("/v1/me").await.expect(200);

    // Deleted: disabled and anonymous, and the history stays.
    admin
        .delete(&format!("/v1/users/{admin_id}"))
        .await
        .refused(409, "cannot_delete_self");
    admin
        .delete(&format!("/v1/users/{}", Uuid::now_v7()))
        .await
        .refused(404, "not_found");
    for _ in 0..2 {
        assert_eq!(
            admin.delete(&path).await.expect(204),
            Value::String(String::new())
        );
    }
    let gone = admin.get(&path).await.expect(200);
    assert_eq!(gone["disabled"], true);
    assert!(
        !gone.to_string().contains("new@example.com") && !gone.to_string().contains("Changed"),
        "{gone}"
    );
    person
        .patch("/v1/me", json!({ "name": "N" }))
        .await
        .refused(401, "unauthenticated");
    log_in(&service.nobody(), "new@example.com", PASSWORD)
        .await
        .refused(401, "invalid_credentials");
    let history = admin.get("/v1/redemptions?code=LIFE-1").await.expect(200);
    assert_eq!(
        (&history["data"][0]["id"], &history["data"][0]["user_id"]),
        (&redeemed["id"], &user["id"])
    );
    // The address is free again, for somebody else.
    let again = admin
        .post(
            "/v1/users",
            json!({ "email": "new@example.com", "name": "Another" }),
        )
        .await
        .expect(201);
    assert_ne!(again["id"], user["id"]);
    service.stop().await;
}
