//! What happens beside a run: people and coupons change, other runs and assigns, and somebody who stops it.

use coupon_core::db;
use coupon_tests::{Service, seed};
use serde_json::json;
use uuid::Uuid;

use super::{counts, disable, held, holds, items, stock};
use crate::pools::seeded_pool;

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
