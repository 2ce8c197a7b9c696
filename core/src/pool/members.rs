//! Who is in a pool: listed, added, removed.
//!
//! Invariant: the pool's count moves in the transaction of its members, under the lock of its row.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::store;
use crate::{
    error::{Code, Refusal, Result},
    page::Page,
};

/// The most users of one request.
pub const MAX_USERS: usize = 1_000;

/// Unknown users that a refusal names.
const NAMED: usize = 10;

/// A member as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Member {
    /// The user.
    pub user_id: Uuid,
    /// The e-mail address.
    pub email: String,
    /// For people.
    pub name: String,
    /// Whether the account is disabled: a distribution leaves it out.
    pub disabled: bool,
    /// Since when it is a member.
    pub added_at: DateTime<Utc>,
}

/// What became of a change of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// New members.
    pub added: i64,
    /// Members no longer.
    pub removed: i64,
    /// Members in all, from now on.
    pub members: i64,
}

/// A page of members ($1 pool, $2 behind this user).
pub const LIST: &str = "SELECT m.user_id, u.email, u.name, u.disabled_at IS NOT NULL AS disabled, m.added_at
     FROM pool_members m JOIN users u ON u.id = m.user_id
     WHERE m.pool_id = $1 AND m.user_id > $2 ORDER BY m.user_id LIMIT $3";

/// The members of a pool in the order of their ids, behind `after`.
///
/// # Errors
/// `not_found`.
pub async fn list(
    connection: &mut PgConnection,
    pool_id: Uuid,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Page<Member>> {
    store::find(connection, pool_id).await?;
    let rows: Vec<Member> = sqlx::query_as(LIST)
        .bind(pool_id)
        .bind(after.unwrap_or(Uuid::nil()))
        .bind(limit + 1)
        .fetch_all(connection)
        .await?;
    Ok(Page::cut(rows, limit))
}

/// Adds users, all or none; who is a member already stays one.
///
/// # Errors
/// `not_found`, `unknown_users`.
pub async fn add(connection: &mut PgConnection, pool_id: Uuid, users: &[Uuid]) -> Result<Changed> {
    store::lock(connection, pool_id).await?;
    let unknown: Vec<Uuid> = sqlx::query_scalar(
        "SELECT DISTINCT w.id FROM unnest($1::uuid[]) AS w (id)
         WHERE NOT EXISTS (SELECT FROM users u WHERE u.id = w.id) ORDER BY 1",
    )
    .bind(users)
    .fetch_all(&mut *connection)
    .await?;
    if !unknown.is_empty() {
        let named: Vec<String> = unknown.iter().take(NAMED).map(Uuid::to_string).collect();
        let more = if unknown.len() > NAMED { ", …" } else { "" };
        let detail = format!(
            "{} of these users do not exist, so nobody was added: {}{more}",
            unknown.len(),
            named.join(", ")
        );
        return Err(Refusal::new(Code::UnknownUsers, detail).into());
    }
    let (added, members) = insert(connection, pool_id, users).await?;
    Ok(Changed {
        added,
        removed: 0,
        members,
    })
}

/// Adds existing users to a locked pool; gives how many are new, and how many members it has from now on.
pub(super) async fn insert(
    connection: &mut PgConnection,
    pool_id: Uuid,
    users: &[Uuid],
) -> Result<(i64, i64)> {
    Ok(sqlx::query_as(
        "WITH added AS (
             INSERT INTO pool_members (pool_id, user_id)
             SELECT DISTINCT $1::uuid, w.id FROM unnest($2::uuid[]) AS w (id) ORDER BY w.id
             ON CONFLICT DO NOTHING RETURNING 1),
         counted AS (SELECT count(*) AS added FROM added)
         UPDATE pools SET member_count = member_count + counted.added FROM counted WHERE id = $1
         RETURNING counted.added, member_count",
    )
    .bind(pool_id)
    .bind(users)
    .fetch_one(connection)
    .await?)
}

/// Removes users; who is no member is nothing.
///
/// # Errors
/// `not_found`.
pub async fn remove(connection: &mut PgConnection, pool_id: Uuid, users: &[Uuid]) -> Result<Changed> {
    store::lock(connection, pool_id).await?;
    let (removed, members): (i64, i64) = sqlx::query_as(
        "WITH removed AS (DELETE FROM pool_members WHERE pool_id = $1 AND user_id = ANY($2::uuid[]) RETURNING 1),
         counted AS (SELECT count(*) AS removed FROM removed)
         UPDATE pools SET member_count = member_count - counted.removed FROM counted WHERE id = $1
         RETURNING counted.removed, member_count",
    )
    .bind(pool_id)
    .bind(users)
    .fetch_one(connection)
    .await?;
    Ok(Changed {
        added: 0,
        removed,
        members,
    })
}
