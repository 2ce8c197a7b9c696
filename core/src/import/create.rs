//! Accepting an import: the file's dialect is found, the book's slot is taken, the job is written.
//!
//! Invariant: job, import and slot commit together in the caller's transaction. Imports of one book are accepted one
//! after another, under the lock of the book's row.

use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Mode, Settings,
    dialect::{self, Layout},
    step::Kept,
    text,
};
use crate::{
    caller::Actor,
    coupon::slot,
    error::{Code, Error, Refusal, Result},
    id,
    job::{
        enqueue::{NewJob, enqueue},
        payload::Payload,
    },
};

/// The most codes that may be sent as a list.
pub const MAX_LIST: usize = 10_000;

/// An import to be accepted.
#[derive(Debug)]
pub struct NewImport<'a> {
    /// The book.
    pub book_id: Uuid,
    /// A finished upload for that book.
    pub upload_id: Uuid,
    /// How to read it.
    pub settings: Settings,
    /// Who asks.
    pub actor: Actor,
    /// The request that asks.
    pub request_id: Option<&'a str>,
}

#[derive(sqlx::FromRow)]
struct UploadRow {
    bytes: i64,
    lines: i64,
    sha256: Vec<u8>,
}

/// Accepts an import; gives its job. While the same file is being imported into the same book in the same way, that
/// job is given and the new upload deleted.
///
/// # Errors
/// `not_found`, `book_not_active` (archived), `import_in_progress`, `csv_header_missing`, `unsupported_media_type`,
/// `validation_failed`.
pub async fn create(connection: &mut PgConnection, new: &NewImport<'_>) -> Result<Uuid> {
    slot::lock_book(connection, new.book_id).await?;
    let upload: Option<UploadRow> = sqlx::query_as(
        "SELECT bytes, lines, sha256 FROM uploads
         WHERE id = $1 AND book_id = $2 AND completed_at IS NOT NULL AND removed_at IS NULL",
    )
    .bind(new.upload_id)
    .bind(new.book_id)
    .fetch_optional(&mut *connection)
    .await?;
    let upload = upload.ok_or_else(Refusal::not_found)?;
    if let Some(running) = Running::find(connection, new.book_id).await? {
        if running.sha256.as_ref() != Some(&upload.sha256) || running.given() != Some(&new.settings) {
            return Err(Refusal::new(
                Code::ImportInProgress,
                "Another job is adding codes to this book; wait for its end, or cancel it.",
            )
            .into());
        }
        sqlx::query("DELETE FROM uploads WHERE id = $1")
            .bind(new.upload_id)
            .execute(connection)
            .await?;
        return Ok(running.job_id);
    }
    let layout = read_layout(connection, new, upload.bytes).await?;
    let total = (upload.lines - (layout.line - 1)).max(0);
    let kept = Kept {
        given: new.settings.clone(),
        layout,
    };
    let job_id = insert(connection, new, &kept, total).await?;
    sqlx::query("INSERT INTO code_job_slots (book_id, job_id) VALUES ($1, $2)")
        .bind(new.book_id)
        .bind(job_id)
        .execute(connection)
        .await?;
    Ok(job_id)
}

/// Accepts a list of codes as an import. When another job is adding codes to the book, this one waits for its end.
///
/// # Errors
/// `not_found`, `book_not_active` (archived), `validation_failed` for an empty list or one of more than [`MAX_LIST`].
pub async fn create_from_codes(
    connection: &mut PgConnection,
    book_id: Uuid,
    codes: &[String],
    mode: Mode,
    actor: Actor,
    request_id: Option<&str>,
) -> Result<Uuid> {
    if codes.is_empty() || codes.len() > MAX_LIST {
        return Err(Error::invalid(
            "/codes",
            "out_of_range",
            format!("A list has 1 to {MAX_LIST} codes; send more as a file."),
        ));
    }
    slot::lock_book(connection, book_id).await?;
    let text = list_text(codes);
    let total = i64::try_from(codes.len()).unwrap_or(0);
    let new = NewImport {
        book_id,
        upload_id: id::new(),
        settings: Settings {
            mode,
            ..Settings::default()
        },
        actor,
        request_id,
    };
    sqlx::query(
        "INSERT INTO uploads (id, book_id, created_by, completed_at, bytes, lines, sha256)
         VALUES ($1, $2, $3, now(), $4, $5, $6)",
    )
    .bind(new.upload_id)
    .bind(book_id)
    .bind(actor.id.unwrap_or_default())
    .bind(i64::try_from(text.len()).unwrap_or(0))
    .bind(total)
    .bind(&Sha256::digest(&text)[..])
    .execute(&mut *connection)
    .await?;
    // A list of long strings is still within the bound of a JSON body, so one chunk or two hold it.
    for (n, chunk) in text.chunks(1 << 20).enumerate() {
        sqlx::query("INSERT INTO upload_chunks (upload_id, start, bytes) VALUES ($1, $2, $3)")
            .bind(new.upload_id)
            .bind(i64::try_from(n << 20).unwrap_or(0))
            .bind(chunk)
            .execute(&mut *connection)
            .await?;
    }
    let kept = Kept {
        given: new.settings.clone(),
        layout: Layout::list(),
    };
    insert(connection, &new, &kept, total).await
}

/// One code per line, quoted, so that the line is the item's number. A line break inside a code is no character of one
/// anyway and would shift the numbers.
fn list_text(codes: &[String]) -> Vec<u8> {
    let mut text = Vec::new();
    for code in codes {
        let code = code.trim_matches([' ', '\t', '\r', '\n']);
        text.push(b'"');
        text.extend_from_slice(
            code.replace(['\r', '\n'], "\u{fffd}")
                .replace('"', "\"\"")
                .as_bytes(),
        );
        text.extend_from_slice(b"\"\n");
    }
    text
}

/// The job that has the book's slot.
#[derive(sqlx::FromRow)]
struct Running {
    job_id: Uuid,
    sha256: Option<Vec<u8>>,
    settings: Option<sqlx::types::Json<Kept>>,
}

impl Running {
    async fn find(connection: &mut PgConnection, book_id: Uuid) -> Result<Option<Self>> {
        Ok(sqlx::query_as(
            "SELECT s.job_id, u.sha256, i.settings FROM code_job_slots s
             LEFT JOIN imports i ON i.job_id = s.job_id LEFT JOIN uploads u ON u.id = i.upload_id
             WHERE s.book_id = $1",
        )
        .bind(book_id)
        .fetch_optional(connection)
        .await?)
    }

    fn given(&self) -> Option<&Settings> {
        self.settings.as_ref().map(|kept| &kept.0.given)
    }
}

async fn read_layout(connection: &mut PgConnection, new: &NewImport<'_>, bytes: i64) -> Result<Layout> {
    let (head, whole) = read_head(connection, new.upload_id, bytes).await?;
    dialect::detect(&head, whole, &new.settings)
}

/// The beginning of a text of so many bytes, and whether that is all of it.
///
/// # Errors
/// `validation_failed` for an empty file, `unsupported_media_type` for a workbook.
pub(crate) async fn read_head(
    connection: &mut PgConnection,
    upload_id: Uuid,
    bytes: i64,
) -> Result<(Vec<u8>, bool)> {
    if bytes == 0 {
        return Err(Error::invalid("", "empty", "The file is empty."));
    }
    let mut head = text::read(connection, upload_id, 0).await?;
    if head.starts_with(b"PK\x03\x04") {
        return Err(Refusal::new(
            Code::UnsupportedMediaType,
            "This is a workbook or a zip file; save the sheet as CSV and send that.",
        )
        .into());
    }
    let whole = bytes <= i64::try_from(dialect::HEAD_BYTES).unwrap_or(0);
    head.truncate(dialect::HEAD_BYTES);
    Ok((head, whole))
}

async fn insert(connection: &mut PgConnection, new: &NewImport<'_>, kept: &Kept, total: i64) -> Result<Uuid> {
    let job = NewJob {
        payload: &Payload::ImportCodes,
        actor: new.actor,
        book_id: Some(new.book_id),
        total: Some(total),
        request_id: new.request_id,
        beneficiary: None,
    };
    let job_id = enqueue(connection, job).await?;
    let pass = match kept.given.mode {
        Mode::SkipInvalid => "write",
        Mode::AllOrNothing | Mode::ValidateOnly => "validate",
    };
    sqlx::query(
        "INSERT INTO imports (job_id, book_id, upload_id, cursor, line, pass, settings)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(job_id)
    .bind(new.book_id)
    .bind(new.upload_id)
    .bind(kept.layout.offset)
    .bind(kept.layout.line)
    .bind(pass)
    .bind(sqlx::types::Json(kept))
    .execute(connection)
    .await?;
    Ok(job_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_becomes_one_line_per_code() {
        let codes = ["A1", "", " b\"c ", "d\ne\n"].map(str::to_owned);
        assert_eq!(
            String::from_utf8(list_text(&codes)).unwrap(),
            "\"A1\"\n\"\"\n\"b\"\"c\"\n\"d\u{fffd}e\"\n"
        );
    }
}
