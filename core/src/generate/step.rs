//! One step of making codes: so many of a wave, in one transaction with the place where the next step goes on.
//!
//! Invariant: numbers are reserved, codes are written and the place moves in the step's transaction, so a step that is
//! run again after a crash makes the same codes, and the job makes exactly as many as were asked for: for each code that
//! the book had before, one more number is taken. The book's one slot for jobs that add codes is held from the first step
//! to the end.

use std::{collections::BTreeMap, collections::HashSet, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    abreast::Ahead,
    key::BookKey,
    pattern::{Given, Pattern},
    wave::{self, WAVE, WaveId},
};
use crate::{
    coupon::{
        abreast::Abreast,
        add::{self, Origin},
        draw::DrawState,
        slot,
    },
    error::{Code, Error, Refusal, Result},
    job::{
        State,
        claim::{Finished, Outcome, Step},
        ledger,
    },
};

/// Codes of a step: less than a second in which the book's draw is held, on a machine that writes 100,000 a second.
pub const STEP_CODES: usize = 80_000;

/// Codes of a job's first step, which takes the book's slot and goes alone.
pub const FIRST_STEP_CODES: usize = 8_000;

/// The most bytes of metadata of a step.
const STEP_BYTES: usize = 8 << 20;

/// Runs the next step of making codes, or some, where `abreast` may and nothing speaks against it.
///
/// # Errors
/// When the database fails; refusals end the job.
pub async fn step(connection: &mut PgConnection, job_id: Uuid, abreast: Option<&Abreast>) -> Result<Outcome> {
    if let Some(abreast) = abreast
        && let Some(steps) = Ahead::of(connection, job_id).await?
        && abreast.run(connection, job_id, steps).await?
        && let Some(generation) = Generation::peek(connection, job_id).await?
    {
        return Ok(Outcome::NextStep(generation.progress()));
    }
    let Some(mut generation) = Generation::lock(connection, job_id).await? else {
        return Ok(Finished::undecodable());
    };
    if ledger::is_cancelled(connection, job_id).await? {
        wave::forget(generation.origin.book_id, i64::MAX);
        return Ok(generation.finished(State::Cancelled, None));
    }
    if !slot::take(connection, generation.origin.book_id, job_id).await? {
        return Ok(Outcome::Snoozed(slot::SLOT_WAIT));
    }
    let outcome = match generation.advance(connection).await {
        Err(Error::Refused(refusal)) => generation.finished(State::Failed, Some(refusal)),
        Err(Error::Unfit(unfit)) => {
            let refusal = Refusal::new(unfit.code, unfit.fault.detail);
            generation.finished(State::Failed, Some(refusal))
        }
        done => done?,
    };
    if matches!(outcome, Outcome::Finished(_)) {
        wave::forget(generation.origin.book_id, i64::MAX);
        if generation.made >= slot::STATISTICS_FROM {
            slot::refresh_statistics(connection).await?;
        }
    }
    Ok(outcome)
}

#[derive(sqlx::FromRow)]
struct Row {
    book_id: Uuid,
    expires_at: Option<DateTime<Utc>>,
    count: i64,
    made: i64,
    skipped: i64,
    wave_start: i64,
    wave_end: i64,
    wave_done: i64,
    checked: bool,
    tweak: Vec<u8>,
    pattern: String,
    alphabet: Option<String>,
    metadata: Option<String>,
    created_by: Uuid,
    created_by_kind: String,
    request_id: Option<String>,
    exact_codes: bool,
    key: Vec<u8>,
}

/// A job as it stands.
#[derive(Clone)]
pub(super) struct Generation {
    pub(super) origin: Origin,
    pub(super) key: BookKey,
    pub(super) exact: bool,
    pattern: String,
    alphabet: Option<String>,
    checked: bool,
    expires_at: Option<DateTime<Utc>>,
    metadata: Option<String>,
    pub(super) count: i64,
    pub(super) made: i64,
    pub(super) skipped: i64,
    pub(super) wave: WaveId,
    pub(super) wave_done: i64,
}

/// A job as it stands, $1 its id.
macro_rules! select_generation {
    ($lock:literal) => {
        concat!(
            "SELECT g.book_id, g.expires_at, g.count, g.made, g.skipped, g.wave_start, g.wave_end, g.wave_done, g.checked,
                    g.tweak, g.pattern, g.alphabet, g.metadata::text AS metadata,
                    j.created_by, j.created_by_kind, j.request_id, b.exact_codes, k.key
             FROM generations g JOIN jobs j ON j.id = g.job_id
             JOIN books b ON b.id = g.book_id JOIN code_keys k ON k.book_id = g.book_id
             WHERE g.job_id = $1",
            $lock
        )
    };
}

/// What of the book decides, once nothing can change it any more.
#[derive(Clone, sqlx::FromRow)]
pub(super) struct Book {
    pub(super) exact_codes: bool,
    pub(super) redemptions_per_coupon: i32,
    pub(super) created_at: DateTime<Utc>,
    terse: bool,
    made: i64,
}

impl Book {
    /// Whether codes may be written without a look at what the book has: it has none but those of this pattern, or the
    /// server's log does not tell the code that it has.
    pub(super) fn may_be_tried(&self, draw: &DrawState) -> bool {
        self.terse || draw.arrivals() == self.made
    }
}

impl Generation {
    pub(super) async fn peek(connection: &mut PgConnection, job_id: Uuid) -> Result<Option<Self>> {
        Self::read(connection, job_id, select_generation!("")).await
    }

    /// No other step of it can end meanwhile, also of a worker that has lost its claim.
    pub(super) async fn lock(connection: &mut PgConnection, job_id: Uuid) -> Result<Option<Self>> {
        Self::read(connection, job_id, select_generation!(" FOR UPDATE OF g")).await
    }

    async fn read(connection: &mut PgConnection, job_id: Uuid, sql: &'static str) -> Result<Option<Self>> {
        let row: Option<Row> = sqlx::query_as(sql)
            .bind(job_id)
            .fetch_optional(connection)
            .await?;
        Ok(row.and_then(|row| {
            Some(Self {
                wave: WaveId {
                    book_id: row.book_id,
                    tweak: row.tweak.try_into().ok()?,
                    start: row.wave_start,
                    end: row.wave_end,
                },
                wave_done: row.wave_done,
                origin: Origin {
                    job_id,
                    book_id: row.book_id,
                    actor_kind: row.created_by_kind,
                    actor_id: row.created_by,
                    request_id: row.request_id,
                },
                key: BookKey::from_bytes(row.key)?,
                exact: row.exact_codes,
                pattern: row.pattern,
                alphabet: row.alphabet,
                checked: row.checked,
                expires_at: row.expires_at,
                metadata: row.metadata,
                count: row.count,
                made: row.made,
                skipped: row.skipped,
            })
        }))
    }

    pub(super) fn given(&self) -> Given<'_> {
        Given {
            pattern: &self.pattern,
            alphabet: self.alphabet.as_deref(),
            check: self.checked,
        }
    }

    async fn advance(&mut self, connection: &mut PgConnection) -> Result<Outcome> {
        if self.made >= self.count {
            return Ok(self.finished(State::Succeeded, None)); // all were written ahead
        }
        let pattern = Pattern::parse(self.given(), self.exact)?;
        if self.wave_is_done() {
            self.begin_wave(connection, &pattern).await?;
        }
        let numbers = wave::sorted(self.wave, self.key.permutation(&pattern)).await?;
        // From here on no other job can add codes to this book or give coupons of it away.
        let mut draw = DrawState::lock(connection, self.origin.book_id).await?;
        let book = self.book(connection).await?;
        if book.exact_codes != self.exact {
            // The configuration has just changed, as it can while the book has no codes: begin again by it.
            return Ok(Outcome::Snoozed(Duration::ZERO));
        }
        let chunk = self.chunk(&numbers);
        let length = i64::try_from(chunk.len()).unwrap_or(0);
        self.make_ahead(length, &pattern);
        let made = self.write(connection, &mut draw, &book, &pattern, chunk).await?;
        self.count(length, made);
        self.save(connection, made).await?;
        if self.made >= self.count {
            Ok(self.finished(State::Succeeded, None))
        } else {
            Ok(Outcome::NextStep(self.progress()))
        }
    }

    pub(super) fn wave_is_done(&self) -> bool {
        self.wave_done >= self.wave.end - self.wave.start
    }

    /// Counts the numbers of a step, of which so many became codes.
    pub(super) fn count(&mut self, length: i64, made: i64) {
        self.made += made;
        self.skipped += length - made;
        self.wave_done += length;
        if self.wave_is_done() {
            wave::forget(self.origin.book_id, self.wave.end);
        }
    }

    /// The wave behind this one, which begins when so many more codes are made, unless some are skipped; none when every
    /// number of the pattern is reserved.
    pub(super) fn next_wave(&self, length: i64, pattern: &Pattern) -> Option<WaveId> {
        let end = self.wave.end + wave_length(self.made + length, self.count);
        let wave = WaveId {
            start: self.wave.end,
            end: end.min(i64::try_from(pattern.space()).unwrap_or(i64::MAX)),
            ..self.wave
        };
        (wave.start < wave.end).then_some(wave)
    }

    /// While the database stores `length` codes, the last of their wave, the next wave is made: the one that will be
    /// reserved, unless codes are skipped.
    pub(super) fn make_ahead(&self, length: i64, pattern: &Pattern) {
        if self.wave_done + length < self.wave.end - self.wave.start || self.made + length >= self.count {
            return;
        }
        if let Some(wave) = self.next_wave(length, pattern) {
            wave::begin(wave, self.key.permutation(pattern));
        }
    }

    /// Reserves the numbers of the next wave. The rest of a cancelled one is never used: a pattern spells at least ten
    /// times as many codes as are made of it.
    pub(super) async fn begin_wave(
        &mut self,
        connection: &mut PgConnection,
        pattern: &Pattern,
    ) -> Result<()> {
        let tweak = pattern.tweak();
        let space = i64::try_from(pattern.space()).unwrap_or(i64::MAX);
        let reserved: Option<(i64, i64)> = sqlx::query_as(
            "WITH known AS (
                 INSERT INTO code_patterns AS p (book_id, tweak, pattern, alphabet, checked)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (book_id, tweak) DO UPDATE SET next_index = p.next_index -- locks it
                 RETURNING next_index)
             SELECT next_index, least(next_index + $6, $7) FROM known WHERE next_index < $7",
        )
        .bind(self.origin.book_id)
        .bind(&tweak[..])
        .bind(&self.pattern)
        .bind(self.alphabet.as_deref())
        .bind(self.checked)
        .bind(wave_length(self.made, self.count))
        .bind(space)
        .fetch_optional(&mut *connection)
        .await?;
        let Some((start, end)) = reserved else {
            return Err(Refusal::new(
                Code::PatternSpaceTooSmall,
                "Every code of the pattern has been used, by coupons or by jobs that were cancelled; take a longer pattern.",
            )
            .into());
        };
        sqlx::query(
            "UPDATE code_patterns SET next_index = $3 WHERE book_id = $1 AND tweak = $2 AND next_index = $4",
        )
        .bind(self.origin.book_id)
        .bind(&tweak[..])
        .bind(end)
        .bind(start)
        .execute(connection)
        .await?;
        self.wave = WaveId {
            tweak,
            start,
            end,
            ..self.wave
        };
        self.wave_done = 0;
        Ok(())
    }

    pub(super) async fn book(&self, connection: &mut PgConnection) -> Result<Book> {
        Ok(sqlx::query_as(
            "SELECT b.exact_codes, b.redemptions_per_coupon, clock_timestamp() AS created_at, p.made,
                    current_setting('log_error_verbosity') = 'terse' AS terse
             FROM books b JOIN code_patterns p ON p.book_id = b.id
             WHERE b.id = $1 AND p.book_id = $1 AND p.tweak = $2",
        )
        .bind(self.origin.book_id)
        .bind(&self.wave.tweak[..])
        .fetch_one(connection)
        .await?)
    }

    /// The numbers of this step.
    pub(super) fn chunk<'a>(&self, numbers: &'a Arc<[u128]>) -> &'a [u128] {
        let bytes = self.metadata.as_ref().map_or(0, String::len);
        let length = STEP_BYTES
            .checked_div(bytes)
            .unwrap_or(STEP_CODES)
            .clamp(1, STEP_CODES);
        let rest = &numbers[usize::try_from(self.wave_done).unwrap_or(0).min(numbers.len())..];
        &rest[..rest.len().min(length)]
    }

    /// Writes the codes of the chunk that the book has not got; gives how many.
    ///
    /// In a book whose codes are all of this pattern none can be there: nothing is asked. In another it is tried, and
    /// should one be there, the book's primary key says so and each is looked up. Where the server's log would
    /// then tell that code, they are looked up at once.
    async fn write(
        &self,
        connection: &mut PgConnection,
        draw: &mut DrawState,
        book: &Book,
        pattern: &Pattern,
        chunk: &[u128],
    ) -> Result<i64> {
        if book.may_be_tried(draw) {
            sqlx::query("SAVEPOINT chunk").execute(&mut *connection).await?;
            let before = draw.clone();
            match self.add(connection, draw, book, pattern, chunk).await {
                Err(Error::Store(error)) if error.is_unique_violation("coupons_pkey") => {
                    *draw = before;
                    sqlx::query("ROLLBACK TO SAVEPOINT chunk")
                        .execute(&mut *connection)
                        .await?;
                }
                done => return done,
            }
        }
        let fresh = self.without_known(connection, pattern, chunk).await?;
        self.add(connection, draw, book, pattern, &fresh).await
    }

    async fn add(
        &self,
        connection: &mut PgConnection,
        draw: &mut DrawState,
        book: &Book,
        pattern: &Pattern,
        numbers: &[u128],
    ) -> Result<i64> {
        if numbers.is_empty() {
            return Ok(0);
        }
        let first_arrival = draw.arrivals();
        self.copy(connection, draw, book, pattern, numbers).await?;
        add::record(connection, &self.origin, draw, first_arrival, book.created_at).await?;
        Ok(draw.arrivals() - first_arrival)
    }

    /// Copies the codes of numbers in, which are sorted.
    pub(super) async fn copy(
        &self,
        connection: &mut PgConnection,
        draw: &mut DrawState,
        book: &Book,
        pattern: &Pattern,
        numbers: &[u128],
    ) -> Result<()> {
        let common = add::Common {
            book_id: self.origin.book_id,
            created_at: book.created_at,
            valid_until: None,
            extras: add::Extras {
                expires_at: self.expires_at.is_some(),
                metadata: self.metadata.is_some(),
                holder: false,
            },
        };
        let mut chunk = add::Chunk::begin(connection, draw, common).await?;
        let mut speller = pattern.speller();
        for number in numbers {
            let (key, shown) = speller.spell(*number);
            let new = add::New {
                key,
                shown,
                allowed: book.redemptions_per_coupon,
                expires_at: self.expires_at,
                metadata: self.metadata.as_deref(),
                holder: None,
            };
            chunk.add(&new).await?;
        }
        chunk.finish().await
    }

    async fn without_known(
        &self,
        connection: &mut PgConnection,
        pattern: &Pattern,
        chunk: &[u128],
    ) -> Result<Vec<u128>> {
        let mut speller = pattern.speller();
        let keys: Vec<String> = chunk
            .iter()
            .map(|number| speller.spell(*number).0.to_owned())
            .collect();
        // One look into the primary key per code: OFFSET 0 keeps the planner from turning it into a scan of the book.
        let known: Vec<String> = sqlx::query_scalar(
            "SELECT k.key FROM unnest($2::text[]) AS k (key),
                 LATERAL (SELECT FROM coupons WHERE book_id = $1 AND code_key = k.key OFFSET 0) AS c",
        )
        .bind(self.origin.book_id)
        .bind(&keys)
        .fetch_all(connection)
        .await?;
        let known: HashSet<String> = known.into_iter().collect();
        let numbers = chunk.iter().zip(&keys).filter(|(_, key)| !known.contains(*key));
        Ok(numbers.map(|(number, _)| *number).collect())
    }

    pub(super) async fn save(&self, connection: &mut PgConnection, made: i64) -> Result<()> {
        sqlx::query(
            "WITH counted AS (
                 UPDATE code_patterns SET made = made + $8 WHERE book_id = $9 AND tweak = $7)
             UPDATE generations SET made = $2, skipped = $3, wave_start = $4, wave_end = $5, wave_done = $6, tweak = $7
             WHERE job_id = $1",
        )
        .bind(self.origin.job_id)
        .bind(self.made)
        .bind(self.skipped)
        .bind(self.wave.start)
        .bind(self.wave.end)
        .bind(self.wave_done)
        .bind(&self.wave.tweak[..])
        .bind(made)
        .bind(self.origin.book_id)
        .execute(connection)
        .await?;
        Ok(())
    }

    pub(super) fn progress(&self) -> Step {
        Step {
            done: self.made,
            total: Some(self.count),
            counts: BTreeMap::from([
                ("generated".to_owned(), self.made),
                ("skipped".to_owned(), self.skipped),
            ]),
        }
    }

    fn finished(&self, state: State, refusal: Option<Refusal>) -> Outcome {
        Outcome::Finished(Finished {
            state,
            step: self.progress(),
            result: Some(serde_json::json!({ "generated": self.made })),
            refusal,
        })
    }
}

/// Numbers of the wave that is begun when so many codes of `count` are made. For a job's first one the database waits, so it
/// has those of the first step; the others are made while the database stores the codes of the one before.
fn wave_length(made: i64, count: i64) -> i64 {
    let most = if made == 0 { FIRST_STEP_CODES as i64 } else { WAVE };
    (count - made).min(most)
}
