//! A coupon as a stage begins with it, an action on it, and what came of that.

use coupon_core::{caller::Role, coupon::lock::hash_token, id};
use coupon_tests::{Client, Service, http::Answer, seed};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{GOOD, LETTERS, LOCK_LEFT, UNKNOWN};

/// How a book and its one coupon begin.
#[derive(Clone, Copy)]
pub(super) struct Stage<'a> {
    pub(super) state: &'a str,
    pub(super) barred: &'a str,
    pub(super) require_lock: bool,
    pub(super) uses: i32,
    pub(super) max_redemptions: Option<i32>,
}

pub(super) const LOCK_WANTED: Stage<'static> = Stage {
    state: "",
    barred: "",
    require_lock: true,
    uses: 1,
    max_redemptions: None,
};

pub(super) const NO_LOCK_WANTED: Stage<'static> = Stage {
    require_lock: false,
    ..LOCK_WANTED
};

pub(super) struct Scene {
    pub(super) service: Service,
    admin: Client,
    holder: (Client, Uuid),
    other: (Client, Uuid),
    disabled: Uuid,
}

/// What an action came to.
enum Came {
    Done(Value),
    Refused(String, Option<Answer>),
}

impl Scene {
    pub(super) async fn start() -> Self {
        let mut service = Service::without_workers().await;
        crate::sweeps::take_all_ticks(&service.db).await;
        service.start_workers();
        let disabled = seed::user(&service.db, Role::User).await;
        sqlx::query("UPDATE users SET disabled_at = now() WHERE id = $1")
            .bind(disabled)
            .execute(service.db.pool())
            .await
            .unwrap();
        Self {
            admin: service.admin().await,
            holder: service.user(Role::User).await,
            other: service.user(Role::User).await,
            disabled,
            service,
        }
    }

    fn holder_id(&self, stage: &Stage<'_>) -> Uuid {
        if stage.barred == "disabled" {
            self.disabled
        } else {
            self.holder.1
        }
    }

    /// A book of its own with one coupon, C-1.
    async fn set(&self, stage: &Stage<'_>) -> Uuid {
        let book_id = id::new();
        let status = match stage.barred {
            barred @ ("draft" | "paused" | "archived") => barred,
            _ => "active",
        };
        sqlx::query(
            "WITH b AS (
                 INSERT INTO books (id, created_by, name, status, starts_at, ends_at, require_lock, redemptions_per_coupon,
                                    max_redemptions_per_user)
                 VALUES ($1, $2, 'A book', $3,
                         CASE $4 WHEN 'unstarted' THEN now() + interval '1 h' WHEN 'ended' THEN now() - interval '2 h' END,
                         CASE $4 WHEN 'ended' THEN now() - interval '1 s' END, $5, $6, $7)),
             d AS (
                 INSERT INTO draw_states (book_id, seed, commitment)
                 VALUES ($1, decode(repeat('07', 32), 'hex'), sha256(decode(repeat('07', 32), 'hex')))),
             a AS (
                 INSERT INTO user_allowances (book_id, user_id, assigned_count, redeemed_count)
                 SELECT $1, $2, 1, CASE WHEN $8 = 'redeemed' OR $7 IS NOT NULL THEN 1 ELSE 0 END
                 WHERE $8 <> 'unassigned'),
             r AS (
                 INSERT INTO redemptions (book_id, id, user_id, redeemed_by, code_key, code, lock_token_hash)
                 SELECT $1, uuid_v7(), $2, $2, 'C1', 'C-1', $9 WHERE $8 = 'redeemed')
             INSERT INTO coupons (book_id, code_key, code, draw_key, redemptions_allowed, redemptions_used, state,
                                  assigned_user_id, assigned_at, lock_token_hash, lock_renewals_left, locked_until,
                                  expires_at, valid_until)
             SELECT $1, 'C1', 'C-1', 5, $6, CASE WHEN $8 = 'redeemed' THEN $6 ELSE 0 END,
                    CASE $8 WHEN 'live' THEN 'locked' WHEN 'lapsed' THEN 'locked' WHEN 'swept' THEN 'assigned' ELSE $8 END,
                    CASE WHEN $8 <> 'unassigned' THEN $2 END, CASE WHEN $8 <> 'unassigned' THEN now() END,
                    CASE WHEN $8 IN ('live', 'lapsed', 'swept', 'redeemed') THEN $9 END,
                    CASE WHEN $8 IN ('live', 'lapsed', 'swept', 'redeemed') THEN 3 END,
                    CASE $8 WHEN 'live' THEN now() + make_interval(secs => $10) WHEN 'lapsed' THEN now() - interval '1 ms' END,
                    CASE WHEN $4 = 'expired' THEN now() - interval '1 s' END,
                    CASE WHEN $4 = 'outlived' THEN now() - interval '1 s' END",
        )
        .bind(book_id)
        .bind(self.holder_id(stage))
        .bind(status)
        .bind(stage.barred)
        .bind(stage.require_lock)
        .bind(stage.uses)
        .bind(stage.max_redemptions)
        .bind(stage.state)
        .bind(hash_token(GOOD))
        .bind(LOCK_LEFT as f64)
        .execute(self.service.db.pool())
        .await
        .unwrap();
        book_id
    }

    /// Everything that the database knows of a book.
    async fn truth(&self, book_id: Uuid) -> Value {
        sqlx::query_scalar(
            "SELECT jsonb_build_object(
                 'coupon', to_jsonb(c),
                 'lasts', extract(epoch FROM c.locked_until - clock_timestamp())::float8,
                 'cursor', (SELECT cursor FROM draw_states d WHERE d.book_id = c.book_id),
                 'allowances', (SELECT jsonb_object_agg(a.user_id, jsonb_build_array(a.assigned_count, a.redeemed_count))
                                FROM user_allowances a WHERE a.book_id = c.book_id),
                 'redemptions', (SELECT jsonb_agg(to_jsonb(r) ORDER BY r.id) FROM redemptions r WHERE r.book_id = c.book_id),
                 'events', (SELECT coalesce(jsonb_agg(to_jsonb(e) ORDER BY e.id), '[]') FROM events e WHERE e.book_id = c.book_id))
             FROM coupons c WHERE c.book_id = $1",
        )
        .bind(book_id)
        .fetch_one(self.service.db.pool())
        .await
        .unwrap()
    }

    async fn act(&self, stage: &Stage<'_>, book_id: Uuid, row: &Row<'_>) -> Came {
        let client = match row.actor {
            "admin" => &self.admin,
            "holder" => &self.holder.0,
            "other" => &self.other.0,
            other => panic!("who is {other}?"),
        };
        if let "draw" | "give" = row.action {
            let user_id = match row.token {
                "holder" => self.holder_id(stage),
                _ => self.other.1,
            };
            let (path, body) = match row.action {
                "draw" => (
                    "/v1/coupons/assign",
                    json!({ "book_id": book_id, "user_id": user_id }),
                ),
                _ => (
                    "/v1/coupons/assign/c%201", // the same code, typed otherwise
                    json!({ "book_id": book_id, "user_id": user_id }),
                ),
            };
            let job = client
                .with("Prefer", "wait=30")
                .post(path, body)
                .await
                .expect(200);
            return match job["state"].as_str() {
                Some("succeeded") => Came::Done(job),
                _ => Came::Refused(job["error"]["code"].as_str().unwrap_or("?").to_owned(), None),
            };
        }
        let mut body = json!({ "book_id": book_id });
        match row.token {
            "-" => {}
            "good" => body["lock_token"] = json!(GOOD),
            _ => body["lock_token"] = json!(UNKNOWN),
        }
        let answer = client
            .post(&format!("/v1/coupons/{}/C-1", row.action), body)
            .await;
        if answer.status == 200 {
            return Came::Done(answer.body);
        }
        let code = answer.body["code"].as_str().unwrap_or("?").to_owned();
        answer.clone().refused(status(&code), &code);
        Came::Refused(code, Some(answer))
    }

    /// Sets the stage, acts, and compares the answer and the database with the cell.
    async fn play(&self, stage: &Stage<'_>, row: &Row<'_>, cell: &str) -> Result<(), String> {
        let book_id = self.set(stage).await;
        let before = self.truth(book_id).await;
        let came = self.act(stage, book_id, row).await;
        let after = self.truth(book_id).await;
        let unchanged = {
            let (mut before, mut after) = (before.clone(), after.clone());
            before["lasts"] = Value::Null;
            after["lasts"] = Value::Null;
            before == after
        };
        let said = match &came {
            Came::Refused(code, _) => code.clone(),
            Came::Done(_) if unchanged => "same".to_owned(),
            Came::Done(_) => format!(
                "{}+{}",
                after["coupon"]["state"].as_str().unwrap_or("?"),
                letters(&after)
            ),
        };
        if said != cell {
            return Err(format!("{cell} was due, but it is {said}"));
        }
        match came {
            Came::Refused(..) if !unchanged => Err(format!("a refusal left {after} of {before}")),
            Came::Refused(code, Some(answer)) if code == "coupon_locked" => {
                let seconds = answer
                    .header("retry-after")
                    .and_then(|value| value.parse::<i64>().ok());
                match seconds {
                    Some(seconds) if (LOCK_LEFT - 60..=LOCK_LEFT).contains(&seconds) => Ok(()),
                    other => Err(format!("Retry-After is {other:?}")),
                }
            }
            Came::Refused(..) => Ok(()),
            Came::Done(answer) => self.check(stage, row, &before, &after, &answer),
        }
    }

    /// What a success must have left, beside the state and the kinds of the events.
    fn check(
        &self,
        stage: &Stage<'_>,
        row: &Row<'_>,
        before: &Value,
        after: &Value,
        answer: &Value,
    ) -> Result<(), String> {
        let holder = self.holder_id(stage).to_string();
        let (was, is) = (&before["coupon"], &after["coupon"]);
        let mut faults = Vec::new();
        let mut same = |what: &str, found: &Value, due: Value| {
            if *found != due {
                faults.push(format!("{what} is {found}, not {due}"));
            }
        };
        // Each event begins where the one before it ended, and the last ends where the coupon is.
        let mut state = was["state"].clone();
        for event in after["events"].as_array().into_iter().flatten() {
            if event["kind"] != "lock_renewed" {
                same("an event's before", &event["before"]["state"], state);
                state = event["after"]["state"].clone();
            }
            let system = event["kind"] == "lock_expired";
            same(
                "an event's actor",
                &json!(event["actor_kind"] == "system"),
                json!(system),
            );
            same(
                "an event's request",
                &json!(event["request_id"].is_string()),
                json!(true),
            );
            same("an event's code", &event["code_key"], json!("C1"));
        }
        if stage.state != "redeemed" && row.action != "give" && *was != *is {
            same("the last event's state", &state, is["state"].clone());
        }
        let seconds = after["lasts"].as_f64().unwrap_or(0.0);
        match row.action {
            "draw" | "give" => {
                let coupon = &answer["result"]["coupons"][0];
                same("the code of the answer", &coupon["code"], json!("C-1"));
                same(
                    "the holder of the answer",
                    &coupon["assigned_user_id"],
                    is["assigned_user_id"].clone(),
                );
            }
            "lock" => {
                same(
                    "the lock's end",
                    &json!((240.0..=300.0).contains(&seconds)),
                    json!(true),
                );
                let renewed = row.token == "good";
                same(
                    "the renewals",
                    &is["lock_renewals_left"],
                    json!(if renewed { 2 } else { 3 }),
                );
                same(
                    "the answer's renewals",
                    &answer["renewals_left"],
                    is["lock_renewals_left"].clone(),
                );
                let token = answer["lock_token"].as_str().unwrap_or("");
                let hash: String = hash_token(token)
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                same(
                    "the token's hash",
                    &is["lock_token_hash"],
                    json!(format!("\\x{hash}")),
                );
                same("the renewed token", &json!(token == GOOD), json!(renewed));
            }
            "unlock" => {
                same("the answer's state", &answer["state"], json!("assigned"));
                same(
                    "the token that stays",
                    &is["lock_token_hash"],
                    was["lock_token_hash"].clone(),
                );
            }
            "redeem" => {
                let redemptions = after["redemptions"].as_array().cloned().unwrap_or_default();
                same("the lines of history", &json!(redemptions.len()), json!(1));
                same("the answer's id", &answer["id"], redemptions[0]["id"].clone());
                same("the answer's holder", &answer["user_id"], json!(holder));
                if stage.state != "redeemed" {
                    same("the uses", &is["redemptions_used"], json!(1));
                    same("the allowance", &after["allowances"][&holder][1], json!(1));
                    same(
                        "the event's redemption",
                        &after["events"].as_array().unwrap().last().unwrap()["after"]["redemption_id"],
                        answer["id"].clone(),
                    );
                }
            }
            other => panic!("what is {other}?"),
        }
        if is["state"] != "locked" {
            same("the deadline", &is["locked_until"], Value::Null);
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("; "))
        }
    }

    /// Plays every cell of a table; fails with all cells that are wrong.
    pub(super) async fn play_all(&self, table: &str, stage: Stage<'_>) {
        let (mut wrong, mut played) = (Vec::new(), 0);
        let mut lines = table.lines().filter(|line| !line.trim().is_empty());
        let (_, heads) = lines
            .next()
            .and_then(|line| line.split_once('|'))
            .expect("a head");
        let heads: Vec<&str> = heads.split_whitespace().collect();
        for line in lines {
            let (words, cells) = line.split_once('|').expect("a row");
            let words: Vec<&str> = words.split_whitespace().collect();
            let cells: Vec<&str> = cells.split_whitespace().collect();
            assert_eq!(cells.len(), heads.len(), "{line}");
            let (state, words) = match words.as_slice() {
                [state, rest @ ..] if rest.len() == 3 => (Some(*state), rest),
                rest => (None, rest),
            };
            let row = Row {
                actor: words[0],
                action: words[1],
                token: words[2],
            };
            for (head, cell) in heads.iter().zip(cells).filter(|(_, cell)| *cell != "-") {
                let stage = match state {
                    Some(state) => Stage {
                        state,
                        barred: head,
                        ..stage
                    },
                    None => Stage { state: head, ..stage },
                };
                played += 1;
                if let Err(fault) = self.play(&stage, &row, cell).await {
                    wrong.push(format!(
                        "{} {} {} {} {}: {fault}",
                        stage.state, stage.barred, row.actor, row.action, row.token
                    ));
                }
            }
        }
        assert!(
            wrong.is_empty(),
            "{} of {played} cells:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
}

struct Row<'a> {
    actor: &'a str,
    action: &'a str,
    token: &'a str,
}

/// The statuses of docs/api.md.
fn status(code: &str) -> u16 {
    match code {
        "not_found" => 404,
        "coupon_locked" => 423,
        "lock_not_owned" => 403,
        "book_ended" | "coupon_expired" => 410,
        _ => 409,
    }
}

fn letters(truth: &Value) -> String {
    let events = truth["events"].as_array().expect("a list");
    events
        .iter()
        .map(|event| {
            let kind = event["kind"].as_str().unwrap_or("");
            LETTERS
                .iter()
                .find(|(_, known)| *known == kind)
                .map_or('?', |(letter, _)| *letter)
        })
        .collect()
}
