//! Imports that write all or nothing, or nothing at all.

use anyhow::Result;
use coupon_core::{
    db::{self, Db},
    import::{Mode, Settings},
    job::State,
    leftovers,
    retention::Retention,
};
use serde_json::json;

use super::{Scene, mode};

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
    while sweep(db).await? {}
    assert_eq!(scene.count("SELECT count(*) FROM import_seen").await?, 0);
    Ok(())
}

/// A table full of rows that are gone tells the planner that nothing is in it, until the next ones are counted.
#[tokio::test(flavor = "multi_thread")]
async fn forgetting_much_ends_whatever_the_planner_takes_the_table_for() -> Result<()> {
    let (_database, db) = &coupon_tests::fresh().await;
    let fill = || {
        sqlx::query(
            "INSERT INTO import_seen (job_id, key) SELECT $1, 'c' || n FROM generate_series(1, 50000) AS n",
        )
        .bind(coupon_core::id::new())
        .execute(db.pool())
    };
    sqlx::raw_sql("ALTER TABLE import_seen SET (autovacuum_enabled = off)")
        .execute(db.pool())
        .await?;
    fill().await?;
    sqlx::raw_sql("DELETE FROM import_seen; ANALYZE import_seen")
        .execute(db.pool())
        .await?;
    fill().await?;
    while sweep(db).await? {}
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM import_seen")
        .fetch_one(db.pool())
        .await?;
    assert_eq!(left, 0);
    Ok(())
}

/// Forgets a batch; gives whether there may be more.
async fn sweep(db: &Db) -> Result<bool> {
    let mut tx = db.begin().await?;
    let more = leftovers::sweep_leftovers(&mut tx, &Retention::default()).await?;
    db::commit(tx).await?;
    Ok(more)
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
