//! Jobs that are interrupted, cancelled, or wait for each other.

use coupon_core::{
    db,
    generate::step,
    job::{
        Queue,
        claim::{self, Lane, Place},
    },
};
use coupon_tests::Service;
use serde_json::{Value, json};

use super::{codes, generate, generate_path, id, rows, twin};

/// Whatever of the bulk queue is due, one step, as a worker does it; `crash` rolls it back.
async fn one_step(service: &Service, crash: bool) {
    let mut tx = service.db.begin().await.unwrap();
    let job = claim::claim(&mut tx, Queue::Bulk, Lane::Fresh, 1, &mut Place::default())
        .await
        .unwrap();
    let outcome = step::step(&mut tx, job[0].id, None).await.unwrap();
    claim::settle(&mut tx, vec![(job[0].id, outcome)]).await.unwrap();
    if crash {
        tx.rollback().await.unwrap();
    } else {
        db::commit(tx).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_rolled_back_and_a_job_that_is_tried_again_make_the_same_codes() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let count = step::FIRST_STEP_CODES + 5_000;
    let body = json!({ "count": count, "pattern": "R-********" });
    let first = admin.book(json!({})).await;
    admin.post(&generate_path(first), body.clone()).await.expect(202);
    for crash in [true, false, true, true, false] {
        one_step(&service, crash).await;
    }
    assert_eq!(codes(&service, first).await.len(), count);
    let second = twin(&service, &admin, first).await;
    let job = admin.post(&generate_path(second), body).await.expect(202);
    one_step(&service, false).await;
    // Given up after a step, as after too many crashes.
    sqlx::raw_sql(
        "DELETE FROM apalis.jobs; DELETE FROM code_job_slots;
         UPDATE jobs SET state = 'failed', error_code = 'attempts_exhausted', finished_at = now() WHERE finished_at IS NULL",
    )
    .execute(service.db.pool())
    .await
    .unwrap();
    admin
        .post(&format!("/v1/jobs/{}/retry", id(&job)), json!({}))
        .await
        .expect(202);
    service.start_workers();
    let job = admin.job_end(id(&job)).await;
    assert_eq!(job["result"]["generated"], count, "{job}");
    assert_eq!(rows(&service, second).await, rows(&service, first).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_keeps_what_it_made_and_frees_the_rest() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let body = json!({ "count": 110_000, "pattern": "C-######" });
    let cancel = async |job: &Value| {
        admin
            .post(&format!("/v1/jobs/{}/cancel", id(job)), json!({}))
            .await
            .expect(202)
    };
    // 1,000,000 codes: room for 100,000 coupons.
    admin
        .post(&generate_path(book_id), body)
        .await
        .refused(422, "pattern_space_too_small");
    let body = json!({ "count": 90_000, "pattern": "C-######" });
    let queued = admin
        .post(&generate_path(book_id), body.clone())
        .await
        .expect(202);
    // What waits counts.
    let refused = admin.post(&generate_path(book_id), body.clone()).await;
    refused.refused(422, "pattern_space_too_small");
    assert_eq!(cancel(&queued).await["state"], "cancelled");
    let running = admin.post(&generate_path(book_id), body).await.expect(202);
    one_step(&service, false).await;
    assert_eq!(cancel(&running).await["state"], "cancelling");
    service.start_workers();
    let job = admin.job_end(id(&running)).await;
    assert_eq!(
        (&job["state"], &job["result"]),
        (
            &json!("cancelled"),
            &json!({ "generated": step::FIRST_STEP_CODES })
        ),
        "{job}"
    );
    let body = json!({ "count": 100_000 - step::FIRST_STEP_CODES, "pattern": "c######" });
    let rest = generate(&admin, book_id, body).await;
    assert_eq!(
        (&rest["state"], &rest["counts"]["skipped"]),
        (&json!("succeeded"), &json!(0)),
        "{rest}"
    );
    assert_eq!(codes(&service, book_id).await.len(), 100_000);
    let one = json!({ "count": 1, "pattern": "C-######" });
    admin
        .post(&generate_path(book_id), one)
        .await
        .refused(422, "pattern_space_too_small");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_add_codes_to_a_book_take_turns() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({ "pattern": "T-******" })).await;
    let import = format!("/v1/books/{book_id}/codes/import");
    let mut jobs = vec![admin.post_csv(&import, "code\nONE\n").await.expect(202)];
    for _ in 0..2 {
        jobs.push(
            admin
                .post(&generate_path(book_id), json!({ "count": 2_000 }))
                .await
                .expect(202),
        );
    }
    service.start_workers();
    for job in jobs {
        assert_eq!(admin.job_end(id(&job)).await["state"], "succeeded");
    }
    assert_eq!(codes(&service, book_id).await.len(), 4_001);
    service.stop().await;
}
