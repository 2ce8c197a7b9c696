//! The SQL of reading distributions.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Distribution, Item, Mode, OnShortage};
use crate::{
    error::{Refusal, Result},
    page::Page,
};

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    book_id: Uuid,
    pool_id: Uuid,
    mode: String,
    per_user: Option<i32>,
    total: Option<i64>,
    max_per_user: Option<i32>,
    on_shortage: String,
    effective_state: String,
    commitment: Vec<u8>,
    members: i64,
    eligible: i64,
    left_disabled: i64,
    left_limit: i64,
    left_ineligible: i64,
    codes_needed: i64,
    planned: i64,
    assigned: i64,
    recipients: i64,
    shortfall: i64,
    withheld: i64,
    undone: i64,
    changed: sqlx::types::Json<BTreeMap<String, i64>>,
    kept: Option<sqlx::types::Json<BTreeMap<String, i64>>>,
    job_id: Uuid,
    undo_job_id: Option<Uuid>,
    schedule_id: Option<Uuid>,
    created_by: Uuid,
    created_at: DateTime<Utc>,
    planned_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
    undone_at: Option<DateTime<Utc>>,
}

impl From<Row> for Distribution {
    fn from(row: Row) -> Self {
        let excluded = [
            ("disabled", row.left_disabled),
            ("limit_reached", row.left_limit),
            ("ineligible", row.left_ineligible),
        ];
        Self {
            id: row.id,
            book_id: row.book_id,
            pool_id: row.pool_id,
            mode: Mode::parse(&row.mode).unwrap_or(Mode::Equal),
            per_user: row.per_user,
            total: row.total,
            max_per_user: row.max_per_user,
            on_shortage: OnShortage::parse(&row.on_shortage).unwrap_or(OnShortage::Fail),
            state: row.effective_state,
            seed_commitment: row.commitment,
            counts: [
                ("members", row.members),
                ("eligible", row.eligible),
                ("excluded", row.members - row.eligible),
                ("codes_needed", row.codes_needed),
                ("planned", row.planned),
                ("recipients", row.recipients),
                ("assigned", row.assigned),
                ("shortfall", row.shortfall),
                ("withheld", row.withheld),
                ("undone", row.undone),
            ]
            .map(|(name, count)| (name.to_owned(), count))
            .into(),
            excluded: excluded.into_iter().filter(|(_, count)| *count > 0).collect(),
            changed: row.changed.0,
            kept: row.kept.map(|kept| kept.0),
            job_id: row.job_id,
            undo_job_id: row.undo_job_id,
            schedule_id: row.schedule_id,
            created_by: row.created_by,
            created_at: row.created_at,
            planned_at: row.planned_at,
            ended_at: row.ended_at,
            undone_at: row.undone_at,
        }
    }
}

/// A job that ends without another step (cancelled in the queue, given up) leaves the row as it was: how it ended is
/// read with it, so that a job that is tried again goes on where it stood.
macro_rules! select_distributions {
    ($rest:literal) => {
        concat!(
            "SELECT d.*, CASE
                 WHEN d.state IN ('planned', 'running') AND j.state IN ('cancelled', 'failed') THEN j.state
                 WHEN d.state = 'undoing' AND u.finished_at IS NOT NULL THEN 'partially_undone'
                 ELSE d.state END AS effective_state
             FROM distributions d LEFT JOIN jobs j ON j.id = d.job_id LEFT JOIN jobs u ON u.id = d.undo_job_id ",
            $rest
        )
    };
}

/// A distribution ($1).
const FIND: &str = select_distributions!("WHERE d.id = $1");

/// Distributions, newest first, behind $1.
const LIST: &str = select_distributions!("WHERE d.id < $1 ORDER BY d.id DESC LIMIT $2");

/// The same of a book ($3).
const LIST_OF_BOOK: &str =
    select_distributions!("WHERE d.book_id = $3 AND d.id < $1 ORDER BY d.id DESC LIMIT $2");

/// A distribution by its id.
///
/// # Errors
/// `not_found`.
pub async fn find(connection: &mut PgConnection, distribution_id: Uuid) -> Result<Distribution> {
    let row: Option<Row> = sqlx::query_as(FIND)
        .bind(distribution_id)
        .fetch_optional(connection)
        .await?;
    row.map(Distribution::from)
        .ok_or_else(|| Refusal::not_found().into())
}

/// What a list of distributions is narrowed to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// Only of this book.
    pub book_id: Option<Uuid>,
}

/// Distributions, newest first, behind `after`.
///
/// # Errors
/// When the database fails.
pub async fn list(
    connection: &mut PgConnection,
    filter: Filter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Page<Distribution>> {
    let query = sqlx::query_as(if filter.book_id.is_some() { LIST_OF_BOOK } else { LIST })
        .bind(after.unwrap_or(Uuid::max())) // no UUIDv7 is as great
        .bind(limit + 1);
    let query = match filter.book_id {
        Some(book_id) => query.bind(book_id),
        None => query,
    };
    let rows: Vec<Row> = query.fetch_all(connection).await?;
    Ok(Page::cut(
        rows.into_iter().map(Distribution::from).collect(),
        limit,
    ))
}

/// A page of items: $1 book, $2 distribution, behind $3 and $4, $6 in this state.
pub const LIST_ITEMS: &str = "SELECT place, user_id, wanted, assigned, undone, state, reason FROM distribution_items
     WHERE book_id = $1 AND distribution_id = $2 AND (place, user_id) > ($3, $4) AND ($6::text IS NULL OR state = $6)
     ORDER BY place, user_id LIMIT $5";

/// The people of a distribution in their order, behind `after` (place and user).
///
/// # Errors
/// `not_found`.
pub async fn list_items(
    connection: &mut PgConnection,
    distribution_id: Uuid,
    state: Option<&str>,
    after: Option<(i64, Uuid)>,
    limit: i64,
) -> Result<Page<Item>> {
    let book_id = find(connection, distribution_id).await?.book_id;
    let (place, user_id) = after.unwrap_or((-1, Uuid::nil()));
    let rows: Vec<Item> = sqlx::query_as(LIST_ITEMS)
        .bind(book_id)
        .bind(distribution_id)
        .bind(place)
        .bind(user_id)
        .bind(limit + 1)
        .bind(state)
        .fetch_all(connection)
        .await?;
    Ok(Page::cut(rows, limit))
}
