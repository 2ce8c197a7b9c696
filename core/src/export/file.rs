//! The finished file, piece by piece: as text from any byte on, or packed as it is kept.
//!
//! Invariant: no transaction and no connection is held between two pieces, so a slow reader costs nothing. A file that
//! retention removes meanwhile ends in an error, never in a short file that looks whole.

use std::io::Read;

use flate2::read::GzDecoder;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Kind;
use crate::{
    caller::Caller,
    coupon::Origin,
    error::{Code, Refusal, Result, StoreError},
    job::{self, ledger},
};

/// A finished export's file.
#[derive(Debug, Clone)]
pub struct File {
    job_id: Uuid,
    book_id: Uuid,
    /// Of what.
    pub kind: Kind,
    /// Length as text, in bytes.
    pub bytes: i64,
    /// Length as gzip, in bytes.
    pub packed: i64,
}

/// Where in a file the next piece is looked for, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// Text from this byte up to that one, which is not included.
    Text(i64, i64),
    /// Packed, from the piece that begins at this byte of the text.
    Packed(i64),
}

impl File {
    /// The file of an export that has ended well.
    ///
    /// # Errors
    /// `not_found`, `export_not_ready`, `expired`.
    pub async fn find(connection: &mut PgConnection, caller: &Caller, job_id: Uuid) -> Result<Self> {
        let job = ledger::find(connection, caller, job_id).await?;
        let row: Option<(Uuid, String, i64, i64)> =
            sqlx::query_as("SELECT book_id, kind, bytes, packed FROM exports WHERE job_id = $1")
                .bind(job_id)
                .fetch_optional(connection)
                .await?;
        let (book_id, kind, bytes, packed) = row.ok_or_else(Refusal::not_found)?;
        job.require_kept()?;
        if job.state != job::State::Succeeded {
            let detail = if job.state.is_final() {
                "The export did not end well, so it has no file; see the job and ask anew."
            } else {
                "The export is under way; poll the job until it has succeeded."
            };
            return Err(Refusal::new(Code::ExportNotReady, detail).into());
        }
        Ok(Self {
            job_id,
            book_id,
            kind: Kind::parse(&kind).ok_or_else(Refusal::not_found)?,
            bytes,
            packed,
        })
    }

    /// Records in the audit trail that somebody fetched the file.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record(&self, connection: &mut PgConnection, origin: Origin<'_>) -> Result<()> {
        sqlx::query(
            "INSERT INTO events (book_id, id, actor_kind, actor_id, kind, job_id, request_id)
             VALUES ($1, uuid_v7(), $2, $3, 'export_downloaded', $4, $5)",
        )
        .bind(self.book_id)
        .bind(origin.actor.kind.as_str())
        .bind(origin.actor.id)
        .bind(self.job_id)
        .bind(origin.request_id)
        .execute(connection)
        .await?;
        Ok(())
    }

    /// The next bytes and where those behind them are; `None` at the end.
    ///
    /// # Errors
    /// When the database fails, or `expired` when the file was removed meanwhile.
    pub async fn next(
        &self,
        connection: &mut PgConnection,
        cursor: Cursor,
    ) -> Result<Option<(Vec<u8>, Cursor)>> {
        let (from, to) = match cursor {
            Cursor::Text(from, to) => (from, to.min(self.bytes)),
            Cursor::Packed(from) => (from, self.bytes),
        };
        if from >= to {
            return Ok(None);
        }
        let chunk: Option<(i64, i64, Vec<u8>)> = sqlx::query_as(
            "SELECT start, length, packed FROM export_chunks WHERE job_id = $1 AND start <= $2
             ORDER BY start DESC LIMIT 1",
        )
        .bind(self.job_id)
        .bind(from)
        .fetch_optional(connection)
        .await?;
        let Some((start, length, packed)) = chunk.filter(|(start, length, _)| from < start + length) else {
            return Err(Refusal::new(Code::Expired, "The file was removed while it was read.").into());
        };
        if matches!(cursor, Cursor::Packed(_)) {
            return Ok(Some((packed, Cursor::Packed(start + length))));
        }
        let mut text = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        GzDecoder::new(packed.as_slice())
            .read_to_end(&mut text)
            .map_err(|error| StoreError::from(sqlx::Error::Decode(error.into())))?;
        let place = |at: i64| usize::try_from(at - start).unwrap_or(0).min(text.len());
        let end = to.min(start + length);
        let piece = text[place(from)..place(end)].to_vec();
        Ok(Some((piece, Cursor::Text(end, to))))
    }
}
