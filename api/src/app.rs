//! What every handler has at hand; made once per process.

use std::sync::Arc;

use coupon_core::{
    config::Settings,
    db::{Db, Role},
    error::StoreError,
    idempotency::Sealer,
    job::{depth::Depth, signals::Signals, wait::Waiters},
    metrics::{self, exposition::Exposition},
    user::{auth::Authenticator, budget::SecurityBudgets, password::Passwords, token::TokenKeys},
};

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
    authenticator: Authenticator,
    passwords: Passwords,
    sealer: Sealer,
    signals: Signals,
    waiters: Waiters,
    depth: Depth,
    exposition: Exposition,
    metrics_here: bool,
    budgets: SecurityBudgets,
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
            settings.database_connections.saturating_sub(till_size).max(2),
        )?;
        let till = Db::connect(url, Role::Api, till_size)?;
        metrics::watch_pool("api", &db);
        metrics::watch_pool("till", &till);
        let waiters = Waiters::start(db.clone(), &signals);
        Ok(Self {
            inner: Arc::new(Inner {
                sealer: Sealer::new(&keys.derive("idempotency-seal")),
                authenticator: Authenticator::new(db.clone(), keys),
                passwords: Passwords::new(),
                budgets: if settings.security_budgets.is_on() {
                    SecurityBudgets::On
                } else {
                    SecurityBudgets::Off
                },
                registration: settings.registration.is_on(),
                max_upload_bytes: settings.max_upload_bytes,
                depth: Depth::new(db.clone(), settings.queue_limit),
                exposition: Exposition::new(db.clone()),
                metrics_here: settings.metrics_listen.is_none(),
                db,
                till,
                signals,
                waiters,
            }),
        })
    }

    /// Connections for everything that has no others.
    pub fn db(&self) -> &Db {
        &self.inner.db
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
    }
}
