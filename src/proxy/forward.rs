//! The backend: its connections, the headers on the way, and what can go wrong there.
//!
//! Invariant: a request is sent once. It is repeated only where hyper gives it back because not a
//! byte of it was written: on a kept connection that the backend had closed in the meantime.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Upstream;
use crate::deadline::Deadline;
use crate::wire::{Bounds, Wire};
use pool::{Connection, Pool};

pub(super) use upload::Upload;

pub(super) mod headers;
mod pool;
mod upload;

/// The backend, as one worker reaches it.
pub(super) struct Backend {
    upstream: Upstream,
    connect_timeout: Duration,
    pool: Pool,
}

/// The body of a request on its way to the backend.
pub(super) enum Outgoing {
    /// Read by the proxy already.
    Read(Option<Bytes>),
    /// Streamed as it comes in. That none of it is sent too late, the connection sees to.
    Streamed(Upload),
}

/// The body of the backend's answer, and the connection that it comes over.
pub(super) struct Answer {
    incoming: Incoming,
    /// Until the answer is over; dropping it closes the connection.
    connection: Option<Connection>,
}

/// Why the backend gave no answer.
#[derive(Debug, Error)]
pub(super) enum ForwardError {
    #[error("the backend at {upstream} can't be reached: {reason}")]
    Unreachable { upstream: String, reason: String },
    #[error("the backend at {upstream} broke off before its answer: {reason}")]
    Broken { upstream: String, reason: String },
    #[error("no {what} from the backend at {upstream} within {limit:?}")]
    TimedOut {
        upstream: String,
        what: &'static str,
        limit: Duration,
    },
}

// === impl Backend ===

impl Backend {
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(upstream: Upstream, connect_timeout: Duration) -> Self {
        Self {
            upstream,
            connect_timeout,
            pool: Pool::new(),
        }
    }

    /// The backend, as the configuration names it.
    pub(super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Sends a request and gives the head of its answer. Dropping the future closes the connection,
    /// which is how a backend learns that nobody wants its answer. No byte is sent after `deadline`.
    /// `begun` says whether one may have been sent.
    ///
    /// # Errors
    /// When there is no connection, or it breaks before the answer begins.
    pub(super) async fn send(
        &self,
        mut request: Request<Outgoing>,
        deadline: Option<&Deadline>,
        begun: Option<&AtomicBool>,
    ) -> Result<Response<Answer>, ForwardError> {
        let note = |is| {
            if let Some(begun) = begun {
                begun.store(is, Ordering::Relaxed);
            }
        };
        loop {
            let kept = self.pool.take();
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            if let Some(deadline) = deadline {
                connection.bounds.stop_at(deadline.clone());
            }
            note(true);
            let mut error = match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| Answer::new(body, connection))),
                Err(error) => error,
            };
            match error.take_message() {
                Some(unsent) if is_kept => {
                    note(false);
                    request = unsent;
                }
                _ => {
                    let reason = error.into_error().to_string();
                    return Err(ForwardError::Broken {
                        upstream: self.name(),
                        reason,
                    });
                }
            }
        }
    }

    /// No head of an answer came within `limit`.
    pub(super) fn no_head_within(&self, limit: Duration) -> ForwardError {
        ForwardError::TimedOut {
            upstream: self.name(),
            what: "answer",
            limit,
        }
    }

    async fn connect(&self) -> Result<Connection, ForwardError> {
        let unreachable = |reason: String| ForwardError::Unreachable {
            upstream: self.name(),
            reason,
        };
        let address = (&*self.upstream.host, self.upstream.port);
        let stream = match timeout(self.connect_timeout, TcpStream::connect(address)).await {
            Ok(connected) => connected.map_err(|error| unreachable(error.to_string()))?,
            Err(_) => {
                let (what, limit) = ("connection", self.connect_timeout);
                return Err(ForwardError::TimedOut {
                    upstream: self.name(),
                    what,
                    limit,
                });
            }
        };
        let bounds = Bounds::new();
        let wire =
            Wire::new(stream, bounds.clone()).map_err(|error| unreachable(error.to_string()))?;
        let (sender, driver) = http1::handshake(TokioIo::new(wire))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let task = tokio::spawn(async move {
            // Its errors reach whoever waits for the answer.
            let _ = driver.await;
        });
        Ok(Connection::new(
            sender,
            task.abort_handle(),
            bounds,
            self.pool.clone(),
        ))
    }

    fn name(&self) -> String {
        self.upstream.authority.to_string()
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// Reads what streams in ahead, up to so many bytes. Never resolves, and loses nothing when it is
    /// dropped.
    pub(super) async fn read_ahead(&mut self, most: usize) -> Infallible {
        match self {
            Self::Read(_) => std::future::pending().await,
            Self::Streamed(upload) => upload.read_ahead(most).await,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Read(whole) => Poll::Ready(whole.take().map(|whole| Ok(Frame::data(whole)))),
            Self::Streamed(upload) => Pin::new(upload).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Read(whole) => whole.is_none(),
            Self::Streamed(upload) => upload.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Read(whole) => {
                SizeHint::with_exact(whole.as_ref().map_or(0, |whole| whole.len() as u64))
            }
            Self::Streamed(upload) => upload.size_hint(),
        }
    }
}

// === impl Answer ===

impl Answer {
    fn new(incoming: Incoming, connection: Connection) -> Self {
        let mut answer = Self {
            incoming,
            connection: Some(connection),
        };
        answer.give_back_at_the_end(false);
        answer
    }

    fn give_back_at_the_end(&mut self, is_end: bool) {
        if (is_end || self.incoming.is_end_stream())
            && let Some(connection) = self.connection.take()
        {
            connection.give_back();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.give_back_at_the_end(frame.is_trailers()),
            Poll::Ready(None) => self.give_back_at_the_end(true),
            // Closed here and now, and not when the client has taken notice.
            Poll::Ready(Some(Err(_))) => self.connection = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
