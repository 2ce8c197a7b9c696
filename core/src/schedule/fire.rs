//! Firing: what is due is started, once.
//!
//! Invariant: under the lock of the schedule's row a fire is judged (on time or missed, alone or beside an earlier job),
//! started by the same use case as a request, recorded, and the next time reckoned, in one transaction. Whoever else
//! looks meanwhile passes the locked row over; whoever looks later finds the next time moved on.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{GRACE, Missed, Schedule, Task, store};
use crate::{
    caller::{Actor, ActorKind},
    coupon::Origin,
    distribution::{create, plan},
    error::{Code, Error, Refusal, Result},
    export,
};

/// How long one step starts what is due; the next one goes on.
const STEP: Duration = Duration::from_millis(200);

/// Notices fires that wait for an earlier job to end: they came due while somebody was there. Those that nobody was
/// there for in time ($1 seconds) are left as they are.
pub const NOTICE: &str = "UPDATE schedules SET noticed_at = now() WHERE id IN (
         SELECT s.id FROM schedules s
         WHERE s.next_fire_at <= now() AND s.overlap = 'queue'
           AND (s.next_fire_at >= now() - make_interval(secs => $1) OR s.next_fire_at <= s.noticed_at)
           AND (s.noticed_at IS NULL OR s.noticed_at < now() - interval '20 s')
         FOR UPDATE SKIP LOCKED)";

/// Whether a job that a schedule started is not at its end. Looks at the latest few: earlier ones have long ended.
macro_rules! is_at_work {
    () => {
        "EXISTS (SELECT FROM (SELECT job_id FROM schedule_fires
                              WHERE schedule_id = s.id AND job_id IS NOT NULL ORDER BY fire_at DESC LIMIT 20) AS latest
                 JOIN jobs j ON j.id = latest.job_id WHERE j.finished_at IS NULL)"
    };
}

/// The next schedule that is due, locked.
pub const CLAIM: &str = concat!(
    "SELECT s.id FROM schedules s WHERE s.next_fire_at <= now() AND NOT (s.overlap = 'queue' AND ",
    is_at_work!(),
    ") ORDER BY s.next_fire_at LIMIT 1 FOR UPDATE OF s SKIP LOCKED"
);

/// What a fire is judged by: the time, whether an earlier job is at work, whether this fire is on record already.
const JUDGE: &str = concat!(
    "SELECT now(), ",
    is_at_work!(),
    ", EXISTS (SELECT FROM schedule_fires WHERE schedule_id = s.id AND fire_at = s.next_fire_at)
     FROM schedules s WHERE s.id = $1"
);

/// Deals with schedules that are due; says whether there may be more.
///
/// # Errors
/// When the database fails; refusals are recorded with their fire.
pub async fn step(connection: &mut PgConnection) -> Result<bool> {
    let begun = Instant::now();
    sqlx::query(NOTICE)
        .bind(GRACE.num_seconds() as f64)
        .execute(&mut *connection)
        .await?;
    let mut fired = false;
    while begun.elapsed() < STEP {
        let due: Option<Uuid> = sqlx::query_scalar(CLAIM).fetch_optional(&mut *connection).await?;
        let Some(schedule_id) = due else { return Ok(fired) };
        let schedule = store::lock(connection, schedule_id).await?;
        deal_with(connection, &schedule).await?;
        fired = true;
    }
    Ok(true)
}

/// What became of a fire, to be recorded.
enum Outcome {
    Started(Uuid),
    Refused(Refusal),
    Overlapped,
    Missed,
}

async fn deal_with(connection: &mut PgConnection, schedule: &Schedule) -> Result<()> {
    let settings = &schedule.settings;
    let Some(fire_at) = schedule.next_fire_at else {
        return Ok(());
    };
    let (now, at_work, on_record): (DateTime<Utc>, bool, bool) = sqlx::query_as(JUDGE)
        .bind(schedule.id)
        .fetch_one(&mut *connection)
        .await?;
    let pattern = match settings.check(now) {
        Ok(pattern) => pattern,
        Err(error) => {
            // An older version took what this one does not: it cannot go on, and says why.
            let refusal = Refusal::new(error.code(), error.to_string());
            record(connection, schedule.id, fire_at, &Outcome::Refused(refusal)).await?;
            return move_on(connection, schedule.id, None).await;
        }
    };
    let on_time = fire_at >= now - GRACE || schedule.noticed_at.is_some_and(|noticed| fire_at <= noticed);
    let over = settings.ends_at.is_some_and(|ends_at| ends_at <= now);
    let mut exhausted = false;
    let skipped = !on_time && (settings.missed == Missed::Skip || over);
    if !on_record {
        let outcome = if skipped {
            Outcome::Missed
        } else if at_work {
            Outcome::Overlapped // of those that wait for the end, none is claimed before it
        } else {
            let origin = Origin {
                actor: Actor {
                    kind: match schedule.created_by_kind.as_str() {
                        "api_key" => ActorKind::ApiKey,
                        _ => ActorKind::User,
                    },
                    id: Some(schedule.created_by),
                },
                request_id: None,
            };
            match start_or_undo(connection, schedule, origin).await {
                Ok(job_id) => Outcome::Started(job_id),
                Err(Error::Store(error)) if error.is_retryable() => return Err(error.into()),
                Err(error) => {
                    exhausted = error.code() == Code::BookExhausted;
                    Outcome::Refused(match error {
                        Error::Refused(refusal) => refusal,
                        error => Refusal::new(error.code(), error.to_string()),
                    })
                }
            }
        };
        record(connection, schedule.id, fire_at, &outcome).await?;
    }
    // One fire stood for all that were missed; where none did, one that is on time may follow them.
    let after = match (on_time, skipped) {
        (true, _) => fire_at,
        (false, true) => now - GRACE,
        (false, false) => now,
    };
    let next = settings
        .next(pattern.as_ref(), after.max(fire_at))
        .filter(|_| !exhausted && pattern.is_some()); // one time is one fire
    move_on(connection, schedule.id, next).await
}

/// Starts the task; what a refusal leaves half done is undone.
async fn start_or_undo(
    connection: &mut PgConnection,
    schedule: &Schedule,
    origin: Origin<'_>,
) -> Result<Uuid> {
    sqlx::raw_sql("SAVEPOINT fire").execute(&mut *connection).await?;
    let started = start(connection, schedule, origin).await;
    let end = if started.is_ok() {
        "RELEASE SAVEPOINT fire"
    } else {
        "ROLLBACK TO SAVEPOINT fire"
    };
    sqlx::raw_sql(end).execute(connection).await?;
    started
}

/// Starts what a schedule is for, as a request would; gives the job.
async fn start(connection: &mut PgConnection, schedule: &Schedule, origin: Origin<'_>) -> Result<Uuid> {
    let request = match &schedule.settings.task {
        Task::Distribution(request) => request,
        Task::Export(new) => return export::create::create(connection, new, origin).await,
    };
    if plan::count_free(connection, request.book_id, 1).await? == 0 {
        return Err(Refusal::new(Code::BookExhausted, "No unassigned coupon is left in the book.").into());
    }
    let job_id = create::accept(connection, request, origin).await?;
    sqlx::query(
        "UPDATE distributions SET schedule_id = $3
         WHERE book_id = $1 AND id = (SELECT (result ->> 'distribution_id')::uuid FROM jobs WHERE id = $2)",
    )
    .bind(request.book_id)
    .bind(job_id)
    .bind(schedule.id)
    .execute(connection)
    .await?;
    Ok(job_id)
}

/// Starts a schedule's task because somebody asks for it, beside whatever the schedule does; gives the job, which is
/// theirs.
///
/// # Errors
/// `not_found`, `book_exhausted`, and what the task is refused for.
pub async fn run_now(connection: &mut PgConnection, schedule_id: Uuid, origin: Origin<'_>) -> Result<Uuid> {
    let schedule = store::lock(connection, schedule_id).await?;
    let job_id = start(connection, &schedule, origin).await?;
    sqlx::query(
        "INSERT INTO schedule_fires (schedule_id, fire_at, by_hand, outcome, job_id)
         VALUES ($1, clock_timestamp(), true, 'started', $2)",
    )
    .bind(schedule_id)
    .bind(job_id)
    .execute(connection)
    .await?;
    Ok(job_id)
}

async fn record(
    connection: &mut PgConnection,
    schedule_id: Uuid,
    fire_at: DateTime<Utc>,
    outcome: &Outcome,
) -> Result<()> {
    let (word, job_id, refusal) = match outcome {
        Outcome::Started(job_id) => ("started", Some(*job_id), None),
        Outcome::Refused(refusal) => ("refused", None, Some(refusal)),
        Outcome::Overlapped => ("overlapped", None, None),
        Outcome::Missed => ("missed", None, None),
    };
    sqlx::query(
        "INSERT INTO schedule_fires (schedule_id, fire_at, outcome, job_id, error_code, error_detail)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(schedule_id)
    .bind(fire_at)
    .bind(word)
    .bind(job_id)
    .bind(refusal.map(|refusal| refusal.code.as_str()))
    .bind(refusal.map(|refusal| refusal.detail.as_ref()))
    .execute(connection)
    .await?;
    Ok(())
}

async fn move_on(
    connection: &mut PgConnection,
    schedule_id: Uuid,
    next: Option<DateTime<Utc>>,
) -> Result<()> {
    sqlx::query("UPDATE schedules SET next_fire_at = $2 WHERE id = $1")
        .bind(schedule_id)
        .bind(next)
        .execute(connection)
        .await?;
    Ok(())
}
