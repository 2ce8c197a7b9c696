//! `couponbook`, the one binary: the service's processes and its administration.
//!
//! Invariant: data goes to stdout, everything else to stderr; the exit code is 0 when it went well, 1 when it failed and
//! 2 when the command line or the settings cannot be used; the client commands know more ([`client::Exit`]).

mod admin;
mod client;
mod demo;
mod doctor;
mod processes;
mod secrets;
mod verify_draw;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use coupon_core::{config::Settings, job::Queue, telemetry};

/// Coupon books: hand out codes, hold them, redeem them, each exactly once.
#[derive(Parser)]
#[command(name = "couponbook", version, max_term_width = 100)]
struct Cli {
    /// Settings in a TOML file; the environment and flags win over it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything in one process: a private PostgreSQL (unless a database URL is set), migrations, API and workers.
    Up {
        #[command(flatten)]
        listen: Listen,
        /// Where the private database and the secrets are kept.
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Fill an empty service with books, users and codes to look at; only on a loopback address.
        #[arg(long)]
        demo: bool,
    },
    /// The HTTP role alone.
    Api {
        #[command(flatten)]
        listen: Listen,
    },
    /// The workers alone.
    Worker {
        /// Which queues to work on.
        #[arg(long, value_delimiter = ',', value_name = "QUEUES", default_values_t = [QueueName::Assign, QueueName::Bulk, QueueName::System])]
        queues: Vec<QueueName>,
    },
    /// Bring the database's schema up to date.
    Migrate,
    /// Look at what a service needs and say plainly what is wrong.
    Doctor {
        /// Print one JSON object for each check.
        #[arg(long)]
        json: bool,
    },
    /// Do the draws of a proof again, offline, and say what does not fit.
    VerifyDraw {
        /// What GET /v1/distributions/{id}/proof answered.
        file: PathBuf,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// Print a completion script for a shell.
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
    /// Administration that needs the database.
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
    },
    #[command(flatten)]
    Client(client::ClientCommand),
}

#[derive(Args)]
struct Listen {
    /// Address to listen on; port 0 takes any.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Make an account. The password comes from COUPONBOOK_ADMIN_PASSWORD, a prompt, or a line on stdin.
    CreateUser {
        /// E-mail address to log in with.
        #[arg(long)]
        email: String,
        /// Name for people; the address by default.
        #[arg(long)]
        name: Option<String>,
        /// What the account may do.
        #[arg(long, value_enum, default_value_t = RoleName::User)]
        role: RoleName,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleName {
    Admin,
    User,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum QueueName {
    Assign,
    Bulk,
    System,
}

impl std::fmt::Display for QueueName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Queue::from(*self).name())
    }
}

impl From<QueueName> for Queue {
    fn from(name: QueueName) -> Self {
        match name {
            QueueName::Assign => Self::Assign,
            QueueName::Bulk => Self::Bulk,
            QueueName::System => Self::System,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let settings = match settings(&cli) {
        Ok(settings) => settings,
        Err(error) => return fail(&error, 2),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into(), 1),
    };
    let ended = runtime.block_on(run(cli.command, settings));
    // Whatever still runs in the background is safe to drop: effects live in transactions.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(error) => fail(&error, 1),
    }
}

fn settings(cli: &Cli) -> anyhow::Result<Settings> {
    let mut flags: Vec<(&str, String)> = Vec::new();
    let (listen, data_dir) = match &cli.command {
        Command::Up { listen, data_dir, .. } => (listen.listen, data_dir.clone()),
        Command::Api { listen } => (listen.listen, None),
        _ => (None, None),
    };
    if let Some(listen) = listen {
        flags.push(("listen", listen.to_string()));
    }
    if let Some(data_dir) = data_dir {
        flags.push(("data_dir", data_dir.to_string_lossy().into_owned()));
    }
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    let settings = Settings::read(cli.config.as_deref(), environment, &flags)?;
    telemetry::start(&settings.log, settings.log_format).map_err(anyhow::Error::msg)?;
    Ok(settings)
}

async fn run(command: Command, settings: Settings) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up { demo, .. } => processes::up(settings, demo).await?,
        Command::Api { .. } => processes::api(settings).await?,
        Command::Worker { queues } => {
            processes::worker(settings, queues.into_iter().map(Queue::from).collect()).await?;
        }
        Command::Migrate => processes::migrate(&settings).await?,
        Command::Doctor { json } => {
            let well = doctor::run(&settings, json).await;
            return Ok(ExitCode::from(u8::from(!well)));
        }
        Command::VerifyDraw { file } => {
            let fits = verify_draw::run(&file)?;
            return Ok(ExitCode::from(u8::from(!fits)));
        }
        Command::Openapi => print(&processes::openapi(&settings)?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "couponbook", &mut script);
            print(String::from_utf8_lossy(&script).trim_end());
        }
        Command::Admin {
            command: AdminCommand::CreateUser { email, name, role },
        } => {
            let role = match role {
                RoleName::Admin => coupon_core::caller::Role::Admin,
                RoleName::User => coupon_core::caller::Role::User,
            };
            admin::create_user(&settings, email, name, role)
                .await
                .context("the account was not made")?;
        }
        Command::Client(command) => return Ok(client::run(command, &settings).await),
    }
    Ok(ExitCode::SUCCESS)
}

/// A line of data for whoever called.
fn print(line: &str) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    // A closed pipe is the reader's choice.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// A line for the person in front of it.
#[expect(clippy::print_stderr, reason = "this is the one place that talks to people")]
fn say(line: &str) {
    eprintln!("{line}");
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    say(&format!("couponbook: {error:#}"));
    ExitCode::from(code)
}
