//! P3: making codes, end to end and alone, against copying the same rows.

use std::time::Instant;

use serde_json::json;
use uuid::Uuid;

use crate::{
    Effort,
    bulk::{self, PATTERN},
    report::{Line, Report, median},
    stand::Stand,
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
        copied.push(f64::from(count) / bulk::copy(stand, book_id).await?);
        stand.forget_coupons().await?;
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
pub(crate) async fn generate(stand: &Stand, count: u32) -> anyhow::Result<(Uuid, f64)> {
    let book_id = stand.book(json!({})).await?;
    let body = json!({ "count": count, "pattern": PATTERN.pattern, "alphabet": PATTERN.alphabet });
    let began = Instant::now();
    let path = format!("/v1/books/{book_id}/codes/generate");
    let job = stand.ask("POST", &path, &body.to_string()).await?;
    bulk::succeeded(stand, &job).await?;
    Ok((book_id, began.elapsed().as_secs_f64()))
}

/// Codes per second.
fn alone() -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut letters = 0;
    bulk::spell(7, ALONE, |code| {
        letters += code.len();
        Ok(())
    })?;
    std::hint::black_box(letters);
    Ok(f64::from(ALONE) / began.elapsed().as_secs_f64())
}
