//! The people of a distribution as a file.

use coupon_tests::{Service, seed};
use serde_json::json;
use uuid::Uuid;

use crate::pools::seeded_pool;

#[tokio::test(flavor = "multi_thread")]
async fn many_people_are_in_the_file_once_each_in_their_order_and_no_cell_is_a_formula() {
    const PEOPLE: i64 = 12_000; // more than two pages of the file have
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let users = seed::users(&service.db, PEOPLE as usize).await;
    sqlx::query("UPDATE users SET email = '=1+1@example.com' WHERE id = $1")
        .bind(users[0])
        .execute(service.db.pool())
        .await
        .unwrap();
    let pool_id = seeded_pool(&service.db, &users).await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1, "on_shortage": "partial" });
    let job = admin.post("/v1/distributions", body).await.expect(202);
    let distribution = job["result"]["distribution_id"].as_str().unwrap();
    // As a run would have left them; several people share a place.
    sqlx::query(
        "INSERT INTO distribution_items (book_id, distribution_id, place, user_id, wanted, assigned, state, reason)
         SELECT $1, $2, n / 7, id, 1, CASE WHEN n % 3 = 0 THEN 0 ELSE 1 END,
                CASE WHEN n % 3 = 0 THEN 'short' ELSE 'given' END, CASE WHEN n % 3 = 0 THEN 'shortage' END
         FROM unnest($3::uuid[]) WITH ORDINALITY AS u (id, n)",
    )
    .bind(book_id)
    .bind(distribution.parse::<Uuid>().unwrap())
    .bind(&users)
    .execute(service.db.pool())
    .await
    .unwrap();
    for (query, only) in [("", "%"), ("?state=short", "short")] {
        let due: Vec<Uuid> = sqlx::query_scalar(
            "SELECT user_id FROM distribution_items WHERE state LIKE $1 ORDER BY place, user_id",
        )
        .bind(only)
        .fetch_all(service.db.pool())
        .await
        .unwrap();
        let path = format!("/v1/distributions/{distribution}/items.csv{query}");
        let file = admin.get(&path).await.expect(200);
        let lines: Vec<&str> = file.as_str().unwrap().lines().skip(1).collect();
        assert_eq!(lines.len(), due.len(), "{query}");
        for (line, user_id) in lines.iter().zip(due) {
            assert!(
                line.starts_with(&user_id.to_string()),
                "{line} instead of {user_id}"
            );
        }
        let risky = lines.iter().find(|line| line.starts_with(&users[0].to_string()));
        assert!(
            risky.is_none_or(|line| line.contains(",\"'=1+1@example.com\",")),
            "{risky:?}"
        );
        assert!(risky.is_some() || only == "short");
    }
    service.stop().await;
}
