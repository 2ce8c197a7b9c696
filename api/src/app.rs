//! What every handler has at hand; made once per process.

use std::sync::Arc;

use coupon_core::{
    config::Settings,
    coupon::locate::{self, InBook, Located},
    db::{Db, Role},
    error::StoreError,
    group::Group,
    idempotency::Sealer,
    job::{Job, depth::Depth, ledger, signals::Signals, wait::Waiters},
    metrics::{self, exposition::Exposition},
    user::{self, auth::Authenticator, budget::SecurityBudgets, password::Passwords, token::TokenKeys},
};

use sqlx::{Postgres, pool::PoolConnection};
use uuid::Uuid;

use crate::{intake::Intake, rate_limit::RateLimiter};

/// Connections for what callers look up in groups: one group of each sort is under way at a time. They have connections of
/// their own, so that none waits for a connection that another of the same request holds.
const SHARED_LOOKS: u32 = 7; // sessions, keys, jobs, coupons, holders, accepted assignments, and the ends that are waited for

/// The share of connections that locks and redemptions have to themselves: a shopper waits for them.
const TILL_SHARE: u32 = 3;

/// What handlers share; clones are cheap.
#[derive(Debug, Clone)]
pub struct App {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: Db,
    till: Db,
    looks: Db,
    authenticator: Authenticator,
    passwords: Passwords,
    sealer: Sealer,
    signals: Signals,
    waiters: Waiters,
    jobs: Group<Uuid, Option<Job>>,
    intake: Intake,
    coupons: Group<InBook, Option<Located>>,
    disabled: Group<Uuid, bool>,
    depth: Depth,
    exposition: Exposition,
    metrics_here: bool,
    budgets: SecurityBudgets,
    rate_limiter: RateLimiter,
    registration: bool,
    max_upload_bytes: u64,
}

impl App {
    /// Prepares pools on `url`; nothing is connected before the first request.
    ///
    /// # Errors
    /// When `url` is not a PostgreSQL connection URL.
    pub fn new(
        url: &str,
        settings: &Settings,
        keys: TokenKeys,
        signals: Signals,
    ) -> Result<Self, StoreError> {
        let till_size = (settings.database_connections / TILL_SHARE).max(2);
        let db = Db::connect(
            url,
            Role::Api,
            settings
                .database_connections
                .saturating_sub(till_size + SHARED_LOOKS)
                .max(2),
        )?;
        let till = Db::connect(url, Role::Api, till_size)?;
        let looks = Db::connect(url, Role::Look, SHARED_LOOKS)?;
        metrics::watch_pool("api", &db);
        metrics::watch_pool("till", &till);
        metrics::watch_pool("looks", &looks);
        let waiters = Waiters::start(looks.clone(), &signals);
        let (of_jobs, of_users, of_coupons) = (looks.clone(), looks.clone(), looks.clone());
        Ok(Self {
            inner: Arc::new(Inner {
                sealer: Sealer::new(&keys.derive("idempotency-seal")),
                authenticator: Authenticator::new(looks.clone(), keys),
                passwords: Passwords::new(),
                budgets: if settings.security_budgets.is_on() {
                    SecurityBudgets::On
                } else {
                    SecurityBudgets::Off
                },
                rate_limiter: RateLimiter::new(settings.rate_limits),
                registration: settings.registration.is_on(),
                max_upload_bytes: settings.max_upload_bytes,
                depth: Depth::new(db.clone(), settings.queue_limit),
                jobs: Group::start(move |ids| ledger::find_all(of_jobs.clone(), ids)),
                intake: Intake::start(looks.clone(), signals.clone()),
                coupons: Group::start(move |asked| locate::in_books(of_coupons.clone(), asked)),
                disabled: Group::start(move |users| user::are_disabled(of_users.clone(), users)),
                exposition: Exposition::new(db.clone()),
                metrics_here: settings.metrics_listen.is_none(),
                db,
                till,
                looks,
                signals,
                waiters,
            }),
        })
    }

    /// Connections for everything that has no others.
    pub fn db(&self) -> &Db {
        &self.inner.db
    }

    /// One of them, for single statements that are a transaction of their own.
    ///
    /// # Errors
    /// When none can be had.
    pub async fn connection(&self) -> Result<PoolConnection<Postgres>, StoreError> {
        Ok(self.db().pool().acquire().await?)
    }

    /// Connections for locks and redemptions.
    pub fn till(&self) -> &Db {
        &self.inner.till
    }

    /// Tells who calls.
    pub fn authenticator(&self) -> &Authenticator {
        &self.inner.authenticator
    }

    /// Hashes passwords, a few at a time.
    pub fn passwords(&self) -> &Passwords {
        &self.inner.passwords
    }

    /// Seals stored answers.
    pub fn sealer(&self) -> &Sealer {
        &self.inner.sealer
    }

    /// The bell between processes.
    pub fn signals(&self) -> &Signals {
        &self.inner.signals
    }

    /// Those who wait for jobs.
    pub fn waiters(&self) -> &Waiters {
        &self.inner.waiters
    }

    /// Jobs as they are now, whoever asked for them; those who poll at the same time share a look.
    pub fn jobs(&self) -> &Group<Uuid, Option<Job>> {
        &self.inner.jobs
    }

    /// The intake of assignments.
    pub fn intake(&self) -> &Intake {
        &self.inner.intake
    }

    /// Coupons by code and book.
    pub fn coupons(&self) -> &Group<InBook, Option<Located>> {
        &self.inner.coupons
    }

    /// Whether accounts are disabled now.
    pub fn disabled(&self) -> &Group<Uuid, bool> {
        &self.inner.disabled
    }

    /// How deep the queues are.
    pub fn depth(&self) -> &Depth {
        &self.inner.depth
    }

    /// What /metrics tells.
    pub fn exposition(&self) -> &Exposition {
        &self.inner.exposition
    }

    /// Whether /metrics is answered here, and not on a listener of its own.
    pub fn metrics_here(&self) -> bool {
        self.inner.metrics_here
    }

    /// Whether guessing is throttled.
    pub fn budgets(&self) -> SecurityBudgets {
        self.inner.budgets
    }

    /// How often everybody has asked lately.
    pub fn rate_limiter(&self) -> &RateLimiter {
        &self.inner.rate_limiter
    }

    /// Whether strangers may make accounts.
    pub fn registration(&self) -> bool {
        self.inner.registration
    }

    /// The most bytes of an upload's text.
    pub fn max_upload_bytes(&self) -> u64 {
        self.inner.max_upload_bytes
    }

    /// Closes the pools.
    pub async fn close(&self) {
        self.inner.db.close().await;
        self.inner.till.close().await;
        self.inner.looks.close().await;
    }
}
