//! The records of the next step, read while the database writes those of this one.
//!
//! Invariant: what lies ready is what the step would read itself. The text of an upload never changes, and what is ready is
//! taken only from the very place and by the very rules it was read from and by; a process that has nothing ready, because
//! another did the step before or was killed, reads.

use std::sync::{Mutex, PoisonError};

use sqlx::PgConnection;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{
    chunk::{Chunk, Source, read_piece},
    dialect::Layout,
    records::Place,
    row::{self, Row, Rules},
    text,
};
use crate::error::Result;

/// Chunks that lie ready at most: as many imports take turns in a process without one reading for nothing. Some 10 MiB each.
const KEPT: usize = 2;

/// What a chunk was read from, and by which rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct From {
    upload_id: Uuid,
    place: Place,
    rules: Rules,
}

/// The most recently begun last.
static READY: Mutex<Vec<(From, JoinHandle<Chunk<Row>>)>> = Mutex::new(Vec::new());

/// Begins to read a chunk of about `length` bytes of text.
///
/// # Errors
/// When the database fails.
pub(super) async fn begin(
    connection: &mut PgConnection,
    source: Source,
    place: Place,
    length: i64,
    layout: &Layout,
    rules: Rules,
) -> Result<()> {
    let from = From {
        upload_id: source.upload_id,
        place,
        rules,
    };
    let begun = |ready: &[(From, _)]| ready.iter().any(|(known, _)| *known == from);
    if place.offset >= source.text_bytes || begun(&READY.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(());
    }
    let mut text = Vec::new();
    while i64::try_from(text.len()).unwrap_or(i64::MAX) < length {
        let at = place.offset + i64::try_from(text.len()).unwrap_or(0);
        if at >= source.text_bytes {
            break;
        }
        text.append(&mut text::read(connection, source.upload_id, at).await?);
    }
    let layout = layout.clone();
    let reading = tokio::task::spawn_blocking(move || {
        read_piece(&source, place, &text, |record| row::read(record, &layout, &rules))
    });
    keep(from, reading);
    Ok(())
}

fn keep(from: From, reading: JoinHandle<Chunk<Row>>) {
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    if ready.len() >= KEPT {
        ready.remove(0);
    }
    ready.push((from, reading));
}

/// The chunk that was read ahead from this place, if it was and has a record.
pub(super) async fn take(upload_id: Uuid, place: Place, rules: Rules) -> Option<Chunk<Row>> {
    let from = From {
        upload_id,
        place,
        rules,
    };
    let reading = {
        let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
        // What was read for another place of the same upload is of no use any more: steps only go forward.
        let found = ready.iter().position(|(known, _)| *known == from);
        let found = found.map(|at| ready.remove(at).1);
        ready.retain(|(known, _)| known.upload_id != upload_id);
        found
    };
    reading?.await.ok().filter(|chunk| chunk.records > 0)
}

/// Lays a chunk down again that was taken and not used.
pub(super) fn give_back(upload_id: Uuid, place: Place, rules: Rules, chunk: Chunk<Row>) {
    let from = From {
        upload_id,
        place,
        rules,
    };
    keep(from, tokio::spawn(std::future::ready(chunk)));
}

/// Forgets what lies ready of an upload that nobody will read on.
pub(super) fn forget(upload_id: Uuid) {
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    ready.retain(|(known, _)| known.upload_id != upload_id);
}
