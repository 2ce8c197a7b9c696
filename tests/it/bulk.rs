//! Millions of codes in, made and out, while processes are killed at random: exact reports, exact rows, bounded memory.
//!
//! Short in `./x test`; ten million rows and ten kills in `./x crash`. `COUPONBOOK_SEED` repeats a run's random choices.

#![allow(clippy::unwrap_used, reason = "what a test cannot read fails it")]

mod export;
mod generate;
mod import;
mod lines;

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use coupon_tests::process::Process;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    crash::Cluster,
    truth::{self, Dice, report},
};

/// How long a job of ten million rows may take with all its kills.
const PATIENCE: Duration = Duration::from_secs(1_200);

/// What a process may hold more than when it has just started, in MiB.
const OVER_IDLE: f64 = 64.0;

/// A process, and what it held when it had nothing to do.
struct Watched {
    process: Process,
    idle: Option<f64>,
}

impl Watched {
    fn new(process: Process) -> Self {
        let idle = process.memory().map(|memory| memory.resident);
        Self { process, idle }
    }

    async fn worker(url: &str) -> Self {
        Self::new(Process::worker(url).await)
    }

    async fn api(url: &str) -> Self {
        Self::new(Process::api(url).await)
    }

    /// Asserts that it never held much more.
    fn stayed_small(&self, doing: &str) {
        let (Some(idle), Some(memory)) = (self.idle, self.process.memory()) else {
            return;
        };
        let over = memory.peak - idle;
        report(&format!(
            "{doing}: {idle:.1} MiB idle, {over:.1} MiB more at most"
        ));
        assert!(over <= OVER_IDLE, "{doing}: {over:.1} MiB over {idle:.1} MiB");
    }

    /// Kill -9, and another one in its place.
    async fn replace_worker(self, url: &str) -> Self {
        self.stayed_small("a worker that is killed");
        self.process.kill().await;
        Self::worker(url).await
    }
}

async fn progress(pool: &PgPool, job_id: Uuid) -> (i64, bool) {
    sqlx::query_as("SELECT progress_done, finished_at IS NOT NULL FROM jobs WHERE id = $1")
        .bind(job_id)
        .fetch_one(pool)
        .await
        .unwrap()
}

/// Kills the worker at random moments of a job of `total` rows and of its steps, each time putting another one in its place.
async fn kill_on_the_way(
    cluster: &Cluster,
    dice: &mut Dice,
    mut worker: Watched,
    job_id: Uuid,
    total: i64,
    kills: usize,
) -> Watched {
    // The first as soon as it has begun; none in the last part, which might be over before the kill.
    let mut moments: Vec<i64> = (1..kills)
        .map(|_| dice.below(usize::try_from(total * 6 / 10).unwrap()) as i64)
        .chain([1])
        .collect();
    moments.sort_unstable();
    // How far the job was when last seen to move, when that was, and how long the step before had taken.
    let pace = Cell::new((0, Instant::now(), Duration::ZERO));
    let look = || async {
        let (done, over) = progress(&cluster.pool, job_id).await;
        let (before, since, _) = pace.get();
        if done != before {
            pace.set((done, Instant::now(), since.elapsed()));
        }
        (done, over)
    };
    for (killed, moment) in moments.into_iter().enumerate() {
        let (_, over) = truth::eventually("progress", PATIENCE, &look, |(done, over)| {
            *done >= moment || *over
        })
        .await;
        if over {
            assert!(killed > 0, "it was over before the first kill");
            report(&format!("over after {killed} kills of {kills}"));
            break;
        }
        // Anywhere in the next step, also between what it writes and where it says that it stands.
        let (.., step) = pace.get();
        tokio::time::sleep(dice.millis(step.as_millis() as usize)).await;
        worker = worker.replace_worker(&cluster.url).await;
    }
    worker
}

/// What coupons of a book are, in two numbers that two books share only if their rows are the same.
async fn digest(pool: &PgPool, book_id: Uuid) -> (i64, String, String) {
    sqlx::query_as(
        "SELECT count(*), sum(hashtextextended(told, 1)::numeric)::text, sum(hashtextextended(told, 2)::numeric)::text
         FROM coupons c, LATERAL (SELECT concat_ws('|', code_key, code, state, expires_at, redemptions_allowed, metadata,
                                                   assigned_user_id)) AS t (told)
         WHERE book_id = $1",
    )
    .bind(book_id)
    .fetch_one(pool)
    .await
    .unwrap()
}

/// Every coupon arrived once: events number their arrival without a gap, and no slot is held.
async fn arrived_once(pool: &PgPool, book_id: Uuid) {
    let (coupons, arrivals, told, slots): (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM coupons WHERE book_id = $1), (SELECT arrivals FROM draw_states WHERE book_id = $1),
                (SELECT coalesce(sum((after ->> 'count')::bigint), 0)::bigint FROM events
                 WHERE book_id = $1 AND kind = 'codes_added'),
                (SELECT count(*) FROM code_job_slots)",
    )
    .bind(book_id)
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!((arrivals, told, slots), (coupons, coupons, 0));
}
