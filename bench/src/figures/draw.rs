//! P7: what a draw costs, by the size of the book and beside an old snapshot.

use std::time::Instant;

use anyhow::Context;
use coupon_core::{
    coupon::assign,
    db, id,
    job::payload::{AssignCoupons, Wanted},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    Effort,
    report::{Line, Report, median},
    stand::Stand,
};

/// Draws of one transaction, as a busy worker makes them.
const BATCH: usize = 200;

/// P7: CPU of the server per draw out of 1 and 10 million codes against 10,000; the rate after 100,000 draws with an
/// old snapshot open against fresh.
pub(crate) async fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    const SMALL: u32 = 10_000;
    let large: &[u32] = if effort.quick {
        &[200_000]
    } else {
        &[1_000_000, 10_000_000]
    };
    let mut per_size = Vec::new();
    for size in std::iter::once(&SMALL).chain(large) {
        let mut books = Vec::new();
        let mut costs = Vec::new();
        for _ in 0..effort.rounds {
            // A large book is drawn from in every round, a small one would run dry.
            let book_id = match books.last() {
                Some(book_id) if *size > SMALL => *book_id,
                _ => {
                    let book_id = stand.book(json!({})).await?;
                    stand.fill(book_id, *size).await?;
                    stand.settle().await?;
                    book_id
                }
            };
            books.push(book_id);
            costs.push(draws(stand, book_id, SMALL as usize / 2).await?.cpu_micros);
        }
        per_size.push((*size, median(costs)));
    }
    let small = per_size[0].1;
    for (size, cost) in &per_size[1..] {
        report.add(Line {
            figure: "P7",
            what: format!("CPU of the server for a draw out of {size} codes"),
            measured: format!("{cost:.1} µs"),
            limit: format!("{small:.1} µs out of {SMALL}"),
            result: format!("{:.2} ×", cost / small),
            must: "≤ 1.3 ×",
            met: cost / small <= 1.3,
        });
    }

    let draws_before: usize = if effort.quick { 20_000 } else { 100_000 };
    let book_id = stand.book(json!({})).await?;
    stand
        .fill(book_id, u32::try_from(draws_before * 2)? + 50_000)
        .await?;
    stand.settle().await?;
    draws(stand, book_id, 2_000).await?; // every connection and page warm
    let fresh = draws(stand, book_id, 10_000).await?.rate;
    let mut old = stand.pool.acquire().await?;
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM bench.floor")
        .execute(&mut *old)
        .await?;
    draws(stand, book_id, draws_before).await?;
    let late = draws(stand, book_id, 10_000).await?.rate;
    sqlx::raw_sql("ROLLBACK").execute(&mut *old).await?;
    report.add(Line {
        figure: "P7",
        what: format!("draws after {draws_before} draws with an old snapshot open"),
        measured: format!("{late:.0} draws/s"),
        limit: format!("{fresh:.0} draws/s fresh"),
        result: format!("{:.2} ×", late / fresh),
        must: "≥ 0.8 ×",
        met: late / fresh >= 0.8,
    });
    Ok(())
}

struct Cost {
    cpu_micros: f64,
    rate: f64,
}

/// Draws coupons through the use case of the worker, in batches of [`BATCH`].
async fn draws(stand: &Stand, book_id: Uuid, count: usize) -> anyhow::Result<Cost> {
    let actor = coupon_core::caller::Actor {
        kind: coupon_core::caller::ActorKind::System,
        id: None,
    };
    // Somebody else each time, as in a campaign.
    let users = stand.more_users(count).await?;
    let (mut seconds, mut cpu) = (0.0, 0.0);
    for batch in 0..count / BATCH {
        let requests: Vec<assign::Request> = (0..BATCH)
            .map(|number| {
                let request = AssignCoupons {
                    book_id,
                    user_id: users[batch * BATCH + number],
                    wanted: Wanted::Draw(1),
                    actor,
                    as_user: false,
                    request_id: None,
                };
                (id::new(), request)
            })
            .collect();
        let mut tx = stand.db.begin().await?;
        let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&mut *tx)
            .await?;
        let (begun, before) = (Instant::now(), cpu_seconds(pid)?);
        let answers = assign::assign(&mut tx, book_id, &requests).await?;
        db::commit(tx).await?;
        seconds += begun.elapsed().as_secs_f64();
        cpu += cpu_seconds(pid)? - before;
        anyhow::ensure!(answers.iter().all(Result::is_ok), "the book ran dry");
    }
    Ok(Cost {
        cpu_micros: cpu * 1e6 / count as f64,
        rate: count as f64 / seconds,
    })
}

/// CPU that a process has used, by the scheduler's own account (nanoseconds).
fn cpu_seconds(pid: i32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))
        .context("the scheduler's account of a process cannot be read here")?;
    let nanos: f64 = text.split(' ').next().context("no figure")?.parse()?;
    Ok(nanos / 1e9)
}
