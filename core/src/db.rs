//! The way to the database: pools with bounded sessions, and the one way to begin a transaction.
//!
//! Invariant: no connection goes back to a pool inside a transaction that sqlx does not know of. [`Db::begin`]
//! awaits its BEGIN in a task of its own, so a caller that is dropped half-way cannot leave one behind; clippy.toml bans
//! every other `begin`.

use std::{str::FromStr, time::Duration};

use apalis_postgres::PostgresStorage;
use sqlx::{
    Connection, PgConnection, PgPool, Postgres, Transaction,
    migrate::{Migrate, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::error::StoreError;

/// An open transaction; dropped without a commit it is rolled back.
pub type Tx = Transaction<'static, Postgres>;

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The advisory lock that one migrator at a time holds ("coupon" in ASCII).
const MIGRATION_LOCK: i64 = 0x636f_7570_6f6e;

/// A connection that has been idle for longer is asked whether it still lives before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// What a pool is for: it decides how long its statements and locks may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Requests that a person waits for: statements 3 s, locks 1 s.
    Api,
    /// The same for the few statements that many requests share: planned once for each connection.
    Look,
    /// Jobs: statements 30 s, locks 5 s.
    Worker,
    /// The same for assignments, whose few statements are planned once for each connection.
    Assigner,
}

impl Role {
    fn session(self) -> [(&'static str, &'static str); 7] {
        let (statement, lock) = match self {
            Self::Api | Self::Look => ("3s", "1s"),
            Self::Worker | Self::Assigner => ("30s", "5s"),
        };
        // A short list of ids looks cheaper to the planner each time than a list of unknown length, so that it plans each
        // time, which takes longer than the look itself.
        let plans = match self {
            Self::Look | Self::Assigner => "force_generic_plan",
            Self::Api | Self::Worker => "auto",
        };
        [
            ("plan_cache_mode", plans),
            ("statement_timeout", statement),
            ("lock_timeout", lock),
            ("idle_in_transaction_session_timeout", "10s"),
            // A process that was killed in the middle of a statement holds its locks no longer than this.
            ("client_connection_check_interval", "1s"),
            ("timezone", "UTC"),
            ("jit", "off"),
        ]
    }

    /// How long to wait for a connection. A request takes its place in the queue of the pool a few times: a burst of a
    /// thousand must get through each time, or late requests are given up that have had their effect.
    fn patience(self) -> Duration {
        match self {
            Self::Api | Self::Look => Duration::from_secs(10),
            Self::Worker | Self::Assigner => Duration::from_secs(3),
        }
    }

    fn application_name(self) -> &'static str {
        match self {
            Self::Api | Self::Look => "couponbook-api",
            Self::Worker | Self::Assigner => "couponbook-worker",
        }
    }
}

/// A pool of connections.
#[derive(Debug, Clone)]
pub struct Db {
    pool: PgPool,
}

impl Db {
    /// Prepares a pool of at most `size` connections; the first is opened when it is needed.
    ///
    /// # Errors
    /// When `url` is not a PostgreSQL connection URL.
    pub fn connect(url: &str, role: Role, size: u32) -> Result<Self, StoreError> {
        Self::connect_as(url, role, size, role.application_name())
    }

    /// The same; the server shows the connections under a name of their own, of at most 63 bytes.
    ///
    /// # Errors
    /// When `url` is not a PostgreSQL connection URL.
    pub fn connect_as(url: &str, role: Role, size: u32, name: &str) -> Result<Self, StoreError> {
        let options = connect_options(url)?
            .application_name(name)
            .options(role.session());
        let pool = PgPoolOptions::new()
            .max_connections(size)
            .acquire_timeout(role.patience())
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move { Ok(meta.idle_for < TRUSTED_IDLE || connection.ping().await.is_ok()) })
            })
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    /// Begins a transaction. Safe to cancel at any moment.
    ///
    /// # Errors
    /// When no connection can be had.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        let pool = self.pool.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place; the task cannot be cancelled half-way"
        )]
        let begun = tokio::spawn(async move { pool.begin().await }).await;
        match begun {
            Ok(result) => Ok(result?),
            Err(_) => Err(sqlx::Error::WorkerCrashed.into()),
        }
    }

    /// The pool, for single statements that are a transaction of their own.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Closes every connection, waiting for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn connect_options(url: &str) -> Result<PgConnectOptions, StoreError> {
    Ok(PgConnectOptions::from_str(url)?)
}

/// Commits.
///
/// # Errors
/// When the commit failed, or its answer was lost: then the effect must be looked up by its key, never repeated blindly.
pub async fn commit(tx: Tx) -> Result<(), StoreError> {
    Ok(tx.commit().await?)
}

/// Whether an error of [`migrate`] can pass by itself.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database cannot be reached or refused a statement.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A migration failed, or the database has been migrated by a newer version.
    #[error("the schema cannot be brought up to date: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// The queue's own schema cannot be laid down.
    #[error("the queue's schema cannot be brought up to date: {0}")]
    Queue(String),
    /// Another process has been migrating for longer than one waits.
    #[error("another process is migrating this database and has not finished within {0:?}")]
    Busy(Duration),
}

/// Brings the schema up to date, the queue's first, then ours. One migrator at a time: the others wait up to
/// `patience`, by trying a lock and never by blocking inside a transaction (a blocked session would deadlock with
/// `CREATE INDEX CONCURRENTLY`).
///
/// # Errors
/// See [`MigrateError`].
pub async fn migrate(url: &str, patience: Duration) -> Result<(), MigrateError> {
    let options = connect_options(url)?.application_name("couponbook-migrate");
    let mut guard = PgConnection::connect_with(&options)
        .await
        .map_err(StoreError::from)?;
    let deadline = tokio::time::Instant::now() + patience;
    while !sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_lock($1)")
        .bind(MIGRATION_LOCK)
        .fetch_one(&mut guard)
        .await
        .map_err(StoreError::from)?
    {
        if tokio::time::Instant::now() > deadline {
            return Err(MigrateError::Busy(patience));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options.options([("lock_timeout", "5s")]))
        .await
        .map_err(StoreError::from)?;
    let migrated = async {
        PostgresStorage::<()>::setup(&pool)
            .await
            .map_err(|error| MigrateError::Queue(error.to_string()))?;
        let mut connection = pool.acquire().await.map_err(StoreError::from)?;
        connection.ensure_migrations_table(&MIGRATIONS.table_name).await?;
        MIGRATIONS.run(&mut *connection).await?;
        Ok(())
    }
    .await;
    pool.close().await;
    // Closing the session gives the lock back.
    guard.close().await.map_err(StoreError::from)?;
    migrated
}

/// The versions of this binary's migrations that the database lacks.
///
/// # Errors
/// When the database cannot be asked.
pub async fn pending_migrations(db: &Db) -> Result<usize, StoreError> {
    let known: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(db.pool())
        .await?;
    if !known {
        return Ok(MIGRATIONS.iter().count());
    }
    let applied: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
        .fetch_all(db.pool())
        .await?;
    Ok(MIGRATIONS
        .iter()
        .filter(|migration| !applied.contains(&migration.version))
        .count())
}

/// A name that changes with every change of a migration, for databases made from a template.
pub fn schema_fingerprint() -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for migration in MIGRATIONS.iter() {
        hash.update(migration.version.to_be_bytes());
        hash.update(&migration.checksum);
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
