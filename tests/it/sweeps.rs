//! The sweep of lapsed locks and the clock that starts it: every tick is taken once, every lapsed lock is turned back
//! and has its event, and nothing of what a client is told waits for either.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot be read from the database fails the test"
)]

use std::{sync::Arc, time::Duration};

use coupon_core::{
    caller::Role,
    coupon::sweep::{SWEEP_BATCH, sweep_lapsed_locks},
    db::{self, Db},
    id,
    job::{enqueue, payload::Payload},
    schedule,
};
use coupon_tests::{Service, database};
use serde_json::{Value, json};
use sqlx::types::chrono::{DateTime, Utc};
use tokio::{sync::Barrier, time::Instant};
use uuid::Uuid;

use crate::truth;

/// Takes the ticks of the sweep for the next minutes, as another process would: no lapsed lock is swept meanwhile.
pub(crate) async fn take_all_ticks(db: &Db) {
    sqlx::query(
        "INSERT INTO ticks (schedule, tick)
         SELECT 'sweep-locks', date_trunc('minute', now()) + make_interval(secs => s) FROM generate_series(0, 1800, 5) AS s",
    )
    .execute(db.pool())
    .await
    .unwrap();
}

/// A book with this many coupons whose lock lapsed a moment ago; the table's checks tell what a lock needs.
async fn seed_lapsed(db: &Db, count: i32) -> Uuid {
    let book_id = id::new();
    sqlx::query(
        "WITH b AS (INSERT INTO books (id, created_by, name) VALUES ($1, $1, 'A book'))
         INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed, state, assigned_user_id, assigned_at,
                              lock_token_hash, lock_renewals_left, locked_until)
         SELECT $1, 'C' || n, n, 1, 'locked', $1, now(), 'x', 3, now() - make_interval(secs => n * 0.001)
         FROM generate_series(1, $2) AS n",
    )
    .bind(book_id)
    .bind(count)
    .execute(db.pool())
    .await
    .unwrap();
    book_id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_five_seconds_lapses_by_itself_and_its_event_follows() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({ "lock_seconds": 5 })).await;
    admin.codes(book_id, &["A-1".to_owned()]).await;
    let body = json!({ "book_id": book_id, "user_id": user_id });
    let job = admin.post("/v1/coupons/assign", body).await.expect(202);
    admin.job_end(job["id"].as_str().unwrap()).await;
    let lock = user.post("/v1/coupons/lock/A-1", json!({})).await.expect(200);
    let time = |value: &Value| value.as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    let locked_until = time(&lock["locked_until"]);

    let deadline = Instant::now() + truth::PATIENCE;
    let events = loop {
        let events = user.get("/v1/coupons/A-1/events").await.expect(200);
        if events["data"]
            .as_array()
            .unwrap()
            .iter()
            .any(|event| event["kind"] == "lock_expired")
        {
            break events;
        }
        assert!(Instant::now() < deadline, "no sweep has come: {events}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let expired = events["data"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&expired["kind"], &expired["actor"]),
        (&json!("lock_expired"), &json!("system"))
    );
    let late = time(&expired["at"]) - locked_until;
    assert!(late.num_milliseconds() >= 0, "{late} after the lapse");
    let token = json!({ "lock_token": lock["lock_token"] });
    user.post("/v1/coupons/redeem/A-1", token)
        .await
        .refused(409, "lock_expired");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tick_is_taken_by_one_of_three_processes() {
    let database = database().await;
    let db = Db::connect(database.url(), db::Role::Worker, 8).unwrap();
    let tick = "2026-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap();
    for number in 0..20 {
        let tick = tick + Duration::from_secs(5 * number);
        let barrier = Arc::new(Barrier::new(3));
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let (db, barrier) = (db.clone(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    let mut tx = db.begin().await.unwrap();
                    barrier.wait().await;
                    let taken = schedule::take_tick(&mut tx, "a-sweep", tick).await.unwrap();
                    db::commit(tx).await.unwrap();
                    taken
                })
            })
            .collect();
        let mut taken = 0;
        for taker in takers {
            taken += usize::from(taker.await.unwrap());
        }
        assert_eq!(taken, 1, "tick {number}");
    }
    db.close().await;
}

#[tokio::test]
async fn a_tick_whose_taker_rolled_back_is_free_again() {
    let database = database().await;
    let db = Db::connect(database.url(), db::Role::Worker, 2).unwrap();
    let tick = "2026-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap();
    let mut tx = db.begin().await.unwrap();
    assert!(schedule::take_tick(&mut tx, "a-sweep", tick).await.unwrap());
    tx.rollback().await.unwrap();
    let mut tx = db.begin().await.unwrap();
    assert!(schedule::take_tick(&mut tx, "a-sweep", tick).await.unwrap());
    db::commit(tx).await.unwrap();
    db.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_lapsed_locks_are_swept_in_batches_until_none_is_left() {
    let mut service = Service::without_workers().await;
    take_all_ticks(&service.db).await;
    let book_id = seed_lapsed(&service.db, 1_250).await;
    let mut tx = service.db.begin().await.unwrap();
    enqueue::upkeep(&mut tx, &Payload::SweepLocks).await.unwrap();
    db::commit(tx).await.unwrap();
    service.start_workers();
    let deadline = Instant::now() + truth::PATIENCE;
    loop {
        let due: i64 = sqlx::query_scalar("SELECT count(*) FROM apalis.jobs")
            .fetch_one(service.db.pool())
            .await
            .unwrap();
        if due == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "the sweep does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (left, events, codes, batches, longest): (i64, i64, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM coupons WHERE book_id = $1 AND (state <> 'assigned' OR locked_until IS NOT NULL)),
                count(*), count(DISTINCT code_key), count(DISTINCT at),
                (SELECT max(n) FROM (SELECT count(*) AS n FROM events WHERE book_id = $1 GROUP BY at) AS batch)
         FROM events WHERE book_id = $1 AND kind = 'lock_expired'",
    )
    .bind(book_id)
    .fetch_one(service.db.pool())
    .await
    .unwrap();
    assert_eq!((left, events, codes, batches), (0, 1_250, 1_250, 3));
    assert_eq!(longest, SWEEP_BATCH);
    service.stop().await;
}

#[tokio::test]
async fn a_sweep_leaves_live_locks_and_rows_that_somebody_holds() {
    let database = database().await;
    let db = Db::connect(database.url(), db::Role::Worker, 3).unwrap();
    let book_id = seed_lapsed(&db, 3).await;
    sqlx::query(
        "UPDATE coupons SET locked_until = now() + interval '1 h' WHERE book_id = $1 AND code_key = 'C2'",
    )
    .bind(book_id)
    .execute(db.pool())
    .await
    .unwrap();
    let mut redeeming = db.begin().await.unwrap();
    sqlx::query("SELECT FROM coupons WHERE book_id = $1 AND code_key = 'C3' FOR UPDATE")
        .bind(book_id)
        .execute(&mut *redeeming)
        .await
        .unwrap();
    let mut tx = db.begin().await.unwrap();
    assert_eq!(sweep_lapsed_locks(&mut tx).await.unwrap(), 1);
    db::commit(tx).await.unwrap();
    redeeming.rollback().await.unwrap();
    let mut tx = db.begin().await.unwrap();
    assert_eq!(sweep_lapsed_locks(&mut tx).await.unwrap(), 1);
    assert_eq!(sweep_lapsed_locks(&mut tx).await.unwrap(), 0);
    db::commit(tx).await.unwrap();
    let locked: Vec<String> =
        sqlx::query_scalar("SELECT code_key FROM coupons WHERE book_id = $1 AND state = 'locked'")
            .bind(book_id)
            .fetch_all(db.pool())
            .await
            .unwrap();
    assert_eq!(locked, ["C2"]);
    db.close().await;
}
