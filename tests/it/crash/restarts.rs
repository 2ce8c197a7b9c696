//! A rolling restart: every process ends in good order and another takes its place.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use coupon_tests::{
    Client, SECRET,
    history::{Call, Deed, History, Saw},
    process::Process,
    size,
};
use serde_json::json;
use tokio::sync::watch;
use uuid::Uuid;

use super::{Cluster, PATIENCE};
use crate::truth::{Dice, report};

#[tokio::test(flavor = "multi_thread")]
async fn restarting_every_process_in_turn_fails_no_request() {
    let mut dice = Dice::new("rolling restart");
    let rounds = size(3, 50);
    let cluster = Cluster::start(20_000).await;
    // Two of them behind a client that asks the other when one is going; each keeps its address.
    let listen = [0, 1].map(|_| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    });
    let environment = [
        ("COUPONBOOK_DATABASE_URL", cluster.url.as_str()),
        ("COUPONBOOK_TOKEN_SECRET", SECRET),
        ("COUPONBOOK_RATE_LIMITS", "off"),
        ("COUPONBOOK_LOG", "warn"),
    ];
    let start = async |index: usize| Process::start(&["api", "--listen", &listen[index]], &environment).await;
    let mut apis = vec![start(0).await, start(1).await];
    let mut workers = vec![
        Process::worker(&cluster.url).await,
        Process::worker(&cluster.url).await,
    ];
    let clients = [0, 1].map(|index| cluster.client(&apis[index].url()).with("Connection", "close"));
    let book_id = cluster.book(&clients[0], 5_000 * rounds).await;

    let history = Arc::new(History::default());
    let noted = Arc::clone(&history);
    let zero = Instant::now();
    let (stop, mut stopped) = watch::channel(false);
    let mut pick = dice.fork();
    let users = cluster.users.clone();
    let loading = tokio::spawn(async move {
        let mut requests = Vec::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stopped.wait_for(|stop| *stop) => break,
            }
            let deed = Deed::Assign(book_id, users[pick.below(users.len())], 1);
            requests.push(tokio::spawn(ask_either(
                clients.clone(),
                requests.len(),
                deed,
                zero,
            )));
        }
        let mut failed = Vec::new();
        for request in requests {
            match request.await.expect("a request") {
                Ok(call) => noted.note(call),
                Err(why) => failed.push(why),
            }
        }
        failed
    });
    let mut slowest = Duration::ZERO;
    let mut ends_well = async |process: Process| {
        let since = Instant::now();
        assert_eq!(process.terminate().await.code(), Some(0));
        slowest = slowest.max(since.elapsed());
    };
    for _ in 0..rounds {
        let done = cluster.finished().await as usize;
        cluster.progress(done + dice.below(100)).await;
        for index in 0..2 {
            ends_well(apis.remove(0)).await;
            apis.push(start(index).await);
            ends_well(workers.remove(0)).await;
            workers.push(Process::worker(&cluster.url).await);
        }
    }
    report(&format!(
        "{rounds} rounds, each process had ended after {slowest:?} at most"
    ));
    stop.send_replace(true);
    let failed = loading.await.expect("the load");
    assert!(failed.is_empty(), "{failed:#?}");
    cluster.settles(&history).await;
    let charged: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE attempts > 0")
        .fetch_one(&cluster.pool)
        .await
        .unwrap();
    assert_eq!(charged, 0, "an end in good order is no crash");
    workers.extend(apis);
    cluster.stop(workers).await;
}

/// Asks one process and, while that takes no connections or says 503, the other, with one key; gives the call, or what no
/// client may see.
async fn ask_either(clients: [Client; 2], first: usize, deed: Deed, zero: Instant) -> Result<Call, String> {
    let key = Uuid::now_v7().to_string();
    let Deed::Assign(book_id, user_id, count) = deed else {
        unreachable!("the load is assigns")
    };
    let body = json!({ "book_id": book_id, "user_id": user_id, "count": count });
    let began = zero.elapsed();
    for client in clients.iter().cycle().skip(first % 2) {
        let keyed = client.with("Idempotency-Key", &key).with("X-Request-Id", &key);
        let request = keyed
            .request(reqwest::Method::POST, "/v1/coupons/assign")
            .json(&body);
        match keyed.try_send(request).await {
            Ok(answer) if answer.status == 202 => {
                return Ok(Call {
                    request_id: key,
                    deed,
                    began,
                    ended: zero.elapsed(),
                    saw: Saw::Done(answer.body),
                });
            }
            Ok(answer) if answer.status == 503 => {}
            Err(error) if error.is_connect() => {}
            Ok(answer) => return Err(format!("{} {}", answer.status, answer.body)),
            Err(error) => return Err(format!("{error:?}")),
        }
        if zero.elapsed() > began + PATIENCE {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err("neither has accepted it".to_owned())
}
