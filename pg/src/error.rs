//! Why a server did not start: every message says what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why the private server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No usable binaries anywhere.
    #[error(
        "no PostgreSQL {minimum} or later was found on this machine ({searched}). \
         Install it, for example with `apt-get install postgresql`, or set PG_BIN to the directory \
         that holds `postgres` and `initdb`",
        minimum = crate::binaries::MINIMUM_MAJOR
    )]
    NotFound {
        /// Where was looked, and what was wrong there.
        searched: String,
    },
    /// `PG_BIN` was set and cannot be used.
    #[error(
        "PG_BIN is set to {dir}, but {reason}. Set it to the directory that holds `postgres` and `initdb`"
    )]
    PgBin {
        /// The value of the variable.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process runs a server on this data directory.
    #[error(
        "the data directory {data_dir} is in use by {holder}. Stop that one first, or use another directory"
    )]
    InUse {
        /// The data directory.
        data_dir: PathBuf,
        /// The process that holds it.
        holder: String,
    },
    /// The data was written by another major version of PostgreSQL.
    #[error(
        "the data in {data_dir} was written by PostgreSQL {found}, but the binaries in {bin} are version {binaries}. \
         Set PG_BIN to the binaries of version {found} (Debian: /usr/lib/postgresql/{found}/bin), \
         or move the data with pg_upgrade"
    )]
    VersionMismatch {
        /// The data directory.
        data_dir: PathBuf,
        /// What its PG_VERSION says.
        found: String,
        /// The directory of the binaries.
        bin: PathBuf,
        /// Their major version.
        binaries: u32,
    },
    /// The directory holds something that is no cluster.
    #[error("{0} holds files, but no PostgreSQL data (there is no PG_VERSION). Use another directory")]
    NotADataDirectory(PathBuf),
    /// The data belongs to another user.
    #[error(
        "the data directory {data_dir} belongs to user id {owner}, but this process runs as user id {us}. \
         Start it as that user or as root, or use another directory"
    )]
    WrongOwner {
        /// The data directory.
        data_dir: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// Root, and nobody to run the server as.
    #[error(
        "PostgreSQL does not run as root, and there is neither a user `postgres` nor a user `nobody` to run it as. \
         Create one (`useradd --system postgres`) or start as an ordinary user"
    )]
    NoAccount,
    /// The server's user cannot get to the data directory.
    #[error(
        "started by root, PostgreSQL runs as {user}, who may not enter {blocked}. \
         Use a data directory elsewhere (/var/lib/couponbook) or run `chmod a+x {blocked}`"
    )]
    Unreachable {
        /// The user of the server.
        user: String,
        /// The first directory on the way that is closed to it.
        blocked: PathBuf,
    },
    /// Somebody else owns the directory for the socket.
    #[error(
        "{0} exists and is not a directory of the server's user. Remove it, or use a shorter data directory"
    )]
    SocketDirectory(PathBuf),
    /// `initdb` failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// The server ended before it was ready.
    #[error("PostgreSQL ended before it was ready ({status}). Its last words: {log}")]
    Exited {
        /// How it ended.
        status: String,
        /// The tail of its log.
        log: String,
    },
    /// The server was not ready in time.
    #[error("PostgreSQL was not ready after {seconds} seconds. Its last words: {log}")]
    Timeout {
        /// How long was waited.
        seconds: u64,
        /// The tail of its log.
        log: String,
    },
    /// The first connection or the role and database failed.
    #[error("the private PostgreSQL server runs, but cannot be prepared: {0}")]
    Prepare(#[from] sqlx::Error),
    /// The operating system said no.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

impl StartError {
    /// For `map_err`: what was tried, and on which file.
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |error| Self::Io {
            action,
            path: path.to_owned(),
            source: error.into(),
        }
    }
}
