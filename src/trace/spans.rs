//! From a request's record to its spans, by OpenTelemetry's conventions for HTTP
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>) and names of Seriatim's own.
//!
//! Invariant: a span lies within its parent. What they leave out: the query, and whatever else of a
//! URL may be secret, and the client's address.

use std::borrow::Cow;
use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData};
use tokio::time::Instant;

use super::{TraceContext, TraceRecord};
use crate::config::upstream::UpstreamAddress;
use crate::redact;

/// A span that is being made.
struct SpanBuilder {
    name: Cow<'static, str>,
    kind: SpanKind,
    id: SpanId,
    from: Instant,
    to: Instant,
    attributes: Vec<KeyValue>,
    status: Status,
}

/// Makes the spans of a request: its own first, then those below it in the order of their beginning.
pub(super) fn spans(
    record: &TraceRecord,
    scope: &InstrumentationScope,
) -> impl Iterator<Item = SpanData> {
    let ids = RandomIdGenerator::default();
    let server = ids.new_span_id();
    let own = record.server(server);
    let wait = record.wait(ids.new_span_id());
    let hold = record.hold(ids.new_span_id());
    let backend = record.backend();
    let state = record.context.state();
    let below = [wait, hold, backend].into_iter().flatten();
    let below = below.map(move |span| (span, server, false));
    let (caller, is_remote) = match record.context.parent {
        Some(parent) => (parent, true),
        None => (SpanId::INVALID, false),
    };
    let all = std::iter::once((own, caller, is_remote)).chain(below);
    all.map(move |(span, parent, is_remote)| SpanData {
        span_context: SpanContext::new(
            record.context.trace,
            span.id,
            TraceFlags::new(record.context.flags),
            false,
            state.clone(),
        ),
        parent_span_id: parent,
        parent_span_is_remote: is_remote,
        span_kind: span.kind,
        name: span.name,
        start_time: record.moments.at(span.from),
        end_time: record.moments.at(span.to),
        attributes: span.attributes,
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: span.status,
        instrumentation_scope: scope.clone(),
    })
}

// === impl Record ===

impl TraceRecord {
    fn server(&self, id: SpanId) -> SpanBuilder {
        let told = &self.told;
        let (method, route) = (told.method, told.route.as_deref());
        // `HTTP` is the conventions' name for a method that is none of the usual ones.
        let verb = if method == redact::OTHER_METHOD {
            "HTTP"
        } else {
            method
        };
        let name = match route {
            Some(route) => format!("{verb} {}", route.name).into(),
            None => verb.into(),
        };
        let pattern = route.and_then(|route| route.path.as_ref());
        let path = (!redact::is_enabled()).then(|| told.path.clone());
        let mut attributes = SpanAttributes::default();
        attributes
            .add("http.request.method", Some(method))
            .add("url.path", path)
            .add("http.route", pattern.map(ToString::to_string))
            .add("http.response.status_code", told.status.map(i64::from))
            .add("seriatim.outcome", Some(told.outcome))
            .add("seriatim.route", route.map(|route| route.name.to_string()))
            .add("seriatim.request_id", Some(told.request_id.clone()));
        self.add_lock(&mut attributes);
        let status = self.failure();
        SpanBuilder {
            name,
            kind: SpanKind::Server,
            id,
            from: self.moments.begun,
            to: self.ended,
            attributes: attributes.with_error(&status, told.outcome),
            status,
        }
    }

    fn wait(&self, id: SpanId) -> Option<SpanBuilder> {
        let from = self.moments.asked?;
        // One that went in the middle of it was still waiting.
        let (to, is_granted) = self.moments.settled.unwrap_or((self.ended, false));
        let mut attributes = SpanAttributes::default();
        attributes.add("seriatim.granted", Some(is_granted));
        self.add_lock(&mut attributes);
        let status = match is_granted {
            true => Status::Unset,
            false => self.failure(),
        };
        Some(SpanBuilder {
            name: "lock wait".into(),
            kind: SpanKind::Internal,
            id,
            from,
            to,
            attributes: attributes.with_error(&status, self.told.outcome),
            status,
        })
    }

    fn hold(&self, id: SpanId) -> Option<SpanBuilder> {
        let (from, _) = self.moments.settled.filter(|(_, is_granted)| *is_granted)?;
        let mut attributes = SpanAttributes::default();
        attributes.add("seriatim.lost", self.told.lost);
        self.add_lock(&mut attributes);
        let status = match self.told.lost {
            Some(INTERRUPTED) | None => Status::Unset,
            Some(_) => self.failure(),
        };
        Some(SpanBuilder {
            name: "lock hold".into(),
            kind: SpanKind::Internal,
            id,
            from,
            // A request is told of when its lock has been given back.
            to: self.ended,
            attributes: attributes.with_error(&status, self.told.outcome),
            status,
        })
    }

    fn backend(&self) -> Option<SpanBuilder> {
        let (from, place) = self.moments.sent.as_ref()?;
        let told = &self.told;
        let granted = self.moments.settled.filter(|(_, is_granted)| *is_granted);
        // From there on the lock is only given back, which the backend has no part in.
        let done = granted.and_then(|(granted, _)| Some(granted + told.hold?));
        let to = done.map_or(self.ended, |done| done.clamp(*from, self.ended));
        // One that there is of the backend's own: whatever it was that was made up instead.
        let code = told.status.filter(|_| self.moments.answered);
        let (address, port) = match place {
            UpstreamAddress::Port(host, port) => (host.to_string(), Some(i64::from(*port))),
            UpstreamAddress::Socket(path) => (path.display().to_string(), None),
        };
        let mut attributes = SpanAttributes::default();
        attributes
            .add("http.request.method", Some(told.method))
            .add("server.address", Some(address))
            .add("server.port", port)
            .add("http.response.status_code", code.map(i64::from));
        // To who asks, every status from 400 on is an error.
        let status = match code {
            Some(400..) => Status::error(""),
            _ => self.failure(),
        };
        let kind = match code {
            Some(code @ 400..) => code.to_string(),
            _ => told.outcome.to_owned(),
        };
        Some(SpanBuilder {
            name: "backend".into(),
            kind: SpanKind::Client,
            id: self.context.backend,
            from: *from,
            to,
            attributes: attributes.with_error(&status, kind),
            status,
        })
    }

    /// An error for what is nobody's wish: a backend or a store that fails, an answer that is cut off.
    /// A busy session, a turn that a newer one replaces, and a client that leaves are none.
    fn failure(&self) -> Status {
        let told = &self.told;
        let is_one = match told.outcome {
            SUPERSEDED | "client_gone" => false,
            "upstream_aborted" | "lock_lost" | "idle_timeout" | "drain_aborted" => true,
            _ => told.status.is_some_and(|status| status >= 500),
        };
        match is_one {
            true => Status::error(told.error.clone().unwrap_or_default()),
            false => Status::Unset,
        }
    }

    fn add_lock(&self, attributes: &mut SpanAttributes) {
        let key = self.told.key.as_ref();
        let fence = self.told.fence.and_then(|fence| i64::try_from(fence).ok());
        attributes
            .add(
                "seriatim.session_key",
                key.map(|key| key.redacted().into_owned()),
            )
            .add("seriatim.fence", fence);
    }
}

/// The outcome of a turn in whose place a newer one runs.
const SUPERSEDED: &str = "superseded";

/// How such a turn loses its lock.
const INTERRUPTED: &str = "interrupted";

// === impl Context ===

impl TraceContext {
    fn state(&self) -> TraceState {
        let values = self.state.iter().filter_map(|value| value.to_str().ok());
        let list = values.collect::<Vec<_>>().join(",");
        // What can't be read passes as it is, and stands in no span.
        TraceState::from_str(&list).unwrap_or_default()
    }
}

/// Attributes of a span.
#[derive(Default)]
struct SpanAttributes(Vec<KeyValue>);

// === impl Attributes ===

impl SpanAttributes {
    /// Adds one, if it has a value.
    fn add(&mut self, name: &'static str, value: Option<impl Into<Value>>) -> &mut Self {
        self.0.extend(value.map(|value| KeyValue::new(name, value)));
        self
    }

    /// With the kind of error, if the status is one.
    fn with_error(mut self, status: &Status, kind: impl Into<Value>) -> Vec<KeyValue> {
        let is_error = matches!(status, Status::Error { .. });
        self.add("error.type", is_error.then_some(kind));
        self.0
    }
}
