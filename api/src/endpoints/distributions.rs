//! Distributions: plan, run, read, undo.

use std::collections::BTreeMap;

use bytes::Bytes;
use coupon_core::{
    Error,
    distribution::{self, Distribution, Filter, Item, Reason, Request, create, plan, undo},
    proof,
};
use poem::{IntoResponse, Response};
use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi,
    param::{Header, Path, Query},
    payload::Json,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
    types::Type,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Tag,
    jobs::{self, JobReply, JobView},
    origin,
};
use crate::{
    Body, Nullable, Problem, RequestId,
    app::App,
    auth::Auth,
    lists::{Limit, Page, decode_cursor},
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
    time::Time,
};

/// Who gets how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "DistributionMode", rename_all = "snake_case")]
pub enum Mode {
    /// `per_user` each, all or none.
    Equal,
    /// `total` in all, each for a random person.
    Random,
    /// Everybody is brought up to `per_user`.
    TopUp,
}

impl From<Mode> for distribution::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Equal => Self::Equal,
            Mode::Random => Self::Random,
            Mode::TopUp => Self::TopUp,
        }
    }
}

impl From<distribution::Mode> for Mode {
    fn from(mode: distribution::Mode) -> Self {
        match mode {
            distribution::Mode::Equal => Self::Equal,
            distribution::Mode::Random => Self::Random,
            distribution::Mode::TopUp => Self::TopUp,
        }
    }
}

/// What happens when there are too few coupons, or too little room for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum OnShortage {
    /// Nothing is given.
    Fail,
    /// As far as it goes, in random order.
    Partial,
}

impl From<OnShortage> for distribution::OnShortage {
    fn from(on_shortage: OnShortage) -> Self {
        match on_shortage {
            OnShortage::Fail => Self::Fail,
            OnShortage::Partial => Self::Partial,
        }
    }
}

impl From<distribution::OnShortage> for OnShortage {
    fn from(on_shortage: distribution::OnShortage) -> Self {
        match on_shortage {
            distribution::OnShortage::Fail => Self::Fail,
            distribution::OnShortage::Partial => Self::Partial,
        }
    }
}

/// A distribution to be run, or only planned.
#[derive(Debug, Object)]
pub struct NewDistribution {
    /// Coupons of which book.
    book_id: Uuid,
    /// For the members of which pool.
    pool_id: Uuid,
    mode: Mode,
    /// Modes equal and top_up: how many each gets, or is brought up to.
    #[oai(
        skip_serializing_if_is_none,
        validator(minimum(value = "1"), maximum(value = "1000"))
    )]
    per_user: Option<i32>,
    /// Mode random: how many in all.
    #[oai(
        skip_serializing_if_is_none,
        validator(minimum(value = "1"), maximum(value = "10000000"))
    )]
    total: Option<i32>,
    /// Mode random: how many one person may get at most.
    #[oai(
        skip_serializing_if_is_none,
        validator(minimum(value = "1"), maximum(value = "10000000"))
    )]
    max_per_user: Option<i32>,
    /// fail by default.
    #[oai(skip_serializing_if_is_none)]
    on_shortage: Option<OnShortage>,
    /// Your own seed, 1 to 200 bytes: order and draws follow from it. Without one a random seed is made.
    #[oai(skip_serializing_if_is_none, validator(min_length = 1, max_length = 200))]
    seed: Option<String>,
}

impl From<&NewDistribution> for Request {
    fn from(new: &NewDistribution) -> Self {
        Self {
            book_id: new.book_id,
            pool_id: new.pool_id,
            mode: new.mode.into(),
            per_user: new.per_user,
            total: new.total,
            max_per_user: new.max_per_user,
            on_shortage: new.on_shortage.unwrap_or(OnShortage::Fail).into(),
            seed: new.seed.clone(),
        }
    }
}

impl From<&Request> for NewDistribution {
    fn from(request: &Request) -> Self {
        Self {
            book_id: request.book_id,
            pool_id: request.pool_id,
            mode: request.mode.into(),
            per_user: request.per_user,
            total: request.total,
            max_per_user: request.max_per_user,
            on_shortage: Some(request.on_shortage.into()),
            seed: request.seed.clone(),
        }
    }
}

/// Members who are left out for one reason.
#[derive(Debug, Object)]
pub struct Excluded {
    /// disabled, limit_reached, or ineligible: has as many as wanted already.
    reason: String,
    count: i64,
}

/// Somebody who would get coupons.
#[derive(Debug, Object)]
pub struct Recipient {
    user_id: Uuid,
    count: i32,
}

/// What a distribution would do; nothing was written.
#[derive(Debug, Object)]
#[oai(rename = "DistributionPlan")]
pub struct PlanView {
    /// People who would get at least one coupon.
    recipients: i64,
    /// Members who would be left out, by reason.
    excluded: Vec<Excluded>,
    /// Coupons needed.
    codes_needed: i64,
    /// Coupons that can be drawn.
    codes_free: i64,
    /// Coupons that are missing, or that nobody may take.
    shortfall: i64,
    /// The first recipients in their order.
    sample: Vec<Recipient>,
    /// SHA-256 of the seed that the sample follows from; without a seed of your own another run has another one.
    seed_commitment: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<plan::Plan> for PlanView {
    fn from(plan: plan::Plan) -> Self {
        let excluded = |(reason, count): (Reason, i64)| Excluded {
            reason: reason.as_str().to_owned(),
            count,
        };
        Self {
            recipients: plan.recipients,
            excluded: plan.excluded.into_iter().map(excluded).collect(),
            codes_needed: plan.codes_needed,
            codes_free: plan.codes_free,
            shortfall: plan.shortfall,
            sample: plan
                .sample
                .into_iter()
                .map(|(user_id, count)| Recipient { user_id, count })
                .collect(),
            seed_commitment: hex(&plan.seed_commitment),
        }
    }
}

/// A distribution.
#[derive(Debug, Object)]
#[oai(rename = "Distribution")]
pub struct DistributionView {
    /// UUIDv7.
    pub id: Uuid,
    book_id: Uuid,
    pool_id: Uuid,
    mode: Mode,
    per_user: Nullable<i32>,
    total: Nullable<i64>,
    max_per_user: Nullable<i32>,
    on_shortage: OnShortage,
    /// planned, running, completed, completed_with_shortfall, failed, cancelled, undoing, undone or partially_undone.
    state: String,
    /// SHA-256 of the seed.
    seed_commitment: String,
    /// Counters by name: members, eligible, excluded, codes_needed, planned, recipients, assigned, shortfall, withheld,
    /// undone.
    counts: BTreeMap<String, i64>,
    /// Members whom the plan leaves out, by reason.
    excluded: Vec<Excluded>,
    /// People whose share became otherwise than planned, by reason.
    changed: BTreeMap<String, i64>,
    /// Coupons that the last undoing could not take back, by reason.
    kept: Nullable<BTreeMap<String, i64>>,
    /// The job that runs it.
    job_id: Nullable<Uuid>,
    /// The latest job that undoes it.
    undo_job_id: Nullable<Uuid>,
    /// The schedule that started it.
    schedule_id: Nullable<Uuid>,
    created_by: Uuid,
    created_at: Time,
    /// When its plan was complete.
    planned_at: Nullable<Time>,
    /// When its run ended.
    ended_at: Nullable<Time>,
    /// When it had been undone wholly.
    undone_at: Nullable<Time>,
}

impl From<Distribution> for DistributionView {
    fn from(it: Distribution) -> Self {
        let excluded = |(reason, count): (&str, i64)| Excluded {
            reason: reason.to_owned(),
            count,
        };
        Self {
            id: it.id,
            book_id: it.book_id,
            pool_id: it.pool_id,
            mode: it.mode.into(),
            per_user: it.per_user.into(),
            total: it.total.into(),
            max_per_user: it.max_per_user.into(),
            on_shortage: it.on_shortage.into(),
            state: it.state,
            seed_commitment: hex(&it.seed_commitment),
            counts: it.counts,
            excluded: it.excluded.into_iter().map(excluded).collect(),
            changed: it.changed,
            kept: it.kept.into(),
            job_id: Some(it.job_id).into(),
            undo_job_id: it.undo_job_id.into(),
            schedule_id: it.schedule_id.into(),
            created_by: it.created_by,
            created_at: it.created_at.into(),
            planned_at: it.planned_at.map(Time::from).into(),
            ended_at: it.ended_at.map(Time::from).into(),
            undone_at: it.undone_at.map(Time::from).into(),
        }
    }
}

/// Where one person of a distribution stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum ItemState {
    /// It is not yet their turn.
    Planned,
    /// Got the whole share.
    Given,
    /// Got less, or nothing.
    Short,
    /// The plan leaves them out.
    LeftOut,
    /// Mode random: no coupon was drawn for them.
    NotDrawn,
}

impl ItemState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Given => "given",
            Self::Short => "short",
            Self::LeftOut => "left_out",
            Self::NotDrawn => "not_drawn",
        }
    }
}

/// One person of a distribution.
#[derive(Debug, Object)]
#[oai(rename = "DistributionItem")]
pub struct ItemView {
    user_id: Uuid,
    /// Coupons of the plan.
    wanted: i32,
    /// Coupons that the run assigned.
    assigned: i32,
    /// Those of them that undoing took back.
    undone: i32,
    /// planned, given, short, left_out or not_drawn.
    state: String,
    /// Why short or left out: disabled, limit_reached, ineligible, shortage.
    reason: Nullable<String>,
}

impl From<Item> for ItemView {
    fn from(item: Item) -> Self {
        Self {
            user_id: item.user_id,
            wanted: item.wanted,
            assigned: item.assigned,
            undone: item.undone,
            state: item.state,
            reason: item.reason.into(),
        }
    }
}

/// The answer to a distribution: its job, or for a dry run its plan.
pub enum Distributed {
    /// The plan.
    Plan(Reply<PlanView>),
    /// The job.
    Job(Box<JobReply>),
}

impl IntoResponse for Distributed {
    fn into_response(self) -> Response {
        match self {
            Self::Plan(reply) => reply.into_response(),
            Self::Job(reply) => reply.into_response(),
        }
    }
}

impl ApiResponse for Distributed {
    fn meta() -> MetaResponses {
        let answer = |status, description, schema| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType {
                content_type: <Json<PlanView> as poem_openapi::payload::Payload>::CONTENT_TYPE,
                schema,
            }],
            headers: Vec::new(),
        };
        let either = MetaSchemaRef::Inline(Box::new(MetaSchema {
            any_of: vec![PlanView::schema_ref(), JobView::schema_ref()],
            ..MetaSchema::ANY
        }));
        MetaResponses {
            responses: vec![
                answer(
                    200,
                    "The plan of a dry run; or the job, when it was waited for and has ended.",
                    either,
                ),
                answer(
                    202,
                    "The job, which is not at its end; poll Location.",
                    JobView::schema_ref(),
                ),
            ],
        }
    }

    fn register(registry: &mut Registry) {
        PlanView::register(registry);
        JobView::register(registry);
    }
}

/// A proof, a piece at a time.
pub struct ProofDocument(poem::Body);

impl IntoResponse for ProofDocument {
    fn into_response(self) -> Response {
        Response::builder().content_type("application/json").body(self.0)
    }
}

impl ApiResponse for ProofDocument {
    fn meta() -> MetaResponses {
        let content = MetaMediaType {
            content_type: "application/json",
            schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new("object"))),
        };
        MetaResponses {
            responses: vec![MetaResponse {
                description: "The proof, for `couponbook verify-draw`; its members are told in docs/draws.md.",
                status: Some(200),
                status_range: None,
                content: vec![content],
                headers: Vec::new(),
            }],
        }
    }

    fn register(_registry: &mut Registry) {}
}

/// The endpoints of distributions.
pub struct Distributions {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Pools")]
impl Distributions {
    /// Give coupons of a book to the people of a pool: a job. With `dry_run=true` only the plan, made by the same
    /// planner; nothing is written.
    #[oai(path = "/distributions", method = "post")]
    async fn create(
        &self,
        auth: Auth,
        id: RequestId,
        dry_run: Query<Option<bool>>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        body: Body<NewDistribution>,
    ) -> Result<Distributed, Problem> {
        auth.require_admin()?;
        let app = &self.app;
        let request = Request::from(&body.value);
        request.check()?;
        if dry_run.0 == Some(true) {
            let mut once = match Once::begin(app, app.db(), &auth, key, Some(body.hash())).await? {
                Begun::Fresh(once) => once,
                Begun::Before(answer) => return Ok(Distributed::Plan(once::again(answer)?)),
            };
            let plan = plan::dry_run(once.tx(), &request).await;
            let reply = once.finish(plan.map(PlanView::from), |_| None).await?;
            return Ok(Distributed::Plan(reply));
        }
        app.depth().admit()?;
        let prefer = prefer.0.as_deref();
        let mut once = match Once::begin(app, app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => {
                let job = jobs::replay(app, &auth, answer, prefer).await?;
                return Ok(Distributed::Job(Box::new(job)));
            }
        };
        let accepted = create::accept(once.tx(), &request, origin(&auth, &id)).await;
        let job_id = once.finish_job(accepted).await?;
        let job = jobs::reply(app, &auth, job_id, prefer, false).await?;
        Ok(Distributed::Job(Box::new(job)))
    }

    /// List distributions, newest first.
    #[oai(path = "/distributions", method = "get")]
    async fn list(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        book_id: Query<Option<Uuid>>,
    ) -> Result<Json<Page<DistributionView>>, Problem> {
        auth.require_admin()?;
        let list = format!("distributions/{:?}", book_id.0);
        let after: Option<Uuid> = decode_cursor(&list, cursor.0.as_deref())?;
        let filter = Filter { book_id: book_id.0 };
        let mut connection = self.app.db().pool().acquire().await.map_err(Error::from)?;
        let page = distribution::list(&mut connection, filter, after, limit.rows()).await?;
        Ok(Json(Page::of(page, &list, |it| it.id, DistributionView::from)))
    }

    /// Read a distribution.
    #[oai(path = "/distributions/:id", method = "get")]
    async fn read(&self, auth: Auth, id: Path<Uuid>) -> Result<Json<DistributionView>, Problem> {
        auth.require_admin()?;
        let mut connection = self.app.db().pool().acquire().await.map_err(Error::from)?;
        Ok(Json(distribution::find(&mut connection, id.0).await?.into()))
    }

    /// List the people of a distribution in the order in which they are served: what each was to get, and what came of
    /// it.
    #[oai(path = "/distributions/:id/items", method = "get")]
    async fn items(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        state: Query<Option<ItemState>>,
    ) -> Result<Json<Page<ItemView>>, Problem> {
        auth.require_admin()?;
        let state = state.0.map(ItemState::as_str);
        let list = format!("distributions/{}/items/{state:?}", id.0);
        let after: Option<(i64, Uuid)> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self.app.db().pool().acquire().await.map_err(Error::from)?;
        let page = distribution::list_items(&mut connection, id.0, state, after, limit.rows()).await?;
        Ok(Json(Page::of(
            page,
            &list,
            |item| (item.place, item.user_id),
            ItemView::from,
        )))
    }

    /// All that is needed to do the draws of the book and the order of this distribution again, with both seeds; once
    /// the book is archived, which is for good. `couponbook verify-draw` checks it offline.
    #[oai(path = "/distributions/:id/proof", method = "get")]
    async fn proof(&self, auth: Auth, id: Path<Uuid>) -> Result<ProofDocument, Problem> {
        auth.require_admin()?;
        let mut tx = self.app.db().begin().await.map_err(Error::from)?;
        let allowed = proof::write::begin(&mut tx, id.0).await?;
        let (pieces, received) = mpsc::channel(2);
        tokio::spawn(async move {
            if let Err(error) = proof::write::write(&mut tx, &allowed, &pieces).await {
                tracing::warn!(%error, "a proof was not written to its end");
                let _ = pieces.send(Err(error)).await; // the answer breaks off
            }
        });
        let stream = futures_util::stream::unfold(received, |mut received| async move {
            let piece = received.recv().await?;
            Some((piece.map(Bytes::from).map_err(std::io::Error::other), received))
        });
        Ok(ProofDocument(poem::Body::from_bytes_stream(stream)))
    }

    /// Undo a distribution: what it gave and is still only assigned goes back into the draw: a job.
    #[oai(path = "/distributions/:id/undo", method = "post")]
    async fn undo(
        &self,
        auth: Auth,
        request_id: RequestId,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
    ) -> Result<JobReply, Problem> {
        auth.require_admin()?;
        let app = &self.app;
        app.depth().admit()?;
        let prefer = prefer.0.as_deref();
        let mut once = match Once::begin(app, app.db(), &auth, key, None).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return jobs::replay(app, &auth, answer, prefer).await,
        };
        let accepted = undo::accept(once.tx(), id.0, origin(&auth, &request_id)).await;
        let job_id = once.finish_job(accepted).await?;
        jobs::reply(app, &auth, job_id, prefer, false).await
    }
}
