//! The draw while the book changes: codes that arrive late, that lie at one place, that may come back.

use std::{collections::BTreeSet, time::Duration};

use coupon_core::{caller::Role, db};
use coupon_tests::{Client, Service, seed};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::{agrees, assign, at_once, clients, codes_of, outcome, seed_codes};
use crate::truth;

#[tokio::test(flavor = "multi_thread")]
async fn codes_that_arrive_while_others_are_drawn_are_neither_lost_nor_given_twice() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 50, 1, None).await;
    let users = seed::users(&service.db, 60).await;
    let csv: String = ["code\n".to_owned()]
        .into_iter()
        .chain((0..400).map(|number| format!("LATE-{number}\n")))
        .collect();
    let path = format!("/v1/books/{book_id}/codes/import");
    let importing = {
        let admin = admin.on_own_connection();
        async move {
            let job = admin.post_csv(&path, csv).await.expect(202);
            admin.job_end(job["id"].as_str().unwrap()).await
        }
    };
    let clients = clients(&admin, 6);
    let drawing = at_once(users.iter().enumerate().map(|(number, user_id)| {
        let client = clients[number % clients.len()].clone();
        let body = json!({ "book_id": book_id, "user_id": user_id, "count": 2 });
        async move { assign(&client, "/v1/coupons/assign", body).await }
    }));
    let (imported, mut jobs) = tokio::join!(importing, drawing);
    assert_eq!(
        (&imported["state"], &imported["result"]["accepted"]),
        (&json!("succeeded"), &json!(400)),
        "{imported}"
    );
    let said: BTreeSet<String> = jobs.iter().map(outcome).collect();
    assert!(
        said.iter()
            .all(|said| said == "succeeded" || said == "book_exhausted"),
        "{said:?}"
    );
    agrees(&service, book_id).await;
    let stats = admin.get(&format!("/v1/books/{book_id}/stats")).await.expect(200);
    let drawn: usize = jobs.iter().flatten().map(|job| codes_of(job).len()).sum();
    assert_eq!(
        (&stats["total"], &stats["assigned"], &stats["unassigned"]),
        (&json!(450), &json!(drawn), &json!(450 - drawn)),
        "{stats}"
    );
    // Every other code is there to be drawn, and then nothing is.
    let body = |count: usize| json!({ "book_id": book_id, "user_id": users[0], "count": count });
    jobs.push(assign(&admin, "/v1/coupons/assign", body(450 - drawn)).await);
    assert_eq!(outcome(jobs.last().unwrap()), "succeeded");
    assert_eq!(
        outcome(&assign(&admin, "/v1/coupons/assign", body(1)).await),
        "book_exhausted"
    );
    let codes: Vec<String> = jobs.iter().flatten().flat_map(codes_of).collect();
    assert_eq!(
        (codes.len(), codes.iter().collect::<BTreeSet<_>>().len()),
        (450, 450)
    );
    agrees(&service, book_id).await;
    service.stop().await;
}

/// Draws one at a time until the book is exhausted.
async fn draw_all(admin: &Client, book_id: Uuid, user_id: Uuid) -> Vec<String> {
    let mut codes = Vec::new();
    loop {
        let body = json!({ "book_id": book_id, "user_id": user_id });
        let job = assign(admin, "/v1/coupons/assign", body).await;
        match outcome(&job).as_str() {
            "succeeded" => codes.extend(codes_of(&job.unwrap())),
            "book_exhausted" => return codes,
            other => panic!("{other}"),
        }
    }
}

fn all_different(codes: &[String]) -> usize {
    codes.iter().collect::<BTreeSet<_>>().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_at_one_place_of_the_draw_are_each_drawn_once() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let user_id = seed::user(&service.db, Role::User).await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 24, 1, None).await;
    // Three knots of eight, the last at the very end of the range.
    sqlx::query("UPDATE coupons SET draw_key = CASE substr(code_key, 2)::int % 3 WHEN 0 THEN 7 WHEN 1 THEN 8 ELSE 9223372036854775807 END WHERE book_id = $1")
        .bind(book_id)
        .execute(service.db.pool())
        .await
        .unwrap();
    let body = json!({ "book_id": book_id, "user_id": user_id, "count": 3 });
    let mut codes = codes_of(&assign(&admin, "/v1/coupons/assign", body).await.unwrap());
    assert_eq!(codes.len(), 3);
    codes.extend(draw_all(&admin, book_id, user_id).await);
    assert_eq!((codes.len(), all_different(&codes)), (24, 24));
    agrees(&service, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_draw_has_run_to_its_end_what_is_left_is_keyed_anew_and_nothing_is_lost() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let user_id = seed::user(&service.db, Role::User).await;
    let book_id = admin.book(json!({})).await;
    seed_codes(&service, book_id, 30, 1, None).await;
    // The cursor stands 2⁴² from the end; one code lies at it, one at the last key, two at one place, one is expired.
    sqlx::query(
        "WITH d AS (UPDATE draw_states SET cursor = 9223372036854775807 - (1::bigint << 42) WHERE book_id = $1 RETURNING cursor)
         UPDATE coupons c SET draw_key = CASE substr(code_key, 2)::int WHEN 1 THEN d.cursor WHEN 2 THEN 9223372036854775807
                              WHEN 3 THEN d.cursor + 4 ELSE d.cursor + substr(code_key, 2)::int END,
                              expires_at = CASE code_key WHEN 'C5' THEN now() - interval '1 s' END
         FROM d WHERE c.book_id = $1",
    )
    .bind(book_id)
    .execute(service.db.pool())
    .await
    .unwrap();
    let body = json!({ "book_id": book_id, "user_id": user_id });
    let mut codes = codes_of(&assign(&admin, "/v1/coupons/assign", body).await.unwrap());
    let (epoch, cursor, highest, left): (i32, i64, i64, i64) = sqlx::query_as(
        "SELECT d.epoch, d.cursor, max(c.draw_key), count(*) FROM draw_states d JOIN coupons c USING (book_id)
         WHERE book_id = $1 AND c.state = 'unassigned' GROUP BY 1, 2",
    )
    .bind(book_id)
    .fetch_one(service.db.pool())
    .await
    .unwrap();
    assert_eq!((epoch, left), (1, 29));
    // 29 keys that all lie in the lower eighth, or a first that lies above the middle: one chance in a billion.
    assert!(
        cursor < i64::MAX / 2 && highest > i64::MAX / 8,
        "{cursor} {highest}"
    );
    agrees(&service, book_id).await;
    admin.codes(book_id, &["LATE".to_owned()]).await;
    codes.extend(draw_all(&admin, book_id, user_id).await);
    assert_eq!(
        (codes.len(), all_different(&codes)),
        (30, 30),
        "29 and the late one; one has expired"
    );
    assert!(codes.iter().any(|code| code == "LATE") && !codes.iter().any(|code| code == "C5"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_arrives_late_is_drawn_too() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 2).await;
    let book_id = admin.book(json!({})).await;
    admin.codes(book_id, &seed::codes(40)).await;
    let body = json!({ "book_id": book_id, "user_id": users[0], "count": 20 });
    let mut codes = codes_of(&assign(&admin, "/v1/coupons/assign", body).await.unwrap());
    // Each arrival lies at or above the cursor, wherever that is.
    for late in 0..5 {
        admin.codes(book_id, &[format!("LATE-{late}")]).await;
        agrees(&service, book_id).await;
        let body = json!({ "book_id": book_id, "user_id": users[0], "count": 4 });
        codes.extend(codes_of(
            &assign(&admin, "/v1/coupons/assign", body).await.unwrap(),
        ));
    }
    codes.extend(draw_all(&admin, book_id, users[1]).await);
    assert_eq!((codes.len(), all_different(&codes)), (45, 45));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_is_not_exhausted_while_somebody_else_may_give_its_last_coupon_back() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 2).await;
    for given_away in [false, true] {
        let book_id = admin.book(json!({})).await;
        seed_codes(&service, book_id, 1, 1, None).await;
        let mut other = service.db.begin().await.unwrap();
        let sql = if given_away {
            "UPDATE coupons SET state = 'assigned', assigned_user_id = $2, assigned_at = now() WHERE book_id = $1"
        } else {
            "UPDATE coupons SET state = 'void' WHERE book_id = $1 AND $2::uuid IS NOT NULL"
        };
        sqlx::query(sql)
            .bind(book_id)
            .bind(users[1])
            .execute(&mut *other)
            .await
            .unwrap();
        let body = json!({ "book_id": book_id, "user_id": users[0] });
        let job = admin.post("/v1/coupons/assign", body).await.expect(202);
        let job_id = job["id"].as_str().unwrap();
        let deadline = Instant::now() + truth::PATIENCE;
        while !sqlx::query_scalar::<_, bool>(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')",
        )
        .fetch_one(service.db.pool())
        .await
        .unwrap()
        {
            let now = admin.get(&format!("/v1/jobs/{job_id}")).await.expect(200);
            assert!(Instant::now() < deadline && now["finished_at"].is_null(), "nobody waits: {now}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let due = if given_away {
            db::commit(other).await.unwrap();
            "book_exhausted"
        } else {
            other.rollback().await.unwrap();
            "succeeded"
        };
        assert_eq!(outcome(&Ok(admin.job_end(job_id).await)), due);
    }
    service.stop().await;
}
