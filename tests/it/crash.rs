//! The service in processes of its own on a durable PostgreSQL, while processes, connections and the server are killed.
//!
//! Each test runs in a short form; `COUPONBOOK_TEST_SCALE=full` runs the figures of docs/ (hundreds of kills, a hundred
//! thousand jobs), `COUPONBOOK_TEST_SEED` repeats a run's random choices.

#![allow(clippy::unwrap_used, reason = "what a test cannot read fails it")]

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use coupon_core::{
    caller::Scope,
    db::{self, Db, Role},
};
use coupon_pg::{Embedded, Options};
use coupon_tests::{Client, SECRET, process::Process, seed};
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::{process::Command, task::JoinHandle};
use uuid::Uuid;

use crate::{
    queue::{POISON, draw, enqueue_all, id},
    truth::{self, Dice, report, scale},
};

const PATIENCE: Duration = Duration::from_secs(240);

/// A durable server of its own, migrated, with users and an API key.
pub(crate) struct Cluster {
    server: Option<Embedded>,
    dir: TempDir,
    pub(crate) url: String,
    /// For looking; its connections do not bear the service's name.
    pool: PgPool,
    key: String,
    pub(crate) users: Vec<Uuid>,
}

impl Cluster {
    pub(crate) async fn start(users: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opened");
        let server = Embedded::start(options(dir.path().join("pg")))
            .await
            .expect("a server");
        let url = server.url();
        db::migrate(&url, Duration::from_secs(60))
            .await
            .expect("migrated");
        let db = Db::connect(&url, Role::Worker, 1).expect("a URL");
        let key = seed::key(&db, &[Scope::Manage]).await;
        let users = seed::users(&db, users).await;
        db.close().await;
        let pool = PgPool::connect(&url).await.expect("a connection");
        Self {
            server: Some(server),
            dir,
            url,
            pool,
            key,
            users,
        }
    }

    /// The server crashes and starts again.
    async fn crash_server(&mut self) {
        self.server.take().expect("running").stop_immediately().await;
        let again = Embedded::start(options(self.dir.path().join("pg")))
            .await
            .expect("a server");
        assert_eq!(again.url(), self.url);
        self.server = Some(again);
    }

    pub(crate) fn client(&self, base: &str) -> Client {
        Client::new(base).key(&self.key)
    }

    /// A book with so many codes and at most three coupons a user.
    async fn book(&self, client: &Client, codes: usize) -> Uuid {
        let book_id = client.book(json!({ "max_assignments_per_user": 3 })).await;
        let csv = format!("code\n{}\n", seed::codes(codes).join("\n"));
        let path = format!("/v1/books/{book_id}/codes/import");
        let job = client.post_csv(&path, csv).await.expect(202);
        let job = client.job_end(&id(&job).to_string()).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        book_id
    }

    /// Assigns of one or two coupons to random users.
    fn requests(&self, dice: &mut Dice, book_id: Uuid, count: usize) -> Vec<Value> {
        (0..count)
            .map(|_| {
                let user_id = self.users[dice.below(self.users.len())];
                json!({ "book_id": book_id, "user_id": user_id, "count": 1 + dice.below(4) / 3 })
            })
            .collect()
    }

    async fn finished(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE kind = 'assign' AND finished_at IS NOT NULL")
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Waits until so many assigns have ended.
    async fn progress(&self, count: usize) {
        truth::eventually(
            "progress",
            PATIENCE,
            || self.finished(),
            |done| *done >= count as i64,
        )
        .await;
    }

    /// Nothing lost, nothing doubled: as many jobs as were accepted, all ended, and every promise holds.
    async fn settles(&self, tally: &Tally) {
        truth::all_jobs_end(&self.pool, PATIENCE).await;
        truth::holds(&self.pool).await;
        let accepted: HashSet<Uuid> = tally.accepted.iter().copied().collect();
        assert_eq!(accepted.len(), tally.accepted.len(), "two requests got one job");
        let known: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM jobs WHERE kind = 'assign'")
            .fetch_all(&self.pool)
            .await
            .unwrap();
        assert_eq!(
            known.into_iter().collect::<HashSet<_>>(),
            accepted,
            "accepted jobs and jobs differ"
        );
        let (given_up, most): (i64, i32) = sqlx::query_as(
            "SELECT count(*) FILTER (WHERE error_code = 'attempts_exhausted'), coalesce(max(attempts), 0)
             FROM jobs WHERE kind = 'assign'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        let open: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'couponbook%'
                 AND state LIKE 'idle in transaction%' AND state_change < now() - interval '2 s'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        report(&format!(
            "accepted {}, answered 503 {}, no answer {}, most attempts {most}",
            tally.accepted.len(),
            tally.unavailable,
            tally.unanswered
        ));
        assert_eq!((given_up, open), (0, 0));
    }

    pub(crate) async fn stop(mut self, processes: Vec<Process>) {
        for process in processes {
            process.terminate().await;
        }
        self.pool.close().await;
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }
}

fn options(data_dir: PathBuf) -> Options {
    Options {
        data_dir,
        durable: true,
        settings: Vec::new(),
        bin_dir: None,
    }
}

/// What clients saw.
#[derive(Debug, Default)]
struct Tally {
    accepted: Vec<Uuid>,
    unavailable: usize,
    unanswered: usize,
}

/// Sends requests from 16 clients at once, each with a key of its own and again and again until it is accepted.
fn load(client: &Client, requests: Vec<Value>) -> JoinHandle<Tally> {
    let (client, lanes) = (client.clone(), 16);
    tokio::spawn(async move {
        let mut tasks = Vec::new();
        for lane in 0..lanes {
            let mine: Vec<Value> = requests.iter().skip(lane).step_by(lanes).cloned().collect();
            let client = client.clone();
            tasks.push(tokio::spawn(async move {
                let mut tally = Tally::default();
                for body in mine {
                    let keyed = client.with("Idempotency-Key", &Uuid::now_v7().to_string());
                    let deadline = Instant::now() + PATIENCE;
                    loop {
                        let request = keyed
                            .request(reqwest::Method::POST, "/v1/coupons/assign")
                            .json(&body);
                        match keyed.try_send(request).await {
                            Ok(answer) if answer.status == 202 => {
                                tally.accepted.push(id(&answer.body));
                                break;
                            }
                            // The first try may still be at work on the other side of a connection that is gone.
                            Ok(answer)
                                if answer.status == 503
                                    || answer.body["code"] == "idempotency_in_progress" =>
                            {
                                tally.unavailable += 1;
                            }
                            Ok(answer) => panic!("{}: {}", answer.status, answer.body),
                            Err(_) => tally.unanswered += 1,
                        }
                        assert!(Instant::now() < deadline, "never accepted");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                tally
            }));
        }
        let mut all = Tally::default();
        for task in tasks {
            let tally = task.await.expect("a client");
            all.accepted.extend(tally.accepted);
            all.unavailable += tally.unavailable;
            all.unanswered += tally.unanswered;
        }
        all
    })
}

/// Random moments of a load, as numbers of ended jobs in order.
fn moments(dice: &mut Dice, how_many: usize, jobs: usize) -> Vec<usize> {
    let mut moments: Vec<usize> = (0..how_many).map(|_| dice.below(jobs * 9 / 10)).collect();
    moments.sort_unstable();
    moments
}

async fn signal(process: &Process, name: &str) {
    let told = Command::new("kill")
        .args([name, &process.pid().to_string()])
        .status();
    assert!(told.await.expect("kill").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_at_random_moments_lose_nothing_and_double_nothing() {
    let mut dice = Dice::new("kill -9 of workers");
    let (jobs, kills) = (scale(5_000, 100_000), scale(10, 200));
    let cluster = Cluster::start(jobs / 2).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let mut workers = vec![
        Process::worker(&cluster.url).await,
        Process::worker(&cluster.url).await,
    ];
    // A little less than is asked for: the last are refused, and nobody gets what is not there.
    let book_id = cluster.book(&client, jobs).await;
    let loading = load(&client, cluster.requests(&mut dice, book_id, jobs));
    let mut slowest = Duration::ZERO;
    for moment in moments(&mut dice, kills, jobs) {
        cluster.progress(moment).await;
        tokio::time::sleep(dice.millis(60)).await;
        workers.swap_remove(dice.below(workers.len())).kill().await;
        let (killed, before) = (Instant::now(), cluster.finished().await);
        workers.push(Process::worker(&cluster.url).await);
        if before < jobs as i64 {
            truth::eventually(
                "work goes on",
                PATIENCE,
                || cluster.finished(),
                |done| *done > before,
            )
            .await;
            slowest = slowest.max(killed.elapsed());
        }
    }
    let tally = loading.await.expect("the load");
    assert_eq!((tally.accepted.len(), tally.unanswered), (jobs, 0));
    report(&format!("{kills} kills, work went on after {slowest:?} at most"));
    cluster.settles(&tally).await;
    workers.push(api);
    cluster.stop(workers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_terminated_at_random_lose_nothing_and_double_nothing() {
    let mut dice = Dice::new("terminated connections");
    let (jobs, cuts) = (scale(1_500, 50_000), scale(50, 500));
    let cluster = Cluster::start(jobs / 2).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let workers = vec![
        Process::worker(&cluster.url).await,
        Process::worker(&cluster.url).await,
    ];
    let book_id = cluster.book(&client, jobs).await;
    let loading = load(&client, cluster.requests(&mut dice, book_id, jobs));
    for moment in moments(&mut dice, cuts, jobs) {
        cluster.progress(moment).await;
        // Rather one that is at work than one that is idle.
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'couponbook%'
             ORDER BY state = 'idle', hashtext(pid::text || $1) LIMIT 1",
        )
        .bind(dice.below(1 << 30).to_string())
        .execute(&cluster.pool)
        .await
        .unwrap();
    }
    let tally = loading.await.expect("the load");
    assert_eq!(
        (tally.accepted.len(), tally.unanswered),
        (jobs, 0),
        "clients see only 503"
    );
    cluster.settles(&tally).await;
    cluster.stop(workers.into_iter().chain([api]).collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_under_load_loses_nothing_that_was_acknowledged() {
    let mut dice = Dice::new("server crashes");
    let (jobs, crashes) = (scale(1_000, 40_000), scale(2, 20));
    let mut cluster = Cluster::start(jobs / 2).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let workers = vec![
        Process::worker(&cluster.url).await,
        Process::worker(&cluster.url).await,
    ];
    let book_id = cluster.book(&client, jobs).await;
    let loading = load(&client, cluster.requests(&mut dice, book_id, jobs));
    let mut slowest = Duration::ZERO;
    for moment in moments(&mut dice, crashes, jobs) {
        cluster.progress(moment).await;
        tokio::time::sleep(dice.millis(60)).await;
        cluster.crash_server().await;
        cluster.pool = PgPool::connect(&cluster.url).await.expect("a connection");
        let (back, before) = (Instant::now(), cluster.finished().await);
        if before < jobs as i64 {
            truth::eventually(
                "work goes on",
                PATIENCE,
                || cluster.finished(),
                |done| *done > before,
            )
            .await;
            slowest = slowest.max(back.elapsed());
        }
    }
    let tally = loading.await.expect("the load");
    assert_eq!(
        (tally.accepted.len(), tally.unanswered),
        (jobs, 0),
        "clients see only 503"
    );
    report(&format!(
        "{crashes} crashes, work went on after {slowest:?} at most"
    ));
    assert!(slowest < Duration::from_secs(15), "{slowest:?}");
    cluster.settles(&tally).await;
    cluster.stop(workers.into_iter().chain([api]).collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_frozen_past_every_time_out_doubles_nothing_when_it_wakes() {
    let mut dice = Dice::new("frozen workers");
    let (jobs, rounds) = (scale(1_500, 50_000), scale(4, 99));
    let cluster = Cluster::start(jobs / 2).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let frozen = Process::worker(&cluster.url).await;
    let book_id = cluster.book(&client, jobs).await;
    let loading = load(&client, cluster.requests(&mut dice, book_id, jobs));
    // The long one: nobody else works, it is frozen with a batch in its hands, and stays so until all is done.
    let holds = || async {
        signal(&frozen, "-STOP").await;
        let mut holds = true;
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(20)).await; // what the server still has to read of it
            holds &= sqlx::query_scalar::<_, bool>(
                "SELECT EXISTS (SELECT FROM pg_stat_activity
                     WHERE application_name LIKE 'couponbook-worker%' AND state = 'idle in transaction')",
            )
            .fetch_one(&cluster.pool)
            .await
            .unwrap();
        }
        if !holds {
            signal(&frozen, "-CONT").await;
        }
        holds
    };
    truth::eventually("frozen with a batch", PATIENCE, holds, |holds| *holds).await;
    let since = Instant::now();
    let other = Process::worker(&cluster.url).await;
    let tally = loading.await.expect("the load");
    truth::all_jobs_end(&cluster.pool, PATIENCE).await;
    report(&format!(
        "the other ended all jobs {:?} after the first was frozen",
        since.elapsed()
    ));
    assert!(since.elapsed() > Duration::from_secs(10), "it held nothing, then");
    signal(&frozen, "-CONT").await;
    cluster.settles(&tally).await;

    let mut tally = tally;
    for _ in 0..rounds {
        let some = cluster.requests(&mut dice, book_id, 200);
        let loading = load(&client, some);
        tokio::time::sleep(dice.millis(150)).await;
        signal(&frozen, "-STOP").await;
        tokio::time::sleep(dice.millis(1_000)).await;
        signal(&frozen, "-CONT").await;
        tally.accepted.extend(loading.await.expect("the load").accepted);
    }
    cluster.settles(&tally).await;
    cluster.stop(vec![frozen, other, api]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarting_every_process_in_turn_fails_no_request() {
    let mut dice = Dice::new("rolling restart");
    let rounds = scale(3, 50);
    let cluster = Cluster::start(20_000).await;
    // Two of them behind a client that asks the other when one is going; each keeps its address.
    let listen = [0, 1].map(|_| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    });
    let environment = [
        ("COUPONBOOK_DATABASE_URL", cluster.url.as_str()),
        ("COUPONBOOK_TOKEN_SECRET", SECRET),
        ("COUPONBOOK_RATE_LIMITS", "off"),
        ("COUPONBOOK_LOG", "warn"),
    ];
    let start = async |index: usize| Process::start(&["api", "--listen", &listen[index]], &environment).await;
    let mut apis = vec![start(0).await, start(1).await];
    let mut workers = vec![
        Process::worker(&cluster.url).await,
        Process::worker(&cluster.url).await,
    ];
    let clients = [0, 1].map(|index| cluster.client(&apis[index].url()).with("Connection", "close"));
    let book_id = cluster.book(&clients[0], 5_000 * rounds).await;

    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let mut pick = dice.fork();
    let users = cluster.users.clone();
    let loading = tokio::spawn(async move {
        let mut requests = Vec::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stopped.wait_for(|stop| *stop) => break,
            }
            let body = json!({ "book_id": book_id, "user_id": users[pick.below(users.len())] });
            requests.push(tokio::spawn(ask_either(clients.clone(), requests.len(), body)));
        }
        let mut tally = Tally::default();
        let mut failed = Vec::new();
        for request in requests {
            let (accepted, told, refused) = request.await.expect("a request");
            tally.unavailable += told;
            tally.unanswered += refused;
            match accepted {
                Ok(job_id) => tally.accepted.push(job_id),
                Err(why) => failed.push(why),
            }
        }
        (tally, failed)
    });
    for _ in 0..rounds {
        tokio::time::sleep(dice.millis(500)).await;
        for index in 0..2 {
            let since = Instant::now();
            assert_eq!(apis.remove(0).terminate().await.code(), Some(0));
            assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
            apis.push(start(index).await);
            let since = Instant::now();
            assert_eq!(workers.remove(0).terminate().await.code(), Some(0));
            assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
            workers.push(Process::worker(&cluster.url).await);
        }
    }
    stop.send_replace(true);
    let (tally, failed) = loading.await.expect("the load");
    assert!(failed.is_empty(), "{failed:#?}");
    cluster.settles(&tally).await;
    let charged: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE attempts > 0")
        .fetch_one(&cluster.pool)
        .await
        .unwrap();
    assert_eq!(charged, 0, "an end in good order is no crash");
    workers.extend(apis);
    cluster.stop(workers).await;
}

/// Asks one process and, while that takes no connections or says 503, the other, with one key. The job, or what no client
/// may see; and how often it was told to come back or met a closed door.
async fn ask_either(clients: [Client; 2], first: usize, body: Value) -> (Result<Uuid, String>, usize, usize) {
    let key = Uuid::now_v7().to_string();
    let (mut told, mut refused) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    for client in clients.iter().cycle().skip(first % 2) {
        let keyed = client.with("Idempotency-Key", &key);
        let request = keyed
            .request(reqwest::Method::POST, "/v1/coupons/assign")
            .json(&body);
        match keyed.try_send(request).await {
            Ok(answer) if answer.status == 202 => return (Ok(id(&answer.body)), told, refused),
            Ok(answer) if answer.status == 503 => told += 1,
            Err(error) if error.is_connect() => refused += 1,
            Ok(answer) => return (Err(format!("{} {}", answer.status, answer.body)), told, refused),
            Err(error) => return (Err(format!("{error:?}")), told, refused),
        }
        if Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (Err("neither has accepted it".to_owned()), told, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_comes_to_the_same_end() {
    let mut dice = Dice::new("killed import");
    let lines = scale(50_000, 1_000_000);
    let cluster = Cluster::start(1).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let mut csv = "code,expires_at,max_redemptions\n".to_owned();
    for line in 0..lines {
        csv.push_str(&match dice.below(100) {
            0 => format!("CODE-{:07},,\n", dice.below(line + 1)), // perhaps a second time
            1 => ",,1\n".to_owned(),
            2 => format!("CODE-{line:07},tomorrow,\n"),
            3 => format!("{},,\n", "X".repeat(101)),
            4 => format!("CODE-{line:07},,0\n"),
            5 => format!("\"CODE-{line:07}\",2099-01-01T00:00:00Z,3\n"),
            _ => format!("CODE-{line:07},,\n"),
        });
    }
    let mut worker = Process::worker(&cluster.url).await;
    let mut jobs = Vec::new();
    let mut books = Vec::new();
    for killed in [false, true] {
        let book_id = client.book(json!({})).await;
        books.push(book_id);
        let mut holder = cluster.pool.acquire().await.unwrap();
        if killed {
            sqlx::raw_sql("BEGIN").execute(&mut *holder).await.unwrap();
            sqlx::query("SELECT FROM draw_states WHERE book_id = $1 FOR UPDATE")
                .bind(book_id)
                .execute(&mut *holder)
                .await
                .unwrap();
        }
        let job = client
            .post_csv(&format!("/v1/books/{book_id}/codes/import"), csv.clone())
            .await;
        let job_id = id(&job.expect(202));
        if killed {
            // Once in the middle of a step, which waits for the draw that is held here ...
            truth::until(
                &cluster.pool,
                "a step waits",
                "SELECT EXISTS (SELECT FROM pg_stat_activity
                     WHERE application_name LIKE 'couponbook-worker%' AND wait_event_type = 'Lock')",
            )
            .await;
            worker.kill().await;
            sqlx::raw_sql("ROLLBACK").execute(&mut *holder).await.unwrap();
            worker = Process::worker(&cluster.url).await;
            // ... and once at a random moment between or in later ones.
            let done = || async {
                sqlx::query_scalar::<_, i64>("SELECT progress_done FROM jobs WHERE id = $1")
                    .bind(job_id)
                    .fetch_one(&cluster.pool)
                    .await
                    .unwrap()
            };
            truth::eventually("a step", PATIENCE, done, |done| *done > 0).await;
            tokio::time::sleep(dice.millis(300)).await;
            worker.kill().await;
            worker = Process::worker(&cluster.url).await;
        }
        drop(holder);
        jobs.push(client.job_end(&job_id.to_string()).await);
    }
    assert_eq!(jobs[0]["state"], "partially_succeeded", "{}", jobs[0]);
    for field in ["state", "result", "counts"] {
        assert_eq!(jobs[0][field], jobs[1][field], "{field}");
    }
    assert_eq!(jobs[0]["progress"]["done"], jobs[1]["progress"]["done"]);
    assert!(
        jobs[1]["attempts"].as_i64() >= Some(1),
        "it was killed in a step: {}",
        jobs[1]
    );
    let (rows, errors): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM (
                     SELECT code_key, code, state, expires_at, redemptions_allowed, metadata FROM coupons WHERE book_id = $1) a
                 FULL JOIN (
                     SELECT code_key, code, state, expires_at, redemptions_allowed, metadata FROM coupons WHERE book_id = $2) b
                 USING (code_key) WHERE to_jsonb(a) IS DISTINCT FROM to_jsonb(b)),
                (SELECT count(*) FROM (SELECT seq, entry, original FROM job_errors WHERE job_id = $3) a
                 FULL JOIN (SELECT seq, entry, original FROM job_errors WHERE job_id = $4) b
                 USING (seq) WHERE to_jsonb(a) IS DISTINCT FROM to_jsonb(b))",
    )
    .bind(books[0])
    .bind(books[1])
    .bind(id(&jobs[0]))
    .bind(id(&jobs[1]))
    .fetch_one(&cluster.pool)
    .await
    .unwrap();
    assert_eq!((rows, errors), (0, 0), "rows and lines of the report that differ");
    truth::all_jobs_end(&cluster.pool, PATIENCE).await;
    truth::holds(&cluster.pool).await;
    cluster.stop(vec![worker, api]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_takes_its_process_down_each_time_is_given_up_and_the_others_succeed() {
    let cluster = Cluster::start(50).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let mut worker = Process::worker(&cluster.url).await;
    let book_id = cluster.book(&client, 100).await;
    worker.terminate().await;
    sqlx::raw_sql(POISON).execute(&cluster.pool).await.unwrap();
    let mut jobs = Vec::new();
    for user_id in &cluster.users {
        let body = json!({ "book_id": book_id, "user_id": user_id });
        jobs.push(id(&client.post("/v1/coupons/assign", body).await.expect(202)));
    }
    let poison = jobs[10];
    sqlx::query("INSERT INTO poison (job_id, how) VALUES ($1, 'wait')")
        .bind(poison)
        .execute(&cluster.pool)
        .await
        .unwrap();
    // Whoever runs it waits here, and is killed.
    let mut barrier = cluster.pool.acquire().await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(7)")
        .execute(&mut *barrier)
        .await
        .unwrap();
    worker = Process::worker(&cluster.url).await;
    let mut seen: Vec<i32> = Vec::new();
    let mut kills = 0;
    let ended = loop {
        let known = seen.clone();
        let look = || async {
            sqlx::query("UPDATE apalis.jobs SET run_at = now() WHERE run_at > now() AND attempts > 0")
                .execute(&cluster.pool)
                .await
                .unwrap();
            sqlx::query_as::<_, (bool, Option<i32>)>(
                "SELECT finished_at IS NOT NULL,
                        (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted
                             AND NOT pid = ANY($2) LIMIT 1)
                 FROM jobs WHERE id = $1",
            )
            .bind(poison)
            .bind(&known)
            .fetch_one(&cluster.pool)
            .await
            .unwrap()
        };
        let (ended, waiting) = truth::eventually("it runs or has ended", PATIENCE, look, |(ended, pid)| {
            *ended || pid.is_some()
        })
        .await;
        if ended {
            break Instant::now();
        }
        seen.extend(waiting);
        worker.kill().await;
        kills += 1;
        assert!(kills <= 6, "attempts are bounded");
        worker = Process::worker(&cluster.url).await;
    };
    truth::all_jobs_end(&cluster.pool, PATIENCE).await;
    assert!(
        ended.elapsed() < Duration::from_secs(10),
        "the others did not wait for it"
    );
    for job_id in jobs {
        let job = client.get(&format!("/v1/jobs/{job_id}")).await.expect(200);
        if job_id == poison {
            assert_eq!(
                (&job["error"]["code"], &job["attempts"]),
                (&json!("attempts_exhausted"), &json!(6)),
                "{job}"
            );
        } else {
            assert_eq!(job["state"], "succeeded", "{job}");
        }
    }
    truth::holds(&cluster.pool).await;
    drop(barrier);
    cluster.stop(vec![worker, api]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_and_go_leave_no_job_behind_and_no_transaction_open() {
    let mut dice = Dice::new("start, load, stop");
    let rounds = scale(20, 200);
    let cluster = Cluster::start(2_000).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let first = Process::worker(&cluster.url).await;
    let book_id = cluster.book(&client, rounds * 50).await;
    assert_eq!(first.terminate().await.code(), Some(0));
    for round in 0..rounds {
        let (one, two) = tokio::join!(Process::worker(&cluster.url), Process::worker(&cluster.url));
        let users = &cluster.users;
        let some: Vec<_> = (0..50)
            .map(|_| draw(book_id, users[dice.below(users.len())], 1))
            .collect();
        let mut connection = cluster.pool.acquire().await.unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
        enqueue_all(&mut connection, book_id, &some).await;
        sqlx::raw_sql("COMMIT").execute(&mut *connection).await.unwrap();
        drop(connection);
        tokio::time::sleep(dice.millis(300)).await;
        for worker in [one, two] {
            if dice.below(3) == 0 {
                worker.kill().await;
            } else {
                assert_eq!(worker.terminate().await.code(), Some(0), "round {round}");
            }
        }
    }
    let gone = || async {
        sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM pg_stat_activity
             WHERE (application_name LIKE 'couponbook-worker%' OR application_name = 'couponbook-signals') AND state <> 'idle'",
        )
        .fetch_one(&cluster.pool)
        .await
        .unwrap()
    };
    truth::eventually(
        "no transaction of a worker is open",
        Duration::from_secs(15),
        gone,
        |open| *open == 0,
    )
    .await;
    let last = Process::worker(&cluster.url).await;
    truth::all_jobs_end(&cluster.pool, PATIENCE).await;
    truth::holds(&cluster.pool).await;
    assert_eq!(cluster.finished().await, (rounds * 50) as i64);
    cluster.stop(vec![last, api]).await;
}
