//! What /metrics tells of the database, in one round trip that reads sums and the ends of indexes.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::time_of;
use crate::{error::StoreError, id, job::Queue};

/// How things stand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gauges {
    /// Due jobs by queue.
    pub jobs_due: BTreeMap<String, f64>,
    /// For how many seconds the oldest due job of a queue has been waiting.
    pub oldest_due_job_seconds: BTreeMap<String, f64>,
    /// Processes that work on a queue.
    pub workers: BTreeMap<String, f64>,
    /// Coupons of all books by state, from the sums.
    pub coupons: BTreeMap<String, f64>,
    /// Since when the oldest lapsed lock waits for its sweep, in seconds.
    pub lock_sweep_lag_seconds: f64,
    /// How far the sums are behind, in seconds.
    pub roll_up_lag_seconds: f64,
}

/// Rows of family, label, value and, where a time is in an id, the id. $1: the queues.
///
/// The oldest due job: most are due since the beginning of time and were made when their id says, the others have a
/// time of their own; so the first of either sort is asked for, of jobs never charged and of those charged.
pub const GAUGES: &str = "WITH q AS (SELECT unnest($1::text[]) AS name)
     SELECT 'now' AS family, NULL AS label, extract(epoch FROM now())::float8 AS value, NULL AS id
     UNION ALL
     SELECT 'due', q.name,
            ((SELECT count(*) FROM apalis.jobs j WHERE j.job_type = q.name AND j.run_at <= now() AND j.attempts = 0)
             + (SELECT count(*) FROM apalis.jobs j WHERE j.job_type = q.name AND j.run_at <= now() AND j.attempts > 0))::float8,
            NULL
     FROM q
     UNION ALL
     SELECT 'oldest', q.name, extract(epoch FROM first.run_at)::float8, first.id FROM q, LATERAL (
         (SELECT run_at, id FROM apalis.jobs j WHERE j.job_type = q.name AND j.attempts = 0 AND j.run_at <= now()
          ORDER BY run_at, id LIMIT 1)
         UNION ALL
         (SELECT run_at, id FROM apalis.jobs j WHERE j.job_type = q.name AND j.attempts = 0 AND j.run_at > 'epoch' AND j.run_at <= now()
          ORDER BY run_at, id LIMIT 1)
         UNION ALL
         (SELECT run_at, id FROM apalis.jobs j WHERE j.job_type = q.name AND j.attempts > 0 AND j.run_at <= now()
          ORDER BY run_at, id LIMIT 1)) AS first
     UNION ALL
     SELECT 'workers', q.name, count(DISTINCT a.application_name)::float8, NULL
     FROM q LEFT JOIN pg_stat_activity a
         ON a.datname = current_database() AND a.application_name LIKE 'couponbook-worker %'
        AND q.name = ANY (string_to_array(split_part(a.application_name, ' ', 2), ','))
     GROUP BY q.name
     UNION ALL
     SELECT 'coupons', s.state, s.count::float8, NULL
     FROM (SELECT * FROM book_hours WHERE book_id = '00000000-0000-0000-0000-000000000000' ORDER BY hour DESC LIMIT 1) AS h,
          LATERAL (VALUES ('unassigned', h.unassigned), ('assigned', h.assigned), ('locked', h.locked),
                          ('redeemed', h.redeemed), ('void', h.void)) AS s (state, count)
     UNION ALL
     (SELECT 'lapsed', NULL, extract(epoch FROM now() - locked_until)::float8, NULL FROM coupons
      WHERE state LIKE 'locked' AND locked_until <= now() ORDER BY locked_until LIMIT 1)
     UNION ALL
     SELECT 'rolled up', NULL, 0, events_before::text FROM roll_up_state";

/// Reads them.
///
/// # Errors
/// When the database fails.
pub async fn read(connection: &mut PgConnection) -> Result<Gauges, StoreError> {
    let rows: Vec<(String, Option<String>, f64, Option<String>)> = sqlx::query_as(GAUGES)
        .bind(Queue::ALL.map(Queue::name).as_slice())
        .fetch_all(connection)
        .await?;
    let now = rows
        .iter()
        .find(|(family, ..)| family == "now")
        .map_or(0.0, |(_, _, value, _)| *value);
    let mut gauges = Gauges::default();
    for queue in Queue::ALL {
        gauges.oldest_due_job_seconds.insert(queue.name().to_owned(), 0.0);
    }
    for state in ["unassigned", "assigned", "locked", "redeemed", "void"] {
        gauges.coupons.insert(state.to_owned(), 0.0);
    }
    let seconds = |id: uuid::Uuid| time_of(id).timestamp_millis() as f64 / 1_000.0;
    for (family, label, value, id) in rows {
        let label = label.unwrap_or_default();
        match family.as_str() {
            "due" => drop(gauges.jobs_due.insert(label, value)),
            "workers" => drop(gauges.workers.insert(label, value)),
            "coupons" => drop(gauges.coupons.insert(label, value)),
            "lapsed" => gauges.lock_sweep_lag_seconds = value,
            "oldest" => {
                let made = id.as_deref().and_then(id::from_ulid_text).map_or(0.0, seconds);
                // A clock of another machine may be ahead.
                let waited = (now - value.max(made)).max(0.0);
                let oldest = gauges.oldest_due_job_seconds.entry(label).or_default();
                *oldest = oldest.max(waited);
            }
            "rolled up" => {
                let until = id.and_then(|id| id.parse().ok()).map_or(0.0, seconds);
                gauges.roll_up_lag_seconds = (now - until).max(0.0);
            }
            _ => {}
        }
    }
    Ok(gauges)
}
