//! The connection to the database is cut around a COMMIT, and two API processes answer as one.
//!
//! `COUPONBOOK_TEST_SCALE=full` runs the full number of rounds.

use std::time::Duration;

use coupon_core::{caller::Scope, db::Db};
use coupon_pg::testing::TestDatabase;
use coupon_tests::{
    Client,
    cutter::{Cutter, Fate},
    http::Answer,
    process::Process,
    seed,
};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use crate::truth::{self, Dice, report, scale};

/// How long a client goes on asking.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    database: TestDatabase,
    db: Db,
    key: String,
    users: Vec<Uuid>,
}

impl Bench {
    async fn new(users: usize) -> Self {
        let (database, db) = coupon_tests::fresh().await;
        let key = seed::key(&db, &[Scope::Manage]).await;
        let users = seed::users(&db, users).await;
        Self {
            database,
            db,
            key,
            users,
        }
    }

    fn pool(&self) -> &PgPool {
        self.db.pool()
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(self.pool())
            .await
            .expect("a count")
    }
}

/// Sends a request with its key until it is answered; in between it may only be told to come back.
async fn insist(client: &Client, path: &str, body: &Value, told: &mut usize) -> Answer {
    let keyed = client.with("Idempotency-Key", &Uuid::now_v7().to_string());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = keyed
            .try_send(keyed.request(Method::POST, path).json(body))
            .await
            .expect("an answer, whatever happens");
        let again = answer.status == 503 || answer.body["code"] == "idempotency_in_progress";
        if !again {
            return answer;
        }
        *told += 1;
        assert!(answer.header("retry-after").is_some(), "{}", answer.body);
        assert!(Instant::now() < deadline, "never answered: {}", answer.body);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_has_its_effect_once() {
    let mut dice = Dice::new("cut around a commit");
    let rounds = scale(50, 1_000);
    let bench = Bench::new(rounds).await;
    let cutter = Cutter::start(bench.database.url()).await;
    let api = Process::api(&cutter.url).await;
    let worker = Process::worker(bench.database.url()).await;
    let client = Client::new(&api.url()).key(&bench.key);
    let book_id = client.book(json!({})).await;
    client.codes(book_id, &seed::codes(rounds)).await;
    let mut told = 0;
    for user_id in &bench.users {
        let mut cut = |times: usize| {
            for _ in 0..times {
                cutter.arm([Fate::Lost, Fate::Sent, Fate::Unanswered][dice.below(3)]);
            }
        };
        // Sometimes the second try is cut, too.
        cut(1);
        let assign = json!({ "book_id": book_id, "user_id": user_id });
        let job = insist(&client, "/v1/coupons/assign", &assign, &mut told)
            .await
            .expect(202);
        let job = client.job_end(job["id"].as_str().expect("an id")).await;
        let code = job["result"]["coupons"][0]["code"]
            .as_str()
            .unwrap_or_else(|| panic!("{job}"))
            .to_owned();
        cut(2);
        let lock = insist(
            &client,
            &format!("/v1/coupons/lock/{code}"),
            &json!({}),
            &mut told,
        )
        .await
        .expect(200);
        cut(1);
        let token = json!({ "lock_token": lock["lock_token"] });
        let redeemed = insist(&client, &format!("/v1/coupons/redeem/{code}"), &token, &mut told)
            .await
            .expect(200);
        assert_eq!(
            (&redeemed["code"], &redeemed["user_id"]),
            (&json!(code), &json!(user_id))
        );
        // What is armed and was not needed (the first cut had done its work) must not hit the next one's first step.
        while cutter.disarm() {}
    }
    report(&format!("{} cuts, {told} times told to come back", cutter.cuts()));
    assert!(cutter.cuts() >= 3 * rounds, "{} cuts", cutter.cuts());
    let rounds = rounds as i64;
    assert_eq!(
        bench
            .count("SELECT count(*) FROM jobs WHERE kind = 'assign'")
            .await,
        rounds,
        "one job for each key"
    );
    for (kind, sql) in [
        (
            "assigned",
            "SELECT count(*) FROM events WHERE kind = 'coupon_assigned'",
        ),
        (
            "locked",
            "SELECT count(*) FROM events WHERE kind = 'coupon_locked'",
        ),
        ("redeemed", "SELECT count(*) FROM redemptions"),
        (
            "redeemed by state",
            "SELECT count(*) FROM coupons WHERE state = 'redeemed' AND redemptions_used = 1",
        ),
    ] {
        assert_eq!(bench.count(sql).await, rounds, "{kind}");
    }
    truth::all_jobs_end(bench.pool(), PATIENCE).await;
    truth::holds(bench.pool()).await;
    for process in [api, worker] {
        process.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_answer_a_repeated_request_as_one() {
    let bench = Bench::new(1).await;
    let url = bench.database.url();
    let (one, two) = tokio::join!(Process::api(url), Process::api(url));
    let clients = [&one, &two].map(|api| Client::new(&api.url()).key(&bench.key));
    let book_id = clients[0].book(json!({})).await;
    let keys: usize = scale(60, 10_000);
    let mut seen = Vec::new();
    for number in 0..keys {
        let key = format!("key-{number}");
        let body = json!({ "book_id": book_id, "user_id": bench.users[0] });
        let ask = |client: &Client| {
            let keyed = client.with("Idempotency-Key", &key);
            let body = body.clone();
            async move { keyed.post("/v1/coupons/assign", body).await }
        };
        let (first, second) = tokio::join!(ask(&clients[0]), ask(&clients[1]));
        let mut ids = Vec::new();
        for answer in [first, second] {
            match answer.status.as_u16() {
                202 => ids.push(answer.body["id"].clone()),
                _ => drop(answer.refused(409, "idempotency_in_progress")),
            }
        }
        for client in &clients {
            let again = ask(client).await;
            assert_eq!(again.header("idempotency-replayed"), Some("true"));
            ids.push(again.expect(202)["id"].clone());
        }
        assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
        seen.push(ids.swap_remove(0));
        let other = clients[number % 2].with("Idempotency-Key", &key);
        other
            .post(
                "/v1/coupons/assign",
                json!({ "book_id": book_id, "user_id": bench.users[0], "count": 2 }),
            )
            .await
            .refused(422, "idempotency_key_reused");
    }
    assert_eq!(
        bench
            .count("SELECT count(*) FROM jobs WHERE kind = 'assign'")
            .await,
        keys as i64
    );
    for process in [one, two] {
        process.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_job_is_told_in_every_process_that_waits_for_it() {
    let bench = Bench::new(1).await;
    let url = bench.database.url();
    let (one, two) = tokio::join!(Process::api(url), Process::api(url));
    let clients = [&one, &two].map(|api| Client::new(&api.url()).key(&bench.key));
    let book_id = clients[0].book(json!({})).await;
    let body = json!({ "book_id": book_id, "user_id": bench.users[0] });
    let key = Uuid::now_v7().to_string();
    let accepted = clients[0]
        .with("Idempotency-Key", &key)
        .post("/v1/coupons/assign", body.clone())
        .await
        .expect(202);
    let path = format!("/v1/jobs/{}", accepted["id"].as_str().expect("an id"));
    let mut waiting = Vec::new();
    for client in &clients {
        let patient = client.with("Prefer", "wait=30");
        let (poll, path) = (patient.clone(), path.clone());
        waiting.push(tokio::spawn(async move { poll.get(&path).await }));
        // The same request again, in the other process: it waits for the same job.
        let (again, body) = (patient.with("Idempotency-Key", &key), body.clone());
        waiting.push(tokio::spawn(async move {
            again.post("/v1/coupons/assign", body).await
        }));
    }
    let worker = Process::worker(url).await;
    let began = Instant::now();
    for answer in waiting {
        let job = answer.await.expect("answered").expect(200);
        assert_eq!(
            (&job["id"], &job["state"]),
            (&accepted["id"], &json!("failed")),
            "{job}"
        );
    }
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "told, not found by waiting: {:?}",
        began.elapsed()
    );
    for process in [one, two, worker] {
        process.terminate().await;
    }
}
