//! Rolling back a redemption: one use is given back, and the history gets a line that says so.
//!
//! Invariant: a redemption is rolled back at most once (a unique index on what a line reverses), and history is only ever
//! added to.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    CouponId, Origin,
    redeem::{Redemption, redemption_columns},
};
use crate::{
    error::{Code, Refusal, Result},
    id,
    page::Page,
};

/// Gives the use of a redemption back, within the book's window of rollback days.
///
/// # Errors
/// `not_found`, `already_rolled_back`, `rollback_window_passed`, `invalid_state` (the line is a rollback itself, or the
/// coupon is void).
pub async fn rollback(
    connection: &mut PgConnection,
    redemption_id: Uuid,
    reason: &str,
    origin: Origin<'_>,
) -> Result<Redemption> {
    // The coupon's row is locked first, as everybody does who changes its uses.
    let coupon: Option<(Uuid, String)> =
        sqlx::query_as("SELECT book_id, code_key FROM redemptions WHERE id = $1")
            .bind(redemption_id)
            .fetch_optional(&mut *connection)
            .await?;
    let (book_id, code_key) = coupon.ok_or_else(Refusal::not_found)?;
    sqlx::query("SELECT FROM coupons WHERE book_id = $1 AND code_key = $2 FOR UPDATE")
        .bind(book_id)
        .bind(&code_key)
        .execute(&mut *connection)
        .await?;
    let undone: Option<Redemption> = sqlx::query_as(
        "WITH target AS (
             SELECT r.book_id, r.id, r.user_id, r.code_key, r.code, c.state, c.redemptions_used
             FROM redemptions r
             JOIN books b ON b.id = r.book_id
             JOIN coupons c ON c.book_id = r.book_id AND c.code_key = r.code_key
             WHERE r.book_id = $1 AND b.id = $1 AND c.book_id = $1 AND r.id = $2 AND r.kind = 'redemption'
               AND r.redeemed_at + make_interval(days => b.rollback_days) > now()
               AND c.state <> 'void' AND c.redemptions_used > 0
               AND NOT EXISTS (SELECT FROM redemptions v WHERE v.book_id = $1 AND v.reverses_id = r.id)),
         given_back AS (
             UPDATE coupons c
             SET redemptions_used = c.redemptions_used - 1, updated_at = now(),
                 state = CASE c.state WHEN 'redeemed' THEN 'assigned' ELSE c.state END
             FROM target t WHERE c.book_id = $1 AND c.code_key = t.code_key
             RETURNING c.state, c.redemptions_used),
         allowed AS (
             UPDATE user_allowances a SET redeemed_count = a.redeemed_count - 1
             FROM target t WHERE a.book_id = $1 AND a.user_id = t.user_id AND a.redeemed_count > 0),
         r AS (
             INSERT INTO redemptions (book_id, id, user_id, redeemed_by, reverses_id, redeemed_at, kind, code_key, code, reason)
             SELECT t.book_id, $3, t.user_id, $4, t.id, clock_timestamp(), 'rollback', t.code_key, t.code, $5
             FROM target t, given_back
             RETURNING *),
         recorded AS (
             INSERT INTO events (book_id, id, actor_kind, actor_id, kind, code_key, request_id, before, after)
             SELECT t.book_id, uuid_v7(), $6, $4, 'redemption_rolled_back', t.code_key, $7,
                    jsonb_build_object('state', t.state, 'redemptions_used', t.redemptions_used),
                    jsonb_build_object('state', g.state, 'redemptions_used', g.redemptions_used,
                                       'redemption_id', t.id, 'reason', $5)
             FROM target t, given_back g)
         SELECT r.id, r.kind, r.reverses_id, r.book_id, coalesce(r.code, r.code_key) AS code, r.user_id, r.redeemed_at,
                r.redeemed_by, r.metadata, NULL::timestamptz AS rolled_back_at
         FROM r",
    )
    .bind(book_id)
    .bind(redemption_id)
    .bind(id::new())
    .bind(origin.actor.id)
    .bind(reason)
    .bind(origin.actor.kind.as_str())
    .bind(origin.request_id)
    .fetch_optional(&mut *connection)
    .await?;
    match undone {
        Some(undone) => Ok(undone),
        None => Err(why_not(connection, book_id, redemption_id).await?.into()),
    }
}

async fn why_not(connection: &mut PgConnection, book_id: Uuid, redemption_id: Uuid) -> Result<Refusal> {
    let (is_rollback, reversed, too_late): (bool, bool, bool) = sqlx::query_as(
        "SELECT r.kind = 'rollback',
                EXISTS (SELECT FROM redemptions v WHERE v.book_id = $1 AND v.reverses_id = r.id),
                r.redeemed_at + make_interval(days => b.rollback_days) <= now()
         FROM redemptions r JOIN books b ON b.id = r.book_id
         WHERE r.book_id = $1 AND b.id = $1 AND r.id = $2",
    )
    .bind(book_id)
    .bind(redemption_id)
    .fetch_one(connection)
    .await?;
    Ok(if is_rollback {
        Refusal::new(
            Code::InvalidState,
            "This line is a rollback itself; it cannot be rolled back.",
        )
    } else if reversed {
        Refusal::new(Code::AlreadyRolledBack, "This redemption was rolled back before.")
    } else if too_late {
        Refusal::new(
            Code::RollbackWindowPassed,
            "The time in which the book lets redemptions be rolled back is over.",
        )
    } else {
        Refusal::new(
            Code::InvalidState,
            "The coupon is void; no use can be given back to it.",
        )
    })
}

/// What a list of redemptions is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this book.
    pub book_id: Option<Uuid>,
    /// Only by this holder.
    pub user_id: Option<Uuid>,
    /// Only of this coupon.
    pub coupon: Option<CouponId>,
}

/// The history of uses, newest first, behind `after`.
///
/// # Errors
/// When the database fails.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Page<Redemption>> {
    let book_id = filter
        .coupon
        .as_ref()
        .map(|coupon| coupon.book_id)
        .or(filter.book_id);
    let rows: Vec<Redemption> = sqlx::query_as(concat!(
        "SELECT ",
        redemption_columns!(),
        " FROM redemptions r
          WHERE ($1::uuid IS NULL OR r.book_id = $1) AND ($2::uuid IS NULL OR r.user_id = $2)
            AND ($3::text IS NULL OR r.code_key = $3) AND ($4::uuid IS NULL OR r.id < $4)
          ORDER BY r.id DESC LIMIT $5"
    ))
    .bind(book_id)
    .bind(filter.user_id)
    .bind(filter.coupon.as_ref().map(|coupon| coupon.code_key.as_str()))
    .bind(after)
    .bind(limit + 1)
    .fetch_all(connection)
    .await?;
    Ok(Page::cut(rows, limit))
}
