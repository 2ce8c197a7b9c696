//! A job as the answer to a request: accepted once however often it is asked for, and waited for if the client prefers.

use std::time::Duration;

use coupon_core::{
    Error, Refusal,
    caller::Caller,
    idempotency::Answer,
    job::{Job, wait::Waiter},
};
use poem::{
    IntoResponse, Response,
    http::{
        StatusCode,
        header::{CONTENT_TYPE, LOCATION, RETRY_AFTER},
    },
};
use poem_openapi::{
    ApiResponse,
    payload::{Json, Payload},
    registry::{MetaMediaType, MetaResponse, MetaResponses, Registry},
    types::Type,
};
use sqlx::PgConnection;
use uuid::Uuid;

use super::job_view::JobView;
use crate::{
    Problem,
    app::App,
    once::{self, Begun, IdempotencyKey, Once},
    reply::REPLAYED,
};

/// The longest that a request may wait for a job's end.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// A job as an answer: 200 when it was waited for and has ended (or was only read), else 202.
#[derive(Debug)]
pub struct JobReply {
    pub(super) job: JobView,
    status: StatusCode,
    replayed: bool,
}

impl JobReply {
    fn new(job: Job, waited: bool, replayed: bool) -> Self {
        let status = if waited && job.state.is_final() {
            StatusCode::OK
        } else {
            StatusCode::ACCEPTED
        };
        Self {
            job: job.into(),
            status,
            replayed,
        }
    }

    /// Whether it is the answer to a repeated request.
    pub fn is_replayed(&self) -> bool {
        self.replayed
    }
}

impl IntoResponse for JobReply {
    fn into_response(self) -> Response {
        let location = self.job.links.itself.clone();
        let builder = Response::builder()
            .status(self.status)
            .header(CONTENT_TYPE, "application/json")
            .header(LOCATION, location);
        let builder = if self.status == StatusCode::ACCEPTED {
            builder.header(RETRY_AFTER, "1")
        } else {
            builder
        };
        let builder = if self.replayed {
            builder.header(REPLAYED, "true")
        } else {
            builder
        };
        builder.body(self.job.text())
    }
}

impl ApiResponse for JobReply {
    fn meta() -> MetaResponses {
        let answer = |status, description| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType {
                content_type: Json::<JobView>::CONTENT_TYPE,
                schema: JobView::schema_ref(),
            }],
            headers: Vec::new(),
        };
        MetaResponses {
            responses: vec![
                answer(200, "The job, which has ended."),
                answer(202, "The job, which is not at its end; poll Location."),
            ],
        }
    }

    fn register(registry: &mut Registry) {
        JobView::register(registry);
    }
}

/// `Prefer: wait=N` (RFC 7240), in seconds, at most [`MAX_WAIT`]; whatever else it says is ignored.
fn patience(prefer: Option<&str>) -> Duration {
    let seconds = prefer
        .into_iter()
        .flat_map(|prefer| prefer.split([',', ';']))
        .filter_map(|preference| preference.trim().split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, value)| value.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Duration::from_secs(seconds).min(MAX_WAIT)
}

/// A place among those who wait for a job, taken before the job exists.
pub struct Waiting {
    patience: Duration,
    waiter: Option<Waiter>,
}

impl Waiting {
    /// Takes a place, if the client prefers to wait.
    pub fn enter(app: &App, job_id: Uuid, prefer: Option<&str>) -> Self {
        let patience = patience(prefer);
        Self {
            patience,
            waiter: (!patience.is_zero()).then(|| app.waiters().enter(job_id)),
        }
    }

    /// Waits for the end as long as the client prefers, with no connection held meanwhile, then answers.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn reply(self, app: &App, caller: &Caller, job_id: Uuid) -> Result<JobReply, Problem> {
        let ended = match self.waiter {
            Some(waiter) => waiter.ended(self.patience).await,
            None => None,
        };
        let job = match ended {
            Some(job) => job,
            None => read(app, caller, job_id).await?,
        };
        Ok(JobReply::new(job, !self.patience.is_zero(), false))
    }
}

/// The answer about a job: waits for its end as long as the client prefers, with no connection held meanwhile.
///
/// # Errors
/// `not_found`.
pub async fn reply(
    app: &App,
    caller: &Caller,
    job_id: Uuid,
    prefer: Option<&str>,
    replayed: bool,
) -> Result<JobReply, Problem> {
    // The place among the waiters comes before the read, so that the end cannot fall in between.
    let waiting = Waiting::enter(app, job_id, prefer);
    let job = read(app, caller, job_id).await?;
    let waited = !waiting.patience.is_zero();
    if !waited || job.state.is_final() {
        return Ok(JobReply::new(job, waited, replayed));
    }
    let reply = waiting.reply(app, caller, job_id).await?;
    Ok(JobReply { replayed, ..reply })
}

pub(super) async fn read(app: &App, caller: &Caller, job_id: Uuid) -> Result<Job, Problem> {
    let job = app.jobs().ask(job_id).await?;
    let job = job.filter(|job| job.is_visible_to(caller));
    Ok(job.ok_or_else(Refusal::not_found)?)
}

/// Accepts a job in the transaction of the request's key, and answers; a repeated request is answered as it was.
///
/// # Errors
/// The refusal, as a problem.
pub async fn accepted(
    app: &App,
    caller: &Caller,
    key: IdempotencyKey,
    body: Option<&[u8; 32]>,
    prefer: Option<&str>,
    accept: impl AsyncFnOnce(&mut PgConnection) -> Result<Uuid, Error>,
) -> Result<JobReply, Problem> {
    let mut once = match Once::begin(app, app.db(), caller, key, body).await? {
        Begun::Fresh(once) => once,
        Begun::Before(answer) => return replay(app, caller, answer, prefer).await,
    };
    let accepted = accept(once.tx()).await;
    let job_id = once.finish_job(accepted).await?;
    reply(app, caller, job_id, prefer, false).await
}

/// A job's answer to a repeated request: the job as it is now, or the stored refusal.
///
/// # Errors
/// The stored refusal.
pub async fn replay(
    app: &App,
    caller: &Caller,
    answer: Answer,
    prefer: Option<&str>,
) -> Result<JobReply, Problem> {
    match answer.job_id {
        Some(job_id) => reply(app, caller, job_id, prefer, true).await,
        None => Err(once::stored_refusal(&answer.body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefer_is_read_as_rfc_7240_writes_it() {
        let wait = |text| patience(Some(text)).as_secs();
        assert_eq!(
            (
                wait("wait=5"),
                wait("respond-async, Wait = 7"),
                wait("wait=10; x=y")
            ),
            (5, 7, 10)
        );
        assert_eq!(
            (wait("wait=99"), wait("wait=0"), wait("wait=x"), wait("")),
            (30, 0, 0, 0)
        );
    }
}
