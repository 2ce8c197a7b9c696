//! Waiting for jobs to end (`Prefer: wait`): all waiters of a process share one query per signal.
//!
//! Invariant: a waiter is told of an end at the latest a second after it, signals or not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::{
    Job, ledger,
    signals::{Signal, Signals},
};
use crate::db::Db;

/// How long a lost signal can go unnoticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The waiters of this process; clones share them.
#[derive(Debug, Clone)]
pub struct Waiters {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<HashMap<Uuid, Vec<oneshot::Sender<Job>>>>,
    arrived: Notify,
}

/// A place in the queue of waiters.
#[derive(Debug)]
pub struct Waiter {
    ended: oneshot::Receiver<Job>,
}

impl Waiter {
    /// Waits for the job's end, at most `patience`; gives the job as it ended, if it was heard of in time.
    pub async fn ended(self, patience: Duration) -> Option<Job> {
        tokio::time::timeout(patience, self.ended).await.ok()?.ok()
    }
}

impl Waiters {
    /// Starts the task that looks on behalf of all waiters.
    pub fn start(db: Db, signals: &Signals) -> Self {
        let shared = Arc::new(Shared::default());
        tokio::spawn(look(Arc::downgrade(&shared), db, signals.watch(Signal::Done)));
        Self { shared }
    }

    /// Takes a place *before* the job's state is read, so that its end cannot fall in between.
    pub fn enter(&self, job_id: Uuid) -> Waiter {
        let (tell, ended) = oneshot::channel();
        if let Ok(mut waiting) = self.shared.waiting.lock() {
            waiting.entry(job_id).or_default().push(tell);
        }
        self.shared.arrived.notify_one();
        Waiter { ended }
    }
}

async fn look(shared: std::sync::Weak<Shared>, db: Db, mut done: tokio::sync::watch::Receiver<u64>) {
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let ids: Vec<Uuid> = match strong.waiting.lock() {
            Ok(mut waiting) => {
                waiting.retain(|_, tells| {
                    tells.retain(|tell| !tell.is_closed());
                    !tells.is_empty()
                });
                waiting.keys().copied().collect()
            }
            Err(_) => return,
        };
        if ids.is_empty() {
            // Nobody waits: sleep until somebody does, or look whether the process still wants us.
            let _ = tokio::time::timeout(Duration::from_secs(5), strong.arrived.notified()).await;
            continue;
        }
        done.mark_unchanged();
        match ledger::find_ended(&db, &ids).await {
            Ok(ended) => {
                if let Ok(mut waiting) = strong.waiting.lock() {
                    for job in ended {
                        for tell in waiting.remove(&job.id).into_iter().flatten() {
                            let _ = tell.send(job.clone());
                        }
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "could not look for the ends of jobs"),
        }
        drop(strong);
        let _ = tokio::time::timeout(LOOK_EVERY, done.changed()).await;
    }
}
