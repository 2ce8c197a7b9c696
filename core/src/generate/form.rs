//! What can be told of a code without looking it up: whether it can be one of the book's at all.
//!
//! Invariant: "no" is said only of what cannot be a coupon of the book. So the patterns decide only where every code of
//! the book was generated; a single imported one, and any code of the right characters may exist.

use sqlx::PgConnection;
use uuid::Uuid;

use super::pattern::{Given, Pattern};
use crate::{coupon::code::Code, error::Result};

#[derive(sqlx::FromRow)]
struct Row {
    arrivals: i64,
    exact_codes: bool,
    made: i64,
    checked: bool,
    pattern: String,
    alphabet: Option<String>,
}

/// Whether a code can be one of the book's, by its form and its check character.
///
/// # Errors
/// When the database fails.
pub async fn fits(connection: &mut PgConnection, book_id: Uuid, code: &Code) -> Result<bool> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT d.arrivals, b.exact_codes, p.made, p.checked, p.pattern, p.alphabet FROM code_patterns p
         JOIN books b ON b.id = p.book_id JOIN draw_states d ON d.book_id = p.book_id
         WHERE p.book_id = $1 AND b.id = $1 AND d.book_id = $1 AND p.made > 0",
    )
    .bind(book_id)
    .fetch_all(connection)
    .await?;
    let generated: i64 = rows.iter().map(|row| row.made).sum();
    if rows.first().is_none_or(|row| row.arrivals != generated) {
        return Ok(true);
    }
    Ok(rows.iter().any(|row| {
        let given = Given {
            pattern: &row.pattern,
            alphabet: row.alphabet.as_deref(),
            check: row.checked,
        };
        Pattern::parse(given, row.exact_codes).is_ok_and(|pattern| pattern.fits(code.key(row.exact_codes)))
    }))
}
