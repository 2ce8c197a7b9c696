//! What a process measures of itself, as Prometheus reads it (text format 0.0.4).
//!
//! Invariant: labels come from fixed sets (templates of paths, never paths; kinds, states, queues), so that the number
//! of series is bounded and no code, token or name can ever be in one. A measurement costs one look-up under a read lock
//! and two additions; nothing waits for whoever reads.
//!
//! To add a measurement: a static below, with its help, and a line in [`exposition::Exposition::text`].

pub mod exposition;
mod process;

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::PgPool;

use crate::{db::Db, job::claim::Ending};

/// Requests, by method, template of the path and status.
pub static HTTP_REQUESTS: Histogram = Histogram::new(
    "http_server_request_duration_seconds",
    "Time from the head of a request to that of its answer, by method, path template and status.",
    &[
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ],
);

/// Jobs that this process brought to an end, by kind.
static JOB_DURATIONS: Histogram = Histogram::new(
    "couponbook_job_duration_seconds",
    "Time from the acceptance of a job to its end, by kind; of jobs that this process ended.",
    &[
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
    ],
);

/// The same, by kind and final state.
static JOBS_FINISHED: Counter = Counter::new(
    "couponbook_jobs_finished_total",
    "Jobs that this process ended, by kind and final state.",
);

/// Runs of jobs that ended in trouble.
static JOB_TROUBLES: Counter = Counter::new(
    "couponbook_job_attempts_charged_total",
    "Attempts charged to jobs whose run ended in trouble or in a crash, by this process.",
);

/// Counts a request.
pub fn request(method: &str, route: &str, status: u16, took: Duration) {
    let method = match method {
        "GET" | "POST" | "PATCH" | "PUT" | "DELETE" | "HEAD" | "OPTIONS" => method,
        _ => "other", // a client may make up any
    };
    let status = status.to_string();
    HTTP_REQUESTS.record(
        &[("method", method), ("route", route), ("status", &status)],
        took.as_secs_f64(),
    );
}

/// Counts jobs that ended; after the commit, so that what was rolled back never counts.
pub fn jobs_ended(endings: &[Ending]) {
    for ending in endings {
        JOB_DURATIONS.record(&[("kind", &ending.kind)], ending.seconds);
        JOBS_FINISHED.add(&[("kind", &ending.kind), ("state", &ending.state)], 1);
    }
}

/// Counts attempts charged.
pub fn attempts_charged(jobs: usize) {
    JOB_TROUBLES.add(&[], jobs as u64);
}

/// The pools of this process.
static POOLS: Mutex<Vec<(&'static str, PgPool)>> = Mutex::new(Vec::new());

/// Shows a pool's connections from now on, until it is closed.
pub fn watch_pool(name: &'static str, db: &Db) {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    pools.retain(|(_, pool)| !pool.is_closed());
    pools.push((name, db.pool().clone()));
}

/// Series of one family by their labels, as they are written.
type Series<T> = RwLock<BTreeMap<String, Arc<T>>>;

fn series<T: Default>(all: &Series<T>, labels: &[(&str, &str)]) -> Arc<T> {
    let labels = written(labels);
    if let Some(one) = all.read().unwrap_or_else(PoisonError::into_inner).get(&labels) {
        return Arc::clone(one);
    }
    let mut all = all.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(all.entry(labels).or_default())
}

/// Durations in buckets.
#[derive(Debug)]
pub struct Histogram {
    name: &'static str,
    help: &'static str,
    bounds: &'static [f64],
    series: Series<Buckets>,
}

/// Room for one more bucket than any family has bounds: the last has none.
const MOST_BUCKETS: usize = 16;

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; MOST_BUCKETS],
    sum_nanos: AtomicU64,
}

impl Histogram {
    const fn new(name: &'static str, help: &'static str, bounds: &'static [f64]) -> Self {
        assert!(bounds.len() < MOST_BUCKETS);
        Self {
            name,
            help,
            bounds,
            series: RwLock::new(BTreeMap::new()),
        }
    }

    fn record(&self, labels: &[(&str, &str)], seconds: f64) {
        let one = series(&self.series, labels);
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        one.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = (seconds.max(0.0) * 1e9) as u64;
        one.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn write(&self, text: &mut Text) {
        text.family(self.name, "histogram", self.help);
        let all = self.series.read().unwrap_or_else(PoisonError::into_inner);
        for (labels, one) in all.iter() {
            let comma = if labels.is_empty() { "" } else { "," };
            let mut count = 0;
            for (number, bucket) in one.counts[..=self.bounds.len()].iter().enumerate() {
                count += bucket.load(Ordering::Relaxed);
                let bound = self
                    .bounds
                    .get(number)
                    .map_or("+Inf".to_owned(), ToString::to_string);
                text.line(
                    &format!("{}_bucket", self.name),
                    &format!("{labels}{comma}le=\"{bound}\""),
                    count,
                );
            }
            let sum = one.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9;
            text.line(&format!("{}_sum", self.name), labels, sum);
            text.line(&format!("{}_count", self.name), labels, count);
        }
    }
}

/// A number that only grows.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    help: &'static str,
    series: Series<AtomicU64>,
}

impl Counter {
    const fn new(name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            series: RwLock::new(BTreeMap::new()),
        }
    }

    fn add(&self, labels: &[(&str, &str)], count: u64) {
        series(&self.series, labels).fetch_add(count, Ordering::Relaxed);
    }

    fn write(&self, text: &mut Text) {
        text.family(self.name, "counter", self.help);
        let all = self.series.read().unwrap_or_else(PoisonError::into_inner);
        for (labels, one) in all.iter() {
            text.line(self.name, labels, one.load(Ordering::Relaxed));
        }
    }
}

/// An answer in the making.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, sort: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {sort}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    /// A family with one series.
    fn gauge(&mut self, name: &str, help: &str, value: impl fmt::Display) {
        self.family(name, "gauge", help);
        self.line(name, "", value);
    }
}

/// Labels as they stand between the braces.
fn written(labels: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        let comma = if text.is_empty() { "" } else { "," };
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let _ = write!(text, "{comma}{name}=\"{value}\"");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_has_one_line_for_each_bound() {
        static TRIED: Histogram = Histogram::new("tried_seconds", "How long.", &[0.1, 1.0]);
        for seconds in [0.1, 0.5, 7.0] {
            TRIED.record(&[("kind", "a\"b")], seconds);
        }
        let mut text = Text::default();
        TRIED.write(&mut text);
        let expected = r#"# HELP tried_seconds How long.
# TYPE tried_seconds histogram
tried_seconds_bucket{kind="a\"b",le="0.1"} 1
tried_seconds_bucket{kind="a\"b",le="1"} 2
tried_seconds_bucket{kind="a\"b",le="+Inf"} 3
tried_seconds_sum{kind="a\"b"} 7.6
tried_seconds_count{kind="a\"b"} 3
"#;
        assert_eq!(text.0, expected);
    }
}
