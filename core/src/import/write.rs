//! Writing a chunk: coupons, allowances, events and error lines.
//!
//! Invariant: what is said of chunks in [`crate::coupon::add`] holds, and everything of a chunk is written in its step's
//! transaction.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{chunk::Numbered, plan::Plan};
use crate::{
    binary_copy::Rows,
    coupon::{
        add::{self, Origin},
        draw::DrawState,
    },
    error::Result,
};

/// Bytes of error lines sent to the database at once.
const SEND: usize = 128 << 10;

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
    let first_arrival = draw.arrivals();
    let moment = Moment::now(connection, origin.book_id).await?;
    copy(connection, draw, moment, &mut plan).await?;
    add::record(connection, origin, draw, first_arrival, moment.created_at).await?;
    assignments(connection, origin, plan).await?;
    Ok(Some(moment.created_at))
}

/// When the coupons of a chunk are made. One is asked for after another, so no two of a book are the same.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub(super) struct Moment {
    pub(super) created_at: DateTime<Utc>,
    /// Until when those are valid that have a holder at once.
    valid_until: Option<DateTime<Utc>>,
}

impl Moment {
    pub(super) async fn now(connection: &mut PgConnection, book_id: Uuid) -> Result<Self> {
        Ok(sqlx::query_as(
            "SELECT clock_timestamp() AS created_at,
                    now() + make_interval(days => valid_days_after_assignment) AS valid_until
             FROM books WHERE id = $1",
        )
        .bind(book_id)
        .fetch_one(connection)
        .await?)
    }
}

/// Copies the coupons of a plan in.
pub(super) async fn copy(
    connection: &mut PgConnection,
    draw: &mut DrawState,
    moment: Moment,
    plan: &mut Plan,
) -> Result<()> {
    // Sorted, neighbours in the index are written one after another: twice as fast as in the order of the file.
    plan.made.sort_unstable_by(|a, b| a.row.key().cmp(b.row.key()));
    let common = add::Common {
        book_id: draw.book_id(),
        created_at: moment.created_at,
        valid_until: moment.valid_until,
        extras: add::Extras {
            expires_at: plan.made.iter().any(|made| made.row.expires_at.is_some()),
            metadata: plan.made.iter().any(|made| made.row.metadata().is_some()),
            holder: !plan.shares.is_empty(),
        },
    };
    let mut chunk = add::Chunk::begin(connection, draw, common).await?;
    for Numbered { row, .. } in &plan.made {
        let new = add::New {
            key: row.key(),
            shown: row.shown(),
            allowed: row.allowed,
            expires_at: row.expires_at,
            metadata: row.metadata(),
            holder: row.holder(),
        };
        chunk.add(&new).await?;
    }
    chunk.finish().await
}

/// Counts the coupons that have a holder from the start, and records each.
async fn assignments(connection: &mut PgConnection, origin: &Origin, mut plan: Plan) -> Result<()> {
    if plan.shares.is_empty() {
        return Ok(());
    }
    let (users, added): (Vec<Uuid>, Vec<i32>) = std::mem::take(&mut plan.shares).into_iter().unzip();
    let held = plan
        .made
        .iter()
        .filter_map(|made| Some((made.row.key(), made.row.holder()?)));
    let (keys, holders): (Vec<&str>, Vec<Uuid>) = held.unzip();
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
        .map(|made| format!("c{}", made.row.key()))
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

/// Writes error lines, each made when it is its turn.
pub(crate) async fn errors(
    connection: &mut PgConnection,
    job_id: Uuid,
    lines: impl Iterator<Item = ErrorLine>,
) -> Result<()> {
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
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
