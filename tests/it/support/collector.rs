//! A collector of spans: it takes OTLP over HTTP/1.1, with or without TLS, and keeps what it gets.
//!
//! A [`Mood`] says how it responds. A request that is not a POST of protobuf to `/v1/traces` fails the
//! test that reads the spans.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1 as proto;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::wait_for;

/// A running collector. Ends when dropped.
pub(crate) struct Collector {
    addr: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    accepting: JoinHandle<()>,
}

/// What the collector does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Accepts it.
    Takes,
    /// Reads it and never responds.
    Hangs,
    /// Responds with 503.
    Refuses,
}

#[derive(Default)]
struct Kept {
    heads: Vec<String>,
    spans: Vec<Span>,
    resource: BTreeMap<String, String>,
}

/// A span, with its ids in hex.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) name: String,
    pub(crate) kind: proto::span::SpanKind,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty without a parent.
    pub(crate) parent: String,
    pub(crate) state: String,
    /// Nanoseconds since 1970.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Values as text; numbers as decimal digits.
    pub(crate) attributes: BTreeMap<String, String>,
    /// The message of an error status; `None` without an error.
    pub(crate) error: Option<String>,
    /// The trace and the span of each link.
    pub(crate) links: Vec<(String, String)>,
}

/// The spans of one request.
pub(crate) struct Tree {
    pub(crate) server: Span,
    pub(crate) wait: Option<Span>,
    pub(crate) hold: Option<Span>,
    pub(crate) backend: Option<Span>,
}

// === impl Collector ===

impl Collector {
    pub(crate) async fn start(mood: Mood) -> Self {
        Self::with(mood, None).await
    }

    pub(crate) async fn with(mood: Mood, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("the listener's address");
        let kept = Arc::<Mutex<Kept>>::default();
        let keeping = Arc::clone(&kept);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (kept, tls) = (Arc::clone(&keeping), tls.clone());
                tokio::spawn(async move {
                    // An error means that the exporter has disconnected.
                    let _ = match tls {
                        None => serve(socket, mood, &kept).await,
                        Some(tls) => match tls.accept(socket).await {
                            Ok(stream) => serve(stream, mood, &kept).await,
                            Err(error) => Err(error),
                        },
                    };
                });
            }
        });
        Self {
            addr,
            kept,
            accepting,
        }
    }

    /// The `[tracing]` table that exports to this collector.
    pub(crate) fn config(&self) -> String {
        format!("[tracing]\notlp = \"http://{}\"\n", self.addr)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn kept<T>(&self, read: impl FnOnce(&Kept) -> T) -> T {
        read(&self.kept.lock().expect("no panic with the lock held"))
    }

    /// The heads of all requests so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.kept(|kept| kept.heads.clone())
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.kept(|kept| kept.spans.clone())
    }

    /// The attributes of the resource.
    pub(crate) fn resource(&self) -> BTreeMap<String, String> {
        self.kept(|kept| kept.resource.clone())
    }

    /// Waits for the spans of this number of requests; gives them in the order in which they began.
    #[track_caller]
    pub(crate) fn trees(&self, count: usize) -> impl Future<Output = Vec<Tree>> {
        let servers = move || {
            let spans = self.spans();
            let servers = spans.iter().filter(|span| span.is_server());
            servers.count()
        };
        let arrived = wait_for(move || servers() >= count, "the spans arrive");
        async move {
            arrived.await;
            assert_eq!(servers(), count, "each request has one server span");
            let spans = self.spans();
            let mut servers: Vec<_> = spans.iter().filter(|span| span.is_server()).collect();
            servers.sort_by_key(|span| span.from);
            servers
                .into_iter()
                .map(|server| Tree::new(server, &spans))
                .collect()
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Serves one request of a connection.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mood: Mood,
    kept: &Mutex<Kept>,
) -> io::Result<()> {
    let mut read = Vec::new();
    let head = loop {
        let end = read.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(end) = end {
            let body = read.split_off(end + 4);
            let head = String::from_utf8_lossy(&std::mem::replace(&mut read, body)).into_owned();
            break head;
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    });
    let length: usize = length.expect("an exporter sends content-length");
    while read.len() < length {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    let request = ExportTraceServiceRequest::decode(&*read).expect("a protobuf of traces");
    {
        let mut kept = kept.lock().expect("no panic with the lock held");
        kept.heads.push(head);
        if mood == Mood::Takes {
            for resource_spans in request.resource_spans {
                let resource = resource_spans.resource.unwrap_or_default();
                kept.resource = texts(&resource.attributes);
                let spans = resource_spans.scope_spans.into_iter();
                let spans = spans
                    .flat_map(|scope_spans| scope_spans.spans)
                    .map(Span::new);
                kept.spans.extend(spans);
            }
        }
    }
    match mood {
        Mood::Takes => {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n\
                           content-length: 0\r\n\r\n";
            stream.write_all(answer).await?;
        }
        Mood::Refuses => {
            let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await?;
        }
        Mood::Hangs => std::future::pending().await,
    }
    stream.flush().await?;
    // Waits until the exporter disconnects.
    let _ = stream.read(&mut [0]).await;
    Ok(())
}

// === impl Span ===

impl Span {
    fn new(span: proto::Span) -> Self {
        let status = span.status.clone().unwrap_or_default();
        let is_error = status.code() == proto::status::StatusCode::Error;
        Self {
            kind: span.kind(),
            name: span.name,
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            state: span.trace_state,
            from: span.start_time_unix_nano,
            to: span.end_time_unix_nano,
            attributes: texts(&span.attributes),
            error: is_error.then_some(status.message),
            links: span
                .links
                .iter()
                .map(|link| (hex(&link.trace_id), hex(&link.span_id)))
                .collect(),
        }
    }

    fn is_server(&self) -> bool {
        self.kind == proto::span::SpanKind::Server
    }

    /// The value of an attribute; empty without it.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// Asserts that the span is a child of `outer`, and within its time.
    pub(crate) fn assert_within(&self, outer: &Span) {
        assert_eq!(
            (&self.trace, &self.parent),
            (&outer.trace, &outer.id),
            "{} is a child of {}",
            self.name,
            outer.name
        );
        assert!(
            outer.from <= self.from && self.from <= self.to && self.to <= outer.to,
            "a child span begins and ends within its parent: {self:?} in {outer:?}"
        );
    }
}

// === impl Tree ===

impl Tree {
    /// The tree of a server span. Asserts that each child is within it.
    fn new(server: &Span, spans: &[Span]) -> Self {
        let below = |name: &str| {
            let mut named = spans
                .iter()
                .filter(|span| span.parent == server.id && span.name == name);
            let found = named.next().cloned();
            assert!(named.next().is_none(), "there is at most one {name}");
            found
        };
        let tree = Self {
            wait: below("lock wait"),
            hold: below("lock hold"),
            backend: below("backend"),
            server: server.clone(),
        };
        let parts = [&tree.wait, &tree.hold, &tree.backend];
        parts
            .into_iter()
            .flatten()
            .for_each(|part| part.assert_within(server));
        let count = spans.iter().filter(|span| span.parent == server.id);
        assert_eq!(
            count.count(),
            parts.into_iter().flatten().count(),
            "a request has no other child span"
        );
        tree
    }

    /// The names of the child spans.
    pub(crate) fn parts(&self) -> Vec<&str> {
        let parts = [&self.wait, &self.hold, &self.backend];
        let parts = parts.into_iter().flatten();
        parts.map(|span| &*span.name).collect()
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} with {:?}", self.server, self.parts())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => panic!("an attribute is text, a whole number or a boolean: {other:?}"),
    };
    attributes
        .iter()
        .map(|pair| {
            let value = pair.value.as_ref().map(text);
            (pair.key.clone(), value.unwrap_or_default())
        })
        .collect()
}
