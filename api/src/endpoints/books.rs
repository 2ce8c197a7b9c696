//! Books: make, list, read, change, count.

use coupon_core::{
    book::{self, Book, Settings, Stats},
    caller::{Caller, Scope},
    db,
};
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Header, Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{Metadata, Tag, check_metadata, check_time, hex, metadata, origin};
use crate::{
    Body, Nullable, Problem, RequestId,
    app::App,
    auth::Auth,
    etag,
    lists::{Limit, Page, decode_cursor},
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
    time::Time,
};

/// Whether a book moves coupons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "BookStatus", rename_all = "snake_case")]
pub enum Status {
    /// Being prepared.
    Draft,
    /// In use.
    Active,
    /// Stopped for a while.
    Paused,
    /// Over for good.
    Archived,
}

impl From<Status> for book::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Draft => Self::Draft,
            Status::Active => Self::Active,
            Status::Paused => Self::Paused,
            Status::Archived => Self::Archived,
        }
    }
}

impl From<book::Status> for Status {
    fn from(status: book::Status) -> Self {
        match status {
            book::Status::Draft => Self::Draft,
            book::Status::Active => Self::Active,
            book::Status::Paused => Self::Paused,
            book::Status::Archived => Self::Archived,
        }
    }
}

/// What a person may set of a book.
#[derive(Debug, Object)]
pub struct NewBook {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: String,
    #[oai(flatten)]
    settings: BookSettings,
}

/// A change of a book: what is absent stays.
#[derive(Debug, Object)]
pub struct BookChange {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: Option<String>,
    #[oai(flatten)]
    settings: BookSettings,
    /// Members of these names are cleared: a null in a body means absent.
    #[oai(validator(max_items = 10))]
    clear: Option<Vec<Clearable>>,
}

/// A setting that may be cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum Clearable {
    /// No limit.
    MaxAssignmentsPerUser,
    /// No limit.
    MaxRedemptionsPerUser,
    /// No beginning.
    StartsAt,
    /// No end.
    EndsAt,
    /// No such limit.
    ValidDaysAfterAssignment,
    /// None.
    Pattern,
}

/// The settings of a book that have defaults.
#[derive(Debug, Default, Object)]
pub struct BookSettings {
    /// For people.
    #[oai(validator(max_length = 10000))]
    description: Option<String>,
    /// Only active books move coupons.
    status: Option<Status>,
    /// Whether case, spaces and dashes make codes different; fixed once there are codes.
    exact_codes: Option<bool>,
    /// Uses that a new coupon gets.
    #[oai(validator(minimum(value = "1"), maximum(value = "1000000")))]
    redemptions_per_coupon: Option<i32>,
    /// Coupons a user may be given.
    #[oai(validator(minimum(value = "1"), maximum(value = "2147483647")))]
    max_assignments_per_user: Option<i32>,
    /// Redemptions a user may make.
    #[oai(validator(minimum(value = "1"), maximum(value = "2147483647")))]
    max_redemptions_per_user: Option<i32>,
    /// Whether a redemption needs a lock first.
    require_lock: Option<bool>,
    /// How long a lock lasts, in seconds.
    #[oai(validator(minimum(value = "5"), maximum(value = "86400")))]
    lock_seconds: Option<i32>,
    /// How often one lock may be renewed.
    #[oai(validator(minimum(value = "0"), maximum(value = "1000")))]
    lock_renewals: Option<i32>,
    /// Whether users see the book and may assign to themselves.
    self_service: Option<bool>,
    /// Before this nothing moves.
    starts_at: Option<Time>,
    /// From this on nothing moves.
    ends_at: Option<Time>,
    /// Days a coupon stays valid once assigned.
    #[oai(validator(minimum(value = "1"), maximum(value = "36500")))]
    valid_days_after_assignment: Option<i32>,
    /// Days in which a redemption may be rolled back.
    #[oai(validator(minimum(value = "0"), maximum(value = "36500")))]
    rollback_days: Option<i32>,
    /// IANA name, such as Europe/Paris.
    #[oai(validator(min_length = 1, max_length = 64))]
    time_zone: Option<String>,
    /// How generated codes are spelled.
    #[oai(validator(min_length = 1, max_length = 200))]
    pattern: Option<String>,
    /// Your own fields.
    metadata: Option<Metadata>,
}

impl BookSettings {
    /// Puts what is given over `settings`.
    fn apply(self, settings: &mut Settings) -> Result<(), Problem> {
        fn set<T>(slot: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *slot = value;
            }
        }
        set(&mut settings.description, self.description);
        set(&mut settings.status, self.status.map(Into::into));
        set(&mut settings.exact_codes, self.exact_codes);
        set(&mut settings.redemptions_per_coupon, self.redemptions_per_coupon);
        set(
            &mut settings.max_assignments_per_user,
            self.max_assignments_per_user.map(Some),
        );
        set(
            &mut settings.max_redemptions_per_user,
            self.max_redemptions_per_user.map(Some),
        );
        set(&mut settings.require_lock, self.require_lock);
        set(&mut settings.lock_seconds, self.lock_seconds);
        set(&mut settings.lock_renewals, self.lock_renewals);
        set(&mut settings.self_service, self.self_service);
        set(
            &mut settings.starts_at,
            check_time("/starts_at", self.starts_at)?.map(Some),
        );
        set(
            &mut settings.ends_at,
            check_time("/ends_at", self.ends_at)?.map(Some),
        );
        set(
            &mut settings.valid_days_after_assignment,
            self.valid_days_after_assignment.map(Some),
        );
        set(&mut settings.rollback_days, self.rollback_days);
        set(&mut settings.time_zone, self.time_zone);
        set(&mut settings.pattern, self.pattern.map(Some));
        if self.metadata.is_some() {
            settings.metadata = check_metadata(self.metadata)?;
        }
        Ok(())
    }
}

fn clear(settings: &mut Settings, what: Clearable) {
    match what {
        Clearable::MaxAssignmentsPerUser => settings.max_assignments_per_user = None,
        Clearable::MaxRedemptionsPerUser => settings.max_redemptions_per_user = None,
        Clearable::StartsAt => settings.starts_at = None,
        Clearable::EndsAt => settings.ends_at = None,
        Clearable::ValidDaysAfterAssignment => settings.valid_days_after_assignment = None,
        Clearable::Pattern => settings.pattern = None,
    }
}

/// A book. Users see those of self-service, without the members that are marked as for administrators.
#[derive(Debug, Object)]
#[oai(rename = "Book")]
pub struct BookView {
    /// UUIDv7.
    pub id: Uuid,
    name: String,
    description: String,
    status: Status,
    require_lock: bool,
    lock_seconds: i32,
    lock_renewals: i32,
    self_service: bool,
    starts_at: Nullable<Time>,
    ends_at: Nullable<Time>,
    valid_days_after_assignment: Nullable<i32>,
    time_zone: String,
    #[oai(flatten)]
    more: Option<BookInside>,
}

/// What only administrators see of a book.
#[derive(Debug, Object)]
pub struct BookInside {
    exact_codes: bool,
    redemptions_per_coupon: i32,
    max_assignments_per_user: Nullable<i32>,
    max_redemptions_per_user: Nullable<i32>,
    rollback_days: i32,
    pattern: Nullable<String>,
    draw_commitment: String,
    metadata: Metadata,
    created_by: Uuid,
    created_at: Time,
    updated_at: Time,
}

impl BookView {
    fn of(book: Book, caller: &Caller) -> Self {
        let settings = book.settings;
        Self {
            id: book.id,
            name: settings.name,
            description: settings.description,
            status: settings.status.into(),
            require_lock: settings.require_lock,
            lock_seconds: settings.lock_seconds,
            lock_renewals: settings.lock_renewals,
            self_service: settings.self_service,
            starts_at: settings.starts_at.into(),
            ends_at: settings.ends_at.into(),
            valid_days_after_assignment: settings.valid_days_after_assignment.into(),
            time_zone: settings.time_zone,
            more: caller.may(Scope::Read).then(|| BookInside {
                exact_codes: settings.exact_codes,
                redemptions_per_coupon: settings.redemptions_per_coupon,
                max_assignments_per_user: settings.max_assignments_per_user.into(),
                max_redemptions_per_user: settings.max_redemptions_per_user.into(),
                rollback_days: settings.rollback_days,
                pattern: settings.pattern.into(),
                draw_commitment: hex(&book.draw_commitment),
                metadata: metadata(settings.metadata),
                created_by: book.created_by,
                created_at: book.created_at.into(),
                updated_at: book.updated_at.into(),
            }),
        }
    }
}

/// How many coupons a book has in each state.
#[derive(Debug, Object)]
#[oai(rename = "BookStats")]
pub struct StatsView {
    total: i64,
    unassigned: i64,
    assigned: i64,
    locked: i64,
    redeemed: i64,
    void: i64,
    redemptions: i64,
}

impl From<Stats> for StatsView {
    fn from(stats: Stats) -> Self {
        let Stats {
            total,
            unassigned,
            assigned,
            locked,
            redeemed,
            void,
            redemptions,
        } = stats;
        Self {
            total,
            unassigned,
            assigned,
            locked,
            redeemed,
            void,
            redemptions,
        }
    }
}

/// The endpoints of books.
pub struct Books {
    /// What handlers share.
    pub app: App,
}

impl Books {
    pub(super) async fn make(
        &self,
        auth: &Auth,
        id: &RequestId,
        key: IdempotencyKey,
        body: Body<NewBook>,
    ) -> Result<Reply<BookView, 201>, Problem> {
        auth.require_admin()?;
        let hash = *body.hash();
        let mut settings = Settings::named(body.value.name);
        body.value.settings.apply(&mut settings)?;
        let mut once = match Once::begin(&self.app, self.app.db(), auth, key, Some(&hash)).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return Ok(once::again(answer)?.tagged(etag::tag(1))),
        };
        let made = book::insert(once.tx(), &settings, origin(auth, id)).await;
        let made = made.map(|book| BookView::of(book, auth));
        let reply = once
            .finish(made, |book| Some(format!("/v1/books/{}", book.id)))
            .await?;
        Ok(reply.tagged(etag::tag(1)))
    }
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Books")]
impl Books {
    /// Make a book.
    #[oai(path = "/books", method = "post")]
    async fn create(
        &self,
        auth: Auth,
        id: RequestId,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<NewBook>,
    ) -> Result<Reply<BookView, 201>, Problem> {
        self.make(&auth, &id, key, body).await
    }

    /// Make a book (another name of POST /v1/books).
    #[oai(path = "/coupons", method = "post")]
    async fn create_as_coupons(
        &self,
        auth: Auth,
        id: RequestId,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<NewBook>,
    ) -> Result<Reply<BookView, 201>, Problem> {
        self.make(&auth, &id, key, body).await
    }

    /// List books, newest first; users see those of self-service.
    #[oai(path = "/books", method = "get")]
    async fn list(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        status: Query<Option<Status>>,
    ) -> Result<Json<Page<BookView>>, Problem> {
        require_person_or_reader(&auth)?;
        let list = format!("books/{:?}", status.0);
        let after: Option<Uuid> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let page = book::list(
            &mut connection,
            &auth,
            status.0.map(Into::into),
            after,
            limit.rows(),
        )
        .await?;
        Ok(Json(Page::of(
            page,
            &list,
            |book| book.id,
            |book| BookView::of(book, &auth),
        )))
    }

    /// Read a book; its ETag goes into If-Match of a change.
    #[oai(path = "/books/:id", method = "get")]
    async fn read(&self, auth: Auth, id: Path<Uuid>) -> Result<Reply<BookView>, Problem> {
        require_person_or_reader(&auth)?;
        let mut connection = self.app.connection().await?;
        let book = book::find_for(&mut connection, &auth, id.0).await?;
        let tag = etag::tag(book.version);
        Ok(Reply::new(&BookView::of(book, &auth)).tagged(tag))
    }

    /// Change a book.
    #[oai(path = "/books/:id", method = "patch")]
    async fn change(
        &self,
        auth: Auth,
        request_id: RequestId,
        id: Path<Uuid>,
        #[oai(name = "If-Match")] if_match: Header<Option<String>>,
        body: Body<BookChange>,
    ) -> Result<Reply<BookView>, Problem> {
        auth.require_admin()?;
        let BookChange {
            name,
            settings: given,
            clear: cleared,
        } = body.value;
        let mut tx = self.app.db().begin().await?;
        let before = book::find(&mut tx, id.0).await?;
        etag::check(if_match.0.as_deref(), before.version)?;
        let mut settings = before.settings.clone();
        for what in cleared.unwrap_or_default() {
            clear(&mut settings, what);
        }
        if let Some(name) = name {
            settings.name = name;
        }
        given.apply(&mut settings)?;
        let changed = book::update(
            &mut tx,
            id.0,
            Some(before.version),
            origin(&auth, &request_id),
            |slot| {
                *slot = settings;
            },
        )
        .await?;
        db::commit(tx).await?;
        let tag = etag::tag(changed.version);
        Ok(Reply::new(&BookView::of(changed, &auth)).tagged(tag))
    }

    /// Count a book's coupons by state.
    #[oai(path = "/books/:id/stats", method = "get")]
    async fn stats(&self, auth: Auth, id: Path<Uuid>) -> Result<Json<StatsView>, Problem> {
        auth.require(Scope::Read)?;
        let mut connection = self.app.connection().await?;
        Ok(Json(book::stats(&mut connection, id.0).await?.into()))
    }
}

/// People see what is theirs to see; a machine needs the scope `read`.
///
/// # Errors
/// `forbidden`.
pub(super) fn require_person_or_reader(caller: &Caller) -> Result<(), Problem> {
    if caller.user_id().is_none() {
        caller.require(Scope::Read)?;
    }
    Ok(())
}
