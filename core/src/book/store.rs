//! The SQL of books.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Postgres, postgres::PgArguments, query::QueryAs};
use uuid::Uuid;

use super::{Book, Settings, Status};
use crate::{
    caller::{Caller, Scope},
    coupon::{Origin, draw},
    error::{Code, Refusal, Result},
    id,
    page::Page,
    stats::coupon_sums,
};

#[derive(sqlx::FromRow)]
struct Row {
    id: Uuid,
    created_by: Uuid,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    starts_at: Option<DateTime<Utc>>,
    ends_at: Option<DateTime<Utc>>,
    version: i64,
    redemptions_per_coupon: i32,
    max_assignments_per_user: Option<i32>,
    max_redemptions_per_user: Option<i32>,
    lock_seconds: i32,
    lock_renewals: i32,
    valid_days_after_assignment: Option<i32>,
    rollback_days: i32,
    require_lock: bool,
    self_service: bool,
    exact_codes: bool,
    status: String,
    time_zone: String,
    name: String,
    description: String,
    pattern: Option<String>,
    metadata: serde_json::Value,
    commitment: Vec<u8>,
}

impl From<Row> for Book {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            settings: Settings {
                name: row.name,
                description: row.description,
                status: Status::parse(&row.status).unwrap_or(Status::Archived),
                exact_codes: row.exact_codes,
                redemptions_per_coupon: row.redemptions_per_coupon,
                max_assignments_per_user: row.max_assignments_per_user,
                max_redemptions_per_user: row.max_redemptions_per_user,
                require_lock: row.require_lock,
                lock_seconds: row.lock_seconds,
                lock_renewals: row.lock_renewals,
                self_service: row.self_service,
                starts_at: row.starts_at,
                ends_at: row.ends_at,
                valid_days_after_assignment: row.valid_days_after_assignment,
                rollback_days: row.rollback_days,
                time_zone: row.time_zone,
                pattern: row.pattern,
                metadata: row.metadata,
            },
            draw_commitment: row.commitment,
            version: row.version,
            created_by: row.created_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Binds what a person may set, in the order of the columns.
fn bind_settings<'q>(
    query: QueryAs<'q, Postgres, Row, PgArguments>,
    settings: &'q Settings,
) -> QueryAs<'q, Postgres, Row, PgArguments> {
    query
        .bind(settings.starts_at)
        .bind(settings.ends_at)
        .bind(settings.redemptions_per_coupon)
        .bind(settings.max_assignments_per_user)
        .bind(settings.max_redemptions_per_user)
        .bind(settings.lock_seconds)
        .bind(settings.lock_renewals)
        .bind(settings.valid_days_after_assignment)
        .bind(settings.rollback_days)
        .bind(settings.require_lock)
        .bind(settings.self_service)
        .bind(settings.exact_codes)
        .bind(settings.status.as_str())
        .bind(&settings.time_zone)
        .bind(&settings.name)
        .bind(&settings.description)
        .bind(settings.pattern.as_deref())
        .bind(&settings.metadata)
}

/// Makes a book with its draw, in one statement with their event.
///
/// # Errors
/// `validation_failed`, `pattern_invalid`.
pub async fn insert(connection: &mut PgConnection, settings: &Settings, origin: Origin<'_>) -> Result<Book> {
    settings.check()?;
    settings.check_pattern()?;
    let (seed, commitment) = draw::new_seed();
    let query = sqlx::query_as(
        "WITH b AS (
             INSERT INTO books (id, created_by, starts_at, ends_at, redemptions_per_coupon, max_assignments_per_user,
                 max_redemptions_per_user, lock_seconds, lock_renewals, valid_days_after_assignment, rollback_days,
                 require_lock, self_service, exact_codes, status, time_zone, name, description, pattern, metadata)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
             RETURNING *),
         d AS (INSERT INTO draw_states (book_id, seed, commitment) SELECT b.id, $21, $22 FROM b RETURNING commitment),
         recorded AS (
             INSERT INTO events (book_id, id, actor_kind, actor_id, kind, request_id, after)
             SELECT b.id, uuid_v7(), $23, $2, 'book_created', $24,
                    jsonb_build_object('name', b.name, 'status', b.status, 'draw_commitment', encode($22, 'hex'))
             FROM b)
         SELECT b.*, d.commitment FROM b, d",
    )
    .bind(id::new())
    .bind(origin.actor.id);
    let row: Row = bind_settings(query, settings)
        .bind(&seed[..])
        .bind(&commitment[..])
        .bind(origin.actor.kind.as_str())
        .bind(origin.request_id)
        .fetch_one(connection)
        .await?;
    Ok(row.into())
}

/// A book by its id.
///
/// # Errors
/// `not_found`.
pub async fn find(connection: &mut PgConnection, book_id: Uuid) -> Result<Book> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT b.*, d.commitment FROM books b JOIN draw_states d ON d.book_id = b.id WHERE b.id = $1 AND d.book_id = $1",
    )
    .bind(book_id)
    .fetch_optional(connection)
    .await?;
    row.map(Book::from).ok_or_else(|| Refusal::not_found().into())
}

/// Several books by their ids, in no order; unknown ids are left out.
///
/// # Errors
/// When the database fails.
pub async fn find_several(connection: &mut PgConnection, book_ids: &[Uuid]) -> Result<Vec<Book>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT b.*, d.commitment FROM books b JOIN draw_states d ON d.book_id = b.id WHERE b.id = ANY($1)",
    )
    .bind(book_ids)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Book::from).collect())
}

/// A book as `caller` may see it: administrators and readers any, users those that are open to self-service.
///
/// # Errors
/// `not_found`.
pub async fn find_for(connection: &mut PgConnection, caller: &Caller, book_id: Uuid) -> Result<Book> {
    let book = find(connection, book_id).await?;
    if sees_all(caller) || (book.settings.self_service && book.settings.status != Status::Draft) {
        Ok(book)
    } else {
        Err(Refusal::not_found().into())
    }
}

/// A book whose codes `caller` may have at hand: machines any, users also those of which they hold a coupon.
///
/// # Errors
/// `not_found`.
pub async fn find_to_check(connection: &mut PgConnection, caller: &Caller, book_id: Uuid) -> Result<Book> {
    let holds: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM coupons WHERE assigned_user_id = $1 AND book_id = $2)",
    )
    .bind(caller.id)
    .bind(book_id)
    .fetch_one(&mut *connection)
    .await?;
    if holds || caller.user_id().is_none() {
        find(connection, book_id).await
    } else {
        find_for(connection, caller, book_id).await
    }
}

fn sees_all(caller: &Caller) -> bool {
    caller.may(Scope::Read)
}

/// The books that `caller` may see, newest first, behind `after`.
///
/// # Errors
/// When the database fails.
pub async fn list(
    connection: &mut PgConnection,
    caller: &Caller,
    status: Option<Status>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Page<Book>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT b.*, d.commitment FROM books b JOIN draw_states d ON d.book_id = b.id
         WHERE ($1 OR (b.self_service AND b.status <> 'draft')) AND ($2::text IS NULL OR b.status = $2)
           AND ($3::uuid IS NULL OR b.id < $3)
         ORDER BY b.id DESC LIMIT $4",
    )
    .bind(sees_all(caller))
    .bind(status.map(Status::as_str))
    .bind(after)
    .bind(limit + 1)
    .fetch_all(connection)
    .await?;
    Ok(Page::cut(rows.into_iter().map(Book::from).collect(), limit))
}

/// Changes a book's settings if it still has the version that `expected` names (any, when `None`); `change` edits them.
///
/// # Errors
/// `not_found`, `stale`, `validation_failed`, `pattern_invalid`, `invalid_state` (`exact_codes` of a book that has codes;
/// an archived book in use again).
pub async fn update(
    connection: &mut PgConnection,
    book_id: Uuid,
    expected: Option<i64>,
    origin: Origin<'_>,
    change: impl FnOnce(&mut Settings) + Send,
) -> Result<Book> {
    // Taking the draw's row first keeps codes from arriving while `exact_codes` changes.
    let has_codes: Option<bool> =
        sqlx::query_scalar("SELECT arrivals > 0 FROM draw_states WHERE book_id = $1 FOR UPDATE")
            .bind(book_id)
            .fetch_optional(&mut *connection)
            .await?;
    let has_codes = has_codes.ok_or_else(Refusal::not_found)?;
    let before = find(connection, book_id).await?;
    if expected.is_some_and(|expected| expected != before.version) {
        return Err(Refusal::new(
            Code::Stale,
            "The book has changed since you read it; read it again.",
        )
        .into());
    }
    let mut settings = before.settings.clone();
    change(&mut settings);
    settings.check()?;
    let spelling = |settings: &Settings| (settings.pattern.clone(), settings.exact_codes);
    if spelling(&settings) != spelling(&before.settings) {
        settings.check_pattern()?;
    }
    if has_codes && settings.exact_codes != before.settings.exact_codes {
        return Err(Refusal::new(
            Code::InvalidState,
            "exact_codes is fixed once the book has codes.",
        )
        .into());
    }
    if before.settings.status == Status::Archived && settings.status != Status::Archived {
        // The seed of its draw may have been revealed.
        return Err(Refusal::new(Code::InvalidState, "The book is archived, which is for good.").into());
    }
    if settings == before.settings {
        return Ok(before);
    }
    let query = sqlx::query_as(
        "WITH b AS (
             UPDATE books SET starts_at = $3, ends_at = $4, redemptions_per_coupon = $5, max_assignments_per_user = $6,
                 max_redemptions_per_user = $7, lock_seconds = $8, lock_renewals = $9, valid_days_after_assignment = $10,
                 rollback_days = $11, require_lock = $12, self_service = $13, exact_codes = $14, status = $15,
                 time_zone = $16, name = $17, description = $18, pattern = $19, metadata = $20,
                 version = version + 1, updated_at = now()
             WHERE id = $1 AND version = $2 RETURNING *),
         recorded AS (
             INSERT INTO events (book_id, id, actor_kind, actor_id, kind, request_id, before, after)
             SELECT b.id, uuid_v7(), $21, $22, 'book_changed', $23, $24, $25 FROM b)
         SELECT b.*, d.commitment FROM b JOIN draw_states d ON d.book_id = $1",
    )
    .bind(book_id)
    .bind(before.version);
    let row: Option<Row> = bind_settings(query, &settings)
        .bind(origin.actor.kind.as_str())
        .bind(origin.actor.id)
        .bind(origin.request_id)
        .bind(summary(&before.settings))
        .bind(summary(&settings))
        .fetch_optional(connection)
        .await?;
    row.map(Book::from).ok_or_else(|| {
        Refusal::new(
            Code::Stale,
            "The book has changed since you read it; read it again.",
        )
        .into()
    })
}

/// What the audit trail keeps of a configuration.
fn summary(settings: &Settings) -> serde_json::Value {
    serde_json::json!({
        "name": settings.name,
        "status": settings.status.as_str(),
        "exact_codes": settings.exact_codes,
        "redemptions_per_coupon": settings.redemptions_per_coupon,
        "max_assignments_per_user": settings.max_assignments_per_user,
        "max_redemptions_per_user": settings.max_redemptions_per_user,
        "require_lock": settings.require_lock,
        "lock_seconds": settings.lock_seconds,
        "lock_renewals": settings.lock_renewals,
        "self_service": settings.self_service,
        "starts_at": settings.starts_at,
        "ends_at": settings.ends_at,
        "valid_days_after_assignment": settings.valid_days_after_assignment,
        "rollback_days": settings.rollback_days,
        "time_zone": settings.time_zone,
        "pattern": settings.pattern,
    })
}

/// How many coupons a book has in each effective state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Stats {
    /// All.
    pub total: i64,
    /// In the draw.
    pub unassigned: i64,
    /// Held, with no live lock.
    pub assigned: i64,
    /// Held, with a live lock.
    pub locked: i64,
    /// Used up.
    pub redeemed: i64,
    /// Withdrawn.
    pub void: i64,
    /// Uses spent, less those given back.
    pub redemptions: i64,
}

/// A book of fewer coupons is counted row by row: some ten milliseconds, and nothing else has to be right for it.
const COUNT_UP_TO: i64 = 50_000;

/// A book's coupons by state, row by row.
const COUNT: &str = "SELECT count(*) AS total,
            count(*) FILTER (WHERE state = 'unassigned') AS unassigned,
            count(*) FILTER (WHERE state = 'assigned' OR (state = 'locked' AND locked_until <= now())) AS assigned,
            count(*) FILTER (WHERE state = 'locked' AND locked_until > now()) AS locked,
            count(*) FILTER (WHERE state = 'redeemed') AS redeemed,
            count(*) FILTER (WHERE state = 'void') AS void,
            coalesce(sum(redemptions_used), 0)::bigint AS redemptions
     FROM coupons WHERE book_id = $1";

/// The same from the sums, the events that are not in them yet, and the locks that have lapsed but are not swept: one
/// statement sees all three at one moment, so this is exact, too.
pub const COUNT_FROM_SUMS: &str = concat!(
    "WITH events_left AS (",
    coupon_sums!(
        "",
        "book_id = $1 AND id >= (SELECT events_before FROM roll_up_state)",
        ""
    ),
    "),
     summed AS (
         SELECT unassigned, assigned, locked, redeemed, void, redemptions FROM book_hours
         WHERE book_id = $1 ORDER BY hour DESC LIMIT 1),
     lapsed AS (SELECT count(*) AS locks FROM coupons WHERE state LIKE 'locked' AND locked_until <= now() AND book_id = $1),
     s AS (
         SELECT coalesce(s.unassigned, 0) + e.unassigned AS unassigned, coalesce(s.assigned, 0) + e.assigned + l.locks AS assigned,
                coalesce(s.locked, 0) + e.locked - l.locks AS locked, coalesce(s.redeemed, 0) + e.redeemed AS redeemed,
                coalesce(s.void, 0) + e.void AS void, coalesce(s.redemptions, 0) + e.redemptions AS redemptions
         FROM events_left e CROSS JOIN lapsed l LEFT JOIN summed s ON true)
     SELECT s.unassigned + s.assigned + s.locked + s.redeemed + s.void AS total, s.* FROM s"
);

/// Counts a book's coupons. A large book is told from the sums, so that this does not grow with it.
///
/// # Errors
/// `not_found`.
pub async fn stats(connection: &mut PgConnection, book_id: Uuid) -> Result<Stats> {
    find(connection, book_id).await?;
    let summed: Stats = sqlx::query_as(COUNT_FROM_SUMS)
        .bind(book_id)
        .fetch_one(&mut *connection)
        .await?;
    if summed.total > COUNT_UP_TO {
        return Ok(summed);
    }
    Ok(sqlx::query_as(COUNT).bind(book_id).fetch_one(connection).await?)
}
