//! A job's changes as they happen.

use std::time::Duration;

use coupon_core::{caller::Caller, job::signals::Signal};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use poem_openapi::{OpenApi, param::Path, payload::EventStream};
use tokio::sync::watch;
use uuid::Uuid;

use super::{Tag, job_reply::read, job_view::JobView};
use crate::{Problem, app::App, auth::Auth};

/// How often a stream of events shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The longest and the shortest time between two looks at a job whose changes are streamed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// The endpoint of changes.
pub struct JobEvents {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Jobs")]
impl JobEvents {
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
}

/// One reader of a job's changes; holds no connection while nothing happens.
struct Watcher {
    app: App,
    caller: Caller,
    job_id: Uuid,
    done: watch::Receiver<u64>,
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
            let seen = view.stable();
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
