//! P4: a distribution to a large pool, against writing its audit rows alone.
//!
//! The limit is what no service with this audit trail can do without: the very rows of `coupon_assigned` that the
//! distribution wrote, laid ready in the order of their draw, are inserted once more for another book into the same table
//! with the same indexes, each with a new id by the database's own function, in one statement and one durable commit.
//! The distribution itself is asked over HTTP (two coupons each) and timed until whoever asks sees its job finished: its
//! plan is part of the time.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use coupon_core::id;
use serde_json::json;
use uuid::Uuid;

use crate::{
    Effort,
    report::{Line, Report, median},
    stand::Stand,
};

/// Coupons for each member.
const EACH: usize = 2;

/// P4.
pub(crate) async fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let people: usize = if effort.quick { 5_000 } else { 50_000 };
    let coupons = people * EACH;
    let pool_id = pool(stand, people).await?;
    let (mut rates, mut limits) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let book_id = stand.book(json!({})).await?;
        stand.fill(book_id, u32::try_from(coupons + coupons / 5)?).await?;
        stand.settle().await?;
        rates.push(coupons as f64 / distribute(stand, book_id, pool_id, coupons).await?);
        lay_ready(stand, book_id).await?;
        stand.settle().await?;
        limits.push(coupons as f64 / insert(stand, coupons).await?);
    }
    let (rate, limit) = (median(rates), median(limits));
    report.add(Line {
        figure: "P4",
        what: format!("a distribution of {coupons} coupons to a pool of {people}, POST to finished"),
        measured: format!("{rate:.0} coupons/s"),
        limit: format!("{limit:.0} audit rows/s in one statement"),
        result: format!("{:.2} ×", rate / limit),
        must: "≥ 0.15 ×",
        met: rate / limit >= 0.15,
    });
    Ok(())
}

/// A pool of new accounts.
async fn pool(stand: &Stand, people: usize) -> anyhow::Result<Uuid> {
    let users = stand.more_users(people).await?;
    let pool = stand.ask("POST", "/v1/pools", r#"{"name":"Bench"}"#).await?;
    let pool_id: Uuid = pool["id"].as_str().context("no id")?.parse()?;
    sqlx::query(
        "WITH added AS (INSERT INTO pool_members (pool_id, user_id) SELECT $1, unnest($2::uuid[]) RETURNING 1)
         UPDATE pools SET member_count = (SELECT count(*) FROM added) WHERE id = $1",
    )
    .bind(pool_id)
    .bind(&users)
    .execute(&stand.pool)
    .await?;
    sqlx::raw_sql("ANALYZE users, pool_members")
        .execute(&stand.pool)
        .await?;
    Ok(pool_id)
}

/// Seconds from the request to the end, by the clock of whoever asks.
async fn distribute(stand: &Stand, book_id: Uuid, pool_id: Uuid, coupons: usize) -> anyhow::Result<f64> {
    let body = json!({ "book_id": book_id, "pool_id": pool_id, "mode": "equal", "per_user": EACH, "on_shortage": "fail" });
    let began = Instant::now();
    let job = stand.ask("POST", "/v1/distributions", &body.to_string()).await?;
    let path = format!("/v1/jobs/{}", job["id"].as_str().context("no id")?);
    loop {
        let job = stand.ask("GET", &path, "").await?;
        match job["state"].as_str() {
            Some("succeeded") => {
                let seconds = began.elapsed().as_secs_f64();
                ensure!(job["result"]["assigned"] == coupons, "{job}");
                return Ok(seconds);
            }
            Some("queued" | "running") => tokio::time::sleep(Duration::from_millis(10)).await,
            _ => bail!("{job}"),
        }
    }
}

/// Keeps the rows that a book's distribution wrote, in the order of the draw.
async fn lay_ready(stand: &Stand, book_id: Uuid) -> anyhow::Result<()> {
    sqlx::raw_sql("DROP TABLE IF EXISTS bench.audit; CREATE TABLE bench.audit (LIKE events)")
        .execute(&stand.pool)
        .await?;
    sqlx::query(
        "INSERT INTO bench.audit
         SELECT e.* FROM events e JOIN coupons c ON c.book_id = e.book_id AND c.code_key = e.code_key
         WHERE e.book_id = $1 AND e.kind = 'coupon_assigned' ORDER BY c.draw_key",
    )
    .bind(book_id)
    .execute(&stand.pool)
    .await?;
    sqlx::raw_sql("ANALYZE bench.audit").execute(&stand.pool).await?;
    Ok(())
}

/// Seconds to insert them for another book.
async fn insert(stand: &Stand, coupons: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    let inserted = sqlx::query(
        "INSERT INTO events (book_id, id, actor_kind, actor_id, job_id, kind, code_key, request_id, before, after)
         SELECT $1, uuid_v7(), actor_kind, actor_id, job_id, kind, code_key, request_id, before, after FROM bench.audit",
    )
    .bind(id::new())
    .execute(&stand.pool)
    .await?
    .rows_affected();
    let seconds = began.elapsed().as_secs_f64();
    ensure!(inserted == coupons as u64, "{inserted} rows were inserted");
    Ok(seconds)
}
