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

/// P3: a job that makes codes, POST to finished; then the codes alone, on one core.
pub(crate) async fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let figure = bulk::Figure {
        name: "P3",
        what: "a job that makes codes, POST to finished",
        must: ("≥ 1.3 ×", 1.3),
    };
    bulk::against_copy(stand, effort, report, &figure, generate).await?;
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
