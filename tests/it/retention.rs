//! What is kept for a while is forgotten by the sweep and by nothing else: files and lists first, then the jobs' lines;
//! what has not ended, coupons and the audit trail stay.

use coupon_core::{
    db::{self, Db},
    job::{enqueue, payload::Payload},
    leftovers::sweep_leftovers,
    retention::Retention,
};
use coupon_tests::{Client, Service};
use serde_json::json;
use uuid::Uuid;

/// Makes the ends of jobs and of what they kept older by so many days.
async fn age(db: &Db, days: i32) {
    sqlx::query(
        "UPDATE jobs SET finished_at = finished_at - make_interval(days => $1),
                expired_at = expired_at - make_interval(days => $1)",
    )
    .bind(days)
    .execute(db.pool())
    .await
    .unwrap();
}

/// Sweeps until nothing is left to forget.
async fn sweep(db: &Db, keep: Retention) {
    for _ in 0..100 {
        let mut tx = db.begin().await.unwrap();
        let more = sweep_leftovers(&mut tx, &keep).await.unwrap();
        db::commit(tx).await.unwrap();
        if !more {
            return;
        }
    }
    panic!("the sweep does not end");
}

async fn count(db: &Db, table: &'static str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
        .fetch_one(db.pool())
        .await
        .unwrap()
}

struct Scene {
    service: Service,
    admin: Client,
    import: String,
    export: String,
    assign: String,
}

impl Scene {
    /// An import with a bad line, an export and an assignment that have ended, all made `days` ago by their ids.
    async fn new(days: u64) -> Self {
        let service = Service::start().await;
        let admin = service.admin().await;
        let (_, user_id) = service.user(coupon_core::caller::Role::User).await;
        let book_id = admin.book(json!({})).await;
        let wait = admin.with("Prefer", "wait=30");
        let path = format!("/v1/books/{book_id}/codes/import");
        let import = wait.post_csv(&path, "code\nA-1\nA-2\na1\n").await.expect(200);
        let body = json!({ "kind": "coupons", "book_id": book_id });
        let export = wait.post("/v1/exports", body).await.expect(200);
        let body = json!({ "book_id": book_id, "user_id": user_id });
        let assign = wait.post("/v1/coupons/assign", body).await.expect(200);
        let mut moved = Vec::new();
        for job in [&import, &export, &assign] {
            let id: Uuid = job["id"].as_str().unwrap().parse().unwrap();
            moved.push(move_back(&service.db, id, days).await);
        }
        let [import, export, assign] = moved.try_into().unwrap();
        Self {
            service,
            admin,
            import,
            export,
            assign,
        }
    }

    async fn status(&self, path: &str) -> u16 {
        self.admin.get(path).await.status.as_u16()
    }

    /// The statuses of the import's line, its list and its report, the export's line and file, and the assignment's line.
    async fn statuses(&self) -> [u16; 6] {
        let (import, export) = (&self.import, &self.export);
        [
            self.status(&format!("/v1/jobs/{import}")).await,
            self.status(&format!("/v1/jobs/{import}/errors")).await,
            self.status(&format!("/v1/jobs/{import}/errors.csv")).await,
            self.status(&format!("/v1/jobs/{export}")).await,
            self.status(&format!("/v1/exports/{export}/file")).await,
            self.status(&format!("/v1/jobs/{}", self.assign)).await,
        ]
    }
}

/// Gives a job that has ended the id and the times that it would have if it had been made so many days earlier.
async fn move_back(db: &Db, id: Uuid, days: u64) -> String {
    let mut bytes = id.into_bytes();
    let mut millis = [0; 8];
    millis[2..].copy_from_slice(&bytes[..6]);
    let earlier = u64::from_be_bytes(millis) - days * 86_400_000;
    bytes[..6].copy_from_slice(&earlier.to_be_bytes()[2..]);
    let moved = Uuid::from_bytes(bytes);
    let mut tx = db.begin().await.unwrap();
    for sql in [
        "INSERT INTO jobs SELECT (jsonb_populate_record(j, jsonb_build_object('id', $2,
             'created_at', j.created_at - make_interval(days => $3), 'started_at', j.started_at - make_interval(days => $3),
             'finished_at', j.finished_at - make_interval(days => $3)))).* FROM jobs j WHERE id = $1",
        "UPDATE imports SET job_id = $2 WHERE job_id = $1 AND $3 >= 0",
        "UPDATE pool_imports SET job_id = $2 WHERE job_id = $1 AND $3 >= 0",
        "UPDATE job_errors SET job_id = $2 WHERE job_id = $1 AND $3 >= 0",
        "INSERT INTO exports SELECT (jsonb_populate_record(e, jsonb_build_object('job_id', $2))).* FROM exports e
         WHERE job_id = $1 AND $3 >= 0",
        "UPDATE export_chunks SET job_id = $2 WHERE job_id = $1 AND $3 >= 0",
        "DELETE FROM jobs WHERE id = $1 AND $2::uuid IS NOT NULL AND $3 >= 0",
    ] {
        sqlx::query(sql)
            .bind(id)
            .bind(moved)
            .bind(i32::try_from(days).unwrap())
            .execute(&mut *tx)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    db::commit(tx).await.unwrap();
    moved.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_files_go_first_and_say_so_and_then_the_jobs_themselves() {
    let scene = Scene::new(31).await;
    let db = &scene.service.db;
    let events = count(db, "events").await;
    assert_eq!(scene.statuses().await, [200; 6]);
    let kept = Retention {
        jobs: 32,
        reports: 32,
        exports: 32,
        uploads: 32,
    };
    sweep(db, kept).await;
    assert_eq!(scene.statuses().await, [200; 6], "nothing is older than 32 days");
    let for_ever = Retention {
        jobs: 36_500,
        reports: 36_500,
        exports: 36_500,
        uploads: 36_500,
    };
    sweep(db, for_ever).await;
    assert_eq!(scene.statuses().await, [200; 6], "the longest that can be set");

    sweep(db, Retention::default()).await;
    assert_eq!(scene.statuses().await, [200, 410, 410, 200, 410, 404]);
    let file = format!("/v1/exports/{}/file", scene.export);
    scene.admin.get(&file).await.refused(410, "expired");
    assert_eq!(
        (count(db, "export_chunks").await, count(db, "job_errors").await),
        (0, 0)
    );
    assert_eq!(
        count(db, "upload_chunks").await,
        0,
        "texts of imports go after a day"
    );

    age(db, 31).await;
    sweep(db, Retention::default()).await;
    assert_eq!(scene.statuses().await, [404; 6]);
    for table in ["jobs", "imports", "exports", "uploads"] {
        assert_eq!(count(db, table).await, 0, "{table}");
    }
    assert!(
        count(db, "events").await >= events,
        "the audit trail is kept for ever"
    );
    assert_eq!(count(db, "coupons").await, 2);
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_file_of_members_nothing_is_left_but_the_members() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let pool = admin
        .post("/v1/pools", json!({ "name": "A pool" }))
        .await
        .expect(201);
    let path = format!("/v1/pools/{}/members/import", pool["id"].as_str().unwrap());
    let user_id = coupon_tests::seed::users(&service.db, 1).await[0];
    let file = format!("{user_id}@example.com\nnobody@example.com\n");
    let job = admin
        .with("Prefer", "wait=30")
        .post_csv(&path, file)
        .await
        .expect(200);
    move_back(&service.db, job["id"].as_str().unwrap().parse().unwrap(), 100).await;
    sweep(&service.db, Retention::default()).await;
    age(&service.db, 31).await;
    sweep(&service.db, Retention::default()).await;
    for table in ["jobs", "job_errors", "pool_imports", "upload_chunks", "uploads"] {
        assert_eq!(count(&service.db, table).await, 0, "{table}");
    }
    assert_eq!(count(&service.db, "pool_members").await, 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_not_ended_is_kept_however_old_it_is() {
    let scene = Scene::new(400).await;
    let db = &scene.service.db;
    sqlx::query("UPDATE jobs SET state = 'running', finished_at = NULL")
        .execute(db.pool())
        .await
        .unwrap();
    sweep(db, Retention::default()).await;
    let left = (
        count(db, "jobs").await,
        count(db, "job_errors").await,
        count(db, "export_chunks").await,
        count(db, "upload_chunks").await,
    );
    assert_eq!(left, (3, 1, 1, 1));
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_goes_in_batches_and_its_job_after_it() {
    let scene = Scene::new(100).await;
    let db = &scene.service.db;
    sqlx::query(
        "INSERT INTO job_errors (job_id, seq, entry)
         SELECT $1::uuid, n, '{}' FROM generate_series(100, 12099) AS n",
    )
    .bind(&scene.import)
    .execute(db.pool())
    .await
    .unwrap();
    let mut runs = 0;
    let keep = Retention::default();
    while count(db, "job_errors").await > 0 {
        let before = count(db, "job_errors").await;
        let mut tx = db.begin().await.unwrap();
        assert!(sweep_leftovers(&mut tx, &keep).await.unwrap());
        db::commit(tx).await.unwrap();
        assert!(before - count(db, "job_errors").await <= 5_000);
        assert_eq!(scene.status(&format!("/v1/jobs/{}", scene.import)).await, 200);
        runs += 1;
    }
    assert_eq!(runs, 3);
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fires_of_schedules_go_but_the_latest_and_those_still_at_work() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let db = &service.db;
    let book_id = admin.book(json!({})).await;
    let body = json!({ "name": "Nightly", "kind": "export", "cron": "0 3 29 2 *",
        "export": { "kind": "coupons", "book_id": book_id } });
    let mut paths = Vec::new();
    for _ in 0..2 {
        let made = admin.post("/v1/schedules", body.clone()).await.expect(201);
        paths.push(format!("/v1/schedules/{}", made["id"].as_str().unwrap()));
    }
    // A job of each that nobody works on; the first's fire is 50 days old, the second's fires are 40 to 49.
    for path in &paths {
        admin.post(&format!("{path}/run"), json!({})).await.expect(202);
    }
    let id = |path: &str| path.rsplit('/').next().unwrap().parse::<Uuid>().unwrap();
    let set = "UPDATE schedule_fires SET fire_at = fire_at - interval '50 days', fired_at = fired_at - interval '50 days'
               WHERE schedule_id = $1";
    sqlx::query(set)
        .bind(id(&paths[0]))
        .execute(db.pool())
        .await
        .unwrap();
    sqlx::query("DELETE FROM schedule_fires WHERE schedule_id = $1")
        .bind(id(&paths[1]))
        .execute(db.pool())
        .await
        .unwrap();
    for path in &paths {
        sqlx::query(
            "INSERT INTO schedule_fires (schedule_id, fire_at, fired_at, outcome)
             SELECT $1, at, at, 'missed' FROM generate_series(now() - interval '49 days', now() - interval '40 days', '1 day') AS at",
        )
        .bind(id(path))
        .execute(db.pool())
        .await
        .unwrap();
    }
    // One of the first that was dealt with late: a run that somebody missed for long.
    sqlx::query("UPDATE schedule_fires SET fired_at = now() WHERE schedule_id = $1 AND fire_at < now() - interval '48 days 12 hours' AND outcome = 'missed'")
        .bind(id(&paths[0]))
        .execute(db.pool())
        .await
        .unwrap();
    let latest = admin.get(&paths[1]).await.expect(200)["last_fire"].clone();
    sweep(db, Retention::default()).await;
    let left: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT schedule_id, count(*) FROM schedule_fires GROUP BY 1 ORDER BY array_position($1::uuid[], schedule_id)",
    )
    .bind([id(&paths[0]), id(&paths[1])])
    .fetch_all(db.pool())
    .await
    .unwrap();
    assert_eq!(
        left,
        [(id(&paths[0]), 3), (id(&paths[1]), 1)],
        "the one at work, the one dealt with lately, the latest; and the latest"
    );
    assert_eq!(admin.get(&paths[1]).await.expect(200)["last_fire"], latest);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_repeated_requests_and_stray_marks_go_by_their_own_time() {
    let service = Service::start().await;
    let admin = service.admin().await;
    for key in ["old", "fresh"] {
        let named = admin.with("Idempotency-Key", if key == "old" { "old" } else { "fresh" });
        named.post("/v1/books", json!({ "name": key })).await.expect(201);
    }
    sqlx::raw_sql(
        "UPDATE idempotency_keys SET created_at = now() - interval '3 days' WHERE key = 'old';
         INSERT INTO job_marks (job_id, marked_at) VALUES (gen_random_uuid(), now() - interval '2 days'), (gen_random_uuid(), now())",
    )
    .execute(service.db.pool())
    .await
    .unwrap();
    // As the clock of every process does it.
    let mut tx = service.db.begin().await.unwrap();
    enqueue::upkeep(&mut tx, &Payload::SweepLeftovers).await.unwrap();
    db::commit(tx).await.unwrap();
    crate::truth::until(
        service.db.pool(),
        "the sweep is over",
        "SELECT (SELECT count(*) = 1 FROM idempotency_keys) AND NOT EXISTS (
             SELECT FROM job_marks WHERE marked_at < now() - interval '1 day')",
    )
    .await;
    let keys: Vec<String> = sqlx::query_scalar("SELECT key FROM idempotency_keys")
        .fetch_all(service.db.pool())
        .await
        .unwrap();
    assert_eq!(keys, ["fresh"]);
    service.stop().await;
}
