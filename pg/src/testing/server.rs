//! The server that all test processes of one user share.
//!
//! It belongs to none of them (a test runner may run every test in a process of its own): `supervise.sh` runs it
//! and ends it some seconds after its last user. Its data is thrown away at each start, so there is nothing
//! to recover and nothing left over.
//!
//! Invariants: it is started, stopped and wiped only under the exclusive lock on `start.lock`; it is stopped
//! only if nobody holds the shared lock on `users.lock`, which every test process keeps to its end; it is used
//! only if the file `usable` names the running server, because that is written after everything else.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::geteuid;
use tokio::time::{Instant, sleep};

use crate::account::Account;
use crate::data_dir::{self, POLL};
use crate::{StartError, binaries, connect, launch, socket};

const READY_WITHIN: Duration = Duration::from_secs(60);
const SUPERVISOR: &str = include_str!("supervise.sh");

/// Many tests, many pools; nothing needs to survive, and checkpoints only cost.
const SETTINGS: [(&str, &str); 4] = [
    ("max_connections", "400"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"), // `minimal` asks for it
    ("checkpoint_timeout", "1h"),
];

/// A server on which this process makes its test databases.
#[derive(Debug)]
pub(super) struct Server {
    admin_url: String,
    /// The shared lock on `users.lock`; ends with the process.
    users: Option<File>,
}

impl Server {
    /// The server of `COUPONBOOK_TEST_DATABASE_URL`, else the shared one, started if need be.
    pub(super) async fn find_or_start() -> Self {
        if let Ok(url) = env::var("COUPONBOOK_TEST_DATABASE_URL")
            && !url.is_empty()
        {
            return Self {
                admin_url: url,
                users: None,
            };
        }
        match Self::shared().await {
            Ok(server) => server,
            Err(error) => panic!(
                "no PostgreSQL server for the tests: {error}. \
                 (COUPONBOOK_TEST_DATABASE_URL may name one where databases may be created.)"
            ),
        }
    }

    pub(super) fn admin_url(&self) -> &str {
        &self.admin_url
    }

    /// For messages: the URL may hold a password.
    pub(super) fn shown(&self) -> &'static str {
        if self.users.is_some() {
            "the shared test server"
        } else {
            "COUPONBOOK_TEST_DATABASE_URL"
        }
    }

    /// Copying files takes a third of the time of copying through the WAL (35 ms, 120 ms for 60 tables), but
    /// begins with a checkpoint, which is cheap only where nothing is synced.
    pub(super) fn strategy(&self) -> &'static str {
        if self.users.is_some() {
            "STRATEGY FILE_COPY"
        } else {
            ""
        }
    }

    async fn shared() -> Result<Self, StartError> {
        let home = home()?;
        let start = open(&home.join("start.lock"))?;
        let users = open(&home.join("users.lock"))?;
        // Blocking: another process starts the server meanwhile, or the supervisor stops it.
        let locked = tokio::task::spawn_blocking(move || {
            start.lock()?;
            users.lock_shared()?;
            io::Result::Ok((start, users))
        });
        let (_start, users) = locked
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(StartError::io("lock", &home))?;

        let data_dir = home.join("postgres");
        let socket_dir = socket::directory_for(&data_dir);
        if !is_usable(&home, &data_dir) {
            start_anew(&home, &data_dir, &socket_dir).await?;
        }
        let admin_url = connect::url(&socket_dir, connect::NAME, connect::NAME);
        Ok(Self {
            admin_url,
            users: Some(users),
        })
    }
}

/// A directory per user, which nobody else can have made.
fn home() -> Result<PathBuf, StartError> {
    let home = PathBuf::from(format!("/tmp/couponbook-test-{}", geteuid().as_raw()));
    match DirBuilder::new().mode(0o755).create(&home) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StartError::io("make", &home)(error));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(&home).map_err(StartError::io("look at", &home))?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() {
        return Err(StartError::SocketDirectory(home));
    }
    // Whatever the umask: started by root, the server's user must get through.
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).map_err(StartError::io("open", &home))?;
    Ok(home)
}

fn open(path: &Path) -> Result<File, StartError> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = file.map_err(StartError::io("open", path))?;
    // The supervisor, maybe another user, locks it too, for which reading is enough.
    file.set_permissions(fs::Permissions::from_mode(0o644))
        .map_err(StartError::io("open", path))?;
    Ok(file)
}

fn is_usable(home: &Path, data_dir: &Path) -> bool {
    let Ok(usable) = fs::read_to_string(home.join("usable")) else {
        return false;
    };
    data_dir::pid_file(data_dir).is_some_and(|file| {
        file.ready
            && usable.trim() == file.pid.as_raw_pid().to_string()
            && data_dir::is_server_of(file.pid, data_dir)
    })
}

async fn start_anew(home: &Path, data_dir: &Path, socket_dir: &Path) -> Result<(), StartError> {
    let usable = home.join("usable");
    let _ = fs::remove_file(&usable);
    data_dir::clear_leftovers(data_dir).await?;
    match fs::remove_dir_all(data_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StartError::io("remove", data_dir)(error));
        }
        _ => {}
    }
    let account = Account::choose(data_dir)?;
    let binaries = binaries::find(None, None)?;
    account.check_reach(home)?;
    data_dir::initialise(data_dir, &binaries, account, false).await?;
    socket::prepare(socket_dir, &account)?;

    let log_path = home.join("server.log");
    let log = File::create(&log_path).map_err(StartError::io("write", &log_path))?;
    let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
    // Not tied to us: it outlives this test. Nor to our output: a runner would wait for its end.
    let mut command = account.command(Path::new("/bin/sh"), None);
    command
        .args(["-c", SUPERVISOR, "supervise"])
        .arg(home)
        .arg(binaries.dir.join("postgres"));
    command.args(launch::arguments(data_dir, socket_dir, false, &settings));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut supervisor = command
        .spawn()
        .map_err(StartError::io("run", Path::new("/bin/sh")))?;
    await_ready(data_dir, &mut supervisor, &log_path).await?;

    connect::prepare(socket_dir, "CREATEDB").await?;
    let server = data_dir::pid_file(data_dir).map_or(0, |file| file.pid.as_raw_pid());
    fs::write(&usable, server.to_string()).map_err(StartError::io("write", &usable))
}

async fn await_ready(data_dir: &Path, supervisor: &mut Child, log_path: &Path) -> Result<(), StartError> {
    let log = || fs::read_to_string(log_path).unwrap_or_default().trim().to_owned();
    let deadline = Instant::now() + READY_WITHIN;
    while Instant::now() < deadline {
        if data_dir::pid_file(data_dir).is_some_and(|file| file.ready) {
            return Ok(());
        }
        if let Ok(Some(status)) = supervisor.try_wait() {
            return Err(StartError::Exited {
                status: status.to_string(),
                log: log(),
            });
        }
        sleep(POLL).await;
    }
    Err(StartError::Timeout {
        seconds: READY_WITHIN.as_secs(),
        log: log(),
    })
}
