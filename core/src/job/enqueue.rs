//! The only writer of the queue: a job's line in the ledger and its row in the queue, in one statement.
//!
//! Invariant: the two rows commit together with whatever else the caller's transaction does, or not at all.
//!
//! The row is the one that apalis-postgres would push (its `sink.sql`), due from the beginning of time, so that no
//! client's clock can delay it; among those due, ids give the order.

use sqlx::PgConnection;
use uuid::Uuid;

use super::payload::Payload;
use crate::{
    caller::Actor,
    error::{Result, StoreError},
    id,
};

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
    /// The user it is for, if it is to be accepted only when book and user exist for the asker.
    pub beneficiary: Option<Beneficiary>,
}

/// For whom a job is.
#[derive(Debug, Clone, Copy)]
pub struct Beneficiary {
    /// The user.
    pub user_id: Uuid,
    /// Whether the asker is a plain user, for whom only books of self-service exist.
    pub as_user: bool,
}

/// Accepts a job that clients poll; gives its id.
///
/// # Errors
/// When the database fails.
///
/// # Panics
/// When the payload has no kind or the actor is the service itself: those are enqueued by [`upkeep`].
pub async fn enqueue(connection: &mut PgConnection, job: NewJob<'_>) -> Result<Uuid> {
    let job_id = id::new();
    enqueue_all(connection, &[job_id], &[job]).await?;
    Ok(job_id)
}

/// Puts rows into the queue: ids ($1), queues ($2), payloads ($3).
const PUSH: &str = "INSERT INTO apalis.jobs (id, job_type, job, run_at)
     SELECT n.id, n.queue, convert_to(n.payload, 'UTF8'), to_timestamp(0)
     FROM unnest($1::text[], $2::text[], $3::text[]) AS n (id, queue, payload)";

/// Lines of the ledger with their rows in the queue, for those jobs whose beneficiary ($12) and book exist for the asker
/// ($13), and those without.
pub const ENQUEUE: &str = "WITH n AS (
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::text[], $7::uuid[],
                              $8::text[], $9::text[], $10::bigint[], $11::text[], $12::uuid[], $13::bool[])
             AS n (id, queue_id, queue, payload, created_by, created_by_kind, book_id, kind, unit, total, request_id,
                   user_id, as_user)
         WHERE n.user_id IS NULL
            OR (EXISTS (SELECT FROM books b
                        WHERE b.id = n.book_id AND (NOT n.as_user OR (b.self_service AND b.status <> 'draft')))
                AND EXISTS (SELECT FROM users u WHERE u.id = n.user_id))),
     queued AS (
         INSERT INTO apalis.jobs (id, job_type, job, run_at)
         SELECT queue_id, queue, convert_to(payload, 'UTF8'), to_timestamp(0) FROM n)
     INSERT INTO jobs (id, created_by, created_by_kind, book_id, kind, progress_unit, progress_total, request_id, payload)
     SELECT id, created_by, created_by_kind, book_id, kind, unit, total, request_id, payload::jsonb FROM n
     RETURNING id";

/// Accepts jobs under ids that were made before, so that somebody can wait for one before it exists; gives the ids of
/// those that were accepted.
///
/// # Errors
/// When the database fails.
///
/// # Panics
/// As [`enqueue`].
pub async fn enqueue_all(
    connection: &mut PgConnection,
    ids: &[Uuid],
    jobs: &[NewJob<'_>],
) -> Result<Vec<Uuid>, StoreError> {
    let mut rows = Rows::default();
    for (job_id, job) in ids.iter().zip(jobs) {
        let kind = job.payload.kind().expect("a job that clients poll has a kind");
        rows.created_by
            .push(job.actor.id.expect("a job that clients poll has an owner"));
        rows.created_by_kind.push(job.actor.kind.as_str());
        rows.book_id.push(job.book_id);
        rows.kind.push(kind.as_str());
        rows.unit.push(kind.unit());
        rows.total.push(job.total);
        rows.request_id.push(job.request_id);
        rows.user_id.push(job.beneficiary.map(|of| of.user_id));
        rows.as_user.push(job.beneficiary.is_some_and(|of| of.as_user));
        rows.queued.push(*job_id, job.payload);
    }
    Ok(sqlx::query_scalar(ENQUEUE)
        .bind(ids)
        .bind(rows.queued.ids)
        .bind(rows.queued.queues)
        .bind(rows.queued.payloads)
        .bind(rows.created_by)
        .bind(rows.created_by_kind)
        .bind(rows.book_id)
        .bind(rows.kind)
        .bind(rows.unit)
        .bind(rows.total)
        .bind(rows.request_id)
        .bind(rows.user_id)
        .bind(rows.as_user)
        .fetch_all(connection)
        .await?)
}

/// Puts the service's own upkeep into its queue; nobody polls it.
///
/// # Errors
/// When the database fails.
pub async fn upkeep(connection: &mut PgConnection, payload: &Payload) -> Result<()> {
    push(connection, [(id::new(), payload)].into_iter()).await
}

/// Puts existing jobs back into the queue.
///
/// # Errors
/// When the database fails.
pub async fn requeue<'a>(
    connection: &mut PgConnection,
    jobs: impl Iterator<Item = (Uuid, &'a Payload)>,
) -> Result<()> {
    push(connection, jobs).await
}

async fn push<'a>(
    connection: &mut PgConnection,
    jobs: impl Iterator<Item = (Uuid, &'a Payload)>,
) -> Result<()> {
    let mut rows = Queued::default();
    for (job_id, payload) in jobs {
        rows.push(job_id, payload);
    }
    sqlx::query(PUSH)
        .bind(rows.ids)
        .bind(rows.queues)
        .bind(rows.payloads)
        .execute(connection)
        .await?;
    Ok(())
}

/// The columns of the queue's rows, each an array for one `unnest`.
#[derive(Default)]
struct Queued {
    ids: Vec<String>,
    queues: Vec<&'static str>,
    payloads: Vec<String>,
}

impl Queued {
    fn push(&mut self, job_id: Uuid, payload: &Payload) {
        self.ids.push(id::to_ulid_text(job_id));
        self.queues.push(payload.queue().name());
        self.payloads
            .push(serde_json::to_string(payload).expect("payloads are plain data"));
    }
}

/// The columns of the ledger's rows beside them.
#[derive(Default)]
struct Rows<'a> {
    queued: Queued,
    created_by: Vec<Uuid>,
    created_by_kind: Vec<&'static str>,
    book_id: Vec<Option<Uuid>>,
    kind: Vec<&'static str>,
    unit: Vec<&'static str>,
    total: Vec<Option<i64>>,
    request_id: Vec<Option<&'a str>>,
    user_id: Vec<Option<Uuid>>,
    as_user: Vec<bool>,
}
