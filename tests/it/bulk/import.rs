//! A file with bad lines of every kind, sent while the API is killed and imported while workers are.

use coupon_core::{
    db::{self, Db, Role},
    import::sweep,
};
use coupon_tests::{Client, size};
use futures_util::stream;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{
    OVER_IDLE, PATIENCE, Watched, arrived_once, digest, kill_on_the_way,
    lines::{DISABLED, Expected, HEADER, HOLDER, Lines, MAX_HELD, OLD},
};
use crate::{
    crash::Cluster,
    queue::id,
    truth::{self, Dice, report},
};

/// Bytes sent at once.
const PIECE: usize = 64 << 10;

/// A file as the body of a request; with `stop_at` it stalls behind so many bytes, and says so.
fn body(seed: u64, lines: u64, stop_at: Option<(usize, oneshot::Sender<()>)>) -> reqwest::Body {
    let (send, receive) = mpsc::channel::<Vec<u8>>(4);
    std::thread::spawn(move || {
        let mut lines = Lines::new(seed, lines);
        let mut text = HEADER.to_owned();
        loop {
            let more = lines.write(&mut text);
            if text.len() >= PIECE || !more {
                // Whoever reads it may have gone.
                if send
                    .blocking_send(std::mem::take(&mut text).into_bytes())
                    .is_err()
                    || !more
                {
                    return;
                }
            }
        }
    });
    let pieces = stream::unfold(
        (receive, 0, stop_at),
        |(mut receive, sent, mut stop_at)| async move {
            if let Some((_, tell)) = stop_at.take_if(|(at, _)| sent >= *at) {
                let _ = tell.send(());
                std::future::pending::<()>().await;
            }
            let piece = receive.recv().await?;
            let sent = sent + piece.len();
            Some((Ok::<_, std::io::Error>(piece), (receive, sent, stop_at)))
        },
    );
    reqwest::Body::wrap_stream(pieces)
}

/// What is to come of a file, and its length in bytes.
fn read(seed: u64, lines: u64) -> (Expected, usize) {
    let mut file = Lines::new(seed, lines);
    let (mut text, mut bytes) = (String::new(), HEADER.len());
    while file.write(&mut text) {
        bytes += text.len();
        text.clear();
    }
    (file.expected(), bytes)
}

async fn count(cluster: &Cluster, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&cluster.pool).await.unwrap()
}

/// A book with codes of its own, and a limit.
async fn book(client: &Client) -> Uuid {
    let book_id = client.book(json!({ "max_assignments_per_user": MAX_HELD })).await;
    let old: Vec<String> = (0..OLD).map(|number| format!("OLD-{number}")).collect();
    client.codes(book_id, &old).await;
    book_id
}

async fn send(client: &Client, book_id: Uuid, body: reqwest::Body) -> Uuid {
    let path = format!("/v1/books/{book_id}/codes/import");
    id(&client.post_csv(&path, body).await.expect(202))
}

/// Begins to send the file and kills the API when about so much has been sent: nothing of it may count, and the sweep takes
/// what is left. Gives an API that is alive.
async fn cut(cluster: &Cluster, api: Watched, book_id: Uuid, file: (u64, u64), at: usize) -> Watched {
    let before = count(cluster, "SELECT count(*) FROM jobs").await;
    let client = cluster.client(&api.process.url());
    let (tell, told) = oneshot::channel();
    let request = client
        .request(Method::POST, &format!("/v1/books/{book_id}/codes/import"))
        .header("Content-Type", "text/csv")
        .body(body(file.0, file.1, Some((at, tell))));
    let sending = tokio::spawn(async move { client.try_send(request).await });
    told.await.expect("so much was sent");
    let kept = || {
        count(
            cluster,
            "SELECT count(*) FROM upload_chunks c JOIN uploads u ON u.id = c.upload_id WHERE completed_at IS NULL",
        )
    };
    truth::eventually("a part is kept", PATIENCE, kept, |chunks| *chunks > 0).await;
    api.stayed_small("an API that is killed");
    api.process.kill().await;
    assert!(sending.await.expect("sent").is_err(), "nobody can have answered");
    let left = count(cluster, "SELECT count(*) FROM jobs").await - before;
    assert_eq!(left, 0, "jobs of an upload that was cut");

    let db = Db::connect(&cluster.url, Role::Worker, 1).expect("a URL");
    sqlx::query("UPDATE uploads SET touched_at = now() - interval '11 minutes' WHERE completed_at IS NULL")
        .execute(db.pool())
        .await
        .unwrap();
    loop {
        let mut tx = db.begin().await.unwrap();
        let swept = sweep::sweep_dead_uploads(&mut tx).await.unwrap();
        db::commit(tx).await.unwrap();
        if swept == 0 {
            break;
        }
    }
    db.close().await;
    let left = "SELECT count(*) FROM uploads WHERE completed_at IS NULL";
    assert_eq!(count(cluster, left).await, 0, "uploads that were cut");
    Watched::api(&cluster.url).await
}

/// Asserts that a job came to what is in its file.
async fn came_to(cluster: &Cluster, client: &Client, book_id: Uuid, job: &Value, expected: &Expected) {
    let told = |reason: &str| expected.errors.iter().filter(|(_, told)| *told == reason).count();
    let (in_file, in_book) = (told("duplicate_in_file"), told("duplicate_in_book"));
    assert_eq!(job["state"], "partially_succeeded", "{job}");
    assert_eq!(
        job["result"],
        json!({
            "rows": expected.rows, "accepted": expected.accepted, "duplicate_in_file": in_file,
            "duplicate_in_book": in_book, "invalid": expected.errors.len() - in_file - in_book,
        })
    );
    let (mut cursor, mut at) = (String::new(), 0);
    loop {
        let path = format!("{}?limit=100{cursor}", job["links"]["errors"].as_str().unwrap());
        let page = client.get(&path).await.expect(200);
        for told in page["data"].as_array().unwrap() {
            let told = (told["line"].as_i64().unwrap(), told["reason"].as_str().unwrap());
            assert_eq!(Some(&told), expected.errors.get(at), "error number {at}");
            at += 1;
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(at, expected.errors.len(), "errors");
    let made: (i64, i64, i64) = sqlx::query_as(
        "SELECT count(*), coalesce(sum(substr(code_key, 2)::bigint), 0)::bigint, count(assigned_user_id)
         FROM coupons WHERE book_id = $1 AND code_key LIKE 'K%'",
    )
    .bind(book_id)
    .fetch_one(&cluster.pool)
    .await
    .unwrap();
    let held = MAX_HELD.min(expected.accepted);
    assert_eq!((made.0, made.1), (expected.accepted, expected.sum));
    let (counted, events): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT coalesce(sum(assigned_count), 0) FROM user_allowances WHERE book_id = $1),
                (SELECT count(*) FROM events WHERE book_id = $1 AND kind = 'coupon_assigned')",
    )
    .bind(book_id)
    .fetch_one(&cluster.pool)
    .await
    .unwrap();
    assert_eq!((made.2, counted, events), (held, held, held));
    arrived_once(&cluster.pool, book_id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_comes_to_the_same_end() {
    let mut dice = Dice::new("killed import");
    let seed = dice.below(usize::MAX) as u64;
    let lines: u64 = size(130_000, 10_000_000);
    let (cuts, kills) = size((1, 2), (3, 7));
    let (expected, bytes) = read(seed, lines);
    let cluster = Cluster::start(0).await;
    sqlx::query(
        "INSERT INTO users (id, email, name, disabled_at)
         SELECT gen_random_uuid(), email, 'A', CASE WHEN email = $2 THEN now() END FROM unnest(ARRAY[$1, $2]) AS e (email)",
    )
    .bind(HOLDER)
    .bind(DISABLED)
    .execute(&cluster.pool)
    .await
    .unwrap();
    let mut api = Watched::api(&cluster.url).await;
    let mut worker = Watched::worker(&cluster.url).await;

    // A tenth first: memory must not follow the length of the file.
    let client = cluster.client(&api.process.url());
    for lines in [lines / 10, lines] {
        let book_id = book(&client).await;
        let job_id = send(&client, book_id, body(seed, lines, None)).await;
        let job = client.job_end_within(&job_id.to_string(), PATIENCE).await;
        came_to(&cluster, &client, book_id, &job, &read(seed, lines).0).await;
        api.stayed_small(&format!("an API that took {lines} lines"));
        worker.stayed_small(&format!("a worker that imported {lines} lines"));
    }
    let untouched: Uuid = sqlx::query_scalar("SELECT id FROM books ORDER BY created_at DESC LIMIT 1")
        .fetch_one(&cluster.pool)
        .await
        .unwrap();

    let book_id = book(&client).await;
    // A chunk of text has a mebibyte, so that something is kept of each.
    for _ in 0..cuts {
        let at = (1 << 20) + PIECE + dice.below(bytes.saturating_sub((1 << 20) + 2 * PIECE));
        api = cut(&cluster, api, book_id, (seed, lines), at.min(bytes - PIECE)).await;
    }
    let client = cluster.client(&api.process.url());
    // Once in the middle of a step, which waits for the draw that is held here ...
    let mut holder = cluster.pool.acquire().await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut *holder).await.unwrap();
    sqlx::query("SELECT FROM draw_states WHERE book_id = $1 FOR UPDATE")
        .bind(book_id)
        .execute(&mut *holder)
        .await
        .unwrap();
    let job_id = send(&client, book_id, body(seed, lines, None)).await;
    truth::until(
        &cluster.pool,
        "a step waits",
        "SELECT EXISTS (SELECT FROM pg_stat_activity
             WHERE application_name LIKE 'couponbook-worker%' AND wait_event_type = 'Lock')",
    )
    .await;
    worker = worker.replace_worker(&cluster.url).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut *holder).await.unwrap();
    drop(holder);
    // ... and then at random moments between or in later ones.
    worker = kill_on_the_way(&cluster, &mut dice, worker, job_id, expected.rows, kills - 1).await;
    let job = client.job_end_within(&job_id.to_string(), PATIENCE).await;
    assert!(
        job["attempts"].as_i64() >= Some(1),
        "it was killed in a step: {job}"
    );
    came_to(&cluster, &client, book_id, &job, &expected).await;
    assert_eq!(
        digest(&cluster.pool, book_id).await,
        digest(&cluster.pool, untouched).await
    );
    api.stayed_small("the last API");
    worker.stayed_small("the last worker");
    report(&format!(
        "{lines} lines, {} bad, {cuts} uploads cut, {kills} workers killed, never {OVER_IDLE} MiB over idle, charged {} times",
        expected.errors.len(),
        job["attempts"]
    ));
    truth::all_jobs_end(&cluster.pool, PATIENCE).await;
    cluster.stop(vec![worker.process, api.process]).await;
}
