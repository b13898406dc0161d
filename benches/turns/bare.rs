//! The yardstick: the reverse proxy that most people would write with hyper in an afternoon.
//!
//! tokio's default runtime, hyper-util's shared pool, bodies passed on as they come. No lock, no buffering, no log, and none of
//! the header work that a proxy owes (RFC 9110 §7.6.1). It is kept as it is: the figures of earlier runs are multiples of it.

use std::net::SocketAddr;

use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use super::process;
use crate::Failure;

/// Serves until the parent goes.
pub(crate) fn run(upstream: SocketAddr) -> Result<bool, Failure> {
    process::end_with_parent();
    tokio::runtime::Runtime::new()?.block_on(serve(upstream))
}

async fn serve(upstream: SocketAddr) -> Result<bool, Failure> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build::<_, Incoming>(connector);
    let authority: Authority = upstream.to_string().parse()?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    process::tell_address(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (client, authority) = (client.clone(), authority.clone());
        let service =
            service_fn(move |request| forward(client.clone(), authority.clone(), request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn forward(
    client: Client<HttpConnector, Incoming>,
    authority: Authority,
    mut request: Request<Incoming>,
) -> Result<Response<Either<Incoming, Empty<Bytes>>>, http::Error> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    *request.uri_mut() = Uri::from_parts(parts)?;
    match client.request(request).await {
        Ok(response) => Ok(response.map(Either::Left)),
        Err(_) => Response::builder()
            .status(StatusCode::BAD_GATEWAY)
            .body(Either::Right(Empty::new())),
    }
}
