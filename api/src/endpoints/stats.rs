//! Series: how books and jobs went over time, read from sums and never counted anew.

use coupon_core::{
    caller::Scope,
    job,
    stats::series::{self, Asked, Point, ServicePoint, Window},
};
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{Tag, check_time};
use crate::{Problem, app::App, auth::Auth, time::Time};

/// How long an interval is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "StatsStep", rename_all = "snake_case")]
pub enum Step {
    /// An hour.
    Hour,
    /// A day, as UTC has it.
    Day,
}

impl From<Step> for series::Step {
    fn from(step: Step) -> Self {
        match step {
            Step::Hour => Self::Hour,
            Step::Day => Self::Day,
        }
    }
}

impl From<series::Step> for Step {
    fn from(step: series::Step) -> Self {
        match step {
            series::Step::Hour => Self::Hour,
            series::Step::Day => Self::Day,
        }
    }
}

/// Coupons in one interval: by state at its end (or so far), and what happened in it.
#[derive(Debug, Object)]
#[oai(rename = "CouponPoint")]
pub struct CouponPoint {
    /// The beginning of the interval.
    at: Time,
    total: i64,
    unassigned: i64,
    assigned: i64,
    /// A lapsed lock counts until it is swept, some seconds later.
    locked: i64,
    redeemed: i64,
    void: i64,
    /// Uses spent until then, less those given back.
    redemptions: i64,
    /// Codes that came into a book.
    added_count: i64,
    /// Assignments.
    assigned_count: i64,
    /// Locks taken.
    locked_count: i64,
    /// Locks given back.
    unlocked_count: i64,
    /// Locks that lapsed.
    lock_expired_count: i64,
    /// Uses spent.
    redeemed_count: i64,
    /// Uses given back.
    rolled_back_count: i64,
    /// Coupons taken back into the draw.
    revoked_count: i64,
    /// Coupons taken out of use.
    voided_count: i64,
}

impl From<Point> for CouponPoint {
    fn from(Point { at, states, counts }: Point) -> Self {
        Self {
            at: at.into(),
            total: states.total(),
            unassigned: states.unassigned,
            assigned: states.assigned,
            locked: states.locked,
            redeemed: states.redeemed,
            void: states.void,
            redemptions: states.redemptions,
            added_count: counts.added_count,
            assigned_count: counts.assigned_count,
            locked_count: counts.locked_count,
            unlocked_count: counts.unlocked_count,
            lock_expired_count: counts.lock_expired_count,
            redeemed_count: counts.redeemed_count,
            rolled_back_count: counts.rolled_back_count,
            revoked_count: counts.revoked_count,
            voided_count: counts.voided_count,
        }
    }
}

/// A book's coupons over time.
#[derive(Debug, Object)]
#[oai(rename = "BookHistory")]
pub struct BookHistory {
    /// The beginning of the first interval.
    from: Time,
    /// The end of the last.
    to: Time,
    step: Step,
    /// What happened later is not told yet; the last point may therefore still grow.
    complete_until: Time,
    /// One for each interval that begins before `complete_until`, also where nothing happened.
    points: Vec<CouponPoint>,
}

/// Jobs of one kind that ended in an interval.
#[derive(Debug, Object)]
#[oai(rename = "JobsPoint")]
pub struct JobsPoint {
    kind: String,
    succeeded_count: i64,
    partially_succeeded_count: i64,
    failed_count: i64,
    cancelled_count: i64,
    /// From acceptance to end, on average.
    mean_seconds: f64,
}

/// How deep a queue was in an interval, from a sample per minute.
#[derive(Debug, Object)]
#[oai(rename = "QueuePoint")]
pub struct QueuePoint {
    queue: String,
    due_mean: f64,
    due_max: i64,
}

/// The whole service in one interval.
#[derive(Debug, Object)]
#[oai(rename = "ServicePoint")]
pub struct ServicePointView {
    #[oai(flatten)]
    coupons: CouponPoint,
    /// Kinds of which a job ended.
    jobs: Vec<JobsPoint>,
    /// Queues, where a sample was taken.
    queues: Vec<QueuePoint>,
}

impl From<ServicePoint> for ServicePointView {
    fn from(point: ServicePoint) -> Self {
        let jobs = point.jobs.into_iter().map(|(kind, ended)| {
            let count = |state: job::State| ended.by_state.get(state.as_str()).copied().unwrap_or(0);
            let all: i64 = ended.by_state.values().sum();
            JobsPoint {
                kind,
                succeeded_count: count(job::State::Succeeded),
                partially_succeeded_count: count(job::State::PartiallySucceeded),
                failed_count: count(job::State::Failed),
                cancelled_count: count(job::State::Cancelled),
                mean_seconds: ended.seconds / all.max(1) as f64,
            }
        });
        let queues = point.queues.into_iter().map(|(queue, depth)| QueuePoint {
            queue,
            due_mean: depth.mean,
            due_max: depth.max,
        });
        Self {
            coupons: point.coupons.into(),
            jobs: jobs.collect(),
            queues: queues.collect(),
        }
    }
}

/// All books and jobs over time.
#[derive(Debug, Object)]
#[oai(rename = "ServiceHistory")]
pub struct ServiceHistory {
    /// The beginning of the first interval.
    from: Time,
    /// The end of the last.
    to: Time,
    step: Step,
    /// What happened later is not told yet; the last point may therefore still grow.
    complete_until: Time,
    /// One for each interval that begins before `complete_until`, also where nothing happened.
    points: Vec<ServicePointView>,
}

/// What was asked for.
fn asked(
    from: Query<Option<Time>>,
    to: Query<Option<Time>>,
    step: Query<Option<Step>>,
) -> Result<Asked, Problem> {
    Ok(Asked {
        from: check_time("?from", from.0)?,
        to: check_time("?to", to.0)?,
        step: step.0.map(Into::into),
    })
}

/// The endpoints of series.
pub struct Statistics {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Statistics")]
impl Statistics {
    /// A book's coupons over time: by state, and what happened.
    ///
    /// Up to 1,000 intervals. Without `from`: a week of hours or 90 days before `to`; without `to`: until now; without
    /// `step`: hours for up to two weeks, else days. `from` and `to` are widened to whole intervals.
    #[oai(path = "/books/:id/history", method = "get")]
    async fn of_book(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        from: Query<Option<Time>>,
        to: Query<Option<Time>>,
        step: Query<Option<Step>>,
    ) -> Result<Json<BookHistory>, Problem> {
        auth.require(Scope::Read)?;
        let asked = asked(from, to, step)?;
        let mut connection = self.app.connection().await?;
        let (window, points) = series::of_book(&mut connection, id.0, asked).await?;
        let Window {
            from,
            to,
            step,
            complete_until,
        } = window;
        Ok(Json(BookHistory {
            from: from.into(),
            to: to.into(),
            step: step.into(),
            complete_until: complete_until.into(),
            points: points.into_iter().map(Into::into).collect(),
        }))
    }

    /// All books and jobs over time: coupons by state, what happened, jobs that ended, how deep the queues were.
    ///
    /// The time is given as for a book's history.
    #[oai(path = "/stats", method = "get")]
    async fn of_service(
        &self,
        auth: Auth,
        from: Query<Option<Time>>,
        to: Query<Option<Time>>,
        step: Query<Option<Step>>,
    ) -> Result<Json<ServiceHistory>, Problem> {
        auth.require(Scope::Read)?;
        let asked = asked(from, to, step)?;
        let mut connection = self.app.connection().await?;
        let (window, points) = series::of_service(&mut connection, asked).await?;
        let Window {
            from,
            to,
            step,
            complete_until,
        } = window;
        Ok(Json(ServiceHistory {
            from: from.into(),
            to: to.into(),
            step: step.into(),
            complete_until: complete_until.into(),
            points: points.into_iter().map(Into::into).collect(),
        }))
    }
}
