//! The queue under trouble: what cannot be read, what poisons a batch, what crashed, what two workers want at once.
//!
//! Each test has a database of its own, in which triggers make one job's row fail, die or wait: the service's own code
//! is the released one. Time is moved by updating `run_at`.

#![allow(clippy::unwrap_used, reason = "what a test cannot read fails it")]

use std::time::Duration;

use coupon_core::{
    db,
    job::{
        Queue,
        claim::{self, Lane, MAX_ATTEMPTS, Place},
        enqueue,
        payload::{AssignCoupons, Payload, Wanted},
        signals::{Signal, Signals},
    },
    retention::Retention,
};
use coupon_tests::{Client, Service, seed};
use coupon_worker::Workers;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::truth;

/// A job that is in the table `poison` meets its fate when its event is written, or when its outcome is. What it does
/// outside of its transaction is to count in the sequence `poison_runs`.
pub(crate) const POISON: &str = "
    CREATE TABLE poison (job_id uuid PRIMARY KEY, how text NOT NULL);
    CREATE SEQUENCE poison_runs;
    CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        fate text;
    BEGIN
        IF TG_TABLE_NAME = 'events' THEN
            SELECT how INTO fate FROM poison WHERE job_id = NEW.job_id AND how <> 'outcome';
        ELSIF NEW.state = 'succeeded' THEN
            SELECT how INTO fate FROM poison WHERE job_id = NEW.id AND how = 'outcome';
        END IF;
        IF fate IS NULL THEN
            RETURN NEW;
        END IF;
        PERFORM nextval('poison_runs');
        CASE fate
            WHEN 'fault', 'outcome' THEN RAISE EXCEPTION 'poison';
            WHEN 'deadlock' THEN RAISE EXCEPTION 'poison' USING ERRCODE = 'deadlock_detected';
            WHEN 'backend' THEN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(5);
            WHEN 'wait' THEN PERFORM pg_advisory_xact_lock(7);
        END CASE;
        RETURN NEW;
    END $$;
    CREATE TRIGGER poison BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION poison();
    CREATE TRIGGER poison BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION poison();

    -- Every charge and the delay that came with it.
    CREATE TABLE charges (id text, attempts int, delay float8);
    CREATE FUNCTION note_charge() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO charges VALUES (NEW.id, NEW.attempts, extract(epoch FROM NEW.run_at - clock_timestamp()));
        RETURN NEW;
    END $$;
    CREATE TRIGGER note_charge AFTER UPDATE ON apalis.jobs FOR EACH ROW
        WHEN (NEW.attempts > OLD.attempts) EXECUTE FUNCTION note_charge();";

/// A service with a book, its codes and users, and no workers yet.
struct Bench {
    service: Service,
    admin: Client,
    book_id: Uuid,
    users: Vec<Uuid>,
}

impl Bench {
    async fn new(codes: usize, users: usize) -> Self {
        let mut service = Service::without_workers().await;
        let admin = service.admin().await;
        let book_id = admin.book(json!({})).await;
        service.start_workers();
        admin.codes(book_id, &seed::codes(codes)).await;
        service.stop_workers().await;
        sqlx::raw_sql(POISON).execute(service.db.pool()).await.unwrap();
        let users = seed::users(&service.db, users).await;
        Self {
            service,
            admin,
            book_id,
            users,
        }
    }

    fn pool(&self) -> &PgPool {
        self.service.db.pool()
    }

    /// One assign for each user; gives the jobs' ids in the order of the queue.
    async fn assigns(&self) -> Vec<Uuid> {
        let mut jobs = Vec::new();
        for user_id in &self.users {
            let body = json!({ "book_id": self.book_id, "user_id": user_id });
            let job = self.admin.post("/v1/coupons/assign", body).await.expect(202);
            jobs.push(id(&job));
        }
        jobs
    }

    async fn poison(&self, job_id: Uuid, how: &str) {
        sqlx::query("INSERT INTO poison (job_id, how) VALUES ($1, $2)")
            .bind(job_id)
            .bind(how)
            .execute(self.pool())
            .await
            .unwrap();
    }

    /// How often the poisoned job ran, rolled back or not.
    async fn poison_runs(&self) -> i64 {
        sqlx::query_scalar("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM poison_runs")
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    async fn job(&self, job_id: Uuid) -> Value {
        self.admin.get(&format!("/v1/jobs/{job_id}")).await.expect(200)
    }

    /// Lets no retry wait until every job has ended.
    async fn end_all(&self) {
        let look = || async {
            sqlx::query("UPDATE apalis.jobs SET run_at = now() WHERE run_at > now() AND attempts > 1")
                .execute(self.pool())
                .await
                .unwrap();
            self.service.app.signals().ring(Signal::Due);
            sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs WHERE finished_at IS NULL")
                .fetch_one(self.pool())
                .await
                .unwrap()
        };
        truth::eventually("all jobs have ended", Duration::from_secs(40), look, |left| {
            *left == 0
        })
        .await;
        truth::all_jobs_end(self.pool(), Duration::from_secs(5)).await;
    }

    /// Asserts that the poisoned job was given up and that all others succeeded.
    async fn only_the_poison_failed(&self, jobs: &[Uuid], poison: Uuid) {
        for job_id in jobs {
            let job = self.job(*job_id).await;
            if *job_id == poison {
                assert_eq!(
                    (&job["state"], &job["error"]["code"], &job["attempts"]),
                    (
                        &json!("failed"),
                        &json!("attempts_exhausted"),
                        &json!(MAX_ATTEMPTS)
                    ),
                    "{job}"
                );
            } else {
                assert_eq!(job["state"], "succeeded", "{job}");
                assert!(job["attempts"].as_i64() <= Some(1), "{job}");
            }
        }
    }

    async fn stop(mut self) {
        self.service.stop_workers().await;
        truth::holds(self.pool()).await;
        self.service.stop().await;
    }
}

pub(crate) fn id(job: &Value) -> Uuid {
    job["id"].as_str().and_then(|id| id.parse().ok()).expect("an id")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_cannot_be_read_fails_its_job_and_delays_nobody() {
    let mut bench = Bench::new(10, 5).await;
    let jobs = bench.assigns().await;
    let queue_id = coupon_core::id::to_ulid_text(jobs[1]);
    sqlx::query("UPDATE apalis.jobs SET job = $2 WHERE id = $1")
        .bind(queue_id)
        .bind(b"{\"task\":\"of another version\"}".as_slice())
        .execute(bench.pool())
        .await
        .unwrap();
    bench.service.start_workers();
    truth::all_jobs_end(bench.pool(), Duration::from_secs(20)).await;
    for job_id in &jobs {
        let job = bench.job(*job_id).await;
        let expected = if *job_id == jobs[1] {
            (json!("failed"), json!("payload_undecodable"))
        } else {
            (json!("succeeded"), Value::Null)
        };
        let error = job["error"]["code"].clone();
        assert_eq!(
            (job["state"].clone(), error, &job["attempts"]),
            (expected.0, expected.1, &json!(0))
        );
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_always_fails_is_given_up_after_growing_delays_and_the_rest_of_its_batch_succeeds() {
    let mut bench = Bench::new(20, 10).await;
    let jobs = bench.assigns().await;
    bench.poison(jobs[3], "fault").await;
    bench.service.start_workers();
    bench.end_all().await;
    bench.only_the_poison_failed(&jobs, jobs[3]).await;
    assert_eq!(bench.poison_runs().await, i64::from(MAX_ATTEMPTS));
    let delays: Vec<(i32, f64)> =
        sqlx::query_as("SELECT attempts, delay FROM charges WHERE id = $1 ORDER BY attempts")
            .bind(coupon_core::id::to_ulid_text(jobs[3]))
            .fetch_all(bench.pool())
            .await
            .unwrap();
    // In its batch it was one suspect of many: tried again at once. Alone it waits, twice as long each time.
    assert_eq!(delays.len(), 6, "{delays:?}");
    assert!(delays[0].1 <= 0.0, "{delays:?}");
    for (attempts, delay) in &delays[1..] {
        let full = 0.5 * f64::from(1 << (attempts - 1));
        assert!((full * 0.4..=full).contains(delay), "{delays:?}");
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_outcome_cannot_be_written_is_given_up_and_the_rest_of_its_batch_succeeds() {
    let mut bench = Bench::new(20, 10).await;
    let jobs = bench.assigns().await;
    bench.poison(jobs[0], "outcome").await;
    bench.service.start_workers();
    bench.end_all().await;
    bench.only_the_poison_failed(&jobs, jobs[0]).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_connection_is_given_up_and_the_rest_of_its_batch_succeeds() {
    let mut bench = Bench::new(20, 10).await;
    let jobs = bench.assigns().await;
    bench.poison(jobs[9], "backend").await;
    bench.service.start_workers();
    bench.end_all().await;
    bench.only_the_poison_failed(&jobs, jobs[9]).await;
    let runs = bench.poison_runs().await;
    assert!(runs <= 2 * i64::from(MAX_ATTEMPTS), "{runs} runs");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_trouble_looks_passing_but_stays_is_given_up_while_other_batches_succeed() {
    let mut bench = Bench::new(400, 10).await;
    let jobs = bench.assigns().await;
    bench.poison(jobs[2], "deadlock").await;
    bench.service.start_workers();
    // Healthy work flows past all the while: its successes must not make the failing batch look new.
    let more = async {
        let mut more = Vec::new();
        for round in 0..200 {
            let body = json!({ "book_id": bench.book_id, "user_id": bench.users[round % 10] });
            more.push(id(&bench
                .admin
                .post("/v1/coupons/assign", body)
                .await
                .expect(202)));
            tokio::time::sleep(Duration::from_millis(5)).await; // spread, so that there are many batches
        }
        more
    };
    let more = more.await;
    bench.end_all().await;
    bench.only_the_poison_failed(&jobs, jobs[2]).await;
    bench.only_the_poison_failed(&more, jobs[2]).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_trouble_is_not_charged() {
    let mut bench = Bench::new(20, 10).await;
    let jobs = bench.assigns().await;
    bench.poison(jobs[2], "deadlock").await;
    bench.service.start_workers();
    let look = || bench.poison_runs();
    truth::eventually("the batch failed", Duration::from_secs(20), look, |runs| {
        *runs >= 1
    })
    .await;
    sqlx::query("DELETE FROM poison")
        .execute(bench.pool())
        .await
        .unwrap();
    bench.end_all().await;
    for job_id in &jobs {
        let job = bench.job(*job_id).await;
        assert_eq!(
            (&job["state"], &job["attempts"]),
            (&json!("succeeded"), &json!(0)),
            "{job}"
        );
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_a_crash_left_noted_is_charged_and_run_alone() {
    let mut bench = Bench::new(20, 10).await;
    let jobs = bench.assigns().await;
    sqlx::query("INSERT INTO job_marks (job_id) VALUES ($1)")
        .bind(jobs[4])
        .execute(bench.pool())
        .await
        .unwrap();
    bench.service.start_workers();
    bench.end_all().await;
    for job_id in &jobs {
        let job = bench.job(*job_id).await;
        let charged = i64::from(*job_id == jobs[4]);
        assert_eq!(
            (&job["state"], job["attempts"].as_i64()),
            (&json!("succeeded"), Some(charged)),
            "{job}"
        );
    }
    // Alone: no other event was written by the transaction of its event.
    let together: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM events WHERE kind = 'coupon_assigned'
             AND xmin = (SELECT xmin FROM events WHERE job_id = $1)",
    )
    .bind(jobs[4])
    .fetch_one(bench.pool())
    .await
    .unwrap();
    assert_eq!(together, 1);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_one_worker_runs_is_hidden_from_the_other() {
    let mut bench = Bench::new(10, 1).await;
    let job_id = bench.assigns().await[0];
    bench.poison(job_id, "wait").await;
    let mut barrier = bench.pool().acquire().await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(7)")
        .execute(&mut *barrier)
        .await
        .unwrap();
    bench.service.start_workers();
    let signals = Signals::start(bench.service.database.url()).unwrap();
    let others = Workers::start(
        bench.service.database.url(),
        &[Queue::Assign],
        &signals,
        Retention::default(),
    )
    .unwrap();
    truth::until(
        bench.pool(),
        "a worker waits at the barrier",
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted)",
    )
    .await;
    // While it waits there, the row is nobody else's.
    let mut tx = bench.service.db.begin().await.unwrap();
    for lane in [Lane::Fresh, Lane::Charged] {
        let rows = claim::claim(&mut tx, Queue::Assign, lane, 10, &mut Place::default())
            .await
            .unwrap();
        assert!(rows.is_empty(), "{rows:?}");
    }
    drop(tx);
    for _ in 0..20 {
        signals.ring(Signal::Due); // and ringing does not make it so
        tokio::task::yield_now().await;
    }
    sqlx::query("SELECT pg_advisory_unlock(7)")
        .execute(&mut *barrier)
        .await
        .unwrap();
    drop(barrier);
    truth::all_jobs_end(bench.pool(), Duration::from_secs(20)).await;
    assert_eq!(bench.poison_runs().await, 1);
    assert_eq!(bench.job(job_id).await["state"], "succeeded");
    others.drain(Duration::from_secs(10)).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_run_every_job_once() {
    let count = truth::scale(1_000, 100_000);
    let mut bench = Bench::new(count, 50).await;
    let mut tx = bench.service.db.begin().await.unwrap();
    let users = &bench.users;
    let payloads: Vec<Payload> = (0..count + 20)
        .map(|n| draw(bench.book_id, users[n % users.len()], 1))
        .collect();
    enqueue_all(&mut tx, bench.book_id, &payloads).await;
    db::commit(tx).await.unwrap();
    bench.service.start_workers();
    let mut others = Vec::new();
    for _ in 0..3 {
        let signals = Signals::start(bench.service.database.url()).unwrap();
        others.push(
            Workers::start(
                bench.service.database.url(),
                &Queue::ALL,
                &signals,
                Retention::default(),
            )
            .unwrap(),
        );
    }
    truth::all_jobs_end(bench.pool(), Duration::from_secs(60)).await;
    let (succeeded, exhausted, charged): (i64, i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'succeeded'), count(*) FILTER (WHERE error_code = 'book_exhausted'),
                count(*) FILTER (WHERE attempts > 0)
         FROM jobs WHERE kind = 'assign'",
    )
    .fetch_one(bench.pool())
    .await
    .unwrap();
    assert_eq!((succeeded, exhausted, charged), (count as i64, 20, 0));
    for workers in others {
        workers.drain(Duration::from_secs(10)).await;
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_job_that_is_cancelled_never_runs() {
    let mut bench = Bench::new(10, 3).await;
    let jobs = bench.assigns().await;
    // A crash may have left its note; it goes with the job.
    sqlx::query("INSERT INTO job_marks (job_id) VALUES ($1)")
        .bind(jobs[1])
        .execute(bench.pool())
        .await
        .unwrap();
    let cancelled = bench
        .admin
        .post(&format!("/v1/jobs/{}/cancel", jobs[1]), json!({}))
        .await;
    assert_eq!(cancelled.body["state"], "cancelled", "{}", cancelled.body);
    bench.service.start_workers();
    truth::all_jobs_end(bench.pool(), Duration::from_secs(20)).await;
    for job_id in &jobs {
        let expected = if *job_id == jobs[1] {
            "cancelled"
        } else {
            "succeeded"
        };
        assert_eq!(bench.job(*job_id).await["state"], expected);
    }
    let again = bench
        .admin
        .post(&format!("/v1/jobs/{}/cancel", jobs[1]), json!({}))
        .await;
    again.refused(409, "job_finished");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_import_stops_at_the_end_of_its_step_and_keeps_what_is_committed() {
    let mut bench = Bench::new(1, 1).await;
    let book_id = bench.admin.book(json!({})).await;
    let csv = format!("code\n{}\n", seed::codes(50_000).join("\n"));
    let path = format!("/v1/books/{book_id}/codes/import");
    // Nobody can write codes while the book's draw is held.
    let mut holder = bench.service.db.begin().await.unwrap();
    sqlx::query("SELECT FROM draw_states WHERE book_id = $1 FOR UPDATE")
        .bind(book_id)
        .execute(&mut *holder)
        .await
        .unwrap();
    let job_id = id(&bench.admin.post_csv(&path, csv).await.expect(202));
    bench.service.start_workers();
    truth::until(
        bench.pool(),
        "the first step waits for the draw",
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'couponbook-worker%' AND wait_event_type = 'Lock'
                        AND datname = current_database())",
    )
    .await;
    let cancelling = bench
        .admin
        .post(&format!("/v1/jobs/{job_id}/cancel"), json!({}))
        .await;
    assert_eq!(cancelling.body["state"], "cancelling", "{}", cancelling.body);
    drop(holder);
    truth::all_jobs_end(bench.pool(), Duration::from_secs(30)).await;
    let job = bench.job(job_id).await;
    assert_eq!(
        (&job["state"], &job["attempts"]),
        (&json!("cancelled"), &json!(0)),
        "{job}"
    );
    let made: i64 = sqlx::query_scalar("SELECT count(*) FROM coupons WHERE book_id = $1")
        .bind(book_id)
        .fetch_one(bench.pool())
        .await
        .unwrap();
    assert_eq!(
        (made, job["progress"]["done"].as_i64()),
        (20_000, Some(20_000)),
        "{job}"
    );
    // The book is free again.
    bench.admin.codes(book_id, &["AFTERWARDS".to_owned()]).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_of_which_no_signal_tells_is_found_all_the_same() {
    let mut bench = Bench::new(10, 3).await;
    bench.service.start_workers();
    for user_id in bench.users.clone() {
        // Deaf for a moment; and nobody rings, as if the process that enqueued had died after its commit.
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name = 'couponbook-signals' AND datname = current_database()",
        )
        .execute(bench.pool())
        .await
        .unwrap();
        let mut tx = bench.service.db.begin().await.unwrap();
        enqueue_all(&mut tx, bench.book_id, &[draw(bench.book_id, user_id, 1)]).await;
        db::commit(tx).await.unwrap();
        truth::all_jobs_end(bench.pool(), Duration::from_secs(10)).await;
    }
    bench.stop().await;
}

pub(crate) fn draw(book_id: Uuid, user_id: Uuid, count: u32) -> Payload {
    Payload::AssignCoupons(AssignCoupons {
        book_id,
        user_id,
        wanted: Wanted::Draw(count),
        actor: seed::actor(),
        as_user: false,
        request_id: None,
    })
}

pub(crate) async fn enqueue_all(tx: &mut sqlx::PgConnection, book_id: Uuid, payloads: &[Payload]) {
    for some in payloads.chunks(5_000) {
        let jobs: Vec<_> = some
            .iter()
            .map(|payload| enqueue::NewJob {
                payload,
                actor: seed::actor(),
                book_id: Some(book_id),
                total: None,
                request_id: None,
            })
            .collect();
        enqueue::enqueue(tx, &jobs).await.unwrap();
    }
}
