//! The client commands: what a person or a script does with a service that runs somewhere else, over HTTP alone.
//!
//! Invariant: data goes to stdout and everything else to stderr; how a command ended is its exit code ([`Exit`]). Nothing
//! here knows of the database.
//!
//! To add a command: its arguments and its function in the file of its noun, an arm in [`ClientCommand`], docs/cli.md.

mod books;
mod coupons;
mod export;
mod generate;
mod http;
mod import;
mod jobs;
mod output;
mod progress;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use coupon_core::config::{Secret, Settings};
use serde_json::Value;
use uuid::Uuid;

use self::{http::Http, output::Output};
use crate::say;

/// How a command ended; the numbers are a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    Auth = 3,
    NotFound = 4,
    Conflict = 5,
    RowErrors = 6,
    TimedOut = 7,
    Interrupted = 130,
}

/// Why a command did not do what it should.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    /// The service's own words, for `--json`.
    problem: Option<Value>,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            problem: None,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }
}

/// What a command came to.
type Done<T = Exit> = Result<T, Failure>;

/// Which service, and how to print.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// The service; else COUPONBOOK_URL, or `url` of the settings' file.
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// A file that holds the API key; else COUPONBOOK_API_KEY, COUPONBOOK_API_KEY_FILE or the settings' file.
    #[arg(long, global = true, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Print JSON: one object, or one on each line for lists.
    #[arg(long, global = true)]
    json: bool,
}

/// Whether to wait for the end of a job that was started.
#[derive(Debug, Clone, Args)]
pub(crate) struct Waiting {
    /// Wait for the job's end and show its progress. Ctrl-C stops waiting, not the job.
    #[arg(long)]
    wait: bool,
    /// Wait no longer than so many seconds (exit code 7).
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Books: list, show, make.
    Books {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: books::Command,
    },
    /// Import codes from a CSV file, plain, gzip or zstd.
    Import {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        arguments: import::Arguments,
    },
    /// Generate codes from a pattern.
    Generate {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        arguments: generate::Arguments,
    },
    /// Give coupons to a user.
    Assign {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        arguments: coupons::AssignArguments,
    },
    /// Coupons: look up, lock, unlock, redeem.
    Coupons {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: coupons::Command,
    },
    /// Export a book's coupons or redemptions as CSV.
    Export {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        arguments: export::Arguments,
    },
    /// Ask a service whether it is ready; needs no key. For health checks of containers.
    Health {
        #[command(flatten)]
        connection: Connection,
    },
    /// Jobs: list, show, watch, cancel, retry, and what they could not do.
    Jobs {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        command: jobs::Command,
    },
}

impl ClientCommand {
    fn connection(&self) -> &Connection {
        match self {
            Self::Books { connection, .. }
            | Self::Import { connection, .. }
            | Self::Generate { connection, .. }
            | Self::Assign { connection, .. }
            | Self::Coupons { connection, .. }
            | Self::Export { connection, .. }
            | Self::Health { connection }
            | Self::Jobs { connection, .. } => connection,
        }
    }
}

/// A service to talk to and a way to print.
struct Client {
    http: Http,
    output: Output,
    /// What goes on, or not, when the person presses Ctrl-C.
    under_way: UnderWay,
}

/// Says what an interrupt leaves behind.
#[derive(Debug, Clone, Default)]
struct UnderWay(std::sync::Arc<std::sync::Mutex<Option<String>>>);

impl UnderWay {
    fn set(&self, what: impl Into<String>) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(what.into());
    }

    fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

/// Runs a command to its end, or to Ctrl-C.
pub(crate) async fn run(command: ClientCommand, settings: &Settings) -> ExitCode {
    let connection = command.connection().clone();
    let output = Output::new(connection.json);
    let under_way = UnderWay::default();
    let ran = async {
        let client = Client {
            http: connect(&connection, settings)?,
            output: output.clone(),
            under_way: under_way.clone(),
        };
        dispatch(command, &client).await
    };
    let done = tokio::select! {
        done = ran => done,
        _ = tokio::signal::ctrl_c() => {
            let left = under_way.get().unwrap_or_else(|| "interrupted".to_owned());
            Err(Failure::new(Exit::Interrupted, left))
        }
    };
    let exit = match done {
        Ok(exit) => exit,
        Err(failure) => {
            match failure.problem.filter(|_| connection.json) {
                Some(problem) => say(&problem.to_string()),
                None => say(&format!("couponbook: {}", failure.message)),
            }
            failure.exit
        }
    };
    ExitCode::from(exit as u8)
}

fn connect(connection: &Connection, settings: &Settings) -> Done<Http> {
    let key = match &connection.api_key_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())))?;
            Some(Secret::new(text.trim_end_matches(['\n', '\r'])))
        }
        None => settings.api_key.clone(),
    };
    Http::new(connection.url.as_deref().unwrap_or(&settings.url), key)
}

async fn dispatch(command: ClientCommand, client: &Client) -> Done {
    match command {
        ClientCommand::Books { command, .. } => books::run(client, command).await,
        ClientCommand::Import { arguments, .. } => import::run(client, arguments).await,
        ClientCommand::Generate { arguments, .. } => generate::run(client, arguments).await,
        ClientCommand::Assign { arguments, .. } => coupons::assign(client, arguments).await,
        ClientCommand::Coupons { command, .. } => coupons::run(client, command).await,
        ClientCommand::Export { arguments, .. } => export::run(client, arguments).await,
        ClientCommand::Health { .. } => {
            let health = client.http.get("/readyz").await?;
            client.output.object(&health, || "ready".to_owned());
            Ok(Exit::Ok)
        }
        ClientCommand::Jobs { command, .. } => jobs::run(client, command).await,
    }
}

impl Client {
    /// A book by its id, or by its name where only one has it.
    async fn book(&self, text: &str) -> Done<Uuid> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let mut found = Vec::new();
        let mut pages = self.http.pages("/v1/books".to_owned());
        while let Some(page) = pages.next(&self.http).await? {
            found.extend(page.into_iter().filter(|book| book["name"] == text));
        }
        match found.as_slice() {
            [] => Err(Failure::new(
                Exit::NotFound,
                format!("there is no book called {text:?}"),
            )),
            [book] => id_of(book),
            _ => Err(Failure::new(
                Exit::Conflict,
                format!("{} books are called {text:?}; say which by its id", found.len()),
            )),
        }
    }

    /// A user by id or e-mail address.
    async fn user(&self, text: &str) -> Done<Uuid> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let page = self
            .http
            .get(&format!("/v1/users?email={}", http::encode(text)))
            .await?;
        match &page["data"][0] {
            Value::Null => Err(Failure::new(Exit::NotFound, format!("there is no user {text:?}"))),
            user => id_of(user),
        }
    }

    /// What to do about a job that was accepted: wait for its end, or say which it is.
    async fn started(&self, job: Value, waiting: &Waiting) -> Done {
        if !waiting.wait {
            self.output.object(&job, || text(&job["id"]).to_owned());
            return Ok(Exit::Ok);
        }
        let job = self
            .finish(&job, waiting.timeout.map(Duration::from_secs))
            .await?;
        self.output.object(&job, || progress::receipt(&job));
        jobs::verdict(&job)
    }
}

/// The id of an object of the service.
fn id_of(object: &Value) -> Done<Uuid> {
    text(&object["id"])
        .parse()
        .map_err(|_| Failure::new(Exit::Failed, "the service's answer has no id"))
}

/// A text, or nothing where there is none.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
