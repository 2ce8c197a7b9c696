//! Giving: the next people in their order get the next coupons of the draw.
//!
//! Invariant: under the lock of the book's draw nobody else can give coupons of this book away, so what each person
//! holds is what is read here; coupons, events, allowances, items and the list of what was given are one statement.
//! Locks are taken in this order: the distribution's row, draw, drawn coupons, allowances by user. Nobody who holds an
//! allowance waits for an unassigned coupon, so coupons may come before allowances, as they do for a redemption.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Mode, OnShortage, Reason, plan,
    step::{Progress, Run},
};
use crate::{
    coupon::{
        assign::{BookRules, DRAW},
        draw::DrawState,
    },
    error::{Code, Refusal, Result},
};

/// Coupons of a step: well under half a second under the book's draw.
pub const STEP_COUPONS: i64 = 5_000;

/// People of a step.
const STEP_PEOPLE: i64 = 5_000;

/// The next people in their order, with what decides about them. Each is looked up by key: the planner would take a book
/// that was never analysed for one without allowances, and read all of them for each person.
pub const NEXT: &str = "SELECT i.place, i.user_id, i.wanted, i.assigned,
         coalesce((SELECT u.disabled_at IS NOT NULL FROM users u WHERE u.id = i.user_id), true) AS disabled,
         coalesce((SELECT a.assigned_count FROM user_allowances a WHERE a.book_id = $1 AND a.user_id = i.user_id), 0) AS held
     FROM distribution_items i
     WHERE i.book_id = $1 AND i.distribution_id = $2 AND (i.place, i.user_id) >= ($3, $4) AND i.state = 'planned'
     ORDER BY i.place, i.user_id LIMIT $5";

/// Writes what a step gives. Coupons come in the order of their keys, as the indexes have them: twice the rate of the
/// order in which they were drawn.
pub const GIVE: &str = "WITH o AS (
         SELECT * FROM unnest($3::text[], $4::bigint[], $5::uuid[], $6::bigint[]) AS o (code_key, draw_key, user_id, seq)),
     c AS (
         UPDATE coupons c
         SET state = 'assigned', assigned_user_id = o.user_id, assigned_at = now(), updated_at = now(),
             valid_until = now() + make_interval(days => (SELECT valid_days_after_assignment FROM books WHERE id = $1))
         FROM o
         WHERE c.book_id = $1 AND c.code_key = o.code_key AND c.state = 'unassigned'
           -- Says the same again, so that the primary key is used even where the table was never analysed.
           AND c.code_key = ANY($3::text[])
         RETURNING 1),
     -- Of all that were to be given: where one of them was not, the whole step is rolled back.
     recorded AS (
         INSERT INTO events (book_id, id, actor_kind, actor_id, job_id, kind, code_key, request_id, before, after)
         SELECT $1, uuid_v7(), $7, $8, $9, 'coupon_assigned', o.code_key, $10, '{\"state\": \"unassigned\"}'::jsonb,
                jsonb_build_object('state', 'assigned', 'user_id', o.user_id)
         FROM o),
     noted AS (
         INSERT INTO distribution_coupons (book_id, distribution_id, seq, draw_key, user_id, code_key)
         SELECT $1, $2, o.seq, o.draw_key, o.user_id, o.code_key FROM o ORDER BY o.seq),
     counted AS (
         INSERT INTO user_allowances AS a (book_id, user_id, assigned_count)
         SELECT $1, n.user_id, n.added FROM unnest($12::uuid[], $13::int[]) AS n (user_id, added)
         WHERE n.added > 0 ORDER BY n.user_id
         ON CONFLICT (book_id, user_id) DO UPDATE SET assigned_count = a.assigned_count + excluded.assigned_count
         WHERE coalesce(a.assigned_count + excluded.assigned_count <= $16::bigint, true)
         RETURNING 1),
     served AS (
         UPDATE distribution_items i SET assigned = i.assigned + n.added, state = n.state, reason = n.reason
         FROM unnest($11::bigint[], $12::uuid[], $13::int[], $14::text[], $15::text[])
             AS n (place, user_id, added, state, reason)
         WHERE i.book_id = $1 AND i.distribution_id = $2 AND i.place = n.place AND i.user_id = n.user_id
           -- The people of a step are neighbours: without this all of the distribution's are read.
           AND i.place BETWEEN ($11::bigint[])[1] AND ($11::bigint[])[cardinality($11::bigint[])]
         RETURNING 1)
     SELECT (SELECT count(*) FROM c), (SELECT count(*) FROM counted), (SELECT count(*) FROM served)";

/// Somebody whose turn has come.
#[derive(sqlx::FromRow)]
struct Waiting {
    place: i64,
    user_id: Uuid,
    wanted: i32,
    assigned: i32,
    /// Disabled, or gone.
    disabled: bool,
    /// Coupons of the book that they were given so far.
    held: i32,
}

/// What a person gets at their turn.
struct Served {
    place: i64,
    user_id: Uuid,
    /// Coupons that the plan still has for them.
    due: i64,
    /// How many they may have.
    share: i64,
    /// Why not as many as are due.
    reason: Option<Reason>,
    /// Whether the rest is for the next step.
    in_part: bool,
    first: bool,
}

/// Serves the next people.
pub(super) async fn give(run: &mut Run, connection: &mut PgConnection) -> Result<Progress> {
    // First: what is read of people below is what everybody who held the draw before has committed.
    let mut draw = DrawState::lock(connection, run.book_id).await?;
    let request = run.request();
    // As many as a step serves; in the other modes nobody knows before.
    let people = match (request.mode, request.per_user) {
        (Mode::Equal, Some(each)) => (STEP_COUPONS / i64::from(each)).max(1),
        _ => STEP_PEOPLE,
    };
    let waiting: Vec<Waiting> = sqlx::query_as(NEXT)
        .bind(run.book_id)
        .bind(run.id)
        .bind(run.next_place)
        .bind(run.next_user_id)
        .bind(people)
        .fetch_all(&mut *connection)
        .await?;
    if waiting.is_empty() {
        return Ok(Progress::Over);
    }
    let rules = BookRules::read(connection, run.book_id).await?;
    if let Some(refusal) = rules.closed {
        return Err(refusal.into());
    }
    if run.served == 0 && run.assigned == 0 && request.on_shortage == OnShortage::Fail {
        // Since the plan was made somebody may have drawn; nothing is given yet.
        let free = plan::count_free(connection, run.book_id, run.planned).await?;
        if free < run.planned {
            let detail = format!(
                "{} coupons are needed and {free} are left, so nothing is given.",
                run.planned
            );
            return Err(Refusal::new(Code::Shortage, detail).into());
        }
    }
    let more = i64::try_from(waiting.len()).unwrap_or(i64::MAX) >= people;
    let (mut served, whole) = judge(request.mode, request.per_user, rules.max_per_user, waiting);
    let wanted: i64 = served.iter().map(|person| person.share).sum();
    let drawn: Vec<(String, i64)> = sqlx::query_as(DRAW)
        .bind(run.book_id)
        .bind(draw.cursor())
        .bind(wanted)
        .fetch_all(&mut *connection)
        .await?;
    let exhausted = i64::try_from(drawn.len()).unwrap_or(i64::MAX) < wanted;
    if exhausted {
        cut(&mut served, drawn.len());
    }
    write(run, connection, &served, &drawn, rules.max_per_user).await?;
    if let Some((_, last)) = drawn.last() {
        draw.advance(*last);
        draw.save(connection).await?;
    }
    Ok(match (exhausted, more || !whole) {
        (true, _) => Progress::Exhausted,
        (false, true) => Progress::More,
        (false, false) => Progress::Over,
    })
}

/// Judges people in their order until the step is full; says whether all of them were.
fn judge(
    mode: Mode,
    per_user: Option<i32>,
    max_per_user: Option<i64>,
    waiting: Vec<Waiting>,
) -> (Vec<Served>, bool) {
    let (mut served, mut coupons) = (Vec::with_capacity(waiting.len()), 0);
    for person in waiting {
        let held = i64::from(person.held);
        let due = i64::from(person.wanted - person.assigned);
        let allowed = max_per_user.map_or(i64::MAX, |max| (max - held).max(0));
        let missing = match (mode, per_user) {
            (Mode::TopUp, Some(per_user)) => (i64::from(per_user) - held).clamp(0, due),
            _ => due,
        };
        let (share, reason) = if person.disabled {
            (0, Some(Reason::Disabled))
        } else if missing == 0 {
            (0, Some(Reason::Ineligible))
        } else if mode == Mode::Random && allowed < missing {
            (allowed, Some(Reason::LimitReached))
        } else if allowed < missing {
            (0, Some(Reason::LimitReached))
        } else {
            (missing, (missing < due).then_some(Reason::Ineligible))
        };
        let space = STEP_COUPONS - coupons;
        if share > space && !served.is_empty() {
            return (served, false);
        }
        // Only a share of mode random can be larger than a step.
        let in_part = share > space;
        let share = share.min(space);
        coupons += share;
        served.push(Served {
            place: person.place,
            user_id: person.user_id,
            due,
            share,
            reason: if in_part { None } else { reason },
            in_part,
            first: person.assigned == 0,
        });
        if in_part {
            return (served, false);
        }
    }
    (served, true)
}

/// Lets the shares end with the coupons.
fn cut(served: &mut Vec<Served>, coupons: usize) {
    let mut left = i64::try_from(coupons).unwrap_or(i64::MAX);
    for person in served {
        if person.share > left {
            person.share = left;
            person.reason = Some(Reason::Shortage);
            person.in_part = false;
        }
        left -= person.share;
    }
}

async fn write(
    run: &mut Run,
    connection: &mut PgConnection,
    served: &[Served],
    drawn: &[(String, i64)],
    max_per_user: Option<i64>,
) -> Result<()> {
    let mut holders: Vec<Uuid> = Vec::with_capacity(drawn.len());
    let (mut places, mut users, mut added) = (Vec::new(), Vec::new(), Vec::new());
    let (mut states, mut reasons) = (Vec::new(), Vec::new());
    let (mut items, mut entries) = (Vec::new(), Vec::new());
    let first_seq = run.assigned;
    for person in served {
        holders.extend(std::iter::repeat_n(
            person.user_id,
            usize::try_from(person.share).unwrap_or(0),
        ));
        places.push(person.place);
        users.push(person.user_id);
        added.push(i32::try_from(person.share).unwrap_or(i32::MAX));
        states.push(match person.reason {
            _ if person.in_part => "planned",
            Some(_) => "short",
            None => "given",
        });
        reasons.push(person.reason.map(Reason::as_str));
        run.assigned += person.share;
        run.recipients += i64::from(person.first && person.share > 0);
        (run.next_place, run.next_user_id) = (person.place, person.user_id);
        if person.in_part {
            continue;
        }
        run.served += 1;
        let Some(reason) = person.reason else { continue };
        let missing = person.due - person.share;
        match reason {
            Reason::Shortage => run.shortfall += missing,
            _ => run.withheld += missing,
        }
        run.count(reason, 1);
        items.push(run.served);
        entries.push(serde_json::json!({
            "item": run.served, "user_id": person.user_id, "reason": reason.as_str(), "detail": reason.detail(),
        }));
    }
    let mut given: Vec<(&str, i64, Uuid, i64)> = drawn
        .iter()
        .zip(holders)
        .zip(first_seq + 1..)
        .map(|(((key, draw_key), holder), seq)| (key.as_str(), *draw_key, holder, seq))
        .collect();
    given.sort_unstable();
    let (mut keys, mut draw_keys) = (Vec::new(), Vec::new());
    let (mut holders, mut seqs) = (Vec::new(), Vec::new());
    for (key, draw_key, holder, seq) in given {
        keys.push(key);
        draw_keys.push(draw_key);
        holders.push(holder);
        seqs.push(seq);
    }
    let takers = served.iter().filter(|person| person.share > 0).count();
    let expected = [drawn.len(), takers, served.len()].map(|count| i64::try_from(count).unwrap_or(i64::MAX));
    join_by_hash(connection, true).await?;
    let (coupons, allowances, written): (i64, i64, i64) = sqlx::query_as(GIVE)
        .bind(run.book_id)
        .bind(run.id)
        .bind(keys)
        .bind(draw_keys)
        .bind(holders)
        .bind(seqs)
        .bind(&run.created_by_kind)
        .bind(run.created_by)
        .bind(run.job_id)
        .bind(run.request_id.as_deref())
        .bind(places)
        .bind(users)
        .bind(added)
        .bind(states)
        .bind(reasons)
        .bind(max_per_user)
        .fetch_one(&mut *connection)
        .await?;
    join_by_hash(connection, false).await?;
    if [coupons, allowances, written] != expected {
        // Everything was locked and judged; anything else is a fault, and the whole step is rolled back.
        return Err(sqlx::Error::Protocol(
            "a distribution met rows that had changed under their locks".into(),
        )
        .into());
    }
    if !items.is_empty() {
        sqlx::query(
            "INSERT INTO job_errors (job_id, seq, entry) SELECT $1, * FROM unnest($2::bigint[], $3::jsonb[])",
        )
        .bind(run.job_id)
        .bind(items)
        .bind(entries)
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Has the statements that follow join by hash. The planner takes a distribution that was never analysed for a row or
/// two, and would compare each of thousands of items with each of thousands of given values.
pub(super) async fn join_by_hash(connection: &mut PgConnection, on: bool) -> Result<()> {
    let sql = if on {
        "SET LOCAL enable_nestloop = off"
    } else {
        "SET LOCAL enable_nestloop = on"
    };
    sqlx::raw_sql(sql).execute(connection).await?;
    Ok(())
}
