//! How many there are now, told from sums.

use coupon_core::{book, caller::Role, job::bulk};
use coupon_tests::Service;
use serde_json::json;
use sqlx::AssertSqlSafe;

use super::{rolled_up, step};

/// The counts as the service tells them and as the ledger has them.
async fn counts(service: &Service) -> (Vec<(String, i64)>, Vec<(String, i64)>) {
    let mut connection = service.db.pool().acquire().await.unwrap();
    let mut told = bulk::counts(&mut connection).await.unwrap();
    told.retain(|(_, count)| *count != 0);
    told.sort();
    let counted = sqlx::query_as("SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state")
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    (told, counted)
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_of_jobs_are_those_of_the_ledger_and_do_not_read_it() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let (_, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({})).await;
    let assign = json!({ "book_id": book_id, "user_id": user_id });
    let check = async |service: &Service, when: &str| {
        let (told, counted) = counts(service).await;
        assert_eq!(told, counted, "{when}");
    };
    let mut jobs = Vec::new();
    for _ in 0..6 {
        let job = admin.post("/v1/coupons/assign", assign.clone()).await.expect(202);
        jobs.push(job["id"].as_str().unwrap().to_owned());
    }
    check(&service, "queued").await;
    admin
        .post(&format!("/v1/jobs/{}/cancel", jobs[0]), json!({}))
        .await
        .expect(202);
    let filter = json!({ "action": "cancel", "filter": { "state": "queued" }, "expected_count": 5 });
    check(&service, "one cancelled").await;
    step(&service.db).await;
    check(&service, "in the sums").await;
    admin.post("/v1/jobs/bulk", filter).await.expect(200);
    check(&service, "all cancelled").await;
    for _ in 0..4 {
        let job = admin.post("/v1/coupons/assign", assign.clone()).await.expect(202);
        jobs.push(job["id"].as_str().unwrap().to_owned());
    }
    service.start_workers();
    for job in &jobs[6..] {
        assert_eq!(admin.job_end(job).await["state"], "failed"); // there is no code
    }
    check(&service, "failed").await;
    admin.codes(book_id, &["J-1".to_owned()]).await;
    check(&service, "an import").await;
    service.stop_workers().await;
    sqlx::query("UPDATE jobs SET error_code = 'attempts_exhausted' WHERE id = $1::uuid")
        .bind(&jobs[6])
        .execute(service.db.pool())
        .await
        .unwrap();
    admin
        .post(&format!("/v1/jobs/{}/retry", jobs[6]), json!({}))
        .await
        .expect(202);
    check(&service, "tried again").await;
    sqlx::query("DELETE FROM jobs WHERE id = $1::uuid")
        .bind(&jobs[7])
        .execute(service.db.pool())
        .await
        .unwrap();
    check(&service, "one forgotten").await;
    rolled_up(&service.db).await;
    check(&service, "all in the sums").await;
    // The throughput stays: five and one cancelled, four failed, an import.
    let ended: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT kind, state, sum(jobs)::bigint FROM job_hours GROUP BY kind, state ORDER BY 1, 2",
    )
    .fetch_all(service.db.pool())
    .await
    .unwrap();
    let row = |kind: &str, state: &str, count| (kind.to_owned(), state.to_owned(), count);
    assert_eq!(
        ended,
        [
            row("assign", "cancelled", 6),
            row("assign", "failed", 4),
            row("import", "succeeded", 1)
        ]
    );

    let explain = format!("EXPLAIN {}", bulk::COUNTS.replace("$1", "'system'"));
    let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain))
        .fetch_all(service.db.pool())
        .await
        .unwrap();
    let plan = plan.join("\n");
    assert!(
        plan.contains("on jobs q") && !plan.contains("on jobs j") && !plan.contains("on jobs  "),
        "{plan}"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_book_is_counted_from_sums_and_as_exactly() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({ "lock_seconds": 5 })).await;
    let csv: String = std::iter::once("code\n".to_owned())
        .chain((0..60_000).map(|n| format!("L{n:06}\n")))
        .collect();
    let path = format!("/v1/books/{book_id}/codes/import");
    let upload = admin.post_csv(&path, csv).await.expect(202);
    assert_eq!(
        admin.job_end(upload["id"].as_str().unwrap()).await["state"],
        "succeeded"
    );
    let check = async |when: &str| {
        // Told and counted in one transaction, so that no sweep of locks comes between.
        let mut tx = service.db.begin().await.unwrap();
        sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            .execute(&mut *tx)
            .await
            .unwrap();
        let told = book::stats(&mut tx, book_id).await.unwrap();
        let summed: book::Stats = sqlx::query_as(book::COUNT_FROM_SUMS)
            .bind(book_id)
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        let counted: book::Stats = sqlx::query_as(
            "SELECT count(*) AS total, count(*) FILTER (WHERE state = 'unassigned') AS unassigned,
                    count(*) FILTER (WHERE state = 'assigned' OR (state = 'locked' AND locked_until <= now())) AS assigned,
                    count(*) FILTER (WHERE state = 'locked' AND locked_until > now()) AS locked,
                    count(*) FILTER (WHERE state = 'redeemed') AS redeemed, count(*) FILTER (WHERE state = 'void') AS void,
                    sum(redemptions_used)::bigint AS redemptions
             FROM coupons WHERE book_id = $1",
        )
        .bind(book_id)
        .fetch_one(&mut *tx)
        .await
        .unwrap();
        tx.rollback().await.unwrap();
        assert_eq!((told, summed), (counted, counted), "{when}");
        counted
    };
    check("not in the sums").await;
    rolled_up(&service.db).await;
    check("in the sums").await;
    let assign = json!({ "book_id": book_id, "user_id": user_id, "count": 10 });
    let job = admin.post("/v1/coupons/assign", assign).await.expect(202);
    let job = admin.job_end(job["id"].as_str().unwrap()).await;
    let code = |n: usize| job["result"]["coupons"][n]["code"].as_str().unwrap().to_owned();
    let lock = user
        .post(&format!("/v1/coupons/lock/{}", code(0)), json!({}))
        .await
        .expect(200);
    user.post(&format!("/v1/coupons/lock/{}", code(1)), json!({}))
        .await
        .expect(200);
    let token = json!({ "lock_token": lock["lock_token"] });
    user.post(&format!("/v1/coupons/redeem/{}", code(0)), token)
        .await
        .expect(200);
    admin
        .post(
            &format!("/v1/coupons/revoke/{}", code(2)),
            json!({ "reason": "r" }),
        )
        .await
        .expect(200);
    admin
        .post(&format!("/v1/coupons/void/{}", code(3)), json!({ "reason": "r" }))
        .await
        .expect(200);
    let counted = check("some of it in the sums").await;
    assert_eq!((counted.redeemed, counted.void, counted.redemptions), (1, 1, 1));
    rolled_up(&service.db).await;
    check("all of it in the sums").await;
    service.stop().await;
}
