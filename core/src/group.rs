//! Work of many callers in one round trip: what arrives while one group is under way makes up the next.
//!
//! Invariant: nobody waits for a timer. A caller that is alone makes a group of one and pays what it would have paid by
//! itself; a thousand at once pay for a few statements. One group is under way at a time, so what is grouped must not
//! wait for locks that callers hold for long.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};

use crate::error::StoreError;

/// The most members of a group: bounds one statement's time and memory.
const MOST_MEMBERS: usize = 500;

/// Callers that may wait to be in a group; more wait to be let in.
const MOST_WAITING: usize = 4_096;

/// Who asked, and where the answer goes.
type Member<I, O> = (I, oneshot::Sender<Result<O, StoreError>>);

/// The way into the next group; clones lead into the same.
pub struct Group<I, O> {
    members: mpsc::Sender<Member<I, O>>,
}

impl<I, O> Clone for Group<I, O> {
    fn clone(&self) -> Self {
        Self {
            members: self.members.clone(),
        }
    }
}

impl<I, O> std::fmt::Debug for Group<I, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Group(…)")
    }
}

impl<I: Send + 'static, O: Send + 'static> Group<I, O> {
    /// Starts the task that runs groups with `run`, which gives an answer for each member, in order. It ends with the
    /// last clone.
    pub fn start<F, Fut>(run: F) -> Self
    where
        F: Fn(Vec<I>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Vec<O>, StoreError>> + Send + 'static,
    {
        let (members, mut arrived) = mpsc::channel::<Member<I, O>>(MOST_WAITING);
        tokio::spawn(async move {
            let mut group = Vec::new();
            while arrived.recv_many(&mut group, MOST_MEMBERS).await > 0 {
                let (asked, tell): (Vec<I>, Vec<_>) = group.drain(..).unzip();
                // In a task of its own: a panic is the trouble of this group, not the end of all.
                let answers = match tokio::spawn(run(asked)).await {
                    Ok(answers) => answers,
                    Err(_) => Err(sqlx::Error::WorkerCrashed.into()),
                };
                match answers {
                    // Whoever is not there any more has gone away.
                    Ok(answers) => {
                        for (tell, answer) in tell.into_iter().zip(answers) {
                            let _ = tell.send(Ok(answer));
                        }
                    }
                    Err(error) => {
                        for tell in tell {
                            let _ = tell.send(Err(error.repeated()));
                        }
                    }
                }
            }
        });
        Self { members }
    }

    /// Asks in the next group.
    ///
    /// # Errors
    /// The group's, for each of its members.
    pub async fn ask(&self, asked: I) -> Result<O, StoreError> {
        let gone = || StoreError::from(sqlx::Error::PoolClosed);
        let (tell, told) = oneshot::channel();
        self.members.send((asked, tell)).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn what_arrives_meanwhile_makes_the_next_group_and_each_gets_its_own_answer() {
        let (gate, groups) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (gate_of, groups_of) = (Arc::clone(&gate), Arc::clone(&groups));
        let group = Group::start(move |asked: Vec<u32>| {
            let (gate, groups) = (Arc::clone(&gate_of), Arc::clone(&groups_of));
            async move {
                groups.fetch_add(1, Ordering::Relaxed);
                let _ = gate.acquire().await;
                Ok(asked.into_iter().map(|number| number * 2).collect())
            }
        });
        let asking = join_all((0..300).map(|number| group.ask(number)));
        let open = async { gate.add_permits(1) };
        let (answers, ()) = tokio::join!(asking, open);
        for (number, answer) in (0..300).zip(answers) {
            assert_eq!(answer.expect("an answer"), number * 2);
        }
        // How many a turn of the scheduler lets in is its own affair; that they are far fewer than callers is ours.
        assert!(groups.load(Ordering::Relaxed) <= 30, "{groups:?}");
    }

    #[tokio::test]
    async fn trouble_and_panics_of_a_group_are_told_to_its_members_and_do_not_end_it() {
        let group = Group::start(|asked: Vec<u32>| async move {
            assert_ne!(asked, [1], "the second is a panic");
            if asked == [0] {
                return Err(StoreError::from(sqlx::Error::PoolTimedOut));
            }
            Ok(asked)
        });
        assert!(group.ask(0).await.expect_err("trouble").is_retryable());
        assert!(group.ask(1).await.expect_err("a panic").is_retryable());
        assert_eq!(group.ask(2).await.expect("an answer"), 2);
    }
}
