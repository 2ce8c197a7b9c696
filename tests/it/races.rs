//! Races over real HTTP: many at once at one book, one code, one lock, one limit, one key. However they fall, what was
//! answered, what is in the tables and what the audit trail says agree, and nobody gets what another has.
//!
//! Tasks start from a barrier; nothing sleeps but to stand in for a slow network or to poll with a bound.
#![expect(
    clippy::unwrap_used,
    reason = "what cannot be read from the database fails the test"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use coupon_core::{
    caller::Role,
    coupon::{lock::hash_token, sweep::sweep_lapsed_locks},
    db,
};
use coupon_tests::{Client, Service, http::Answer, seed};
use serde_json::{Value, json};
use tokio::{sync::Barrier, task::JoinSet, time::Instant};
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

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_users_on_a_hundred_codes_make_a_hundred_winners() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 100, 1, None).await;
    let users = seed::users(&service.db, 1_000).await;
    let clients = clients(&admin, 10);
    let jobs = at_once(users.iter().enumerate().map(|(number, user_id)| {
        let client = clients[number % clients.len()].clone();
        let body = json!({ "book_id": book_id, "user_id": user_id });
        async move { assign(&client, "/v1/coupons/assign", body).await }
    }))
    .await;
    assert_eq!(
        count(jobs.iter().map(outcome)),
        counts([("book_exhausted", 900), ("succeeded", 100)])
    );
    let told: BTreeSet<String> = jobs.iter().flatten().flat_map(codes_of).collect();
    assert_eq!(told.len(), 100);
    assert_eq!(held(&service, book_id).await, (100, 100, 100, 100));
    agrees(&service, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_coupon_goes_to_one_of_fifty_users() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({ "self_service": true })).await;
    seed_codes(&service, book_id, 1, 1, None).await;
    let mut users = Vec::new();
    for _ in 0..50 {
        users.push(service.user(Role::User).await.0.on_own_connection());
    }
    let jobs =
        at_once(users.into_iter().map(|user| async move {
            assign(&user, "/v1/coupons/assign", json!({ "book_id": book_id })).await
        }))
        .await;
    assert_eq!(
        count(jobs.iter().map(outcome)),
        counts([("book_exhausted", 49), ("succeeded", 1)])
    );
    assert_eq!(held(&service, book_id).await, (1, 1, 1, 1));
    agrees(&service, book_id).await;
    service.stop().await;
}

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
async fn nobody_gets_more_coupons_than_the_book_allows() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let user_id = seed::user(&service.db, Role::User).await;
    // One at a time, and mixed with pairs, which are all or nothing.
    for pairs in [0, 2, 3] {
        let book_id = admin.book(json!({ "max_assignments_per_user": 3 })).await;
        seed_codes(&service, book_id, 100, 1, None).await;
        let clients = clients(&admin, 8);
        let jobs = at_once((0..40).map(|number| {
            let client = clients[number % clients.len()].clone();
            let size = if pairs > 0 && number % pairs == 0 { 2 } else { 1 };
            let by_name = number % 5 == 4;
            async move {
                if by_name {
                    let body = json!({ "book_id": book_id, "user_id": user_id });
                    assign(&client, &format!("/v1/coupons/assign/C{number}"), body).await
                } else {
                    let body = json!({ "book_id": book_id, "user_id": user_id, "count": size });
                    assign(&client, "/v1/coupons/assign", body).await
                }
            }
        }))
        .await;
        let got: usize = jobs.iter().flatten().map(|job| codes_of(job).len()).sum();
        // There are singles enough to fill up whatever the pairs leave.
        assert_eq!(got, 3, "{:?}", count(jobs.iter().map(outcome)));
        let kinds: BTreeSet<String> = jobs.iter().map(outcome).collect();
        assert_eq!(
            kinds,
            BTreeSet::from(["assignment_limit_reached".to_owned(), "succeeded".to_owned()])
        );
        assert_eq!(held(&service, book_id).await, (3, 1, 3, 3));
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
async fn a_given_code_goes_to_one_of_thirty_users() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let clients = clients(&admin, 6);
    // First all in one batch, which waits for its worker; then as they come.
    for queued in [true, false] {
        let book_id = admin.book(json!({})).await;
        seed_codes(&service, book_id, 1, 1, None).await;
        let users = seed::users(&service.db, 30).await;
        let asking = at_once(users.into_iter().enumerate().map(|(number, user_id)| {
            let client = clients[number % clients.len()].clone();
            let body = json!({ "book_id": book_id, "user_id": user_id });
            async move { client.post("/v1/coupons/assign/C1", body).await.expect(202) }
        }))
        .await;
        if queued {
            service.start_workers();
        }
        let mut jobs = Vec::new();
        for job in asking {
            jobs.push(Ok(admin.job_end(job["id"].as_str().unwrap()).await));
        }
        assert_eq!(
            count(jobs.iter().map(outcome)),
            counts([("already_assigned", 29), ("succeeded", 1)])
        );
        assert_eq!(held(&service, book_id).await, (1, 1, 1, 1));
        agrees(&service, book_id).await;
    }
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
async fn codes_that_arrive_while_others_are_drawn_are_neither_lost_nor_given_twice() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 50, 1, None).await;
    let users = seed::users(&service.db, 60).await;
    let csv: String = ["code\n".to_owned()]
        .into_iter()
        .chain((0..400).map(|number| format!("LATE-{number}\n")))
        .collect();
    let path = format!("/v1/books/{book_id}/codes/import");
    let importing = {
        let admin = admin.on_own_connection();
        async move {
            let job = admin.post_csv(&path, csv).await.expect(202);
            admin.job_end(job["id"].as_str().unwrap()).await
        }
    };
    let clients = clients(&admin, 6);
    let drawing = at_once(users.iter().enumerate().map(|(number, user_id)| {
        let client = clients[number % clients.len()].clone();
        let body = json!({ "book_id": book_id, "user_id": user_id, "count": 2 });
        async move { assign(&client, "/v1/coupons/assign", body).await }
    }));
    let (imported, mut jobs) = tokio::join!(importing, drawing);
    assert_eq!(
        (&imported["state"], &imported["result"]["accepted"]),
        (&json!("succeeded"), &json!(400)),
        "{imported}"
    );
    let said: BTreeSet<String> = jobs.iter().map(outcome).collect();
    assert!(
        said.iter()
            .all(|said| said == "succeeded" || said == "book_exhausted"),
        "{said:?}"
    );
    agrees(&service, book_id).await;
    let stats = admin.get(&format!("/v1/books/{book_id}/stats")).await.expect(200);
    let drawn: usize = jobs.iter().flatten().map(|job| codes_of(job).len()).sum();
    assert_eq!(
        (&stats["total"], &stats["assigned"], &stats["unassigned"]),
        (&json!(450), &json!(drawn), &json!(450 - drawn)),
        "{stats}"
    );
    // Every other code is there to be drawn, and then nothing is.
    let body = |count: usize| json!({ "book_id": book_id, "user_id": users[0], "count": count });
    jobs.push(assign(&admin, "/v1/coupons/assign", body(450 - drawn)).await);
    assert_eq!(outcome(jobs.last().unwrap()), "succeeded");
    assert_eq!(
        outcome(&assign(&admin, "/v1/coupons/assign", body(1)).await),
        "book_exhausted"
    );
    let codes: Vec<String> = jobs.iter().flatten().flat_map(codes_of).collect();
    assert_eq!(
        (codes.len(), codes.iter().collect::<BTreeSet<_>>().len()),
        (450, 450)
    );
    agrees(&service, book_id).await;
    service.stop().await;
}

/// Draws one at a time until the book is exhausted.
async fn draw_all(admin: &Client, book_id: Uuid, user_id: Uuid) -> Vec<String> {
    let mut codes = Vec::new();
    loop {
        let body = json!({ "book_id": book_id, "user_id": user_id });
        let job = assign(admin, "/v1/coupons/assign", body).await;
        match outcome(&job).as_str() {
            "succeeded" => codes.extend(codes_of(&job.unwrap())),
            "book_exhausted" => return codes,
            other => panic!("{other}"),
        }
    }
}

fn all_different(codes: &[String]) -> usize {
    codes.iter().collect::<BTreeSet<_>>().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_at_one_place_of_the_draw_are_each_drawn_once() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let user_id = seed::user(&service.db, Role::User).await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 24, 1, None).await;
    // Three knots of eight, the last at the very end of the range.
    sqlx::query("UPDATE coupons SET draw_key = CASE substr(code_key, 2)::int % 3 WHEN 0 THEN 7 WHEN 1 THEN 8 ELSE 9223372036854775807 END WHERE book_id = $1")
        .bind(book_id)
        .execute(service.db.pool())
        .await
        .unwrap();
    let body = json!({ "book_id": book_id, "user_id": user_id, "count": 3 });
    let mut codes = codes_of(&assign(&admin, "/v1/coupons/assign", body).await.unwrap());
    assert_eq!(codes.len(), 3);
    codes.extend(draw_all(&admin, book_id, user_id).await);
    assert_eq!((codes.len(), all_different(&codes)), (24, 24));
    agrees(&service, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_draw_has_run_to_its_end_what_is_left_is_keyed_anew_and_nothing_is_lost() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let user_id = seed::user(&service.db, Role::User).await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 30, 1, None).await;
    // The cursor stands 2⁴² from the end; one code lies at it, one at the last key, two at one place, one is expired.
    sqlx::query(
        "WITH d AS (UPDATE draw_states SET cursor = 9223372036854775807 - (1::bigint << 42) WHERE book_id = $1 RETURNING cursor)
         UPDATE coupons c SET draw_key = CASE substr(code_key, 2)::int WHEN 1 THEN d.cursor WHEN 2 THEN 9223372036854775807
                              WHEN 3 THEN d.cursor + 4 ELSE d.cursor + substr(code_key, 2)::int END,
                              expires_at = CASE code_key WHEN 'C5' THEN now() - interval '1 s' END
         FROM d WHERE c.book_id = $1",
    )
    .bind(book_id)
    .execute(service.db.pool())
    .await
    .unwrap();
    let body = json!({ "book_id": book_id, "user_id": user_id });
    let mut codes = codes_of(&assign(&admin, "/v1/coupons/assign", body).await.unwrap());
    let (epoch, cursor, highest, left): (i32, i64, i64, i64) = sqlx::query_as(
        "SELECT d.epoch, d.cursor, max(c.draw_key), count(*) FROM draw_states d JOIN coupons c USING (book_id)
         WHERE book_id = $1 AND c.state = 'unassigned' GROUP BY 1, 2",
    )
    .bind(book_id)
    .fetch_one(service.db.pool())
    .await
    .unwrap();
    assert_eq!((epoch, left), (1, 29));
    // 29 keys that all lie in the lower eighth, or a first that lies above the middle: one chance in a billion.
    assert!(
        cursor < i64::MAX / 2 && highest > i64::MAX / 8,
        "{cursor} {highest}"
    );
    agrees(&service, book_id).await;
    admin.codes(book_id, &["LATE".to_owned()]).await;
    codes.extend(draw_all(&admin, book_id, user_id).await);
    assert_eq!(
        (codes.len(), all_different(&codes)),
        (30, 30),
        "29 and the late one; one has expired"
    );
    assert!(codes.iter().any(|code| code == "LATE") && !codes.iter().any(|code| code == "C5"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_arrives_late_is_drawn_too() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 2).await;
    let book_id = admin.book(json!({})).await;
    admin.codes(book_id, &seed::codes(40)).await;
    let body = json!({ "book_id": book_id, "user_id": users[0], "count": 20 });
    let mut codes = codes_of(&assign(&admin, "/v1/coupons/assign", body).await.unwrap());
    // Each arrival lies at or above the cursor, wherever that is.
    for late in 0..5 {
        admin.codes(book_id, &[format!("LATE-{late}")]).await;
        agrees(&service, book_id).await;
        let body = json!({ "book_id": book_id, "user_id": users[0], "count": 4 });
        codes.extend(codes_of(
            &assign(&admin, "/v1/coupons/assign", body).await.unwrap(),
        ));
    }
    codes.extend(draw_all(&admin, book_id, users[1]).await);
    assert_eq!((codes.len(), all_different(&codes)), (45, 45));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_is_not_exhausted_while_somebody_else_may_give_its_last_coupon_back() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 2).await;
    for given_away in [false, true] {
        let book_id = admin.book(json!({})).await;
        seed_codes(&service, book_id, 1, 1, None).await;
        let mut other = service.db.begin().await.unwrap();
        let sql = if given_away {
            "UPDATE coupons SET state = 'assigned', assigned_user_id = $2, assigned_at = now() WHERE book_id = $1"
        } else {
            "UPDATE coupons SET state = 'void' WHERE book_id = $1 AND $2::uuid IS NOT NULL"
        };
        sqlx::query(sql)
            .bind(book_id)
            .bind(users[1])
            .execute(&mut *other)
            .await
            .unwrap();
        let body = json!({ "book_id": book_id, "user_id": users[0] });
        let job = admin.post("/v1/coupons/assign", body).await.expect(202);
        let job_id = job["id"].as_str().unwrap();
        let deadline = Instant::now() + Duration::from_secs(4);
        while !sqlx::query_scalar::<_, bool>(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')",
        )
        .fetch_one(service.db.pool())
        .await
        .unwrap()
        {
            let now = admin.get(&format!("/v1/jobs/{job_id}")).await.expect(200);
            assert!(Instant::now() < deadline && now["finished_at"].is_null(), "nobody waits: {now}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let due = if given_away {
            db::commit(other).await.unwrap();
            "book_exhausted"
        } else {
            other.rollback().await.unwrap();
            "succeeded"
        };
        assert_eq!(outcome(&Ok(admin.job_end(job_id).await)), due);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_request_with_one_key_have_one_effect() {
    const KEYS: usize = 200;
    const COPIES: usize = 5;
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 1_000, 1, None).await;
    let users = seed::users(&service.db, KEYS).await;
    let clients = clients(&admin, COPIES);
    let answers = at_once((0..KEYS * COPIES).map(|number| {
        let (key, copy) = (number / COPIES, number % COPIES);
        let client = clients[copy].with("Idempotency-Key", &format!("key {key}"));
        // One copy waits for the end and the others do not: that is no part of the request.
        let client = if copy == 0 {
            client.with("Prefer", "wait=20")
        } else {
            client
        };
        let body = json!({ "book_id": book_id, "user_id": users[key] });
        async move { client.post("/v1/coupons/assign", body).await }
    }))
    .await;
    for (key, copies) in answers.chunks(COPIES).enumerate() {
        let said: Vec<String> = copies.iter().map(short).collect();
        assert!(
            said.iter()
                .all(|said| matches!(said.as_str(), "200" | "202" | "409 idempotency_in_progress")),
            "key {key}: {said:?}"
        );
        let done: Vec<&Answer> = copies.iter().filter(|copy| copy.status.is_success()).collect();
        let ids: BTreeSet<&str> = done.iter().filter_map(|copy| copy.body["id"].as_str()).collect();
        let fresh = done
            .iter()
            .filter(|copy| copy.header("idempotency-replayed").is_none())
            .count();
        assert_eq!((ids.len(), fresh), (1, 1), "key {key}: {said:?}");
    }
    let job = |key: usize| {
        answers[key * COPIES..][..COPIES]
            .iter()
            .find_map(|copy| copy.body["id"].as_str())
            .unwrap()
    };
    for key in 0..KEYS {
        assert_eq!(admin.job_end(job(key)).await["state"], "succeeded");
    }
    let keyed = admin.with("Idempotency-Key", "key 0");
    let again = keyed
        .post(
            "/v1/coupons/assign",
            json!({ "book_id": book_id, "user_id": users[0] }),
        )
        .await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.expect(202)["id"], job(0));
    keyed
        .post(
            "/v1/coupons/assign",
            json!({ "book_id": book_id, "user_id": users[1] }),
        )
        .await
        .refused(422, "idempotency_key_reused");
    assert_eq!(held(&service, book_id).await, (200, 200, 200, 200));
    agrees(&service, book_id).await;
    service.stop().await;
}

/// Lets every try for an advisory lock of the service's coming connections take a while, as a busy server may.
async fn slow_down_advisory_locks(service: &Service) {
    sqlx::raw_sql(
        "CREATE SCHEMA slow;
         CREATE FUNCTION slow.pg_try_advisory_xact_lock(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_sleep(0.06); RETURN pg_catalog.pg_try_advisory_xact_lock($1); END $$;
         DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = slow, pg_catalog, public', current_database()); END $$",
    )
    .execute(service.db.pool())
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_comes_while_the_first_commits_gets_its_answer_and_no_other() {
    let service = Service::without_workers().await;
    slow_down_advisory_locks(&service).await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({ "require_lock": false })).await;
    seed_codes(&service, book_id, 8, 1, Some(user_id)).await;
    let clients = clients(&user, 6);
    // So that what is measured is the copies and not the opening of connections.
    at_once(
        clients
            .clone()
            .into_iter()
            .map(|client| async move { client.get("/v1/me/coupons").await.expect(200) }),
    )
    .await;
    for number in 1..=8 {
        let answers = at_once(clients.iter().enumerate().map(|(copy, client)| {
            let client = client.with("Idempotency-Key", &format!("key {number}"));
            async move {
                // One after another within the time that the first one takes.
                tokio::time::sleep(Duration::from_millis(15 * copy as u64)).await;
                client
                    .post(&format!("/v1/coupons/redeem/C{number}"), json!({}))
                    .await
            }
        }))
        .await;
        let said: Vec<String> = answers.iter().map(short).collect();
        assert!(
            said.iter()
                .all(|said| matches!(said.as_str(), "200" | "409 idempotency_in_progress")),
            "{said:?}"
        );
        let ids: BTreeSet<&str> = answers
            .iter()
            .filter_map(|answer| answer.body["id"].as_str())
            .collect();
        assert_eq!(ids.len(), 1, "{said:?}");
    }
    agrees(&service, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "api/src/once.rs drops the refused transaction, whose rollback may come after the record's own try for the key"]
async fn a_refusal_with_a_key_is_that_refusal_also_when_it_is_asked_for_again() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 1, 1, None).await;
    for number in 0..40 {
        let keyed = admin.with("Idempotency-Key", &format!("key {number}"));
        for replayed in [None, Some("true")] {
            let answer = keyed.post("/v1/coupons/redeem/C1", json!({})).await;
            assert_eq!(
                (short(&answer).as_str(), answer.header("idempotency-replayed")),
                ("409 invalid_state", replayed),
                "key {number}"
            );
        }
    }
    service.stop().await;
}
