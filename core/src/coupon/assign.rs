//! Assignment: binding coupons to users, many jobs of one book in a few statements.
//!
//! Invariant: under the lock of the book's draw the jobs of a batch are decided one after another, in order, exactly as
//! if each had run alone; then everything is written at once. Locks are taken in the order that all others keep:
//! draw, given coupons, allowances, drawn coupons.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Coupon, CouponRow, State, coupon_columns, draw::DrawState};
use crate::{
    error::{Code, Refusal, Result},
    job::payload::{AssignCoupons, Wanted},
};

/// One job of a batch: its id and what it asks.
pub type Request = (Uuid, AssignCoupons);

/// What came of one job: its coupons, or why it got none.
pub type Answer = Result<Vec<Coupon>, Refusal>;

/// Decides and writes assignments of one book; gives an answer for each request, in order.
///
/// # Errors
/// When the database fails; refusals are answers.
///
/// # Panics
/// When a request is about another book.
pub async fn assign(
    connection: &mut PgConnection,
    book_id: Uuid,
    requests: &[Request],
) -> Result<Vec<Answer>> {
    assert!(
        requests.iter().all(|(_, request)| request.book_id == book_id),
        "a batch is about one book"
    );
    let draw = match DrawState::lock(connection, book_id).await {
        Ok(draw) => draw,
        Err(crate::Error::Refused(refusal)) => return Ok(vec![Err(refusal); requests.len()]),
        Err(error) => return Err(error),
    };
    let given = GivenCoupon::lock_all(connection, book_id, requests).await?;
    let situation = Situation::lock(connection, &draw, requests, given.len()).await?;
    let mut plan = Plan {
        given,
        held: situation.held,
        drawn: situation.drawn,
        last_drawn: None,
        writes: Writes::default(),
    };

    let mut decided = Vec::with_capacity(requests.len());
    for (job_id, request) in requests {
        decided.push(plan.decide(*job_id, request, &situation.book, &situation.barred));
    }

    let coupons = plan.writes.apply(connection, book_id, plan.last_drawn).await?;
    Ok(decided
        .into_iter()
        .map(|keys| Ok(keys?.iter().filter_map(|key| coupons.get(key).cloned()).collect()))
        .collect())
}

impl AssignCoupons {
    fn draws(&self) -> i64 {
        match self.wanted {
            Wanted::Draw(count) => i64::from(count),
            Wanted::Code(_) => 0,
        }
    }
}

/// What of the book's configuration decides, as columns of [`RulesRow`].
macro_rules! book_rules {
    () => {
        "b.status = 'active' AS active, coalesce(b.starts_at <= now(), true) AS started,
         coalesce(b.ends_at <= now(), false) AS ended, b.max_assignments_per_user"
    };
}

/// What of the book's configuration decides.
pub(crate) struct BookRules {
    /// Why nothing moves, if so.
    pub(crate) closed: Option<Refusal>,
    /// Coupons a user may be given.
    pub(crate) max_per_user: Option<i64>,
}

impl BookRules {
    pub(crate) async fn read(connection: &mut PgConnection, book_id: Uuid) -> Result<Self> {
        let row: RulesRow =
            sqlx::query_as(concat!("SELECT ", book_rules!(), " FROM books b WHERE b.id = $1"))
                .bind(book_id)
                .fetch_one(connection)
                .await?;
        Ok(row.into())
    }
}

#[derive(sqlx::FromRow)]
struct RulesRow {
    active: bool,
    started: bool,
    ended: bool,
    max_assignments_per_user: Option<i32>,
}

impl From<RulesRow> for BookRules {
    fn from(row: RulesRow) -> Self {
        let closed = if !row.active {
            Some((Code::BookNotActive, "The book is a draft, paused or archived."))
        } else if !row.started {
            Some((Code::BookNotStarted, "The book has not started yet."))
        } else if row.ended {
            Some((Code::BookEnded, "The book has ended."))
        } else {
            None
        };
        Self {
            closed: closed.map(|(code, detail)| Refusal::new(code, detail)),
            max_per_user: row.max_assignments_per_user.map(i64::from),
        }
    }
}

/// A coupon that some job names, locked.
#[derive(sqlx::FromRow)]
struct GivenCoupon {
    code_key: String,
    state: String,
    assigned_user_id: Option<Uuid>,
    expired: bool,
}

impl GivenCoupon {
    async fn lock_all(
        connection: &mut PgConnection,
        book_id: Uuid,
        requests: &[Request],
    ) -> Result<HashMap<String, Self>> {
        let keys: BTreeSet<&str> = requests
            .iter()
            .filter_map(|(_, request)| match &request.wanted {
                Wanted::Code(key) => Some(key.as_str()),
                Wanted::Draw(_) => None,
            })
            .collect();
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let rows: Vec<Self> = sqlx::query_as(
            "SELECT code_key, state, assigned_user_id, coalesce(expires_at <= now(), false) AS expired
             FROM coupons WHERE book_id = $1 AND code_key = ANY($2::text[])
             ORDER BY code_key FOR UPDATE",
        )
        .bind(book_id)
        .bind(keys.into_iter().collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
        Ok(rows.into_iter().map(|row| (row.code_key.clone(), row)).collect())
    }
}

/// The draw: from the cursor upwards along the partial index, never a sort. A coupon past its own time is passed over.
macro_rules! draw {
    () => {
        "SELECT code_key, draw_key FROM coupons
         WHERE book_id = $1 AND state LIKE 'unassigned' AND draw_key >= $2 AND (expires_at IS NULL OR expires_at > now())
         ORDER BY draw_key LIMIT $3 FOR UPDATE"
    };
}

/// The next coupons of the draw of a book ($1) from the cursor ($2), so many ($3) at most, locked.
pub const DRAW: &str = draw!();

/// What decides a batch, in one look: the book's rules; how many of its coupons everybody ($4) holds who holds any, locked
/// in the order of their ids; who may not get any (disabled, or unknown); the next coupons of the draw, as [`DRAW`].
pub const SITUATION: &str = concat!(
    "WITH held AS (
         SELECT user_id, assigned_count FROM user_allowances
         WHERE book_id = $1 AND user_id = ANY($4::uuid[]) ORDER BY user_id FOR UPDATE),
     next AS (",
    draw!(),
    ")
     SELECT ",
    book_rules!(),
    ", h.*, n.*,
         ARRAY(SELECT w.id FROM unnest($4::uuid[]) AS w (id) LEFT JOIN users u ON u.id = w.id
               WHERE u.id IS NULL OR u.disabled_at IS NOT NULL) AS barred
     FROM books b,
          (SELECT coalesce(array_agg(user_id), '{}') AS holders, coalesce(array_agg(assigned_count), '{}') AS held FROM held) AS h,
          (SELECT coalesce(array_agg(code_key ORDER BY draw_key), '{}') AS keys,
                  coalesce(array_agg(draw_key ORDER BY draw_key), '{}') AS places FROM next) AS n
     WHERE b.id = $1"
);

#[derive(sqlx::FromRow)]
struct SituationRow {
    #[sqlx(flatten)]
    rules: RulesRow,
    holders: Vec<Uuid>,
    held: Vec<i32>,
    barred: Vec<Uuid>,
    keys: Vec<String>,
    places: Vec<i64>,
}

/// What decides a batch, locked.
struct Situation {
    book: BookRules,
    /// How many coupons of the book everybody holds who has a row of allowances; nobody else holds any, and nobody can make
    /// such a row meanwhile, since assignments hold the draw.
    held: HashMap<Uuid, i64>,
    /// Who may not get anything: disabled, or unknown.
    barred: HashSet<Uuid>,
    /// The next coupons of the draw. Fewer than wanted means that there are no more.
    drawn: VecDeque<(String, i64)>,
}

impl Situation {
    /// `given` coupons may be given away by name before they are drawn, so there must be as many more.
    async fn lock(
        connection: &mut PgConnection,
        draw: &DrawState,
        requests: &[Request],
        given: usize,
    ) -> Result<Self> {
        let users: BTreeSet<Uuid> = requests.iter().map(|(_, request)| request.user_id).collect();
        let draws: i64 = requests.iter().map(|(_, request)| request.draws()).sum();
        let wanted = match draws {
            0 => 0,
            draws => draws.saturating_add(i64::try_from(given).unwrap_or(i64::MAX)),
        };
        let row: SituationRow = sqlx::query_as(SITUATION)
            .bind(draw.book_id())
            .bind(draw.cursor())
            .bind(wanted)
            .bind(users.into_iter().collect::<Vec<_>>())
            .fetch_one(connection)
            .await?;
        Ok(Self {
            book: row.rules.into(),
            held: row
                .holders
                .into_iter()
                .zip(row.held.into_iter().map(i64::from))
                .collect(),
            barred: row.barred.into_iter().collect(),
            drawn: row.keys.into_iter().zip(row.places).collect(),
        })
    }
}

/// The batch while it is being decided.
struct Plan {
    given: HashMap<String, GivenCoupon>,
    held: HashMap<Uuid, i64>,
    drawn: VecDeque<(String, i64)>,
    last_drawn: Option<i64>,
    writes: Writes,
}

impl Plan {
    /// The keys of the coupons that a request gets, or its refusal.
    fn decide(
        &mut self,
        job_id: Uuid,
        request: &AssignCoupons,
        book: &BookRules,
        barred: &HashSet<Uuid>,
    ) -> Result<Vec<String>, Refusal> {
        let user = request.user_id;
        if let Wanted::Code(key) = &request.wanted {
            let coupon = self.given.get(key).ok_or_else(Refusal::not_found)?;
            let holds = coupon.assigned_user_id == Some(user);
            if holds && matches!(State::parse(&coupon.state), Some(State::Assigned | State::Locked)) {
                self.writes.read.push(key.clone());
                return Ok(vec![key.clone()]); // idempotent: nothing changes
            }
            if request.as_user && coupon.assigned_user_id.is_some() && !holds {
                return Err(Refusal::not_found()); // another's coupon looks like none
            }
        }
        if barred.contains(&user) {
            return Err(Refusal::new(
                Code::UserDisabled,
                "The user's account is disabled.",
            ));
        }
        if let Some(refusal) = &book.closed {
            return Err(refusal.clone());
        }
        let count = match &request.wanted {
            Wanted::Draw(count) => i64::from(*count),
            Wanted::Code(key) => {
                let coupon = self.given.get(key).ok_or_else(Refusal::not_found)?;
                match State::parse(&coupon.state) {
                    Some(State::Unassigned) if coupon.expired => {
                        return Err(Refusal::new(Code::CouponExpired, "The coupon has expired."));
                    }
                    Some(State::Unassigned) => 1,
                    Some(State::Assigned | State::Locked) => {
                        return Err(Refusal::new(
                            Code::AlreadyAssigned,
                            "Somebody else holds this coupon.",
                        ));
                    }
                    _ => {
                        return Err(Refusal::new(
                            Code::InvalidState,
                            format!("The coupon is {}.", coupon.state),
                        ));
                    }
                }
            }
        };
        let held = self.held.get(&user).copied().unwrap_or(0);
        if book.max_per_user.is_some_and(|max| held + count > max) {
            return Err(Refusal::new(
                Code::AssignmentLimitReached,
                "The user would hold more coupons of this book than it allows.",
            ));
        }
        let keys = match &request.wanted {
            Wanted::Code(key) => {
                if let Some(coupon) = self.given.get_mut(key) {
                    coupon.state = State::Assigned.as_str().to_owned();
                    coupon.assigned_user_id = Some(user);
                }
                // A coupon that is given away by name leaves the draw.
                self.drawn.retain(|(drawn, _)| drawn != key);
                vec![key.clone()]
            }
            Wanted::Draw(_) => {
                let taken = usize::try_from(count).unwrap_or(usize::MAX);
                if self.drawn.len() < taken {
                    return Err(Refusal::new(
                        Code::BookExhausted,
                        if self.drawn.is_empty() {
                            "No unassigned coupon is left in the book."
                        } else {
                            "Fewer unassigned coupons are left in the book than were asked for; nothing was assigned."
                        },
                    ));
                }
                let mut keys = Vec::with_capacity(taken);
                for (key, place) in self.drawn.drain(..taken) {
                    self.last_drawn = Some(place);
                    if let Some(coupon) = self.given.get_mut(&key) {
                        coupon.state = State::Assigned.as_str().to_owned();
                        coupon.assigned_user_id = Some(user);
                    }
                    keys.push(key);
                }
                keys
            }
        };
        self.held.insert(user, held + count);
        for key in &keys {
            self.writes.push(job_id, request, key);
        }
        Ok(keys)
    }
}

/// What a batch writes: coupons, their events, the allowances, and where the draw stands then ($11), in one statement.
pub const ASSIGN: &str = concat!(
    "WITH o AS (
         SELECT * FROM unnest($2::text[], $3::uuid[], $4::text[], $5::uuid[], $6::uuid[], $7::text[], $10::bool[])
             AS o (code_key, user_id, actor_kind, actor_id, job_id, request_id, given)),
     c AS (
         UPDATE coupons c
         SET state = 'assigned', assigned_user_id = o.user_id, assigned_at = now(), updated_at = now(),
             valid_until = now() + make_interval(days => b.valid_days_after_assignment)
         FROM o, books b
         WHERE c.book_id = $1 AND b.id = $1 AND c.code_key = o.code_key AND c.state = 'unassigned'
           -- Says the same again, so that the primary key is used even where the table was never analysed.
           AND c.code_key = ANY($2::text[])
         RETURNING c.*, o.actor_kind, o.actor_id, o.job_id, o.request_id, o.given),
     recorded AS (
         INSERT INTO events (book_id, id, actor_kind, actor_id, job_id, kind, code_key, request_id, before, after)
         SELECT $1, uuid_v7(), c.actor_kind, c.actor_id, c.job_id, 'coupon_assigned', c.code_key, c.request_id,
                '{\"state\": \"unassigned\"}'::jsonb,
                -- A proof tells those that were drawn from those that were given by name.
                CASE WHEN c.given THEN jsonb_build_object('state', 'assigned', 'user_id', c.assigned_user_id, 'given', true)
                     ELSE jsonb_build_object('state', 'assigned', 'user_id', c.assigned_user_id) END
         FROM c),
     counted AS (
         INSERT INTO user_allowances AS a (book_id, user_id, assigned_count)
         SELECT $1, n.user_id, n.added FROM unnest($8::uuid[], $9::int[]) AS n (user_id, added) ORDER BY n.user_id
         ON CONFLICT (book_id, user_id) DO UPDATE SET assigned_count = a.assigned_count + excluded.assigned_count),
     moved AS (UPDATE draw_states SET cursor = greatest(cursor, $11) WHERE book_id = $1 AND $11::bigint IS NOT NULL)
     SELECT ",
    coupon_columns!(),
    " FROM c"
);

/// What a batch writes, each column an array for one `unnest`.
#[derive(Default)]
struct Writes {
    keys: Vec<String>,
    users: Vec<Uuid>,
    actor_kinds: Vec<&'static str>,
    actors: Vec<Option<Uuid>>,
    jobs: Vec<Uuid>,
    requests: Vec<Option<String>>,
    given: Vec<bool>,
    added: BTreeMap<Uuid, i32>,
    read: Vec<String>,
}

impl Writes {
    fn push(&mut self, job_id: Uuid, request: &AssignCoupons, key: &str) {
        self.keys.push(key.to_owned());
        self.users.push(request.user_id);
        self.actor_kinds.push(request.actor.kind.as_str());
        self.actors.push(request.actor.id);
        self.jobs.push(job_id);
        self.requests.push(request.request_id.clone());
        self.given.push(matches!(request.wanted, Wanted::Code(_)));
        *self.added.entry(request.user_id).or_default() += 1;
    }

    /// Writes coupons, events, allowances and the last key drawn; gives the coupons by key.
    async fn apply(
        self,
        connection: &mut PgConnection,
        book_id: Uuid,
        last_drawn: Option<i64>,
    ) -> Result<HashMap<String, Coupon>> {
        let mut coupons = HashMap::with_capacity(self.keys.len() + self.read.len());
        if !self.keys.is_empty() {
            let expected = self.keys.len();
            let (users, added): (Vec<Uuid>, Vec<i32>) = self.added.into_iter().unzip();
            let rows: Vec<CouponRow> = sqlx::query_as(ASSIGN)
                .bind(book_id)
                .bind(self.keys)
                .bind(self.users)
                .bind(self.actor_kinds)
                .bind(self.actors)
                .bind(self.jobs)
                .bind(self.requests)
                .bind(users)
                .bind(added)
                .bind(self.given)
                .bind(last_drawn)
                .fetch_all(&mut *connection)
                .await?;
            if rows.len() != expected {
                // The rows were locked and unassigned; anything else is a fault, and the whole batch is rolled back.
                return Err(sqlx::Error::Protocol(
                    "an assignment met a coupon that had changed under its lock".into(),
                )
                .into());
            }
            coupons.extend(rows.into_iter().map(|row| (row.key().to_owned(), row.into())));
        }
        let unread: Vec<String> = self
            .read
            .into_iter()
            .filter(|key| !coupons.contains_key(key))
            .collect();
        if !unread.is_empty() {
            let rows: Vec<CouponRow> = sqlx::query_as(concat!(
                "SELECT ",
                coupon_columns!(),
                " FROM coupons c WHERE c.book_id = $1 AND c.code_key = ANY($2::text[])"
            ))
            .bind(book_id)
            .bind(unread)
            .fetch_all(connection)
            .await?;
            coupons.extend(rows.into_iter().map(|row| (row.key().to_owned(), row.into())));
        }
        Ok(coupons)
    }
}
