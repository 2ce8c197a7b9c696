//! Reading the audit trail across coupons and books.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    coupon::{CouponId, list::Event},
    error::Result,
    page::Page,
};

/// What the trail is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only what this user or API key did.
    pub actor: Option<Uuid>,
    /// Only in this book.
    pub book_id: Option<Uuid>,
    /// Only of this coupon.
    pub coupon: Option<CouponId>,
}

/// What happened, newest first, behind `after`.
///
/// # Errors
/// When the database fails.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Page<Event>> {
    let book_id = filter
        .coupon
        .as_ref()
        .map(|coupon| coupon.book_id)
        .or(filter.book_id);
    let rows: Vec<Event> = sqlx::query_as(
        "SELECT e.id, e.at, e.kind, e.book_id, coalesce(c.code, e.code_key) AS code, e.actor_kind, e.actor_id,
                e.job_id, e.request_id, e.before, e.after, e.hash
         FROM events e LEFT JOIN coupons c ON c.book_id = e.book_id AND c.code_key = e.code_key
         WHERE ($1::uuid IS NULL OR e.actor_id = $1) AND ($2::uuid IS NULL OR e.book_id = $2)
           AND ($3::text IS NULL OR e.code_key = $3) AND ($4::uuid IS NULL OR e.id < $4)
         ORDER BY e.id DESC LIMIT $5",
    )
    .bind(filter.actor)
    .bind(book_id)
    .bind(filter.coupon.as_ref().map(|coupon| coupon.code_key.as_str()))
    .bind(after)
    .bind(limit + 1)
    .fetch_all(connection)
    .await?;
    Ok(Page::cut(rows, limit))
}
