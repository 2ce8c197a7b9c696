//! The batch backend: an apalis backend whose task is a batch of due rows together with the open transaction that
//! locks them.
//!
//! Invariant: rows leave the backend only inside the transaction that holds their locks, so whatever becomes of the
//! task, the rows are settled by its commit or due again by its rollback. The backend never ends by an error; it waits
//! and claims again, and ends only when it is told to stop.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    sync::atomic::{AtomicU32, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use apalis_core::{
    backend::{Backend, BackendConfig, finalize::Ephemeral},
    layers::Identity,
    task::{Task, task_id::TaskId},
    worker::context::WorkerContext,
};
use coupon_core::{
    db::{Db, Tx},
    error::StoreError,
    job::{
        Queue,
        claim::{self, Claimed, Lane, Place},
        signals::Signal,
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinHandle,
};

use super::Runner;

/// However the signals fare, the queue is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The first and the longest wait after trouble.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Due rows and the transaction that locks them.
pub(crate) struct Batch {
    /// `None` once it has been taken to be settled.
    pub(super) tx: Option<Tx>,
    /// The rows, oldest first.
    pub(super) rows: Vec<Claimed>,
    trouble: Trouble,
    settled: bool,
    /// Held while a row that was in trouble runs: no other such row runs beside it in this process, so that one which
    /// takes the process down again and again takes no companion along.
    _alone: Option<OwnedSemaphorePermit>,
    /// Of a batch of fresh rows, until the next may be claimed. A row in trouble has none, so that one which hangs holds up
    /// no batch.
    pub(super) slot: Option<OwnedSemaphorePermit>,
}

impl Batch {
    /// Says that the batch came to a good end; one that is dropped before counts as trouble.
    pub(super) fn settled(&mut self) {
        self.settled = true;
        self.trouble.clear();
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if !self.settled {
            self.trouble.add();
        }
    }
}

/// Batches that came to a bad end in a row: the next claim waits the longer, so that a failing batch does not spin.
#[derive(Debug, Clone, Default)]
struct Trouble(Arc<AtomicU32>);

impl Trouble {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// An exponential wait with jitter: between half of and the whole of `first · 2ⁿ`, at most `longest`.
pub(super) fn backoff((first, longest): (Duration, Duration), n: u32) -> Duration {
    let full = first
        .saturating_mul(1u32.checked_shl(n.min(16)).unwrap_or(u32::MAX))
        .min(longest);
    full.mul_f64(rand::random_range(0.5..=1.0))
}

/// What a claim leaves behind for the next one.
struct Claimer {
    place: Place,
    wake: watch::Receiver<u64>,
    slot: Option<OwnedSemaphorePermit>,
}

/// What a claim found.
enum Found {
    /// Due rows; with the permit when they were in trouble before.
    Rows(Tx, Vec<Claimed>, Option<OwnedSemaphorePermit>),
    /// Nothing that may run now.
    Nothing {
        /// A row that was in trouble runs; others of its kind were not looked at.
        beside_trouble: bool,
    },
}

/// A claim under way.
type Claiming = JoinHandle<Result<(Found, Claimer), StoreError>>;

enum Phase {
    Start,
    Claiming(Claiming),
    Waiting(Pin<Box<dyn Future<Output = ()> + Send>>),
    Ended,
}

/// The backend of one queue.
pub(super) struct BatchBackend {
    db: Db,
    queue: Queue,
    limit: i64,
    wake: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    trouble: Trouble,
    /// Claims that failed in a row; apart from `trouble`, so that nothing waits once the database is back.
    failed_claims: u32,
    charged_first: bool,
    place: Place,
    alone: Arc<Semaphore>,
    /// One for each batch of fresh rows that may be at work. A claim waits for it: what arrives meanwhile is one batch
    /// and not many.
    slots: Arc<Semaphore>,
    phase: Phase,
}

impl BatchBackend {
    pub(super) fn new(
        db: &Db,
        runner: &Runner,
        queue: Queue,
        (batches, limit): (usize, i64),
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            db: db.clone(),
            queue,
            limit,
            wake: runner.signals().watch(match queue {
                Queue::Assign => Signal::Assigns,
                Queue::Bulk | Queue::System => Signal::Due,
            }),
            stopping,
            trouble: Trouble::default(),
            failed_claims: 0,
            charged_first: false,
            place: Place::default(),
            alone: Arc::new(Semaphore::new(1)),
            slots: Arc::new(Semaphore::new(batches)),
            phase: Phase::Start,
        }
    }

    fn claim(&mut self) -> Claiming {
        // Rows that were in trouble and fresh ones take turns, so that neither starves the other.
        self.charged_first = !self.charged_first;
        let lanes = if self.charged_first {
            [Lane::Charged, Lane::Fresh]
        } else {
            [Lane::Fresh, Lane::Charged]
        };
        let (db, queue, limit) = (self.db.clone(), self.queue, self.limit);
        let (mut place, mut wake) = (self.place.clone(), self.wake.clone());
        let slots = Arc::clone(&self.slots);
        let mut alone = Arc::clone(&self.alone).try_acquire_owned().ok();
        // In a task of its own: it runs to its end whenever the worker polls.
        tokio::spawn(async move {
            let slot = slots.acquire_owned().await.expect("it is never closed");
            // Seen before the claim: what is rung while it runs starts the next one at once.
            wake.mark_unchanged();
            let mut tx = db.begin().await?;
            for lane in lanes {
                if lane == Lane::Charged && alone.is_none() {
                    continue;
                }
                let rows = claim::claim(&mut tx, queue, lane, limit, &mut place).await?;
                if !rows.is_empty() {
                    let (alone, slot) = match lane {
                        Lane::Charged => (alone.take(), None),
                        Lane::Fresh => (None, Some(slot)),
                    };
                    return Ok((Found::Rows(tx, rows, alone), Claimer { place, wake, slot }));
                }
            }
            // A row with an unreadable id may have been dropped.
            coupon_core::db::commit(tx).await?;
            let nothing = Found::Nothing {
                beside_trouble: alone.is_none(),
            };
            let claimer = Claimer {
                place,
                wake,
                slot: None,
            };
            Ok((nothing, claimer))
        })
    }

    /// Waits for work: a signal, the next look, or the end of the row in trouble that others of its kind wait for.
    fn wait_for_work(&self, beside_trouble: bool) -> Phase {
        let alone = Arc::clone(&self.alone);
        let Phase::Waiting(waiting) = self.wait(LOOK_EVERY, true) else {
            return Phase::Start;
        };
        Phase::Waiting(Box::pin(async move {
            tokio::select! {
                () = waiting => {}
                _ = alone.acquire(), if beside_trouble => {}
            }
        }))
    }

    fn wait(&self, at_most: Duration, for_signal: bool) -> Phase {
        let (mut wake, mut stopping) = (self.wake.clone(), self.stopping.clone());
        Phase::Waiting(Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(at_most) => {}
                _ = wake.changed(), if for_signal => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        }))
    }
}

impl Backend for BatchBackend {
    type Task = Task<Batch>;
    type Error = StoreError;

    fn poll_ready(&mut self, _: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        worker: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Self::Error>>> {
        loop {
            match &mut self.phase {
                Phase::Start if *self.stopping.borrow() => self.phase = Phase::Ended,
                Phase::Start => self.phase = Phase::Claiming(self.claim()),
                Phase::Claiming(claiming) => {
                    let claimed = ready!(Pin::new(claiming).poll(cx));
                    if matches!(claimed, Ok(Ok(_))) {
                        self.failed_claims = 0;
                    }
                    self.phase = match claimed {
                        Ok(Ok((Found::Rows(tx, rows, alone), claimer))) => {
                            self.place = claimer.place;
                            self.wake = claimer.wake;
                            self.phase = match self.trouble.count() {
                                0 => Phase::Start,
                                n => self.wait(backoff(BACKOFF, n), false),
                            };
                            let batch = Batch {
                                tx: Some(tx),
                                rows,
                                trouble: self.trouble.clone(),
                                settled: false,
                                _alone: alone,
                                slot: claimer.slot,
                            };
                            return Poll::Ready(Some(Ok(Task::new(batch))));
                        }
                        Ok(Ok((Found::Nothing { beside_trouble }, claimer))) => {
                            self.place = claimer.place;
                            self.wake = claimer.wake;
                            self.wait_for_work(beside_trouble)
                        }
                        Ok(Err(error)) => {
                            self.failed_claims = self.failed_claims.saturating_add(1);
                            tracing::warn!(queue = self.queue.name(), %error, "claiming failed; trying again");
                            self.wait(backoff(BACKOFF, self.failed_claims), false)
                        }
                        Err(_) => self.wait(BACKOFF.1, false),
                    };
                }
                Phase::Waiting(waiting) => {
                    ready!(waiting.as_mut().poll(cx));
                    self.phase = Phase::Start;
                }
                Phase::Ended => {
                    // The end of a backend does not end its worker; this does, once what is at work has ended.
                    let _ = worker.stop();
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Result<(), Self::Error>> {
        if let Phase::Claiming(claiming) = &mut self.phase {
            // Driven to its end, then dropped: the rollback gives the rows back.
            let _ = ready!(Pin::new(claiming).poll(cx));
        }
        self.phase = Phase::Ended;
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for BatchBackend {
    type Args = Batch;
    type Id = TaskId;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &Self::Config {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Self::Layer {
        Identity::new()
    }
}
