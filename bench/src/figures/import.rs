//! P2: a CSV file over HTTP until its job has finished, against copying the same rows.

use std::time::Instant;

use anyhow::bail;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{Effort, bulk, load::Connection, report::Report, stand::Stand};

/// Text sent at once.
const PIECE: usize = 64 << 10;

/// P2: a file of codes, from the first byte of the request to the end of the job.
pub(crate) async fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let figure = bulk::Figure {
        name: "P2",
        what: "import as CSV, HTTP upload to finished job",
        must: ("≥ 1.0 ×", 1.0),
    };
    bulk::against_copy(stand, effort, report, &figure, import).await
}

/// Seconds from the first byte of the file to the end of its job, by the clock of whoever sends it.
pub(crate) async fn import(stand: &Stand, count: u32) -> anyhow::Result<(Uuid, f64)> {
    let book_id = stand.book(json!({})).await?;
    let mut connection = Connection::open(stand.address).await?;
    let began = Instant::now();
    let [(name, value)] = stand.headers();
    let head = format!(
        "POST /v1/books/{book_id}/codes/import HTTP/1.1\r\nHost: bench\r\n{name}: {value}\r\n\
         Content-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    connection.send(head.as_bytes()).await?;
    let (pieces, mut written) = mpsc::channel(4);
    let writer = tokio::task::spawn_blocking(move || write(count, &pieces));
    while let Some(piece) = written.recv().await {
        connection.send(&piece).await?;
    }
    writer.await??;
    let answer = connection.answer().await?;
    let job: Value = serde_json::from_slice(&answer.body)?;
    if answer.status != 202 {
        bail!("{} {job}", answer.status);
    }
    bulk::succeeded(stand, &job).await?;
    Ok((book_id, began.elapsed().as_secs_f64()))
}

/// Writes the file as the chunks of a request's body.
fn write(count: u32, pieces: &mpsc::Sender<Vec<u8>>) -> anyhow::Result<()> {
    let send = |text: &str| {
        let piece = format!("{:x}\r\n{text}\r\n", text.len()).into_bytes();
        pieces.blocking_send(piece).map_err(anyhow::Error::from)
    };
    let mut text = "code\n".to_owned();
    bulk::spell(1, count, |code| {
        text.push_str(code);
        text.push('\n');
        if text.len() >= PIECE {
            send(&text)?;
            text.clear();
        }
        Ok(())
    })?;
    text.push('\n'); // a chunk of no length would end the body; a blank line is nothing
    send(&text)?;
    send("")
}
