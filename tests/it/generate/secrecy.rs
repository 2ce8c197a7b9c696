//! What nobody can see or guess.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use coupon_tests::Service;
use serde_json::json;

use super::{codes, generate, preview_path};

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_in_no_answer() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({ "pattern": "S-********" })).await;
    let job = generate(&admin, book_id, json!({ "count": 100 })).await;
    let preview = json!({ "pattern": "S-********", "count": 5 });
    let mut answers = vec![job, admin.post(&preview_path(book_id), preview).await.expect(200)];
    for path in [
        format!("/v1/books/{book_id}"),
        "/v1/books".to_owned(),
        format!("/v1/books/{book_id}/coupons"),
        "/v1/audit".to_owned(),
        "/v1/jobs".to_owned(),
    ] {
        answers.push(admin.get(&path).await.expect(200));
    }
    let key: Vec<u8> = sqlx::query_scalar("SELECT key FROM code_keys WHERE book_id = $1")
        .bind(book_id)
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    let spellings = [
        key.iter().map(|byte| format!("{byte:02x}")).collect(),
        STANDARD.encode(&key),
        format!("{key:?}").replace(' ', ""),
    ];
    for answer in answers {
        let text = answer.to_string();
        for spelling in &spellings {
            assert!(!text.contains(&spelling[..20]), "the key is in {text}");
        }
    }
    let books: i64 = sqlx::query_scalar("SELECT count(DISTINCT key) FROM code_keys")
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    assert_eq!(books, 1);
    let other = admin.book(json!({})).await;
    generate(&admin, other, json!({ "count": 100, "pattern": "S-********" })).await;
    let (first, second) = (codes(&service, book_id).await, codes(&service, other).await);
    assert!(
        first.iter().all(|code| !second.contains(code)),
        "two books, one key"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_symbol_is_as_frequent_as_any_other_at_every_place() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    sqlx::query("INSERT INTO code_keys (book_id, key) VALUES ($1, decode(repeat('5a', 32), 'hex'))")
        .bind(book_id)
        .execute(service.db.pool())
        .await
        .unwrap();
    let job = generate(&admin, book_id, json!({ "count": 18_000, "pattern": "********" })).await;
    assert_eq!(job["state"], "succeeded");
    let all = codes(&service, book_id).await;
    for place in 0..8 {
        let mut counts: HashMap<u8, f64> = HashMap::new();
        for code in &all {
            *counts.entry(code.as_bytes()[place]).or_default() += 1.0;
        }
        let expected = all.len() as f64 / 36.0;
        let chi2: f64 = counts
            .values()
            .map(|count| (count - expected).powi(2) / expected)
            .sum();
        // 35 degrees of freedom: more than 80 happens once in fifty thousand keys, and this key is always the same.
        assert!(counts.len() == 36 && chi2 < 80.0, "place {place}: {chi2}");
    }
    service.stop().await;
}
