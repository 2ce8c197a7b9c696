//! One step of a run: gathers members into items, decides, gives, or lists who comes away short.
//!
//! Invariant: a step holds the distribution's row, does well under a second of work and moves the place in the
//! transaction of what it wrote. The plan that it works through is that of [`super::plan`]; each person is judged again
//! at their turn, and what became otherwise than planned is counted and listed.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Mode, OnShortage, Reason, Request, create, give,
    order::Seed,
    plan::{self, GATHER, Totals},
};
use crate::{
    error::{Code, Error, Refusal, Result},
    job::{
        State,
        claim::{Finished, Outcome, Step},
        ledger,
        payload::OfDistribution,
    },
    pool,
};

/// Members that a step gathers: some tenths of a second.
const GATHERED: i64 = 20_000;

/// People of a distribution that is planned and begun in one step.
const SMALL: i64 = 2_000;

/// People whose share a step writes after the draws of mode random: the draws themselves take a second for a million.
const DRAWN: usize = 100_000;

/// People that a step lists as short.
const LISTED: i64 = 10_000;

/// A run as it stands, its row locked.
#[derive(sqlx::FromRow)]
pub(super) struct Run {
    pub(super) book_id: Uuid,
    pub(super) id: Uuid,
    pool_id: Uuid,
    pub(super) job_id: Uuid,
    pub(super) created_by: Uuid,
    pub(super) created_by_kind: String,
    pub(super) request_id: Option<String>,
    mode: String,
    per_user: Option<i32>,
    total: Option<i64>,
    max_per_user: Option<i32>,
    on_shortage: String,
    state: String,
    phase: String,
    seed: Vec<u8>,
    members: i64,
    eligible: i64,
    left_disabled: i64,
    left_limit: i64,
    left_ineligible: i64,
    room: i64,
    codes_needed: i64,
    pub(super) planned: i64,
    pub(super) assigned: i64,
    pub(super) recipients: i64,
    pub(super) served: i64,
    pub(super) shortfall: i64,
    pub(super) withheld: i64,
    pub(super) next_place: i64,
    pub(super) next_user_id: Uuid,
    pub(super) changed: sqlx::types::Json<BTreeMap<String, i64>>,
}

/// Whether a phase is over.
pub(super) enum Progress {
    /// There is more to do in it.
    More,
    /// It is over.
    Over,
    /// No coupon is left for anybody.
    Exhausted,
}

/// Does the next step of a run.
///
/// # Errors
/// When the database fails; refusals end the job.
pub async fn step(connection: &mut PgConnection, job_id: Uuid, of: &OfDistribution) -> Result<Outcome> {
    let cancelled = ledger::is_cancelled(connection, job_id).await?;
    let run: Option<Run> = sqlx::query_as(
        "SELECT * FROM distributions WHERE book_id = $1 AND id = $2 AND job_id = $3 FOR UPDATE",
    )
    .bind(of.book_id)
    .bind(of.distribution_id)
    .bind(job_id)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(mut run) = run else {
        return Ok(Finished::undecodable());
    };
    if !matches!(run.state.as_str(), "planned" | "running") {
        return Ok(Finished::refused(Refusal::new(
            Code::InvalidState,
            "The distribution has ended or is being undone.",
        )));
    }
    if cancelled {
        return run.end(connection, "cancelled", State::Cancelled, None).await;
    }
    match run.advance(connection).await {
        Err(Error::Refused(refusal)) => run.end(connection, "failed", State::Failed, Some(refusal)).await,
        done => done,
    }
}

impl Run {
    async fn advance(&mut self, connection: &mut PgConnection) -> Result<Outcome> {
        loop {
            let small = self.members <= SMALL;
            match self.phase.as_str() {
                "gather" => {
                    if matches!(self.gather(connection).await?, Progress::More) {
                        return self.go_on(connection).await;
                    }
                    self.enter("decide");
                    if self.members > SMALL {
                        return self.go_on(connection).await;
                    }
                }
                "decide" => {
                    if matches!(self.decide(connection).await?, Progress::More) {
                        return self.go_on(connection).await;
                    }
                    self.enter("give");
                    if !small {
                        return self.go_on(connection).await;
                    }
                }
                "give" => match give::give(self, connection).await? {
                    Progress::More => return self.go_on(connection).await,
                    Progress::Over => return self.complete(connection).await,
                    Progress::Exhausted => self.phase = "short".to_owned(),
                },
                _ => {
                    return match self.list_short(connection).await? {
                        Progress::More => self.go_on(connection).await,
                        _ => self.complete(connection).await,
                    };
                }
            }
        }
    }

    fn enter(&mut self, phase: &str) {
        self.phase = phase.to_owned();
        (self.next_place, self.next_user_id) = (0, Uuid::nil());
    }

    /// What was asked.
    pub(super) fn request(&self) -> Request {
        Request {
            book_id: self.book_id,
            pool_id: self.pool_id,
            mode: Mode::parse(&self.mode).unwrap_or(Mode::Equal),
            per_user: self.per_user,
            total: self.total.and_then(|total| i32::try_from(total).ok()),
            max_per_user: self.max_per_user,
            on_shortage: OnShortage::parse(&self.on_shortage).unwrap_or(OnShortage::Fail),
            seed: None,
        }
    }

    fn totals(&self) -> Totals {
        Totals {
            members: self.members,
            eligible: self.eligible,
            disabled: self.left_disabled,
            limited: self.left_limit,
            ineligible: self.left_ineligible,
            wanted: self.codes_needed,
            room: self.room,
            last: None,
        }
    }

    /// Writes the next members as items.
    async fn gather(&mut self, connection: &mut PgConnection) -> Result<Progress> {
        pool::find(connection, self.pool_id).await?;
        let request = self.request();
        let (inner, outer) = Seed::from_bytes(self.seed.clone()).pads();
        let found: Totals = sqlx::query_as(GATHER)
            .bind(self.book_id)
            .bind(self.pool_id)
            .bind(&self.mode)
            .bind(self.per_user)
            .bind(self.max_per_user)
            .bind(self.next_user_id)
            .bind(GATHERED)
            .bind(request.total)
            .bind(&inner[..])
            .bind(&outer[..])
            .bind(self.id)
            .fetch_one(connection)
            .await?;
        self.members += found.members;
        self.eligible += found.eligible;
        self.left_disabled += found.disabled;
        self.left_limit += found.limited;
        self.left_ineligible += found.ineligible;
        self.codes_needed += found.wanted;
        self.room += found.room;
        if let Some(last) = found.last {
            self.next_user_id = last;
        }
        Ok(if found.members < GATHERED {
            Progress::Over
        } else {
            Progress::More
        })
    }

    /// Says how far the coupons go, and in mode random who gets how many.
    async fn decide(&mut self, connection: &mut PgConnection) -> Result<Progress> {
        let request = self.request();
        if self.state == "planned" {
            let needed = self.totals().needed(&request);
            let free = plan::count_free(connection, self.book_id, needed).await?;
            if request.on_shortage == OnShortage::Fail
                && let Some(refusal) = create::shortage(&request, &self.totals(), free)
            {
                return Err(refusal.into());
            }
            self.planned = self.totals().possible(&request, free);
            self.codes_needed = needed;
            if request.mode == Mode::Random {
                self.shortfall = needed - self.planned; // nobody's in particular
            }
            self.state = "running".to_owned();
        }
        if request.mode == Mode::Random {
            self.draw(connection).await
        } else {
            Ok(Progress::Over)
        }
    }

    /// Writes the next drawn shares. The draws are done anew in each step: they follow from the seed, and nothing of
    /// them need be kept in between.
    async fn draw(&mut self, connection: &mut PgConnection) -> Result<Progress> {
        // While this phase lasts next_place is a number of people, not a place.
        let begin = usize::try_from(self.next_place).unwrap_or(0);
        let (mut rooms, mut places, mut users) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut rows = sqlx::query_as::<_, (i64, Uuid, i32)>(
                "SELECT place, user_id, room FROM distribution_items
                 WHERE book_id = $1 AND distribution_id = $2 AND state <> 'left_out' ORDER BY place, user_id",
            )
            .bind(self.book_id)
            .bind(self.id)
            .fetch(&mut *connection);
            while let Some((place, user_id, room)) = rows.try_next().await? {
                if (begin..begin + DRAWN).contains(&rooms.len()) {
                    places.push(place);
                    users.push(user_id);
                }
                rooms.push(room.unsigned_abs());
            }
        }
        let counts = Seed::from_bytes(self.seed.clone()).draw_counts(&rooms, self.planned.unsigned_abs());
        let end = counts.len().min(begin + DRAWN);
        let slice: Vec<i32> = counts[begin.min(end)..end]
            .iter()
            .map(|count| i32::try_from(*count).unwrap_or(i32::MAX))
            .collect();
        give::join_by_hash(connection, true).await?;
        sqlx::query(
            "UPDATE distribution_items i SET wanted = n.count, state = 'planned'
             FROM unnest($3::bigint[], $4::uuid[], $5::int[]) AS n (place, user_id, count)
             WHERE n.count > 0 AND i.book_id = $1 AND i.distribution_id = $2 AND i.place = n.place AND i.user_id = n.user_id
               AND i.place BETWEEN $6 AND $7",
        )
        .bind(self.book_id)
        .bind(self.id)
        .bind(&places)
        .bind(users)
        .bind(slice)
        .bind(places.first().copied().unwrap_or(0))
        .bind(places.last().copied().unwrap_or(0))
        .execute(&mut *connection)
        .await?;
        give::join_by_hash(connection, false).await?;
        self.next_place = i64::try_from(end).unwrap_or(0);
        Ok(if end < counts.len() {
            Progress::More
        } else {
            Progress::Over
        })
    }

    /// Lists the next of those for whom no coupon was left.
    async fn list_short(&mut self, connection: &mut PgConnection) -> Result<Progress> {
        give::join_by_hash(connection, true).await?;
        let (people, missing): (i64, i64) = sqlx::query_as(
            "WITH next AS (
                 SELECT place, user_id, wanted - assigned AS missing, row_number() OVER (ORDER BY place, user_id) + $5 AS item
                 FROM (SELECT * FROM distribution_items
                       WHERE book_id = $1 AND distribution_id = $2 AND (place, user_id) >= ($3, $4) AND state = 'planned'
                       ORDER BY place, user_id LIMIT $6) AS waiting),
             marked AS (
                 UPDATE distribution_items i SET state = 'short', reason = $8 FROM next n
                 WHERE i.book_id = $1 AND i.distribution_id = $2 AND i.place = n.place AND i.user_id = n.user_id
                   AND i.place BETWEEN $3 AND (SELECT max(place) FROM next)),
             listed AS (
                 INSERT INTO job_errors (job_id, seq, entry)
                 SELECT $7, item, jsonb_build_object('item', item, 'user_id', user_id, 'reason', $8::text, 'detail', $9::text)
                 FROM next)
             SELECT count(*), coalesce(sum(missing), 0)::bigint FROM next",
        )
        .bind(self.book_id)
        .bind(self.id)
        .bind(self.next_place)
        .bind(self.next_user_id)
        .bind(self.served)
        .bind(LISTED)
        .bind(self.job_id)
        .bind(Reason::Shortage.as_str())
        .bind(Reason::Shortage.detail())
        .fetch_one(&mut *connection)
        .await?;
        give::join_by_hash(connection, false).await?;
        self.served += people;
        self.shortfall += missing;
        self.count(Reason::Shortage, people);
        Ok(if people < LISTED {
            Progress::Over
        } else {
            Progress::More
        })
    }

    /// Counts items that became otherwise than planned.
    pub(super) fn count(&mut self, reason: Reason, items: i64) {
        if items > 0 {
            *self.changed.0.entry(reason.as_str().to_owned()).or_default() += items;
        }
    }

    async fn complete(&mut self, connection: &mut PgConnection) -> Result<Outcome> {
        let state = if self.shortfall > 0 {
            "completed_with_shortfall"
        } else {
            "completed"
        };
        let job = if self.shortfall + self.withheld > 0 {
            State::PartiallySucceeded
        } else {
            State::Succeeded
        };
        self.end(connection, state, job, None).await
    }

    async fn go_on(&mut self, connection: &mut PgConnection) -> Result<Outcome> {
        self.save(connection).await?;
        Ok(Outcome::NextStep(self.step()))
    }

    async fn end(
        &mut self,
        connection: &mut PgConnection,
        state: &str,
        job: State,
        refusal: Option<Refusal>,
    ) -> Result<Outcome> {
        self.state = state.to_owned();
        self.save(connection).await?;
        sqlx::query(
            "WITH d AS (UPDATE distributions SET ended_at = clock_timestamp() WHERE book_id = $1 AND id = $2 RETURNING *)
             INSERT INTO events (book_id, id, actor_kind, actor_id, job_id, kind, request_id, after)
             SELECT d.book_id, uuid_v7(), d.created_by_kind, d.created_by, d.job_id, 'distribution_ended', d.request_id,
                    jsonb_build_object('distribution_id', d.id, 'state', d.state, 'recipients', d.recipients,
                                       'assigned', d.assigned, 'shortfall', d.shortfall)
             FROM d",
        )
        .bind(self.book_id)
        .bind(self.id)
        .execute(connection)
        .await?;
        let excluded: Vec<_> = self
            .totals()
            .excluded()
            .into_iter()
            .map(|(reason, count)| serde_json::json!({ "reason": reason.as_str(), "count": count }))
            .collect();
        Ok(Outcome::Finished(Finished {
            state: job,
            step: self.step(),
            result: Some(serde_json::json!({
                "distribution_id": self.id,
                "state": self.state,
                "recipients": self.recipients,
                "assigned": self.assigned,
                "codes_needed": self.codes_needed,
                "shortfall": self.shortfall,
                "withheld": self.withheld,
                "excluded": excluded,
                "changed": self.changed.0,
            })),
            refusal,
        }))
    }

    async fn save(&self, connection: &mut PgConnection) -> Result<()> {
        sqlx::query(
            "UPDATE distributions
             SET state = $3, phase = $4, members = $5, eligible = $6, left_disabled = $7, left_limit = $8,
                 left_ineligible = $9, room = $10, codes_needed = $11, planned = $12, assigned = $13, recipients = $14,
                 served = $15, shortfall = $16, withheld = $17, next_place = $18, next_user_id = $19, changed = $20,
                 planned_at = CASE WHEN $4 IN ('give', 'short') THEN coalesce(planned_at, now()) END
             WHERE book_id = $1 AND id = $2",
        )
        .bind(self.book_id)
        .bind(self.id)
        .bind(&self.state)
        .bind(&self.phase)
        .bind(self.members)
        .bind(self.eligible)
        .bind(self.left_disabled)
        .bind(self.left_limit)
        .bind(self.left_ineligible)
        .bind(self.room)
        .bind(self.codes_needed)
        .bind(self.planned)
        .bind(self.assigned)
        .bind(self.recipients)
        .bind(self.served)
        .bind(self.shortfall)
        .bind(self.withheld)
        .bind(self.next_place)
        .bind(self.next_user_id)
        .bind(&self.changed)
        .execute(connection)
        .await?;
        Ok(())
    }

    fn step(&self) -> Step {
        let planned = matches!(self.phase.as_str(), "give" | "short");
        Step {
            done: self.assigned,
            total: planned.then_some(self.planned),
            counts: [
                ("members", self.members),
                ("recipients", self.recipients),
                ("assigned", self.assigned),
                ("shortfall", self.shortfall),
            ]
            .map(|(name, count)| (name.to_owned(), count))
            .into(),
        }
    }
}
