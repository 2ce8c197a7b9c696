//! Files as other programs save them, taken without any option; and files that are made to do harm, refused with a reason
//! while the service stays small.

use coupon_core::{
    caller::Scope,
    db::{Db, Role},
};
use coupon_tests::{Client, Service, process::Process, seed};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use sqlx::postgres::PgPoolCopyExt;
use uuid::Uuid;

/// What the service's process may hold more than when idle, in MiB, whatever it is sent.
const OVER_IDLE: f64 = 64.0;

/// A coupon as far as a file tells of it.
type Coupon = (String, Option<String>, i32, Option<Value>);

/// Imports a file without any option and waits for the end.
async fn import(client: &Client, book_id: Uuid, file: impl Into<reqwest::Body>) -> Value {
    let path = format!("/v1/books/{book_id}/codes/import");
    let job = client.post_csv(&path, file).await.expect(202);
    client.job_end(job["id"].as_str().expect("an id")).await
}

async fn coupons(service: &Service, book_id: Uuid) -> Vec<Coupon> {
    sqlx::query_as(
        "SELECT coalesce(code, code_key), to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
                redemptions_allowed, metadata
         FROM coupons WHERE book_id = $1 ORDER BY code_key",
    )
    .bind(book_id)
    .fetch_all(service.db.pool())
    .await
    .unwrap()
}

fn coupon(code: &str, expires_at: Option<&str>, uses: i32, metadata: Option<Value>) -> Coupon {
    (code.to_owned(), expires_at.map(str::to_owned), uses, metadata)
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spreadsheet_saved_as_csv_is_taken_without_an_option() {
    let service = Service::start().await;
    let admin = service.admin().await;
    // Where the comma is the decimal sign, Excel writes semicolons; "CSV UTF-8" has a mark, plain "CSV" is Windows-1252,
    // "Unicode Text" is UTF-16 with tabs.
    let sheet = "Nr.;C\u{f3}digo;Tienda;expires_at;max_redemptions\r\n\
                 1;EX-001;\"Caf\u{e9} \"\"Sol\"\"; Plaza\";2030-06-30;2\r\n\
                 2;EX-002;\"zwei\nZeilen\";;\r\n\
                 ;;;;\r\n\
                 3;\" ex 003 \";\u{c9}t\u{e9};;5\r\n";
    let latin: Vec<u8> = sheet
        .chars()
        .map(|c| u8::try_from(u32::from(c)).unwrap())
        .collect();
    for (name, file) in [
        ("UTF-8 with a mark", format!("\u{feff}{sheet}").into_bytes()),
        ("Windows-1252", latin),
        ("UTF-16 LE with semicolons", utf16(&format!("\u{feff}{sheet}"))),
        (
            "UTF-16 LE with tabs",
            utf16(&format!(
                "\u{feff}{}",
                sheet.replace(';', "\t").replace("Sol\"\"\t", "Sol\"\";")
            )),
        ),
    ] {
        let book_id = admin.book(json!({})).await;
        let job = import(&admin, book_id, file).await;
        assert_eq!(
            (&job["result"]["rows"], &job["result"]["accepted"]),
            (&json!(4), &json!(3)),
            "{name}: {job}"
        );
        assert_eq!(
            coupons(&service, book_id).await,
            [
                coupon("EX-001", Some("2030-07-01 00:00:00"), 2, None),
                coupon("EX-002", None, 1, None),
                coupon("ex 003", None, 5, None),
            ],
            "{name}"
        );
        // The row that the spreadsheet left empty is told with its physical line: one of those before has two.
        let errors = admin
            .get(job["links"]["errors"].as_str().unwrap())
            .await
            .expect(200);
        assert_eq!(
            (&errors["data"][0]["line"], &errors["data"][0]["reason"]),
            (&json!(5), &json!("empty")),
            "{name}"
        );
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_database_exported_is_taken_without_an_option() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let expected = [
        coupon("A\"3", Some("2031-01-01 00:30:00"), 1, None),
        coupon(
            "A,1",
            Some("2030-12-31 22:00:00"),
            3,
            Some(json!({ "shop": "Caf\u{e9}, \"Sol\"\nPlaza" })),
        ),
        coupon("A-2", None, 1, None),
    ];

    // PostgreSQL's own export of a table, whatever it writes.
    let pool = service.db.pool();
    sqlx::raw_sql(
        "CREATE TABLE vouchers (id int, code text, expires_at timestamptz, max_redemptions int, active bool, metadata jsonb);
         INSERT INTO vouchers VALUES
             (1, 'A,1', '2030-12-31 22:00Z', 3, true, jsonb_build_object('shop', E'Caf\u{e9}, \"Sol\"\\nPlaza')),
             (2, 'A-2', NULL, NULL, false, NULL),
             (3, 'A\"3', '2031-01-01 00:30Z', 1, NULL, '{}')",
    )
    .execute(pool)
    .await
    .unwrap();
    for sql in [
        "COPY vouchers TO STDOUT (FORMAT csv, HEADER)",
        "COPY vouchers TO STDOUT (FORMAT csv, HEADER, FORCE_QUOTE *, DELIMITER '|')",
        "COPY vouchers TO STDOUT (FORMAT csv, HEADER, NULL '\\N', DELIMITER E'\\t')",
    ] {
        let mut stream = pool.copy_out_raw(sql).await.unwrap();
        let mut file = Vec::new();
        while let Some(piece) = stream.try_next().await.unwrap() {
            file.extend_from_slice(&piece);
        }
        let book_id = admin.book(json!({})).await;
        let job = import(&admin, book_id, file).await;
        assert_eq!(job["state"], "succeeded", "{sql}: {job}");
        assert_eq!(coupons(&service, book_id).await, expected, "{sql}");
    }

    // MySQL's tools: every field quoted and LF, or NULL in words.
    for file in [
        "\"id\",\"code\",\"expires_at\",\"max_redemptions\",\"metadata\"\n\
         \"1\",\"A,1\",\"2030-12-31 22:00:00\",\"3\",\"{\"\"shop\"\": \"\"Caf\u{e9}, \\\"\"Sol\\\"\"\\nPlaza\"\"}\"\n\
         \"2\",\"A-2\",\\N,\\N,\\N\n\
         \"3\",\"A\"\"3\",\"2031-01-01 00:30:00\",\"1\",\\N\n",
        "id;code;expires_at;max_redemptions;metadata\n\
         1;A,1;2030-12-31 22:00:00;3;\"{\"\"shop\"\": \"\"Caf\u{e9}, \\\"\"Sol\\\"\"\\nPlaza\"\"}\"\n\
         2;A-2;NULL;NULL;NULL\n\
         3;\"A\"\"3\";2031-01-01 00:30:00;1;NULL\n",
    ] {
        let book_id = admin.book(json!({})).await;
        let job = import(&admin, book_id, file).await;
        assert_eq!(job["state"], "succeeded", "{job}\n{file}");
        assert_eq!(coupons(&service, book_id).await, expected, "{file}");
    }
    service.stop().await;
}

/// 64 MiB of one letter, packed a thousandfold.
fn gzip_bomb() -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let piece = vec![b'A'; 1 << 20];
    for _ in 0..64 {
        std::io::Write::write_all(&mut packer, &piece).unwrap();
    }
    packer.finish().unwrap()
}

/// 1.3 GB of one letter in 40 kB: blocks that repeat a byte (RFC 8878, 3.1.1.2.2).
fn zstd_bomb() -> Vec<u8> {
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58]; // no checksum, a window of 2 MiB
    for block in 0..10_000 {
        let header: u32 = u32::from(block == 9_999) | 1 << 1 | (128 << 10) << 3;
        bomb.extend_from_slice(&header.to_le_bytes()[..3]);
        bomb.push(b'A');
    }
    bomb
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_made_to_do_harm_are_refused_with_a_reason_and_take_no_room() {
    let database = coupon_tests::database().await;
    let db = Db::connect(database.url(), Role::Worker, 1).expect("a URL");
    let key = seed::key(&db, &[Scope::Manage]).await;
    let (api, worker) = tokio::join!(Process::api(database.url()), Process::worker(database.url()));
    let client = Client::new(&api.url()).key(&key);
    let book_id = client.book(json!({})).await;
    let path = format!("/v1/books/{book_id}/codes/import");
    import(&client, book_id, "code\nWARM-UP\n").await;
    let idle = [api.memory(), worker.memory()];

    for bomb in [gzip_bomb(), zstd_bomb()] {
        let problem = client
            .post_csv(&path, bomb)
            .await
            .refused(413, "payload_too_large");
        assert!(
            problem["detail"].as_str().unwrap().contains("200 times"),
            "{problem}"
        );
    }
    // A line that has no end, from the beginning and later on.
    let endless = "A".repeat(72 << 20); // more than may be held
    client
        .post_csv(&path, endless.clone())
        .await
        .invalid("", "record_too_long");
    let job = import(&client, book_id, format!("code\nFIRST\n{}", &endless[..8 << 20])).await;
    assert_eq!(
        (&job["state"], &job["result"]["accepted"]),
        (&json!("failed"), &json!(1)),
        "{job}"
    );
    assert_eq!(reasons(&client, &job).await, [(3, "record_too_long".to_owned())]);
    let job = import(
        &client,
        book_id,
        format!("code\nSECOND\n\"{}", &endless[..8 << 20]),
    )
    .await;
    assert_eq!(reasons(&client, &job).await, [(3, "record_too_long".to_owned())]);
    // A hundred thousand columns, of the header and of a line.
    let wide = ",x".repeat(100_000);
    client
        .post_csv(&path, format!("code{wide}\nA\n"))
        .await
        .invalid("", "record_too_long");
    client
        .post_csv(&path, format!("code{}\nA\n", ",x".repeat(10_000)))
        .await
        .invalid("", "too_many_columns");
    let job = import(&client, book_id, format!("code,note\nTHIRD{wide}\nFOURTH,\n")).await;
    assert_eq!(
        (&job["state"], &job["result"]["accepted"]),
        (&json!("partially_succeeded"), &json!(1)),
        "{job}"
    );
    assert_eq!(reasons(&client, &job).await, [(2, "too_many_columns".to_owned())]);
    // NUL, in a code and as all that there is.
    let job = import(&client, book_id, "code,note\nNU\0L,\nFIFTH,a\0b\n").await;
    assert_eq!(reasons(&client, &job).await, [(2, "bad_character".to_owned())]);
    let job = import(&client, book_id, vec![0; 60_000]).await;
    assert_eq!(
        (&job["state"], &job["result"]["accepted"]),
        (&json!("partially_succeeded"), &json!(0)),
        "{job}"
    );
    client
        .post_csv(&path, vec![0; 1 << 20])
        .await
        .invalid("", "record_too_long");

    let made: Vec<String> = sqlx::query_scalar("SELECT code_key FROM coupons ORDER BY code_key")
        .fetch_all(db.pool())
        .await
        .unwrap();
    assert_eq!(made, ["FIFTH", "FIRST", "FOURTH", "SECOND", "WARMUP"]);
    let left: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM uploads u WHERE NOT EXISTS (SELECT FROM imports WHERE upload_id = u.id)",
    )
    .fetch_one(db.pool())
    .await
    .unwrap();
    assert_eq!(left, 0, "uploads that nobody reads");
    for (idle, process) in idle.into_iter().zip([&api, &worker]) {
        if let (Some(idle), Some(now)) = (idle, process.memory()) {
            let over = now.peak - idle.resident;
            assert!(over <= OVER_IDLE, "{over:.0} MiB over idle: {}", process.ready);
        }
    }
    for process in [api, worker] {
        process.terminate().await;
    }
}

/// Line and reason of every error of a job.
async fn reasons(client: &Client, job: &Value) -> Vec<(i64, String)> {
    let page = client
        .get(job["links"]["errors"].as_str().expect("a link"))
        .await
        .expect(200);
    let of = |line: &Value| {
        (
            line["line"].as_i64().unwrap(),
            line["reason"].as_str().unwrap().to_owned(),
        )
    };
    page["data"].as_array().unwrap().iter().map(of).collect()
}
