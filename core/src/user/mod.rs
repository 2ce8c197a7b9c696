//! People: accounts, their sessions, the keys of machines, and the budgets that make guessing slow.
//!
//! Invariant: an account is never deleted, only disabled and anonymised, so that history keeps its actors; and an
//! account's refresh tokens are inserted and revoked only while its row is locked, so that none slips past a
//! withdrawal. Once there is an administrator there is always one: whoever makes the first, or takes one away, holds
//! one lock for all. To add a field: the migration, [`User`], the column list below, `NewUser` or `UserChange`.

pub mod api_key;
pub mod auth;
pub mod budget;
mod cache;
pub mod email;
pub mod login;
pub mod password;
pub mod register;
pub mod session;
pub mod setup;
pub mod token;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

pub use crate::caller::Role;
use crate::{
    db::Db,
    error::{Code, Error, FieldError, Refusal, Result, StoreError},
    id,
    page::Page,
};

/// The advisory lock of whoever makes the first administrator or takes one away ("cbadmin" in ASCII).
const ADMINS_LOCK: i64 = 0x63_6261_646d_696e;

/// The longest name, in characters.
const NAME_MAX: usize = 200;

/// An account as administrators and its owner see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// UUIDv7.
    pub id: Uuid,
    /// As given; unique without regard to case.
    pub email: String,
    /// For people.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Whether it may neither log in nor hold new coupons.
    pub disabled: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

impl FromRow<'_, PgRow> for User {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            email: row.try_get("email")?,
            name: row.try_get("name")?,
            role: decode_role(row)?,
            disabled: row.try_get("disabled")?,
            created_at: row.try_get("created_at")?,
        })
    }
}

/// The column `role` of a row.
fn decode_role(row: &PgRow) -> sqlx::Result<Role> {
    let text: String = row.try_get("role")?;
    Role::parse(&text).ok_or_else(|| sqlx::Error::ColumnDecode {
        index: "role".to_owned(),
        source: "an unknown role".into(),
    })
}

/// The columns that a [`User`] is read from.
macro_rules! columns {
    () => {
        "id, email, name, role, disabled_at IS NOT NULL AS disabled, created_at"
    };
}

/// An account to be made.
#[derive(Clone)]
pub struct NewUser {
    /// The e-mail address.
    pub email: String,
    /// 1–200 characters.
    pub name: String,
    /// From [`password::Passwords::hash_new`]; `None` for an account that does not log in.
    pub password_hash: Option<String>,
    /// What it may do.
    pub role: Role,
}

impl NewUser {
    /// Checks the fields without the database, so that a slow password hash can wait for the answer.
    ///
    /// # Errors
    /// `validation_failed` with every fault.
    pub fn check(&self) -> Result<()> {
        check(Some(&self.email), Some(&self.name))
    }
}

/// What to change of an account; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct UserChange {
    /// Another e-mail address.
    pub email: Option<String>,
    /// Another name.
    pub name: Option<String>,
    /// Another role.
    pub role: Option<Role>,
    /// Disabled (its sessions end) or enabled again.
    pub disabled: Option<bool>,
}

impl UserChange {
    /// Checks the fields without the database, so that a slow password hash can wait for the answer.
    ///
    /// # Errors
    /// `validation_failed` with every fault.
    pub fn check(&self) -> Result<()> {
        check(self.email.as_deref(), self.name.as_deref())
    }
}

fn check(email: Option<&str>, name: Option<&str>) -> Result<()> {
    let mut faults = Vec::new();
    if let Some(Err(fault)) = email.map(email::check) {
        faults.push(fault);
    }
    if let Some(Err(fault)) = name.map(|name| check_name("/name", name)) {
        faults.push(fault);
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(faults))
    }
}

/// A name for people: 1–200 characters, none of them a control character, not only blanks.
fn check_name(pointer: &str, name: &str) -> Result<(), FieldError> {
    let fault = |code, detail: &str| {
        Err(FieldError {
            pointer: pointer.to_owned(),
            code,
            detail: detail.to_owned(),
        })
    };
    if name.trim().is_empty() {
        return fault("required", "A name has at least one visible character.");
    }
    if name.chars().count() > NAME_MAX {
        return fault("too_long", "A name has at most 200 characters.");
    }
    if name.chars().any(char::is_control) {
        return fault("bad_character", "A name has no control characters.");
    }
    Ok(())
}

/// The account with this id.
///
/// # Errors
/// When the database fails.
pub async fn find(conn: &mut PgConnection, id: Uuid) -> Result<Option<User>> {
    Ok(
        sqlx::query_as(concat!("SELECT ", columns!(), " FROM users WHERE id = $1"))
            .bind(id)
            .fetch_optional(conn)
            .await?,
    )
}

/// The account with this e-mail address, in any case. Text that can be no address finds nothing.
///
/// # Errors
/// When the database fails.
pub async fn find_by_email(conn: &mut PgConnection, email: &str) -> Result<Option<User>> {
    if !email::is_storable(email) {
        return Ok(None);
    }
    Ok(sqlx::query_as(concat!(
        "SELECT ",
        columns!(),
        " FROM users WHERE lower(email) = lower($1)"
    ))
    .bind(email)
    .fetch_optional(conn)
    .await?)
}

/// At most `limit` accounts, the newest first, that come after the id `after`; with `email` only the one that has it.
///
/// # Errors
/// When the database fails.
pub async fn list(
    conn: &mut PgConnection,
    email: Option<&str>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Page<User>> {
    if let Some(email) = email {
        let found = find_by_email(conn, email).await?;
        let rows = found
            .into_iter()
            .filter(|user| after.is_none_or(|after| user.id < after))
            .collect();
        return Ok(Page::cut(rows, limit));
    }
    let rows = sqlx::query_as(concat!(
        "SELECT ",
        columns!(),
        " FROM users WHERE id < $1 ORDER BY id DESC LIMIT $2"
    ))
    .bind(after.unwrap_or(Uuid::max())) // no UUIDv7 is as great
    .bind(limit.saturating_add(1))
    .fetch_all(conn)
    .await?;
    Ok(Page::cut(rows, limit))
}

/// Makes an account.
///
/// # Errors
/// `validation_failed`, `email_taken`.
pub async fn create(conn: &mut PgConnection, new: &NewUser) -> Result<User> {
    new.check()?;
    sqlx::query_as(concat!(
        "INSERT INTO users (id, email, name, role, password_hash) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (lower(email)) DO NOTHING -- a broken constraint would end the caller's transaction
         RETURNING ",
        columns!()
    ))
    .bind(id::new())
    .bind(&new.email)
    .bind(&new.name)
    .bind(new.role.as_str())
    .bind(&new.password_hash)
    .fetch_optional(conn)
    .await?
    .ok_or_else(email_taken)
}

fn email_taken() -> Error {
    Refusal::new(
        Code::EmailTaken,
        "Another account has this e-mail address. Use another address, or log in to that account.",
    )
    .into()
}

/// Makes the first administrator if no enabled one exists (`new.role` is not asked), else does nothing and returns
/// `None`. Any number of processes may call this at once: one makes it. The others wait until that one commits.
///
/// # Errors
/// `validation_failed`; `email_taken` when the address belongs to an account that is no administrator.
pub async fn ensure_first_admin(conn: &mut PgConnection, new: &NewUser) -> Result<Option<User>> {
    new.check()?;
    lock_admins(conn).await?;
    if has_admin(conn).await? {
        return Ok(None);
    }
    let admin = NewUser {
        role: Role::Admin,
        ..new.clone()
    };
    create(conn, &admin).await.map(Some)
}

/// Whether an administrator exists who is not disabled.
///
/// # Errors
/// When the database fails.
pub async fn has_admin(conn: &mut PgConnection) -> Result<bool> {
    Ok(
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM users WHERE role = 'admin' AND disabled_at IS NULL)")
            .fetch_one(conn)
            .await?,
    )
}

/// Until the end of the transaction nobody else makes the first administrator or takes one away. A statement of its
/// own: the next one must see what the former holder of the lock has committed.
async fn lock_admins(conn: &mut PgConnection) -> Result<()> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(ADMINS_LOCK)
        .execute(conn)
        .await?;
    Ok(())
}

/// That an administrator remains when this account is none any more. To be called before its row is locked.
async fn require_another_admin(conn: &mut PgConnection, id: Uuid) -> Result<()> {
    lock_admins(conn).await?;
    let is_last: bool = sqlx::query_scalar(
        "SELECT EXISTS     (SELECT FROM users WHERE role = 'admin' AND disabled_at IS NULL AND id = $1)
            AND NOT EXISTS (SELECT FROM users WHERE role = 'admin' AND disabled_at IS NULL AND id <> $1)",
    )
    .bind(id)
    .fetch_one(conn)
    .await?;
    if is_last {
        return Err(Refusal::new(
            Code::LastAdmin,
            "This is the last administrator. Make another account an administrator first.",
        )
        .into());
    }
    Ok(())
}

/// Changes an account; who is disabled is logged out everywhere.
///
/// # Errors
/// `validation_failed`, `last_admin`, `not_found`, `email_taken`.
pub async fn update(conn: &mut PgConnection, id: Uuid, change: &UserChange) -> Result<User> {
    change.check()?;
    if change.role == Some(Role::User) || change.disabled == Some(true) {
        require_another_admin(conn, id).await?;
    }
    let user: User = sqlx::query_as(concat!(
        "UPDATE users SET
             email       = coalesce($2, email),
             name        = coalesce($3, name),
             role        = coalesce($4, role),
             disabled_at = CASE WHEN $5 THEN coalesce(disabled_at, now()) -- since the first time
                                WHEN NOT $5 THEN NULL
                                ELSE disabled_at END,
             updated_at  = now()
         WHERE id = $1
         RETURNING ",
        columns!()
    ))
    .bind(id)
    .bind(&change.email)
    .bind(&change.name)
    .bind(change.role.map(Role::as_str))
    .bind(change.disabled)
    .fetch_optional(&mut *conn)
    .await
    .map_err(|error| match StoreError::from(error) {
        taken if taken.is_unique_violation("users_email_key") => email_taken(),
        other => other.into(),
    })?
    .ok_or_else(Refusal::not_found)?;
    if user.disabled {
        session::revoke_all(conn, id, None).await?;
    }
    Ok(user)
}

/// Takes an account out of use for good: nobody can log in, nothing tells whose it was, history stays.
/// Doing it again changes nothing.
///
/// # Errors
/// `cannot_delete_self` when `caller` is the account itself, `last_admin`, `not_found`.
pub async fn disable_and_anonymise(conn: &mut PgConnection, caller: Uuid, id: Uuid) -> Result<()> {
    if caller == id {
        return Err(Refusal::new(
            Code::CannotDeleteSelf,
            "You cannot delete your own account. Ask another administrator to do it.",
        )
        .into());
    }
    require_another_admin(conn, id).await?;
    let changed = sqlx::query(
        "UPDATE users SET
             email         = 'deleted-' || id || '@invalid', -- a name that RFC 2606 keeps free
             name          = 'Deleted user',
             role          = 'user',
             password_hash = NULL,
             disabled_at   = coalesce(disabled_at, now()),
             updated_at    = now()
         WHERE id = $1",
    )
    .bind(id)
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if changed == 0 {
        return Err(Refusal::not_found().into());
    }
    session::revoke_all(conn, id, None).await
}

/// Whether accounts are disabled; one that there is not, is not.
///
/// # Errors
/// When the database fails.
pub async fn are_disabled(db: Db, ids: Vec<Uuid>) -> Result<Vec<bool>, StoreError> {
    let disabled: Vec<Uuid> =
        sqlx::query_scalar("SELECT id FROM users WHERE id = ANY($1::uuid[]) AND disabled_at IS NOT NULL")
            .bind(&ids)
            .fetch_all(db.pool())
            .await?;
    Ok(ids.iter().map(|id| disabled.contains(id)).collect())
}

/// That the account exists and may hold coupons.
///
/// # Errors
/// `not_found`, `user_disabled`.
pub async fn require_enabled(conn: &mut PgConnection, id: Uuid) -> Result<()> {
    let disabled: Option<bool> =
        sqlx::query_scalar("SELECT disabled_at IS NOT NULL FROM users WHERE id = $1")
            .bind(id)
            .fetch_optional(conn)
            .await?;
    match disabled {
        None => Err(Refusal::not_found().into()),
        Some(false) => Ok(()),
        Some(true) => Err(Refusal::new(
            Code::UserDisabled,
            "The account of this user is disabled. Enable it first, or choose another user.",
        )
        .into()),
    }
}
