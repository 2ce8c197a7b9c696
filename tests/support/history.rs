//! What concurrent clients did and saw, call by call, and whether the database tells the same story.
//!
//! A call ends in one of three ways: it was done, it was refused, or nobody knows (no answer, or 503: the commit may have
//! happened). Every call bears a request id of its own, which the service writes beside what it does, so that each effect
//! has its call and each call its effects.
//!
//! Invariant: whatever is killed, cut or stopped in between, what was done is there once, what was refused is not there,
//! and what is unknown is there once or not at all. To add a check: a function that gives [`Faults`], a line in
//! [`History::faults`], and a planted fault in `tests/it/history.rs` that it catches.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::Client;

/// What is wrong, in sentences.
pub type Faults = Vec<String>;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Deed {
    /// So many coupons of a book for a user.
    Assign(Uuid, Uuid, u32),
    /// A lock of a code, whose token is then in the answer.
    Lock(Uuid, String),
    /// The lock with this token given back.
    Unlock(Uuid, String, String),
    /// A use of a code, by the lock with this token.
    Redeem(Uuid, String, String),
}

/// What a client saw.
#[derive(Debug, Clone)]
pub enum Saw {
    /// It is done: the answer's body.
    Done(Value),
    /// It was refused, with this code.
    Refused(String),
    /// There was no answer, or one that leaves it open.
    Unknown,
}

/// A call, with the times at which it began and ended.
#[derive(Debug, Clone)]
pub struct Call {
    /// `X-Request-Id`.
    pub request_id: String,
    /// What was asked.
    pub deed: Deed,
    /// Since the history's beginning.
    pub began: Duration,
    /// Since the history's beginning.
    pub ended: Duration,
    /// What came of it.
    pub saw: Saw,
}

/// How a client asks.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    /// Once, without a key.
    Once,
    /// With an `Idempotency-Key`, again and again, for so long.
    Insisting(Duration),
}

/// All calls, and how often clients were told to come back or heard nothing.
#[derive(Debug)]
pub struct History {
    zero: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    calls: Vec<Call>,
    unavailable: usize,
    unanswered: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            zero: Instant::now(),
            seen: Mutex::default(),
        }
    }
}

impl Deed {
    fn request(&self) -> (String, Value) {
        match self {
            Self::Assign(book_id, user_id, count) => (
                "/v1/coupons/assign".to_owned(),
                json!({ "book_id": book_id, "user_id": user_id, "count": count }),
            ),
            Self::Lock(book_id, code) => (format!("/v1/coupons/lock/{code}"), json!({ "book_id": book_id })),
            Self::Unlock(book_id, code, token) => (
                format!("/v1/coupons/unlock/{code}"),
                json!({ "book_id": book_id, "lock_token": token }),
            ),
            Self::Redeem(book_id, code, token) => (
                format!("/v1/coupons/redeem/{code}"),
                json!({ "book_id": book_id, "lock_token": token }),
            ),
        }
    }

    /// The event that it leaves, and for a coupon of which code.
    fn event(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Assign(..) => ("coupon_assigned", None),
            Self::Lock(_, code) => ("coupon_locked", Some(code)),
            Self::Unlock(_, code, _) => ("coupon_unlocked", Some(code)),
            Self::Redeem(_, code, _) => ("coupon_redeemed", Some(code)),
        }
    }
}

impl History {
    /// Asks, and notes what came of it.
    pub async fn call(&self, client: &Client, deed: Deed, manner: Manner) -> Saw {
        let request_id = Uuid::now_v7().to_string();
        let (path, body) = deed.request();
        let mut client = client.with("X-Request-Id", &request_id);
        let mut patience = Duration::ZERO;
        if let Manner::Insisting(at_most) = manner {
            client = client.with("Idempotency-Key", &request_id);
            patience = at_most;
        }
        let began = self.zero.elapsed();
        let saw = loop {
            let request = client.request(Method::POST, &path).json(&body);
            match client.try_send(request).await {
                Ok(answer) if answer.status.is_success() => break Saw::Done(answer.body),
                // The first try may still be at work on the other side of a connection that is gone.
                Ok(answer) if answer.status == 503 || answer.body["code"] == "idempotency_in_progress" => {
                    self.seen().unavailable += 1;
                }
                Ok(answer) if answer.status.is_client_error() => {
                    break Saw::Refused(answer.body["code"].as_str().expect("a code").to_owned());
                }
                Ok(answer) => panic!("{}: {}", answer.status, answer.body),
                Err(_) => self.seen().unanswered += 1,
            }
            if self.zero.elapsed() >= began + patience {
                break Saw::Unknown;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        self.note(Call {
            request_id,
            deed,
            began,
            ended: self.zero.elapsed(),
            saw: saw.clone(),
        });
        saw
    }

    /// Adds a call that was made elsewhere.
    pub fn note(&self, call: Call) {
        self.seen().calls.push(call);
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.seen().calls.clone()
    }

    /// How many requests got no answer at all.
    pub fn unanswered(&self) -> usize {
        self.seen().unanswered
    }

    /// A line of figures.
    pub fn summary(&self) -> String {
        let seen = self.seen();
        let count = |is: fn(&Saw) -> bool| seen.calls.iter().filter(|call| is(&call.saw)).count();
        format!(
            "{} calls: {} done, {} refused, {} unknown; told to come back {} times, no answer {} times",
            seen.calls.len(),
            count(|saw| matches!(saw, Saw::Done(_))),
            count(|saw| matches!(saw, Saw::Refused(_))),
            count(|saw| matches!(saw, Saw::Unknown)),
            seen.unavailable,
            seen.unanswered
        )
    }

    /// What of the calls and of the database does not fit together. All work must have ended.
    ///
    /// # Panics
    /// When the database cannot be read.
    pub async fn faults(&self, connection: &mut PgConnection) -> Faults {
        let calls = self.calls();
        let mut faults = Vec::new();
        faults.extend(jobs(&calls, connection).await);
        faults.extend(effects(&calls, connection).await);
        faults.extend(redemptions(&calls, connection).await);
        faults.extend(overlapping_locks(&calls));
        faults.extend(trail(connection).await);
        faults
    }
}

/// Every accepted job is there, of its own request, and has ended; what was refused has none, what is unknown at most one.
async fn jobs(calls: &[Call], connection: &mut PgConnection) -> Faults {
    let rows: Vec<(Uuid, Option<String>, bool)> =
        sqlx::query_as("SELECT id, request_id, finished_at IS NOT NULL FROM jobs WHERE kind = 'assign'")
            .fetch_all(connection)
            .await
            .expect("jobs");
    let mut of_request: HashMap<String, Vec<(Uuid, bool)>> = HashMap::new();
    for (id, request_id, ended) in rows {
        of_request
            .entry(request_id.unwrap_or_default())
            .or_default()
            .push((id, ended));
    }
    let mut faults = Vec::new();
    for call in calls {
        if !matches!(call.deed, Deed::Assign(..)) {
            continue;
        }
        let jobs = of_request.remove(&call.request_id).unwrap_or_default();
        let id = &call.request_id;
        match &call.saw {
            Saw::Done(job) => {
                let known = jobs.iter().any(|(id, _)| job["id"] == id.to_string());
                if !known || jobs.len() != 1 {
                    faults.push(format!("{id}: accepted as {}, there are {jobs:?}", job["id"]));
                }
            }
            Saw::Refused(code) if !jobs.is_empty() => {
                faults.push(format!("{id}: refused with {code}, and a job"))
            }
            Saw::Unknown if jobs.len() > 1 => faults.push(format!("{id}: one request, {} jobs", jobs.len())),
            Saw::Refused(_) | Saw::Unknown => {}
        }
        if jobs.iter().any(|(_, ended)| !ended) {
            faults.push(format!("{id}: its job has not ended"));
        }
    }
    for (request_id, jobs) in of_request {
        faults.push(format!("nobody asked for the jobs {jobs:?} ({request_id})"));
    }
    faults
}

/// Every effect on a coupon is one of a call, of which it may be; every call that was done has its effect, once.
async fn effects(calls: &[Call], connection: &mut PgConnection) -> Faults {
    type Row = (Option<String>, String, String, Option<Uuid>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT e.request_id, e.kind, coalesce(c.code, e.code_key), (e.after ->> 'user_id')::uuid
         FROM events e JOIN coupons c ON c.book_id = e.book_id AND c.code_key = e.code_key
         WHERE e.kind IN ('coupon_assigned', 'coupon_locked', 'coupon_unlocked', 'coupon_redeemed')
             AND e.request_id IS NOT NULL",
    )
    .fetch_all(connection)
    .await
    .expect("events");
    type Effect = (String, String, Option<Uuid>); // kind, code, who is named
    let mut of_request: HashMap<String, Vec<Effect>> = HashMap::new();
    for (request_id, kind, code, user_id) in rows {
        of_request
            .entry(request_id.unwrap_or_default())
            .or_default()
            .push((kind, code, user_id));
    }
    let mut faults = Vec::new();
    for call in calls {
        let effects = of_request.remove(&call.request_id).unwrap_or_default();
        let (kind, code) = call.deed.event();
        let strange = effects.iter().any(|(what, which, holder)| {
            let other_holder = matches!(call.deed, Deed::Assign(_, user_id, _) if *holder != Some(user_id));
            what != kind || code.is_some_and(|code| code != which) || other_holder
        });
        // An assignment's refusal is its job's; a use may be told of again; a lapsed lock is given back without effect.
        let (least, most) = match (&call.saw, &call.deed) {
            (Saw::Refused(_), _) => (0, 0),
            (Saw::Done(_), Deed::Lock(..)) => (1, 1),
            (_, Deed::Assign(_, _, count)) => (0, *count as usize),
            _ => (0, 1),
        };
        if strange || !(least..=most).contains(&effects.len()) {
            faults.push(format!("{call:?} has these effects: {effects:?}"));
        }
    }
    for (request_id, effects) in of_request {
        faults.push(format!("nobody asked for {effects:?} ({request_id})"));
    }
    faults
}

/// Every use that a client was told of is there, of the coupon that it was told; and no coupon has too many.
async fn redemptions(calls: &[Call], connection: &mut PgConnection) -> Faults {
    let rows: Vec<(Uuid, String, i32)> = sqlx::query_as(
        "SELECT r.id, coalesce(c.code, c.code_key), c.redemptions_allowed
         FROM redemptions r JOIN coupons c ON c.book_id = r.book_id AND c.code_key = r.code_key
         WHERE r.kind = 'redemption'
             AND NOT EXISTS (SELECT FROM redemptions b WHERE b.book_id = r.book_id AND b.reverses_id = r.id)",
    )
    .fetch_all(connection)
    .await
    .expect("redemptions");
    let mut uses: HashMap<&str, i32> = HashMap::new();
    let mut faults = Vec::new();
    for (_, code, allowed) in &rows {
        let used = uses.entry(code).or_default();
        *used += 1;
        if *used == allowed + 1 {
            faults.push(format!("{code} is used more than {allowed} times"));
        }
    }
    let there: HashMap<String, &str> = rows
        .iter()
        .map(|(id, code, _)| (id.to_string(), code.as_str()))
        .collect();
    let mut by_token: HashMap<&str, HashSet<&str>> = HashMap::new();
    for call in calls {
        if let (Deed::Redeem(_, code, token), Saw::Done(body)) = (&call.deed, &call.saw) {
            let id = body["id"].as_str().unwrap_or_default();
            if there.get(id) != Some(&code.as_str()) {
                faults.push(format!(
                    "{}: told of a use of {code} that is not there",
                    call.request_id
                ));
            }
            by_token.entry(token).or_default().insert(id);
        }
    }
    if by_token.values().any(|ids| ids.len() > 1) {
        faults.push("a lock was good for two uses".to_owned());
    }
    faults
}

/// No lock was given while another was certainly held: from its answer until it would lapse, or until anybody began to
/// give it back or to use it.
fn overlapping_locks(calls: &[Call]) -> Faults {
    let mut given_back: HashMap<&str, Duration> = HashMap::new();
    for call in calls {
        if let Deed::Unlock(_, _, token) | Deed::Redeem(_, _, token) = &call.deed {
            let first = given_back.entry(token).or_insert(call.began);
            *first = (*first).min(call.began);
        }
    }
    // Of each code: from when and until when it was certainly held, and by which call.
    type Held<'a> = Vec<(Duration, Duration, &'a Call)>;
    let mut held: HashMap<(Uuid, &str), Held<'_>> = HashMap::new();
    for call in calls {
        let (Deed::Lock(book_id, code), Saw::Done(lock)) = (&call.deed, &call.saw) else {
            continue;
        };
        // By the database's clock, at a moment no earlier than the call's beginning.
        let lasts = (time(&lock["locked_until"]) - time(&lock["server_time"]))
            .to_std()
            .unwrap_or_default();
        let token = lock["lock_token"].as_str().unwrap_or_default();
        let until = given_back
            .get(token)
            .copied()
            .unwrap_or(Duration::MAX)
            .min(call.began + lasts);
        held.entry((*book_id, code.as_str()))
            .or_default()
            .push((call.ended, until, call));
    }
    let mut faults = Vec::new();
    for ((_, code), mut locks) in held {
        locks.sort_by_key(|(from, _, _)| *from);
        for (number, (from, until, _)) in locks.iter().enumerate() {
            let later = &locks[number + 1..];
            if later
                .iter()
                .any(|(_, _, other)| other.began >= *from && other.ended <= *until)
            {
                faults.push(format!("{code} was locked twice at a time"));
            }
        }
    }
    faults
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().and_then(|text| text.parse().ok()).expect("a time")
}

/// The trail, told again from its beginning, leads through states that follow one another to the state and the holder
/// that each coupon has; and every code that was ever added is there, in one state.
async fn trail(connection: &mut PgConnection) -> Faults {
    sqlx::query_scalar(
        "WITH told AS (
             SELECT book_id, code_key, id, kind, before ->> 'state' AS was, after ->> 'state' AS state,
                    lag(after ->> 'state', 1, 'unassigned') OVER w AS due
             FROM events WHERE code_key IS NOT NULL AND after ? 'state'
             WINDOW w AS (PARTITION BY book_id, code_key ORDER BY id)),
         last AS (SELECT DISTINCT ON (book_id, code_key) book_id, code_key, state FROM told
                  ORDER BY book_id, code_key, id DESC),
         holder AS (SELECT DISTINCT ON (book_id, code_key) book_id, code_key, (after ->> 'user_id')::uuid AS user_id
                    FROM events WHERE kind = 'coupon_assigned' ORDER BY book_id, code_key, id DESC)
         SELECT format('%s: %s from %s, but it was %s', code_key, kind, was, due) FROM told WHERE was IS DISTINCT FROM due
         UNION ALL
         SELECT format('%s is %s, by the trail it is %s', c.code_key, c.state, l.state)
         FROM coupons c LEFT JOIN last l USING (book_id, code_key) WHERE c.state <> coalesce(l.state, 'unassigned')
         UNION ALL
         SELECT format('%s is held by %s, by the trail by %s', c.code_key, c.assigned_user_id, h.user_id)
         FROM coupons c LEFT JOIN holder h USING (book_id, code_key)
         WHERE c.assigned_user_id IS DISTINCT FROM h.user_id AND c.state <> 'unassigned'
         UNION ALL
         SELECT format('%s codes were added to %s, %s are there', a.added, a.book_id, count(c.code_key))
         FROM (SELECT book_id, sum((after ->> 'count')::bigint) AS added FROM events WHERE kind = 'codes_added' GROUP BY 1) a
         LEFT JOIN coupons c USING (book_id) GROUP BY a.book_id, a.added HAVING count(c.code_key) <> a.added",
    )
    .fetch_all(connection)
    .await
    .expect("the trail")
}
