//! What comes between the writing of a step and its turn: draws, a cancellation, another worker.
//!
//! Whoever holds the book's draw holds up the end of a step that was written ahead, and with it everything behind.

use std::sync::Arc;

use coupon_core::db::{self, Tx};
use coupon_tests::{Service, seed};
use serde_json::json;
use uuid::Uuid;

use super::{CODES, Desk, FIRST_CODES, FIRST_RECORDS, RECORDS, coupons, draw_is_right, lines, make, send};
use crate::truth;

/// Holds the draw of a book as a batch of draws does.
async fn hold_draw(desk: &Desk, book_id: Uuid) -> Tx {
    let mut holder = desk.db.begin().await.unwrap();
    sqlx::query("SELECT FROM draw_states WHERE book_id = $1 FOR UPDATE")
        .bind(book_id)
        .execute(&mut *holder)
        .await
        .unwrap();
    holder
}

/// Waits until at least so many sessions wait for the end of a transaction.
async fn waiting(service: &Service, sessions: i64) {
    let look = || async {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event IN ('transactionid', 'tuple')";
        sqlx::query_scalar::<_, i64>(sql)
            .fetch_one(service.db.pool())
            .await
            .unwrap()
    };
    truth::eventually("sessions wait", truth::PATIENCE, look, |count| *count >= sessions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_written_ahead_is_undone_when_somebody_draws_before_its_turn() {
    let service = Service::without_workers().await;
    let (admin, desk) = (service.admin().await, Desk::at(&service));
    let (imported, made) = (admin.book(json!({})).await, admin.book(json!({})).await);
    for (book_id, first, length) in [(imported, FIRST_RECORDS, RECORDS), (made, FIRST_CODES, CODES)] {
        match book_id == imported {
            true => send(&admin, book_id, lines(0..100_000)).await,
            false => make(&admin, book_id, 200_000).await,
        };
        desk.step(false).await;
        let mut drawer = hold_draw(&desk, book_id).await;
        let running = tokio::spawn({
            let desk = Arc::clone(&desk);
            async move { desk.step(true).await }
        });
        waiting(&service, 1).await;
        // As far as most draws never come: what was laid by the cursor of before would mostly be lost.
        sqlx::query("UPDATE draw_states SET cursor = (1::bigint << 62) WHERE book_id = $1")
            .bind(book_id)
            .execute(&mut *drawer)
            .await
            .unwrap();
        sqlx::query("UPDATE coupons SET state = 'void' WHERE book_id = $1 AND draw_key < (1::bigint << 62)")
            .bind(book_id)
            .execute(&mut *drawer)
            .await
            .unwrap();
        db::commit(drawer).await.unwrap();
        running.await.unwrap();
        assert_eq!(coupons(&service, book_id).await, first + length, "a single step");
        draw_is_right(&service, book_id).await;
        // Nobody else comes between, but for a while the job is careful.
        desk.step(true).await;
        let done = coupons(&service, book_id).await;
        assert!(
            (first + length + 1..=first + 2 * length).contains(&done),
            "{done}"
        );
        draw_is_right(&service, book_id).await;
        sqlx::raw_sql("UPDATE apalis.jobs SET run_at = now() + interval '1 day'")
            .execute(service.db.pool())
            .await
            .unwrap();
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_ends_before_the_next_step_also_if_that_is_written() {
    let service = Service::without_workers().await;
    let (admin, desk) = (service.admin().await, Desk::at(&service));
    let (imported, made) = (admin.book(json!({})).await, admin.book(json!({})).await);
    for (book_id, due) in [(imported, FIRST_RECORDS + RECORDS), (made, FIRST_CODES + CODES)] {
        let job_id = match book_id == imported {
            true => send(&admin, book_id, lines(0..150_000)).await,
            false => make(&admin, book_id, 300_000).await,
        };
        desk.step(false).await;
        let holder = hold_draw(&desk, book_id).await;
        let running = tokio::spawn({
            let desk = Arc::clone(&desk);
            async move { desk.step(true).await }
        });
        waiting(&service, 1).await; // this step asked before
        let path = format!("/v1/jobs/{job_id}");
        admin.post(&format!("{path}/cancel"), json!({})).await.expect(202);
        holder.rollback().await.unwrap();
        running.await.unwrap();
        assert_eq!(coupons(&service, book_id).await, due);
        desk.step(true).await;
        let job = admin.get(&path).await.expect(200);
        assert_eq!(
            (&job["state"], &job["progress"]["done"]),
            (&json!("cancelled"), &json!(due)),
            "{job}"
        );
        assert_eq!(coupons(&service, book_id).await, due);
        draw_is_right(&service, book_id).await;
    }
    truth::holds(service.db.pool()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_has_lost_its_claim_makes_nothing_twice() {
    let mut service = Service::without_workers().await;
    let (admin, desk) = (service.admin().await, Desk::at(&service));
    let (imported, made) = (admin.book(json!({})).await, admin.book(json!({})).await);
    for (book_id, count) in [(imported, 150_000), (made, 300_000)] {
        let job_id = match book_id == imported {
            true => send(&admin, book_id, lines(0..count)).await,
            false => make(&admin, book_id, count).await,
        };
        desk.step(false).await;
        let holder = hold_draw(&desk, book_id).await;
        // One is cut off from its claim while a step of its is about to end ...
        let mut tx = desk.db.begin().await.unwrap();
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        let lost = tokio::spawn({
            let desk = Arc::clone(&desk);
            async move { desk.run(&mut tx, true).await.is_err() }
        });
        waiting(&service, 1).await;
        sqlx::query("SELECT pg_terminate_backend($1)")
            .bind(pid)
            .execute(service.db.pool())
            .await
            .unwrap();
        // ... and another worker takes the job on.
        let other = tokio::spawn({
            let desk = Arc::clone(&desk);
            async move { desk.step(false).await }
        });
        waiting(&service, 2).await;
        holder.rollback().await.unwrap();
        assert!(lost.await.unwrap(), "it finds out");
        other.await.unwrap();
        service.start_workers();
        let job = admin.job_end_within(&job_id, truth::PATIENCE).await;
        assert_eq!(
            (&job["state"], &job["progress"]["done"]),
            (&json!("succeeded"), &json!(count)),
            "{job}"
        );
        assert_eq!(coupons(&service, book_id).await, count);
        draw_is_right(&service, book_id).await;
        service.stop_workers().await;
    }
    truth::holds(service.db.pool()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_draw_while_codes_come_in() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let users = seed::users(&service.db, 40).await;
    admin.codes(book_id, &["A1".into(), "A2".into()]).await;
    let jobs = [
        send(&admin, book_id, lines(0..100_000)).await,
        make(&admin, book_id, 100_000).await,
    ];
    let first_is_over = async || {
        let job = admin.get(&format!("/v1/jobs/{}", jobs[0])).await.expect(200);
        job["finished_at"].is_string()
    };
    let (mut given, mut refused) = (0, 0);
    for user_id in users.iter().cycle().take(2_000) {
        let body = json!({ "book_id": book_id, "user_id": user_id });
        let draw = admin.post("/v1/coupons/assign", body).await.expect(202);
        let draw = admin.job_end(draw["id"].as_str().unwrap()).await;
        match draw["state"] == json!("succeeded") {
            true => given += 1,
            false => refused += 1,
        }
        if first_is_over().await {
            break;
        }
    }
    for (job_id, count) in jobs.iter().zip([100_000, 100_000]) {
        let job = admin.job_end_within(job_id, truth::PATIENCE).await;
        assert_eq!(
            (&job["state"], &job["progress"]["done"]),
            (&json!("succeeded"), &json!(count)),
            "{job}"
        );
    }
    assert!(given > 0 && refused <= given, "{given} given, {refused} refused");
    assert_eq!(coupons(&service, book_id).await, 200_002);
    draw_is_right(&service, book_id).await;
    truth::holds(service.db.pool()).await;
    service.stop().await;
}
