//! `couponbook import`: sends a file as it is, never whole in memory, and follows the job.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clap::ValueEnum;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{Client, Done, Exit, Failure, Waiting, export, http, jobs, progress, text};
use crate::say;

/// Bytes sent at once.
const PIECE: usize = 256 << 10;

/// What to import, and how it is to be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file: CSV, plain or packed with gzip or zstd; `-` for stdin.
    file: PathBuf,
    /// Into which book: its id or its name.
    #[arg(long)]
    book: String,
    /// Only check the file; the report says what would be.
    #[arg(long, conflicts_with = "mode")]
    dry_run: bool,
    /// What is done about bad lines; skip-invalid by default.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// The column of the codes: its name, or its number from 1.
    #[arg(long)]
    column: Option<String>,
    /// Between fields: `,` `;` `|` or `tab`; found out by default.
    #[arg(long)]
    delimiter: Option<String>,
    /// Whether the first line names the columns; found out by default.
    #[arg(long, value_name = "BOOL")]
    has_header: Option<bool>,
    /// Such as utf-8 or windows-1252; found out by default.
    #[arg(long)]
    encoding: Option<String>,
    /// Columns that are not understood become metadata.
    #[arg(long)]
    metadata_columns: bool,
    /// Wait, and write the bad lines to this file as they were sent, to be mended and sent again.
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    SkipInvalid,
    AllOrNothing,
    ValidateOnly,
}

impl Arguments {
    fn query(&self) -> String {
        let mode = match self.mode {
            _ if self.dry_run => Some("validate_only"),
            None => None,
            Some(Mode::SkipInvalid) => Some("skip_invalid"),
            Some(Mode::AllOrNothing) => Some("all_or_nothing"),
            Some(Mode::ValidateOnly) => Some("validate_only"),
        };
        let has_header = self.has_header.map(|has| has.to_string());
        let delimiter = self
            .delimiter
            .as_deref()
            .map(|text| if text == "tab" { "\t" } else { text });
        let pairs = [
            ("mode", mode),
            ("column", self.column.as_deref()),
            ("delimiter", delimiter),
            ("has_header", has_header.as_deref()),
            ("encoding", self.encoding.as_deref()),
            ("metadata_columns", self.metadata_columns.then_some("true")),
        ];
        let given: Vec<String> = pairs
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}={}", http::encode(value?))))
            .collect();
        if given.is_empty() {
            String::new()
        } else {
            format!("?{}", given.join("&"))
        }
    }
}

pub(super) async fn run(client: &Client, arguments: Arguments) -> Done {
    // A file that cannot be read is told before anything is asked.
    let (source, length) = open(&arguments.file).await?;
    let book_id = client.book(&arguments.book).await?;
    let path = format!("/v1/books/{book_id}/codes/import{}", arguments.query());
    client.under_way.set("the upload was cut; nothing was imported");
    let job = send(client, &path, source, length).await?;
    let waiting = Waiting {
        wait: arguments.waiting.wait || arguments.errors.is_some(),
        ..arguments.waiting
    };
    let Some(errors) = &arguments.errors else {
        return client.started(job, &waiting).await;
    };
    let job = client
        .finish(&job, waiting.timeout.map(Duration::from_secs))
        .await?;
    client.output.object(&job, || progress::receipt(&job));
    if has_bad_lines(&job) {
        export::fetch(client, text(&job["links"]["report"]), Some(errors)).await?;
        say(&format!("the bad lines are in {}", errors.display()));
    } else {
        say("no line was bad");
    }
    jobs::verdict(&job)
}

fn has_bad_lines(job: &Value) -> bool {
    ["invalid", "duplicate_in_file", "duplicate_in_book"]
        .iter()
        .any(|name| job["counts"][name].as_u64().unwrap_or(0) > 0)
        || job["state"] == "failed"
}

/// What is sent, and its length where it is known.
type Source = Box<dyn AsyncRead + Send + Sync + Unpin>;

async fn open(path: &PathBuf) -> Done<(Source, Option<u64>)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(export::file_of(&std::io::stdin())?), None));
    }
    let unreadable = |error: std::io::Error| {
        Failure::new(Exit::Usage, format!("{} cannot be read: {error}", path.display()))
    };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let meta = file.metadata().await.map_err(unreadable)?;
    if meta.is_dir() {
        return Err(Failure::new(
            Exit::Usage,
            format!("{} is a directory", path.display()),
        ));
    }
    // A pipe has no length of its own.
    let length = meta.is_file().then_some(meta.len());
    Ok((Box::new(file), length))
}

/// Sends it and shows how far it is.
async fn send(client: &Client, path: &str, source: Source, length: Option<u64>) -> Done<Value> {
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let pieces = stream::try_unfold(source, move |mut source| {
        let count = Arc::clone(&count);
        async move {
            let mut piece = vec![0; PIECE];
            let read = source.read(&mut piece).await?;
            piece.truncate(read);
            count.fetch_add(read as u64, Ordering::Relaxed);
            let frame = (read > 0).then(|| (Frame::data(Bytes::from(piece)), source));
            Ok::<_, std::io::Error>(frame)
        }
    });
    let body = BodyExt::boxed(StreamBody::new(pieces));
    let mut progress = progress::Progress::new();
    let mut sending = std::pin::pin!(client.http.post_stream(path, length, body));
    loop {
        tokio::select! {
            answer = &mut sending => return answer,
            () = tokio::time::sleep(Duration::from_millis(250)) => {
                let done = sent.load(Ordering::Relaxed);
                progress.show(done, length, || format!("sending: {} MiB", done >> 20));
            }
        }
    }
}
