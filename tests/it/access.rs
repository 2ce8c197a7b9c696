//! Every operation of the document × every caller × own, somebody else's and absent objects. Somebody else's object and
//! no object look exactly alike. An operation that is not in the table fails the test.

mod world;

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{TimeDelta, Utc};
use coupon_core::{caller::Role, id, user::token::TokenKeys};
use coupon_tests::{Client, SECRET, document::Document, http::Answer};
use reqwest::Method;
use serde_json::json;

use self::world::{CALLERS, Caller, Thing, Whose, World};

/// An operation, what it is about, its body, and what each caller gets: one status, or one each for its own, somebody
/// else's and an absent object. `{id}` and `{code}` stand for the object, `{self}` for the caller's account (or, for a
/// key, some account), `{open}` for a book of self-service, `{n}` for a number.
type Row = (&'static str, Thing, &'static str, [&'static str; 6]);

const ADMIN: [&str; 6] = ["403", "200", "403", "403", "403", "200"];
const ADMIN_MAKES: [&str; 6] = ["403", "201", "403", "403", "403", "201"];
const ADMIN_ONE: [&str; 6] = ["403", "200/200/404", "403", "403", "403", "200/200/404"];
const ADMIN_JOB: [&str; 6] = ["403", "202/202/404", "403", "403", "403", "202/202/404"];
const READER: [&str; 6] = ["403", "200", "200", "403", "403", "200"];
const READER_ONE: [&str; 6] = ["403", "200/200/404", "200/200/404", "403", "403", "200/200/404"];
const PERSON: [&str; 6] = ["200", "200", "403", "403", "403", "403"];
const ASSIGN: [&str; 6] = [
    "202/404/404",
    "202/202/404",
    "403",
    "202/202/404",
    "403",
    "202/202/404",
];
const TILL: [&str; 6] = [
    "200/404/404",
    "200/200/404",
    "403",
    "403",
    "200/200/404",
    "200/200/404",
];
const LOOK_UP: [&str; 6] = [
    "200/404/404",
    "200/200/404",
    "200/200/404",
    "403",
    "200/200/404",
    "200/200/404",
];
const JOB: [&str; 6] = [
    "200/404/404",
    "200/200/404",
    "200/200/404",
    "200/404/404",
    "200/404/404",
    "200/200/404",
];
const JOB_CHANGE: [&str; 6] = [
    "202/404/404",
    "202/202/404",
    "403",
    "202/404/404",
    "403",
    "202/202/404",
];

#[rustfmt::skip] // one row, one line
const TABLE: &[Row] = &[
    ("GET /v1/api-keys", Thing::None, "", ADMIN),
    ("POST /v1/api-keys", Thing::None, r#"{"name":"k","scopes":["read"]}"#, ADMIN_MAKES),
    ("DELETE /v1/api-keys/{id}", Thing::Key, "", ["403", "204/204/404", "403", "403", "403", "204/204/404"]),
    ("GET /v1/audit", Thing::None, "", ADMIN),
    ("GET /v1/books", Thing::None, "", ["200", "200", "200", "403", "403", "200"]),
    ("POST /v1/books", Thing::None, r#"{"name":"B"}"#, ADMIN_MAKES),
    ("POST /v1/coupons", Thing::None, r#"{"name":"B"}"#, ADMIN_MAKES),
    ("GET /v1/books/{id}", Thing::Book, "", ["200/404/404", "200/200/404", "200/200/404", "403", "403", "200/200/404"]),
    ("PATCH /v1/books/{id}", Thing::Book, r#"{"description":"D"}"#, ADMIN_ONE),
    ("GET /v1/books/{id}/stats", Thing::Book, "", READER_ONE),
    ("GET /v1/books/{id}/history", Thing::Book, "", READER_ONE),
    ("GET /v1/books/{id}/coupons", Thing::Book, "", READER_ONE),
    ("POST /v1/books/{id}/codes", Thing::Book, r#"{"codes":["L-{n}"]}"#, ADMIN_JOB),
    ("POST /v1/books/{id}/codes/import", Thing::Book, "code\nF-1\n", ADMIN_JOB),
    ("POST /v1/books/{id}/codes/preview", Thing::Book, r#"{"pattern":"P-######","count":1}"#, ADMIN_ONE),
    ("POST /v1/books/{id}/codes/generate", Thing::Book, r#"{"pattern":"G-######","count":1}"#, ADMIN_JOB),
    ("POST /v1/coupons/codes?book_id={id}", Thing::Book, "code\nF-1\n", ADMIN_JOB),
    ("POST /v1/exports", Thing::Book, r#"{"kind":"coupons","book_id":"{id}"}"#, ADMIN_JOB),
    ("GET /v1/exports/{id}/file", Thing::Export, "", ADMIN_ONE),
    ("POST /v1/coupons/assign", Thing::Book, r#"{"book_id":"{id}","user_id":"{self}"}"#, ASSIGN),
    ("POST /v1/coupons/assign", Thing::User, r#"{"book_id":"{open}","user_id":"{id}"}"#, ["202/403/403", "202/202/404", "403", "202/202/404", "403", "202/202/404"]),
    ("POST /v1/coupons/assign/{code}", Thing::Free, r#"{"user_id":"{self}"}"#, ASSIGN),
    ("POST /v1/coupons/assign/{code}", Thing::Held, r#"{"user_id":"{self}"}"#, ASSIGN),
    ("POST /v1/coupons/assign-batch", Thing::Book, r#"{"book_id":"{id}","items":[{"user_id":"{self}"}]}"#, ADMIN_JOB),
    ("POST /v1/coupons/check", Thing::Book, r#"{"book_id":"{id}","code":"X"}"#, ["200/404/404", "200/200/404", "200/200/404", "200/200/404", "200/200/404", "200/200/404"]),
    ("GET /v1/coupons/{code}", Thing::Held, "", LOOK_UP),
    ("GET /v1/coupons/{code}", Thing::Free, "", ["404", "200/200/404", "200/200/404", "403", "200/200/404", "200/200/404"]),
    ("GET /v1/coupons/{code}/events", Thing::Held, "", LOOK_UP),
    ("POST /v1/coupons/lock/{code}", Thing::Held, "{}", TILL),
    ("POST /v1/coupons/lock/{code}", Thing::Held, r#"{"user_id":"{self}"}"#, ["200/404/404", "200/404/404", "403", "403", "404", "404"]),
    ("POST /v1/coupons/unlock/{code}", Thing::Held, "{}", TILL), // of no lock: nothing changes
    ("POST /v1/coupons/redeem/{code}", Thing::Held, "{}", TILL),
    ("POST /v1/coupons/revoke/{code}", Thing::Held, r#"{"reason":"r"}"#, ADMIN_ONE),
    ("POST /v1/coupons/void/{code}", Thing::Held, r#"{"reason":"r"}"#, ADMIN_ONE),
    ("GET /v1/pools", Thing::None, "", ADMIN),
    ("POST /v1/pools", Thing::None, r#"{"name":"P"}"#, ADMIN_MAKES),
    ("GET /v1/pools/{id}", Thing::Pool, "", ADMIN_ONE),
    ("PATCH /v1/pools/{id}", Thing::Pool, r#"{"name":"P"}"#, ADMIN_ONE),
    ("DELETE /v1/pools/{id}", Thing::Pool, "", ["403", "204/204/404", "403", "403", "403", "204/204/404"]),
    ("GET /v1/pools/{id}/members", Thing::Pool, "", ADMIN_ONE),
    ("POST /v1/pools/{id}/members", Thing::Pool, r#"{"user_ids":["{self}"]}"#, ADMIN_ONE),
    ("DELETE /v1/pools/{id}/members", Thing::Pool, r#"{"user_ids":["{self}"]}"#, ADMIN_ONE),
    ("POST /v1/pools/{id}/members/import", Thing::Pool, "email\na@example.com\n", ADMIN_JOB),
    ("GET /v1/distributions", Thing::None, "", ADMIN),
    ("POST /v1/distributions", Thing::Pool, r#"{"book_id":"{open}","pool_id":"{id}","mode":"equal","per_user":1}"#, ADMIN_JOB),
    ("POST /v1/distributions?dry_run=true", Thing::Pool, r#"{"book_id":"{open}","pool_id":"{id}","mode":"equal","per_user":1}"#, ADMIN_ONE),
    ("GET /v1/distributions/{id}", Thing::Distribution, "", ADMIN_ONE),
    ("GET /v1/distributions/{id}/items", Thing::Distribution, "", ADMIN_ONE),
    ("GET /v1/distributions/{id}/items.csv", Thing::Distribution, "", ADMIN_ONE),
    // Nothing of it has run yet.
    ("POST /v1/distributions/{id}/undo", Thing::Distribution, "", ["403", "409/409/404", "403", "403", "403", "409/409/404"]),
    // Its book is not archived, so no seed is revealed.
    ("GET /v1/distributions/{id}/proof", Thing::Distribution, "", ["403", "409/409/404", "403", "403", "403", "409/409/404"]),
    ("GET /v1/schedules", Thing::None, "", ADMIN),
    ("POST /v1/schedules", Thing::Pool, r#"{"name":"S","kind":"distribution","cron":"0 9 * * 1","distribution":{"book_id":"{open}","pool_id":"{id}","mode":"equal","per_user":1}}"#, ["403", "201/201/404", "403", "403", "403", "201/201/404"]),
    ("POST /v1/schedules/preview", Thing::None, r#"{"cron":"0 9 * * 1"}"#, ADMIN),
    ("GET /v1/schedules/{id}", Thing::Schedule, "", ADMIN_ONE),
    ("PATCH /v1/schedules/{id}", Thing::Schedule, r#"{"name":"S"}"#, ADMIN_ONE),
    ("DELETE /v1/schedules/{id}", Thing::Schedule, "", ["403", "204/204/404", "403", "403", "403", "204/204/404"]),
    ("GET /v1/schedules/{id}/next", Thing::Schedule, "", ADMIN_ONE),
    ("POST /v1/schedules/{id}/run", Thing::Schedule, "", ["403", "202/202/404", "403", "403", "403", "202/202/404"]),
    ("GET /v1/redemptions", Thing::None, "", ADMIN),
    ("POST /v1/redemptions/{id}/rollback", Thing::Redemption, r#"{"reason":"r"}"#, ["403", "201/201/404", "403", "403", "403", "201/201/404"]),
    ("GET /v1/jobs", Thing::None, "", ["200"; 6]),
    ("GET /v1/jobs/counts", Thing::None, "", READER),
    ("POST /v1/jobs/bulk", Thing::None, r#"{"action":"cancel","filter":{"kind":"none"},"expected_count":0}"#, ADMIN),
    ("GET /v1/jobs/{id}", Thing::Job("queued"), "", JOB),
    ("GET /v1/jobs/{id}/errors", Thing::Job("succeeded"), "", JOB),
    ("GET /v1/jobs/{id}/errors.csv", Thing::Job("succeeded"), "", JOB),
    ("GET /v1/jobs/{id}/events", Thing::Job("succeeded"), "", JOB),
    ("POST /v1/jobs/{id}/cancel", Thing::Job("queued"), "", JOB_CHANGE),
    ("POST /v1/jobs/{id}/retry", Thing::Job("failed"), "", JOB_CHANGE),
    ("GET /v1/me", Thing::None, "", PERSON),
    ("PATCH /v1/me", Thing::None, r#"{"name":"N"}"#, PERSON),
    ("GET /v1/me/coupons", Thing::None, "", PERSON),
    // Nobody here has a password, so the old one is wrong.
    ("POST /v1/me/password", Thing::None, r#"{"old_password":"x","new_password":"correct horse battery"}"#, ["401", "401", "403", "403", "403", "403"]),
    ("GET /v1/stats", Thing::None, "", READER),
    ("GET /v1/users", Thing::None, "", ADMIN),
    ("POST /v1/users", Thing::None, r#"{"email":"new{n}@example.com","name":"N"}"#, ADMIN_MAKES),
    ("GET /v1/users/{id}", Thing::User, "", ADMIN_ONE),
    ("PATCH /v1/users/{id}", Thing::User, r#"{"name":"N"}"#, ADMIN_ONE),
    ("DELETE /v1/users/{id}", Thing::User, "", ["403", "409/204/404", "403", "403", "403", "204/204/404"]),
    ("GET /v1/users/{id}/coupons", Thing::User, "", READER_ONE),
];

/// What strangers may ask, the body, and the answer, whoever asks.
#[rustfmt::skip]
const OPEN: &[(&str, &str, u16)] = &[
    ("GET /livez", "", 200),
    ("GET /metrics", "", 200),
    ("GET /readyz", "", 200),
    ("GET /v1/setup", "", 200),
    ("POST /v1/setup", r#"{"token":"x","email":"a@example.com","password":"correct horse battery","name":"N"}"#, 409),
    ("POST /v1/auth/register", r#"{"email":"new{n}@example.com","password":"correct horse battery","name":"N"}"#, 201),
    ("POST /v1/auth/login", r#"{"email":"nobody@example.com","password":"x"}"#, 401),
    ("POST /v1/auth/refresh", r#"{"refresh_token":"x"}"#, 401),
    ("POST /v1/auth/logout", r#"{"refresh_token":"x"}"#, 204),
];

async fn ask(client: &Client, name: &str, body: &str) -> Answer {
    let (method, path) = name.split_once(' ').expect("a method and a path");
    let request = client.request(method.parse::<Method>().expect("a method"), path);
    let request = match body.as_bytes() {
        [] => request,
        [b'{', ..] => request
            .header("Content-Type", "application/json")
            .body(body.to_owned()),
        _ => request.header("Content-Type", "text/csv").body(body.to_owned()),
    };
    client.send(request).await
}

/// The request of a row about an object.
async fn ask_about(world: &World, caller: &Caller, row: &Row, object: &str) -> Answer {
    let (name, _, body, _) = row;
    let own = if caller.is_person {
        caller.id
    } else {
        world.callers[0].id
    };
    let fill = |text: &str| {
        let text = text
            .replace("{id}", object)
            .replace("{code}", object)
            .replace("{self}", &own.to_string());
        text.replace("{open}", &world.open.to_string())
            .replace("{n}", &world.next().to_string())
    };
    ask(&caller.client, &fill(name), &fill(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_caller_gets_what_its_role_and_scopes_allow() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    for row in TABLE {
        let (name, thing, body, expected) = row;
        for ((caller, called), cell) in world.callers.iter().zip(CALLERS).zip(expected) {
            let cells: Vec<&str> = cell.split('/').collect();
            let mut refusals = Vec::new();
            for (index, whose) in [Whose::Own, Whose::Others, Whose::Absent].into_iter().enumerate() {
                if *thing == Thing::None && whose != Whose::Own {
                    continue;
                }
                let object = world.make(*thing, whose, caller).await;
                let mut answer = ask_about(&world, caller, row, &object).await;
                let status = cells.get(index).unwrap_or(&cells[0]);
                if answer.status.as_str() != *status {
                    wrong.push(format!(
                        "{name} {body} as {called}, {whose:?}: {} not {status}: {}",
                        answer.status, answer.body
                    ));
                }
                if let Some(members) = answer.body.as_object_mut() {
                    members.remove("request_id");
                }
                refusals.push(answer);
            }
            // Somebody else's and none: the same to the last byte, wherever the one looks like the other at all.
            if let [_, others, absent] = &refusals[..]
                && !others.status.is_success()
                && others.status == absent.status
            {
                assert_eq!(others.body, absent.body, "{name} as {called}");
                let names = |answer: &Answer| {
                    answer
                        .headers
                        .keys()
                        .map(ToString::to_string)
                        .collect::<BTreeSet<_>>()
                };
                assert_eq!(names(others), names(absent), "{name} as {called}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_is_in_the_table_and_refuses_bad_credentials() {
    let world = World::new().await;
    let plain = |name: &str| name.split('?').next().expect("a path").to_owned();
    let known: BTreeSet<String> = TABLE
        .iter()
        .map(|(name, ..)| plain(name))
        .chain(OPEN.iter().map(|(name, ..)| plain(name)))
        .collect();
    let document = Document::of(&world.service);
    let declared: BTreeSet<String> = document
        .operations()
        .iter()
        .map(|operation| operation.name())
        .collect();
    assert_eq!(declared, known, "each operation needs its row in this file");

    let keys = TokenKeys::new(SECRET.as_bytes()).expect("long enough");
    let forger = TokenKeys::new(b"somebody else's secret, long enough too").expect("long enough");
    let admin_id = world.callers[1].id;
    let token =
        |keys: &TokenKeys, age: TimeDelta| keys.issue(admin_id, id::new(), Role::Admin, Utc::now() - age);
    let good = token(&keys, TimeDelta::zero());
    let nobody = world.service.nobody();
    nobody.bearer(&good).get("/v1/users").await.expect(200); // what follows is not refused by accident
    let [head, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!("three parts")
    };
    let with_head =
        |head: &str, signature: &str| format!("{}.{claims}.{signature}", URL_SAFE_NO_PAD.encode(head));
    let bad = [
        nobody.clone(),
        nobody.bearer(&token(&forger, TimeDelta::zero())),
        nobody.bearer(&token(&keys, TimeDelta::hours(1))),
        nobody.bearer(&with_head(r#"{"alg":"none","typ":"at+jwt"}"#, "")),
        nobody.bearer(&with_head(r#"{"alg":"none","typ":"at+jwt"}"#, signature)),
        nobody.bearer(&with_head(r#"{"alg":"RS256","typ":"at+jwt"}"#, signature)),
        nobody.bearer(&format!("{head}.{claims}.")),
        nobody.bearer("garbage"),
        nobody.bearer(""),
        nobody.with("Authorization", "Basic YTpi"),
        nobody.with("Authorization", &good),
        nobody.key("cb_garbage"),
        nobody.key(&format!("cb_{}", "A".repeat(43))),
        nobody.key(&good),
        nobody.bearer(&good).key("cb_garbage"), // one of two is never enough
    ];
    for row in TABLE {
        let (name, thing, body, _) = row;
        let object = world.make(*thing, Whose::Own, &world.callers[1]).await;
        for (number, client) in bad.iter().enumerate() {
            let name = name.replace("{id}", &object).replace("{code}", &object);
            let answer = ask(client, &name, &body.replace("{id}", &object)).await;
            assert_eq!(
                answer.status, 401,
                "{name}, bad credentials {number}: {}",
                answer.body
            );
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            answer.refused(401, "unauthenticated");
        }
    }
    for (name, body, status) in OPEN {
        for client in [&nobody, &bad[1], &bad[11], &world.callers[0].client] {
            let answer = ask(client, name, &body.replace("{n}", &world.next().to_string())).await;
            assert_eq!(answer.status, *status, "{name}: {}", answer.body);
        }
    }
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_hold_only_what_the_caller_may_see() {
    let world = World::new().await;
    let mut own = Vec::new();
    for caller in &world.callers {
        own.push(world.make(Thing::Job("queued"), Whose::Own, caller).await);
    }
    let ids = |answer: serde_json::Value| -> BTreeSet<String> {
        let rows = answer["data"].as_array().expect("rows").iter();
        rows.map(|row| row["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    for ((caller, called), own_job) in world.callers.iter().zip(CALLERS).zip(&own) {
        let seen = ids(caller.client.get("/v1/jobs").await.expect(200));
        let expected = match called {
            "admin" | "read" | "manage" => own.len() + 1,
            _ => 1,
        };
        assert!(
            seen.len() == expected && seen.contains(own_job),
            "{called}: {seen:?}"
        );
    }
    let books = ids(world.callers[0].client.get("/v1/books").await.expect(200));
    assert_eq!(books, [world.open.to_string()].into());
    let book = world.callers[0]
        .client
        .get(&format!("/v1/books/{}", world.open))
        .await
        .expect(200);
    for hidden in [
        "metadata",
        "created_by",
        "draw_commitment",
        "pattern",
        "max_assignments_per_user",
    ] {
        assert!(
            book.get(hidden).is_none(),
            "{hidden} is for administrators: {book}"
        );
    }
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_disabled_or_withdrawn_changes_nothing_any_more() {
    let world = World::new().await;
    let admin = &world.callers[1].client;
    let (user, user_id) = world.service.user(Role::Admin).await;
    user.get("/v1/users").await.expect(200);
    admin
        .patch(&format!("/v1/users/{user_id}"), json!({ "role": "user" }))
        .await
        .expect(200);
    user.post("/v1/books", json!({ "name": "B" }))
        .await
        .refused(403, "forbidden");
    admin.delete(&format!("/v1/users/{user_id}")).await.expect(204);
    user.patch("/v1/me", json!({ "name": "N" }))
        .await
        .refused(401, "unauthenticated");
    let manage = &world.callers[5];
    manage
        .client
        .post("/v1/books", json!({ "name": "B" }))
        .await
        .expect(201);
    admin
        .delete(&format!("/v1/api-keys/{}", manage.id))
        .await
        .expect(204);
    manage
        .client
        .post("/v1/books", json!({ "name": "B" }))
        .await
        .refused(401, "unauthenticated");
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_given_back_with_its_token_or_by_an_administrator() {
    let world = World::new().await;
    let [user, admin, _, _, till, _] = &world.callers[..] else {
        panic!("six callers");
    };
    for (caller, with_token, status) in [
        (user, false, 423),
        (till, false, 423),
        (till, true, 200),
        (user, true, 200),
        (admin, false, 200),
    ] {
        let code = world.make(Thing::Held, Whose::Own, user).await;
        let lock = user
            .client
            .post(&format!("/v1/coupons/lock/{code}"), json!({}))
            .await
            .expect(200);
        let body = if with_token {
            json!({ "lock_token": lock["lock_token"] })
        } else {
            json!({})
        };
        caller
            .client
            .post(&format!("/v1/coupons/unlock/{code}"), body)
            .await
            .expect(status);
    }
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_read_every_job_may_not_change_it() {
    let world = World::new().await;
    let admin = &world.callers[1].client;
    let key = json!({ "name": "k", "scopes": ["read", "assign"] });
    let key = admin.post("/v1/api-keys", key).await.expect(201);
    let client = world.service.nobody().key(key["key"].as_str().expect("a key"));
    for (state, action) in [("queued", "cancel"), ("failed", "retry")] {
        let job = world
            .make(Thing::Job(state), Whose::Others, &world.callers[0])
            .await;
        client.get(&format!("/v1/jobs/{job}")).await.expect(200);
        let changed = client.post(&format!("/v1/jobs/{job}/{action}"), json!({})).await;
        changed.refused(404, "not_found");
    }
    world.service.stop().await;
}
