//! `naive`: `bare` with a lock in Redis, as a good engineer writes it in an afternoon.
//!
//! It reads the whole body into a `serde_json::Value`, takes the lock with SET NX and a token, and refuses with 429 when the lock
//! is held. It releases in the background when the response has ended, so a client that sends its next turn at once may meet its
//! own lock. It has no queue, no lease extension and no log. Don't change it: the figures of earlier runs are compared with it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::redis::Script;
use ::redis::aio::ConnectionManager;
use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpListener;

use super::process;
use crate::Failure;

const LEASE_SECONDS: u32 = 300;

/// Deletes the lock, if it still has the token of its holder.
const RELEASE: &str =
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";

/// What the requests share.
struct Proxy {
    client: Client<HttpConnector, Full<Bytes>>,
    authority: Authority,
    redis: ConnectionManager,
    release: Script,
}

/// A lock that this process holds. Dropping it releases it in the background.
struct Lock {
    proxy: Arc<Proxy>,
    key: String,
    token: String,
}

/// A response's body, which holds the lock until it is dropped.
struct Locked {
    body: Incoming,
    _lock: Lock,
}

type Answer = Response<Either<Locked, Full<Bytes>>>;

/// Serves until the parent has ended.
pub(crate) fn run(upstream: SocketAddr, redis: SocketAddr) -> Result<bool, Failure> {
    process::end_with_parent();
    tokio::runtime::Runtime::new()?.block_on(serve(upstream, redis))
}

async fn serve(upstream: SocketAddr, redis: SocketAddr) -> Result<bool, Failure> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let redis = ::redis::Client::open(format!("redis://{redis}/0"))?;
    let proxy = Arc::new(Proxy {
        client: Client::builder(TokioExecutor::new()).build(connector),
        authority: upstream.to_string().parse()?,
        redis: redis.get_connection_manager().await?,
        release: Script::new(RELEASE),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    process::print_address(listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let proxy = Arc::clone(&proxy);
        let service = service_fn(move |request| answer(Arc::clone(&proxy), request));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// Runs a turn. A failure becomes the status of the response.
async fn answer(proxy: Arc<Proxy>, request: Request<Incoming>) -> Result<Answer, http::Error> {
    match turn(proxy, request).await {
        Ok(response) => Ok(response.map(Either::Left)),
        Err(status) => Response::builder()
            .status(status)
            .body(Either::Right(Full::from("{\"success\":false}"))),
    }
}

async fn turn(
    proxy: Arc<Proxy>,
    request: Request<Incoming>,
) -> Result<Response<Locked>, StatusCode> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| StatusCode::BAD_REQUEST)?;
    let body = body.to_bytes();
    let turn: Value = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    let id = |name: &str| turn[name].as_str().unwrap_or("unknown").to_owned();
    let key = format!("lock:session:{}:{}", id("user_id"), id("session_id"));
    let lock = Lock::acquire(&proxy, key).await?;

    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(proxy.authority.clone());
    head.uri = Uri::from_parts(parts).map_err(|_| StatusCode::BAD_REQUEST)?;
    let request = Request::from_parts(head, Full::new(body));
    let response = proxy.client.request(request).await;
    let response = response.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(response.map(|body| Locked { body, _lock: lock }))
}

// === impl Lock ===

impl Lock {
    async fn acquire(proxy: &Arc<Proxy>, key: String) -> Result<Self, StatusCode> {
        let mut token = [0; 16];
        getrandom::fill(&mut token).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        let token = format!("{:032x}", u128::from_ne_bytes(token));
        let mut set = ::redis::cmd("SET");
        set.arg(&key).arg(&token).arg("NX");
        set.arg("EX").arg(LEASE_SECONDS);
        let taken: Result<Option<String>, _> = set.query_async(&mut proxy.redis.clone()).await;
        match taken {
            Ok(Some(_)) => Ok(Self {
                proxy: Arc::clone(proxy),
                key,
                token,
            }),
            Ok(None) => Err(StatusCode::TOO_MANY_REQUESTS),
            Err(_) => Err(StatusCode::SERVICE_UNAVAILABLE),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let (proxy, key) = (Arc::clone(&self.proxy), std::mem::take(&mut self.key));
        let token = std::mem::take(&mut self.token);
        tokio::spawn(async move {
            let mut redis = proxy.redis.clone();
            let mut release = proxy.release.prepare_invoke();
            let released = release.key(key).arg(token).invoke_async::<i32>(&mut redis);
            // What fails is left to the lease.
            let _ = released.await;
        });
    }
}

// === impl Locked ===

impl Body for Locked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
