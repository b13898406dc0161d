//! The baseline: the reverse proxy that most people would write with hyper in an afternoon.
//!
//! It uses tokio's default runtime and hyper-util's shared pool, and passes bodies on as they come. It has no lock, no buffering,
//! no log, and changes no header (RFC 9110 §7.6.1). Don't change it: the figures of earlier runs are multiples of its own.

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

/// Serves until the parent has ended.
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
    process::print_address(listener.local_addr()?);
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
