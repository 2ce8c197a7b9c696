//! The SQL of schedules.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Postgres, postgres::PgArguments, query::Query};
use uuid::Uuid;

use super::{Fire, GRACE, Missed, Overlap, Schedule, Settings, Task};
use crate::{
    book,
    caller::Actor,
    error::{Code, Error, Refusal, Result, StoreError},
    id,
    page::Page,
    pool,
};

#[derive(sqlx::FromRow)]
pub(super) struct Row {
    id: Uuid,
    created_by: Uuid,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    run_at: Option<DateTime<Utc>>,
    ends_at: Option<DateTime<Utc>>,
    next_fire_at: Option<DateTime<Utc>>,
    noticed_at: Option<DateTime<Utc>>,
    version: i64,
    paused: bool,
    created_by_kind: String,
    kind: String,
    missed: String,
    overlap: String,
    name: String,
    time_zone: String,
    cron: Option<String>,
    body: serde_json::Value,
    fire_at: Option<DateTime<Utc>>,
    fired_at: Option<DateTime<Utc>>,
    outcome: Option<String>,
    by_hand: Option<bool>,
    job_id: Option<Uuid>,
    error_code: Option<String>,
    error_detail: Option<String>,
}

/// A schedule with its latest fire.
macro_rules! select_schedules {
    ($rest:literal) => {
        concat!(
            "SELECT s.*, f.fire_at, f.fired_at, f.outcome, f.by_hand, f.job_id, f.error_code, f.error_detail
             FROM schedules s LEFT JOIN LATERAL (
                 SELECT * FROM schedule_fires WHERE schedule_id = s.id ORDER BY fire_at DESC LIMIT 1) AS f ON true ",
            $rest
        )
    };
}

impl TryFrom<Row> for Schedule {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let task = Task::from_json(&row.kind, row.body)
            .map_err(|error| Error::Store(StoreError::Fault(sqlx::Error::Decode(error.into()))))?;
        let last_fire = match (row.fire_at, row.fired_at, row.outcome) {
            (Some(fire_at), Some(fired_at), Some(outcome)) => Some(Fire {
                fire_at,
                fired_at,
                outcome,
                by_hand: row.by_hand.unwrap_or(false),
                job_id: row.job_id,
                error: row
                    .error_code
                    .map(|code| (code, row.error_detail.unwrap_or_default())),
            }),
            _ => None,
        };
        Ok(Self {
            id: row.id,
            settings: Settings {
                name: row.name,
                task,
                run_at: row.run_at,
                cron: row.cron,
                time_zone: row.time_zone,
                missed: Missed::parse(&row.missed),
                overlap: Overlap::parse(&row.overlap),
                ends_at: row.ends_at,
                paused: row.paused,
            },
            next_fire_at: row.next_fire_at,
            last_fire,
            version: row.version,
            created_by: row.created_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
            created_by_kind: row.created_by_kind,
            noticed_at: row.noticed_at,
        })
    }
}

/// The database's clock, the only one that schedules know.
///
/// # Errors
/// When the database fails.
pub(super) async fn now(connection: &mut PgConnection) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar("SELECT now()").fetch_one(connection).await?)
}

/// What the task is about exists.
async fn check_task(connection: &mut PgConnection, task: &Task) -> Result<()> {
    book::find(connection, task.book_id()).await?;
    if let Task::Distribution(request) = task {
        pool::find(connection, request.pool_id).await?;
    }
    Ok(())
}

/// A time that has just passed is taken as meant at once; one that lies further back is an error of whoever asks.
fn check_run_at(settings: &Settings, now: DateTime<Utc>) -> Result<()> {
    if settings.run_at.is_some_and(|run_at| run_at < now - GRACE) {
        return Err(Error::invalid(
            "/run_at",
            "out_of_range",
            "run_at has passed already.",
        ));
    }
    Ok(())
}

/// From when on the first fire of new times is looked for: from before the grace where it is one time, so that a run_at
/// that has just passed is still to come.
fn begins(settings: &Settings, now: DateTime<Utc>) -> DateTime<Utc> {
    if settings.run_at.is_some() {
        now - GRACE * 2
    } else {
        now
    }
}

/// Binds what a person may set, and the next fire that follows from it.
fn bind_settings<'q>(
    query: Query<'q, Postgres, PgArguments>,
    settings: &'q Settings,
    next: Option<DateTime<Utc>>,
) -> Query<'q, Postgres, PgArguments> {
    query
        .bind(&settings.name)
        .bind(settings.task.to_json())
        .bind(settings.run_at)
        .bind(settings.cron.as_deref())
        .bind(&settings.time_zone)
        .bind(settings.missed.as_str())
        .bind(settings.overlap.as_str())
        .bind(settings.ends_at)
        .bind(settings.paused)
        .bind(next)
}

/// Makes a schedule.
///
/// # Errors
/// `validation_failed`, `cron_invalid`, `time_zone_unknown`, `not_found` (book or pool).
pub async fn insert(connection: &mut PgConnection, settings: &Settings, actor: Actor) -> Result<Schedule> {
    let now = now(connection).await?;
    let pattern = settings.check(now)?;
    check_run_at(settings, now)?;
    check_task(connection, &settings.task).await?;
    let next = settings
        .next(pattern.as_ref(), begins(settings, now))
        .filter(|_| !settings.paused);
    let schedule_id = id::new();
    let query = sqlx::query(
        "INSERT INTO schedules (id, name, body, run_at, cron, time_zone, missed, overlap, ends_at, paused, next_fire_at,
             created_by, created_by_kind, kind)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(schedule_id);
    bind_settings(query, settings, next)
        .bind(actor.id)
        .bind(actor.kind.as_str())
        .bind(settings.task.kind())
        .execute(&mut *connection)
        .await?;
    Ok(find(connection, schedule_id).await?.0)
}

/// A schedule by its id, and the database's time.
///
/// # Errors
/// `not_found`.
pub async fn find(connection: &mut PgConnection, schedule_id: Uuid) -> Result<(Schedule, DateTime<Utc>)> {
    let row: Option<Row> = sqlx::query_as(select_schedules!("WHERE s.id = $1"))
        .bind(schedule_id)
        .fetch_optional(&mut *connection)
        .await?;
    let schedule = row.ok_or_else(Refusal::not_found)?.try_into()?;
    Ok((schedule, now(connection).await?))
}

/// The same with its row locked: nobody changes, fires or deletes it meanwhile.
///
/// # Errors
/// `not_found`.
pub(super) async fn lock(connection: &mut PgConnection, schedule_id: Uuid) -> Result<Schedule> {
    let row: Option<Row> = sqlx::query_as(select_schedules!("WHERE s.id = $1 FOR UPDATE OF s"))
        .bind(schedule_id)
        .fetch_optional(connection)
        .await?;
    row.ok_or_else(Refusal::not_found)?.try_into()
}

/// Schedules, newest first, behind `after`.
///
/// # Errors
/// When the database fails.
pub async fn list(connection: &mut PgConnection, after: Option<Uuid>, limit: i64) -> Result<Page<Schedule>> {
    let rows: Vec<Row> = sqlx::query_as(select_schedules!("WHERE s.id < $1 ORDER BY s.id DESC LIMIT $2"))
        .bind(after.unwrap_or(Uuid::max())) // no UUIDv7 is as great
        .bind(limit + 1)
        .fetch_all(connection)
        .await?;
    let schedules: Result<Vec<Schedule>> = rows.into_iter().map(Schedule::try_from).collect();
    Ok(Page::cut(schedules?, limit))
}

/// Changes a schedule if it still has the version that `expected` names (any, when `None`); `change` edits it. When it
/// fires next is reckoned anew, from now, if anything that it depends on has changed, and for one that was over.
///
/// # Errors
/// `not_found`, `stale`, `validation_failed`, `cron_invalid`, `time_zone_unknown`.
pub async fn update(
    connection: &mut PgConnection,
    schedule_id: Uuid,
    expected: Option<i64>,
    change: impl FnOnce(&mut Settings) -> Result<()> + Send,
) -> Result<Schedule> {
    let now = now(connection).await?;
    let before = lock(connection, schedule_id).await?;
    if expected.is_some_and(|expected| expected != before.version) {
        return Err(Refusal::new(
            Code::Stale,
            "The schedule has changed since you read it; read it again.",
        )
        .into());
    }
    let mut settings = before.settings.clone();
    change(&mut settings)?;
    if settings == before.settings {
        return Ok(before);
    }
    let pattern = settings.check(now)?;
    if settings.task != before.settings.task {
        check_task(connection, &settings.task).await?;
    }
    if settings.run_at != before.settings.run_at {
        check_run_at(&settings, now)?;
    }
    let times = |it: &Settings| {
        (
            it.run_at,
            it.cron.clone(),
            it.time_zone.clone(),
            it.ends_at,
            it.paused,
        )
    };
    let next = if settings.paused {
        None
    } else if times(&settings) == times(&before.settings) && before.next_fire_at.is_some() {
        before.next_fire_at
    } else {
        let is_new = settings.run_at != before.settings.run_at;
        let after = if is_new { begins(&settings, now) } else { now };
        settings.next(pattern.as_ref(), after)
    };
    let query = sqlx::query(
        "UPDATE schedules SET name = $2, body = $3, run_at = $4, cron = $5, time_zone = $6, missed = $7, overlap = $8,
             ends_at = $9, paused = $10, next_fire_at = $11, version = version + 1, updated_at = now()
         WHERE id = $1",
    )
    .bind(schedule_id);
    bind_settings(query, &settings, next)
        .execute(&mut *connection)
        .await?;
    Ok(find(connection, schedule_id).await?.0)
}

/// Deletes a schedule with the record of its fires. What it has started goes on.
///
/// # Errors
/// `not_found`.
pub async fn delete(connection: &mut PgConnection, schedule_id: Uuid) -> Result<()> {
    let deleted = sqlx::query("DELETE FROM schedules WHERE id = $1")
        .bind(schedule_id)
        .execute(connection)
        .await?
        .rows_affected();
    if deleted == 0 {
        return Err(Refusal::not_found().into());
    }
    Ok(())
}
