//! A large export while workers are killed, and its download while the API is: the file is complete and exact.

use std::io::Read;

use coupon_tests::{Client, size};
use flate2::read::MultiGzDecoder;
use futures_util::TryStreamExt;
use reqwest::Method;
use serde_json::json;

use super::{PATIENCE, Watched, kill_on_the_way};
use crate::{
    crash::Cluster,
    queue::id,
    truth::{self, Dice, report},
};

/// A reader of what a channel brings.
struct Pieces {
    receive: std::sync::mpsc::Receiver<Vec<u8>>,
    piece: std::collections::VecDeque<u8>,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.receive.recv() {
                Ok(piece) => self.piece = piece.into(),
                Err(_) => return Ok(0),
            }
        }
        self.piece.read(into)
    }
}

/// Asserts that a text has a line for each of so many codes, in their order, behind a header.
fn has_every_line(text: impl Read, rows: u32) {
    let mut lines = std::io::BufRead::lines(std::io::BufReader::with_capacity(1 << 20, text));
    let header = lines.next().expect("a header").unwrap();
    assert!(header.starts_with("code,state,"), "{header}");
    let mut code = String::new();
    for number in 1..=rows {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("it ends before line {number}"))
            .unwrap();
        code.clear();
        std::fmt::Write::write_fmt(&mut code, format_args!("C{number:08},unassigned,")).unwrap();
        assert!(line.starts_with(&code), "{line} instead of {code}");
    }
    assert!(lines.next().is_none(), "it goes on behind the last code");
}

/// Fetches the file from a byte on and gives the pieces away; ends early when `stop` says so. Gives the byte behind the last.
async fn fetch(
    client: &Client,
    path: &str,
    from: usize,
    mut take: impl FnMut(Vec<u8>),
    stop: impl Fn(usize) -> bool,
) -> usize {
    let request = client
        .request(Method::GET, path)
        .header("Accept-Encoding", "identity");
    let response = request
        .header("Range", format!("bytes={from}-"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(response.status(), 206);
    let mut pieces = response.bytes_stream();
    let mut at = from;
    while !stop(at) {
        match pieces.try_next().await {
            Ok(Some(piece)) => {
                at += piece.len();
                take(piece.to_vec());
            }
            Ok(None) | Err(_) => break,
        }
    }
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_killed_and_a_download_that_is_cut_give_the_whole_file() {
    let mut dice = Dice::new("killed export");
    let rows: u32 = size(100_000, 10_000_000);
    let kills = size(2, 10);
    let cluster = Cluster::start(0).await;
    let api = Watched::api(&cluster.url).await;
    let mut worker = Watched::worker(&cluster.url).await;
    let client = cluster.client(&api.process.url());
    let book_id = client.book(json!({})).await;
    sqlx::query(
        "INSERT INTO coupons (book_id, code_key, draw_key, redemptions_allowed)
         SELECT $1, 'C' || lpad(n::text, 8, '0'), n, 1 FROM generate_series(1, $2) AS n",
    )
    .bind(book_id)
    .bind(i32::try_from(rows).unwrap())
    .execute(&cluster.pool)
    .await
    .unwrap();

    let job = client
        .post("/v1/exports", json!({ "kind": "coupons", "book_id": book_id }))
        .await;
    let job_id = id(&job.expect(202));
    worker = kill_on_the_way(&cluster, &mut dice, worker, job_id, i64::from(rows), kills).await;
    let job = client.job_end_within(&job_id.to_string(), PATIENCE).await;
    assert_eq!(
        (&job["state"], &job["result"]["rows"]),
        (&json!("succeeded"), &json!(rows)),
        "{job}"
    );
    worker.stayed_small("the worker that ended the export");

    // The text, with a download that is cut where the API is killed and goes on from there with the next one.
    let path = format!("/v1/exports/{job_id}/file");
    let length = usize::try_from(job["result"]["bytes"].as_u64().unwrap()).unwrap();
    let (send, receive) = std::sync::mpsc::sync_channel(16);
    let reader = std::thread::spawn(move || {
        has_every_line(
            Pieces {
                receive,
                piece: Default::default(),
            },
            rows,
        )
    });
    let take =
        |piece| tokio::task::block_in_place(|| send.send(piece).expect("the file is as it should be so far"));
    let cut = length / 4 + dice.below(length / 2);
    let at = fetch(&client, &path, 0, &take, |at| at >= cut).await;
    assert!(at < length, "cut too late to show anything");
    api.stayed_small("an API that is killed while a file is fetched");
    api.process.kill().await;
    let api = Watched::api(&cluster.url).await;
    let client = cluster.client(&api.process.url());
    assert_eq!(fetch(&client, &path, at, &take, |_| false).await, length);
    drop(send);
    reader.join().expect("the file is exact");

    // The packed file, at once.
    let request = client.request(Method::GET, &format!("{path}?format=gzip"));
    let mut pieces = request.send().await.expect("an answer").bytes_stream();
    let (send, receive) = std::sync::mpsc::sync_channel(16);
    let packed = Pieces {
        receive,
        piece: Default::default(),
    };
    let reader = std::thread::spawn(move || has_every_line(MultiGzDecoder::new(packed), rows));
    while let Some(piece) = pieces.try_next().await.unwrap() {
        tokio::task::block_in_place(|| {
            send.send(piece.to_vec())
                .expect("the file is as it should be so far")
        });
    }
    drop(send);
    reader.join().expect("the packed file is exact");

    api.stayed_small("an API that sent the file twice");
    report(&format!(
        "{rows} rows, {kills} workers killed, download cut at byte {at} of {length}"
    ));
    truth::all_jobs_end(&cluster.pool, PATIENCE).await;
    cluster.stop(vec![worker.process, api.process]).await;
}
