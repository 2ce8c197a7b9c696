//! How deep the queues are, roughly and cheaply: a bound against accepting more than can ever be done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    db::Db,
    error::{Code, Refusal, Result},
};

/// How old a count may be: at the rate at which jobs can be accepted this overshoots by some percent of the limit.
const KNOWN_FOR: Duration = Duration::from_secs(5);

/// When to ask again once the queues are too deep.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The last count of due jobs; clones share it.
#[derive(Debug, Clone)]
pub struct Depth {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    db: Db,
    limit: u64,
    begun: Instant,
    depth: AtomicU64,
    counted_at: AtomicU64,
    counting: AtomicBool,
}

impl Depth {
    /// With the most jobs that may be due.
    pub fn new(db: Db, limit: u64) -> Self {
        let shared = Shared {
            db,
            limit,
            begun: Instant::now(),
            depth: AtomicU64::new(0),
            counted_at: AtomicU64::new(0),
            counting: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Whether one more job may be accepted. Never waits: a count that is too old is renewed in the background.
    ///
    /// # Errors
    /// `overloaded`.
    pub fn admit(&self) -> Result<()> {
        let now = u64::try_from(self.shared.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let age = now.saturating_sub(self.shared.counted_at.load(Ordering::Relaxed));
        let never = self.shared.counted_at.load(Ordering::Relaxed) == 0;
        if (never || u128::from(age) > KNOWN_FOR.as_millis())
            && !self.shared.counting.swap(true, Ordering::AcqRel)
        {
            tokio::spawn(count(Arc::clone(&self.shared), now.max(1)));
        }
        if self.shared.depth.load(Ordering::Relaxed) < self.shared.limit {
            return Ok(());
        }
        Err(Refusal::new(
            Code::Overloaded,
            "Too many jobs are waiting; send this again later.",
        )
        .retry_after(RETRY_AFTER)
        .into())
    }
}

async fn count(shared: Arc<Shared>, now: u64) {
    let limit = i64::try_from(shared.limit).unwrap_or(i64::MAX);
    let counted: sqlx::Result<i64> = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT FROM apalis.jobs WHERE run_at <= now() LIMIT $1) AS due",
    )
    .bind(limit)
    .fetch_one(shared.db.pool())
    .await;
    if let Ok(counted) = counted {
        shared.depth.store(counted.unsigned_abs(), Ordering::Relaxed);
    }
    shared.counted_at.store(now, Ordering::Relaxed);
    shared.counting.store(false, Ordering::Release);
}
