//! One step of an import: so many records, in one transaction with the place where the next step goes on.
//!
//! Invariant: the cursor moves in the transaction that writes what was read, so a record is dealt with exactly once
//! however often a step is tried; and because a row is judged as if all before it were written, where steps end does
//! not show. The book's one slot for jobs that add codes is held from the first step to the end.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Mode, Settings,
    abreast::Ahead,
    ahead,
    chunk::{self, Chunk, End},
    dialect::Layout,
    plan::{DUPLICATE_IN_BOOK, DUPLICATE_IN_FILE, Known, Lookup, Scope},
    records::Place,
    row::{self, Fault, Row, Rules},
    write,
};
use crate::{
    coupon::{abreast::Abreast, add::Origin, draw::DrawState, slot},
    error::{Code, Error, Refusal, Result},
    job::{
        State,
        claim::{Finished, Outcome, Step},
        ledger,
    },
};

/// Records of a step: a third of a second in which the book's draw is held, unless steps go abreast. They lie all over the book, so the more of
/// them are sorted at once, the more neighbours are written one after another.
pub const STEP_RECORDS: usize = 40_000;

/// Records of a pass's first step, which takes the book's slot and goes alone.
pub const FIRST_STEP_RECORDS: usize = 4_000;

/// What the tables `imports` and `pool_imports` keep in `settings`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// As asked.
    pub(crate) given: Settings,
    /// As found out.
    pub(crate) layout: Layout,
}

/// Runs the next step of an import, or some, where `abreast` may and nothing speaks against it.
///
/// # Errors
/// When the database fails; refusals end the job.
pub async fn step(connection: &mut PgConnection, job_id: Uuid, abreast: Option<&Abreast>) -> Result<Outcome> {
    if let Some(abreast) = abreast
        && let Some(steps) = Ahead::of(connection, job_id).await?
        && abreast.run(connection, job_id, steps).await?
        && let Some(import) = Import::peek(connection, job_id).await?
    {
        return Ok(Outcome::NextStep(import.progress()));
    }
    let Some(mut import) = Import::lock(connection, job_id).await? else {
        return Ok(Finished::undecodable());
    };
    if ledger::is_cancelled(connection, job_id).await? {
        ahead::forget(import.upload_id);
        return Ok(import.finished(State::Cancelled, None));
    }
    if !slot::take(connection, import.origin.book_id, job_id).await? {
        return Ok(Outcome::Snoozed(slot::SLOT_WAIT));
    }
    let outcome = match import.advance(connection).await {
        Err(Error::Refused(refusal)) => import.finished(State::Failed, Some(refusal)),
        done => done?,
    };
    if matches!(outcome, Outcome::Finished(_)) {
        ahead::forget(import.upload_id);
    }
    if matches!(outcome, Outcome::Finished(_)) && import.counts.accepted >= slot::STATISTICS_FROM {
        slot::refresh_statistics(connection).await?;
    }
    Ok(outcome)
}

#[derive(sqlx::FromRow)]
struct ImportRow {
    book_id: Uuid,
    upload_id: Uuid,
    cursor: i64,
    line: i64,
    rows: i64,
    accepted: i64,
    duplicate_in_file: i64,
    duplicate_in_book: i64,
    invalid: i64,
    validated: i64,
    pass: String,
    settings: sqlx::types::Json<Kept>,
    written_at: Vec<DateTime<Utc>>,
    bytes: i64,
    lines: i64,
    created_by: Uuid,
    created_by_kind: String,
    request_id: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    rows: i64,
    accepted: i64,
    duplicate_in_file: i64,
    duplicate_in_book: i64,
    invalid: i64,
}

/// An import as it stands.
#[derive(Clone)]
pub(super) struct Import {
    pub(super) origin: Origin,
    pub(super) upload_id: Uuid,
    pub(super) place: Place,
    counts: Counts,
    validated: i64,
    pub(super) validating: bool,
    mode: Mode,
    pub(super) layout: Layout,
    pub(super) written_at: Vec<DateTime<Utc>>,
    text_bytes: i64,
    lines: i64,
}

/// An import as it stands, $1 its job.
macro_rules! select_import {
    ($lock:literal) => {
        concat!(
            "SELECT i.book_id, i.upload_id, i.cursor, i.line, i.rows, i.accepted, i.duplicate_in_file,
                    i.duplicate_in_book, i.invalid, i.validated, i.pass, i.settings, i.written_at, u.bytes, u.lines,
                    j.created_by, j.created_by_kind, j.request_id
             FROM imports i JOIN jobs j ON j.id = i.job_id JOIN uploads u ON u.id = i.upload_id
             WHERE i.job_id = $1",
            $lock
        )
    };
}

impl Import {
    pub(super) async fn peek(connection: &mut PgConnection, job_id: Uuid) -> Result<Option<Self>> {
        Self::read(connection, job_id, select_import!("")).await
    }

    /// No other step of it can end meanwhile, also of a worker that has lost its claim.
    pub(super) async fn lock(connection: &mut PgConnection, job_id: Uuid) -> Result<Option<Self>> {
        Self::read(connection, job_id, select_import!(" FOR UPDATE OF i")).await
    }

    async fn read(connection: &mut PgConnection, job_id: Uuid, sql: &'static str) -> Result<Option<Self>> {
        let row: Option<ImportRow> = sqlx::query_as(sql)
            .bind(job_id)
            .fetch_optional(connection)
            .await?;
        Ok(row.map(|row| Self {
            origin: Origin {
                job_id,
                book_id: row.book_id,
                actor_kind: row.created_by_kind,
                actor_id: row.created_by,
                request_id: row.request_id,
            },
            upload_id: row.upload_id,
            place: Place {
                offset: row.cursor,
                line: row.line,
            },
            counts: Counts {
                rows: row.rows,
                accepted: row.accepted,
                duplicate_in_file: row.duplicate_in_file,
                duplicate_in_book: row.duplicate_in_book,
                invalid: row.invalid,
            },
            validated: row.validated,
            validating: row.pass == "validate",
            mode: row.settings.0.given.mode,
            layout: row.settings.0.layout,
            written_at: row.written_at,
            text_bytes: row.bytes,
            lines: row.lines,
        }))
    }

    /// As long as the import has met no duplicate it takes the codes of a chunk for new, which saves looking for each;
    /// if one is not, the book's primary key says so and the chunk is done again the careful way. Only where the
    /// server's log is terse: otherwise it would tell the code.
    async fn advance(&mut self, connection: &mut PgConnection) -> Result<Outcome> {
        if self.validating || self.has_met_duplicates() || !slot::log_is_terse(connection).await? {
            return self.advance_by(connection, Lookup::Each).await;
        }
        let before = self.clone();
        sqlx::query("SAVEPOINT chunk").execute(&mut *connection).await?;
        match self.advance_by(connection, Lookup::None).await {
            Err(Error::Store(error)) if error.is_unique_violation("coupons_pkey") => {
                *self = before;
                sqlx::query("ROLLBACK TO SAVEPOINT chunk")
                    .execute(&mut *connection)
                    .await?;
                self.advance_by(connection, Lookup::Each).await
            }
            done => done,
        }
    }

    pub(super) fn has_met_duplicates(&self) -> bool {
        self.counts.duplicate_in_file + self.counts.duplicate_in_book > 0
    }

    async fn advance_by(&mut self, connection: &mut PgConnection, lookup: Lookup) -> Result<Outcome> {
        if self.validating
            && !guard_seen(connection, self.origin.job_id, self.place == self.layout.start()).await?
        {
            self.begin_again(connection).await?;
        }
        let rules = BookRules::read(connection, self.origin.book_id).await?;
        let mut chunk = self.parse(connection, rules.rows).await?;
        // From here on no other job can add codes to this book or give coupons of it away.
        let mut draw = DrawState::lock(connection, self.origin.book_id).await?;
        if BookRules::read(connection, self.origin.book_id).await? != rules {
            return Ok(Outcome::Snoozed(Duration::ZERO)); // the configuration has just changed: read the lines by it
        }
        let scope = Scope {
            job_id: self.origin.job_id,
            book_id: self.origin.book_id,
            max_per_user: rules.max_assignments_per_user,
            written_at: &self.written_at,
        };
        let mut known = Known::read(connection, scope, &chunk.rows, lookup).await?;
        if self.validating {
            known.read_seen(connection, scope, &chunk.rows).await?;
        }
        let mut plan = known.decide(std::mem::take(&mut chunk.rows));
        chunk.faults.append(&mut plan.faults);
        self.count(&chunk, plan.made.len());
        if let Some(End::Stopped(line)) = chunk.end {
            // The job may have been tried before: it has come to the same line.
            write::forget_error(connection, self.origin.job_id, line).await?;
        }
        self.write_errors(connection, &chunk).await?;
        chunk.forget_records(); // before those of the next step are read
        self.parse_ahead(connection, &chunk, rules.rows).await?;
        if self.validating {
            write::seen(connection, self.origin.job_id, &plan).await?;
        } else if let Some(created_at) = write::coupons(connection, &self.origin, &mut draw, plan).await? {
            self.written_at.push(created_at);
        }
        if let Some(End::Stopped(_)) = chunk.end {
            return Ok(self.outcome(&chunk));
        }
        self.place = chunk.place;
        let outcome = self.outcome(&chunk);
        self.save(connection).await?;
        Ok(outcome)
    }

    pub(super) async fn write_errors(&self, connection: &mut PgConnection, chunk: &Chunk<Row>) -> Result<()> {
        let lines = chunk.error_lines(&self.layout, |fault| self.column_at_fault(fault));
        write::errors(connection, self.origin.job_id, lines).await
    }

    /// What a step reads that begins at `place`.
    pub(super) fn source(&self, place: Place) -> chunk::Source {
        chunk::Source {
            upload_id: self.upload_id,
            text_bytes: self.text_bytes,
            delimiter: self.layout.delimiter_byte(),
            step_records: match place == self.layout.start() {
                true => FIRST_STEP_RECORDS,
                false => STEP_RECORDS,
            },
        }
    }

    /// The records of the step, which may have been read ahead.
    async fn parse(&self, connection: &mut PgConnection, rules: Rules) -> Result<Chunk<Row>> {
        if let Some(chunk) = ahead::take(self.upload_id, self.place, rules).await {
            return Ok(chunk);
        }
        chunk::read(connection, &self.source(self.place), self.place, |record| {
            row::read(record, &self.layout, &rules)
        })
        .await
    }

    /// Has the records of the next step read.
    async fn parse_ahead(
        &self,
        connection: &mut PgConnection,
        chunk: &Chunk<Row>,
        rules: Rules,
    ) -> Result<()> {
        if chunk.end.is_some() {
            return Ok(());
        }
        let (place, length) = (chunk.place, self.step_bytes(chunk.place));
        let source = self.source(place);
        ahead::begin(connection, source, place, length, &self.layout, rules).await
    }

    /// Bytes of the text of a step that begins at `place`, by what was dealt with before it, and a little more.
    pub(super) fn step_bytes(&self, place: Place) -> i64 {
        let done = place.offset - self.layout.start().offset;
        let records = i64::try_from(STEP_RECORDS).unwrap_or(i64::MAX);
        let length = done / self.counts.rows.max(1) * records;
        (length + length / 16).min(chunk::STEP_BYTES)
    }

    pub(super) fn count(&mut self, chunk: &Chunk<Row>, made: usize) {
        let of = |reason| {
            chunk
                .faults
                .iter()
                .filter(|(_, fault)| fault.reason == reason)
                .count()
        };
        let (in_file, in_book) = (of(DUPLICATE_IN_FILE), of(DUPLICATE_IN_BOOK));
        let add = |to: &mut i64, count: usize| *to += i64::try_from(count).unwrap_or(0);
        add(&mut self.counts.rows, chunk.records);
        add(&mut self.counts.accepted, made);
        add(&mut self.counts.duplicate_in_file, in_file);
        add(&mut self.counts.duplicate_in_book, in_book);
        add(&mut self.counts.invalid, chunk.faults.len() - in_file - in_book);
    }

    /// What the step came to; turns to the writing pass when everything has proved good.
    fn outcome(&mut self, chunk: &Chunk<Row>) -> Outcome {
        let bad = self.counts.rows - self.counts.accepted;
        match &chunk.end {
            None => Outcome::NextStep(self.progress()),
            Some(End::Stopped(line)) => self.finished(
                State::Failed,
                Some(Refusal::new(
                    Code::ValidationFailed,
                    format!("The file cannot be read from line {line} on; see the list of errors."),
                )),
            ),
            Some(End::Whole) if self.validating && self.mode == Mode::AllOrNothing => {
                if bad > 0 {
                    return self.finished(
                        State::Failed,
                        Some(Refusal::new(
                            Code::ValidationFailed,
                            format!(
                                "{bad} of {} records have faults, so nothing was imported.",
                                self.counts.rows
                            ),
                        )),
                    );
                }
                self.validated = self.counts.rows;
                self.validating = false;
                self.place = self.layout.start();
                self.counts = Counts::default();
                Outcome::NextStep(self.progress())
            }
            Some(End::Whole) if bad > 0 => self.finished(State::PartiallySucceeded, None),
            Some(End::Whole) => self.finished(State::Succeeded, None),
        }
    }

    fn column_at_fault(&self, fault: &Fault) -> Option<usize> {
        match fault.reason {
            DUPLICATE_IN_FILE | DUPLICATE_IN_BOOK => Some(self.layout.code),
            "unknown_user" | "user_disabled" | "assignment_limit_reached" => self.layout.user_email,
            _ => fault.column,
        }
    }

    pub(super) async fn save(&self, connection: &mut PgConnection) -> Result<()> {
        sqlx::query(
            "UPDATE imports SET cursor = $2, line = $3, rows = $4, accepted = $5, duplicate_in_file = $6,
                 duplicate_in_book = $7, invalid = $8, validated = $9, pass = $10, written_at = $11
             WHERE job_id = $1",
        )
        .bind(self.origin.job_id)
        .bind(self.place.offset)
        .bind(self.place.line)
        .bind(self.counts.rows)
        .bind(self.counts.accepted)
        .bind(self.counts.duplicate_in_file)
        .bind(self.counts.duplicate_in_book)
        .bind(self.counts.invalid)
        .bind(self.validated)
        .bind(if self.validating { "validate" } else { "write" })
        .bind(&self.written_at)
        .execute(connection)
        .await?;
        Ok(())
    }

    /// A validating pass whose memory a crash of the server has emptied starts over.
    async fn begin_again(&mut self, connection: &mut PgConnection) -> Result<()> {
        self.place = self.layout.start();
        self.counts = Counts::default();
        sqlx::query("DELETE FROM job_errors WHERE job_id = $1")
            .bind(self.origin.job_id)
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Counts as clients see them: a pass that goes before the writing one has accepted nothing.
    fn named_counts(&self) -> BTreeMap<String, i64> {
        let accepted = match self.mode {
            Mode::AllOrNothing if self.validating => 0,
            _ => self.counts.accepted,
        };
        [
            ("rows", self.counts.rows),
            ("accepted", accepted),
            ("duplicate_in_file", self.counts.duplicate_in_file),
            ("duplicate_in_book", self.counts.duplicate_in_book),
            ("invalid", self.counts.invalid),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .into()
    }

    /// How far the import is. The total is the number of lines, which is right for most files and put right at the end;
    /// of two passes each is a half.
    pub(super) fn progress(&self) -> Step {
        let rows = self.lines - (self.layout.line - 1);
        let done = if self.mode == Mode::AllOrNothing {
            (self.validated + self.counts.rows) / 2
        } else {
            self.counts.rows
        };
        Step {
            done,
            total: Some(rows.max(done)),
            counts: self.named_counts(),
        }
    }

    fn finished(&self, state: State, refusal: Option<Refusal>) -> Outcome {
        let counts = self.named_counts();
        let over = matches!(state, State::Succeeded | State::PartiallySucceeded);
        Outcome::Finished(Finished {
            state,
            result: Some(serde_json::json!(counts)),
            step: Step {
                done: self.counts.rows,
                total: over.then_some(self.counts.rows),
                counts,
            },
            refusal,
        })
    }
}

/// Whether what a validating pass remembers is still there; the first step lays down the sentinel.
async fn guard_seen(connection: &mut PgConnection, job_id: Uuid, first: bool) -> Result<bool> {
    let laid = sqlx::query("INSERT INTO import_seen (job_id, key) VALUES ($1, '') ON CONFLICT DO NOTHING")
        .bind(job_id)
        .execute(connection)
        .await?
        .rows_affected();
    Ok(first || laid == 0)
}

/// What of the book's configuration decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BookRules {
    pub(super) rows: Rules,
    pub(super) max_assignments_per_user: Option<i32>,
}

impl BookRules {
    pub(super) async fn read(connection: &mut PgConnection, book_id: Uuid) -> Result<Self> {
        let row: Option<(bool, i32, String, Option<i32>)> = sqlx::query_as(
            "SELECT exact_codes, redemptions_per_coupon, time_zone, max_assignments_per_user FROM books WHERE id = $1",
        )
        .bind(book_id)
        .fetch_optional(connection)
        .await?;
        let (exact_codes, redemptions_per_coupon, zone, max_assignments_per_user) =
            row.ok_or_else(Refusal::not_found)?;
        Ok(Self {
            rows: Rules {
                exact_codes,
                redemptions_per_coupon,
                zone: zone.parse().unwrap_or(chrono_tz::UTC),
            },
            max_assignments_per_user,
        })
    }
}
