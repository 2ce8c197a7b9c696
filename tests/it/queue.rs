//! The queue under trouble: what cannot be read, what poisons a batch, what crashed, what two workers want at once.
//!
//! Each test has a database of its own, in which triggers make one job's row fail, die or wait: the service's own code
//! is the released one. Time is moved by updating `run_at`.

#![allow(clippy::unwrap_used, reason = "what a test cannot read fails it")]

mod claims;
mod troubled;

use coupon_core::job::{
    claim::MAX_ATTEMPTS,
    enqueue,
    payload::{AssignCoupons, Payload, Wanted},
    signals::Signal,
};
use coupon_tests::{Client, Service, seed};
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
            WHEN 'hang' THEN PERFORM pg_sleep(1.5);
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

    /// Lets no retry wait.
    async fn hurry(&self) {
        sqlx::query("UPDATE apalis.jobs SET run_at = now() WHERE run_at > now() AND attempts > 1")
            .execute(self.pool())
            .await
            .unwrap();
        self.service.app.signals().ring(Signal::Due);
    }

    /// Lets no retry wait until every job has ended.
    async fn end_all(&self) {
        let look = || async {
            self.hurry().await;
            sqlx::query_scalar::<_, i64>("SELECT count(*) FROM jobs WHERE finished_at IS NULL")
                .fetch_one(self.pool())
                .await
                .unwrap()
        };
        truth::eventually("all jobs have ended", truth::PATIENCE, look, |left| *left == 0).await;
        truth::all_jobs_end(self.pool(), truth::PATIENCE).await;
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
                beneficiary: None,
            })
            .collect();
        let ids: Vec<Uuid> = jobs.iter().map(|_| coupon_core::id::new()).collect();
        assert_eq!(enqueue::enqueue_all(tx, &ids, &jobs).await.unwrap(), ids);
    }
}
