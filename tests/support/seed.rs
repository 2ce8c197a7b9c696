//! Rows that a test starts from, written through the use cases or, in bulk, straight into the tables.

use coupon_core::{
    caller::{Access, Actor, ActorKind, Caller, Role, Scope},
    db::{self, Db},
    id,
    user::{
        self, NewUser,
        api_key::{self, NewApiKey},
    },
};
use uuid::Uuid;

/// A new account without a password.
pub async fn user(db: &Db, role: Role) -> Uuid {
    let unique = id::new();
    let mut tx = db.begin().await.expect("a transaction");
    let new = NewUser {
        email: format!("{unique}@example.com"),
        name: "A user".to_owned(),
        password_hash: None,
        role,
    };
    let user = user::create(&mut tx, &new).await.expect("an account");
    db::commit(tx).await.expect("committed");
    user.id
}

/// A new API key with these scopes, made by a new administrator; gives the secret.
pub async fn key(db: &Db, scopes: &[Scope]) -> String {
    let admin = Caller {
        id: user(db, Role::Admin).await,
        access: Access::User(Role::Admin),
    };
    let new = NewApiKey {
        name: "A key".to_owned(),
        scopes: scopes.to_vec(),
        expires_at: None,
        miss_budget: None,
    };
    let mut tx = db.begin().await.expect("a transaction");
    let (_, key) = api_key::create(&mut tx, &admin, &new).await.expect("a key");
    db::commit(tx).await.expect("committed");
    key
}

/// Many new accounts at once.
pub async fn users(db: &Db, count: usize) -> Vec<Uuid> {
    let ids: Vec<Uuid> = (0..count).map(|_| id::new()).collect();
    sqlx::query("INSERT INTO users (id, email, name) SELECT id, id || '@example.com', 'A user' FROM unnest($1::uuid[]) AS n (id)")
        .bind(&ids)
        .execute(db.pool())
        .await
        .expect("accounts");
    ids
}

/// An actor that is nobody in particular.
pub fn actor() -> Actor {
    Actor {
        kind: ActorKind::User,
        id: Some(Uuid::from_u128(1)),
    }
}

/// Codes that are all different.
pub fn codes(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("CODE-{number:07}")).collect()
}
