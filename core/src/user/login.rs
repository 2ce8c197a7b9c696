//! Where passwords are compared: log-in and change of password, throttled by account and by network address.
//!
//! Invariant: a guess is paid for before it is compared, and given back only when it was right; so no number of
//! concurrent guesses gets more than the budget. It is paid while holding one of the few turns to hash, so that many
//! honest log-ins at once do not use the budget up between them.
//! These two use cases take the [`Db`] and not a transaction: the failure that is counted must stay counted although
//! the answer is a refusal, and nobody holds a connection while waiting to hash.

use std::net::IpAddr;

use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::{
    budget::{self, Budget, SecurityBudgets},
    email,
    password::{self, Passwords, Turn, Verdict},
    session::{self, Session},
    token::TokenKeys,
};
use crate::{
    db::{self, Db},
    error::{Code, Error, Refusal, Result},
};

/// A log-in as it was asked for.
#[derive(Clone, Copy)]
pub struct LoginAttempt<'a> {
    /// As typed.
    pub email: &'a str,
    /// As typed.
    pub password: &'a str,
    /// Where it came from; `None` when that is not known.
    pub address: Option<IpAddr>,
}

/// A change of the own password.
#[derive(Clone, Copy)]
pub struct PasswordChange<'a> {
    /// Whose.
    pub user_id: Uuid,
    /// The session that asks and goes on ([`TokenKeys::session_of`]); `None` ends all.
    pub session_id: Option<Uuid>,
    /// The password until now.
    pub old: &'a str,
    /// The password from now on.
    pub new: &'a str,
    /// Where it came from; `None` when that is not known.
    pub address: Option<IpAddr>,
}

#[derive(FromRow)]
struct Account {
    id: Uuid,
    email: String,
    name: String,
    password_hash: Option<String>,
    disabled: bool,
}

impl Account {
    /// What to compare with; a disabled account is compared like any other, so that timing tells nothing.
    fn stored(account: Option<&Self>) -> Option<&str> {
        account.and_then(|account| account.password_hash.as_deref())
    }
}

/// Logs in. An unknown address, a wrong password and a disabled account look and last alike.
///
/// # Errors
/// `invalid_credentials`, `rate_limited`, `overloaded`.
pub async fn login(
    db: &Db,
    keys: &TokenKeys,
    passwords: &Passwords,
    switch: SecurityBudgets,
    attempt: LoginAttempt<'_>,
) -> Result<Session> {
    // Once more if the hash was replaced between the comparison and the session: a log-in beside this one may have
    // renewed an outdated hash of the very same password.
    for _ in 0..2 {
        if let Some(session) = compare_and_open(db, keys, passwords, switch, attempt).await? {
            return Ok(session);
        }
    }
    Err(wrong())
}

/// One comparison; `None` when the account was changed meanwhile.
async fn compare_and_open(
    db: &Db,
    keys: &TokenKeys,
    passwords: &Passwords,
    switch: SecurityBudgets,
    attempt: LoginAttempt<'_>,
) -> Result<Option<Session>> {
    let till = Till::new(db, switch, attempt.email, attempt.address);
    till.look().await?;
    let account = find_account(db, attempt.email).await?;
    let turn = passwords.turn().await?;
    let stored = Account::stored(account.as_ref());
    let verdict = till.pay_and_verify(&turn, attempt.password, stored).await?;
    let (Some(account), Some(stored)) = (&account, stored) else {
        return Err(wrong());
    };
    if verdict == Verdict::Wrong || account.disabled {
        return Err(wrong());
    }
    till.give_back().await?;
    let renewed = match verdict {
        Verdict::RightButOutdated => Some(turn.hash(attempt.password).await?),
        Verdict::Right | Verdict::Wrong => None,
    };
    drop(turn);

    let mut tx = db.begin().await?;
    let Some(session) = session::open(&mut tx, keys, account.id, Some(stored)).await? else {
        return Ok(None);
    };
    if let Some(renewed) = renewed {
        replace_hash(&mut tx, account.id, stored, &renewed).await?;
    }
    db::commit(tx).await?;
    Ok(Some(session))
}

/// A change of password whose old password was right, to be written by [`apply_change`].
pub struct CheckedChange {
    user_id: Uuid,
    session_id: Option<Uuid>,
    stored: String,
    hash: String,
}

/// Changes the own password and ends every other session of the account. Wrong old passwords count as failed log-ins.
///
/// # Errors
/// `invalid_credentials`, `weak_password`, `rate_limited`, `overloaded`, `not_found`.
pub async fn change_password(
    db: &Db,
    passwords: &Passwords,
    switch: SecurityBudgets,
    change: PasswordChange<'_>,
) -> Result<()> {
    let checked = check_change(db, passwords, switch, change).await?;
    let mut tx = db.begin().await?;
    apply_change(&mut tx, checked).await?;
    db::commit(tx).await?;
    Ok(())
}

/// The slow part of [`change_password`]: compares the old password and hashes the new one. Nothing is changed yet.
///
/// # Errors
/// `invalid_credentials`, `weak_password`, `rate_limited`, `overloaded`, `not_found`.
pub async fn check_change(
    db: &Db,
    passwords: &Passwords,
    switch: SecurityBudgets,
    change: PasswordChange<'_>,
) -> Result<CheckedChange> {
    let account: Account = sqlx::query_as(
        "SELECT id, email, name, password_hash, disabled_at IS NOT NULL AS disabled FROM users WHERE id = $1",
    )
    .bind(change.user_id)
    .fetch_optional(db.pool())
    .await?
    .ok_or_else(Refusal::not_found)?;
    password::check_policy(change.new, &account.email, &account.name)?;
    if change.old == change.new {
        return Err(Refusal::new(
            Code::WeakPassword,
            "The new password is the old one. Choose another.",
        )
        .into());
    }
    let till = Till::new(db, switch, &account.email, change.address);
    till.look().await?;
    let turn = passwords.turn().await?;
    let stored = Account::stored(Some(&account));
    let verdict = till.pay_and_verify(&turn, change.old, stored).await?;
    let Some(stored) = stored.filter(|_| verdict != Verdict::Wrong && !account.disabled) else {
        return Err(wrong());
    };
    till.give_back().await?;
    let hash = turn.hash(change.new).await?;
    Ok(CheckedChange {
        user_id: account.id,
        session_id: change.session_id,
        stored: stored.to_owned(),
        hash,
    })
}

/// Writes a checked change, unless the account was changed meanwhile.
///
/// # Errors
/// `invalid_credentials` when another change of the password was faster.
pub async fn apply_change(conn: &mut PgConnection, change: CheckedChange) -> Result<()> {
    if !replace_hash(conn, change.user_id, &change.stored, &change.hash).await? {
        return Err(wrong());
    }
    session::revoke_all(conn, change.user_id, change.session_id).await
}

/// Sets a password without asking for the old one, for an operator; ends every session.
///
/// # Errors
/// `not_found`.
pub async fn set_password(conn: &mut PgConnection, user_id: Uuid, hash: &str) -> Result<()> {
    let changed = sqlx::query("UPDATE users SET password_hash = $2, updated_at = now() WHERE id = $1")
        .bind(user_id)
        .bind(hash)
        .execute(&mut *conn)
        .await?
        .rows_affected();
    if changed == 0 {
        return Err(Refusal::not_found().into());
    }
    session::revoke_all(conn, user_id, None).await
}

async fn find_account(db: &Db, email: &str) -> Result<Option<Account>> {
    // What cannot be stored is asked for all the same, as nothing: an odd address must not be faster.
    let email = email::is_storable(email).then_some(email);
    Ok(sqlx::query_as(
        "SELECT id, email, name, password_hash, disabled_at IS NOT NULL AS disabled
         FROM users WHERE lower(email) = lower($1)",
    )
    .bind(email)
    .fetch_optional(db.pool())
    .await?)
}

/// Puts another hash in the place of the one that was compared; whether it was still there.
async fn replace_hash(conn: &mut PgConnection, user_id: Uuid, stored: &str, hash: &str) -> Result<bool> {
    let changed = sqlx::query(
        "UPDATE users SET password_hash = $3, updated_at = now()
         WHERE id = $1 AND password_hash = $2 AND disabled_at IS NULL",
    )
    .bind(user_id)
    .bind(stored)
    .bind(hash)
    .execute(conn)
    .await?
    .rows_affected();
    Ok(changed == 1)
}

fn wrong() -> Error {
    Refusal::new(
        Code::InvalidCredentials,
        "The e-mail address and the password do not fit, or the account is disabled. Check both and try again.",
    )
    .into()
}

/// The two budgets that a guess is paid from, each in a transaction of its own.
struct Till<'a> {
    db: &'a Db,
    switch: SecurityBudgets,
    account: Budget,
    address: Option<Budget>,
}

impl<'a> Till<'a> {
    fn new(db: &'a Db, switch: SecurityBudgets, email: &str, address: Option<IpAddr>) -> Self {
        Self {
            db,
            switch,
            account: Budget::login_account(email),
            address: address.map(Budget::login_address),
        }
    }

    fn budgets(&self) -> impl Iterator<Item = &Budget> {
        self.address.iter().chain([&self.account])
    }

    /// Sends away who has nothing left, before anybody waits for a turn.
    async fn look(&self) -> Result<()> {
        for budget in self.budgets() {
            budget::check(self.db.pool(), self.switch, budget)
                .await?
                .require()?;
        }
        Ok(())
    }

    async fn pay_and_verify(&self, turn: &Turn, password: &str, stored: Option<&str>) -> Result<Verdict> {
        for budget in self.budgets() {
            budget::spend(self.db.pool(), self.switch, budget)
                .await?
                .require()?;
        }
        turn.verify(password, stored).await
    }

    /// The guess was right: nothing of it stays, and the account's earlier failures are forgotten.
    async fn give_back(&self) -> Result<()> {
        budget::reset(self.db.pool(), self.switch, &self.account).await?;
        if let Some(address) = &self.address {
            budget::refund(self.db.pool(), self.switch, address).await?;
        }
        Ok(())
    }
}
