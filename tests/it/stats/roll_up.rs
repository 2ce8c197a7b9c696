//! The sweep that folds events into sums.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use coupon_core::{
    db::{self, Db},
    stats::roll_up::{EVENTS_BATCH, roll_up},
};
use coupon_tests::fresh;
use tokio::{sync::Barrier, time::Instant};
use uuid::Uuid;

use super::{rolled_up, seed_hours, step};
use crate::truth::PATIENCE;

/// Book, hours that have a row, codes that came in, assignments, and what is unassigned and assigned at the end.
async fn sums(db: &Db) -> Vec<(Uuid, i64, i64, i64, i64, i64)> {
    sqlx::query_as(
        "SELECT book_id, count(*), sum(added_count)::bigint, sum(assigned_count)::bigint,
                (array_agg(unassigned ORDER BY hour DESC))[1], (array_agg(assigned ORDER BY hour DESC))[1]
         FROM book_hours GROUP BY book_id ORDER BY book_id",
    )
    .fetch_all(db.pool())
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_the_same_after_sweeps_that_were_killed_ran_twice_or_side_by_side() {
    let (database, db) = fresh().await;
    let from = "2026-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap();
    let books = [Uuid::from_u128(1), Uuid::from_u128(2)];
    seed_hours(&db, books, from, 30).await;
    // A mark counts once everybody on the server who wrote before it has ended, other databases' writers too.
    let deadline = Instant::now() + PATIENCE;
    let mut seen: i64 = 0;
    while seen < 30 * 6 * 4 {
        assert!(Instant::now() < deadline, "{seen} assignments are in the sums");
        // Killed: all that it did is gone.
        let mut tx = db.begin().await.unwrap();
        roll_up(&mut tx, Duration::ZERO).await.unwrap();
        tx.rollback().await.unwrap();
        let barrier = Arc::new(Barrier::new(3));
        let sweeps: Vec<_> = (0..3)
            .map(|_| {
                let (db, barrier) = (db.clone(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    barrier.wait().await;
                    step(&db).await
                })
            })
            .collect();
        for sweep in sweeps {
            sweep.await.unwrap();
        }
        seen = sums(&db).await.iter().map(|row| row.3).sum();
    }
    rolled_up(&db).await;
    // Each hour of the assignments, and that of the codes a hundred hours before.
    let expected = |book_id, times: i64| (book_id, 31, 1_000 * times, 180 * times, 820 * times, 180 * times);
    let all = [
        expected(Uuid::nil(), 2),
        expected(books[0], 1),
        expected(books[1], 1),
    ];
    assert_eq!(sums(&db).await, all);
    for _ in 0..3 {
        step(&db).await;
    }
    assert_eq!(sums(&db).await, all);
    db.close().await;
    drop(database);
}

#[tokio::test]
async fn more_events_than_a_step_takes_are_taken_in_several() {
    let (database, db) = fresh().await;
    let wanted = EVENTS_BATCH + 5;
    sqlx::query(
        "INSERT INTO events (book_id, id, actor_kind, kind, code_key, before, after)
         SELECT $1, uuid_v7(), 'system', 'coupon_assigned', 'C', '{\"state\": \"unassigned\"}', '{\"state\": \"assigned\"}'
         FROM generate_series(1, $2)",
    )
    .bind(Uuid::from_u128(1))
    .bind(wanted)
    .execute(db.pool())
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await; // the next mark has a later millisecond
    let mut more = step(&db).await;
    // A mark counts once everybody on the server who wrote before it has ended, other databases' writers too.
    let deadline = Instant::now() + PATIENCE;
    while sums(&db).await.is_empty() {
        assert!(Instant::now() < deadline, "no event is in the sums");
        more = step(&db).await;
    }
    assert!(more, "there is more");
    let rows = sums(&db).await;
    assert!(rows.iter().all(|row| row.3 <= EVENTS_BATCH), "{rows:?}");
    rolled_up(&db).await;
    let rows = sums(&db).await;
    assert!(rows.iter().all(|row| row.3 == wanted), "{rows:?}");
    db.close().await;
    drop(database);
}

#[tokio::test]
async fn an_event_of_a_transaction_that_commits_late_is_in_the_sums_all_the_same() {
    let (database, db) = fresh().await;
    let book_id = Uuid::from_u128(1);
    let insert = "INSERT INTO events (book_id, id, actor_kind, kind, after)
                  VALUES ($1, uuid_v7(), 'system', 'codes_added', '{\"count\": 7}')";
    let mut late = db.begin().await.unwrap();
    sqlx::query(insert)
        .bind(book_id)
        .execute(&mut *late)
        .await
        .unwrap();
    sqlx::query(insert)
        .bind(book_id)
        .execute(db.pool())
        .await
        .unwrap();
    for _ in 0..5 {
        step(&db).await;
    }
    assert_eq!(
        sums(&db).await,
        [],
        "nothing that is younger than the open transaction"
    );
    db::commit(late).await.unwrap();
    rolled_up(&db).await;
    assert!(
        sums(&db).await.iter().all(|row| row.2 == 14),
        "{:?}",
        sums(&db).await
    );

    // Who only reads holds nothing up, however long it takes.
    let mut reading = db.begin().await.unwrap();
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM events")
        .execute(&mut *reading)
        .await
        .unwrap();
    sqlx::query(insert)
        .bind(book_id)
        .execute(db.pool())
        .await
        .unwrap();
    rolled_up(&db).await;
    assert!(sums(&db).await.iter().all(|row| row.2 == 21));
    reading.rollback().await.unwrap();
    db.close().await;
    drop(database);
}

#[tokio::test]
async fn sums_go_on_in_a_database_that_was_restored_on_another_server() {
    let (database, db) = fresh().await;
    sqlx::query("UPDATE roll_up_state SET mark_xid = '900000000000'")
        .execute(db.pool())
        .await
        .unwrap();
    rolled_up(&db).await;
    db.close().await;
    drop(database);
}
