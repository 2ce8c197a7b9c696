//! How the commands end.

use coupon_tests::Service;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use uuid::Uuid;

use super::{PATIENCE, Scene, ended};

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_fail_has_its_exit_code_and_leaves_stdout_empty() {
    let scene = Scene::new(Service::without_workers().await).await;
    let fails = async |arguments: &[&str], code: i32| {
        let ran = scene.run(arguments).await.expect(code);
        assert_eq!(ran.stdout, "", "{arguments:?}");
        assert!(!ran.stderr.is_empty(), "{arguments:?}");
        ran.stderr
    };
    fails(&["jobs", "get", &Uuid::now_v7().to_string()], 4).await;
    fails(&["books", "get", "No such book"], 4).await;
    fails(&["import", "no-such-file.csv", "--book", "Summer"], 2).await;
    fails(&["import"], 2).await;
    fails(&["books", "ls", "--url", "nonsense"], 2).await;
    fails(&["books", "ls", "--url", "http://127.0.0.1:1"], 1).await;
    let problem = fails(&["jobs", "get", &Uuid::now_v7().to_string(), "--json"], 4).await;
    let problem: Value = serde_json::from_str(&problem).expect("the problem object");
    assert_eq!(
        (&problem["code"], &problem["status"]),
        (&json!("not_found"), &json!(404))
    );

    let mut stranger = scene.command(&["books", "ls"]);
    stranger.env("COUPONBOOK_API_KEY", "cb_nonsense");
    let ran = ended(stranger, b"").await.expect(3);
    assert!(
        ran.stderr.contains("COUPONBOOK_API_KEY") && !ran.stderr.contains("nonsense"),
        "{}",
        ran.stderr
    );
    let mut reader = scene.command(&["books", "create", "B"]);
    let key = json!({ "name": "k", "scopes": ["read"] });
    let key = scene.admin.post("/v1/api-keys", key).await.expect(201);
    reader.env("COUPONBOOK_API_KEY", key["key"].as_str().unwrap());
    ended(reader, b"").await.expect(3);

    // Nobody works here: the wait is over first, and the job goes on.
    let arguments = ["import", "-", "--book", "Summer", "--wait", "--timeout", "1"];
    let ran = scene.run_with(&arguments, b"code\nA-1\n").await.expect(7);
    assert!(ran.stderr.contains("couponbook jobs watch "), "{}", ran.stderr);
    let id = ran.stderr.trim().rsplit(' ').next().unwrap().to_owned();
    scene.run(&["jobs", "cancel", &id]).await.expect(0);
    scene.run(&["jobs", "cancel", &id]).await.expect(5);
    scene.run(&["jobs", "watch", &id]).await.expect(1);
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_stops_the_waiting_and_not_the_job() {
    let mut scene = Scene::new(Service::without_workers().await).await;
    let started = scene
        .run_with(&["import", "-", "--book", "Summer"], b"code\nA-1\n")
        .await
        .expect(0);
    let id = started.stdout.trim().to_owned();
    let mut child = scene.command(&["jobs", "watch", &id]).spawn().unwrap();
    let pid = child.id().unwrap().to_string();
    // A line every five seconds says that it waits.
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = tokio::time::timeout(PATIENCE, stderr.next_line())
        .await
        .expect("a line")
        .unwrap();
    assert_eq!(first.as_deref(), Some("import: queued"));
    let told = tokio::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .await
        .unwrap();
    assert!(told.success());
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("it ends")
        .unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(130), 0));
    let last = stderr.next_line().await.unwrap().unwrap();
    assert!(last.ends_with(&format!("couponbook jobs watch {id}")), "{last}");
    scene.service.start_workers();
    scene.run(&["jobs", "watch", &id]).await.expect(0);
    scene.service.stop().await;
}
