//! Settings: defaults < TOML file < environment < flags. Unknown keys are errors, wherever they stand.
//!
//! | key (TOML) | environment | meaning | default |
//! |---|---|---|---|
//! | `database_url` | `COUPONBOOK_DATABASE_URL` | PostgreSQL 15 or later; without it `up` starts its own | none |
//! | `listen` | `COUPONBOOK_LISTEN` | address of the HTTP server | `127.0.0.1:8080` |
//! | `metrics_listen` | `COUPONBOOK_METRICS_LISTEN` | address that /metrics is told on instead of the HTTP server's; a `worker` tells it nowhere else | none |
//! | `data_dir` | `COUPONBOOK_DATA_DIR` | where `up` keeps its database and secrets | as root `/var/lib/couponbook`, else XDG |
//! | `admin_email`, `admin_password` | `COUPONBOOK_ADMIN_EMAIL`, `COUPONBOOK_ADMIN_PASSWORD` | the first administrator, made when there is none | none |
//! | `token_secret` | `COUPONBOOK_TOKEN_SECRET` | ≥ 32 bytes; signs tokens | made and kept by `up` |
//! | `log` | `COUPONBOOK_LOG` | log filter | `info` |
//! | `log_format` | `COUPONBOOK_LOG_FORMAT` | `text` or `json` | `text` |
//! | `registration` | `COUPONBOOK_REGISTRATION` | `on` lets strangers make accounts | `off` |
//! | `rate_limits` | `COUPONBOOK_RATE_LIMITS` | `on`, `off` (for load tests), or requests per seconds such as `writes=300/60, address=off` | `on` |
//! | `security_budgets` | `COUPONBOOK_SECURITY_BUDGETS` | `off` stops throttling log-ins and code misses | `on` |
//! | `connections` | `COUPONBOOK_CONNECTIONS` | open client connections at most | 4096 |
//! | `database_connections` | `COUPONBOOK_DATABASE_CONNECTIONS` | of the HTTP role to PostgreSQL | 24 |
//! | `queue_limit` | `COUPONBOOK_QUEUE_LIMIT` | due jobs beyond which new ones are refused | 1000000 |
//! | `max_upload_bytes` | `COUPONBOOK_MAX_UPLOAD_BYTES` | of one file's text | 4294967296 |
//! | `keep_jobs_days` | `COUPONBOOK_KEEP_JOBS_DAYS` | days a job can be read after its end; twice that if it left a list of errors or a file | 30 |
//! | `keep_reports_days` | `COUPONBOOK_KEEP_REPORTS_DAYS` | days its list of errors is kept | 30 |
//! | `keep_exports_days` | `COUPONBOOK_KEEP_EXPORTS_DAYS` | days an export's file is kept | 30 |
//! | `keep_uploads_days` | `COUPONBOOK_KEEP_UPLOADS_DAYS` | days an import's text is kept | 1 |
//! | `pg_bin` | `PG_BIN` | directory of the PostgreSQL programs | looked for |
//! | `url` | `COUPONBOOK_URL` | the service that the client commands talk to | `http://127.0.0.1:8080` |
//! | `api_key` | `COUPONBOOK_API_KEY` | with which key | none |
//!
//! Every variable also as `…_FILE`: the file's content, without the line's end.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf};

use crate::{rate_limit::RateLimits, retention::Retention, telemetry::Format};

/// A secret that neither prints nor serialises itself.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A switch, spelled `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl Switch {
    /// Whether it is on.
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Everything that can be set.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the table at the head of this file says what each key means"
)]
pub struct Settings {
    pub database_url: Option<Secret>,
    pub listen: SocketAddr,
    pub metrics_listen: Option<SocketAddr>,
    pub data_dir: Option<PathBuf>,
    pub admin_email: Option<String>,
    pub admin_password: Option<Secret>,
    pub token_secret: Option<Secret>,
    pub log: String,
    pub log_format: Format,
    pub registration: Switch,
    pub rate_limits: RateLimits,
    pub security_budgets: Switch,
    pub connections: usize,
    pub database_connections: u32,
    pub queue_limit: u64,
    pub max_upload_bytes: u64,
    pub keep_jobs_days: u32,
    pub keep_reports_days: u32,
    pub keep_exports_days: u32,
    pub keep_uploads_days: u32,
    pub pg_bin: Option<PathBuf>,
    pub url: String,
    pub api_key: Option<Secret>,
}

impl Default for Settings {
    fn default() -> Self {
        let keep = Retention::default();
        Self {
            database_url: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            metrics_listen: None,
            data_dir: None,
            admin_email: None,
            admin_password: None,
            token_secret: None,
            log: "info".to_owned(),
            log_format: Format::Text,
            registration: Switch::Off,
            rate_limits: RateLimits::default(),
            security_budgets: Switch::On,
            connections: 4_096,
            database_connections: 24,
            queue_limit: 1_000_000,
            max_upload_bytes: 4 << 30,
            keep_jobs_days: keep.jobs,
            keep_reports_days: keep.reports,
            keep_exports_days: keep.exports,
            keep_uploads_days: keep.uploads,
            pg_bin: None,
            url: "http://127.0.0.1:8080".to_owned(),
            api_key: None,
        }
    }
}

/// Every key and its environment variable.
pub const KEYS: [(&str, &str); 23] = [
    ("database_url", "COUPONBOOK_DATABASE_URL"),
    ("listen", "COUPONBOOK_LISTEN"),
    ("metrics_listen", "COUPONBOOK_METRICS_LISTEN"),
    ("data_dir", "COUPONBOOK_DATA_DIR"),
    ("admin_email", "COUPONBOOK_ADMIN_EMAIL"),
    ("admin_password", "COUPONBOOK_ADMIN_PASSWORD"),
    ("token_secret", "COUPONBOOK_TOKEN_SECRET"),
    ("log", "COUPONBOOK_LOG"),
    ("log_format", "COUPONBOOK_LOG_FORMAT"),
    ("registration", "COUPONBOOK_REGISTRATION"),
    ("rate_limits", "COUPONBOOK_RATE_LIMITS"),
    ("security_budgets", "COUPONBOOK_SECURITY_BUDGETS"),
    ("connections", "COUPONBOOK_CONNECTIONS"),
    ("database_connections", "COUPONBOOK_DATABASE_CONNECTIONS"),
    ("queue_limit", "COUPONBOOK_QUEUE_LIMIT"),
    ("max_upload_bytes", "COUPONBOOK_MAX_UPLOAD_BYTES"),
    ("keep_jobs_days", "COUPONBOOK_KEEP_JOBS_DAYS"),
    ("keep_reports_days", "COUPONBOOK_KEEP_REPORTS_DAYS"),
    ("keep_exports_days", "COUPONBOOK_KEEP_EXPORTS_DAYS"),
    ("keep_uploads_days", "COUPONBOOK_KEEP_UPLOADS_DAYS"),
    ("pg_bin", "PG_BIN"),
    ("url", "COUPONBOOK_URL"),
    ("api_key", "COUPONBOOK_API_KEY"),
];

/// The most days that anything is kept: a hundred years are for ever, and PostgreSQL can reckon with them.
const MOST_DAYS: u32 = 36_500;

/// Idempotency keys are kept for two days and name jobs.
const LEAST_JOB_DAYS: u32 = 2;

/// The prefix of this service's variables.
const PREFIX: &str = "COUPONBOOK_";

/// The prefix of variables that only tests read.
const TEST_PREFIX: &str = "COUPONBOOK_TEST_";

/// Why settings cannot be used; says which key and where it came from.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl Settings {
    /// Reads `file` (TOML), then `environment`, then `flags` (keys as in TOML), each over the one before.
    ///
    /// # Errors
    /// For unknown keys, values of the wrong form, and files that cannot be read.
    pub fn read(
        file: Option<&std::path::Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: &[(&str, String)],
    ) -> Result<Self, SettingsError> {
        let mut table = match file {
            Some(path) => {
                let text = read_file(path)?;
                text.parse::<toml::Table>().map_err(|error| {
                    let line = line_of(&text, &error);
                    SettingsError(format!("{}, line {line}: {}", path.display(), error.message()))
                })?
            }
            None => toml::Table::new(),
        };
        for (key, value) in from_environment(environment)? {
            table.insert(key.to_owned(), typed(key, value));
        }
        for (key, value) in flags {
            table.insert((*key).to_owned(), typed(key, value.clone()));
        }
        let settings: Self = toml::Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| SettingsError(told(&error)))?;
        if settings.keep_jobs_days < LEAST_JOB_DAYS {
            return Err(SettingsError(format!(
                "keep_jobs_days is at least {LEAST_JOB_DAYS}: a repeated request may ask for its job for so long"
            )));
        }
        for (key, days) in [
            ("keep_jobs_days", settings.keep_jobs_days),
            ("keep_reports_days", settings.keep_reports_days),
            ("keep_exports_days", settings.keep_exports_days),
            ("keep_uploads_days", settings.keep_uploads_days),
        ] {
            if days > MOST_DAYS {
                return Err(SettingsError(format!(
                    "{key} is at most {MOST_DAYS}, a hundred years"
                )));
            }
        }
        Ok(settings)
    }

    /// How long what jobs leave behind is kept.
    pub fn retention(&self) -> Retention {
        Retention {
            jobs: self.keep_jobs_days,
            reports: self.keep_reports_days,
            exports: self.keep_exports_days,
            uploads: self.keep_uploads_days,
        }
    }
}

fn read_file(path: &std::path::Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path)
        .map_err(|error| SettingsError(format!("{} cannot be read: {error}", path.display())))
}

fn from_environment(
    environment: impl Iterator<Item = (String, String)>,
) -> Result<BTreeMap<&'static str, String>, SettingsError> {
    let mut values = BTreeMap::new();
    for (name, value) in environment {
        let (plain, is_file) = match name.strip_suffix("_FILE") {
            Some(plain) => (plain, true),
            None => (name.as_str(), false),
        };
        let Some((key, _)) = KEYS.into_iter().find(|(_, variable)| *variable == plain) else {
            if name.starts_with(PREFIX) && !name.starts_with(TEST_PREFIX) {
                return Err(SettingsError(format!("{name} is no setting of couponbook")));
            }
            continue;
        };
        let value = if is_file {
            read_file(std::path::Path::new(&value))?
                .trim_end_matches(['\n', '\r'])
                .to_owned()
        } else {
            value
        };
        if values.insert(key, value).is_some() {
            return Err(SettingsError(format!(
                "{plain} and {plain}_FILE are both set; one is enough"
            )));
        }
    }
    Ok(values)
}

/// The number of the line that cannot be read; the line itself may hold a secret.
fn line_of(text: &str, error: &toml::de::Error) -> usize {
    let before = error.span().map_or(0, |span| span.start.min(text.len()));
    1 + text.as_bytes()[..before]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
}

/// What is wrong with which key. A value of the wrong kind is not repeated: it may be a secret.
fn told(error: &toml::de::Error) -> String {
    let message = error.message();
    let kind = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|prefix| message.strip_prefix(prefix))
        .and_then(|rest| rest.rsplit_once(", expected "));
    let what = match kind {
        Some((_, "a string")) => "it is a text, in quotation marks".to_owned(),
        Some((_, "usize" | "u64" | "u32")) => "it is a whole number, not below 0".to_owned(),
        Some((_, expected)) => format!("it is {expected}"),
        None => message.to_owned(),
    };
    let text = error.to_string(); // the message, and on a line of its own the key
    let key = text
        .rsplit_once("in `")
        .and_then(|(_, rest)| rest.split_once('`'));
    let key = key.map_or("the settings", |(key, _)| key);
    format!("{key} cannot be used: {what}")
}

/// Numbers are numbers in TOML; in the environment everything is text.
fn typed(key: &str, value: String) -> toml::Value {
    let number = key.ends_with("_days")
        || matches!(
            key,
            "connections" | "database_connections" | "queue_limit" | "max_upload_bytes"
        );
    match value.parse::<i64>() {
        Ok(value) if number => toml::Value::Integer(value),
        _ => toml::Value::String(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<Vec<_>>()
            .into_iter()
    }

    #[test]
    fn later_sources_win_and_unknown_keys_are_errors() {
        let dir = std::env::temp_dir().join(format!("couponbook-config-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (file, secret) = (dir.join("c.toml"), dir.join("secret"));
        std::fs::write(
            &file,
            "listen = \"127.0.0.1:1\"\nlog = \"debug\"\nconnections = 7\n",
        )
        .unwrap();
        std::fs::write(&secret, "hush\n").unwrap();
        let settings = Settings::read(
            Some(&file),
            environment(&[
                ("COUPONBOOK_LISTEN", "127.0.0.1:2"),
                ("COUPONBOOK_LOG", "warn"),
                ("COUPONBOOK_API_KEY_FILE", secret.to_str().unwrap()),
                ("PATH", "/bin"),
            ]),
            &[("listen", "127.0.0.1:3".to_owned())],
        )
        .unwrap();
        assert_eq!(
            (
                settings.listen.port(),
                settings.log.as_str(),
                settings.connections
            ),
            (3, "warn", 7)
        );
        assert_eq!(settings.api_key.as_ref().map(Secret::reveal), Some("hush"));
        assert!(!format!("{settings:?}").contains("hush"));

        std::fs::write(&file, "listens = \"127.0.0.1:1\"\n").unwrap();
        assert!(
            Settings::read(Some(&file), environment(&[]), &[])
                .unwrap_err()
                .to_string()
                .contains("listens")
        );
        std::fs::remove_dir_all(&dir).unwrap();
        let unknown = Settings::read(None, environment(&[("COUPONBOOK_LISTENS", "x")]), &[]);
        assert!(unknown.unwrap_err().to_string().contains("COUPONBOOK_LISTENS"));
        let wrong = Settings::read(None, environment(&[("COUPONBOOK_REGISTRATION", "maybe")]), &[]);
        assert!(wrong.unwrap_err().to_string().contains("maybe"));
        let short = Settings::read(None, environment(&[("COUPONBOOK_KEEP_JOBS_DAYS", "1")]), &[]);
        assert!(short.unwrap_err().to_string().contains("keep_jobs_days"));
        let long = Settings::read(
            None,
            environment(&[("COUPONBOOK_KEEP_EXPORTS_DAYS", "3000000")]),
            &[],
        );
        assert!(long.unwrap_err().to_string().contains("keep_exports_days"));
    }

    #[test]
    fn an_error_in_a_file_names_the_place_and_never_a_secret() {
        let file = std::env::temp_dir().join(format!("couponbook-secret-{}.toml", std::process::id()));
        let error = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Settings::read(Some(&file), environment(&[]), &[])
                .unwrap_err()
                .to_string()
        };
        let unquoted = error("log = \"debug\"\ntoken_secret = hush4711\n");
        assert!(unquoted.contains("line 2"), "{unquoted}");
        let number = error("token_secret = 4711\n");
        assert!(number.contains("token_secret"), "{number}");
        for error in [unquoted, number, error("api_key = [\"4711\"]\n")] {
            assert!(!error.contains("4711"), "{error}");
        }
        for many in ["\"many\"", "-5", "1.5"] {
            let many = error(&format!("connections = {many}\n"));
            assert_eq!(
                many,
                "connections cannot be used: it is a whole number, not below 0"
            );
        }
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn every_key_has_its_variable_and_its_field() {
        for (key, _) in KEYS {
            let value = match key {
                "listen" | "metrics_listen" => "127.0.0.1:1",
                "log_format" => "json",
                "registration" | "rate_limits" | "security_budgets" => "on",
                "connections" | "database_connections" | "queue_limit" | "max_upload_bytes" => "5",
                key if key.ends_with("_days") => "5",
                _ => "text",
            };
            Settings::read(None, environment(&[]), &[(key, value.to_owned())])
                .unwrap_or_else(|error| panic!("{key}: {error}"));
        }
    }
}
