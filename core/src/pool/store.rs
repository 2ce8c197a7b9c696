//! The SQL of pools.

use sqlx::PgConnection;
use uuid::Uuid;

use super::Pool;
use crate::{
    caller::Actor,
    error::{Code, Error, FieldError, Refusal, Result, StoreError},
    id,
    page::Page,
};

/// Members of deleted pools that one run of the sweep removes: some tens of milliseconds.
const SWEEP_BATCH: i64 = 10_000;

macro_rules! pool_columns {
    () => {
        "id, name, description, member_count AS members, version, created_at"
    };
}

/// What to change of a pool; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Another name.
    pub name: Option<String>,
    /// Another description.
    pub description: Option<String>,
}

/// A name for people has something to be seen.
fn check_name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(Error::Invalid(vec![FieldError {
            pointer: "/name".to_owned(),
            code: "required",
            detail: "A name has at least one visible character.".to_owned(),
        }]));
    }
    Ok(())
}

/// Makes an empty pool.
///
/// # Errors
/// `validation_failed`.
pub async fn insert(
    connection: &mut PgConnection,
    name: &str,
    description: &str,
    actor: Actor,
) -> Result<Pool> {
    check_name(name)?;
    Ok(sqlx::query_as(concat!(
        "INSERT INTO pools (id, created_by, name, description) VALUES ($1, $2, $3, $4) RETURNING ",
        pool_columns!()
    ))
    .bind(id::new())
    .bind(actor.id.unwrap_or_default())
    .bind(name)
    .bind(description)
    .fetch_one(connection)
    .await?)
}

/// A pool by its id.
///
/// # Errors
/// `not_found`.
pub async fn find(connection: &mut PgConnection, pool_id: Uuid) -> Result<Pool> {
    let pool: Option<Pool> = sqlx::query_as(concat!(
        "SELECT ",
        pool_columns!(),
        " FROM pools WHERE id = $1 AND deleted_at IS NULL"
    ))
    .bind(pool_id)
    .fetch_optional(connection)
    .await?;
    pool.ok_or_else(|| Refusal::not_found().into())
}

/// Pools, newest first, behind `after`.
///
/// # Errors
/// When the database fails.
pub async fn list(connection: &mut PgConnection, after: Option<Uuid>, limit: i64) -> Result<Page<Pool>> {
    let rows: Vec<Pool> = sqlx::query_as(concat!(
        "SELECT ",
        pool_columns!(),
        " FROM pools WHERE id < $1 AND deleted_at IS NULL ORDER BY id DESC LIMIT $2"
    ))
    .bind(after.unwrap_or(Uuid::max())) // no UUIDv7 is as great
    .bind(limit + 1)
    .fetch_all(connection)
    .await?;
    Ok(Page::cut(rows, limit))
}

/// Changes a pool's name or description if it still has the version that `expected` names.
///
/// # Errors
/// `not_found`, `stale`, `validation_failed`.
pub async fn update(
    connection: &mut PgConnection,
    pool_id: Uuid,
    expected: i64,
    change: &Change,
) -> Result<Pool> {
    if let Some(name) = &change.name {
        check_name(name)?;
    }
    let pool: Option<Pool> = sqlx::query_as(concat!(
        "UPDATE pools SET name = coalesce($3, name), description = coalesce($4, description),
             updated_at = CASE WHEN (name, description) IS DISTINCT FROM (coalesce($3, name), coalesce($4, description))
                               THEN now() ELSE updated_at END,
             version = version + CASE WHEN (name, description) IS DISTINCT FROM (coalesce($3, name), coalesce($4, description))
                                      THEN 1 ELSE 0 END
         WHERE id = $1 AND version = $2 AND deleted_at IS NULL RETURNING ",
        pool_columns!()
    ))
    .bind(pool_id)
    .bind(expected)
    .bind(change.name.as_deref())
    .bind(change.description.as_deref())
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(pool) = pool {
        return Ok(pool);
    }
    find(connection, pool_id).await?;
    Err(Refusal::new(
        Code::Stale,
        "The pool has changed since you read it; read it again.",
    )
    .into())
}

/// Deletes a pool. Distributions that were made to it keep their own record of who was in it.
///
/// # Errors
/// `not_found`.
pub async fn delete(connection: &mut PgConnection, pool_id: Uuid) -> Result<()> {
    let deleted = sqlx::query(
        "UPDATE pools SET deleted_at = now(), version = version + 1 WHERE id = $1 AND deleted_at IS NULL",
    )
    .bind(pool_id)
    .execute(connection)
    .await?
    .rows_affected();
    if deleted == 0 {
        return Err(Refusal::not_found().into());
    }
    Ok(())
}

/// Locks a pool against being deleted and against others who add or remove members.
///
/// # Errors
/// `not_found`.
pub(super) async fn lock(connection: &mut PgConnection, pool_id: Uuid) -> Result<()> {
    let found: Option<bool> =
        sqlx::query_scalar("SELECT true FROM pools WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE")
            .bind(pool_id)
            .fetch_optional(connection)
            .await?;
    found.map(drop).ok_or_else(|| Refusal::not_found().into())
}

/// A batch of a pool's members.
pub const DELETE_MEMBERS: &str = "DELETE FROM pool_members WHERE ctid = ANY (ARRAY(
         SELECT ctid FROM pool_members WHERE pool_id = $1 LIMIT $2))";

/// Removes a batch of the members of deleted pools, and pools that have none left; gives how many rows went. Call it
/// until it gives 0.
///
/// # Errors
/// When the database fails.
pub async fn sweep(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let deleted: Option<Uuid> = sqlx::query_scalar(
        "SELECT id FROM pools WHERE deleted_at IS NOT NULL ORDER BY deleted_at LIMIT 1 FOR UPDATE SKIP LOCKED",
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(pool_id) = deleted else { return Ok(0) };
    let members = sqlx::query(DELETE_MEMBERS)
        .persistent(false)
        .bind(pool_id)
        .bind(SWEEP_BATCH)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    if members > 0 {
        return Ok(members);
    }
    Ok(sqlx::query("DELETE FROM pools WHERE id = $1")
        .bind(pool_id)
        .execute(connection)
        .await?
        .rows_affected())
}
