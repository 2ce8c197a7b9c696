//! The launcher with a real server. Other processes' states are polled, with a bound; nothing else waits.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use coupon_pg::{Embedded, Options, StartError};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

const HELPER_DIR: &str = "COUPON_PG_TEST_HELPER_DIR";

fn options(dir: &Path) -> Options {
    Options {
        data_dir: dir.join("postgres"),
        durable: true,
        settings: Vec::new(),
        bin_dir: None,
    }
}

async fn start(dir: &Path) -> Embedded {
    Embedded::start(options(dir)).await.expect("the server starts")
}

async fn connect(url: &str) -> PgConnection {
    let options = PgConnectOptions::from_str(url).expect("a URL");
    PgConnection::connect_with(&options).await.expect("a connection")
}

async fn number(url: &str, sql: &'static str) -> i64 {
    let mut connection = connect(url).await;
    sqlx::query_scalar(sql)
        .fetch_one(&mut connection)
        .await
        .expect("a number")
}

async fn text(url: &str, sql: &'static str) -> String {
    let mut connection = connect(url).await;
    sqlx::query_scalar(sql)
        .fetch_one(&mut connection)
        .await
        .expect("a text")
}

async fn execute(url: &str, sql: &'static str) {
    let mut connection = connect(url).await;
    sqlx::raw_sql(sql).execute(&mut connection).await.expect(sql);
}

fn runs(pid: u32) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command_line| !command_line.is_empty())
}

async fn ended_within(pid: u32, bound: Duration) -> bool {
    let deadline = Instant::now() + bound;
    while runs(pid) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    !runs(pid)
}

#[tokio::test]
async fn stopping_and_starting_keeps_the_data() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path()).await;
    execute(&server.url(), "CREATE TABLE kept AS SELECT 42::bigint AS n").await;
    let pid = server.pid();
    server.stop().await;
    assert!(!runs(pid), "stop() waits for the end");

    let server = start(dir.path()).await;
    assert_eq!(number(&server.url(), "SELECT n FROM kept").await, 42);
    server.stop().await;
}

#[tokio::test]
async fn an_immediate_stop_loses_nothing_that_was_committed() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path()).await;
    execute(&server.url(), "CREATE TABLE kept AS SELECT 42::bigint AS n").await;
    server.stop_immediately().await;

    let server = start(dir.path()).await;
    assert_eq!(number(&server.url(), "SELECT n FROM kept").await, 42);
    server.stop().await;
}

#[tokio::test]
async fn the_service_is_no_superuser_but_may_make_its_extensions() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut options = options(dir.path());
    options
        .settings
        .push(("max_connections".to_owned(), "17".to_owned()));
    let server = Embedded::start(options).await.expect("the server starts");
    let url = server.url();
    assert_eq!(
        text(&url, "SELECT current_user || ' ' || current_database()").await,
        "couponbook couponbook"
    );
    assert_eq!(
        text(
            &url,
            "SELECT rolsuper::text FROM pg_roles WHERE rolname = current_user"
        )
        .await,
        "false"
    );
    execute(&url, "CREATE EXTENSION hstore; CREATE EXTENSION pgcrypto").await;
    assert_eq!(text(&url, "SHOW fsync").await, "on");
    assert_eq!(
        text(&url, "SHOW max_connections").await,
        "17",
        "the caller's settings win"
    );
    assert_eq!(text(&url, "SHOW server_encoding").await, "UTF8");
    assert_eq!(text(&url, "SHOW listen_addresses").await, "");
    let socket = dir.path().join("postgres.socket");
    assert_eq!(
        fs::metadata(socket)
            .expect("the socket's directory")
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
    server.stop().await;
}

#[tokio::test]
async fn a_second_start_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path()).await;
    let refused = Embedded::start(options(dir.path()))
        .await
        .expect_err("the directory is in use");
    assert!(matches!(refused, StartError::InUse { .. }), "{refused}");
    assert!(
        refused
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{refused}"
    );
    assert_eq!(
        number(&server.url(), "SELECT 1::bigint").await,
        1,
        "the first one is not disturbed"
    );
    server.stop().await;
}

#[tokio::test]
async fn data_of_another_version_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    start(dir.path()).await.stop().await;
    fs::write(dir.path().join("postgres/PG_VERSION"), "12\n").expect("written");
    let refused = Embedded::start(options(dir.path()))
        .await
        .expect_err("another version");
    assert!(matches!(refused, StartError::VersionMismatch { .. }), "{refused}");
    assert!(
        refused.to_string().contains("/usr/lib/postgresql/12/bin"),
        "{refused}"
    );
}

#[tokio::test]
async fn files_of_somebody_else_are_not_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("postgres/letter.txt");
    fs::create_dir(dir.path().join("postgres")).expect("made");
    fs::write(&file, "Dear Ada").expect("written");
    let refused = Embedded::start(options(dir.path()))
        .await
        .expect_err("not a cluster");
    assert!(
        matches!(
            refused,
            StartError::NotADataDirectory(_) | StartError::WrongOwner { .. }
        ),
        "{refused}"
    );
    assert_eq!(fs::read_to_string(file).expect("still there"), "Dear Ada");
}

#[tokio::test]
async fn a_pid_file_whose_process_is_now_another_one_is_survived() {
    let dir = tempfile::tempdir().expect("a directory");
    start(dir.path()).await.stop().await;
    let data_dir = dir.path().join("postgres");
    let alive = std::process::id();
    let stale = format!(
        "{alive}\n{}\n1700000000\n5432\n\n\n\nready   \n",
        data_dir.display()
    );
    fs::write(data_dir.join("postmaster.pid"), stale).expect("written");
    let socket = dir.path().join("postgres.socket");
    fs::create_dir(&socket).expect("made");
    fs::write(socket.join(".s.PGSQL.5432.lock"), format!("{alive}\n")).expect("written");
    start(dir.path()).await.stop().await;
}

#[tokio::test]
async fn a_half_made_cluster_is_cleared_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let half = dir.path().join("postgres.new-1");
    fs::create_dir(&half).expect("made");
    fs::write(half.join("PG_VERSION"), "15").expect("written");
    start(dir.path()).await.stop().await;
    assert!(!half.exists());
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_works() {
    let dir = tempfile::tempdir().expect("a directory");
    let deep = dir.path().join("a long name with spaces, and a comma".repeat(4));
    let server = start(&deep).await;
    assert_eq!(number(&server.url(), "SELECT 1::bigint").await, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_setting_is_told_in_the_servers_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut options = options(dir.path());
    options
        .settings
        .push(("shared_bufers".to_owned(), "1GB".to_owned()));
    let refused = Embedded::start(options).await.expect_err("no such setting");
    assert!(refused.to_string().contains("shared_bufers"), "{refused}");
}

#[tokio::test]
async fn an_end_of_the_server_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path()).await;
    let pid = Pid::from_raw(server.pid().cast_signed()).expect("a pid");
    kill_process(pid, Signal::QUIT).expect("killed");
    tokio::time::timeout(Duration::from_secs(10), server.exited())
        .await
        .expect("noticed");
}

#[tokio::test]
async fn kill_9_of_the_parent_ends_the_server_and_keeps_the_data() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = std::env::current_exe().expect("this program");
    let (mut parent, pid) = helper(Command::new(program), dir.path());
    parent.kill().expect("killed");
    parent.wait().expect("ended");
    // At once: the start waits for the server that is on its way out.
    let server = start(dir.path()).await;
    assert!(!runs(pid), "there are never two");
    assert_eq!(number(&server.url(), "SELECT n FROM helped").await, 7);
    server.stop().await;

    let (mut parent, pid) = helper(
        Command::new(std::env::current_exe().expect("this program")),
        dir.path(),
    );
    parent.kill().expect("killed");
    parent.wait().expect("ended");
    assert!(
        ended_within(pid, Duration::from_secs(20)).await,
        "the server goes without being asked again"
    );
}

#[tokio::test]
async fn started_by_root_it_runs_as_somebody_else() {
    if !geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(dir.path()).await;
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("its status");
    let uids = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .expect("its ids");
    assert!(!uids.split_whitespace().any(|id| id == "0"), "{uids}");
    server.stop().await;

    let closed = dir.path().join("closed");
    fs::create_dir_all(closed.join("inner")).expect("made");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("closed");
    let refused = Embedded::start(options(&closed.join("inner")))
        .await
        .expect_err("unreachable");
    let StartError::Unreachable { blocked, .. } = &refused else {
        panic!("{refused}")
    };
    assert_eq!(blocked, &closed.canonicalize().expect("a path"));
}

#[tokio::test]
async fn it_runs_for_an_ordinary_user() {
    if !geteuid().is_root() {
        return; // every other test has shown it
    }
    let dir = world_writable();
    let mut command = Command::new("runuser");
    command
        .args(["-u", "nobody", "--"])
        .arg(copy_of_this_program(dir.path()));
    let (mut parent, pid) = helper(command, dir.path());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    assert!(status.contains("Uid:\t65534"), "{status}");
    parent.kill().expect("killed");
    parent.wait().expect("ended");
    // runuser stays between us and the helper; its end closes the helper's input.
    assert!(ended_within(pid, Duration::from_secs(20)).await);
}

fn world_writable() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("opened");
    dir
}

/// The build directory may be closed to other users.
fn copy_of_this_program(dir: &Path) -> PathBuf {
    let copy = dir.join("helper");
    fs::copy(std::env::current_exe().expect("this program"), &copy).expect("copied");
    copy
}

/// Runs [`helper_process`] as a process of its own; answers when its server runs.
fn helper(mut command: Command, dir: &Path) -> (Child, u32) {
    command.args([
        "--exact",
        "helper_process",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    let mut child = command
        .env(HELPER_DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the helper starts");
    let output = BufReader::new(child.stdout.take().expect("its output"));
    let line = output.lines().map_while(Result::ok).find_map(|line| {
        let (_, pid) = line.split_once("server pid ")?;
        pid.trim().parse().ok()
    });
    (child, line.expect("the helper's server started"))
}

#[tokio::test]
#[ignore = "the other half of the tests that kill a parent"]
#[expect(clippy::print_stdout, reason = "how the test learns the process id")]
async fn helper_process() {
    let Some(dir) = std::env::var_os(HELPER_DIR) else {
        return;
    };
    let server = start(Path::new(&dir)).await;
    execute(
        &server.url(),
        "CREATE TABLE IF NOT EXISTS helped AS SELECT 7::bigint AS n",
    )
    .await;
    println!("server pid {}", server.pid());
    // Until the test closes our input or kills us.
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().lines().next().is_none()).await;
}
