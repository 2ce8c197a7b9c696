//! Jobs: list, poll (also waiting for the end), cancel, try again.

use coupon_core::{
    Refusal,
    caller::{Caller, Scope},
    job::{ledger, signals::Signal},
};
use poem::{
    IntoResponse, Response,
    http::{
        StatusCode,
        header::{CONTENT_TYPE, ETAG, RETRY_AFTER},
    },
};
use poem_openapi::{
    ApiResponse, OpenApi,
    param::{Header, Path, Query},
    payload::Json,
    registry::{MetaResponse, MetaResponses, Registry},
    types::Type,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Tag,
    job_reply::{self, JobReply},
    job_view::{JobView, State},
};
use crate::{
    Problem,
    app::App,
    auth::Auth,
    etag,
    lists::{Limit, Page, decode_cursor},
    once::{Begun, IdempotencyKey, Once},
};

/// The endpoints of jobs.
pub struct Jobs {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Jobs")]
impl Jobs {
    /// List your jobs, newest first; administrators see everybody's.
    #[oai(path = "/jobs", method = "get")]
    async fn list(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
        kind: Query<Option<String>>,
        state: Query<Option<State>>,
        book_id: Query<Option<Uuid>>,
    ) -> Result<Json<Page<JobView>>, Problem> {
        let list = format!("jobs/{:?}/{:?}/{:?}", kind.0, state.0, book_id.0);
        let after: Option<Uuid> = decode_cursor(&list, cursor.0.as_deref())?;
        let filter = ledger::Filter {
            kind: kind.0,
            state: state.0.map(Into::into),
            book_id: book_id.0,
        };
        let mut connection = self.app.connection().await?;
        let page = ledger::list(&mut connection, &auth, &filter, after, limit.rows()).await?;
        Ok(Json(Page::of(page, &list, |job| job.id, JobView::from)))
    }

    /// Poll a job. `Prefer: wait=N` (1 to 30) waits up to N seconds for its end. With the last answer's ETag in
    /// If-None-Match a job that has not changed is a 304.
    #[oai(path = "/jobs/:id", method = "get")]
    async fn poll(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        #[oai(name = "If-None-Match")] if_none_match: Header<Option<String>>,
    ) -> Result<PolledJob, Problem> {
        let reply = job_reply::reply(&self.app, &auth, id.0, prefer.0.as_deref(), false).await?;
        let ended = matches!(
            reply.job.state,
            State::Succeeded | State::PartiallySucceeded | State::Failed | State::Cancelled
        );
        let body = reply.job.text();
        // Of a job that has ended nothing is estimated any more.
        let tag = if ended {
            Sha256::digest(&body)
        } else {
            Sha256::digest(reply.job.stable())
        };
        let tag: String = tag.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        let tag = format!("\"{tag}\"");
        let known = etag::is_known(if_none_match.0.as_deref(), &tag);
        Ok(PolledJob {
            body,
            tag,
            known,
            ended,
        })
    }

    /// Ask a job to stop. One that no worker has yet is cancelled at once; another stops at its next step and keeps
    /// what it has committed.
    #[oai(path = "/jobs/:id/cancel", method = "post")]
    async fn cancel(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
    ) -> Result<JobReply, Problem> {
        require_job_caller(&auth)?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, None).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => {
                return job_reply::replay(&self.app, &auth, answer, prefer.0.as_deref()).await;
            }
        };
        let cancelled = ledger::cancel(once.tx(), &auth, id.0).await.map(|job| job.id);
        let job_id = once.finish_job(cancelled).await?;
        self.app.signals().ring(Signal::Done);
        job_reply::reply(&self.app, &auth, job_id, prefer.0.as_deref(), false).await
    }

    /// Try a job again that was given up because of trouble of the service.
    #[oai(path = "/jobs/:id/retry", method = "post")]
    async fn retry(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
    ) -> Result<JobReply, Problem> {
        require_job_caller(&auth)?;
        let prefer = prefer.0.as_deref();
        job_reply::accepted(&self.app, &auth, key, None, prefer, async |tx| {
            Ok(ledger::retry(tx, &auth, id.0).await?.id)
        })
        .await
    }
}

/// People, and machines that may make jobs.
fn require_job_caller(caller: &Caller) -> Result<(), Problem> {
    if caller.user_id().is_some() || caller.may(Scope::Assign) {
        Ok(())
    } else {
        Err(Refusal::forbidden().into())
    }
}

/// A polled job, or the word that it has not changed.
pub struct PolledJob {
    body: String,
    tag: String,
    known: bool,
    ended: bool,
}

impl IntoResponse for PolledJob {
    fn into_response(self) -> Response {
        let builder = Response::builder().header(ETAG, self.tag);
        let builder = if self.ended {
            builder
        } else {
            builder.header(RETRY_AFTER, "1")
        };
        if self.known {
            return builder.status(StatusCode::NOT_MODIFIED).finish();
        }
        builder.header(CONTENT_TYPE, "application/json").body(self.body)
    }
}

impl ApiResponse for PolledJob {
    fn meta() -> MetaResponses {
        let mut responses = JobReply::meta().responses;
        responses.truncate(1);
        responses[0].description = "The job as it is now.";
        responses.push(MetaResponse {
            description: "The job has not changed.",
            status: Some(304),
            status_range: None,
            content: Vec::new(),
            headers: Vec::new(),
        });
        MetaResponses { responses }
    }

    fn register(registry: &mut Registry) {
        JobView::register(registry);
    }
}
