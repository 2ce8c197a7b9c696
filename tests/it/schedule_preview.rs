//! The look ahead of a schedule that nobody has made yet.

use coupon_tests::Service;
use serde_json::{Value, json};

const PREVIEW: &str = "/v1/schedules/preview";

#[tokio::test]
async fn the_fires_are_those_that_the_schedule_has_once_it_is_made() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let when =
        json!({ "cron": "30 2 * * *", "time_zone": "Europe/Berlin", "ends_at": "2031-01-01T00:00:00Z" });
    let seen = admin.post(PREVIEW, when.clone()).await.expect(200);
    assert_eq!(seen["data"].as_array().map(Vec::len), Some(10));

    let mut body =
        json!({ "name": "S", "kind": "export", "export": { "kind": "coupons", "book_id": book_id } });
    body.as_object_mut()
        .unwrap()
        .extend(when.as_object().unwrap().clone());
    let made = admin.post("/v1/schedules", body).await.expect(201);
    let next = admin
        .get(&format!("/v1/schedules/{}/next", made["id"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(seen["data"], next["data"]);
}

#[tokio::test]
async fn it_is_empty_behind_the_end_and_makes_nothing() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let over = json!({ "cron": "0 9 * * *", "ends_at": "2020-01-01T00:00:00Z" });
    assert_eq!(
        admin.post(PREVIEW, over).await.expect(200)["data"],
        Value::Array(Vec::new())
    );
    let once = json!({ "run_at": "2031-05-06T07:08:00Z" });
    let fires = admin.post(PREVIEW, once).await.expect(200);
    assert_eq!(fires["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        admin.get("/v1/schedules").await.expect(200)["data"],
        Value::Array(Vec::new())
    );
}

#[tokio::test]
async fn what_could_be_no_schedule_is_refused() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    for (when, code) in [
        (json!({ "cron": "61 * * * *" }), "cron_invalid"),
        (json!({ "cron": "0 0 30 2 *" }), "cron_invalid"),
        (
            json!({ "cron": "0 9 * * *", "time_zone": "Mars/Olympus" }),
            "time_zone_unknown",
        ),
        (json!({}), "validation_failed"),
        (
            json!({ "cron": "0 9 * * *", "run_at": "2031-05-06T07:08:00Z" }),
            "validation_failed",
        ),
    ] {
        admin.post(PREVIEW, when).await.refused(422, code);
    }
}
