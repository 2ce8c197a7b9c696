//! What the figures of many codes share: codes without a database, the limit TARGET, and the end of a job.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

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
pub(crate) const PATTERN: Given<'static> = Given {
    pattern: "SPRING-****-****-****",
    alphabet: Some("unambiguous"),
    check: false,
};

/// Numbers that are permuted at once.
const AT_ONCE: usize = 8_192;

/// Bytes sent to the server at once.
const SEND: usize = 128 << 10;

/// Spells `count` different codes in no order, and gives each to `take`; `key` chooses which.
///
/// # Errors
/// Those of `take`.
pub(crate) fn spell(
    key: u8,
    count: u32,
    mut take: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let pattern = Pattern::parse(PATTERN, false)?;
    let permutation = Permutation::new(&[key; 16], pattern.space());
    let mut speller = pattern.speller();
    let mut numbers = Vec::with_capacity(AT_ONCE);
    let mut next = 0;
    while next < count {
        let end = count.min(next + u32::try_from(AT_ONCE)?);
        numbers.clear();
        numbers.extend((next..end).map(u128::from));
        permutation.apply_all(&mut numbers);
        for number in &numbers {
            let (code_key, shown) = speller.spell(*number);
            take(shown.unwrap_or(code_key))?;
        }
        next = end;
    }
    Ok(())
}

/// Waits until a job has succeeded.
///
/// # Errors
/// When it ends otherwise.
pub(crate) async fn succeeded(stand: &Stand, job: &Value) -> anyhow::Result<()> {
    let path = format!("/v1/jobs/{}", job["id"].as_str().context("no id")?);
    loop {
        let job = stand.ask("GET", &path, "").await?;
        match job["state"].as_str() {
            Some("succeeded") => return Ok(()),
            Some("queued" | "running") => tokio::time::sleep(Duration::from_millis(10)).await,
            _ => bail!("{job}"),
        }
    }
}

/// A figure of codes that come into a book.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// The share of TARGET that is to be reached.
    pub(crate) must: (&'static str, f64),
}

/// Brings in 1 and 10 million codes with `bring`, which gives their book and the seconds that it took, against TARGET for
/// the same rows. The many take one turn.
///
/// # Errors
/// When the service or the database fails.
pub(crate) async fn against_copy(
    stand: &Stand,
    effort: Effort,
    report: &mut Report,
    figure: &Figure,
    bring: impl AsyncFn(&Stand, u32) -> anyhow::Result<(Uuid, f64)>,
) -> anyhow::Result<()> {
    let sizes = if effort.quick {
        [(100_000, effort.rounds), (1_000_000, 1)]
    } else {
        [(1_000_000, effort.rounds), (10_000_000, 1)]
    };
    for (count, rounds) in sizes {
        let (mut brought, mut copied) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            stand.settle().await?;
            let (book_id, seconds) = bring(stand, count).await?;
            brought.push(f64::from(count) / seconds);
            copied.push(f64::from(count) / copy(stand, book_id).await?);
            stand.forget_coupons().await?;
        }
        let (rate, limit) = (median(brought), median(copied));
        let turns = if rounds == 1 {
            "one round".to_owned()
        } else {
            format!("median of {rounds} rounds")
        };
        report.add(Line {
            figure: figure.name,
            what: format!("{}, {count} codes, {turns}", figure.what),
            measured: format!("{rate:.0} codes/s"),
            limit: format!("{limit:.0} rows/s, COPY of the same rows unsorted"),
            result: format!("{:.2} ×", rate / limit),
            must: figure.must.0,
            met: rate / limit >= figure.must.1,
        });
    }
    Ok(())
}

/// TARGET: the seconds that COPY takes for a book's rows as another book's, unsorted, in the binary format, into the same
/// table with all its indexes.
///
/// Unsorted is the order of a hash of the codes. It must be that of no index: written in the order of their draw keys, the
/// same rows take a fifth less.
///
/// # Errors
/// When the database fails.
async fn copy(stand: &Stand, from: Uuid) -> anyhow::Result<f64> {
    const COLUMNS: &str = "draw_key, created_at, updated_at, redemptions_allowed, state, code_key, code";
    let to = stand.book(json!({})).await?;
    let mut connection = stand.pool.acquire().await?;
    let connection: &mut PgConnection = &mut connection;
    let select = format!(
        "COPY (SELECT '{to}'::uuid, {COLUMNS} FROM coupons WHERE book_id = '{from}' ORDER BY hashtextextended(code_key, 0)) TO STDOUT (FORMAT binary)"
    );
    let mut file = tempfile::tempfile()?;
    {
        let mut stream = connection.copy_out_raw(&select).await?;
        while let Some(piece) = stream.try_next().await? {
            file.write_all(&piece)?;
        }
    }
    std::io::Seek::rewind(&mut file)?;
    stand.settle().await?;
    let began = Instant::now();
    let insert = format!("COPY coupons (book_id, {COLUMNS}) FROM STDIN (FORMAT binary)");
    let mut copy = connection.copy_in_raw(&insert).await?;
    let mut piece = vec![0; SEND];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            break;
        }
        copy.send(&piece[..read]).await?;
    }
    copy.finish().await?;
    Ok(began.elapsed().as_secs_f64())
}
