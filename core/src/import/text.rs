//! The kept text of an upload, read piece by piece from any byte on.
//!
//! Invariant: only as much is read from disk as is asked for (chunks are stored unpacked, so a part of one is cheap).

use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Code, Refusal, Result};

/// Text read at once.
const PIECE: i32 = 512 << 10;

/// The text from `offset` on, at most [`PIECE`] bytes of it; at least one.
///
/// # Errors
/// `expired` when retention has removed the text.
pub(super) async fn read(connection: &mut PgConnection, upload_id: Uuid, offset: i64) -> Result<Vec<u8>> {
    let piece: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT substring(bytes FROM ($2 - start + 1)::int FOR $3) FROM upload_chunks
         WHERE upload_id = $1 AND start <= $2 ORDER BY start DESC LIMIT 1",
    )
    .bind(upload_id)
    .bind(offset)
    .bind(PIECE)
    .fetch_optional(connection)
    .await?;
    piece.filter(|piece| !piece.is_empty()).ok_or_else(|| {
        Refusal::new(
            Code::Expired,
            "The file of this import is no longer kept; send it again.",
        )
        .into()
    })
}
