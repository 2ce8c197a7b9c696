//! Undoing a distribution.

use coupon_core::distribution::undo;
use poem_openapi::{
    OpenApi,
    param::{Header, Path},
};
use uuid::Uuid;

use super::{
    Tag,
    job_reply::{self, JobReply},
    origin,
};
use crate::{Problem, RequestId, app::App, auth::Auth, once::IdempotencyKey};

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
        self.app.depth().admit()?;
        job_reply::accepted(&self.app, &auth, key, None, prefer.0.as_deref(), async |tx| {
            undo::accept(tx, id.0, origin(&auth, &request_id)).await
        })
        .await
    }
}
