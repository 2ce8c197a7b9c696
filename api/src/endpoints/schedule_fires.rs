//! Fires of a schedule: what became of them, when the next ones are; start what it is for now.

use coupon_core::schedule::{self, Fire, fire};
use poem_openapi::{
    Object, OpenApi,
    param::{Header, Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{
    Tag,
    job_reply::{self, JobReply},
    job_view::JobError,
    origin,
};
use crate::{Nullable, Problem, RequestId, app::App, auth::Auth, once::IdempotencyKey, time::Time};

/// Fires that are previewed if the client does not say.
const PREVIEWED: u32 = 10;

/// What became of a fire.
#[derive(Debug, Object)]
#[oai(rename = "ScheduleFire")]
pub struct FireView {
    /// The time that the schedule names; of one that was started by hand, when it was.
    fire_at: Time,
    /// When it was dealt with.
    fired_at: Time,
    /// started, refused, overlapped (an earlier job was not at its end) or missed (nobody was there).
    outcome: String,
    /// Whether somebody asked for it.
    by_hand: bool,
    /// The job that it started.
    job_id: Nullable<Uuid>,
    /// Why it was refused.
    error: Nullable<JobError>,
}

impl From<Fire> for FireView {
    fn from(fire: Fire) -> Self {
        Self {
            fire_at: fire.fire_at.into(),
            fired_at: fire.fired_at.into(),
            outcome: fire.outcome,
            by_hand: fire.by_hand,
            job_id: fire.job_id.into(),
            error: fire.error.map(|(code, detail)| JobError { code, detail }).into(),
        }
    }
}

/// The next fires of a schedule.
#[derive(Debug, Object)]
pub struct NextFires {
    /// In order; fewer than asked for when the schedule ends before.
    data: Vec<Time>,
}

/// The endpoints of fires.
pub struct ScheduleFires {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Pools")]
impl ScheduleFires {
    /// When a schedule fires next: `n` times (10 by default). Of a paused one, when it would if it went on now.
    #[oai(path = "/schedules/:id/next", method = "get")]
    async fn next(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        #[oai(validator(minimum(value = "1"), maximum(value = "100")))] n: Query<Option<u32>>,
    ) -> Result<Json<NextFires>, Problem> {
        auth.require_admin()?;
        let mut connection = self.app.connection().await?;
        let (schedule, now) = schedule::find(&mut connection, id.0).await?;
        let count = usize::try_from(n.0.unwrap_or(PREVIEWED)).unwrap_or(0);
        let fires = schedule.preview(now, count)?;
        Ok(Json(NextFires {
            data: fires.into_iter().map(Time::from).collect(),
        }))
    }

    /// Start what a schedule is for now, beside its own fires: a job. A paused schedule can be started, too.
    #[oai(path = "/schedules/:id/run", method = "post")]
    async fn run(
        &self,
        auth: Auth,
        request_id: RequestId,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
    ) -> Result<JobReply, Problem> {
        auth.require_admin()?;
        self.app.depth().admit()?;
        job_reply::accepted(&self.app, &auth, key, None, prefer.0.as_deref(), async |tx| {
            fire::run_now(tx, id.0, origin(&auth, &request_id)).await
        })
        .await
    }
}
