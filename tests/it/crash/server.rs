//! The server that crashes, and connections that it ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use coupon_tests::{history::History, process::Process, size};
use sqlx::PgPool;

use super::{Cluster, PATIENCE, Tills, load, moments};
use crate::truth::{self, Dice, report};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_under_load_loses_nothing_that_was_acknowledged() {
    let mut dice = Dice::new("server crashes");
    let (jobs, crashes) = (size(1_000, 40_000), size(2, 20));
    let mut cluster = Cluster::start(jobs / 2).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let workers = vec![
        Process::worker(&cluster.url).await,
        Process::worker(&cluster.url).await,
    ];
    let book_id = cluster.book(&client, jobs).await;
    let history = Arc::new(History::default());
    let tills = Tills::open(&cluster, &history, &client, &mut dice).await;
    let loading = load(&history, &client, cluster.requests(&mut dice, book_id, jobs));
    let mut slowest = Duration::ZERO;
    for moment in moments(&mut dice, crashes, jobs) {
        cluster.progress(moment).await;
        tokio::time::sleep(dice.millis(60)).await;
        cluster.crash_server().await;
        cluster.pool = PgPool::connect(&cluster.url).await.expect("a connection");
        let (back, before) = (Instant::now(), cluster.finished().await);
        if before < jobs as i64 {
            truth::eventually(
                "work goes on",
                PATIENCE,
                || cluster.finished(),
                |done| *done > before,
            )
            .await;
            slowest = slowest.max(back.elapsed());
        }
    }
    loading.await.expect("the load");
    tills.close().await;
    assert_eq!(history.unanswered(), 0, "clients see only 503");
    report(&format!(
        "{crashes} crashes, work went on after {slowest:?} at most"
    ));
    assert!(slowest < Duration::from_secs(15), "{slowest:?}");
    cluster.settles(&history).await;
    cluster.stop(workers.into_iter().chain([api]).collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_terminated_at_random_lose_nothing_and_double_nothing() {
    let mut dice = Dice::new("terminated connections");
    let (jobs, cuts) = (size(1_500, 50_000), size(50, 500));
    let cluster = Cluster::start(jobs / 2).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let workers = vec![
        Process::worker(&cluster.url).await,
        Process::worker(&cluster.url).await,
    ];
    let book_id = cluster.book(&client, jobs).await;
    let history = Arc::new(History::default());
    let tills = Tills::open(&cluster, &history, &client, &mut dice).await;
    let loading = load(&history, &client, cluster.requests(&mut dice, book_id, jobs));
    for moment in moments(&mut dice, cuts, jobs) {
        cluster.progress(moment).await;
        // Rather one that is at work than one that is idle.
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'couponbook%'
             ORDER BY state = 'idle', hashtext(pid::text || $1) LIMIT 1",
        )
        .bind(dice.below(1 << 30).to_string())
        .execute(&cluster.pool)
        .await
        .unwrap();
    }
    loading.await.expect("the load");
    tills.close().await;
    assert_eq!(history.unanswered(), 0, "clients see only 503");
    cluster.settles(&history).await;
    cluster.stop(workers.into_iter().chain([api]).collect()).await;
}
