//! Writing a proof: row by row out of one snapshot, in bounded memory.

use futures_util::TryStreamExt;
use sqlx::PgConnection;
use tokio::sync::mpsc::Sender;
use uuid::Uuid;

use super::FORMAT;
use crate::error::{Code, Refusal, Result};

/// Bytes that are handed on at once.
const SEND: usize = 64 << 10;

/// The arrays of the document and the statement that gives the rows of each as JSON: $1 book, $2 distribution.
pub const PARTS: [(&str, &str); 7] = [
    (
        "chunks",
        "SELECT json_build_object('first_arrival', after -> 'first_arrival', 'count', after -> 'count',
                                  'epoch', after -> 'epoch', 'cursor', after ->> 'cursor')::text
         FROM events WHERE book_id = $1 AND kind = 'codes_added' AND $2::uuid IS NOT NULL
         ORDER BY (after ->> 'first_arrival')::bigint",
    ),
    (
        "codes",
        "SELECT json_build_array(c.code_key, c.expires_at)::text
         FROM events e JOIN coupons c ON c.book_id = e.book_id AND c.created_at = e.at
         WHERE e.book_id = $1 AND c.book_id = $1 AND e.kind = 'codes_added' AND $2::uuid IS NOT NULL
         ORDER BY (e.after ->> 'first_arrival')::bigint, c.code_key",
    ),
    (
        "epochs",
        "SELECT after::text FROM events WHERE book_id = $1 AND kind = 'draw_rekeyed' AND $2::uuid IS NOT NULL
         ORDER BY (after ->> 'epoch')::int",
    ),
    (
        "returns",
        "SELECT json_build_object('code', code_key, 'arrival', after -> 'arrival', 'epoch', after -> 'epoch',
                                  'cursor', after ->> 'cursor')::text
         FROM events WHERE book_id = $1 AND kind = 'coupon_revoked' AND $2::uuid IS NOT NULL
         ORDER BY (after ->> 'arrival')::bigint",
    ),
    (
        "leavings",
        "SELECT json_build_object('id', id, 'at', at, 'code', code_key, 'user_id', after ->> 'user_id',
                    'how', CASE WHEN kind = 'coupon_voided' THEN 'voided' WHEN before IS NULL THEN 'held'
                                WHEN after ? 'given' THEN 'given' ELSE 'drawn' END)::text
         FROM events WHERE book_id = $1 AND $2::uuid IS NOT NULL
           AND (kind = 'coupon_assigned' OR (kind = 'coupon_voided' AND before ->> 'state' = 'unassigned'))
         ORDER BY id",
    ),
    (
        "items",
        "SELECT json_build_object('user_id', user_id, 'place', place::text, 'room', room, 'wanted', wanted,
                                  'assigned', assigned, 'state', state)::text
         FROM distribution_items WHERE book_id = $1 AND distribution_id = $2 ORDER BY place, user_id",
    ),
    (
        "coupons",
        "SELECT json_build_object('seq', seq, 'code', code_key, 'draw_key', draw_key::text, 'user_id', user_id)::text
         FROM distribution_coupons WHERE book_id = $1 AND distribution_id = $2 ORDER BY seq",
    ),
];

/// A proof that may be given, and the head of its document.
#[derive(Debug)]
pub struct Allowed {
    book_id: Uuid,
    distribution_id: Uuid,
    head: String,
}

/// Fixes the snapshot that the whole document is read from, and asks whether it may be given. The connection's
/// transaction must have done nothing before.
///
/// # Errors
/// `not_found`, `book_not_archived`.
pub async fn begin(connection: &mut PgConnection, distribution_id: Uuid) -> Result<Allowed> {
    sqlx::raw_sql(
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = '10min'",
    )
    .execute(&mut *connection)
    .await?;
    let found: Option<(Uuid, bool, String, String)> = sqlx::query_as(
        "SELECT b.id, b.status = 'archived',
                json_build_object('id', b.id, 'seed', encode(s.seed, 'hex'), 'commitment', encode(s.commitment, 'hex'),
                                  'epoch', s.epoch, 'cursor', s.cursor::text, 'arrivals', s.arrivals)::text,
                json_build_object('id', d.id, 'seed', encode(d.seed, 'hex'), 'commitment', encode(d.commitment, 'hex'),
                                  'mode', d.mode, 'per_user', d.per_user, 'planned', d.planned)::text
         FROM distributions d JOIN books b ON b.id = d.book_id JOIN draw_states s ON s.book_id = b.id
         WHERE d.id = $1",
    )
    .bind(distribution_id)
    .fetch_optional(connection)
    .await?;
    let (book_id, archived, book, distribution) = found.ok_or_else(Refusal::not_found)?;
    if !archived {
        let detail = "Seeds are revealed once the book is archived, which is for good; this one is not.";
        return Err(Refusal::new(Code::BookNotArchived, detail).into());
    }
    Ok(Allowed {
        book_id,
        distribution_id,
        head: format!(r#"{{"format":"{FORMAT}","book":{book},"distribution":{distribution}"#),
    })
}

/// Writes the document, a piece at a time; ends early when nobody reads any more.
///
/// # Errors
/// When the database fails.
pub async fn write(
    connection: &mut PgConnection,
    allowed: &Allowed,
    pieces: &Sender<Result<String>>,
) -> Result<()> {
    let mut text = allowed.head.clone();
    for (name, sql) in PARTS {
        text.push_str(&format!(",\n\"{name}\":["));
        let mut rows = sqlx::query_scalar::<_, String>(sql)
            .bind(allowed.book_id)
            .bind(allowed.distribution_id)
            .fetch(&mut *connection);
        let mut separator = "\n";
        while let Some(row) = rows.try_next().await? {
            text.push_str(separator);
            text.push_str(&row);
            separator = ",\n";
            if text.len() >= SEND && pieces.send(Ok(std::mem::take(&mut text))).await.is_err() {
                return Ok(());
            }
        }
        text.push(']');
    }
    text.push_str("}\n");
    let _ = pieces.send(Ok(text)).await; // who has gone needs no end
    Ok(())
}
