//! Finding PostgreSQL's programs: a directory counts if it holds `postgres` and `initdb` of a version we support.
//!
//! The order is `PG_BIN`, `pg_config --bindir`, `PATH`, the usual directories (highest version first). `PG_BIN`
//! is an order, not a hint: if it is unusable that is an error, not a reason to look elsewhere.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::StartError;

/// The oldest major version that the schema runs on.
pub(crate) const MINIMUM_MAJOR: u32 = 15;

/// Directories with one subdirectory for each version, and where in it the programs are.
const VERSIONED: [(&str, &str); 4] = [
    ("/usr/lib/postgresql", "bin"), // Debian, Ubuntu, Alpine
    ("/usr", "bin"),                // Fedora, RHEL: /usr/pgsql-17/bin
    ("/opt/homebrew/opt", "bin"),   // macOS: postgresql@17
    ("/usr/local/opt", "bin"),
];
const PLAIN: [&str; 3] = ["/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin"];

/// A directory of programs and their major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binaries {
    pub(crate) dir: PathBuf,
    pub(crate) major: u32,
}

/// The directory that holds `postgres` and `initdb`, version 15 or later.
///
/// # Errors
/// [`StartError::PgBin`] if `PG_BIN` is set and unusable, [`StartError::NotFound`] if nothing was found; both
/// say what to install or to set.
pub fn find_binaries() -> Result<PathBuf, StartError> {
    find(None, None).map(|binaries| binaries.dir)
}

/// Like [`find_binaries`], but the version that wrote the existing data is preferred where it is installed too.
pub(crate) fn find(written_by: Option<u32>, given: Option<&Path>) -> Result<Binaries, StartError> {
    let variable = env::var_os("PG_BIN")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from);
    if let Some(dir) = given.map(Path::to_path_buf).or(variable) {
        return probe(&dir).map_err(|reason| StartError::PgBin { dir, reason });
    }
    let mut searched = Vec::new();
    let mut first = None;
    for dir in candidates() {
        match probe(&dir) {
            Ok(found) if written_by.is_none_or(|major| major == found.major) => return Ok(found),
            Ok(found) => first = first.or(Some(found)),
            Err(reason) if dir.is_dir() && dir.join("postgres").exists() => {
                searched.push(format!("{}: {reason}", dir.display()));
            }
            Err(_) => {}
        }
    }
    first.ok_or_else(|| {
        searched.push("searched pg_config, PATH and the usual directories".to_owned());
        StartError::NotFound {
            searched: searched.join("; "),
        }
    })
}

fn candidates() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = pg_config_bindir().into_iter().collect();
    dirs.extend(
        env::var_os("PATH")
            .iter()
            .flat_map(env::split_paths)
            .filter(|dir| dir.is_absolute()),
    );
    dirs.extend(versioned());
    dirs.extend(PLAIN.map(PathBuf::from));
    dirs
}

fn pg_config_bindir() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let dir = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(dir.trim())).filter(|dir| output.status.success() && dir.is_absolute())
}

/// The version directories that exist, highest version first.
fn versioned() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (root, bin) in VERSIONED {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            if let Some(version) = version_of_directory(&entry.file_name()) {
                found.push((version, entry.path().join(bin)));
            }
        }
    }
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, dir)| dir).collect()
}

/// `15`, `pgsql-17` and `postgresql@16` name a version; `bin` does not.
fn version_of_directory(name: &OsStr) -> Option<u32> {
    let name = name.to_str()?;
    let number = ["pgsql-", "postgresql@", "postgresql"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    number.unwrap_or(name).parse().ok()
}

fn probe(dir: &Path) -> Result<Binaries, String> {
    for program in ["postgres", "initdb"] {
        if !dir.join(program).is_file() {
            return Err(format!("there is no `{program}` in it"));
        }
    }
    let program = dir.join("postgres");
    let output = Command::new(&program)
        .arg("--version")
        .output()
        .map_err(|error| format!("{} does not run: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let major = major_version(&text)
        .ok_or_else(|| format!("`{} --version` answered {:?}", program.display(), text.trim()))?;
    if major < MINIMUM_MAJOR {
        return Err(format!(
            "it is version {major}, and {MINIMUM_MAJOR} is the oldest supported"
        ));
    }
    Ok(Binaries {
        dir: dir.to_owned(),
        major,
    })
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian …)`, also `18beta1`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL) ").nth(1)?;
    let digits = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_releases_and_betas() {
        assert_eq!(
            major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some(15)
        );
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_version("postgres (PostgreSQL) 16\n"), Some(16));
        assert_eq!(major_version("something else"), None);
    }

    #[test]
    fn version_directories_of_several_systems_are_understood() {
        for (name, version) in [
            ("15", Some(15)),
            ("pgsql-17", Some(17)),
            ("postgresql@16", Some(16)),
            ("bin", None),
        ] {
            assert_eq!(version_of_directory(OsStr::new(name)), version, "{name}");
        }
    }

    #[test]
    fn a_directory_without_a_server_says_what_is_missing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(probe(dir.path()), Err("there is no `postgres` in it".to_owned()));
    }

    #[test]
    fn the_error_says_what_to_install_and_what_to_set() {
        let text = StartError::NotFound {
            searched: "nowhere".to_owned(),
        }
        .to_string();
        assert!(
            text.contains("apt-get install postgresql") && text.contains("PG_BIN"),
            "{text}"
        );
    }
}
