//! The server: connections in, requests to a Poem endpoint, and a clean end.
//!
//! Invariant: no client can hold on to anything without doing its part. Connections are counted, a head must be complete
//! within its time, a body must keep a minimum rate, an answer must be taken, an idle connection is closed, and at the
//! end every running request gets a bounded time to finish. Poem's own server has none of these (and no way in to
//! hyper's builder), so this one drives hyper itself and hands Poem the requests. HTTP/1.1 only: TLS and HTTP/2 belong
//! to the proxy in front.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::task::AtomicWaker;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use poem::{
    Endpoint, IntoEndpoint, IntoResponse, Request,
    http::{HeaderValue, header::CONNECTION, uri::Scheme},
    web::{LocalAddr, RemoteAddr},
};
use tokio::{
    net::{TcpListener, TcpStream, ToSocketAddrs},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use crate::wire::{GuardedBody, MeteredBody, Wire};

/// Bytes of a request's head; hyper answers 431 beyond.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Pause after `accept` fails, as it does while file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// At the end, a connection on which nothing has come yet gets so much longer: its first request may be on the way.
const UNBEGUN_GRACE: Duration = Duration::from_millis(500);

/// What a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel's queue.
    pub connections: usize,
    /// From the first byte (of a new connection: from its start) to the end of a request's head.
    pub head: Duration,
    /// Between requests on one connection.
    pub idle: Duration,
    /// Bytes per second of a request's body, on average while the service waits for it.
    pub body_rate: u32,
    /// Waiting for a body that is granted before the rate counts, and the most that a fast start can save up.
    pub body_grace: Duration,
    /// A client that takes no byte of its answer for so long is cut off.
    pub stalled: Duration,
    /// After the signal, a connection stays open so long for one more request, which is told that it was the last:
    /// closing a connection on which a client is just about to send would lose the request.
    pub farewell: Duration,
    /// From the signal to the end of the last request; then connections are cut.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            body_rate: 1_024,
            body_grace: Duration::from_secs(10),
            stalled: Duration::from_secs(30),
            farewell: Duration::from_secs(1),
            drain: Duration::from_secs(25), // below the 30 s that Kubernetes and systemd grant
        }
    }
}

/// What is known of one connection by its stream, its requests and the loop that drives it.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    /// Requests that are being answered: 0 or 1, more while an answer's end overlaps with the next request.
    pub(crate) running: AtomicUsize,
    /// Whether any byte has come.
    pub(crate) begun: AtomicBool,
    /// The stream, if it should look again once nothing is running: its deadline for the next request begins then.
    pub(crate) idle: AtomicWaker,
}

/// A bound listener, not yet serving.
pub struct Server {
    listener: TcpListener,
    limits: Limits,
}

impl Server {
    /// Binds; port 0 takes a free one.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind(address: impl ToSocketAddrs, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            limits,
        })
    }

    /// The address that it really listens on.
    ///
    /// # Errors
    /// If the operating system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` is done, then takes no more connections, lets each of those that stand have one more
    /// request ([`Limits::farewell`]) and waits for running requests, at most [`Limits::drain`]. Returns how many connections had to be cut.
    pub async fn serve<E>(self, endpoint: E, shutdown: impl Future<Output = ()>) -> usize
    where
        E: IntoEndpoint,
        E::Endpoint: 'static,
    {
        let Self { listener, limits } = self;
        let endpoint = Arc::new(endpoint.into_endpoint());
        let slots = Arc::new(Semaphore::new(limits.connections));
        let (stop, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        let start = |connections: &mut JoinSet<()>, slot: OwnedSemaphorePermit, (stream, peer)| {
            let driven = drive(stream, peer, endpoint.clone(), limits, stopped.clone());
            connections.spawn(async move {
                driven.await;
                drop(slot);
            });
        };
        loop {
            let accepted = async {
                let slot = slots
                    .clone()
                    .acquire_owned()
                    .await
                    .expect("the semaphore is never closed");
                (slot, listener.accept().await)
            };
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                (slot, accepted) = accepted => match accepted {
                    Ok(accepted) => start(&mut connections, slot, accepted),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        // Who is in the kernel's queue has been told that the connection stands; closing now would reset it. Asked of
        // the kernel itself: the runtime may not have heard of the latest yet.
        if let Ok(listener) = listener.into_std() {
            while let Ok(slot) = slots.clone().try_acquire_owned()
                && let Ok((stream, peer)) = listener.accept()
            {
                let stream = stream
                    .set_nonblocking(true)
                    .and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    start(&mut connections, slot, (stream, peer));
                }
            }
        }
        stop.send_replace(true);
        let drained = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(limits.drain, drained).await;
        let cut = connections.len();
        if cut > 0 {
            tracing::warn!(cut, "connections were cut at the end of the drain");
        }
        connections.shutdown().await;
        cut
    }
}

/// One connection from its start to its end.
async fn drive<E: Endpoint + 'static>(
    stream: TcpStream,
    peer: SocketAddr,
    endpoint: Arc<E>,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
) {
    // Answers are written whole; Nagle's algorithm would only hold back their last packet.
    let _ = stream.set_nodelay(true);
    let Ok(local) = stream.local_addr() else { return };
    let connection = Arc::new(Connection::default());
    let service = service_fn({
        let (connection, stopped) = (connection.clone(), stopped.clone());
        move |request: hyper::Request<Incoming>| {
            let stopped = stopped.clone();
            let guard = Running::begin(&connection);
            let endpoint = endpoint.clone();
            async move {
                let addresses = (LocalAddr(local.into()), RemoteAddr(peer.into()), Scheme::HTTP);
                let mut request = Request::from((request, addresses.0, addresses.1, addresses.2));
                let body = request.take_body();
                request.set_body(MeteredBody::wrap(body, &limits));
                let answer = endpoint.call(request).await;
                let response = answer.map_or_else(|error| error.into_response(), IntoResponse::into_response);
                let mut response = hyper::Response::from(response);
                if *stopped.borrow() {
                    response
                        .headers_mut()
                        .insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| GuardedBody::new(body, guard)))
            }
        }
    });
    let wire = TokioIo::new(Wire::new(stream, connection.clone(), &limits));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None) // hyper's would also end an idle connection; the wire knows the difference
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(wire, service);
    let mut served = std::pin::pin!(served);
    let stopped = async move { drop(stopped.wait_for(|stopped| *stopped).await) };
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = stopped => {
            let begun = connection.begun.load(Ordering::Acquire);
            let grace = if begun { limits.farewell } else { limits.farewell + UNBEGUN_GRACE };
            match tokio::time::timeout(grace, &mut served).await {
                Ok(ended) => ended,
                Err(_) => {
                    served.as_mut().graceful_shutdown(); // closes an idle connection, and a busy one after its answer
                    served.await
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Counts a request as running until its answer's body is dropped.
pub(crate) struct Running(Arc<Connection>);

impl Running {
    fn begin(connection: &Arc<Connection>) -> Self {
        connection.running.fetch_add(1, Ordering::AcqRel);
        Self(connection.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
        self.0.idle.wake();
    }
}
