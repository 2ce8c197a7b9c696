//! What `couponbook doctor` asks the database: is it the right one, is it safe, does somebody work.
//!
//! Invariant: nothing is changed, and every question is answered along an index or from the server's own views.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{error::Result, id};

/// The server.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Server {
    /// `server_version_num`, such as 170002.
    pub version: i32,
    /// The same for people.
    pub version_text: String,
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// Whether commits outlive a crash: `fsync`, `full_page_writes`, `synchronous_commit`.
    pub fsync: String,
    /// See [`Server::fsync`].
    pub full_page_writes: String,
    /// See [`Server::fsync`].
    pub synchronous_commit: String,
    /// Connections that it takes.
    pub max_connections: i64,
    /// Connections that are open.
    pub connections: i64,
    /// Whether it only reads (a standby).
    pub read_only: bool,
    /// Bytes of this database.
    pub bytes: i64,
    /// Seconds since the oldest transaction of anybody began; rows that it can see are kept from being tidied up.
    pub oldest_transaction: Option<f64>,
    /// Seconds since the oldest prepared transaction was prepared: it holds locks until somebody ends it.
    pub oldest_prepared: Option<f64>,
    /// Open connections of `worker` processes, as far as this role may see them.
    pub worker_connections: i64,
    /// Whether the queue's and the service's tables are there.
    pub has_schema: bool,
}

/// Asks about the server.
///
/// # Errors
/// When the database fails.
pub async fn server(connection: &mut PgConnection) -> Result<Server> {
    Ok(sqlx::query_as(
        "SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS version_text,
                clock_timestamp() AS now, current_setting('fsync') AS fsync,
                current_setting('full_page_writes') AS full_page_writes,
                current_setting('synchronous_commit') AS synchronous_commit,
                current_setting('max_connections')::bigint AS max_connections,
                (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
                pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool AS read_only,
                pg_database_size(current_database()) AS bytes,
                (SELECT extract(epoch FROM now() - min(xact_start))::float8 FROM pg_stat_activity
                 WHERE datname = current_database() AND backend_type = 'client backend') AS oldest_transaction,
                (SELECT extract(epoch FROM now() - min(prepared))::float8 FROM pg_prepared_xacts
                 WHERE database = current_database()) AS oldest_prepared,
                (SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'couponbook-worker') AS worker_connections,
                to_regclass('public.jobs') IS NOT NULL AND to_regclass('apalis.jobs') IS NOT NULL AS has_schema",
    )
    .fetch_one(connection)
    .await?)
}

/// What waits in one queue.
#[derive(Debug, Clone)]
pub struct Due {
    /// The queue.
    pub queue: String,
    /// Rows that are due.
    pub rows: i64,
    /// Since when the oldest of them has been.
    pub since: DateTime<Utc>,
}

/// A queue, its due rows, the oldest id among fresh rows, and the oldest time among steps.
type DueRow = (String, i64, Option<String>, Option<DateTime<Utc>>);

/// The service's work.
#[derive(Debug, Clone)]
pub struct Work {
    /// Queues in which something waits.
    pub due: Vec<Due>,
    /// The last tick that a worker took.
    pub last_tick: Option<DateTime<Utc>>,
    /// Whether an administrator can log in.
    pub has_admin: bool,
}

/// Asks about the service's work.
///
/// # Errors
/// When the database fails.
pub async fn work(connection: &mut PgConnection) -> Result<Work> {
    // A fresh row is due from the beginning of time and its id tells when it came; a step has its own time.
    let rows: Vec<DueRow> = sqlx::query_as(
        "SELECT job_type, count(*), min(id) FILTER (WHERE run_at <= 'epoch'), min(run_at) FILTER (WHERE run_at > 'epoch')
         FROM apalis.jobs WHERE run_at <= now() GROUP BY job_type ORDER BY job_type",
    )
    .fetch_all(&mut *connection)
    .await?;
    let due = rows.into_iter().filter_map(|(queue, rows, oldest, since)| {
        let oldest = oldest.as_deref().and_then(id::from_ulid_text).and_then(id::time);
        let since = oldest.into_iter().chain(since).min()?;
        Some(Due { queue, rows, since })
    });
    let due = due.collect();
    let (last_tick, has_admin) = sqlx::query_as(
        "SELECT (SELECT max(tick) FROM ticks WHERE schedule = 'sweep-locks'),
                EXISTS (SELECT FROM users WHERE role = 'admin' AND disabled_at IS NULL)",
    )
    .fetch_one(connection)
    .await?;
    Ok(Work {
        due,
        last_tick,
        has_admin,
    })
}
