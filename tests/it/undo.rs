//! Undoing a distribution: what is still only assigned goes back, what is locked, used or given anew stays; and runs and
//! undoings whose workers are killed end as if nobody had been.

use coupon_core::db;
use coupon_tests::{Client, Service, process::Process, seed};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    crash::Cluster,
    distributions::{distribute, held, holds, stock},
    pools::seeded_pool,
    truth::{self, Dice, scale},
};

/// Undoes a distribution; gives its job.
async fn undo(admin: &Client, distribution: &Value) -> Value {
    let path = format!("/v1/distributions/{}/undo", distribution["id"].as_str().unwrap());
    let job = admin.post(&path, json!({})).await.expect(202);
    admin.job_end(job["id"].as_str().unwrap()).await
}

async fn code_of(admin: &Client, book_id: Uuid, user_id: Uuid) -> String {
    let coupons = admin
        .get(&format!("/v1/books/{book_id}/coupons?user_id={user_id}"))
        .await
        .expect(200);
    coupons["data"][0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn undoing_takes_back_what_is_still_assigned_and_says_what_stays() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 20).await;
    let book_id = admin
        .book(json!({ "require_lock": false, "redemptions_per_coupon": 2 }))
        .await;
    stock(&service.db, book_id, 25).await;
    sqlx::query("UPDATE coupons SET redemptions_allowed = 2 WHERE book_id = $1")
        .bind(book_id)
        .execute(service.db.pool())
        .await
        .unwrap();
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1 });
    let (_, done) = distribute(&admin, body).await;

    let mut codes = Vec::new();
    for user in &users[..6] {
        codes.push(code_of(&admin, book_id, *user).await);
    }
    let act = async |action: &str, code: &str, body: Value| {
        admin
            .post(&format!("/v1/coupons/{action}/{code}"), body)
            .await
            .expect(200)
    };
    act("lock", &codes[0], json!({})).await;
    act("redeem", &codes[1], json!({})).await;
    act("void", &codes[2], json!({ "reason": "r" })).await;
    act("revoke", &codes[3], json!({ "reason": "r" })).await;
    // Taken back and given to the same person again, by hand: that is no longer the distribution's.
    act("revoke", &codes[4], json!({ "reason": "r" })).await;
    let by_hand = json!({ "book_id": book_id, "user_id": users[4] });
    let job = admin
        .with("Prefer", "wait=20")
        .post(&format!("/v1/coupons/assign/{}", codes[4]), by_hand)
        .await
        .expect(200);
    assert_eq!(job["state"], "succeeded");
    // Used and given back: assigned again, and nothing of it is spent.
    let redemption = act("redeem", &codes[5], json!({})).await;
    admin
        .post(
            &format!("/v1/redemptions/{}/rollback", redemption["id"].as_str().unwrap()),
            json!({ "reason": "r" }),
        )
        .await
        .expect(201);

    let job = undo(&admin, &done).await;
    assert_eq!(job["state"], "partially_succeeded", "{job}");
    assert_eq!(
        (&job["result"]["undone"], &job["result"]["kept"]),
        (&json!(15), &json!(3))
    );
    assert_eq!(
        job["result"]["reasons"],
        json!({ "locked": 1, "use_spent": 1, "void": 1, "revoked": 2 })
    );
    let path = format!("/v1/distributions/{}", done["id"].as_str().unwrap());
    let after = admin.get(&path).await.expect(200);
    assert_eq!(
        (&after["state"], &after["counts"]["undone"]),
        (&json!("partially_undone"), &json!(15))
    );
    let held = held(&service.db, book_id).await;
    let holders: Vec<usize> = (0..20).filter(|n| held.contains_key(&users[*n])).collect();
    assert_eq!(holders, [0, 1, 2, 4]);
    holds(&service.db, book_id).await;
    let free = admin.get(&format!("/v1/books/{book_id}/stats")).await.expect(200);
    assert_eq!((&free["unassigned"], &free["total"]), (&json!(21), &json!(25)));

    // The lock is given back: now that one can be undone, too; then nothing is left.
    act("unlock", &codes[0], json!({})).await;
    let job = undo(&admin, &done).await;
    assert_eq!(
        (&job["result"]["undone"], &job["result"]["kept"]),
        (&json!(16), &json!(2))
    );
    admin
        .post(&format!("{path}/undo"), json!({}))
        .await
        .refused(409, "nothing_to_undo");
    holds(&service.db, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distribution_is_undone_wholly_once_and_its_coupons_can_be_given_again() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 3_000).await;
    let book_id = admin.book(json!({ "max_assignments_per_user": 2 })).await;
    stock(&service.db, book_id, 6_000).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 2 });
    for _ in 0..2 {
        let (_, done) = distribute(&admin, body.clone()).await;
        assert_eq!(done["state"], "completed");
        let job = undo(&admin, &done).await;
        assert_eq!(
            (&job["state"], &job["result"]["undone"], &job["result"]["kept"]),
            (&json!("succeeded"), &json!(6_000), &json!(0))
        );
        let path = format!("/v1/distributions/{}", done["id"].as_str().unwrap());
        let after = admin.get(&path).await.expect(200);
        assert_eq!(after["state"], "undone");
        assert!(after["undone_at"].is_string());
        admin
            .post(&format!("{path}/undo"), json!({}))
            .await
            .refused(409, "nothing_to_undo");
        assert_eq!(held(&service.db, book_id).await.len(), 0);
        holds(&service.db, book_id).await;
    }
    let absent = format!("/v1/distributions/{}/undo", Uuid::now_v7());
    admin.post(&absent, json!({})).await.refused(404, "not_found");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_during_run_and_undo_double_nothing() {
    let mut dice = Dice::new("kill -9 during a distribution");
    let (people, kills) = (scale(20_000, 100_000), scale(3, 30));
    let cluster = Cluster::start(people).await;
    let api = Process::api(&cluster.url).await;
    let client = cluster.client(&api.url());
    let db = db::Db::connect(&cluster.url, db::Role::Worker, 2).unwrap();
    let book_id = client.book(json!({ "max_assignments_per_user": 2 })).await;
    stock(&db, book_id, people * 2).await;
    let pool_id = seeded_pool(&db, &cluster.users).await;
    let mut worker = Process::worker(&cluster.url).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "random", "total": people * 2, "max_per_user": 2 });
    let job = client.post("/v1/distributions", body).await.expect(202);
    let distribution = job["result"]["distribution_id"].as_str().unwrap().to_owned();
    let moved = |column: &'static str| {
        let pool = db.pool().clone();
        async move {
            let sql = match column {
                "assigned" => "SELECT coalesce(max(assigned), 0) FROM distributions",
                _ => "SELECT coalesce(max(undone), 0) FROM distributions",
            };
            sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.unwrap()
        }
    };
    for (column, job) in [
        ("assigned", job["id"].as_str().unwrap().to_owned()),
        ("undone", String::new()),
    ] {
        let job = match job.as_str() {
            "" => {
                let path = format!("/v1/distributions/{distribution}/undo");
                client.post(&path, json!({})).await.expect(202)["id"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            }
            _ => job,
        };
        for kill in 0..kills {
            let aim = dice.below(people * 2 / kills) + kill * people * 2 / kills;
            let looked = || moved(column);
            truth::eventually("progress", std::time::Duration::from_secs(120), looked, |done| {
                *done >= aim as i64
            })
            .await;
            tokio::time::sleep(dice.millis(80)).await;
            worker.kill().await;
            worker = Process::worker(&cluster.url).await;
        }
        let job = client.job_end(&job).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        holds(&db, book_id).await;
        let held = held(&db, book_id).await;
        let expected = if column == "assigned" {
            people as i64 * 2
        } else {
            0
        };
        assert_eq!(held.values().sum::<i64>(), expected);
        assert!(held.values().all(|count| *count <= 2));
    }
    db.close().await;
    cluster.stop(vec![api, worker]).await;
}
