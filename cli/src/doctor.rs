//! `couponbook doctor`: looks at what a service needs and says plainly what is well, what is doubtful and what is wrong.
//!
//! Invariant: it changes nothing and ends in time, whatever hangs. The exit code is 1 when something is wrong, else 0.
//! To add a check: a function that gives [`Finding`]s, a line in [`run`], a row in docs/operations.md.

use std::{path::Path, time::Duration};

use chrono::{DateTime, Utc};
use coupon_core::{
    config::Settings,
    db::{self, Db, Role},
    doctor::{self, Server, Work},
    rate_limit::RateLimits,
};
use rustix::process::{Resource, getrlimit};

use crate::{print, secrets};

/// How long the database may take to answer everything.
const PATIENCE: Duration = Duration::from_secs(15);

/// The oldest server that is supported.
const LEAST_VERSION: i32 = 150_000;

/// Clocks that are further apart than this, in milliseconds, make times in logs and tokens hard to follow.
const MOST_SKEW: i64 = 5_000;

/// A worker takes a tick every five seconds.
const TICK_SILENCE: i64 = 30;

/// Work that waits for longer, in seconds, is not being worked on, or not fast enough.
const LONG_WAIT: i64 = 60;

/// A transaction that is open for longer, in seconds, keeps dead rows from being tidied up.
const LONG_TRANSACTION: f64 = 600.0;

/// Free room below this, in bytes, is worth a word.
const LITTLE_ROOM: u64 = 2 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    Warn,
    Fail,
}

/// One answer.
#[derive(Debug)]
struct Finding {
    check: &'static str,
    status: Status,
    detail: String,
}

fn finding(check: &'static str, status: Status, detail: impl Into<String>) -> Finding {
    Finding {
        check,
        status,
        detail: detail.into(),
    }
}

/// Well if it is so, else what it is with why.
fn judge(
    check: &'static str,
    well: bool,
    otherwise: Status,
    good: String,
    bad: impl FnOnce() -> String,
) -> Finding {
    if well {
        finding(check, Status::Ok, good)
    } else {
        finding(check, otherwise, bad())
    }
}

/// Makes every check and prints what it found; says whether nothing is wrong.
pub(crate) async fn run(settings: &Settings, json: bool) -> bool {
    let mut findings = of_settings(settings);
    findings.extend(of_system(settings));
    match &settings.database_url {
        Some(url) => match tokio::time::timeout(PATIENCE, of_database(url.reveal())).await {
            Ok(found) => findings.extend(found),
            Err(_) => findings.push(finding("database", Status::Fail, format!("it does not answer within {PATIENCE:?}"))),
        },
        None => findings.push(finding(
            "database",
            Status::Warn,
            "COUPONBOOK_DATABASE_URL is not set: only `couponbook up` brings its own, which is not looked into from here",
        )),
    }
    for found in &findings {
        let status = match found.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        };
        if json {
            print(
                &serde_json::json!({ "check": found.check, "status": status, "detail": found.detail })
                    .to_string(),
            );
        } else {
            print(&format!("{status:<5} {:<14} {}", found.check, found.detail));
        }
    }
    findings.iter().all(|found| found.status != Status::Fail)
}

fn of_settings(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if settings.database_url.is_some() {
        let keys = secrets::keys(settings);
        findings.push(judge(
            "token secret",
            keys.is_ok(),
            Status::Fail,
            "set, and long enough".into(),
            || keys.err().map_or_else(String::new, |error| error.to_string()),
        ));
    }
    for (on, check, detail) in [
        (
            !settings.security_budgets.is_on(),
            "settings",
            "security_budgets is off: passwords and codes can be guessed without a limit",
        ),
        (
            settings.rate_limits == RateLimits::OFF,
            "settings",
            "rate_limits is off, which is for load tests",
        ),
        (
            !settings.listen.ip().is_loopback(),
            "settings",
            "listen is no loopback address: put TLS in front, tokens and keys travel in clear otherwise",
        ),
        (
            settings.registration.is_on(),
            "settings",
            "registration is on: strangers can make accounts",
        ),
    ] {
        if on {
            findings.push(finding(check, Status::Warn, detail));
        }
    }
    if findings.iter().all(|found| found.check != "settings") {
        findings.push(finding("settings", Status::Ok, "nothing unusual"));
    }
    findings
}

fn of_system(settings: &Settings) -> Vec<Finding> {
    let wanted = settings.connections as u64 + u64::from(settings.database_connections) + 64;
    let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let mut findings = vec![judge(
        "open files",
        allowed >= wanted,
        Status::Warn,
        format!("{allowed} allowed, {wanted} wanted at most"),
        || {
            format!(
                "{allowed} allowed, {wanted} wanted for `connections`: raise the limit (ulimit -n), or lower the setting"
            )
        },
    )];
    // Where there is no database of its own, the directory may not be there at all.
    if let Ok(dir) = secrets::data_dir(settings)
        && let Some(free) = free_room(&dir)
    {
        let room = format!(
            "{:.1} GiB free at {}",
            free as f64 / f64::from(1 << 30),
            dir.display()
        );
        findings.push(judge(
            "disk",
            free >= LITTLE_ROOM,
            Status::Warn,
            room.clone(),
            || room,
        ));
    }
    findings
}

fn free_room(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

async fn of_database(url: &str) -> Vec<Finding> {
    let db = match Db::connect(url, Role::Api, 1) {
        Ok(db) => db,
        Err(error) => {
            return vec![finding(
                "database",
                Status::Fail,
                format!("the URL cannot be used: {error}"),
            )];
        }
    };
    let asked = async {
        let mut connection = db.pool().acquire().await?;
        let before = Utc::now();
        let server = doctor::server(&mut connection).await?;
        let middle = before + (Utc::now() - before) / 2;
        let mut findings = of_server(&server, middle);
        if !server.has_schema {
            findings.push(finding(
                "schema",
                Status::Fail,
                "there is none: run `couponbook migrate`",
            ));
            return Ok(findings);
        }
        drop(connection);
        let pending = db::pending_migrations(&db).await?;
        findings.push(judge(
            "schema",
            pending == 0,
            Status::Fail,
            "up to date".into(),
            || format!("{pending} migrations are missing: run `couponbook migrate`"),
        ));
        let mut connection = db.pool().acquire().await?;
        findings.extend(of_work(&doctor::work(&mut connection).await?, &server));
        Ok::<_, coupon_core::Error>(findings)
    };
    let findings = match asked.await {
        Ok(findings) => findings,
        Err(error) => vec![finding(
            "database",
            Status::Fail,
            format!("it cannot be asked: {error}"),
        )],
    };
    db.close().await;
    findings
}

fn of_server(server: &Server, own: DateTime<Utc>) -> Vec<Finding> {
    let version = server.version_text.clone();
    let size = format!("{:.1} MiB", server.bytes as f64 / f64::from(1 << 20));
    let mut findings = vec![judge(
        "database",
        server.version >= LEAST_VERSION,
        Status::Fail,
        format!("PostgreSQL {version} answers; {size} in use"),
        || format!("PostgreSQL {version} is too old; 15 or later is needed"),
    )];
    if server.read_only {
        findings.push(finding(
            "database",
            Status::Fail,
            "it only reads: this is a standby, or made read-only",
        ));
    }
    let durable = [
        &server.fsync,
        &server.full_page_writes,
        &server.synchronous_commit,
    ];
    let is_durable = durable
        .iter()
        .all(|setting| !matches!(setting.as_str(), "off" | "local"));
    findings.push(judge(
        "durability",
        is_durable,
        Status::Fail,
        "commits outlive a crash".into(),
        || {
            format!(
                "fsync is {}, full_page_writes {}, synchronous_commit {}: a crash can lose or double what was answered",
                server.fsync, server.full_page_writes, server.synchronous_commit
            )
        },
    ));
    let skew = (server.now - own).num_milliseconds();
    findings.push(judge(
        "clock",
        skew.abs() <= MOST_SKEW,
        Status::Warn,
        format!("{skew} ms between the database's and this machine's"),
        || format!("the database's is {skew} ms ahead of this machine's; locks go by the database's, tokens and logs by this one"),
    ));
    let left = server.max_connections - server.connections;
    let share = format!(
        "{} of {} connections are in use",
        server.connections, server.max_connections
    );
    findings.push(judge(
        "connections",
        left >= 10,
        Status::Warn,
        share.clone(),
        || share,
    ));
    if let Some(seconds) = server
        .oldest_transaction
        .filter(|seconds| *seconds > LONG_TRANSACTION)
    {
        let detail = format!("one has been open for {seconds:.0} s; dead rows pile up behind it");
        findings.push(finding("transactions", Status::Warn, detail));
    }
    if let Some(seconds) = server.oldest_prepared {
        let detail =
            format!("one was prepared {seconds:.0} s ago and holds its locks; this service prepares none");
        findings.push(finding("transactions", Status::Warn, detail));
    }
    findings
}

fn of_work(work: &Work, server: &Server) -> Vec<Finding> {
    let ago = |time: DateTime<Utc>| (server.now - time).num_seconds().max(0);
    let mut findings = vec![judge(
        "administrator",
        work.has_admin,
        Status::Warn,
        "there is one".into(),
        || "there is none: start `up` or `api` and follow the line that they print".into(),
    )];
    let tick = work.last_tick.map(ago);
    findings.push(judge(
        "workers",
        tick.is_some_and(|seconds| seconds <= TICK_SILENCE),
        Status::Fail,
        format!(
            "heard of {} s ago; {} connections open",
            tick.unwrap_or(0),
            server.worker_connections
        ),
        || match tick {
            Some(seconds) => format!(
                "nothing heard for {seconds} s from one with the system queue: start `couponbook worker`"
            ),
            None => "none has ever run here: start `couponbook worker`".to_owned(),
        },
    ));
    for due in &work.due {
        let waited = ago(due.since);
        let detail = format!("{}: {} due, the oldest for {waited} s", due.queue, due.rows);
        findings.push(judge(
            "queue",
            waited <= LONG_WAIT,
            Status::Warn,
            detail.clone(),
            || format!("{detail}; is a worker working on this queue?"),
        ));
    }
    if work.due.is_empty() {
        findings.push(finding("queue", Status::Ok, "nothing waits"));
    }
    findings
}
