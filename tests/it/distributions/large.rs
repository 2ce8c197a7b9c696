//! Large distributions: planned in bounded memory, and run and undone to the coupon while workers are killed.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use coupon_core::{
    caller::Scope,
    db::{self, Db},
};
use coupon_tests::{Client, fresh, process::Process, seed, size};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{held, holds, stock};
use crate::{
    crash::Cluster,
    pools::seeded_pool,
    truth::{self, Dice, report},
};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a plan may take of memory beside what the process has anyway, in MiB.
const PLANNING: f64 = 64.0;

/// Coupons of each person.
const EACH: i64 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_large_pool_is_planned_in_bounded_memory() {
    let (database, db) = fresh().await;
    let people = size(60_000, 1_000_000);
    let users = seed::users(&db, people).await;
    let key = seed::key(&db, &[Scope::Manage]).await;
    let (api, worker) = (
        Process::api(database.url()).await,
        Process::worker(database.url()).await,
    );
    let admin = Client::new(&api.url()).key(&key);
    let book_id = admin.book(json!({})).await;
    stock(&db, book_id, 1_000).await;
    let pool_id = seeded_pool(&db, &users).await;
    let few = seeded_pool(&db, &users[..10]).await;
    sqlx::raw_sql("ANALYZE users; ANALYZE pool_members; ANALYZE coupons")
        .execute(db.pool())
        .await
        .unwrap();
    let body = |pool_id: Uuid, members: Value| {
        let mut body = json!({ "book_id": book_id, "pool_id": pool_id, "on_shortage": "partial" });
        body.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        body
    };
    let random = json!({ "mode": "random", "total": people });
    for members in [
        json!({ "mode": "equal", "per_user": 1 }),
        json!({ "mode": "top_up", "per_user": 3 }),
        random.clone(),
    ] {
        let dry = "/v1/distributions?dry_run=true";
        admin.post(dry, body(few, members.clone())).await.expect(200);
        let (began, idle) = (Instant::now(), resident(&api));
        let plan = admin.post(dry, body(pool_id, members.clone())).await.expect(200);
        assert_eq!(plan["codes_free"], 1_000);
        assert_eq!(
            plan["shortfall"].as_i64().unwrap() + 1_000,
            plan["codes_needed"].as_i64().unwrap()
        );
        let more = peak(&api) - idle;
        report(&format!(
            "a dry run of {people} people, {members}: {:?}, {more:.0} MiB over idle",
            began.elapsed()
        ));
        assert!(more <= PLANNING, "{more} MiB over idle for {members}");
    }
    // A run plans by the same SQL, in steps; in mode random it draws for everybody at once.
    let (began, idle) = (Instant::now(), resident(&worker));
    let job = admin
        .post("/v1/distributions", body(pool_id, random))
        .await
        .expect(202);
    let job = admin.job_end_within(job["id"].as_str().unwrap(), PATIENCE).await;
    assert_eq!(
        (&job["state"], &job["result"]["assigned"]),
        (&json!("partially_succeeded"), &json!(1_000))
    );
    let more = peak(&worker) - idle;
    report(&format!(
        "a run of 1,000 coupons over {people} people: {:?}, {more:.0} MiB over idle",
        began.elapsed()
    ));
    assert!(more <= PLANNING, "{more} MiB over idle");
    for process in [api, worker] {
        assert_eq!(process.terminate().await.code(), Some(0));
    }
}

/// MiB now, where the system tells.
fn resident(process: &Process) -> f64 {
    process.memory().map_or(0.0, |memory| memory.resident)
}

/// MiB at most so far.
fn peak(process: &Process) -> f64 {
    process.memory().map_or(0.0, |memory| memory.peak)
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_while_everybody_gets_the_same_and_while_it_is_undone_double_nothing() {
    let people = size(6_000, 50_000);
    Killed::run(
        "equal",
        json!({ "mode": "equal", "per_user": EACH }),
        people,
        size(3, 5),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_while_coupons_are_drawn_for_people_and_while_that_is_undone_double_nothing() {
    let people = size(4_000, 50_000);
    let random = json!({ "mode": "random", "total": people as i64 * EACH, "max_per_user": EACH });
    Killed::run("random", random, people, size(2, 5)).await;
}

/// A distribution of [`EACH`] coupons to each of many people, its run and its undoing each killed a few times.
struct Killed {
    cluster: Cluster,
    client: Client,
    db: Db,
    book_id: Uuid,
    worker: Option<Process>,
    dice: Dice,
    kills: usize,
}

impl Killed {
    async fn run(name: &str, members: Value, people: usize, kills: usize) {
        let dice = Dice::new(&format!("kill -9 during a distribution, mode {name}"));
        let coupons = people as i64 * EACH;
        let cluster = Cluster::start(people).await;
        let api = Process::api(&cluster.url).await;
        let client = cluster.client(&api.url());
        let db = Db::connect(&cluster.url, db::Role::Worker, 2).unwrap();
        let book_id = client
            .book(json!({ "max_assignments_per_user": EACH, "require_lock": false, "lock_seconds": 86_400 }))
            .await;
        let spare = 100;
        stock(&db, book_id, usize::try_from(coupons).unwrap() + spare).await;
        let pool_id = seeded_pool(&db, &cluster.users).await;
        let worker = Some(Process::worker(&cluster.url).await);
        let mut it = Self {
            cluster,
            client,
            db,
            book_id,
            worker,
            dice,
            kills,
        };

        let mut body = json!({ "book_id": book_id, "pool_id": pool_id });
        body.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        let job = it.client.post("/v1/distributions", body).await.expect(202);
        // Members while it is planned, coupons while it is given.
        let moved = "SELECT coalesce(max(members + assigned), 0)::bigint FROM distributions";
        let job = it.killed(&job, moved, people as i64 + coupons).await;
        assert_eq!(
            (
                &job["state"],
                &job["result"]["assigned"],
                &job["result"]["recipients"]
            ),
            (&json!("succeeded"), &json!(coupons), &json!(people)),
            "{job}"
        );
        holds(&it.db, book_id).await;
        let after_run = held(&it.db, book_id).await;
        assert_eq!(after_run.len(), people, "nobody is missed");
        assert!(
            after_run.values().all(|count| *count == EACH),
            "nobody has two shares"
        );

        let stay = it.use_some(20).await;
        let path = format!(
            "/v1/distributions/{}/undo",
            job["result"]["distribution_id"].as_str().unwrap()
        );
        let job = it.client.post(&path, json!({})).await.expect(202);
        let moved = "SELECT coalesce(max(undone), 0)::bigint FROM distributions";
        let job = it.killed(&job, moved, coupons).await;
        assert_eq!(job["state"], "partially_succeeded", "{job}");
        assert_eq!(
            (
                &job["result"]["undone"],
                &job["result"]["kept"],
                &job["result"]["reasons"]
            ),
            (
                &json!(coupons - 40),
                &json!(40),
                &json!({ "locked": 20, "use_spent": 20 })
            )
        );
        holds(&it.db, book_id).await;
        assert_eq!(
            held(&it.db, book_id).await,
            stay,
            "what was locked or redeemed, and nothing else"
        );
        it.db.close().await;
        it.cluster
            .stop(std::iter::once(api).chain(it.worker).collect())
            .await;
    }

    /// Waits for the end of a job whose worker is killed at random moments on the way; gives the job.
    async fn killed(&mut self, job: &Value, moved: &'static str, way: i64) -> Value {
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        let mut at_work = 0;
        for kill in 0..self.kills {
            let part = usize::try_from(way).unwrap() / self.kills;
            // Not in the very last steps, which may be over before the kill.
            let aim = (kill * part + self.dice.below(part * 9 / 10)) as i64;
            let pool = self.db.pool().clone();
            let look = || async {
                sqlx::query_scalar::<_, i64>(moved)
                    .fetch_one(&pool)
                    .await
                    .unwrap()
            };
            truth::eventually("progress", PATIENCE, look, |done| *done >= aim).await;
            tokio::time::sleep(self.dice.millis(120)).await;
            if let Some(worker) = self.worker.take() {
                worker.kill().await;
            }
            let job = self.client.get(&path).await.expect(200);
            at_work += usize::from(job["finished_at"].is_null());
            self.worker = Some(Process::worker(&self.cluster.url).await);
        }
        report(&format!("{at_work} of {} kills met the job at work", self.kills));
        assert!(at_work > 0, "every kill came after the end");
        self.client
            .job_end_within(job["id"].as_str().unwrap(), PATIENCE)
            .await
    }

    /// Locks so many coupons and redeems as many others; gives how many of them each holder has.
    async fn use_some(&mut self, count: usize) -> HashMap<Uuid, i64> {
        let coupons: Vec<(String, Uuid)> = sqlx::query_as(
            "SELECT code_key, assigned_user_id FROM coupons WHERE book_id = $1 AND state = 'assigned'
             ORDER BY md5(code_key) LIMIT $2",
        )
        .bind(self.book_id)
        .bind(i64::try_from(count * 2).unwrap())
        .fetch_all(self.db.pool())
        .await
        .unwrap();
        let mut used = HashMap::new();
        for (n, (code, user_id)) in coupons.into_iter().enumerate() {
            let action = if n % 2 == 0 { "lock" } else { "redeem" };
            let body = json!({ "book_id": self.book_id });
            self.client
                .post(&format!("/v1/coupons/{action}/{code}"), body)
                .await
                .expect(200);
            *used.entry(user_id).or_default() += 1;
        }
        used
    }
}
