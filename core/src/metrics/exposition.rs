//! The text of /metrics: what this process measured, and how the database stands.
//!
//! Invariant: however often it is asked for, the database is asked at most once in [`KNOWN_FOR`], in one statement on
//! one connection. What could not be asked is not told, and `couponbook_database_up` says so: an old figure would look
//! like a good one.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::{HTTP_REQUESTS, JOB_DURATIONS, JOB_TROUBLES, JOBS_FINISHED, POOLS, Text, process, written};
use crate::{
    db::Db,
    stats::gauges::{self, Gauges},
};

/// How old an answer of the database may be.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// A database that does not answer by then counts as down.
const PATIENCE: Duration = Duration::from_secs(3);

/// Content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What can be scraped; clones share what is known of the database.
#[derive(Debug, Clone)]
pub struct Exposition {
    db: Db,
    known: Arc<Mutex<Option<Known>>>,
}

/// The last answer of the database.
#[derive(Debug)]
struct Known {
    asked: Instant,
    /// `None` when there was no answer.
    gauges: Option<Gauges>,
}

impl Exposition {
    /// With the connections to ask on.
    pub fn new(db: Db) -> Self {
        Self {
            db,
            known: Arc::default(),
        }
    }

    /// The whole text.
    pub async fn text(&self) -> String {
        let gauges = self.gauges().await;
        let mut text = Text::default();
        text.family(
            "couponbook_build_info",
            "gauge",
            "Always 1; the version is a label.",
        );
        text.line(
            "couponbook_build_info",
            &written(&[("version", env!("CARGO_PKG_VERSION"))]),
            1,
        );
        let help = "Whether the database has answered, 0 or 1; without it, what it knows is left out below.";
        text.gauge("couponbook_database_up", help, u8::from(gauges.is_some()));
        if let Some(gauges) = gauges {
            write_gauges(&mut text, &gauges);
        }
        JOB_DURATIONS.write(&mut text);
        JOBS_FINISHED.write(&mut text);
        JOB_TROUBLES.write(&mut text);
        HTTP_REQUESTS.write(&mut text);
        write_pools(&mut text);
        process::write(&mut text);
        text.0
    }

    /// One asks, the others wait for the answer.
    async fn gauges(&self) -> Option<Gauges> {
        let mut known = self.known.lock().await;
        if let Some(known) = &*known
            && known.asked.elapsed() < KNOWN_FOR
        {
            return known.gauges.clone();
        }
        let ask = async {
            let mut connection = self.db.pool().acquire().await?;
            gauges::read(&mut connection).await
        };
        let gauges = match tokio::time::timeout(PATIENCE, ask).await {
            Ok(Ok(gauges)) => Some(gauges),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the database did not answer a scrape");
                None
            }
            Err(_) => None,
        };
        *known = Some(Known {
            asked: Instant::now(),
            gauges: gauges.clone(),
        });
        gauges
    }
}

fn write_gauges(text: &mut Text, gauges: &Gauges) {
    let mut labelled = |name: &str, label: &str, help: &str, values: &BTreeMap<String, f64>| {
        text.family(name, "gauge", help);
        for (value_of, value) in values {
            text.line(name, &written(&[(label, value_of)]), value);
        }
    };
    labelled(
        "couponbook_jobs_due",
        "queue",
        "Jobs that are due or at work, by queue; of the whole service.",
        &gauges.jobs_due,
    );
    labelled(
        "couponbook_oldest_due_job_seconds",
        "queue",
        "How long the oldest due job has been waiting, by queue; of the whole service.",
        &gauges.oldest_due_job_seconds,
    );
    labelled(
        "couponbook_workers",
        "queue",
        "Processes that work on a queue; of the whole service.",
        &gauges.workers,
    );
    labelled(
        "couponbook_coupons",
        "state",
        "Coupons of all books by state, as far as couponbook_roll_up_lag_seconds says.",
        &gauges.coupons,
    );
    text.gauge(
        "couponbook_lock_sweep_lag_seconds",
        "How long the oldest lapsed lock has been waiting for its sweep; of the whole service.",
        gauges.lock_sweep_lag_seconds,
    );
    text.gauge(
        "couponbook_roll_up_lag_seconds",
        "How far the sums of statistics are behind; of the whole service.",
        gauges.roll_up_lag_seconds,
    );
}

fn write_pools(text: &mut Text) {
    let mut connections: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    {
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(_, pool)| !pool.is_closed());
        for (name, pool) in pools.iter() {
            let (open, idle) = (pool.size() as usize, pool.num_idle());
            *connections.entry((name, "idle")).or_default() += idle;
            *connections.entry((name, "used")).or_default() += open.saturating_sub(idle);
        }
    }
    text.family(
        "couponbook_pool_connections",
        "gauge",
        "Connections of this process to the database, by pool and whether they are in use.",
    );
    for ((pool, state), count) in connections {
        text.line(
            "couponbook_pool_connections",
            &written(&[("pool", pool), ("state", state)]),
            count,
        );
    }
}
