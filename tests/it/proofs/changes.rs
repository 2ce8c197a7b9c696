//! A history, and its proof changed in every way.

use coupon_tests::{Service, process};
use serde_json::{Value, json};

use super::{check, history, prove};

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
