//! How long what jobs leave behind is kept: their lists of errors, the files of exports, the texts of imports, and their
//! own lines; and the fires of schedules. By setting, in days after the job's end. The audit trail, coupons, redemptions
//! and distributions are kept for ever.
//!
//! Invariant: a job that has not ended loses nothing. What a job left goes before its line does, so deleting a line never
//! drags a long list along; and a line outlives what it pointed to by as long again, so that asking for it is answered
//! `expired` and not `not_found`.
//!
//! No index is kept for this: an id is a UUIDv7 and holds the time at which it was made, so "old enough" is a range of
//! the primary key, and no table is scanned. The end of each job is looked at all the same, by the database's clock.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::Result;

/// Days for which something is kept after its job's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The lines of jobs, twice that if there was a list or a file; and the fires of schedules.
    pub jobs: u32,
    /// Lists of errors.
    pub reports: u32,
    /// Files of exports.
    pub exports: u32,
    /// Texts of imports.
    pub uploads: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            jobs: 30,
            reports: 30,
            exports: 30,
            uploads: 1,
        }
    }
}

/// Lines of errors that one run deletes: some tens of milliseconds.
const ROWS: i64 = 5_000;

/// Fires of schedules that one run deletes: some tens of milliseconds.
const FIRES: i64 = 5_000;

/// Pieces of exports that one run deletes: 128 MiB of text at most, much less as they are packed.
const PIECES: i64 = 32;

/// Lines of the ledger that one run deletes: some tens of milliseconds with what hangs on them.
const JOBS: i64 = 2_000;

/// The smallest id that can have been made `$1` days ago.
macro_rules! id_of_days_ago {
    ($days:literal) => {
        concat!(
            "(lpad(to_hex(greatest((extract(epoch FROM now() - make_interval(days => ",
            $days,
            ")) * 1000)::bigint, 0)), 12, '0') || repeat('0', 20))::uuid"
        )
    };
}

/// Deletes old rows of a table that hangs on jobs, along its primary key; `$extra` may add a part to the statement.
macro_rules! delete_old {
    ($table:literal, $place:literal, $extra:literal) => {
        concat!(
            "WITH old AS MATERIALIZED (
                 SELECT c.ctid AS at, c.job_id FROM ",
            $table,
            " c JOIN jobs j ON j.id = c.job_id WHERE c.job_id < ",
            id_of_days_ago!("$1"),
            " AND j.finished_at < now() - make_interval(days => $1)
                 ORDER BY c.job_id, c.",
            $place,
            " LIMIT $2)",
            $extra,
            " DELETE FROM ",
            $table,
            " WHERE ctid = ANY (ARRAY(SELECT at FROM old))"
        )
    };
}

/// Lists of errors.
pub const DELETE_REPORTS: &str = delete_old!(
    "job_errors",
    "seq",
    ", told AS (
         UPDATE jobs SET expired_at = now()
         WHERE id = ANY (ARRAY(SELECT DISTINCT job_id FROM old)) AND expired_at IS NULL)"
);

/// Files of exports, and pieces of those that were cancelled or given up.
pub const DELETE_EXPORTS: &str = delete_old!(
    "export_chunks",
    "start",
    ", told AS (
         UPDATE jobs SET expired_at = now()
         WHERE id = ANY (ARRAY(SELECT DISTINCT job_id FROM old)) AND expired_at IS NULL)"
);

/// Items that a cancelled batch of assignments has left.
pub const DELETE_ITEMS: &str = delete_old!("assign_batch_items", "item", "");

/// Lines of the ledger that are over, and whose list and file are gone.
pub const FIND_JOBS: &str = concat!(
    "SELECT j.id FROM jobs j
     WHERE j.id < ",
    id_of_days_ago!("$1"),
    " AND j.finished_at < now() - make_interval(days => $1)
       AND (j.expired_at IS NULL OR j.expired_at < now() - make_interval(days => $1))
       AND NOT EXISTS (SELECT FROM job_errors e WHERE e.job_id = j.id)
       AND NOT EXISTS (SELECT FROM export_chunks c WHERE c.job_id = j.id)
     ORDER BY j.id LIMIT $2"
);

/// Fires of schedules. The latest of each stays, whatever its age: it is shown with the schedule. So does one whose job is
/// not at its end, which a fire beside it asks for.
pub const DELETE_FIRES: &str = "DELETE FROM schedule_fires WHERE ctid = ANY (ARRAY(
         SELECT f.ctid
         FROM schedules s
         CROSS JOIN LATERAL (SELECT max(fire_at) AS latest FROM schedule_fires WHERE schedule_id = s.id) AS l
         -- With a limit of its own: each schedule's oldest are looked up, and the table is never read as a whole.
         CROSS JOIN LATERAL (
             SELECT ctid, schedule_id, fire_at FROM schedule_fires
             WHERE schedule_id = s.id AND fire_at < least(l.latest, now() - make_interval(days => $1))
               AND fired_at < now() - make_interval(days => $1)
               AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = job_id AND j.finished_at IS NULL)
             ORDER BY fire_at LIMIT $2) AS f
         LIMIT $2))";

/// Forgets a batch of what is over by setting; gives how many rows went. Call it until it gives 0.
///
/// # Errors
/// When the database fails.
pub async fn sweep(connection: &mut PgConnection, keep: &Retention) -> Result<u64> {
    let mut gone = 0;
    for (sql, days, limit) in [
        (DELETE_REPORTS, keep.reports, ROWS),
        (DELETE_EXPORTS, keep.exports, PIECES),
        (DELETE_ITEMS, keep.jobs, ROWS),
        (DELETE_FIRES, keep.jobs, FIRES),
    ] {
        gone += sqlx::query(sql)
            .persistent(false)
            .bind(days_of(days))
            .bind(limit)
            .execute(&mut *connection)
            .await?
            .rows_affected();
    }
    Ok(gone + sweep_jobs(connection, keep.jobs).await?)
}

/// Deletes lines of the ledger with what hangs on them, and what is left of the uploads of imports.
async fn sweep_jobs(connection: &mut PgConnection, days: u32) -> Result<u64> {
    let old: Vec<Uuid> = sqlx::query_scalar(FIND_JOBS)
        .persistent(false)
        .bind(days_of(days))
        .bind(JOBS)
        .fetch_all(&mut *connection)
        .await?;
    if old.is_empty() {
        return Ok(0);
    }
    let uploads: Vec<Uuid> = sqlx::query_scalar(
        "SELECT upload_id FROM imports WHERE job_id = ANY($1::uuid[])
         UNION SELECT upload_id FROM pool_imports WHERE job_id = ANY($1::uuid[])",
    )
    .bind(&old)
    .fetch_all(&mut *connection)
    .await?;
    let gone = sqlx::query("DELETE FROM jobs WHERE id = ANY($1::uuid[]) AND finished_at IS NOT NULL")
        .bind(&old)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    // One that has its text still goes with that, as an upload that no import took.
    sqlx::query(
        "DELETE FROM uploads u WHERE u.id = ANY($1::uuid[])
             AND NOT EXISTS (SELECT FROM imports i WHERE i.upload_id = u.id)
             AND NOT EXISTS (SELECT FROM pool_imports i WHERE i.upload_id = u.id)
             AND NOT EXISTS (SELECT FROM upload_chunks c WHERE c.upload_id = u.id)",
    )
    .bind(uploads)
    .execute(connection)
    .await?;
    Ok(gone)
}

fn days_of(days: u32) -> i32 {
    i32::try_from(days).unwrap_or(i32::MAX)
}
