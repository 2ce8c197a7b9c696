//! Distributions: plan and run, list, read.

use std::collections::BTreeMap;

use coupon_core::distribution::{self, Distribution, Filter, Request, create, plan};
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Header, Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{
    Tag,
    distribution_plan::{Distributed, Excluded, PlanView},
    hex, job_reply, origin,
};
use crate::{
    Body, Nullable, Problem, RequestId,
    app::App,
    auth::Auth,
    lists::{Limit, Page, decode_cursor},
    once::{self, Begun, IdempotencyKey, Once},
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
        let (hash, prefer) = (Some(body.hash()), prefer.0.as_deref());
        let job = job_reply::accepted(app, &auth, key, hash, prefer, async |tx| {
            create::accept(tx, &request, origin(&auth, &id)).await
        });
        Ok(Distributed::Job(Box::new(job.await?)))
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
        let mut connection = self.app.connection().await?;
        let page = distribution::list(&mut connection, filter, after, limit.rows()).await?;
        Ok(Json(Page::of(page, &list, |it| it.id, DistributionView::from)))
    }

    /// Read a distribution.
    #[oai(path = "/distributions/:id", method = "get")]
    async fn read(&self, auth: Auth, id: Path<Uuid>) -> Result<Json<DistributionView>, Problem> {
        auth.require_admin()?;
        let mut connection = self.app.connection().await?;
        Ok(Json(distribution::find(&mut connection, id.0).await?.into()))
    }
}
