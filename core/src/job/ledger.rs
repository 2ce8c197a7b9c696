//! The ledger of jobs: what clients read, and what an owner can ask of a job.
//!
//! Invariant: a job that has ended never changes again, except by an explicit retry.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Job, Progress, State, claim::Step, enqueue, payload::Payload};
use crate::{
    caller::{Caller, Scope},
    db::Db,
    error::{Code, Refusal, Result, StoreError},
    id,
    page::Page,
};

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    kind: String,
    state: String,
    progress_done: i64,
    progress_total: Option<i64>,
    progress_unit: String,
    counts: sqlx::types::Json<BTreeMap<String, i64>>,
    result: Option<sqlx::types::Json<Box<RawValue>>>,
    error_code: Option<String>,
    error_detail: Option<String>,
    attempts: i32,
    book_id: Option<Uuid>,
    created_by: Uuid,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    expired_at: Option<DateTime<Utc>>,
    seconds: Option<f64>,
}

macro_rules! select_jobs {
    ($rest:literal) => {
        concat!(
            "SELECT id, kind, state, progress_done, progress_total, progress_unit, counts, result, error_code, error_detail,
                    attempts, book_id, created_by, created_at, started_at, finished_at, expired_at,
                    extract(epoch FROM coalesce(finished_at, clock_timestamp()) - started_at)::float8 AS seconds
             FROM jobs ",
            $rest
        )
    };
}

impl From<Row> for Job {
    fn from(row: Row) -> Self {
        let rate = row
            .seconds
            .filter(|seconds| *seconds > 0.0 && row.progress_done > 0)
            .map(|seconds| row.progress_done as f64 / seconds);
        let finished = row.finished_at.is_some();
        let eta_seconds = match (row.progress_total, rate) {
            (Some(total), Some(rate)) if !finished => {
                Some(((total - row.progress_done).max(0)) as f64 / rate)
            }
            _ => None,
        };
        Self {
            id: row.id,
            has_errors: matches!(
                row.kind.as_str(),
                "import" | "assign_batch" | "pool_import" | "distribute"
            ),
            kind: row.kind,
            state: State::parse(&row.state).unwrap_or(State::Failed),
            progress: Progress {
                done: row.progress_done,
                total: row.progress_total,
                unit: row.progress_unit,
                rate,
                eta_seconds,
            },
            counts: row.counts.0,
            result: row.result.map(|result| result.0),
            error: row
                .error_code
                .map(|code| (code, row.error_detail.unwrap_or_default())),
            attempts: row.attempts,
            book_id: row.book_id,
            created_by: row.created_by,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            expired_at: row.expired_at,
        }
    }
}

/// A job ($1) of anybody ($2) or of one caller ($3).
pub const FIND: &str = select_jobs!("WHERE id = $1 AND ($2 OR created_by = $3)");

/// Jobs by their ids.
pub const FIND_ALL: &str = select_jobs!("WHERE id = ANY($1::uuid[])");

/// Those of these jobs that have ended.
const FIND_ENDED: &str = select_jobs!("WHERE id = ANY($1::uuid[]) AND finished_at IS NOT NULL");

/// Jobs by their ids, whoever asked for them, in one statement; `None` where there is none.
///
/// # Errors
/// When the database fails.
pub async fn find_all(db: Db, ids: Vec<Uuid>) -> Result<Vec<Option<Job>>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(FIND_ALL).bind(&ids).fetch_all(db.pool()).await?;
    let found: HashMap<Uuid, Job> = rows.into_iter().map(|row| (row.id, row.into())).collect();
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

/// Those of these jobs that have ended.
pub(super) async fn find_ended(db: &Db, ids: &[Uuid]) -> Result<Vec<Job>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<Row> = sqlx::query_as(FIND_ENDED).bind(ids).fetch_all(db.pool()).await?;
    Ok(rows.into_iter().map(Job::from).collect())
}

impl Job {
    /// Whether it exists for `caller`: its own, or any for administrators and readers.
    pub fn is_visible_to(&self, caller: &Caller) -> bool {
        self.created_by == caller.id || caller.may(Scope::Read)
    }
}

/// A job as `caller` may see it: its own, or any for administrators and readers.
///
/// # Errors
/// `not_found`.
pub async fn find(connection: &mut PgConnection, caller: &Caller, job_id: Uuid) -> Result<Job> {
    find_if(connection, caller, caller.may(Scope::Read), job_id).await
}

/// A job that `caller` may change: its own, or any for administrators.
async fn find_to_change(connection: &mut PgConnection, caller: &Caller, job_id: Uuid) -> Result<Job> {
    find_if(connection, caller, caller.is_admin(), job_id).await
}

async fn find_if(connection: &mut PgConnection, caller: &Caller, any: bool, job_id: Uuid) -> Result<Job> {
    let row: Option<Row> = sqlx::query_as(FIND)
        .bind(job_id)
        .bind(any)
        .bind(caller.id)
        .fetch_optional(connection)
        .await?;
    row.map(Job::from).ok_or_else(|| Refusal::not_found().into())
}

/// What a list of jobs is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this kind.
    pub kind: Option<String>,
    /// Only in this state.
    pub state: Option<State>,
    /// Only about this book.
    pub book_id: Option<Uuid>,
}

/// Jobs, newest first, narrowed to an owner or a book by a condition that an index answers. One statement for each,
/// since an optional condition (`$n IS NULL OR …`) is no bound of an index once the statement is prepared.
macro_rules! list_jobs {
    ($narrowed:literal) => {
        concat!(
            select_jobs!("WHERE id < coalesce($1::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff') "),
            $narrowed,
            " AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR state = $3) ORDER BY id DESC LIMIT $4"
        )
    };
}

/// Anybody's jobs.
pub const LIST: &str = list_jobs!("");

/// Anybody's jobs about a book.
pub const LIST_OF_BOOK: &str = list_jobs!("AND book_id = $5");

/// One owner's jobs, about a book if one is given.
pub const LIST_OF_OWNER: &str = list_jobs!("AND created_by = $5 AND ($6::uuid IS NULL OR book_id = $6)");

/// The jobs that `caller` may see, newest first, behind `after`.
///
/// # Errors
/// When the database fails.
pub async fn list(
    connection: &mut PgConnection,
    caller: &Caller,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Page<Job>> {
    let any = caller.may(Scope::Read);
    let sql = match (any, filter.book_id) {
        (true, None) => LIST,
        (true, Some(_)) => LIST_OF_BOOK,
        (false, _) => LIST_OF_OWNER,
    };
    let query = sqlx::query_as(sql)
        .bind(after)
        .bind(filter.kind.as_deref())
        .bind(filter.state.map(State::as_str))
        .bind(limit + 1);
    let query = match (any, filter.book_id) {
        (true, None) => query,
        (true, Some(book_id)) => query.bind(book_id),
        (false, book_id) => query.bind(caller.id).bind(book_id),
    };
    let rows: Vec<Row> = query.fetch_all(connection).await?;
    Ok(Page::cut(rows.into_iter().map(Job::from).collect(), limit))
}

/// One thing that a job could not do, as clients see it.
#[derive(Debug, Clone)]
pub struct ErrorLine {
    /// Its place in the list.
    pub seq: i64,
    /// The line or item.
    pub entry: serde_json::Value,
}

/// What a job could not do, in order, behind `after`.
///
/// # Errors
/// `not_found`, `expired`.
pub async fn list_errors(
    connection: &mut PgConnection,
    caller: &Caller,
    job_id: Uuid,
    after: Option<i64>,
    limit: i64,
) -> Result<Page<ErrorLine>> {
    find(connection, caller, job_id).await?.require_kept()?;
    let rows: Vec<(i64, serde_json::Value)> = sqlx::query_as(
        "SELECT seq, entry FROM job_errors WHERE job_id = $1 AND seq > coalesce($2, -1) ORDER BY seq LIMIT $3",
    )
    .bind(job_id)
    .bind(after)
    .bind(limit + 1)
    .fetch_all(connection)
    .await?;
    Ok(Page::cut(rows, limit).map(|(seq, entry)| ErrorLine { seq, entry }))
}

/// Asks a job to stop. One that no worker has yet is cancelled at once; another stops at its next step and keeps what
/// it has committed.
///
/// # Errors
/// `not_found`, `job_finished`.
pub async fn cancel(connection: &mut PgConnection, caller: &Caller, job_id: Uuid) -> Result<Job> {
    let job = find_to_change(connection, caller, job_id).await?;
    // The queue's row first, as workers do, and without waiting for one that is at work.
    let dequeued = sqlx::query(
        "DELETE FROM apalis.jobs WHERE id = (
             SELECT q.id FROM apalis.jobs q JOIN jobs j ON j.id = $2
             WHERE q.id = $1 AND j.started_at IS NULL FOR UPDATE OF q SKIP LOCKED)",
    )
    .bind(id::to_ulid_text(job.id))
    .bind(job.id)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    let sql = if dequeued > 0 {
        "WITH freed AS (DELETE FROM code_job_slots WHERE job_id = $1),
              unmarked AS (DELETE FROM job_marks WHERE job_id = $1)
         UPDATE jobs SET state = 'cancelled', finished_at = clock_timestamp(), cancel_requested_at = now()
         WHERE id = $1 AND finished_at IS NULL"
    } else {
        "UPDATE jobs SET state = 'cancelling', cancel_requested_at = coalesce(cancel_requested_at, now())
         WHERE id = $1 AND finished_at IS NULL"
    };
    if sqlx::query(sql)
        .bind(job.id)
        .execute(&mut *connection)
        .await?
        .rows_affected()
        == 0
    {
        return Err(Refusal::new(
            Code::JobFinished,
            "The job has ended already; there is nothing to cancel.",
        )
        .into());
    }
    find(connection, caller, job_id).await
}

/// Whether somebody asked the job to stop; a step asks this first.
///
/// # Errors
/// When the database fails.
pub async fn is_cancelled(connection: &mut PgConnection, job_id: Uuid) -> Result<bool, StoreError> {
    Ok(
        sqlx::query_scalar("SELECT cancel_requested_at IS NOT NULL FROM jobs WHERE id = $1")
            .bind(job_id)
            .fetch_optional(connection)
            .await?
            .unwrap_or(false),
    )
}

/// Writes how far a job is that goes on.
///
/// # Errors
/// When the database fails.
pub(crate) async fn progress(
    connection: &mut PgConnection,
    job_id: Uuid,
    step: Step,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE jobs SET state = CASE WHEN state = 'queued' THEN 'running' ELSE state END,
             started_at = coalesce(started_at, now()),
             progress_done = $2, progress_total = coalesce($3, progress_total), counts = $4
         WHERE id = $1 AND finished_at IS NULL",
    )
    .bind(job_id)
    .bind(step.done)
    .bind(step.total)
    .bind(sqlx::types::Json(step.counts))
    .execute(connection)
    .await?;
    Ok(())
}

/// The failures that trying again can mend: trouble of the service, not a refusal of the domain.
pub(super) const RETRYABLE: [Code; 3] = [Code::AttemptsExhausted, Code::PayloadUndecodable, Code::Internal];

/// Queues a job again that was given up: infrastructure trouble and crashes, not what the domain refused.
///
/// # Errors
/// `not_found`, `job_not_retryable`.
pub async fn retry(connection: &mut PgConnection, caller: &Caller, job_id: Uuid) -> Result<Job> {
    find_to_change(connection, caller, job_id).await?;
    let payload: Option<sqlx::types::Json<Payload>> = sqlx::query_scalar(
        "UPDATE jobs SET state = 'queued', finished_at = NULL, error_code = NULL, error_detail = NULL, result = NULL,
                attempts = 0, cancel_requested_at = NULL
         WHERE id = $1 AND state = 'failed' AND error_code = ANY($2::text[]) AND expired_at IS NULL
         RETURNING payload",
    )
    .bind(job_id)
    .bind(RETRYABLE.map(Code::as_str).as_slice())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(payload) = payload else {
        let detail = "Only a job that failed for trouble of the service and has lost nothing to retention can be tried again.";
        return Err(Refusal::new(Code::JobNotRetryable, detail).into());
    };
    enqueue::requeue(connection, [(job_id, &payload.0)].into_iter()).await?;
    find(connection, caller, job_id).await
}
