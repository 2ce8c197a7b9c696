//! Exports over HTTP: the file holds each row once, whatever is killed, in a form that no spreadsheet runs, and can be
//! fetched whole, packed or in part.

use std::io::Read;

use coupon_core::{
    caller::Role,
    db,
    job::{
        Queue,
        claim::{self, Lane, Outcome, Place},
    },
};
use coupon_tests::{Client, Service, seed};
use flate2::read::MultiGzDecoder;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

/// Accepts an export and waits for its end.
async fn export(admin: &Client, body: Value) -> Value {
    let job = admin.post("/v1/exports", body).await.expect(202);
    let job = admin.job_end(job["id"].as_str().unwrap()).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    job
}

async fn file(admin: &Client, job: &Value) -> String {
    let path = job["result"]["file"].as_str().expect("a file");
    match admin.get(path).await.expect(200) {
        Value::String(text) => text,
        other => panic!("no text: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_every_coupon_as_it_is_and_no_cell_that_is_a_formula() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (_, user_id) = service.user(Role::User).await;
    let book_id = admin.book(json!({ "require_lock": false })).await;
    let path = format!("/v1/books/{book_id}/codes/import?metadata_columns=true");
    let csv = "code,note\n=1+1,plain\n@SUM,\"a, \"\"quoted\"\" one\"\nZ-9,\n";
    let job = admin.post_csv(&path, csv).await.expect(202);
    admin.job_end(job["id"].as_str().unwrap()).await;
    let assign = json!({ "user_id": user_id, "book_id": book_id });
    admin
        .with("Prefer", "wait=10")
        .post("/v1/coupons/assign/Z-9", assign)
        .await
        .expect(200);

    let job = export(&admin, json!({ "kind": "coupons", "book_id": book_id })).await;
    assert_eq!(
        (&job["kind"], &job["book_id"]),
        (&json!("export"), &json!(book_id))
    );
    assert_eq!(
        (
            &job["progress"]["done"],
            &job["progress"]["total"],
            &job["result"]["rows"]
        ),
        (&json!(3), &json!(3), &json!(3)),
        "{job}"
    );
    let text = file(&admin, &job).await;
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    assert!(lines[0].starts_with("code,state,assigned_user_id,"), "{text}");
    assert!(lines[1].starts_with("\"'=1+1\",unassigned,,"), "{text}");
    assert!(lines[1].ends_with(r#","{""note"":""plain""}""#), "{text}");
    assert!(lines[2].starts_with("\"'@SUM\",unassigned,,"), "{text}");
    assert!(
        lines[3].starts_with(&format!("Z-9,assigned,{user_id},20")) && lines[3].contains("Z,"),
        "{text}"
    );
    assert_eq!(
        (lines.len(), job["result"]["bytes"].as_u64()),
        (4, Some(text.len() as u64))
    );

    let job = export(
        &admin,
        json!({ "kind": "coupons", "book_id": book_id, "state": "assigned" }),
    )
    .await;
    let text = file(&admin, &job).await;
    assert_eq!(
        (text.lines().count(), &job["result"]["rows"]),
        (2, &json!(1)),
        "{text}"
    );

    admin
        .post(
            "/v1/coupons/redeem/Z-9",
            json!({ "book_id": book_id, "user_id": user_id }),
        )
        .await
        .expect(200);
    let job = export(&admin, json!({ "kind": "redemptions", "book_id": book_id })).await;
    let text = file(&admin, &job).await;
    assert!(text.starts_with("id,code,user_id,redeemed_at,"), "{text}");
    assert!(
        text.lines().count() == 2 && text.contains(&format!(",Z-9,{user_id},20")),
        "{text}"
    );
    let refused = json!({ "kind": "redemptions", "book_id": book_id, "state": "assigned" });
    admin
        .post("/v1/exports", refused)
        .await
        .invalid("/state", "not_allowed");

    // Who took the codes stands in the audit trail.
    let events = admin
        .get(&format!("/v1/audit?book_id={book_id}"))
        .await
        .expect(200);
    let count = |kind| {
        events["data"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["kind"] == kind)
            .count()
    };
    assert_eq!(
        (count("exported"), count("export_downloaded")),
        (3, 3),
        "{events}"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_killed_between_steps_goes_on_and_its_file_can_be_read_from_any_byte() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    sqlx::query(
        "INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed)
         SELECT $1, 'C' || lpad(n::text, 6, '0'), n, 1 FROM generate_series(1, 50000) AS n",
    )
    .bind(book_id)
    .execute(service.db.pool())
    .await
    .unwrap();
    let job = admin
        .post("/v1/exports", json!({ "kind": "coupons", "book_id": book_id }))
        .await
        .expect(202);
    let job_id: Uuid = job["id"].as_str().unwrap().parse().unwrap();
    let path = format!("/v1/exports/{job_id}/file");
    admin.get(&path).await.refused(409, "export_not_ready");

    // Two steps commit, and a third dies before its commit: what it wrote is as if it had never been.
    for dies in [false, false, true] {
        let mut tx = service.db.begin().await.unwrap();
        let claimed = claim::claim(&mut tx, Queue::Bulk, Lane::Fresh, 1, &mut Place::default())
            .await
            .unwrap();
        assert_eq!(claimed[0].id, job_id);
        let outcome = coupon_core::export::step::step(&mut tx, job_id).await.unwrap();
        assert!(matches!(outcome, Outcome::NextStep(_)), "{outcome:?}");
        claim::settle(&mut tx, vec![(job_id, outcome)]).await.unwrap();
        if dies {
            tx.rollback().await.unwrap();
        } else {
            db::commit(tx).await.unwrap();
        }
    }
    let job = admin.get(&format!("/v1/jobs/{job_id}")).await.expect(200);
    assert_eq!(
        (&job["state"], &job["progress"]["done"], &job["progress"]["total"]),
        (&json!("running"), &json!(20_000), &json!(50_000)),
        "{job}"
    );
    service.start_workers();
    let job = admin.job_end(&job_id.to_string()).await;
    let text = file(&admin, &job).await;
    let mut codes = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').next().unwrap().to_owned());
    for n in 1..=50_000 {
        assert_eq!(codes.next(), Some(format!("C{n:06}")));
    }
    assert_eq!(codes.next(), None);
    let chunks: i64 = sqlx::query_scalar("SELECT count(*) FROM export_chunks")
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    assert!(chunks >= 3, "one piece proves nothing");

    let whole = admin.get(&path).await;
    assert_eq!(
        whole.header("content-length"),
        Some(text.len().to_string().as_str())
    );
    let disposition = whole.header("content-disposition").unwrap();
    assert_eq!(
        disposition,
        format!("attachment; filename=\"coupons-{job_id}.csv\"")
    );
    let tag = whole.header("etag").unwrap().to_owned();
    let middle = text.len() / 2;
    for (range, from, to) in [
        (format!("bytes={middle}-"), middle, text.len()),
        ("bytes=0-0".to_owned(), 0, 1),
        ("bytes=-7".to_owned(), text.len() - 7, text.len()),
        (format!("bytes=5-{middle}"), 5, middle + 1),
    ] {
        let part = admin
            .with("Range", &range)
            .with("If-Range", &tag)
            .get(&path)
            .await;
        assert_eq!(part.status, 206, "{range}");
        let said = format!("bytes {from}-{}/{}", to - 1, text.len());
        assert_eq!(part.header("content-range"), Some(said.as_str()));
        // A number by itself is read as JSON by the client of these tests.
        let body = part
            .body
            .as_str()
            .map_or_else(|| part.body.to_string(), str::to_owned);
        assert!(body == text[from..to], "{range}");
    }
    admin
        .with("Range", "bytes=3-")
        .with("If-Range", "\"other\"")
        .get(&path)
        .await
        .expect(200);
    for (accepted, query) in [("gzip", ""), ("identity", "?format=gzip")] {
        let request = admin
            .request(Method::GET, &format!("{path}{query}"))
            .header("Accept-Encoding", accepted);
        let response = request.send().await.unwrap();
        let encoded = response.headers().get("content-encoding").is_some();
        assert_eq!(encoded, query.is_empty());
        let packed = response.bytes().await.unwrap();
        let mut unpacked = String::new();
        MultiGzDecoder::new(&packed[..])
            .read_to_string(&mut unpacked)
            .unwrap();
        assert!(
            unpacked == text && packed.len() < text.len() / 2,
            "{}",
            packed.len()
        );
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_export_has_no_file_and_an_empty_book_has_one_with_a_header() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let job = admin
        .post("/v1/exports", json!({ "kind": "coupons", "book_id": book_id }))
        .await
        .expect(202);
    let path = format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap());
    admin.post(&path, json!({})).await.expect(202);
    admin
        .get(&format!("/v1/exports/{}/file", job["id"].as_str().unwrap()))
        .await
        .refused(409, "export_not_ready");
    service.start_workers();
    for kind in ["coupons", "redemptions"] {
        let job = export(&admin, json!({ "kind": kind, "book_id": book_id })).await;
        let text = file(&admin, &job).await;
        assert!(text.ends_with("\r\n") && text.lines().count() == 1, "{text}");
    }
    // A job of another kind is no export.
    admin.codes(book_id, &seed::codes(3)).await;
    let jobs = admin.get("/v1/jobs?kind=import").await.expect(200);
    let import = jobs["data"][0]["id"].as_str().unwrap();
    admin
        .get(&format!("/v1/exports/{import}/file"))
        .await
        .refused(404, "not_found");
    service.stop().await;
}
