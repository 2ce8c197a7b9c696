//! Many users at once: as JSON and as CSV, with an outcome for every item.

use coupon_core::caller::Role;
use coupon_tests::{Client, Service, seed};
use serde_json::{Value, json};
use uuid::Uuid;

const PATH: &str = "/v1/coupons/assign-batch";

struct Desk {
    service: Service,
    admin: Client,
    book_id: Uuid,
}

impl Desk {
    async fn open(members: Value, codes: usize) -> Self {
        let service = Service::start().await;
        let admin = service.admin().await;
        let book_id = admin.book(members).await;
        admin.codes(book_id, &seed::codes(codes)).await;
        Self {
            service,
            admin,
            book_id,
        }
    }

    async fn users(&self, count: usize) -> Vec<(Uuid, String)> {
        let mut users = Vec::new();
        for id in seed::users(&self.service.db, count).await {
            users.push((id, format!("{id}@example.com")));
        }
        users
    }

    async fn end(&self, accepted: coupon_tests::http::Answer) -> Value {
        assert!(
            accepted
                .header("location")
                .is_some_and(|at| at.starts_with("/v1/jobs/"))
        );
        let job = accepted.expect(202);
        self.admin.job_end(job["id"].as_str().expect("an id")).await
    }

    async fn csv(&self, text: impl Into<String>) -> coupon_tests::http::Answer {
        self.admin
            .post_csv(&format!("{PATH}?book_id={}", self.book_id), text.into())
            .await
    }

    /// Item and reason of every line of the job's errors, in order.
    async fn errors(&self, job: &Value) -> Vec<(i64, String)> {
        let path = job["links"]["errors"].as_str().expect("a link");
        let page = self.admin.get(path).await.expect(200);
        let rows = page["data"].as_array().expect("rows").iter();
        rows.map(|row| {
            (
                row["item"].as_i64().expect("an item"),
                row["reason"].as_str().expect("a reason").to_owned(),
            )
        })
        .collect()
    }

    async fn held(&self, user_id: Uuid) -> usize {
        let path = format!("/v1/users/{user_id}/coupons?book_id={}", self.book_id);
        self.admin.get(&path).await.expect(200)["data"]
            .as_array()
            .expect("rows")
            .len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_item_of_a_list_has_its_own_outcome() {
    let desk = Desk::open(json!({ "max_assignments_per_user": 3 }), 8).await;
    let users = desk.users(4).await;
    let disabled = users[3].0;
    desk.admin
        .patch(&format!("/v1/users/{disabled}"), json!({ "disabled": true }))
        .await
        .expect(200);
    let nobody = Uuid::now_v7();
    let items = json!([
        { "user_id": users[0].0, "count": 2 },
        { "user_id": nobody },
        { "user_id": users[0].0, "count": 2 },     // one too many of the three
        { "user_id": users[1].0 },                 // one by itself
        { "user_id": disabled },
        { "user_id": users[2].0, "count": 3 },
        { "user_id": users[1].0, "count": 2 },
        { "user_id": users[0].0 },                 // none is left
    ]);
    let body = json!({ "book_id": desk.book_id, "items": items });
    let job = desk.end(desk.admin.post(PATH, body).await).await;
    assert_eq!(
        (&job["kind"], &job["state"]),
        (&json!("assign_batch"), &json!("partially_succeeded")),
        "{job}"
    );
    assert_eq!(job["result"], json!({ "assigned": 8, "refused": 4 }));
    assert_eq!(
        (&job["progress"]["done"], &job["progress"]["total"]),
        (&json!(8), &json!(8))
    );
    let due = [
        (1, "unknown_user"),
        (2, "assignment_limit_reached"),
        (4, "user_disabled"),
        (7, "book_exhausted"),
    ];
    assert_eq!(
        desk.errors(&job).await,
        due.map(|(item, reason)| (item, reason.to_owned()))
    );
    let held = [
        desk.held(users[0].0).await,
        desk.held(users[1].0).await,
        desk.held(users[2].0).await,
    ];
    assert_eq!(held, [2, 3, 3]);
    let report = desk
        .admin
        .get(job["links"]["report"].as_str().expect("a link"))
        .await;
    assert!(
        report
            .header("content-type")
            .is_some_and(|ty| ty.starts_with("text/csv"))
    );
    let report = report.body.as_str().expect("text");
    let mut lines = report.lines();
    assert_eq!(lines.next(), Some("user_id,item,reason,detail"));
    let unknown = format!("{nobody},1,unknown_user,\"There is no such user.\"");
    assert_eq!(lines.next(), Some(unknown.as_str()));
    assert_eq!(lines.count(), 3, "{report}");
    desk.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_names_users_by_their_address() {
    let desk = Desk::open(json!({}), 20).await;
    let users = desk.users(3).await;
    let [one, two, three] = [0, 1, 2].map(|index| users[index].1.clone());
    let file = format!(
        "\u{feff}note,User_Email,count\r\nfirst,{},2\r\n\r\nnobody,nobody@example.com,1\r\n\"a, b\",{two},\r\n",
        one.to_uppercase()
    );
    let job = desk.end(desk.csv(file).await).await;
    assert_eq!(
        (&job["state"], &job["result"]),
        (
            &json!("partially_succeeded"),
            &json!({ "assigned": 3, "refused": 1 })
        )
    );
    assert_eq!(desk.errors(&job).await, [(1, "unknown_user".to_owned())]);
    assert_eq!([desk.held(users[0].0).await, desk.held(users[1].0).await], [2, 1]);
    for file in [
        format!("email;count\n{three};1"),
        format!("count\tuser_email\n1\t{three}\n"),
        format!("e-mail\n{three}\n"),
    ] {
        let job = desk.end(desk.csv(file).await).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    assert_eq!(desk.held(users[2].0).await, 3);
    desk.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_batch_is_refused_before_anything_happens() {
    let desk = Desk::open(json!({}), 3).await;
    let (id, email) = desk.users(1).await.remove(0);
    let list = |items: Value| json!({ "book_id": desk.book_id, "items": items });
    let admin = &desk.admin;
    admin
        .post(PATH, list(json!([])))
        .await
        .invalid("/items", "too_few");
    admin
        .post(PATH, list(json!([{ "user_id": id, "count": 0 }])))
        .await
        .invalid("/items/0/count", "out_of_range");
    admin
        .post(PATH, list(json!([{ "user_id": id, "count": 1_001 }])))
        .await
        .invalid("/items/0/count", "out_of_range");
    admin
        .post(PATH, list(json!([{ "user_id": "x" }])))
        .await
        .invalid("/items/0/user_id", "bad_format");
    let many: Vec<Value> = (0..10_001).map(|_| json!({ "user_id": id })).collect();
    admin
        .post(PATH, list(json!(many)))
        .await
        .invalid("/items", "too_many");
    let absent = json!({ "book_id": Uuid::now_v7(), "items": [{ "user_id": id }] });
    admin.post(PATH, absent).await.refused(404, "not_found");

    let plain = admin
        .request(reqwest::Method::POST, PATH)
        .header("Content-Type", "text/plain")
        .body("user_email\n");
    admin.send(plain).await.refused(415, "unsupported_media_type");
    admin
        .post_csv(PATH, format!("user_email\n{email}\n"))
        .await
        .invalid("?book_id", "required");
    let absent = format!("{PATH}?book_id={}", Uuid::now_v7());
    admin
        .post_csv(&absent, format!("user_email\n{email}\n"))
        .await
        .refused(404, "not_found");
    desk.csv("name,count\na,1\n")
        .await
        .refused(422, "csv_header_missing");
    desk.csv(format!("user_email,count\n{email},1\n{email},none\n"))
        .await
        .invalid("", "bad_line");
    desk.csv(format!("user_email,count\n{email},1001\n"))
        .await
        .invalid("", "bad_line");
    desk.csv("user_email\n\"never closed")
        .await
        .invalid("", "bad_line");
    desk.csv("user_email\n").await.invalid("/items", "out_of_range");
    desk.csv(format!("user_email\n{}", format!("{email}\n").repeat(10_001)))
        .await
        .invalid("", "out_of_range");
    desk.csv("x".repeat(2 * 1024 * 1024 + 1))
        .await
        .refused(413, "payload_too_large");
    let (user, _) = desk.service.user(Role::User).await;
    user.post(PATH, list(json!([{ "user_id": id }])))
        .await
        .refused(403, "forbidden");
    let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE kind = 'assign_batch'")
        .fetch_one(desk.service.db.pool())
        .await
        .expect("a count");
    assert_eq!(jobs, 0);
    desk.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_many_steps_gives_everybody_theirs() {
    let desk = Desk::open(json!({}), 1_300).await;
    let users = seed::users(&desk.service.db, 1_250).await;
    let items: Vec<Value> = users.iter().map(|id| json!({ "user_id": id })).collect();
    let job = desk
        .end(
            desk.admin
                .post(PATH, json!({ "book_id": desk.book_id, "items": items }))
                .await,
        )
        .await;
    assert_eq!(
        (&job["state"], &job["result"]),
        (&json!("succeeded"), &json!({ "assigned": 1_250, "refused": 0 }))
    );
    let holders: i64 =
        sqlx::query_scalar("SELECT count(DISTINCT assigned_user_id) FROM coupons WHERE book_id = $1")
            .bind(desk.book_id)
            .fetch_one(desk.service.db.pool())
            .await
            .expect("a count");
    assert_eq!(holders, 1_250);
    desk.service.stop().await;
}
