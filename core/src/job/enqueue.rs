//! The only writer of the queue: a job's line in the ledger and its row in the queue, in the caller's transaction.
//!
//! Invariant: the two rows commit together with whatever else the transaction does, or not at all.

use apalis_core::task::{builder::TaskBuilder, task_id::TaskId};
use apalis_postgres::queries;
use sqlx::PgConnection;
use ulid::Ulid;
use uuid::Uuid;

use super::payload::Payload;
use crate::{
    caller::Actor,
    error::{Result, StoreError},
    id,
};

/// Jobs are due from the beginning of time, so that no client's clock can delay them; among those due, ids give the order.
const DUE_AT_ONCE: u64 = 0;

/// A job to be accepted.
#[derive(Debug)]
pub struct NewJob<'a> {
    /// What to do.
    pub payload: &'a Payload,
    /// Who asked.
    pub actor: Actor,
    /// The book it is about.
    pub book_id: Option<Uuid>,
    /// Units in all, when known from the start.
    pub total: Option<i64>,
    /// The request that asked.
    pub request_id: Option<&'a str>,
}

/// Accepts jobs that clients poll; gives their ids, in order.
///
/// # Errors
/// When the database fails.
///
/// # Panics
/// When a payload has no kind or the actor is the service itself: those are enqueued by [`upkeep`].
pub async fn enqueue(connection: &mut PgConnection, jobs: &[NewJob<'_>]) -> Result<Vec<Uuid>> {
    let ids: Vec<Uuid> = jobs.iter().map(|_| id::new()).collect();
    enqueue_as(connection, &ids, jobs).await?;
    Ok(ids)
}

/// The same under ids that were made before, so that somebody can wait for a job before it exists.
///
/// # Errors
/// When the database fails.
///
/// # Panics
/// As [`enqueue`].
pub async fn enqueue_as(
    connection: &mut PgConnection,
    ids: &[Uuid],
    jobs: &[NewJob<'_>],
) -> Result<(), StoreError> {
    let mut rows = Ledger::default();
    for job in jobs {
        let kind = job.payload.kind().expect("a job that clients poll has a kind");
        rows.created_by
            .push(job.actor.id.expect("a job that clients poll has an owner"));
        rows.created_by_kind.push(job.actor.kind.as_str());
        rows.book_id.push(job.book_id);
        rows.kind.push(kind.as_str());
        rows.unit.push(kind.unit());
        rows.total.push(job.total);
        rows.request_id.push(job.request_id);
        rows.payload.push(encode(job.payload));
    }
    sqlx::query(
        "INSERT INTO jobs (id, created_by, created_by_kind, book_id, kind, progress_unit, progress_total, request_id, payload)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::jsonb[])",
    )
    .bind(ids)
    .bind(rows.created_by)
    .bind(rows.created_by_kind)
    .bind(rows.book_id)
    .bind(rows.kind)
    .bind(rows.unit)
    .bind(rows.total)
    .bind(rows.request_id)
    .bind(rows.payload)
    .execute(&mut *connection)
    .await?;
    push(
        connection,
        ids.iter().copied().zip(jobs.iter().map(|job| job.payload)),
    )
    .await
}

/// Puts the service's own upkeep into its queue; nobody polls it.
///
/// # Errors
/// When the database fails.
pub async fn upkeep(connection: &mut PgConnection, payload: &Payload) -> Result<()> {
    Ok(push(connection, [(id::new(), payload)].into_iter()).await?)
}

/// Puts existing jobs back into the queue.
///
/// # Errors
/// When the database fails.
pub async fn requeue<'a>(
    connection: &mut PgConnection,
    jobs: impl Iterator<Item = (Uuid, &'a Payload)>,
) -> Result<()> {
    Ok(push(connection, jobs).await?)
}

async fn push<'a>(
    connection: &mut PgConnection,
    rows: impl Iterator<Item = (Uuid, &'a Payload)>,
) -> Result<(), StoreError> {
    let mut by_queue: Vec<(&'static str, Vec<_>)> = Vec::new();
    for (job_id, payload) in rows {
        let task = TaskBuilder::new(serde_json::to_vec(payload).expect("payloads are plain data"))
            .task_id(TaskId::from_ulid(Ulid::from_bytes(job_id.into_bytes())))
            .run_at_timestamp(DUE_AT_ONCE)
            .build();
        let queue = payload.queue().name();
        match by_queue.iter_mut().find(|(name, _)| *name == queue) {
            Some((_, tasks)) => tasks.push(task),
            None => by_queue.push((queue, vec![task])),
        }
    }
    for (queue, tasks) in by_queue {
        queries::push_tasks(connection, queue, tasks)
            .await
            .map_err(|error| match error {
                apalis_postgres::Error::Database(error) => StoreError::from(error),
                other => StoreError::Fault(sqlx::Error::Encode(other.to_string().into())),
            })?;
    }
    Ok(())
}

fn encode(payload: &Payload) -> serde_json::Value {
    serde_json::to_value(payload).expect("payloads are plain data")
}

/// The columns of the ledger's rows, each an array for one `unnest`.
#[derive(Default)]
struct Ledger<'a> {
    created_by: Vec<Uuid>,
    created_by_kind: Vec<&'static str>,
    book_id: Vec<Option<Uuid>>,
    kind: Vec<&'static str>,
    unit: Vec<&'static str>,
    total: Vec<Option<i64>>,
    request_id: Vec<Option<&'a str>>,
    payload: Vec<serde_json::Value>,
}
