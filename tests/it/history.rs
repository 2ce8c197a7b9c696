//! The checker of histories, checked: a true one passes, and every planted fault is caught.
//!
//! The faults are those that a service would show which forgot a lock, read a limit before it wrote it, acknowledged
//! outside of its transaction, asked the process for the time, or tried again without a key.

use std::{sync::Arc, time::Duration};

use coupon_tests::{
    Service,
    history::{Call, Deed, History, Manner, Saw},
    seed,
};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::truth::{self, broken};

const INSISTING: Manner = Manner::Insisting(Duration::from_secs(20));

/// A service on which a few clients have done everything that is noted.
struct Scene {
    service: Service,
    history: Arc<History>,
}

impl Scene {
    async fn new() -> Self {
        let service = Service::start().await;
        let admin = service.admin().await;
        let members =
            json!({ "redemptions_per_coupon": 3, "max_assignments_per_user": 2, "lock_seconds": 60 });
        let book_id = admin.book(members).await;
        admin.codes(book_id, &seed::codes(30)).await;
        let users = seed::users(&service.db, 8).await;
        let history = Arc::new(History::default());
        let mut lanes = Vec::new();
        for user_id in users {
            let (history, client) = (Arc::clone(&history), admin.on_own_connection());
            lanes.push(tokio::spawn(async move {
                // The second is one too many: the job fails.
                for count in [1, 2, 1] {
                    let deed = Deed::Assign(book_id, user_id, count);
                    let Saw::Done(job) = history.call(&client, deed, INSISTING).await else {
                        panic!("it is accepted");
                    };
                    client.job_end(job["id"].as_str().expect("an id")).await;
                }
            }));
        }
        for lane in lanes.drain(..) {
            lane.await.expect("a client");
        }
        // Three at the same few codes.
        let page = admin
            .get(&format!("/v1/books/{book_id}/coupons?state=assigned&limit=4"))
            .await;
        let page = page.expect(200);
        let codes = page["data"].as_array().expect("coupons");
        let codes: Vec<String> = codes
            .iter()
            .map(|coupon| coupon["code"].as_str().expect("a code").to_owned())
            .collect();
        for lane in 0..3 {
            let (history, client) = (Arc::clone(&history), admin.on_own_connection());
            let codes = codes.clone();
            lanes.push(tokio::spawn(async move {
                for (round, code) in codes.iter().cycle().take(24).enumerate() {
                    let lock = Deed::Lock(book_id, code.clone());
                    let Saw::Done(lock) = history.call(&client, lock, INSISTING).await else {
                        continue;
                    };
                    let token = lock["lock_token"].as_str().expect("a token").to_owned();
                    let next = if (round + lane) % 3 == 0 {
                        Deed::Redeem(book_id, code.clone(), token)
                    } else {
                        Deed::Unlock(book_id, code.clone(), token)
                    };
                    history.call(&client, next, Manner::Once).await;
                }
            }));
        }
        for lane in lanes {
            lane.await.expect("a client at the till");
        }
        truth::all_jobs_end(service.db.pool(), truth::PATIENCE).await;
        Self { service, history }
    }

    /// What is found wrong after this change of the rows and of the calls; the rows are as before afterwards.
    async fn with(&self, sql: &'static str, change: impl FnOnce(&mut Vec<Call>)) -> Vec<String> {
        let mut calls = self.history.calls();
        change(&mut calls);
        let changed = History::default();
        calls.into_iter().for_each(|call| changed.note(call));
        let mut tx = self.service.db.begin().await.expect("a transaction");
        sqlx::raw_sql(sql).execute(&mut *tx).await.expect(sql);
        let faults = all(&changed, &mut tx).await;
        tx.rollback().await.expect("rolled back");
        faults
    }
}

/// What the checker of histories and the promises say.
async fn all(history: &History, connection: &mut PgConnection) -> Vec<String> {
    let mut faults = history.faults(connection).await;
    faults.extend(broken(connection).await);
    faults
}

/// The first call that was done and is of this sort.
fn done(calls: &mut [Call], is: fn(&Deed) -> bool) -> &mut Call {
    calls
        .iter_mut()
        .find(|call| is(&call.deed) && matches!(call.saw, Saw::Done(_)))
        .expect("one of them was done")
}

fn is_lock(deed: &Deed) -> bool {
    matches!(deed, Deed::Lock(..))
}

fn is_redeem(deed: &Deed) -> bool {
    matches!(deed, Deed::Redeem(..))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_true_history_passes_and_every_planted_fault_is_caught() {
    let scene = Scene::new().await;
    let as_it_is = scene.with("SELECT", |_| {}).await;
    assert!(as_it_is.is_empty(), "{as_it_is:#?}");
    let calls = scene.history.calls();
    let some = |is: fn(&Saw) -> bool| calls.iter().any(|call| is_lock(&call.deed) && is(&call.saw));
    assert!(
        some(|saw| matches!(saw, Saw::Done(_))) && calls.iter().any(|call| is_redeem(&call.deed)),
        "nothing happened"
    );

    // In the database.
    for (fault, sql, said) in [
        (
            "no lock on the row: one code for two",
            "UPDATE jobs SET result = o.result FROM jobs o
             WHERE jobs.id = (SELECT id FROM jobs WHERE kind = 'assign' AND state = 'succeeded' ORDER BY id LIMIT 1)
                 AND o.id = (SELECT id FROM jobs WHERE kind = 'assign' AND state = 'succeeded' ORDER BY id DESC LIMIT 1)",
            "no code was given by two jobs",
        ),
        (
            "a limit that is read and then written",
            "UPDATE books SET max_assignments_per_user = 1",
            "nobody holds more than the book allows",
        ),
        (
            "acknowledged outside of the transaction: the result is there and the effect is not",
            "UPDATE coupons SET state = 'unassigned', assigned_user_id = NULL, assigned_at = NULL, draw_key = 1
             WHERE code_key = (SELECT max(code_key) FROM coupons WHERE state = 'assigned' AND redemptions_used = 0)",
            "what a job gave is held by its user",
        ),
        (
            "tried again without a key: a use twice",
            "INSERT INTO redemptions (book_id, id, user_id, redeemed_by, code_key, code)
             SELECT book_id, uuid_v7(), user_id, redeemed_by, code_key, code FROM redemptions LIMIT 1",
            "uses are redemptions",
        ),
        (
            "more uses than the coupon has",
            "INSERT INTO redemptions (book_id, id, user_id, redeemed_by, code_key, code)
             SELECT book_id, uuid_v7(), user_id, redeemed_by, code_key, code FROM redemptions, generate_series(1, 3)",
            "more than 3 times",
        ),
        (
            "a transition without its event",
            "DELETE FROM events WHERE id = (SELECT id FROM events WHERE kind = 'coupon_redeemed' LIMIT 1)",
            "every redemption has one event",
        ),
        (
            "an event without its transition",
            "INSERT INTO events (book_id, id, actor_kind, kind, code_key, before, after)
             SELECT book_id, uuid_v7(), 'system', 'coupon_voided', code_key, '{\"state\": \"unassigned\"}', '{\"state\": \"void\"}'
             FROM coupons WHERE state = 'unassigned' LIMIT 1",
            "by the trail it is void",
        ),
        (
            "a code that is lost",
            "DELETE FROM coupons WHERE code_key = (SELECT min(code_key) FROM coupons WHERE state = 'unassigned')",
            "29 are there",
        ),
        (
            "an accepted job that never ends",
            "UPDATE jobs SET state = 'queued', finished_at = NULL
             WHERE id = (SELECT id FROM jobs WHERE kind = 'assign' AND state = 'failed' LIMIT 1)",
            "has not ended",
        ),
        (
            "an accepted job that is lost",
            "DELETE FROM jobs WHERE id = (SELECT id FROM jobs WHERE kind = 'assign' AND state = 'failed' LIMIT 1)",
            "there are []",
        ),
    ] {
        caught(fault, &scene.with(sql, |_| {}).await, said);
    }

    // In what clients saw.
    type Change = fn(&mut Vec<Call>);
    let planted: [(&str, Change, &str); 6] = [
        (
            "refused, and done all the same: a lock",
            |calls| done(calls, is_lock).saw = Saw::Refused("coupon_locked".to_owned()),
            "has these effects",
        ),
        (
            "refused, and done all the same: a use",
            |calls| done(calls, is_redeem).saw = Saw::Refused("lock_expired".to_owned()),
            "has these effects",
        ),
        (
            "acknowledged, and lost",
            |calls| done(calls, is_redeem).saw = Saw::Done(json!({ "id": Uuid::nil() })),
            "that is not there",
        ),
        (
            "an effect that nobody asked for",
            |calls| {
                let request_id = done(calls, is_lock).request_id.clone();
                calls.retain(|call| call.request_id != request_id);
            },
            "nobody asked for",
        ),
        (
            "one key for two requests",
            |calls| calls[0].request_id = calls[1].request_id.clone(),
            "there are []",
        ),
        (
            // As if the first lock had not been given back; it lasts a minute, and others come after it.
            "the process's clock: a lock that is given while another is held",
            |calls| {
                let Saw::Done(lock) = done(calls, is_lock).saw.clone() else {
                    return;
                };
                calls.retain(|call| match &call.deed {
                    Deed::Unlock(_, _, token) | Deed::Redeem(_, _, token) => {
                        lock["lock_token"] != json!(token)
                    }
                    _ => true,
                });
            },
            "locked twice at a time",
        ),
    ];
    for (fault, change, said) in planted {
        caught(fault, &scene.with("SELECT", change).await, said);
    }
    scene.service.stop().await;
}

#[track_caller]
fn caught(fault: &str, faults: &[String], said: &str) {
    assert!(
        faults.iter().any(|fault| fault.contains(said)),
        "{fault}: {said:?} is not said: {faults:#?}"
    );
}
