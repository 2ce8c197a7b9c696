//! Each mode and each shortage: who is left out, and a run that does what its dry run said.

use coupon_core::distribution::order::Seed;
use coupon_tests::{Service, seed};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{assign, counts, disable, distribute, held, holds, items, stock};
use crate::pools::seeded_pool;

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
    // The same as a file, for whoever asks why somebody got nothing.
    let file = format!("/v1/distributions/{}/items.csv", done["id"].as_str().unwrap());
    let left_out = admin.get(&format!("{file}?state=left_out")).await.expect(200);
    let mut lines: Vec<&str> = left_out.as_str().unwrap().lines().collect();
    assert_eq!(
        lines.remove(0),
        "user_id,email,state,reason,wanted,assigned,undone"
    );
    lines.sort_unstable();
    let line = |user: Uuid, reason| format!("{user},{user}@example.com,left_out,{reason},0,0,0");
    let mut expected = [line(users[1], "limit_reached"), line(users[2], "disabled")];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    let all = admin.get(&file).await.expect(200);
    assert_eq!(all.as_str().unwrap().lines().count(), 41);
    admin
        .get(&format!("{file}?state=odd"))
        .await
        .invalid("?state", "not_in_enum");
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
