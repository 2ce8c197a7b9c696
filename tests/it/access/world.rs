//! Callers of every kind, and objects that belong to them, to somebody else or to nobody.

use std::sync::atomic::{AtomicUsize, Ordering};

use coupon_core::{caller::Role, coupon::code::Code, id};
use coupon_tests::{Client, Service, seed};
use serde_json::json;
use uuid::Uuid;

/// The callers of a row of the table, in its order.
pub(super) const CALLERS: [&str; 6] = ["user", "admin", "read", "assign", "redeem", "manage"];

/// Whose the object is that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// The caller's own, or open to it.
    Own,
    /// Somebody else's.
    Others,
    /// There is none.
    Absent,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thing {
    /// Nothing in particular.
    None,
    /// A book of self-service, or one that is not.
    Book,
    /// An assigned coupon, by its code.
    Held,
    /// An unassigned coupon of a book of self-service, or of another.
    Free,
    /// A job that waits, has ended, or has failed.
    Job(&'static str),
    /// An export that has ended well.
    Export,
    /// An account.
    User,
    /// An API key.
    Key,
    /// A redemption.
    Redemption,
    /// A pool.
    Pool,
    /// A distribution that waits.
    Distribution,
    /// A schedule.
    Schedule,
}

/// Somebody who calls.
pub(super) struct Caller {
    /// With its credentials.
    pub(super) client: Client,
    /// The account's or the key's id.
    pub(super) id: Uuid,
    /// Whether it has an account.
    pub(super) is_person: bool,
}

/// The service, its callers and two books.
pub(super) struct World {
    /// The service; its workers have ended, so that jobs stay as they are.
    pub(super) service: Service,
    /// In the order of [`CALLERS`].
    pub(super) callers: Vec<Caller>,
    /// A book of self-service.
    pub(super) open: Uuid,
    /// Another book.
    pub(super) closed: Uuid,
    made: AtomicUsize,
}

impl World {
    /// Makes it.
    pub(super) async fn new() -> Self {
        let mut service = Service::start().await;
        let mut callers = Vec::new();
        for role in [Role::User, Role::Admin] {
            let (client, id) = service.user(role).await;
            callers.push(Caller {
                client,
                id,
                is_person: true,
            });
        }
        let admin = callers[1].client.clone();
        for scope in &CALLERS[2..] {
            let key = json!({ "name": scope, "scopes": [scope] });
            let key = admin.post("/v1/api-keys", key).await.expect(201);
            let client = service.nobody().key(key["key"].as_str().expect("a key"));
            let id = key["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
            callers.push(Caller {
                client,
                id,
                is_person: false,
            });
        }
        let open = admin
            .book(json!({ "self_service": true, "require_lock": false }))
            .await;
        let closed = admin.book(json!({ "require_lock": false })).await;
        admin.codes(closed, &["THE-FIRST".to_owned()]).await; // an import job, of which others are copies
        service.stop_workers().await;
        Self {
            service,
            callers,
            open,
            closed,
            made: AtomicUsize::new(0),
        }
    }

    /// A number that was not given before.
    pub(super) fn next(&self) -> usize {
        self.made.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes an object; gives its id or code.
    pub(super) async fn make(&self, thing: Thing, whose: Whose, caller: &Caller) -> String {
        let owner = match (whose, caller.is_person) {
            (Whose::Own, true) => caller.id,
            _ => seed::user(&self.service.db, Role::User).await,
        };
        let book_id = if whose == Whose::Own {
            self.open
        } else {
            self.closed
        };
        match thing {
            Thing::None => String::new(),
            Thing::Held | Thing::Free if whose == Whose::Absent => format!("ABSENT{}", self.next()),
            _ if whose == Whose::Absent => id::new().to_string(),
            Thing::Book => book_id.to_string(),
            Thing::Held => self.coupon(book_id, Some(owner)).await,
            Thing::Free => self.coupon(book_id, None).await,
            Thing::Job(state) => {
                self.job(state, if whose == Whose::Own { caller.id } else { owner })
                    .await
            }
            Thing::Export => {
                let job_id = self
                    .job("succeeded", if whose == Whose::Own { caller.id } else { owner })
                    .await;
                sqlx::query("INSERT INTO exports (job_id, book_id, kind) VALUES ($1::uuid, $2, 'coupons')")
                    .bind(&job_id)
                    .bind(book_id)
                    .execute(self.service.db.pool())
                    .await
                    .expect("an export");
                job_id
            }
            Thing::User => owner.to_string(),
            Thing::Key => {
                let key = json!({ "name": "A key", "scopes": ["read"] });
                let key = self.callers[1].client.post("/v1/api-keys", key).await.expect(201);
                key["id"].as_str().expect("an id").to_owned()
            }
            Thing::Pool => self.pool().await,
            Thing::Distribution => {
                let admin = &self.callers[1].client;
                let body = json!({ "book_id": self.open, "pool_id": self.pool().await, "mode": "equal", "per_user": 1 });
                let job = admin.post("/v1/distributions", body).await.expect(202);
                job["result"]["distribution_id"]
                    .as_str()
                    .expect("an id")
                    .to_owned()
            }
            Thing::Schedule => {
                self.coupon(self.open, None).await;
                let body = json!({ "name": "S", "kind": "distribution", "cron": "0 9 * * 1",
                    "distribution": { "book_id": self.open, "pool_id": self.pool().await, "mode": "equal", "per_user": 1 } });
                let admin = &self.callers[1].client;
                let schedule = admin.post("/v1/schedules", body).await.expect(201);
                schedule["id"].as_str().expect("an id").to_owned()
            }
            Thing::Redemption => {
                let code = self.coupon(book_id, Some(owner)).await;
                let admin = &self.callers[1].client;
                let redemption = admin
                    .post(&format!("/v1/coupons/redeem/{code}"), json!({}))
                    .await
                    .expect(200);
                redemption["id"].as_str().expect("an id").to_owned()
            }
        }
    }

    async fn pool(&self) -> String {
        let admin = &self.callers[1].client;
        let pool = admin
            .post("/v1/pools", json!({ "name": "A pool" }))
            .await
            .expect(201);
        pool["id"].as_str().expect("an id").to_owned()
    }

    async fn coupon(&self, book_id: Uuid, holder: Option<Uuid>) -> String {
        let text = format!("MADE-{}", self.next());
        let code = Code::parse(&text).expect("a code");
        sqlx::query(
            "WITH allowed AS (
                 INSERT INTO user_allowances (book_id, user_id, assigned_count) SELECT $1, $2, 1 WHERE $2 IS NOT NULL
                 ON CONFLICT (book_id, user_id) DO UPDATE SET assigned_count = user_allowances.assigned_count + 1)
             INSERT INTO coupons (book_id, assigned_user_id, assigned_at, draw_key, redemptions_allowed, state, code_key, code)
             VALUES ($1, $2, CASE WHEN $2 IS NOT NULL THEN now() END, 1, 1, CASE WHEN $2 IS NULL THEN 'unassigned' ELSE 'assigned' END, $3, $4)",
        )
        .bind(book_id)
        .bind(holder)
        .bind(code.key(false))
        .bind(&text)
        .execute(self.service.db.pool())
        .await
        .expect("a coupon");
        text
    }

    async fn job(&self, state: &str, created_by: Uuid) -> String {
        let job_id = id::new();
        sqlx::query(
            "INSERT INTO jobs (id, created_by, created_by_kind, kind, state, progress_unit, payload, finished_at, error_code, error_detail)
             SELECT $1, $2, 'user', kind, $3, progress_unit, payload, CASE WHEN $3 <> 'queued' THEN now() END,
                    CASE WHEN $3 = 'failed' THEN 'internal' END, CASE WHEN $3 = 'failed' THEN 'x' END
             FROM jobs WHERE kind = 'import' ORDER BY id LIMIT 1",
        )
        .bind(job_id)
        .bind(created_by)
        .bind(state)
        .execute(self.service.db.pool())
        .await
        .expect("a job");
        sqlx::query(
            "INSERT INTO imports (job_id, book_id, upload_id, settings)
             SELECT $1, book_id, upload_id, settings FROM imports ORDER BY job_id LIMIT 1",
        )
        .bind(job_id)
        .execute(self.service.db.pool())
        .await
        .expect("an import");
        job_id.to_string()
    }
}
