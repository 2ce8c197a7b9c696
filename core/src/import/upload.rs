//! Receiving a file: unpacked, decoded and kept as UTF-8 text while it comes in, in bounded memory.
//!
//! Invariant: only what was finished counts. An upload that is cut half-way leaves rows that nothing refers to; they are
//! deleted by [`Receiver::abort`] or by the sweep. Every chunk is a transaction of its own, so a slow sender holds none.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    decode::Decode,
    inflate::{Inflate, InflateError},
};
use crate::{
    caller::Actor,
    db::{self, Db},
    error::{Code, Error, Refusal, Result},
    id,
};

/// Text kept in one row: read as a whole from storage in about a millisecond.
const CHUNK: usize = 1 << 20;

/// How often a sender that is too slow to fill a chunk shows that it lives; the sweep waits far longer.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

/// From so much text on a packed file must not have unpacked to more than [`MAX_RATIO`] times its size.
const RATIO_FROM: u64 = 32 << 20;

/// Lists of codes pack to a half or a tenth, repetitive metadata to a fiftieth; bombs to a thousandth.
const MAX_RATIO: u64 = 200;

/// How much a sender may send.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes as sent.
    pub raw_bytes: u64,
    /// Bytes of text, unpacked and in UTF-8.
    pub text_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            raw_bytes: 4 << 30,
            text_bytes: 4 << 30,
        }
    }
}

/// What a file is sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Codes for a book.
    Book(Uuid),
    /// Members for a pool.
    Pool(Uuid),
}

/// A file that was received as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// UUIDv7.
    pub id: Uuid,
    /// SHA-256 of the bytes as sent.
    pub sha256: [u8; 32],
    /// Length of the text.
    pub text_bytes: u64,
}

/// A file that is coming in.
pub struct Receiver {
    db: Db,
    id: Uuid,
    limits: Limits,
    hash: Sha256,
    raw_bytes: u64,
    inflate: Inflate,
    decode: Decode,
    /// Text not yet kept; it begins at byte `kept`.
    text: Vec<u8>,
    kept: u64,
    line_feeds: u64,
    carriage_returns: u64,
    last_byte: u8,
    touched: Instant,
}

impl Receiver {
    /// Begins an upload. `encoding` is a label of the WHATWG Encoding standard; without, it is found out.
    ///
    /// # Errors
    /// `validation_failed` for an unknown encoding.
    pub async fn begin(
        db: &Db,
        target: Target,
        actor: Actor,
        encoding: Option<&str>,
        limits: Limits,
    ) -> Result<Self> {
        let decode = Decode::new(encoding).ok_or_else(|| {
            Error::invalid(
                "?encoding",
                "unknown",
                "This is no encoding of the WHATWG standard, such as utf-8, utf-16le or windows-1252.",
            )
        })?;
        let id = id::new();
        let (book_id, pool_id) = match target {
            Target::Book(book_id) => (Some(book_id), None),
            Target::Pool(pool_id) => (None, Some(pool_id)),
        };
        sqlx::query("INSERT INTO uploads (id, book_id, pool_id, created_by) VALUES ($1, $2, $3, $4)")
            .bind(id)
            .bind(book_id)
            .bind(pool_id)
            .bind(actor.id.unwrap_or_default())
            .execute(db.pool())
            .await?;
        Ok(Self {
            db: db.clone(),
            id,
            limits,
            hash: Sha256::new(),
            raw_bytes: 0,
            inflate: Inflate::default(),
            decode,
            text: Vec::new(),
            kept: 0,
            line_feeds: 0,
            carriage_returns: 0,
            last_byte: b'\n',
            touched: Instant::now(),
        })
    }

    /// The upload's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Takes bytes as they come from the socket, in pieces of any size.
    ///
    /// # Errors
    /// `payload_too_large`; `validation_failed` for a packed file that is damaged; `expired` when the upload was swept
    /// because nothing came for too long.
    pub async fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.raw_bytes += bytes.len() as u64;
        if self.raw_bytes > self.limits.raw_bytes {
            return Err(too_large("The file is larger than this service takes."));
        }
        self.hash.update(bytes);
        self.take(bytes, false).await
    }

    /// Ends the upload: from now on it counts.
    ///
    /// # Errors
    /// As for [`Receiver::feed`].
    pub async fn finish(mut self) -> Result<Upload> {
        self.take(&[], true).await?;
        self.keep(self.text.len()).await?;
        let unended = u64::from(!matches!(self.last_byte, b'\n' | b'\r'));
        let lines = self.line_feeds.max(self.carriage_returns) + unended;
        let sha256: [u8; 32] = self.hash.clone().finalize().into();
        let finished = sqlx::query(
            "UPDATE uploads SET completed_at = now(), touched_at = now(), sha256 = $2, bytes = $3, lines = $4
             WHERE id = $1 AND completed_at IS NULL",
        )
        .bind(self.id)
        .bind(&sha256[..])
        .bind(as_i64(self.kept))
        .bind(as_i64(lines))
        .execute(self.db.pool())
        .await?;
        if finished.rows_affected() == 0 {
            return Err(swept());
        }
        Ok(Upload {
            id: self.id,
            sha256,
            text_bytes: self.kept,
        })
    }

    /// Gives the upload up and deletes what was kept of it.
    ///
    /// # Errors
    /// When the database fails; the sweep deletes it later all the same.
    pub async fn abort(self) -> Result<()> {
        discard(&self.db, self.id).await
    }

    async fn take(&mut self, mut bytes: &[u8], last: bool) -> Result<()> {
        let mut plain = Vec::new();
        loop {
            let more = self
                .inflate
                .push(&mut bytes, last, &mut plain)
                .map_err(|InflateError(detail)| Error::invalid("", "damaged", detail))?;
            let begin = self.text.len();
            self.decode.push(&plain, last && !more, &mut self.text);
            self.count(begin);
            plain.clear();
            let text_bytes = self.kept + self.text.len() as u64;
            if text_bytes > self.limits.text_bytes {
                return Err(too_large("The file's text is longer than this service takes."));
            }
            if text_bytes > RATIO_FROM && text_bytes / MAX_RATIO > self.raw_bytes {
                return Err(too_large("The file unpacks to more than 200 times its size."));
            }
            while self.text.len() >= CHUNK {
                self.keep(CHUNK).await?;
            }
            if !more {
                break;
            }
        }
        if self.touched.elapsed() > TOUCH_EVERY {
            self.keep(0).await?;
        }
        Ok(())
    }

    fn count(&mut self, begin: usize) {
        let added = &self.text[begin..];
        self.line_feeds += added.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.carriage_returns += added.iter().filter(|byte| **byte == b'\r').count() as u64;
        self.last_byte = added.last().copied().unwrap_or(self.last_byte);
    }

    /// Moves the first `length` bytes of the text to the database; with none it only shows that the sender lives.
    async fn keep(&mut self, length: usize) -> Result<()> {
        let mut tx = self.db.begin().await?;
        // The row first: the sweep locks it too, and then neither works against the other.
        let alive = sqlx::query(
            "UPDATE uploads SET touched_at = now(), bytes = $2 WHERE id = $1 AND completed_at IS NULL",
        )
        .bind(self.id)
        .bind(as_i64(self.kept + length as u64))
        .execute(&mut *tx)
        .await?;
        if alive.rows_affected() == 0 {
            return Err(swept());
        }
        if length > 0 {
            sqlx::query("INSERT INTO upload_chunks (upload_id, start, bytes) VALUES ($1, $2, $3)")
                .bind(self.id)
                .bind(as_i64(self.kept))
                .bind(&self.text[..length])
                .execute(&mut *tx)
                .await?;
        }
        db::commit(tx).await?;
        self.text.drain(..length);
        self.kept += length as u64;
        self.touched = Instant::now();
        Ok(())
    }
}

/// Deletes an upload that no import refers to, finished or not.
///
/// # Errors
/// When the database fails.
pub async fn discard(db: &Db, upload_id: Uuid) -> Result<()> {
    sqlx::query(
        "DELETE FROM uploads WHERE id = $1 AND NOT EXISTS (SELECT FROM imports WHERE upload_id = $1)
             AND NOT EXISTS (SELECT FROM pool_imports WHERE upload_id = $1)",
    )
    .bind(upload_id)
    .execute(db.pool())
    .await?;
    Ok(())
}

fn as_i64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn too_large(detail: &'static str) -> Error {
    Refusal::new(Code::PayloadTooLarge, detail).into()
}

fn swept() -> Error {
    Refusal::new(
        Code::Expired,
        "Nothing came for so long that the upload was given up; send the file again.",
    )
    .into()
}
