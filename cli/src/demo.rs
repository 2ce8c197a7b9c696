//! Demo data: enough to see every state, made through the same use cases and jobs as everything else.
//!
//! Invariant: only an empty service is filled, and only one that listens on a loopback address: the passwords are known
//! to everybody.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use coupon_core::{
    book::{self, Book, Settings},
    caller::{Access, Caller, Role, Scope},
    coupon::{
        Behalf, Origin,
        accept::{self, Assignment},
        list, lock, redeem,
    },
    db::{self, Db},
    import::{Mode, create::create_from_codes},
    job::{
        ledger,
        payload::Wanted,
        signals::{Signal, Signals},
        wait::Waiters,
    },
    user::{
        self, NewUser,
        api_key::{self, NewApiKey},
        password::Passwords,
    },
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{print, say};

const ADMIN: &str = "admin@example.com";
const HOLDER: &str = "user1@example.com";
/// Known to everybody: a demo listens on a loopback address only.
const PASSWORD: &str = "coupon-book-demo";
const USERS: usize = 25;
const CODES: usize = 10_000;
/// The book of the command that is printed: it has no limit per user, so the command works again and again.
const CARDS: &str = "Ten coffees";
const LOCK: i64 = 0x64_65_6d_6f; // "demo"
/// The jobs of the demo take a second or two; a machine on which they take longer starts with what is there.
const PATIENCE: Duration = Duration::from_secs(30);

/// Some good codes and some faults: the job ends as `partially_succeeded`, with errors to look at.
const WITH_FAULTS: &str = "WINTER-1,WINTER-2,winter 1,,WINTER-\u{2603},WINTER-2,WINTER-3";

/// What to tell the person who started it.
pub(crate) struct Demo {
    api_key: String,
    curl: Option<(Uuid, Uuid)>,
}

/// Fills an empty service; makes an API key for this run in any case.
pub(crate) async fn prepare(url: &str, signals: &Signals) -> anyhow::Result<Demo> {
    let db = Db::connect(url, db::Role::Worker, 3)?;
    let work = Work {
        waiters: Waiters::start(db.clone(), signals),
        signals: signals.clone(),
        until: Instant::now() + PATIENCE,
        db,
    };
    let prepared = work.prepare().await.context("the demo data could not be made");
    work.db.close().await;
    prepared
}

struct Work {
    db: Db,
    signals: Signals,
    waiters: Waiters,
    until: Instant,
}

impl Work {
    async fn prepare(&self) -> anyhow::Result<Demo> {
        let hash = Passwords::new().hash_new(PASSWORD, ADMIN, "Demo").await?;
        let mut tx = self.db.begin().await?;
        // One process fills, another that starts meanwhile waits and finds it filled.
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(LOCK)
            .execute(&mut *tx)
            .await?;
        let account = |email: String, name: String, role| NewUser {
            email,
            name,
            password_hash: Some(hash.clone()),
            role,
        };
        let admin = match user::find_by_email(&mut tx, ADMIN).await? {
            Some(admin) => admin,
            None => user::create(&mut tx, &account(ADMIN.into(), "Ada Admin".into(), Role::Admin)).await?,
        };
        let caller = person(admin.id, Role::Admin);
        let key = NewApiKey {
            name: "demo".to_owned(),
            scopes: vec![Scope::Manage],
            expires_at: None,
            miss_budget: None,
        };
        let (_, api_key) = api_key::create(&mut tx, &caller, &key).await?;
        let books = book::list(&mut tx, &caller, None, None, 100).await?.rows;
        if !books.is_empty() {
            let cards = books.iter().find(|book| book.settings.name == CARDS);
            let holder = user::find_by_email(&mut tx, HOLDER).await?;
            db::commit(tx).await?;
            let curl = cards.zip(holder).map(|(cards, holder)| (cards.id, holder.id));
            return Ok(Demo { api_key, curl });
        }
        let mut users = Vec::with_capacity(USERS);
        for n in 1..=USERS {
            let new = account(format!("user{n}@example.com"), format!("User {n}"), Role::User);
            users.push(user::create(&mut tx, &new).await?.id);
        }
        let origin = of(&caller);
        let summer = Settings {
            self_service: true,
            max_assignments_per_user: Some(5),
            lock_seconds: 3_600, // an hour, so that the lock below can be looked at
            ..Settings::named("Summer campaign")
        };
        let cards = Settings {
            redemptions_per_coupon: 10,
            require_lock: false,
            ..Settings::named(CARDS)
        };
        let winter = Settings {
            status: book::Status::Draft,
            ..Settings::named("Winter campaign")
        };
        let summer = book::insert(&mut tx, &summer, origin).await?;
        let cards = book::insert(&mut tx, &cards, origin).await?;
        let winter = book::insert(&mut tx, &winter, origin).await?;
        // 40 random bits each, as ten hexadecimal digits.
        let code = |prefix| format!("{prefix}-{:010X}", rand::random::<u64>() >> 24);
        let random = |prefix| (0..CODES / 2).map(|_| code(prefix)).collect();
        let faulty = WITH_FAULTS.split(',').map(str::to_owned).collect();
        let lists: [(&Book, Vec<String>); 3] = [
            (&summer, random("SUMMER")),
            (&cards, random("COFFEE")),
            (&winter, faulty),
        ];
        let mut imports = Vec::new();
        for (book, codes) in lists {
            let mode = Mode::default();
            imports.push(
                create_from_codes(&mut tx, book.id, &codes, mode, origin.actor, origin.request_id).await?,
            );
        }
        db::commit(tx).await?;
        // The codes come by jobs; only then is there something to give away.
        self.wait_for(&caller, &imports).await?;
        self.give_away(&caller, &summer, &users).await?;
        let curl = users.first().map(|user| (cards.id, *user));
        Ok(Demo { api_key, curl })
    }

    /// Ten people get two coupons each; the first redeems one, the second locks one.
    async fn give_away(&self, caller: &Caller, book: &Book, users: &[Uuid]) -> anyhow::Result<()> {
        let mut tx = self.db.begin().await?;
        let mut jobs = Vec::new();
        for user_id in users.iter().take(10) {
            let wanted = Wanted::Draw(2);
            let assignment = Assignment::new(caller, book.id, *user_id, wanted, of(caller));
            jobs.push(accept::accept(&mut tx, assignment).await?);
        }
        db::commit(tx).await?;
        self.wait_for(caller, &jobs).await?;
        let mut tx = self.db.begin().await?;
        for (place, user_id) in users.iter().take(2).enumerate() {
            let (behalf, holder) = (Behalf::Holder(*user_id), person(*user_id, Role::User));
            let held = list::list_of_holder(&mut tx, *user_id, None, Some(book.id), None, 1).await?;
            let Some((coupon, shown)) = held.rows.first() else {
                continue;
            };
            let lock = lock::lock(&mut tx, coupon, behalf, None, false, of(&holder)).await?;
            if place == 0 {
                let token = Some(lock.lock_token.as_str());
                redeem::redeem(
                    &mut tx,
                    coupon,
                    behalf,
                    token,
                    &shown.metadata,
                    false,
                    of(&holder),
                )
                .await?;
            }
        }
        Ok(db::commit(tx).await?)
    }

    /// Tells the workers and waits for the ends of jobs, as long as patience lasts.
    async fn wait_for(&self, caller: &Caller, jobs: &[Uuid]) -> anyhow::Result<()> {
        self.signals.ring(Signal::Due);
        for job_id in jobs {
            // The place among the waiters comes before the read, so that the end cannot fall in between.
            let waiter = self.waiters.enter(*job_id);
            let mut connection = self.db.pool().acquire().await?;
            let job = ledger::find(&mut connection, caller, *job_id).await?;
            drop(connection);
            if !job.state.is_final() {
                waiter
                    .ended(self.until.saturating_duration_since(Instant::now()))
                    .await;
            }
        }
        Ok(())
    }
}

fn person(id: Uuid, role: Role) -> Caller {
    let access = Access::User(role);
    Caller { id, access }
}

fn of(caller: &Caller) -> Origin<'static> {
    Origin {
        actor: caller.actor(),
        request_id: Some("demo"),
    }
}

impl Demo {
    /// Prints what a person needs to go on.
    pub(crate) fn explain(&self, address: SocketAddr) {
        let (url, key) = (format!("http://{address}"), &self.api_key);
        print(&format!(
            "\n  web       {url}/\n  API       {url}/v1\n  docs      {url}/docs\n  admin     {ADMIN}    password {PASSWORD}\n  user      {HOLDER}    password {PASSWORD}\n  API key   {key}"
        ));
        if let Some((book_id, user_id)) = self.curl {
            print(&format!(
                "\nAssign a coupon and wait for the job:\n\n  curl -sS {url}/v1/coupons/assign \\\n    -H 'X-Api-Key: {key}' \\\n    -H 'Content-Type: application/json' -H 'Prefer: wait=10' \\\n    -d '{{\"book_id\":\"{book_id}\",\"user_id\":\"{user_id}\"}}'\n\nEvery job, an import with errors among them:\n\n  curl -sS {url}/v1/jobs -H 'X-Api-Key: {key}'\n"
            ));
        }
        say("stop with Ctrl-C");
    }
}
