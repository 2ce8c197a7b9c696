//! From a due row to a settled one: the batch backend over apalis, and what it hands to the jobs.

mod backend;
mod runner;

use std::sync::Arc;

use apalis::prelude::*;
use coupon_core::{db::Db, job::Queue};
use futures_util::FutureExt;
use tokio::{sync::watch, task::JoinHandle};

use backend::{Batch, BatchBackend};
pub(crate) use runner::Runner;

/// Works on a queue over connections of `db`, so many batches of so many rows at once and beside them one row that was in
/// trouble, until `stopping` turns true and what is at work has ended.
pub(crate) fn work(
    runner: Arc<Runner>,
    db: &Db,
    queue: Queue,
    (batches, rows): (usize, i64),
    stopping: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let backend = BatchBackend::new(db, &runner, queue, (batches, rows), stopping);
    let worker = WorkerBuilder::new(format!("queue-{}", queue.name()))
        .backend(backend)
        // Without this one task would poll all handlers; without a limit there would be no end of them.
        .parallelize(tokio::spawn)
        .concurrency(batches + 1)
        .build(move |batch: Batch| {
            let runner = Arc::clone(&runner);
            async move { runner.run(batch).await }
        });
    // Spawned as it is: inside another async block the compiler cannot prove it `Send`.
    tokio::spawn(worker.run().map(move |ended| {
        if let Err(error) = ended {
            tracing::error!(queue = queue.name(), %error, "a worker has stopped");
        }
    }))
}
