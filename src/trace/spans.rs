//! Makes the spans of a request, by OpenTelemetry's conventions for HTTP
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>), with additional `seriatim.*` attributes.
//!
//! Invariant: a span lies within its parent. Spans leave out the query, which may hold secrets, and the
//! client's address.

use std::borrow::Cow;
use std::str::FromStr;

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanLinks};
use tokio::time::Instant;

use super::{TraceContext, TraceRecord};
use crate::config::upstream::UpstreamAddress;
use crate::key::SessionIds;
use crate::outcome::LockLoss;
use crate::redact;

/// A span without its place in the trace.
struct SpanBuilder {
    name: Cow<'static, str>,
    kind: SpanKind,
    id: SpanId,
    from: Instant,
    to: Instant,
    attributes: Vec<KeyValue>,
    status: Status,
}

/// Makes the spans of a request: the server span first, then its children in the order of their beginning.
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
    let session = record.session();
    let below = [wait, hold, backend].into_iter().flatten();
    let below = below.map(move |span| (span, server, false));
    let (caller, is_remote) = match record.context.parent {
        Some(parent) => (parent, true),
        None => (SpanId::INVALID, false),
    };
    let all = std::iter::once((own, caller, is_remote)).chain(below);
    all.map(move |(span, parent, is_remote)| SpanData {
        attributes: span
            .attributes
            .into_iter()
            .chain(session.0.iter().cloned())
            .collect(),
        span_context: SpanContext::new(
            record.context.trace,
            span.id,
            TraceFlags::new(record.context.flags),
            false,
            state.clone(),
        ),
        parent_span_id: parent,
        parent_span_is_remote: is_remote,
        links: match span.kind == SpanKind::Server {
            true => record.links(),
            false => SpanLinks::default(),
        },
        span_kind: span.kind,
        name: span.name,
        start_time: record.moments.at(span.from),
        end_time: record.moments.at(span.to),
        dropped_attributes_count: 0,
        events: Default::default(),
        status: span.status,
        instrumentation_scope: scope.clone(),
    })
}

// === impl TraceRecord ===

impl TraceRecord {
    /// The caller's span, if the turn began a trace of its own.
    fn links(&self) -> SpanLinks {
        let mut links = SpanLinks::default();
        links.links.extend(self.context.left.map(|left| {
            let flags = TraceFlags::new(self.context.flags);
            let state = TraceState::default();
            let caller = SpanContext::new(left.trace, left.span, flags, true, state);
            Link::new(caller, Vec::new(), 0)
        }));
        links
    }

    fn server(&self, id: SpanId) -> SpanBuilder {
        let facts = &self.facts;
        let (method, route) = (facts.method, facts.route.as_deref());
        // The conventions' name for a method that is not a standard one.
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
        let path = (!redact::is_enabled()).then(|| facts.path.clone());
        let mut attributes = SpanAttributes::default();
        attributes
            .add("http.request.method", Some(method))
            .add("url.path", path)
            .add("http.route", pattern.map(ToString::to_string))
            .add("http.response.status_code", facts.status.map(i64::from))
            .add("seriatim.outcome", Some(facts.outcome.as_str()))
            .add("seriatim.route", route.map(|route| route.name.to_string()))
            .add("seriatim.request_id", Some(facts.request_id.clone()));
        self.add_lock(&mut attributes);
        let status = self.failure();
        SpanBuilder {
            name,
            kind: SpanKind::Server,
            id,
            from: self.moments.begun,
            to: self.ended,
            attributes: attributes.with_error(&status, facts.outcome.as_str()),
            status,
        }
    }

    fn wait(&self, id: SpanId) -> Option<SpanBuilder> {
        let from = self.moments.asked?;
        let decided = self.moments.decided;
        // A client that left while it waited has no decision.
        let to = decided.map_or(self.ended, |decided| decided.at);
        let is_granted = decided.is_some_and(|decided| decided.is_granted);
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
            attributes: attributes.with_error(&status, self.facts.outcome.as_str()),
            status,
        })
    }

    fn hold(&self, id: SpanId) -> Option<SpanBuilder> {
        let from = self.granted()?;
        let mut attributes = SpanAttributes::default();
        attributes.add("seriatim.lost", self.facts.loss.map(LockLoss::as_str));
        self.add_lock(&mut attributes);
        let status = match self.facts.loss {
            Some(LockLoss::Interrupted) | None => Status::Unset,
            Some(_) => self.failure(),
        };
        Some(SpanBuilder {
            name: "lock hold".into(),
            kind: SpanKind::Internal,
            id,
            from,
            // A request is recorded after its lock was given back.
            to: self.ended,
            attributes: attributes.with_error(&status, self.facts.outcome.as_str()),
            status,
        })
    }

    fn backend(&self) -> Option<SpanBuilder> {
        let sent = self.moments.sent.as_ref()?;
        let facts = &self.facts;
        // After the hold, the lock is only given back, in which the backend has no part.
        let done = self
            .granted()
            .and_then(|granted| Some(granted + facts.hold?));
        let to = done.map_or(self.ended, |done| done.clamp(sent.at, self.ended));
        let code = facts.backend_status;
        let (address, port) = match &sent.upstream {
            UpstreamAddress::Port(host, port) => (host.to_string(), Some(i64::from(*port))),
            UpstreamAddress::Socket(path) => (path.display().to_string(), None),
        };
        let mut attributes = SpanAttributes::default();
        attributes
            .add("http.request.method", Some(facts.method))
            .add("server.address", Some(address))
            .add("server.port", port)
            .add("http.response.status_code", code.map(i64::from));
        // For a client span, every status from 400 on is an error.
        let status = match code {
            Some(400..) => Status::error(""),
            _ => self.failure(),
        };
        let kind = match code {
            Some(code @ 400..) => code.to_string(),
            _ => facts.outcome.as_str().to_owned(),
        };
        Some(SpanBuilder {
            name: "backend".into(),
            kind: SpanKind::Client,
            id: self.context.backend,
            from: sent.at,
            to,
            attributes: attributes.with_error(&status, kind),
            status,
        })
    }

    /// When the lock was granted; `None`: it wasn't.
    fn granted(&self) -> Option<Instant> {
        let decided = self.moments.decided.filter(|decided| decided.is_granted)?;
        Some(decided.at)
    }

    /// The status of a span that fails if the request does.
    fn failure(&self) -> Status {
        let facts = &self.facts;
        match facts.outcome.is_failure(facts.status) {
            true => Status::error(facts.error.clone().unwrap_or_default()),
            false => Status::Unset,
        }
    }

    /// The session and its user, which all spans of the request have, by the conventions for generative AI
    /// (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>), for sessions and for users.
    fn session(&self) -> SpanAttributes {
        let mut attributes = SpanAttributes::default();
        let turn = self.facts.route.as_ref().and_then(|it| it.turn.as_ref());
        let Some((turn, key)) = turn.zip(self.facts.key.as_ref()) else {
            return attributes;
        };
        let Some(SessionIds { user, session }) = turn.lock.key.read(key.as_str()) else {
            return attributes;
        };
        let session = redact::text(&session).into_owned();
        // A constant of the route, such as `unknown`, is no user. The hash of a user's id could be guessed.
        let is_constant = |user: &String| turn.user_id.iter().any(|it| it.to_string() == *user);
        let user = user.filter(|user| !is_constant(user) && !redact::is_enabled());
        attributes
            .add("gen_ai.conversation.id", Some(session.clone()))
            .add("session.id", Some(session))
            .add("user.id", user);
        attributes
    }

    fn add_lock(&self, attributes: &mut SpanAttributes) {
        let key = self.facts.key.as_ref();
        let fence = self.facts.fence.and_then(|fence| i64::try_from(fence).ok());
        attributes
            .add(
                "seriatim.session_key",
                key.map(|key| key.redacted().into_owned()),
            )
            .add("seriatim.fence", fence);
    }
}

// === impl TraceContext ===

impl TraceContext {
    fn state(&self) -> TraceState {
        let values = self.state.iter().filter_map(|value| value.to_str().ok());
        let list = values.collect::<Vec<_>>().join(",");
        // An invalid `tracestate` passes to the backend as it is, and is in no span.
        TraceState::from_str(&list).unwrap_or_default()
    }
}

/// The attributes of a span.
#[derive(Default)]
struct SpanAttributes(Vec<KeyValue>);

// === impl SpanAttributes ===

impl SpanAttributes {
    /// Adds an attribute, if it has a value.
    fn add(&mut self, name: &'static str, value: Option<impl Into<Value>>) -> &mut Self {
        self.0.extend(value.map(|value| KeyValue::new(name, value)));
        self
    }

    /// The attributes, with `error.type` if the status is an error.
    fn with_error(mut self, status: &Status, kind: impl Into<Value>) -> Vec<KeyValue> {
        let is_error = matches!(status, Status::Error { .. });
        self.add("error.type", is_error.then_some(kind));
        self.0
    }
}
