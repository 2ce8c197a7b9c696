//! What must hold in the database after any fault, read from the tables themselves, and what the tests of faults share.
//!
//! Invariant: the checks know nothing of how the service works, only what it promised: every accepted job ends once, a
//! code has one owner, and ledger, coupons, events, redemptions and allowances tell one story.
//! To add a check: a line in [`PROMISES`], a query that counts what breaks the promise.

#![allow(clippy::unwrap_used, reason = "what a test cannot read fails it")]

use std::{fmt::Debug, future::Future, time::Duration};

use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;

/// Sentence and query; the query counts what breaks the sentence. Coupons are given away by draws only.
const PROMISES: [(&str, &str); 16] = [
    (
        "every accepted job has ended",
        "SELECT count(*) FROM jobs WHERE finished_at IS NULL",
    ),
    (
        "a job that has ended is not in the queue",
        "SELECT count(*) FROM apalis.jobs WHERE job_type <> 'system'",
    ),
    (
        "no job is noted as being at work",
        "SELECT count(*) FROM job_marks m WHERE NOT EXISTS (SELECT FROM apalis.jobs q WHERE q.job_type = 'system')",
    ),
    (
        "no book's slot is held",
        "SELECT count(*) FROM code_job_slots",
    ),
    (
        "no code was given by two jobs",
        "SELECT count(*) FROM (SELECT FROM given GROUP BY book_id, code HAVING count(*) > 1) AS twice",
    ),
    (
        "what a job gave is held by its user",
        "SELECT count(*) FROM given g LEFT JOIN coupons c
             ON c.book_id = g.book_id AND coalesce(c.code, c.code_key) = g.code AND c.assigned_user_id = g.user_id
         WHERE c.code_key IS NULL",
    ),
    (
        "a job gave as many coupons as it was asked for, or none",
        "SELECT count(*) FROM jobs j WHERE j.kind = 'assign' AND j.payload -> 'wanted' ? 'draw'
             AND (SELECT count(*) FROM given g WHERE g.job_id = j.id)
                 <> CASE j.state WHEN 'succeeded' THEN (j.payload #>> '{wanted,draw}')::bigint ELSE 0 END",
    ),
    (
        "what is held was given by a job",
        "SELECT count(*) FROM coupons c LEFT JOIN given g
             ON c.book_id = g.book_id AND coalesce(c.code, c.code_key) = g.code
         WHERE c.assigned_user_id IS NOT NULL AND g.job_id IS NULL",
    ),
    (
        "every assignment has one event, of its job",
        "SELECT count(*) FROM given g FULL JOIN (
             SELECT e.book_id, coalesce(c.code, e.code_key) AS code, e.job_id, count(*) AS times
             FROM events e JOIN coupons c ON c.book_id = e.book_id AND c.code_key = e.code_key
             WHERE e.kind = 'coupon_assigned' GROUP BY 1, 2, 3) AS e
             ON e.book_id = g.book_id AND e.code = g.code AND e.job_id = g.job_id
         WHERE e.times IS DISTINCT FROM 1 OR g.job_id IS NULL",
    ),
    (
        "allowances count what is held",
        "SELECT count(*) FROM user_allowances a FULL JOIN (
             SELECT book_id, assigned_user_id AS user_id, count(*) AS held FROM coupons
             WHERE assigned_user_id IS NOT NULL GROUP BY 1, 2) AS h
             ON h.book_id = a.book_id AND h.user_id = a.user_id
         WHERE coalesce(a.assigned_count, 0) <> coalesce(h.held, 0)",
    ),
    (
        "nobody holds more than the book allows",
        "SELECT count(*) FROM user_allowances a JOIN books b ON b.id = a.book_id
         WHERE a.assigned_count > b.max_assignments_per_user OR a.redeemed_count > b.max_redemptions_per_user",
    ),
    (
        "uses are redemptions",
        "SELECT count(*) FROM coupons c FULL JOIN (
             SELECT book_id, code_key, sum(CASE kind WHEN 'redemption' THEN 1 ELSE -1 END) AS used
             FROM redemptions GROUP BY 1, 2) AS r ON r.book_id = c.book_id AND r.code_key = c.code_key
         WHERE coalesce(c.redemptions_used, 0) <> coalesce(r.used, 0)",
    ),
    (
        "every redemption has one event",
        "SELECT count(*) FROM (
             SELECT FROM (
                 SELECT book_id, code_key, 1 AS n FROM redemptions WHERE kind = 'redemption'
                 UNION ALL
                 SELECT book_id, code_key, -1 FROM events WHERE kind = 'coupon_redeemed') AS sides
             GROUP BY book_id, code_key HAVING sum(n) <> 0) AS differing",
    ),
    (
        "a failed assign was refused for one of the reasons that its test provides",
        "SELECT count(*) FROM jobs WHERE state = 'failed' AND kind = 'assign'
             AND error_code NOT IN ('book_exhausted', 'assignment_limit_reached', 'attempts_exhausted', 'payload_undecodable')",
    ),
    (
        // What goes in steps may meet trouble in each of them.
        "attempts are bounded",
        "SELECT count(*) FROM jobs WHERE attempts > 6 AND kind = 'assign'",
    ),
    (
        "jobs made as many coupons as they say",
        "SELECT count(*) FROM (
             SELECT book_id, sum(made) AS said FROM (
                 SELECT book_id, accepted AS made FROM imports UNION ALL SELECT book_id, made FROM generations) AS jobs
             GROUP BY book_id) AS i
         WHERE said <> (SELECT count(*) FROM coupons c WHERE c.book_id = i.book_id)",
    ),
];

/// What the jobs say that they gave.
const GIVEN: &str = "CREATE TEMPORARY VIEW given AS
     SELECT j.id AS job_id, (c ->> 'book_id')::uuid AS book_id, c ->> 'code' AS code, (j.payload ->> 'user_id')::uuid AS user_id
     FROM jobs j CROSS JOIN LATERAL jsonb_array_elements(j.result::jsonb -> 'coupons') AS c
     WHERE j.kind = 'assign'";

/// Waits until no job is unfinished and nobody is noted as being at work.
///
/// # Panics
/// When that takes longer than `patience`; shows what is left.
pub(crate) async fn all_jobs_end(pool: &PgPool, patience: Duration) {
    let left = || async {
        let left: (i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM jobs WHERE finished_at IS NULL),
                    (SELECT count(*) FROM apalis.jobs WHERE job_type <> 'system'),
                    (SELECT count(*) FROM job_marks)",
        )
        .fetch_one(pool)
        .await
        .unwrap();
        left
    };
    eventually(
        "unfinished jobs, rows in the queue, marks: none",
        patience,
        left,
        |left| *left == (0, 0, 0),
    )
    .await;
}

/// Checks every promise.
///
/// # Panics
/// When one is broken; says which ones.
pub(crate) async fn holds(pool: &PgPool) {
    let mut connection = pool.acquire().await.unwrap();
    let broken = broken(&mut connection).await;
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The promises that are broken, each with how often.
pub(crate) async fn broken(connection: &mut PgConnection) -> Vec<String> {
    // One pool's connections come and go: the view lives as long as this one, and is made once.
    sqlx::raw_sql("DROP VIEW IF EXISTS given")
        .execute(&mut *connection)
        .await
        .unwrap();
    sqlx::raw_sql(GIVEN).execute(&mut *connection).await.unwrap();
    let mut broken = Vec::new();
    for (promise, sql) in PROMISES {
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut *connection).await.unwrap();
        if count > 0 {
            broken.push(format!("{promise}: broken {count} times"));
        }
    }
    sqlx::raw_sql("DROP VIEW given")
        .execute(&mut *connection)
        .await
        .unwrap();
    broken
}

/// Looks until `looks` gives something that is `good`, every 20 ms.
///
/// # Panics
/// When that takes longer than `patience`; shows what was seen last.
pub(crate) async fn eventually<T: Debug, F: Future<Output = T>>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> F,
    good: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        let seen = look().await;
        if good(&seen) {
            return seen;
        }
        assert!(
            Instant::now() < deadline,
            "not within {patience:?}: {what}; last seen: {seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How long a test waits for what must happen, on a machine that may be slow; it says nothing of how soon it should.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);

/// Waits until a query of one boolean says true.
pub(crate) async fn until(pool: &PgPool, what: &'static str, sql: &'static str) {
    let look = || async { sqlx::query_scalar::<_, bool>(sql).fetch_one(pool).await.unwrap() };
    eventually(what, PATIENCE, look, |is| *is).await;
}

/// Random numbers that can be had again: SplitMix64 (Steele, Lea, Flood 2014), seeded by `COUPONBOOK_SEED` or the
/// clock; says its seed on stderr.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    #[expect(clippy::print_stderr, reason = "a failed run is repeated with its seed")]
    pub(crate) fn new(test: &str) -> Self {
        let given = std::env::var("COUPONBOOK_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            since_1970.as_nanos() as u64
        });
        eprintln!("{test}: COUPONBOOK_SEED={seed}");
        Self(seed)
    }

    /// Another one that goes its own way.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0 … n - 1.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A time below so many milliseconds.
    pub(crate) fn millis(&mut self, below: usize) -> Duration {
        Duration::from_millis(self.below(below) as u64)
    }
}

/// A line of figures for whoever runs the test.
#[expect(clippy::print_stderr, reason = "the figures of a run are its result")]
pub(crate) fn report(line: &str) {
    eprintln!("{line}");
}
