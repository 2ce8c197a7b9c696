//! Tidying up behind uploads and imports: a reconciler without input, in small batches, safe to run anywhere at any time.
//!
//! Invariant: nothing that a job may still need is deleted. Correctness never waits for the sweep.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::StoreError;

/// Chunks deleted at once: 64 MiB of text, some 30,000 small rows underneath.
const CHUNKS: i64 = 64;

/// Remembered keys deleted at once.
pub(crate) const KEYS: i64 = 20_000;

/// A batch of the chunks of some uploads.
pub const DELETE_CHUNKS: &str = "DELETE FROM upload_chunks WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM upload_chunks WHERE upload_id = ANY($1::uuid[]) LIMIT $2))";

/// A batch of what validating passes remembered whose jobs are over: from one job's rows straight to the next job's, since
/// a pass under way may have millions.
pub const DELETE_SEEN: &str = "WITH RECURSIVE met AS (
         (SELECT job_id FROM import_seen ORDER BY job_id LIMIT 1)
         UNION ALL
         SELECT (SELECT s.job_id FROM import_seen s WHERE s.job_id > met.job_id ORDER BY s.job_id LIMIT 1)
         FROM met WHERE met.job_id IS NOT NULL),
     over AS (
         SELECT job_id FROM met WHERE job_id IS NOT NULL
             AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = met.job_id AND j.finished_at IS NULL)
         LIMIT 1)
     DELETE FROM import_seen WHERE ctid = ANY (ARRAY(
         SELECT s.ctid FROM import_seen s WHERE s.job_id = (SELECT job_id FROM over) LIMIT $1))";

/// Deletes a batch of what was kept of uploads that were never finished and to which nothing came for 10 minutes, and of
/// uploads that were finished an hour ago and that no import took; gives how many rows went. Call it until it gives 0.
///
/// # Errors
/// When the database fails.
pub async fn sweep_dead_uploads(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let dead: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM uploads u
         WHERE (completed_at IS NULL AND touched_at < now() - interval '10 minutes')
            OR (completed_at < now() - interval '1 hour' AND removed_at IS NULL
                AND NOT EXISTS (SELECT FROM imports i WHERE i.upload_id = u.id)
                AND NOT EXISTS (SELECT FROM pool_imports i WHERE i.upload_id = u.id))
         LIMIT 16 FOR UPDATE SKIP LOCKED",
    )
    .fetch_all(&mut *connection)
    .await?;
    if dead.is_empty() {
        return Ok(0);
    }
    let chunks = delete_chunks(connection, &dead).await?;
    let uploads = sqlx::query(
        "DELETE FROM uploads u WHERE id = ANY($1::uuid[])
             AND NOT EXISTS (SELECT FROM upload_chunks c WHERE c.upload_id = u.id)",
    )
    .bind(&dead)
    .execute(connection)
    .await?
    .rows_affected();
    Ok(chunks + uploads)
}

/// Deletes a batch of the texts of imports that ended more than `keep_seconds` ago; gives how many rows went or were
/// marked. Call it until it gives 0.
///
/// # Errors
/// When the database fails.
pub async fn sweep_old_texts(connection: &mut PgConnection, keep_seconds: i64) -> Result<u64, StoreError> {
    let old: Vec<Uuid> = sqlx::query_scalar(
        "SELECT u.id FROM uploads u
         WHERE u.completed_at IS NOT NULL AND u.removed_at IS NULL
           AND EXISTS (
               SELECT FROM (SELECT job_id FROM imports i WHERE i.upload_id = u.id
                            UNION ALL SELECT job_id FROM pool_imports i WHERE i.upload_id = u.id) AS i
               JOIN jobs j ON j.id = i.job_id AND j.finished_at < now() - make_interval(secs => $1))
         ORDER BY u.completed_at LIMIT 16 FOR UPDATE OF u SKIP LOCKED",
    )
    .bind(keep_seconds as f64)
    .fetch_all(&mut *connection)
    .await?;
    if old.is_empty() {
        return Ok(0);
    }
    let chunks = delete_chunks(connection, &old).await?;
    let marked = sqlx::query(
        "UPDATE uploads u SET removed_at = now() WHERE id = ANY($1::uuid[])
             AND NOT EXISTS (SELECT FROM upload_chunks c WHERE c.upload_id = u.id)",
    )
    .bind(&old)
    .execute(connection)
    .await?
    .rows_affected();
    Ok(chunks + marked)
}

async fn delete_chunks(connection: &mut PgConnection, uploads: &[Uuid]) -> Result<u64, StoreError> {
    Ok(sqlx::query(DELETE_CHUNKS)
        .persistent(false)
        .bind(uploads)
        .bind(CHUNKS)
        .execute(connection)
        .await?
        .rows_affected())
}
