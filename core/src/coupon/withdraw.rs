//! What only administrators do to a coupon: take it back from its holder, or out of use for good.
//!
//! Invariant: a revoked coupon goes back into the draw at a fresh random place, and only if no use of it is spent and
//! nobody is about to redeem it. A void coupon never comes back.

use sqlx::PgConnection;

use super::{Coupon, CouponId, CouponRow, Origin, State, coupon_columns, draw::DrawState, explain};
use crate::error::{Code, Refusal, Result};

/// Takes an assigned coupon back and gives the holder's allowance back with it.
///
/// # Errors
/// `not_found`, `invalid_state` (not assigned, or a use is spent), `coupon_locked`.
pub async fn revoke(
    connection: &mut PgConnection,
    coupon: &CouponId,
    reason: &str,
    origin: Origin<'_>,
) -> Result<Coupon> {
    // The draw first, as everybody who needs both takes them.
    let mut draw = DrawState::lock(connection, coupon.book_id).await?;
    let (epoch, cursor, arrival) = (draw.epoch(), draw.cursor(), draw.arrivals());
    let draw_key = draw.lay(&coupon.code_key);
    let row: Option<CouponRow> = sqlx::query_as(concat!(
        "WITH target AS (
             SELECT code_key, state, locked_until, assigned_user_id FROM coupons
             WHERE book_id = $1 AND code_key = $2 AND redemptions_used = 0
               AND (state = 'assigned' OR (state = 'locked' AND locked_until <= clock_timestamp()))
             FOR UPDATE),
         c AS (
             UPDATE coupons c
             SET state = 'unassigned', assigned_user_id = NULL, assigned_at = NULL, valid_until = NULL,
                 locked_until = NULL, lock_token_hash = NULL, lock_renewals_left = NULL, draw_key = $3, updated_at = now()
             FROM target t WHERE c.book_id = $1 AND c.code_key = t.code_key
             RETURNING c.*),
         given_back AS (
             UPDATE user_allowances a SET assigned_count = a.assigned_count - 1
             FROM target t WHERE a.book_id = $1 AND a.user_id = t.assigned_user_id AND a.assigned_count > 0),
         -- A lapsed lock that no sweep has met yet ends here; each of the two transitions has its event.
         recorded AS (
             INSERT INTO events (book_id, id, actor_kind, actor_id, kind, code_key, request_id, before, after)
             SELECT $1, uuid_v7(), 'system', NULL, 'lock_expired', t.code_key, $6,
                    jsonb_build_object('state', 'locked', 'locked_until', t.locked_until),
                    jsonb_build_object('state', 'assigned')
             FROM target t WHERE t.state = 'locked'
             UNION ALL
             SELECT $1, uuid_v7(), $4, $5, 'coupon_revoked', t.code_key, $6,
                    jsonb_build_object('state', 'assigned', 'user_id', t.assigned_user_id),
                    jsonb_build_object('state', 'unassigned', 'reason', $7::text,
                                       'arrival', $8::bigint, 'epoch', $9::int, 'cursor', $10::bigint)
             FROM target t)
         SELECT ",
        coupon_columns!(),
        " FROM c"
    ))
    .bind(coupon.book_id)
    .bind(&coupon.code_key)
    .bind(draw_key)
    .bind(origin.actor.kind.as_str())
    .bind(origin.actor.id)
    .bind(origin.request_id)
    .bind(reason)
    .bind(arrival)
    .bind(epoch)
    .bind(cursor)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(row) = row {
        draw.save(connection).await?;
        return Ok(row.into());
    }
    let situation = explain::situation(connection, coupon, super::Behalf::Anybody, None).await?;
    Err(match situation.state {
        State::Locked => situation
            .refusal(explain::Action::Lock)
            .unwrap_or_else(explain::contended),
        State::Assigned => Refusal::new(
            Code::InvalidState,
            "A use of the coupon is spent, so it stays with its holder.",
        ),
        state => Refusal::new(Code::InvalidState, format!("The coupon is {}.", state.as_str())),
    }
    .into())
}

/// Takes a coupon out of use for good, whoever holds or has locked it.
///
/// # Errors
/// `not_found`, `invalid_state` (redeemed or void).
pub async fn void(
    connection: &mut PgConnection,
    coupon: &CouponId,
    reason: &str,
    origin: Origin<'_>,
) -> Result<Coupon> {
    let row: Option<CouponRow> = sqlx::query_as(concat!(
        "WITH target AS (
             SELECT code_key, state FROM coupons
             WHERE book_id = $1 AND code_key = $2 AND state IN ('unassigned', 'assigned', 'locked')
             FOR UPDATE),
         c AS (
             UPDATE coupons c SET state = 'void', locked_until = NULL, updated_at = now()
             FROM target t WHERE c.book_id = $1 AND c.code_key = t.code_key
             RETURNING c.*),
         recorded AS (
             INSERT INTO events (book_id, id, actor_kind, actor_id, kind, code_key, request_id, before, after)
             SELECT $1, uuid_v7(), $3, $4, 'coupon_voided', t.code_key, $5,
                    jsonb_build_object('state', t.state), jsonb_build_object('state', 'void', 'reason', $6::text)
             FROM target t)
         SELECT ",
        coupon_columns!(),
        " FROM c"
    ))
    .bind(coupon.book_id)
    .bind(&coupon.code_key)
    .bind(origin.actor.kind.as_str())
    .bind(origin.actor.id)
    .bind(origin.request_id)
    .bind(reason)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(row) = row {
        return Ok(row.into());
    }
    let situation = explain::situation(connection, coupon, super::Behalf::Anybody, None).await?;
    Err(Refusal::new(
        Code::InvalidState,
        format!("The coupon is {}.", situation.state.as_str()),
    )
    .into())
}
