//! Undoing a distribution: what is still only assigned goes back, what is locked, used or given anew stays. Undoings whose
//! workers are killed are in `distributions/large.rs`.

use coupon_core::{
    coupon::{Behalf, CouponId, Origin, lock, redeem},
    db,
};
use coupon_tests::{Client, Service, seed};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    distributions::{distribute, held, holds, stock},
    pools::seeded_pool,
    truth::until,
};

/// Undoes a distribution; gives its job.
async fn undo(admin: &Client, distribution: &Value) -> Value {
    let path = format!("/v1/distributions/{}/undo", distribution["id"].as_str().unwrap());
    let job = admin.post(&path, json!({})).await.expect(202);
    admin.job_end(job["id"].as_str().unwrap()).await
}

async fn code_of(admin: &Client, book_id: Uuid, user_id: Uuid) -> String {
    let coupons = admin
        .get(&format!("/v1/books/{book_id}/coupons?user_id={user_id}"))
        .await
        .expect(200);
    coupons["data"][0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn undoing_takes_back_what_is_still_assigned_and_says_what_stays() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 20).await;
    let book_id = admin
        .book(json!({ "require_lock": false, "redemptions_per_coupon": 2 }))
        .await;
    stock(&service.db, book_id, 25).await;
    sqlx::query("UPDATE coupons SET redemptions_allowed = 2 WHERE book_id = $1")
        .bind(book_id)
        .execute(service.db.pool())
        .await
        .unwrap();
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1 });
    let (_, done) = distribute(&admin, body).await;

    let mut codes = Vec::new();
    for user in &users[..6] {
        codes.push(code_of(&admin, book_id, *user).await);
    }
    let act = async |action: &str, code: &str, body: Value| {
        admin
            .post(&format!("/v1/coupons/{action}/{code}"), body)
            .await
            .expect(200)
    };
    act("lock", &codes[0], json!({})).await;
    act("redeem", &codes[1], json!({})).await;
    act("void", &codes[2], json!({ "reason": "r" })).await;
    act("revoke", &codes[3], json!({ "reason": "r" })).await;
    // Taken back and given to the same person again, by hand: that is no longer the distribution's.
    act("revoke", &codes[4], json!({ "reason": "r" })).await;
    let by_hand = json!({ "book_id": book_id, "user_id": users[4] });
    let job = admin
        .with("Prefer", "wait=20")
        .post(&format!("/v1/coupons/assign/{}", codes[4]), by_hand)
        .await
        .expect(200);
    assert_eq!(job["state"], "succeeded");
    // Used and given back: assigned again, and nothing of it is spent.
    let redemption = act("redeem", &codes[5], json!({})).await;
    admin
        .post(
            &format!("/v1/redemptions/{}/rollback", redemption["id"].as_str().unwrap()),
            json!({ "reason": "r" }),
        )
        .await
        .expect(201);

    let job = undo(&admin, &done).await;
    assert_eq!(job["state"], "partially_succeeded", "{job}");
    assert_eq!(
        (&job["result"]["undone"], &job["result"]["kept"]),
        (&json!(15), &json!(3))
    );
    assert_eq!(
        job["result"]["reasons"],
        json!({ "locked": 1, "use_spent": 1, "void": 1, "revoked": 2 })
    );
    let path = format!("/v1/distributions/{}", done["id"].as_str().unwrap());
    let after = admin.get(&path).await.expect(200);
    assert_eq!(
        (&after["state"], &after["counts"]["undone"]),
        (&json!("partially_undone"), &json!(15))
    );
    let held = held(&service.db, book_id).await;
    let holders: Vec<usize> = (0..20).filter(|n| held.contains_key(&users[*n])).collect();
    assert_eq!(holders, [0, 1, 2, 4]);
    holds(&service.db, book_id).await;
    let free = admin.get(&format!("/v1/books/{book_id}/stats")).await.expect(200);
    assert_eq!((&free["unassigned"], &free["total"]), (&json!(21), &json!(25)));

    // The lock is given back: now that one can be undone, too; then nothing is left.
    act("unlock", &codes[0], json!({})).await;
    let job = undo(&admin, &done).await;
    assert_eq!(
        (&job["result"]["undone"], &job["result"]["kept"]),
        (&json!(16), &json!(2))
    );
    admin
        .post(&format!("{path}/undo"), json!({}))
        .await
        .refused(409, "nothing_to_undo");
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distribution_is_undone_wholly_once_and_its_coupons_can_be_given_again() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 3_000).await;
    let book_id = admin.book(json!({ "max_assignments_per_user": 2 })).await;
    stock(&service.db, book_id, 6_000).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 2 });
    for _ in 0..2 {
        let (_, done) = distribute(&admin, body.clone()).await;
        assert_eq!(done["state"], "completed");
        let job = undo(&admin, &done).await;
        assert_eq!(
            (&job["state"], &job["result"]["undone"], &job["result"]["kept"]),
            (&json!("succeeded"), &json!(6_000), &json!(0))
        );
        let path = format!("/v1/distributions/{}", done["id"].as_str().unwrap());
        let after = admin.get(&path).await.expect(200);
        assert_eq!(after["state"], "undone");
        assert!(after["undone_at"].is_string());
        admin
            .post(&format!("{path}/undo"), json!({}))
            .await
            .refused(409, "nothing_to_undo");
        assert_eq!(held(&service.db, book_id).await.len(), 0);
        holds(&service.db, book_id).await;
    }
    let absent = format!("/v1/distributions/{}/undo", Uuid::now_v7());
    admin.post(&absent, json!({})).await.refused(404, "not_found");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_locked_or_used_while_it_is_being_undone_stays() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 10).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let origin = Origin {
        actor: seed::actor(),
        request_id: None,
    };
    for reason in ["locked", "use_spent"] {
        let book_id = admin.book(json!({ "require_lock": false })).await;
        stock(&service.db, book_id, 10).await;
        // With a use left the coupon is only assigned afterwards, as if nothing had been spent.
        sqlx::query("UPDATE coupons SET redemptions_allowed = 2 WHERE book_id = $1")
            .bind(book_id)
            .execute(service.db.pool())
            .await
            .unwrap();
        let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1 });
        let (_, done) = distribute(&admin, body).await;
        let coupon = CouponId {
            book_id,
            code_key: code_of(&admin, book_id, users[0]).await,
        };
        // Somebody at the till, who has not committed when the undoing comes to the coupon.
        let mut tx = service.db.begin().await.unwrap();
        if reason == "locked" {
            let locked = lock::lock(&mut tx, &coupon, Behalf::Anybody, None, false, origin);
            locked.await.unwrap();
        } else {
            let fields = json!({});
            let used = redeem::redeem(&mut tx, &coupon, Behalf::Anybody, None, &fields, false, origin);
            used.await.unwrap();
        }
        let path = format!("/v1/distributions/{}/undo", done["id"].as_str().unwrap());
        let job = admin.post(&path, json!({})).await.expect(202);
        until(
            service.db.pool(),
            "the undoing waits for them",
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')",
        )
        .await;
        db::commit(tx).await.unwrap();
        let job = admin.job_end(job["id"].as_str().unwrap()).await;
        assert_eq!(
            (&job["result"]["undone"], &job["result"]["reasons"]),
            (&json!(9), &json!({ reason: 1 })),
            "{job}"
        );
        // It saw that by itself: no constraint had to stop it.
        assert_eq!(job["attempts"], 0, "{job}");
        assert_eq!(held(&service.db, book_id).await.len(), 1);
        holds(&service.db, book_id).await;
    }
    service.stop().await;
}
