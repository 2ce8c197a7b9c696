//! P3: making codes, end to end and alone, against copying the same rows.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coupon_core::generate::{
    pattern::{Given, Pattern},
    permutation::Permutation,
};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    Effort,
    report::{Line, Report, median},
    stand::Stand,
};

/// Spells 30¹² codes.
const PATTERN: Given<'static> = Given {
    pattern: "SPRING-****-****-****",
    alphabet: Some("unambiguous"),
    check: false,
};

/// Codes of the measurement without a database.
const ALONE: u32 = 4_000_000;

/// P3: a job of so many codes, POST to finished, against COPY of the same rows, unsorted, into the same table; then the
/// codes alone, on one core.
pub(crate) async fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let count: u32 = if effort.quick { 200_000 } else { 1_000_000 };
    let (mut made, mut copied) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        stand.settle().await?;
        let (book_id, seconds) = generate(stand, count).await?;
        made.push(f64::from(count) / seconds);
        stand.settle().await?;
        copied.push(f64::from(count) / copy(stand, book_id).await?);
    }
    let (rate, limit) = (median(made), median(copied));
    report.add(Line {
        figure: "P3",
        what: format!("a job that makes {count} codes, POST to finished"),
        measured: format!("{rate:.0} codes/s"),
        limit: format!("{limit:.0} rows/s, COPY of the same rows unsorted"),
        result: format!("{:.2} ×", rate / limit),
        must: "≥ 1.3 ×",
        met: rate / limit >= 1.3,
    });
    let alone = median(
        (0..effort.rounds.max(3))
            .map(|_| alone())
            .collect::<anyhow::Result<Vec<_>>>()?,
    );
    report.add(Line {
        figure: "P3",
        what: format!("{ALONE} codes put through the permutation and spelled, one core, no database"),
        measured: format!("{:.1} M codes/s", alone / 1e6),
        limit: "none".to_owned(),
        result: format!("{:.1} M/s", alone / 1e6),
        must: "≥ 1 M/s",
        met: alone >= 1e6,
    });
    Ok(())
}

/// Seconds from the request to the end, by the clock of whoever asks.
async fn generate(stand: &Stand, count: u32) -> anyhow::Result<(Uuid, f64)> {
    let book_id = stand.book(json!({})).await?;
    let body = json!({ "count": count, "pattern": PATTERN.pattern, "alphabet": PATTERN.alphabet });
    let began = Instant::now();
    let job = stand
        .ask(
            "POST",
            &format!("/v1/books/{book_id}/codes/generate"),
            &body.to_string(),
        )
        .await?;
    let path = format!("/v1/jobs/{}", job["id"].as_str().context("no id")?);
    loop {
        let job: Value = stand.ask("GET", &path, "").await?;
        match job["state"].as_str() {
            Some("succeeded") => return Ok((book_id, began.elapsed().as_secs_f64())),
            Some("queued" | "running") => tokio::time::sleep(Duration::from_millis(10)).await,
            _ => bail!("{job}"),
        }
    }
}

/// Seconds to copy a book's rows as another book's, in the order of their draw keys, which is none.
async fn copy(stand: &Stand, from: Uuid) -> anyhow::Result<f64> {
    const COLUMNS: &str = "draw_key, created_at, updated_at, redemptions_allowed, state, code_key, code";
    let to = stand.book(json!({})).await?;
    let mut connection = stand.pool.acquire().await?;
    let connection: &mut PgConnection = &mut connection;
    let select = format!(
        "COPY (SELECT '{to}'::uuid, {COLUMNS} FROM coupons WHERE book_id = '{from}' ORDER BY draw_key) TO STDOUT (FORMAT binary)"
    );
    let mut rows = Vec::new();
    {
        let mut stream = connection.copy_out_raw(&select).await?;
        while let Some(piece) = stream.try_next().await? {
            rows.extend_from_slice(&piece);
        }
    }
    let began = Instant::now();
    let insert = format!("COPY coupons (book_id, {COLUMNS}) FROM STDIN (FORMAT binary)");
    let mut copy = connection.copy_in_raw(&insert).await?;
    for piece in rows.chunks(128 << 10) {
        copy.send(piece).await?;
    }
    copy.finish().await?;
    Ok(began.elapsed().as_secs_f64())
}

/// Codes per second.
fn alone() -> anyhow::Result<f64> {
    let pattern = Pattern::parse(PATTERN, false)?;
    let permutation = Permutation::new(&[7; 16], pattern.space());
    let mut speller = pattern.speller();
    let (mut numbers, mut letters) = (vec![0u128; 8_192], 0usize);
    let began = Instant::now();
    let mut next = 0u128;
    while next < u128::from(ALONE) {
        for (number, index) in numbers.iter_mut().zip(next..) {
            *number = index;
        }
        permutation.apply_all(&mut numbers);
        for number in &numbers {
            letters += speller.spell(*number).0.len();
        }
        next += numbers.len() as u128;
    }
    std::hint::black_box(letters);
    Ok(next as f64 / began.elapsed().as_secs_f64())
}
