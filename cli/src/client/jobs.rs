//! `couponbook jobs`: list, show, watch, cancel, retry, and what a job could not do.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Client, Done, Exit, Failure, Waiting, export, http,
    output::cell,
    progress::{self, is_over},
    text,
};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List jobs, newest first.
    Ls {
        /// Only of this kind, such as import.
        #[arg(long)]
        kind: Option<String>,
        /// Only in this state, such as failed.
        #[arg(long)]
        state: Option<String>,
        /// Only about this book: its id or its name.
        #[arg(long)]
        book: Option<String>,
        /// So many at most.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show a job.
    Get {
        /// Its id.
        id: Uuid,
    },
    /// Wait for a job's end and show its progress. Ctrl-C stops waiting, not the job.
    Watch {
        /// Its id.
        id: Uuid,
        /// Wait no longer than so many seconds (exit code 7).
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Try a job again that was given up for trouble of the service.
    Retry {
        /// Its id.
        id: Uuid,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Stop a job at its next step; what it has done stays.
    Cancel {
        /// Its id.
        id: Uuid,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// What a job could not do, line by line.
    Errors {
        /// Its id.
        id: Uuid,
        /// The lines of the file as they were sent, to be mended and sent again.
        #[arg(long)]
        csv: bool,
    },
}

pub(super) async fn run(client: &Client, command: Command) -> Done {
    match command {
        Command::Ls {
            kind,
            state,
            book,
            limit,
        } => {
            let mut path = format!("/v1/jobs?limit={}", limit.clamp(1, 100));
            for (name, value) in [("kind", kind), ("state", state)] {
                if let Some(value) = value {
                    path += &format!("&{name}={}", http::encode(&value));
                }
            }
            if let Some(book) = book {
                path += &format!("&book_id={}", client.book(&book).await?);
            }
            list(client, path, limit, |job| {
                let cells = [
                    (cell(job, "id"), 36),
                    (cell(job, "kind"), 12),
                    (cell(job, "state"), 19),
                    (cell(job, "created_at"), 0),
                ];
                client.output.row(job, &cells)
            })
            .await
        }
        Command::Get { id } => {
            let job = client.http.get(&format!("/v1/jobs/{id}")).await?;
            client.output.members(&job);
            Ok(Exit::Ok)
        }
        Command::Watch { id, timeout } => {
            let job = client.http.get(&format!("/v1/jobs/{id}")).await?;
            let job = if is_over(&job) {
                job
            } else {
                client.finish(&job, timeout.map(Duration::from_secs)).await?
            };
            client.output.object(&job, || progress::receipt(&job));
            verdict(&job)
        }
        Command::Retry { id, waiting } => {
            let job = client
                .http
                .post(&format!("/v1/jobs/{id}/retry"), &json!({}))
                .await?;
            client.started(job, &waiting).await
        }
        Command::Cancel { id, waiting } => {
            let job = client
                .http
                .post(&format!("/v1/jobs/{id}/cancel"), &json!({}))
                .await?;
            if !waiting.wait {
                return client.started(job, &waiting).await;
            }
            let job = client
                .finish(&job, waiting.timeout.map(Duration::from_secs))
                .await?;
            client.output.object(&job, || progress::receipt(&job));
            Ok(if job["state"] == "cancelled" {
                Exit::Ok
            } else {
                Exit::Conflict
            })
        }
        Command::Errors { id, csv: true } => {
            export::fetch(client, &format!("/v1/jobs/{id}/errors.csv"), None).await?;
            Ok(Exit::Ok)
        }
        Command::Errors { id, csv: false } => {
            list(
                client,
                format!("/v1/jobs/{id}/errors?limit=100"),
                usize::MAX,
                |line| {
                    let place = if line["line"].is_null() {
                        &line["item"]
                    } else {
                        &line["line"]
                    };
                    let place = place.to_string();
                    let cells = [
                        (place.as_str(), 10),
                        (cell(line, "reason"), 18),
                        (cell(line, "detail"), 0),
                    ];
                    client.output.row(line, &cells)
                },
            )
            .await
        }
    }
}

/// Prints up to `limit` rows of a list, as long as somebody reads.
async fn list(client: &Client, path: String, limit: usize, print: impl Fn(&Value) -> bool) -> Done {
    let mut left = limit;
    let mut pages = client.http.pages(path);
    while left > 0
        && let Some(page) = pages.next(&client.http).await?
    {
        for row in page.iter().take(left) {
            if !print(row) {
                return Ok(Exit::Ok);
            }
        }
        left = left.saturating_sub(page.len());
    }
    Ok(Exit::Ok)
}

/// What a job's end means for the exit code.
pub(super) fn verdict(job: &Value) -> Done {
    match text(&job["state"]) {
        "succeeded" => Ok(Exit::Ok),
        "partially_succeeded" => Ok(Exit::RowErrors),
        "cancelled" => Err(Failure::new(
            Exit::Failed,
            "the job was cancelled; what it had done stays",
        )),
        _ => {
            let (code, detail) = (text(&job["error"]["code"]), text(&job["error"]["detail"]));
            Err(Failure {
                exit: http::exit_of(code),
                message: format!("the job failed: {detail} ({code})"),
                problem: Some(job["error"].clone()),
            })
        }
    }
}
