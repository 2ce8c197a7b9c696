//! Proofs of draws: a true history is accepted, with late codes, returns, codes given by name, voided and expired ones and
//! new epochs; whatever is changed in its proof is found and named. Draws are uniform.

mod changes;
mod draws;

use coupon_core::proof::{
    Proof,
    verify::{Verified, verify},
};
use coupon_tests::{Client, Service, seed};
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
    let early = codes("A", 60);
    admin.codes(book_id, &early).await;
    let draw = async |count: usize| {
        let body = json!({ "book_id": book_id, "user_id": users[1], "count": count });
        given(&done(admin, "/v1/coupons/assign", body).await)
    };
    let drawn = draw(5).await;
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
    // The draw is another one in every book: what it left is given and voided by name.
    let mut left = early.iter().filter(|code| !drawn.contains(code));
    done(
        admin,
        &format!("/v1/coupons/assign/{}", left.next().unwrap()),
        json!({ "user_id": users[2], "book_id": book_id }),
    )
    .await;
    admin
        .post(
            &format!("/v1/coupons/void/{}", left.next().unwrap()),
            json!({ "reason": "r", "book_id": book_id }),
        )
        .await
        .expect(200);
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
