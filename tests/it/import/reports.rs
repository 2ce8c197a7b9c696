//! What is told of bad lines.

use std::collections::BTreeMap;

use anyhow::Result;
use coupon_core::{
    db,
    import::{Settings, step},
    job::{State, claim::Outcome},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Scene;

/// A small generator (SplitMix64), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_line_is_reported_exactly_however_often_steps_crash() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::with(db, |book| book.max_assignments_per_user = Some(3)).await?;
    scene.import("OLD1\nOLD2\nOLD3\n", Settings::default()).await?;
    let ann = scene.user("ann@example.com", false).await?;
    scene.user("off@example.com", true).await?;
    let seed = 42;
    let mut dice = Dice(seed);
    let mut text = "id,Code,user_email,expires_at,max_redemptions,note\r\n".to_owned();
    let (mut line, mut rows) = (2i64, 0i64);
    let mut expected: Vec<(i64, String)> = Vec::new();
    let mut made: BTreeMap<String, Option<Uuid>> = BTreeMap::new();
    let mut anns = 0;
    for n in 0..95_000 {
        let fresh = format!("N-{n:06}");
        let any = format!("n{:06}", dice.roll(n + 1));
        let (fields, reason): (Vec<&str>, Option<&str>) = match dice.roll(400) {
            0 => (vec!["1", "\"\""], Some("empty")),
            1 => (vec!["1", "ñandú"], Some("bad_character")),
            2 => (vec!["1", "OLD2"], Some("duplicate_in_book")),
            3 => (vec!["1", "old-3", "", "", "", "x"], Some("duplicate_in_book")),
            4 => (vec!["1", &any], Some("?")),
            5 => (vec!["1", &fresh, "nobody@example.com"], Some("unknown_user")),
            6 => (vec!["1", &fresh, "off@example.com"], Some("user_disabled")),
            7 => (vec!["1", &fresh, "ANN@example.com"], Some("??")),
            8 => (vec!["1", &fresh, "", "31.12.2026"], Some("bad_date")),
            9 => (vec!["1", &fresh, "", "", "none"], Some("bad_number")),
            10 => (vec!["1", &fresh, "", "", "", "a", "b"], Some("too_many_columns")),
            11 => (vec!["1", &fresh, "", "", "", "\"two\r\nlines\""], None),
            12 => {
                text.push_str("\r\n");
                line += 1;
                continue;
            }
            _ => (vec!["1", &fresh, "", "2030-01-01", "2"], None),
        };
        let key = fields[1].replace('-', "").to_uppercase();
        let reason = match reason {
            Some("?") if made.contains_key(&key) => Some("duplicate_in_file"),
            Some("??") if anns == 3 => Some("assignment_limit_reached"),
            Some("??") => {
                anns += 1;
                made.insert(key, Some(ann));
                None
            }
            Some("?") | None => {
                made.insert(key, None);
                None
            }
            other => other,
        };
        if let Some(reason) = reason {
            expected.push((line, reason.to_owned()));
        }
        rows += 1;
        let record = fields.join(",");
        line += 1 + record.matches('\n').count() as i64;
        text.push_str(&record);
        text.push_str("\r\n");
    }
    let job_id = scene.create(text.as_bytes(), Settings::default()).await?;
    let job = scene.run_with(job_id, |_| dice.roll(2) == 0).await?;
    assert_eq!(job.state, State::PartiallySucceeded, "seed {seed}");
    let reported = scene.reasons(job_id).await?;
    assert!(
        reported == expected,
        "seed {seed}: {:?}",
        reported.iter().zip(&expected).find(|(a, b)| a != b)
    );
    let count = |reason: &str| expected.iter().filter(|(_, r)| r == reason).count() as i64;
    let (in_file, in_book) = (count("duplicate_in_file"), count("duplicate_in_book"));
    assert!(in_file > 0 && in_book > 0 && count("assignment_limit_reached") > 0);
    assert_eq!(
        job.result_value(),
        Some(json!({
            "rows": rows, "accepted": made.len(), "duplicate_in_file": in_file, "duplicate_in_book": in_book,
            "invalid": expected.len() as i64 - in_file - in_book,
        }))
    );
    let coupons: Vec<(String, Option<Uuid>)> = sqlx::query_as(
        "SELECT code_key, assigned_user_id FROM coupons WHERE code_key NOT LIKE 'OLD%' ORDER BY code_key",
    )
    .fetch_all(db.pool())
    .await?;
    assert!(coupons == made.into_iter().collect::<Vec<_>>());
    assert_eq!(
        scene
            .count("SELECT assigned_count::bigint FROM user_allowances")
            .await?,
        3
    );
    assert_eq!(
        scene
            .count("SELECT count(*) FROM events WHERE kind = 'coupon_assigned'")
            .await?,
        3
    );
    assert_eq!(
        scene
            .count("SELECT sum((after->>'count')::bigint)::bigint FROM events WHERE kind = 'codes_added'")
            .await?,
        coupons.len() as i64 + 3
    );
    // The arrival number of every coupon follows from its chunk's event and the order of keys; none is given twice.
    assert_eq!(
        scene
            .count("SELECT count(DISTINCT (draw_key, code_key)) - count(*) FROM coupons")
            .await?,
        0
    );
    assert_eq!(
        scene
            .count("SELECT arrivals - (SELECT count(*) FROM coupons) FROM draw_states")
            .await?,
        0
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_can_be_mended_and_sent_again() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::new(db).await?;
    let settings = Settings {
        metadata_columns: true,
        ..Settings::default()
    };
    let text = "code;shop\nGOOD1;a\n=BAD\u{f1};\"x; \"\"y\"\"\"\nGOOD1;b\n";
    let job_id = scene.create(text.as_bytes(), settings.clone()).await?;
    scene.run(job_id).await?;
    let report = scene.report(job_id).await?;
    assert_eq!(
        report,
        "code;shop;line;reason;detail\r\n\
         =BAD\u{f1};\"x; \"\"y\"\"\";3;bad_character;\"The code has a character that is not printable ASCII.\"\r\n\
         GOOD1;b;4;duplicate_in_file;\"An earlier line of the file has this code.\"\r\n"
    );
    let mended = report.replace("=BAD\u{f1}", "=MENDED");
    let job_id = scene.create(mended.as_bytes(), settings).await?;
    let job = scene.run(job_id).await?;
    assert_eq!((job.counts["accepted"], job.counts["duplicate_in_book"]), (1, 1));
    assert!(
        scene
            .report(job_id)
            .await?
            .starts_with("code;shop;line;reason;detail\r\nGOOD1;b;3;")
    );
    let metadata: Value = sqlx::query_scalar("SELECT metadata FROM coupons WHERE code_key = '=MENDED'")
        .fetch_one(db.pool())
        .await?;
    assert_eq!(metadata, json!({"shop": "x; \"y\""}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_that_never_closes_ends_the_import_there() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::new(db).await?;
    let job = scene.import("A1\nB2\n\"C3\nD4\n", Settings::default()).await?;
    assert_eq!(
        (job.state, job.counts["accepted"], job.counts["invalid"]),
        (State::Failed, 2, 1)
    );
    // Tried again, it comes to the same line.
    let mut tx = db.begin().await?;
    let again = step::step(&mut tx, job.id, None).await?;
    assert!(matches!(again, Outcome::Finished(finished) if finished.state == State::Failed));
    db::commit(tx).await?;
    assert_eq!(scene.reasons(job.id).await?, [(3, "unclosed_quote".to_owned())]);
    assert_eq!(scene.codes().await?, ["A1", "B2"]);
    Ok(())
}
