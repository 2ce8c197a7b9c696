//! Steps that go abreast: they leave what single steps leave, and nothing when something comes between.
//!
//! Steps are run here as a worker runs them. Whoever holds the book's draw holds up the end of a step that was written
//! ahead, and with it everything behind.

use std::sync::Arc;

use coupon_core::{
    coupon::abreast::Abreast,
    db::{self, Db, Role, Tx},
    generate, import,
    job::{
        Queue,
        claim::{self, Lane, Outcome, Place},
        payload::Payload,
    },
};
use coupon_tests::{Client, Service, seed};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::truth;

const FIRST_RECORDS: i64 = import::step::FIRST_STEP_RECORDS as i64;
const RECORDS: i64 = import::step::STEP_RECORDS as i64;
const FIRST_CODES: i64 = generate::step::FIRST_STEP_CODES as i64;
const CODES: i64 = generate::step::STEP_CODES as i64;

/// What a worker has.
struct Desk {
    db: Db,
    abreast: Abreast,
}

impl Desk {
    fn at(service: &Service) -> Arc<Self> {
        let db = Db::connect(service.database.url(), Role::Worker, 12).unwrap();
        Arc::new(Self {
            abreast: Abreast::new(db.clone()),
            db,
        })
    }

    /// Claims a job of the bulk queue and runs its step.
    async fn run(&self, tx: &mut Tx, abreast: bool) -> coupon_core::error::Result<(Uuid, Outcome)> {
        let claimed = claim::claim(tx, Queue::Bulk, Lane::Fresh, 1, &mut Place::default()).await?;
        let abreast = abreast.then_some(&self.abreast);
        let job_id = claimed[0].id;
        let outcome = match claimed[0].payload {
            Some(Payload::ImportCodes) => import::step::step(tx, job_id, abreast).await?,
            Some(Payload::GenerateCodes) => generate::step::step(tx, job_id, abreast).await?,
            _ => panic!("neither an import nor codes to be made"),
        };
        Ok((job_id, outcome))
    }

    /// The same, rolled back: what stays went abreast.
    async fn only_abreast(&self) {
        let mut tx = self.db.begin().await.unwrap();
        self.run(&mut tx, true).await.unwrap();
        tx.rollback().await.unwrap();
    }

    /// The same, settled.
    async fn step(&self, abreast: bool) {
        let mut tx = self.db.begin().await.unwrap();
        let (job_id, outcome) = self.run(&mut tx, abreast).await.unwrap();
        claim::settle(&mut tx, vec![(job_id, outcome)]).await.unwrap();
        db::commit(tx).await.unwrap();
    }
}

/// Sends `csv` into a book; gives its job.
async fn send(admin: &Client, book_id: Uuid, csv: String) -> String {
    let path = format!("/v1/books/{book_id}/codes/import");
    let job = admin.post_csv(&path, csv).await.expect(202);
    job["id"].as_str().unwrap().to_owned()
}

/// Has codes made; gives their job.
async fn make(admin: &Client, book_id: Uuid, count: i64) -> String {
    let path = format!("/v1/books/{book_id}/codes/generate");
    let body = json!({ "count": count, "pattern": "W-********" });
    let job = admin.post(&path, body).await.expect(202);
    job["id"].as_str().unwrap().to_owned()
}

/// Lines `numbers`, each a code.
fn lines(numbers: std::ops::Range<i64>) -> String {
    numbers
        .map(|n| format!("N-{:07}\n", n * 7_919 % 9_999_991))
        .collect()
}

async fn number(service: &Service, book_id: Uuid, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql)
        .bind(book_id)
        .fetch_one(service.db.pool())
        .await
        .unwrap()
}

async fn coupons(service: &Service, book_id: Uuid) -> i64 {
    number(
        service,
        book_id,
        "SELECT count(*) FROM coupons WHERE book_id = $1",
    )
    .await
}

/// Every code, as shown, and its place in the draw.
async fn rows(service: &Service, book_id: Uuid) -> Vec<(String, Option<String>, i64)> {
    sqlx::query_as("SELECT code_key, code, draw_key FROM coupons WHERE book_id = $1 ORDER BY code_key")
        .bind(book_id)
        .fetch_all(service.db.pool())
        .await
        .unwrap()
}

/// A book with the seed of another, and its key, if it has one, so that the same jobs make the same rows.
async fn twin(service: &Service, admin: &Client, of: Uuid) -> Uuid {
    let book_id = admin.book(json!({})).await;
    for sql in [
        "INSERT INTO code_keys (book_id, key) SELECT $1, key FROM code_keys WHERE book_id = $2",
        "UPDATE draw_states SET seed = (SELECT seed FROM draw_states WHERE book_id = $2) WHERE book_id = $1",
    ] {
        sqlx::query(sql)
            .bind(book_id)
            .bind(of)
            .execute(service.db.pool())
            .await
            .unwrap();
    }
    book_id
}

/// What a verifier asks of a book that nothing came back into: arrivals run through, every code lies where seed, cursor and
/// arrival say, and none that can be drawn lies below the cursor.
async fn draw_is_right(service: &Service, book_id: Uuid) {
    let seed: Vec<u8> = sqlx::query_scalar("SELECT seed FROM draw_states WHERE book_id = $1")
        .bind(book_id)
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    let laid: Vec<(String, i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT c.code_key, c.draw_key, (e.after ->> 'first_arrival')::bigint, (e.after ->> 'count')::bigint,
                (e.after ->> 'cursor')::bigint
         FROM coupons c LEFT JOIN events e ON e.book_id = c.book_id AND e.at = c.created_at AND e.kind = 'codes_added'
         WHERE c.book_id = $1 ORDER BY 3, 1",
    )
    .bind(book_id)
    .fetch_all(service.db.pool())
    .await
    .unwrap();
    let mut next = 0;
    for (arrival, (code, draw_key, first, count, cursor)) in (0..).zip(&laid) {
        if arrival == next {
            assert_eq!(
                (*first, next + count > next),
                (next, true),
                "chunks follow each other"
            );
            next += count;
        }
        let due = coupon_core::coupon::draw::key(&seed, 0, *cursor, arrival, code);
        assert_eq!(*draw_key, due, "arrival {arrival}");
    }
    assert_eq!(
        (laid.len() as i64, next),
        (
            next,
            number(
                service,
                book_id,
                "SELECT arrivals FROM draw_states WHERE book_id = $1"
            )
            .await
        )
    );
    let lost = "SELECT count(*) FROM coupons c JOIN draw_states d USING (book_id)
                WHERE book_id = $1 AND c.state = 'unassigned' AND c.draw_key < d.cursor";
    assert_eq!(
        number(service, book_id, lost).await,
        0,
        "codes that are never drawn"
    );
}

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
async fn an_import_whose_steps_go_abreast_comes_to_what_single_steps_come_to() {
    let service = Service::without_workers().await;
    let (admin, desk) = (service.admin().await, Desk::at(&service));
    let first = admin.book(json!({})).await;
    let second = twin(&service, &admin, first).await;
    // Bad lines, and twice a code of the first chunk again: first met by a copy, then looked for.
    let csv = format!(
        "{}\"\"\n{}ñ\n{}N-0000000\n{}N-0000000\n",
        lines(0..FIRST_RECORDS),
        lines(FIRST_RECORDS..50_000),
        lines(50_000..90_000),
        lines(90_000..140_000),
    );
    let job_id = send(&admin, first, csv.clone()).await;
    desk.step(false).await;
    assert_eq!(coupons(&service, first).await, FIRST_RECORDS);
    // As many steps as there is time for, up to the chunk with a code that is not new.
    desk.only_abreast().await;
    let steps = match coupons(&service, first).await - FIRST_RECORDS {
        made if made == RECORDS - 1 => 1,
        made if made == 2 * RECORDS - 2 => 2,
        made => panic!("{made}"),
    };
    let job = admin.get(&format!("/v1/jobs/{job_id}")).await.expect(200);
    assert_eq!(
        (&job["state"], &job["progress"]["done"]),
        (&json!("running"), &json!(FIRST_RECORDS + steps * RECORDS)),
        "{job}"
    );
    let counts = json!({ "rows": 140_004, "accepted": 140_000, "duplicate_in_file": 2, "duplicate_in_book": 0, "invalid": 2 });
    let end = async |job_id: &str, abreast| {
        let path = format!("/v1/jobs/{job_id}");
        loop {
            let job = admin.get(&path).await.expect(200);
            if job["finished_at"].is_string() {
                assert_eq!(
                    (&job["state"], &job["counts"]),
                    (&json!("partially_succeeded"), &counts)
                );
                let errors = admin.get(&format!("{path}/errors")).await.expect(200);
                return errors["data"].clone();
            }
            Desk::at(&service).step(abreast).await; // by one that has not learned to be careful
        }
    };
    let errors = end(&job_id, true).await;
    let single = send(&admin, second, csv).await;
    assert_eq!(end(&single, false).await, errors);
    let line = |item: &Value| {
        (
            item["line"].as_i64().unwrap(),
            item["reason"].as_str().unwrap().to_owned(),
        )
    };
    let found: Vec<(i64, String)> = errors.as_array().unwrap().iter().map(line).collect();
    let due = [
        (4_001, "empty"),
        (50_002, "bad_character"),
        (90_003, "duplicate_in_file"),
        (140_004, "duplicate_in_file"),
    ];
    assert_eq!(found, due.map(|(line, reason)| (line, reason.to_owned())));
    assert_eq!(rows(&service, first).await, rows(&service, second).await);
    draw_is_right(&service, first).await;
    truth::holds(service.db.pool()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_made_abreast_are_those_that_single_steps_make() {
    let service = Service::without_workers().await;
    let (admin, desk) = (service.admin().await, Desk::at(&service));
    let first = admin.book(json!({})).await;
    let job_id = make(&admin, first, 200_000).await;
    desk.step(false).await;
    desk.only_abreast().await;
    assert!(coupons(&service, first).await >= FIRST_CODES + CODES);
    let end = async |job_id: &str| {
        loop {
            let job = admin.get(&format!("/v1/jobs/{job_id}")).await.expect(200);
            if job["finished_at"].is_string() {
                return job;
            }
            desk.step(true).await;
        }
    };
    let job = end(&job_id).await;
    assert_eq!(
        (&job["state"], &job["result"]),
        (&json!("succeeded"), &json!({ "generated": 200_000 }))
    );
    let second = twin(&service, &admin, first).await;
    make(&admin, second, 200_000).await;
    for _ in 0..4 {
        desk.step(false).await;
    }
    assert_eq!(rows(&service, first).await, rows(&service, second).await);
    draw_is_right(&service, first).await;
    // A third has a late one of these codes before: each is made once all the same, and as many as were asked for.
    let third = twin(&service, &admin, first).await;
    let sql = "SELECT coalesce(code, code_key) FROM coupons WHERE book_id = $1 ORDER BY created_at DESC, code_key LIMIT 1";
    let late: String = sqlx::query_scalar(sql)
        .bind(first)
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    send(&admin, third, late).await;
    desk.step(false).await;
    let job_id = make(&admin, third, 200_000).await;
    let job = end(&job_id).await;
    assert_eq!(
        job["counts"],
        json!({ "generated": 200_000, "skipped": 1 }),
        "{job}"
    );
    assert_eq!(coupons(&service, third).await, 200_001);
    draw_is_right(&service, third).await;
    truth::holds(service.db.pool()).await;
    service.stop().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn of_two_chunks_under_way_with_the_same_code_the_later_line_is_told() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let csv = format!(
        "{}{}{}",
        lines(0..60_000),
        lines(30_000..30_002),
        lines(60_000..100_000)
    );
    let job_id = send(&admin, book_id, csv).await;
    let job = admin.job_end(&job_id).await;
    let counts = json!({ "rows": 100_002, "accepted": 100_000, "duplicate_in_file": 2, "duplicate_in_book": 0, "invalid": 0 });
    assert_eq!((&job["counts"], &job["attempts"]), (&counts, &json!(0)), "{job}");
    let errors = admin.get(&format!("/v1/jobs/{job_id}/errors")).await.expect(200);
    let found: Vec<i64> = errors["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["line"].as_i64().unwrap())
        .collect();
    assert_eq!(found, [60_001, 60_002]);
    draw_is_right(&service, book_id).await;
    truth::holds(service.db.pool()).await;
    service.stop().await;
}
