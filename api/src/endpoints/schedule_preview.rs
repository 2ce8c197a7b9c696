//! When a schedule would fire, asked while somebody still thinks about it.

use coupon_core::schedule::outlook::{When, outlook};
use poem_openapi::{Object, OpenApi};

use super::{Tag, check_time};
use crate::{
    Body, Problem,
    app::App,
    auth::Auth,
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
    time::Time,
};

/// Fires that are shown.
const SHOWN: usize = 10;

/// When something would start.
#[derive(Debug, Object)]
pub struct SchedulePreviewRequest {
    /// The one time at which it fires.
    run_at: Option<Time>,
    /// Instead of run_at: minute, hour, day of the month, month, day of the week.
    #[oai(validator(max_length = 200))]
    cron: Option<String>,
    /// IANA name, in whose clock cron is read; UTC by default.
    #[oai(validator(max_length = 100))]
    time_zone: Option<String>,
    /// From this on it does not fire.
    ends_at: Option<Time>,
}

/// When it would fire.
#[derive(Debug, Object)]
pub struct SchedulePreview {
    /// The next ten, in order; fewer when it ends before.
    data: Vec<Time>,
}

/// The endpoint of schedules that nobody has made yet.
pub struct SchedulePreviews {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Pools")]
impl SchedulePreviews {
    /// Look ahead: when a schedule with these settings would fire. Nothing is made.
    #[oai(path = "/schedules/preview", method = "post")]
    async fn preview(
        &self,
        auth: Auth,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<SchedulePreviewRequest>,
    ) -> Result<Reply<SchedulePreview>, Problem> {
        auth.require_admin()?;
        let hash = *body.hash();
        let request = body.value;
        let when = When {
            run_at: check_time("/run_at", request.run_at)?,
            cron: request.cron,
            time_zone: request.time_zone.unwrap_or_else(|| "UTC".to_owned()),
            ends_at: check_time("/ends_at", request.ends_at)?,
        };
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(&hash)).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let fires = outlook(once.tx(), &when, SHOWN)
            .await
            .map(|fires| SchedulePreview {
                data: fires.into_iter().map(Time::from).collect(),
            });
        once.finish(fires, |_| None).await
    }
}
