//! Schedules: how they fire, and what people do to them.
//!
//! Time is moved by setting `next_fire_at` back, which is what a service that was down for a while finds.

mod changes;
mod fires;

use coupon_tests::{Client, Service, seed};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    distributions::stock,
    pools::seeded_pool,
    truth::{PATIENCE, eventually},
};

/// A time far from now, so that no test meets it.
const FAR: &str = "0 3 29 2 *";

/// A book with coupons, and a pool with people.
struct Scene {
    service: Service,
    admin: Client,
    book_id: Uuid,
    pool_id: Uuid,
}

impl Scene {
    async fn new(people: usize, coupons: usize) -> Self {
        let service = Service::without_workers().await;
        let admin = service.admin().await;
        let users = seed::users(&service.db, people).await;
        let book_id = admin.book(json!({})).await;
        stock(&service.db, book_id, coupons).await;
        let pool_id = seeded_pool(&service.db, &users).await;
        Self {
            service,
            admin,
            book_id,
            pool_id,
        }
    }

    fn body(&self, members: Value) -> Value {
        let mut body = json!({
            "name": "A schedule", "kind": "distribution",
            "distribution": { "book_id": self.book_id, "pool_id": self.pool_id, "mode": "equal", "per_user": 1 },
        });
        body.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        body
    }

    async fn schedule(&self, members: Value) -> Uuid {
        let schedule = self
            .admin
            .post("/v1/schedules", self.body(members))
            .await
            .expect(201);
        schedule["id"].as_str().unwrap().parse().unwrap()
    }

    async fn read(&self, schedule_id: Uuid) -> Value {
        self.admin
            .get(&format!("/v1/schedules/{schedule_id}"))
            .await
            .expect(200)
    }

    fn pool(&self) -> &PgPool {
        self.service.db.pool()
    }

    async fn patch(&self, schedule_id: Uuid, body: Value) -> Value {
        self.admin
            .patch(&format!("/v1/schedules/{schedule_id}"), body)
            .await
            .expect(200)
    }
}

/// Makes a schedule due so many seconds ago.
async fn due(pool: &PgPool, schedule_id: Uuid, seconds_ago: i32) {
    let set =
        sqlx::query("UPDATE schedules SET next_fire_at = now() - make_interval(secs => $2) WHERE id = $1")
            .bind(schedule_id)
            .bind(f64::from(seconds_ago))
            .execute(pool)
            .await
            .unwrap();
    assert_eq!(set.rows_affected(), 1);
}

/// Waits until nothing of a schedule is due any more.
async fn dealt_with(pool: &PgPool, schedule_id: Uuid) {
    let look = || async {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM schedules WHERE id = $1 AND next_fire_at <= now()")
            .bind(schedule_id)
            .fetch_one(pool)
            .await
            .unwrap()
    };
    eventually("nothing is due", PATIENCE, look, |due| *due == 0).await;
}

/// How the fires of a schedule came out, oldest first.
async fn outcomes(pool: &PgPool, schedule_id: Uuid) -> Vec<String> {
    sqlx::query_scalar("SELECT outcome FROM schedule_fires WHERE schedule_id = $1 ORDER BY fire_at")
        .bind(schedule_id)
        .fetch_all(pool)
        .await
        .unwrap()
}

async fn distributions(pool: &PgPool, schedule_id: Uuid) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM distributions WHERE schedule_id = $1")
        .bind(schedule_id)
        .fetch_one(pool)
        .await
        .unwrap()
}
