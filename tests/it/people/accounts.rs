//! Accounts, the first administrator, API keys, and what is stored of secrets.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_once_whatever_the_case() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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
    ensure!(page.rows == std::slice::from_ref(&ann));
    let change = UserChange {
        email: Some("ANN@shop.example".to_owned()),
        ..UserChange::default()
    };
    ensure!(code(&user::update(&mut tx, bob.id, &change).await) == Some(Code::EmailTaken));
    drop(tx);
    ensure!(house.change(ann.id, change).await?.email == "ANN@shop.example");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_first_administrators_at_once_are_one() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_stored_in_clear() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_account_is_out() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_account_is_anonymous() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_works_until_it_is_revoked_or_out_of_date() -> Result<()> {
    let (_database, db) = coupon_tests::fresh().await;
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
