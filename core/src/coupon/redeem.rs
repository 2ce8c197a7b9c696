//! Redemption: one use of a coupon, in one statement.
//!
//! The statement takes the six steps in order: whose lock it is (token), whether it is live, whether a use is left, the
//! atomic update, the line of history, and the caller's commit or rollback.
//! Invariant: uses never exceed what is allowed and a lock's token redeems once; the row lock on the coupon, the row lock
//! on the holder's allowance and two unique indexes hold that under any concurrency.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Behalf, CouponId, Origin,
    explain::{self, Action},
    lock::hash_token,
};
use crate::{error::Result, id};

/// One line of the history of uses.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Redemption {
    /// UUIDv7.
    pub id: Uuid,
    /// `redemption` or `rollback`.
    pub kind: String,
    /// The redemption that a rollback gives back.
    pub reverses_id: Option<Uuid>,
    /// The book.
    pub book_id: Uuid,
    /// The code as shown.
    pub code: String,
    /// The holder.
    pub user_id: Uuid,
    /// When.
    pub redeemed_at: DateTime<Utc>,
    /// The user or API key that did it.
    pub redeemed_by: Uuid,
    /// The caller's own fields.
    pub metadata: serde_json::Value,
    /// When it was rolled back, if it was.
    pub rolled_back_at: Option<DateTime<Utc>>,
}

/// The columns of a redemption named `r`.
macro_rules! redemption_columns {
    () => {
        "r.id, r.kind, r.reverses_id, r.book_id, coalesce(r.code, r.code_key) AS code, r.user_id, r.redeemed_at,
         r.redeemed_by, r.metadata,
         (SELECT v.redeemed_at FROM redemptions v WHERE v.book_id = r.book_id AND v.reverses_id = r.id) AS rolled_back_at"
    };
}
pub(crate) use redemption_columns;

/// Spends one use; one statement has the effect, so no transaction around it is needed. `holder_disabled` is asked
/// before: accounts are not distributed by book. Repeated with the token of a redemption that happened, it gives that redemption again.
///
/// # Errors
/// The refusals of [`explain::Situation::refusal`], `not_found`.
pub async fn redeem(
    connection: &mut PgConnection,
    coupon: &CouponId,
    behalf: Behalf,
    token: Option<&str>,
    metadata: &serde_json::Value,
    holder_disabled: bool,
    origin: Origin<'_>,
) -> Result<Redemption> {
    let token_hash = token.map(hash_token);
    for _ in 0..explain::ROUNDS {
        if !holder_disabled
            && let Some(redemption) = spend(
                connection,
                coupon,
                behalf,
                token_hash.as_deref(),
                metadata,
                origin,
            )
            .await?
        {
            return Ok(redemption);
        }
        if let Some(hash) = &token_hash
            && let Some(earlier) = find_by_token(connection, coupon, behalf, hash).await?
        {
            return Ok(earlier);
        }
        let situation = explain::situation(connection, coupon, behalf, token_hash.as_deref()).await?;
        if let Some(refusal) = situation.refusal(Action::Redeem) {
            return Err(refusal.into());
        }
    }
    Err(explain::contended().into())
}

/// Spends a use: the six steps in one statement.
pub const SPEND: &str = "WITH target AS (
         SELECT c.book_id, c.code_key, c.assigned_user_id, c.state, c.locked_until, c.redemptions_used,
                b.max_redemptions_per_user
         FROM books b JOIN coupons c ON c.book_id = b.id
         WHERE b.id = $1 AND c.book_id = $1 AND c.code_key = $2
           AND ($3::uuid IS NULL OR c.assigned_user_id = $3)
           AND CASE WHEN $4::bytea IS NOT NULL
               -- Under a live lock of one's own the book's end and the coupon's expiry no longer matter.
               THEN c.state = 'locked' AND c.locked_until > clock_timestamp() AND c.lock_token_hash = $4
               ELSE NOT b.require_lock
                    AND (c.state = 'assigned' OR (c.state = 'locked' AND c.locked_until <= clock_timestamp()))
                    AND coalesce(b.ends_at > now(), true)
                    AND coalesce(least(c.expires_at, c.valid_until) > now(), true)
               END
           AND c.redemptions_used < c.redemptions_allowed
           AND b.status = 'active' AND coalesce(b.starts_at <= now(), true)
         FOR UPDATE OF c),
     -- The holder's limit: a conditional upsert waits for its row and then sees the latest count.
     allowed AS (
         INSERT INTO user_allowances AS a (book_id, user_id, redeemed_count)
         SELECT t.book_id, t.assigned_user_id, 1 FROM target t
         ON CONFLICT (book_id, user_id) DO UPDATE SET redeemed_count = a.redeemed_count + 1
         WHERE coalesce(a.redeemed_count < (SELECT max_redemptions_per_user FROM target), true)
         RETURNING a.user_id),
     spent AS (
         UPDATE coupons c
         SET redemptions_used = c.redemptions_used + 1, locked_until = NULL, updated_at = now(),
             state = CASE WHEN c.redemptions_used + 1 = c.redemptions_allowed THEN 'redeemed' ELSE 'assigned' END
         FROM target t, allowed WHERE c.book_id = $1 AND c.code_key = t.code_key
         RETURNING c.book_id, c.code_key, c.code, c.assigned_user_id, c.state, c.redemptions_used),
     r AS (
         INSERT INTO redemptions (book_id, id, user_id, redeemed_by, redeemed_at, code_key, code, lock_token_hash, metadata)
         SELECT s.book_id, $5, s.assigned_user_id, $6, clock_timestamp(), s.code_key, s.code, $4, $7 FROM spent s
         RETURNING *),
     recorded AS (
         INSERT INTO events (book_id, id, actor_kind, actor_id, kind, code_key, request_id, before, after)
         SELECT t.book_id, uuid_v7(), 'system', NULL, 'lock_expired', t.code_key, $9,
                jsonb_build_object('state', 'locked', 'locked_until', t.locked_until), jsonb_build_object('state', 'assigned')
         FROM target t, spent WHERE t.state = 'locked' AND $4::bytea IS NULL
         UNION ALL
         SELECT s.book_id, uuid_v7(), $8, $6, 'coupon_redeemed', s.code_key, $9,
                jsonb_build_object('state', CASE WHEN $4::bytea IS NULL THEN 'assigned' ELSE 'locked' END,
                                   'redemptions_used', s.redemptions_used - 1),
                jsonb_build_object('state', s.state, 'redemptions_used', s.redemptions_used, 'redemption_id', $5)
         FROM spent s)
     SELECT r.id, r.kind, r.reverses_id, r.book_id, coalesce(r.code, r.code_key) AS code, r.user_id, r.redeemed_at,
            r.redeemed_by, r.metadata, NULL::timestamptz AS rolled_back_at
     FROM r";

async fn spend(
    connection: &mut PgConnection,
    coupon: &CouponId,
    behalf: Behalf,
    token_hash: Option<&[u8]>,
    metadata: &serde_json::Value,
    origin: Origin<'_>,
) -> Result<Option<Redemption>> {
    Ok(sqlx::query_as(SPEND)
        .bind(coupon.book_id)
        .bind(&coupon.code_key)
        .bind(behalf.holder())
        .bind(token_hash)
        .bind(id::new())
        .bind(origin.actor.id)
        .bind(metadata)
        .bind(origin.actor.kind.as_str())
        .bind(origin.request_id)
        .fetch_optional(connection)
        .await?)
}

async fn find_by_token(
    connection: &mut PgConnection,
    coupon: &CouponId,
    behalf: Behalf,
    token_hash: &[u8],
) -> Result<Option<Redemption>> {
    Ok(sqlx::query_as(concat!(
        "SELECT ",
        redemption_columns!(),
        " FROM redemptions r
          WHERE r.book_id = $1 AND r.code_key = $2 AND r.lock_token_hash = $3 AND ($4::uuid IS NULL OR r.user_id = $4)"
    ))
    .bind(coupon.book_id)
    .bind(&coupon.code_key)
    .bind(token_hash)
    .bind(behalf.holder())
    .fetch_optional(connection)
    .await?)
}
