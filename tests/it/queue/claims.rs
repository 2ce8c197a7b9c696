//! Who runs a job: one worker, once, and nobody once it is cancelled.

use std::time::Duration;

use coupon_core::{
    db,
    job::{
        Queue,
        claim::{self, Lane, Place},
        payload::Payload,
        signals::{Signal, Signals},
    },
    retention::Retention,
};
use coupon_tests::seed;
use coupon_worker::Workers;
use serde_json::json;

use super::{Bench, draw, enqueue_all, id};
use crate::truth;

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
    truth::all_jobs_end(bench.pool(), truth::PATIENCE).await;
    assert_eq!(bench.poison_runs().await, 1);
    assert_eq!(bench.job(job_id).await["state"], "succeeded");
    others.drain(Duration::from_secs(10)).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_run_every_job_once() {
    let count = coupon_tests::size(1_000, 100_000);
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
    truth::all_jobs_end(bench.pool(), truth::PATIENCE).await;
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
    truth::all_jobs_end(bench.pool(), truth::PATIENCE).await;
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
    truth::all_jobs_end(bench.pool(), truth::PATIENCE).await;
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
    let step = coupon_core::import::step::FIRST_STEP_RECORDS as i64;
    assert_eq!(
        (made, job["progress"]["done"].as_i64()),
        (step, Some(step)), // of the 50,000
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
        truth::all_jobs_end(bench.pool(), truth::PATIENCE).await;
    }
    bench.stop().await;
}
