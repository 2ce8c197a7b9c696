//! The life of a coupon as a client sees it: book, codes, assignment by a job, lock, redemption.

use coupon_core::caller::Role;
use coupon_tests::Service;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_coupon_is_made_assigned_locked_and_redeemed() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({ "name": "Summer" })).await;
    let path = format!("/v1/books/{book_id}/codes/import");
    let upload = admin
        .post_csv(&path, "code\nSUMMER-1\nSUMMER-2\nsummer 1\n")
        .await;
    let job = admin.job_end(upload.expect(202)["id"].as_str().unwrap()).await;
    assert_eq!(job["state"], "partially_succeeded", "{job}");
    assert_eq!(
        (&job["result"]["accepted"], &job["result"]["duplicate_in_file"]),
        (&json!(2), &json!(1)),
        "{job}"
    );

    let job = admin
        .post(
            "/v1/coupons/assign",
            json!({ "book_id": book_id, "user_id": user_id }),
        )
        .await
        .expect(202);
    let job = admin.job_end(job["id"].as_str().unwrap()).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let code = job["result"]["coupons"][0]["code"].as_str().unwrap().to_owned();

    let mine = user.get("/v1/me/coupons").await.expect(200);
    assert_eq!(mine["data"][0]["code"], code.as_str());
    // The book itself is not a user's to read, but what it says of using the coupon is.
    assert_eq!(mine["data"][0]["book"]["name"], "Summer");
    assert_eq!(mine["data"][0]["book"]["require_lock"], true);
    user.post(&format!("/v1/coupons/redeem/{code}"), json!({}))
        .await
        .refused(409, "lock_required");
    let lock = user
        .post(&format!("/v1/coupons/lock/{code}"), json!({}))
        .await
        .expect(200);
    assert_eq!(lock["renewals_left"], 3);
    user.post(&format!("/v1/coupons/lock/{code}"), json!({}))
        .await
        .refused(423, "coupon_locked");
    let token = json!({ "lock_token": lock["lock_token"] });
    let redemption = user
        .post(&format!("/v1/coupons/redeem/{code}"), token.clone())
        .await
        .expect(200);
    assert_eq!(
        (&redemption["kind"], &redemption["user_id"]),
        (&json!("redemption"), &json!(user_id))
    );
    // Repeated with the token of a redemption that happened, it is that redemption again.
    let again = user
        .post(&format!("/v1/coupons/redeem/{code}"), token)
        .await
        .expect(200);
    assert_eq!(again["id"], redemption["id"]);
    let coupon = user.get(&format!("/v1/coupons/{code}")).await.expect(200);
    assert_eq!(
        (&coupon["state"], &coupon["redemptions_used"]),
        (&json!("redeemed"), &json!(1))
    );

    let events = user.get(&format!("/v1/coupons/{code}/events")).await.expect(200);
    let kinds: Vec<&str> = events["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["coupon_assigned", "coupon_locked", "coupon_redeemed"]);
    let stats = admin.get(&format!("/v1/books/{book_id}/stats")).await.expect(200);
    assert_eq!(
        (&stats["total"], &stats["redeemed"], &stats["unassigned"]),
        (&json!(2), &json!(1), &json!(1))
    );
    service.stop().await;
}
