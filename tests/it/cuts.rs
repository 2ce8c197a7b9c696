//! The connection to the database is cut around a COMMIT, and two API processes answer as one.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use coupon_core::{caller::Scope, db::Db};
use coupon_pg::testing::TestDatabase;
use coupon_tests::{
    Client,
    cutter::{Cutter, Fate},
    http::Answer,
    process::Process,
    seed, size,
};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use crate::truth::{self, Dice, report};

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
    let rounds = size(50, 1_000);
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

/// What five copies of one request may be told while the first of them is at work or has been cut off.
const TOLD: [(u16, &str); 3] = [(200, ""), (409, "idempotency_in_progress"), (503, "unavailable")];

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_key_have_one_effect_while_commits_are_cut() {
    const COPIES: usize = 5;
    const LANES: usize = 8;
    let mut dice = Dice::new("copies under cuts");
    let keys = size(500, 10_000);
    let bench = Bench::new(1).await;
    let cutter = Cutter::start(bench.database.url()).await;
    let api = Process::api(&cutter.url).await;
    let worker = Process::worker(bench.database.url()).await;
    let client = Client::new(&api.url()).key(&bench.key);
    let book = json!({ "require_lock": false, "redemptions_per_coupon": keys });
    let book_id = client.book(book).await;
    client.codes(book_id, &["CUT-1".to_owned()]).await;
    let given = json!({ "book_id": book_id, "user_id": bench.users[0] });
    let given = client
        .with("Prefer", "wait=20")
        .post("/v1/coupons/assign", given)
        .await;
    assert_eq!(given.expect(200)["state"], "succeeded");
    worker.terminate().await;

    let mut matrix = BTreeMap::<String, usize>::new();
    let numbers: Vec<usize> = (0..keys).collect();
    for some in numbers.chunks(LANES) {
        // Fewer cuts than requests: most lanes go undisturbed while one is cut.
        for _ in 0..dice.below(4) {
            cutter.arm([Fate::Lost, Fate::Sent, Fate::Unanswered][dice.below(3)]);
        }
        let lanes = some.iter().map(|number| {
            let client = client.with("Idempotency-Key", &format!("use-{number}"));
            let body = json!({ "book_id": book_id, "metadata": { "number": number } });
            async move { one_effect(&client, body, COPIES).await }
        });
        for told in futures_util::future::join_all(lanes).await {
            for status in told {
                *matrix.entry(status).or_default() += 1;
            }
        }
    }
    while cutter.disarm() {}
    report(&format!("{keys} keys, {} cuts: {matrix:?}", cutter.cuts()));
    assert!(cutter.cuts() > keys / 20, "{} cuts", cutter.cuts());
    assert_eq!(bench.count("SELECT count(*) FROM redemptions").await, keys as i64);
    assert_eq!(
        bench
            .count("SELECT count(DISTINCT metadata ->> 'number') FROM redemptions")
            .await,
        keys as i64
    );
    truth::holds(bench.pool()).await;
    api.terminate().await;
}

/// Sends copies at once, then one more until it is answered, then another request with the same key; gives what the
/// copies were told.
async fn one_effect(client: &Client, body: Value, copies: usize) -> Vec<String> {
    const PATH: &str = "/v1/coupons/redeem/CUT-1";
    let send = |client: Client| {
        let body = body.clone();
        async move { client.post(PATH, body).await }
    };
    let copies = (0..copies).map(|_| send(client.on_own_connection()));
    let mut ids = BTreeSet::new();
    let mut told = Vec::new();
    for answer in futures_util::future::join_all(copies).await {
        let status = answer.status.as_u16();
        let code = answer.body["code"]
            .as_str()
            .filter(|_| status != 200)
            .unwrap_or_default();
        assert!(TOLD.contains(&(status, code)), "{}", answer.body);
        if status == 200 {
            ids.insert(answer.body["id"].to_string());
        }
        told.push(format!("{status} {code}").trim_end().to_owned());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = send(client.clone()).await;
        if answer.status == 200 {
            ids.insert(answer.body["id"].to_string());
            break;
        }
        assert!(matches!(answer.status.as_u16(), 409 | 503), "{}", answer.body);
        assert!(Instant::now() < deadline, "never answered: {}", answer.body);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ids.len(), 1, "{told:?}");
    let again = send(client.clone()).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let other = json!({ "book_id": body["book_id"], "metadata": { "number": "another" } });
    client
        .post(PATH, other)
        .await
        .refused(422, "idempotency_key_reused");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_answer_a_repeated_request_as_one() {
    let bench = Bench::new(1).await;
    let url = bench.database.url();
    let (one, two) = tokio::join!(Process::api(url), Process::api(url));
    let clients = [&one, &two].map(|api| Client::new(&api.url()).key(&bench.key));
    let book_id = clients[0].book(json!({})).await;
    let keys: usize = size(60, 2_000);
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
        began.elapsed() < Duration::from_secs(30), // which is what they would have waited
        "told, not found by waiting: {:?}",
        began.elapsed()
    );
    for process in [one, two, worker] {
        process.terminate().await;
    }
}
