//! Jobs in trouble: what cannot be read, what fails, panics or hangs, what takes its connection along.

use std::time::Duration;

use coupon_core::job::claim::MAX_ATTEMPTS;
use coupon_tests::seed;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Bench, id};
use crate::truth;

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
    truth::all_jobs_end(bench.pool(), truth::PATIENCE).await;
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
    truth::eventually("the batch failed", truth::PATIENCE, look, |runs| *runs >= 1).await;
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

/// A time that the service's own code cannot hold: whoever reads the row panics.
async fn make_unreadable(bench: &Bench, code: &str) {
    let changed =
        sqlx::query("UPDATE coupons SET expires_at = 'infinity' WHERE book_id = $1 AND code_key = $2")
            .bind(bench.book_id)
            .bind(code)
            .execute(bench.pool())
            .await
            .unwrap();
    assert_eq!(changed.rows_affected(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_handler_panics_is_given_up_and_the_rest_of_its_batch_succeeds() {
    let mut bench = Bench::new(20, 10).await;
    let jobs = bench.assigns().await;
    make_unreadable(&bench, "CODE0000007").await;
    // Before anybody draws: the others may not meet it.
    sqlx::query(
        "UPDATE coupons SET draw_key = 9223372036854775807 WHERE book_id = $1 AND code_key = 'CODE0000007'",
    )
    .bind(bench.book_id)
    .execute(bench.pool())
    .await
    .unwrap();
    let body = json!({ "book_id": bench.book_id, "user_id": bench.users[0] });
    let path = "/v1/coupons/assign/CODE-0000007";
    let poison = id(&bench.admin.post(path, body).await.expect(202));
    let jobs: Vec<Uuid> = jobs.into_iter().chain([poison]).collect();
    bench.service.start_workers();
    bench.end_all().await;
    bench.only_the_poison_failed(&jobs, poison).await;
    sqlx::query("UPDATE coupons SET expires_at = NULL WHERE book_id = $1")
        .bind(bench.book_id)
        .execute(bench.pool())
        .await
        .unwrap();
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_hangs_is_given_up_and_those_behind_it_do_not_wait_for_it() {
    const PATIENCE: Duration = Duration::from_millis(500);
    const HANG: Duration = Duration::from_millis(1_500); // see POISON
    let mut bench = Bench::new(20, 10).await;
    let jobs = bench.assigns().await;
    bench.poison(jobs[5], "hang").await;
    bench.service.start_workers_with(PATIENCE);
    let other_id = bench.admin.book(json!({})).await;
    bench.admin.codes(other_id, &seed::codes(600)).await;
    let look = || bench.poison_runs();
    truth::eventually("it hangs, alone", truth::PATIENCE, look, |runs| *runs >= 2).await;
    // One worker, one queue: while the one hangs again and again, others come and are done.
    let mut slowest = Duration::ZERO;
    let mut behind = Vec::new();
    while bench.job(jobs[5]).await["finished_at"].is_null() {
        bench.hurry().await;
        let since = Instant::now();
        let body = json!({ "book_id": other_id, "user_id": bench.users[0] });
        let job = bench.admin.post("/v1/coupons/assign", body).await.expect(202);
        behind.push(id(&job));
        bench.admin.job_end(&id(&job).to_string()).await;
        slowest = slowest.max(since.elapsed());
        tokio::time::sleep(Duration::from_millis(30)).await; // some while each hang
    }
    assert!(
        behind.len() > 20 && slowest < HANG,
        "{} behind it, at most {slowest:?}",
        behind.len()
    );
    bench.end_all().await;
    bench.only_the_poison_failed(&jobs, jobs[5]).await;
    bench.only_the_poison_failed(&behind, jobs[5]).await;
    bench.stop().await;
}
