//! A database of its own for every test, made in tens of milliseconds from a migrated template.
//!
//! Invariant: a template is either complete or not used: it is marked as one only after its migrations, and
//! who finds an unmarked one makes it anew.
//!
//! `COUPONBOOK_TEST_DATABASE_URL` names the server to use (a role that may create databases); without it the
//! test processes share a throw-away server of their own (`testing/server.rs`).

mod server;

use std::fmt::Display;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{Connection as _, PgConnection};
use tokio::sync::OnceCell;

use crate::connect::{connect, execute};
use server::Server;

/// Databases of tests on a server of somebody else's are dropped after this, should their test have been killed.
const LEFT_AFTER: Duration = Duration::from_secs(3600);
/// For the drop of one database; a test must not hang on a server that is gone.
const DROPPED_WITHIN: Duration = Duration::from_secs(10);
const PREFIX: &str = "coupon_test_";

/// One server per process, so that its lock on the shared server lives as long as the process.
static SERVER: OnceCell<Server> = OnceCell::const_new();

/// A database of its own for one test; dropped with the value.
#[derive(Debug)]
pub struct TestDatabase {
    name: String,
    url: String,
    admin_url: String,
}

impl TestDatabase {
    /// Makes a database from the template of that name. The first caller, over all test processes, makes the
    /// template: `migrate` gets the URL of an empty database.
    ///
    /// `template` must name its contents, for example `coupon_<hash of the migrations>`; lower-case letters,
    /// digits and `_`, 50 at most.
    ///
    /// # Panics
    /// If there is no server, a migration fails or the database cannot be made: a test cannot go on.
    pub async fn create<F, Fut, E>(template: &str, migrate: F) -> Self
    where
        F: FnOnce(String) -> Fut,
        Fut: Future<Output = Result<(), E>>,
        E: Display,
    {
        assert!(
            template.len() <= 50
                && template
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "not a usable template name: {template}"
        );
        let server = SERVER.get_or_init(Server::find_or_start).await;
        match Self::try_create(server, template, migrate).await {
            Ok(database) => database,
            Err(error) => panic!("cannot make a test database on {}: {error}", server.shown()),
        }
    }

    async fn try_create<F, Fut, E>(server: &Server, template: &str, migrate: F) -> Result<Self, String>
    where
        F: FnOnce(String) -> Fut,
        Fut: Future<Output = Result<(), E>>,
        E: Display,
    {
        let admin_url = server.admin_url().to_owned();
        let mut admin = connect(&admin_url).await.map_err(|error| error.to_string())?;
        if !is_template(&mut admin, template)
            .await
            .map_err(|error| error.to_string())?
        {
            make_template(&mut admin, server, template, migrate).await?;
        }
        let name = unused_name();
        let create = format!("CREATE DATABASE {name} TEMPLATE {template} {}", server.strategy());
        execute(&mut admin, create)
            .await
            .map_err(|error| error.to_string())?;
        let _ = admin.close().await;
        Ok(Self {
            url: with_database(&admin_url, &name),
            name,
            admin_url,
        })
    }

    /// The URL of the database.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TestDatabase {
    /// Waits for the drop, since the process of a test often ends right after it; also where the test panicked.
    fn drop(&mut self) {
        let (name, admin_url) = (self.name.clone(), self.admin_url.clone());
        let drop_it = async move {
            let mut admin = connect(&admin_url).await?;
            execute(&mut admin, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await
        };
        // A thread of its own: inside a runtime no other one may be entered.
        let _ = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let _ = runtime.block_on(async { tokio::time::timeout(DROPPED_WITHIN, drop_it).await });
            std::io::Result::Ok(())
        })
        .join();
    }
}

async fn is_template(admin: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    let row = sqlx::query_scalar("SELECT datistemplate FROM pg_database WHERE datname = $1").bind(name);
    Ok(row.fetch_optional(admin).await?.unwrap_or(false))
}

async fn make_template<F, Fut, E>(
    admin: &mut PgConnection,
    server: &Server,
    template: &str,
    migrate: F,
) -> Result<(), String>
where
    F: FnOnce(String) -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Display,
{
    let text = |error: sqlx::Error| error.to_string();
    // Held by this session: it goes with us if we are killed.
    let lock = sqlx::query("SELECT pg_advisory_lock(hashtextextended('coupon-pg template ' || $1, 0))");
    lock.bind(template).execute(&mut *admin).await.map_err(text)?;
    if !is_template(admin, template).await.map_err(text)? {
        drop_left(admin).await.map_err(text)?;
        execute(admin, format!("DROP DATABASE IF EXISTS {template} WITH (FORCE)"))
            .await
            .map_err(text)?;
        execute(admin, format!("CREATE DATABASE {template} {}", server.strategy()))
            .await
            .map_err(text)?;
        let migrated = migrate(with_database(server.admin_url(), template)).await;
        migrated.map_err(|error| format!("the migrations of {template} fail: {error}"))?;
        // A template with a connection in it cannot be copied; a pool may still be closing its own.
        let alone = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1";
        sqlx::query(alone)
            .bind(template)
            .execute(&mut *admin)
            .await
            .map_err(text)?;
        let seal = format!("ALTER DATABASE {template} WITH IS_TEMPLATE true ALLOW_CONNECTIONS false");
        execute(admin, seal).await.map_err(text)?;
    }
    let unlock = sqlx::query("SELECT pg_advisory_unlock(hashtextextended('coupon-pg template ' || $1, 0))");
    unlock.bind(template).execute(&mut *admin).await.map_err(text)?;
    Ok(())
}

/// Drops databases of tests that were killed long ago. (The server of our own is wiped at each of its starts.)
async fn drop_left(admin: &mut PgConnection) -> sqlx::Result<()> {
    let names = sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE starts_with(datname, $1)");
    let names: Vec<String> = names.bind(PREFIX).fetch_all(&mut *admin).await?;
    for name in names
        .iter()
        .filter(|name| born(name).is_some_and(|born| born + LEFT_AFTER < since_1970()))
    {
        // Not by force: one that is in use is nobody's leftover.
        if let Err(error) = execute(admin, format!("DROP DATABASE IF EXISTS {name}")).await {
            tracing::debug!(%name, %error, "an old test database stays");
        }
    }
    Ok(())
}

/// A name that says when it was made: `coupon_test_<seconds since 1970>_<process>_<number>`.
fn unused_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!(
        "{PREFIX}{}_{}_{number}",
        since_1970().as_secs(),
        std::process::id()
    )
}

fn born(name: &str) -> Option<Duration> {
    let rest = name.strip_prefix(PREFIX)?;
    if !rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_') {
        return None; // somebody else's
    }
    rest.split('_').next()?.parse().ok().map(Duration::from_secs)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The same server, another database.
fn with_database(url: &str, database: &str) -> String {
    let (address, query) = url
        .split_once('?')
        .map_or((url, None), |(address, query)| (address, Some(query)));
    let host_at = address.find("://").map_or(0, |at| at + 3);
    let server = address[host_at..]
        .find('/')
        .map_or(address, |at| &address[..host_at + at]);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{server}/{database}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_a_url_is_replaced_and_nothing_else() {
        for (url, expected) in [
            (
                "postgres://u:p@h:1/old?host=/a/b",
                "postgres://u:p@h:1/new?host=/a/b",
            ),
            ("postgres://u@h/old", "postgres://u@h/new"),
            ("postgres://h", "postgres://h/new"),
            (
                "postgresql://h/?sslmode=require",
                "postgresql://h/new?sslmode=require",
            ),
        ] {
            assert_eq!(with_database(url, "new"), expected);
        }
    }

    #[test]
    fn only_our_own_names_are_ever_dropped() {
        assert!(born(&unused_name()).is_some());
        assert_eq!(
            born("coupon_test_1700000000_12_0"),
            Some(Duration::from_secs(1_700_000_000))
        );
        assert_eq!(born("coupon_test_data"), None);
        assert_eq!(born("coupon_test_1; drop"), None);
        assert_eq!(born("customers"), None);
    }
}
