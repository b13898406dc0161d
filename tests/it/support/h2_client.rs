//! An HTTP/2 client over any stream.
//!
//! Invariant: it sends no request by itself, and reads nothing that the test does not read, beyond what
//! HTTP/2's flow-control windows allow.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinHandle};

use super::within;

/// A connection, for any number of requests.
pub(crate) struct H2 {
    sender: SendRequest<BoxBody<Bytes, Infallible>>,
    driver: JoinHandle<hyper::Result<()>>,
    tasks: Tasks,
}

/// The tasks that hyper has spawned for a connection.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<Vec<AbortHandle>>>);

impl<F: Future<Output: Send + 'static> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let handle = tokio::spawn(task).abort_handle();
        self.0
            .lock()
            .expect("no panic with the lock held")
            .push(handle);
    }
}

/// A response that is being read.
pub(crate) struct Streaming {
    pub(crate) head: Response<()>,
    body: Incoming,
    pub(crate) read: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

/// A GET without a body.
pub(crate) fn get(path: &str) -> http::request::Builder {
    Request::get(format!("http://agent.example{path}"))
}

/// The request that [`client::turn`](super::client::turn) sends.
pub(crate) fn turn(session: &str, script: &str) -> Request<BoxBody<Bytes, Infallible>> {
    let body = serde_json::json!({ "session_id": session, "user_id": "u1" });
    let request = Request::post("http://agent.example/chat")
        .header("content-type", "application/json")
        .header("x-test-script", script);
    request.body(full(body.to_string())).expect("a request")
}

pub(crate) fn full(body: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(body.into()).boxed()
}

// === impl H2 ===

impl H2 {
    /// Connects over TCP, with prior knowledge.
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(addr)).await;
        Self::over(stream.expect("a connection")).await
    }

    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let tasks = Tasks::default();
        let handshake = http2::handshake(tasks.clone(), TokioIo::new(stream));
        let (sender, driver) = handshake.await.expect("HTTP/2 begins");
        let driver = tokio::spawn(driver);
        Self {
            sender,
            driver,
            tasks,
        }
    }

    /// Sends a request, and reads the head of the response.
    pub(crate) async fn send(
        &mut self,
        request: Request<BoxBody<Bytes, Infallible>>,
    ) -> hyper::Result<Streaming> {
        let answer = within("the head of a response", self.sender.send_request(request)).await?;
        let (head, body) = answer.into_parts();
        Ok(Streaming {
            head: Response::from_parts(head, ()),
            body,
            read: Vec::new(),
            trailers: None,
        })
    }

    /// Sends a request without waiting for the response.
    pub(crate) fn begin(
        &mut self,
        request: Request<BoxBody<Bytes, Infallible>>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        self.sender.send_request(request)
    }

    /// Sends a request, and reads the whole response.
    pub(crate) async fn call(&mut self, request: Request<BoxBody<Bytes, Infallible>>) -> Streaming {
        let mut answer = self.send(request).await.expect("a response");
        answer.rest().await.expect("a complete response");
        answer
    }

    /// Drops the connection without a goodbye, whatever runs on it.
    pub(crate) fn lose(self) {
        self.driver.abort();
        let tasks = self.tasks.0.lock().expect("no panic with the lock held");
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Waits until the peer has closed the connection, which could still take requests.
    pub(crate) async fn closed_by_peer(&mut self) {
        let _ = within("the peer to close", &mut self.driver).await;
    }

    /// Waits until the peer has closed the connection.
    pub(crate) async fn closed(self) {
        drop(self.sender);
        let _ = within("the peer to close", self.driver).await;
    }
}

// === impl Streaming ===

impl Streaming {
    pub(crate) fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    /// The status, and the reason of an error response of the proxy.
    pub(crate) fn error(&self) -> (u16, &str) {
        let reason = self.head.headers().get("x-seriatim-error");
        (
            self.status(),
            reason.map_or("", |reason| reason.to_str().expect("text")),
        )
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Reads to the end of the response.
    pub(crate) async fn rest(&mut self) -> hyper::Result<()> {
        while self.next().await? {}
        Ok(())
    }

    /// Reads until the received part of the body contains `text`.
    pub(crate) async fn until(&mut self, text: &str) {
        while !self.text().contains(text) {
            let more = self.next().await.expect("no error before that");
            assert!(
                more,
                "the response ended without {text:?}: {:?}",
                self.text()
            );
        }
    }

    async fn next(&mut self) -> hyper::Result<bool> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx));
        let Some(frame) = within("more of a response", frame).await else {
            return Ok(false);
        };
        match frame?.into_data() {
            Ok(data) => self.read.extend_from_slice(&data),
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
        Ok(true)
    }
}
