//! Roll-ups: every event and every change of a job is in the sums exactly once, whoever is killed and whoever commits
//! late; what is read from the sums is what the tables say.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use coupon_core::{
    book,
    caller::Role,
    db::{self, Db},
    job::bulk,
    stats::roll_up::{EVENTS_BATCH, roll_up},
};
use coupon_tests::{Service, fresh};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio::{sync::Barrier, time::Instant};
use uuid::Uuid;

/// One step of the sweep, without the margin; gives whether there is more.
async fn step(db: &Db) -> bool {
    let mut tx = db.begin().await.unwrap();
    let more = roll_up(&mut tx, Duration::ZERO).await.unwrap();
    db::commit(tx).await.unwrap();
    more
}

/// The smallest id of a moment.
fn id_at(time: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(time.timestamp_millis()).unwrap();
    Uuid::from_u128((millis << 80) | (0x7 << 76) | (0x8 << 60))
}

/// Sweeps until everything that has happened so far is in the sums.
async fn rolled_up(db: &Db) {
    let now: DateTime<Utc> = sqlx::query_scalar("SELECT clock_timestamp()")
        .fetch_one(db.pool())
        .await
        .unwrap();
    let wanted = id_at(now + TimeDelta::milliseconds(1));
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        step(db).await;
        let (until, left): (Uuid, i64) =
            sqlx::query_as("SELECT events_before, (SELECT count(*) FROM job_changes) FROM roll_up_state")
                .fetch_one(db.pool())
                .await
                .unwrap();
        if until >= wanted && left == 0 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the sums stand at {until}, {left} changes are left"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a series says last.
fn last(series: &Value) -> &Value {
    series["points"]
        .as_array()
        .and_then(|points| points.last())
        .unwrap()
}

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

/// Codes come into two books and are given away, one event every ten minutes, over so many hours.
async fn seed_hours(db: &Db, books: [Uuid; 2], from: DateTime<Utc>, hours: i64) {
    let (mut ids, mut of) = (Vec::new(), Vec::new());
    for minute in (0..hours * 60).step_by(10) {
        for (number, book_id) in (0..).zip(books) {
            let id = id_at(from + TimeDelta::minutes(minute));
            ids.push(Uuid::from_u128(id.as_u128() + number));
            of.push(book_id);
        }
    }
    sqlx::query(
        "INSERT INTO events (book_id, id, actor_kind, kind, code_key, before, after)
         SELECT n.book_id, n.id, 'system', 'coupon_assigned', 'C', '{\"state\": \"unassigned\"}', '{\"state\": \"assigned\"}'
         FROM unnest($1::uuid[], $2::uuid[]) AS n (book_id, id)",
    )
    .bind(&of)
    .bind(&ids)
    .execute(db.pool())
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO events (book_id, id, actor_kind, kind, after)
         SELECT b, $2, 'system', 'codes_added', '{\"count\": 1000}' FROM unnest($1::uuid[]) AS b",
    )
    .bind(books)
    .bind(id_at(from - TimeDelta::hours(100)))
    .execute(db.pool())
    .await
    .unwrap();
}

/// Book, hours that have a row, codes that came in, assignments, and what is unassigned and assigned at the end.
async fn sums(db: &Db) -> Vec<(Uuid, i64, i64, i64, i64, i64)> {
    sqlx::query_as(
        "SELECT book_id, count(*), sum(added_count)::bigint, sum(assigned_count)::bigint,
                (array_agg(unassigned ORDER BY hour DESC))[1], (array_agg(assigned ORDER BY hour DESC))[1]
         FROM book_hours GROUP BY book_id ORDER BY book_id",
    )
    .fetch_all(db.pool())
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_the_same_after_sweeps_that_were_killed_ran_twice_or_side_by_side() {
    let (database, db) = fresh().await;
    let from = "2026-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap();
    let books = [Uuid::from_u128(1), Uuid::from_u128(2)];
    seed_hours(&db, books, from, 30).await;
    let mut rounds = 0;
    loop {
        // Killed: all that it did is gone.
        let mut tx = db.begin().await.unwrap();
        roll_up(&mut tx, Duration::ZERO).await.unwrap();
        tx.rollback().await.unwrap();
        let barrier = Arc::new(Barrier::new(3));
        let sweeps: Vec<_> = (0..3)
            .map(|_| {
                let (db, barrier) = (db.clone(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    barrier.wait().await;
                    step(&db).await
                })
            })
            .collect();
        for sweep in sweeps {
            sweep.await.unwrap();
        }
        rounds += 1;
        assert!(rounds < 200, "it does not end");
        let seen: i64 = sums(&db).await.iter().map(|row| row.3).sum();
        if seen == 30 * 6 * 4 {
            break;
        }
    }
    rolled_up(&db).await;
    // Each hour of the assignments, and that of the codes a hundred hours before.
    let expected = |book_id, times: i64| (book_id, 31, 1_000 * times, 180 * times, 820 * times, 180 * times);
    let all = [
        expected(Uuid::nil(), 2),
        expected(books[0], 1),
        expected(books[1], 1),
    ];
    assert_eq!(sums(&db).await, all);
    for _ in 0..3 {
        step(&db).await;
    }
    assert_eq!(sums(&db).await, all);
    db.close().await;
    drop(database);
}

#[tokio::test]
async fn more_events_than_a_step_takes_are_taken_in_several() {
    let (database, db) = fresh().await;
    let wanted = EVENTS_BATCH + 5;
    sqlx::query(
        "INSERT INTO events (book_id, id, actor_kind, kind, code_key, before, after)
         SELECT $1, uuid_v7(), 'system', 'coupon_assigned', 'C', '{\"state\": \"unassigned\"}', '{\"state\": \"assigned\"}'
         FROM generate_series(1, $2)",
    )
    .bind(Uuid::from_u128(1))
    .bind(wanted)
    .execute(db.pool())
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await; // the next mark has a later millisecond
    let mut more = step(&db).await;
    // A mark counts once everybody on the server who wrote before it has ended, other databases' writers too.
    while sums(&db).await.is_empty() {
        more = step(&db).await;
    }
    assert!(more, "there is more");
    let rows = sums(&db).await;
    assert!(rows.iter().all(|row| row.3 <= EVENTS_BATCH), "{rows:?}");
    rolled_up(&db).await;
    let rows = sums(&db).await;
    assert!(rows.iter().all(|row| row.3 == wanted), "{rows:?}");
    db.close().await;
    drop(database);
}

#[tokio::test]
async fn an_event_of_a_transaction_that_commits_late_is_in_the_sums_all_the_same() {
    let (database, db) = fresh().await;
    let book_id = Uuid::from_u128(1);
    let insert = "INSERT INTO events (book_id, id, actor_kind, kind, after)
                  VALUES ($1, uuid_v7(), 'system', 'codes_added', '{\"count\": 7}')";
    let mut late = db.begin().await.unwrap();
    sqlx::query(insert)
        .bind(book_id)
        .execute(&mut *late)
        .await
        .unwrap();
    sqlx::query(insert)
        .bind(book_id)
        .execute(db.pool())
        .await
        .unwrap();
    for _ in 0..5 {
        step(&db).await;
    }
    assert_eq!(
        sums(&db).await,
        [],
        "nothing that is younger than the open transaction"
    );
    db::commit(late).await.unwrap();
    rolled_up(&db).await;
    assert!(
        sums(&db).await.iter().all(|row| row.2 == 14),
        "{:?}",
        sums(&db).await
    );

    // Who only reads holds nothing up, however long it takes.
    let mut reading = db.begin().await.unwrap();
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM events")
        .execute(&mut *reading)
        .await
        .unwrap();
    sqlx::query(insert)
        .bind(book_id)
        .execute(db.pool())
        .await
        .unwrap();
    rolled_up(&db).await;
    assert!(sums(&db).await.iter().all(|row| row.2 == 21));
    reading.rollback().await.unwrap();
    db.close().await;
    drop(database);
}

#[tokio::test]
async fn sums_go_on_in_a_database_that_was_restored_on_another_server() {
    let (database, db) = fresh().await;
    sqlx::query("UPDATE roll_up_state SET mark_xid = '900000000000'")
        .execute(db.pool())
        .await
        .unwrap();
    rolled_up(&db).await;
    db.close().await;
    drop(database);
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
