//! The server that crashes, and connections that it ends.

use std::time::{Duration, Instant};

use coupon_tests::size;
use sqlx::PgPool;

use super::{Busy, moments};
use crate::truth::{Dice, report};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_under_load_loses_nothing_that_was_acknowledged() {
    let mut dice = Dice::new("server crashes");
    let (jobs, crashes) = (size(1_000, 40_000), size(2, 20));
    let mut busy = Busy::start_with_tills(&mut dice, jobs).await;
    let mut slowest = Duration::ZERO;
    for moment in moments(&mut dice, crashes, jobs) {
        let cluster = &mut busy.cluster;
        cluster.progress(moment).await;
        tokio::time::sleep(dice.millis(60)).await; // in the middle of a batch, too
        cluster.crash_server().await;
        cluster.pool = PgPool::connect(&cluster.url).await.expect("a connection");
        let (back, before) = (Instant::now(), cluster.finished().await);
        slowest = slowest.max(cluster.goes_on(back, before, jobs).await);
    }
    report(&format!(
        "{crashes} crashes, work went on after {slowest:?} at most"
    ));
    busy.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_terminated_at_random_lose_nothing_and_double_nothing() {
    let mut dice = Dice::new("terminated connections");
    let (jobs, cuts) = (size(1_500, 50_000), size(50, 500));
    let busy = Busy::start_with_tills(&mut dice, jobs).await;
    for moment in moments(&mut dice, cuts, jobs) {
        busy.cluster.progress(moment).await;
        // Rather one that is at work than one that is idle.
        sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'couponbook%'
             ORDER BY state = 'idle', hashtext(pid::text || $1) LIMIT 1",
        )
        .bind(dice.below(1 << 30).to_string())
        .execute(&busy.cluster.pool)
        .await
        .unwrap();
    }
    busy.ends().await;
}
