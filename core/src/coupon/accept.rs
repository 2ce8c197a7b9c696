//! The intake of assignments: what can be refused at once is, the rest becomes a job.

use sqlx::PgConnection;
use uuid::Uuid;

use super::Origin;
use crate::{
    caller::{Caller, Scope},
    error::{Error, Refusal, Result},
    job::{
        enqueue::{self, NewJob},
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

/// Accepts an assignment as a job; `book_id` and `user_id` must exist for the caller.
///
/// # Errors
/// `not_found`.
pub async fn accept(
    connection: &mut PgConnection,
    caller: &Caller,
    book_id: Uuid,
    user_id: Uuid,
    wanted: Wanted,
    origin: Origin<'_>,
) -> Result<Uuid> {
    let as_user = !caller.may(Scope::Assign);
    let known: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM books WHERE id = $1 AND (NOT $3 OR (self_service AND status <> 'draft')))
            AND EXISTS (SELECT FROM users WHERE id = $2)",
    )
    .bind(book_id)
    .bind(user_id)
    .bind(as_user)
    .fetch_one(&mut *connection)
    .await?;
    if !known {
        return Err(Refusal::not_found().into());
    }
    let total = match &wanted {
        Wanted::Draw(count) => i64::from(*count),
        Wanted::Code(_) => 1,
    };
    let payload = Payload::AssignCoupons(AssignCoupons {
        book_id,
        user_id,
        wanted,
        actor: origin.actor,
        as_user,
        request_id: origin.request_id.map(str::to_owned),
    });
    let job = NewJob {
        payload: &payload,
        actor: origin.actor,
        book_id: Some(book_id),
        total: Some(total),
        request_id: origin.request_id,
    };
    let ids = enqueue::enqueue(connection, &[job]).await?;
    Ok(ids[0])
}
