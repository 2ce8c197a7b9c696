//! Jobs: list, poll (also waiting for the end), cancel, and what a job could not do.

use std::{collections::BTreeMap, time::Duration};

use coupon_core::{
    caller::{Caller, Scope},
    job::{self, Job, ledger, signals::Signal, wait::Waiter},
};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use poem::{
    IntoResponse, Response,
    http::{
        StatusCode,
        header::{CONTENT_TYPE, ETAG, LOCATION, RETRY_AFTER},
    },
};
use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi,
    param::{Header, Path, Query},
    payload::{EventStream, Json, Payload},
    registry::{MetaMediaType, MetaResponse, MetaResponses, Registry},
    types::{ToJSON, Type},
};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Tag;
use crate::{
    Nullable, Problem,
    app::App,
    auth::Auth,
    etag,
    lists::{Limit, Page, decode_cursor},
    once::{Begun, IdempotencyKey, Once},
    reply::REPLAYED,
    time::Time,
    verbatim::Verbatim,
};

/// The longest that a request may wait for a job's end.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// How often a stream of events shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The longest and the shortest time between two looks at a job whose changes are streamed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename = "JobState", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waiting for a worker.
    Queued,
    /// At work.
    Running,
    /// Done, wholly.
    Succeeded,
    /// Done as far as it goes; the rest is listed.
    PartiallySucceeded,
    /// Nothing done, with a reason; or given up.
    Failed,
    /// Stops at its next step.
    Cancelling,
    /// Stopped; what was committed stays.
    Cancelled,
}

impl From<State> for job::State {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::Running,
            State::Succeeded => Self::Succeeded,
            State::PartiallySucceeded => Self::PartiallySucceeded,
            State::Failed => Self::Failed,
            State::Cancelling => Self::Cancelling,
            State::Cancelled => Self::Cancelled,
        }
    }
}

impl From<job::State> for State {
    fn from(state: job::State) -> Self {
        match state {
            job::State::Queued => Self::Queued,
            job::State::Running => Self::Running,
            job::State::Succeeded => Self::Succeeded,
            job::State::PartiallySucceeded => Self::PartiallySucceeded,
            job::State::Failed => Self::Failed,
            job::State::Cancelling => Self::Cancelling,
            job::State::Cancelled => Self::Cancelled,
        }
    }
}

/// A job: work that was accepted and is polled.
#[derive(Debug, Object, Serialize)]
#[oai(rename = "Job")]
pub struct JobView {
    /// UUIDv7.
    pub id: Uuid,
    /// What it does: assign, import, …
    kind: String,
    state: State,
    progress: ProgressView,
    /// Counters by name.
    counts: BTreeMap<String, i64>,
    /// What came of it; its form depends on the kind.
    result: Nullable<Verbatim<Value>>,
    /// Why it failed.
    error: Nullable<JobError>,
    /// Runs that ended in trouble or in a crash.
    attempts: i32,
    book_id: Nullable<Uuid>,
    /// The user or API key that asked for it.
    created_by: Uuid,
    created_at: Time,
    started_at: Nullable<Time>,
    finished_at: Nullable<Time>,
    links: Links,
}

/// How far a job is.
#[derive(Debug, Object, Serialize)]
#[oai(rename = "Progress")]
pub struct ProgressView {
    done: i64,
    total: Nullable<i64>,
    unit: String,
    /// Units per second.
    rate: Nullable<f64>,
    eta_seconds: Nullable<f64>,
}

/// Why a job failed.
#[derive(Debug, Object, Serialize)]
pub struct JobError {
    /// Stable.
    pub(super) code: String,
    /// For people.
    pub(super) detail: String,
}

/// Where to read on.
#[derive(Debug, Object, Serialize)]
pub struct Links {
    #[oai(rename = "self")]
    #[serde(rename = "self")]
    itself: String,
    /// What it could not do, as JSON.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<String>,
    /// The same as CSV, to be mended and sent again.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<String>,
}

impl JobView {
    /// As JSON, straight to text: polls are many, and the tree of values that the library makes on its way costs as much
    /// as all else of them.
    fn text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        let itself = format!("/v1/jobs/{}", job.id);
        let errors = job.has_errors.then(|| format!("{itself}/errors"));
        Self {
            id: job.id,
            kind: job.kind,
            state: job.state.into(),
            progress: ProgressView {
                done: job.progress.done,
                total: job.progress.total.into(),
                unit: job.progress.unit,
                rate: job.progress.rate.into(),
                eta_seconds: job.progress.eta_seconds.into(),
            },
            counts: job.counts,
            result: job.result.map(Verbatim::from).into(),
            error: job.error.map(|(code, detail)| JobError { code, detail }).into(),
            attempts: job.attempts,
            book_id: job.book_id.into(),
            created_by: job.created_by,
            created_at: job.created_at.into(),
            started_at: job.started_at.into(),
            finished_at: job.finished_at.into(),
            links: Links {
                report: errors.as_ref().map(|errors| format!("{errors}.csv")),
                errors,
                itself,
            },
        }
    }
}

/// A job as an answer: 200 when it was waited for and has ended (or was only read), else 202.
#[derive(Debug)]
pub struct JobReply {
    job: JobView,
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

async fn read(app: &App, caller: &Caller, job_id: Uuid) -> Result<Job, Problem> {
    let job = app.jobs().ask(job_id).await.map_err(coupon_core::Error::from)?;
    let job = job.filter(|job| job.is_visible_to(caller));
    Ok(job.ok_or_else(coupon_core::Refusal::not_found)?)
}

/// One thing that a job could not do.
#[derive(Debug, Object)]
pub struct ErrorLine {
    /// The physical line on which the record starts (imports).
    #[oai(skip_serializing_if_is_none)]
    line: Option<i64>,
    /// The column, if one is at fault.
    #[oai(skip_serializing_if_is_none)]
    column: Option<String>,
    /// The item's place in the request (batches and distributions).
    #[oai(skip_serializing_if_is_none)]
    item: Option<i64>,
    /// The user that the item is about.
    #[oai(skip_serializing_if_is_none)]
    user_id: Option<Uuid>,
    /// Stable.
    reason: String,
    /// For people.
    detail: String,
    /// The value at fault.
    #[oai(skip_serializing_if_is_none)]
    value: Option<String>,
}

impl ErrorLine {
    fn of(entry: &Value) -> Self {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
        Self {
            line: entry.get("line").and_then(Value::as_i64),
            column: text("column"),
            item: entry.get("item").and_then(Value::as_i64),
            user_id: text("user_id").and_then(|id| id.parse().ok()),
            reason: text("reason").unwrap_or_default(),
            detail: text("detail").unwrap_or_default(),
            value: text("value"),
        }
    }
}

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
        let mut connection = self
            .app
            .db()
            .pool()
            .acquire()
            .await
            .map_err(coupon_core::Error::from)?;
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
        let reply = reply(&self.app, &auth, id.0, prefer.0.as_deref(), false).await?;
        let ended = matches!(
            reply.job.state,
            State::Succeeded | State::PartiallySucceeded | State::Failed | State::Cancelled
        );
        let body = reply.job.text();
        // Of a job that has ended nothing is estimated any more.
        let tag = if ended {
            Sha256::digest(&body)
        } else {
            Sha256::digest(stable(&reply.job))
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

    /// A job's changes as they happen (server-sent events): the job as it is, then again at every change, until its end.
    #[oai(path = "/jobs/:id/events", method = "get")]
    async fn events(
        &self,
        auth: Auth,
        id: Path<Uuid>,
    ) -> Result<EventStream<BoxStream<'static, JobView>>, Problem> {
        // A job that is not the caller's is refused as an answer, not as an event.
        read(&self.app, &auth, id.0).await?;
        let watcher = Watcher {
            done: self.app.signals().watch(Signal::Done),
            app: self.app.clone(),
            caller: auth.0,
            job_id: id.0,
            last: String::new(),
            over: false,
        };
        let changes = stream::unfold(watcher, |mut watcher| async move {
            let job = watcher.next().await?;
            Some((job, watcher))
        });
        Ok(EventStream::new(changes.boxed()).keep_alive(KEEP_ALIVE))
    }

    /// What a job could not do, line by line.
    #[oai(path = "/jobs/:id/errors", method = "get")]
    async fn errors(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
    ) -> Result<Json<Page<ErrorLine>>, Problem> {
        let list = format!("jobs/{}/errors", id.0);
        let after: Option<i64> = decode_cursor(&list, cursor.0.as_deref())?;
        let mut connection = self
            .app
            .db()
            .pool()
            .acquire()
            .await
            .map_err(coupon_core::Error::from)?;
        let page = ledger::list_errors(&mut connection, &auth, id.0, after, limit.rows()).await?;
        Ok(Json(Page::of(
            page,
            &list,
            |line| line.seq,
            |line| ErrorLine::of(&line.entry),
        )))
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
            Begun::Before(answer) => return replay(&self.app, &auth, answer, prefer.0.as_deref()).await,
        };
        let cancelled = ledger::cancel(once.tx(), &auth, id.0).await.map(|job| job.id);
        let job_id = once.finish_job(cancelled).await?;
        self.app.signals().ring(Signal::Done);
        reply(&self.app, &auth, job_id, prefer.0.as_deref(), false).await
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
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, None).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return replay(&self.app, &auth, answer, prefer.0.as_deref()).await,
        };
        let queued = ledger::retry(once.tx(), &auth, id.0).await.map(|job| job.id);
        let job_id = once.finish_job(queued).await?;
        reply(&self.app, &auth, job_id, prefer.0.as_deref(), false).await
    }
}

/// A job's answer to a repeated request: the job as it is now, or the stored refusal.
///
/// # Errors
/// The stored refusal.
pub async fn replay(
    app: &App,
    caller: &Caller,
    answer: coupon_core::idempotency::Answer,
    prefer: Option<&str>,
) -> Result<JobReply, Problem> {
    match answer.job_id {
        Some(job_id) => reply(app, caller, job_id, prefer, true).await,
        None => Err(crate::once::stored_refusal(&answer.body)),
    }
}

/// People, and machines that may make jobs.
fn require_job_caller(caller: &Caller) -> Result<(), Problem> {
    if caller.user_id().is_some() || caller.may(Scope::Assign) {
        Ok(())
    } else {
        Err(coupon_core::Refusal::forbidden().into())
    }
}

/// One reader of a job's changes; holds no connection while nothing happens.
struct Watcher {
    app: App,
    caller: Caller,
    job_id: Uuid,
    done: tokio::sync::watch::Receiver<u64>,
    last: String,
    over: bool,
}

impl Watcher {
    /// The job at its next change; `None` after its end, or when it cannot be read any more.
    async fn next(&mut self) -> Option<JobView> {
        while !self.over {
            self.done.mark_unchanged();
            let job = read(&self.app, &self.caller, self.job_id).await.ok()?;
            self.over = job.state.is_final();
            let view = JobView::from(job);
            let seen = stable(&view);
            if seen != self.last {
                self.last = seen;
                return Some(view);
            }
            // Signals say that something has changed somewhere; a look a second all the same, and no more than five.
            tokio::time::sleep(LOOK_PAUSE).await;
            let _ = tokio::time::timeout(LOOK_EVERY, self.done.changed()).await;
        }
        None
    }
}

/// What of a job changes only when the job does: not the running estimates.
fn stable(job: &JobView) -> String {
    let mut value = job.to_json().unwrap_or_default();
    if let Some(progress) = value.get_mut("progress").and_then(Value::as_object_mut) {
        progress.remove("rate");
        progress.remove("eta_seconds");
    }
    value.to_string()
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
