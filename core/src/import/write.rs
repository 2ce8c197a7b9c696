//! Writing a chunk: coupons, allowances, events and error lines.
//!
//! Invariant: codes arrive in the order of their keys. All coupons of a chunk have the same `created_at`, which is the
//! time of its event and no other chunk's of the book, so the arrival number of each can be recomputed from the event's
//! first one: whoever is given the draw's seed can check the draw key of every coupon.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    binary_copy::Rows,
    plan::{Made, Plan},
};
use crate::{coupon::draw::DrawState, error::Result};

/// Bytes sent to the database at once: it stores them while the next ones are prepared.
const SEND: usize = 128 << 10;

/// Who imports, into what.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) job_id: Uuid,
    pub(super) book_id: Uuid,
    pub(super) actor_kind: String,
    pub(super) actor_id: Uuid,
    pub(super) request_id: Option<String>,
}

/// Writes the coupons of a plan; gives their `created_at`, or nothing when there are none.
pub(super) async fn coupons(
    connection: &mut PgConnection,
    origin: &Origin,
    draw: &mut DrawState,
    mut plan: Plan,
) -> Result<Option<DateTime<Utc>>> {
    if plan.made.is_empty() {
        return Ok(None);
    }
    // Sorted, neighbours in the index are written one after another: twice as fast as in the order of the file.
    plan.made.sort_unstable_by(|a, b| a.row.key.cmp(&b.row.key));
    let (created_at, valid_until): (DateTime<Utc>, Option<DateTime<Utc>>) = sqlx::query_as(
        "SELECT clock_timestamp(), now() + make_interval(days => valid_days_after_assignment) FROM books WHERE id = $1",
    )
    .bind(origin.book_id)
    .fetch_one(&mut *connection)
    .await?;
    let first_arrival = draw.arrivals();
    copy(connection, origin, draw, &plan.made, created_at, valid_until).await?;
    draw.save(connection).await?;
    sqlx::query(
        "INSERT INTO events (book_id, id, actor_kind, actor_id, job_id, at, kind, request_id, after)
         VALUES ($1, uuid_v7(), $2, $3, $4, $5, 'codes_added', $6, $7)",
    )
    .bind(origin.book_id)
    .bind(&origin.actor_kind)
    .bind(origin.actor_id)
    .bind(origin.job_id)
    .bind(created_at)
    .bind(origin.request_id.as_deref())
    .bind(serde_json::json!({
        "count": plan.made.len(),
        "first_arrival": first_arrival,
        "epoch": draw.epoch(),
        "cursor": draw.cursor().to_string(), // more digits than a number of JSON keeps everywhere
    }))
    .execute(&mut *connection)
    .await?;
    assignments(connection, origin, plan).await?;
    Ok(Some(created_at))
}

async fn copy(
    connection: &mut PgConnection,
    origin: &Origin,
    draw: &mut DrawState,
    made: &[Made],
    created_at: DateTime<Utc>,
    valid_until: Option<DateTime<Utc>>,
) -> Result<()> {
    let mut copy = connection
        .copy_in_raw(
            "COPY coupons (book_id, draw_key, created_at, updated_at, expires_at, redemptions_allowed, state, code_key,
                 code, metadata, assigned_user_id, assigned_at, valid_until) FROM STDIN (FORMAT binary)",
        )
        .await?;
    let mut rows = Rows::new(13);
    for Made { row, holder } in made {
        rows.row()
            .uuid(Some(origin.book_id))
            .i64(draw.lay(&row.key))
            .time(Some(created_at))
            .time(Some(created_at))
            .time(row.expires_at)
            .i32(row.allowed)
            .text(Some(if holder.is_some() {
                "assigned"
            } else {
                "unassigned"
            }))
            .text(Some(&row.key))
            .text(row.shown.as_deref())
            .json(row.metadata.as_deref())
            .uuid(*holder)
            .time(holder.map(|_| created_at))
            .time(holder.and(valid_until));
        if rows.len() >= SEND {
            copy.send(rows.take()).await?;
        }
    }
    copy.send(rows.finish()).await?;
    copy.finish().await?;
    Ok(())
}

/// Counts the coupons that have a holder from the start, and records each.
async fn assignments(connection: &mut PgConnection, origin: &Origin, plan: Plan) -> Result<()> {
    if plan.shares.is_empty() {
        return Ok(());
    }
    let (users, added): (Vec<Uuid>, Vec<i32>) = plan.shares.into_iter().unzip();
    let held = plan
        .made
        .into_iter()
        .filter_map(|made| Some((made.row.key, made.holder?)));
    let (keys, holders): (Vec<String>, Vec<Uuid>) = held.unzip();
    sqlx::query(
        "WITH counted AS (
             INSERT INTO user_allowances AS a (book_id, user_id, assigned_count)
             SELECT $1, n.user_id, n.added FROM unnest($2::uuid[], $3::int[]) AS n (user_id, added) ORDER BY n.user_id
             ON CONFLICT (book_id, user_id) DO UPDATE SET assigned_count = a.assigned_count + excluded.assigned_count)
         INSERT INTO events (book_id, id, actor_kind, actor_id, job_id, kind, code_key, request_id, after)
         SELECT $1, uuid_v7(), $4, $5, $6, 'coupon_assigned', o.code_key, $7,
                jsonb_build_object('state', 'assigned', 'user_id', o.user_id)
         FROM unnest($8::text[], $9::uuid[]) AS o (code_key, user_id)",
    )
    .bind(origin.book_id)
    .bind(users)
    .bind(added)
    .bind(&origin.actor_kind)
    .bind(origin.actor_id)
    .bind(origin.job_id)
    .bind(origin.request_id.as_deref())
    .bind(keys)
    .bind(holders)
    .execute(connection)
    .await?;
    Ok(())
}

/// Remembers what a validating pass would have made.
pub(super) async fn seen(connection: &mut PgConnection, job_id: Uuid, plan: &Plan) -> Result<()> {
    let mut keys: Vec<String> = plan
        .made
        .iter()
        .map(|made| format!("c{}", made.row.key))
        .collect();
    keys.sort_unstable();
    let mut counts = vec![1; keys.len()];
    for (user, share) in &plan.shares {
        keys.push(format!("u{user}"));
        counts.push(*share);
    }
    sqlx::query(
        "INSERT INTO import_seen AS s (job_id, key, count)
         SELECT $1, n.key, n.count FROM unnest($2::text[], $3::int[]) AS n (key, count)
         ON CONFLICT (job_id, key) DO UPDATE SET count = s.count + excluded.count",
    )
    .bind(job_id)
    .bind(keys)
    .bind(counts)
    .execute(connection)
    .await?;
    Ok(())
}

/// An error line: the physical line, what clients see, and the fields as sent.
pub(crate) struct ErrorLine {
    pub(crate) line: i64,
    pub(crate) entry: serde_json::Value,
    pub(crate) original: serde_json::Value,
}

/// Writes error lines.
pub(crate) async fn errors(connection: &mut PgConnection, job_id: Uuid, lines: Vec<ErrorLine>) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut copy = connection
        .copy_in_raw("COPY job_errors (job_id, seq, entry, original) FROM STDIN (FORMAT binary)")
        .await?;
    let mut rows = Rows::new(4);
    for line in lines {
        rows.row()
            .uuid(Some(job_id))
            .i64(line.line)
            .json(Some(&line.entry.to_string()))
            .json(Some(&line.original.to_string()));
        if rows.len() >= SEND {
            copy.send(rows.take()).await?;
        }
    }
    copy.send(rows.finish()).await?;
    copy.finish().await?;
    Ok(())
}

/// Deletes the error line of one line.
pub(crate) async fn forget_error(connection: &mut PgConnection, job_id: Uuid, line: i64) -> Result<()> {
    sqlx::query("DELETE FROM job_errors WHERE job_id = $1 AND seq = $2")
        .bind(job_id)
        .bind(line)
        .execute(connection)
        .await?;
    Ok(())
}
