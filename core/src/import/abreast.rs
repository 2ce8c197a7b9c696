//! Steps of an import that are written ahead of their turn, while those before them still are.
//!
//! Invariant: what decides a chunk is read before its turn, and cannot change until then: codes are added by this import
//! alone while it has the book's slot. A chunk that has holders is not written ahead, since what they may have can change;
//! nor is one with a code of a chunk under way, which it cannot see yet and would wait for.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
};

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    ahead,
    chunk::Chunk,
    plan::{Known, Lookup, Plan, Scope},
    row::Row,
    step::{BookRules, Import},
    write::{self, Moment},
};
use crate::{
    coupon::{
        abreast::{CONNECTIONS, Steps},
        add,
        draw::DrawState,
        slot,
    },
    error::Result,
    job::ledger,
};

/// The most bytes of a step's text: several are in memory at the same time.
const STEP_BYTES: i64 = 2 << 20;

/// An import as it will stand at the turn of its next step.
pub(super) struct Ahead {
    import: Import,
    rules: BookRules,
    draw: DrawState,
    /// Bytes of a step's text, about.
    length: i64,
    /// Hashes of the codes under way, step by step.
    under_way: VecDeque<HashSet<u64>>,
    hashes: RandomState,
}

/// A step of an import, written ahead.
pub(super) struct Step {
    /// The import as the step counts on finding it.
    import: Import,
    rules: BookRules,
    draw: DrawState,
    chunk: Chunk<Row>,
    plan: Plan,
    made: usize,
    moment: Moment,
    /// The draw once the codes have arrived; of a step that makes any.
    written: Option<DrawState>,
}

impl Ahead {
    /// The import of a job, if steps of it may be written ahead: not its first, which takes the book's slot, and none that
    /// validates.
    pub(super) async fn of(connection: &mut PgConnection, job_id: Uuid) -> Result<Option<Self>> {
        let Some(import) = Import::peek(connection, job_id).await? else {
            return Ok(None);
        };
        let begun = import.place != import.layout.start();
        // A code that is taken for new and is not would be told by the server's log.
        if !begun || import.validating || !slot::log_is_terse(connection).await? {
            return Ok(None);
        }
        let book_id = import.origin.book_id;
        Ok(Some(Self {
            rules: BookRules::read(connection, book_id).await?,
            draw: DrawState::peek(connection, book_id).await?,
            length: import.step_bytes(import.place).min(STEP_BYTES),
            import,
            under_way: VecDeque::new(),
            hashes: RandomState::new(),
        }))
    }

    /// Notes the codes of a chunk, unless one of them is under way.
    fn note(&mut self, chunk: &Chunk<Row>) -> bool {
        let hash = |numbered: &super::chunk::Numbered<Row>| self.hashes.hash_one(numbered.row.key());
        let codes: HashSet<u64> = chunk.rows.iter().map(hash).collect();
        if self.under_way.iter().any(|other| !other.is_disjoint(&codes)) {
            return false;
        }
        if self.under_way.len() >= CONNECTIONS {
            self.under_way.pop_front();
        }
        self.under_way.push_back(codes);
        true
    }
}

impl Steps for Ahead {
    type Step = Step;

    async fn next(&mut self, connection: &mut PgConnection) -> Result<Option<Step>> {
        let import = &self.import;
        let (upload_id, place, rules) = (import.upload_id, import.place, self.rules.rows);
        let (source, layout) = (import.source(place), &import.layout);
        ahead::begin(connection, source, place, self.length, layout, rules).await?;
        let Some(mut chunk) = ahead::take(upload_id, place, rules).await else {
            return Ok(None);
        };
        let held = chunk.rows.iter().any(|numbered| numbered.row.email().is_some());
        if held || chunk.rows.is_empty() || !self.note(&chunk) {
            ahead::give_back(upload_id, place, rules, chunk);
            return Ok(None);
        }
        let import = &self.import;
        let scope = Scope {
            job_id: import.origin.job_id,
            book_id: import.origin.book_id,
            max_per_user: self.rules.max_assignments_per_user,
            written_at: &import.written_at,
        };
        let lookup = match import.has_met_duplicates() {
            true => Lookup::Each,
            false => Lookup::None,
        };
        let known = Known::read(connection, scope, &chunk.rows, lookup).await?;
        let mut plan = known.decide(std::mem::take(&mut chunk.rows));
        chunk.faults.append(&mut plan.faults);
        let (before, made) = (self.import.clone(), plan.made.len());
        let moment = Moment::now(connection, before.origin.book_id).await?;
        self.import.count(&chunk, made);
        if made > 0 {
            self.import.written_at.push(moment.created_at);
        }
        self.import.place = chunk.place;
        chunk.keep_faulty();
        let step = Step {
            import: before,
            rules: self.rules,
            draw: self.draw.clone(),
            chunk,
            plan,
            made,
            moment,
            written: None,
        };
        self.draw = self.draw.after(i64::try_from(made).unwrap_or(i64::MAX));
        Ok(Some(step))
    }

    async fn write(step: &mut Step, connection: &mut PgConnection) -> Result<()> {
        let (mut plan, mut draw) = (std::mem::take(&mut step.plan), step.draw.clone());
        if !plan.made.is_empty() {
            write::copy(connection, &mut draw, step.moment, &mut plan).await?;
            step.written = Some(draw);
        }
        Ok(())
    }

    async fn end(step: Step, connection: &mut PgConnection) -> Result<bool> {
        let job_id = step.import.origin.job_id;
        let Some(mut import) = Import::lock(connection, job_id).await? else {
            return Ok(false);
        };
        let book_id = import.origin.book_id;
        if import.place != step.import.place
            || import.validating
            || ledger::is_cancelled(connection, job_id).await?
            || !slot::take(connection, book_id, job_id).await?
        {
            return Ok(false);
        }
        // From here on no other job can add codes to this book or give coupons of it away.
        let draw = DrawState::lock(connection, book_id).await?;
        if !draw.stands_as(&step.draw) || BookRules::read(connection, book_id).await? != step.rules {
            return Ok(false);
        }
        import.count(&step.chunk, step.made);
        import.write_errors(connection, &step.chunk).await?;
        if let Some(after) = step.written {
            let created_at = step.moment.created_at;
            add::record(connection, &import.origin, &after, draw.arrivals(), created_at).await?;
            import.written_at.push(created_at);
        }
        import.place = step.chunk.place;
        import.save(connection).await?;
        ledger::progress(connection, job_id, import.progress()).await?;
        Ok(true)
    }
}
