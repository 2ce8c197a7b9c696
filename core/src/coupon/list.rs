//! Reading coupons: one, a book's, a holder's, and what happened to one.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Behalf, Coupon, CouponId, CouponRow, State, coupon_columns};
use crate::{
    error::{Refusal, Result},
    page::Page,
};

/// A coupon by its id.
pub const FIND: &str = concat!(
    "SELECT ",
    coupon_columns!(),
    " FROM coupons c WHERE c.book_id = $1 AND c.code_key = $2"
);

/// A coupon by its id.
///
/// # Errors
/// `not_found`.
pub async fn find(connection: &mut PgConnection, coupon: &CouponId) -> Result<Coupon> {
    let row: Option<CouponRow> = sqlx::query_as(FIND)
        .bind(coupon.book_id)
        .bind(&coupon.code_key)
        .fetch_optional(&mut *connection)
        .await?;
    row.map(Coupon::from).ok_or_else(|| Refusal::not_found().into())
}

/// What a list of coupons is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// Only in this effective state.
    pub state: Option<State>,
    /// Only held by this user.
    pub user_id: Option<Uuid>,
    /// Only the one that this code means.
    pub code: Option<&'a super::code::Code>,
}

/// The state of a coupon named `c` as clients see it.
macro_rules! effective_state {
    () => {
        "CASE WHEN c.state = 'locked' AND c.locked_until <= clock_timestamp() THEN 'assigned' ELSE c.state END"
    };
}

/// A book's coupons, narrowed by one more condition.
///
/// Where a list goes on is a plain comparison with a default below everything, never `$n IS NULL OR …`: that would be a
/// filter and not a bound of the index once the statement is prepared, and a late page would read all pages before it.
macro_rules! list_of_book {
    ($narrowed:literal) => {
        concat!(
            "SELECT ",
            coupon_columns!(),
            " FROM coupons c
              WHERE c.book_id = $1 AND c.code_key > coalesce($2::text, '')
                AND ($3::text IS NULL OR ",
            effective_state!(),
            " = $3) ",
            $narrowed,
            " ORDER BY c.code_key LIMIT $4"
        )
    };
}

/// A page of a book.
pub const LIST_OF_BOOK: &str = list_of_book!("");

/// A page of what one user ($5) holds of a book.
pub const LIST_OF_BOOK_BY_HOLDER: &str = list_of_book!("AND c.assigned_user_id = $5");

/// The coupon of a book that a code means ($5 exact, $6 folded), if that user ($7) holds it.
pub const LIST_OF_BOOK_BY_CODE: &str = list_of_book!(
    "AND c.code_key = (SELECT CASE WHEN b.exact_codes THEN $5 ELSE $6 END FROM books b WHERE b.id = $1)
     AND ($7::uuid IS NULL OR c.assigned_user_id = $7)"
);

/// A book's coupons in the order of their keys, behind `after`; each with its key, for the next cursor.
///
/// # Errors
/// When the database fails.
pub async fn list_of_book(
    connection: &mut PgConnection,
    book_id: Uuid,
    filter: &Filter<'_>,
    after: Option<&str>,
    limit: i64,
) -> Result<Page<(String, Coupon)>> {
    let sql = match (filter.code, filter.user_id) {
        (Some(_), _) => LIST_OF_BOOK_BY_CODE,
        (None, Some(_)) => LIST_OF_BOOK_BY_HOLDER,
        (None, None) => LIST_OF_BOOK,
    };
    let query = sqlx::query_as(sql)
        .bind(book_id)
        .bind(after)
        .bind(filter.state.map(State::as_str))
        .bind(limit + 1);
    let query = match (filter.code, filter.user_id) {
        (Some(code), user_id) => query.bind(code.key(true)).bind(code.key(false)).bind(user_id),
        (None, Some(user_id)) => query.bind(user_id),
        (None, None) => query,
    };
    let rows: Vec<CouponRow> = query.fetch_all(connection).await?;
    Ok(Page::cut(rows, limit).map(|row| (row.key().to_owned(), row.into())))
}

/// A page of what a user ($1) holds, behind a book and key ($2, $3), of one book ($4) or of all.
pub const LIST_OF_HOLDER: &str = concat!(
    "SELECT ",
    coupon_columns!(),
    " FROM coupons c
      WHERE c.assigned_user_id = $1 AND (c.book_id, c.code_key) > ($2::uuid, $3::text)
        AND c.book_id <= coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        AND ($5::text IS NULL OR ",
    effective_state!(),
    " = $5)
      ORDER BY c.book_id, c.code_key LIMIT $6"
);

/// A holder's coupons across books, ordered by book and key, behind `after`.
///
/// # Errors
/// When the database fails.
pub async fn list_of_holder(
    connection: &mut PgConnection,
    user_id: Uuid,
    state: Option<State>,
    book_id: Option<Uuid>,
    after: Option<&CouponId>,
    limit: i64,
) -> Result<Page<(CouponId, Coupon)>> {
    // No key is empty, so this lies before the first of the book, or before everything.
    let (after_book, after_key) = match after {
        Some(after) => (after.book_id, after.code_key.as_str()),
        None => (book_id.unwrap_or_default(), ""),
    };
    let rows: Vec<CouponRow> = sqlx::query_as(LIST_OF_HOLDER)
        .bind(user_id)
        .bind(after_book)
        .bind(after_key)
        .bind(book_id)
        .bind(state.map(State::as_str))
        .bind(limit + 1)
        .fetch_all(connection)
        .await?;
    Ok(Page::cut(rows, limit).map(|row| {
        (
            CouponId {
                book_id: row.book_id,
                code_key: row.key().to_owned(),
            },
            row.into(),
        )
    }))
}

/// One line of the audit trail.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Event {
    /// UUIDv7.
    pub id: Uuid,
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub kind: String,
    /// The book.
    pub book_id: Uuid,
    /// The code as shown; `None` when the event is about the book.
    pub code: Option<String>,
    /// `user`, `api_key` or `system`.
    pub actor_kind: String,
    /// Who; `None` for the service itself.
    pub actor_id: Option<Uuid>,
    /// In which job.
    pub job_id: Option<Uuid>,
    /// In which request.
    pub request_id: Option<String>,
    /// The fields that changed, as they were.
    pub before: Option<serde_json::Value>,
    /// The same, as they became.
    pub after: Option<serde_json::Value>,
    /// The link of the audit chain, once sealed.
    pub hash: Option<Vec<u8>>,
}

/// A page of what happened to a coupon; with a holder ($6) since it is theirs.
pub const LIST_EVENTS: &str =
    "SELECT e.id, e.at, e.kind, e.book_id, coalesce(c.code, c.code_key) AS code, e.actor_kind, e.actor_id,
            e.job_id, e.request_id, e.before, e.after, e.hash
     FROM events e JOIN coupons c ON c.book_id = e.book_id AND c.code_key = e.code_key
     WHERE e.book_id = $1 AND e.code_key = $2 AND c.book_id = $1 AND c.code_key = $2
       AND e.id > coalesce($4::uuid, '00000000-0000-0000-0000-000000000000') AND ($3::timestamptz IS NULL OR e.at <= $3)
       AND ($6::uuid IS NULL OR (c.assigned_user_id = $6 AND e.id >= (
               SELECT a.id FROM events a WHERE a.book_id = $1 AND a.code_key = $2 AND a.kind = 'coupon_assigned'
               ORDER BY a.id DESC LIMIT 1)))
     ORDER BY e.id LIMIT $5";

/// What happened to a coupon, oldest first, behind `after`, up to the moment `as_of`. A holder sees nothing of those who
/// held it before.
///
/// # Errors
/// When the database fails.
pub async fn list_events(
    connection: &mut PgConnection,
    coupon: &CouponId,
    behalf: Behalf,
    as_of: Option<DateTime<Utc>>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Page<Event>> {
    let rows: Vec<Event> = sqlx::query_as(LIST_EVENTS)
        .bind(coupon.book_id)
        .bind(&coupon.code_key)
        .bind(as_of)
        .bind(after)
        .bind(limit + 1)
        .bind(behalf.holder())
        .fetch_all(connection)
        .await?;
    Ok(Page::cut(rows, limit))
}
