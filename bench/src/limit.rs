//! Limits taken with PostgreSQL's own load generator.

use std::{io::Write, path::Path};

use anyhow::{Context, bail};
use tokio::process::Command;

/// Transactions per second of a script at `clients` clients.
///
/// # Errors
/// When pgbench cannot be run or says no rate.
pub(crate) async fn pgbench(
    bin_dir: &Path,
    url: &str,
    clients: usize,
    seconds: u64,
    script: &str,
) -> anyhow::Result<f64> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(script.as_bytes())?;
    let output = Command::new(bin_dir.join("pgbench"))
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2"])
        .arg(format!("--client={clients}"))
        .arg(format!("--time={seconds}"))
        .arg(format!("--file={}", file.path().display()))
        .arg(url)
        .output()
        .await
        .context("pgbench cannot be run; it comes with PostgreSQL's contributed programs")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let rate = said
        .lines()
        .find_map(|line| line.strip_prefix("tps = "))
        .and_then(|rest| rest.split(' ').next()?.parse().ok());
    match rate {
        Some(rate) if output.status.success() => Ok(rate),
        _ => bail!("pgbench failed: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// The commit floor: the rate of the smallest durable transaction, at 16 clients.
///
/// # Errors
/// As [`pgbench`].
pub(crate) async fn commits(bin_dir: &Path, url: &str, seconds: u64) -> anyhow::Result<f64> {
    pgbench(
        bin_dir,
        url,
        16,
        seconds,
        "INSERT INTO bench.floor (value) VALUES (1);\n",
    )
    .await
}
