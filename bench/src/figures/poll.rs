//! P5: polling a job, against a server on the same library that says hello.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::Context;
use poem::{
    Route, Server, get, handler,
    listener::{Acceptor, Listener, TcpListener},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};
use uuid::Uuid;

use crate::{
    Effort,
    load::{self, request},
    report::{Line, Report, median},
    stand::Stand,
};

/// Connections that poll.
const CONNECTIONS: usize = 64;

/// Jobs that are polled in turn.
const JOBS: usize = 1_000;

#[handler]
fn greet() -> &'static str {
    "hello"
}

/// The limit: as little as this library can do.
pub(crate) fn serve_hello() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let acceptor = TcpListener::bind("127.0.0.1:0").into_acceptor().await?;
        let address = acceptor.local_addr()[0].to_string();
        println!("{}", address.rsplit('/').next().unwrap_or_default());
        Server::new_with_acceptor(acceptor)
            .run(Route::new().at("/", get(greet)))
            .await?;
        Ok(())
    })
}

/// P5: GET /v1/jobs/{id} of a thousand jobs.
pub(crate) async fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> anyhow::Result<()> {
    let mut hello = Command::new(std::env::current_exe()?)
        .arg("hello")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(hello.stdout.take().context("piped")?).lines();
    let address = lines.next_line().await?.context("no address")?;
    let address: SocketAddr = address
        .parse()
        .with_context(|| format!("{address} is no address"))?;

    let jobs = jobs(stand).await?;
    let time = Duration::from_secs(effort.seconds);
    let (mut hellos, mut rates, mut p99s) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let bytes = request("GET", "/", &[], "");
        let script = |_| -> load::Script {
            let bytes = bytes.clone();
            Box::new(move |_| Some(bytes.clone()))
        };
        hellos.push(load::run(address, CONNECTIONS, time, script).await?.rate());

        let requests: Vec<Vec<u8>> = jobs
            .iter()
            .map(|id| request("GET", &format!("/v1/jobs/{id}"), &stand.headers(), ""))
            .collect();
        let script = |number: usize| -> load::Script {
            let requests = requests.clone();
            let mut next = number * requests.len() / CONNECTIONS;
            Box::new(move |_| {
                next += 1;
                Some(requests[next % requests.len()].clone())
            })
        };
        let sample = load::run(stand.address, CONNECTIONS, time, script).await?;
        rates.push(sample.rate());
        p99s.push(sample.quantile(0.99));
    }
    hello.kill().await?;
    let (rate, limit, p99) = (median(rates), median(hellos), median(p99s));
    report.add(Line {
        figure: "P5",
        what: format!("polls of {JOBS} jobs, {CONNECTIONS} connections"),
        measured: format!("{rate:.0} polls/s, p99 {p99:.1} ms"),
        limit: format!("{limit:.0} hellos/s"),
        result: format!("{:.2} ×", rate / limit),
        must: "≥ 0.25 ×, p99 ≤ 10 ms",
        met: rate / limit >= 0.25 && p99 <= 10.0,
    });
    Ok(())
}

/// Jobs as a backend that polls has them: some ended, some queued behind a worker that has not come to them yet.
async fn jobs(stand: &Stand) -> anyhow::Result<Vec<Uuid>> {
    let book_id = stand.book(json!({})).await?;
    stand.fill(book_id, 10_000).await?;
    let mut jobs = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        let body = json!({ "book_id": book_id, "user_id": stand.users[number % stand.users.len()] });
        let job = stand.ask("POST", "/v1/coupons/assign", &body.to_string()).await?;
        jobs.push(job["id"].as_str().context("no id")?.parse()?);
    }
    // A tenth still runs, as far as the ledger says.
    sqlx::query(
        "UPDATE jobs SET state = 'running', finished_at = NULL, started_at = now() WHERE id = ANY($1)",
    )
    .bind(&jobs[..JOBS / 10])
    .execute(&stand.pool)
    .await?;
    Ok(jobs)
}
