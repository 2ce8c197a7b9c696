//! What administrators take back: coupons from their holders, coupons out of use, uses that were spent; and the history
//! that all of it leaves.

use coupon_core::caller::Role;
use coupon_tests::{Client, Service};
use serde_json::{Value, json};
use uuid::Uuid;

struct Desk {
    service: Service,
    admin: Client,
    user: Client,
    user_id: Uuid,
    book_id: Uuid,
}

impl Desk {
    /// A book without locks, with these members, and codes D-1 … D-5.
    async fn open(members: Value) -> Self {
        let service = Service::start().await;
        let admin = service.admin().await;
        let (user, user_id) = service.user(Role::User).await;
        let mut body = json!({ "require_lock": false });
        if let (Some(body), Value::Object(members)) = (body.as_object_mut(), members) {
            body.extend(members);
        }
        let book_id = admin.book(body).await;
        let codes: Vec<String> = (1..=5).map(|number| format!("D-{number}")).collect();
        admin.codes(book_id, &codes).await;
        Self {
            service,
            admin,
            user,
            user_id,
            book_id,
        }
    }

    async fn assign(&self, code: &str) -> Value {
        let body = json!({ "user_id": self.user_id, "book_id": self.book_id });
        let path = format!("/v1/coupons/assign/{code}");
        let job = self
            .admin
            .with("Prefer", "wait=20")
            .post(&path, body)
            .await
            .expect(200);
        assert_eq!(job["state"], "succeeded", "{job}");
        job
    }

    async fn redeem(&self, code: &str) -> Value {
        self.user
            .post(&format!("/v1/coupons/redeem/{code}"), json!({}))
            .await
            .expect(200)
    }

    async fn withdraw(&self, how: &str, code: &str) -> coupon_tests::http::Answer {
        self.admin
            .post(
                &format!("/v1/coupons/{how}/{code}"),
                json!({ "reason": "a mistake" }),
            )
            .await
    }

    async fn rollback(&self, id: &Value) -> coupon_tests::http::Answer {
        let id = id.as_str().expect("an id");
        self.admin
            .post(
                &format!("/v1/redemptions/{id}/rollback"),
                json!({ "reason": "returned" }),
            )
            .await
    }

    /// The kinds of a coupon's events, oldest first.
    async fn story(&self, code: &str) -> Vec<String> {
        let events = self
            .admin
            .get(&format!("/v1/coupons/{code}/events"))
            .await
            .expect(200);
        let kinds = events["data"].as_array().expect("events").iter();
        kinds
            .map(|event| event["kind"].as_str().expect("a kind").to_owned())
            .collect()
    }

    /// Assigned and redeemed as the holder's allowance counts them.
    async fn allowance(&self) -> (i32, i32) {
        sqlx::query_as(
            "SELECT assigned_count, redeemed_count FROM user_allowances WHERE book_id = $1 AND user_id = $2",
        )
        .bind(self.book_id)
        .bind(self.user_id)
        .fetch_one(self.service.db.pool())
        .await
        .expect("an allowance")
    }
}

fn ids(page: &Value) -> Vec<String> {
    let rows = page["data"].as_array().expect("rows").iter();
    rows.map(|row| row["id"].as_str().expect("an id").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_coupon_is_free_again_and_gives_the_allowance_back() {
    let desk = Desk::open(json!({ "max_assignments_per_user": 1, "redemptions_per_coupon": 2 })).await;
    desk.withdraw("revoke", "D-1").await.refused(409, "invalid_state");
    desk.withdraw("revoke", "NO-SUCH").await.refused(404, "not_found");
    desk.assign("D-1").await;
    assert_eq!(desk.allowance().await, (1, 0));
    let revoked = desk.withdraw("revoke", "d%201").await.expect(200);
    assert_eq!(
        (&revoked["state"], &revoked["assigned_user_id"]),
        (&json!("unassigned"), &Value::Null)
    );
    assert_eq!(
        (&revoked["assigned_at"], &revoked["code"]),
        (&Value::Null, &json!("D-1"))
    );
    assert_eq!(desk.allowance().await, (0, 0));
    assert_eq!(desk.user.get("/v1/coupons/D-1").await.status, 404);
    // The allowance is there again, and so is the coupon.
    desk.assign("D-1").await;
    // Not while somebody is about to redeem it, and never once a use is spent.
    let lock = desk
        .user
        .post("/v1/coupons/lock/D-1", json!({}))
        .await
        .expect(200);
    let locked = desk.withdraw("revoke", "D-1").await;
    let seconds: u64 = locked
        .header("retry-after")
        .expect("seconds")
        .parse()
        .expect("a number");
    assert!((1..=300).contains(&seconds), "{seconds}");
    locked.refused(423, "coupon_locked");
    let token = json!({ "lock_token": lock["lock_token"] });
    desk.user.post("/v1/coupons/unlock/D-1", token).await.expect(200);
    desk.redeem("D-1").await;
    desk.withdraw("revoke", "D-1").await.refused(409, "invalid_state");
    let story = [
        "coupon_assigned",
        "coupon_revoked",
        "coupon_assigned",
        "coupon_locked",
        "coupon_unlocked",
        "coupon_redeemed",
    ];
    let told = desk.story("D-1").await;
    assert_eq!(
        told.iter()
            .filter(|kind| kind.starts_with("coupon_"))
            .collect::<Vec<_>>(),
        story
    );
    let events = desk
        .admin
        .get("/v1/coupons/D-1/events?limit=100")
        .await
        .expect(200);
    let revoked = events["data"]
        .as_array()
        .expect("events")
        .iter()
        .find(|event| event["kind"] == "coupon_revoked");
    assert_eq!(revoked.expect("an event")["after"]["reason"], "a mistake");
    desk.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_coupon_never_comes_back() {
    let desk = Desk::open(json!({})).await;
    desk.withdraw("void", "NO-SUCH").await.refused(404, "not_found");
    desk.assign("D-2").await;
    desk.assign("D-3").await;
    desk.user
        .post("/v1/coupons/lock/D-3", json!({}))
        .await
        .expect(200);
    for code in ["D-1", "D-2", "D-3"] {
        let void = desk.withdraw("void", code).await.expect(200);
        assert_eq!(
            (&void["state"], &void["locked_until"]),
            (&json!("void"), &Value::Null),
            "{code}"
        );
        desk.withdraw("void", code).await.refused(409, "invalid_state");
        desk.withdraw("revoke", code).await.refused(409, "invalid_state");
    }
    desk.user
        .post("/v1/coupons/redeem/D-2", json!({}))
        .await
        .refused(409, "invalid_state");
    desk.user
        .post("/v1/coupons/lock/D-3", json!({}))
        .await
        .refused(409, "invalid_state");
    let body = json!({ "user_id": desk.user_id, "count": 3, "book_id": desk.book_id });
    let job = desk
        .admin
        .with("Prefer", "wait=20")
        .post("/v1/coupons/assign", body)
        .await
        .expect(200);
    assert_eq!(job["error"]["code"], "book_exhausted", "two are left: {job}");
    // A redeemed one is history and stays what it is.
    desk.assign("D-4").await;
    desk.redeem("D-4").await;
    desk.withdraw("void", "D-4").await.refused(409, "invalid_state");
    let stats = desk
        .admin
        .get(&format!("/v1/books/{}/stats", desk.book_id))
        .await
        .expect(200);
    let counts =
        ["unassigned", "assigned", "locked", "redeemed", "void", "total"].map(|name| stats[name].as_i64());
    assert_eq!(counts, [1, 0, 0, 1, 3, 5].map(Some));
    desk.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_gives_one_use_back_once() {
    let desk = Desk::open(json!({ "max_redemptions_per_user": 1 })).await;
    desk.assign("D-1").await;
    desk.assign("D-2").await;
    let used = desk.redeem("D-1").await;
    assert_eq!(desk.allowance().await, (2, 1));
    desk.user
        .post("/v1/coupons/redeem/D-2", json!({}))
        .await
        .refused(409, "redemption_limit_reached");
    let undone = desk.rollback(&used["id"]).await.expect(201);
    assert_eq!(
        (&undone["kind"], &undone["reverses_id"]),
        (&json!("rollback"), &used["id"])
    );
    assert_eq!(
        (&undone["code"], &undone["user_id"]),
        (&json!("D-1"), &json!(desk.user_id))
    );
    let coupon = desk.admin.get("/v1/coupons/D-1").await.expect(200);
    assert_eq!(
        (&coupon["state"], &coupon["redemptions_used"]),
        (&json!("assigned"), &json!(0))
    );
    assert_eq!(desk.allowance().await, (2, 0));
    desk.rollback(&used["id"])
        .await
        .refused(409, "already_rolled_back");
    desk.rollback(&undone["id"]).await.refused(409, "invalid_state");
    desk.rollback(&json!(Uuid::now_v7()))
        .await
        .refused(404, "not_found");
    desk.user
        .post(
            &format!("/v1/redemptions/{}/rollback", used["id"].as_str().unwrap()),
            json!({ "reason": "r" }),
        )
        .await
        .refused(403, "forbidden");
    // The use is there again, for either of the two.
    let again = desk.redeem("D-2").await;
    assert_ne!(again["id"], used["id"]);
    let history = desk.admin.get("/v1/redemptions?code=D-1").await.expect(200);
    let rolled_back: Vec<bool> = history["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| !row["rolled_back_at"].is_null())
        .collect();
    assert_eq!(rolled_back, [false, true], "newest first: {history}");
    desk.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_comes_too_late_after_the_books_days_and_for_a_void_coupon() {
    let desk = Desk::open(json!({ "rollback_days": 3, "redemptions_per_coupon": 2 })).await;
    desk.assign("D-1").await;
    let (early, late) = (desk.redeem("D-1").await, desk.redeem("D-1").await);
    let age = async |id: &Value, hours: f64| {
        sqlx::query("UPDATE redemptions SET redeemed_at = now() - make_interval(hours => $2::int) WHERE id = $1::uuid")
            .bind(id.as_str())
            .bind(hours as i32)
            .execute(desk.service.db.pool())
            .await
            .expect("aged");
    };
    age(&early["id"], 73.0).await;
    age(&late["id"], 71.0).await;
    desk.rollback(&early["id"])
        .await
        .refused(409, "rollback_window_passed");
    desk.rollback(&late["id"]).await.expect(201);
    let coupon = desk.admin.get("/v1/coupons/D-1").await.expect(200);
    assert_eq!(
        (&coupon["state"], &coupon["redemptions_used"]),
        (&json!("assigned"), &json!(1))
    );
    // One with a use spent can still be voided, and then its uses stay spent.
    desk.withdraw("void", "D-1").await.expect(200);
    age(&early["id"], 1.0).await;
    desk.rollback(&early["id"]).await.refused(409, "invalid_state");
    desk.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_is_narrowed_by_book_holder_and_code_and_its_pages_stay_right() {
    let desk = Desk::open(json!({ "redemptions_per_coupon": 9 })).await;
    let other_book = desk.admin.book(json!({ "require_lock": false })).await;
    desk.admin
        .codes(other_book, &["E-1".to_owned(), "D-5".to_owned()])
        .await;
    desk.assign("D-1").await;
    desk.assign("D-2").await;
    let (other, other_id) = desk.service.user(Role::User).await;
    let body = json!({ "user_id": other_id, "book_id": other_book });
    desk.admin
        .with("Prefer", "wait=20")
        .post("/v1/coupons/assign/E-1", body)
        .await
        .expect(200);
    let mut made = Vec::new();
    for code in ["D-1", "D-2", "D-1", "D-1", "D-2"] {
        made.push(desk.redeem(code).await["id"].as_str().unwrap().to_owned());
    }
    let theirs = other.post("/v1/coupons/redeem/E-1", json!({})).await.expect(200)["id"].clone();
    let theirs = vec![theirs.as_str().unwrap().to_owned()];
    made.reverse();
    let ones = vec![made[1].clone(), made[2].clone(), made[4].clone()];
    let own = format!("book_id={}", desk.book_id);
    for (query, due) in [
        (own.clone(), &made),
        (format!("user_id={}", desk.user_id), &made),
        ("code=d%201".to_owned(), &ones),
        (format!("code=D-1&{own}"), &ones),
        (format!("user_id={other_id}"), &theirs),
        ("code=E-1".to_owned(), &theirs),
        (format!("code=D-1&user_id={other_id}"), &vec![]),
        (format!("code=E-1&{own}"), &vec![]),
        ("code=NO-SUCH".to_owned(), &vec![]),
        (format!("code={}", "x".repeat(300)), &vec![]),
    ] {
        let page = desk
            .admin
            .get(&format!("/v1/redemptions?{query}"))
            .await
            .expect(200);
        assert_eq!(
            (&ids(&page), &page["next_cursor"]),
            (due, &Value::Null),
            "{query}"
        );
    }
    desk.admin
        .get("/v1/redemptions?code=D-5")
        .await
        .refused(409, "code_ambiguous");
    // What is redeemed meanwhile comes before the first page; nothing old is lost or shown twice.
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = desk
            .admin
            .get(&format!("/v1/redemptions?{own}&limit=2{cursor}"))
            .await
            .expect(200);
        seen.extend(ids(&page));
        desk.redeem("D-1").await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, made);
    desk.admin
        .get(&format!("/v1/redemptions?limit=2{cursor}"))
        .await
        .invalid("?cursor", "bad_cursor");
    desk.user.get("/v1/redemptions").await.refused(403, "forbidden");
    desk.service.stop().await;
}
