//! Steps of making codes that are written ahead of their turn, while those before them still are.
//!
//! Invariant: no two steps have a code in common, since each number spells one; a code that the book has otherwise is met
//! by the copy, and the job goes on step by step.

use std::sync::Arc;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    pattern::Pattern,
    step::{Book, Generation},
    wave,
};
use crate::{
    coupon::{abreast::Steps, add, draw::DrawState, slot},
    error::Result,
    job::ledger,
};

/// A job as it will stand at the turn of its next step.
pub(super) struct Ahead {
    generation: Generation,
    pattern: Arc<Pattern>,
    draw: DrawState,
}

/// A step of a job, written ahead.
pub(super) struct Step {
    /// The job as the step counts on finding it, but that a wave which it begins has begun.
    generation: Generation,
    begins_wave: bool,
    pattern: Arc<Pattern>,
    book: Book,
    draw: DrawState,
    codes: Box<[u128]>,
    /// The draw once the codes have arrived.
    written: Option<DrawState>,
}

impl Ahead {
    /// The job, if steps of it may be written ahead: not its first, which takes the book's slot, and none once a code was
    /// met that the book has.
    pub(super) async fn of(connection: &mut PgConnection, job_id: Uuid) -> Result<Option<Self>> {
        let Some(generation) = Generation::peek(connection, job_id).await? else {
            return Ok(None);
        };
        if generation.made == 0 || generation.skipped > 0 {
            return Ok(None);
        }
        let Ok(pattern) = Pattern::parse(generation.given(), generation.exact) else {
            return Ok(None);
        };
        let draw = DrawState::peek(connection, generation.origin.book_id).await?;
        let book = generation.book(connection).await?;
        Ok(book.may_be_tried(&draw).then(|| Self {
            generation,
            pattern: pattern.into(),
            draw,
        }))
    }
}

impl Steps for Ahead {
    type Step = Step;

    async fn next(&mut self, connection: &mut PgConnection) -> Result<Option<Step>> {
        if self.generation.made >= self.generation.count {
            return Ok(None);
        }
        let begins_wave = self.generation.wave_is_done();
        if begins_wave {
            let Some(wave) = self.generation.next_wave(0, &self.pattern) else {
                return Ok(None);
            };
            self.generation.wave = wave;
            self.generation.wave_done = 0;
        }
        let permutation = self.generation.key.permutation(&self.pattern);
        let numbers = wave::sorted(self.generation.wave, permutation).await?;
        let codes: Box<[u128]> = self.generation.chunk(&numbers).into();
        let length = i64::try_from(codes.len()).unwrap_or(i64::MAX);
        let book = self.generation.book(connection).await?;
        if book.exact_codes != self.generation.exact {
            return Ok(None);
        }
        let step = Step {
            generation: self.generation.clone(),
            begins_wave,
            pattern: Arc::clone(&self.pattern),
            book,
            draw: self.draw.clone(),
            codes,
            written: None,
        };
        self.generation.make_ahead(length, &self.pattern);
        self.generation.count(length, length);
        self.draw = self.draw.after(length);
        Ok(Some(step))
    }

    async fn write(step: &mut Step, connection: &mut PgConnection) -> Result<()> {
        let mut draw = step.draw.clone();
        let Step {
            generation,
            book,
            pattern,
            codes,
            ..
        } = &*step;
        generation
            .copy(connection, &mut draw, book, pattern, codes)
            .await?;
        step.written = Some(draw);
        Ok(())
    }

    async fn end(step: Step, connection: &mut PgConnection) -> Result<bool> {
        let (Some(written), job_id) = (step.written, step.generation.origin.job_id) else {
            return Ok(false);
        };
        let Some(mut generation) = Generation::lock(connection, job_id).await? else {
            return Ok(false);
        };
        let book_id = generation.origin.book_id;
        if generation.made != step.generation.made
            || generation.skipped != step.generation.skipped
            || ledger::is_cancelled(connection, job_id).await?
            || !slot::take(connection, book_id, job_id).await?
        {
            return Ok(false);
        }
        if step.begins_wave {
            generation.begin_wave(connection, &step.pattern).await?;
        }
        if generation.wave != step.generation.wave || generation.wave_done != step.generation.wave_done {
            return Ok(false);
        }
        // From here on no other job can add codes to this book or give coupons of it away.
        let draw = DrawState::lock(connection, book_id).await?;
        let book = generation.book(connection).await?;
        if !draw.stands_as(&step.draw)
            || book.exact_codes != step.book.exact_codes
            || book.redemptions_per_coupon != step.book.redemptions_per_coupon
        {
            return Ok(false);
        }
        let length = i64::try_from(step.codes.len()).unwrap_or(i64::MAX);
        let (origin, created_at) = (&generation.origin, step.book.created_at);
        add::record(connection, origin, &written, draw.arrivals(), created_at).await?;
        generation.count(length, length);
        generation.save(connection, length).await?;
        ledger::progress(connection, job_id, generation.progress()).await?;
        Ok(true)
    }
}
