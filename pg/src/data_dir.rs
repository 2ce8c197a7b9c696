//! The data directory before a server runs on it: its lock, its version, its first contents, its leftovers.
//!
//! Invariant: the directory either does not exist or is complete, because `initdb` works in a sibling that is
//! renamed at the end; and whoever holds the [`Lock`] is the only one who starts, stops or cleans anything here.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::time::{Instant, sleep};

use crate::StartError;
use crate::account::Account;
use crate::binaries::Binaries;
use crate::connect::SUPERUSER;

/// How often the state of another process is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// `<data_dir><suffix>`, a sibling of the data directory.
pub(crate) fn beside(data_dir: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(data_dir);
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the directory above and spells the path in the one way under which the server's command line shows it.
pub(crate) fn canonical(data_dir: &Path) -> Result<PathBuf, StartError> {
    let absolute = std::path::absolute(data_dir).map_err(StartError::io("resolve", data_dir))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(StartError::NotADataDirectory(absolute));
    };
    fs::create_dir_all(parent).map_err(StartError::io("make", parent))?;
    Ok(parent
        .canonicalize()
        .map_err(StartError::io("resolve", parent))?
        .join(name))
}

/// The right to start a server on a data directory; the kernel gives it back when this process ends.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    pub(crate) fn take(data_dir: &Path) -> Result<Self, StartError> {
        let path = beside(data_dir, ".lock");
        let opened = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = opened.map_err(StartError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
                let holder = if known {
                    format!("process {}", holder.trim())
                } else {
                    "another process".into()
                };
                return Err(StartError::InUse {
                    data_dir: data_dir.to_owned(),
                    holder,
                });
            }
            Err(TryLockError::Error(error)) => return Err(StartError::io("lock", &path)(error)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(StartError::io("write", &path))?;
        Ok(Self(file))
    }
}

/// What `PG_VERSION` says, or `None` where there is no cluster yet.
pub(crate) fn version(data_dir: &Path) -> Result<Option<String>, StartError> {
    match fs::read_to_string(data_dir.join("PG_VERSION")) {
        Ok(version) => Ok(Some(version.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match fs::read_dir(data_dir).map(|mut entries| entries.next().is_none()) {
                Ok(false) => Err(StartError::NotADataDirectory(data_dir.to_owned())),
                _ => Ok(None),
            }
        }
        Err(error) => Err(StartError::io("read", &data_dir.join("PG_VERSION"))(error)),
    }
}

/// Makes a cluster: beside the directory, then renamed, so that a kill half-way leaves nothing half done.
pub(crate) async fn initialise(
    data_dir: &Path,
    binaries: &Binaries,
    account: Account,
    durable: bool,
) -> Result<(), StartError> {
    remove_unfinished(data_dir);
    let unfinished = beside(data_dir, &format!(".new-{}", std::process::id()));
    let _ = fs::remove_dir_all(&unfinished); // the same process id, long ago
    DirBuilder::new()
        .mode(0o700)
        .create(&unfinished)
        .map_err(StartError::io("make", &unfinished))?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o700))
        .and_then(|()| account.give(&unfinished))
        .map_err(StartError::io("hand over", &unfinished))?;

    let initdb = binaries.dir.join("initdb");
    let mut command = account.command(&initdb, Some(Signal::KILL));
    command.args([
        "--encoding=UTF8",
        "--locale=C",
        "--auth-local=trust",
        "--auth-host=reject",
    ]);
    command.arg(format!("--username={SUPERUSER}"));
    command.arg(if durable { "--data-checksums" } else { "--no-sync" });
    command.arg("-D").arg(&unfinished);
    // The thread that starts it waits for it: its end would be taken for our death.
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output
        .map_err(io::Error::other)
        .flatten()
        .map_err(StartError::io("run", &initdb))?;
    if !output.status.success() {
        let _ = fs::remove_dir_all(&unfinished);
        return Err(StartError::Initdb(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ));
    }
    fs::rename(&unfinished, data_dir).map_err(StartError::io("rename to", data_dir))?;
    if durable && let Some(parent) = data_dir.parent() {
        File::open(parent)
            .and_then(|dir| dir.sync_all())
            .map_err(StartError::io("sync", parent))?;
    }
    Ok(())
}

/// Best effort: what stays only takes room.
fn remove_unfinished(data_dir: &Path) {
    let (Some(parent), Some(name)) = (data_dir.parent(), data_dir.file_name()) else {
        return;
    };
    let prefix = [name.as_bytes(), b".new-"].concat();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(&prefix) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The lines of `postmaster.pid` that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PidFile {
    pub(crate) pid: Pid,
    /// Seconds since 1970; tells a file from one that a server with the same process id left (in containers
    /// that is the rule).
    started: u64,
    /// Line 8 says so once the server accepts connections.
    pub(crate) ready: bool,
}

/// Reads `postmaster.pid`; `None` if there is none (or only the beginning of one).
pub(crate) fn pid_file(data_dir: &Path) -> Option<PidFile> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let pid = Pid::from_raw(lines.first()?.parse().ok()?)?;
    let started = lines.get(2).and_then(|started| started.parse().ok()).unwrap_or(0);
    Some(PidFile {
        pid,
        started,
        ready: lines.get(7) == Some(&"ready"),
    })
}

/// Whether a process is the server of this data directory; its command line names the directory.
pub(crate) fn is_server_of(pid: Pid, data_dir: &Path) -> bool {
    if !Path::new("/proc/self/cmdline").exists() {
        return test_kill_process(pid).is_ok(); // another system: assume the worst
    }
    let command_line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
    command_line
        .split(|byte| *byte == 0)
        .any(|argument| argument == data_dir.as_os_str().as_bytes())
}

/// Ends a server whose starter is gone (we hold the lock), and removes a `postmaster.pid` whose process id
/// now belongs to somebody else. A file of a dead process is left to PostgreSQL: it also looks for
/// backends that are still attached to the old shared memory.
pub(crate) async fn clear_leftovers(data_dir: &Path) -> Result<(), StartError> {
    let Some(left) = pid_file(data_dir) else {
        return Ok(());
    };
    for (signal, patience) in [(Signal::INT, 30), (Signal::QUIT, 10), (Signal::KILL, 5)] {
        if !is_server_of(left.pid, data_dir) {
            break;
        }
        tracing::warn!(
            pid = left.pid.as_raw_pid(),
            "ending a PostgreSQL server that its starter left behind"
        );
        let _ = kill_process(left.pid, signal);
        let deadline = Instant::now() + Duration::from_secs(patience);
        while is_server_of(left.pid, data_dir) && Instant::now() < deadline {
            sleep(POLL).await;
        }
    }
    if is_server_of(left.pid, data_dir) {
        let holder = format!("process {} (PostgreSQL)", left.pid.as_raw_pid());
        return Err(StartError::InUse {
            data_dir: data_dir.to_owned(),
            holder,
        });
    }
    let recycled = match test_kill_process(left.pid) {
        Ok(()) => true,
        Err(error) => error == rustix::io::Errno::PERM,
    };
    if recycled && pid_file(data_dir).is_some_and(|now| now.pid == left.pid) {
        let path = data_dir.join("postmaster.pid");
        fs::remove_file(&path).map_err(StartError::io("remove", &path))?;
    }
    Ok(())
}
