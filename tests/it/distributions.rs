//! Distributions: a run does what its dry run said, and nobody gets two shares or more than the book allows, whatever
//! happens beside it.

mod large;
mod meanwhile;
mod modes;
mod people;

use std::collections::{BTreeMap, HashMap};

use coupon_core::db::Db;
use coupon_tests::Client;
use serde_json::{Value, json};
use uuid::Uuid;

/// Coupons straight into the table, each at a random place of the draw.
pub(crate) async fn stock(db: &Db, book_id: Uuid, coupons: usize) {
    sqlx::query(
        "INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed)
         SELECT $1, 'S' || lpad(n::text, 8, '0'), (random() * 9e18)::bigint, 1 FROM generate_series(1, $2) AS n",
    )
    .bind(book_id)
    .bind(coupons as i64)
    .execute(db.pool())
    .await
    .unwrap();
}

/// Who holds how many coupons of a book, by the coupons themselves.
pub(crate) async fn held(db: &Db, book_id: Uuid) -> HashMap<Uuid, i64> {
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT assigned_user_id, count(*) FROM coupons WHERE book_id = $1 AND assigned_user_id IS NOT NULL GROUP BY 1",
    )
    .bind(book_id)
    .fetch_all(db.pool())
    .await
    .unwrap();
    rows.into_iter().collect()
}

/// What must hold of a book, whatever was given, used and taken back: each sentence with a count of what breaks it.
const PROMISES: [(&str, &str); 7] = [
    (
        "allowances count what is held",
        "SELECT count(*) FROM (SELECT user_id, assigned_count FROM user_allowances WHERE book_id = $1) AS a
         FULL JOIN (SELECT assigned_user_id AS user_id, count(*) AS held FROM coupons
                    WHERE book_id = $1 AND assigned_user_id IS NOT NULL GROUP BY 1) AS h ON h.user_id = a.user_id
         WHERE coalesce(a.assigned_count, 0) <> coalesce(h.held, 0)",
    ),
    (
        "nobody holds more than the book allows",
        "SELECT count(*) FROM user_allowances a JOIN books b ON b.id = a.book_id
         WHERE a.book_id = $1 AND a.assigned_count > b.max_assignments_per_user",
    ),
    (
        "each assignment and each taking back has its event",
        "SELECT count(*) FROM (
             SELECT c.code_key FROM coupons c JOIN events e ON e.book_id = $1 AND e.code_key = c.code_key
             WHERE c.book_id = $1 GROUP BY c.code_key, c.assigned_user_id
             HAVING count(*) FILTER (WHERE e.kind = 'coupon_assigned') - count(*) FILTER (WHERE e.kind = 'coupon_revoked')
                 <> CASE WHEN c.assigned_user_id IS NULL THEN 0 ELSE 1 END) AS differing",
    ),
    (
        "a distribution gave as many coupons as it says, and its items too",
        "SELECT count(*) FROM distributions d WHERE d.book_id = $1 AND (
             d.assigned <> (SELECT count(*) FROM distribution_coupons g WHERE g.book_id = $1 AND g.distribution_id = d.id)
             OR d.assigned <> (SELECT coalesce(sum(i.assigned), 0) FROM distribution_items i WHERE i.book_id = $1 AND i.distribution_id = d.id)
             OR d.undone <> (SELECT coalesce(sum(i.undone), 0) FROM distribution_items i WHERE i.book_id = $1 AND i.distribution_id = d.id)
             OR d.recipients <> (SELECT count(*) FROM distribution_items i WHERE i.book_id = $1 AND i.distribution_id = d.id AND i.assigned > 0))",
    ),
    (
        "nobody has two items of one distribution",
        "SELECT count(*) FROM (SELECT FROM distribution_items WHERE book_id = $1
                               GROUP BY distribution_id, user_id HAVING count(*) > 1) AS twice",
    ),
    (
        "what was given to a person are as many coupons as the item says",
        "SELECT count(*) FROM (SELECT distribution_id, user_id, assigned FROM distribution_items
                               WHERE book_id = $1 AND assigned > 0) AS i
         FULL JOIN (SELECT distribution_id, user_id, count(*) AS given FROM distribution_coupons
                    WHERE book_id = $1 GROUP BY 1, 2) AS g USING (distribution_id, user_id)
         WHERE i.assigned IS DISTINCT FROM g.given",
    ),
    (
        "what was wanted was given, is missing or was withheld, once the run has ended",
        "SELECT count(*) FROM distributions WHERE book_id = $1 AND state IN ('completed', 'completed_with_shortfall')
             AND codes_needed <> assigned + shortfall + withheld",
    ),
];

/// Checks every promise.
pub(crate) async fn holds(db: &Db, book_id: Uuid) {
    for (promise, sql) in PROMISES {
        let broken: i64 = sqlx::query_scalar(sql)
            .bind(book_id)
            .fetch_one(db.pool())
            .await
            .unwrap();
        assert_eq!(broken, 0, "{promise}");
    }
}

/// Runs a distribution to its end; gives its job and itself.
pub(crate) async fn distribute(admin: &Client, body: Value) -> (Value, Value) {
    let job = admin.post("/v1/distributions", body).await.expect(202);
    let job = admin.job_end(job["id"].as_str().unwrap()).await;
    let path = format!(
        "/v1/distributions/{}",
        job["result"]["distribution_id"].as_str().unwrap()
    );
    (job, admin.get(&path).await.expect(200))
}

/// Every item, by user.
async fn items(admin: &Client, distribution: &Value, query: &str) -> BTreeMap<Uuid, Value> {
    let path = format!("/v1/distributions/{}/items", distribution["id"].as_str().unwrap());
    let (mut items, mut cursor) = (BTreeMap::new(), String::new());
    loop {
        let page = admin
            .get(&format!("{path}?limit=100{query}{cursor}"))
            .await
            .expect(200);
        for item in page["data"].as_array().unwrap() {
            let before = items.insert(item["user_id"].as_str().unwrap().parse().unwrap(), item.clone());
            assert_eq!(before, None);
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

async fn disable(admin: &Client, user_id: Uuid) {
    admin
        .patch(&format!("/v1/users/{user_id}"), json!({ "disabled": true }))
        .await
        .expect(200);
}

async fn assign(admin: &Client, book_id: Uuid, user_id: Uuid, count: i64) {
    let body = json!({ "book_id": book_id, "user_id": user_id, "count": count });
    let job = admin
        .with("Prefer", "wait=20")
        .post("/v1/coupons/assign", body)
        .await
        .expect(200);
    assert_eq!(job["state"], "succeeded", "{job}");
}

fn counts(distribution: &Value, names: &[&str]) -> Vec<i64> {
    names
        .iter()
        .map(|name| distribution["counts"][*name].as_i64().unwrap())
        .collect()
}
