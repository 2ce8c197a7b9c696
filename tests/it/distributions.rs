//! Distributions: each mode and each shortage, who is left out, a run that does what its dry run said, and nobody who
//! gets two shares or more than the book allows, whatever happens beside it.

use std::collections::{BTreeMap, HashMap};

use coupon_core::{
    db::{self, Db},
    distribution::order::Seed,
};
use coupon_tests::{Client, Service, seed};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    pools::seeded_pool,
    truth::{report, scale},
};

/// Coupons straight into the table, each at a random place of the draw.
pub(crate) async fn stock(db: &Db, book_id: Uuid, coupons: usize) {
    sqlx::query(
        "INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed)
         SELECT $1, 'S' || lpad(n::text, 8, '0'), (random() * 9e18)::bigint, 1 FROM generate_series(1, $2) AS n",
    )
    .bind(book_id)
    .bind(coupons as i64)
    .execute(db.pool())
    .await
    .unwrap();
}

/// Who holds how many coupons of a book, by the coupons themselves.
pub(crate) async fn held(db: &Db, book_id: Uuid) -> HashMap<Uuid, i64> {
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT assigned_user_id, count(*) FROM coupons WHERE book_id = $1 AND assigned_user_id IS NOT NULL GROUP BY 1",
    )
    .bind(book_id)
    .fetch_all(db.pool())
    .await
    .unwrap();
    rows.into_iter().collect()
}

/// What must hold of a book, whatever was given, used and taken back: each sentence with a count of what breaks it.
const PROMISES: [(&str, &str); 7] = [
    (
        "allowances count what is held",
        "SELECT count(*) FROM (SELECT user_id, assigned_count FROM user_allowances WHERE book_id = $1) AS a
         FULL JOIN (SELECT assigned_user_id AS user_id, count(*) AS held FROM coupons
                    WHERE book_id = $1 AND assigned_user_id IS NOT NULL GROUP BY 1) AS h ON h.user_id = a.user_id
         WHERE coalesce(a.assigned_count, 0) <> coalesce(h.held, 0)",
    ),
    (
        "nobody holds more than the book allows",
        "SELECT count(*) FROM user_allowances a JOIN books b ON b.id = a.book_id
         WHERE a.book_id = $1 AND a.assigned_count > b.max_assignments_per_user",
    ),
    (
        "each assignment and each taking back has its event",
        "SELECT count(*) FROM (
             SELECT c.code_key FROM coupons c JOIN events e ON e.book_id = $1 AND e.code_key = c.code_key
             WHERE c.book_id = $1 GROUP BY c.code_key, c.assigned_user_id
             HAVING count(*) FILTER (WHERE e.kind = 'coupon_assigned') - count(*) FILTER (WHERE e.kind = 'coupon_revoked')
                 <> CASE WHEN c.assigned_user_id IS NULL THEN 0 ELSE 1 END) AS differing",
    ),
    (
        "a distribution gave as many coupons as it says, and its items too",
        "SELECT count(*) FROM distributions d WHERE d.book_id = $1 AND (
             d.assigned <> (SELECT count(*) FROM distribution_coupons g WHERE g.book_id = $1 AND g.distribution_id = d.id)
             OR d.assigned <> (SELECT coalesce(sum(i.assigned), 0) FROM distribution_items i WHERE i.book_id = $1 AND i.distribution_id = d.id)
             OR d.undone <> (SELECT coalesce(sum(i.undone), 0) FROM distribution_items i WHERE i.book_id = $1 AND i.distribution_id = d.id)
             OR d.recipients <> (SELECT count(*) FROM distribution_items i WHERE i.book_id = $1 AND i.distribution_id = d.id AND i.assigned > 0))",
    ),
    (
        "nobody has two items of one distribution",
        "SELECT count(*) FROM (SELECT FROM distribution_items WHERE book_id = $1
                               GROUP BY distribution_id, user_id HAVING count(*) > 1) AS twice",
    ),
    (
        "what was given to a person are as many coupons as the item says",
        "SELECT count(*) FROM (SELECT distribution_id, user_id, assigned FROM distribution_items
                               WHERE book_id = $1 AND assigned > 0) AS i
         FULL JOIN (SELECT distribution_id, user_id, count(*) AS given FROM distribution_coupons
                    WHERE book_id = $1 GROUP BY 1, 2) AS g USING (distribution_id, user_id)
         WHERE i.assigned IS DISTINCT FROM g.given",
    ),
    (
        "what was wanted was given, is missing or was withheld, once the run has ended",
        "SELECT count(*) FROM distributions WHERE book_id = $1 AND state IN ('completed', 'completed_with_shortfall')
             AND codes_needed <> assigned + shortfall + withheld",
    ),
];

/// Checks every promise.
pub(crate) async fn holds(db: &Db, book_id: Uuid) {
    for (promise, sql) in PROMISES {
        let broken: i64 = sqlx::query_scalar(sql)
            .bind(book_id)
            .fetch_one(db.pool())
            .await
            .unwrap();
        assert_eq!(broken, 0, "{promise}");
    }
}

/// Runs a distribution to its end; gives its job and itself.
pub(crate) async fn distribute(admin: &Client, body: Value) -> (Value, Value) {
    let job = admin.post("/v1/distributions", body).await.expect(202);
    let job = admin.job_end(job["id"].as_str().unwrap()).await;
    let path = format!(
        "/v1/distributions/{}",
        job["result"]["distribution_id"].as_str().unwrap()
    );
    (job, admin.get(&path).await.expect(200))
}

/// Every item, by user.
async fn items(admin: &Client, distribution: &Value, query: &str) -> BTreeMap<Uuid, Value> {
    let path = format!("/v1/distributions/{}/items", distribution["id"].as_str().unwrap());
    let (mut items, mut cursor) = (BTreeMap::new(), String::new());
    loop {
        let page = admin
            .get(&format!("{path}?limit=100{query}{cursor}"))
            .await
            .expect(200);
        for item in page["data"].as_array().unwrap() {
            let before = items.insert(item["user_id"].as_str().unwrap().parse().unwrap(), item.clone());
            assert_eq!(before, None);
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

async fn disable(admin: &Client, user_id: Uuid) {
    admin
        .patch(&format!("/v1/users/{user_id}"), json!({ "disabled": true }))
        .await
        .expect(200);
}

async fn assign(admin: &Client, book_id: Uuid, user_id: Uuid, count: i64) {
    let body = json!({ "book_id": book_id, "user_id": user_id, "count": count });
    let job = admin
        .with("Prefer", "wait=20")
        .post("/v1/coupons/assign", body)
        .await
        .expect(200);
    assert_eq!(job["state"], "succeeded", "{job}");
}

fn counts(distribution: &Value, names: &[&str]) -> Vec<i64> {
    names
        .iter()
        .map(|name| distribution["counts"][*name].as_i64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_gives_everybody_the_same_and_leaves_out_who_cannot_take_it_all() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 40).await;
    let book_id = admin.book(json!({ "max_assignments_per_user": 3 })).await;
    stock(&service.db, book_id, 100).await;
    assign(&admin, book_id, users[0], 1).await; // 1 + 2 fit
    assign(&admin, book_id, users[1], 2).await; // 2 + 2 do not
    disable(&admin, users[2]).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 2, "on_shortage": "fail", "seed": "my seed" });
    let plan = admin
        .post("/v1/distributions?dry_run=true", body.clone())
        .await
        .expect(200);
    assert_eq!(
        (
            &plan["recipients"],
            &plan["codes_needed"],
            &plan["codes_free"],
            &plan["shortfall"]
        ),
        (&json!(38), &json!(76), &json!(97), &json!(0))
    );
    assert_eq!(
        plan["excluded"],
        json!([{ "reason": "disabled", "count": 1 }, { "reason": "limit_reached", "count": 1 }])
    );
    let commitment: String = Seed::new(Some("my seed"))
        .commitment()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(plan["seed_commitment"], commitment);
    let rows: i64 = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM distributions) + (SELECT count(*) FROM distribution_items)",
    )
    .fetch_one(service.db.pool())
    .await
    .unwrap();
    assert_eq!(rows, 0, "a dry run writes nothing");

    let (job, done) = distribute(&admin, body).await;
    assert_eq!(
        (&job["state"], &done["state"]),
        (&json!("succeeded"), &json!("completed")),
        "{job}"
    );
    assert_eq!(
        (&done["seed_commitment"], &done["excluded"]),
        (&plan["seed_commitment"], &plan["excluded"])
    );
    assert_eq!(
        counts(
            &done,
            &[
                "members",
                "eligible",
                "recipients",
                "assigned",
                "codes_needed",
                "shortfall"
            ]
        ),
        [40, 38, 38, 76, 76, 0]
    );
    assert_eq!(
        (&job["progress"]["done"], &job["progress"]["total"]),
        (&json!(76), &json!(76))
    );
    let held = held(&service.db, book_id).await;
    assert_eq!(
        (held[&users[0]], held[&users[1]], held.get(&users[2])),
        (3, 2, None)
    );
    assert!(users[3..].iter().all(|user| held[user] == 2));
    let out = items(&admin, &done, "&state=left_out").await;
    assert_eq!(
        (&out[&users[1]]["reason"], &out[&users[2]]["reason"], out.len()),
        (&json!("limit_reached"), &json!("disabled"), 2)
    );
    // The sample of the dry run is the beginning of the run's order.
    let first = admin
        .get(&format!(
            "/v1/distributions/{}/items?state=given&limit=20",
            done["id"].as_str().unwrap()
        ))
        .await
        .expect(200);
    let order = |rows: &Value| -> Vec<Value> {
        rows.as_array()
            .unwrap()
            .iter()
            .map(|row| row["user_id"].clone())
            .collect()
    };
    assert_eq!(order(&first["data"]), order(&plan["sample"]));
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shortage_fails_as_a_whole_or_is_given_as_far_as_it_goes() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 30).await;
    let book_id = admin.book(json!({})).await;
    stock(&service.db, book_id, 41).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = |on_shortage| json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 2, "on_shortage": on_shortage, "seed": "s" });
    admin
        .post("/v1/distributions", body("fail"))
        .await
        .refused(409, "shortage");
    assert_eq!(held(&service.db, book_id).await.len(), 0);
    let plan = admin
        .post("/v1/distributions?dry_run=true", body("fail"))
        .await
        .expect(200);
    assert_eq!(
        (&plan["shortfall"], &plan["codes_needed"], &plan["codes_free"]),
        (&json!(19), &json!(60), &json!(41))
    );
    let plan = admin
        .post("/v1/distributions?dry_run=true", body("partial"))
        .await
        .expect(200);
    assert_eq!(
        (&plan["recipients"], &plan["shortfall"]),
        (&json!(21), &json!(19))
    );

    let (job, done) = distribute(&admin, body("partial")).await;
    assert_eq!(
        (&job["state"], &done["state"]),
        (&json!("partially_succeeded"), &json!("completed_with_shortfall"))
    );
    assert_eq!(
        counts(&done, &["recipients", "assigned", "shortfall"]),
        [21, 41, 19]
    );
    // The first in the seed's order, and nobody else.
    let seed = Seed::new(Some("s"));
    let mut order = users.clone();
    order.sort_by_key(|user| (seed.place(*user), *user));
    let held = held(&service.db, book_id).await;
    for (n, user) in order.iter().enumerate() {
        let expected = match n {
            0..20 => Some(&2),
            20 => Some(&1),
            _ => None,
        };
        assert_eq!(held.get(user), expected, "person {n}");
    }
    let errors = admin
        .get(&format!("{}?limit=100", job["links"]["errors"].as_str().unwrap()))
        .await
        .expect(200);
    let lines = errors["data"].as_array().unwrap();
    assert_eq!(lines.len(), 10);
    assert!(
        lines.iter().all(|line| line["reason"] == "shortage"
            && line["user_id"].is_string()
            && line["item"].is_number())
    );
    assert_eq!(lines[0]["user_id"], json!(order[20]));
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_gives_what_the_seed_says_and_anybody_can_recompute_it() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 50).await;
    let book_id = admin.book(json!({ "max_assignments_per_user": 4 })).await;
    stock(&service.db, book_id, 300).await;
    assign(&admin, book_id, users[0], 3).await;
    assign(&admin, book_id, users[1], 4).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "random", "total": 120, "max_per_user": 3, "on_shortage": "fail", "seed": "r" });
    let plan = admin
        .post("/v1/distributions?dry_run=true", body.clone())
        .await
        .expect(200);
    let before = held(&service.db, book_id).await;
    let (_, done) = distribute(&admin, body).await;
    assert_eq!(done["state"], "completed", "{done}");
    assert_eq!(
        (&done["counts"]["recipients"], &done["counts"]["assigned"]),
        (&plan["recipients"], &json!(120))
    );

    let seed = Seed::new(Some("r"));
    let mut order = users.clone();
    order.retain(|user| *user != users[1]);
    order.sort_by_key(|user| (seed.place(*user), *user));
    let rooms: Vec<u32> = order
        .iter()
        .map(|user| if *user == users[0] { 1 } else { 3 })
        .collect();
    let expected = seed.draw_counts(&rooms, 120);
    let after = held(&service.db, book_id).await;
    for (user, count) in order.iter().zip(expected) {
        let got = after.get(user).unwrap_or(&0) - before.get(user).unwrap_or(&0);
        assert_eq!(got, i64::from(count), "{user}");
    }
    let idle = items(&admin, &done, "&state=not_drawn").await;
    assert_eq!(
        idle.len() as i64 + done["counts"]["recipients"].as_i64().unwrap(),
        49
    );
    // There are coupons enough, but nobody to take them.
    let body = |on_shortage| json!({ "book_id": book_id, "pool_id": pool_id, "mode": "random", "total": 100, "max_per_user": 1, "on_shortage": on_shortage });
    let refused = admin
        .post("/v1/distributions", body("fail"))
        .await
        .refused(409, "shortage");
    assert!(
        refused["detail"].as_str().unwrap().contains("can take"),
        "{refused}"
    );
    let (job, done) = distribute(&admin, body("partial")).await;
    assert_eq!(done["state"], "completed_with_shortfall");
    assert_eq!(
        job["result"]["assigned"].as_i64().unwrap() + job["result"]["shortfall"].as_i64().unwrap(),
        100
    );
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_share_is_given_over_several_steps() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 1).await;
    let book_id = admin.book(json!({})).await;
    stock(&service.db, book_id, 12_000).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "random", "total": 11_000 });
    let (job, done) = distribute(&admin, body).await;
    assert_eq!(
        (&job["state"], &done["state"]),
        (&json!("succeeded"), &json!("completed"))
    );
    assert_eq!(held(&service.db, book_id).await[&users[0]], 11_000);
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn top_up_brings_everybody_up_to_a_number() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 10).await;
    let book_id = admin.book(json!({ "max_assignments_per_user": 5 })).await;
    stock(&service.db, book_id, 100).await;
    for (user, count) in users.iter().zip([1, 2, 3, 4]) {
        assign(&admin, book_id, *user, count).await;
    }
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = |k| json!({ "book_id": book_id, "pool_id": pool_id, "mode": "top_up", "per_user": k });
    let plan = admin
        .post("/v1/distributions?dry_run=true", body(3))
        .await
        .expect(200);
    assert_eq!(
        (&plan["recipients"], &plan["codes_needed"]),
        (&json!(8), &json!(2 + 1 + 6 * 3))
    );
    assert_eq!(plan["excluded"], json!([{ "reason": "ineligible", "count": 2 }]));
    let (_, done) = distribute(&admin, body(3)).await;
    assert_eq!(
        (&done["state"], &done["counts"]["assigned"]),
        (&json!("completed"), &json!(21))
    );
    let held = held(&service.db, book_id).await;
    assert!(
        users
            .iter()
            .enumerate()
            .all(|(n, user)| held[user] == if n == 3 { 4 } else { 3 }),
        "{held:?}"
    );
    // Again: nobody needs anything. More than the book allows: nobody may have it.
    let (job, done) = distribute(&admin, body(3)).await;
    assert_eq!(
        (&job["state"], &done["counts"]["assigned"]),
        (&json!("succeeded"), &json!(0))
    );
    let plan = admin
        .post("/v1/distributions?dry_run=true", body(6))
        .await
        .expect(200);
    assert_eq!(
        plan["excluded"],
        json!([{ "reason": "limit_reached", "count": 10 }])
    );
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_fit_the_mode_and_the_book_must_be_open() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({ "status": "paused" })).await;
    let pool_id = seeded_pool(&service.db, &[]).await;
    let body = |members: Value| {
        let mut body = json!({ "book_id": book_id, "pool_id": pool_id, "on_shortage": "partial" });
        body.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        body
    };
    for (members, pointer, code) in [
        (json!({ "mode": "equal" }), "/per_user", "required"),
        (
            json!({ "mode": "equal", "per_user": 1, "total": 1 }),
            "/total",
            "unexpected",
        ),
        (
            json!({ "mode": "top_up", "per_user": 1, "max_per_user": 1 }),
            "/max_per_user",
            "unexpected",
        ),
        (json!({ "mode": "random", "per_user": 1 }), "/total", "required"),
        (
            json!({ "mode": "random", "total": 1, "per_user": 1 }),
            "/per_user",
            "unexpected",
        ),
        (
            json!({ "mode": "equal", "per_user": 1001 }),
            "/per_user",
            "out_of_range",
        ),
        (json!({ "mode": "other", "per_user": 1 }), "/mode", "not_in_enum"),
    ] {
        admin
            .post("/v1/distributions", body(members))
            .await
            .invalid(pointer, code);
    }
    let fine = body(json!({ "mode": "equal", "per_user": 1 }));
    admin
        .post("/v1/distributions", fine.clone())
        .await
        .refused(409, "book_not_active");
    admin
        .post("/v1/distributions?dry_run=true", fine.clone())
        .await
        .expect(200);
    for absent in ["book_id", "pool_id"] {
        let mut body = fine.clone();
        body[absent] = json!(Uuid::now_v7());
        admin
            .post("/v1/distributions", body)
            .await
            .refused(404, "not_found");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_between_plan_and_turn_is_told() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 6_000).await;
    let book_id = admin.book(json!({ "max_assignments_per_user": 1 })).await;
    stock(&service.db, book_id, 7_000).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1 });
    let job = admin.post("/v1/distributions", body).await.expect(202);
    // The steps by hand, as far as the plan.
    let of = coupon_core::job::payload::OfDistribution {
        book_id,
        distribution_id: job["result"]["distribution_id"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap(),
    };
    let job_id: Uuid = job["id"].as_str().unwrap().parse().unwrap();
    for _ in 0..2 {
        let mut tx = service.db.begin().await.unwrap();
        coupon_core::distribution::step::step(&mut tx, job_id, &of)
            .await
            .unwrap();
        db::commit(tx).await.unwrap();
    }
    let path = format!("/v1/distributions/{}", of.distribution_id);
    assert_eq!(admin.get(&path).await.expect(200)["counts"]["planned"], 6_000);
    disable(&admin, users[5]).await;
    let job_of = json!({ "book_id": book_id, "user_id": users[6] });
    let by_hand = admin.post("/v1/coupons/assign", job_of).await.expect(202);
    service.start_workers();
    admin.job_end(by_hand["id"].as_str().unwrap()).await;
    let job = admin.job_end(&job_id.to_string()).await;
    let done = admin.get(&path).await.expect(200);
    // The assign may have come after that person's turn: then it was the one that was refused.
    let lost = 1 + done["changed"]["limit_reached"].as_i64().unwrap_or(0);
    assert_eq!(
        (&job["state"], &done["state"]),
        (&json!("partially_succeeded"), &json!("completed")),
        "{job}"
    );
    assert_eq!(
        counts(&done, &["assigned", "withheld", "shortfall"]),
        [6_000 - lost, lost, 0]
    );
    assert_eq!(done["changed"]["disabled"], 1);
    let short = items(&admin, &done, "&state=short").await;
    assert_eq!(
        (&short[&users[5]]["reason"], short.len() as i64),
        (&json!("disabled"), lost)
    );
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_and_single_assigns_at_once_share_a_book_exactly() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 4_000).await;
    let book_id = admin.book(json!({ "max_assignments_per_user": 2 })).await;
    stock(&service.db, book_id, 7_000).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1, "on_shortage": "partial" });
    let mut jobs = Vec::new();
    for _ in 0..2 {
        jobs.push(
            admin.post("/v1/distributions", body.clone()).await.expect(202)["id"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    for user in users.iter().take(100) {
        let body = json!({ "book_id": book_id, "user_id": user, "count": 2 });
        let job = admin.post("/v1/coupons/assign", body).await.expect(202);
        jobs.push(job["id"].as_str().unwrap().to_owned());
    }
    let mut assigned = 0;
    for job in jobs {
        let job = admin.job_end(&job).await;
        assigned += job["result"]["assigned"].as_i64().unwrap_or(0)
            + job["result"]["coupons"]
                .as_array()
                .map_or(0, |coupons| coupons.len() as i64);
    }
    let held = held(&service.db, book_id).await;
    assert_eq!(held.values().sum::<i64>(), assigned);
    assert_eq!(assigned, 7_000, "8,000 were wanted in all");
    assert!(held.values().all(|count| *count <= 2));
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_stops_when_asked_and_keeps_what_it_gave() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 12_000).await;
    let book_id = admin.book(json!({})).await;
    stock(&service.db, book_id, 12_000).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1 });
    // One that nobody has begun ends at once.
    let job = admin.post("/v1/distributions", body.clone()).await.expect(202);
    let cancelled = admin
        .post(
            &format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap()),
            json!({}),
        )
        .await
        .expect(202);
    assert_eq!(cancelled["state"], "cancelled");
    let path = format!(
        "/v1/distributions/{}",
        job["result"]["distribution_id"].as_str().unwrap()
    );
    assert_eq!(admin.get(&path).await.expect(200)["state"], "cancelled");
    admin
        .post(&format!("{path}/undo"), json!({}))
        .await
        .refused(409, "nothing_to_undo");

    let job = admin.post("/v1/distributions", body).await.expect(202);
    let job_id = job["id"].as_str().unwrap();
    let path = format!(
        "/v1/distributions/{}",
        job["result"]["distribution_id"].as_str().unwrap()
    );
    let of = coupon_core::job::payload::OfDistribution {
        book_id,
        distribution_id: path.rsplit('/').next().unwrap().parse().unwrap(),
    };
    for _ in 0..3 {
        let mut tx = service.db.begin().await.unwrap();
        coupon_core::distribution::step::step(&mut tx, job_id.parse().unwrap(), &of)
            .await
            .unwrap();
        db::commit(tx).await.unwrap();
    }
    sqlx::query("UPDATE jobs SET state = 'running', started_at = now() WHERE id = $1::uuid")
        .bind(job_id.parse::<Uuid>().unwrap())
        .execute(service.db.pool())
        .await
        .unwrap();
    admin
        .post(&format!("{path}/undo"), json!({}))
        .await
        .refused(409, "invalid_state");
    let asked = admin
        .post(&format!("/v1/jobs/{job_id}/cancel"), json!({}))
        .await
        .expect(202);
    assert_eq!(asked["state"], "cancelling");
    service.start_workers();
    let job = admin.job_end(job_id).await;
    assert_eq!(
        (&job["state"], &job["result"]["assigned"]),
        (&json!("cancelled"), &json!(5_000))
    );
    assert_eq!(admin.get(&path).await.expect(200)["state"], "cancelled");
    holds(&service.db, book_id).await;
    let undo = admin
        .with("Prefer", "wait=30")
        .post(&format!("{path}/undo"), json!({}))
        .await
        .expect(200);
    assert_eq!(undo["result"]["undone"], 5_000);
    assert_eq!(held(&service.db, book_id).await.len(), 0);
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_pool_is_planned_in_bounded_time() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let people = scale(60_000, 1_000_000);
    let users = seed::users(&service.db, people).await;
    let book_id = admin.book(json!({})).await;
    stock(&service.db, book_id, 1_000).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    sqlx::raw_sql("ANALYZE users; ANALYZE pool_members; ANALYZE coupons")
        .execute(service.db.pool())
        .await
        .unwrap();
    for body in [
        json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1, "on_shortage": "partial" }),
        json!({ "book_id": book_id, "pool_id": pool_id, "mode": "random", "total": people, "on_shortage": "partial" }),
    ] {
        let began = std::time::Instant::now();
        let plan = admin
            .post("/v1/distributions?dry_run=true", body.clone())
            .await
            .expect(200);
        assert_eq!(plan["shortfall"], json!(people - 1_000));
        report(&format!(
            "a dry run of {people} people took {:?}",
            began.elapsed()
        ));
    }
    let began = std::time::Instant::now();
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "random", "total": 900 });
    let (job, done) = distribute(&admin, body).await;
    assert_eq!(
        (&job["state"], &done["counts"]["assigned"]),
        (&json!("succeeded"), &json!(900))
    );
    report(&format!(
        "a run of 900 coupons over {people} people took {:?}",
        began.elapsed()
    ));
    service.stop().await;
}
