//! What a worker does with a batch: mark, run, settle, commit.
//!
//! Invariant: a row leaves here settled (its outcome committed with its effect), charged (its effect rolled back to the
//! savepoint, an attempt counted) or untouched (the transaction rolled back, due again at once).

use std::{panic::AssertUnwindSafe, time::Duration};

use coupon_core::{
    Error,
    db::{self, Db, Tx},
    job::{
        claim::{self, Claimed, Finished, MAX_ATTEMPTS, Outcome},
        signals::{Signal, Signals},
    },
};
use futures_util::FutureExt;
use uuid::Uuid;

use super::backend::{Batch, backoff};
use crate::jobs;

/// No step takes nearly as long; one that does is stuck.
const STEP_PATIENCE: Duration = Duration::from_secs(60);

/// The first and the longest wait of a job that ended in trouble.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Batches that may fail in a row for a reason that passes by itself before their rows are charged for it.
const FREE_FAILURES: u32 = 5;

/// What runs batches; one per process.
#[derive(Debug)]
pub(crate) struct Runner {
    db: Db,
    marks: Db,
    signals: Signals,
}

impl Runner {
    pub(crate) fn new(db: Db, marks: Db, signals: Signals) -> Self {
        Self { db, marks, signals }
    }

    pub(super) fn db(&self) -> &Db {
        &self.db
    }

    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Runs one batch to its end, whatever that is.
    pub(super) async fn run(&self, mut batch: Batch) {
        let Some(tx) = batch.tx.take() else { return };
        let rows = std::mem::take(&mut batch.rows);
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        match self.run_rows(tx, rows, batch.trouble()).await {
            Ok(()) => {
                batch.settled();
                self.signals.ring(Signal::Done);
            }
            Err(error) => {
                tracing::warn!(%error, jobs = ids.len(), "a batch was rolled back; its jobs are due again");
                // This was no crash; if the note stays all the same, the next claim charges one attempt too many.
                let _ = claim::unmark(self.marks.pool(), &ids).await;
            }
        }
    }

    async fn run_rows(&self, mut tx: Tx, rows: Vec<Claimed>, trouble: u32) -> Result<(), Error> {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let crashed = claim::mark(self.marks.pool(), &ids).await?;
        let (suspects, sound): (Vec<Claimed>, Vec<Claimed>) =
            rows.into_iter().partition(|row| crashed.contains(&row.id));
        if !suspects.is_empty() {
            tracing::warn!(
                jobs = suspects.len(),
                "a worker crashed while it ran these jobs; each is charged an attempt"
            );
            charge(&mut tx, suspects.iter().map(|row| (row.id, row.attempts)), |_| {
                Duration::ZERO
            })
            .await?;
        }
        if sound.is_empty() {
            return Ok(db::commit(tx).await?);
        }
        let charged: Vec<(Uuid, i32)> = sound.iter().map(|row| (row.id, row.attempts)).collect();
        savepoint(&mut tx, "SAVEPOINT run").await?;
        let ran = AssertUnwindSafe(jobs::run(&mut tx, sound)).catch_unwind();
        let trouble_with = match tokio::time::timeout(STEP_PATIENCE, ran).await {
            Ok(Ok(Ok(outcomes))) => {
                claim::settle(&mut tx, outcomes).await?;
                return Ok(db::commit(tx).await?);
            }
            Ok(Ok(Err(error))) => match &error {
                Error::Store(store) if store.is_retryable() && trouble < FREE_FAILURES => return Err(error),
                _ => error.to_string(),
            },
            Ok(Err(_)) => "the handler panicked".to_owned(),
            Err(_) => format!("the handler took more than {STEP_PATIENCE:?}"),
        };
        tracing::error!(
            error = trouble_with,
            jobs = charged.len(),
            "jobs ended in trouble; each is charged an attempt"
        );
        savepoint(&mut tx, "ROLLBACK TO SAVEPOINT run").await?;
        // Of many, one may be the culprit: all are tried again at once, alone. One alone waits longer each time.
        let alone = charged.len() == 1;
        charge(&mut tx, charged.into_iter(), |attempts| {
            if alone {
                backoff(RETRY, attempts.unsigned_abs())
            } else {
                Duration::ZERO
            }
        })
        .await?;
        Ok(db::commit(tx).await?)
    }
}

async fn savepoint(tx: &mut Tx, statement: &'static str) -> Result<(), Error> {
    sqlx::raw_sql(statement).execute(&mut **tx).await?;
    Ok(())
}

/// Charges an attempt to each job; those that have none left are given up, visibly.
async fn charge(
    tx: &mut Tx,
    jobs: impl Iterator<Item = (Uuid, i32)>,
    delay: impl Fn(i32) -> Duration,
) -> Result<(), Error> {
    let jobs: Vec<(Uuid, i32)> = jobs.collect();
    let delays: Vec<(Uuid, Duration)> = jobs
        .iter()
        .map(|(id, attempts)| (*id, delay(*attempts)))
        .collect();
    claim::charge(tx, &delays).await?;
    let given_up: Vec<(Uuid, Outcome)> = jobs
        .into_iter()
        .filter(|(_, attempts)| attempts + 1 >= MAX_ATTEMPTS)
        .map(|(id, _)| (id, Finished::exhausted()))
        .collect();
    Ok(claim::settle(tx, given_up).await?)
}
