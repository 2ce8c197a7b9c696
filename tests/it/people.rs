//! People under concurrency and under attack: log-in, refresh, keys, budgets, the first administrator.
//!
//! Each test takes an empty, migrated database. They need no clock of their own: time is moved by updating rows.

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

pub(crate) async fn an_account_is_made_once_whatever_the_case(db: Db) -> Result<()> {
    let house = House::new(&db);
    let ann = house.user("Ann@Shop.example").await?;
    let new = house.new_user("ann@shop.EXAMPLE").await?;
    let mut tx = db.begin().await?;
    let again = user::create(&mut tx, &new).await;
    ensure!(code(&again) == Some(Code::EmailTaken));
    // The refusal leaves the transaction in order.
    ensure!(user::find_by_email(&mut tx, "ANN@shop.example").await? == Some(ann.clone()));
    ensure!(user::find_by_email(&mut tx, "ann@shop\0").await?.is_none());
    ensure!(user::find(&mut tx, ann.id).await? == Some(ann.clone()));
    let bad = NewUser {
        email: "ann".to_owned(),
        name: " ".to_owned(),
        ..new
    };
    match user::create(&mut tx, &bad).await {
        Err(Error::Invalid(faults)) => ensure!(faults.len() == 2),
        other => anyhow::bail!("{other:?}"),
    }
    drop(tx);

    let bob = house.user("bob@shop.example").await?;
    let mut tx = db.begin().await?;
    let page = user::list(&mut tx, None, None, 1).await?;
    ensure!(page.more && page.rows == [bob.clone()]);
    let page = user::list(&mut tx, None, Some(bob.id), 1).await?;
    ensure!(!page.more && page.rows == [ann.clone()]);
    let page = user::list(&mut tx, Some("ANN@SHOP.EXAMPLE"), None, 50).await?;
    ensure!(page.rows == [ann.clone()]);
    let change = UserChange {
        email: Some("ANN@shop.example".to_owned()),
        ..UserChange::default()
    };
    ensure!(code(&user::update(&mut tx, bob.id, &change).await) == Some(Code::EmailTaken));
    drop(tx);
    ensure!(house.change(ann.id, change).await?.email == "ANN@shop.example");
    Ok(())
}

pub(crate) async fn twenty_first_administrators_at_once_are_one(db: Db) -> Result<()> {
    let house = House::new(&db);
    let new = house.new_user("admin0@shop.example").await?;
    let start = Arc::new(Barrier::new(20));
    let mut tasks = JoinSet::new();
    for n in 0..20 {
        let (db, start) = (db.clone(), Arc::clone(&start));
        let new = NewUser {
            email: format!("admin{n}@shop.example"),
            ..new.clone()
        };
        tasks.spawn(async move {
            start.wait().await;
            let mut tx = db.begin().await?;
            let made = user::ensure_first_admin(&mut tx, &new).await?;
            db::commit(tx).await?;
            Ok::<_, Error>(made)
        });
    }
    let mut made = Vec::new();
    for result in tasks.join_all().await {
        made.extend(result?);
    }
    ensure!(made.len() == 1 && made[0].role == Role::Admin);
    let admins: i64 = sqlx::query_scalar("SELECT count(*) FROM users")
        .fetch_one(db.pool())
        .await?;
    ensure!(admins == 1, "{admins} accounts");
    Ok(())
}

pub(crate) async fn of_twenty_refreshes_at_once_one_succeeds_and_the_family_ends(db: Db) -> Result<()> {
    let house = House::new(&db);
    let ann = house.user("ann@shop.example").await?;
    for round in 0..10 {
        let first = house.login("ann@shop.example", PASSWORD).await?;
        let bystander = house.login("ann@shop.example", PASSWORD).await?;
        let start = Arc::new(Barrier::new(20));
        let mut tasks = JoinSet::new();
        for _ in 0..20 {
            let (house, start, token) = (house.clone(), Arc::clone(&start), first.refresh_token.clone());
            tasks.spawn(async move {
                start.wait().await;
                house.refresh(&token).await
            });
        }
        let results = tasks.join_all().await;
        let renewed: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        let reused = results
            .iter()
            .filter(|result| code(result) == Some(Code::RefreshReused))
            .count();
        ensure!(
            (renewed.len(), reused) == (1, 19),
            "round {round}: {} renewed, {reused} reused",
            renewed.len()
        );
        ensure!(renewed[0].user.id == ann.id);
        // The token that the one got is withdrawn with its family, and so is its access; another log-in is not.
        let after = house.refresh(&renewed[0].refresh_token).await;
        ensure!(code(&after) == Some(Code::RefreshExpired), "{after:?}");
        let authenticator = house.authenticator();
        let access = authenticator
            .authenticate_bearer(&renewed[0].access_token, true)
            .await;
        ensure!(code(&access) == Some(Code::Unauthenticated));
        house.refresh(&bystander.refresh_token).await?;
    }
    let live: i64 =
        sqlx::query_scalar("SELECT count(DISTINCT family_id) FROM refresh_tokens WHERE revoked_at IS NULL")
            .fetch_one(db.pool())
            .await?;
    ensure!(live == 10, "{live} families live");
    Ok(())
}

/// A withdrawal never misses the token that a refresh makes in the same moment.
pub(crate) async fn no_refresh_slips_past_a_disabling(db: Db) -> Result<()> {
    let house = House::new(&db);
    let ann = house.user("ann@shop.example").await?;
    for round in 0..30 {
        let mut session = house.login("ann@shop.example", PASSWORD).await?;
        let start = Arc::new(Barrier::new(2));
        let other = tokio::spawn({
            let (house, start) = (house.clone(), Arc::clone(&start));
            async move {
                start.wait().await;
                house.change(ann.id, disable(true)).await
            }
        });
        start.wait().await;
        loop {
            match house.refresh(&session.refresh_token).await {
                Ok(next) => session = next,
                Err(error) => {
                    ensure!(error.code() == Code::RefreshExpired, "{error}");
                    break;
                }
            }
        }
        other.await??;
        house.change(ann.id, disable(false)).await?;
        let after = house.refresh(&session.refresh_token).await;
        ensure!(code(&after) == Some(Code::RefreshExpired), "round {round}");
        let live: i64 = sqlx::query_scalar("SELECT count(*) FROM refresh_tokens WHERE revoked_at IS NULL")
            .fetch_one(db.pool())
            .await?;
        ensure!(live == 0, "round {round}: {live} tokens slipped past");
    }
    Ok(())
}

pub(crate) async fn a_refresh_token_ends_by_time_and_by_logging_out(db: Db) -> Result<()> {
    let house = House::new(&db);
    house.user("ann@shop.example").await?;
    let session = house.login("ann@shop.example", PASSWORD).await?;
    sqlx::query("UPDATE refresh_tokens SET expires_at = now()")
        .execute(db.pool())
        .await?;
    for token in [session.refresh_token.as_str(), "", "cbr_x", "a\0b"] {
        ensure!(code(&house.refresh(token).await) == Some(Code::RefreshExpired));
    }
    sqlx::query("UPDATE refresh_tokens SET expires_at = now() - interval '2 days'")
        .execute(db.pool())
        .await?;
    ensure!(session::sweep(db.pool(), 100).await? == 1);

    let session = house.login("ann@shop.example", PASSWORD).await?;
    let authenticator = house.authenticator();
    authenticator
        .authenticate_bearer(&session.access_token, false)
        .await?;
    for token in [
        session.refresh_token.as_str(),
        session.refresh_token.as_str(),
        "nonsense",
    ] {
        let mut tx = db.begin().await?;
        session::logout(&mut tx, token).await?;
        db::commit(tx).await?;
    }
    ensure!(code(&house.refresh(&session.refresh_token).await) == Some(Code::RefreshExpired));
    let access = authenticator
        .authenticate_bearer(&session.access_token, true)
        .await;
    ensure!(code(&access) == Some(Code::Unauthenticated));
    Ok(())
}

pub(crate) async fn no_secret_is_stored_in_clear(db: Db) -> Result<()> {
    let house = House::new(&db);
    let ann = house.user("ann@shop.example").await?;
    let session = house.login("ann@shop.example", PASSWORD).await?;
    let caller = Caller {
        id: ann.id,
        access: Access::User(Role::Admin),
    };
    let new = NewApiKey {
        name: "till".to_owned(),
        scopes: vec![Scope::Redeem],
        expires_at: None,
        miss_budget: None,
    };
    let mut tx = db.begin().await?;
    let (_, secret) = api_key::create(&mut tx, &caller, &new).await?;
    db::commit(tx).await?;
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT u::text FROM users u UNION ALL SELECT t::text FROM refresh_tokens t
         UNION ALL SELECT k::text FROM api_keys k UNION ALL SELECT b::text FROM security_budgets b",
    )
    .fetch_all(db.pool())
    .await?;
    let all = rows.join("\n");
    for planted in [PASSWORD, &session.refresh_token, &session.access_token, &secret] {
        ensure!(!all.contains(planted));
    }
    ensure!(!format!("{session:?}").contains(&session.refresh_token));
    Ok(())
}

pub(crate) async fn wrong_passwords_are_throttled_and_a_right_one_forgives(db: Db) -> Result<()> {
    let house = House::new(&db);
    house.user("ann@shop.example").await?;
    for _ in 0..9 {
        let refused = house.login("ann@shop.example", WRONG).await;
        ensure!(code(&refused) == Some(Code::InvalidCredentials));
    }
    house.login("ANN@shop.example", PASSWORD).await?;
    // Forty guesses at once, also for an account that does not exist: ten are compared.
    for email in ["ann@shop.example", "nobody@shop.example"] {
        let mut tasks = JoinSet::new();
        for _ in 0..40 {
            let house = house.clone();
            tasks.spawn(async move { house.login(email, WRONG).await });
        }
        let results = tasks.join_all().await;
        let count = |wanted| {
            results
                .iter()
                .filter(|result| code(result) == Some(wanted))
                .count()
        };
        ensure!((count(Code::InvalidCredentials), count(Code::RateLimited)) == (10, 30));
        // Now the right one has to wait as well.
        match house.login(email, PASSWORD).await {
            Err(Error::Refused(refusal)) => {
                ensure!(refusal.code == Code::RateLimited);
                let after = refusal.retry_after.unwrap_or_default();
                ensure!(after > Duration::from_secs(800) && after <= Duration::from_secs(900));
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    sqlx::query("UPDATE security_budgets SET window_until = now()")
        .execute(db.pool())
        .await?;
    house.login("ann@shop.example", PASSWORD).await?;
    Ok(())
}

pub(crate) async fn honest_log_ins_at_once_do_not_throttle_each_other(db: Db) -> Result<()> {
    let house = House::new(&db);
    house.user("ann@shop.example").await?;
    let mut tasks = JoinSet::new();
    for _ in 0..50 {
        let house = house.clone();
        tasks.spawn(async move { house.login("ann@shop.example", PASSWORD).await });
    }
    for result in tasks.join_all().await {
        result?;
    }
    Ok(())
}

pub(crate) async fn one_address_is_throttled_over_all_accounts(db: Db) -> Result<()> {
    let house = House::new(&db);
    house.user("ann@shop.example").await?;
    let address: IpAddr = "192.0.2.7".parse()?;
    let budget = Budget::login_address(address);
    for _ in 0..98 {
        budget::spend(db.pool(), SecurityBudgets::On, &budget).await?;
    }
    for n in 0..2 {
        let email = format!("nobody{n}@shop.example");
        house
            .login_from("ann@shop.example", PASSWORD, Some(address))
            .await?;
        let refused = house.login_from(&email, WRONG, Some(address)).await;
        ensure!(code(&refused) == Some(Code::InvalidCredentials));
    }
    let refused = house
        .login_from("ann@shop.example", PASSWORD, Some(address))
        .await;
    ensure!(code(&refused) == Some(Code::RateLimited));
    house
        .login_from("ann@shop.example", PASSWORD, Some("192.0.2.8".parse()?))
        .await?;
    Ok(())
}

pub(crate) async fn a_hundred_spends_at_once_on_a_limit_of_twenty_allow_twenty(db: Db) -> Result<()> {
    let budget = Budget::code_miss(Uuid::now_v7(), None);
    for round in 0..3 {
        let start = Arc::new(Barrier::new(100));
        let mut tasks = JoinSet::new();
        for _ in 0..100 {
            let (db, start, budget) = (db.clone(), Arc::clone(&start), budget.clone());
            tasks.spawn(async move {
                start.wait().await;
                budget::spend(db.pool(), SecurityBudgets::On, &budget).await
            });
        }
        let mut allowed = 0;
        for spent in tasks.join_all().await {
            let spent = spent?;
            allowed += i32::from(spent.allowed);
            ensure!(spent.retry_after <= Duration::from_secs(3_600));
        }
        ensure!(allowed == 20, "round {round}: {allowed} allowed");
        let checked = budget::check(db.pool(), SecurityBudgets::On, &budget).await?;
        ensure!(!checked.allowed && checked.left == 0);
        ensure!(
            budget::spend(db.pool(), SecurityBudgets::Off, &budget)
                .await?
                .allowed
        );
        let wider = Budget {
            limit: 30,
            ..budget.clone()
        };
        ensure!(
            budget::check(db.pool(), SecurityBudgets::On, &wider)
                .await?
                .allowed
        );
        sqlx::query("UPDATE security_budgets SET window_until = now()")
            .execute(db.pool())
            .await?; // the next round has a window of its own
    }
    let none = Budget::code_miss(Uuid::now_v7(), Some(0));
    ensure!(
        !budget::spend(db.pool(), SecurityBudgets::On, &none)
            .await?
            .allowed
    );
    ensure!(budget::sweep(db.pool(), 100).await? == 1);
    Ok(())
}

pub(crate) async fn a_disabled_account_is_out(db: Db) -> Result<()> {
    let house = House::new(&db);
    let ann = house.user("ann@shop.example").await?;
    let session = house.login("ann@shop.example", PASSWORD).await?;
    let authenticator = house.authenticator();
    let caller = authenticator
        .authenticate_bearer(&session.access_token, true)
        .await?;
    ensure!(caller.id == ann.id && !caller.is_admin());
    house
        .change(
            ann.id,
            UserChange {
                role: Some(Role::Admin),
                ..UserChange::default()
            },
        )
        .await?;
    let remembered = authenticator
        .authenticate_bearer(&session.access_token, false)
        .await?;
    ensure!(!remembered.is_admin());
    let fresh = authenticator
        .authenticate_bearer(&session.access_token, true)
        .await?;
    ensure!(fresh.is_admin());

    let mut tx = db.begin().await?;
    let last = user::update(&mut tx, ann.id, &disable(true)).await;
    ensure!(code(&last) == Some(Code::LastAdmin));
    drop(tx);
    let bob = house.user("bob@shop.example").await?;
    let promoted = UserChange {
        role: Some(Role::Admin),
        ..UserChange::default()
    };
    house.change(bob.id, promoted).await?;
    ensure!(house.change(ann.id, disable(true)).await?.disabled);
    let out = authenticator
        .authenticate_bearer(&session.access_token, true)
        .await;
    ensure!(code(&out) == Some(Code::Unauthenticated));
    let out = authenticator
        .authenticate_bearer(&session.access_token, false)
        .await;
    ensure!(code(&out) == Some(Code::Unauthenticated), "forgotten at once");
    ensure!(code(&house.refresh(&session.refresh_token).await) == Some(Code::RefreshExpired));
    let login = house.login("ann@shop.example", PASSWORD).await;
    ensure!(code(&login) == Some(Code::InvalidCredentials));
    let mut tx = db.begin().await?;
    ensure!(code(&user::require_enabled(&mut tx, ann.id).await) == Some(Code::UserDisabled));
    let absent = user::require_enabled(&mut tx, Uuid::now_v7()).await;
    ensure!(code(&absent) == Some(Code::NotFound));
    Ok(())
}

pub(crate) async fn a_deleted_account_is_anonymous(db: Db) -> Result<()> {
    let house = House::new(&db);
    let (ann, bob) = (
        house.user("ann@shop.example").await?,
        house.user("bob@shop.example").await?,
    );
    let session = house.login("bob@shop.example", PASSWORD).await?;
    let mut tx = db.begin().await?;
    let own = user::disable_and_anonymise(&mut tx, ann.id, ann.id).await;
    ensure!(code(&own) == Some(Code::CannotDeleteSelf));
    let absent = user::disable_and_anonymise(&mut tx, ann.id, Uuid::now_v7()).await;
    ensure!(code(&absent) == Some(Code::NotFound));
    user::disable_and_anonymise(&mut tx, ann.id, bob.id).await?;
    user::disable_and_anonymise(&mut tx, ann.id, bob.id).await?;
    let bob = user::find(&mut tx, bob.id).await?;
    db::commit(tx).await?;
    let bob = bob.ok_or_else(|| anyhow::anyhow!("the row stays"))?;
    ensure!(bob.disabled && bob.name == "Deleted user");
    ensure!(bob.email == format!("deleted-{}@invalid", bob.id));
    ensure!(code(&house.refresh(&session.refresh_token).await) == Some(Code::RefreshExpired));
    house.user("bob@shop.example").await?; // the address is free again
    Ok(())
}

pub(crate) async fn a_change_of_password_ends_the_other_sessions(db: Db) -> Result<()> {
    let house = House::new(&db);
    let ann = house.user("ann@shop.example").await?;
    let mine = house.login("ann@shop.example", PASSWORD).await?;
    let other = house.login("ann@shop.example", PASSWORD).await?;
    let change = PasswordChange {
        user_id: ann.id,
        session_id: house.keys.session_of(&mine.access_token),
        old: PASSWORD,
        new: "another horse battery",
        address: None,
    };
    let run = async |change| login::change_password(&db, &house.passwords, SecurityBudgets::On, change).await;
    let bad = run(PasswordChange { old: WRONG, ..change }).await;
    ensure!(code(&bad) == Some(Code::InvalidCredentials));
    let bad = run(PasswordChange {
        new: "short",
        ..change
    })
    .await;
    ensure!(code(&bad) == Some(Code::WeakPassword));
    run(change).await?;
    house.refresh(&mine.refresh_token).await?;
    ensure!(code(&house.refresh(&other.refresh_token).await) == Some(Code::RefreshExpired));
    let old = house.login("ann@shop.example", PASSWORD).await;
    ensure!(code(&old) == Some(Code::InvalidCredentials));
    house.login("ann@shop.example", "another horse battery").await?;
    Ok(())
}

pub(crate) async fn an_outdated_hash_is_renewed_by_logging_in(db: Db) -> Result<()> {
    let house = House::new(&db);
    house.user("ann@shop.example").await?;
    sqlx::query("UPDATE users SET password_hash = $1")
        .bind(OUTDATED)
        .execute(db.pool())
        .await?;
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let house = house.clone();
        tasks.spawn(async move { house.login("ann@shop.example", PASSWORD).await });
    }
    for result in tasks.join_all().await {
        result?;
    }
    let hash: String = sqlx::query_scalar("SELECT password_hash FROM users")
        .fetch_one(db.pool())
        .await?;
    ensure!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
    house.login("ann@shop.example", PASSWORD).await?;
    Ok(())
}

pub(crate) async fn an_api_key_works_until_it_is_revoked_or_out_of_date(db: Db) -> Result<()> {
    let house = House::new(&db);
    let ann = house.user("ann@shop.example").await?;
    let creator = Caller {
        id: ann.id,
        access: Access::User(Role::Admin),
    };
    let new = NewApiKey {
        name: "till".to_owned(),
        scopes: vec![Scope::Redeem, Scope::Read, Scope::Read],
        expires_at: None,
        miss_budget: Some(500),
    };
    let mut tx = db.begin().await?;
    let (key, secret) = api_key::create(&mut tx, &creator, &new).await?;
    db::commit(tx).await?;
    ensure!(secret.starts_with(&key.prefix) && secret.len() == 46 && key.created_by == ann.id);
    let authenticator = house.authenticator();
    let caller = authenticator.authenticate_key(&secret, false).await?;
    ensure!(caller.id == key.id && caller.may(Scope::Redeem) && !caller.is_admin());
    ensure!(api_key::miss_budget(db.pool(), &caller).await? == Some(500));

    // A key that makes a key acts for its own maker.
    let mut tx = db.begin().await?;
    let (second, _) = api_key::create(&mut tx, &caller, &new).await?;
    ensure!(second.created_by == ann.id);
    let page = api_key::list(&mut tx, None, 1).await?;
    ensure!(page.more && page.rows[0].id == second.id && page.rows[0].scopes.len() == 2);
    let page = api_key::list(&mut tx, Some(second.id), 1).await?;
    let noted = page.rows[0].last_used_at;
    ensure!(!page.more && noted.is_some());
    db::commit(tx).await?;
    for _ in 0..5 {
        authenticator.authenticate_key(&secret, true).await?;
    }
    let mut tx = db.begin().await?;
    let page = api_key::list(&mut tx, Some(second.id), 1).await?;
    ensure!(
        page.rows[0].last_used_at == noted,
        "noted again within the minute"
    );
    drop(tx);
    sqlx::query("UPDATE api_keys SET last_used_at = now() - interval '2 minutes'")
        .execute(db.pool())
        .await?;
    authenticator.authenticate_key(&secret, true).await?;
    let recent: bool =
        sqlx::query_scalar("SELECT last_used_at > now() - interval '1 minute' FROM api_keys WHERE id = $1")
            .bind(key.id)
            .fetch_one(db.pool())
            .await?;
    ensure!(recent);

    let mut tx = db.begin().await?;
    let passed = NewApiKey {
        expires_at: Some(key.created_at),
        ..new.clone()
    };
    let passed = api_key::create(&mut tx, &creator, &passed).await;
    ensure!(code(&passed) == Some(Code::ValidationFailed));
    api_key::revoke(&mut tx, key.id).await?;
    api_key::revoke(&mut tx, key.id).await?;
    let absent = api_key::revoke(&mut tx, Uuid::now_v7()).await;
    ensure!(code(&absent) == Some(Code::NotFound));
    db::commit(tx).await?;
    for bad in [secret.as_str(), "", "cb_", "cb_\0"] {
        let refused = authenticator.authenticate_key(bad, true).await;
        ensure!(code(&refused) == Some(Code::Unauthenticated));
    }
    Ok(())
}
