//! The user that the server runs as.
//!
//! Invariant: the server never runs as root, and an existing data directory keeps its owner.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, getegid, geteuid, getppid};

use crate::StartError;

/// Who runs `initdb` and `postgres`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    uid: u32,
    gid: u32,
    /// We are root and become this user; otherwise it is who we are.
    switch: bool,
}

impl Account {
    /// Chooses the user for a data directory, which may not exist yet.
    pub(crate) fn choose(data_dir: &Path) -> Result<Self, StartError> {
        let existing = fs::metadata(data_dir)
            .ok()
            .map(|metadata| (metadata.uid(), metadata.gid()));
        let us = geteuid().as_raw();
        if us != 0 {
            return match existing {
                Some((owner, _)) if owner != us => Err(StartError::WrongOwner {
                    data_dir: data_dir.to_owned(),
                    owner,
                    us,
                }),
                _ => Ok(Self {
                    uid: us,
                    gid: getegid().as_raw(),
                    switch: false,
                }),
            };
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let (uid, gid) = existing
            .filter(|(owner, _)| *owner != 0)
            .or_else(|| ids_of(&passwd, "postgres"))
            .or_else(|| ids_of(&passwd, "nobody"))
            .ok_or(StartError::NoAccount)?;
        Ok(Self {
            uid,
            gid,
            switch: true,
        })
    }

    /// Whether a file belongs to this user.
    pub(crate) fn owns(&self, metadata: &Metadata) -> bool {
        metadata.uid() == self.uid
    }

    /// Hands a file that we made to this user.
    pub(crate) fn give(&self, path: &Path) -> io::Result<()> {
        if self.switch {
            chown(path, Some(self.uid), Some(self.gid))
        } else {
            Ok(())
        }
    }

    /// A command that runs as this user, in `/`, with a clean environment, and gets `at_our_death` when the
    /// *thread* that starts it ends (that is what the kernel watches).
    ///
    /// Our own environment stays ours: it holds secrets, and a stray PGPORT or PGDATA would steer the server.
    pub(crate) fn command(&self, program: &Path, at_our_death: Option<Signal>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .current_dir("/");
        if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", path); // a PostgreSQL that was built by hand may need it
        }
        command.process_group(0); // a Ctrl-C in our terminal is for us, who stop the server in good order
        if self.switch {
            command.uid(self.uid).gid(self.gid);
        }
        if let Some(signal) = at_our_death {
            end_with_this_thread(&mut command, signal);
        }
        command
    }

    /// Makes sure that this user can get to `dir`.
    ///
    /// A private directory of root's directly at `dir` (what `mktemp -d` makes) is opened for this user's group;
    /// nothing above it is touched.
    pub(crate) fn check_reach(&self, dir: &Path) -> Result<(), StartError> {
        if !self.switch {
            return Ok(());
        }
        let metadata = fs::metadata(dir).map_err(StartError::io("look at", dir))?;
        if metadata.uid() == 0 && metadata.mode() & 0o077 == 0 {
            chown(dir, None, Some(self.gid))
                .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o710)))
                .map_err(StartError::io("open for the server's user", dir))?;
        }
        match self
            .first_closed(dir)
            .map_err(StartError::io("check the way to", dir))?
        {
            Some(blocked) => Err(StartError::Unreachable {
                user: format!("user id {}", self.uid),
                blocked,
            }),
            None => Ok(()),
        }
    }

    /// Asks the kernel as this user, so that access lists and mount options count too.
    fn first_closed(&self, dir: &Path) -> io::Result<Option<PathBuf>> {
        let mut way: Vec<&Path> = dir.ancestors().collect();
        way.reverse();
        let script = r#"for dir; do [ -x "$dir" ] || { printf %s "$dir"; exit; }; done"#;
        let output = self
            .command(Path::new("/bin/sh"), None)
            .args(["-c", script, "sh"])
            .args(way)
            .output()?;
        let closed = PathBuf::from(OsString::from_vec(output.stdout));
        Ok(Some(closed).filter(|path| !path.as_os_str().is_empty()))
    }
}

#[cfg(target_os = "linux")]
fn end_with_this_thread(command: &mut Command, signal: Signal) {
    let us = Pid::from_raw(std::process::id().cast_signed());
    let after_fork = move || {
        // Here, after the change of user: that change clears the setting.
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        if getppid() != us {
            return Err(io::Error::other("the parent died before its child began"));
        }
        Ok(())
    };
    #[expect(
        unsafe_code,
        reason = "between fork and exec: two system calls, no allocation, no lock"
    )]
    // SAFETY: the closure is async-signal-safe, see the reason above.
    unsafe {
        command.pre_exec(after_fork);
    }
}

/// Other systems have no such signal: after a kill -9 of ours the next start ends the server that stayed.
#[cfg(not(target_os = "linux"))]
fn end_with_this_thread(_command: &mut Command, _signal: Signal) {}

/// User and group id from the text of `/etc/passwd`.
fn ids_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let mut fields = passwd
        .lines()
        .map(|line| line.split(':'))
        .find(|fields| fields.clone().next() == Some(name))?;
    let uid = fields.nth(2)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some((uid, gid)).filter(|_| uid != 0)
}

#[cfg(test)]
mod tests {
    use super::ids_of;

    #[test]
    fn ids_are_read_by_whole_name_and_root_is_never_taken() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\npostgresql:x:9:9::/:/bin/sh\npostgres:x:101:104:,,,:/:/bin/sh\n";
        assert_eq!(ids_of(passwd, "postgres"), Some((101, 104)));
        assert_eq!(ids_of(passwd, "nobody"), None);
        assert_eq!(ids_of(passwd, "root"), None);
    }
}
