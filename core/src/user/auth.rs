//! Who calls: from a bearer token or an API key to a [`Caller`].
//!
//! Invariant: a valid signature is not enough. The account's present role and state, and whether the session was
//! ended, are asked of the database, at most [`REMEMBERED`] ago; so a disabled account, a changed role, a log-out and
//! a revoked key are felt within that time, and at once where `fresh` is asked for (requests that change something).

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Row;
use uuid::Uuid;

use super::{
    Role, api_key,
    cache::Cache,
    decode_role,
    token::{self, BadToken, TokenKeys},
};
use crate::{
    caller::{Access, Caller},
    db::Db,
    error::{Code, Error, Refusal, Result, StoreError},
    group::Group,
};

/// How long an answer of the database is believed.
pub const REMEMBERED: Duration = Duration::from_secs(5);

/// What the database said of a session: the account's role, and the time.
#[derive(Debug, Clone, Copy)]
struct Standing {
    role: Role,
    at: DateTime<Utc>,
}

#[derive(Debug)]
struct Caches {
    sessions: Cache<(Uuid, Uuid), Standing>,
    keys: Cache<[u8; 32], Caller>,
}

/// Tells who calls. Clones share what they remember.
#[derive(Debug, Clone)]
pub struct Authenticator {
    keys: TokenKeys,
    caches: Arc<Caches>,
    ask_sessions: Group<(Uuid, Uuid), Option<Standing>>,
    ask_keys: Group<[u8; 32], Option<Caller>>,
}

impl Authenticator {
    /// One per process, on the pool of requests.
    pub fn new(db: Db, keys: TokenKeys) -> Self {
        let caches = Arc::new(Caches {
            sessions: Cache::new(REMEMBERED),
            keys: Cache::new(REMEMBERED),
        });
        let of_sessions = db.clone();
        Self {
            keys,
            caches,
            ask_sessions: Group::start(move |asked| standings(of_sessions.clone(), asked)),
            ask_keys: Group::start(move |asked| api_key::find_callers(db.clone(), asked)),
        }
    }

    /// The keys, for issuing and for deriving.
    pub fn keys(&self) -> &TokenKeys {
        &self.keys
    }

    /// The person with this access token; `fresh` asks the database in any case.
    ///
    /// # Errors
    /// `unauthenticated`.
    pub async fn authenticate_bearer(&self, token: &str, fresh: bool) -> Result<Caller> {
        let claims = self.keys.decode(token).map_err(refuse)?;
        let key = (claims.user_id, claims.session_id);
        let remembered = if fresh {
            None
        } else {
            self.caches.sessions.get(&key)
        };
        let (age, standing) = match remembered {
            Some(known) => known,
            None => {
                let since = Instant::now();
                let Some(standing) = self.ask_sessions.ask(key).await? else {
                    self.caches.sessions.forget(&key);
                    return Err(not_valid());
                };
                self.caches.sessions.put(key, since, standing);
                (Duration::ZERO, standing)
            }
        };
        let now = standing.at + TimeDelta::from_std(age).unwrap_or_default();
        claims.check_expiry(now).map_err(refuse)?;
        Ok(Caller {
            id: claims.user_id,
            access: Access::User(standing.role),
        })
    }

    /// The machine with this API key; `fresh` asks the database in any case.
    ///
    /// # Errors
    /// `unauthenticated`.
    pub async fn authenticate_key(&self, secret: &str, fresh: bool) -> Result<Caller> {
        if !api_key::looks_like_one(secret) {
            return Err(not_valid());
        }
        let hash = token::hash(secret);
        if !fresh && let Some((_, caller)) = self.caches.keys.get(&hash) {
            return Ok(caller);
        }
        let since = Instant::now();
        let Some(caller) = self.ask_keys.ask(hash).await? else {
            self.caches.keys.forget(&hash);
            return Err(not_valid());
        };
        self.caches.keys.put(hash, since, caller.clone());
        Ok(caller)
    }
}

/// How accounts and sessions stand; `None` for one that may not act.
async fn standings(db: Db, asked: Vec<(Uuid, Uuid)>) -> Result<Vec<Option<Standing>>, StoreError> {
    let (users, sessions): (Vec<Uuid>, Vec<Uuid>) = asked.iter().copied().unzip();
    let rows = sqlx::query(
        "SELECT a.user_id, a.session_id, u.role, now() AS now
         FROM unnest($1::uuid[], $2::uuid[]) AS a (user_id, session_id) JOIN users u ON u.id = a.user_id
         WHERE u.disabled_at IS NULL
           AND NOT EXISTS ( -- of an ended session every token is revoked; a partial index has only those
               SELECT FROM refresh_tokens WHERE family_id = a.session_id AND revoked_at IS NOT NULL)",
    )
    .bind(users)
    .bind(sessions)
    .fetch_all(db.pool())
    .await?;
    let mut known = HashMap::with_capacity(rows.len());
    for row in rows {
        let standing = Standing {
            role: decode_role(&row)?,
            at: row.try_get("now")?,
        };
        known.insert((row.try_get("user_id")?, row.try_get("session_id")?), standing);
    }
    Ok(asked.iter().map(|key| known.get(key).copied()).collect())
}

fn refuse(bad: BadToken) -> Error {
    match bad {
        BadToken::Expired => Refusal::new(
            Code::Unauthenticated,
            "The access token has expired. Refresh it or log in again.",
        )
        .into(),
        BadToken::NotValid => not_valid(),
    }
}

/// The one answer to everything that is no good credential; strangers are not told why.
pub(super) fn not_valid() -> Error {
    Refusal::new(
        Code::Unauthenticated,
        "The access token or API key is not valid. Log in, or use a key that works.",
    )
    .into()
}
