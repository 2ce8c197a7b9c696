//! The intake of assignments: those that arrive during one commit are accepted by the next, together.
//!
//! Invariant: whoever is told that a job was accepted is told after its commit. A group that fails for a reason of one of
//! its members is run again member by member, so that one caller's trouble is not another's.

use coupon_core::{
    Error, Refusal,
    coupon::accept::{self, Assignment},
    db::Db,
    error::StoreError,
    group::Group,
    job::signals::{Signal, Signals},
};

use crate::Problem;

/// The way in; clones lead into the same groups.
#[derive(Debug, Clone)]
pub struct Intake {
    group: Group<Assignment, Result<bool, StoreError>>,
}

impl Intake {
    /// On the pool of shared looks; workers are told of what was accepted.
    pub fn start(db: Db, signals: Signals) -> Self {
        let group = Group::start(move |assignments| accept(db.clone(), signals.clone(), assignments));
        Self { group }
    }

    /// Accepts an assignment as the job that it names.
    ///
    /// # Errors
    /// `not_found`, and when the database fails.
    pub async fn accept(&self, assignment: Assignment) -> Result<(), Problem> {
        match self.group.ask(assignment).await.flatten() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::not_found().into()),
            Err(error) => Err(Error::from(error).into()),
        }
    }
}

async fn accept(
    db: Db,
    signals: Signals,
    assignments: Vec<Assignment>,
) -> Result<Vec<Result<bool, StoreError>>, StoreError> {
    let accepted = match commit(&db, &assignments).await {
        Ok(known) => known.into_iter().map(Ok).collect(),
        // Nothing of it was committed; trouble that would strike each of them again is told to all at once.
        Err(error) if error.is_retryable() => return Err(error),
        Err(error) if assignments.len() == 1 => return Err(error),
        Err(_) => {
            let mut singly = Vec::with_capacity(assignments.len());
            for assignment in &assignments {
                let known = commit(&db, std::slice::from_ref(assignment)).await;
                singly.push(known.map(|known| known == [true]));
            }
            singly
        }
    };
    signals.ring(Signal::Assigns);
    Ok(accepted)
}

/// One statement, which is the whole transaction.
async fn commit(db: &Db, assignments: &[Assignment]) -> Result<Vec<bool>, StoreError> {
    let mut connection = db.pool().acquire().await?;
    accept::accept_all(&mut connection, assignments).await
}
