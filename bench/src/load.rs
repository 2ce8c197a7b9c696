//! A closed loop of HTTP/1.1 requests over kept connections: as light as it can be, since it shares the machine with
//! what it measures.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// What a load did.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Of the good answers, in microseconds, sorted.
    pub latencies: Vec<u32>,
    /// From the first request to the last answer.
    pub seconds: f64,
}

impl Sample {
    /// Good answers per second.
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }

    /// A quantile of the latencies, in milliseconds.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * q).round() as usize;
        self.latencies
            .get(at)
            .map_or(f64::NAN, |micros| f64::from(*micros) / 1_000.0)
    }
}

/// A connection that asks one thing after another.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(8 * 1024),
        })
    }

    pub(crate) async fn ask(&mut self, request: &[u8]) -> anyhow::Result<Answer> {
        self.send(request).await?;
        self.answer().await
    }

    /// Sends a part of a request.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Waits for the answer to a request that was sent.
    pub(crate) async fn answer(&mut self) -> anyhow::Result<Answer> {
        self.buffer.clear();
        let head = loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed");
            }
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
        };
        let text = std::str::from_utf8(&self.buffer[..head])?;
        let status = text.get(9..12).context("no status")?.parse()?;
        let length: usize = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(Ok(0), |(_, value)| value.trim().parse())?;
        while self.buffer.len() < head + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed");
            }
        }
        Ok(Answer {
            status,
            body: self.buffer[head..head + length].to_vec(),
        })
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// A request's bytes.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: bench\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    text.push_str("\r\n");
    text.push_str(body);
    text.into_bytes()
}

/// What one connection does: given the last answer, the next request, or `None` at the end of its work.
pub(crate) type Script = Box<dyn FnMut(Option<&Answer>) -> Option<Vec<u8>> + Send>;

/// Runs a script on each of `connections` connections until the time is over; an answer is good if its status is 200.
pub(crate) async fn run(
    address: SocketAddr,
    connections: usize,
    time: Duration,
    script: impl Fn(usize) -> Script,
) -> anyhow::Result<Sample> {
    let mut open = Vec::with_capacity(connections);
    for number in 0..connections {
        open.push((Connection::open(address).await?, script(number)));
    }
    let begun = Instant::now();
    let until = begun + time;
    let mut tasks = JoinSet::new();
    for (mut connection, mut script) in open {
        tasks.spawn(async move {
            let mut statuses = BTreeMap::<u16, u64>::new();
            let mut latencies = Vec::new();
            let mut last = None;
            while Instant::now() < until {
                let Some(request) = script(last.as_ref()) else {
                    break;
                };
                let asked = Instant::now();
                let answer = connection.ask(&request).await?;
                if answer.status == 200 {
                    latencies.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
                *statuses.entry(answer.status).or_default() += 1;
                last = Some(answer);
            }
            anyhow::Ok((statuses, latencies))
        });
    }
    let mut sample = Sample::default();
    while let Some(done) = tasks.join_next().await {
        let (statuses, latencies) = done??;
        for (status, count) in statuses {
            *sample.statuses.entry(status).or_default() += count;
        }
        sample.latencies.extend(latencies);
    }
    sample.seconds = begun.elapsed().as_secs_f64();
    sample.latencies.sort_unstable();
    if sample.latencies.is_empty() {
        bail!("no good answer: {:?}", sample.statuses);
    }
    Ok(sample)
}
