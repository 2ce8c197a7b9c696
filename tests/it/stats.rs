//! Roll-ups: every event and every change of a job is in the sums exactly once, whoever is killed and whoever commits
//! late; what is read from the sums is what the tables say.

mod counts;
mod roll_up;
mod series;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use coupon_core::{
    db::{self, Db},
    stats::roll_up::roll_up,
};
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::truth::PATIENCE;

/// One step of the sweep, without the margin; gives whether there is more.
async fn step(db: &Db) -> bool {
    let mut tx = db.begin().await.unwrap();
    let more = roll_up(&mut tx, Duration::ZERO).await.unwrap();
    db::commit(tx).await.unwrap();
    more
}

/// The smallest id of a moment.
fn id_at(time: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(time.timestamp_millis()).unwrap();
    Uuid::from_u128((millis << 80) | (0x7 << 76) | (0x8 << 60))
}

/// Sweeps until everything that has happened so far is in the sums. Writers in other tests' databases hold that up.
async fn rolled_up(db: &Db) {
    let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()")
        .fetch_one(db.pool())
        .await
        .unwrap();
    let wanted = id_at(now + TimeDelta::milliseconds(1));
    let deadline = Instant::now() + PATIENCE;
    loop {
        step(db).await;
        let (until, left): (Uuid, i64) =
            sqlx::query_as("SELECT events_before, (SELECT count(*) FROM job_changes) FROM roll_up_state")
                .fetch_one(db.pool())
                .await
                .unwrap();
        if until >= wanted && left == 0 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the sums stand at {until}, {left} changes are left"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a series says last.
fn last(series: &Value) -> &Value {
    series["points"]
        .as_array()
        .and_then(|points| points.last())
        .unwrap()
}

/// Codes come into two books and are given away, one event every ten minutes, over so many hours.
async fn seed_hours(db: &Db, books: [Uuid; 2], from: DateTime<Utc>, hours: i64) {
    let (mut ids, mut of) = (Vec::new(), Vec::new());
    for minute in (0..hours * 60).step_by(10) {
        for (number, book_id) in (0..).zip(books) {
            let id = id_at(from + TimeDelta::minutes(minute));
            ids.push(Uuid::from_u128(id.as_u128() + number));
            of.push(book_id);
        }
    }
    sqlx::query(
        "INSERT INTO events (book_id, id, actor_kind, kind, code_key, before, after)
         SELECT n.book_id, n.id, 'system', 'coupon_assigned', 'C', '{\"state\": \"unassigned\"}', '{\"state\": \"assigned\"}'
         FROM unnest($1::uuid[], $2::uuid[]) AS n (book_id, id)",
    )
    .bind(&of)
    .bind(&ids)
    .execute(db.pool())
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO events (book_id, id, actor_kind, kind, after)
         SELECT b, $2, 'system', 'codes_added', '{\"count\": 1000}' FROM unnest($1::uuid[]) AS b",
    )
    .bind(books)
    .bind(id_at(from - TimeDelta::hours(100)))
    .execute(db.pool())
    .await
    .unwrap();
}
