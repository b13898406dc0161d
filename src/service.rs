//! The interface between the HTTP servers and the handler of requests: the trait [`Serve`], the client of
//! a request, the reasons to refuse a request, and the memory that request heads may take.
//!
//! Invariant: nothing here knows a socket, the bytes of a protocol, a route or a lock. `listen`, `http1`
//! and `http2` are the servers; `proxy`, `app` and the demo agent have handlers.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http_body::Body;
use hyper::{Request, Response};
use tokio::time::Instant;

use crate::drain::DrainWatch;
use crate::wire::{Bounds, Ended};

pub use bad_request::{BadRequest, RejectedRequest, RequestLine};
pub use client::{ClientConnection, InterimResponses};
pub use client_body::ClientBody;
pub use head_budget::HeadBudget;

pub(crate) use client::ClientLink;
pub(crate) use head_budget::{HEAD_BUDGET_EXCEEDED, HeadReservation};

mod bad_request;
mod client;
mod client_body;
mod head_budget;

/// Answers requests. Cheap to clone: each connection and each request has a clone.
pub trait Serve: Clone + Send + 'static {
    /// The body of a response.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    /// Answers a request. The server drops the future, or later the response's body, when the client is
    /// gone or a bound of its connection is reached.
    fn serve(
        self,
        client: ClientConnection,
        request: Request<ClientBody>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + 'static;

    /// The error response for a request that is not served. Called once for each such request. `ip` is
    /// the client's address; `None` over a Unix socket.
    fn refuse(&self, ip: Option<IpAddr>, refused: &RejectedRequest) -> Response<Bytes>;
}

/// Serves requests with a function, and answers a refused request with the reason alone. For the
/// process' own listeners. A client that reads nothing of its response for [`DEFAULT_IDLE`] is
/// disconnected.
#[derive(Clone)]
pub struct FnService<F>(pub F);

/// How long a response may be silent by default: the default of `timeouts.idle_stream`.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(300);

/// A connection that is ready for its protocol: everything that serves it, apart from its stream.
pub(crate) struct ServedConnection<'c, H> {
    /// Answers the requests; each request gets a clone.
    pub(crate) handler: H,
    /// The client; each request gets a clone.
    pub(crate) client: ClientConnection,
    /// How long a request head may take, from its first byte.
    pub(crate) request_head: Duration,
    /// How long a connection without a request is kept.
    pub(crate) idle: Duration,
    /// How long a client's machine may answer nothing before the client counts as gone; 0: for ever.
    pub(crate) unreachable: Duration,
    /// The memory for large heads and concurrent requests.
    pub(crate) heads: &'c HeadBudget,
    /// When the first request head must be complete.
    pub(crate) first_head_due: Instant,
    /// Says when to take no more requests, and when to abort those that run.
    pub(crate) drain: DrainWatch,
    /// The bytes that have been read from the stream already.
    pub(crate) early: BytesMut,
}

// === impl FnService ===

impl<F, A, B> Serve for FnService<F>
where
    F: Fn(ClientConnection, Request<ClientBody>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Body = B;

    fn serve(
        self,
        client: ClientConnection,
        request: Request<ClientBody>,
    ) -> impl Future<Output = Response<B>> + Send + 'static {
        client.bounds.end_when_silent(DEFAULT_IDLE);
        (self.0)(client, request)
    }

    fn refuse(&self, _: Option<IpAddr>, refused: &RejectedRequest) -> Response<Bytes> {
        let text = refused.reason.to_string();
        let length = text.len();
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = refused.reason.status();
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        response
    }
}

/// Notes and logs how a connection ended: by its protocol, or for a reason of this side. Returns
/// whether the end was orderly.
pub(crate) fn note_end(
    end: Result<hyper::Result<()>, Ended>,
    bounds: &Bounds,
    ip: Option<IpAddr>,
) -> bool {
    match end {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(?ip, %error, "connection failed");
            false
        }
        Err(why) => {
            tracing::debug!(?ip, ?why, "connection ended");
            bounds.end(why);
            false
        }
    }
}
