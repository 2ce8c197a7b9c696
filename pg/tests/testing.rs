//! The databases of tests, on a real server.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coupon_pg::testing::TestDatabase;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};

async fn connect(url: &str) -> sqlx::Result<PgConnection> {
    PgConnection::connect_with(&PgConnectOptions::from_str(url)?).await
}

async fn migrate(url: String) -> sqlx::Result<()> {
    let mut connection = connect(&url).await?;
    sqlx::raw_sql("CREATE TABLE counted (n bigint); INSERT INTO counted VALUES (1)")
        .execute(&mut connection)
        .await
        .map(drop)
}

async fn count(url: &str) -> i64 {
    let mut connection = connect(url).await.expect("a connection");
    sqlx::query_scalar("SELECT count(*) FROM counted")
        .fetch_one(&mut connection)
        .await
        .expect("a count")
}

/// A template that no earlier run has made.
fn fresh(purpose: &str) -> String {
    let nanoseconds = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_nanos());
    format!("pg_{purpose}_{}_{nanoseconds}", std::process::id())
}

#[tokio::test]
async fn every_test_has_a_database_of_its_own() {
    let one = TestDatabase::create("pg_counted_v1", migrate).await;
    let other = TestDatabase::create("pg_counted_v1", migrate).await;
    let mut connection = connect(one.url()).await.expect("a connection");
    sqlx::query("INSERT INTO counted VALUES (2)")
        .execute(&mut connection)
        .await
        .expect("inserted");
    assert_eq!(count(one.url()).await, 2);
    assert_eq!(count(other.url()).await, 1);
}

#[tokio::test]
async fn a_database_goes_with_its_value_even_while_it_is_in_use() {
    let database = TestDatabase::create("pg_counted_v1", migrate).await;
    let url = database.url().to_owned();
    let _still_open = connect(&url).await.expect("a connection");
    drop(database);
    let error = connect(&url).await.expect_err("it is gone").to_string();
    assert!(error.contains("does not exist"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_made_once_however_many_ask_at_once() {
    let template = fresh("once");
    let made = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (template, made) = (template.clone(), Arc::clone(&made));
            tokio::spawn(async move {
                let migrate_once = |url| async move {
                    made.fetch_add(1, Ordering::SeqCst);
                    migrate(url).await
                };
                let database = TestDatabase::create(&template, migrate_once).await;
                count(database.url()).await
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.expect("made"), 1);
    }
    assert_eq!(made.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_template_whose_migration_failed_half_way_is_made_anew() {
    let template = fresh("half");
    let half = |url: String| async move {
        migrate(url).await.map_err(|error| error.to_string())?;
        Err::<(), _>("the second migration is wrong".to_owned())
    };
    let failed = tokio::spawn({
        let template = template.clone();
        async move { drop(TestDatabase::create(&template, half).await) }
    });
    let panic = failed
        .await
        .expect_err("a failed migration fails the test")
        .into_panic();
    let message = AssertUnwindSafe(panic)
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_default();
    assert!(message.contains("the second migration is wrong"), "{message}");

    let database = TestDatabase::create(&template, migrate).await;
    assert_eq!(count(database.url()).await, 1);
}

#[tokio::test]
async fn a_migration_may_leave_its_connection_open() {
    let kept = Arc::new(std::sync::Mutex::new(None));
    let migrate = |url: String| {
        let kept = Arc::clone(&kept);
        async move {
            let connection = connect(&url).await.expect("a connection");
            *kept.lock().expect("not poisoned") = Some(connection);
            Ok::<(), Infallible>(())
        }
    };
    let database = TestDatabase::create(&fresh("open"), migrate).await;
    connect(database.url()).await.expect("a connection");
}

/// Run as another user, who has a shared server of their own: nobody else's tests keep it.
#[tokio::test]
async fn the_shared_server_leaves_after_its_last_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let copy = dir.path().join("tests"); // the build directory may be closed to other users
    fs::copy(std::env::current_exe().expect("this program"), &copy).expect("copied");
    let status = Command::new("runuser")
        .env_remove("COUPONBOOK_TEST_DATABASE_URL")
        .args(["-u", "nobody", "--"])
        .arg(copy)
        .args(["--exact", "every_test_has_a_database_of_its_own"])
        .stdout(Stdio::null())
        .status()
        .expect("runuser runs");
    assert!(status.success(), "tests run for an ordinary user");

    let server = fs::read_to_string("/tmp/couponbook-test-65534/usable").expect("it was started");
    let server = PathBuf::from(format!("/proc/{}", server.trim()));
    assert!(server.exists(), "it outlives the process that started it");
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.exists() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!server.exists(), "it leaves by itself");
}
