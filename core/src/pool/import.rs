//! Members from a file of e-mail addresses: accepted as a job, done in steps, every bad line listed.
//!
//! Invariant: a step's members, its error lines and its place in the text commit together, so each record is dealt with
//! exactly once however often a worker is killed. The file comes in, is kept and is cut into records as an import of
//! codes is ([`crate::import`]).

use std::collections::{BTreeMap, HashMap};

use sqlx::PgConnection;
use uuid::Uuid;

use super::{members, store};
use crate::{
    coupon::Origin,
    error::{Code, Error, Refusal, Result},
    import::{
        Settings,
        chunk::{self, Chunk, End},
        create,
        dialect::{self, Layout},
        records::{Place, Record},
        row::Fault,
        step::Kept,
        write,
    },
    job::{
        State,
        claim::{Finished, Outcome, Step},
        enqueue::{self, NewJob},
        ledger,
        payload::Payload,
    },
};

/// The longest e-mail address (RFC 5321, as the table of users bounds it).
const MAX_EMAIL: usize = 254;

/// Accepts an import of members; gives its job. `upload_id` is a finished upload for this pool.
///
/// # Errors
/// `not_found`, `csv_header_missing`, `unsupported_media_type`, `validation_failed`.
pub async fn accept(
    connection: &mut PgConnection,
    pool_id: Uuid,
    upload_id: Uuid,
    settings: &Settings,
    origin: Origin<'_>,
) -> Result<Uuid> {
    store::find(connection, pool_id).await?;
    let upload: Option<(i64, i64)> = sqlx::query_as(
        "SELECT bytes, lines FROM uploads
         WHERE id = $1 AND pool_id = $2 AND completed_at IS NOT NULL AND removed_at IS NULL",
    )
    .bind(upload_id)
    .bind(pool_id)
    .fetch_optional(&mut *connection)
    .await?;
    let (bytes, lines) = upload.ok_or_else(Refusal::not_found)?;
    let (head, whole) = create::read_head(connection, upload_id, bytes).await?;
    let layout = dialect::detect_emails(&head, whole, settings)?;
    let job = NewJob {
        payload: &Payload::ImportMembers,
        actor: origin.actor,
        book_id: None,
        total: Some((lines - (layout.line - 1)).max(0)),
        request_id: origin.request_id,
        beneficiary: None,
    };
    let job_id = enqueue::enqueue(connection, job).await?;
    sqlx::query(
        "INSERT INTO pool_imports (job_id, pool_id, upload_id, cursor, line, settings) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(job_id)
    .bind(pool_id)
    .bind(upload_id)
    .bind(layout.offset)
    .bind(layout.line)
    .bind(sqlx::types::Json(Kept {
        given: settings.clone(),
        layout,
    }))
    .execute(connection)
    .await?;
    Ok(job_id)
}

/// Records of a step: about a tenth of a second in which the pool is held.
const STEP_RECORDS: usize = 20_000;

#[derive(sqlx::FromRow)]
struct Row {
    pool_id: Uuid,
    upload_id: Uuid,
    cursor: i64,
    line: i64,
    rows: i64,
    added: i64,
    already: i64,
    unknown: i64,
    invalid: i64,
    settings: sqlx::types::Json<Kept>,
    bytes: i64,
    lines: i64,
}

/// Adds the members of the next records.
///
/// # Errors
/// When the database fails; refusals end the job.
pub async fn step(connection: &mut PgConnection, job_id: Uuid) -> Result<Outcome> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT i.pool_id, i.upload_id, i.cursor, i.line, i.rows, i.added, i.already, i.unknown, i.invalid, i.settings,
                u.bytes, u.lines
         FROM pool_imports i JOIN uploads u ON u.id = i.upload_id WHERE i.job_id = $1",
    )
    .bind(job_id)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(mut row) = row else {
        return Ok(Finished::undecodable());
    };
    if ledger::is_cancelled(connection, job_id).await? {
        return Ok(row.finished(State::Cancelled, None));
    }
    match row.advance(connection, job_id).await {
        Err(Error::Refused(refusal)) => Ok(row.finished(State::Failed, Some(refusal))),
        done => done,
    }
}

impl Row {
    async fn advance(&mut self, connection: &mut PgConnection, job_id: Uuid) -> Result<Outcome> {
        let layout = self.settings.0.layout.clone();
        let source = chunk::Source {
            upload_id: self.upload_id,
            text_bytes: self.bytes,
            delimiter: layout.delimiter_byte(),
            step_records: STEP_RECORDS,
        };
        let place = Place {
            offset: self.cursor,
            line: self.line,
        };
        let mut chunk = chunk::read(connection, &source, place, |record| read(record, &layout)).await?;
        let invalid = chunk.faults.len();
        store::lock(connection, self.pool_id).await?;
        let known = find_users(connection, &chunk).await?;
        let mut users = Vec::with_capacity(chunk.rows.len());
        for numbered in std::mem::take(&mut chunk.rows) {
            match known.get(&numbered.row) {
                Some(user_id) => users.push(*user_id),
                None => chunk.faults.push((numbered.record, unknown_user(layout.code))),
            }
        }
        let (added, _) = members::insert(connection, self.pool_id, &users).await?;
        self.count(chunk.records, users.len(), invalid, added);
        if let Some(End::Stopped(line)) = chunk.end {
            // The job may have been tried before: it has come to the same line.
            write::forget_error(connection, job_id, line).await?;
        }
        let lines = chunk.error_lines(&layout, |fault| fault.column);
        write::errors(connection, job_id, lines).await?;
        (self.cursor, self.line) = (chunk.place.offset, chunk.place.line);
        self.save(connection, job_id).await?;
        Ok(match chunk.end {
            None => Outcome::NextStep(self.progress()),
            Some(End::Stopped(line)) => self.finished(
                State::Failed,
                Some(Refusal::new(
                    Code::ValidationFailed,
                    format!("The file cannot be read from line {line} on; see the list of errors."),
                )),
            ),
            Some(End::Whole) if self.unknown + self.invalid > 0 => {
                self.finished(State::PartiallySucceeded, None)
            }
            Some(End::Whole) => self.finished(State::Succeeded, None),
        })
    }

    fn count(&mut self, records: usize, known: usize, invalid: usize, added: i64) {
        let [records, known, invalid] =
            [records, known, invalid].map(|count| i64::try_from(count).unwrap_or(i64::MAX));
        self.rows += records;
        self.added += added;
        self.already += known - added;
        self.invalid += invalid;
        self.unknown += records - known - invalid;
    }

    async fn save(&self, connection: &mut PgConnection, job_id: Uuid) -> Result<()> {
        sqlx::query(
            "UPDATE pool_imports SET cursor = $2, line = $3, rows = $4, added = $5, already = $6, unknown = $7,
                 invalid = $8 WHERE job_id = $1",
        )
        .bind(job_id)
        .bind(self.cursor)
        .bind(self.line)
        .bind(self.rows)
        .bind(self.added)
        .bind(self.already)
        .bind(self.unknown)
        .bind(self.invalid)
        .execute(connection)
        .await?;
        Ok(())
    }

    fn counts(&self) -> BTreeMap<String, i64> {
        [
            ("rows", self.rows),
            ("added", self.added),
            ("already", self.already),
            ("unknown", self.unknown),
            ("invalid", self.invalid),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .into()
    }

    /// How far it is. The total is the number of lines, put right at the end.
    fn progress(&self) -> Step {
        let total = self.lines - (self.settings.0.layout.line - 1);
        Step {
            done: self.rows,
            total: Some(total.max(self.rows)),
            counts: self.counts(),
        }
    }

    fn finished(&self, state: State, refusal: Option<Refusal>) -> Outcome {
        let counts = self.counts();
        let over = matches!(state, State::Succeeded | State::PartiallySucceeded);
        Outcome::Finished(Finished {
            state,
            result: Some(serde_json::json!(counts)),
            step: Step {
                done: self.rows,
                total: over.then_some(self.rows),
                counts,
            },
            refusal,
        })
    }
}

/// The e-mail address of a record.
fn read(record: &Record<'_>, layout: &Layout) -> Result<String, Fault> {
    let text = String::from_utf8_lossy(record.field(layout.code));
    match text.trim() {
        "" => Err(Fault::new(
            Some(layout.code),
            "empty",
            "The line has no e-mail address.",
        )),
        text if text.len() > MAX_EMAIL || text.contains('\0') => Err(unknown_user(layout.code)),
        text => Ok(text.to_owned()),
    }
}

fn unknown_user(column: usize) -> Fault {
    Fault::new(Some(column), "unknown_user", "No user has this e-mail address.")
}

/// The users of a chunk, by e-mail address as its records spell it.
async fn find_users(connection: &mut PgConnection, chunk: &Chunk<String>) -> Result<HashMap<String, Uuid>> {
    let emails: Vec<&str> = chunk.rows.iter().map(|numbered| numbered.row.as_str()).collect();
    // One look into the index per address: OFFSET 0 keeps the planner from turning it into a scan of all users.
    let users: Vec<(String, Uuid)> = sqlx::query_as(
        "SELECT e.email, u.id FROM unnest($1::text[]) AS e (email),
             LATERAL (SELECT id FROM users WHERE lower(users.email) = lower(e.email) OFFSET 0) AS u",
    )
    .bind(emails)
    .fetch_all(connection)
    .await?;
    Ok(users.into_iter().collect())
}
