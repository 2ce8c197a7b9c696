//! Schedules: make, list, read, change, delete.

use coupon_core::{
    Error, db,
    schedule::{self, Missed, Overlap, Schedule, Settings, Task},
};
use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Header, Path, Query},
    payload::Json,
};
use uuid::Uuid;

use super::{
    NoContent, Tag, check_time, distributions::NewDistribution, exports::ExportRequest,
    schedule_fires::FireView,
};
use crate::{
    Body, Nullable, Problem,
    app::App,
    auth::Auth,
    etag,
    lists::{Limit, Page, decode_cursor},
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
    time::Time,
};

/// What a schedule starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// A distribution.
    Distribution,
    /// An export.
    Export,
}

/// What becomes of fires that nobody was there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "Missed", rename_all = "snake_case")]
pub enum MissedRule {
    /// None of them happens.
    Skip,
    /// One happens for all of them.
    RunOnce,
}

/// What becomes of a fire while an earlier job of the schedule is not at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "Overlap", rename_all = "snake_case")]
pub enum OverlapRule {
    /// It does not happen.
    Skip,
    /// It waits for that end.
    Queue,
}

impl From<MissedRule> for Missed {
    fn from(rule: MissedRule) -> Self {
        match rule {
            MissedRule::Skip => Self::Skip,
            MissedRule::RunOnce => Self::RunOnce,
        }
    }
}

impl From<OverlapRule> for Overlap {
    fn from(rule: OverlapRule) -> Self {
        match rule {
            OverlapRule::Skip => Self::Skip,
            OverlapRule::Queue => Self::Queue,
        }
    }
}

/// A schedule to be made.
#[derive(Debug, Object)]
pub struct NewSchedule {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: String,
    kind: ScheduleKind,
    #[oai(flatten)]
    settings: ScheduleSettings,
}

/// A setting of a schedule that may be cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
pub enum ScheduleClearable {
    /// No end.
    EndsAt,
}

/// A change of a schedule: what is absent stays. Setting run_at takes cron's place, and the other way round.
#[derive(Debug, Object)]
pub struct ScheduleChange {
    /// For people.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: Option<String>,
    #[oai(flatten)]
    settings: ScheduleSettings,
    /// Members of these names are cleared: a null in a body means absent.
    #[oai(validator(max_items = 10))]
    clear: Option<Vec<ScheduleClearable>>,
}

/// What a new schedule and a change of one have in common.
#[derive(Debug, Object)]
pub struct ScheduleSettings {
    /// Kind distribution: what is given each time. A seed only with run_at.
    distribution: Option<NewDistribution>,
    /// Kind export: what is exported each time.
    export: Option<ExportRequest>,
    /// The one time at which it fires.
    run_at: Option<Time>,
    /// Instead of run_at: minute, hour, day of the month, month, day of the week.
    #[oai(validator(max_length = 200))]
    cron: Option<String>,
    /// IANA name, in whose clock cron is read; at first UTC.
    #[oai(validator(max_length = 100))]
    time_zone: Option<String>,
    /// At first skip.
    missed: Option<MissedRule>,
    /// At first skip.
    overlap: Option<OverlapRule>,
    /// From this on it does not fire.
    ends_at: Option<Time>,
    /// Whether it rests; at first it does not. Fires whose time comes meanwhile do not happen.
    paused: Option<bool>,
}

/// A schedule.
#[derive(Debug, Object)]
#[oai(rename = "Schedule")]
pub struct ScheduleView {
    /// UUIDv7.
    pub id: Uuid,
    name: String,
    kind: ScheduleKind,
    /// What is given each time.
    distribution: Nullable<NewDistribution>,
    /// What is exported each time.
    export: Nullable<ExportRequest>,
    run_at: Nullable<Time>,
    cron: Nullable<String>,
    time_zone: String,
    missed: MissedRule,
    overlap: OverlapRule,
    ends_at: Nullable<Time>,
    paused: bool,
    /// Null when it is paused or over.
    next_fire_at: Nullable<Time>,
    last_fire: Nullable<FireView>,
    created_by: Uuid,
    created_at: Time,
    updated_at: Time,
}

impl From<Schedule> for ScheduleView {
    fn from(schedule: Schedule) -> Self {
        let settings = schedule.settings;
        let (kind, distribution, export) = match &settings.task {
            Task::Distribution(request) => (ScheduleKind::Distribution, Some(request.into()), None),
            Task::Export(new) => (ScheduleKind::Export, None, Some(new.into())),
        };
        Self {
            id: schedule.id,
            name: settings.name,
            kind,
            distribution: distribution.into(),
            export: export.into(),
            run_at: settings.run_at.into(),
            cron: settings.cron.into(),
            time_zone: settings.time_zone,
            missed: match settings.missed {
                Missed::Skip => MissedRule::Skip,
                Missed::RunOnce => MissedRule::RunOnce,
            },
            overlap: match settings.overlap {
                Overlap::Skip => OverlapRule::Skip,
                Overlap::Queue => OverlapRule::Queue,
            },
            ends_at: settings.ends_at.into(),
            paused: settings.paused,
            next_fire_at: schedule.next_fire_at.into(),
            last_fire: schedule.last_fire.map(FireView::from).into(),
            created_by: schedule.created_by,
            created_at: schedule.created_at.into(),
            updated_at: schedule.updated_at.into(),
        }
    }
}

fn missing(pointer: &str) -> Problem {
    Problem::field(
        pointer,
        "required",
        "A schedule of this kind says what it starts.",
    )
}

fn unexpected(pointer: &str) -> Error {
    Error::invalid(pointer, "unexpected", "A schedule of the other kind has this.")
}

impl NewSchedule {
    fn settings(self) -> Result<Settings, Problem> {
        let given = self.settings;
        given.check()?;
        let task = match (self.kind, &given.distribution, &given.export) {
            (ScheduleKind::Distribution, Some(body), _) => Task::Distribution(body.into()),
            (ScheduleKind::Distribution, None, _) => return Err(missing("/distribution")),
            (ScheduleKind::Export, _, Some(body)) => Task::Export(body.into()),
            (ScheduleKind::Export, _, None) => return Err(missing("/export")),
        };
        let mut settings = Settings {
            name: self.name,
            task,
            run_at: None,
            cron: None,
            time_zone: "UTC".to_owned(),
            missed: Missed::Skip,
            overlap: Overlap::Skip,
            ends_at: None,
            paused: false,
        };
        given.apply(&mut settings)?;
        Ok(settings)
    }
}

impl ScheduleChange {
    fn apply(self, settings: &mut Settings) -> Result<(), Error> {
        if let Some(name) = self.name {
            settings.name = name;
        }
        self.settings.apply(settings)?;
        for what in self.clear.unwrap_or_default() {
            match what {
                ScheduleClearable::EndsAt => settings.ends_at = None,
            }
        }
        Ok(())
    }
}

impl ScheduleSettings {
    /// Whether PostgreSQL can hold its times.
    fn check(&self) -> Result<(), Problem> {
        check_time("/run_at", self.run_at)?;
        check_time("/ends_at", self.ends_at)?;
        Ok(())
    }

    /// Puts what is given over `settings`.
    fn apply(self, settings: &mut Settings) -> Result<(), Error> {
        if self.run_at.is_some() && self.cron.is_some() {
            let detail = "A schedule has one of run_at and cron.";
            return Err(Error::invalid("/cron", "unexpected", detail));
        }
        match (&mut settings.task, self.distribution, self.export) {
            (_, None, None) => {}
            (Task::Distribution(request), Some(body), None) => *request = (&body).into(),
            (Task::Export(new), None, Some(body)) => *new = (&body).into(),
            (Task::Distribution(_), ..) => return Err(unexpected("/export")),
            (Task::Export(_), ..) => return Err(unexpected("/distribution")),
        }
        if let Some(Time(run_at)) = self.run_at {
            (settings.run_at, settings.cron) = (Some(run_at), None);
        }
        if let Some(cron) = self.cron {
            (settings.run_at, settings.cron) = (None, Some(cron));
        }
        if let Some(time_zone) = self.time_zone {
            settings.time_zone = time_zone;
        }
        if let Some(missed) = self.missed {
            settings.missed = missed.into();
        }
        if let Some(overlap) = self.overlap {
            settings.overlap = overlap.into();
        }
        if let Some(Time(ends_at)) = self.ends_at {
            settings.ends_at = Some(ends_at);
        }
        if let Some(paused) = self.paused {
            settings.paused = paused;
        }
        Ok(())
    }
}

/// The endpoints of schedules.
pub struct Schedules {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Pools")]
impl Schedules {
    /// Make a schedule: something to be started at one time, or again and again.
    #[oai(path = "/schedules", method = "post")]
    async fn create(
        &self,
        auth: Auth,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<NewSchedule>,
    ) -> Result<Reply<ScheduleView, 201>, Problem> {
        auth.require_admin()?;
        let hash = *body.hash();
        let settings = body.value.settings()?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(&hash)).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return Ok(once::again(answer)?.tagged(etag::tag(1))),
        };
        let made = schedule::insert(once.tx(), &settings, auth.actor()).await;
        let reply = once
            .finish(made.map(ScheduleView::from), |schedule| {
                Some(format!("/v1/schedules/{}", schedule.id))
            })
            .await?;
        Ok(reply.tagged(etag::tag(1)))
    }

    /// List schedules, newest first.
    #[oai(path = "/schedules", method = "get")]
    async fn list(
        &self,
        auth: Auth,
        limit: Query<Limit>,
        cursor: Query<Option<String>>,
    ) -> Result<Json<Page<ScheduleView>>, Problem> {
        auth.require_admin()?;
        let after: Option<Uuid> = decode_cursor("schedules", cursor.0.as_deref())?;
        let mut connection = self.app.connection().await?;
        let page = schedule::list(&mut connection, after, limit.rows()).await?;
        Ok(Json(Page::of(page, "schedules", |it| it.id, ScheduleView::from)))
    }

    /// Read a schedule; its ETag goes into If-Match of a change. Fires do not change the ETag.
    #[oai(path = "/schedules/:id", method = "get")]
    async fn read(&self, auth: Auth, id: Path<Uuid>) -> Result<Reply<ScheduleView>, Problem> {
        auth.require_admin()?;
        let mut connection = self.app.connection().await?;
        let (schedule, _) = schedule::find(&mut connection, id.0).await?;
        let tag = etag::tag(schedule.version);
        Ok(Reply::new(&ScheduleView::from(schedule)).tagged(tag))
    }

    /// Change a schedule, pause it or let it go on.
    #[oai(path = "/schedules/:id", method = "patch")]
    async fn change(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        #[oai(name = "If-Match")] if_match: Header<Option<String>>,
        body: Body<ScheduleChange>,
    ) -> Result<Reply<ScheduleView>, Problem> {
        auth.require_admin()?;
        let change = body.value;
        change.settings.check()?;
        let mut tx = self.app.db().begin().await?;
        let (before, _) = schedule::find(&mut tx, id.0).await?;
        etag::check(if_match.0.as_deref(), before.version)?;
        let expected = if_match.0.is_some().then_some(before.version);
        let changed = schedule::update(&mut tx, id.0, expected, |settings| change.apply(settings)).await?;
        db::commit(tx).await?;
        let tag = etag::tag(changed.version);
        Ok(Reply::new(&ScheduleView::from(changed)).tagged(tag))
    }

    /// Delete a schedule. What it has started goes on.
    #[oai(path = "/schedules/:id", method = "delete")]
    async fn delete(&self, auth: Auth, id: Path<Uuid>) -> Result<NoContent, Problem> {
        auth.require_admin()?;
        let mut tx = self.app.db().begin().await?;
        schedule::delete(&mut tx, id.0).await?;
        db::commit(tx).await?;
        Ok(NoContent::Done)
    }
}
