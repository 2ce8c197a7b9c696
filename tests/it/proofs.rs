//! Proofs of draws: a true history is accepted, with late codes, returns, codes given by name, voided and expired ones and
//! new epochs; whatever is changed in its proof is found and named. Draws are uniform.

use coupon_core::proof::{
    Proof,
    verify::{Verified, verify},
};
use coupon_tests::{Client, Service, process, seed};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{pools::seeded_pool, truth::until};

async fn done(admin: &Client, path: &str, body: Value) -> Value {
    let job = admin.post(path, body).await.expect(202);
    let job = admin.job_end(job["id"].as_str().unwrap()).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    job
}

fn codes(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number:04}")).collect()
}

/// The codes that a job gave.
fn given(job: &Value) -> Vec<String> {
    let coupons = job["result"]["coupons"].as_array().unwrap();
    coupons
        .iter()
        .map(|coupon| coupon["code"].as_str().unwrap().to_owned())
        .collect()
}

/// A book with a history of every kind, two distributions of it, and the proof of one of them.
async fn history(service: &Service, admin: &Client, mode: Value) -> (Uuid, String) {
    let users = seed::users(&service.db, 8).await;
    let holder: String = sqlx::query_scalar("SELECT email FROM users WHERE id = $1")
        .bind(users[0])
        .fetch_one(service.db.pool())
        .await
        .unwrap();
    let book_id = admin.book(json!({})).await;
    admin.codes(book_id, &codes("A", 60)).await;
    // Some have a holder from the start, some are about to expire.
    let soon = chrono::Utc::now() + chrono::TimeDelta::seconds(1);
    let mut csv = "code,user_email,expires_at\n".to_owned();
    for number in 0..4 {
        csv += &format!("H{number},{holder},\nX{number},,{}\n", soon.to_rfc3339());
    }
    let job = admin
        .post_csv(&format!("/v1/books/{book_id}/codes/import"), csv)
        .await
        .expect(202);
    let job = admin.job_end(job["id"].as_str().unwrap()).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let pool_id = seeded_pool(&service.db, &users).await;
    let draw = async |count: usize| {
        let body = json!({ "book_id": book_id, "user_id": users[1], "count": count });
        given(&done(admin, "/v1/coupons/assign", body).await)
    };
    let drawn = draw(5).await;
    done(
        admin,
        "/v1/coupons/assign/A0007",
        json!({ "user_id": users[2], "book_id": book_id }),
    )
    .await;
    admin
        .post(
            "/v1/coupons/void/A0011",
            json!({ "reason": "r", "book_id": book_id }),
        )
        .await;
    for code in [&drawn[0], &drawn[3], &"H1".to_owned()] {
        admin
            .post(
                &format!("/v1/coupons/revoke/{code}"),
                json!({ "reason": "r", "book_id": book_id }),
            )
            .await
            .expect(200);
    }
    until(
        service.db.pool(),
        "those have expired, and are passed over from here on",
        "SELECT max(expires_at) < now() FROM coupons",
    )
    .await;
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1 });
    let first = done(admin, "/v1/distributions", body.clone()).await;
    admin.codes(book_id, &codes("B", 30)).await;
    let undo = format!(
        "/v1/distributions/{}/undo",
        first["result"]["distribution_id"].as_str().unwrap()
    );
    done(admin, &undo, json!({})).await;
    draw(6).await;
    let mut asked = body;
    asked
        .as_object_mut()
        .unwrap()
        .extend(mode.as_object().unwrap().clone());
    if asked["mode"] == "random" {
        asked.as_object_mut().unwrap().remove("per_user");
    }
    let second = done(admin, "/v1/distributions", asked).await;
    draw(4).await;
    (
        book_id,
        second["result"]["distribution_id"].as_str().unwrap().to_owned(),
    )
}

async fn prove(admin: &Client, book_id: Uuid, distribution: &str) -> Value {
    let path = format!("/v1/distributions/{distribution}/proof");
    admin.get(&path).await.refused(409, "book_not_archived");
    let archive = json!({ "status": "archived" });
    admin
        .patch(&format!("/v1/books/{book_id}"), archive)
        .await
        .expect(200);
    admin
        .patch(&format!("/v1/books/{book_id}"), json!({ "status": "active" }))
        .await
        .refused(409, "invalid_state");
    admin.get(&path).await.expect(200)
}

fn check(proof: &Value) -> Result<Verified, Vec<String>> {
    verify(&serde_json::from_value::<Proof>(proof.clone()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_true_history_is_accepted_and_every_change_of_its_proof_is_found() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let random = json!({ "mode": "random", "total": 11, "max_per_user": 3 });
    let (book_id, distribution) = history(&service, &admin, random).await;
    let proof = prove(&admin, book_id, &distribution).await;
    let verified = check(&proof).unwrap_or_else(|faults| panic!("{faults:#?}"));
    assert_eq!((verified.codes, verified.given), (98, 11), "{verified:?}");
    assert_eq!(verified.returns, 3 + 8);
    let read = admin.get(&format!("/v1/books/{book_id}")).await.expect(200);
    assert_eq!(proof["book"]["commitment"], read["draw_commitment"]);

    let drawn = |proof: &Value| {
        let leavings = proof["leavings"].as_array().unwrap().iter();
        leavings
            .enumerate()
            .filter(|(_, it)| it["how"] == "drawn")
            .map(|(n, _)| n)
            .collect::<Vec<_>>()
    };
    let swap = |list: &mut Value, a: usize, b: usize, name: &str| {
        let (first, second) = (list[a][name].clone(), list[b][name].clone());
        assert_ne!(first, second);
        (list[a][name], list[b][name]) = (second, first);
    };
    type Change<'a> = (&'a str, Box<dyn Fn(&mut Value) + 'a>, &'a str);
    let changes: Vec<Change<'_>> = vec![
        (
            "another seed",
            Box::new(|p| p["book"]["seed"] = json!("00".repeat(32))),
            "not the one it committed to",
        ),
        (
            "another seed and its commitment",
            Box::new(|p| {
                p["book"]["seed"] = json!("00".repeat(32));
                p["book"]["commitment"] =
                    json!("66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925");
            }),
            "passed over",
        ),
        (
            "another seed of the distribution",
            Box::new(|p| p["distribution"]["seed"] = json!("6162")),
            "not the one it committed to",
        ),
        (
            "a swapped winner",
            Box::new(|p| {
                let last = p["coupons"].as_array().unwrap().len() - 1;
                swap(&mut p["coupons"], 0, last, "user_id");
            }),
            "somebody else",
        ),
        (
            "a coupon of another place",
            Box::new(|p| swap(&mut p["coupons"], 0, 1, "code")),
            "was not drawn at",
        ),
        (
            "a skipped code",
            Box::new(|p| {
                let n = drawn(p)[2];
                p["leavings"][n]["how"] = json!("voided");
                p["leavings"][n]["id"] = json!("ffffffff-ffff-7fff-bfff-ffffffffffff");
            }),
            "passed over",
        ),
        (
            "a missing draw",
            Box::new(|p| {
                let n = *drawn(p).last().unwrap();
                p["leavings"].as_array_mut().unwrap().remove(n);
            }),
            "a draw is missing",
        ),
        (
            "a draw too many",
            Box::new(|p| {
                let code = p["codes"].as_array().unwrap().iter().map(|code| code[0].clone());
                let left: Vec<Value> = code
                    .filter(|code| {
                        p["leavings"]
                            .as_array()
                            .unwrap()
                            .iter()
                            .all(|it| it["code"] != *code)
                    })
                    .collect();
                let mut extra = p["leavings"][drawn(p)[0]].clone();
                extra["code"] = left[0].clone();
                p["leavings"].as_array_mut().unwrap().push(extra);
            }),
            "",
        ),
        (
            "another arrival number",
            Box::new(|p| {
                p["returns"][0]["arrival"] = json!(p["returns"][0]["arrival"].as_i64().unwrap() + 1)
            }),
            "is missing",
        ),
        (
            "another range",
            Box::new(|p| {
                let cursor: i64 = p["returns"][0]["cursor"].as_str().unwrap().parse().unwrap();
                p["returns"][0]["cursor"] = json!((cursor - 1).to_string());
            }),
            "where no draw was",
        ),
        (
            "an added code",
            Box::new(|p| p["codes"].as_array_mut().unwrap().push(json!(["ZZZ", null]))),
            "belongs to no chunk",
        ),
        (
            "an added code that is counted",
            Box::new(|p| {
                let last = p["chunks"].as_array().unwrap().len() - 1;
                p["chunks"][last]["count"] = json!(p["chunks"][last]["count"].as_i64().unwrap() + 1);
                p["codes"].as_array_mut().unwrap().push(json!(["ZZZ", null]));
            }),
            "is missing",
        ),
        (
            "a code left out",
            Box::new(|p| drop(p["codes"].as_array_mut().unwrap().remove(5))),
            "missing",
        ),
        (
            "another order of people",
            Box::new(|p| p["items"].as_array_mut().unwrap().swap(0, 1)),
            "out of order among the people",
        ),
        (
            "another place",
            Box::new(|p| swap(&mut p["items"], 0, 1, "place")),
            "has the place",
        ),
        (
            "another share",
            Box::new(|p| p["items"][0]["wanted"] = json!(p["items"][0]["wanted"].as_i64().unwrap() + 1)),
            "was to get",
        ),
        (
            "a coupon of the distribution left out",
            Box::new(|p| drop(p["coupons"].as_array_mut().unwrap().remove(4))),
            "is missing",
        ),
        (
            "a draw called a gift",
            Box::new(|p| {
                let n = drawn(p)[1];
                p["leavings"][n]["how"] = json!("given");
                p["leavings"][n]["id"] = json!("ffffffff-ffff-7fff-bfff-ffffffffffff");
            }),
            "passed over",
        ),
        (
            "another expiry",
            Box::new(|p| {
                for code in p["codes"].as_array_mut().unwrap() {
                    if !code[1].is_null() {
                        code[1] = Value::Null;
                    }
                }
                for code in p["codes"].as_array_mut().unwrap() {
                    if code[0].as_str().unwrap().starts_with('A') {
                        code[1] = json!("2020-01-01T00:00:00Z");
                    }
                }
            }),
            "expired",
        ),
    ];
    let mut tampered = Vec::new();
    for (what, change, says) in changes {
        let mut changed = proof.clone();
        change(&mut changed);
        assert_ne!(changed, proof, "{what}");
        let faults = check(&changed).expect_err(what);
        assert!(
            faults.iter().any(|fault| fault.contains(says)),
            "{what}: {faults:#?}"
        );
        tampered.push((what, changed.to_string(), says));
    }

    // The same by the command, offline.
    let dir = tempfile::tempdir().unwrap();
    let run = async |name: &str, text: String| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        let output = process::command(&["verify-draw", file.to_str().unwrap()])
            .output()
            .await
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = run("true.json", proof.to_string()).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("The proof holds"), "{said}");
    assert!(tampered.len() >= 8);
    for (what, text, says) in tampered {
        let (code, said) = run("changed.json", text).await;
        assert_eq!(code, Some(1), "{what}: {said}");
        // It shows the first faults and counts the rest.
        assert!(said.contains(says) || said.contains(" more"), "{what}: {said}");
    }
    assert_eq!(run("broken.json", "{\"format\":".to_owned()).await.0, Some(1));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_with_new_epochs_is_accepted_and_what_was_left_cannot_be_changed() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let users = seed::users(&service.db, 2).await;
    let pool_id = seeded_pool(&service.db, &users).await;
    let book_id = admin.book(json!({})).await;
    admin.codes(book_id, &codes("C", 3)).await;
    // A code that goes and comes back halves what is above the cursor each time, until it begins anew.
    let mut epoch = 0;
    for _ in 0..200 {
        let job = done(
            &admin,
            "/v1/coupons/assign",
            json!({ "book_id": book_id, "user_id": users[0], "count": 2 }),
        )
        .await;
        for code in given(&job) {
            let path = format!("/v1/coupons/revoke/{code}");
            admin
                .post(&path, json!({ "reason": "r", "book_id": book_id }))
                .await
                .expect(200);
        }
        epoch = sqlx::query_scalar::<_, i32>("SELECT epoch FROM draw_states WHERE book_id = $1")
            .bind(book_id)
            .fetch_one(service.db.pool())
            .await
            .unwrap();
        if epoch == 2 {
            break;
        }
    }
    assert_eq!(epoch, 2, "the draw never began anew");
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": 1 });
    let job = done(&admin, "/v1/distributions", body).await;
    let proof = prove(
        &admin,
        book_id,
        job["result"]["distribution_id"].as_str().unwrap(),
    )
    .await;
    check(&proof).unwrap_or_else(|faults| panic!("{faults:#?}"));
    for change in [
        |left: &mut Vec<Value>| drop(left.pop()),
        |left: &mut Vec<Value>| left.reverse(),
        |left: &mut Vec<Value>| left.push(json!("ZZZ")),
    ] {
        let mut changed = proof.clone();
        let left = changed["epochs"][1]["left"].as_array_mut().unwrap();
        let before = left.clone();
        change(left);
        if *left != before {
            check(&changed).expect_err("what was left was changed");
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_middle_and_last_draws_of_the_service_are_uniform() {
    let service = Service::start().await;
    let admin = service.admin().await;
    let user = seed::users(&service.db, 1).await[0];
    const BOOKS: i32 = 240;
    let mut at = [[0_i32; 6]; 3];
    for number in 0..BOOKS {
        let book_id = admin.book(json!({})).await;
        admin.codes(book_id, &codes("D", 4)).await;
        // A fixed seed for each book, so that this test has one outcome.
        let mut seed = [7_u8; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        sqlx::query("UPDATE draw_states SET seed = $2, commitment = sha256($2) WHERE book_id = $1")
            .bind(book_id)
            .bind(&seed[..])
            .execute(service.db.pool())
            .await
            .unwrap();
        let keys: Vec<String> = codes("D", 4);
        let rows: Vec<i64> = (0..)
            .zip(&keys)
            .map(|(n, key)| coupon_core::coupon::draw::key(&seed, 0, 0, n, key))
            .collect();
        sqlx::query("UPDATE coupons c SET draw_key = n.key FROM unnest($2::text[], $3::bigint[]) AS n (code, key) WHERE c.book_id = $1 AND c.code_key = n.code")
            .bind(book_id)
            .bind(&keys)
            .bind(rows)
            .execute(service.db.pool())
            .await
            .unwrap();
        let draw = async || {
            let body = json!({ "book_id": book_id, "user_id": user });
            given(&done(&admin, "/v1/coupons/assign", body).await).remove(0)
        };
        let place = |present: &[String], code: &str| present.iter().position(|it| it == code).unwrap();
        let first = draw().await;
        at[0][place(&keys, &first)] += 1;
        let mut present: Vec<String> = keys.into_iter().filter(|code| *code != first).collect();
        // Two late ones, and the first comes back.
        admin.codes(book_id, &codes("E", 2)).await;
        admin
            .post(
                &format!("/v1/coupons/revoke/{first}"),
                json!({ "reason": "r", "book_id": book_id }),
            )
            .await
            .expect(200);
        present.extend(codes("E", 2));
        present.push(first);
        let middle = draw().await;
        at[1][place(&present, &middle)] += 1;
        present.retain(|code| *code != middle);
        let mut last = String::new();
        for _ in 0..5 {
            last = draw().await;
        }
        at[2][place(&present, &last)] += 1;
    }
    // χ² at 0.9999: 21.1 for 3 degrees of freedom, 25.7 for 5, 23.5 for 4.
    for (counts, (places, most)) in at.iter().zip([(4, 21.1), (6, 25.7), (5, 23.5)]) {
        let expected = f64::from(BOOKS) / f64::from(places);
        let chi2: f64 = counts[..places as usize]
            .iter()
            .map(|count| (f64::from(*count) - expected).powi(2) / expected)
            .sum();
        assert!(chi2 < most, "{chi2}: {counts:?}");
    }
    service.stop().await;
}
