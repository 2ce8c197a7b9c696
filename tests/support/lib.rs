//! What the tests of the whole service stand on: a database of its own for each, the service in this process on a real
//! socket, or the real binary in processes of its own.
//!
//! Invariant: nothing here waits for a fixed time. What is awaited is a job's end, a line of output or a condition, each
//! with a bound after which the test fails and says what it saw.

pub mod cutter;
pub mod document;
pub mod history;
pub mod http;
pub mod process;
pub mod seed;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use coupon_api::{
    App,
    server::{Limits, Server},
};
use coupon_core::{
    caller::Role as UserRole,
    config::Settings,
    db::{self, Db, Role},
    job::{Queue, signals::Signals},
    retention::Retention,
    user::token::TokenKeys,
};
use coupon_pg::testing::TestDatabase;
use coupon_worker::Workers;
use tokio::{sync::oneshot, task::JoinHandle};
use uuid::Uuid;

pub use http::Client;

/// The signing secret of tests.
pub const SECRET: &str = "a secret of tests, long enough for HMAC-SHA-256";

/// How large a test of faults is: `short` in `./x test`, `full` in `./x crash`, which sets `COUPONBOOK_FULL`.
pub fn size<T>(short: T, full: T) -> T {
    if std::env::var_os("COUPONBOOK_FULL").is_some() {
        full
    } else {
        short
    }
}

/// An empty, migrated database.
pub async fn database() -> TestDatabase {
    let template = format!("couponbook_{}", db::schema_fingerprint());
    TestDatabase::create(&template, |url| async move {
        db::migrate(&url, Duration::from_secs(60)).await
    })
    .await
}

/// The same with a pool on it; the database goes when the first of the two does.
pub async fn fresh() -> (TestDatabase, Db) {
    let database = database().await;
    let db = Db::connect(database.url(), Role::Worker, 30).expect("a URL");
    (database, db)
}

/// Raises the number of files that this process may open to what the system grants: a thousand clients and the server
/// that they talk to live in it, and many systems begin with 1,024.
fn allow_many_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("the limit within its bound");
}

/// The service in this process: API on a real socket, workers, a database of its own.
pub struct Service {
    /// The database.
    pub database: TestDatabase,
    /// A pool for looking at the truth.
    pub db: Db,
    /// Where it listens, `http://127.0.0.1:…`.
    pub url: String,
    /// What its handlers share.
    pub app: App,
    signals: Signals,
    workers: Option<Workers>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<usize>,
}

impl Service {
    /// API and workers.
    pub async fn start() -> Self {
        let mut service = Self::without_workers().await;
        service.start_workers();
        service
    }

    /// API only: jobs stay queued until [`Service::start_workers`].
    pub async fn without_workers() -> Self {
        Self::with(Settings {
            security_budgets: coupon_core::config::Switch::Off,
            rate_limits: coupon_core::rate_limit::RateLimits::OFF,
            registration: coupon_core::config::Switch::On,
            ..Settings::default()
        })
        .await
    }

    /// API only, with these settings.
    pub async fn with(settings: Settings) -> Self {
        allow_many_connections();
        let database = database().await;
        let url = database.url().to_owned();
        let signals = Signals::start(&url).expect("a URL");
        let keys = TokenKeys::new(SECRET.as_bytes()).expect("long enough");
        let app = App::new(&url, &settings, keys, signals.clone()).expect("a URL");
        let server = Server::bind("127.0.0.1:0", Limits::default())
            .await
            .expect("a free port");
        let address = server.local_addr().expect("bound");
        let endpoint = coupon_api::application(app.clone(), Arc::new(AtomicBool::new(false)));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(server.serve(endpoint, async move {
            let _ = stopped.await;
        }));
        let db = Db::connect(&url, Role::Worker, 4).expect("a URL");
        Self {
            database,
            db,
            url: format!("http://{address}"),
            app,
            signals,
            workers: None,
            stop: Some(stop),
            server,
        }
    }

    /// Starts workers for all queues.
    pub fn start_workers(&mut self) {
        let workers = Workers::start(
            self.database.url(),
            &Queue::ALL,
            &self.signals,
            Retention::default(),
        )
        .expect("a URL");
        self.workers = Some(workers);
    }

    /// The same, whose steps may take no longer than this.
    pub fn start_workers_with(&mut self, step_patience: Duration) {
        let workers = Workers::start_with(
            self.database.url(),
            &Queue::ALL,
            &self.signals,
            Retention::default(),
            step_patience,
        )
        .expect("a URL");
        self.workers = Some(workers);
    }

    /// Ends the workers as SIGTERM would.
    pub async fn stop_workers(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.drain(Duration::from_secs(20)).await;
        }
    }

    /// Ends everything in order; fails when a connection had to be cut.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        self.stop_workers().await;
        self.server.await.expect("the server ends");
        self.app.close().await;
    }

    /// A client that is nobody.
    pub fn nobody(&self) -> Client {
        Client::new(&self.url)
    }

    /// A client with a new account's bearer token; gives the account's id, too.
    pub async fn user(&self, role: UserRole) -> (Client, Uuid) {
        let user_id = seed::user(&self.db, role).await;
        let mut tx = self.db.begin().await.expect("a transaction");
        let session =
            coupon_core::user::session::open(&mut tx, self.app.authenticator().keys(), user_id, None)
                .await
                .expect("a session")
                .expect("an enabled account");
        db::commit(tx).await.expect("committed");
        (self.nobody().bearer(&session.access_token), user_id)
    }

    /// A client that is a new administrator.
    pub async fn admin(&self) -> Client {
        self.user(UserRole::Admin).await.0
    }
}
