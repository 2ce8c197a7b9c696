//! New coupons, many at once: copied in, counted by the draw, told by one event.
//!
//! Invariant: codes arrive in the order of their keys. All coupons of a chunk have the same `created_at`, which is the
//! time of its event and no other chunk's of the book, so the arrival number of each can be recomputed from the event's
//! first one: whoever is given the draw's seed can check the draw key of every coupon.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, postgres::PgCopyIn};
use uuid::Uuid;

use super::draw::DrawState;
use crate::{binary_copy::Rows, error::Result};

/// Bytes sent to the database at once: it stores them while the next ones are prepared.
const SEND: usize = 128 << 10;

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

/// What some coupons of a chunk have. A column that none has is not sent: the server need not read a null for each row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extras {
    pub(crate) expires_at: bool,
    pub(crate) metadata: bool,
    pub(crate) holder: bool,
}

impl Extras {
    /// The columns, as they are written by [`Common::write`].
    fn copy(self) -> String {
        let extras = [
            (self.expires_at, ", expires_at"),
            (self.metadata, ", metadata"),
            (self.holder, ", state, assigned_user_id, assigned_at, valid_until"),
        ];
        let extras = extras
            .into_iter()
            .filter_map(|(has, columns)| has.then_some(columns));
        format!(
            "COPY coupons (book_id, draw_key, created_at, updated_at, redemptions_allowed, code_key, code{})
             FROM STDIN (FORMAT binary)",
            extras.collect::<String>()
        )
    }

    /// How many they are.
    fn fields(self) -> i16 {
        7 + i16::from(self.expires_at) + i16::from(self.metadata) + 4 * i16::from(self.holder)
    }
}

/// What all coupons of a chunk share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Common {
    pub(crate) book_id: Uuid,
    pub(crate) created_at: DateTime<Utc>,
    /// Of coupons with a holder.
    pub(crate) valid_until: Option<DateTime<Utc>>,
    pub(crate) extras: Extras,
}

impl Common {
    fn write(&self, rows: &mut Rows, draw_key: i64, new: &New<'_>) {
        rows.row()
            .uuid(Some(self.book_id))
            .i64(draw_key)
            .time(Some(self.created_at))
            .time(Some(self.created_at))
            .i32(new.allowed)
            .text(Some(new.key))
            .text(new.shown);
        if self.extras.expires_at {
            rows.time(new.expires_at);
        }
        if self.extras.metadata {
            rows.json(new.metadata);
        }
        if self.extras.holder {
            let state = if new.holder.is_some() {
                "assigned"
            } else {
                "unassigned"
            };
            rows.text(Some(state))
                .uuid(new.holder)
                .time(new.holder.map(|_| self.created_at))
                .time(new.holder.and(self.valid_until));
        }
    }
}

/// A chunk of coupons on its way into the table, written in the order of their keys: neighbours in the primary key find
/// their page at hand when they are written one after another.
pub(crate) struct Chunk<'a> {
    copy: PgCopyIn<&'a mut PgConnection>,
    rows: Rows,
    draw: &'a mut DrawState,
    common: Common,
}

impl<'a> Chunk<'a> {
    /// Begins one.
    pub(crate) async fn begin(
        connection: &'a mut PgConnection,
        draw: &'a mut DrawState,
        common: Common,
    ) -> Result<Self> {
        Ok(Self {
            copy: connection.copy_in_raw(&common.extras.copy()).await?,
            rows: Rows::new(common.extras.fields()),
            draw,
            common,
        })
    }

    /// Adds a coupon; they come in the order of their keys.
    pub(crate) async fn add(&mut self, new: &New<'_>) -> Result<()> {
        let draw_key = self.draw.lay(new.key);
        self.common.write(&mut self.rows, draw_key, new);
        if self.rows.len() >= SEND {
            self.copy.send(self.rows.take()).await?;
        }
        Ok(())
    }

    /// Sends the rest; here a code that the book has already is a broken primary key.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.copy.send(self.rows.finish()).await?;
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
