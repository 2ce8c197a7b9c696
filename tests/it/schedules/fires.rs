//! Fires: each once, whoever is killed; missed and overlapping ones by their rules; what they start, and when they end.

use std::time::Duration;

use chrono::Timelike;
use coupon_core::{caller::Scope, db::Db};
use coupon_pg::testing::TestDatabase;
use coupon_tests::{Client, fresh, process::Process, seed};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{FAR, Scene, dealt_with, distributions, due, outcomes};
use crate::{distributions::stock, pools::seeded_pool, truth::until};

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
    let scene = Apart::new(2, 400).await;
    let (pool, admin) = (scene.db.pool(), &scene.admin);
    let (book_id, pool_id) = (scene.book_id, scene.pool_id);
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
        Process::worker(scene.database.url()),
        Process::worker(scene.database.url()),
        Process::worker(scene.database.url())
    );
    until(pool, "some have fired", "SELECT count(*) > 6 FROM schedule_fires").await;
    workers.1.kill().await;
    let again = Process::worker(scene.database.url()).await;
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
    for process in [workers.0, workers.2, again, scene.api] {
        assert_eq!(process.terminate().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_while_every_worker_was_down_happens_once_when_three_come_back() {
    let scene = Apart::new(2, 40).await;
    let (pool, admin) = (scene.db.pool(), &scene.admin);
    // Every minute, but none of this hour and the next, so that none comes while this is looked at.
    let this_hour = chrono::Utc::now().hour();
    let hours: Vec<String> = (2..24)
        .map(|later| ((this_hour + later) % 24).to_string())
        .collect();
    let cron = format!("* {} * * *", hours.join(","));
    let body = json!({ "name": "S", "kind": "distribution", "cron": cron, "missed": "run_once",
        "distribution": { "book_id": scene.book_id, "pool_id": scene.pool_id, "mode": "equal", "per_user": 1 } });
    let made = admin.post("/v1/schedules", body).await.expect(201);
    let schedule_id: Uuid = made["id"].as_str().unwrap().parse().unwrap();
    let worker = Process::worker(scene.database.url()).await;
    due(pool, schedule_id, 5).await;
    dealt_with(pool, schedule_id).await;
    let ended = "SELECT NOT EXISTS (SELECT FROM jobs WHERE finished_at IS NULL)";
    until(pool, "the job of its fire has ended", ended).await;
    worker.kill().await;
    assert_eq!(outcomes(pool, schedule_id).await, ["started"]);
    // Down for ten hours: hundreds of fires.
    due(pool, schedule_id, 36_000).await;
    let workers = tokio::join!(
        Process::worker(scene.database.url()),
        Process::worker(scene.database.url()),
        Process::worker(scene.database.url())
    );
    dealt_with(pool, schedule_id).await;
    until(pool, "every job has ended", ended).await;
    assert_eq!(
        outcomes(pool, schedule_id).await,
        ["started", "started"],
        "one for all that were missed"
    );
    assert_eq!(distributions(pool, schedule_id).await, 2);
    for process in [workers.0, workers.1, workers.2, scene.api] {
        assert_eq!(process.terminate().await.code(), Some(0));
    }
}

/// A book with coupons and a pool with people, served by processes of their own; no worker yet.
struct Apart {
    database: TestDatabase,
    db: Db,
    api: Process,
    admin: Client,
    book_id: Uuid,
    pool_id: Uuid,
}

impl Apart {
    async fn new(people: usize, coupons: usize) -> Self {
        let (database, db) = fresh().await;
        let api = Process::api(database.url()).await;
        let admin = Client::new(&api.url()).key(&seed::key(&db, &[Scope::Manage]).await);
        let users = seed::users(&db, people).await;
        let book_id = admin.book(json!({})).await;
        stock(&db, book_id, coupons).await;
        let pool_id = seeded_pool(&db, &users).await;
        Self {
            database,
            db,
            api,
            admin,
            book_id,
            pool_id,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_happens_once_or_not_at_all() {
    let mut scene = Scene::new(2, 40).await;
    let minute = (chrono::Utc::now().minute() + 30) % 60; // half an hour from here
    let hourly = format!("{minute} * * * *");
    let once = scene
        .schedule(json!({ "cron": hourly, "missed": "run_once" }))
        .await;
    let skipped = scene.schedule(json!({ "cron": hourly })).await;
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
        next["next_fire_at"]
            .as_str()
            .unwrap()
            .contains(&format!(":{minute:02}:00")),
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
