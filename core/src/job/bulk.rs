//! Asking many jobs at once to stop, or trying many again.
//!
//! Invariant: the person said how many jobs that would be; if it is another number by now, nothing happens.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Queue, enqueue, ledger::Filter, payload::Payload};
use crate::{
    error::{Code, Error, Refusal, Result},
    id,
};

/// The most jobs of one request.
pub const MAX_JOBS: i64 = 10_000;

/// What is to happen to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Try those again that were given up for trouble of the service.
    Retry,
    /// Ask those that have not ended to stop.
    Cancel,
}

/// How many jobs are in each state, exact: the sums, what is not in them yet, and the queue. Every job that has not
/// ended has its row there, so those that neither run nor are being cancelled are queued.
pub const COUNTS: &str = "WITH changes AS (
         SELECT state, jobs FROM job_totals
         UNION ALL SELECT left_state, -jobs FROM job_changes
         UNION ALL SELECT entered_state, jobs FROM job_changes),
     totals AS (SELECT state, sum(jobs)::bigint AS jobs FROM changes WHERE state <> 'queued' GROUP BY state)
     SELECT state, jobs FROM totals
     UNION ALL
     SELECT 'queued', (SELECT count(*) FROM apalis.jobs q WHERE q.job_type <> $1)
         - coalesce((SELECT sum(jobs) FROM totals WHERE state IN ('running', 'cancelling')), 0)::bigint";

/// How many jobs are in each state. Reads some rows of sums and the queue, never the ledger.
///
/// # Errors
/// When the database fails.
pub async fn counts(connection: &mut PgConnection) -> Result<Vec<(String, i64)>> {
    Ok(sqlx::query_as(COUNTS)
        .bind(Queue::System.name())
        .fetch_all(connection)
        .await?)
}

/// Does `action` to every job that matches and that it can be done to, if they are as many as `expected`; gives how
/// many were changed.
///
/// # Errors
/// `count_changed`; `validation_failed` for more than [`MAX_JOBS`].
pub async fn apply(
    connection: &mut PgConnection,
    action: Action,
    filter: &Filter,
    expected: i64,
) -> Result<i64> {
    if expected > MAX_JOBS {
        let detail = format!("At most {MAX_JOBS} jobs at once; narrow the filter.");
        return Err(Error::invalid("/expected_count", "out_of_range", detail));
    }
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM jobs
         WHERE CASE WHEN $1 THEN state = 'failed' AND error_code = ANY($2::text[]) ELSE finished_at IS NULL AND state <> 'cancelling' END
           AND ($3::text IS NULL OR kind = $3) AND ($4::text IS NULL OR state = $4) AND ($5::uuid IS NULL OR book_id = $5)
         ORDER BY id LIMIT $6",
    )
    .bind(action == Action::Retry)
    .bind(super::ledger::RETRYABLE.map(Code::as_str).as_slice())
    .bind(filter.kind.as_deref())
    .bind(filter.state.map(super::State::as_str))
    .bind(filter.book_id)
    .bind(MAX_JOBS + 1)
    .fetch_all(&mut *connection)
    .await?;
    let found = i64::try_from(ids.len()).unwrap_or(i64::MAX);
    if found != expected {
        let detail = format!("{found} jobs match by now, not {expected}; look again and repeat.");
        return Err(Refusal::new(Code::CountChanged, detail).into());
    }
    match action {
        Action::Retry => retry(connection, &ids).await,
        Action::Cancel => cancel(connection, &ids).await,
    }
}

async fn retry(connection: &mut PgConnection, ids: &[Uuid]) -> Result<i64> {
    let rows: Vec<(Uuid, sqlx::types::Json<Payload>)> = sqlx::query_as(
        "UPDATE jobs SET state = 'queued', finished_at = NULL, error_code = NULL, error_detail = NULL, result = NULL,
                attempts = 0, cancel_requested_at = NULL
         WHERE id = ANY($1::uuid[]) AND state = 'failed' AND expired_at IS NULL RETURNING id, payload",
    )
    .bind(ids)
    .fetch_all(&mut *connection)
    .await?;
    enqueue::requeue(
        connection,
        rows.iter().map(|(job_id, payload)| (*job_id, &payload.0)),
    )
    .await?;
    Ok(i64::try_from(rows.len()).unwrap_or(i64::MAX))
}

async fn cancel(connection: &mut PgConnection, ids: &[Uuid]) -> Result<i64> {
    let queue_ids: Vec<String> = ids.iter().map(|job_id| id::to_ulid_text(*job_id)).collect();
    // Those that no worker has at this moment and that have not begun end at once; the others at their next step.
    let free: Vec<String> = sqlx::query_scalar(
        "SELECT q.id FROM apalis.jobs q
         JOIN unnest($1::text[], $2::uuid[]) AS n (queue_id, id) ON n.queue_id = q.id
         JOIN jobs j ON j.id = n.id AND j.started_at IS NULL
         FOR UPDATE OF q SKIP LOCKED",
    )
    .bind(&queue_ids)
    .bind(ids)
    .fetch_all(&mut *connection)
    .await?;
    let free_ids: Vec<Uuid> = free.iter().filter_map(|text| id::from_ulid_text(text)).collect();
    let changed = sqlx::query(
        "WITH dequeued AS (DELETE FROM apalis.jobs WHERE id = ANY($1::text[])),
         freed AS (DELETE FROM code_job_slots WHERE job_id = ANY($2::uuid[]))
         UPDATE jobs
         SET cancel_requested_at = now(),
             state = CASE WHEN id = ANY($2::uuid[]) THEN 'cancelled' ELSE 'cancelling' END,
             finished_at = CASE WHEN id = ANY($2::uuid[]) THEN clock_timestamp() END
         WHERE id = ANY($3::uuid[]) AND finished_at IS NULL",
    )
    .bind(&free)
    .bind(&free_ids)
    .bind(ids)
    .execute(connection)
    .await?;
    Ok(i64::try_from(changed.rows_affected()).unwrap_or(i64::MAX))
}
