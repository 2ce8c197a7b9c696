//! Imports over HTTP: files as streams, reports that are mended and sent again, one at a time, all or nothing received.

use std::time::Duration;

use coupon_core::caller::Role;
use coupon_tests::{Client, Service, seed};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use uuid::Uuid;

use crate::truth;

fn import_path(book_id: Uuid) -> String {
    format!("/v1/books/{book_id}/codes/import")
}

async fn end(client: &Client, accepted: Value) -> Value {
    client.job_end(accepted["id"].as_str().expect("an id")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_taken_in_pieces_of_any_size() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let text = format!(
        "id;Código\n{}",
        seed::codes(20_000)
            .iter()
            .map(|code| format!("1;{code}\n"))
            .collect::<String>()
    );
    let pieces: Vec<_> = text
        .as_bytes()
        .chunks(977)
        .map(|piece| Ok::<_, std::io::Error>(piece.to_vec()))
        .collect();
    let body = reqwest::Body::wrap_stream(stream::iter(pieces));
    let accepted = admin.post_csv(&import_path(book_id), body).await;
    assert!(accepted.header("location").is_some());
    let job = end(&admin, accepted.expect(202)).await;
    assert_eq!(
        (&job["state"], &job["result"]["accepted"]),
        (&json!("succeeded"), &json!(20_000)),
        "{job}"
    );
    assert_eq!(
        admin.get(&format!("/v1/books/{book_id}/stats")).await.expect(200)["unassigned"],
        20_000
    );
    let errors = admin
        .get(job["links"]["errors"].as_str().unwrap())
        .await
        .expect(200);
    assert_eq!(errors, json!({ "data": [], "next_cursor": null }));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_paged_and_can_be_mended_and_sent_again() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (user, _) = service.user(Role::User).await;
    let me = user.get("/v1/me").await.expect(200);
    let email = me["email"].as_str().unwrap();
    let book_id = admin.book(json!({})).await;
    let file = format!(
        "code,user_email,note\nM-1,{email},fine\n,,empty\nM-2,nobody@example.com,unknown\n\"bad\u{1}\",,character\nm 1,,twice\n"
    );
    let accepted = admin.post_csv(&import_path(book_id), file).await;
    let job = end(&admin, accepted.expect(202)).await;
    assert_eq!(job["state"], "partially_succeeded");
    let result = &job["result"];
    assert_eq!(
        (
            &result["rows"],
            &result["accepted"],
            &result["duplicate_in_file"],
            &result["invalid"]
        ),
        (&json!(5), &json!(1), &json!(1), &json!(3)),
        "{job}"
    );
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = admin
            .get(&format!(
                "{}?limit=1{cursor}",
                job["links"]["errors"].as_str().unwrap()
            ))
            .await
            .expect(200);
        for line in page["data"].as_array().unwrap() {
            assert!(line["detail"].is_string());
            seen.push((
                line["line"].as_i64().unwrap(),
                line["reason"].as_str().unwrap().to_owned(),
            ));
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let expected = [
        (3, "empty"),
        (4, "unknown_user"),
        (5, "bad_character"),
        (6, "duplicate_in_file"),
    ];
    assert_eq!(seen, expected.map(|(line, reason)| (line, reason.to_owned())));

    let report = admin.get(job["links"]["report"].as_str().unwrap()).await;
    assert!(report.header("content-type").unwrap().starts_with("text/csv"));
    assert!(
        report
            .header("content-disposition")
            .unwrap()
            .starts_with("attachment")
    );
    let Value::String(report) = report.expect(200) else {
        panic!("text")
    };
    let mended = report.replace("nobody@example.com", "").replace('\u{1}', "-3");
    let accepted = admin.post_csv(&import_path(book_id), mended).await;
    let job = end(&admin, accepted.expect(202)).await;
    assert_eq!(
        (
            &job["result"]["accepted"],
            &job["result"]["duplicate_in_book"],
            &job["result"]["invalid"]
        ),
        (&json!(2), &json!(1), &json!(1)),
        "{job}\n{report}"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_read_are_refused_at_once() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let path = import_path(book_id);
    admin
        .post_csv(&path, "a,b\n1,2\n")
        .await
        .refused(422, "csv_header_missing");
    admin
        .post_csv(&format!("{path}?column=c"), "a,b\n1,2\n")
        .await
        .refused(422, "csv_header_missing");
    admin.post_csv(&path, "").await.invalid("", "empty");
    admin
        .post_csv(&path, &b"\x1f\x8b\x08\x00damaged"[..])
        .await
        .invalid("", "damaged");
    admin
        .post_csv(&path, &b"PK\x03\x04workbook"[..])
        .await
        .refused(415, "unsupported_media_type");
    admin
        .post_csv(&import_path(Uuid::nil()), "code\nA\n")
        .await
        .refused(404, "not_found");
    for sql in [
        "SELECT count(*) FROM uploads",
        "SELECT count(*) FROM jobs",
        "SELECT count(*) FROM upload_chunks",
    ] {
        let left: i64 = sqlx::query_scalar(sql)
            .fetch_one(service.db.pool())
            .await
            .expect("a count");
        assert_eq!(left, 0, "{sql}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_import_of_a_book_at_a_time_and_the_same_file_is_the_same_job() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let (book_id, other_id) = (admin.book(json!({})).await, admin.book(json!({})).await);
    let path = import_path(book_id);
    let first = admin.post_csv(&path, "code\nONE\n").await.expect(202);
    let same = admin.post_csv(&path, "code\nONE\n").await;
    assert_eq!(same.header("idempotency-replayed"), None);
    assert_eq!(same.expect(202)["id"], first["id"]);
    admin
        .post_csv(&path, "code\nTWO\n")
        .await
        .refused(409, "import_in_progress");
    admin
        .post_csv(&format!("{path}?mode=validate_only"), "code\nONE\n")
        .await
        .refused(409, "import_in_progress");
    admin
        .post_csv(&import_path(other_id), "code\nTWO\n")
        .await
        .expect(202);
    // A short list does not ask the caller to come back: it waits for its turn.
    let list = admin
        .post(
            &format!("/v1/books/{book_id}/codes"),
            json!({ "codes": ["THREE"] }),
        )
        .await
        .expect(202);
    service.start_workers();
    for job in [first.clone(), list] {
        assert_eq!(end(&admin, job).await["state"], "succeeded");
    }
    let later = admin.post_csv(&path, "code\nONE\n").await.expect(202);
    assert_ne!(later["id"], first["id"]);
    assert_eq!(end(&admin, later).await["result"]["duplicate_in_book"], 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_leaves_nothing() {
    let service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let key = admin
        .post("/v1/api-keys", json!({ "name": "k", "scopes": ["manage"] }))
        .await
        .expect(201);
    let address = service.url.strip_prefix("http://").expect("an address");
    let count = async |sql: &'static str| -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(service.db.pool())
            .await
            .expect("a count")
    };
    for framing in ["Content-Length: 9000000", "Transfer-Encoding: chunked"] {
        let mut socket = TcpStream::connect(address).await.expect("connected");
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {}\r\nContent-Type: text/csv\r\n{framing}\r\n\r\n",
            import_path(book_id),
            key["key"].as_str().expect("a key")
        );
        socket.write_all(head.as_bytes()).await.expect("sent");
        let text = "CUT-CODE\n".repeat(300_000);
        if framing.starts_with('T') {
            socket
                .write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
                .await
                .expect("sent");
        } else {
            socket.write_all(text.as_bytes()).await.expect("sent");
        }
        until("the upload has begun", async || {
            count("SELECT count(*) FROM upload_chunks").await > 0
        })
        .await;
        drop(socket);
        until("the upload is gone", async || {
            count("SELECT count(*) FROM uploads").await == 0
        })
        .await;
    }
    for sql in [
        "SELECT count(*) FROM upload_chunks",
        "SELECT count(*) FROM jobs",
        "SELECT count(*) FROM code_job_slots",
        "SELECT count(*) FROM coupons",
    ] {
        assert_eq!(count(sql).await, 0, "{sql}");
    }
    service.stop().await;
}

/// Asks again and again, with an end.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(truth::PATIENCE, asking).await.is_ok(),
        "never: {what}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_takes_ten_thousand_codes_and_names_the_bad_ones_by_their_place() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let path = format!("/v1/books/{book_id}/codes");
    let job = admin
        .with("Prefer", "wait=30")
        .post(&path, json!({ "codes": seed::codes(10_000) }))
        .await
        .expect(200);
    assert_eq!(job["result"]["accepted"], 10_000, "{job}");
    admin
        .post(&path, json!({ "codes": seed::codes(10_001) }))
        .await
        .invalid("/codes", "too_many");
    let job = admin
        .post(&path, json!({ "codes": ["NEW-1", "", "new 1", "a\nb"] }))
        .await
        .expect(202);
    let job = end(&admin, job).await;
    let errors = admin
        .get(job["links"]["errors"].as_str().unwrap())
        .await
        .expect(200);
    let places: Vec<(i64, &str)> = errors["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (line["line"].as_i64().unwrap(), line["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(
        places,
        [(2, "empty"), (3, "duplicate_in_file"), (4, "bad_character")],
        "{job}"
    );
    service.stop().await;
}
