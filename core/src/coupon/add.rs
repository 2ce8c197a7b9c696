//! New coupons, many at once: copied in, counted by the draw, told by one event.
//!
//! Invariant: codes arrive in the order of their keys. All coupons of a chunk have the same `created_at`, which is the
//! time of its event and no other chunk's of the book, so the arrival number of each can be recomputed from the event's
//! first one: whoever is given the draw's seed can check the draw key of every coupon.

use std::ops::Range;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, postgres::PgCopyIn};
use uuid::Uuid;

use super::draw::DrawState;
use crate::{binary_copy::Rows, error::Result};

/// Bytes sent to the database at once: it stores them while the next ones are prepared.
const SEND: usize = 128 << 10;

/// In which order the rows of a chunk are written; when they arrive, in the order of their keys, is not touched by it.
///
/// There are two large indexes, and what is written along one lies anywhere in the other. Neighbours that are written one
/// after another find their page at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As their keys: best when these lie all over the book.
    Keys,
    /// As they lie in the draw: best when the keys of a chunk are neighbours anyway.
    Draw,
}

/// Who adds codes, to what.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) job_id: Uuid,
    pub(crate) book_id: Uuid,
    pub(crate) actor_kind: String,
    pub(crate) actor_id: Uuid,
    pub(crate) request_id: Option<String>,
}

/// A coupon to be made.
pub(crate) struct New<'a> {
    pub(crate) key: &'a str,
    /// The code as shown, if it differs from the key.
    pub(crate) shown: Option<&'a str>,
    pub(crate) allowed: i32,
    pub(crate) expires_at: Option<DateTime<Utc>>,
    /// JSON.
    pub(crate) metadata: Option<&'a str>,
    /// Who gets it at once.
    pub(crate) holder: Option<Uuid>,
}

/// A chunk of coupons on its way into the table.
pub(crate) struct Chunk<'a> {
    copy: PgCopyIn<&'a mut PgConnection>,
    rows: Rows,
    /// Where each row lies, by its place in the draw, if they are to be written in that order.
    laid: Option<Vec<(i64, Range<usize>)>>,
    draw: &'a mut DrawState,
    book_id: Uuid,
    created_at: DateTime<Utc>,
    valid_until: Option<DateTime<Utc>>,
}

impl<'a> Chunk<'a> {
    /// Begins one. `valid_until` is for coupons with a holder.
    pub(crate) async fn begin(
        connection: &'a mut PgConnection,
        draw: &'a mut DrawState,
        book_id: Uuid,
        created_at: DateTime<Utc>,
        valid_until: Option<DateTime<Utc>>,
        order: Order,
    ) -> Result<Self> {
        let copy = connection
            .copy_in_raw(
                "COPY coupons (book_id, draw_key, created_at, updated_at, expires_at, redemptions_allowed, state, code_key,
                     code, metadata, assigned_user_id, assigned_at, valid_until) FROM STDIN (FORMAT binary)",
            )
            .await?;
        Ok(Self {
            copy,
            rows: Rows::new(13),
            laid: (order == Order::Draw).then(Vec::new),
            draw,
            book_id,
            created_at,
            valid_until,
        })
    }

    /// Adds a coupon; they come in the order of their keys.
    pub(crate) async fn add(&mut self, new: &New<'_>) -> Result<()> {
        let state = if new.holder.is_some() {
            "assigned"
        } else {
            "unassigned"
        };
        let begin = self.rows.len();
        let draw_key = self.draw.lay(new.key);
        self.rows
            .row()
            .uuid(Some(self.book_id))
            .i64(draw_key)
            .time(Some(self.created_at))
            .time(Some(self.created_at))
            .time(new.expires_at)
            .i32(new.allowed)
            .text(Some(state))
            .text(Some(new.key))
            .text(new.shown)
            .json(new.metadata)
            .uuid(new.holder)
            .time(new.holder.map(|_| self.created_at))
            .time(new.holder.and(self.valid_until));
        if let Some(laid) = &mut self.laid {
            laid.push((draw_key, begin..self.rows.len()));
        } else if self.rows.len() >= SEND {
            self.copy.send(self.rows.take()).await?;
        }
        Ok(())
    }

    /// Sends the rest; here a code that the book has already is a broken primary key.
    pub(crate) async fn finish(mut self) -> Result<()> {
        match self.laid {
            None => self.copy.send(self.rows.finish()).await.map(drop)?,
            Some(mut laid) => {
                laid.sort_unstable_by_key(|(draw_key, _)| *draw_key);
                let rows = laid.into_iter().map(|(_, row)| row);
                for piece in self.rows.finish_ordered(rows, SEND) {
                    self.copy.send(piece).await?;
                }
            }
        }
        self.copy.finish().await?;
        Ok(())
    }
}

/// Writes the draw back and the event of a chunk, which brought the arrivals from `first_arrival` to where they are.
pub(crate) async fn record(
    connection: &mut PgConnection,
    origin: &Origin,
    draw: &DrawState,
    first_arrival: i64,
    created_at: DateTime<Utc>,
) -> Result<()> {
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
        "count": draw.arrivals() - first_arrival,
        "first_arrival": first_arrival,
        "epoch": draw.epoch(),
        "cursor": draw.cursor().to_string(), // more digits than a number of JSON keeps everywhere
    }))
    .execute(connection)
    .await?;
    Ok(())
}
