//! Figures of the service, each as a ratio to a limit that is measured in the same run on the same machine.
//!
//! Invariant: limit and figure are taken in turns, and what is reported is the median of the rounds, so that a machine
//! that slows down meanwhile slows both. PostgreSQL commits durably (fsync and synchronous_commit on) in every run.
//! To add a figure: a file under `figures/`, a variant of [`Figure`], an arm in [`measure`].
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports")]

mod bulk;
mod figures;
mod limit;
mod load;
mod report;
mod stand;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, ValueEnum};

use crate::{report::Report, stand::Stand};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Assign jobs over HTTP, to their end, against commits.
    P1,
    /// From POST until a worker has begun, when idle.
    P1c,
    /// A CSV file over HTTP to the end of its job, against copying the same rows.
    P2,
    /// Making codes against copying the same rows.
    P3,
    /// A distribution to a large pool against writing its audit rows alone.
    P4,
    /// Polling a job against a server that says hello.
    P5,
    /// Lock and redeem over HTTP against the bare statements.
    P6,
    /// A draw from large books against a small one, and beside an old snapshot.
    P7,
    /// Resident memory: idle, taking codes in, making them.
    P8,
    /// The sweep of lapsed locks against one big statement.
    P9,
}

/// Measures figures of the service and prints them with their limits.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which; all of them if none is named.
    figures: Vec<Figure>,
    /// How long each load runs.
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// How often limit and figure take turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Smaller books, for trying out.
    #[arg(long)]
    quick: bool,
    /// Also append the table to this file.
    #[arg(long)]
    save: Option<PathBuf>,
    /// Settings of the stand's PostgreSQL, as name=value.
    #[arg(long = "pg", value_parser = setting)]
    pg_settings: Vec<(String, String)>,
    /// The binary that is measured.
    #[arg(long, default_value = "target/release/couponbook")]
    binary: PathBuf,
}

/// How much effort a run takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    seconds: u64,
    rounds: usize,
    quick: bool,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn main() -> anyhow::Result<()> {
    // The hello server is a process of its own, as the service is.
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("hello") {
        return figures::poll::serve_hello();
    }
    let arguments = Arguments::parse();
    tokio::runtime::Runtime::new()?.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let figures = if arguments.figures.is_empty() {
        Figure::value_variants().to_vec()
    } else {
        arguments.figures.clone()
    };
    let effort = Effort {
        seconds: arguments.seconds,
        rounds: arguments.rounds,
        quick: arguments.quick,
    };
    let mut report = Report::new();
    let mut stand = Stand::start(&arguments.binary, arguments.pg_settings).await?;
    for figure in figures {
        let measured = measure(figure, &mut stand, effort, &mut report).await;
        measured.with_context(|| format!("{figure:?} could not be measured"))?;
    }
    stand.stop().await;
    println!("\n{report}");
    if let Some(path) = arguments.save {
        report.append_to(&path)?;
    }
    Ok(())
}

async fn measure(
    figure: Figure,
    stand: &mut Stand,
    effort: Effort,
    report: &mut Report,
) -> anyhow::Result<()> {
    match figure {
        Figure::P1 => figures::assign::throughput(stand, effort, report).await,
        Figure::P1c => figures::assign::start_latency(stand, report).await,
        Figure::P2 => figures::import::measure(stand, effort, report).await,
        Figure::P3 => figures::generate::measure(stand, effort, report).await,
        Figure::P4 => figures::distribute::measure(stand, effort, report).await,
        Figure::P5 => figures::poll::measure(stand, effort, report).await,
        Figure::P6 => figures::till::measure(stand, effort, report).await,
        Figure::P7 => figures::draw::measure(stand, effort, report).await,
        Figure::P8 => figures::memory::measure(stand, effort, report).await,
        Figure::P9 => figures::sweep::measure(stand, effort, report).await,
    }
}
