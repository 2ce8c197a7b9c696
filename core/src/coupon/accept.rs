//! The intake of assignments: what can be refused at once is, the rest becomes a job.

use std::collections::HashSet;

use sqlx::PgConnection;
use uuid::Uuid;

use super::Origin;
use crate::{
    caller::{Actor, Caller, Scope},
    error::{Error, Refusal, Result, StoreError},
    id,
    job::{
        enqueue::{self, Beneficiary, NewJob},
        payload::{AssignCoupons, Payload, Wanted},
    },
};

/// For whom an assignment is: administrators and keys with the scope `assign` for anybody, a plain user for itself.
///
/// # Errors
/// `forbidden`, `validation_failed` (a machine must name the user).
pub fn beneficiary(caller: &Caller, user_id: Option<Uuid>) -> Result<Uuid> {
    if caller.user_id().is_none() {
        caller.require(Scope::Assign)?;
    }
    match (user_id, caller.user_id()) {
        (Some(user_id), Some(own)) if user_id == own => Ok(user_id),
        (Some(user_id), _) => caller.require(Scope::Assign).map(|()| user_id),
        (None, Some(own)) => Ok(own),
        (None, None) => Err(Error::invalid(
            "/user_id",
            "required",
            "An API key holds no coupons: say for which user.",
        )),
    }
}

/// An assignment to be accepted as a job.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The job's id, made before, so that its end can be waited for from the start.
    pub job_id: Uuid,
    /// Who asked.
    pub actor: Actor,
    /// Whether the asker is a plain user, for whom only books of self-service exist.
    pub as_user: bool,
    /// The book.
    pub book_id: Uuid,
    /// Who gets the coupons.
    pub user_id: Uuid,
    /// Which.
    pub wanted: Wanted,
    /// The request that asked.
    pub request_id: Option<String>,
}

impl Assignment {
    /// What `caller` asks for.
    pub fn new(caller: &Caller, book_id: Uuid, user_id: Uuid, wanted: Wanted, origin: Origin<'_>) -> Self {
        Self {
            job_id: id::new(),
            actor: origin.actor,
            as_user: !caller.may(Scope::Assign),
            book_id,
            user_id,
            wanted,
            request_id: origin.request_id.map(str::to_owned),
        }
    }

    fn payload(&self) -> Payload {
        Payload::AssignCoupons(AssignCoupons {
            book_id: self.book_id,
            user_id: self.user_id,
            wanted: self.wanted.clone(),
            actor: self.actor,
            as_user: self.as_user,
            request_id: self.request_id.clone(),
        })
    }
}

/// Accepts assignments as jobs, all in one statement; says of each whether its book and user exist for the asker. Those
/// of which they do not are left out.
///
/// # Errors
/// When the database fails.
pub async fn accept_all(
    connection: &mut PgConnection,
    assignments: &[Assignment],
) -> Result<Vec<bool>, StoreError> {
    let payloads: Vec<Payload> = assignments.iter().map(Assignment::payload).collect();
    let jobs: Vec<NewJob<'_>> = assignments
        .iter()
        .zip(&payloads)
        .map(|(wanted, payload)| NewJob {
            payload,
            actor: wanted.actor,
            book_id: Some(wanted.book_id),
            total: Some(match wanted.wanted {
                Wanted::Draw(count) => i64::from(count),
                Wanted::Code(_) => 1,
            }),
            request_id: wanted.request_id.as_deref(),
            beneficiary: Some(Beneficiary {
                user_id: wanted.user_id,
                as_user: wanted.as_user,
            }),
        })
        .collect();
    let ids: Vec<Uuid> = assignments.iter().map(|wanted| wanted.job_id).collect();
    let accepted: HashSet<Uuid> = enqueue::enqueue_all(connection, &ids, &jobs)
        .await?
        .into_iter()
        .collect();
    Ok(ids.iter().map(|job_id| accepted.contains(job_id)).collect())
}

/// Accepts one assignment; gives the job's id.
///
/// # Errors
/// `not_found`.
pub async fn accept(connection: &mut PgConnection, assignment: Assignment) -> Result<Uuid> {
    let job_id = assignment.job_id;
    match accept_all(connection, &[assignment]).await?[..] {
        [true] => Ok(job_id),
        _ => Err(Refusal::not_found().into()),
    }
}
