//! What the commands do and print.

use std::io::Write;

use coupon_core::caller::Role;
use coupon_tests::{Service, seed};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Scene;

fn gzip(text: &str) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(text.as_bytes()).unwrap();
    packer.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_imported_checked_and_its_bad_lines_are_kept() {
    let scene = Scene::new(Service::start().await).await;
    scene.write("codes.csv", b"code\nA-1\nA-2\na 1\n\xc3\xa4\n");
    scene.write("more.csv.gz", &gzip("code\nB-1\nB-2\n"));

    let checked = scene
        .run(&["import", "codes.csv", "--book", "Summer", "--dry-run", "--wait"])
        .await
        .expect(6);
    assert!(
        checked.stdout.starts_with("import ") && checked.stdout.contains(" partially_succeeded"),
        "{}",
        checked.stdout
    );
    assert_eq!(scene.unassigned().await, 0);

    let book = scene.book_id.to_string();
    let ran = scene
        .run(&[
            "import",
            "codes.csv",
            "--book",
            &book,
            "--errors",
            "bad.csv",
            "--json",
        ])
        .await
        .expect(6);
    assert_eq!(ran.json()["counts"]["accepted"], 2, "{}", ran.stdout);
    assert!(
        ran.stderr.contains("bad.csv") && !ran.stderr.contains('\x1b'),
        "{}",
        ran.stderr
    );
    let bad = scene.read("bad.csv");
    assert!(
        bad.starts_with("code,line,reason,detail") && bad.lines().count() == 3,
        "{bad}"
    );
    let job = ran.json()["id"].as_str().unwrap().to_owned();
    let lines = scene.run(&["jobs", "errors", &job, "--json"]).await.expect(0);
    let reasons: Vec<Value> = lines
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["reason"].clone())
        .collect();
    assert_eq!(reasons, ["duplicate_in_file", "bad_character"]);
    assert_eq!(
        scene
            .run(&["jobs", "errors", &job, "--csv"])
            .await
            .expect(0)
            .stdout,
        bad
    );

    // Packed, and from a pipe without a length: sent as they are.
    scene
        .run(&["import", "more.csv.gz", "--book", "Summer", "--wait"])
        .await
        .expect(0);
    let piped = scene
        .run_with(
            &["import", "-", "--book", "Summer", "--wait"],
            &gzip("code\nC-1\n"),
        )
        .await;
    piped.expect(0);
    assert_eq!(scene.unassigned().await, 5);
    // Without --wait the id of the job is the data, and nothing else.
    let started = scene
        .run_with(&["import", "-", "--book", "Summer"], b"code\nD-1\n")
        .await
        .expect(0);
    let id: Uuid = started.stdout.trim().parse().expect("an id");
    assert_eq!(started.stderr, "");
    let watched = scene.run(&["jobs", "watch", &id.to_string()]).await.expect(0);
    assert!(
        watched.stdout.contains("succeeded") && watched.stdout.contains("accepted 1"),
        "{}",
        watched.stdout
    );
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coupons_are_assigned_redeemed_and_exported() {
    let scene = Scene::new(Service::start().await).await;
    let (_, user_id) = scene.service.user(Role::User).await;
    scene.admin.codes(scene.book_id, &seed::codes(3)).await;
    let user = scene.admin.get(&format!("/v1/users/{user_id}")).await.expect(200);
    let email = user["email"].as_str().unwrap();

    let assigned = scene
        .run(&[
            "assign", "--book", "Summer", "--user", email, "--count", "2", "--wait",
        ])
        .await
        .expect(0);
    let codes: Vec<&str> = assigned.stdout.lines().collect();
    assert!(
        codes.len() == 2 && codes.iter().all(|code| code.starts_with("CODE-")),
        "{codes:?}"
    );
    let redeemed = scene.run(&["coupons", "redeem", codes[0]]).await.expect(0);
    redeemed
        .stdout
        .trim()
        .parse::<Uuid>()
        .expect("the redemption's id");
    let shown = scene.run(&["coupons", "get", codes[0], "--json"]).await.expect(0);
    assert_eq!(shown.json()["state"], "redeemed");
    scene.run(&["coupons", "redeem", codes[0]]).await.expect(5);
    let lock = scene.run(&["coupons", "lock", codes[1]]).await.expect(0);
    scene.run(&["coupons", "lock", codes[1]]).await.expect(5);
    scene
        .run(&["coupons", "unlock", codes[1], "--token", lock.stdout.trim()])
        .await
        .expect(0);
    scene.run(&["coupons", "redeem", "NO-SUCH-CODE"]).await.expect(4);
    let none = scene
        .run(&[
            "assign", "--book", "Summer", "--user", email, "--count", "9", "--wait",
        ])
        .await
        .expect(5);
    assert!(
        none.stdout.is_empty() && none.stderr.contains("book_exhausted"),
        "{}",
        none.stderr
    );

    let all = scene.run(&["export", "--book", "Summer"]).await.expect(0);
    assert!(
        all.stdout.starts_with("code,state,assigned_user_id,"),
        "{}",
        all.stdout
    );
    assert_eq!(all.stdout.lines().count(), 4);
    scene
        .run(&[
            "export",
            "--book",
            "Summer",
            "--kind",
            "redemptions",
            "-o",
            "used.csv",
        ])
        .await
        .expect(0);
    assert!(scene.read("used.csv").contains(codes[0]));
    assert_eq!(
        std::fs::read_dir(scene.dir.path()).unwrap().count(),
        1,
        "no draft is left behind"
    );
    let started = scene
        .run(&["export", "--book", "Summer", "--detach", "--state", "redeemed"])
        .await
        .expect(0);
    let later = scene
        .run(&["export", "--id", started.stdout.trim()])
        .await
        .expect(0);
    assert_eq!(later.stdout.lines().count(), 2, "{}", later.stdout);
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn books_and_jobs_are_listed_and_made_and_lists_are_one_object_a_line() {
    let scene = Scene::new(Service::start().await).await;
    let made = scene
        .run(&[
            "books",
            "create",
            "Winter",
            "--status",
            "draft",
            "--max-assignments-per-user",
            "2",
        ])
        .await
        .expect(0);
    let id = made.stdout.trim().to_owned();
    let shown = scene
        .run(&["books", "get", "Winter", "--json"])
        .await
        .expect(0)
        .json();
    assert_eq!(
        (&shown["id"], &shown["max_assignments_per_user"]),
        (&json!(id), &json!(2))
    );
    scene.admin.codes(scene.book_id, &seed::codes(2)).await;
    let listed = scene.run(&["books", "ls"]).await.expect(0);
    assert!(
        listed.stdout.contains("Winter") && !listed.stdout.contains('\x1b'),
        "{}",
        listed.stdout
    );
    for arguments in [
        &["books", "ls", "--json"][..],
        &["jobs", "ls", "--json", "--book", "Summer"][..],
    ] {
        let lines = scene.run(arguments).await.expect(0).stdout;
        assert!(!lines.is_empty());
        for line in lines.lines() {
            assert!(
                serde_json::from_str::<Value>(line).unwrap()["id"].is_string(),
                "{line}"
            );
        }
    }
    // Two of one name are one too many to guess.
    scene.admin.book(json!({ "name": "Winter" })).await;
    let which = scene.run(&["books", "get", "Winter"]).await.expect(5);
    assert!(
        which.stdout.is_empty() && which.stderr.contains("Winter"),
        "{}",
        which.stderr
    );
    scene.service.stop().await;
}
