//! Clients that do not do their part, on real sockets, and the end of the server.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

use super::{Gate, app};
use crate::server::{Limits, Server};

/// Long enough never to be what a test waits for.
const LONG: Duration = Duration::from_secs(60);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(100);

fn patient() -> Limits {
    Limits {
        head: LONG,
        idle: LONG,
        body_grace: LONG,
        stalled: LONG,
        drain: LONG,
        ..Limits::default()
    }
}

struct Running {
    address: SocketAddr,
    gate: Arc<Gate>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<usize>,
}

impl Running {
    async fn start(limits: Limits) -> Self {
        let gate = Arc::new(Gate::default());
        let server = Server::bind("127.0.0.1:0", limits).await.unwrap();
        let address = server.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        let served = tokio::spawn(server.serve(app(&gate), stopped));
        Self {
            address,
            gate,
            stop,
            served,
        }
    }

    async fn send(&self, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }

    async fn stop(self) -> usize {
        self.stop.send(()).unwrap();
        within(self.served).await.unwrap()
    }
}

/// A test that would hang fails instead.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("this took too long")
}

/// Everything until the server closes.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let _ = within(stream.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// One answer with a `Content-Length`, the connection staying open.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    loop {
        let mut bytes = [0; 4096];
        let read = within(stream.read(&mut bytes)).await.unwrap();
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() == length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        assert!(read > 0, "closed after {text:?}");
    }
}

const LIST: &str = "GET /v1/books?limit=1 HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() {
    let server = Running::start(patient()).await;
    let mut stream = server.send(LIST).await;
    assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    stream.write_all(LIST.as_bytes()).await.unwrap();
    assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn who_does_not_finish_a_head_is_cut_on_the_first_and_on_later_requests() {
    let server = Running::start(Limits {
        head: SHORT,
        ..patient()
    })
    .await;
    for begun in ["", "GET /v1/books HTTP/1.1\r\nHost: x\r\nX-Slow"] {
        assert_eq!(read_all(&mut server.send(begun).await).await, "", "{begun}");
    }
    let mut kept = server.send(LIST).await;
    read_answer(&mut kept).await;
    kept.write_all(b"GET /v1").await.unwrap();
    assert_eq!(read_all(&mut kept).await, "");
}

#[tokio::test]
async fn who_drips_a_head_is_cut_too() {
    let server = Running::start(Limits {
        head: SHORT,
        ..patient()
    })
    .await;
    let mut stream = server.send("GET /v1/books HTTP/1.1\r\n").await;
    let dripped = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            if stream.write_all(b"X-Slow: 1\r\n").await.is_err() {
                break;
            }
        }
    };
    within(dripped).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let server = Running::start(Limits {
        idle: SHORT,
        ..patient()
    })
    .await;
    let mut idle = server.send(LIST).await;
    read_answer(&mut idle).await;
    assert_eq!(read_all(&mut idle).await, "");
}

#[tokio::test]
async fn a_long_answer_is_waited_for() {
    let server = Running::start(Limits {
        idle: SHORT,
        head: SHORT,
        ..patient()
    })
    .await;
    let mut polling = server.send("GET /v1/gate HTTP/1.1\r\nHost: x\r\n\r\n").await;
    within(server.gate.entered.notified()).await;
    // Another connection runs into the same limits in the meantime; the polling one must not.
    assert_eq!(read_all(&mut server.send("GET").await).await, "");
    server.gate.open.notify_one();
    assert!(read_answer(&mut polling).await.contains("through"));
}

#[tokio::test]
async fn a_body_must_keep_its_rate() {
    let server = Running::start(Limits {
        body_grace: SHORT,
        body_rate: 1_000_000,
        ..patient()
    })
    .await;
    let head =
        "POST /v1/books HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n";
    let answer = read_all(&mut server.send(&format!("{head}{{")).await).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("malformed_json"),
        "{answer}"
    );
}

#[tokio::test]
async fn who_takes_no_answer_is_cut() {
    let server = Running::start(Limits {
        stalled: SHORT,
        ..patient()
    })
    .await;
    let mut stream = server.send("GET /v1/stream HTTP/1.1\r\nHost: x\r\n\r\n").await;
    within(stream.read_u8()).await.unwrap();
    // The server's side ends while this side still holds the stream unread.
    server.stop.send(()).unwrap();
    assert_eq!(within(server.served).await.unwrap(), 0);
    drop(stream);
}

#[tokio::test]
async fn a_body_over_the_limit_without_a_length_is_refused_and_the_answer_arrives() {
    let server = Running::start(patient()).await;
    let head = "POST /v1/books HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let mut stream = server.send(head).await;
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x1_0000));
    for _ in 0..100 {
        stream.write_all(chunk.as_bytes()).await.unwrap(); // 6.5 MB, all of which must be taken
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("payload_too_large"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_that_no_handler_reads_is_taken_too_so_that_the_answer_arrives() {
    let server = Running::start(patient()).await;
    for (path, status) in [
        ("/v1/refusal", "403"),
        ("/v1/nothing", "404"),
        ("/v1/gate", "405"),
    ] {
        let length = 6_000_000;
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        let mut stream = server.send(&head).await;
        stream.write_all(&vec![b'x'; length]).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        stream.write_all(LIST.as_bytes()).await.unwrap();
        assert!(
            read_answer(&mut stream).await.starts_with("HTTP/1.1 200"),
            "the connection is clean afterwards"
        );
    }
}

#[tokio::test]
async fn who_asks_first_is_not_told_to_send_what_nobody_wants() {
    let server = Running::start(patient()).await;
    let head = "POST /v1/refusal HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n";
    let answer = read_all(&mut server.send(head).await).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[tokio::test]
async fn more_connections_than_allowed_wait_for_their_turn() {
    let server = Running::start(Limits {
        connections: 1,
        ..patient()
    })
    .await;
    let mut first = server
        .send("GET /v1/gate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    within(server.gate.entered.notified()).await;
    let mut second = server.send(LIST).await;
    let early = tokio::time::timeout(SHORT, second.read_u8()).await;
    assert!(early.is_err(), "the second was served beside the first");
    server.gate.open.notify_one();
    assert!(read_all(&mut first).await.contains("through"));
    assert!(read_answer(&mut second).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn the_end_waits_for_running_requests_and_closes_idle_connections() {
    let server = Running::start(patient()).await;
    let mut idle = server.send(LIST).await;
    read_answer(&mut idle).await;
    let fresh = server.send("").await;
    let mut running = server.send("GET /v1/gate HTTP/1.1\r\nHost: x\r\n\r\n").await;
    within(server.gate.entered.notified()).await;
    server.stop.send(()).unwrap();
    assert_eq!(read_all(&mut idle).await, "");
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "no new connections"
    );
    server.gate.open.notify_one();
    let answer = read_all(&mut running).await;
    assert!(
        answer.contains("through") && answer.contains("connection: close"),
        "{answer}"
    );
    assert_eq!(within(server.served).await.unwrap(), 0);
    drop(fresh);
}

#[tokio::test]
async fn who_connected_before_the_end_is_still_answered() {
    let server = Running::start(patient()).await;
    let mut early = server.send("").await;
    let mut idle = server.send(LIST).await;
    read_answer(&mut idle).await;
    server.stop.send(()).unwrap();
    assert_eq!(
        read_all(&mut idle).await,
        "",
        "the end has reached the connections"
    );
    early.write_all(LIST.as_bytes()).await.unwrap();
    assert!(read_all(&mut early).await.starts_with("HTTP/1.1 200"));
    assert_eq!(within(server.served).await.unwrap(), 0);
}

#[tokio::test]
async fn the_end_comes_even_if_a_request_does_not_end() {
    let server = Running::start(Limits {
        drain: SHORT,
        ..patient()
    })
    .await;
    let mut running = server.send("GET /v1/gate HTTP/1.1\r\nHost: x\r\n\r\n").await;
    within(server.gate.entered.notified()).await;
    assert_eq!(server.stop().await, 1);
    assert_eq!(read_all(&mut running).await, "");
}
