//! Import against a real database: exact reports, exact resumption, nothing made twice.
//!
//! Each test is given a database of its own. Steps are run here as the worker runs them: claimed, run and settled in one
//! transaction; some are rolled back to stand for a crash.

mod modes;
mod reports;
mod uploads;

use anyhow::{Result, ensure};
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
        step,
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
        let outcome = step::step(&mut tx, job.id, None).await?;
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
    assert!(matches!(
        step::step(&mut tx, list, None).await?,
        Outcome::Snoozed(_)
    ));
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
        (State::Cancelled, step::FIRST_STEP_RECORDS as i64)
    );
    assert_eq!(
        scene.count("SELECT count(*) FROM coupons").await?,
        job.counts["accepted"]
    );
    scene.import("A\n", Settings::default()).await?; // the slot is free
    Ok(())
}
