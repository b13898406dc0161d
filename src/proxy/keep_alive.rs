//! A turn whose client is kept while it waits: the response begins before the turn does.
//!
//! The client gets the head of an event stream and comments (WHATWG HTML, "Server-sent events"), which it ignores.
//! When the turn has its lock, the backend's event stream follows byte for byte. Anything else becomes one `error`
//! event. Invariant: the turn is polled by the body of the response, so it ends with the client's connection, as any
//! other turn does.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::mem::replace;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::Either;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use super::refusal::{ErrorFormat, Refusal, SentenceLanguage};
use super::stream::ResponseAborted;
use crate::config::{EventName, StreamKind};
use crate::lock::WaitPlace;
use crate::wire::Bounds;

/// Where a waiting turn asks for a response before its own, and where its request's handler finds that. Clones share
/// one value.
#[derive(Clone, Default)]
pub(super) struct EarlyResponse(Arc<Mutex<EarlyStep>>);

/// How far an early response is.
#[derive(Default)]
enum EarlyStep {
    /// The turn has not waited long enough.
    #[default]
    NotWanted,
    /// The response is to begin now.
    Wanted(WaitingTurn),
    /// The response has begun, and the turn waits.
    Waiting,
    /// The response has begun, and the turn runs.
    Running,
}

/// What the client of a waiting turn is told.
pub(super) struct WaitingTurn {
    /// The bounds of the client's connection.
    pub(super) client: Bounds,
    /// The time between two comments.
    pub(super) interval: Duration,
    /// The name of the event that has the place; `None`: a comment has it.
    pub(super) event: Option<EventName>,
    pub(super) place: Arc<WaitPlace>,
    /// Since when the turn waits.
    pub(super) since: Instant,
    /// The name of the turn's route.
    pub(super) route: Box<str>,
    /// The format of an error.
    pub(super) format: ErrorFormat,
    pub(super) language: SentenceLanguage,
}

/// The body of a turn's own response: an error of the proxy, or what the backend sends.
type OwnBody = super::TurnBody;

/// The future of a turn's own response.
type TurnFuture = Pin<Box<dyn Future<Output = Response<OwnBody>> + Send>>;

/// The body of a response that began before its turn.
pub struct WaitingBody {
    step: WaitingStep,
    early: EarlyResponse,
    turn: WaitingTurn,
    /// Fires when the next comment is due.
    timer: Pin<Box<Sleep>>,
}

enum WaitingStep {
    /// The turn waits, or runs and has no response yet.
    Turn(TurnFuture),
    /// The backend's event stream.
    Stream {
        body: OwnBody,
        /// Whether the client has had a part of it.
        has_begun: bool,
    },
    /// An error of the proxy, or another response of the backend: its first bytes are told.
    Other {
        body: OwnBody,
        head: OtherHead,
    },
    Over,
}

/// What is told of another response than an event stream.
struct OtherHead {
    status: StatusCode,
    /// Its first bytes.
    text: Vec<u8>,
    /// Whether these are no text.
    is_encoded: bool,
}

/// How many bytes of another response than an event stream its client is told.
const LONGEST_TEXT: usize = 2048;

// === impl EarlyResponse ===

impl EarlyResponse {
    /// For a request whose client can get the head of its response early, and reads an event stream: HTTP/1.0 could
    /// not tell a whole body from one that is cut off.
    pub(super) fn for_request<B>(kind: StreamKind, request: &Request<B>) -> Option<Self> {
        let can_begin = request.version() >= Version::HTTP_11 && request.method() != Method::HEAD;
        (can_begin && reads_events(kind, request.headers())).then(Self::default)
    }

    /// Asks for the response to begin. It begins when the task of the request polls it next.
    pub(super) fn want(&self, turn: WaitingTurn) {
        *self.0.lock() = EarlyStep::Wanted(turn);
    }

    /// Notes that the turn has its lock, or is refused.
    pub(super) fn wait_ended(&self) {
        let mut step = self.0.lock();
        if let EarlyStep::Waiting = *step {
            *step = EarlyStep::Running;
        }
    }

    fn take_wanted(&self) -> Option<WaitingTurn> {
        let mut step = self.0.lock();
        match replace(&mut *step, EarlyStep::Waiting) {
            EarlyStep::Wanted(turn) => Some(turn),
            other => {
                *step = other;
                None
            }
        }
    }

    fn is_waiting(&self) -> bool {
        matches!(*self.0.lock(), EarlyStep::Waiting)
    }

    /// Waits for the turn's response, or for the turn to ask for another one before that.
    ///
    /// # Errors
    /// When the turn asks for an early response: gives the body that goes on with the turn.
    pub(super) async fn response(
        self,
        mut turn: TurnFuture,
    ) -> Result<Response<OwnBody>, WaitingBody> {
        let early = &self;
        let ended = poll_fn(|cx| match turn.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Ok(response)),
            Poll::Pending => match early.take_wanted() {
                Some(waiting) => Poll::Ready(Err(waiting)),
                None => Poll::Pending,
            },
        });
        ended.await.map_err(|waiting| WaitingBody {
            step: WaitingStep::Turn(turn),
            // With the head, so that everybody on the way sees bytes of the body.
            timer: Box::pin(sleep(Duration::ZERO)),
            early: self,
            turn: waiting,
        })
    }
}

/// Whether the client of a request with these headers reads an event stream.
pub(super) fn reads_events(kind: StreamKind, headers: &HeaderMap) -> bool {
    let is_listed = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        let mut types = value.split(',').map(|item| item.split(';').next());
        types.any(|name| name.is_some_and(is_event_type))
    };
    match kind {
        StreamKind::Sse => true,
        StreamKind::Accept => headers.get_all(ACCEPT).iter().any(is_listed),
    }
}

/// Whether a media type without its parameters is that of an event stream.
fn is_event_type(name: &str) -> bool {
    name.trim().eq_ignore_ascii_case("text/event-stream")
}

/// Whether a response is an event stream without an encoding, so that comments can be written into it.
pub(super) fn is_event_stream<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let name = kind.and_then(|kind| kind.split(';').next());
    response.status() == StatusCode::OK && name.is_some_and(is_event_type) && !is_encoded(headers)
}

/// Whether the headers name an encoding of the body. `identity` is none (RFC 9110 §12.5.3); `none`, which is no
/// registered one, is written to keep compressors off a stream.
fn is_encoded(headers: &HeaderMap) -> bool {
    let is_one = |value: &HeaderValue| {
        let name = value.as_bytes().trim_ascii().to_ascii_lowercase();
        !matches!(&*name, b"" | b"identity" | b"none")
    };
    headers.get_all(CONTENT_ENCODING).iter().any(is_one)
}

/// A stream's first bytes without a byte order mark, which counts only at the very beginning (WHATWG HTML, "Parsing an
/// event stream"). Behind a comment, it would be part of the first event.
fn without_mark(frame: Frame<Bytes>) -> Frame<Bytes> {
    const MARK: &[u8] = "\u{feff}".as_bytes();
    frame.map_data(|data| match data.starts_with(MARK) {
        true => data.slice(MARK.len()..),
        false => data,
    })
}

// === impl WaitingBody ===

impl WaitingBody {
    /// The name of the turn's route.
    pub(super) fn route(&self) -> &str {
        &self.turn.route
    }

    /// The head of the response.
    pub(super) fn headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // nginx and those that imitate it collect responses in memory otherwise.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        headers
    }

    /// What the client is told while the turn has no response.
    fn notice(&self) -> Bytes {
        let waiting = self.turn.since.elapsed();
        let place = self.turn.place.get();
        let is_waiting = self.early.is_waiting();
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = match &self.turn.event {
            _ if !is_waiting => write!(text, ": running"),
            Some(name) => {
                let position = place.map_or("null".into(), |place| place.to_string());
                let millis = waiting.as_millis();
                write!(
                    text,
                    "event: {name}\ndata: {{\"position\":{position},\"waiting_ms\":{millis}}}"
                )
            }
            None => {
                let position = place.map(|place| format!(" position={place}"));
                let seconds = waiting.as_secs();
                write!(
                    text,
                    ": queued{} waiting={seconds}s",
                    position.unwrap_or_default()
                )
            }
        };
        text.push_str("\n\n");
        text.into()
    }

    /// What the client gets of the turn's own response.
    fn own(response: Response<OwnBody>) -> WaitingStep {
        let is_backends = matches!(response.body(), Either::Right(_));
        if is_backends && is_event_stream(&response) {
            return WaitingStep::Stream {
                body: response.into_body(),
                has_begun: false,
            };
        }
        let (head, body) = response.into_parts();
        let head = OtherHead {
            status: head.status,
            text: Vec::new(),
            is_encoded: is_encoded(&head.headers),
        };
        WaitingStep::Other { body, head }
    }
}

// === impl OtherHead ===

impl OtherHead {
    fn add(&mut self, data: Bytes) {
        if !self.is_encoded {
            let room = LONGEST_TEXT.saturating_sub(self.text.len());
            self.text.extend(data.into_iter().take(room));
        }
    }

    /// The data of the `error` event. `is_own`: the response is an error of the proxy. `aborted` says why the response
    /// of the backend broke off, as far as is known.
    fn error(
        &self,
        turn: &WaitingTurn,
        is_own: bool,
        aborted: Option<Option<&ResponseAborted>>,
    ) -> Vec<u8> {
        let (format, language) = (&turn.format, turn.language);
        if is_own {
            // In the route's format already.
            return self.text.clone();
        }
        match aborted {
            None => {
                let text = String::from_utf8_lossy(&self.text);
                format.backend_error(self.status, &text, language)
            }
            Some(Some(ResponseAborted::LockLost(loss))) => {
                let refusal = Refusal::LockLost(*loss).response(format, language);
                refusal.into_body().into()
            }
            Some(Some(error @ ResponseAborted::Silent)) => {
                format.backend_error(StatusCode::GATEWAY_TIMEOUT, &error.to_string(), language)
            }
            Some(
                Some(
                    ResponseAborted::Backend(_)
                    | ResponseAborted::Answer
                    | ResponseAborted::AnswerGone,
                )
                | None,
            ) => format.backend_error(StatusCode::BAD_GATEWAY, "the backend broke off", language),
        }
    }
}

/// An `error` event with this data.
fn error_event(data: &[u8]) -> Bytes {
    let mut event = b"event: error\n".to_vec();
    for line in data.split(|byte| *byte == b'\n') {
        event.extend_from_slice(b"data: ");
        event.extend_from_slice(line);
        event.push(b'\n');
    }
    event.push(b'\n');
    event.into()
}

impl Body for WaitingBody {
    type Data = Bytes;
    type Error = <OwnBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        loop {
            match &mut this.step {
                WaitingStep::Turn(turn) => match turn.as_mut().poll(cx) {
                    Poll::Ready(response) => this.step = Self::own(response),
                    Poll::Pending => break,
                },
                WaitingStep::Stream { body, has_begun } => {
                    let frame = ready!(Pin::new(body).poll_frame(cx));
                    let is_first = !std::mem::replace(has_begun, true);
                    let frame = frame.map(|frame| match is_first {
                        true => frame.map(without_mark),
                        false => frame,
                    });
                    return Poll::Ready(frame);
                }
                WaitingStep::Other { body, head } => {
                    let aborted = match Pin::new(&mut *body).poll_frame(cx) {
                        Poll::Pending => break,
                        Poll::Ready(Some(Ok(frame))) => {
                            head.add(frame.into_data().unwrap_or_default());
                            continue;
                        }
                        Poll::Ready(Some(Err(aborted))) => Some(aborted),
                        Poll::Ready(None) => None,
                    };
                    let is_own = matches!(body, Either::Left(_));
                    let aborted = aborted.as_ref().map(|error| error.downcast_ref());
                    let event = error_event(&head.error(&this.turn, is_own, aborted));
                    this.step = WaitingStep::Over;
                    return Poll::Ready(Some(Ok(Frame::data(event))));
                }
                WaitingStep::Over => return Poll::Ready(None),
            }
        }
        ready!(this.timer.as_mut().poll(cx));
        this.turn.client.on_comment();
        let next = Instant::now() + this.turn.interval;
        this.timer.as_mut().reset(next);
        Poll::Ready(Some(Ok(Frame::data(this.notice()))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.step, WaitingStep::Over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_that_is_none_leaves_an_event_stream_as_it_is() {
        for (encoding, expected) in [
            (None, true),
            (Some(""), true),
            (Some("identity"), true),
            (Some(" None "), true),
            (Some("gzip"), false),
            (Some("identity, br"), false),
        ] {
            let mut response = Response::new(());
            let headers = response.headers_mut();
            let kind = HeaderValue::from_static("Text/Event-Stream; charset=utf-8");
            headers.insert(CONTENT_TYPE, kind);
            if let Some(encoding) = encoding {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
            }
            assert_eq!(is_event_stream(&response), expected, "{encoding:?}");
        }
    }

    #[test]
    fn a_byte_order_mark_does_not_follow_comments() {
        let data = |text: &'static str| Frame::data(Bytes::from_static(text.as_bytes()));
        for (sent, left) in [
            ("\u{feff}data: 1\n\n", "data: 1\n\n"),
            ("data: \u{feff}\n\n", "data: \u{feff}\n\n"),
            ("", ""),
        ] {
            let frame = without_mark(data(sent)).into_data().expect("data");
            assert_eq!(frame, left);
        }
    }
}
