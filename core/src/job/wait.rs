//! Waiting for jobs to end (`Prefer: wait`): all waiters of a process share one query per signal.
//!
//! Invariant: a waiter is told of an end at the latest a second after it, signals or not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::{
    Job, ledger,
    signals::{Signal, Signals},
};
use crate::db::Db;

/// How long a lost signal can go unnoticed: so often all waiters are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whoever has waited for longer is not looked for at every signal: a long job, at whose end nobody minds a second.
const PATIENT_AFTER: Duration = Duration::from_secs(2);

/// The fewest waiters that are looked for at a signal.
const FEWEST: usize = 64;

/// The waiters of this process; clones share them.
#[derive(Debug, Clone)]
pub struct Waiters {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By id, which is to say in the order in which their jobs were accepted.
    waiting: Mutex<BTreeMap<Uuid, Waiting>>,
    arrived: Notify,
}

/// Those who wait for one job.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    tells: Vec<oneshot::Sender<Job>>,
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
            let new = || Waiting {
                since: Instant::now(),
                tells: Vec::new(),
            };
            waiting.entry(job_id).or_insert_with(new).tells.push(tell);
        }
        self.shared.arrived.notify_one();
        Waiter { ended }
    }
}

/// Jobs of a queue end about in the order in which they were accepted, so a signal is about the oldest: as many are looked
/// for as ended lately, twice over, and more as long as most of them have ended.
async fn look(shared: std::sync::Weak<Shared>, db: Db, mut done: tokio::sync::watch::Receiver<u64>) {
    let (mut most, mut all_looked_for) = (FEWEST, Instant::now());
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let all = all_looked_for.elapsed() >= LOOK_EVERY;
        let ids = strong.ids(if all { None } else { Some(most) });
        let Some(ids) = ids else { return };
        if ids.is_empty() && strong.is_empty() {
            // Nobody waits: sleep until somebody does, or look whether the process still wants us.
            let _ = tokio::time::timeout(Duration::from_secs(5), strong.arrived.notified()).await;
            continue;
        }
        done.mark_unchanged();
        if all {
            all_looked_for = Instant::now();
        }
        let ended = match ledger::find_ended(&db, &ids).await {
            Ok(ended) => ended,
            Err(error) => {
                tracing::debug!(%error, "could not look for the ends of jobs");
                Vec::new()
            }
        };
        let found = ended.len();
        strong.tell(ended);
        drop(strong);
        most = (found * 2).max(FEWEST);
        if !all && found * 2 > ids.len() {
            continue;
        }
        let _ = tokio::time::timeout(
            LOOK_EVERY.saturating_sub(all_looked_for.elapsed()),
            done.changed(),
        )
        .await;
    }
}

impl Shared {
    fn is_empty(&self) -> bool {
        self.waiting.lock().is_ok_and(|waiting| waiting.is_empty())
    }

    /// The jobs that somebody waits for, oldest first: all of them, or so many of those that are waited for only since
    /// lately. `None` when the process is past help.
    fn ids(&self, most: Option<usize>) -> Option<Vec<Uuid>> {
        let mut waiting = self.waiting.lock().ok()?;
        waiting.retain(|_, waiting| {
            waiting.tells.retain(|tell| !tell.is_closed());
            !waiting.tells.is_empty()
        });
        Some(match most {
            None => waiting.keys().copied().collect(),
            Some(most) => waiting
                .iter()
                .filter(|(_, waiting)| waiting.since.elapsed() < PATIENT_AFTER)
                .map(|(job_id, _)| *job_id)
                .take(most)
                .collect(),
        })
    }

    fn tell(&self, ended: Vec<Job>) {
        let Ok(mut waiting) = self.waiting.lock() else {
            return;
        };
        for job in ended {
            for tell in waiting
                .remove(&job.id)
                .into_iter()
                .flat_map(|waiting| waiting.tells)
            {
                let _ = tell.send(job.clone());
            }
        }
    }
}
