//! Reading coupons: one, a book's, a holder's, and what happened to one.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Coupon, CouponId, CouponRow, State, coupon_columns};
use crate::{
    error::{Refusal, Result},
    page::Page,
};

/// A coupon by its id.
///
/// # Errors
/// `not_found`.
pub async fn find(connection: &mut PgConnection, coupon: &CouponId) -> Result<Coupon> {
    let row: Option<CouponRow> = sqlx::query_as(concat!(
        "SELECT ",
        coupon_columns!(),
        " FROM coupons c WHERE c.book_id = $1 AND c.code_key = $2"
    ))
    .bind(coupon.book_id)
    .bind(&coupon.code_key)
    .fetch_optional(connection)
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
    let rows: Vec<CouponRow> = sqlx::query_as(concat!(
        "SELECT ",
        coupon_columns!(),
        " FROM coupons c JOIN books b ON b.id = c.book_id
         WHERE c.book_id = $1 AND b.id = $1
           AND ($2::text IS NULL OR CASE WHEN c.state = 'locked' AND c.locked_until <= clock_timestamp() THEN 'assigned' ELSE c.state END = $2)
           AND ($3::uuid IS NULL OR c.assigned_user_id = $3)
           AND ($4::text IS NULL OR c.code_key = CASE WHEN b.exact_codes THEN $4 ELSE $5 END)
           AND ($6::text IS NULL OR c.code_key > $6)
         ORDER BY c.code_key LIMIT $7"
    ))
    .bind(book_id)
    .bind(filter.state.map(State::as_str))
    .bind(filter.user_id)
    .bind(filter.code.map(|code| code.key(true)))
    .bind(filter.code.map(|code| code.key(false)))
    .bind(after)
    .bind(limit + 1)
    .fetch_all(connection)
    .await?;
    Ok(Page::cut(rows, limit).map(|row| (row.key().to_owned(), row.into())))
}

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
    let rows: Vec<CouponRow> = sqlx::query_as(concat!(
        "SELECT ",
        coupon_columns!(),
        " FROM coupons c
         WHERE c.assigned_user_id = $1 AND ($2::uuid IS NULL OR c.book_id = $2)
           AND ($3::text IS NULL OR CASE WHEN c.state = 'locked' AND c.locked_until <= clock_timestamp() THEN 'assigned' ELSE c.state END = $3)
           AND ($4::uuid IS NULL OR (c.book_id, c.code_key) > ($4, $5))
         ORDER BY c.book_id, c.code_key LIMIT $6"
    ))
    .bind(user_id)
    .bind(book_id)
    .bind(state.map(State::as_str))
    .bind(after.map(|after| after.book_id))
    .bind(after.map(|after| after.code_key.as_str()))
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

/// What happened to a coupon, oldest first, behind `after`, up to the moment `as_of`.
///
/// # Errors
/// When the database fails.
pub async fn list_events(
    connection: &mut PgConnection,
    coupon: &CouponId,
    as_of: Option<DateTime<Utc>>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Page<Event>> {
    let rows: Vec<Event> = sqlx::query_as(
        "SELECT e.id, e.at, e.kind, e.book_id, coalesce(c.code, c.code_key) AS code, e.actor_kind, e.actor_id,
                e.job_id, e.request_id, e.before, e.after, e.hash
         FROM events e JOIN coupons c ON c.book_id = e.book_id AND c.code_key = e.code_key
         WHERE e.book_id = $1 AND e.code_key = $2 AND c.book_id = $1
           AND ($3::timestamptz IS NULL OR e.at <= $3) AND ($4::uuid IS NULL OR e.id > $4)
         ORDER BY e.id LIMIT $5",
    )
    .bind(coupon.book_id)
    .bind(&coupon.code_key)
    .bind(as_of)
    .bind(after)
    .bind(limit + 1)
    .fetch_all(connection)
    .await?;
    Ok(Page::cut(rows, limit))
}
