//! Pools: their members come and go one by one and from files, the count is exact, a deleted pool is gone.

use std::sync::Arc;

use coupon_core::{
    db::{self, Db},
    leftovers::sweep_leftovers,
    pool::members,
    retention::Retention,
};
use coupon_tests::{Client, Service, seed, size};
use serde_json::{Value, json};
use tokio::sync::Barrier;
use uuid::Uuid;

/// A pool with these members.
pub(crate) async fn pool(admin: &Client, users: &[Uuid]) -> Uuid {
    let pool = admin
        .post("/v1/pools", json!({ "name": "A pool" }))
        .await
        .expect(201);
    let path = format!("/v1/pools/{}/members", pool["id"].as_str().unwrap());
    for users in users.chunks(1_000) {
        admin.post(&path, json!({ "user_ids": users })).await.expect(200);
    }
    pool["id"].as_str().unwrap().parse().unwrap()
}

/// A pool with these members, written at once: what a test of something else starts from.
pub(crate) async fn seeded_pool(db: &Db, users: &[Uuid]) -> Uuid {
    let pool_id = Uuid::now_v7();
    sqlx::query(
        "WITH m AS (INSERT INTO pool_members (pool_id, user_id) SELECT $1, unnest($2::uuid[]))
         INSERT INTO pools (id, created_by, name, member_count) VALUES ($1, $1, 'A pool', cardinality($2::uuid[]))",
    )
    .bind(pool_id)
    .bind(users)
    .execute(db.pool())
    .await
    .unwrap();
    pool_id
}

async fn count(admin: &Client, pool_id: Uuid) -> i64 {
    admin.get(&format!("/v1/pools/{pool_id}")).await.expect(200)["members"]
        .as_i64()
        .unwrap()
}

async fn stored(db: &Db, pool_id: Uuid) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM pool_members WHERE pool_id = $1")
        .bind(pool_id)
        .fetch_one(db.pool())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_made_changed_listed_and_deleted() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let made = admin
        .post("/v1/pools", json!({ "name": "Spring", "description": "D" }))
        .await;
    assert_eq!(made.header("etag"), Some("\"1\""));
    let made = made.expect(201);
    assert_eq!(
        (&made["name"], &made["description"], &made["members"]),
        (&json!("Spring"), &json!("D"), &json!(0))
    );
    let path = format!("/v1/pools/{}", made["id"].as_str().unwrap());
    let changed = admin
        .with("If-Match", "\"1\"")
        .patch(&path, json!({ "name": "Summer" }))
        .await;
    assert_eq!(changed.header("etag"), Some("\"2\""));
    assert_eq!(changed.expect(200)["name"], "Summer");
    admin
        .with("If-Match", "\"1\"")
        .patch(&path, json!({ "name": "Autumn" }))
        .await
        .refused(412, "stale");
    admin
        .patch(&path, json!({ "name": "  " }))
        .await
        .invalid("/name", "required");
    // Changing nothing is no new version.
    let same = admin.patch(&path, json!({ "name": "Summer" })).await;
    assert_eq!(same.header("etag"), Some("\"2\""));

    pool(&admin, &[]).await;
    let page = admin.get("/v1/pools?limit=1").await.expect(200);
    let next = page["next_cursor"].as_str().unwrap();
    let last = admin
        .get(&format!("/v1/pools?limit=1&cursor={next}"))
        .await
        .expect(200);
    assert_eq!(
        (&last["data"][0]["name"], &last["next_cursor"]),
        (&json!("Summer"), &Value::Null)
    );

    let users = seed::users(&service.db, 30).await;
    admin
        .post(&format!("{path}/members"), json!({ "user_ids": users }))
        .await
        .expect(200);
    admin.delete(&path).await.expect(204);
    for answer in [
        admin.get(&path).await,
        admin.delete(&path).await,
        admin.get(&format!("{path}/members")).await,
    ] {
        answer.refused(404, "not_found");
    }
    admin
        .post(&format!("{path}/members"), json!({ "user_ids": users }))
        .await
        .refused(404, "not_found");
    let pool_id = path.rsplit('/').next().unwrap().parse().unwrap();
    assert_eq!(stored(&service.db, pool_id).await, 30);
    loop {
        let mut tx = service.db.begin().await.unwrap();
        let more = sweep_leftovers(&mut tx, &Retention::default()).await.unwrap();
        db::commit(tx).await.unwrap();
        if !more {
            break;
        }
    }
    assert_eq!(stored(&service.db, pool_id).await, 0);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_added_all_or_none_and_removed_and_the_count_is_exact() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 120).await;
    let pool_id = pool(&admin, &users[..100]).await;
    let path = format!("/v1/pools/{pool_id}/members");
    // Some are members already, one is named twice.
    let mut some = users[90..].to_vec();
    some.push(users[119]);
    let added = admin.post(&path, json!({ "user_ids": some })).await.expect(200);
    assert_eq!(added, json!({ "added": 20, "removed": 0, "members": 120 }));
    let unknown = json!({ "user_ids": [users[0], Uuid::now_v7()] });
    let refused = admin
        .post(&path, unknown.clone())
        .await
        .refused(422, "unknown_users");
    assert!(
        refused["detail"]
            .as_str()
            .unwrap()
            .contains(unknown["user_ids"][1].as_str().unwrap())
    );
    let removed = json!({ "user_ids": [users[0], users[0], users[1], Uuid::now_v7()] });
    let request = admin.request(reqwest::Method::DELETE, &path).json(&removed);
    assert_eq!(
        admin.send(request).await.expect(200),
        json!({ "added": 0, "removed": 2, "members": 118 })
    );
    assert_eq!(
        (count(&admin, pool_id).await, stored(&service.db, pool_id).await),
        (118, 118)
    );
    admin
        .post(&path, json!({ "user_ids": Vec::<Uuid>::new() }))
        .await
        .invalid("/user_ids", "too_few");

    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = admin.get(&format!("{path}?limit=50{cursor}")).await.expect(200);
        seen.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row["user_id"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut expected: Vec<String> = users[2..].iter().map(Uuid::to_string).collect();
    expected.sort();
    assert_eq!(seen, expected);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_at_once_leave_an_exact_count() {
    let service = Service::without_workers().await;
    let users = seed::users(&service.db, 60).await;
    let pool_id = seeded_pool(&service.db, &[]).await;
    let db = Db::connect(service.database.url(), db::Role::Worker, 8).unwrap();
    for _ in 0..20 {
        let barrier = Arc::new(Barrier::new(6));
        let tasks: Vec<_> = (0..6)
            .map(|lane| {
                let (db, barrier) = (db.clone(), Arc::clone(&barrier));
                let users = users[lane * 8..lane * 8 + 20].to_vec(); // they overlap
                tokio::spawn(async move {
                    let mut tx = db.begin().await.unwrap();
                    barrier.wait().await;
                    if lane % 3 == 0 {
                        members::remove(&mut tx, pool_id, &users).await.unwrap();
                    } else {
                        members::add(&mut tx, pool_id, &users).await.unwrap();
                    }
                    db::commit(tx).await.unwrap();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let said: i64 = sqlx::query_scalar("SELECT member_count FROM pools WHERE id = $1")
            .bind(pool_id)
            .fetch_one(db.pool())
            .await
            .unwrap();
        assert_eq!(said, stored(&db, pool_id).await);
    }
    db.close().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_addresses_adds_those_who_exist_and_lists_the_others() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let more = seed::users(&service.db, 4).await;
    let known = more[3];
    let pool_id = pool(&admin, &[known]).await;
    let csv = format!(
        "name;Email\nA;{known}@example.com\nB;{}@EXAMPLE.com\nC;nobody@example.com\n\nD;\n\"E\nF\";{}@example.com\nG;x\n",
        more[0], more[1]
    );
    let path = format!("/v1/pools/{pool_id}/members/import");
    let job = admin
        .with("Prefer", "wait=20")
        .post_csv(&path, csv)
        .await
        .expect(200);
    assert_eq!(
        (&job["kind"], &job["state"]),
        (&json!("pool_import"), &json!("partially_succeeded"))
    );
    assert_eq!(
        job["result"],
        json!({ "rows": 6, "added": 2, "already": 1, "unknown": 2, "invalid": 1 })
    );
    assert_eq!(count(&admin, pool_id).await, 3);
    let errors = admin
        .get(job["links"]["errors"].as_str().unwrap())
        .await
        .expect(200);
    let lines: Vec<(i64, &str, &str)> = errors["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            (
                line["line"].as_i64().unwrap(),
                line["reason"].as_str().unwrap(),
                line["column"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            (4, "unknown_user", "Email"),
            (6, "empty", "Email"),
            (9, "unknown_user", "Email")
        ]
    );
    let report = admin.get(job["links"]["report"].as_str().unwrap()).await;
    let Value::String(report) = report.expect(200) else {
        panic!("no report")
    };
    assert!(
        report.starts_with("name;Email;line;reason;detail\r\nC;nobody@example.com;4;unknown_user;"),
        "{report}"
    );

    // A list without a header; mended, its report can be sent again.
    let csv = format!("{}@example.com\nwrong\n", more[2]);
    let job = admin
        .with("Prefer", "wait=20")
        .post_csv(&path, csv)
        .await
        .expect(200);
    assert_eq!(job["result"]["added"], 1);
    let Value::String(report) = admin
        .get(job["links"]["report"].as_str().unwrap())
        .await
        .expect(200)
    else {
        panic!("no report")
    };
    let mended = report.replace("wrong", &format!("{}@example.com", more[2]));
    let job = admin
        .with("Prefer", "wait=20")
        .post_csv(&path, mended)
        .await
        .expect(200);
    assert_eq!(
        (&job["state"], &job["result"]["already"]),
        (&json!("succeeded"), &json!(1))
    );

    admin
        .post_csv(&path, "a,b\n1,2\n")
        .await
        .refused(422, "csv_header_missing");
    admin.post_csv(&path, "").await.invalid("", "empty");
    let absent = format!("/v1/pools/{}/members/import", Uuid::now_v7());
    admin
        .post_csv(&absent, "email\nx\n")
        .await
        .refused(404, "not_found");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_many_members_goes_on_step_by_step_and_stops_when_asked() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let people = size(50_000, 1_000_000);
    let users = seed::users(&service.db, people).await;
    let pool_id = pool(&admin, &[]).await;
    let csv: String = users.iter().map(|user| format!("{user}@example.com\n")).collect();
    let path = format!("/v1/pools/{pool_id}/members/import");
    let job = admin.post_csv(&path, csv.clone()).await.expect(202);
    service.start_workers();
    let job = admin.job_end(job["id"].as_str().unwrap()).await;
    assert_eq!(
        (&job["state"], &job["result"]["added"]),
        (&json!("succeeded"), &json!(people))
    );
    assert_eq!(count(&admin, pool_id).await, people as i64);

    // A pool that is deleted meanwhile ends its import.
    service.stop_workers().await;
    let job = admin.post_csv(&path, csv).await.expect(202);
    admin.delete(&format!("/v1/pools/{pool_id}")).await.expect(204);
    service.start_workers();
    let job = admin.job_end(job["id"].as_str().unwrap()).await;
    assert_eq!(
        (&job["state"], &job["error"]["code"]),
        (&json!("failed"), &json!("not_found"))
    );
    service.stop().await;
}
