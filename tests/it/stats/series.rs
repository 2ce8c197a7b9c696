//! How things went over time.

use chrono::{DateTime, Utc};
use coupon_core::caller::Role;
use coupon_tests::Service;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{last, rolled_up, seed_hours};

fn sum(series: &Value, name: &str) -> i64 {
    let points = series["points"].as_array().unwrap().iter();
    points.map(|point| point[name].as_i64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn history_tells_what_happened_and_how_things_stand() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let email: String = sqlx::query_scalar("SELECT email FROM users WHERE id = $1")
        .bind(user_id)
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    let book_id = admin.book(json!({ "redemptions_per_coupon": 2 })).await;
    let csv = format!("code,user_email\nH-1,{email}\nH-2,\nH-3,\nH-4,\nH-5,\nH-6,\n");
    let upload = admin
        .post_csv(&format!("/v1/books/{book_id}/codes/import"), csv)
        .await
        .expect(202);
    admin.job_end(upload["id"].as_str().unwrap()).await;
    for code in ["H-2", "H-3", "H-4"] {
        let body = json!({ "user_id": user_id });
        let job = admin
            .post(&format!("/v1/coupons/assign/{code}"), body)
            .await
            .expect(202);
        admin.job_end(job["id"].as_str().unwrap()).await;
    }
    // One use of two and its rollback; two uses of two; a lock given back; a lock that stays.
    for (code, uses) in [("H-1", 1), ("H-2", 2)] {
        for _ in 0..uses {
            let lock = user
                .post(&format!("/v1/coupons/lock/{code}"), json!({}))
                .await
                .expect(200);
            let token = json!({ "lock_token": lock["lock_token"] });
            let spent = user
                .post(&format!("/v1/coupons/redeem/{code}"), token)
                .await
                .expect(200);
            if code == "H-1" {
                let path = format!("/v1/redemptions/{}/rollback", spent["id"].as_str().unwrap());
                admin.post(&path, json!({ "reason": "r" })).await.expect(201);
            }
        }
    }
    let lock = user.post("/v1/coupons/lock/H-3", json!({})).await.expect(200);
    let token = json!({ "lock_token": lock["lock_token"] });
    user.post("/v1/coupons/unlock/H-3", token).await.expect(200);
    user.post("/v1/coupons/lock/H-1", json!({})).await.expect(200);
    admin
        .post("/v1/coupons/revoke/H-3", json!({ "reason": "r" }))
        .await
        .expect(200);
    admin
        .post("/v1/coupons/void/H-6", json!({ "reason": "r" }))
        .await
        .expect(200);
    // A lapsed lock that no sweep has met, revoked: the lock ends first.
    sqlx::query(
        "UPDATE coupons SET state = 'locked', locked_until = now() - interval '1 s', lock_token_hash = 'x', lock_renewals_left = 1
         WHERE book_id = $1 AND code_key = 'H4'",
    )
    .bind(book_id)
    .execute(service.db.pool())
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO events (book_id, id, actor_kind, kind, code_key, before, after)
         VALUES ($1, uuid_v7(), 'system', 'coupon_locked', 'H4', '{\"state\": \"assigned\"}', '{\"state\": \"locked\"}')",
    )
    .bind(book_id)
    .execute(service.db.pool())
    .await
    .unwrap();
    admin
        .post("/v1/coupons/revoke/H-4", json!({ "reason": "r" }))
        .await
        .expect(200);
    rolled_up(&service.db).await;

    let live = admin.get(&format!("/v1/books/{book_id}/stats")).await.expect(200);
    for path in [format!("/v1/books/{book_id}/history"), "/v1/stats".to_owned()] {
        let series = admin.get(&path).await.expect(200);
        for state in [
            "total",
            "unassigned",
            "assigned",
            "locked",
            "redeemed",
            "void",
            "redemptions",
        ] {
            assert_eq!(
                last(&series)[state],
                live[state],
                "{path} {state}: {series} {live}"
            );
        }
        for (name, count) in [
            ("added_count", 6),
            ("assigned_count", 4),
            ("locked_count", 6),
            ("unlocked_count", 1),
            ("lock_expired_count", 1),
            ("redeemed_count", 3),
            ("rolled_back_count", 1),
            ("revoked_count", 2),
            ("voided_count", 1),
        ] {
            assert_eq!(sum(&series, name), count, "{path} {name}: {series}");
        }
    }
    assert_eq!(
        (
            &live["unassigned"],
            &live["locked"],
            &live["redeemed"],
            &live["void"]
        ),
        (&json!(3), &json!(1), &json!(1), &json!(1))
    );
    let stats = admin.get("/v1/stats?step=day").await.expect(200);
    let jobs = last(&stats)["jobs"].as_array().unwrap();
    let of = |kind: &str| jobs.iter().find(|jobs| jobs["kind"] == kind).unwrap();
    assert_eq!(
        (&of("assign")["succeeded_count"], &of("import")["succeeded_count"]),
        (&json!(3), &json!(1))
    );
    assert!(of("assign")["mean_seconds"].as_f64().unwrap() > 0.0);
    let queues = last(&stats)["queues"].as_array().unwrap();
    assert_eq!(queues.len(), 3, "{queues:?}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_has_a_point_for_every_interval_and_its_length_is_bounded() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let from = "2026-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap();
    let books = [admin.book(json!({})).await, Uuid::from_u128(2)];
    seed_hours(&service.db, books, from, 30).await;
    rolled_up(&service.db).await;
    let path = format!("/v1/books/{}/history", books[0]);
    let get = async |query: &str| admin.get(&format!("{path}?{query}")).await;
    let hours = get("from=2025-12-31T22:30:00Z&to=2026-01-02T08:00:00Z&step=hour")
        .await
        .expect(200);
    assert_eq!(hours["from"], "2025-12-31T22:00:00.000000Z");
    let points = hours["points"].as_array().unwrap();
    assert_eq!(points.len(), 34);
    let told: Vec<_> = [0, 2, 31, 33]
        .map(|n: usize| {
            (
                points[n]["unassigned"].as_i64(),
                points[n]["assigned_count"].as_i64(),
            )
        })
        .to_vec();
    assert_eq!(
        told,
        [
            (Some(1000), Some(0)),
            (Some(994), Some(6)),
            (Some(820), Some(6)),
            (Some(820), Some(0))
        ]
    );
    let days = get("from=2026-01-01T00:00:00Z&to=2026-01-04T00:00:00Z&step=day")
        .await
        .expect(200);
    let told: Vec<_> = days["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["assigned"].clone(), p["assigned_count"].clone()))
        .collect();
    assert_eq!(
        told,
        [
            (json!(144), json!(144)),
            (json!(180), json!(36)),
            (json!(180), json!(0))
        ]
    );
    // Nothing is told of what is not complete, and nothing of the future.
    let ahead = get("from=2998-01-01T00:00:00Z&to=2998-01-02T00:00:00Z")
        .await
        .expect(200);
    assert_eq!(ahead["points"], json!([]));

    get("from=2026-01-01T00:00:00Z&to=2026-03-01T00:00:00Z&step=hour")
        .await
        .invalid("?from", "too_many_points");
    get("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z")
        .await
        .invalid("?to", "out_of_range");
    for wrong in ["step=minute", "from=yesterday", "until=2026-01-01T00:00:00Z"] {
        get(wrong).await.refused(422, "validation_failed");
    }
    service.stop().await;
}
