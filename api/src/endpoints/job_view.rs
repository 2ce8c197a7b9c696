//! A job as clients see it.

use std::collections::BTreeMap;

use coupon_core::job::{self, Job};
use poem_openapi::{Enum, Object, types::ToJSON};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{Nullable, time::Time, verbatim::Verbatim};

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
    pub(super) state: State,
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
    pub(super) links: Links,
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
    pub(super) itself: String,
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
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }

    /// What of a job changes only when the job does: not the running estimates.
    pub(super) fn stable(&self) -> String {
        let mut value = self.to_json().unwrap_or_default();
        if let Some(progress) = value.get_mut("progress").and_then(Value::as_object_mut) {
            progress.remove("rate");
            progress.remove("eta_seconds");
        }
        value.to_string()
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
