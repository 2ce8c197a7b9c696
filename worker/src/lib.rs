//! The workers: they claim due jobs, run them in locked transactions, and tidy up by schedule.
//!
//! Invariant: effect, result and acknowledgement of a job are one commit, and so are effect and place of a step. A worker
//! that dies at any point has done all or nothing of each, and what it had is due again at once.

mod jobs;
mod queue;
mod schedules;
mod verdict;

use std::{sync::Arc, time::Duration};

use coupon_core::{
    coupon::abreast::{self, Abreast},
    db::{Db, Role},
    error::StoreError,
    job::{Queue, signals::Signals},
    metrics,
    retention::Retention,
};
use tokio::{sync::watch, task::JoinHandle};

use queue::Runner;

/// No step takes nearly as long; one that does is stuck. The server ends a statement after 30 s by itself.
pub const STEP_PATIENCE: Duration = Duration::from_secs(60);

/// How many batches of a queue run at once in one process, and how many rows a batch takes.
///
/// Assigns come in batches of hundreds because one book's draws run one after another: the batch is what makes it fast,
/// and one at a time makes it large. A bulk step is one job's.
fn shape(queue: Queue) -> (usize, i64) {
    match queue {
        Queue::Assign => (1, 500),
        Queue::Bulk => (2, 1),
        Queue::System => (1, 1),
    }
}

/// The workers of one process.
#[derive(Debug)]
pub struct Workers {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    pools: [Db; 3],
}

impl Workers {
    /// Starts workers for `queues`, and the clock of the sweeps if the system queue is among them; `keep` says what
    /// these forget.
    ///
    /// # Errors
    /// When `url` is not a PostgreSQL connection URL.
    pub fn start(
        url: &str,
        queues: &[Queue],
        signals: &Signals,
        keep: Retention,
    ) -> Result<Self, StoreError> {
        Self::start_with(url, queues, signals, keep, STEP_PATIENCE)
    }

    /// The same with another bound for a step. What takes longer is rolled back and charged an attempt.
    ///
    /// # Errors
    /// When `url` is not a PostgreSQL connection URL.
    pub fn start_with(
        url: &str,
        queues: &[Queue],
        signals: &Signals,
        keep: Retention,
        step_patience: Duration,
    ) -> Result<Self, StoreError> {
        // A batch holds one connection from its claim to its commit; each queue has one more for a row in trouble and one
        // for a claim under way. A bulk job whose steps go abreast takes some beside its batch's.
        let size = |of: &dyn Fn(Queue) -> bool| {
            let queues = queues.iter().filter(|queue| of(**queue));
            let connections = queues.map(|queue| match (*queue, shape(*queue).0) {
                (Queue::Bulk, batches) => batches * (1 + abreast::CONNECTIONS) + 2,
                (Queue::Assign | Queue::System, batches) => batches + 2,
            });
            let connections: usize = connections.sum();
            u32::try_from(connections).unwrap_or(16).max(3)
        };
        // Under a name of this process's own, which says what it works on: whoever asks the server who is connected
        // learns how many workers each queue has.
        let names: Vec<&str> = queues.iter().map(|queue| queue.name()).collect();
        let name = format!(
            "couponbook-worker {} {:08x}",
            names.join(","),
            rand::random::<u32>()
        );
        let assigns = Db::connect_as(url, Role::Assigner, size(&|queue| queue == Queue::Assign), &name)?;
        let db = Db::connect_as(url, Role::Worker, size(&|queue| queue != Queue::Assign), &name)?;
        // Marks commit apart from the batches, on connections that no batch can use up.
        let marks = Db::connect(url, Role::Assigner, 2)?;
        metrics::watch_pool("assigns", &assigns);
        metrics::watch_pool("jobs", &db);
        metrics::watch_pool("marks", &marks);
        let runner = Arc::new(Runner::new(
            marks.clone(),
            Abreast::new(db.clone()),
            signals.clone(),
            keep,
            step_patience,
        ));
        let (stop, stopping) = watch::channel(false);
        let mut tasks = Vec::new();
        for queue in queues {
            let db = if *queue == Queue::Assign { &assigns } else { &db };
            tasks.push(queue::work(
                Arc::clone(&runner),
                db,
                *queue,
                shape(*queue),
                stopping.clone(),
            ));
        }
        if queues.contains(&Queue::System) {
            tasks.extend(schedules::start(&db, signals, &stopping));
        }
        Ok(Self {
            stop,
            tasks,
            pools: [assigns, db, marks],
        })
    }

    /// Stops claiming and waits until what is at work has ended, at most `patience`; what has not ended by then is
    /// rolled back and due again.
    pub async fn drain(mut self, patience: Duration) {
        let _ = self.stop.send(true);
        let deadline = tokio::time::Instant::now() + patience;
        for task in &mut self.tasks {
            if tokio::time::timeout_at(deadline, &mut *task).await.is_err() {
                tracing::warn!("a worker did not end in time; its jobs are due again");
                task.abort();
            }
        }
        let _ = tokio::time::timeout(Duration::from_secs(2), async {
            for pool in &self.pools {
                pool.close().await;
            }
        })
        .await;
    }
}
