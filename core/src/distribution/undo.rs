//! Undoing: what a distribution gave and is still only assigned goes back into the draw.
//!
//! Invariant: a coupon is taken back only from the assignment that this distribution made. It is known by its holder and
//! by where it lay in the draw: a coupon that was taken back meanwhile was laid elsewhere, also if the same person has it
//! again. A coupon goes back as [`crate::coupon::withdraw::revoke`] lets it go, with its event and the allowance.

use std::collections::{BTreeMap, HashMap};

use sqlx::PgConnection;
use uuid::Uuid;

use super::{give, order::Seed, store};
use crate::{
    coupon::{Origin, draw::DrawState},
    error::{Code, Refusal, Result},
    job::{
        State,
        claim::{Finished, Outcome, Step},
        enqueue::{self, NewJob},
        ledger,
        payload::{OfDistribution, Payload},
    },
};

/// Coupons of a step: some tenths of a second under the book's draw.
pub const STEP_COUPONS: i64 = 2_000;

/// Coupons that were taken back by somebody else before: they do not stay with anybody.
const REVOKED: &str = "revoked";

/// Whether anything of a distribution can be taken back, now or once its lock has lapsed.
pub const UNDOABLE: &str = "SELECT EXISTS (
     SELECT FROM distribution_coupons d JOIN coupons c
         ON c.book_id = d.book_id AND c.code_key = d.code_key AND c.draw_key = d.draw_key AND c.assigned_user_id = d.user_id
     WHERE d.book_id = $1 AND d.distribution_id = $2 AND d.undone_at IS NULL AND c.book_id = $1
       AND c.state IN ('assigned', 'locked') AND c.redemptions_used = 0)";

/// Accepts the undoing of a distribution that has ended; gives its job.
///
/// # Errors
/// `not_found`, `invalid_state` (it has not ended, or is being undone), `nothing_to_undo`.
pub async fn accept(
    connection: &mut PgConnection,
    distribution_id: Uuid,
    origin: Origin<'_>,
) -> Result<Uuid> {
    let book_id = store::find(connection, distribution_id).await?.book_id;
    sqlx::query("SELECT FROM distributions WHERE book_id = $1 AND id = $2 FOR UPDATE")
        .bind(book_id)
        .bind(distribution_id)
        .execute(&mut *connection)
        .await?;
    // Under the lock: its jobs have moved on, or not.
    let distribution = store::find(connection, distribution_id).await?;
    let assigned = distribution.counts.get("assigned").copied().unwrap_or(0);
    let detail = match distribution.state.as_str() {
        "planned" | "running" => {
            return Err(Refusal::new(
                Code::InvalidState,
                "The distribution has not ended; wait for its end, or cancel its job first.",
            )
            .into());
        }
        "undoing" => {
            return Err(Refusal::new(Code::InvalidState, "The distribution is being undone already.").into());
        }
        "undone" => Some("The distribution has been undone."),
        _ if assigned == 0 => Some("The distribution gave nothing."),
        "partially_undone" if !undoable(connection, book_id, distribution_id).await? => {
            Some("What is left of the distribution is used, void or taken back.")
        }
        _ => None,
    };
    if let Some(detail) = detail {
        return Err(Refusal::new(Code::NothingToUndo, detail).into());
    }
    let payload = Payload::UndoDistribution(OfDistribution {
        book_id,
        distribution_id,
    });
    let undone = distribution.counts.get("undone").copied().unwrap_or(0);
    let job = NewJob {
        payload: &payload,
        actor: origin.actor,
        book_id: Some(book_id),
        total: Some(assigned - undone),
        request_id: origin.request_id,
        beneficiary: None,
    };
    let job_id = enqueue::enqueue(connection, job).await?;
    sqlx::query(
        "UPDATE distributions SET state = 'undoing', undo_job_id = $3, undo_seq = 0, kept = '{}'
         WHERE book_id = $1 AND id = $2",
    )
    .bind(book_id)
    .bind(distribution_id)
    .bind(job_id)
    .execute(connection)
    .await?;
    Ok(job_id)
}

async fn undoable(connection: &mut PgConnection, book_id: Uuid, distribution_id: Uuid) -> Result<bool> {
    Ok(sqlx::query_scalar(UNDOABLE)
        .bind(book_id)
        .bind(distribution_id)
        .fetch_one(connection)
        .await?)
}

#[derive(sqlx::FromRow)]
struct Undo {
    book_id: Uuid,
    id: Uuid,
    seed: Vec<u8>,
    assigned: i64,
    undone: i64,
    undo_seq: i64,
    kept: sqlx::types::Json<BTreeMap<String, i64>>,
    job_id: Uuid,
    created_by: Uuid,
    created_by_kind: String,
    request_id: Option<String>,
    total: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct Given {
    seq: i64,
    code_key: String,
    draw_key: i64,
    user_id: Uuid,
}

#[derive(sqlx::FromRow)]
struct Now {
    code_key: String,
    draw_key: i64,
    assigned_user_id: Option<Uuid>,
    state: String,
    redemptions_used: i32,
    live: bool,
}

/// Takes back the next coupons.
///
/// # Errors
/// When the database fails.
pub async fn step(connection: &mut PgConnection, job_id: Uuid, of: &OfDistribution) -> Result<Outcome> {
    let cancelled = ledger::is_cancelled(connection, job_id).await?;
    let undo: Option<Undo> = sqlx::query_as(
        "SELECT d.book_id, d.id, d.seed, d.assigned, d.undone, d.undo_seq, d.kept, j.id AS job_id, j.created_by,
                j.created_by_kind, j.request_id, j.progress_total AS total
         FROM distributions d JOIN jobs j ON j.id = d.undo_job_id
         WHERE d.book_id = $1 AND d.id = $2 AND d.undo_job_id = $3 AND d.state = 'undoing' FOR UPDATE OF d",
    )
    .bind(of.book_id)
    .bind(of.distribution_id)
    .bind(job_id)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(mut undo) = undo else {
        return Ok(Finished::undecodable());
    };
    if cancelled {
        return undo.end(connection, State::Cancelled).await;
    }
    let given: Vec<Given> = sqlx::query_as(GIVEN)
        .bind(undo.book_id)
        .bind(undo.id)
        .bind(undo.undo_seq)
        .bind(STEP_COUPONS)
        .fetch_all(&mut *connection)
        .await?;
    let over = given.len() < usize::try_from(STEP_COUPONS).unwrap_or(0);
    if !given.is_empty() {
        undo.take_back(connection, given).await?;
    }
    if over {
        let state = if undo.kept() == 0 {
            State::Succeeded
        } else {
            State::PartiallySucceeded
        };
        return undo.end(connection, state).await;
    }
    undo.save(connection, "undoing").await?;
    Ok(Outcome::NextStep(undo.step()))
}

impl Undo {
    async fn take_back(&mut self, connection: &mut PgConnection, given: Vec<Given>) -> Result<()> {
        self.undo_seq = given.last().map_or(self.undo_seq, |last| last.seq);
        let mut draw = DrawState::lock(connection, self.book_id).await?;
        let keys: Vec<&str> = given.iter().map(|coupon| coupon.code_key.as_str()).collect();
        let coupons: Vec<Now> = sqlx::query_as(
            "SELECT code_key, draw_key, assigned_user_id, state, redemptions_used,
                    coalesce(locked_until > clock_timestamp(), false) AS live
             FROM coupons WHERE book_id = $1 AND code_key = ANY($2::text[]) ORDER BY code_key FOR UPDATE",
        )
        .bind(self.book_id)
        .bind(keys)
        .fetch_all(&mut *connection)
        .await?;
        let coupons: HashMap<String, Now> = coupons
            .into_iter()
            .map(|coupon| (coupon.code_key.clone(), coupon))
            .collect();
        let mut back = Vec::with_capacity(given.len());
        for coupon in given {
            match coupons
                .get(&coupon.code_key)
                .map_or(Some(REVOKED), |now| now.stays(&coupon))
            {
                Some(reason) => *self.kept.0.entry(reason.to_owned()).or_default() += 1,
                None => back.push(coupon),
            }
        }
        if !back.is_empty() {
            back.sort_unstable_by(|a, b| a.code_key.cmp(&b.code_key)); // as the indexes have them
            self.write(connection, &mut draw, &back).await?;
        }
        Ok(())
    }

    async fn write(
        &mut self,
        connection: &mut PgConnection,
        draw: &mut DrawState,
        back: &[Given],
    ) -> Result<()> {
        let (epoch, cursor) = (draw.epoch(), draw.cursor());
        let (mut keys, mut draw_keys, mut arrivals) = (Vec::new(), Vec::new(), Vec::new());
        let (mut users, mut seqs) = (Vec::new(), Vec::new());
        let mut taken: BTreeMap<Uuid, i32> = BTreeMap::new();
        for coupon in back {
            arrivals.push(draw.arrivals());
            draw_keys.push(draw.lay(&coupon.code_key));
            keys.push(coupon.code_key.as_str());
            users.push(coupon.user_id);
            seqs.push(coupon.seq);
            *taken.entry(coupon.user_id).or_default() += 1;
        }
        let (people, counts): (Vec<Uuid>, Vec<i32>) = taken.into_iter().unzip();
        let seed = Seed::from_bytes(self.seed.clone());
        let places: Vec<i64> = people.iter().map(|user_id| seed.place(*user_id)).collect();
        sqlx::query("SELECT FROM user_allowances WHERE book_id = $1 AND user_id = ANY($2::uuid[]) ORDER BY user_id FOR UPDATE")
            .bind(self.book_id)
            .bind(&people)
            .execute(&mut *connection)
            .await?;
        give::join_by_hash(connection, true).await?;
        let (coupons, allowances, items): (i64, i64, i64) = sqlx::query_as(TAKE_BACK)
            .bind(self.book_id)
            .bind(self.id)
            .bind(keys)
            .bind(draw_keys)
            .bind(arrivals)
            .bind(users)
            .bind(seqs)
            .bind(&self.created_by_kind)
            .bind(self.created_by)
            .bind(self.job_id)
            .bind(self.request_id.as_deref())
            .bind(epoch)
            .bind(cursor)
            .bind(people)
            .bind(counts)
            .bind(places)
            .fetch_one(&mut *connection)
            .await?;
        give::join_by_hash(connection, false).await?;
        if usize::try_from(coupons).ok() != Some(back.len()) || allowances != items {
            // Everything was locked and judged; anything else is a fault, and the whole step is rolled back.
            return Err(sqlx::Error::Protocol(
                "an undoing met rows that had changed under their locks".into(),
            )
            .into());
        }
        self.undone += coupons;
        draw.save(connection).await
    }

    /// Coupons that stay with their holders.
    fn kept(&self) -> i64 {
        self.kept
            .0
            .iter()
            .filter(|(reason, _)| *reason != REVOKED)
            .map(|(_, count)| count)
            .sum()
    }

    fn step(&self) -> Step {
        let looked: i64 = self.kept.0.values().sum();
        let total = self.total.unwrap_or(self.assigned);
        Step {
            done: (looked + self.undone - (self.assigned - total)).clamp(0, total),
            total: Some(total),
            counts: [("undone", self.undone), ("kept", self.kept())]
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
        }
    }

    async fn save(&self, connection: &mut PgConnection, state: &str) -> Result<()> {
        sqlx::query(
            "UPDATE distributions SET state = $3, undone = $4, undo_seq = $5, kept = $6,
                 undone_at = CASE WHEN $3 = 'undone' THEN clock_timestamp() END
             WHERE book_id = $1 AND id = $2",
        )
        .bind(self.book_id)
        .bind(self.id)
        .bind(state)
        .bind(self.undone)
        .bind(self.undo_seq)
        .bind(&self.kept)
        .execute(connection)
        .await?;
        Ok(())
    }

    async fn end(&self, connection: &mut PgConnection, job: State) -> Result<Outcome> {
        let state = if job == State::Succeeded {
            "undone"
        } else {
            "partially_undone"
        };
        self.save(connection, state).await?;
        sqlx::query(
            "INSERT INTO events (book_id, id, actor_kind, actor_id, job_id, kind, request_id, after)
             VALUES ($1, uuid_v7(), $2, $3, $4, 'distribution_undone', $5, $6)",
        )
        .bind(self.book_id)
        .bind(&self.created_by_kind)
        .bind(self.created_by)
        .bind(self.job_id)
        .bind(self.request_id.as_deref())
        .bind(serde_json::json!({
            "distribution_id": self.id, "state": state, "undone": self.undone, "kept": self.kept(),
        }))
        .execute(connection)
        .await?;
        Ok(Outcome::Finished(Finished {
            state: job,
            step: self.step(),
            result: Some(serde_json::json!({
                "distribution_id": self.id,
                "state": state,
                "undone": self.undone,
                "kept": self.kept(),
                "reasons": self.kept.0,
            })),
            refusal: None,
        }))
    }
}

impl Now {
    /// Why the coupon is not taken back; `None` when it is.
    fn stays(&self, given: &Given) -> Option<&'static str> {
        if self.assigned_user_id != Some(given.user_id) || self.draw_key != given.draw_key {
            return Some(REVOKED);
        }
        match self.state.as_str() {
            "void" => Some("void"),
            "locked" if self.live => Some("locked"),
            "redeemed" => Some("use_spent"),
            _ if self.redemptions_used > 0 => Some("use_spent"),
            "assigned" | "locked" => None,
            _ => Some(REVOKED),
        }
    }
}

/// The next coupons that were given and not taken back.
pub const GIVEN: &str = "SELECT seq, code_key, draw_key, user_id FROM distribution_coupons
     WHERE book_id = $1 AND distribution_id = $2 AND seq > $3 AND undone_at IS NULL ORDER BY seq LIMIT $4";

/// Puts coupons back into the draw, with their events, and gives the allowances back.
pub const TAKE_BACK: &str = "WITH o AS (
         SELECT * FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::uuid[], $7::bigint[])
             AS o (code_key, draw_key, arrival, user_id, seq)),
     c AS (
         UPDATE coupons c
         SET state = 'unassigned', assigned_user_id = NULL, assigned_at = NULL, valid_until = NULL, locked_until = NULL,
             lock_token_hash = NULL, lock_renewals_left = NULL, draw_key = o.draw_key, updated_at = now()
         FROM o WHERE c.book_id = $1 AND c.code_key = o.code_key AND c.state IN ('assigned', 'locked')
           -- Says the same again, so that the primary key is used even where the table was never analysed.
           AND c.code_key = ANY($3::text[])
         RETURNING c.code_key),
     recorded AS (
         INSERT INTO events (book_id, id, actor_kind, actor_id, job_id, kind, code_key, request_id, before, after)
         SELECT $1, uuid_v7(), $8, $9, $10, 'coupon_revoked', o.code_key, $11,
                jsonb_build_object('state', 'assigned', 'user_id', o.user_id),
                jsonb_build_object('state', 'unassigned', 'distribution_id', $2::uuid,
                                   'arrival', o.arrival, 'epoch', $12::int, 'cursor', $13::bigint)
         FROM o),
     marked AS (
         UPDATE distribution_coupons d SET undone_at = now() FROM o
         WHERE d.book_id = $1 AND d.distribution_id = $2 AND d.seq = o.seq AND d.seq = ANY($7::bigint[])),
     given_back AS (
         UPDATE user_allowances a SET assigned_count = a.assigned_count - n.taken
         FROM unnest($14::uuid[], $15::int[]) AS n (user_id, taken)
         WHERE a.book_id = $1 AND a.user_id = n.user_id AND a.user_id = ANY($14::uuid[])
         RETURNING 1),
     told AS (
         UPDATE distribution_items i SET undone = i.undone + n.taken
         FROM unnest($14::uuid[], $15::int[], $16::bigint[]) AS n (user_id, taken, place)
         WHERE i.book_id = $1 AND i.distribution_id = $2 AND i.place = n.place AND i.user_id = n.user_id
           -- They were served as neighbours: without this all of the distribution's people are read.
           AND i.place BETWEEN (SELECT min(p) FROM unnest($16::bigint[]) AS p) AND (SELECT max(p) FROM unnest($16::bigint[]) AS p)
         RETURNING 1)
     SELECT (SELECT count(*) FROM c), (SELECT count(*) FROM given_back), (SELECT count(*) FROM told)";
