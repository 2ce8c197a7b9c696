//! P1 and P1c: assign jobs over HTTP.

use std::time::Duration;

use anyhow::bail;
use serde_json::json;

use crate::{
    Effort, limit,
    load::{self, Connection, request},
    report::{Line, Report, median},
    stand::Stand,
};

/// P1: POST until the job has ended (`Prefer: wait`), one hot book, against durable commits.
pub(crate) async fn throughput(stand: &Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let codes = if effort.quick { 200_000 } else { 1_000_000 };
    let book_id = stand.book(json!({})).await?;
    stand.fill(book_id, codes).await?;
    for (connections, must_p99) in [(64, Some(300.0)), (1_000, None)] {
        let (mut floors, mut rates, mut p99s) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            stand.settle().await?;
            floors.push(limit::commits(&stand.bin_dir, &stand.url, effort.seconds).await?);
            let script = |number: usize| -> load::Script {
                let user = stand.users[number % stand.users.len()];
                let body = json!({ "book_id": book_id, "user_id": user }).to_string();
                let [key] = stand.headers();
                let bytes = request("POST", "/v1/coupons/assign", &[key, ("Prefer", "wait=30")], &body);
                Box::new(move |_| Some(bytes.clone()))
            };
            let time = Duration::from_secs(effort.seconds);
            let sample = load::run(stand.address, connections, time, script).await?;
            if sample.statuses.len() > 1 {
                bail!("not every job had ended: {:?}", sample.statuses);
            }
            rates.push(sample.rate());
            p99s.push(sample.quantile(0.99));
        }
        let (rate, floor, p99) = (median(rates), median(floors), median(p99s));
        report.add(Line {
            figure: "P1",
            what: format!("assign jobs to their end, {connections} connections"),
            measured: format!("{rate:.0} jobs/s, p99 {p99:.0} ms"),
            limit: format!("{floor:.0} commits/s at 16 clients"),
            result: format!("{:.2} ×", rate / floor),
            must: if must_p99.is_some() {
                "≥ 0.25 ×, p99 < 300 ms"
            } else {
                "≥ 0.25 ×"
            },
            met: rate / floor >= 0.25 && must_p99.is_none_or(|most| p99 < most),
        });
    }
    Ok(())
}

/// P1c: from the acceptance of a job until a worker has begun it, nothing else going on, by the database's clock.
pub(crate) async fn start_latency(stand: &Stand, report: &mut Report) -> anyhow::Result<()> {
    const JOBS: usize = 300;
    let book_id = stand.book(json!({})).await?;
    stand.fill(book_id, 10_000).await?;
    let [key] = stand.headers();
    let mut connection = Connection::open(stand.address).await?;
    let body = json!({ "book_id": book_id, "user_id": stand.users[0] }).to_string();
    let post = request("POST", "/v1/coupons/assign", &[key, ("Prefer", "wait=30")], &body);
    for _ in 0..JOBS {
        let answer = connection.ask(&post).await?;
        if answer.status != 200 {
            bail!("an assign was answered {}", answer.status);
        }
        // Idle between two: long enough for every connection and worker to rest.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let millis: Vec<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM started_at - created_at)::float8 * 1000 FROM jobs
         WHERE book_id = $1 AND kind = 'assign' ORDER BY 1",
    )
    .bind(book_id)
    .fetch_all(&stand.pool)
    .await?;
    let at = |q: f64| millis[((millis.len() - 1) as f64 * q).round() as usize];
    report.add(Line {
        figure: "P1c",
        what: format!("POST until a worker has begun, idle, {} jobs", millis.len()),
        measured: format!("p50 {:.1} ms, p99 {:.1} ms", at(0.5), at(0.99)),
        limit: "none".to_owned(),
        result: format!("p50 {:.1} ms", at(0.5)),
        must: "p50 ≤ 5 ms",
        met: at(0.5) <= 5.0,
    });
    Ok(())
}
