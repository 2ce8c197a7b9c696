//! Log-in, refresh and the budgets against guessing, also when many come at once.

use coupon_core::{db, leftovers::sweep_leftovers, retention::Retention};

use super::*;

/// What a query counts once the sweep has been there.
async fn left_after_sweep(db: &Db, count: &'static str) -> Result<i64> {
    let mut tx = db.begin().await?;
    sweep_leftovers(&mut tx, &Retention::default()).await?;
    db::commit(tx).await?;
    Ok(sqlx::query_scalar(count).fetch_one(db.pool()).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_refreshes_at_once_one_succeeds_and_the_family_ends() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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
#[tokio::test(flavor = "multi_thread")]
async fn no_refresh_slips_past_a_disabling() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_ends_by_time_and_by_logging_out() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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
    ensure!(left_after_sweep(&db, "SELECT count(*) FROM refresh_tokens").await? == 0);

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

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_throttled_and_a_right_one_forgives() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn honest_log_ins_at_once_do_not_throttle_each_other() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_throttled_over_all_accounts() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_spends_at_once_on_a_limit_of_twenty_allow_twenty() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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
    ensure!(
        left_after_sweep(
            &db,
            "SELECT count(*) FROM security_budgets WHERE window_until < now()"
        )
        .await?
            == 0
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_password_ends_the_other_sessions() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn an_outdated_hash_is_renewed_by_logging_in() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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
