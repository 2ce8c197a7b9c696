//! Sessions: a log-in is a family of refresh tokens, of which only the newest is good, and only once.
//!
//! Invariant: a refresh token is exchanged at most once. A second exchange means that two parties hold it, and the
//! whole family is withdrawn; so of concurrent exchanges one succeeds, and what it got is withdrawn by the next.
//! Every insertion and every withdrawal first locks the account's row, in a statement of its own: the statement
//! after it then sees every token there is, and the order (account, then tokens) cannot deadlock.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    User,
    token::{self, ACCESS_SECONDS, TokenKeys},
};
use crate::{
    error::{Code, Refusal, Result},
    id,
};

/// How long a refresh token is valid, in days; each exchange starts them anew.
const REFRESH_DAYS: i32 = 30;

/// What refresh tokens begin with, so that scanners for leaked secrets know them.
const PREFIX: &str = "cbr_";

/// What a log-in or a refresh gives.
#[derive(Clone, Serialize)]
pub struct Session {
    /// A JWT for the header `Authorization`.
    pub access_token: String,
    /// Always `Bearer`.
    pub token_type: &'static str,
    /// Seconds for which the access token is valid.
    pub expires_in: i64,
    /// To be exchanged once for the next session.
    pub refresh_token: String,
    /// Who is logged in.
    pub user: User,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("user", &self.user.id)
            .finish_non_exhaustive()
    }
}

/// The outcome of [`refresh`]. Both are to be **committed**: a refusal may have withdrawn a family, and rolling that
/// back would leave a stolen token in use. Only then [`Refreshed::into_result`] makes an error of a refusal.
#[derive(Debug)]
#[must_use = "commit first, then answer"]
pub enum Refreshed {
    /// The next session.
    Renewed(Box<Session>),
    /// `refresh_reused` or `refresh_expired`.
    Refused(Refusal),
}

impl Refreshed {
    /// The answer, to be asked for after the commit.
    ///
    /// # Errors
    /// `refresh_reused`, `refresh_expired`.
    pub fn into_result(self) -> Result<Session> {
        match self {
            Self::Renewed(session) => Ok(*session),
            Self::Refused(refusal) => Err(refusal.into()),
        }
    }
}

/// An account whose row is locked, and the time.
struct Locked {
    user: User,
    now: DateTime<Utc>,
}

impl FromRow<'_, PgRow> for Locked {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            user: User::from_row(row)?,
            now: row.try_get("now")?,
        })
    }
}

/// Opens a session for an account whose password was found right, or that needs none (it was made this moment).
/// With `verified`, the password hash that was compared: `None` comes back if the account has another by now or is
/// disabled.
///
/// # Errors
/// When the database fails.
pub async fn open(
    conn: &mut PgConnection,
    keys: &TokenKeys,
    user_id: Uuid,
    verified: Option<&str>,
) -> Result<Option<Session>> {
    let locked: Option<Locked> = sqlx::query_as(
        "SELECT id, email, name, role, disabled_at IS NOT NULL AS disabled, created_at, now() AS now
         FROM users
         WHERE id = $1 AND disabled_at IS NULL
           AND ($2::text IS NULL OR password_hash = $2) -- a change of password meanwhile wins
         FOR NO KEY UPDATE",
    )
    .bind(user_id)
    .bind(verified)
    .fetch_optional(&mut *conn)
    .await?;
    match locked {
        Some(locked) => issue(conn, keys, locked, id::new()).await.map(Some),
        None => Ok(None),
    }
}

/// Exchanges a refresh token for the next session. **Commit whatever `Ok` holds** (see [`Refreshed`]).
///
/// A client that loses the answer has to log in again: its token is used, and using it again withdraws the family.
///
/// # Errors
/// When the database fails; refusals are in [`Refreshed::Refused`].
pub async fn refresh(conn: &mut PgConnection, keys: &TokenKeys, refresh_token: &str) -> Result<Refreshed> {
    let hash = token::hash(refresh_token);
    let Some(locked) = lock_owner(conn, refresh_token).await? else {
        return Ok(expired());
    };
    let family: Option<Uuid> = sqlx::query_scalar(
        "UPDATE refresh_tokens t SET used_at = now()
         FROM users u
         WHERE t.token_hash = $1 AND t.used_at IS NULL AND t.revoked_at IS NULL AND t.expires_at > now()
           AND u.id = t.user_id AND u.disabled_at IS NULL
         RETURNING t.family_id",
    )
    .bind(&hash[..])
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(family) = family {
        let session = issue(conn, keys, locked, family).await?;
        return Ok(Refreshed::Renewed(Box::new(session)));
    }
    // Used before and not yet out of date: somebody has a copy. The family's newest token is withdrawn as well.
    let reused: Option<Uuid> = sqlx::query_scalar(
        "SELECT family_id FROM refresh_tokens
         WHERE token_hash = $1 AND used_at IS NOT NULL AND expires_at > now()",
    )
    .bind(&hash[..])
    .fetch_optional(&mut *conn)
    .await?;
    let Some(family) = reused else {
        return Ok(expired());
    };
    let revoked = revoke_family(conn, family).await?;
    if revoked > 0 {
        tracing::warn!(user_id = %locked.user.id, "a refresh token was used twice; its family is withdrawn");
    }
    Ok(Refreshed::Refused(Refusal::new(
        Code::RefreshReused,
        "This refresh token was used before, so somebody may have a copy. The session has ended; log in again.",
    )))
}

fn expired() -> Refreshed {
    Refreshed::Refused(Refusal::new(
        Code::RefreshExpired,
        "This refresh token is no longer valid. Log in again.",
    ))
}

/// Ends the session that a refresh token belongs to. Unknown tokens and sessions that have ended are fine.
///
/// # Errors
/// When the database fails.
pub async fn logout(conn: &mut PgConnection, refresh_token: &str) -> Result<()> {
    if lock_owner(conn, refresh_token).await?.is_some() {
        sqlx::query(
            "UPDATE refresh_tokens SET revoked_at = now()
             WHERE revoked_at IS NULL
               AND family_id = (SELECT family_id FROM refresh_tokens WHERE token_hash = $1)",
        )
        .bind(&token::hash(refresh_token)[..])
        .execute(conn)
        .await?;
    }
    Ok(())
}

/// Ends every session of an account but `keep`. The caller has locked or changed the account's row before, in the
/// same transaction.
///
/// # Errors
/// When the database fails.
pub async fn revoke_all(conn: &mut PgConnection, user_id: Uuid, keep: Option<Uuid>) -> Result<()> {
    sqlx::query(
        "UPDATE refresh_tokens SET revoked_at = now()
         WHERE user_id = $1 AND revoked_at IS NULL AND family_id IS DISTINCT FROM $2",
    )
    .bind(user_id)
    .bind(keep)
    .execute(conn)
    .await?;
    Ok(())
}

/// A batch of tokens that have been out of date for a day. One that is gone answers as one that is out of date, so
/// correctness never waits for this.
pub const DELETE_EXPIRED: &str = "DELETE FROM refresh_tokens WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM refresh_tokens WHERE expires_at < now() - interval '1 day'
         ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))";

/// Locks the account that a refresh token belongs to.
async fn lock_owner(conn: &mut PgConnection, refresh_token: &str) -> Result<Option<Locked>> {
    if !token::looks_random(PREFIX, refresh_token) {
        return Ok(None);
    }
    Ok(sqlx::query_as(
        "SELECT u.id, u.email, u.name, u.role, u.disabled_at IS NOT NULL AS disabled, u.created_at, now() AS now
         FROM refresh_tokens t JOIN users u ON u.id = t.user_id
         WHERE t.token_hash = $1
         FOR NO KEY UPDATE OF u",
    )
    .bind(&token::hash(refresh_token)[..])
    .fetch_optional(conn)
    .await?)
}

async fn issue(conn: &mut PgConnection, keys: &TokenKeys, locked: Locked, family: Uuid) -> Result<Session> {
    let refresh_token = token::random(PREFIX);
    sqlx::query(
        "INSERT INTO refresh_tokens (token_hash, family_id, user_id, expires_at)
         VALUES ($1, $2, $3, now() + make_interval(days => $4))",
    )
    .bind(&token::hash(&refresh_token)[..])
    .bind(family)
    .bind(locked.user.id)
    .bind(REFRESH_DAYS)
    .execute(conn)
    .await?;
    Ok(Session {
        access_token: keys.issue(locked.user.id, family, locked.user.role, locked.now),
        token_type: "Bearer",
        expires_in: ACCESS_SECONDS,
        refresh_token,
        user: locked.user,
    })
}

async fn revoke_family(conn: &mut PgConnection, family: Uuid) -> Result<u64> {
    Ok(sqlx::query(
        "UPDATE refresh_tokens SET revoked_at = now() WHERE family_id = $1 AND revoked_at IS NULL",
    )
    .bind(family)
    .execute(conn)
    .await?
    .rows_affected())
}
