//! Where things are kept, and the signing secret that `up` makes and keeps there.
//!
//! Invariant: outside the embedded default a process without a strong secret refuses to start.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use coupon_core::{config::Settings, user::token::TokenKeys};

/// The data directory: as set, else `/var/lib/couponbook` for root and the XDG data directory for others.
pub(crate) fn data_dir(settings: &Settings) -> anyhow::Result<PathBuf> {
    if let Some(dir) = &settings.data_dir {
        return Ok(std::path::absolute(dir)?);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/couponbook"));
    }
    let xdg = std::env::var_os("XDG_DATA_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from);
    let home = || {
        std::env::var_os("HOME")
            .filter(|dir| !dir.is_empty())
            .map(|home| PathBuf::from(home).join(".local/share"))
    };
    match xdg.or_else(home) {
        Some(base) => Ok(base.join("couponbook")),
        None => bail!("there is no HOME to keep data in; set COUPONBOOK_DATA_DIR"),
    }
}

/// Makes the data directory. Others may pass through it (the database's user has a directory below), not list it.
pub(crate) fn make_data_dir(dir: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .with_context(|| format!("the data directory {} cannot be made", dir.display()))
}

/// The keys of tokens from the settings.
pub(crate) fn keys(settings: &Settings) -> anyhow::Result<TokenKeys> {
    let Some(secret) = &settings.token_secret else {
        bail!(
            "COUPONBOOK_TOKEN_SECRET is not set: give every process the same secret of 32 random bytes or more, such as the output of `openssl rand -base64 48`"
        );
    };
    TokenKeys::new(secret.reveal().as_bytes())
        .map_err(|error| anyhow::anyhow!("COUPONBOOK_TOKEN_SECRET cannot be used: {error}"))
}

/// The keys of tokens from the settings, else from the data directory, where a new secret is made and kept.
pub(crate) fn keys_kept_in(settings: &Settings, dir: &Path) -> anyhow::Result<TokenKeys> {
    if settings.token_secret.is_some() {
        return keys(settings);
    }
    let path = dir.join("token_secret");
    let made: [u8; 32] = rand::random();
    let text: String = made.iter().map(|byte| format!("{byte:02x}")).collect();
    // Written beside and linked into place: a kill in between leaves no half secret, and the first of two wins.
    let draft = dir.join(format!("token_secret.{}", std::process::id()));
    if !path.exists() {
        let write = || {
            let _ = fs::remove_file(&draft);
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            match fs::hard_link(&draft, &path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        };
        let written =
            write().with_context(|| format!("the signing secret cannot be kept in {}", path.display()));
        let _ = fs::remove_file(&draft);
        written?;
    }
    let kept = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    TokenKeys::new(kept.trim().as_bytes())
        .map_err(|error| anyhow::anyhow!("{} cannot be used: {error}", path.display()))
}
