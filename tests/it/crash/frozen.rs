//! Workers that are frozen and wake again, when others have done their work.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use coupon_tests::{history::History, process::Process, size};

use super::{Cluster, PATIENCE, load, signal};
use crate::truth::{self, Dice, report};

/// Workers that are frozen at once.
const FROZEN: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_frozen_past_every_time_out_double_nothing_when_they_wake() {
    let mut dice = Dice::new("frozen workers");
    let rounds = size(1, 20);
    let cluster = Cluster::start(rounds * 1_000).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let mut workers = Vec::new();
    for _ in 0..FROZEN {
        workers.push(Process::worker(&cluster.url).await);
    }
    let book_id = cluster.book(&client, rounds * 2_000).await;
    let history = Arc::new(History::default());
    for _ in 0..rounds {
        let loading = load(&history, &client, cluster.requests(&mut dice, book_id, 1_500));
        // At any moments; some may have a batch in their hands, and the last one has.
        for worker in &workers[1..] {
            tokio::time::sleep(dice.millis(60)).await;
            signal(worker, "-STOP").await;
        }
        freeze_at_work(&cluster, &workers[0]).await;
        let since = Instant::now();
        // Somebody else comes and ends all, once the server has ended what the frozen ones hold.
        let other = Process::worker(&cluster.url).await;
        loading.await.expect("the load");
        truth::all_jobs_end(&cluster.pool, PATIENCE).await;
        let none = || transactions(&cluster);
        truth::eventually("nothing is held any more", PATIENCE, none, |held| held.is_empty()).await;
        report(&format!(
            "all was done {:?} after the last was frozen",
            since.elapsed()
        ));
        assert!(since.elapsed() > Duration::from_secs(9), "it held nothing, then");
        tokio::time::sleep(TIME_OUTS.saturating_sub(since.elapsed())).await; // also for who held nothing
        for worker in &workers {
            signal(worker, "-CONT").await;
        }
        assert_eq!(other.terminate().await.code(), Some(0));
    }
    cluster.settles(&history).await;
    workers.push(api);
    cluster.stop(workers).await;
}

/// Freezes the last worker that is awake, with a batch in its hands.
async fn freeze_at_work(cluster: &Cluster, worker: &Process) {
    tokio::time::sleep(Duration::from_millis(100)).await; // what the server still has to read of the others
    let others = transactions(cluster).await;
    let holds = || async {
        signal(worker, "-STOP").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = transactions(cluster).await;
        let holds = now.iter().any(|session| !others.contains(session));
        if !holds {
            signal(worker, "-CONT").await;
        }
        holds
    };
    truth::eventually("frozen with a batch", PATIENCE, holds, |holds| *holds).await;
}

/// Past the longest of what bounds a session that says nothing: the server ends idle transactions after 10 s.
const TIME_OUTS: Duration = Duration::from_secs(12);

/// The sessions of workers whose transactions are open and idle.
async fn transactions(cluster: &Cluster) -> Vec<i32> {
    sqlx::query_scalar(
        "SELECT pid FROM pg_stat_activity
         WHERE application_name LIKE 'couponbook-worker%' AND state = 'idle in transaction'
             AND state_change < now() - interval '50 ms'",
    )
    .fetch_all(&cluster.pool)
    .await
    .unwrap()
}
