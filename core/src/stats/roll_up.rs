//! The sweep that keeps the sums: events into hours, changes of jobs into totals and hours, a look at the queues.
//!
//! Invariant: exactly once. Whoever has the one row of `roll_up_state` locked rolls up; where the sums stand moves in
//! the same transaction, so a sweep that is killed has done nothing, and two at a time are one.
//!
//! Events are taken in the order of their ids, which is not that in which they become visible: a transaction may commit
//! late. So each sweep leaves a *mark*: its time, and the number of its transaction. Whatever had begun to write before
//! the mark has a smaller number, and once the database says that all of those have ended, nothing can appear any more
//! below the mark, less [`super::MARGIN`]. Who only reads (a dump, for hours) holds nothing up.

use std::time::Duration;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{coupon_sums, floor, time_of};
use crate::{error::Result, job::Queue};

/// Events that one step takes: about 100 ms.
pub const EVENTS_BATCH: i64 = 20_000;

/// Rows of `job_changes` that one step takes.
const CHANGES_BATCH: i64 = 20_000;

#[derive(sqlx::FromRow)]
struct State {
    events_before: Uuid,
    mark_at: DateTime<Utc>,
    /// Every transaction of the mark has ended.
    settled: bool,
    /// The mark's number is still to come: the database was restored from a dump of another server's.
    foreign_mark: bool,
}

/// Rolls up a bounded amount of what has happened until `margin` before the last mark, and leaves the next mark when
/// that was all. Gives whether there is more. Does nothing while another sweep is under way.
///
/// # Errors
/// When the database fails.
pub async fn roll_up(connection: &mut PgConnection, margin: Duration) -> Result<bool> {
    let state: Option<State> = sqlx::query_as(
        "SELECT events_before, mark_at, mark_xid <= pg_snapshot_xmin(pg_current_snapshot()) AS settled,
                mark_xid > pg_current_xact_id() AS foreign_mark
         FROM roll_up_state FOR UPDATE SKIP LOCKED",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(state) = state else {
        return Ok(false);
    };
    sample_queues(connection).await?;
    let more_changes = fold_job_changes(connection).await?;
    let more_events = state.settled && fold_events(connection, &state, margin).await?;
    if (state.settled && !more_events) || state.foreign_mark {
        // This transaction got its number after it began, so who had one before has a smaller one.
        sqlx::query("UPDATE roll_up_state SET mark_at = now(), mark_xid = pg_current_xact_id()")
            .execute(connection)
            .await?;
    }
    Ok(more_changes || more_events)
}

/// The first event from $1 up to $2, and the one that is $3 events behind it.
pub const NEXT_EVENTS: &str = "SELECT
         (SELECT id FROM events WHERE id >= $1 AND id < $2 ORDER BY id LIMIT 1),
         (SELECT id FROM events WHERE id >= $1 AND id < $2 ORDER BY id OFFSET $3 LIMIT 1)";

/// Adds the events from $1 up to $2 to the hour $3, in which all of them are: to that of each book, and of all books.
/// The states of an hour go on from those of the last hour that has a row.
pub const FOLD_EVENTS: &str = concat!(
    "WITH d AS (",
    coupon_sums!(
        "coalesce(e.book_id, '00000000-0000-0000-0000-000000000000') AS book_id, ",
        "id >= $1 AND id < $2",
        "GROUP BY GROUPING SETS ((e.book_id), ())"
    ),
    ")
     INSERT INTO book_hours (book_id, hour, unassigned, assigned, locked, redeemed, void, redemptions, added_count,
         assigned_count, locked_count, unlocked_count, lock_expired_count, redeemed_count, rolled_back_count,
         revoked_count, voided_count)
     SELECT d.book_id, $3,
            coalesce(l.unassigned, 0) + d.unassigned, coalesce(l.assigned, 0) + d.assigned,
            coalesce(l.locked, 0) + d.locked, coalesce(l.redeemed, 0) + d.redeemed, coalesce(l.void, 0) + d.void,
            coalesce(l.redemptions, 0) + d.redemptions, d.added_count, d.assigned_count, d.locked_count,
            d.unlocked_count, d.lock_expired_count, d.redeemed_count, d.rolled_back_count, d.revoked_count, d.voided_count
     FROM d LEFT JOIN LATERAL (
         SELECT * FROM book_hours b WHERE b.book_id = d.book_id AND b.hour <= $3 ORDER BY b.hour DESC LIMIT 1) AS l ON true
     ON CONFLICT (book_id, hour) DO UPDATE SET
         unassigned = excluded.unassigned, assigned = excluded.assigned, locked = excluded.locked,
         redeemed = excluded.redeemed, void = excluded.void, redemptions = excluded.redemptions,
         added_count = book_hours.added_count + excluded.added_count,
         assigned_count = book_hours.assigned_count + excluded.assigned_count,
         locked_count = book_hours.locked_count + excluded.locked_count,
         unlocked_count = book_hours.unlocked_count + excluded.unlocked_count,
         lock_expired_count = book_hours.lock_expired_count + excluded.lock_expired_count,
         redeemed_count = book_hours.redeemed_count + excluded.redeemed_count,
         rolled_back_count = book_hours.rolled_back_count + excluded.rolled_back_count,
         revoked_count = book_hours.revoked_count + excluded.revoked_count,
         voided_count = book_hours.voided_count + excluded.voided_count"
);

async fn fold_events(connection: &mut PgConnection, state: &State, margin: Duration) -> Result<bool> {
    let margin = TimeDelta::from_std(margin).unwrap_or_default();
    let limit = floor(state.mark_at - margin);
    if limit <= state.events_before {
        return Ok(false);
    }
    let (first, beyond): (Option<Uuid>, Option<Uuid>) = sqlx::query_as(NEXT_EVENTS)
        .bind(state.events_before)
        .bind(limit)
        .bind(EVENTS_BATCH)
        .fetch_one(&mut *connection)
        .await?;
    let mut end = beyond.unwrap_or(limit);
    if let Some(first) = first {
        let hour_long = TimeDelta::hours(1);
        let hour = time_of(first).duration_trunc(hour_long).unwrap_or_default();
        end = end.min(floor(hour + hour_long));
        sqlx::query(FOLD_EVENTS)
            .bind(first)
            .bind(end)
            .bind(hour)
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("UPDATE roll_up_state SET events_before = $1")
        .bind(end)
        .execute(connection)
        .await?;
    Ok(end < limit)
}

/// Takes what happened to jobs out of `job_changes` and into the sums.
async fn fold_job_changes(connection: &mut PgConnection) -> Result<bool> {
    let folded: i64 = sqlx::query_scalar(
        "WITH gone AS (
             DELETE FROM job_changes WHERE ctid = ANY (ARRAY(SELECT ctid FROM job_changes LIMIT $1)) RETURNING *),
         totals AS (
             INSERT INTO job_totals AS t (state, jobs)
             SELECT s.state, sum(s.jobs) FROM (
                 SELECT left_state AS state, -jobs AS jobs FROM gone UNION ALL SELECT entered_state, jobs FROM gone) AS s
             WHERE s.state <> 'queued' GROUP BY s.state
             ON CONFLICT (state) DO UPDATE SET jobs = t.jobs + excluded.jobs),
         hours AS (
             INSERT INTO job_hours AS h (hour, kind, state, jobs, seconds)
             SELECT date_trunc('hour', at, 'UTC'), kind, entered_state, sum(jobs), sum(seconds) FROM gone
             WHERE entered_state IN ('succeeded', 'partially_succeeded', 'failed', 'cancelled')
             GROUP BY 1, kind, entered_state
             ON CONFLICT (hour, kind, state) DO UPDATE SET jobs = h.jobs + excluded.jobs, seconds = h.seconds + excluded.seconds)
         SELECT count(*) FROM gone",
    )
    .bind(CHANGES_BATCH)
    .fetch_one(connection)
    .await?;
    Ok(folded >= CHANGES_BATCH)
}

/// Looks at the depth of the queues, once in a minute.
async fn sample_queues(connection: &mut PgConnection) -> Result<()> {
    sqlx::query(
        "WITH minute AS (
             UPDATE roll_up_state SET sampled_at = date_trunc('minute', now())
             WHERE sampled_at < date_trunc('minute', now()) RETURNING sampled_at)
         INSERT INTO queue_hours AS h (hour, queue, samples, due_sum, due_max)
         SELECT date_trunc('hour', m.sampled_at, 'UTC'), q.name, 1, d.due, d.due
         FROM minute m, unnest($1::text[]) AS q (name), LATERAL (
             SELECT count(*) AS due FROM apalis.jobs j WHERE j.job_type = q.name AND j.run_at <= now()) AS d
         ON CONFLICT (hour, queue) DO UPDATE
         SET samples = h.samples + 1, due_sum = h.due_sum + excluded.due_sum, due_max = greatest(h.due_max, excluded.due_max)",
    )
    .bind(Queue::ALL.map(Queue::name).as_slice())
    .execute(connection)
    .await?;
    Ok(())
}
