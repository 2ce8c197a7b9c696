//! Codes made while workers are killed: the exact number, the same codes, every symbol as frequent as any other.

use coupon_tests::size;
use serde_json::json;
use uuid::Uuid;

use super::{PATIENCE, Watched, arrived_once, digest, kill_on_the_way};
use crate::{
    crash::Cluster,
    queue::id,
    truth::{self, Dice, report},
};

/// Letters and digits that are not mistaken for each other; `*` stands for one of them.
const SYMBOLS: usize = 30;

/// Placeholders of the pattern.
const PLACES: i32 = 12;

/// χ² that a fair source exceeds once in a thousand times (P. Wilson, M. Hilferty, "The distribution of chi-square", 1931).
fn chi_square_at_a_thousandth(freedom: f64) -> f64 {
    const QUANTILE: f64 = 3.0902; // of the normal distribution
    let part = 2.0 / (9.0 * freedom);
    freedom * (1.0 - part + QUANTILE * part.sqrt()).powi(3)
}

/// A book whose key is known, so that a run of this test is like the last one.
async fn book(cluster: &Cluster, client: &coupon_tests::Client) -> Uuid {
    let book_id = client.book(json!({})).await;
    sqlx::query("INSERT INTO code_keys (book_id, key) VALUES ($1, decode(repeat('5a', 32), 'hex'))")
        .bind(book_id)
        .execute(&cluster.pool)
        .await
        .unwrap();
    book_id
}

#[tokio::test(flavor = "multi_thread")]
async fn making_codes_that_is_killed_makes_the_same_codes_each_once_and_fairly() {
    let mut dice = Dice::new("killed generation");
    let codes: i64 = size(100_000, 10_000_000);
    let kills = size(2, 10);
    let cluster = Cluster::start(0).await;
    let api = Watched::api(&cluster.url).await;
    let mut worker = Watched::worker(&cluster.url).await;
    let client = cluster.client(&api.process.url());
    let request = json!({ "count": codes, "pattern": "SALE-****-****-****", "alphabet": "unambiguous" });
    let mut books = Vec::new();
    for kills in [0, kills] {
        let book_id = book(&cluster, &client).await;
        let path = format!("/v1/books/{book_id}/codes/generate");
        let job_id = id(&client.post(&path, request.clone()).await.expect(202));
        worker = kill_on_the_way(&cluster, &mut dice, worker, job_id, codes, kills).await;
        let job = client.job_end_within(&job_id.to_string(), PATIENCE).await;
        assert_eq!(
            (&job["state"], &job["result"], &job["counts"]["skipped"]),
            (&json!("succeeded"), &json!({ "generated": codes }), &json!(0)),
            "{job}"
        );
        worker.stayed_small(&format!("a worker that made {codes} codes"));
        arrived_once(&cluster.pool, book_id).await;
        books.push(book_id);
    }
    let [left_alone, killed] = [
        digest(&cluster.pool, books[0]).await,
        digest(&cluster.pool, books[1]).await,
    ];
    assert_eq!(left_alone.0, codes);
    assert_eq!(left_alone, killed);

    // The primary key has already seen to it that no code is there twice.
    let counted: Vec<(i32, String, i64)> = sqlx::query_as(
        "SELECT place, substr(code_key, 4 + place, 1), count(*)
         FROM coupons CROSS JOIN generate_series(1, $2) AS p (place) WHERE book_id = $1 GROUP BY 1, 2",
    )
    .bind(books[1])
    .bind(PLACES)
    .fetch_all(&cluster.pool)
    .await
    .unwrap();
    assert_eq!(counted.len(), SYMBOLS * usize::try_from(PLACES).unwrap());
    let (expected, bound) = (
        codes as f64 / SYMBOLS as f64,
        chi_square_at_a_thousandth(SYMBOLS as f64 - 1.0),
    );
    let mut worst: f64 = 0.0;
    for place in 1..=PLACES {
        let chi_square: f64 = counted
            .iter()
            .filter(|(at, ..)| *at == place)
            .map(|(.., count)| (*count as f64 - expected).powi(2) / expected)
            .sum();
        assert!(
            chi_square < bound,
            "place {place}: {chi_square:.1}, not below {bound:.1}"
        );
        worst = worst.max(chi_square);
    }
    report(&format!(
        "{codes} codes, {kills} kills, worst χ² of {PLACES} places {worst:.1}, below {bound:.1}"
    ));
    truth::all_jobs_end(&cluster.pool, PATIENCE).await;
    truth::holds(&cluster.pool).await;
    cluster.stop(vec![worker.process, api.process]).await;
}
