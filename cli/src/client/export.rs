//! `couponbook export`: starts an export, waits for it, and fetches its file.
//!
//! Invariant: a file that is named is either whole or not there: it is written beside its name and moved there at the
//! end. A download that is cut goes on where it was.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use super::{Client, Done, Exit, Failure, jobs, progress::Progress, text};
use crate::say;

/// How often a download that is cut goes on.
const TRIES: u32 = 5;

/// What to export.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Of which book: its id or its name.
    #[arg(long, required_unless_present = "id")]
    book: Option<String>,
    /// Of what.
    #[arg(long, value_enum, default_value_t = Kind::Coupons)]
    kind: Kind,
    /// Only coupons in this state: unassigned, assigned, locked, redeemed or void.
    #[arg(long)]
    state: Option<String>,
    /// Fetch the file of an earlier export: its id.
    #[arg(long, value_name = "ID", conflicts_with_all = ["book", "state"])]
    id: Option<Uuid>,
    /// Where to write it; stdout by default.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Fetch it packed.
    #[arg(long)]
    gzip: bool,
    /// Only start it and print its id.
    #[arg(long)]
    detach: bool,
    /// Wait no longer than so many seconds for the job (exit code 7).
    #[arg(long, value_name = "SECONDS", conflicts_with = "detach")]
    timeout: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Coupons,
    Redemptions,
}

pub(super) async fn run(client: &Client, arguments: Arguments) -> Done {
    let job = match (arguments.id, &arguments.book) {
        (Some(id), _) => client.http.get(&format!("/v1/jobs/{id}")).await?,
        (None, book) => {
            let book_id = client.book(book.as_deref().unwrap_or_default()).await?;
            let kind = match arguments.kind {
                Kind::Coupons => "coupons",
                Kind::Redemptions => "redemptions",
            };
            let mut body = json!({ "kind": kind, "book_id": book_id });
            if let Some(state) = &arguments.state {
                body["state"] = json!(state);
            }
            client.http.post("/v1/exports", &body).await?
        }
    };
    if arguments.detach {
        client.output.object(&job, || text(&job["id"]).to_owned());
        return Ok(Exit::Ok);
    }
    let id = text(&job["id"]).to_owned();
    let job = client
        .finish(&job, arguments.timeout.map(Duration::from_secs))
        .await?;
    jobs::verdict(&job)?;
    client.under_way.set(format!(
        "the download was cut; fetch it again with: couponbook export --id {id}"
    ));
    let format = if arguments.gzip { "?format=gzip" } else { "" };
    let path = format!("/v1/exports/{id}/file{format}");
    fetch(client, &path, arguments.output.as_deref()).await?;
    if let Some(file) = &arguments.output {
        say(&format!(
            "wrote {} rows to {}",
            job["result"]["rows"],
            file.display()
        ));
    }
    Ok(Exit::Ok)
}

/// Fetches a file to a path, or to stdout.
pub(super) async fn fetch(client: &Client, path: &str, to: Option<&Path>) -> Done<()> {
    let Some(to) = to.filter(|path| *path != Path::new("-")) else {
        let mut stdout = file_of(&std::io::stdout())?;
        return match copy(client, path, &mut stdout).await {
            // A closed pipe is the reader's choice.
            Err(Trouble::Writing(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            done => done.map_err(Failure::from),
        };
    };
    let mut draft = to.as_os_str().to_owned();
    draft.push(format!(".{}.part", std::process::id()));
    let draft = PathBuf::from(draft);
    let unwritable = |error: std::io::Error| Failure::new(Exit::Failed, format!("{}: {error}", to.display()));
    let mut file = tokio::fs::File::create(&draft).await.map_err(unwritable)?;
    let copied = copy(client, path, &mut file).await;
    let kept = match copied {
        Ok(()) => tokio::fs::rename(&draft, to).await.map_err(unwritable),
        Err(trouble) => Err(Failure::from(trouble)),
    };
    if kept.is_err() {
        let _ = tokio::fs::remove_file(&draft).await;
    }
    kept
}

/// One of the process's own streams as a file that is read and written off the executor.
pub(super) fn file_of(stream: &impl AsFd) -> std::io::Result<tokio::fs::File> {
    let own = stream.as_fd().try_clone_to_owned()?;
    Ok(tokio::fs::File::from_std(own.into()))
}

/// Why a copy did not come to its end.
enum Trouble {
    Writing(std::io::Error),
    Reading(Failure),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Writing(error) => Self::from(error),
            Trouble::Reading(failure) => failure,
        }
    }
}

async fn copy(client: &Client, path: &str, to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Trouble> {
    let (mut done, mut tries) = (0_u64, 0);
    let mut progress = Progress::new();
    loop {
        let answer = client.http.download(path, done).await.map_err(Trouble::Reading)?;
        // What cannot be read from the middle on is read from its beginning, up to where it was cut.
        let mut skip = if answer.status() == hyper::StatusCode::PARTIAL_CONTENT {
            0
        } else {
            done
        };
        let length = answer
            .headers()
            .get("content-length")
            .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let total = length.map(|length| length + done - skip);
        let mut body = answer.into_body();
        let cut = loop {
            match body.frame().await {
                None => break None,
                Some(Err(error)) => break Some(error),
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
                    skip -= skipped as u64;
                    to.write_all(&bytes[skipped..]).await.map_err(Trouble::Writing)?;
                    done += (bytes.len() - skipped) as u64;
                    progress.show(done, total, || format!("{} MiB", done >> 20));
                }
            }
        };
        let Some(error) = cut else { break };
        tries += 1;
        if tries >= TRIES {
            let message = format!("the download was cut: {error}");
            return Err(Trouble::Reading(Failure::new(Exit::Failed, message)));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    to.flush().await.map_err(Trouble::Writing)
}
