//! A job that takes its process down each time.

use std::time::Instant;

use coupon_tests::process::Process;
use serde_json::json;

use super::{Cluster, PATIENCE};
use crate::{
    queue::{POISON, id},
    truth::{self, report},
};

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
    report(&format!("all others had ended {:?} after it", ended.elapsed()));
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
            // Of the one crash of the batch that they shared with it: from then on each runs by itself.
            assert_eq!(job["attempts"], 1, "{job}");
        }
    }
    truth::holds(&cluster.pool).await;
    drop(barrier);
    cluster.stop(vec![worker, api]).await;
}
