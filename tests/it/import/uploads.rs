//! Files: how they come, in which forms, and when they go.

use std::collections::HashMap;

use anyhow::{Context, Result};
use coupon_core::{
    db::{self},
    error::Code,
    import::{
        Settings, step, sweep,
        upload::{Limits, Receiver, Target},
    },
    job::{State, claim::Outcome},
};

use super::Scene;

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
    match step::step(&mut tx, job.id, None).await? {
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
