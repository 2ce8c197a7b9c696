//! Clients that hang up at any moment: nothing half-done, no connection left in a transaction, every accepted job ends.

use std::{
    future::{Future, poll_fn},
    task::Poll,
    time::Duration,
};

use coupon_core::{
    caller::Role as UserRole,
    db::{self, Db, Role},
    user::session,
};
use coupon_tests::{Service, seed, size};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    queue::id,
    truth::{self, Dice, report},
};

/// Hangs up after some of the request, or after all of it and some time.
async fn hang_up(address: &str, request: &[u8], dice: &mut Dice) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let part = match dice.below(4) {
        0 => dice.below(request.len()),
        _ => request.len(),
    };
    let (first, second) = request[..part].split_at(dice.below(part + 1));
    let _ = stream.write_all(first).await;
    if dice.below(2) == 0 {
        tokio::time::sleep(dice.millis(5)).await;
    }
    let _ = stream.write_all(second).await;
    match dice.below(4) {
        0 => {}
        1 => {
            let mut some = [0; 20];
            let _ = tokio::time::timeout(dice.millis(40), stream.read(&mut some)).await;
        }
        _ => tokio::time::sleep(dice.millis(25)).await,
    }
}

fn request(path: &str, token: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hang_up_leave_nothing_half_done() {
    let mut dice = Dice::new("clients that hang up");
    let count = size(500, 2_000);
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 50).await;
    let admin_id = seed::user(&service.db, UserRole::Admin).await;
    let mut tx = service.db.begin().await.unwrap();
    let session = session::open(&mut tx, service.app.authenticator().keys(), admin_id, None);
    let token = session.await.unwrap().expect("an enabled account").access_token;
    db::commit(tx).await.unwrap();

    let book_id = admin
        .book(json!({ "require_lock": false, "redemptions_per_coupon": 3 }))
        .await;
    admin.codes(book_id, &seed::codes(count * 2)).await;
    let held = json!({ "book_id": book_id, "user_id": users[0], "count": 100 });
    let held = id(&admin.post("/v1/coupons/assign", held).await.expect(202));
    let held = admin.job_end(&held.to_string()).await;
    let held: Vec<String> = held["result"]["coupons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|coupon| coupon["code"].as_str().unwrap().to_owned())
        .collect();
    let mut import_books = Vec::new();
    for _ in 0..8 {
        import_books.push(admin.book(json!({})).await);
    }
    let upload = format!("code\n{}\n", seed::codes(3_000).join("\n"));

    let address = service.url.trim_start_matches("http://").to_owned();
    let mut lanes = Vec::new();
    for _ in 0..20 {
        let (mut dice, address, token, users) = (dice.fork(), address.clone(), token.clone(), users.clone());
        let (held, upload, import_books) = (held.clone(), upload.clone(), import_books.clone());
        lanes.push(tokio::spawn(async move {
            for _ in 0..count / 20 {
                let code = &held[dice.below(held.len())];
                let json = "Content-Type: application/json\r\n";
                let request = match dice.below(5) {
                    0 | 1 => {
                        let body = json!({ "book_id": book_id, "user_id": users[dice.below(users.len())] });
                        let headers = format!("{json}Prefer: wait=5\r\n");
                        request("/v1/coupons/assign", &token, &headers, &body.to_string())
                    }
                    2 => request(&format!("/v1/coupons/lock/{code}"), &token, json, "{}"),
                    3 => request(&format!("/v1/coupons/redeem/{code}"), &token, json, "{}"),
                    _ => {
                        let book_id = import_books[dice.below(import_books.len())];
                        let path = format!("/v1/books/{book_id}/codes/import");
                        request(&path, &token, "Content-Type: text/csv\r\n", &upload)
                    }
                };
                hang_up(&address, &request, &mut dice).await;
            }
        }));
    }
    for lane in lanes {
        lane.await.expect("a client");
    }

    let pool = service.db.pool();
    let open = || async {
        sqlx::query_scalar::<_, i64>(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                 AND application_name = 'couponbook-api' AND (state LIKE 'idle in transaction%' OR state = 'active')",
        )
        .fetch_one(pool)
        .await
        .unwrap()
    };
    // Well below the 10 s after which the server itself would end a forgotten transaction.
    truth::eventually("no transaction is open", Duration::from_secs(5), open, |open| {
        *open == 0
    })
    .await;
    truth::all_jobs_end(pool, Duration::from_secs(60)).await;
    truth::holds(pool).await;
    let (jobs, locks, redemptions): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM events WHERE kind = 'coupon_locked'),
                (SELECT count(*) FROM redemptions)",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    report(&format!(
        "{count} hang-ups; {jobs} jobs, {locks} locks, {redemptions} redemptions came of them"
    ));
    assert!(
        jobs > 10 && locks > 0 && redemptions > 0,
        "the requests never arrived"
    );
    // It still answers, on all of its connections at once, and what it answers is committed.
    let mut again = Vec::new();
    for user_id in users.clone() {
        let admin = admin.clone();
        again.push(tokio::spawn(async move {
            let body = json!({ "book_id": book_id, "user_id": user_id });
            id(&admin.post("/v1/coupons/assign", body).await.expect(202))
        }));
    }
    for job_id in again {
        let job = admin.job_end(&job_id.await.unwrap().to_string()).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    truth::holds(pool).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_begin_that_is_dropped_at_any_poll_leaves_no_transaction_behind() {
    let mut dice = Dice::new("a begin that is dropped");
    let database = coupon_tests::database().await;
    let other = Db::connect(database.url(), Role::Api, 1).unwrap();
    sqlx::raw_sql("CREATE TABLE written (n bigint)")
        .execute(other.pool())
        .await
        .unwrap();
    let db = Db::connect(database.url(), Role::Api, 1).unwrap();
    for n in 0..size(200, 5_000) as i64 {
        {
            let mut begin = Box::pin(db.begin());
            for _ in 0..n % 5 {
                if poll_fn(|context| Poll::Ready(begin.as_mut().poll(context).is_ready())).await {
                    break;
                }
                tokio::time::sleep(Duration::from_micros(dice.below(800) as u64)).await;
            }
        }
        sqlx::query("INSERT INTO written VALUES ($1)")
            .bind(n)
            .execute(db.pool())
            .await
            .unwrap();
        let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM written")
            .fetch_one(other.pool())
            .await
            .unwrap();
        assert_eq!(seen, n + 1, "what was answered with Ok is not committed");
    }
}
