//! Accepting a distribution: what can be refused at once is, the rest is a job.
//!
//! Invariant: the seed is fixed, and its commitment published and in the audit trail, before anybody's turn is known.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    OnShortage, Request,
    order::Seed,
    plan::{self, Totals},
};
use crate::{
    book,
    coupon::{Origin, assign::BookRules},
    error::{Code, Refusal, Result},
    id,
    job::{
        enqueue::{self, NewJob},
        payload::{OfDistribution, Payload},
    },
    pool,
};

/// Accepts a distribution; gives its job, whose result names the distribution from the start.
///
/// # Errors
/// `validation_failed`, `not_found` (book or pool), `book_not_active`, `book_not_started`, `book_ended`, `shortage`.
pub async fn accept(connection: &mut PgConnection, request: &Request, origin: Origin<'_>) -> Result<Uuid> {
    request.check()?;
    book::find(connection, request.book_id).await?;
    pool::find(connection, request.pool_id).await?;
    if let Some(refusal) = BookRules::read(connection, request.book_id).await?.closed {
        return Err(refusal.into());
    }
    if request.on_shortage == OnShortage::Fail {
        plan::be_patient(connection).await?;
        let totals = plan::summary(connection, request).await?;
        let free = plan::count_free(connection, request.book_id, totals.needed(request)).await?;
        if let Some(refusal) = shortage(request, &totals, free) {
            return Err(refusal.into());
        }
    }
    let distribution_id = id::new();
    let payload = Payload::Distribute(OfDistribution {
        book_id: request.book_id,
        distribution_id,
    });
    let job = NewJob {
        payload: &payload,
        actor: origin.actor,
        book_id: Some(request.book_id),
        total: None,
        request_id: origin.request_id,
        beneficiary: None,
    };
    let job_id = enqueue::enqueue(connection, job).await?;
    sqlx::query("UPDATE jobs SET result = $2::text::json WHERE id = $1")
        .bind(job_id)
        .bind(serde_json::json!({ "distribution_id": distribution_id }).to_string())
        .execute(&mut *connection)
        .await?;
    let seed = Seed::new(request.seed.as_deref());
    sqlx::query(
        "WITH d AS (
             INSERT INTO distributions (book_id, id, pool_id, job_id, created_by, created_by_kind, mode, per_user, total,
                 max_per_user, on_shortage, request_id, seed, commitment)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
             RETURNING *)
         INSERT INTO events (book_id, id, actor_kind, actor_id, job_id, kind, request_id, after)
         SELECT d.book_id, uuid_v7(), d.created_by_kind, d.created_by, d.job_id, 'distribution_created', d.request_id,
                jsonb_strip_nulls(jsonb_build_object('distribution_id', d.id, 'pool_id', d.pool_id, 'mode', d.mode,
                    'per_user', d.per_user, 'total', d.total, 'max_per_user', d.max_per_user,
                    'on_shortage', d.on_shortage, 'seed_commitment', encode(d.commitment, 'hex')))
         FROM d",
    )
    .bind(request.book_id)
    .bind(distribution_id)
    .bind(request.pool_id)
    .bind(job_id)
    .bind(origin.actor.id)
    .bind(origin.actor.kind.as_str())
    .bind(request.mode.as_str())
    .bind(request.per_user)
    .bind(request.total.map(i64::from))
    .bind(request.max_per_user)
    .bind(request.on_shortage.as_str())
    .bind(origin.request_id)
    .bind(seed.bytes())
    .bind(&seed.commitment()[..])
    .execute(connection)
    .await?;
    Ok(job_id)
}

/// The refusal of a plan that cannot be given as a whole.
pub(super) fn shortage(request: &Request, totals: &Totals, free: i64) -> Option<Refusal> {
    let needed = totals.needed(request);
    let possible = totals.possible(request, free);
    if possible >= needed {
        return None;
    }
    let detail = if free < needed {
        format!("{needed} coupons are needed and {free} are left, so nothing is given.")
    } else {
        format!("The members of the pool can take {possible} of the {needed} coupons, so nothing is given.")
    };
    Some(Refusal::new(Code::Shortage, detail))
}
