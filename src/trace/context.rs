//! The headers that carry a trace (W3C Trace Context, <https://www.w3.org/TR/trace-context/>).
//!
//! Invariant: an invalid `traceparent` counts as none, so that a new trace begins. A trace that its caller
//! doesn't record isn't recorded here either.

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

use super::{TRACEPARENT, TRACESTATE};

/// The trace of a request, and the places of its spans in it.
#[derive(Clone, Debug)]
pub(super) struct TraceContext {
    pub(super) trace: TraceId,
    /// The caller's span; `None`: the trace begins here.
    pub(super) parent: Option<SpanId>,
    /// The caller's trace and span, if the turn began another trace; the spans link to it.
    pub(super) left: Option<LeftTrace>,
    /// The known flags (§3.2.2.5): bit 0 means that the trace is recorded, bit 1 (level 2) that its id is
    /// random.
    pub(super) flags: u8,
    /// The caller's `tracestate`.
    pub(super) state: Vec<HeaderValue>,
    /// The span of the request to the backend.
    pub(super) backend: SpanId,
}

/// A caller's trace that doesn't go on, and the caller's span in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeftTrace {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
}

/// The trace that a turn begins for its backend. Its id tells which turn a call of the backend comes from, to a
/// backend that passes on nothing but its trace.
#[derive(Clone, Debug)]
pub struct TurnTrace {
    id: u128,
    /// The turn and those that wait for its request, for `tracestate`.
    tags: String,
}

/// The key in `tracestate` for the turns that wait for a request (§3.3.1.3.1).
const STATE_KEY: &[u8] = b"seriatim=";

/// The length of `tracestate` that every service has to pass on (§3.3.1.5), in bytes.
const LONGEST_STATE: usize = 512;

const SAMPLED: u8 = 1;
const KNOWN_FLAGS: u8 = 0b11;

/// A parsed `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ParentContext {
    trace: u128,
    span: u64,
    flags: u8,
}

// === impl TraceContext ===

impl TraceContext {
    /// The context of a request with these headers; `None`: the trace isn't recorded. Without a caller's
    /// trace, a new one with the id `trace` begins. `backend` is the id of the span of the backend.
    pub(super) fn from_headers(
        headers: &HeaderMap,
        trace: TraceId,
        backend: SpanId,
    ) -> Option<Self> {
        let Some(parent) = ParentContext::from_headers(headers) else {
            return Some(Self {
                trace,
                parent: None,
                left: None,
                flags: SAMPLED,
                state: Vec::new(),
                backend,
            });
        };
        (parent.flags & SAMPLED != 0).then(|| Self {
            trace: TraceId::from(parent.trace),
            parent: Some(SpanId::from(parent.span)),
            left: None,
            flags: parent.flags & KNOWN_FLAGS,
            state: state(headers),
            backend,
        })
    }

    /// Whether the trace begins here.
    pub(super) fn is_new(&self) -> bool {
        self.parent.is_none()
    }

    /// Begins the trace of a turn in place of the caller's (§3.4, "Restart trace").
    pub(super) fn restart(&mut self, turn: &TurnTrace) {
        let caller = self.parent.take();
        self.left = caller.map(|span| LeftTrace {
            trace: self.trace,
            span,
        });
        self.trace = TraceId::from(turn.id);
        self.flags &= SAMPLED;
        self.state.clear();
    }

    /// Adds the context to the headers for the backend. `turn` is the trace that the turn began.
    pub(super) fn add_to(&self, headers: &mut HeaderMap, turn: Option<&TurnTrace>) {
        if self.is_new() {
            // It belongs to a `traceparent` that is invalid (§3.4), or to the trace that was left.
            headers.remove(TRACESTATE);
        }
        if let Ok(value) = HeaderValue::try_from(self.traceparent()) {
            headers.insert(TRACEPARENT, value);
        }
        let state = turn.map(|turn| [STATE_KEY, turn.tags.as_bytes()].concat());
        if let Some(Ok(value)) = state.map(HeaderValue::try_from) {
            headers.insert(TRACESTATE, value);
        }
    }

    /// The `traceparent` for the backend.
    fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.backend, self.flags)
    }
}

// === impl TurnTrace ===

impl TurnTrace {
    /// The trace with this id, which must not be 0. `tags` go with it, as a value of `tracestate`.
    pub fn new(id: u128, tags: String) -> Self {
        Self { id, tags }
    }

    /// Adds the trace to the headers for the backend, for a request that isn't traced here. Whether the trace
    /// is recorded, its caller says; without a caller it is.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        let caller = ParentContext::from_headers(headers);
        let context = TraceContext {
            trace: TraceId::from(self.id),
            parent: None,
            left: None,
            flags: caller.map_or(SAMPLED, |caller| caller.flags & SAMPLED),
            state: Vec::new(),
            backend: RandomIdGenerator::default().new_span_id(),
        };
        context.add_to(headers, Some(self));
    }
}

/// The id of the trace that a request belongs to; `None`: it has no valid `traceparent`.
pub fn trace_id(headers: &HeaderMap) -> Option<u128> {
    Some(ParentContext::from_headers(headers)?.trace)
}

/// What `tracestate` says of the turns that wait for a request.
pub fn callers(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(TRACESTATE).iter();
    let members = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    members.filter_map(|member| member.trim_ascii().strip_prefix(STATE_KEY))
}

/// The caller's `tracestate`; none if it is too long. It is copied, because a header value keeps the buffer
/// of the whole head alive.
fn state(headers: &HeaderMap) -> Vec<HeaderValue> {
    let values = headers.get_all(TRACESTATE);
    let length: usize = values.iter().map(HeaderValue::len).sum();
    let kept = values.iter().filter(|_| length <= LONGEST_STATE);
    kept.filter_map(|value| HeaderValue::from_bytes(value.as_bytes()).ok())
        .collect()
}

// === impl ParentContext ===

impl ParentContext {
    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        // Two headers count as none (§3.2).
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.as_bytes()),
            _ => None,
        }
    }

    /// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.
    fn parse(value: &[u8]) -> Option<Self> {
        const LENGTH: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;
        let (known, rest) = value.split_at_checked(LENGTH)?;
        let mut parts = known.split(|byte| *byte == b'-');
        let mut part = |length| parts.next().filter(|part| part.len() == length);
        let version = hex(part(2)?)?;
        let (trace, span) = (hex(part(32)?)?, hex(part(16)?)?);
        let flags = hex(part(2)?)?;
        // A later version may add more after a dash; version ff is invalid (§3.2.2.1, §4.3).
        let is_whole = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        (is_whole && trace != 0 && span != 0).then_some(Self {
            trace,
            span: span as u64,
            flags: flags as u8,
        })
    }
}

/// Parses lower-case hex digits; `None` for anything else, upper-case digits included.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn context(parents: &[&str]) -> Option<TraceContext> {
        let mut headers = HeaderMap::new();
        for parent in parents {
            headers.append(TRACEPARENT, parent.parse().unwrap());
        }
        headers.append(TRACESTATE, "congo=t61rcWkgMzE".parse().unwrap());
        TraceContext::from_headers(&headers, TraceId::from(7), SpanId::from(9))
    }

    #[test]
    fn a_callers_trace_is_joined() {
        for flags in ["01", "03"] {
            let context = context(&[&format!("00-{TRACE}-00f067aa0ba902b7-{flags}")]).unwrap();
            assert_eq!(context.trace.to_string(), TRACE, "it is the same trace");
            assert_eq!(
                context.parent.unwrap().to_string(),
                "00f067aa0ba902b7",
                "the caller's span is above"
            );
            assert_eq!(
                context.traceparent(),
                format!("00-{TRACE}-0000000000000009-{flags}"),
                "the backend's are below this proxy's"
            );
            assert_eq!(context.state.len(), 1, "what goes with it stays with it");
        }
    }

    #[test]
    fn what_goes_with_a_trace_and_is_too_long_is_in_no_span() {
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, parent.parse().unwrap());
        for length in [LONGEST_STATE, 1] {
            let state = format!("a={}", "x".repeat(length - "a=".len().min(length)));
            headers.append(TRACESTATE, state[..length].parse().unwrap());
            let context =
                TraceContext::from_headers(&headers, TraceId::from(7), SpanId::from(9)).unwrap();
            let is_kept = length == LONGEST_STATE;
            assert_eq!(!context.state.is_empty(), is_kept, "{length} bytes more");
        }
    }

    #[test]
    fn of_a_later_version_what_is_known_is_read() {
        for rest in ["", "-what-the-future-brings"] {
            let parent = format!("cc-{TRACE}-00f067aa0ba902b7-ff{rest}");
            let context = context(&[&parent]).unwrap();
            assert!(!context.is_new(), "it is joined: {parent}");
            assert_eq!(context.flags, 0b11, "flags that nobody knows are not set");
        }
    }

    #[test]
    fn a_trace_that_its_caller_does_not_record_is_not_recorded() {
        for flags in ["00", "02"] {
            let context = context(&[&format!("00-{TRACE}-00f067aa0ba902b7-{flags}")]);
            assert!(context.is_none(), "its flags say so: {flags}");
        }
    }

    #[test]
    fn what_is_no_traceparent_begins_a_new_trace() {
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let bad = [
            String::new(),
            good.to_uppercase(),
            good[..54].to_owned(),
            format!("{good}-"),
            format!("{good}0"),
            good.replace("00-4", "ff-4"),
            good.replace("00-4", "0g-4"),
            good.replace(TRACE, &"0".repeat(32)),
            good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            good.replace('-', "_"),
            good.replace("4736-00f0", "47360-0f0"),
            format!("cc{}.x", &good[2..]),
        ];
        for parent in &bad {
            let context = context(&[parent]).unwrap();
            assert!(context.is_new(), "it is as if it weren't there: {parent}");
            assert_eq!(context.trace, TraceId::from(7), "the trace is another one");
            assert!(context.state.is_empty(), "what went with it doesn't count");
        }
        assert!(
            context(&[&good, &good]).unwrap().is_new(),
            "nor is one of two"
        );
    }
}
