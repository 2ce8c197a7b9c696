//! The binary as an operator meets it: migrations, readiness, `up`, settings, administration.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Stdio, time::Duration};

use coupon_pg::{Embedded, Options, testing::TestDatabase};
use coupon_tests::{
    Client, SECRET,
    process::{Process, command},
};
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::truth;

/// A database without any table.
pub(crate) async fn empty_database() -> TestDatabase {
    TestDatabase::create("couponbook_empty", |_| async { Ok::<(), String>(()) }).await
}

/// Runs the binary to its end: exit code, stdout, stderr.
async fn run(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> (Option<i32>, String, String) {
    let mut child = command(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    let _ = stdin.write_all(input.as_bytes()).await; // who does not read it may have ended
    drop(stdin);
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output());
    let output = ended.await.expect("it ends").expect("waited");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A directory that the account of a private server can pass through.
fn data_dir() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    dir
}

/// The server processes whose command line names a directory.
pub(crate) fn servers_in(dir: &Path) -> Vec<String> {
    let dir = dir.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&dir) && line.contains("postgres") && !line.contains("couponbook up") {
            found.push(line);
        }
    }
    found
}

/// Opens the private database of a service that does not run and counts its accounts with an address.
async fn accounts(data_dir: &Path, email: &str) -> i64 {
    let server = Embedded::start(Options {
        data_dir: data_dir.join("postgres"),
        durable: true,
        settings: Vec::new(),
        bin_dir: None,
    })
    .await
    .expect("a server");
    let pool = PgPool::connect(&server.url()).await.expect("a connection");
    let count = sqlx::query_scalar("SELECT count(*) FROM users WHERE email = $1")
        .bind(email)
        .fetch_one(&pool)
        .await
        .unwrap();
    pool.close().await;
    server.stop().await;
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn five_that_migrate_at_once_all_succeed() {
    let database = empty_database().await;
    let environment = [("COUPONBOOK_DATABASE_URL", database.url())];
    let one = || run(&["migrate"], &environment, "");
    let (a, b, c, d, e) = tokio::join!(one(), one(), one(), one(), one());
    for (code, _, stderr) in [a, b, c, d, e] {
        assert_eq!(code, Some(0), "{stderr}");
    }
    let (code, _, stderr) = one().await;
    assert_eq!(code, Some(0), "once more: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_is_ready_only_once_its_database_is_migrated() {
    let database = empty_database().await;
    let api = Process::api(database.url()).await;
    let client = Client::new(&api.url());
    client.get("/livez").await.expect(200);
    client.get("/readyz").await.refused(503, "unavailable");
    let (code, _, stderr) = run(&["migrate"], &[("COUPONBOOK_DATABASE_URL", database.url())], "").await;
    assert_eq!(code, Some(0), "{stderr}");
    client.get("/readyz").await.expect(200);
    assert_eq!(api.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_a_database_that_is_not_migrated_yet() {
    let database = empty_database().await;
    let worker = Process::worker(database.url()).await;
    let (code, _, stderr) = run(&["migrate"], &[("COUPONBOOK_DATABASE_URL", database.url())], "").await;
    assert_eq!(code, Some(0), "{stderr}");
    let pool = PgPool::connect(database.url()).await.unwrap();
    // Its clocks write ticks as soon as they can.
    truth::until(&pool, "it works", "SELECT EXISTS (SELECT FROM ticks)").await;
    assert_eq!(worker.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn up_keeps_its_data_over_an_end_and_over_a_kill_and_leaves_no_server_behind() {
    let dir = data_dir();
    let path = dir.path().to_string_lossy().into_owned();
    let up = ["up", "--data-dir", &path, "--listen", "127.0.0.1:0"];
    let first = Process::start(
        &up,
        &[
            ("COUPONBOOK_ADMIN_EMAIL", "first@example.com"),
            ("COUPONBOOK_ADMIN_PASSWORD", "a password that nobody guesses"),
        ],
    )
    .await;
    Client::new(&first.url()).get("/readyz").await.expect(200);
    let secret = fs::read(dir.path().join("token_secret")).expect("kept");
    assert!(
        !servers_in(dir.path()).is_empty(),
        "this test looks in the wrong place"
    );
    assert_eq!(first.terminate().await.code(), Some(0));
    assert_eq!(servers_in(dir.path()), Vec::<String>::new());
    assert_eq!(accounts(dir.path(), "first@example.com").await, 1);

    let second = Process::start(&up, &[]).await;
    Client::new(&second.url()).get("/readyz").await.expect(200);
    second.kill().await;
    // Its server ends by itself; the next start does not even wait for that.
    let third = Process::start(&up, &[]).await;
    Client::new(&third.url()).get("/readyz").await.expect(200);
    assert_eq!(fs::read(dir.path().join("token_secret")).expect("kept"), secret);
    assert_eq!(third.terminate().await.code(), Some(0));
    assert_eq!(servers_in(dir.path()), Vec::<String>::new());
    assert_eq!(accounts(dir.path(), "first@example.com").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_used_are_named() {
    let (code, stdout, stderr) = run(&["migrate"], &[("COUPONBOOK_DATABASE_ULR", "postgres://x")], "").await;
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    assert!(stderr.contains("COUPONBOOK_DATABASE_ULR"), "{stderr}");
    let (code, _, stderr) = run(&["worker"], &[], "").await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("COUPONBOOK_DATABASE_URL"), "{stderr}");
    let database = empty_database().await;
    let (code, _, stderr) = run(&["api"], &[("COUPONBOOK_DATABASE_URL", database.url())], "").await;
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("COUPONBOOK_TOKEN_SECRET") && stderr.contains("openssl rand"),
        "{stderr}"
    );
    let weak = [
        ("COUPONBOOK_DATABASE_URL", database.url()),
        ("COUPONBOOK_TOKEN_SECRET", "short"),
    ];
    let (code, _, stderr) = run(&["api"], &weak, "").await;
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("COUPONBOOK_TOKEN_SECRET") && !stderr.contains("short\""),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_with_a_password_from_stdin() {
    let database = coupon_tests::database().await;
    let environment = [("COUPONBOOK_DATABASE_URL", database.url())];
    let arguments = [
        "admin",
        "create-user",
        "--email",
        "ann@example.com",
        "--role",
        "admin",
    ];
    let password = "correct horse battery staple\n";
    let (code, stdout, stderr) = run(&arguments, &environment, password).await;
    assert_eq!(code, Some(0), "{stderr}");
    let pool = PgPool::connect(database.url()).await.unwrap();
    let (id, role, hash): (uuid::Uuid, String, String) =
        sqlx::query_as("SELECT id, role, password_hash FROM users WHERE email = 'ann@example.com'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!((stdout.trim(), role.as_str()), (id.to_string().as_str(), "admin"));
    assert!(hash.starts_with("$argon2id$"), "{hash}");
    let (code, stdout, stderr) = run(&arguments, &environment, password).await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(
        stderr.contains("another account has this e-mail address"),
        "{stderr}"
    );
    let (code, _, stderr) = run(&arguments, &environment, "").await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no password"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_that_start_at_once_one_makes_the_first_administrator() {
    let database = coupon_tests::database().await;
    let environment = [
        ("COUPONBOOK_DATABASE_URL", database.url()),
        ("COUPONBOOK_TOKEN_SECRET", SECRET),
        ("COUPONBOOK_ADMIN_EMAIL", "root@example.com"),
        ("COUPONBOOK_ADMIN_PASSWORD", "correct horse battery staple"),
    ];
    let one = || Process::start(&["api", "--listen", "127.0.0.1:0"], &environment);
    let (a, b, c) = tokio::join!(one(), one(), one());
    let pool = PgPool::connect(database.url()).await.unwrap();
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM users")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(count, 1);
    for process in [a, b, c] {
        assert_eq!(process.terminate().await.code(), Some(0));
    }
}
