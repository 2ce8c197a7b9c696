//! Coupons: a book's, one, what happened to it, and a holder's own.

use std::collections::HashMap;

use coupon_core::{
    Error, book,
    caller::{Caller, Scope},
    coupon::{self, Behalf, Coupon, CouponId, code, list, locate},
    generate::form,
    user,
};
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Lookup, Metadata, Tag, books::Status, hex, metadata, path_code};
use crate::{
    Body, Nullable, Problem,
    app::App,
    auth::Auth,
    lists::{Limit, Page, decode_cursor},
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
    time::{self, Time},
};

/// The effective state of a coupon: a lapsed lock shows `assigned`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "CouponState", rename_all = "snake_case")]
pub enum State {
    /// In the draw.
    Unassigned,
    /// Somebody holds it.
    Assigned,
    /// Its holder is about to redeem it.
    Locked,
    /// Every use is spent.
    Redeemed,
    /// Withdrawn for good.
    Void,
}

impl From<State> for coupon::State {
    fn from(state: State) -> Self {
        match state {
            State::Unassigned => Self::Unassigned,
            State::Assigned => Self::Assigned,
            State::Locked => Self::Locked,
            State::Redeemed => Self::Redeemed,
            State::Void => Self::Void,
        }
    }
}

impl From<coupon::State> for State {
    fn from(state: coupon::State) -> Self {
        match state {
            coupon::State::Unassigned => Self::Unassigned,
            coupon::State::Assigned => Self::Assigned,
            coupon::State::Locked => Self::Locked,
            coupon::State::Redeemed => Self::Redeemed,
            coupon::State::Void => Self::Void,
        }
    }
}

/// One code in one book with its state.
#[derive(Debug, Object)]
#[oai(rename = "Coupon")]
pub struct CouponView {
    /// As shown.
    code: String,
    book_id: Uuid,
    state: State,
    assigned_user_id: Nullable<Uuid>,
    assigned_at: Nullable<Time>,
    locked_until: Nullable<Time>,
    redemptions_used: i32,
    redemptions_allowed: i32,
    expires_at: Nullable<Time>,
    metadata: Metadata,
    created_at: Time,
    updated_at: Time,
}

impl From<Coupon> for CouponView {
    fn from(coupon: Coupon) -> Self {
        Self {
            code: coupon.code,
            book_id: coupon.book_id,
            state: coupon.state.into(),
            assigned_user_id: coupon.assigned_user_id.into(),
            assigned_at: coupon.assigned_at.into(),
            locked_until: coupon.locked_until.into(),
            redemptions_used: coupon.redemptions_used,
            redemptions_allowed: coupon.redemptions_allowed,
            expires_at: coupon.expires_at.into(),
            metadata: metadata(coupon.metadata),
            created_at: coupon.created_at.into(),
            updated_at: coupon.updated_at.into(),
        }
    }
}

/// A coupon as its holder sees it: with what the book says of using it.
#[derive(Debug, Object)]
#[oai(rename = "HeldCoupon")]
pub struct HeldCouponView {
    #[oai(flatten)]
    coupon: CouponView,
    book: TermsView,
}

/// What a holder may know of a coupon's book.
#[derive(Debug, Clone, Object)]
#[oai(rename = "BookTerms")]
pub struct TermsView {
    name: String,
    status: Status,
    /// Whether a redemption needs a lock first.
    require_lock: bool,
    /// Before this nothing moves.
    starts_at: Nullable<Time>,
    /// From this on nothing moves.
    ends_at: Nullable<Time>,
}

impl From<book::Settings> for TermsView {
    fn from(settings: book::Settings) -> Self {
        Self {
            name: settings.name,
            status: settings.status.into(),
            require_lock: settings.require_lock,
            starts_at: settings.starts_at.into(),
            ends_at: settings.ends_at.into(),
        }
    }
}

/// A code to be checked without looking it up.
#[derive(Debug, Object)]
pub struct CheckRequest {
    /// As typed.
    #[oai(validator(max_length = 1000))]
    code: String,
    /// The book whose rules count.
    book_id: Uuid,
}

/// Whether a text can be a code of the book.
#[derive(Debug, Object)]
pub struct CheckView {
    /// Whether it has the form of a code; where every code of the book was generated, of one of its patterns.
    well_formed: bool,
    /// The form in which two codes are compared; null when it is not well formed.
    canonical: Nullable<String>,
}

/// One line of the audit trail.
#[derive(Debug, Object)]
#[oai(rename = "Event")]
pub struct EventView {
    id: Uuid,
    at: Time,
    /// What happened: coupon_assigned, coupon_locked, …
    kind: String,
    book_id: Uuid,
    code: Nullable<String>,
    /// Who: `user:…`, `api_key:…`, or `system`.
    actor: String,
    job_id: Nullable<Uuid>,
    request_id: Nullable<String>,
    /// The fields that changed, as they were.
    before: Nullable<Value>,
    /// The same, as they became.
    after: Nullable<Value>,
    /// The link of the audit chain; null until sealed.
    hash: Nullable<String>,
}

impl From<list::Event> for EventView {
    fn from(event: list::Event) -> Self {
        Self {
            id: event.id,
            at: event.at.into(),
            kind: event.kind,
            book_id: event.book_id,
            code: event.code.into(),
            actor: match event.actor_id {
                Some(id) => format!("{}:{id}", event.actor_kind),
                None => event.actor_kind,
            },
            job_id: event.job_id.into(),
            request_id: event.request_id.into(),
            before: event.before.map(time::in_utc).into(),
            after: event.after.map(time::in_utc).into(),
            hash: event.hash.map(|hash| hex(&hash)).into(),
        }
    }
}

/// Which coupons exist for a caller who looks one up: a person its own, administrators and machines any.
///
/// # Errors
/// `forbidden` for a machine that may neither read nor redeem.
pub(super) fn behalf(caller: &Caller) -> Result<Behalf, Problem> {
    if caller.may(Scope::Read) || caller.may(Scope::Redeem) {
        return Ok(Behalf::Anybody);
    }
    match caller.user_id() {
        Some(user_id) => Ok(Behalf::Holder(user_id)),
        None => Err(coupon_core::Refusal::forbidden().into()),
    }
}

/// Whether a text has the form of a code of the book, the check character included, and how it compares.
async fn check(
    connection: &mut PgConnection,
    caller: &Caller,
    book_id: Uuid,
    text: &str,
) -> Result<CheckView, Error> {
    let book = coupon_core::book::find_to_check(connection, caller, book_id).await?;
    let canonical = match code::Code::parse(text) {
        Ok(code) if form::fits(connection, book_id, &code).await? => {
            Some(code.key(book.settings.exact_codes).to_owned())
        }
        _ => None,
    };
    Ok(CheckView {
        well_formed: canonical.is_some(),
        canonical: canonical.into(),
    })
}

/// The endpoints of coupons.
pub struct Coupons {
    /// What handlers share.
    pub app: App,
}

impl Coupons {
    async fn locate(&self, caller: &Caller, code: &str, book_id: Option<Uuid>) -> Result<CouponId, Problem> {
        let behalf = behalf(caller)?;
        let lookup = Lookup::begin(&self.app, caller, code, book_id).await?;
        let found = async {
            let code = path_code(code)?;
            let mut connection = self.app.connection().await?;
            Ok(locate::locate(&mut connection, behalf, &code, book_id)
                .await?
                .coupon)
        };
        lookup.end(found.await).await
    }

    async fn held_by(
        &self,
        user_id: Uuid,
        state: Option<State>,
        book_id: Option<Uuid>,
        limit: Limit,
        cursor: Option<&str>,
    ) -> Result<Json<Page<HeldCouponView>>, Problem> {
        let list = format!("held/{user_id}/{state:?}/{book_id:?}");
        let after: Option<(Uuid, String)> = decode_cursor(&list, cursor)?;
        let after = after.map(|(book_id, code_key)| CouponId { book_id, code_key });
        let mut connection = self.app.connection().await?;
        let state = state.map(Into::into);
        let page = list::list_of_holder(
            &mut connection,
            user_id,
            state,
            book_id,
            after.as_ref(),
            limit.rows(),
        )
        .await?;
        let mut book_ids: Vec<Uuid> = page.rows.iter().map(|(id, _)| id.book_id).collect();
        book_ids.dedup(); // the list is ordered by book
        let books = book::find_several(&mut connection, &book_ids).await?;
        let terms: HashMap<Uuid, TermsView> = books
            .into_iter()
            .map(|book| (book.id, book.settings.into()))
            .collect();
        Ok(Json(Page::of(
            page,
            &list,
            |(id, _)| (id.book_id, id.code_key.clone()),
            |(id, coupon)| HeldCouponView {
                coupon: coupon.into(),
                book: terms[&id.book_id].clone(), // a coupon's book is never deleted
            },
        )))
    }
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Coupons")]
impl Coupons {
    /// List a book's coupons in the order of their codes.
    #[oai(path = "/books/:id/coupons", method = "get")]
    #[expect(clippy::too_many_arguments, reason = "each is a declared parameter")]
    async fn list(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        state: Query<Option<State>>,
        user_id: Query<Option<Uuid>>,
        code: Query<Option<String>>,
    ) -> Result<Json<Page<CouponView>>, Problem> {
        auth.require(Scope::Read)?;
        let list = format!("coupons/{}/{:?}/{:?}/{:?}", id.0, state.0, user_id.0, code.0);
        let after: Option<String> = decode_cursor(&list, cursor.0.as_deref())?;
        let wanted = code.0.as_deref().map(code::Code::parse).transpose();
        let mut connection = self.app.connection().await?;
        coupon_core::book::find(&mut connection, id.0).await?;
        let Ok(wanted) = wanted else {
            // What is no code is in no book.
            return Ok(Json(Page::empty()));
        };
        let filter = list::Filter {
            state: state.0.map(Into::into),
            user_id: user_id.0,
            code: wanted.as_ref(),
        };
        let page = list::list_of_book(&mut connection, id.0, &filter, after.as_deref(), limit.rows()).await?;
        Ok(Json(Page::of(
            page,
            &list,
            |(key, _)| key.clone(),
            |(_, coupon)| coupon.into(),
        )))
    }

    /// Check the form of a code, its check character included, without looking it up: free of the budget for misses.
    #[oai(path = "/coupons/check", method = "post")]
    async fn check(
        &self,
        auth: Auth,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<CheckRequest>,
    ) -> Result<Reply<CheckView>, Problem> {
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let checked = check(once.tx(), &auth, body.book_id, &body.code).await;
        once.finish(checked, |_| None).await
    }

    /// Look up a code.
    #[oai(path = "/coupons/:code", method = "get")]
    async fn read(
        &self,
        auth: Auth,
        code: Path<String>,
        book_id: Query<Option<Uuid>>,
    ) -> Result<Json<CouponView>, Problem> {
        let coupon = self.locate(&auth, &code.0, book_id.0).await?;
        let mut connection = self.app.connection().await?;
        Ok(Json(list::find(&mut connection, &coupon).await?.into()))
    }

    /// What happened to a coupon, oldest first; to its holder, since it is theirs.
    #[oai(path = "/coupons/:code/events", method = "get")]
    async fn events(
        &self,
        auth: Auth,
        code: Path<String>,
        book_id: Query<Option<Uuid>>,
        as_of: Query<Option<Time>>,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
    ) -> Result<Json<Page<EventView>>, Problem> {
        let as_of = super::check_time("?as_of", as_of.0)?;
        let behalf = behalf(&auth)?;
        let coupon = self.locate(&auth, &code.0, book_id.0).await?;
        let list = format!("events/{}/{}/{as_of:?}", coupon.book_id, coupon.code_key);
        let after: Option<Uuid> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let page = list::list_events(&mut connection, &coupon, behalf, as_of, after, limit.rows()).await?;
        Ok(Json(Page::of(page, &list, |event| event.id, EventView::from)))
    }

    /// The coupons that you hold.
    #[oai(path = "/me/coupons", method = "get")]
    async fn mine(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        state: Query<Option<State>>,
        book_id: Query<Option<Uuid>>,
    ) -> Result<Json<Page<HeldCouponView>>, Problem> {
        let Some(user_id) = auth.user_id() else {
            return Err(coupon_core::Refusal::forbidden().into());
        };
        self.held_by(user_id, state.0, book_id.0, limit.0, cursor.0.as_deref())
            .await
    }

    /// The coupons that a user holds.
    #[oai(path = "/users/:id/coupons", method = "get")]
    async fn of_user(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        state: Query<Option<State>>,
        book_id: Query<Option<Uuid>>,
    ) -> Result<Json<Page<HeldCouponView>>, Problem> {
        auth.require(Scope::Read)?;
        let mut connection = self.app.connection().await?;
        if user::find(&mut connection, id.0).await?.is_none() {
            return Err(Problem::not_found());
        }
        drop(connection);
        self.held_by(id.0, state.0, book_id.0, limit.0, cursor.0.as_deref())
            .await
    }
}
