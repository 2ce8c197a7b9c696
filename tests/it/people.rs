//! People under concurrency and under attack: log-in, refresh, keys, budgets, the first administrator.
//!
//! Each test takes an empty, migrated database. They need no clock of their own: time is moved by updating rows.

mod accounts;
mod sessions;

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use coupon_core::{
    Code, Error,
    caller::{Access, Caller, Scope},
    db::{self, Db},
    user::{
        self, NewUser, Role, User, UserChange,
        api_key::{self, NewApiKey},
        auth::Authenticator,
        budget::{self, Budget, SecurityBudgets},
        login::{self, LoginAttempt, PasswordChange},
        password::Passwords,
        session::{self, Session},
        token::TokenKeys,
    },
};
use tokio::{sync::Barrier, task::JoinSet};
use uuid::Uuid;

const PASSWORD: &str = "correct horse battery";
const WRONG: &str = "incorrect horse battery";

/// [`PASSWORD`] with parameters of long ago: 8 MiB, one pass.
const OUTDATED: &str =
    "$argon2id$v=19$m=8192,t=1,p=1$+TdbTWai5nNgSmjp/wnUKg$vKqdC/m7113bKxZ797Vc9U9Y5cEiO2J486AB7RJwLUk";

/// Everything that a process holds to let people in.
#[derive(Clone)]
struct House {
    db: Db,
    keys: TokenKeys,
    passwords: Passwords,
}

impl House {
    fn new(db: &Db) -> Self {
        Self {
            db: db.clone(),
            keys: TokenKeys::new(b"a secret of the tests, 32 bytes or more").expect("a good secret"),
            passwords: Passwords::new(),
        }
    }

    async fn new_user(&self, email: &str) -> Result<NewUser> {
        let name = "Ann".to_owned();
        Ok(NewUser {
            email: email.to_owned(),
            password_hash: Some(self.passwords.hash_new(PASSWORD, email, &name).await?),
            name,
            role: Role::User,
        })
    }

    async fn user(&self, email: &str) -> Result<User> {
        let new = self.new_user(email).await?;
        let mut tx = self.db.begin().await?;
        let user = user::create(&mut tx, &new).await?;
        db::commit(tx).await?;
        Ok(user)
    }

    async fn login_from(
        &self,
        email: &str,
        password: &str,
        address: Option<IpAddr>,
    ) -> coupon_core::Result<Session> {
        let attempt = LoginAttempt {
            email,
            password,
            address,
        };
        login::login(
            &self.db,
            &self.keys,
            &self.passwords,
            SecurityBudgets::On,
            attempt,
        )
        .await
    }

    async fn login(&self, email: &str, password: &str) -> coupon_core::Result<Session> {
        self.login_from(email, password, None).await
    }

    async fn refresh(&self, token: &str) -> coupon_core::Result<Session> {
        let mut tx = self.db.begin().await?;
        let outcome = session::refresh(&mut tx, &self.keys, token).await?;
        db::commit(tx).await?;
        outcome.into_result()
    }

    async fn change(&self, id: Uuid, change: UserChange) -> Result<User> {
        let mut tx = self.db.begin().await?;
        let user = user::update(&mut tx, id, &change).await?;
        db::commit(tx).await?;
        Ok(user)
    }

    fn authenticator(&self) -> Authenticator {
        Authenticator::new(self.db.clone(), self.keys.clone())
    }
}

fn code<T>(result: &coupon_core::Result<T>) -> Option<Code> {
    result.as_ref().err().map(Error::code)
}

fn disable(disabled: bool) -> UserChange {
    UserChange {
        disabled: Some(disabled),
        ..UserChange::default()
    }
}
