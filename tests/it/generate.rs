//! Codes from patterns: exact numbers, the same codes whatever is killed, nothing that can be guessed or seen.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use coupon_core::{
    caller::Role,
    config::Settings,
    db,
    generate::step,
    job::{
        Queue,
        claim::{self, Lane, Place},
    },
};
use coupon_tests::{Client, Service};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::truth;

const PATIENCE: Duration = Duration::from_secs(100);

fn generate_path(book_id: Uuid) -> String {
    format!("/v1/books/{book_id}/codes/generate")
}

fn preview_path(book_id: Uuid) -> String {
    format!("/v1/books/{book_id}/codes/preview")
}

fn id(job: &Value) -> &str {
    job["id"].as_str().expect("an id")
}

/// Makes codes and waits for the end.
async fn generate(client: &Client, book_id: Uuid, body: Value) -> Value {
    let job = client.post(&generate_path(book_id), body).await.expect(202);
    client.job_end(id(&job)).await
}

/// Every code as it is shown, in the order of keys.
async fn codes(service: &Service, book_id: Uuid) -> Vec<String> {
    sqlx::query_scalar("SELECT coalesce(code, code_key) FROM coupons WHERE book_id = $1 ORDER BY code_key")
        .bind(book_id)
        .fetch_all(service.db.pool())
        .await
        .unwrap()
}

/// Everything that follows from key and seed: what a book's coupons are, and their places in the draw.
async fn rows(service: &Service, book_id: Uuid) -> Vec<(String, Option<String>, i64)> {
    sqlx::query_as("SELECT code_key, code, draw_key FROM coupons WHERE book_id = $1 ORDER BY code_key")
        .bind(book_id)
        .fetch_all(service.db.pool())
        .await
        .unwrap()
}

/// A book with the key and the seed of another, so that the same jobs make the same rows.
async fn twin(service: &Service, admin: &Client, of: Uuid) -> Uuid {
    let book_id = admin.book(json!({})).await;
    for sql in [
        "INSERT INTO code_keys (book_id, key) SELECT $1, key FROM code_keys WHERE book_id = $2",
        "UPDATE draw_states SET seed = (SELECT seed FROM draw_states WHERE book_id = $2) WHERE book_id = $1",
    ] {
        sqlx::query(sql)
            .bind(book_id)
            .bind(of)
            .execute(service.db.pool())
            .await
            .unwrap();
    }
    book_id
}

/// Whatever of the bulk queue is due, one step, as a worker does it; `crash` rolls it back.
async fn one_step(service: &Service, crash: bool) {
    let mut tx = service.db.begin().await.unwrap();
    let job = claim::claim(&mut tx, Queue::Bulk, Lane::Fresh, 1, &mut Place::default())
        .await
        .unwrap();
    let outcome = step::step(&mut tx, job[0].id).await.unwrap();
    claim::settle(&mut tx, vec![(job[0].id, outcome)]).await.unwrap();
    if crash {
        tx.rollback().await.unwrap();
    } else {
        db::commit(tx).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_makes_as_many_codes_as_were_asked_for() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin
        .book(json!({ "pattern": "Spring-****-##\\#", "redemptions_per_coupon": 3 }))
        .await;
    let body = json!({
        "count": 40_500, "alphabet": "unambiguous", "expires_at": "2040-01-01T00:00:00Z", "metadata": { "campaign": 7 }
    });
    let job = generate(&admin, book_id, body.clone()).await;
    assert_eq!(
        (&job["state"], &job["kind"]),
        (&json!("succeeded"), &json!("generate")),
        "{job}"
    );
    assert_eq!(job["result"], json!({ "generated": 40_500 }));
    assert_eq!(job["counts"], json!({ "generated": 40_500, "skipped": 0 }));
    assert_eq!(
        (
            &job["progress"]["done"],
            &job["progress"]["total"],
            &job["progress"]["unit"]
        ),
        (&json!(40_500), &json!(40_500), &json!("codes"))
    );
    let first: BTreeSet<String> = codes(&service, book_id).await.into_iter().collect();
    assert_eq!(first.len(), 40_500);
    for code in &first {
        let (head, tail) = (&code[..7], &code[7..]);
        let form = tail.bytes().enumerate().all(|(at, byte)| match at {
            0..4 => b"23456789ABCDEFGHJKMNPQRSTVWXYZ".contains(&byte),
            4 => byte == b'-',
            5 | 6 => byte.is_ascii_digit(),
            _ => byte == b'#',
        });
        assert!(head == "Spring-" && tail.len() == 8 && form, "{code}");
    }
    let some = first.first().unwrap().to_lowercase().replace('#', "%23");
    let coupon = admin.get(&format!("/v1/coupons/{some}")).await.expect(200);
    assert_eq!(coupon["code"], **first.first().unwrap());
    assert_eq!(coupon["redemptions_allowed"], 3);
    assert_eq!(coupon["metadata"], json!({ "campaign": 7 }));
    assert_eq!(coupon["expires_at"], "2040-01-01T00:00:00.000000Z");
    // More of the same pattern are others.
    let job = generate(&admin, book_id, body).await;
    assert_eq!(
        (&job["state"], &job["counts"]["skipped"]),
        (&json!("succeeded"), &json!(0))
    );
    assert_eq!(codes(&service, book_id).await.len(), 81_000);
    // The draw knows them: events number their arrival without a gap.
    let (arrivals, told): (i64, i64) = sqlx::query_as(
        "SELECT d.arrivals, (SELECT sum((after ->> 'count')::bigint)::bigint FROM events e
                             WHERE e.book_id = $1 AND e.kind = 'codes_added')
         FROM draw_states d WHERE d.book_id = $1",
    )
    .bind(book_id)
    .fetch_one(service.db.pool())
    .await
    .unwrap();
    assert_eq!((arrivals, told), (81_000, 81_000));
    truth::all_jobs_end(service.db.pool(), PATIENCE).await;
    truth::holds(service.db.pool()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_that_are_there_already_are_skipped_and_the_number_is_exact() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let body = json!({ "count": 3_000, "pattern": "P-*****" });
    let first = admin.book(json!({})).await;
    generate(&admin, first, body.clone()).await;
    let all = codes(&service, first).await;
    let second = twin(&service, &admin, first).await;
    let planted: Vec<String> = all.iter().step_by(7).map(|code| code.to_lowercase()).collect();
    admin.codes(second, &planted).await;
    let job = generate(&admin, second, body.clone()).await;
    assert_eq!(job["result"], json!({ "generated": 3_000 }), "{job}");
    assert_eq!(job["counts"]["skipped"], planted.len());
    let both: BTreeSet<String> = codes(&service, second)
        .await
        .into_iter()
        .map(|code| code.to_uppercase())
        .collect();
    assert_eq!(both.len(), 3_000 + planted.len());
    assert!(all.iter().all(|code| both.contains(code)));
    // A pattern that spells some of the same codes runs into them and goes on.
    let overlapping = json!({ "count": 900, "pattern": "P-000##", "alphabet": "digits" });
    admin
        .post(&generate_path(second), overlapping)
        .await
        .refused(422, "pattern_space_too_small");
    truth::holds(service.db.pool()).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_is_rolled_back_and_a_job_that_is_tried_again_make_the_same_codes() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let body = json!({ "count": 45_000, "pattern": "R-********" });
    let first = admin.book(json!({})).await;
    admin.post(&generate_path(first), body.clone()).await.expect(202);
    for crash in [true, false, true, true, false] {
        one_step(&service, crash).await;
    }
    assert_eq!(codes(&service, first).await.len(), 45_000);
    let second = twin(&service, &admin, first).await;
    let job = admin.post(&generate_path(second), body).await.expect(202);
    one_step(&service, false).await;
    // Given up after a step, as after too many crashes.
    sqlx::raw_sql(
        "DELETE FROM apalis.jobs; DELETE FROM code_job_slots;
         UPDATE jobs SET state = 'failed', error_code = 'attempts_exhausted', finished_at = now() WHERE finished_at IS NULL",
    )
    .execute(service.db.pool())
    .await
    .unwrap();
    admin
        .post(&format!("/v1/jobs/{}/retry", id(&job)), json!({}))
        .await
        .expect(202);
    service.start_workers();
    let job = admin.job_end(id(&job)).await;
    assert_eq!(job["result"]["generated"], 45_000, "{job}");
    assert_eq!(rows(&service, second).await, rows(&service, first).await);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_keeps_what_it_made_and_frees_the_rest() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let body = json!({ "count": 110_000, "pattern": "C-######" });
    let cancel = async |job: &Value| {
        admin
            .post(&format!("/v1/jobs/{}/cancel", id(job)), json!({}))
            .await
            .expect(202)
    };
    // 1,000,000 codes: room for 100,000 coupons.
    admin
        .post(&generate_path(book_id), body)
        .await
        .refused(422, "pattern_space_too_small");
    let body = json!({ "count": 90_000, "pattern": "C-######" });
    let queued = admin
        .post(&generate_path(book_id), body.clone())
        .await
        .expect(202);
    // What waits counts.
    let refused = admin.post(&generate_path(book_id), body.clone()).await;
    refused.refused(422, "pattern_space_too_small");
    assert_eq!(cancel(&queued).await["state"], "cancelled");
    let running = admin.post(&generate_path(book_id), body).await.expect(202);
    one_step(&service, false).await;
    assert_eq!(cancel(&running).await["state"], "cancelling");
    service.start_workers();
    let job = admin.job_end(id(&running)).await;
    assert_eq!(
        (&job["state"], &job["result"]),
        (&json!("cancelled"), &json!({ "generated": 40_000 })),
        "{job}"
    );
    let rest = generate(&admin, book_id, json!({ "count": 60_000, "pattern": "c######" })).await;
    assert_eq!(
        (&rest["state"], &rest["counts"]["skipped"]),
        (&json!("succeeded"), &json!(0)),
        "{rest}"
    );
    assert_eq!(codes(&service, book_id).await.len(), 100_000);
    let one = json!({ "count": 1, "pattern": "C-######" });
    admin
        .post(&generate_path(book_id), one)
        .await
        .refused(422, "pattern_space_too_small");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_add_codes_to_a_book_take_turns() {
    let mut service = Service::without_workers().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({ "pattern": "T-******" })).await;
    let import = format!("/v1/books/{book_id}/codes/import");
    let mut jobs = vec![admin.post_csv(&import, "code\nONE\n").await.expect(202)];
    for _ in 0..2 {
        jobs.push(
            admin
                .post(&generate_path(book_id), json!({ "count": 2_000 }))
                .await
                .expect(202),
        );
    }
    service.start_workers();
    for job in jobs {
        assert_eq!(admin.job_end(id(&job)).await["state"], "succeeded");
    }
    assert_eq!(codes(&service, book_id).await.len(), 4_001);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_says_what_would_come_and_shows_no_real_code() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    let preview = async |body: Value| admin.post(&preview_path(book_id), body).await;
    let seen = preview(json!({ "pattern": "A-######", "count": 1_000 }))
        .await
        .expect(200);
    assert_eq!(
        (&seen["space"], &seen["ok"]),
        (&json!(1_000_000), &json!(true)),
        "{seen}"
    );
    assert_eq!(seen["density"], 0.001);
    assert!((seen["guess_odds"].as_f64().unwrap() - (1.0 - 0.999f64.powi(1_000))).abs() < 1e-12);
    assert_eq!(
        (&seen["safe_length"], seen.get("needed_length")),
        (&json!(11), None),
        "{seen}"
    );
    assert!(seen["warning"].is_string());
    assert_eq!(seen["sample"].as_array().unwrap().len(), 5);
    let safe = preview(json!({ "pattern": "************", "count": 1_000 }))
        .await
        .expect(200);
    assert_eq!(
        (&safe["warning"], &safe["safe_length"], &safe["ok"]),
        (&Value::Null, &Value::Null, &json!(true))
    );
    let small = preview(json!({ "pattern": "A-###", "count": 101, "check": true }))
        .await
        .expect(200);
    assert_eq!(
        (&small["ok"], &small["needed_length"]),
        (&json!(false), &json!(7)),
        "{small}"
    );
    let refused = json!({ "pattern": "A-###", "count": 101, "check": true });
    let refused = admin
        .post(&generate_path(book_id), refused)
        .await
        .refused(422, "pattern_space_too_small");
    assert_eq!(refused["needed_length"], 7, "{refused}");
    assert_eq!(refused["errors"][0]["pointer"], "/pattern");

    // As dense as it gets: a tenth of all codes.
    let before = preview(json!({ "pattern": "D-####", "count": 1_000 }))
        .await
        .expect(200);
    generate(&admin, book_id, json!({ "pattern": "D-####", "count": 1_000 })).await;
    let real = codes(&service, book_id).await;
    let after = preview(json!({ "pattern": "D-####", "count": 1 }))
        .await
        .expect(200);
    assert_eq!(after["ok"], false, "{after}");
    for shown in [before, after] {
        for code in shown["sample"].as_array().unwrap() {
            assert!(
                !real.contains(&code.as_str().unwrap().to_owned()),
                "a real code is shown"
            );
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_and_alphabets_that_cannot_be_read_are_refused_with_their_place() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let (book_id, exact) = (
        admin.book(json!({})).await,
        admin
            .book(json!({ "exact_codes": true, "pattern": "aA-#####" }))
            .await,
    );
    for (body, pointer, word) in [
        (json!({ "pattern": "ABC" }), "/pattern", "no_placeholder"),
        (json!({ "pattern": "###\\" }), "/pattern", "dangling_escape"),
        (json!({ "pattern": "#é" }), "/pattern", "bad_character"),
        (json!({ "pattern": "#".repeat(101) }), "/pattern", "too_long"),
        (json!({ "pattern": "*".repeat(24) }), "/pattern", "too_many_codes"),
        (
            json!({ "pattern": "****", "alphabet": "xyX" }),
            "/alphabet",
            "duplicate",
        ),
        (
            json!({ "pattern": "****", "alphabet": "x" }),
            "/alphabet",
            "too_short",
        ),
        (
            json!({ "pattern": "****", "alphabet": "xyz", "check": true }),
            "/check",
            "not_possible",
        ),
    ] {
        for path in [generate_path(book_id), preview_path(book_id)] {
            let mut body = body.clone();
            body["count"] = json!(1);
            let refused = admin.post(&path, body).await.refused(422, "pattern_invalid");
            assert_eq!(
                (&refused["errors"][0]["pointer"], &refused["errors"][0]["code"]),
                (&json!(pointer), &json!(word)),
                "{refused}"
            );
        }
    }
    for pattern in ["PLAIN", "##\\"] {
        let made = admin
            .post("/v1/books", json!({ "name": "B", "pattern": pattern }))
            .await;
        assert_eq!(
            made.refused(422, "pattern_invalid")["errors"][0]["pointer"],
            "/pattern"
        );
        let changed = admin
            .patch(&format!("/v1/books/{book_id}"), json!({ "pattern": pattern }))
            .await;
        changed.refused(422, "pattern_invalid");
    }
    let path = generate_path(book_id);
    admin
        .post(&path, json!({ "count": 1 }))
        .await
        .invalid("/pattern", "required");
    admin
        .post(
            &generate_path(Uuid::nil()),
            json!({ "count": 1, "pattern": "####" }),
        )
        .await
        .refused(404, "not_found");
    let own = json!({ "count": 50, "pattern": "X\\***********", "alphabet": "o0" });
    assert_eq!(generate(&admin, book_id, own).await["state"], "succeeded");
    let codes_of_own = codes(&service, book_id).await;
    assert!(
        codes_of_own
            .iter()
            .all(|code| code.starts_with("X*") && code[2..].bytes().all(|byte| matches!(byte, b'o' | b'0'))),
        "{codes_of_own:?}"
    );
    // Where codes are exact, case tells symbols apart.
    let job = generate(
        &admin,
        exact,
        json!({ "count": 60, "pattern": "-**********", "alphabet": "xX" }),
    )
    .await;
    assert_eq!(job["state"], "succeeded", "{job}");
    assert_eq!(
        generate(&admin, exact, json!({ "count": 10 })).await["state"],
        "succeeded"
    );
    let all = codes(&service, exact).await;
    assert_eq!(
        (
            all.len(),
            all.iter().filter(|code| code.starts_with("aA-")).count()
        ),
        (70, 10)
    );
    admin
        .patch(&format!("/v1/books/{book_id}"), json!({ "status": "archived" }))
        .await
        .expect(200);
    admin
        .post(&path, json!({ "count": 1, "pattern": "####" }))
        .await
        .refused(409, "book_not_active");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slip_of_the_keyboard_is_told_without_a_look_up_and_is_no_miss() {
    let settings = Settings {
        registration: coupon_core::config::Switch::On,
        ..Settings::default()
    };
    let mut service = Service::with(settings).await;
    service.start_workers();
    let (admin, (user, user_id)) = (service.admin().await, service.user(Role::User).await);
    let book_id = admin.book(json!({ "self_service": true })).await;
    let check = async |code: &str| {
        let body = json!({ "book_id": book_id, "code": code });
        user.post("/v1/coupons/check", body).await.expect(200)
    };
    assert_eq!(check("anything").await["well_formed"], true); // nothing is known of the book's codes yet
    generate(
        &admin,
        book_id,
        json!({ "count": 100, "pattern": "V-###-###", "check": true }),
    )
    .await;
    let code = codes(&service, book_id).await.swap_remove(42);
    let typed = code.to_lowercase().replace('-', " ");
    assert_eq!(
        check(&typed).await,
        json!({ "well_formed": true, "canonical": code.replace('-', "") })
    );
    let mut wrong = Vec::new();
    for at in 2..code.len() {
        let mut bytes = code.clone().into_bytes();
        if bytes[at].is_ascii_digit() {
            bytes[at] = b'0' + (bytes[at] - b'0' + 3) % 10;
            wrong.push(String::from_utf8(bytes).unwrap());
        }
    }
    wrong.extend([
        code[..code.len() - 1].to_owned(),
        format!("{code}1"),
        code.replace('V', "W"),
        "anything".to_owned(),
    ]);
    for text in &wrong {
        assert_eq!(
            check(text).await,
            json!({ "well_formed": false, "canonical": null }),
            "{text}"
        );
    }
    // What cannot be a code is not counted against whoever looks it up; what can be is, up to twenty.
    admin
        .post(
            &format!("/v1/coupons/assign/{code}"),
            json!({ "user_id": user_id }),
        )
        .await
        .expect(202);
    for _ in 0..3 {
        for text in &wrong {
            let path = format!("/v1/coupons/{text}?book_id={book_id}");
            user.get(&path).await.refused(404, "not_found");
            user.post(&format!("/v1/coupons/lock/{text}"), json!({ "book_id": book_id }))
                .await
                .refused(404, "not_found");
        }
    }
    let others = codes(&service, book_id).await;
    let mut statuses = Vec::new();
    for other in others.iter().filter(|other| **other != code).take(25) {
        let path = format!("/v1/coupons/{other}?book_id={book_id}");
        statuses.push(user.get(&path).await.status.as_u16());
    }
    assert!(statuses[..19].iter().all(|status| *status == 404), "{statuses:?}");
    assert_eq!(statuses.last(), Some(&429), "{statuses:?}");
    // One imported code, and the patterns decide nothing any more.
    admin.codes(book_id, &["ANY-THING".to_owned()]).await;
    assert_eq!(check(&wrong[0]).await["well_formed"], true);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_in_no_answer() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({ "pattern": "S-********" })).await;
    let job = generate(&admin, book_id, json!({ "count": 100 })).await;
    let preview = json!({ "pattern": "S-********", "count": 5 });
    let mut answers = vec![job, admin.post(&preview_path(book_id), preview).await.expect(200)];
    for path in [
        format!("/v1/books/{book_id}"),
        "/v1/books".to_owned(),
        format!("/v1/books/{book_id}/coupons"),
        "/v1/audit".to_owned(),
        "/v1/jobs".to_owned(),
    ] {
        answers.push(admin.get(&path).await.expect(200));
    }
    let key: Vec<u8> = sqlx::query_scalar("SELECT key FROM code_keys WHERE book_id = $1")
        .bind(book_id)
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    let spellings = [
        key.iter().map(|byte| format!("{byte:02x}")).collect(),
        STANDARD.encode(&key),
        format!("{key:?}").replace(' ', ""),
    ];
    for answer in answers {
        let text = answer.to_string();
        for spelling in &spellings {
            assert!(!text.contains(&spelling[..20]), "the key is in {text}");
        }
    }
    let books: i64 = sqlx::query_scalar("SELECT count(DISTINCT key) FROM code_keys")
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    assert_eq!(books, 1);
    let other = admin.book(json!({})).await;
    generate(&admin, other, json!({ "count": 100, "pattern": "S-********" })).await;
    let (first, second) = (codes(&service, book_id).await, codes(&service, other).await);
    assert!(
        first.iter().all(|code| !second.contains(code)),
        "two books, one key"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_symbol_is_as_frequent_as_any_other_at_every_place() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let book_id = admin.book(json!({})).await;
    sqlx::query("INSERT INTO code_keys (book_id, key) VALUES ($1, decode(repeat('5a', 32), 'hex'))")
        .bind(book_id)
        .execute(service.db.pool())
        .await
        .unwrap();
    let job = generate(&admin, book_id, json!({ "count": 18_000, "pattern": "********" })).await;
    assert_eq!(job["state"], "succeeded");
    let all = codes(&service, book_id).await;
    for place in 0..8 {
        let mut counts: HashMap<u8, f64> = HashMap::new();
        for code in &all {
            *counts.entry(code.as_bytes()[place]).or_default() += 1.0;
        }
        let expected = all.len() as f64 / 36.0;
        let chi2: f64 = counts
            .values()
            .map(|count| (count - expected).powi(2) / expected)
            .sum();
        // 35 degrees of freedom: more than 80 happens once in fifty thousand keys, and this key is always the same.
        assert!(counts.len() == 36 && chi2 < 80.0, "place {place}: {chi2}");
    }
    service.stop().await;
}
