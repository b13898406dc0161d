//! The HTTP client for the collector of spans: each request has its own HTTP/1.1 connection.
//!
//! Invariant: a request ends within [`WITHIN`], whatever the collector does. There is one request at a
//! time, and at most about one per second, so connections aren't kept.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use http_body::Body as _;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use crate::client_tls;
use crate::config::trace::CollectorAddress;
use crate::config::upstream::TrustedCas;
use crate::dial;

/// Sends the exporter's requests. It keeps the reason of a failure, which the exporter hides.
#[derive(Clone, Debug)]
pub(super) struct CollectorClient {
    collector: CollectorAddress,
    tls: Option<Arc<ClientConfig>>,
    /// Why the last request failed; `None`: it didn't.
    failure: Arc<Mutex<Option<String>>>,
}

/// How long one request may take.
pub(super) const WITHIN: Duration = Duration::from_secs(5);

/// The longest response that is read, in bytes: at most an error text.
const LONGEST: usize = 64 << 10;

// === impl CollectorClient ===

impl CollectorClient {
    pub(super) fn new(collector: &CollectorAddress, cas: Option<&TrustedCas>) -> Self {
        let tls = collector.tls.as_ref().map(|_| {
            let cas = cas.iter().flat_map(|cas| &cas.certificates);
            Arc::new(client_tls::client_config(cas))
        });
        Self {
            collector: collector.clone(),
            tls,
            failure: Arc::default(),
        }
    }

    /// Why the last request got no response; `None`: it got one.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().take()
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let stream = dial::connect(&self.collector.host, self.collector.port).await?;
        match (&self.collector.tls, &self.tls) {
            (None, _) => exchange(TokioIo::new(stream), request).await,
            (Some(name), Some(tls)) => {
                let connector = TlsConnector::from(Arc::clone(tls));
                let stream = connector.connect(name.clone(), stream).await?;
                exchange(TokioIo::new(stream), request).await
            }
            (Some(_), None) => Err(io::Error::other("there is no TLS to be had").into()),
        }
    }
}

/// Sends one request and reads the response.
async fn exchange(
    stream: impl Read + Write + Unpin + Send + 'static,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (mut sender, connection) = http1::handshake(stream).await?;
    let serving = tokio::spawn(connection);
    let mut request = request.map(Full::new);
    let uri = request.uri();
    let host = uri.authority().map(|authority| authority.as_str());
    if let Some(host) = host.map(HeaderValue::try_from).transpose()? {
        request.headers_mut().insert(HOST, host);
    }
    if let Some(path) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = Uri::from(path);
    }
    let (head, mut body) = sender.send_request(request).await?.into_parts();
    let mut whole = BytesMut::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            if whole.len() + data.len() > LONGEST {
                return Err(io::Error::other("the response is too long").into());
            }
            whole.extend_from_slice(&data);
        }
    }
    serving.abort();
    Ok(Response::from_parts(head, whole.freeze()))
}

impl HttpClient for CollectorClient {
    // As `async_trait` writes it.
    fn send_bytes<'client, 'future>(
        &'client self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'future>>
    where
        'client: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            let sent = timeout(WITHIN, self.send(request)).await;
            let sent = sent.unwrap_or_else(|_| {
                Err(io::Error::other(format!("no response within {WITHIN:?}")).into())
            });
            *self.failure.lock() = sent.as_ref().err().map(ToString::to_string);
            sent
        })
    }
}
