//! P9: the sweep of lapsed locks, against one statement that does it all.

use std::time::{Duration, Instant};

use coupon_core::{coupon::sweep, db, id};

use crate::{
    Effort,
    report::{Line, Report, median},
    stand::Stand,
};

/// P9: 100,000 lapsed locks.
pub(crate) async fn measure(stand: &mut Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    // The service would sweep beside what is measured.
    stand.stop_service().await?;
    let count: i32 = if effort.quick { 20_000 } else { 100_000 };
    let (mut limits, mut rates, mut longest) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        lapse(stand, count).await?;
        let begun = Instant::now();
        let mut tx = stand.db.begin().await?;
        sqlx::query(sweep::SWEEP)
            .bind(i64::from(count))
            .execute(&mut *tx)
            .await?;
        db::commit(tx).await?;
        limits.push(f64::from(count) / begun.elapsed().as_secs_f64());

        lapse(stand, count).await?;
        let begun = Instant::now();
        let mut slowest = Duration::ZERO;
        loop {
            let mut tx = stand.db.begin().await?;
            let statement = Instant::now();
            let swept = sweep::sweep_lapsed_locks(&mut tx).await?;
            slowest = slowest.max(statement.elapsed());
            db::commit(tx).await?;
            if swept == 0 {
                break;
            }
        }
        rates.push(f64::from(count) / begun.elapsed().as_secs_f64());
        longest.push(slowest.as_secs_f64() * 1_000.0);
    }
    let (rate, limit, slowest) = (median(rates), median(limits), median(longest));
    report.add(Line {
        figure: "P9",
        what: format!("sweep of {count} lapsed locks"),
        measured: format!("{rate:.0} locks/s, longest statement {slowest:.0} ms"),
        limit: format!("{limit:.0} locks/s in one statement"),
        result: format!("{:.2} ×", rate / limit),
        must: "≥ 0.7 ×, ≤ 50 ms",
        met: rate / limit >= 0.7 && slowest <= 50.0,
    });
    stand.start_service().await
}

/// Coupons whose locks all lapse in the same moment.
async fn lapse(stand: &Stand, count: i32) -> anyhow::Result<()> {
    sqlx::query(
        "INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed, state, assigned_user_id, assigned_at,
                              locked_until, lock_token_hash, lock_renewals_left)
         SELECT $1, 'L' || n, n, 1, 'locked', $2, now(), now(), '\\x00', 3 FROM generate_series(1, $3) AS n",
    )
    .bind(id::new()) // of a book of their own
    .bind(stand.users[0])
    .bind(count)
    .execute(&stand.pool)
    .await?;
    // What the sweep before left dead is not this one's to clear away.
    sqlx::query("VACUUM coupons").execute(&stand.pool).await?;
    stand.settle().await?;
    Ok(())
}
