//! The first administrator, made by whoever holds the one-time token of this installation.
//!
//! Invariant: the token follows from the token secret, so every process knows it and none stores it; it opens
//! nothing while an administrator exists who is not disabled. Guesses are paid for like failed log-ins.

use std::net::IpAddr;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq;

use super::{
    budget::{self, Budget, SecurityBudgets},
    has_admin,
    token::TokenKeys,
};
use crate::{
    db::Db,
    error::{Code, Error, Refusal, Result},
};

/// The token: 256 bits as base64url, 43 characters.
pub fn setup_token(keys: &TokenKeys) -> String {
    URL_SAFE_NO_PAD.encode(keys.derive("setup"))
}

/// That `token` is the one-time token, compared in constant time. A wrong one is told that there is an administrator
/// already, which is no secret; the right one is let through even then, and [`super::ensure_first_admin`] decides.
///
/// # Errors
/// `forbidden`, `already_set_up`, `rate_limited`.
pub async fn require_token(
    db: &Db,
    keys: &TokenKeys,
    switch: SecurityBudgets,
    token: &str,
    address: Option<IpAddr>,
) -> Result<()> {
    let budget = address.map(Budget::login_address);
    if let Some(budget) = &budget {
        budget::spend(db.pool(), switch, budget).await?.require()?;
    }
    if bool::from(setup_token(keys).as_bytes().ct_eq(token.as_bytes())) {
        if let Some(budget) = &budget {
            budget::refund(db.pool(), switch, budget).await?;
        }
        return Ok(());
    }
    let mut conn = db.pool().acquire().await?;
    if has_admin(&mut conn).await? {
        return Err(already_set_up());
    }
    Err(Refusal::new(
        Code::Forbidden,
        "This is not the set-up token. Take the one that the service prints when it starts.",
    )
    .into())
}

/// The answer when there is an administrator.
pub fn already_set_up() -> Error {
    Refusal::new(
        Code::AlreadySetUp,
        "There is an administrator already. Log in, or ask an administrator for an account.",
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_follows_from_the_secret_alone() {
        let keys = |secret: &[u8]| TokenKeys::new(secret).expect("a good secret");
        let one = keys(b"0123456789abcdef0123456789abcdef");
        let other = keys(b"another secret of more than 32 bytes");
        assert_eq!(setup_token(&one), setup_token(&one.clone()));
        assert_ne!(setup_token(&one), setup_token(&other));
        assert_eq!(setup_token(&one).len(), 43);
    }
}
