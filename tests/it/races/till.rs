//! Many at the till: uses, locks and limits are spent once, and a lapsing lock has one winner.

use std::collections::{BTreeMap, BTreeSet};

use coupon_core::{
    caller::Role,
    coupon::{lock::hash_token, sweep::sweep_lapsed_locks},
    db,
};
use coupon_tests::Service;
use serde_json::json;
use tokio::sync::Barrier;

use super::{agrees, at_once, clients, count, counts, seed_codes, short};
use crate::truth::until;

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_redeems_of_three_uses_spend_three() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    for at_a_time in [300, 500] {
        let book_id = admin
            .book(json!({ "require_lock": false, "redemptions_per_coupon": 3 }))
            .await;
        seed_codes(&service, book_id, 1, 3, Some(user_id)).await;
        let clients = clients(&user, 5);
        let answers = at_once((0..at_a_time).map(|number| {
            let client = clients[number % clients.len()].clone();
            async move {
                client
                    .post("/v1/coupons/redeem/C1", json!({ "book_id": book_id }))
                    .await
            }
        }))
        .await;
        assert_eq!(
            count(answers.iter().map(short)),
            counts([("200", 3), ("409 invalid_state", at_a_time - 3)])
        );
        let ids: BTreeSet<&str> = answers
            .iter()
            .filter_map(|answer| answer.body["id"].as_str())
            .collect();
        assert_eq!(ids.len(), 3);
        let (state, used): (String, i32) =
            sqlx::query_as("SELECT state, redemptions_used FROM coupons WHERE book_id = $1")
                .bind(book_id)
                .fetch_one(service.db.pool())
                .await
                .unwrap();
        assert_eq!((state.as_str(), used), ("redeemed", 3));
        agrees(&service, book_id).await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_redeems_more_often_than_the_book_allows() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin
        .book(json!({ "require_lock": false, "max_redemptions_per_user": 5 }))
        .await;
    seed_codes(&service, book_id, 40, 1, Some(user_id)).await;
    let clients = clients(&user, 8);
    let answers = at_once((1..=40).map(|number| {
        let client = clients[number % clients.len()].clone();
        async move {
            client
                .post(&format!("/v1/coupons/redeem/C{number}"), json!({}))
                .await
        }
    }))
    .await;
    assert_eq!(
        count(answers.iter().map(short)),
        counts([("200", 5), ("409 redemption_limit_reached", 35)])
    );
    agrees(&service, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_locks_at_once_one_gives_a_token() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 1, 1, Some(user_id)).await;
    let clients = clients(&user, 20);
    let answers = at_once(
        clients
            .into_iter()
            .map(|client| async move { client.post("/v1/coupons/lock/C1", json!({})).await }),
    )
    .await;
    assert_eq!(
        count(answers.iter().map(short)),
        counts([("200", 1), ("423 coupon_locked", 19)])
    );
    let refused = answers.iter().find(|answer| answer.status == 423).unwrap();
    assert!(refused.header("retry-after").is_some());
    let token = answers
        .iter()
        .find_map(|answer| answer.body["lock_token"].as_str())
        .unwrap();
    let (hash, events): (Vec<u8>, Vec<String>) = sqlx::query_as(
        "SELECT lock_token_hash, ARRAY(SELECT kind FROM events WHERE book_id = $1 AND code_key = 'C1' ORDER BY id) FROM coupons WHERE book_id = $1",
    )
    .bind(book_id)
    .fetch_one(service.db.pool())
    .await
    .unwrap();
    assert_eq!(
        (hash, events),
        (hash_token(token), vec!["coupon_locked".to_owned()])
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_locks_deadline_redeem_lock_and_sweep_have_one_winner() {
    const TOKEN: &str = "cbl_the-token-of-the-lapsing-lock";
    // Milliseconds from the start until the lock lapses: long gone, about now, not for long.
    const LAPSES: [f64; 10] = [-5.0, 1.0, 3.0, 5.0, 7.0, 10.0, 15.0, 22.0, 30.0, 1_500.0];
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({})).await;
    let (redeemer, locker) = (user.on_own_connection(), user.on_own_connection());
    let mut outcomes = BTreeMap::<String, usize>::new();
    for round in 0..100 {
        sqlx::query(
            "INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed, state, assigned_user_id, assigned_at,
                                  lock_token_hash, lock_renewals_left, locked_until)
             VALUES ($1, $2, 1, 1, 'locked', $3, now(), $4, 3, clock_timestamp() + make_interval(secs => $5))",
        )
        .bind(book_id)
        .bind(format!("R{round}"))
        .bind(user_id)
        .bind(hash_token(TOKEN))
        .bind(LAPSES[round % LAPSES.len()] / 1e3)
        .execute(service.db.pool())
        .await
        .unwrap();
        let barrier = Barrier::new(3);
        let (redeem, lock, ()) = tokio::join!(
            async {
                barrier.wait().await;
                let body = json!({ "lock_token": TOKEN });
                redeemer.post(&format!("/v1/coupons/redeem/R{round}"), body).await
            },
            async {
                barrier.wait().await;
                locker
                    .post(&format!("/v1/coupons/lock/R{round}"), json!({}))
                    .await
            },
            async {
                let mut tx = service.db.begin().await.unwrap();
                barrier.wait().await;
                sweep_lapsed_locks(&mut tx).await.unwrap();
                db::commit(tx).await.unwrap();
            }
        );
        let (state, used, hash, redemptions, events): (String, i32, Vec<u8>, i64, Vec<String>) = sqlx::query_as(
            "SELECT state, redemptions_used, lock_token_hash,
                    (SELECT count(*) FROM redemptions r WHERE r.book_id = c.book_id AND r.code_key = c.code_key),
                    ARRAY(SELECT kind FROM events e WHERE e.book_id = c.book_id AND e.code_key = c.code_key ORDER BY id)
             FROM coupons c WHERE book_id = $1 AND code_key = $2",
        )
        .bind(book_id)
        .bind(format!("R{round}"))
        .fetch_one(service.db.pool())
        .await
        .unwrap();
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let (redeem_said, lock_said) = (short(&redeem), short(&lock));
        let fine = match (redeem_said.as_str(), lock_said.as_str()) {
            // The lock was live: nobody else got in.
            ("200", "423 coupon_locked" | "409 invalid_state") => {
                (state.as_str(), used, redemptions, &events[..])
                    == ("redeemed", 1, 1, &["coupon_redeemed"][..])
            }
            // It was not: the new lock has the coupon, however the old one ended.
            ("409 lock_expired" | "403 lock_not_owned", "200") => {
                let token = lock.body["lock_token"].as_str().unwrap_or("");
                (state.as_str(), used, redemptions, &events[..])
                    == ("locked", 0, 0, &["lock_expired", "coupon_locked"][..])
                    && hash == hash_token(token)
            }
            // It lapsed after the new lock was refused: nobody has it.
            ("409 lock_expired", "423 coupon_locked") => {
                (used, redemptions) == (0, 0)
                    && matches!(
                        (state.as_str(), &events[..]),
                        ("assigned", ["lock_expired"]) | ("locked", [])
                    )
            }
            _ => false,
        };
        assert!(
            fine,
            "round {round}: redeem {redeem_said}, lock {lock_said}; {state} {used} {redemptions} {events:?}"
        );
        *outcomes
            .entry(format!("redeem {redeem_said}, lock {lock_said}"))
            .or_default() += 1;
    }
    // The first and the last of the offsets decide by themselves; a race that only ever goes one way is none.
    assert!(
        outcomes.keys().any(|said| said.starts_with("redeem 200")),
        "{outcomes:?}"
    );
    assert!(
        outcomes.keys().any(|said| said.ends_with("lock 200")),
        "{outcomes:?}"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_still_looks_its_coupon_up_holds_no_connection_of_the_till() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 1, 1, Some(user_id)).await;
    let mut holder = service.db.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE coupons IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *holder)
        .await
        .unwrap();
    let asking = tokio::spawn(async move {
        let body = json!({ "book_id": book_id });
        user.post("/v1/coupons/lock/C1", body).await
    });
    until(
        service.db.pool(),
        "the look waits",
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')",
    )
    .await;
    let taken = service.app.till().pool().size();
    holder.rollback().await.unwrap();
    assert_eq!(taken, 0, "nothing was to be written yet");
    // The look may have been given up for having waited too long.
    let answer = asking.await.unwrap();
    assert!(matches!(answer.status.as_u16(), 200 | 503), "{}", answer.body);
    service.stop().await;
}
