//! Steps of one job that write their coupons at the same time, each in a transaction of its own.
//!
//! Most of a step is the work of one process of the server on one core. So while it copies a step's coupons in, a second
//! one does those of the next step. They end in order, each by a few statements under the lock of the book's draw, which
//! other jobs wait for that much less.
//!
//! Invariant: a step that is written ahead counts on where the job and the draw will stand at its turn. There it takes the
//! locks that every step takes and compares: if anything stands otherwise, it is rolled back, and the job goes on step by
//! step. All the while the transaction of the claim holds the job's row of the queue; the last step of a job is done there,
//! with its result.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::{
    db::{self, Db, Tx},
    error::{Result, StoreError},
};

/// Steps that are written at the same time.
pub(crate) const WIDTH: usize = 2;

/// Connections that a job's steps take at most: one more than are written, which ends meanwhile.
pub const CONNECTIONS: usize = WIDTH + 1;

/// How long a job goes on like this before its row is given back to the queue, where other jobs may wait.
const SPELL: Duration = Duration::from_secs(5);

/// Steps that a job does one by one after a step ahead had to be rolled back: where people draw from the book all the time
/// it would be in vain.
const CAREFUL_STEPS: u32 = 16;

/// How long the claim's connection is left alone at most; the server would close it after ten seconds.
const AWAKE: Duration = Duration::from_secs(2);

/// Jobs that are kept count of at most; other processes may have brought them to an end.
const MOST_COUNTED: usize = 1_000;

/// The steps of a job, as they will be if nothing comes between.
pub(crate) trait Steps: Send {
    /// A step that is written ahead.
    type Step: Send + 'static;

    /// The next step; `None` when it must be done in the usual way.
    fn next(
        &mut self,
        connection: &mut PgConnection,
    ) -> impl Future<Output = Result<Option<Self::Step>>> + Send;

    /// Writes the coupons of a step. It takes no lock that others wait for.
    fn write(step: &mut Self::Step, connection: &mut PgConnection)
    -> impl Future<Output = Result<()>> + Send;

    /// Ends a step, all but the commit; `false` when things stand otherwise than it counted on.
    fn end(step: Self::Step, connection: &mut PgConnection) -> impl Future<Output = Result<bool>> + Send;
}

/// What runs steps abreast; one per process.
#[derive(Debug)]
pub struct Abreast {
    db: Db,
    careful: Mutex<HashMap<Uuid, u32>>,
}

impl Abreast {
    /// Over connections of `db`, [`CONNECTIONS`] for each job that goes on at the same time.
    pub fn new(db: Db) -> Self {
        Self {
            db,
            careful: Mutex::default(),
        }
    }

    /// Does steps of a job for a while; says whether any was done. Whatever hinders one is met again by the step that is
    /// done in the usual way, and dealt with there.
    ///
    /// # Errors
    /// When the connection that holds the claim is lost.
    pub(crate) async fn run<S: Steps>(
        &self,
        claim: &mut PgConnection,
        job_id: Uuid,
        mut steps: S,
    ) -> Result<bool> {
        if self.is_careful(job_id) {
            return Ok(false);
        }
        let until = Instant::now() + SPELL;
        let mut under_way = VecDeque::with_capacity(WIDTH);
        let (mut more, mut done) = (true, false);
        loop {
            while more && under_way.len() < WIDTH {
                let next = match Instant::now() < until {
                    true => self.begin(&mut steps).await,
                    false => Ok(None),
                };
                match next {
                    Ok(Some(writing)) => under_way.push_back(writing),
                    Ok(None) => more = false,
                    Err(error) => {
                        tracing::debug!(%error, %job_id, "no step is written ahead");
                        more = false;
                    }
                }
            }
            let Some(first) = under_way.pop_front() else {
                return Ok(done);
            };
            match keeping_awake(claim, end::<S>(first)).await? {
                Ok(true) => done = true,
                ended => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, %job_id, "a step that was written ahead failed");
                    }
                    self.be_careful(job_id);
                    for writing in under_way {
                        if let Ok(Ok((tx, _))) = keeping_awake(claim, writing).await? {
                            tx.rollback().await.map_err(StoreError::from)?;
                        }
                    }
                    return Ok(done);
                }
            }
        }
    }

    async fn begin<S: Steps>(&self, steps: &mut S) -> Result<Option<Writing<S::Step>>> {
        let mut tx = self.db.begin().await?;
        let Some(mut step) = steps.next(&mut tx).await? else {
            return Ok(None);
        };
        Ok(Some(tokio::spawn(async move {
            S::write(&mut step, &mut tx).await?;
            Ok((tx, step))
        })))
    }

    fn be_careful(&self, job_id: Uuid) {
        let mut careful = self.careful.lock().unwrap_or_else(PoisonError::into_inner);
        if careful.len() >= MOST_COUNTED {
            careful.clear();
        }
        careful.insert(job_id, CAREFUL_STEPS);
    }

    /// Counts a step that is done in the usual way.
    fn is_careful(&self, job_id: Uuid) -> bool {
        let mut careful = self.careful.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(steps) = careful.get_mut(&job_id) else {
            return false;
        };
        *steps -= 1;
        if *steps == 0 {
            careful.remove(&job_id);
        }
        true
    }
}

/// A step being written. It goes on to its end also when nobody waits for it any more, and is rolled back then: a COPY that is
/// broken off leaves its connection out of step with the server, and with it whoever takes that from the pool next.
type Writing<S> = JoinHandle<Result<(Tx, S)>>;

async fn end<S: Steps>(writing: Writing<S::Step>) -> Result<bool> {
    let written = writing.await;
    let (mut tx, step) = written.map_err(|_| StoreError::from(sqlx::Error::WorkerCrashed))??;
    let stands = S::end(step, &mut tx).await?;
    if stands {
        db::commit(tx).await?;
    }
    Ok(stands)
}

/// Waits for what is done on other connections. The server must not take the claim's connection for one that is idle.
async fn keeping_awake<T>(
    claim: &mut PgConnection,
    work: impl Future<Output = T>,
) -> std::result::Result<T, StoreError> {
    let mut work = std::pin::pin!(work);
    loop {
        let done = tokio::time::timeout(AWAKE, work.as_mut()).await;
        claim.ping().await?;
        if let Ok(done) = done {
            return Ok(done);
        }
    }
}
