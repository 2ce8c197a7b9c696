//! Import against a real database: exact reports, exact resumption, nothing made twice.
//!
//! Each test is given a database of its own. Steps are run here as the worker runs them: claimed, run and settled in one
//! transaction; some are rolled back to stand for a crash.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use coupon_core::{
    book,
    caller::{Access, Actor, ActorKind, Caller, Role},
    coupon::Origin,
    db::{self, Db},
    error::Code,
    import::{
        Mode, Settings,
        create::{self, NewImport},
        report::ErrorsCsv,
        step, sweep,
        upload::{self, Limits, Receiver, Target, Upload},
    },
    job::{
        Job, Queue, State,
        claim::{self, Lane, Outcome, Place},
        ledger,
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

struct Scene {
    db: Db,
    actor: Actor,
    book_id: Uuid,
}

impl Scene {
    async fn new(db: &Db) -> Result<Self> {
        Self::with(db, |_| ()).await
    }

    async fn with(db: &Db, change: impl FnOnce(&mut book::Settings)) -> Result<Self> {
        let actor = Actor {
            kind: ActorKind::User,
            id: Some(Uuid::now_v7()),
        };
        let mut settings = book::Settings::named("Spring");
        change(&mut settings);
        let mut tx = db.begin().await?;
        let origin = Origin {
            actor,
            request_id: None,
        };
        let book = book::insert(&mut tx, &settings, origin).await?;
        db::commit(tx).await?;
        Ok(Self {
            db: db.clone(),
            actor,
            book_id: book.id,
        })
    }

    fn caller(&self) -> Caller {
        Caller {
            id: self.actor.id.unwrap_or_default(),
            access: Access::User(Role::Admin),
        }
    }

    async fn user(&self, email: &str, disabled: bool) -> Result<Uuid> {
        let id = Uuid::now_v7();
        sqlx::query(
            "INSERT INTO users (id, email, name, disabled_at) VALUES ($1, $2, 'A', CASE WHEN $3 THEN now() END)",
        )
        .bind(id)
        .bind(email)
        .bind(disabled)
        .execute(self.db.pool())
        .await?;
        Ok(id)
    }

    async fn upload(&self, bytes: &[u8], piece: usize) -> Result<Upload> {
        let mut receiver = Receiver::begin(
            &self.db,
            Target::Book(self.book_id),
            self.actor,
            None,
            Limits::default(),
        )
        .await?;
        for bytes in bytes.chunks(piece) {
            receiver.feed(bytes).await?;
        }
        Ok(receiver.finish().await?)
    }

    async fn create(&self, bytes: &[u8], settings: Settings) -> Result<Uuid, coupon_core::Error> {
        let upload = self
            .upload(bytes, 64 << 10)
            .await
            .expect("the upload is received");
        let mut tx = self.db.begin().await?;
        let new = NewImport {
            book_id: self.book_id,
            upload_id: upload.id,
            settings,
            actor: self.actor,
            request_id: Some("request-1"),
        };
        match create::create(&mut tx, &new).await {
            Ok(job_id) => {
                db::commit(tx).await?;
                Ok(job_id)
            }
            Err(error) => {
                drop(tx);
                upload::discard(&self.db, upload.id).await?;
                Err(error)
            }
        }
    }

    /// One step of whatever is due, as the worker takes it; `crash` rolls it back. Gives whether something was due.
    async fn step(&self, crash: bool) -> Result<bool> {
        let mut tx = self.db.begin().await?;
        let claimed = claim::claim(&mut tx, Queue::Bulk, Lane::Fresh, 1, &mut Place::default()).await?;
        let Some(job) = claimed.first() else {
            return Ok(false);
        };
        let outcome = step::step(&mut tx, job.id).await?;
        let outcome = match outcome {
            Outcome::Snoozed(_) => Outcome::Snoozed(std::time::Duration::ZERO),
            other => other,
        };
        claim::settle(&mut tx, vec![(job.id, outcome)]).await?;
        if crash {
            tx.rollback().await?; // awaited: until then the row is locked and looks as if nothing were due
        } else {
            db::commit(tx).await?;
        }
        Ok(true)
    }

    async fn job(&self, job_id: Uuid) -> Result<Job> {
        let mut tx = self.db.begin().await?;
        Ok(ledger::find(&mut tx, &self.caller(), job_id).await?)
    }

    async fn run(&self, job_id: Uuid) -> Result<Job> {
        self.run_with(job_id, |_| false).await
    }

    async fn run_with(&self, job_id: Uuid, mut crash: impl FnMut(usize) -> bool) -> Result<Job> {
        for n in 0..10_000 {
            let job = self.job(job_id).await?;
            if job.state.is_final() {
                return Ok(job);
            }
            ensure!(
                self.step(crash(n)).await?,
                "nothing is due, but the job is not over"
            );
        }
        anyhow::bail!("the job does not end")
    }

    async fn import(&self, text: &str, settings: Settings) -> Result<Job> {
        let job_id = self.create(text.as_bytes(), settings).await?;
        self.run(job_id).await
    }

    async fn errors(&self, job_id: Uuid) -> Result<Vec<Value>> {
        let (mut entries, mut after) = (Vec::new(), None);
        loop {
            let mut tx = self.db.begin().await?;
            let page = ledger::list_errors(&mut tx, &self.caller(), job_id, after, 1000).await?;
            after = page.rows.last().map(|line| line.seq);
            entries.extend(page.rows.into_iter().map(|line| line.entry));
            if !page.more {
                return Ok(entries);
            }
        }
    }

    async fn reasons(&self, job_id: Uuid) -> Result<Vec<(i64, String)>> {
        Ok(self
            .errors(job_id)
            .await?
            .iter()
            .map(|entry| {
                (
                    entry["line"].as_i64().unwrap_or(0),
                    entry["reason"].as_str().unwrap_or_default().to_owned(),
                )
            })
            .collect())
    }

    async fn report(&self, job_id: Uuid) -> Result<String> {
        let mut tx = self.db.begin().await?;
        let mut report = ErrorsCsv::begin(&mut tx, &self.caller(), job_id).await?;
        let mut csv = Vec::new();
        while let Some(bytes) = report.next(&mut tx).await? {
            csv.extend(bytes);
        }
        Ok(String::from_utf8(csv)?)
    }

    async fn codes(&self) -> Result<Vec<String>> {
        Ok(sqlx::query_scalar(
            "SELECT coalesce(code, code_key) FROM coupons WHERE book_id = $1 ORDER BY code_key",
        )
        .bind(self.book_id)
        .fetch_all(self.db.pool())
        .await?)
    }

    async fn count(&self, sql: &'static str) -> Result<i64> {
        Ok(sqlx::query_scalar(sql).fetch_one(self.db.pool()).await?)
    }
}

fn mode(mode: Mode) -> Settings {
    Settings {
        mode,
        ..Settings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_list_becomes_coupons() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::new(db).await?;
    let job = scene
        .import("code\nab-1\nB2\n\nC3\n", Settings::default())
        .await?;
    assert_eq!(job.state, State::Succeeded);
    assert_eq!(
        job.result_value(),
        Some(json!({"rows": 3, "accepted": 3, "duplicate_in_file": 0, "duplicate_in_book": 0, "invalid": 0}))
    );
    assert_eq!(scene.codes().await?, ["ab-1", "B2", "C3"]);
    let event: (Value, bool) = sqlx::query_as(
        "SELECT after, at = (SELECT min(created_at) FROM coupons) FROM events WHERE kind = 'codes_added'",
    )
    .fetch_one(db.pool())
    .await?;
    assert_eq!(
        event,
        (
            json!({"count": 3, "first_arrival": 0, "epoch": 0, "cursor": "0"}),
            true
        )
    );
    assert_eq!(scene.count("SELECT arrivals FROM draw_states").await?, 3);
    assert_eq!(scene.count("SELECT count(*) FROM code_job_slots").await?, 0);
    Ok(())
}

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
async fn all_or_nothing_writes_all_or_nothing() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::with(db, |book| book.max_assignments_per_user = Some(2)).await?;
    scene.user("ann@example.com", false).await?;
    let mut lines: Vec<String> = (0..50_000).map(|n| format!("K{n:05},")).collect();
    lines.insert(0, "code,user_email".into());
    for n in [10, 30_000] {
        lines[n].push_str("ann@example.com");
    }
    let good = lines.join("\n");
    lines[45_000].push_str("ann@example.com");
    lines[49_000] = "k-00005,".into();
    let bad = lines.join("\n");

    let job_id = scene.create(bad.as_bytes(), mode(Mode::AllOrNothing)).await?;
    let job = scene.run_with(job_id, |n| n % 2 == 1).await?;
    assert_eq!(
        (job.state, job.error.map(|e| e.0)),
        (State::Failed, Some("validation_failed".into()))
    );
    assert_eq!(job.counts["accepted"], 0);
    let expected = [
        (45_001, "assignment_limit_reached".to_owned()),
        (49_001, "duplicate_in_file".to_owned()),
    ];
    assert_eq!(scene.reasons(job_id).await?, expected);
    assert_eq!(scene.count("SELECT count(*) FROM coupons").await?, 0);

    // A crash of the server empties what the validating pass remembers: it begins again and comes to the same.
    let job_id = scene.create(bad.as_bytes(), mode(Mode::AllOrNothing)).await?;
    scene.step(false).await?;
    sqlx::query("TRUNCATE import_seen").execute(db.pool()).await?;
    assert_eq!(scene.run(job_id).await?.state, State::Failed);
    assert_eq!(scene.reasons(job_id).await?, expected);

    let job_id = scene.create(good.as_bytes(), mode(Mode::AllOrNothing)).await?;
    let job = scene.run_with(job_id, |n| n % 2 == 1).await?;
    assert_eq!(
        (job.state, job.counts["accepted"], job.progress.done),
        (State::Succeeded, 50_000, 50_000)
    );
    assert_eq!(scene.count("SELECT count(*) FROM coupons").await?, 50_000);
    assert_eq!(
        scene
            .count("SELECT assigned_count::bigint FROM user_allowances")
            .await?,
        2
    );
    while sweep_seen(db).await? > 0 {}
    assert_eq!(scene.count("SELECT count(*) FROM import_seen").await?, 0);
    Ok(())
}

async fn sweep_seen(db: &Db) -> Result<u64> {
    let mut tx = db.begin().await?;
    let swept = sweep::sweep_seen(&mut tx).await?;
    db::commit(tx).await?;
    Ok(swept)
}

#[tokio::test(flavor = "multi_thread")]
async fn validating_only_writes_nothing() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::new(db).await?;
    scene.import("A1\n", Settings::default()).await?;
    let job = scene.import("a1\nB2\nb-2\n", mode(Mode::ValidateOnly)).await?;
    assert_eq!(job.state, State::PartiallySucceeded);
    assert_eq!(
        job.result_value(),
        Some(json!({"rows": 3, "accepted": 1, "duplicate_in_file": 1, "duplicate_in_book": 1, "invalid": 0}))
    );
    assert_eq!(scene.codes().await?, ["A1"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_import_of_a_book_runs_at_a_time() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::new(db).await?;
    let first = scene.create(b"A1\nB2\n", Settings::default()).await?;
    assert_eq!(scene.create(b"A1\nB2\n", Settings::default()).await?, first);
    assert_eq!(scene.count("SELECT count(*) FROM uploads").await?, 1);
    let other = scene.create(b"C3\n", Settings::default()).await.unwrap_err();
    assert_eq!(other.code(), Code::ImportInProgress);
    let other = scene
        .create(b"A1\nB2\n", mode(Mode::ValidateOnly))
        .await
        .unwrap_err();
    assert_eq!(other.code(), Code::ImportInProgress);

    // A list of codes waits instead.
    let mut tx = db.begin().await?;
    let codes = ["D4", "a-1", "", "x\ny"].map(str::to_owned);
    let list = create::create_from_codes(
        &mut tx,
        scene.book_id,
        &codes,
        Mode::SkipInvalid,
        scene.actor,
        None,
    )
    .await?;
    db::commit(tx).await?;
    let mut tx = db.begin().await?;
    assert!(matches!(step::step(&mut tx, list).await?, Outcome::Snoozed(_)));
    drop(tx);
    let job = scene.run(list).await?;
    assert_eq!(scene.job(first).await?.state, State::Succeeded);
    assert_eq!(job.counts["accepted"], 1);
    assert_eq!(
        scene.reasons(list).await?,
        [
            (2, "duplicate_in_book".to_owned()),
            (3, "empty".to_owned()),
            (4, "bad_character".to_owned())
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_as_people_send_them_are_understood() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::with(db, |book| book.time_zone = "Europe/Paris".into()).await?;
    let excel = "\u{feff}sep=;\r\nNombre;\"Código\";expires_at\r\n\"Pe\u{f1}a; B\";es-1;2026-07-01\r\n";
    let latin: Vec<u8> = "código;x\r\nWIN1;é\r\n".chars().map(|c| c as u8).collect();
    let utf16: Vec<u8> = "\u{feff}id\tvoucher\r\n1\tUT-16\r\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for bytes in [excel.as_bytes(), &latin, &utf16] {
        let job_id = scene.create(bytes, Settings::default()).await?;
        assert_eq!(scene.run(job_id).await?.state, State::Succeeded);
    }
    assert_eq!(scene.codes().await?, ["es-1", "UT-16", "WIN1"]);
    let expires: String = sqlx::query_scalar("SELECT expires_at::text FROM coupons WHERE code_key = 'ES1'")
        .fetch_one(db.pool())
        .await?;
    assert!(expires.starts_with("2026-07-01 22:00:00"), "{expires}");
    for (bytes, code) in [
        (b"id,promo\n1,A\n".as_slice(), Code::CsvHeaderMissing),
        (b"", Code::ValidationFailed),
        (b"PK\x03\x04rest", Code::UnsupportedMediaType),
    ] {
        assert_eq!(
            scene.create(bytes, Settings::default()).await.unwrap_err().code(),
            code
        );
    }
    assert_eq!(scene.count("SELECT count(*) FROM uploads").await?, 3);
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
async fn a_cancelled_import_keeps_what_is_committed() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::new(db).await?;
    let text: String = (0..50_000).map(|n| format!("K{n}\n")).collect();
    let job_id = scene.create(text.as_bytes(), Settings::default()).await?;
    scene.step(false).await?;
    let mut tx = db.begin().await?;
    ledger::cancel(&mut tx, &scene.caller(), job_id).await?;
    db::commit(tx).await?;
    let job = scene.run(job_id).await?;
    assert_eq!(
        (job.state, job.counts["accepted"]),
        (State::Cancelled, step::STEP_RECORDS as i64)
    );
    assert_eq!(
        scene.count("SELECT count(*) FROM coupons").await?,
        job.counts["accepted"]
    );
    scene.import("A\n", Settings::default()).await?; // the slot is free
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
    assert_eq!(scene.reasons(job.id).await?, [(3, "unclosed_quote".to_owned())]);
    assert_eq!(scene.codes().await?, ["A1", "B2"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_counts_only_when_it_is_finished() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::new(db).await?;
    let text = "CODE-1\n".repeat(400_000);
    let mut receiver = Receiver::begin(
        db,
        Target::Book(scene.book_id),
        scene.actor,
        None,
        Limits::default(),
    )
    .await?;
    receiver.feed(text.as_bytes()).await?;
    assert_eq!(scene.count("SELECT count(*) FROM upload_chunks").await?, 2);
    receiver.abort().await?;
    assert_eq!(scene.count("SELECT count(*) FROM uploads").await?, 0);

    let mut cut = Receiver::begin(
        db,
        Target::Book(scene.book_id),
        scene.actor,
        None,
        Limits::default(),
    )
    .await?;
    cut.feed(text.as_bytes()).await?;
    let sweep = async || -> Result<u64> {
        let mut tx = db.begin().await?;
        let swept = sweep::sweep_dead_uploads(&mut tx).await?;
        db::commit(tx).await?;
        Ok(swept)
    };
    assert_eq!(sweep().await?, 0);
    sqlx::query("UPDATE uploads SET touched_at = now() - interval '11 minutes'")
        .execute(db.pool())
        .await?;
    while sweep().await? > 0 {}
    assert_eq!(scene.count("SELECT count(*) FROM uploads").await?, 0);
    assert_eq!(cut.finish().await.unwrap_err().code(), Code::Expired);

    let small = Limits {
        raw_bytes: 1 << 30,
        text_bytes: 1000,
    };
    let mut large = Receiver::begin(db, Target::Book(scene.book_id), scene.actor, None, small).await?;
    assert_eq!(
        large.feed(text.as_bytes()).await.unwrap_err().code(),
        Code::PayloadTooLarge
    );
    large.abort().await?;
    let unknown = Receiver::begin(
        db,
        Target::Book(scene.book_id),
        scene.actor,
        Some("klingon"),
        small,
    )
    .await;
    assert_eq!(
        unknown.err().context("it is refused")?.code(),
        Code::ValidationFailed
    );
    assert_eq!(scene.count("SELECT count(*) FROM uploads").await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_goes_after_its_time_and_a_retry_says_so() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let scene = Scene::new(db).await?;
    let job = scene.import("A1\n", Settings::default()).await?;
    let sweep = async |seconds| -> Result<u64> {
        let mut tx = db.begin().await?;
        let swept = sweep::sweep_old_texts(&mut tx, seconds).await?;
        db::commit(tx).await?;
        Ok(swept)
    };
    assert_eq!(sweep(3600).await?, 0);
    sqlx::query("UPDATE jobs SET finished_at = now() - interval '2 hours'")
        .execute(db.pool())
        .await?;
    while sweep(3600).await? > 0 {}
    assert_eq!(scene.count("SELECT count(*) FROM upload_chunks").await?, 0);
    assert_eq!(
        scene
            .count("SELECT count(*) FROM uploads WHERE removed_at IS NOT NULL")
            .await?,
        1
    );
    sqlx::query("UPDATE imports SET cursor = 0")
        .execute(db.pool())
        .await?;
    let mut tx = db.begin().await?;
    match step::step(&mut tx, job.id).await? {
        Outcome::Finished(finished) => assert_eq!(finished.refusal.map(|r| r.code), Some(Code::Expired)),
        other => anyhow::bail!("{other:?}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_files_give_the_same_as_plain_ones() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let plain = coupon_tests::seed::codes(200_000).join("\n").into_bytes();
    let plain = &plain[..];
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packer, plain)?;
    let gzip = &packer.finish()?[..];
    let zstd = &ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)[..];
    let scene = Scene::new(db).await?;
    let mut texts: HashMap<Vec<u8>, usize> = HashMap::new();
    for (bytes, piece) in [
        (gzip, 1000),
        (zstd, 777),
        (plain, 1 << 20),
        (gzip, 1 << 22),
        (zstd, 1 << 22),
    ] {
        let upload = scene.upload(bytes, piece).await?;
        let chunks: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT bytes FROM upload_chunks WHERE upload_id = $1 ORDER BY start")
                .bind(upload.id)
                .fetch_all(db.pool())
                .await?;
        *texts.entry(chunks.concat()).or_default() += 1;
    }
    assert_eq!(texts.len(), 1);
    assert_eq!(texts.get(plain), Some(&5));
    Ok(())
}
