//! Steps that go abreast: they leave what single steps leave, and nothing when something comes between.
//!
//! Steps are run here as a worker runs them.

mod between;

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
use coupon_tests::{Client, Service};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    generate::{rows, twin},
    truth,
};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_code_of_an_earlier_chunk_of_the_same_spell_is_told_as_the_files_own() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    // Long lines make short chunks: 1,000 records in the first two, 500 in the next ones. The code twice at the beginning has
    // codes looked for from there on; the other is met again five chunks later.
    let note = "x".repeat(4_200);
    let codes = (0..4_300).map(|n| if n == 1 { 0 } else { n });
    let csv: String = codes
        .chain([1_100])
        .map(|n| format!("N{n:04},{note}\n"))
        .collect();
    let job_id = send(&admin, book_id, format!("code,note\n{csv}")).await;
    let job = admin.job_end(&job_id).await;
    let counts = json!({ "rows": 4_301, "accepted": 4_299, "duplicate_in_file": 2, "duplicate_in_book": 0, "invalid": 0 });
    assert_eq!(job["counts"], counts, "{job}");
    draw_is_right(&service, book_id).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_comes_to_the_end_of_its_pattern_says_so_and_keeps_what_it_made() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let path = format!("/v1/books/{book_id}/codes/generate");
    let make = async |count: i64| {
        let body = json!({ "count": count, "pattern": "E-######" });
        let job = admin.post(&path, body).await.expect(202);
        admin.job_end(job["id"].as_str().unwrap()).await
    };
    make(1).await;
    // As after many jobs that were cancelled.
    sqlx::query("UPDATE code_patterns SET next_index = 990000 WHERE book_id = $1")
        .bind(book_id)
        .execute(service.db.pool())
        .await
        .unwrap();
    let job = make(13_000).await;
    assert_eq!(
        (&job["state"], &job["error"]["code"], &job["progress"]["done"]),
        (
            &json!("failed"),
            &json!("pattern_space_too_small"),
            &json!(10_000)
        ),
        "{job}"
    );
    assert_eq!(coupons(&service, book_id).await, 10_001);
    draw_is_right(&service, book_id).await;
    service.stop().await;
}
