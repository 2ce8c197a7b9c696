//! Lists, filters, tags: pages that stay right while rows come and go, and changes that do not overwrite each other.

use coupon_core::caller::Role;
use coupon_tests::{Client, Service, seed};
use serde_json::{Value, json};

/// The values of `name` on every page of a list, with `between` run after each page.
async fn walk(client: &Client, path: &str, name: &str, mut between: impl AsyncFnMut(&Value)) -> Vec<String> {
    let (mut seen, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let after = cursor
            .map(|cursor| format!("&cursor={cursor}"))
            .unwrap_or_default();
        let page = client.get(&format!("{path}{after}")).await.expect(200);
        let rows = page["data"].as_array().expect("rows");
        seen.extend(
            rows.iter()
                .map(|row| row[name].as_str().expect("text").to_owned()),
        );
        between(&page).await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return seen,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_stay_right_while_rows_come_and_go() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let codes: Vec<String> = (10..40).map(|number| format!("P{number}")).collect();
    admin.codes(book_id, &codes).await;
    let (db, mut round) = (service.db.clone(), 0);
    let path = format!("/v1/books/{book_id}/coupons?limit=7");
    let seen = walk(&admin, &path, "code", async |page: &Value| {
        round += 1;
        // The row that the cursor stands on goes away, one comes before it and one right behind it.
        let last = page["data"].as_array().expect("rows").last().expect("a row")["code"]
            .as_str()
            .expect("a code")
            .to_owned();
        for sql in [
            "DELETE FROM coupons WHERE book_id = $1 AND code_key = $2",
            "INSERT INTO coupons (book_id, draw_key, redemptions_allowed, code_key) VALUES ($1, 1, 1, 'A' || $2)",
            "INSERT INTO coupons (book_id, draw_key, redemptions_allowed, code_key) VALUES ($1, 1, 1, $2 || 'X')",
        ] {
            sqlx::query(sql)
                .bind(book_id)
                .bind(&last)
                .execute(db.pool())
                .await
                .expect("written");
        }
    });
    let seen = seen.await;
    let old: Vec<&String> = seen.iter().filter(|code| codes.contains(code)).collect();
    assert_eq!(
        old,
        codes.iter().collect::<Vec<_>>(),
        "every old row once and in order"
    );
    let mut sorted = seen.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted, seen, "nothing twice, nothing out of order");
    assert!(
        seen.iter().any(|code| code == "P16X") && !seen.iter().any(|code| code.starts_with('A')),
        "{seen:?}"
    );

    // Newest first: what is made meanwhile comes before the first page and is not seen.
    let before: Vec<String> = walk(&admin, "/v1/books?limit=100", "id", async |_: &Value| {}).await;
    let users = seed::users(&service.db, 5).await;
    let seen = walk(&admin, "/v1/users?limit=1", "id", async |_: &Value| {
        seed::users(&service.db, 2).await;
    });
    let seen = seen.await;
    assert_eq!(seen.len(), 6);
    assert!(users.iter().all(|id| seen.contains(&id.to_string())));
    assert_eq!(before.len(), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_has_1_to_100_rows_and_50_by_itself() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    admin.codes(book_id, &seed::codes(120)).await;
    let path = format!("/v1/books/{book_id}/coupons");
    for (query, rows) in [("", 50), ("?limit=1", 1), ("?limit=100", 100)] {
        let page = admin.get(&format!("{path}{query}")).await.expect(200);
        assert_eq!(page["data"].as_array().unwrap().len(), rows);
        assert!(page["next_cursor"].is_string());
    }
    let page = admin.get(&format!("{path}?limit=100")).await.expect(200);
    let rest = admin
        .get(&format!(
            "{path}?limit=100&cursor={}",
            page["next_cursor"].as_str().unwrap()
        ))
        .await
        .expect(200);
    assert_eq!(
        (rest["data"].as_array().unwrap().len(), &rest["next_cursor"]),
        (20, &Value::Null)
    );
    // A cursor belongs to its filters.
    let foreign = format!(
        "{path}?state=assigned&cursor={}",
        page["next_cursor"].as_str().unwrap()
    );
    admin.get(&foreign).await.invalid("?cursor", "bad_cursor");
    // A page that ends with the last row knows it.
    let exact = admin
        .get(&format!("{path}?limit=1&code=CODE-0000007"))
        .await
        .expect(200);
    assert_eq!(exact["next_cursor"], Value::Null);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_narrow_lists_to_what_they_say() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (user, user_id) = service.user(Role::User).await;
    let email = user.get("/v1/me").await.expect(200)["email"]
        .as_str()
        .unwrap()
        .to_uppercase();
    let (book_id, other_id) = (
        admin.book(json!({})).await,
        admin.book(json!({ "status": "paused" })).await,
    );
    admin
        .codes(book_id, &["F-1", "F-2", "F-3", "F-4"].map(str::to_owned))
        .await;
    admin.codes(other_id, &["F-1".to_owned()]).await;
    for code in ["F-1", "F-2"] {
        let body = json!({ "user_id": user_id, "book_id": book_id });
        admin
            .with("Prefer", "wait=10")
            .post(&format!("/v1/coupons/assign/{code}"), body)
            .await
            .expect(200);
    }
    let locked = user.post("/v1/coupons/lock/F-2", json!({})).await.expect(200);
    let book = format!("/v1/books/{book_id}/coupons");
    let nobody = uuid::Uuid::nil();
    for (client, path, name, mut expected) in [
        (
            &admin,
            format!("{book}?state=unassigned"),
            "code",
            vec!["F-3", "F-4"],
        ),
        (&admin, format!("{book}?state=assigned"), "code", vec!["F-1"]),
        (&admin, format!("{book}?state=locked"), "code", vec!["F-2"]),
        (&admin, format!("{book}?state=redeemed"), "code", vec![]),
        (
            &admin,
            format!("{book}?user_id={user_id}"),
            "code",
            vec!["F-1", "F-2"],
        ),
        (&admin, format!("{book}?user_id={nobody}"), "code", vec![]),
        (
            &admin,
            format!("{book}?user_id={user_id}&state=locked"),
            "code",
            vec!["F-2"],
        ),
        (&admin, format!("{book}?code=f%203"), "code", vec!["F-3"]),
        (&admin, format!("{book}?code=f3&state=assigned"), "code", vec![]),
        (&admin, format!("{book}?code={}", "x".repeat(200)), "code", vec![]),
        (&user, "/v1/me/coupons".to_owned(), "code", vec!["F-1", "F-2"]),
        (
            &user,
            "/v1/me/coupons?state=locked".to_owned(),
            "code",
            vec!["F-2"],
        ),
        (
            &user,
            format!("/v1/me/coupons?book_id={other_id}"),
            "code",
            vec![],
        ),
        (
            &admin,
            format!("/v1/users/{user_id}/coupons?book_id={book_id}"),
            "code",
            vec!["F-1", "F-2"],
        ),
        (
            &admin,
            "/v1/jobs?kind=assign".to_owned(),
            "kind",
            vec!["assign", "assign"],
        ),
        (
            &admin,
            "/v1/jobs?kind=import&state=succeeded".to_owned(),
            "kind",
            vec!["import", "import"],
        ),
        (
            &admin,
            format!("/v1/jobs?book_id={other_id}"),
            "kind",
            vec!["import"],
        ),
        (&admin, "/v1/jobs?state=queued".to_owned(), "kind", vec![]),
        (&admin, "/v1/jobs?kind=nonsense".to_owned(), "kind", vec![]),
        (&user, "/v1/jobs".to_owned(), "kind", vec![]),
        (
            &admin,
            "/v1/books?status=paused".to_owned(),
            "status",
            vec!["paused"],
        ),
        (&admin, "/v1/books?status=archived".to_owned(), "status", vec![]),
    ] {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut seen = walk(
            client,
            &format!("{path}{separator}limit=1"),
            name,
            async |_: &Value| {},
        )
        .await;
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected, "{path}");
    }
    // The state that is shown is the one that counts: a lapsed lock is none.
    sqlx::query("UPDATE coupons SET locked_until = now() - interval '1 second' WHERE state = 'locked'")
        .execute(service.db.pool())
        .await
        .expect("lapsed");
    let lapsed = user.get("/v1/me/coupons?state=assigned").await.expect(200);
    assert_eq!(lapsed["data"].as_array().unwrap().len(), 2);
    assert!(
        user.get("/v1/me/coupons?state=locked").await.expect(200)["data"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    assert!(locked["locked_until"].is_string());
    let found = admin.get(&format!("/v1/users?email={email}")).await.expect(200);
    assert_eq!(found["data"][0]["id"], json!(user_id));
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_with_a_stale_tag_is_refused() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let made = admin.post("/v1/books", json!({ "name": "Tagged" })).await;
    let tag = made.header("etag").unwrap().to_owned();
    let path = made.header("location").unwrap().to_owned();
    assert_eq!(admin.get(&path).await.header("etag"), Some(tag.as_str()));
    let changed = admin
        .with("If-Match", &tag)
        .patch(&path, json!({ "name": "Changed" }))
        .await;
    let next = changed.header("etag").unwrap().to_owned();
    assert_ne!(tag, next);
    changed.expect(200);
    for stale in [&tag, "\"x\"", "", &format!("W/{next}")] {
        admin
            .with("If-Match", stale)
            .patch(&path, json!({ "name": "Lost" }))
            .await
            .refused(412, "stale");
    }
    assert_eq!(admin.get(&path).await.expect(200)["name"], "Changed");
    admin
        .with("If-Match", "*")
        .patch(&path, json!({ "name": "Any" }))
        .await
        .expect(200);
    // Two that read the same version: one of them wins.
    let tag = admin.get(&path).await.header("etag").unwrap().to_owned();
    let (one, two) = (
        admin.with("If-Match", &tag),
        admin.with("If-Match", &tag).on_own_connection(),
    );
    let (one, two) = tokio::join!(
        one.patch(&path, json!({ "name": "1" })),
        two.patch(&path, json!({ "name": "2" }))
    );
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_cleared_by_name() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let full = json!({
        "max_assignments_per_user": 1, "max_redemptions_per_user": 2, "starts_at": "2026-01-01T00:00:00Z",
        "ends_at": "2030-01-01T00:00:00Z", "valid_days_after_assignment": 3, "pattern": "A-######",
    });
    let path = format!("/v1/books/{}", admin.book(full.clone()).await);
    let names: Vec<String> = full.as_object().unwrap().keys().cloned().collect();
    let unchanged = admin
        .patch(&path, json!({ "ends_at": null, "description": null }))
        .await
        .expect(200);
    assert!(
        names.iter().all(|name| !unchanged[name].is_null()),
        "null means absent: {unchanged}"
    );
    for name in &names {
        let cleared = admin.patch(&path, json!({ "clear": [name] })).await.expect(200);
        assert_eq!(cleared[name], Value::Null, "{name}");
    }
    // Cleared and given at once: what is given counts.
    let both = admin
        .patch(&path, json!({ "clear": ["pattern"], "pattern": "B-######" }))
        .await
        .expect(200);
    assert_eq!(both["pattern"], "B-######");
    admin
        .patch(&path, json!({ "clear": ["name"] }))
        .await
        .invalid("/clear/0", "not_in_enum");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_not_changed_costs_no_body() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let job = admin
        .post(&format!("/v1/books/{book_id}/codes"), json!({ "codes": ["A"] }))
        .await;
    let path = job.header("location").unwrap().to_owned();
    assert_eq!(job.header("retry-after"), Some("1"));
    let queued = admin.get(&path).await;
    assert_eq!(queued.header("retry-after"), Some("1"));
    let tag = queued.header("etag").unwrap().to_owned();
    let known = admin.with("If-None-Match", &tag);
    let same = known.get(&path).await;
    assert_eq!(
        (same.status.as_u16(), same.header("etag"), &same.body),
        (304, Some(tag.as_str()), &json!(""))
    );
    service.start_workers();
    let ended = known.with("Prefer", "wait=10").get(&path).await;
    assert_ne!(ended.header("etag"), Some(tag.as_str()));
    assert_eq!((ended.status.as_u16(), ended.header("retry-after")), (200, None));
    assert_eq!(ended.body["state"], "succeeded");
    service.stop().await;
}
