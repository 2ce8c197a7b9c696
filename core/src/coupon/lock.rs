//! Locks: a short exclusive hold on a coupon before its redemption, proved by a token.
//!
//! Invariant: a lock is live if and only if the coupon's state is `locked` and `locked_until` is ahead of the database's
//! clock. Its token is 256 random bits; only their SHA-256 is stored, and it stays until the next lock, so that a lapsed
//! token can be told from an unknown one.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Behalf, Coupon, CouponId, CouponRow, Origin, coupon_columns,
    explain::{self, Action, Token},
};
use crate::error::Result;

/// A lock as its owner sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lock {
    /// The code as shown.
    pub code: String,
    /// The book.
    pub book_id: Uuid,
    /// Proves the ownership; shown once.
    pub lock_token: String,
    /// When it lapses.
    pub locked_until: DateTime<Utc>,
    /// The database's clock now, for countdowns.
    pub server_time: DateTime<Utc>,
    /// How often it may still be renewed.
    pub renewals_left: i32,
}

/// SHA-256 of a token, as stored.
pub fn hash_token(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

fn new_token() -> String {
    format!("cbl_{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()))
}

#[derive(sqlx::FromRow)]
struct Row {
    code: String,
    book_id: Uuid,
    locked_until: DateTime<Utc>,
    server_time: DateTime<Utc>,
    renewals_left: i32,
}

impl Row {
    fn into_lock(self, lock_token: String) -> Lock {
        Lock {
            code: self.code,
            book_id: self.book_id,
            lock_token,
            locked_until: self.locked_until,
            server_time: self.server_time,
            renewals_left: self.renewals_left,
        }
    }
}

/// Locks a coupon for its holder; with the token of its live lock, renews that. One statement has the effect, so no
/// transaction around it is needed. `holder_disabled` is asked before: accounts are not distributed by book.
///
/// # Errors
/// The refusals of [`explain::Situation::refusal`], `not_found`.
pub async fn lock(
    connection: &mut PgConnection,
    coupon: &CouponId,
    behalf: Behalf,
    token: Option<&str>,
    holder_disabled: bool,
    origin: Origin<'_>,
) -> Result<Lock> {
    let token_hash = token.map(hash_token);
    for _ in 0..explain::ROUNDS {
        let locked = match (token, &token_hash) {
            _ if holder_disabled => None,
            (Some(token), Some(hash)) => hold(connection, RENEW, coupon, behalf, hash, origin)
                .await?
                .map(|row| (row, token.to_owned())),
            _ => {
                let token = new_token();
                hold(connection, TAKE, coupon, behalf, &hash_token(&token), origin)
                    .await?
                    .map(|row| (row, token))
            }
        };
        if let Some((row, token)) = locked {
            return Ok(row.into_lock(token));
        }
        let situation = explain::situation(connection, coupon, behalf, token_hash.as_deref()).await?;
        if let Some(refusal) = situation.refusal(Action::Lock) {
            return Err(refusal.into());
        }
    }
    Err(explain::contended().into())
}

/// Takes a lock; both transitions, should a lapsed lock end by it, have their events.
pub const TAKE: &str = "WITH target AS (
         SELECT c.book_id, c.code_key, c.state, c.locked_until, b.lock_seconds, b.lock_renewals
         FROM books b JOIN coupons c ON c.book_id = b.id
         WHERE b.id = $1 AND c.book_id = $1 AND c.code_key = $2
           AND ($3::uuid IS NULL OR c.assigned_user_id = $3)
           AND (c.state = 'assigned' OR (c.state = 'locked' AND c.locked_until <= clock_timestamp()))
           AND b.status = 'active'
           AND coalesce(b.starts_at <= now(), true) AND coalesce(b.ends_at > now(), true)
           AND coalesce(least(c.expires_at, c.valid_until) > now(), true)
         FOR UPDATE OF c),
     locked AS (
         UPDATE coupons c
         SET state = 'locked', lock_token_hash = $4, lock_renewals_left = t.lock_renewals,
             locked_until = clock_timestamp() + make_interval(secs => t.lock_seconds), updated_at = now()
         FROM target t WHERE c.book_id = $1 AND c.code_key = t.code_key
         RETURNING c.*),
     -- A lapsed lock that no sweep has met yet ends here; each of the two transitions has its event.
     recorded AS (
         INSERT INTO events (book_id, id, actor_kind, actor_id, kind, code_key, request_id, before, after)
         SELECT t.book_id, uuid_v7(), 'system', NULL, 'lock_expired', t.code_key, $7,
                jsonb_build_object('state', 'locked', 'locked_until', t.locked_until), jsonb_build_object('state', 'assigned')
         FROM target t WHERE t.state = 'locked'
         UNION ALL
         SELECT l.book_id, uuid_v7(), $5, $6, 'coupon_locked', l.code_key, $7,
                jsonb_build_object('state', 'assigned'),
                jsonb_build_object('state', 'locked', 'locked_until', l.locked_until, 'user_id', l.assigned_user_id)
         FROM locked l)
     SELECT coalesce(l.code, l.code_key) AS code, l.book_id, l.locked_until,
            clock_timestamp() AS server_time, l.lock_renewals_left AS renewals_left
     FROM locked l";

/// Renews a live lock by its token.
pub const RENEW: &str = "WITH target AS (
         SELECT c.code_key, c.locked_until, b.lock_seconds
         FROM books b JOIN coupons c ON c.book_id = b.id
         WHERE b.id = $1 AND c.book_id = $1 AND c.code_key = $2
           AND ($3::uuid IS NULL OR c.assigned_user_id = $3)
           AND c.state = 'locked' AND c.locked_until > clock_timestamp() AND c.lock_token_hash = $4
           AND c.lock_renewals_left > 0 AND b.status = 'active'
           AND coalesce(b.starts_at <= now(), true) AND coalesce(b.ends_at > now(), true)
           AND coalesce(least(c.expires_at, c.valid_until) > now(), true)
         FOR UPDATE OF c),
     renewed AS (
         UPDATE coupons c
         SET locked_until = clock_timestamp() + make_interval(secs => t.lock_seconds),
             lock_renewals_left = c.lock_renewals_left - 1, updated_at = now()
         FROM target t WHERE c.book_id = $1 AND c.code_key = t.code_key
         RETURNING c.*),
     recorded AS (
         INSERT INTO events (book_id, id, actor_kind, actor_id, kind, code_key, request_id, before, after)
         SELECT $1, uuid_v7(), $5, $6, 'lock_renewed', r.code_key, $7,
                jsonb_build_object('locked_until', t.locked_until), jsonb_build_object('locked_until', r.locked_until)
         FROM renewed r, target t)
     SELECT coalesce(r.code, r.code_key) AS code, r.book_id, r.locked_until,
            clock_timestamp() AS server_time, r.lock_renewals_left AS renewals_left
     FROM renewed r";

/// Runs [`TAKE`] or [`RENEW`].
async fn hold(
    connection: &mut PgConnection,
    sql: &'static str,
    coupon: &CouponId,
    behalf: Behalf,
    token_hash: &[u8],
    origin: Origin<'_>,
) -> Result<Option<Row>> {
    Ok(sqlx::query_as(sql)
        .bind(coupon.book_id)
        .bind(&coupon.code_key)
        .bind(behalf.holder())
        .bind(token_hash)
        .bind(origin.actor.kind.as_str())
        .bind(origin.actor.id)
        .bind(origin.request_id)
        .fetch_optional(connection)
        .await?)
}

/// Gives a live lock back, by its token or ($5) without.
pub const UNLOCK: &str = concat!(
    "WITH target AS (
         SELECT code_key, locked_until FROM coupons
         WHERE book_id = $1 AND code_key = $2 AND ($3::uuid IS NULL OR assigned_user_id = $3)
           AND state = 'locked' AND locked_until > clock_timestamp()
           AND CASE WHEN $4::bytea IS NULL THEN $5 ELSE lock_token_hash = $4 END
         FOR UPDATE),
     c AS (
         UPDATE coupons c SET state = 'assigned', locked_until = NULL, updated_at = now()
         FROM target t WHERE c.book_id = $1 AND c.code_key = t.code_key
         RETURNING c.*),
     recorded AS (
         INSERT INTO events (book_id, id, actor_kind, actor_id, kind, code_key, request_id, before, after)
         SELECT $1, uuid_v7(), $6, $7, 'coupon_unlocked', c.code_key, $8,
                jsonb_build_object('state', 'locked', 'locked_until', t.locked_until),
                jsonb_build_object('state', 'assigned')
         FROM c, target t)
     SELECT ",
    coupon_columns!(),
    " FROM c"
);

/// Gives a lock back. With `without_token` (administrators) any live lock; else the lock of `token`. A lock that has
/// lapsed is a success that changes nothing.
///
/// # Errors
/// `not_found`, `invalid_state`, `lock_not_owned`, `coupon_locked` (a live lock, no token).
pub async fn unlock(
    connection: &mut PgConnection,
    coupon: &CouponId,
    behalf: Behalf,
    token: Option<&str>,
    without_token: bool,
    origin: Origin<'_>,
) -> Result<Coupon> {
    let token_hash = token.map(hash_token);
    for _ in 0..explain::ROUNDS {
        let row: Option<CouponRow> = sqlx::query_as(UNLOCK)
            .bind(coupon.book_id)
            .bind(&coupon.code_key)
            .bind(behalf.holder())
            .bind(token_hash.as_deref())
            .bind(without_token)
            .bind(origin.actor.kind.as_str())
            .bind(origin.actor.id)
            .bind(origin.request_id)
            .fetch_optional(&mut *connection)
            .await?;
        if let Some(row) = row {
            return Ok(row.into());
        }
        let situation = explain::situation(connection, coupon, behalf, token_hash.as_deref()).await?;
        if let Some(refusal) = situation.refusal(Action::Unlock { without_token }) {
            return Err(refusal.into());
        }
        let nothing_to_unlock = situation.state != super::State::Locked;
        if nothing_to_unlock && matches!(situation.token, Token::Matches | Token::Absent) {
            return super::list::find(connection, coupon).await;
        }
    }
    Err(explain::contended().into())
}
