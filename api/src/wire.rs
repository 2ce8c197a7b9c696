//! The clocks of a connection: on its stream, on a request's body and on an answer's.
//!
//! Invariant: time counts only while the service waits for the client. While a request is being answered the stream has
//! no deadline for reading (a long poll may take its time); a body that nobody reads costs its sender nothing.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use hyper::body::{Frame, SizeHint};
use poem::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use crate::server::{Connection, Limits, Running};

/// What the stream waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaiting {
    /// The rest of a request's head.
    Head,
    /// The first byte of the next request.
    Request,
    /// Nothing: a request is being answered.
    Answer,
}

/// A stream that fails with `TimedOut` when the client does not do its part.
pub(crate) struct Wire {
    stream: TcpStream,
    connection: Arc<Connection>,
    limits: Limits,
    awaiting: Awaiting,
    reading: Pin<Box<Sleep>>,
    /// Runs while a write is pending.
    writing: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, connection: Arc<Connection>, limits: &Limits) -> Self {
        Self {
            stream,
            connection,
            limits: *limits,
            awaiting: Awaiting::Head,
            reading: Box::pin(sleep(limits.head)),
            writing: None,
        }
    }

    fn write<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let polled = write(Pin::new(&mut self.stream), context);
        if polled.is_ready() {
            self.writing = None;
            return polled;
        }
        let stalled = self.limits.stalled;
        let deadline = self.writing.get_or_insert_with(|| Box::pin(sleep(stalled)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.connection.idle.register(context.waker()); // before the look, so that no end is missed
        if this.connection.running.load(Ordering::Acquire) > 0 {
            this.awaiting = Awaiting::Answer;
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        if this.awaiting == Awaiting::Answer {
            this.awaiting = Awaiting::Request;
            this.reading.as_mut().reset(Instant::now() + this.limits.idle);
        }
        if Pin::new(&mut this.stream).poll_read(context, buffer)?.is_ready() {
            this.connection.begun.store(true, Ordering::Release);
            if this.awaiting == Awaiting::Request {
                this.awaiting = Awaiting::Head;
                this.reading.as_mut().reset(Instant::now() + this.limits.head);
            }
            return Poll::Ready(Ok(()));
        }
        ready!(this.reading.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream, context| {
            stream.poll_write_vectored(context, slices)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(context, |stream, context| stream.poll_shutdown(context))
    }
}

/// A request's body that must come at a minimum rate. Waiting spends an allowance, every byte earns some back.
pub(crate) struct MeteredBody {
    chunks: Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>,
    per_second: u32,
    most: Duration,
    allowance: Duration,
    /// Since when it has been waiting, and until when it will.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl MeteredBody {
    /// The body with its clock; one without bytes stays as it is.
    pub(crate) fn wrap(body: Body, limits: &Limits) -> Body {
        if body.is_empty() {
            return body;
        }
        Body::from_bytes_stream(Self {
            chunks: body.into_bytes_stream().boxed(),
            per_second: limits.body_rate,
            most: limits.body_grace,
            allowance: limits.body_grace,
            waiting: None,
        })
    }
}

impl Stream for MeteredBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let polled = this.chunks.as_mut().poll_next(context);
        if polled.is_pending() {
            let allowance = this.allowance;
            let (_, deadline) = this
                .waiting
                .get_or_insert_with(|| (Instant::now(), Box::pin(sleep(allowance))));
            ready!(deadline.as_mut().poll(context));
            this.allowance = Duration::ZERO;
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        }
        if let Some((since, _)) = this.waiting.take() {
            this.allowance = this.allowance.saturating_sub(since.elapsed());
        }
        if let Poll::Ready(Some(Ok(chunk))) = &polled {
            let earned = Duration::from_secs_f64(chunk.len() as f64 / f64::from(this.per_second.max(1)));
            this.allowance = (this.allowance + earned).min(this.most);
        }
        polled
    }
}

/// An answer's body that keeps its request counted as running until it is dropped.
pub(crate) struct GuardedBody<B> {
    body: B,
    _running: Running,
}

impl<B> GuardedBody<B> {
    pub(crate) fn new(body: B, running: Running) -> Self {
        Self {
            body,
            _running: running,
        }
    }
}

impl<B: hyper::body::Body + Unpin> hyper::body::Body for GuardedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
