//! Races over real HTTP: many at once at one book, one code, one lock, one limit, one key. However they fall, what was
//! answered, what is in the tables and what the audit trail says agree, and nobody gets what another has.
//!
//! Tasks start from a barrier; nothing sleeps but to stand in for a slow network or to poll with a bound.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot be read from the database fails the test"
)]

mod assignments;
mod copies;
mod draw;
mod till;

use std::{collections::BTreeMap, sync::Arc};

use coupon_tests::{Client, Service, http::Answer};
use serde_json::Value;
use tokio::{sync::Barrier, task::JoinSet};
use uuid::Uuid;

/// Runs tasks that all start at the same moment; gives their results in order.
async fn at_once<T, F>(tasks: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<F> = tasks.into_iter().collect();
    let barrier = Arc::new(Barrier::new(tasks.len()));
    let mut set = JoinSet::new();
    for (number, task) in tasks.into_iter().enumerate() {
        let barrier = Arc::clone(&barrier);
        set.spawn(async move {
            barrier.wait().await;
            (number, task.await)
        });
    }
    let mut results = set.join_all().await;
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

/// How often each thing was said.
fn count(said: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for one in said {
        *counts.entry(one).or_default() += 1;
    }
    counts
}

fn counts<const N: usize>(due: [(&str, usize); N]) -> BTreeMap<String, usize> {
    due.into_iter()
        .map(|(said, times)| (said.to_owned(), times))
        .collect()
}

/// An answer in short: `200`, or the status and code of a refusal.
fn short(answer: &Answer) -> String {
    match answer.body["code"].as_str() {
        Some(code) if answer.status.as_u16() >= 400 => format!("{} {code}", answer.status.as_u16()),
        _ => answer.status.as_u16().to_string(),
    }
}

/// Asks for an assignment and waits for the job's end; gives the job, or what the request was refused with.
async fn assign(client: &Client, path: &str, body: Value) -> Result<Value, String> {
    let answer = client.with("Prefer", "wait=20").post(path, body).await;
    match answer.status.as_u16() {
        200 => Ok(answer.body),
        202 => Ok(client.job_end(answer.body["id"].as_str().expect("an id")).await),
        _ => Err(short(&answer)),
    }
}

/// The outcome of [`assign`] in a word.
fn outcome(job: &Result<Value, String>) -> String {
    match job {
        Ok(job) => match job["error"]["code"].as_str() {
            Some(code) => code.to_owned(),
            None => job["state"].as_str().unwrap_or("?").to_owned(),
        },
        Err(refused) => refused.clone(),
    }
}

fn codes_of(job: &Value) -> Vec<String> {
    let coupons = job["result"]["coupons"].as_array();
    coupons
        .into_iter()
        .flatten()
        .map(|coupon| coupon["code"].as_str().expect("a code").to_owned())
        .collect()
}

/// Codes C1, C2, … in the draw; or, with a holder, held by it.
async fn seed_codes(service: &Service, book_id: Uuid, count: i32, uses: i32, holder: Option<Uuid>) {
    sqlx::query(
        "WITH a AS (
             INSERT INTO user_allowances (book_id, user_id, assigned_count) SELECT $1, $4, $2 WHERE $4 IS NOT NULL
             ON CONFLICT (book_id, user_id) DO UPDATE SET assigned_count = user_allowances.assigned_count + $2)
         INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed, state, assigned_user_id, assigned_at)
         SELECT $1, 'C' || n, (random() * 9e18)::bigint, $3,
                CASE WHEN $4 IS NULL THEN 'unassigned' ELSE 'assigned' END, $4, CASE WHEN $4 IS NOT NULL THEN now() END
         FROM generate_series(1, $2) AS n",
    )
    .bind(book_id)
    .bind(count)
    .bind(uses)
    .bind(holder)
    .execute(service.db.pool())
    .await
    .unwrap();
}

/// What of a book does not agree with itself: coupons, allowances, history, events, the draw's cursor.
const DISAGREEMENTS: &str = "
    SELECT 'assigned more than once: ' || code_key FROM events
    WHERE book_id = $1 AND kind = 'coupon_assigned' GROUP BY code_key HAVING count(*) > 1
    UNION ALL
    SELECT 'the event names another holder: ' || c.code_key FROM events e JOIN coupons c USING (book_id, code_key)
    WHERE book_id = $1 AND e.kind = 'coupon_assigned' AND (e.after->>'user_id')::uuid IS DISTINCT FROM c.assigned_user_id
    UNION ALL
    SELECT 'the allowance is wrong: ' || coalesce(a.user_id, h.user_id)
    FROM (SELECT * FROM user_allowances WHERE book_id = $1) a
    FULL JOIN (SELECT assigned_user_id AS user_id, count(*) AS held FROM coupons
               WHERE book_id = $1 AND assigned_user_id IS NOT NULL GROUP BY 1) h USING (user_id)
    WHERE coalesce(a.assigned_count, 0) <> coalesce(h.held, 0)
    UNION ALL
    SELECT 'the uses are wrong: ' || c.code_key FROM coupons c
    WHERE c.book_id = $1 AND c.redemptions_used <>
          ALL (ARRAY[(SELECT count(*) FROM redemptions r WHERE r.book_id = $1 AND r.code_key = c.code_key),
                     (SELECT count(*) FROM events e WHERE e.book_id = $1 AND e.code_key = c.code_key AND e.kind = 'coupon_redeemed')])
    UNION ALL
    SELECT 'the uses are not counted: ' || a.user_id FROM user_allowances a
    WHERE a.book_id = $1 AND a.redeemed_count <> (SELECT count(*) FROM redemptions r WHERE r.book_id = $1 AND r.user_id = a.user_id)
    UNION ALL
    SELECT 'below the cursor: ' || c.code_key FROM coupons c JOIN draw_states d USING (book_id)
    WHERE book_id = $1 AND c.state = 'unassigned' AND c.draw_key < d.cursor
    UNION ALL
    SELECT 'still due: ' || j.id FROM apalis.jobs j WHERE j.job_type <> 'system'
    UNION ALL
    SELECT 'still marked: ' || m.job_id FROM job_marks m JOIN jobs j ON j.id = m.job_id
    UNION ALL
    SELECT 'not ended: ' || j.id FROM jobs j WHERE j.book_id = $1 AND j.finished_at IS NULL";

async fn agrees(service: &Service, book_id: Uuid) {
    let wrong: Vec<String> = sqlx::query_scalar(DISAGREEMENTS)
        .bind(book_id)
        .fetch_all(service.db.pool())
        .await
        .unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// How many coupons, holders and events of assignment a book has, by the tables.
async fn held(service: &Service, book_id: Uuid) -> (i64, i64, i64, i64) {
    sqlx::query_as(
        "SELECT (SELECT count(*) FROM coupons WHERE book_id = $1 AND state = 'assigned'),
                (SELECT count(DISTINCT assigned_user_id) FROM coupons WHERE book_id = $1),
                (SELECT count(*) FROM events WHERE book_id = $1 AND kind = 'coupon_assigned'),
                (SELECT coalesce(sum(assigned_count), 0) FROM user_allowances WHERE book_id = $1)",
    )
    .bind(book_id)
    .fetch_one(service.db.pool())
    .await
    .unwrap()
}

fn clients(client: &Client, count: usize) -> Vec<Client> {
    (0..count).map(|_| client.on_own_connection()).collect()
}
