//! Patterns: looked at before, refused, and what a typed code tells of them.

use coupon_core::{caller::Role, config::Settings};
use coupon_tests::Service;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{codes, generate, generate_path, preview_path};

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
