//! What a worker does with a batch: mark, run, settle, commit.
//!
//! Invariant: a row leaves here settled (its outcome committed with its effect), charged (its effect rolled back to the
//! savepoint, an attempt counted) or untouched (its effect rolled back, due again at once). Untouched it is a bounded
//! number of times only: trouble that looks as if it would pass but follows a row is charged in the end, also when it
//! takes the connection along, so that no row can hold up the others for ever.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use coupon_core::{
    Error,
    coupon::abreast::Abreast,
    db::{self, Db, Tx},
    job::{
        claim::{self, Claimed, Ending, Finished, MAX_ATTEMPTS, Outcome},
        signals::{Signal, Signals},
    },
    metrics,
    retention::Retention,
};
use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use super::backend::{Batch, backoff};
use crate::jobs;

/// The first and the longest wait of a job that ended in trouble.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Failed runs, for reasons that pass by themselves, that a row may have been in before it is charged for the next.
const FREE_FAILURES: u32 = 3;

/// What runs batches; one per process.
#[derive(Debug)]
pub(crate) struct Runner {
    marks: Db,
    signals: Signals,
    keep: Retention,
    abreast: Abreast,
    step_patience: Duration,
    failures: Failures,
}

/// How a run ended in the database.
enum Ended {
    /// Settled, and committed with its effect.
    Settled {
        /// Whether a job among them has a step to do, which is due at once.
        next_step: bool,
    },
    /// Charged for trouble or a crash; nothing else was done.
    Charged,
    /// Its effect was rolled back and its rows given back unharmed.
    GivenBack(Error),
}

impl Runner {
    /// `marks` commit apart from the batches, and so do steps that go abreast.
    pub(crate) fn new(
        marks: Db,
        abreast: Abreast,
        signals: Signals,
        keep: Retention,
        step_patience: Duration,
    ) -> Self {
        Self {
            marks,
            signals,
            keep,
            abreast,
            step_patience,
            failures: Failures::default(),
        }
    }

    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Runs one batch to its end, whatever that is.
    pub(super) async fn run(&self, mut batch: Batch) {
        let Some(tx) = batch.tx.take() else { return };
        let rows = std::mem::take(&mut batch.rows);
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        match self.run_rows(tx, rows, batch.slot.take()).await {
            Ok(Ended::Settled { next_step }) => {
                batch.settled();
                self.failures.forget(&ids);
                self.signals.ring(Signal::Done);
                if next_step {
                    // A claim of this very queue may have looked while the row was locked, and waits for the bell now.
                    self.signals.ring(Signal::Due);
                }
            }
            Ok(Ended::Charged) => {
                // No reason to wait: what was charged and is to wait has its own time.
                batch.settled();
                self.signals.ring(Signal::Done);
            }
            Ok(Ended::GivenBack(error)) => {
                self.failures.add(&ids);
                tracing::warn!(%error, jobs = ids.len(), "a batch was rolled back; its jobs are due again");
            }
            Err(error) => {
                tracing::warn!(%error, jobs = ids.len(), "a batch and its connection were lost; its jobs are due again");
                // A row that was there too often keeps its mark, so that the next claim charges it and runs it alone.
                // If the mark of another stays all the same, its next claim charges one attempt too many.
                let unsuspected = self.failures.add(&ids);
                if let Ok(mut connection) = self.marks.pool().acquire().await {
                    let _ = claim::unmark(&mut connection, &unsuspected).await;
                }
            }
        }
    }

    /// # Errors
    /// When the transaction was lost.
    async fn run_rows(
        &self,
        mut tx: Tx,
        rows: Vec<Claimed>,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Result<Ended, Error> {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        // The savepoint is for what runs below; it is laid meanwhile, on the batch's own connection.
        let (crashed, laid) = tokio::join!(
            claim::mark(self.marks.pool(), &ids),
            savepoint(&mut tx, "SAVEPOINT run")
        );
        let crashed = crashed?;
        laid?;
        let (suspects, sound): (Vec<Claimed>, Vec<Claimed>) =
            rows.into_iter().partition(|row| crashed.contains(&row.id));
        if !suspects.is_empty() {
            tracing::warn!(
                jobs = suspects.len(),
                "a worker crashed while it ran these jobs; each is charged an attempt"
            );
            let charged = suspects.len();
            let endings = charge(&mut tx, suspects.iter().map(|row| (row.id, row.attempts))).await?;
            // By itself, so that no trouble of the others can undo it; they are claimed anew at once.
            let sound: Vec<Uuid> = sound.iter().map(|row| row.id).collect();
            claim::unmark(&mut tx, &sound).await?;
            db::commit(tx).await?;
            metrics::attempts_charged(charged);
            metrics::jobs_ended(&endings);
            return Ok(Ended::Charged);
        }
        let jobs: Vec<(Uuid, i32)> = sound.iter().map(|row| (row.id, row.attempts)).collect();
        // The outcomes belong to the run: one that cannot be written is its job's trouble, not the batch's.
        let run = async {
            let outcomes = jobs::run(&mut tx, sound, &self.keep, &self.abreast).await?;
            let next_step = outcomes
                .iter()
                .any(|(_, outcome)| matches!(outcome, Outcome::NextStep(_)));
            let endings: Vec<Ending> = claim::settle(&mut tx, outcomes).await?;
            Ok::<_, Error>((endings, next_step))
        };
        let ran = tokio::time::timeout(self.step_patience, AssertUnwindSafe(run).catch_unwind()).await;
        let trouble = match ran {
            Ok(Ok(Ok((endings, next_step)))) => {
                // The next batch is claimed while this one waits for the disk.
                drop(slot);
                db::commit(tx).await?;
                metrics::jobs_ended(&endings);
                return Ok(Ended::Settled { next_step });
            }
            Ok(Ok(Err(error))) => {
                let passing = matches!(&error, Error::Store(store) if store.is_retryable());
                if passing && self.failures.most(&ids) < FREE_FAILURES {
                    savepoint(&mut tx, "ROLLBACK TO SAVEPOINT run").await?;
                    // Marks and locks go together: nobody takes this for a crash.
                    claim::unmark(&mut tx, &ids).await?;
                    db::commit(tx).await?;
                    return Ok(Ended::GivenBack(error));
                }
                error.to_string()
            }
            Ok(Err(_)) => "the handler panicked".to_owned(),
            Err(_) => format!("the handler took more than {:?}", self.step_patience),
        };
        tracing::error!(
            error = trouble,
            jobs = jobs.len(),
            "jobs ended in trouble; each is charged an attempt"
        );
        savepoint(&mut tx, "ROLLBACK TO SAVEPOINT run").await?;
        let charged = jobs.len();
        let endings = charge(&mut tx, jobs.into_iter()).await?;
        db::commit(tx).await?;
        metrics::attempts_charged(charged);
        metrics::jobs_ended(&endings);
        Ok(Ended::Charged)
    }
}

/// In how many failed runs each row was, as far as this process saw and as long as it has not run to an end.
#[derive(Debug, Default)]
struct Failures(Mutex<HashMap<Uuid, u32>>);

/// Rows that are kept count of at most: what other processes brought to an end is never heard of here.
const MOST_COUNTED: usize = 10_000;

impl Failures {
    /// The count of the row with the highest.
    fn most(&self, ids: &[Uuid]) -> u32 {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ids.iter()
            .filter_map(|id| counts.get(id))
            .copied()
            .max()
            .unwrap_or(0)
    }

    /// Counts one more for each; gives those that have not yet had too many.
    fn add(&self, ids: &[Uuid]) -> Vec<Uuid> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() > MOST_COUNTED {
            counts.clear();
        }
        let mut free = Vec::with_capacity(ids.len());
        for id in ids {
            let count = counts.entry(*id).or_default();
            *count += 1;
            if *count <= FREE_FAILURES {
                free.push(*id);
            }
        }
        free
    }

    fn forget(&self, ids: &[Uuid]) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            counts.remove(id);
        }
    }
}

async fn savepoint(tx: &mut Tx, statement: &'static str) -> Result<(), Error> {
    sqlx::raw_sql(statement).execute(&mut **tx).await?;
    Ok(())
}

/// Charges an attempt to each job; those that have none left are given up, visibly. One that was in a batch may be
/// innocent and is tried again at once, alone. One that was alone is the culprit and waits, longer each time.
async fn charge(tx: &mut Tx, jobs: impl Iterator<Item = (Uuid, i32)>) -> Result<Vec<Ending>, Error> {
    let jobs: Vec<(Uuid, i32)> = jobs.collect();
    let delays: Vec<(Uuid, Duration)> = jobs
        .iter()
        .map(|(id, attempts)| match attempts {
            0 if jobs.len() > 1 => (*id, Duration::ZERO),
            _ => (*id, backoff(RETRY, attempts.unsigned_abs())),
        })
        .collect();
    claim::charge(tx, &delays).await?;
    let given_up: Vec<(Uuid, Outcome)> = jobs
        .into_iter()
        .filter(|(_, attempts)| attempts + 1 >= MAX_ATTEMPTS)
        .map(|(id, _)| (id, Finished::exhausted()))
        .collect();
    Ok(claim::settle(tx, given_up).await?)
}
