//! The plan: who of a pool may have a share, how large, and who is left out and why.
//!
//! Invariant: one set of SQL decides, for a dry run and for a run: [`SUMMARY`] counts it, [`IN_ORDER`] lists it in the
//! order of places, [`GATHER`] writes it as items. A run decides again about each person when it is their turn.

use futures_util::TryStreamExt;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Mode, OnShortage, Reason, Request, order::Seed};
use crate::{book, error::Result, pool};

/// People that a dry run shows.
const SAMPLE: usize = 20;

/// The share of each member: $1 book, $2 pool, $3 mode, $4 per_user, $5 max_per_user, $6 behind this user, $7 so many,
/// $8 total.
macro_rules! shares {
    ($rest:literal) => {
        concat!(
            "WITH m AS (
                 SELECT user_id FROM pool_members WHERE pool_id = $2 AND user_id > $6 ORDER BY user_id LIMIT $7::bigint),
             known AS MATERIALIZED (
                 SELECT m.user_id, u.id IS NULL OR u.disabled_at IS NOT NULL AS disabled,
                        -- Looked up by key, never joined: the planner would take a book that was never analysed for one
                        -- without allowances, and read all of them for each member.
                        coalesce((SELECT a.assigned_count FROM user_allowances a
                                  WHERE a.book_id = $1 AND a.user_id = m.user_id), 0) AS held
                 FROM m LEFT JOIN users u ON u.id = m.user_id),
             judged AS (
                 SELECT user_id, held, most - held AS allowed,
                        CASE WHEN disabled THEN 'disabled'
                             WHEN $3::text = 'top_up' AND held >= $4::int THEN 'ineligible'
                             WHEN most - held < CASE $3::text WHEN 'equal' THEN $4::int WHEN 'top_up' THEN $4::int - held ELSE 1 END
                             THEN 'limit_reached' END AS reason
                 FROM known CROSS JOIN (SELECT max_assignments_per_user AS most FROM books WHERE id = $1) AS b),
             shares AS (
                 SELECT user_id, reason,
                        CASE WHEN reason IS NOT NULL OR $3::text = 'random' THEN 0
                             WHEN $3::text = 'equal' THEN $4::int ELSE $4::int - held END AS wanted,
                        CASE WHEN $3::text = 'random' THEN CASE WHEN reason IS NULL THEN least($5::int, allowed, $8::int) ELSE 0 END END AS room
                 FROM judged)",
            $rest
        )
    };
}

macro_rules! totals {
    () => {
        " SELECT count(*) AS members, count(*) FILTER (WHERE reason IS NULL) AS eligible,
                 count(*) FILTER (WHERE reason = 'disabled') AS disabled,
                 count(*) FILTER (WHERE reason = 'limit_reached') AS limited,
                 count(*) FILTER (WHERE reason = 'ineligible') AS ineligible,
                 coalesce(sum(wanted), 0)::bigint AS wanted, coalesce(sum(room), 0)::bigint AS room,
                 (SELECT user_id FROM m ORDER BY user_id DESC LIMIT 1) AS last FROM shares"
    };
}

/// A person's place, from HMAC's two pads ($9, $10); [`Seed::place`] in SQL.
macro_rules! place {
    () => {
        "(('x' || encode(substring(sha256($10::bytea || sha256($9::bytea || uuid_send(user_id))) FROM 1 FOR 8), 'hex'))::bit(64) >> 1)::bigint"
    };
}

/// Counts the plan.
pub const SUMMARY: &str = concat!(shares!(""), totals!());

/// Those who are not left out, in the order of their places, at most $11.
pub const IN_ORDER: &str = concat!(
    shares!(", placed AS (SELECT user_id, wanted, room, "),
    place!(),
    " AS place FROM shares WHERE reason IS NULL)
      SELECT user_id, wanted, room FROM placed ORDER BY place, user_id LIMIT $11::bigint"
);

/// Writes the plan as items of distribution $11, and counts what it wrote.
pub const GATHER: &str = concat!(
    shares!(
        ", written AS (
             INSERT INTO distribution_items (book_id, distribution_id, user_id, wanted, room, state, reason, place)
             SELECT $1, $11::uuid, user_id, wanted, room,
                    CASE WHEN reason IS NOT NULL THEN 'left_out' WHEN $3::text = 'random' THEN 'not_drawn' ELSE 'planned' END,
                    reason, "
    ),
    place!(),
    // As the primary key has them, and as they are served.
    " AS place FROM shares ORDER BY place, user_id)",
    totals!()
);

/// Coupons that can be drawn, counted up to $2.
pub const FREE: &str = "SELECT count(*) FROM (
     SELECT FROM coupons WHERE book_id = $1 AND state LIKE 'unassigned' AND (expires_at IS NULL OR expires_at > now())
     LIMIT $2) AS free";

/// The plan in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Totals {
    /// Members looked at.
    pub members: i64,
    /// Those not left out.
    pub eligible: i64,
    /// Left out: disabled.
    pub disabled: i64,
    /// Left out: the book's limit.
    pub limited: i64,
    /// Left out: has enough.
    pub ineligible: i64,
    /// Coupons of the shares; in mode random nobody has one yet.
    pub wanted: i64,
    /// Mode random: how many the eligible could take, each at most the total.
    pub room: i64,
    /// The last member looked at.
    pub last: Option<Uuid>,
}

impl Totals {
    /// Coupons that what was asked for takes.
    pub fn needed(&self, request: &Request) -> i64 {
        request.total.map_or(self.wanted, i64::from)
    }

    /// How many of them can be given when so many coupons are free.
    pub fn possible(&self, request: &Request, free: i64) -> i64 {
        let room = if request.mode == Mode::Random {
            self.room
        } else {
            i64::MAX
        };
        self.needed(request).min(free).min(room)
    }

    /// Who is left out, by reason.
    pub fn excluded(&self) -> Vec<(Reason, i64)> {
        [
            (Reason::Disabled, self.disabled),
            (Reason::LimitReached, self.limited),
            (Reason::Ineligible, self.ineligible),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .collect()
    }
}

/// What a run would do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// People who would get at least one.
    pub recipients: i64,
    /// Who is left out, by reason.
    pub excluded: Vec<(Reason, i64)>,
    /// Coupons needed.
    pub codes_needed: i64,
    /// Coupons that can be drawn.
    pub codes_free: i64,
    /// Coupons needed and not to be had, or with nobody who may take them.
    pub shortfall: i64,
    /// The first recipients in their order, and how many each would get.
    pub sample: Vec<(Uuid, i32)>,
    /// SHA-256 of the seed that this plan was made with.
    pub seed_commitment: [u8; 32],
}

/// Plans without writing anything. Without a seed of the caller's own, order and draws are an example.
///
/// # Errors
/// `validation_failed`, `not_found` (book or pool).
pub async fn dry_run(connection: &mut PgConnection, request: &Request) -> Result<Plan> {
    request.check()?;
    book::find(connection, request.book_id).await?;
    pool::find(connection, request.pool_id).await?;
    be_patient(connection).await?;
    let totals = summary(connection, request).await?;
    let needed = totals.needed(request);
    let free = count_free(connection, request.book_id, i64::MAX).await?;
    let possible = totals.possible(request, free);
    let seed = Seed::new(request.seed.as_deref());
    // A run that would be refused is shown as it would be with enough coupons.
    let given = match request.on_shortage {
        OnShortage::Fail => totals.possible(request, i64::MAX),
        OnShortage::Partial => possible,
    };
    let (recipients, sample) = recipients(connection, request, &seed, &totals, given).await?;
    Ok(Plan {
        recipients,
        excluded: totals.excluded(),
        codes_needed: needed,
        codes_free: free,
        shortfall: needed - possible,
        sample,
        seed_commitment: seed.commitment(),
    })
}

/// How many people get at least one when `given` coupons are given, and the first of them.
async fn recipients(
    connection: &mut PgConnection,
    request: &Request,
    seed: &Seed,
    totals: &Totals,
    given: i64,
) -> Result<(i64, Vec<(Uuid, i32)>)> {
    let all = given >= totals.needed(request);
    let sampled = i64::try_from(SAMPLE).unwrap_or(0);
    // Everybody who gets something gets one at least.
    let limit = match request.mode {
        Mode::Random => None,
        _ if all => Some(sampled),
        _ => Some(given),
    };
    let (inner, outer) = seed.pads();
    let mut rows = sqlx::query_as::<_, (Uuid, i32, Option<i32>)>(IN_ORDER)
        .bind(request.book_id)
        .bind(request.pool_id)
        .bind(request.mode.as_str())
        .bind(request.per_user)
        .bind(request.max_per_user)
        .bind(Uuid::nil())
        .bind(None::<i64>)
        .bind(request.total)
        .bind(&inner[..])
        .bind(&outer[..])
        .bind(limit)
        .fetch(connection);
    let mut sample = Vec::with_capacity(SAMPLE);
    if request.mode == Mode::Random {
        let (mut users, mut rooms) = (Vec::new(), Vec::new());
        while let Some((user_id, _, room)) = rows.try_next().await? {
            users.push(user_id);
            rooms.push(room.unwrap_or(0).unsigned_abs());
        }
        let counts = seed.draw_counts(&rooms, given.unsigned_abs());
        let mut drawn = users.into_iter().zip(counts).filter(|(_, count)| *count > 0);
        let count = |(user_id, count): (Uuid, u32)| (user_id, i32::try_from(count).unwrap_or(i32::MAX));
        sample.extend(drawn.by_ref().take(SAMPLE).map(count));
        let recipients = sample.len() + drawn.count();
        return Ok((i64::try_from(recipients).unwrap_or(i64::MAX), sample));
    }
    let (mut recipients, mut left) = (0, given);
    while let Some((user_id, wanted, _)) = rows.try_next().await? {
        if left == 0 {
            break;
        }
        let share = left.min(i64::from(wanted));
        left -= share;
        recipients += 1;
        if sample.len() < SAMPLE {
            sample.push((user_id, i32::try_from(share).unwrap_or(wanted)));
        }
    }
    Ok((if all { totals.eligible } else { recipients }, sample))
}

/// Counts the plan of a request.
///
/// # Errors
/// When the database fails.
pub async fn summary(connection: &mut PgConnection, request: &Request) -> Result<Totals> {
    Ok(sqlx::query_as(SUMMARY)
        .bind(request.book_id)
        .bind(request.pool_id)
        .bind(request.mode.as_str())
        .bind(request.per_user)
        .bind(request.max_per_user)
        .bind(Uuid::nil())
        .bind(None::<i64>)
        .bind(request.total)
        .fetch_one(connection)
        .await?)
}

/// Coupons of a book that can be drawn, counted up to `most`.
///
/// # Errors
/// When the database fails.
pub async fn count_free(connection: &mut PgConnection, book_id: Uuid, most: i64) -> Result<i64> {
    Ok(sqlx::query_scalar(FREE)
        .bind(book_id)
        .bind(most)
        .fetch_one(connection)
        .await?)
}

/// Lets the statements of this transaction take as long as a worker's: a pool of a million is counted in a second or
/// two, which is more than a request's statements are given.
pub(super) async fn be_patient(connection: &mut PgConnection) -> Result<()> {
    sqlx::raw_sql("SET LOCAL statement_timeout = '30s'")
        .execute(connection)
        .await?;
    Ok(())
}
