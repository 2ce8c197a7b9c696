//! An import that is killed in the middle of its steps.

use coupon_tests::{process::Process, size};
use serde_json::json;

use super::{Cluster, PATIENCE};
use crate::{
    queue::id,
    truth::{self, Dice},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_comes_to_the_same_end() {
    let mut dice = Dice::new("killed import");
    let lines = size(50_000, 1_000_000);
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
