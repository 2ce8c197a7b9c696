//! The directory of the server's unix socket.
//!
//! Invariant: it belongs to the server's user and has mode 0700, so that getting into it is the authentication.

use std::fs::{self, DirBuilder, Permissions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::StartError;
use crate::account::Account;
use crate::data_dir::beside;

/// The socket's file; the port only names it.
const SOCKET: &str = ".s.PGSQL.5432";
/// `sun_path` less its terminating zero, in bytes.
const SUN_PATH_LIMIT: usize = 107;

/// Where the socket of a data directory goes: beside it, or in `/tmp` if that path is too long for a socket.
pub(crate) fn directory_for(data_dir: &Path) -> PathBuf {
    let near = beside(data_dir, ".socket");
    if near.join(SOCKET).as_os_str().len() <= SUN_PATH_LIMIT && near.to_str().is_some() {
        return near;
    }
    let mut hasher = DefaultHasher::new();
    data_dir.hash(&mut hasher);
    PathBuf::from(format!("/tmp/couponbook-{:016x}", hasher.finish()))
}

/// Makes the directory, or empties the one an earlier server left. The caller holds the data directory's lock:
/// a left lock file whose process id is alive again would keep the server from starting.
pub(crate) fn prepare(dir: &Path, account: &Account) -> Result<(), StartError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StartError::io("make", dir)(error));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir).map_err(StartError::io("look at", dir))?;
    let ours = account.owns(&metadata) || metadata.uid() == rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || !ours {
        return Err(StartError::SocketDirectory(dir.to_owned()));
    }
    account.give(dir).map_err(StartError::io("hand over", dir))?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(StartError::io("close", dir))?;
    for name in [SOCKET.to_owned(), format!("{SOCKET}.lock")] {
        let file = dir.join(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StartError::io("remove", &file)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_puts_the_socket_into_tmp() {
        assert_eq!(
            directory_for(Path::new("/var/lib/x/postgres")),
            Path::new("/var/lib/x/postgres.socket")
        );
        let long = PathBuf::from(format!("/{}/postgres", "a".repeat(90)));
        let socket = directory_for(&long);
        assert!(socket.starts_with("/tmp") && socket.join(SOCKET).as_os_str().len() <= SUN_PATH_LIMIT);
        assert_eq!(socket, directory_for(&long));
    }
}
