//! What an operator's machines ask: whether the process lives, whether it is ready, what it has
//! counted. On a listener of its own; nothing here names a session, so it is open to whoever can
//! reach it.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;

use crate::drain::Watch;
use crate::lock::Instance;
use crate::metrics::{Format, Metrics};

pub use status::Status;

mod status;

/// Answers on the operator's listener.
#[derive(Debug)]
pub struct Admin {
    instance: Arc<Instance>,
    metrics: Metrics,
    drain: Watch,
}

const TEXT: &str = "text/plain; charset=utf-8";

// === impl Admin ===

impl Admin {
    /// Answers for this process.
    pub fn new(instance: Arc<Instance>, metrics: Metrics, drain: Watch) -> Self {
        Self {
            instance,
            metrics,
            drain,
        }
    }

    /// Answers one request.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if !matches!(path, "/livez" | "/readyz" | "/metrics") {
            return answer(StatusCode::NOT_FOUND, TEXT, "nothing is here\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is\n");
            let methods = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, methods);
            return response;
        }
        match path {
            "/livez" => answer(StatusCode::OK, TEXT, "alive\n"),
            "/metrics" => {
                let accept = request.headers().get(ACCEPT);
                let format = Format::wanted(accept.and_then(|value| value.to_str().ok()));
                let text = self.metrics.text(format);
                answer(StatusCode::OK, format.content_type(), text)
            }
            _ => self.ready().await,
        }
    }

    async fn ready(&self) -> Response<Full<Bytes>> {
        let unready = |why: String| answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n");
        if self.drain.is_draining() {
            return unready("draining".into());
        }
        match self.instance.is_known().await {
            Ok(()) => answer(StatusCode::OK, TEXT, "ready\n"),
            Err(error) => unready(error.to_string()),
        }
    }
}

fn answer(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
