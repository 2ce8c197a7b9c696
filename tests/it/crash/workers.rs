//! Workers that are killed or come and go.

use std::time::{Duration, Instant};

use coupon_tests::{process::Process, size};

use super::{Busy, Cluster, PATIENCE, moments};
use crate::{
    queue::{draw, enqueue_all},
    truth::{self, Dice, report},
};

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_at_random_moments_lose_nothing_and_double_nothing() {
    let mut dice = Dice::new("kill -9 of workers");
    let (jobs, kills) = (size(5_000, 100_000), size(10, 200));
    let mut busy = Busy::start(&mut dice, jobs).await;
    let mut slowest = Duration::ZERO;
    for moment in moments(&mut dice, kills, jobs) {
        let (cluster, workers) = (&busy.cluster, &mut busy.workers);
        cluster.progress(moment).await;
        tokio::time::sleep(dice.millis(60)).await; // in the middle of a batch, too
        workers.swap_remove(dice.below(workers.len())).kill().await;
        let (killed, before) = (Instant::now(), cluster.finished().await);
        workers.push(Process::worker(&cluster.url).await);
        slowest = slowest.max(cluster.goes_on(killed, before, jobs).await);
    }
    report(&format!("{kills} kills, work went on after {slowest:?} at most"));
    busy.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_and_go_leave_no_job_behind_and_no_transaction_open() {
    let mut dice = Dice::new("start, load, stop");
    let rounds = size(20, 200);
    let cluster = Cluster::start(2_000).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let first = Process::worker(&cluster.url).await;
    let book_id = cluster.book(&client, rounds * 50).await;
    assert_eq!(first.terminate().await.code(), Some(0));
    for round in 0..rounds {
        let (one, two) = tokio::join!(Process::worker(&cluster.url), Process::worker(&cluster.url));
        let users = &cluster.users;
        let some: Vec<_> = (0..50)
            .map(|_| draw(book_id, users[dice.below(users.len())], 1))
            .collect();
        let mut connection = cluster.pool.acquire().await.unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
        enqueue_all(&mut connection, book_id, &some).await;
        sqlx::raw_sql("COMMIT").execute(&mut *connection).await.unwrap();
        drop(connection);
        tokio::time::sleep(dice.millis(300)).await; // before they have begun, at work, or when all is done
        for worker in [one, two] {
            if dice.below(3) == 0 {
                worker.kill().await;
            } else {
                assert_eq!(worker.terminate().await.code(), Some(0), "round {round}");
            }
        }
    }
    let gone = || async {
        sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM pg_stat_activity
             WHERE (application_name LIKE 'couponbook-worker%' OR application_name = 'couponbook-signals') AND state <> 'idle'",
        )
        .fetch_one(&cluster.pool)
        .await
        .unwrap()
    };
    truth::eventually(
        "no transaction of a worker is open",
        Duration::from_secs(15),
        gone,
        |open| *open == 0,
    )
    .await;
    let last = Process::worker(&cluster.url).await;
    truth::all_jobs_end(&cluster.pool, PATIENCE).await;
    truth::holds(&cluster.pool).await;
    assert_eq!(cluster.finished().await, (rounds * 50) as i64);
    cluster.stop(vec![last, api]).await;
}
