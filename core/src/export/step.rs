//! One step of an export: so many rows behind the cursor become one piece of the file.
//!
//! First the rows are counted, along the same index and in slices, so that progress has a total; then they are written.

use std::{collections::BTreeMap, io::Write};

use flate2::{Compression, write::GzEncoder};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Kind, csv};
use crate::{
    coupon::{
        Coupon, CouponRow, State, coupon_columns,
        redeem::{Redemption, redemption_columns},
    },
    error::{Result, StoreError},
    job::{
        self,
        claim::{Finished, Outcome, Step},
        ledger,
    },
};

/// Rows of a step: about a tenth of a second.
const STEP_ROWS: i64 = 20_000;

/// Rows read by one statement: with the largest metadata some tens of megabytes.
const PAGE_ROWS: i64 = 1_000;

/// Text of a step, when rows are long; also what a download unpacks at once.
const STEP_BYTES: usize = 4 << 20;

/// Rows that one step counts, mostly in the index alone.
const COUNT_ROWS: i64 = 200_000;

/// Counts a slice of a book's coupons behind a key; gives the last key, too.
pub const COUNT_COUPONS: &str = "SELECT count(*), max(code_key) FROM (
         SELECT code_key FROM coupons WHERE book_id = $1 AND code_key > coalesce($2::text, '')
         ORDER BY code_key LIMIT $3) AS slice";

/// Counts a slice of a book's redemptions behind an id; gives the last id, too.
pub const COUNT_REDEMPTIONS: &str = "SELECT count(*), max(id::text COLLATE \"C\")::uuid FROM (
         SELECT id FROM redemptions
         WHERE book_id = $1 AND id > coalesce($2::uuid, '00000000-0000-0000-0000-000000000000')
         ORDER BY id LIMIT $3) AS slice";

/// A page of a book's coupons behind a key.
pub const READ_COUPONS: &str = concat!(
    "SELECT ",
    coupon_columns!(),
    " FROM coupons c WHERE c.book_id = $1 AND c.code_key > coalesce($2::text, '')
      ORDER BY c.code_key LIMIT $3"
);

/// A page of a book's redemptions behind an id.
pub const READ_REDEMPTIONS: &str = concat!(
    "SELECT ",
    redemption_columns!(),
    " FROM redemptions r
      WHERE r.book_id = $1 AND r.id > coalesce($2::uuid, '00000000-0000-0000-0000-000000000000')
      ORDER BY r.id LIMIT $3"
);

#[derive(sqlx::FromRow)]
struct Row {
    job_id: Uuid,
    book_id: Uuid,
    kind: String,
    state: Option<String>,
    pass: String,
    after_key: Option<String>,
    after_id: Option<Uuid>,
    total: i64,
    read: i64,
    rows: i64,
    bytes: i64,
    packed: i64,
}

/// Runs the next step of an export.
///
/// # Errors
/// When the database fails.
pub async fn step(connection: &mut PgConnection, job_id: Uuid) -> Result<Outcome> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT job_id, book_id, kind, state, pass, after_key, after_id, total, read, rows, bytes, packed
         FROM exports WHERE job_id = $1 FOR UPDATE",
    )
    .bind(job_id)
    .fetch_optional(&mut *connection)
    .await?;
    let Some((mut export, kind)) = row.and_then(|row| Kind::parse(&row.kind).map(|kind| (row, kind))) else {
        return Ok(Finished::undecodable());
    };
    if ledger::is_cancelled(connection, job_id).await? {
        return Ok(Outcome::Finished(Finished {
            state: job::State::Cancelled,
            step: export.progress(),
            result: None,
            refusal: None,
        }));
    }
    if export.pass == "count" {
        export.count(connection, kind).await?;
        return Ok(Outcome::NextStep(export.progress()));
    }
    let over = export.write(connection, kind).await?;
    if over {
        let result = serde_json::json!({
            "rows": export.rows, "bytes": export.bytes, "file": format!("/v1/exports/{job_id}/file"),
        });
        return Ok(Finished::succeeded(export.progress(), result));
    }
    Ok(Outcome::NextStep(export.progress()))
}

impl Row {
    fn progress(&self) -> Step {
        Step {
            done: self.read,
            // Rows that came after they were counted are read, too.
            total: (self.pass == "write").then(|| self.total.max(self.read)),
            counts: BTreeMap::from([("bytes".to_owned(), self.bytes), ("rows".to_owned(), self.rows)]),
        }
    }

    async fn count(&mut self, connection: &mut PgConnection, kind: Kind) -> Result<()> {
        let counted = match kind {
            Kind::Coupons => {
                let (counted, last): (i64, Option<String>) = sqlx::query_as(COUNT_COUPONS)
                    .bind(self.book_id)
                    .bind(self.after_key.as_deref())
                    .bind(COUNT_ROWS)
                    .fetch_one(&mut *connection)
                    .await?;
                self.after_key = last;
                counted
            }
            Kind::Redemptions => {
                let (counted, last): (i64, Option<Uuid>) = sqlx::query_as(COUNT_REDEMPTIONS)
                    .bind(self.book_id)
                    .bind(self.after_id)
                    .bind(COUNT_ROWS)
                    .fetch_one(&mut *connection)
                    .await?;
                self.after_id = last;
                counted
            }
        };
        self.total += counted;
        if counted < COUNT_ROWS {
            self.pass = "write".to_owned();
            self.after_key = None;
            self.after_id = None;
        }
        self.save(connection).await
    }

    /// Writes the next piece; says whether it was the last.
    async fn write(&mut self, connection: &mut PgConnection, kind: Kind) -> Result<bool> {
        let mut text = String::new();
        if self.bytes == 0 {
            text.push_str(match kind {
                Kind::Coupons => csv::COUPONS,
                Kind::Redemptions => csv::REDEMPTIONS,
            });
        }
        let begun_at = self.read;
        let mut over = false;
        while !over && self.read - begun_at < STEP_ROWS && text.len() < STEP_BYTES {
            let found = match kind {
                Kind::Coupons => self.read_coupons(connection, &mut text).await?,
                Kind::Redemptions => self.read_redemptions(connection, &mut text).await?,
            };
            self.read += found;
            over = found < PAGE_ROWS;
        }
        if !text.is_empty() {
            self.keep(connection, &text).await?;
        }
        self.save(connection).await?;
        Ok(over)
    }

    async fn read_coupons(&mut self, connection: &mut PgConnection, text: &mut String) -> Result<i64> {
        let rows: Vec<CouponRow> = sqlx::query_as(READ_COUPONS)
            .bind(self.book_id)
            .bind(self.after_key.as_deref())
            .bind(PAGE_ROWS)
            .fetch_all(connection)
            .await?;
        let found = rows.len();
        if let Some(last) = rows.last() {
            self.after_key = Some(last.key().to_owned());
        }
        let wanted = self.state.as_deref().and_then(State::parse);
        for row in rows {
            let coupon = Coupon::from(row);
            if wanted.is_none_or(|state| state == coupon.state) {
                csv::coupon(text, &coupon);
                self.rows += 1;
            }
        }
        Ok(i64::try_from(found).unwrap_or(i64::MAX))
    }

    async fn read_redemptions(&mut self, connection: &mut PgConnection, text: &mut String) -> Result<i64> {
        let rows: Vec<Redemption> = sqlx::query_as(READ_REDEMPTIONS)
            .bind(self.book_id)
            .bind(self.after_id)
            .bind(PAGE_ROWS)
            .fetch_all(connection)
            .await?;
        if let Some(last) = rows.last() {
            self.after_id = Some(last.id);
        }
        for redemption in &rows {
            csv::redemption(text, redemption);
        }
        let found = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        self.rows += found;
        Ok(found)
    }

    /// Packs a piece and keeps it.
    async fn keep(&mut self, connection: &mut PgConnection, text: &str) -> Result<()> {
        // The fastest setting: a worker's time is dearer than the room, and retention gives the room back.
        let mut packer = GzEncoder::new(Vec::with_capacity(text.len() / 2), Compression::fast());
        packer
            .write_all(text.as_bytes())
            .and_then(|()| packer.try_finish())
            .map_err(|error| StoreError::from(sqlx::Error::Io(error)))?;
        let packed = packer.get_ref();
        let length = i64::try_from(text.len()).unwrap_or(i64::MAX);
        sqlx::query("INSERT INTO export_chunks (job_id, start, length, packed) VALUES ($1, $2, $3, $4)")
            .bind(self.job_id)
            .bind(self.bytes)
            .bind(length)
            .bind(packed)
            .execute(connection)
            .await?;
        self.bytes += length;
        self.packed += i64::try_from(packed.len()).unwrap_or(i64::MAX);
        Ok(())
    }

    async fn save(&self, connection: &mut PgConnection) -> Result<()> {
        sqlx::query(
            "UPDATE exports SET pass = $2, after_key = $3, after_id = $4, total = $5, read = $6, rows = $7, bytes = $8,
                    packed = $9 WHERE job_id = $1",
        )
        .bind(self.job_id)
        .bind(&self.pass)
        .bind(self.after_key.as_deref())
        .bind(self.after_id)
        .bind(self.total)
        .bind(self.read)
        .bind(self.rows)
        .bind(self.bytes)
        .bind(self.packed)
        .execute(connection)
        .await?;
        Ok(())
    }
}
