//! Jobs as an operator sees them: how many in each state, and many at once.

use coupon_core::{
    caller::Scope,
    job::{
        bulk::{self, Action},
        ledger,
        signals::Signal,
    },
};
use poem_openapi::{Enum, Object, OpenApi, payload::Json};
use uuid::Uuid;

use super::{Tag, job_view::State};
use crate::{
    Body, Problem,
    app::App,
    auth::Auth,
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
};

/// How many jobs are in each state.
#[derive(Debug, Default, Object)]
pub struct JobCounts {
    queued: i64,
    running: i64,
    succeeded: i64,
    partially_succeeded: i64,
    failed: i64,
    cancelling: i64,
    cancelled: i64,
}

/// What is to happen to many jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum BulkAction {
    /// Try those again that were given up for trouble of the service.
    Retry,
    /// Ask those that have not ended to stop.
    Cancel,
}

/// Which jobs.
#[derive(Debug, Default, Object)]
pub struct BulkFilter {
    /// Only this kind.
    #[oai(validator(max_length = 50))]
    kind: Option<String>,
    /// Only in this state.
    state: Option<State>,
    /// Only about this book.
    book_id: Option<Uuid>,
}

/// An action on many jobs.
#[derive(Debug, Object)]
pub struct BulkRequest {
    action: BulkAction,
    /// Every job, if left out.
    filter: Option<BulkFilter>,
    /// How many jobs you expect it to be; with another number nothing happens.
    #[oai(validator(minimum(value = "0"), maximum(value = "10000")))]
    expected_count: i64,
}

/// How many jobs were changed.
#[derive(Debug, Object)]
pub struct BulkResult {
    changed: i64,
}

/// The endpoints of many jobs.
pub struct JobsAdmin {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Jobs")]
impl JobsAdmin {
    /// How many jobs are in each state.
    #[oai(path = "/jobs/counts", method = "get")]
    async fn counts(&self, auth: Auth) -> Result<Json<JobCounts>, Problem> {
        auth.require(Scope::Read)?;
        let mut connection = self.app.connection().await?;
        let mut counts = JobCounts::default();
        for (state, count) in bulk::counts(&mut connection).await? {
            let slot = match state.as_str() {
                "queued" => &mut counts.queued,
                "running" => &mut counts.running,
                "succeeded" => &mut counts.succeeded,
                "partially_succeeded" => &mut counts.partially_succeeded,
                "failed" => &mut counts.failed,
                "cancelling" => &mut counts.cancelling,
                _ => &mut counts.cancelled,
            };
            *slot = count;
        }
        Ok(Json(counts))
    }

    /// Cancel or retry many jobs at once, if they are as many as you expect.
    #[oai(path = "/jobs/bulk", method = "post")]
    async fn bulk(
        &self,
        auth: Auth,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<BulkRequest>,
    ) -> Result<Reply<BulkResult>, Problem> {
        auth.require_admin()?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let asked = body.value.filter.unwrap_or_default();
        let filter = ledger::Filter {
            kind: asked.kind,
            state: asked.state.map(Into::into),
            book_id: asked.book_id,
        };
        let action = match body.value.action {
            BulkAction::Retry => Action::Retry,
            BulkAction::Cancel => Action::Cancel,
        };
        let changed = bulk::apply(once.tx(), action, &filter, body.value.expected_count).await;
        let reply = once
            .finish(changed.map(|changed| BulkResult { changed }), |_| None)
            .await?;
        for signal in [Signal::Due, Signal::Done] {
            self.app.signals().ring(signal);
        }
        Ok(reply)
    }
}
