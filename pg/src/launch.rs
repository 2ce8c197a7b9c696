//! Starting the server as a child and stopping it.
//!
//! Invariant: the thread that spawned the server waits for it and ends with it, never before, because the
//! parent-death signal follows the *thread*: an ended thread would look like our death to the server.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::StartError;
use crate::account::Account;
use crate::data_dir::{self, Lock, POLL, PidFile};
use crate::{binaries, connect, socket};

/// Long enough for the recovery of `max_wal_size` of WAL on a slow disk.
const READY_WITHIN: Duration = Duration::from_secs(300);
/// A fast shutdown writes a checkpoint; after this an immediate one leaves the rest to recovery.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
/// Lines of the server's log that are kept for an error message.
const LOG_TAIL: usize = 20;

/// Settings of every server we start. Errors of statements are the client's to log: their text can hold values.
const SETTINGS: [(&str, &str); 17] = [
    ("listen_addresses", ""),
    ("port", "5432"), // only names the socket
    ("unix_socket_permissions", "0600"),
    ("shared_buffers", "128MB"),
    ("wal_buffers", "64MB"), // a COPY fills the 4 MB of the default sooner than the log's writer comes by
    ("max_wal_size", "4GB"),
    ("checkpoint_completion_target", "0.9"),
    ("random_page_cost", "1.1"), // flash storage
    ("jit", "off"),              // short statements: compiling costs more than it saves
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
    ("log_line_prefix", "[%p] "),
    ("log_min_messages", "log"), // above `error`
    ("log_min_error_statement", "panic"),
    ("log_error_verbosity", "terse"),
];

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the cluster lives (`PGDATA`). Made on the first start; its lock and socket lie beside it.
    pub data_dir: PathBuf,
    /// Whether a commit survives a power cut. `false` (no fsync) is for data that may be lost.
    pub durable: bool,
    /// More server settings; they win over the built-in ones.
    pub settings: Vec<(String, String)>,
    /// Where the PostgreSQL programs are; looked for when `None`.
    pub bin_dir: Option<PathBuf>,
}

/// A running private server, child of this process.
///
/// Call [`Embedded::stop`] at the end. A dropped value only asks the server to stop, and so does the kernel if
/// this process is killed.
#[derive(Debug)]
pub struct Embedded {
    server: Server,
    url: String,
    socket_dir: PathBuf,
    _lock: Lock,
}

impl Embedded {
    /// Starts the server, making the cluster, the role and the database `couponbook` if they are missing, and
    /// returns when it accepts connections: 1–2 s the first time, 0.2 s later.
    ///
    /// # Errors
    /// Every [`StartError`]; nothing runs afterwards.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let data_dir = data_dir::canonical(&options.data_dir)?;
        let lock = Lock::take(&data_dir)?;
        let account = Account::choose(&data_dir)?;
        let written_by = data_dir::version(&data_dir)?;
        let binaries = binaries::find(
            written_by.as_deref().and_then(|version| version.parse().ok()),
            options.bin_dir.as_deref(),
        )?;
        account.check_reach(data_dir.parent().unwrap_or(&data_dir))?;
        match written_by {
            None => data_dir::initialise(&data_dir, &binaries, account, options.durable).await?,
            Some(found) if found != binaries.major.to_string() => {
                let (bin, binaries) = (binaries.dir, binaries.major);
                return Err(StartError::VersionMismatch {
                    data_dir,
                    found,
                    bin,
                    binaries,
                });
            }
            Some(_) => data_dir::clear_leftovers(&data_dir).await?,
        }
        let socket_dir = socket::directory_for(&data_dir);
        socket::prepare(&socket_dir, &account)?;

        let program = binaries.dir.join("postgres");
        // Fast shutdown: our connections are gone by then, and the next start needs no recovery.
        let mut command = account.command(&program, Some(Signal::INT));
        command.args(arguments(
            &data_dir,
            &socket_dir,
            options.durable,
            &options.settings,
        ));
        let left = data_dir::pid_file(&data_dir);
        let mut server = Server::spawn(command)
            .await
            .map_err(StartError::io("run", &program))?;
        server.ready(&data_dir, left).await?;
        connect::prepare(&socket_dir, "").await?;
        let url = connect::url(&socket_dir, connect::NAME, connect::NAME);
        Ok(Self {
            server,
            url,
            socket_dir,
            _lock: lock,
        })
    }

    /// The URL of the service's database, for sqlx and psql.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.server.pid.as_raw_pid().cast_unsigned()
    }

    /// Waits until the server has ended by itself (it was killed, its disk is full): the service cannot go on.
    pub async fn exited(&self) -> ExitStatus {
        self.server.exited().await
    }

    /// Stops the server in good order and waits for its end. Open connections are closed.
    pub async fn stop(self) {
        self.server.signal(Signal::INT);
        if timeout(STOPPED_WITHIN, self.server.exited()).await.is_err() {
            tracing::warn!("PostgreSQL did not stop in time; the next start will recover");
            return self.stop_immediately().await;
        }
        let _ = std::fs::remove_dir(&self.socket_dir); // empty now; it may lie in /tmp
    }

    /// Stops the server without a checkpoint, like a crash of which the next start recovers.
    pub async fn stop_immediately(self) {
        self.server.signal(Signal::QUIT);
        self.server.exited().await;
    }
}

/// The command line of the server. Everything is on it, so that nothing in the data directory can go stale.
pub(crate) fn arguments(
    data_dir: &Path,
    socket_dir: &Path,
    durable: bool,
    settings: &[(String, String)],
) -> Vec<OsString> {
    let mut socket = OsString::from("unix_socket_directories=\"");
    socket.push(socket_dir); // quoted: a comma would separate two directories
    socket.push("\"");
    let mut arguments = vec!["-D".into(), data_dir.into(), "-c".into(), socket];
    let crash_safety = if durable { "on" } else { "off" };
    let chosen = ["fsync", "synchronous_commit", "full_page_writes"].map(|name| (name, crash_safety));
    let ours = SETTINGS
        .iter()
        .chain([&("max_connections", "200")])
        .chain(&chosen);
    let ours = ours.map(|(name, value)| format!("{name}={value}"));
    for setting in ours.chain(settings.iter().map(|(name, value)| format!("{name}={value}"))) {
        arguments.extend(["-c".into(), setting.into()]);
    }
    arguments
}

/// The child process, whatever state it is in.
#[derive(Debug)]
struct Server {
    pid: Pid,
    exit: watch::Receiver<Option<ExitStatus>>,
    log: watch::Receiver<VecDeque<String>>,
}

impl Server {
    async fn spawn(mut command: Command) -> io::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let (started, start) = oneshot::channel();
        let (ended, exit) = watch::channel(None);
        let (lines, log) = watch::channel(VecDeque::new());
        thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || {
                let mut child = match command.spawn() {
                    Ok(child) => child,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let output = child.stderr.take();
                let reader = thread::Builder::new().name("postgres-log".to_owned());
                let reader = output.map(|output| reader.spawn(move || forward_log(output, &lines)));
                let _ = started.send(match reader {
                    Some(Err(error)) => Err(error), // the pipe is closed; the server's words are lost, nothing else
                    _ => Ok(Pid::from_child(&child)),
                });
                ended.send_replace(child.wait().ok());
            })?;
        let pid = start.await.map_err(io::Error::other)??;
        Ok(Self { pid, exit, log })
    }

    /// Waits until the server accepts connections. The file that an earlier server `left` does not count.
    async fn ready(&mut self, data_dir: &Path, left: Option<PidFile>) -> Result<(), StartError> {
        let is_ours = |file: PidFile| file.pid == self.pid && file.ready && Some(file) != left;
        let poll = async {
            while !data_dir::pid_file(data_dir).is_some_and(is_ours) {
                sleep(POLL).await;
            }
        };
        tokio::select! {
            () = poll => return Ok(()),
            status = self.exited() => {
                let status = status.to_string();
                return Err(StartError::Exited { status, log: self.log_tail().await });
            }
            () = sleep(READY_WITHIN) => {}
        }
        Err(StartError::Timeout {
            seconds: READY_WITHIN.as_secs(),
            log: self.log_tail().await,
        })
    }

    /// What the server said last; waits a moment for what is still in the pipe of a server that has ended.
    async fn log_tail(&mut self) -> String {
        let drained = async { while self.log.changed().await.is_ok() {} };
        let _ = timeout(Duration::from_secs(1), drained).await;
        self.log
            .borrow()
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }

    async fn exited(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|status| *status) {
            Ok(Some(status)) => status,
            _ => ExitStatus::default(), // the waiting thread is gone, and with it the server
        }
    }

    fn signal(&self, signal: Signal) {
        if self.exit.borrow().is_none() {
            let _ = kill_process(self.pid, signal); // it may just have ended
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::INT);
    }
}

/// Passes the server's log on to ours and keeps its end.
fn forward_log(output: impl Read, tail: &watch::Sender<VecDeque<String>>) {
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if ["FATAL:", "PANIC:"].iter().any(|level| line.contains(level)) {
            tracing::warn!(target: "postgres", "{line}");
        } else {
            tracing::debug!(target: "postgres", "{line}");
        }
        tail.send_modify(|lines| {
            lines.push_back(line);
            if lines.len() > LOG_TAIL {
                lines.pop_front();
            }
        });
    }
}
