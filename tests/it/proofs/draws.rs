//! New epochs, and how the draws are spread.

use coupon_tests::{Service, seed};
use serde_json::{Value, json};

use super::{check, codes, done, given, prove};
use crate::pools::seeded_pool;

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
