//! Codes from patterns: exact numbers, the same codes whatever is killed, nothing that can be guessed or seen.

mod patterns;
mod secrecy;
mod steps;

use std::{collections::BTreeSet, time::Duration};

use coupon_tests::{Client, Service};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::truth;

const PATIENCE: Duration = Duration::from_secs(100);

fn generate_path(book_id: Uuid) -> String {
    format!("/v1/books/{book_id}/codes/generate")
}

fn preview_path(book_id: Uuid) -> String {
    format!("/v1/books/{book_id}/codes/preview")
}

fn id(job: &Value) -> &str {
    job["id"].as_str().expect("an id")
}

/// Makes codes and waits for the end.
async fn generate(client: &Client, book_id: Uuid, body: Value) -> Value {
    let job = client.post(&generate_path(book_id), body).await.expect(202);
    client.job_end(id(&job)).await
}

/// Every code as it is shown, in the order of keys.
async fn codes(service: &Service, book_id: Uuid) -> Vec<String> {
    sqlx::query_scalar("SELECT coalesce(code, code_key) FROM coupons WHERE book_id = $1 ORDER BY code_key")
        .bind(book_id)
        .fetch_all(service.db.pool())
        .await
        .unwrap()
}

/// Everything that follows from key and seed: what a book's coupons are, and their places in the draw.
pub(crate) async fn rows(service: &Service, book_id: Uuid) -> Vec<(String, Option<String>, i64)> {
    sqlx::query_as("SELECT code_key, code, draw_key FROM coupons WHERE book_id = $1 ORDER BY code_key")
        .bind(book_id)
        .fetch_all(service.db.pool())
        .await
        .unwrap()
}

/// A book with the key and the seed of another, so that the same jobs make the same rows.
pub(crate) async fn twin(service: &Service, admin: &Client, of: Uuid) -> Uuid {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_job_makes_as_many_codes_as_were_asked_for() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin
        .book(json!({ "pattern": "Spring-****-##\\#", "redemptions_per_coupon": 3 }))
        .await;
    let body = json!({
        "count": 40_500, "alphabet": "unambiguous", "expires_at": "2040-01-01T00:00:00Z", "metadata": { "campaign": 7 }
    });
    let job = generate(&admin, book_id, body.clone()).await;
    assert_eq!(
        (&job["state"], &job["kind"]),
        (&json!("succeeded"), &json!("generate")),
        "{job}"
    );
    assert_eq!(job["result"], json!({ "generated": 40_500 }));
    assert_eq!(job["counts"], json!({ "generated": 40_500, "skipped": 0 }));
    assert_eq!(
        (
            &job["progress"]["done"],
            &job["progress"]["total"],
            &job["progress"]["unit"]
        ),
        (&json!(40_500), &json!(40_500), &json!("codes"))
    );
    let first: BTreeSet<String> = codes(&service, book_id).await.into_iter().collect();
    assert_eq!(first.len(), 40_500);
    for code in &first {
        let (head, tail) = (&code[..7], &code[7..]);
        let form = tail.bytes().enumerate().all(|(at, byte)| match at {
            0..4 => b"23456789ABCDEFGHJKMNPQRSTVWXYZ".contains(&byte),
            4 => byte == b'-',
            5 | 6 => byte.is_ascii_digit(),
            _ => byte == b'#',
        });
        assert!(head == "Spring-" && tail.len() == 8 && form, "{code}");
    }
    let some = first.first().unwrap().to_lowercase().replace('#', "%23");
    let coupon = admin.get(&format!("/v1/coupons/{some}")).await.expect(200);
    assert_eq!(coupon["code"], **first.first().unwrap());
    assert_eq!(coupon["redemptions_allowed"], 3);
    assert_eq!(coupon["metadata"], json!({ "campaign": 7 }));
    assert_eq!(coupon["expires_at"], "2040-01-01T00:00:00.000000Z");
    // More of the same pattern are others.
    let job = generate(&admin, book_id, body).await;
    assert_eq!(
        (&job["state"], &job["counts"]["skipped"]),
        (&json!("succeeded"), &json!(0))
    );
    assert_eq!(codes(&service, book_id).await.len(), 81_000);
    // The draw knows them: events number their arrival without a gap.
    let (arrivals, told): (i64, i64) = sqlx::query_as(
        "SELECT d.arrivals, (SELECT sum((after ->> 'count')::bigint)::bigint FROM events e
                             WHERE e.book_id = $1 AND e.kind = 'codes_added')
         FROM draw_states d WHERE d.book_id = $1",
    )
    .bind(book_id)
    .fetch_one(service.db.pool())
    .await
    .unwrap();
    assert_eq!((arrivals, told), (81_000, 81_000));
    truth::all_jobs_end(service.db.pool(), PATIENCE).await;
    truth::holds(service.db.pool()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_that_are_there_already_are_skipped_and_the_number_is_exact() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let body = json!({ "count": 3_000, "pattern": "P-*****" });
    let first = admin.book(json!({})).await;
    generate(&admin, first, body.clone()).await;
    let all = codes(&service, first).await;
    let second = twin(&service, &admin, first).await;
    let planted: Vec<String> = all.iter().step_by(7).map(|code| code.to_lowercase()).collect();
    admin.codes(second, &planted).await;
    let job = generate(&admin, second, body.clone()).await;
    assert_eq!(job["result"], json!({ "generated": 3_000 }), "{job}");
    assert_eq!(job["counts"]["skipped"], planted.len());
    let both: BTreeSet<String> = codes(&service, second)
        .await
        .into_iter()
        .map(|code| code.to_uppercase())
        .collect();
    assert_eq!(both.len(), 3_000 + planted.len());
    assert!(all.iter().all(|code| both.contains(code)));
    // A pattern that spells some of the same codes runs into them and goes on.
    let overlapping = json!({ "count": 900, "pattern": "P-000##", "alphabet": "digits" });
    admin
        .post(&generate_path(second), overlapping)
        .await
        .refused(422, "pattern_space_too_small");
    truth::holds(service.db.pool()).await;
    service.stop().await;
}
