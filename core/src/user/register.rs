//! Accounts that strangers make for themselves.
//!
//! Invariant: such an account is never an administrator's; and who tries addresses to learn which have an account pays
//! for each that has one from the budget of failed log-ins, before the answer is known.

use std::net::IpAddr;

use super::{
    NewUser, Role, User,
    budget::{self, Budget, SecurityBudgets},
    create,
    password::{self, Passwords},
};
use crate::{
    db::{self, Db},
    error::{Code, Error, Result},
};

/// An account as a stranger asks for it.
#[derive(Clone, Copy)]
pub struct Registration<'a> {
    /// The e-mail address.
    pub email: &'a str,
    /// 1–200 characters.
    pub name: &'a str,
    /// The password from now on.
    pub password: &'a str,
    /// Where it came from; `None` when that is not known.
    pub address: Option<IpAddr>,
}

/// Makes an account with the role of a user. Takes the [`Db`]: what was paid for a refusal must stay paid.
///
/// # Errors
/// `validation_failed`, `weak_password`, `email_taken`, `rate_limited`, `overloaded`.
pub async fn register(
    db: &Db,
    passwords: &Passwords,
    switch: SecurityBudgets,
    wanted: Registration<'_>,
) -> Result<User> {
    let mut new = NewUser {
        email: wanted.email.to_owned(),
        name: wanted.name.to_owned(),
        password_hash: None,
        role: Role::User,
    };
    new.check()?;
    password::check_policy(wanted.password, wanted.email, wanted.name)?;
    let budget = wanted.address.map(Budget::login_address);
    if let Some(budget) = &budget {
        budget::check(db.pool(), switch, budget).await?.require()?;
    }
    let hash = passwords
        .hash_new(wanted.password, wanted.email, wanted.name)
        .await?;
    new.password_hash = Some(hash);
    if let Some(budget) = &budget {
        budget::spend(db.pool(), switch, budget).await?.require()?;
    }
    let made = insert(db, &new).await;
    let taken = made.as_ref().is_err_and(|error| error.code() == Code::EmailTaken);
    if let Some(budget) = budget.filter(|_| !taken) {
        budget::refund(db.pool(), switch, &budget).await?;
    }
    made
}

async fn insert(db: &Db, new: &NewUser) -> Result<User, Error> {
    let mut tx = db.begin().await?;
    let user = create(&mut tx, new).await?;
    db::commit(tx).await?;
    Ok(user)
}
