//! Schedules: each fire once, whoever is killed; missed and overlapping fires by their rules; pause, ends, refusals.
//!
//! Time is moved by setting `next_fire_at` back, which is what a service that was down for a while finds.

use std::time::Duration;

use coupon_tests::{Client, Service, fresh, process::Process, seed};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    distributions::stock,
    pools::seeded_pool,
    truth::{eventually, until},
};

/// A time far from now, so that no test meets it.
const FAR: &str = "0 3 29 2 *";

/// A book with coupons, and a pool with people.
struct Scene {
    service: Service,
    admin: Client,
    book_id: Uuid,
    pool_id: Uuid,
}

impl Scene {
    async fn new(people: usize, coupons: usize) -> Self {
        let service = Service::without_workers().await;
        let admin = service.admin().await;
        let users = seed::users(&service.db, people).await;
        let book_id = admin.book(json!({})).await;
        stock(&service.db, book_id, coupons).await;
        let pool_id = seeded_pool(&service.db, &users).await;
        Self {
            service,
            admin,
            book_id,
            pool_id,
        }
    }

    fn body(&self, members: Value) -> Value {
        let mut body = json!({
            "name": "A schedule", "kind": "distribution",
            "distribution": { "book_id": self.book_id, "pool_id": self.pool_id, "mode": "equal", "per_user": 1 },
        });
        body.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        body
    }

    async fn schedule(&self, members: Value) -> Uuid {
        let schedule = self
            .admin
            .post("/v1/schedules", self.body(members))
            .await
            .expect(201);
        schedule["id"].as_str().unwrap().parse().unwrap()
    }

    async fn read(&self, schedule_id: Uuid) -> Value {
        self.admin
            .get(&format!("/v1/schedules/{schedule_id}"))
            .await
            .expect(200)
    }

    fn pool(&self) -> &PgPool {
        self.service.db.pool()
    }

    async fn patch(&self, schedule_id: Uuid, body: Value) -> Value {
        self.admin
            .patch(&format!("/v1/schedules/{schedule_id}"), body)
            .await
            .expect(200)
    }
}

/// Makes a schedule due so many seconds ago.
async fn due(pool: &PgPool, schedule_id: Uuid, seconds_ago: i32) {
    let set =
        sqlx::query("UPDATE schedules SET next_fire_at = now() - make_interval(secs => $2) WHERE id = $1")
            .bind(schedule_id)
            .bind(f64::from(seconds_ago))
            .execute(pool)
            .await
            .unwrap();
    assert_eq!(set.rows_affected(), 1);
}

/// Waits until nothing of a schedule is due any more.
async fn dealt_with(pool: &PgPool, schedule_id: Uuid) {
    let look = || async {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM schedules WHERE id = $1 AND next_fire_at <= now()")
            .bind(schedule_id)
            .fetch_one(pool)
            .await
            .unwrap()
    };
    eventually("nothing is due", Duration::from_secs(30), look, |due| *due == 0).await;
}

/// How the fires of a schedule came out, oldest first.
async fn outcomes(pool: &PgPool, schedule_id: Uuid) -> Vec<String> {
    sqlx::query_scalar("SELECT outcome FROM schedule_fires WHERE schedule_id = $1 ORDER BY fire_at")
        .bind(schedule_id)
        .fetch_all(pool)
        .await
        .unwrap()
}

async fn distributions(pool: &PgPool, schedule_id: Uuid) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM distributions WHERE schedule_id = $1")
        .bind(schedule_id)
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_at_one_time_fires_once_and_is_over() {
    let mut scene = Scene::new(3, 10).await;
    let soon = chrono::Utc::now() + chrono::TimeDelta::seconds(2);
    let schedule_id = scene.schedule(json!({ "run_at": soon })).await;
    assert!(scene.read(schedule_id).await["next_fire_at"].is_string());
    scene.service.start_workers();
    until(
        scene.pool(),
        "it gave",
        "SELECT count(*) = 3 FROM coupons WHERE state = 'assigned'",
    )
    .await;
    let schedule = scene.read(schedule_id).await;
    assert_eq!(schedule["next_fire_at"], Value::Null);
    assert_eq!(schedule["last_fire"]["outcome"], "started");
    assert_eq!(schedule["last_fire"]["fire_at"], schedule["run_at"]);
    let job = scene
        .admin
        .job_end(schedule["last_fire"]["job_id"].as_str().unwrap())
        .await;
    assert_eq!(
        (&job["kind"], &job["state"]),
        (&json!("distribute"), &json!("succeeded"))
    );
    let distribution = format!(
        "/v1/distributions/{}",
        job["result"]["distribution_id"].as_str().unwrap()
    );
    let distribution = scene.admin.get(&distribution).await.expect(200);
    assert_eq!(distribution["schedule_id"], json!(schedule_id));
    assert_eq!(
        scene
            .admin
            .get(&format!("/v1/schedules/{schedule_id}/next"))
            .await
            .expect(200)["data"],
        json!([])
    );
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fire_happens_once_with_three_workers_of_which_one_is_killed_and_comes_back() {
    let (database, db) = fresh().await;
    let pool = db.pool();
    let api = Process::api(database.url()).await;
    let service_user = seed::user(&db, coupon_core::caller::Role::Admin).await;
    let keys = coupon_core::user::token::TokenKeys::new(coupon_tests::SECRET.as_bytes()).unwrap();
    let mut tx = db.begin().await.unwrap();
    let session = coupon_core::user::session::open(&mut tx, &keys, service_user, None)
        .await
        .unwrap()
        .unwrap();
    coupon_core::db::commit(tx).await.unwrap();
    let admin = Client::new(&api.url()).bearer(&session.access_token);
    let users = seed::users(&db, 2).await;
    let book_id = admin.book(json!({})).await;
    stock(&db, book_id, 400).await;
    let pool_id = seeded_pool(&db, &users).await;
    // Every minute; those of the last minutes were noticed in time and waited, so each of them is to happen.
    let mut schedules: Vec<Uuid> = Vec::new();
    for _ in 0..4 {
        let body = json!({ "name": "S", "kind": "distribution", "cron": "* * * * *", "overlap": "queue",
            "distribution": { "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1 } });
        let made = admin.post("/v1/schedules", body).await.expect(201);
        schedules.push(made["id"].as_str().unwrap().parse().unwrap());
    }
    let expected: i64 = sqlx::query_scalar(
        "WITH moved AS (
             UPDATE schedules SET next_fire_at = date_trunc('minute', now()) - interval '7 minutes', noticed_at = now()
             RETURNING 1)
         SELECT 8 * count(*) FROM moved",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    let workers = tokio::join!(
        Process::worker(database.url()),
        Process::worker(database.url()),
        Process::worker(database.url())
    );
    until(pool, "some have fired", "SELECT count(*) > 6 FROM schedule_fires").await;
    workers.1.kill().await;
    let again = Process::worker(database.url()).await;
    until(
        pool,
        "nothing is due and every job has ended",
        "SELECT NOT EXISTS (SELECT FROM schedules WHERE next_fire_at <= now())
            AND NOT EXISTS (SELECT FROM jobs WHERE finished_at IS NULL)",
    )
    .await;
    let fires: i64 = sqlx::query_scalar("SELECT count(*) FROM schedule_fires WHERE outcome = 'started'")
        .fetch_one(pool)
        .await
        .unwrap();
    // A minute may have passed meanwhile.
    assert!(
        (expected..=expected + 8).contains(&fires),
        "{fires} fires, not {expected}"
    );
    let (given, distributions, jobs, wrong): (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM coupons WHERE state = 'assigned'), (SELECT count(*) FROM distributions),
                (SELECT count(*) FROM jobs WHERE kind = 'distribute' AND state = 'succeeded'),
                (SELECT count(*) FROM schedule_fires WHERE outcome <> 'started' OR fire_at <> date_trunc('minute', fire_at))",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!((given, distributions, jobs, wrong), (2 * fires, fires, fires, 0));
    for worker in [workers.0, workers.2, again] {
        assert_eq!(worker.terminate().await.code(), Some(0));
    }
    assert_eq!(api.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_happens_once_or_not_at_all() {
    let mut scene = Scene::new(2, 40).await;
    let hourly = json!({ "cron": "30 * * * *", "missed": "run_once" });
    let once = scene.schedule(hourly).await;
    let skipped = scene.schedule(json!({ "cron": "30 * * * *" })).await;
    let in_time = scene.schedule(json!({ "cron": FAR })).await;
    let at_one_time = scene
        .schedule(json!({ "run_at": chrono::Utc::now() + chrono::TimeDelta::days(1), "missed": "run_once" }))
        .await;
    let ended = scene
        .schedule(json!({ "cron": FAR, "missed": "run_once", "ends_at": chrono::Utc::now() + chrono::TimeDelta::days(4000) }))
        .await;
    for schedule_id in [once, skipped, at_one_time, ended] {
        due(scene.pool(), schedule_id, 36_000).await;
    }
    due(scene.pool(), in_time, 20).await;
    sqlx::query("UPDATE schedules SET ends_at = now() - interval '1 hour' WHERE id = $1")
        .bind(ended)
        .execute(scene.pool())
        .await
        .unwrap();
    scene.service.start_workers();
    for schedule_id in [once, skipped, in_time, at_one_time, ended] {
        dealt_with(scene.pool(), schedule_id).await;
    }
    assert_eq!(outcomes(scene.pool(), once).await, ["started"]);
    assert_eq!(outcomes(scene.pool(), in_time).await, ["started"]);
    assert_eq!(outcomes(scene.pool(), at_one_time).await, ["started"]);
    assert_eq!(
        outcomes(scene.pool(), ended).await,
        ["missed"],
        "its end had come"
    );
    assert_eq!(outcomes(scene.pool(), skipped).await[0], "missed");
    let next = scene.read(once).await;
    assert!(
        next["next_fire_at"].as_str().unwrap().contains(":30:00"),
        "{next}"
    );
    for schedule_id in [at_one_time, ended] {
        assert_eq!(scene.read(schedule_id).await["next_fire_at"], Value::Null);
    }
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fire_beside_a_job_of_its_schedule_is_left_out_or_waits() {
    let mut scene = Scene::new(2, 40).await;
    let (skip, queue) = (
        scene.schedule(json!({ "cron": FAR })).await,
        scene.schedule(json!({ "cron": FAR, "overlap": "queue" })).await,
    );
    // A job of each that waits for a worker of its queue; only the system's runs.
    let mut jobs = Vec::new();
    for schedule_id in [skip, queue] {
        let job = scene
            .admin
            .post(&format!("/v1/schedules/{schedule_id}/run"), json!({}))
            .await
            .expect(202);
        jobs.push(job["id"].as_str().unwrap().to_owned());
        due(scene.pool(), schedule_id, 5).await;
    }
    let signals = coupon_core::job::signals::Signals::start(scene.service.database.url()).unwrap();
    let system = coupon_worker::Workers::start(
        scene.service.database.url(),
        &[coupon_core::job::Queue::System],
        &signals,
        coupon_core::retention::Retention::default(),
    )
    .unwrap();
    dealt_with(scene.pool(), skip).await;
    assert_eq!(outcomes(scene.pool(), skip).await, ["overlapped", "started"]);
    until(
        scene.pool(),
        "the waiting one was noticed",
        "SELECT EXISTS (SELECT FROM schedules WHERE noticed_at IS NOT NULL AND next_fire_at <= now())",
    )
    .await;
    assert_eq!(outcomes(scene.pool(), queue).await, ["started"]);
    // However long it has waited, it is not missed.
    sqlx::query("UPDATE schedules SET next_fire_at = now() - interval '3 hours' WHERE id = $1")
        .bind(queue)
        .execute(scene.pool())
        .await
        .unwrap();
    system.drain(Duration::from_secs(10)).await;
    scene.service.start_workers();
    dealt_with(scene.pool(), queue).await;
    assert_eq!(outcomes(scene.pool(), queue).await, ["started", "started"]);
    for job in jobs {
        assert_eq!(scene.admin.job_end(&job).await["state"], "succeeded");
    }
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_schedule_does_not_fire_and_goes_on_from_now() {
    let mut scene = Scene::new(2, 40).await;
    let schedule_id = scene
        .schedule(json!({ "cron": "0 9 * * *", "paused": true }))
        .await;
    let path = format!("/v1/schedules/{schedule_id}");
    assert_eq!(scene.read(schedule_id).await["next_fire_at"], Value::Null);
    let preview = scene.admin.get(&format!("{path}/next?n=3")).await.expect(200);
    assert_eq!(
        preview["data"].as_array().unwrap().len(),
        3,
        "what it would be: {preview}"
    );
    let going = scene.patch(schedule_id, json!({ "paused": false })).await;
    assert_eq!(going["next_fire_at"], preview["data"][0]);
    due(scene.pool(), schedule_id, 30).await;
    let paused = scene.patch(schedule_id, json!({ "paused": true })).await;
    assert_eq!(
        (&paused["paused"], &paused["next_fire_at"]),
        (&json!(true), &Value::Null)
    );
    scene.service.start_workers();
    let again = scene.patch(schedule_id, json!({ "paused": false })).await;
    assert_eq!(
        again["next_fire_at"], preview["data"][0],
        "what came due meanwhile does not happen"
    );
    assert_eq!(again["last_fire"], Value::Null);
    // By hand it can be started all the same, once for one key.
    scene.patch(schedule_id, json!({ "paused": true })).await;
    let keyed = scene.admin.with("Idempotency-Key", "now");
    let first = keyed.post(&format!("{path}/run"), json!({})).await.expect(202);
    let second = keyed.post(&format!("{path}/run"), json!({})).await;
    assert_eq!(second.body["id"], first["id"]);
    assert_eq!(
        scene.admin.job_end(first["id"].as_str().unwrap()).await["state"],
        "succeeded"
    );
    let last = scene.read(schedule_id).await["last_fire"].clone();
    assert_eq!((&last["by_hand"], &last["job_id"]), (&json!(true), &first["id"]));
    assert_eq!(distributions(scene.pool(), schedule_id).await, 1);
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_wants_the_version_that_was_read_and_reckons_the_next_fire_anew() {
    let scene = Scene::new(1, 1).await;
    let schedule_id = scene
        .schedule(json!({ "cron": "0 9 * * *", "time_zone": "Europe/Berlin" }))
        .await;
    let path = format!("/v1/schedules/{schedule_id}");
    let read = scene.admin.get(&path).await;
    let tag = read.header("etag").unwrap().to_owned();
    let tagged = scene.admin.with("If-Match", &tag);
    let renamed = tagged.patch(&path, json!({ "name": "Another" })).await;
    assert_ne!(renamed.header("etag"), Some(tag.as_str()));
    let renamed = renamed.expect(200);
    assert_eq!(
        (&renamed["name"], &renamed["next_fire_at"]),
        (&json!("Another"), &read.body["next_fire_at"])
    );
    tagged
        .patch(&path, json!({ "name": "A third" }))
        .await
        .refused(412, "stale");
    // A fire does not make a tag stale.
    let fresh = scene.admin.get(&path).await.header("etag").unwrap().to_owned();
    due(scene.pool(), schedule_id, 5).await;
    let utc = scene
        .admin
        .with("If-Match", &fresh)
        .patch(&path, json!({ "time_zone": "UTC" }))
        .await
        .expect(200);
    assert!(
        utc["next_fire_at"]
            .as_str()
            .unwrap()
            .ends_with("T09:00:00.000000Z"),
        "{utc}"
    );
    let run_at = chrono::Utc::now() + chrono::TimeDelta::hours(5);
    let once = scene.patch(schedule_id, json!({ "run_at": run_at })).await;
    assert_eq!(
        (&once["cron"], &once["next_fire_at"]),
        (&Value::Null, &once["run_at"])
    );
    let again = scene.patch(schedule_id, json!({ "cron": "0 9 * * *" })).await;
    assert_eq!(
        (&again["run_at"], &again["cron"]),
        (&Value::Null, &json!("0 9 * * *"))
    );
    let listed = scene.admin.get("/v1/schedules").await.expect(200);
    assert_eq!(listed["data"], json!([again]));
    scene.admin.delete(&path).await.expect(204);
    scene.admin.get(&path).await.refused(404, "not_found");
    scene.admin.delete(&path).await.refused(404, "not_found");
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_fires_follow_the_clock_of_the_zone() {
    let scene = Scene::new(1, 1).await;
    let schedule_id = scene
        .schedule(json!({ "cron": "30 2 * * *", "time_zone": "Europe/Berlin" }))
        .await;
    let next = async |from: &str, n: u32| {
        sqlx::query("UPDATE schedules SET next_fire_at = $2::timestamptz WHERE id = $1")
            .bind(schedule_id)
            .bind(from)
            .execute(scene.pool())
            .await
            .unwrap();
        let answer = scene
            .admin
            .get(&format!("/v1/schedules/{schedule_id}/next?n={n}"))
            .await;
        answer.expect(200)["data"].clone()
    };
    // 28 March 2027: 02:00 becomes 03:00. 31 October 2027: 03:00 becomes 02:00.
    assert_eq!(
        next("2027-03-27T01:30:00Z", 3).await,
        json!([
            "2027-03-27T01:30:00.000000Z",
            "2027-03-28T01:00:00.000000Z",
            "2027-03-29T00:30:00.000000Z"
        ])
    );
    assert_eq!(
        next("2027-10-30T00:30:00Z", 3).await,
        json!([
            "2027-10-30T00:30:00.000000Z",
            "2027-10-31T00:30:00.000000Z",
            "2027-11-01T01:30:00.000000Z"
        ])
    );
    let ten = scene
        .admin
        .get(&format!("/v1/schedules/{schedule_id}/next"))
        .await
        .expect(200);
    assert_eq!(ten["data"].as_array().unwrap().len(), 10);
    scene
        .patch(schedule_id, json!({ "ends_at": "2027-11-02T00:00:00Z" }))
        .await;
    assert_eq!(
        next("2027-10-31T00:30:00Z", 10).await.as_array().unwrap().len(),
        2,
        "it ends"
    );
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_ends_at_its_date_or_when_the_codes_run_out_and_outlives_a_refusal() {
    let mut scene = Scene::new(3, 4).await;
    let until_codes_end = scene.schedule(json!({ "cron": FAR })).await; // 3 of 4, then refused with 1 left, then none
    let paused_book = scene.admin.book(json!({ "status": "paused" })).await;
    stock(&scene.service.db, paused_book, 3).await;
    let refused = scene
        .schedule(json!({ "cron": FAR, "distribution": {
            "book_id": paused_book, "pool_id": scene.pool_id, "mode": "equal", "per_user": 1 } }))
        .await;
    let dated = scene
        .schedule(json!({ "cron": "* * * * *", "ends_at": chrono::Utc::now() + chrono::TimeDelta::days(1) }))
        .await;
    sqlx::query("UPDATE schedules SET next_fire_at = now() - interval '5 s', ends_at = now() - interval '4 s' WHERE id = $1")
        .bind(dated)
        .execute(scene.pool())
        .await
        .unwrap();
    sqlx::query("UPDATE schedules SET body = jsonb_set(body, '{book_id}', to_jsonb($2::text)) WHERE id = $1")
        .bind(dated)
        .bind(paused_book)
        .execute(scene.pool())
        .await
        .unwrap();
    scene.service.start_workers();
    let fire = async |schedule_id: Uuid| {
        due(scene.pool(), schedule_id, 3).await;
        dealt_with(scene.pool(), schedule_id).await;
        let schedule = scene.read(schedule_id).await;
        if let Some(job_id) = schedule["last_fire"]["job_id"].as_str() {
            scene.admin.job_end(job_id).await;
        }
        schedule
    };
    let schedule = fire(until_codes_end).await;
    assert_eq!(schedule["last_fire"]["outcome"], "started", "{schedule}");
    let schedule = fire(until_codes_end).await;
    assert_eq!(schedule["last_fire"]["error"]["code"], "shortage", "{schedule}");
    assert!(schedule["next_fire_at"].is_string(), "codes may come: {schedule}");
    let body = json!({ "distribution": { "book_id": scene.book_id, "pool_id": scene.pool_id, "mode": "equal", "per_user": 1, "on_shortage": "partial" } });
    scene.patch(until_codes_end, body).await;
    let schedule = fire(until_codes_end).await;
    assert_eq!(schedule["last_fire"]["outcome"], "started", "{schedule}");
    let schedule = fire(until_codes_end).await;
    assert_eq!(
        schedule["last_fire"]["error"]["code"], "book_exhausted",
        "{schedule}"
    );
    assert_eq!(schedule["next_fire_at"], Value::Null, "{schedule}");
    let path = format!("/v1/schedules/{until_codes_end}/run");
    scene
        .admin
        .post(&path, json!({}))
        .await
        .refused(409, "book_exhausted");
    assert_eq!(distributions(scene.pool(), until_codes_end).await, 2);

    let schedule = fire(refused).await;
    assert_eq!(schedule["last_fire"]["outcome"], "refused");
    assert_eq!(schedule["last_fire"]["error"]["code"], "book_not_active");
    assert!(schedule["next_fire_at"].is_string(), "{schedule}");
    dealt_with(scene.pool(), dated).await;
    let schedule = scene.read(dated).await;
    assert_eq!(schedule["next_fire_at"], Value::Null, "{schedule}");
    assert_eq!(outcomes(scene.pool(), dated).await.len(), 1);
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_schedule_is_refused() {
    let scene = Scene::new(1, 1).await;
    let post = async |members: Value| scene.admin.post("/v1/schedules", scene.body(members)).await;
    for cron in ["61 * * * *", "* * * *", "0 0 30 2 *", "@hourly", "0 0 * * * *"] {
        post(json!({ "cron": cron })).await.refused(422, "cron_invalid");
    }
    post(json!({ "cron": "0 9 * * *", "time_zone": "Mars/Olympus" }))
        .await
        .refused(422, "time_zone_unknown");
    post(json!({})).await.invalid("/run_at", "required");
    post(json!({ "cron": "0 9 * * *", "run_at": "2099-01-01T00:00:00Z" }))
        .await
        .invalid("/cron", "unexpected");
    post(json!({ "run_at": "2020-01-01T00:00:00Z" }))
        .await
        .invalid("/run_at", "out_of_range");
    post(json!({ "run_at": "2099-01-01T00:00:00Z", "ends_at": "2098-01-01T00:00:00Z" }))
        .await
        .invalid("/ends_at", "out_of_range");
    post(json!({ "cron": "0 9 * * *", "distribution": null }))
        .await
        .invalid("/distribution", "required");
    let mut body = scene.body(json!({ "cron": "0 9 * * *" }));
    body["distribution"]["total"] = json!(5);
    scene
        .admin
        .post("/v1/schedules", body.clone())
        .await
        .invalid("/distribution/total", "unexpected");
    body["distribution"].as_object_mut().unwrap().remove("total");
    body["distribution"]["seed"] = json!("again and again");
    scene
        .admin
        .post("/v1/schedules", body.clone())
        .await
        .invalid("/distribution/seed", "unexpected");
    body["distribution"].as_object_mut().unwrap().remove("seed");
    body["distribution"]["book_id"] = json!(Uuid::now_v7());
    scene
        .admin
        .post("/v1/schedules", body)
        .await
        .refused(404, "not_found");
    let listed = scene.admin.get("/v1/schedules").await.expect(200);
    assert_eq!(listed["data"], json!([]));
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_of_exports_makes_a_file() {
    let mut scene = Scene::new(1, 3).await;
    let body = json!({ "name": "Nightly", "kind": "export", "cron": FAR,
        "export": { "kind": "coupons", "book_id": scene.book_id, "state": "unassigned" } });
    let made = scene.admin.post("/v1/schedules", body.clone()).await.expect(201);
    assert_eq!(
        (&made["export"], &made["distribution"]),
        (&body["export"], &Value::Null)
    );
    let schedule_id: Uuid = made["id"].as_str().unwrap().parse().unwrap();
    due(scene.pool(), schedule_id, 5).await;
    scene.service.start_workers();
    dealt_with(scene.pool(), schedule_id).await;
    let fire = scene.read(schedule_id).await["last_fire"].clone();
    let job_id = fire["job_id"].as_str().unwrap();
    let job = scene.admin.job_end(job_id).await;
    assert_eq!(
        (&job["kind"], &job["state"]),
        (&json!("export"), &json!("succeeded"))
    );
    let file = scene
        .admin
        .get(&format!("/v1/exports/{job_id}/file"))
        .await
        .expect(200);
    assert_eq!(file.as_str().unwrap().lines().count(), 4);
    let mut both = body.clone();
    both["distribution"] = scene.body(json!({}))["distribution"].clone();
    scene
        .admin
        .post("/v1/schedules", both)
        .await
        .invalid("/distribution", "unexpected");
    let mut wrong = body;
    wrong["export"]["kind"] = json!("redemptions");
    scene
        .admin
        .post("/v1/schedules", wrong)
        .await
        .invalid("/export/state", "not_allowed");
    scene.service.stop().await;
}
