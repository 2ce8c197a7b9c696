//! Undoing a distribution.

use coupon_core::distribution::undo;
use poem_openapi::{
    OpenApi,
    param::{Header, Path},
};
use uuid::Uuid;

use super::{
    Tag,
    jobs::{self, JobReply},
    origin,
};
use crate::{
    Problem, RequestId,
    app::App,
    auth::Auth,
    once::{Begun, IdempotencyKey, Once},
};

/// The endpoint of undoing.
pub struct DistributionUndo {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Pools")]
impl DistributionUndo {
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
