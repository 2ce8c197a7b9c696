//! The people of a distribution as CSV: who they are, what each was to get, what came of it, and why not.
//!
//! Invariant: pages follow each other by the primary key, so each is a look-up, and no transaction is held in between.

use sqlx::PgConnection;
use uuid::Uuid;

use super::store;
use crate::{error::Result, export::csv::Line};

/// People of one page: some tens of milliseconds.
const PAGE: i64 = 5_000;

/// What a reader finds.
const COLUMNS: [&str; 7] = [
    "user_id", "email", "state", "reason", "wanted", "assigned", "undone",
];

/// A page: $1 book, $2 distribution, behind $3 and $4, $6 in this state.
pub const PAGE_OF_ITEMS: &str = "SELECT i.place, i.user_id, (SELECT u.email FROM users u WHERE u.id = i.user_id) AS email,
         i.state, i.reason, i.wanted, i.assigned, i.undone
     FROM distribution_items i
     WHERE i.book_id = $1 AND i.distribution_id = $2 AND (i.place, i.user_id) > ($3, $4) AND ($6::text IS NULL OR i.state = $6)
     ORDER BY i.place, i.user_id LIMIT $5";

#[derive(sqlx::FromRow)]
struct Row {
    place: i64,
    user_id: Uuid,
    email: Option<String>,
    state: String,
    reason: Option<String>,
    wanted: i32,
    assigned: i32,
    undone: i32,
}

/// The text while it is being written, page by page.
#[derive(Debug)]
pub struct ItemsCsv {
    book_id: Uuid,
    distribution_id: Uuid,
    state: Option<&'static str>,
    after: Option<(i64, Uuid)>,
    over: bool,
}

impl ItemsCsv {
    /// Begins the text of a distribution's people, of one state or of all.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn begin(
        connection: &mut PgConnection,
        distribution_id: Uuid,
        state: Option<&'static str>,
    ) -> Result<Self> {
        Ok(Self {
            book_id: store::find(connection, distribution_id).await?.book_id,
            distribution_id,
            state,
            after: None,
            over: false,
        })
    }

    /// The next lines; `None` at the end. The first ones begin with the names of the columns.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next(&mut self, connection: &mut PgConnection) -> Result<Option<String>> {
        if self.over {
            return Ok(None);
        }
        let mut csv = String::new();
        if self.after.is_none() {
            let mut line = Line::begin(&mut csv);
            for column in COLUMNS {
                line.cell(column);
            }
            line.end();
        }
        let (place, user_id) = self.after.unwrap_or((-1, Uuid::nil()));
        let rows: Vec<Row> = sqlx::query_as(PAGE_OF_ITEMS)
            .bind(self.book_id)
            .bind(self.distribution_id)
            .bind(place)
            .bind(user_id)
            .bind(PAGE)
            .bind(self.state)
            .fetch_all(connection)
            .await?;
        self.over = rows.len() < usize::try_from(PAGE).unwrap_or(0);
        self.after = Some(
            rows.last()
                .map_or((place, user_id), |row| (row.place, row.user_id)),
        );
        for row in rows {
            let mut line = Line::begin(&mut csv);
            line.cell(&row.user_id.to_string());
            line.cell(row.email.as_deref().unwrap_or_default());
            line.cell(&row.state);
            line.cell(row.reason.as_deref().unwrap_or_default());
            line.number(row.wanted);
            line.number(row.assigned);
            line.number(row.undone);
            line.end();
        }
        Ok(Some(csv))
    }
}
