//! What workers do to the queue: claim due rows under a row lock, settle them in the transaction of their effect.
//!
//! Invariant: a claimed row stays locked until the claiming transaction ends. It commits with the row deleted or armed
//! anew, or it rolls back and the row is due as before: no lease, no heartbeat, no orphan.
//!
//! Marks find poison: before a batch runs, its ids are noted in a commit of its own; the batch's transaction removes
//! the note. A row that is claimed and already noted was in a batch that crashed: it is charged an attempt and from
//! then on taken alone, so that it cannot take healthy rows down with it, until [`MAX_ATTEMPTS`] are used up.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{Queue, State, payload::Payload};
use crate::{
    error::{Code, Refusal, StoreError},
    id,
};

/// Runs that may end in trouble or in a crash before a job is given up.
pub const MAX_ATTEMPTS: i32 = 6;

/// A due row that this transaction has locked.
#[derive(Debug)]
pub struct Claimed {
    /// The job.
    pub id: Uuid,
    /// What to do; `None` when the payload cannot be read.
    pub payload: Option<Payload>,
    /// How often it was charged so far.
    pub attempts: i32,
}

/// Which rows a claim takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Rows never charged, many at once.
    Fresh,
    /// Rows charged before, one at a time.
    Charged,
}

#[derive(sqlx::FromRow)]
struct QueueRow {
    id: String,
    job: Vec<u8>,
    attempts: i32,
}

/// Due rows that were never charged, oldest first, from a place ($3) in the queue upwards.
pub const CLAIM_FRESH: &str = "SELECT id, job, attempts FROM apalis.jobs
     WHERE job_type = $1 AND run_at <= now() AND attempts = 0 AND (run_at, id) >= (to_timestamp(0), $3)
     ORDER BY run_at, id LIMIT $2 FOR UPDATE SKIP LOCKED";

/// Due rows that were charged before.
pub const CLAIM_CHARGED: &str = "SELECT id, job, attempts FROM apalis.jobs
     WHERE job_type = $1 AND run_at <= now() AND attempts > 0 AND id >= $3
     ORDER BY run_at, id LIMIT $2 FOR UPDATE SKIP LOCKED";

/// Where a claim of fresh rows begins.
///
/// What was done is deleted, but its entries stay at the head of the index until a vacuum, and longer while an old
/// snapshot is open: a claim from the very beginning reads them all, again and again. Jobs are taken in the order of
/// their ids, and ids follow time, so a claim begins a little below the last one taken. Every [`LOOK_BACK`] one begins
/// at the beginning, for rows that came back or whose id was made by a clock that is behind.
#[derive(Debug, Clone, Default)]
pub struct Place {
    from: String,
    looked_back: Option<Instant>,
}

/// How often a claim begins at the beginning: how long a row can be overlooked.
const LOOK_BACK: Duration = Duration::from_secs(1);

/// How far below the last id taken a claim begins: what usually lies between the making of an id and its commit, and not
/// so much that the entries of what was done meanwhile are read again and again.
const MARGIN: Duration = Duration::from_millis(200);

impl Place {
    /// Where this claim begins.
    fn begin(&mut self) -> &str {
        if self.looked_back.is_none_or(|at| at.elapsed() > LOOK_BACK) {
            self.looked_back = Some(Instant::now());
            return "";
        }
        &self.from
    }

    /// Remembers what was taken.
    fn took(&mut self, claimed: &[Claimed]) {
        if let Some(last) = claimed.iter().map(|row| row.id).max() {
            let from = id::to_ulid_text(id::earlier(last, MARGIN));
            if from > self.from {
                self.from = from;
            }
        }
    }
}

/// Locks up to `limit` due rows of a queue, oldest first, skipping those that another worker has.
///
/// # Errors
/// When the database fails.
pub async fn claim(
    connection: &mut PgConnection,
    queue: Queue,
    lane: Lane,
    limit: i64,
    place: &mut Place,
) -> Result<Vec<Claimed>, StoreError> {
    let (sql, limit, from) = match lane {
        Lane::Fresh => (CLAIM_FRESH, limit, place.begin()),
        Lane::Charged => (CLAIM_CHARGED, 1, ""),
    };
    let rows: Vec<QueueRow> = sqlx::query_as(sql)
        .bind(queue.name())
        .bind(limit)
        .bind(from)
        .fetch_all(&mut *connection)
        .await?;
    let mut claimed = Vec::with_capacity(rows.len());
    for row in rows {
        match id::from_ulid_text(&row.id) {
            Some(id) => claimed.push(Claimed {
                id,
                payload: serde_json::from_slice(&row.job).ok(),
                attempts: row.attempts,
            }),
            None => {
                // Nobody can be waiting for it: ids are made in one place, as ULIDs.
                tracing::error!(
                    queue = queue.name(),
                    "a row of the queue has an id that is no ULID; it is dropped"
                );
                sqlx::query("DELETE FROM apalis.jobs WHERE id = $1")
                    .bind(row.id)
                    .execute(&mut *connection)
                    .await?;
            }
        }
    }
    if lane == Lane::Fresh {
        place.took(&claimed);
    }
    Ok(claimed)
}

/// Notes that these jobs are about to run, in a commit of its own; gives those that were noted before, which is to say
/// that a run of theirs crashed.
///
/// # Errors
/// When the database fails.
pub async fn mark(pool: &PgPool, ids: &[Uuid]) -> Result<HashSet<Uuid>, StoreError> {
    // A lost mark loses a hint and a second commit's wait for the disk would cost more than the batch: do not wait.
    let fresh: Vec<Uuid> = sqlx::query_scalar(
        "WITH unsynced AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
         INSERT INTO job_marks (job_id) SELECT unnest($1::uuid[]) FROM unsynced
         ON CONFLICT DO NOTHING RETURNING job_id",
    )
    .bind(ids)
    .fetch_all(pool)
    .await?;
    let mut crashed: HashSet<Uuid> = ids.iter().copied().collect();
    for id in fresh {
        crashed.remove(&id);
    }
    Ok(crashed)
}

/// Takes the notes of [`mark`] back after a run that ended in trouble without a crash; best in the transaction that
/// gives the rows back.
///
/// # Errors
/// When the database fails.
pub async fn unmark(connection: &mut PgConnection, ids: &[Uuid]) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query("DELETE FROM job_marks WHERE job_id = ANY($1::uuid[])")
        .bind(ids)
        .execute(connection)
        .await?;
    Ok(())
}

/// How a run of a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The job is over.
    Finished(Finished),
    /// A step is done; the next is due at once, behind the other jobs of the queue.
    NextStep(Step),
    /// Not now: the step is tried again later, nothing is charged.
    Snoozed(Duration),
    /// Upkeep is done; it has no line in the ledger.
    UpkeepDone,
}

/// How far a job got in a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Step {
    /// Units done so far.
    pub done: i64,
    /// Units in all, once known.
    pub total: Option<i64>,
    /// Counters by name.
    pub counts: BTreeMap<String, i64>,
}

/// What a finished job leaves in the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// A final state.
    pub state: State,
    /// Units done.
    pub step: Step,
    /// What came of it.
    pub result: Option<serde_json::Value>,
    /// Why it failed.
    pub refusal: Option<Refusal>,
}

impl Finished {
    /// Done, with its result.
    pub fn succeeded(step: Step, result: serde_json::Value) -> Outcome {
        Outcome::Finished(Self {
            state: State::Succeeded,
            step,
            result: Some(result),
            refusal: None,
        })
    }

    /// The domain said no: a failed job with a stable code, never a retry.
    pub fn refused(refusal: Refusal) -> Outcome {
        Outcome::Finished(Self {
            state: State::Failed,
            step: Step::default(),
            result: None,
            refusal: Some(refusal),
        })
    }

    /// Its payload cannot be read by this version.
    pub fn undecodable() -> Outcome {
        Self::refused(Refusal::new(
            Code::PayloadUndecodable,
            "The job's payload cannot be read by this version.",
        ))
    }

    /// Tried too often.
    pub fn exhausted() -> Outcome {
        Self::refused(Refusal::new(
            Code::AttemptsExhausted,
            "The job ended in trouble or in a crash every time it was tried; see the service's log, then retry it.",
        ))
    }
}

/// A job that has ended, for those who measure.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Ending {
    /// Its kind.
    pub kind: String,
    /// How it ended.
    pub state: String,
    /// From its acceptance to its end, by the database's clock.
    pub seconds: f64,
}

/// Writes how jobs ended: the ledger, the queue and the marks, in one statement per sort of outcome. Gives those that
/// are over once this commits.
///
/// # Errors
/// When the database fails.
pub async fn settle(
    connection: &mut PgConnection,
    outcomes: Vec<(Uuid, Outcome)>,
) -> Result<Vec<Ending>, StoreError> {
    let mut over = Over::default();
    let mut going_on = GoingOn::default();
    for (id, outcome) in outcomes {
        match outcome {
            Outcome::Finished(finished) => over.push(id, finished),
            Outcome::UpkeepDone => over.dequeue(id),
            Outcome::NextStep(step) => going_on.push(id, Duration::ZERO, Some(step)),
            Outcome::Snoozed(delay) => going_on.push(id, delay, None),
        }
    }
    let endings = over.write(connection).await?;
    going_on.write(connection).await?;
    Ok(endings)
}

#[derive(Default)]
struct Over {
    queue_ids: Vec<String>,
    marked: Vec<Uuid>,
    ids: Vec<Uuid>,
    states: Vec<&'static str>,
    done: Vec<i64>,
    totals: Vec<Option<i64>>,
    counts: Vec<serde_json::Value>,
    results: Vec<Option<String>>,
    codes: Vec<Option<&'static str>>,
    details: Vec<Option<String>>,
}

impl Over {
    /// What every row leaves behind, also one without a line in the ledger.
    fn dequeue(&mut self, id: Uuid) {
        self.queue_ids.push(id::to_ulid_text(id));
        self.marked.push(id);
    }

    fn push(&mut self, id: Uuid, finished: Finished) {
        self.dequeue(id);
        self.ids.push(id);
        self.states.push(finished.state.as_str());
        self.done.push(finished.step.done);
        self.totals.push(finished.step.total);
        self.counts.push(counts_json(&finished.step.counts));
        self.results
            .push(finished.result.map(|result| result.to_string()));
        self.codes
            .push(finished.refusal.as_ref().map(|refusal| refusal.code.as_str()));
        self.details
            .push(finished.refusal.map(|refusal| refusal.detail.into_owned()));
    }

    async fn write(self, connection: &mut PgConnection) -> Result<Vec<Ending>, StoreError> {
        if self.queue_ids.is_empty() {
            return Ok(Vec::new());
        }
        let endings = sqlx::query_as(
            "WITH dequeued AS (DELETE FROM apalis.jobs WHERE id = ANY($1::text[]) RETURNING id),
             unmarked AS (DELETE FROM job_marks WHERE job_id = ANY($10::uuid[])),
             freed AS (DELETE FROM code_job_slots WHERE job_id = ANY($2::uuid[]))
             UPDATE jobs j
             SET state = o.state, progress_done = o.done, progress_total = coalesce(o.total, j.progress_total),
                 counts = o.counts, result = o.result::json, error_code = o.code, error_detail = o.detail,
                 started_at = coalesce(j.started_at, now()), finished_at = clock_timestamp()
             FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::bigint[], $6::jsonb[], $7::text[], $8::text[], $9::text[])
                  AS o (id, state, done, total, counts, result, code, detail)
             WHERE j.id = o.id AND j.finished_at IS NULL
             RETURNING j.kind, j.state, extract(epoch FROM j.finished_at - j.created_at)::float8 AS seconds",
        )
        .bind(self.queue_ids)
        .bind(self.ids)
        .bind(self.states)
        .bind(self.done)
        .bind(self.totals)
        .bind(self.counts)
        .bind(self.results)
        .bind(self.codes)
        .bind(self.details)
        .bind(self.marked)
        .fetch_all(connection)
        .await?;
        Ok(endings)
    }
}

#[derive(Default)]
struct GoingOn {
    queue_ids: Vec<String>,
    ids: Vec<Uuid>,
    delays: Vec<f64>,
    done: Vec<Option<i64>>,
    totals: Vec<Option<i64>>,
    counts: Vec<Option<serde_json::Value>>,
}

impl GoingOn {
    fn push(&mut self, id: Uuid, delay: Duration, step: Option<Step>) {
        self.queue_ids.push(id::to_ulid_text(id));
        self.ids.push(id);
        self.delays.push(delay.as_secs_f64());
        self.done.push(step.as_ref().map(|step| step.done));
        self.totals.push(step.as_ref().and_then(|step| step.total));
        self.counts.push(step.map(|step| counts_json(&step.counts)));
    }

    async fn write(self, connection: &mut PgConnection) -> Result<(), StoreError> {
        if self.queue_ids.is_empty() {
            return Ok(());
        }
        // A step that went well clears what was charged: attempts bound trouble in a row, not in a long job's life.
        sqlx::query(
            "WITH o AS (
                 SELECT * FROM unnest($1::text[], $2::uuid[], $3::float8[], $4::bigint[], $5::bigint[], $6::jsonb[])
                     AS o (queue_id, id, delay, done, total, counts)),
             armed AS (
                 UPDATE apalis.jobs q SET run_at = clock_timestamp() + make_interval(secs => o.delay), attempts = 0
                 FROM o WHERE q.id = o.queue_id),
             unmarked AS (DELETE FROM job_marks WHERE job_id = ANY($2::uuid[]))
             UPDATE jobs j
             SET state = CASE WHEN j.state = 'queued' THEN 'running' ELSE j.state END,
                 started_at = coalesce(j.started_at, now()),
                 progress_done = o.done, progress_total = coalesce(o.total, j.progress_total), counts = o.counts
             FROM o WHERE j.id = o.id AND o.done IS NOT NULL AND j.finished_at IS NULL",
        )
        .bind(self.queue_ids)
        .bind(self.ids)
        .bind(self.delays)
        .bind(self.done)
        .bind(self.totals)
        .bind(self.counts)
        .execute(connection)
        .await?;
        Ok(())
    }
}

fn counts_json(counts: &BTreeMap<String, i64>) -> serde_json::Value {
    counts
        .iter()
        .map(|(name, count)| (name.clone(), serde_json::Value::from(*count)))
        .collect()
}

/// Charges an attempt to jobs whose run ended in trouble: each is due again after its delay, alone.
///
/// # Errors
/// When the database fails.
pub async fn charge(connection: &mut PgConnection, jobs: &[(Uuid, Duration)]) -> Result<(), StoreError> {
    let queue_ids: Vec<String> = jobs.iter().map(|(job_id, _)| id::to_ulid_text(*job_id)).collect();
    let ids: Vec<Uuid> = jobs.iter().map(|(job_id, _)| *job_id).collect();
    let delays: Vec<f64> = jobs.iter().map(|(_, delay)| delay.as_secs_f64()).collect();
    sqlx::query(
        "WITH charged AS (
             UPDATE apalis.jobs q SET attempts = attempts + 1, run_at = clock_timestamp() + make_interval(secs => o.delay)
             FROM unnest($1::text[], $3::float8[]) AS o (id, delay) WHERE q.id = o.id),
         unmarked AS (DELETE FROM job_marks WHERE job_id = ANY($2::uuid[]))
         UPDATE jobs SET attempts = attempts + 1 WHERE id = ANY($2::uuid[])",
    )
    .bind(queue_ids)
    .bind(ids)
    .bind(delays)
    .execute(connection)
    .await?;
    Ok(())
}
