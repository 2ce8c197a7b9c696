//! One lock from its beginning to the next one.

use coupon_core::caller::Role;
use coupon_tests::Service;
use serde_json::json;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_renewed_as_often_as_the_book_says_and_its_token_works_until_the_next_lock() {
    let service = Service::without_workers().await;
    let (user, user_id) = service.user(Role::User).await;
    let admin = service.admin().await;
    let book_id = admin
        .book(json!({ "lock_renewals": 2, "redemptions_per_coupon": 3, "lock_seconds": 60 }))
        .await;
    seed_held(&service, book_id, user_id, 3).await;
    let lock = async |token: Option<&str>| {
        let mut body = json!({});
        if let Some(token) = token {
            body["lock_token"] = json!(token);
        }
        user.post("/v1/coupons/lock/C-1", body).await
    };
    let redeem = async |token: &str| {
        user.post("/v1/coupons/redeem/C-1", json!({ "lock_token": token }))
            .await
    };
    let first = lock(None).await.expect(200);
    let first = first["lock_token"].as_str().unwrap();
    for left in [1, 0] {
        assert_eq!(lock(Some(first)).await.expect(200)["renewals_left"], left);
    }
    lock(Some(first)).await.refused(409, "renewals_exhausted");
    // It lapses; its token says so until the next lock and is unknown from then on.
    lapse(&service, book_id).await;
    redeem(first).await.refused(409, "lock_expired");
    sweep(&service).await;
    redeem(first).await.refused(409, "lock_expired");
    let second = lock(None).await.expect(200);
    let second = second["lock_token"].as_str().unwrap();
    redeem(first).await.refused(403, "lock_not_owned");
    // A token that redeemed gives its redemption again, also after another lock redeemed, also under another lock.
    let one = redeem(second).await.expect(200);
    let third = lock(None).await.expect(200);
    assert_eq!(redeem(second).await.expect(200), one);
    let two = redeem(third["lock_token"].as_str().unwrap()).await.expect(200);
    assert_ne!(one["id"], two["id"]);
    assert_eq!(redeem(second).await.expect(200), one);
    let used: i32 = sqlx::query_scalar("SELECT redemptions_used FROM coupons WHERE book_id = $1")
        .bind(book_id)
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    assert_eq!(used, 2);
    service.stop().await;
}

/// A coupon C-1 that somebody holds.
async fn seed_held(service: &Service, book_id: Uuid, user_id: Uuid, uses: i32) {
    sqlx::query(
        "INSERT INTO coupons (book_id, code_key, code, draw_key, redemptions_allowed, state, assigned_user_id, assigned_at)
         VALUES ($1, 'C1', 'C-1', 5, $3, 'assigned', $2, now())",
    )
    .bind(book_id)
    .bind(user_id)
    .bind(uses)
    .execute(service.db.pool())
    .await
    .unwrap();
}

async fn lapse(service: &Service, book_id: Uuid) {
    sqlx::query(
        "UPDATE coupons SET locked_until = now() - interval '1 ms' WHERE book_id = $1 AND state = 'locked'",
    )
    .bind(book_id)
    .execute(service.db.pool())
    .await
    .unwrap();
}

async fn sweep(service: &Service) {
    let mut tx = service.db.begin().await.unwrap();
    assert_eq!(
        coupon_core::coupon::sweep::sweep_lapsed_locks(&mut tx)
            .await
            .unwrap(),
        1
    );
    coupon_core::db::commit(tx).await.unwrap();
}
