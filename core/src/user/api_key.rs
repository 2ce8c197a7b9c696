//! API keys: how machines call.
//!
//! Invariant: a key is shown once and only its SHA-256 is stored; it works until it is revoked or its time is over,
//! whatever becomes of the account that made it.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection, PgExecutor, Row, postgres::PgRow};
use uuid::Uuid;

use super::{check_name, token};
use crate::{
    caller::{Access, Caller, Scope},
    db::Db,
    error::{Error, FieldError, Refusal, Result, StoreError},
    id,
    page::Page,
};

/// What keys begin with, so that scanners for leaked secrets know them.
const PREFIX: &str = "cb_";

/// How much of a key is shown afterwards: enough to tell keys apart, 216 bits stay unknown.
const SHOWN: usize = PREFIX.len() + 6;

/// A key as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// UUIDv7; the actor of what the key does.
    pub id: Uuid,
    /// For people.
    pub name: String,
    /// Its first characters.
    pub prefix: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Code look-ups per hour that may miss; `None` for the default.
    pub miss_budget: Option<i32>,
    /// The administrator who made it; for a key made with a key, who made that one.
    pub created_by: Uuid,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it stops working by itself.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was withdrawn.
    pub revoked_at: Option<DateTime<Utc>>,
}

impl FromRow<'_, PgRow> for ApiKey {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            prefix: row.try_get("prefix")?,
            scopes: decode_scopes(row)?,
            miss_budget: row.try_get("miss_budget")?,
            created_by: row.try_get("created_by")?,
            created_at: row.try_get("created_at")?,
            last_used_at: row.try_get("last_used_at")?,
            expires_at: row.try_get("expires_at")?,
            revoked_at: row.try_get("revoked_at")?,
        })
    }
}

/// The column `scopes` of a row.
fn decode_scopes(row: &PgRow) -> sqlx::Result<Vec<Scope>> {
    let names: Vec<String> = row.try_get("scopes")?;
    // A scope that a newer release has made means nothing here.
    Ok(names.iter().filter_map(|name| Scope::parse(name)).collect())
}

/// The columns that an [`ApiKey`] is read from.
macro_rules! columns {
    () => {
        "id, name, prefix, scopes, miss_budget, created_by, created_at, last_used_at, expires_at, revoked_at"
    };
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// 1–200 characters.
    pub name: String,
    /// At least one.
    pub scopes: Vec<Scope>,
    /// When it stops working; `None` for never.
    pub expires_at: Option<DateTime<Utc>>,
    /// Code look-ups per hour that may miss; `None` for the default.
    pub miss_budget: Option<i32>,
}

impl NewApiKey {
    fn check(&self) -> Result<()> {
        let mut faults = Vec::new();
        let mut fault = |pointer: &str, code, detail: &str| {
            faults.push(FieldError {
                pointer: pointer.to_owned(),
                code,
                detail: detail.to_owned(),
            });
        };
        if self.scopes.is_empty() {
            fault(
                "/scopes",
                "required",
                "A key needs at least one scope: read, assign, redeem, manage.",
            );
        }
        if self.miss_budget.is_some_and(|budget| budget < 0) {
            fault("/miss_budget", "out_of_range", "A budget is 0 or more.");
        }
        faults.extend(check_name("/name", &self.name).err());
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid(faults))
        }
    }
}

/// Makes a key for `creator` and returns it with its secret, which cannot be shown again.
///
/// # Errors
/// `validation_failed`, also when `expires_at` has passed by the database's clock.
pub async fn create(conn: &mut PgConnection, creator: &Caller, new: &NewApiKey) -> Result<(ApiKey, String)> {
    new.check()?;
    let secret = token::random(PREFIX);
    let mut scopes: Vec<&str> = new.scopes.iter().map(|scope| scope.as_str()).collect();
    scopes.sort_unstable();
    scopes.dedup();
    let key = sqlx::query_as(concat!(
        "INSERT INTO api_keys (id, created_by, expires_at, miss_budget, key_hash, name, prefix, scopes)
         -- a key that makes a key acts for whoever made it
         SELECT $1, coalesce((SELECT created_by FROM api_keys WHERE id = $2), $2), $3, $4, $5, $6, $7, $8
         WHERE $3::timestamptz IS NULL OR $3 > now()
         RETURNING ",
        columns!()
    ))
    .bind(id::new())
    .bind(creator.id)
    .bind(new.expires_at)
    .bind(new.miss_budget)
    .bind(&token::hash(&secret)[..])
    .bind(&new.name)
    .bind(&secret[..SHOWN])
    .bind(scopes)
    .fetch_optional(conn)
    .await?
    .ok_or_else(|| {
        Error::invalid(
            "/expires_at",
            "out_of_range",
            "The key would have expired already.",
        )
    })?;
    Ok((key, secret))
}

/// At most `limit` keys, the newest first, that come after the id `after`; revoked ones too.
///
/// # Errors
/// When the database fails.
pub async fn list(conn: &mut PgConnection, after: Option<Uuid>, limit: i64) -> Result<Page<ApiKey>> {
    let rows = sqlx::query_as(concat!(
        "SELECT ",
        columns!(),
        " FROM api_keys WHERE id < $1 ORDER BY id DESC LIMIT $2"
    ))
    .bind(after.unwrap_or(Uuid::max()))
    .bind(limit.saturating_add(1))
    .fetch_all(conn)
    .await?;
    Ok(Page::cut(rows, limit))
}

/// Withdraws a key for good; again is fine and keeps the first time.
///
/// # Errors
/// `not_found`.
pub async fn revoke(conn: &mut PgConnection, id: Uuid) -> Result<()> {
    let changed = sqlx::query("UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1")
        .bind(id)
        .execute(conn)
        .await?
        .rows_affected();
    if changed == 0 {
        return Err(Refusal::not_found().into());
    }
    Ok(())
}

/// Whether a text has the form of a key; what has not is asked of nobody.
pub(super) fn looks_like_one(secret: &str) -> bool {
    token::looks_random(PREFIX, secret)
}

/// Who calls with the keys of these hashes; `None` for one that does not work. Notes their use, at most once a minute,
/// in one statement that waits for nobody.
///
/// # Errors
/// When the database fails.
pub(super) async fn find_callers(db: Db, hashes: Vec<[u8; 32]>) -> Result<Vec<Option<Caller>>, StoreError> {
    let rows = sqlx::query(
        "WITH found AS (
             SELECT id, scopes, key_hash FROM api_keys
             WHERE key_hash = ANY($1::bytea[]) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
         ), unnoted AS (
             SELECT id FROM api_keys
             WHERE id IN (SELECT id FROM found)
               AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
             FOR NO KEY UPDATE SKIP LOCKED -- whoever has it notes the same
         ), noted AS (
             UPDATE api_keys SET last_used_at = now() WHERE id IN (SELECT id FROM unnoted)
         )
         SELECT id, scopes, key_hash FROM found",
    )
    .bind(hashes.iter().collect::<BTreeSet<_>>().into_iter().map(|hash| &hash[..]).collect::<Vec<_>>())
    .fetch_all(db.pool())
    .await?;
    let mut known = HashMap::with_capacity(rows.len());
    for row in rows {
        let caller = Caller {
            id: row.try_get("id")?,
            access: Access::ApiKey(decode_scopes(&row)?),
        };
        known.insert(row.try_get::<Vec<u8>, _>("key_hash")?, caller);
    }
    Ok(hashes.iter().map(|hash| known.get(&hash[..]).cloned()).collect())
}

/// How many code look-ups per hour may miss for this caller, if its key says so.
///
/// # Errors
/// When the database fails.
pub async fn miss_budget<'e>(conn: impl PgExecutor<'e>, caller: &Caller) -> Result<Option<i32>> {
    match caller.access {
        Access::User(_) => Ok(None),
        Access::ApiKey(_) => Ok(
            sqlx::query_scalar("SELECT miss_budget FROM api_keys WHERE id = $1")
                .bind(caller.id)
                .fetch_optional(conn)
                .await?
                .flatten(),
        ),
    }
}
