//! [`Serve`], the trait of a handler, and a handler that is a function.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http_body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};

use super::bad_request::RejectedRequest;
use super::client::ClientConnection;

/// Answers requests. Cheap to clone: each connection and each request has a clone.
pub trait Serve: Clone + Send + 'static {
    /// The body of a response.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    /// Answers a request. The server drops the future, or later the response's body, when the client is
    /// gone or a bound of its connection is reached.
    fn serve(
        self,
        client: ClientConnection,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + 'static;

    /// The error response for a request that is not served. Called once for each such request. `ip` is
    /// the client's address; `None` over a Unix socket.
    fn refuse(&self, ip: Option<IpAddr>, refused: &RejectedRequest) -> Response<Bytes>;
}

/// Serves requests with a function, and answers a refused request with the reason alone. For the
/// process' own listeners. A client that neither reads its response nor sends a request is
/// disconnected after [`DEFAULT_IDLE`].
#[derive(Clone)]
pub struct FnService<F>(pub F);

/// How long a connection may be idle by default: the default of `timeouts.idle_stream`.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(300);

// === impl FnService ===

impl<F, A, B> Serve for FnService<F>
where
    F: Fn(ClientConnection, Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Body = B;

    fn serve(
        self,
        client: ClientConnection,
        request: Request<Incoming>,
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
