//! P6: lock and redeem over HTTP, against pgbench running the same two statements on the same rows.

use std::time::Duration;

use anyhow::bail;
use coupon_core::coupon::{lock, redeem};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    Effort, limit,
    load::{self, request},
    report::{Line, Report, median},
    stand::Stand,
};

/// Tills at once.
const CLIENTS: usize = 16;

/// Coupons of each client: more than it can redeem in a round.
const COUPONS: usize = 40_000;

/// P6.
pub(crate) async fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let (mut limits, mut rates, mut p99s) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let book_id = stand.book(json!({})).await?;
        assign_all(stand, book_id).await?;
        stand.settle().await?;
        let script = statements(book_id);
        // Two statements make one transaction of pgbench's script; each is one request of the service.
        let tps = limit::pgbench(&stand.bin_dir, &stand.url, CLIENTS, effort.seconds, &script).await?;
        limits.push(tps * 2.0);

        let book_id = stand.book(json!({})).await?;
        assign_all(stand, book_id).await?;
        stand.settle().await?;
        let time = Duration::from_secs(effort.seconds);
        let sample = load::run(stand.address, CLIENTS, time, |number| {
            lock_and_redeem(stand, book_id, number)
        })
        .await?;
        if sample.statuses.len() > 1 {
            bail!("something was refused: {:?}", sample.statuses);
        }
        rates.push(sample.rate());
        p99s.push(sample.quantile(0.99));
    }
    let (rate, limit, p99) = (median(rates), median(limits), median(p99s));
    report.add(Line {
        figure: "P6",
        what: format!("locks and redemptions, {CLIENTS} connections"),
        measured: format!("{rate:.0} requests/s, p99 {p99:.1} ms"),
        limit: format!("{limit:.0} statements/s by pgbench"),
        result: format!("{:.2} ×", rate / limit),
        must: "≥ 0.5 ×",
        met: rate / limit >= 0.5,
    });
    Ok(())
}

/// Coupons that the clients' users hold: of client n those from n × [`COUPONS`].
async fn assign_all(stand: &Stand, book_id: Uuid) -> anyhow::Result<()> {
    sqlx::query(
        "INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed, state, assigned_user_id, assigned_at)
         SELECT $1, 'T' || n, n, 1, 'assigned', ($2::uuid[])[1 + n / $3], now() FROM generate_series(0, $4) AS n",
    )
    .bind(book_id)
    .bind(&stand.users[..CLIENTS])
    .bind(i32::try_from(COUPONS)?)
    .bind(i32::try_from(CLIENTS * COUPONS - 1)?)
    .execute(&stand.pool)
    .await?;
    sqlx::raw_sql("ANALYZE coupons").execute(&stand.pool).await?;
    Ok(())
}

fn lock_and_redeem(stand: &Stand, book_id: Uuid, number: usize) -> load::Script {
    let key = stand.key.clone();
    let user = stand.users[number];
    let mut next = number * COUPONS;
    let mut to_redeem = None;
    Box::new(move |last| {
        let headers = [("X-Api-Key", key.as_str())];
        if let Some(code) = to_redeem.take() {
            let locked: Value = serde_json::from_slice(&last?.body).ok()?;
            let body = json!({ "book_id": book_id, "user_id": user, "lock_token": locked["lock_token"] });
            return Some(request(
                "POST",
                &format!("/v1/coupons/redeem/{code}"),
                &headers,
                &body.to_string(),
            ));
        }
        let code = format!("T{next}");
        next += 1;
        let body = json!({ "book_id": book_id, "user_id": user });
        let bytes = request(
            "POST",
            &format!("/v1/coupons/lock/{code}"),
            &headers,
            &body.to_string(),
        );
        to_redeem = Some(code);
        Some(bytes)
    })
}

/// The service's statements as a script of pgbench, with what the service binds put in.
fn statements(book_id: Uuid) -> String {
    let book = format!("'{book_id}'::uuid");
    let holder = "NULL::uuid";
    // As long as a hash and different for every coupon, as tokens are.
    let hash = "decode(md5(:key) || md5(:key), 'hex')";
    let actor = ("'api_key'", format!("'{}'::uuid", Uuid::from_u128(7)));
    let take = fill_in(
        lock::TAKE,
        &[&book, ":key", holder, hash, actor.0, &actor.1, "'bench'"],
    );
    let spend = fill_in(
        redeem::SPEND,
        &[
            &book,
            ":key",
            holder,
            hash,
            "gen_random_uuid()",
            &actor.1,
            "'{}'::jsonb",
            actor.0,
            "'bench'",
        ],
    );
    format!(
        "\\set n :n + 1\n\\set at :client_id * {COUPONS} + :n\n{};\n{};\n",
        take.replace(":key", "('T' || :at)"),
        spend.replace(":key", "('T' || :at)")
    )
}

/// Puts values where a statement has `$1`, `$2` …, the highest number first so that `$1` does not meet `$10`.
fn fill_in(sql: &str, values: &[&str]) -> String {
    let mut text = sql.to_owned();
    for (index, value) in values.iter().enumerate().rev() {
        text = text.replace(&format!("${}", index + 1), value);
    }
    text
}
