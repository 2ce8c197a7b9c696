//! Accepting an export: the job, where it stands, and who took the codes.

use sqlx::PgConnection;
use uuid::Uuid;

use super::Kind;
use crate::{
    book,
    coupon::{Origin, State},
    error::{Error, Result},
    job::{
        enqueue::{self, NewJob},
        payload::Payload,
    },
};

/// An export to be accepted; schedules keep it as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NewExport {
    /// Of which book.
    pub book_id: Uuid,
    /// Of what.
    pub kind: Kind,
    /// Only coupons in this effective state.
    pub state: Option<State>,
}

impl NewExport {
    /// Checks what one field alone cannot tell.
    ///
    /// # Errors
    /// `validation_failed` (a state of redemptions).
    pub fn check(&self) -> Result<()> {
        if self.state.is_some() && self.kind != Kind::Coupons {
            return Err(Error::invalid(
                "/state",
                "not_allowed",
                "Only coupons have a state; leave it out, or export coupons.",
            ));
        }
        Ok(())
    }
}

/// Accepts an export as a job; the event `exported` says who asked for it.
///
/// # Errors
/// `not_found` (the book), `validation_failed` (a state of redemptions).
pub async fn create(connection: &mut PgConnection, new: &NewExport, origin: Origin<'_>) -> Result<Uuid> {
    new.check()?;
    book::find(connection, new.book_id).await?;
    let job = NewJob {
        payload: &Payload::ExportBook,
        actor: origin.actor,
        book_id: Some(new.book_id),
        total: None,
        request_id: origin.request_id,
        beneficiary: None,
    };
    let job_id = enqueue::enqueue(connection, job).await?;
    sqlx::query(
        "WITH recorded AS (
             INSERT INTO events (book_id, id, actor_kind, actor_id, kind, job_id, request_id, after)
             VALUES ($2, uuid_v7(), $5, $6, 'exported', $1, $7,
                     jsonb_strip_nulls(jsonb_build_object('kind', $3, 'state', $4::text))))
         INSERT INTO exports (job_id, book_id, kind, state) VALUES ($1, $2, $3, $4)",
    )
    .bind(job_id)
    .bind(new.book_id)
    .bind(new.kind.as_str())
    .bind(new.state.map(State::as_str))
    .bind(origin.actor.kind.as_str())
    .bind(origin.actor.id)
    .bind(origin.request_id)
    .execute(connection)
    .await?;
    Ok(job_id)
}
