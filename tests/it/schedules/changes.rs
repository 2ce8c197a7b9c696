//! What people do to schedules: pause, change, preview, and what is refused.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{FAR, Scene, distributions, due, outcomes};
use crate::truth::{PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_schedule_does_not_fire_and_goes_on_from_now() {
    let mut scene = Scene::new(2, 40).await;
    let schedule_id = scene
        .schedule(json!({ "cron": "0 9 * * *", "paused": true }))
        .await;
    let path = format!("/v1/schedules/{schedule_id}");
    assert_eq!(scene.read(schedule_id).await["next_fire_at"], Value::Null);
    let preview = scene.admin.get(&format!("{path}/next?n=3")).await.expect(200);
    assert_eq!(
        preview["data"].as_array().unwrap().len(),
        3,
        "what it would be: {preview}"
    );
    let going = scene.patch(schedule_id, json!({ "paused": false })).await;
    assert_eq!(going["next_fire_at"], preview["data"][0]);
    due(scene.pool(), schedule_id, 30).await;
    let paused = scene.patch(schedule_id, json!({ "paused": true })).await;
    assert_eq!(
        (&paused["paused"], &paused["next_fire_at"]),
        (&json!(true), &Value::Null)
    );
    scene.service.start_workers();
    let again = scene.patch(schedule_id, json!({ "paused": false })).await;
    assert_eq!(
        again["next_fire_at"], preview["data"][0],
        "what came due meanwhile does not happen"
    );
    assert_eq!(again["last_fire"], Value::Null);
    // By hand it can be started all the same, once for one key.
    scene.patch(schedule_id, json!({ "paused": true })).await;
    let keyed = scene.admin.with("Idempotency-Key", "now");
    let first = keyed.post(&format!("{path}/run"), json!({})).await.expect(202);
    let second = keyed.post(&format!("{path}/run"), json!({})).await;
    assert_eq!(second.body["id"], first["id"]);
    assert_eq!(
        scene.admin.job_end(first["id"].as_str().unwrap()).await["state"],
        "succeeded"
    );
    let last = scene.read(schedule_id).await["last_fire"].clone();
    assert_eq!((&last["by_hand"], &last["job_id"]), (&json!(true), &first["id"]));
    assert_eq!(distributions(scene.pool(), schedule_id).await, 1);
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_wants_the_version_that_was_read_and_reckons_the_next_fire_anew() {
    let scene = Scene::new(1, 1).await;
    let schedule_id = scene
        .schedule(json!({ "cron": "0 9 * * *", "time_zone": "Europe/Berlin" }))
        .await;
    let path = format!("/v1/schedules/{schedule_id}");
    let read = scene.admin.get(&path).await;
    let tag = read.header("etag").unwrap().to_owned();
    let tagged = scene.admin.with("If-Match", &tag);
    let renamed = tagged.patch(&path, json!({ "name": "Another" })).await;
    assert_ne!(renamed.header("etag"), Some(tag.as_str()));
    let renamed = renamed.expect(200);
    assert_eq!(
        (&renamed["name"], &renamed["next_fire_at"]),
        (&json!("Another"), &read.body["next_fire_at"])
    );
    tagged
        .patch(&path, json!({ "name": "A third" }))
        .await
        .refused(412, "stale");
    // A fire does not make a tag stale.
    let fresh = scene.admin.get(&path).await.header("etag").unwrap().to_owned();
    due(scene.pool(), schedule_id, 5).await;
    let utc = scene
        .admin
        .with("If-Match", &fresh)
        .patch(&path, json!({ "time_zone": "UTC" }))
        .await
        .expect(200);
    assert!(
        utc["next_fire_at"]
            .as_str()
            .unwrap()
            .ends_with("T09:00:00.000000Z"),
        "{utc}"
    );
    let run_at = chrono::Utc::now() + chrono::TimeDelta::hours(5);
    let once = scene.patch(schedule_id, json!({ "run_at": run_at })).await;
    assert_eq!(
        (&once["cron"], &once["next_fire_at"]),
        (&Value::Null, &once["run_at"])
    );
    let again = scene.patch(schedule_id, json!({ "cron": "0 9 * * *" })).await;
    assert_eq!(
        (&again["run_at"], &again["cron"]),
        (&Value::Null, &json!("0 9 * * *"))
    );
    let listed = scene.admin.get("/v1/schedules").await.expect(200);
    assert_eq!(listed["data"], json!([again]));
    scene.admin.delete(&path).await.expect(204);
    scene.admin.get(&path).await.refused(404, "not_found");
    scene.admin.delete(&path).await.refused(404, "not_found");
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_has_just_passed_is_meant_at_once_also_in_a_change() {
    let mut scene = Scene::new(2, 40).await;
    scene.service.start_workers();
    let just_now = || chrono::Utc::now() - chrono::TimeDelta::seconds(10);
    let made = scene.schedule(json!({ "run_at": just_now() })).await;
    let changed = scene.schedule(json!({ "cron": FAR })).await;
    scene.patch(changed, json!({ "run_at": just_now() })).await;
    for schedule_id in [made, changed] {
        let fired = || outcomes(scene.pool(), schedule_id);
        eventually("it fires", PATIENCE, fired, |fired| !fired.is_empty()).await;
        assert_eq!(outcomes(scene.pool(), schedule_id).await, ["started"]);
        assert_eq!(scene.read(schedule_id).await["next_fire_at"], Value::Null);
    }
    let refused = json!({ "run_at": chrono::Utc::now() - chrono::TimeDelta::hours(1) });
    scene
        .admin
        .patch(&format!("/v1/schedules/{changed}"), refused)
        .await
        .refused(422, "validation_failed");
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_fires_follow_the_clock_of_the_zone() {
    let scene = Scene::new(1, 1).await;
    let schedule_id = scene
        .schedule(json!({ "cron": "30 2 * * *", "time_zone": "Europe/Berlin" }))
        .await;
    let next = async |from: &str, n: u32| {
        sqlx::query("UPDATE schedules SET next_fire_at = $2::timestamptz WHERE id = $1")
            .bind(schedule_id)
            .bind(from)
            .execute(scene.pool())
            .await
            .unwrap();
        let answer = scene
            .admin
            .get(&format!("/v1/schedules/{schedule_id}/next?n={n}"))
            .await;
        answer.expect(200)["data"].clone()
    };
    // 28 March 2027: 02:00 becomes 03:00. 31 October 2027: 03:00 becomes 02:00.
    assert_eq!(
        next("2027-03-27T01:30:00Z", 3).await,
        json!([
            "2027-03-27T01:30:00.000000Z",
            "2027-03-28T01:00:00.000000Z",
            "2027-03-29T00:30:00.000000Z"
        ])
    );
    assert_eq!(
        next("2027-10-30T00:30:00Z", 3).await,
        json!([
            "2027-10-30T00:30:00.000000Z",
            "2027-10-31T00:30:00.000000Z",
            "2027-11-01T01:30:00.000000Z"
        ])
    );
    let ten = scene
        .admin
        .get(&format!("/v1/schedules/{schedule_id}/next"))
        .await
        .expect(200);
    assert_eq!(ten["data"].as_array().unwrap().len(), 10);
    scene
        .patch(schedule_id, json!({ "ends_at": "2027-11-02T00:00:00Z" }))
        .await;
    assert_eq!(
        next("2027-10-31T00:30:00Z", 10).await.as_array().unwrap().len(),
        2,
        "it ends"
    );
    // A null says nothing; an end is taken away by its name.
    let same = scene
        .patch(schedule_id, json!({ "ends_at": null, "name": "Another" }))
        .await;
    assert_eq!(
        (&same["ends_at"], &same["name"]),
        (&json!("2027-11-02T00:00:00.000000Z"), &json!("Another"))
    );
    let endless = scene.patch(schedule_id, json!({ "clear": ["ends_at"] })).await;
    assert_eq!(endless["ends_at"], Value::Null);
    assert_eq!(
        next("2027-10-31T00:30:00Z", 10).await.as_array().unwrap().len(),
        10
    );
    scene
        .admin
        .patch(
            &format!("/v1/schedules/{schedule_id}"),
            json!({ "clear": ["cron"] }),
        )
        .await
        .invalid("/clear/0", "not_in_enum");
    scene.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_schedule_is_refused() {
    let scene = Scene::new(1, 1).await;
    let post = async |members: Value| scene.admin.post("/v1/schedules", scene.body(members)).await;
    for cron in ["61 * * * *", "* * * *", "0 0 30 2 *", "@hourly", "0 0 * * * *"] {
        post(json!({ "cron": cron })).await.refused(422, "cron_invalid");
    }
    post(json!({ "cron": "0 9 * * *", "time_zone": "Mars/Olympus" }))
        .await
        .refused(422, "time_zone_unknown");
    post(json!({})).await.invalid("/run_at", "required");
    post(json!({ "cron": "0 9 * * *", "run_at": "2099-01-01T00:00:00Z" }))
        .await
        .invalid("/cron", "unexpected");
    post(json!({ "run_at": "2020-01-01T00:00:00Z" }))
        .await
        .invalid("/run_at", "out_of_range");
    post(json!({ "run_at": "2099-01-01T00:00:00Z", "ends_at": "2098-01-01T00:00:00Z" }))
        .await
        .invalid("/ends_at", "out_of_range");
    post(json!({ "cron": "0 9 * * *", "distribution": null }))
        .await
        .invalid("/distribution", "required");
    let mut body = scene.body(json!({ "cron": "0 9 * * *" }));
    body["distribution"]["total"] = json!(5);
    scene
        .admin
        .post("/v1/schedules", body.clone())
        .await
        .invalid("/distribution/total", "unexpected");
    body["distribution"].as_object_mut().unwrap().remove("total");
    body["distribution"]["seed"] = json!("again and again");
    scene
        .admin
        .post("/v1/schedules", body.clone())
        .await
        .invalid("/distribution/seed", "unexpected");
    body["distribution"].as_object_mut().unwrap().remove("seed");
    body["distribution"]["book_id"] = json!(Uuid::now_v7());
    scene
        .admin
        .post("/v1/schedules", body)
        .await
        .refused(404, "not_found");
    let listed = scene.admin.get("/v1/schedules").await.expect(200);
    assert_eq!(listed["data"], json!([]));
    scene.service.stop().await;
}
