//! Demo data: enough to see every state, made through the same use cases and jobs as everything else.
//!
//! Invariant: only an empty service is filled, and only one that listens on a loopback address: the passwords are known
//! to everybody.

use std::net::SocketAddr;

use anyhow::Context;
use coupon_core::{
    book::{self, Settings as BookSettings},
    caller::{Access, Caller, Role, Scope},
    coupon::{Origin, accept},
    db::{self, Db},
    import::{Mode, create::create_from_codes},
    job::{
        payload::Wanted,
        signals::{Signal, Signals},
    },
    user::{
        self, NewUser,
        api_key::{self, NewApiKey},
        password::Passwords,
    },
};
use uuid::Uuid;

use crate::{print, say};

const ADMIN: &str = "admin@example.com";
const HOLDER: &str = "user1@example.com";
/// Known to everybody: a demo listens on a loopback address only.
const PASSWORD: &str = "coupon-book-demo";
const USERS: usize = 25;
const CODES: usize = 10_000;
const LOCK: i64 = 0x64_65_6d_6f; // "demo"

/// What to tell the person who started it.
pub(crate) struct Demo {
    api_key: String,
    book_id: Option<Uuid>,
    user_id: Option<Uuid>,
}

/// Fills an empty service; makes an API key for this run in any case.
pub(crate) async fn prepare(url: &str, signals: &Signals) -> anyhow::Result<Demo> {
    let db = Db::connect(url, db::Role::Worker, 2)?;
    let prepared = fill(&db).await.context("the demo data could not be made");
    signals.ring(Signal::Due);
    db.close().await;
    prepared
}

async fn fill(db: &Db) -> anyhow::Result<Demo> {
    let hash = Passwords::new().hash_new(PASSWORD, ADMIN, "Demo").await?;
    let mut tx = db.begin().await?;
    // One process fills, another that starts meanwhile waits and finds it filled.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *tx)
        .await?;
    let admin = match user::find_by_email(&mut tx, ADMIN).await? {
        Some(admin) => admin,
        None => {
            let new = NewUser {
                email: ADMIN.to_owned(),
                name: "Ada Admin".to_owned(),
                password_hash: Some(hash.clone()),
                role: Role::Admin,
            };
            user::create(&mut tx, &new).await?
        }
    };
    let caller = Caller {
        id: admin.id,
        access: Access::User(Role::Admin),
    };
    let origin = Origin {
        actor: caller.actor(),
        request_id: Some("demo"),
    };
    let key = NewApiKey {
        name: "demo".to_owned(),
        scopes: vec![Scope::Manage],
        expires_at: None,
        miss_budget: None,
    };
    let (_, api_key) = api_key::create(&mut tx, &caller, &key).await?;
    let books = book::list(&mut tx, &caller, None, None, 1).await?;
    if let Some(first) = books.rows.first() {
        let holder = user::find_by_email(&mut tx, HOLDER).await?;
        let book_id = Some(first.id);
        db::commit(tx).await?;
        return Ok(Demo {
            api_key,
            book_id,
            user_id: holder.map(|holder| holder.id),
        });
    }
    let mut users = Vec::new();
    for number in 1..=USERS {
        let new = NewUser {
            email: format!("user{number}@example.com"),
            name: format!("User {number}"),
            password_hash: Some(hash.clone()),
            role: Role::User,
        };
        users.push(user::create(&mut tx, &new).await?.id);
    }
    let summer = BookSettings {
        self_service: true,
        max_assignments_per_user: Some(5),
        ..named("Summer campaign")
    };
    let summer = book::insert(&mut tx, &summer, origin).await?;
    let cards = BookSettings {
        redemptions_per_coupon: 10,
        require_lock: false,
        ..named("Ten coffees")
    };
    let cards = book::insert(&mut tx, &cards, origin).await?;
    let winter = BookSettings {
        status: book::Status::Draft,
        ..named("Winter campaign")
    };
    let _winter = book::insert(&mut tx, &winter, origin).await?;
    for (prefix, book) in [("SUMMER", &summer), ("COFFEE", &cards)] {
        let codes: Vec<String> = (0..CODES / 2)
            .map(|_| format!("{prefix}-{}", random_text()))
            .collect();
        let (mode, request_id) = (Mode::default(), origin.request_id);
        create_from_codes(&mut tx, book.id, &codes, mode, origin.actor, request_id).await?;
    }
    db::commit(tx).await?;
    // The codes come by a job; assignments wait in the queue behind it.
    let mut tx = db.begin().await?;
    for user_id in users.iter().take(10) {
        accept::accept(&mut tx, &caller, summer.id, *user_id, Wanted::Draw(2), origin).await?;
    }
    db::commit(tx).await?;
    Ok(Demo {
        api_key,
        book_id: Some(summer.id),
        user_id: users.first().copied(),
    })
}

fn named(name: &str) -> BookSettings {
    BookSettings::named(name)
}

/// Ten symbols of an alphabet without look-alikes: 49 random bits.
fn random_text() -> String {
    const SYMBOLS: &[u8] = b"23456789ABCDEFGHJKMNPQRSTVWXYZ";
    (0..10)
        .map(|_| char::from(SYMBOLS[rand::random_range(0..SYMBOLS.len())]))
        .collect()
}

impl Demo {
    /// Prints what a person needs to go on.
    pub(crate) fn explain(&self, address: SocketAddr) {
        let url = format!("http://{address}");
        print(&format!(
            "\n  web       {url}/\n  docs      {url}/docs\n  admin     {ADMIN}    password {PASSWORD}\n  user      {HOLDER}    password {PASSWORD}\n  API key   {}",
            self.api_key
        ));
        if let (Some(book_id), Some(user_id)) = (self.book_id, self.user_id) {
            print(&format!(
                "\nAssign a coupon and wait for the job:\n\n  curl -s {url}/v1/coupons/assign -H 'X-Api-Key: {}' -H 'Content-Type: application/json' \\\n    -H 'Prefer: wait=10' -d '{{\"book_id\":\"{book_id}\",\"user_id\":\"{user_id}\"}}'\n",
                self.api_key
            ));
        }
        say("stop with Ctrl-C");
    }
}
