//! A request body that is lent to the handler, so that what it leaves unread can be thrown away afterwards.
//!
//! Why: a server that answers and closes while the client is still sending resets the connection, and the client never
//! sees why it was refused. Invariant: at most [`MAX_THROWN_AWAY`] bytes and [`PATIENCE`] are spent on it, a client that
//! waits for `100 Continue` is not asked to send what nobody wants, and a body that is still in use is left alone.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use poem::{Body, Request, http::header::EXPECT};

/// Bytes of a refused body that are read on for.
pub(crate) const MAX_THROWN_AWAY: usize = 8 * 1024 * 1024;
/// Time that is spent on that.
const PATIENCE: Duration = Duration::from_secs(30);

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The lender's side.
#[derive(Default)]
pub(crate) struct Loan {
    returned: Arc<Mutex<Option<Chunks>>>,
    expects_continue: bool,
}

/// The handler's side; gives the stream back when it is dropped.
struct Borrowed {
    chunks: Option<Chunks>,
    begun: bool,
    finished: bool,
    expects_continue: bool,
    returned: Arc<Mutex<Option<Chunks>>>,
}

/// Puts a lent body in place of the request's own.
pub(crate) fn lend(request: &mut Request) -> Loan {
    let expects_continue = request.headers().contains_key(EXPECT);
    let body = request.take_body();
    if body.is_empty() {
        request.set_body(body);
        return Loan::default();
    }
    let loan = Loan {
        returned: Arc::default(),
        expects_continue,
    };
    let borrowed = Borrowed {
        chunks: Some(body.into_bytes_stream().boxed()),
        begun: false,
        finished: false,
        expects_continue,
        returned: loan.returned.clone(),
    };
    request.set_body(Body::from_bytes_stream(borrowed));
    loan
}

impl Loan {
    /// Reads what was left unread, within bounds.
    pub(crate) async fn throw_away(self) {
        let Some(mut chunks) = self
            .returned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        else {
            return;
        };
        let mut left = MAX_THROWN_AWAY;
        let read = async {
            while let Some(Ok(chunk)) = chunks.next().await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    break;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            tracing::debug!(
                expects_continue = self.expects_continue,
                "a refused body came too slowly"
            );
        }
    }
}

impl Stream for Borrowed {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(chunks) = &mut self.chunks else {
            return Poll::Ready(None);
        };
        let polled = chunks.as_mut().poll_next(context);
        self.begun = true;
        self.finished |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let unasked = self.expects_continue && !self.begun;
        if !self.finished && !unasked {
            *self.returned.lock().unwrap_or_else(PoisonError::into_inner) = self.chunks.take();
        }
    }
}
