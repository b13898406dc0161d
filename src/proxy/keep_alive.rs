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
use http_body_util::{Either, Full};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use super::record::CommentCounter;
use super::refusal::{ErrorFormat, SentenceLanguage, StreamError, UnfitResponse};
use super::stream::ResponseAborted;
use super::{SentBody, TurnBody};
use crate::config::{EventName, StreamKind};
use crate::http_syntax::weighted_items;
use crate::lock::WaitPlace;

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
    /// The response is to begin now. `waits`: the turn does, and doesn't run.
    Wanted { turn: WaitingTurn, waits: bool },
    /// The response has begun, and the turn waits.
    Waiting,
    /// The response has begun, and the turn runs.
    Running,
}

/// What the client of a waiting turn is told.
pub(super) struct WaitingTurn {
    pub(super) comments: CommentCounter,
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
type OwnBody = TurnBody;

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
    /// The turn waits, or runs while the backend has not responded.
    Turn(TurnFuture),
    /// The backend's event stream.
    Stream {
        body: SentBody,
        mark: MarkFilter,
    },
    /// An error of the proxy: an event.
    Refused(Full<Bytes>),
    /// Another response of the backend: its first bytes are told when it has ended. The turn runs until then.
    Other {
        body: SentBody,
        head: OtherHead,
    },
    Over,
}

/// What is told of another response than an event stream.
struct OtherHead {
    why: UnfitResponse,
    /// Its first bytes.
    text: Vec<u8>,
    /// Whether these are no text.
    is_encoded: bool,
}

/// Takes the byte order mark off a stream. The mark counts only at the very beginning (WHATWG HTML, "Parsing an event
/// stream"). Behind a comment, it would be part of the first event.
#[derive(Default)]
struct MarkFilter {
    /// How many bytes of a mark have arrived, and are held back.
    held: usize,
    /// Whether the bytes at the beginning have passed.
    has_begun: bool,
}

/// The byte order mark in UTF-8.
const MARK: &[u8] = "\u{feff}".as_bytes();

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

    /// Asks for the response to begin. It begins when the task of the request polls it next. `waits`: the turn waits,
    /// and doesn't run.
    pub(super) fn want(&self, turn: WaitingTurn, waits: bool) {
        *self.0.lock() = EarlyStep::Wanted { turn, waits };
    }

    /// Notes that the turn has its lock, or that the turn that it repeats has.
    pub(super) fn wait_ended(&self) {
        let mut step = self.0.lock();
        if let EarlyStep::Waiting = *step {
            *step = EarlyStep::Running;
        }
    }

    fn take_wanted(&self) -> Option<WaitingTurn> {
        let mut step = self.0.lock();
        match replace(&mut *step, EarlyStep::Waiting) {
            EarlyStep::Wanted { turn, waits } => {
                if !waits {
                    *step = EarlyStep::Running;
                }
                Some(turn)
            }
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
        weighted_items(value).any(|(name, _)| is_event_type(name))
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

/// Why a response can't follow the head of an event stream without an encoding; `None`: it can, and comments can be
/// written into it.
pub(super) fn unfit_response<B>(response: &Response<B>) -> Option<UnfitResponse> {
    let (status, headers) = (response.status(), response.headers());
    if status.is_client_error() || status.is_server_error() {
        return Some(UnfitResponse::Failed(status));
    }
    if status != StatusCode::OK {
        return Some(UnfitResponse::OtherStatus(status));
    }
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let name = kind.and_then(|kind| kind.split(';').next());
    if !name.is_some_and(is_event_type) {
        return Some(UnfitResponse::OtherType);
    }
    is_encoded(headers).then_some(UnfitResponse::Encoded)
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
                let position = position.unwrap_or_default();
                write!(text, ": queued{position} waiting={}", duration(waiting))
            }
        };
        text.push_str("\n\n");
        text.into()
    }

    /// What the client gets of the turn's own response.
    fn own(response: Response<OwnBody>) -> WaitingStep {
        let why = unfit_response(&response);
        let (head, body) = response.into_parts();
        match (body, why) {
            (Either::Left(event), _) => WaitingStep::Refused(event),
            (Either::Right(body), None) => WaitingStep::Stream {
                body,
                mark: MarkFilter::default(),
            },
            (Either::Right(body), Some(why)) => WaitingStep::Other {
                body,
                head: OtherHead {
                    why,
                    text: Vec::new(),
                    is_encoded: is_encoded(&head.headers),
                },
            },
        }
    }
}

// === impl MarkFilter ===

impl MarkFilter {
    /// The next bytes of the stream without the mark. A stream that ends inside the mark has no event, and loses these
    /// bytes.
    fn pass(&mut self, data: Bytes) -> Bytes {
        if self.has_begun {
            return data;
        }
        let left = &MARK[self.held..];
        let pairs = data.iter().zip(left);
        let equal = pairs.take_while(|(byte, of_mark)| byte == of_mark).count();
        if equal == data.len() && equal < left.len() {
            self.held += equal;
            return Bytes::new();
        }
        self.has_begun = true;
        match (equal == left.len(), self.held) {
            (true, _) => data.slice(equal..),
            (false, 0) => data,
            (false, held) => [&MARK[..held], &data].concat().into(),
        }
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

    /// The event that the client gets. `aborted` says why the response broke off; `None`: it is whole.
    fn event(&self, turn: &WaitingTurn, aborted: Option<&ResponseAborted>) -> Bytes {
        let error = match aborted {
            None => StreamError::Unfit(self.why),
            Some(ResponseAborted::LockLost(loss)) => StreamError::LockLost(*loss),
            Some(ResponseAborted::Silent) => StreamError::Silent,
            Some(
                ResponseAborted::Backend(_) | ResponseAborted::Answer | ResponseAborted::AnswerGone,
            ) => StreamError::BrokeOff,
        };
        let text = String::from_utf8_lossy(&self.text);
        error.event(&text, &turn.format, turn.language)
    }
}

/// A duration as a comment says it: in whole seconds, below a second in whole milliseconds.
fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{}ms", duration.as_millis()),
        seconds => format!("{seconds}s"),
    }
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
                WaitingStep::Stream { body, mark } => {
                    let frame = ready!(Pin::new(body).poll_frame(cx));
                    let pass = |frame: Frame<Bytes>| frame.map_data(|data| mark.pass(data));
                    return Poll::Ready(frame.map(|frame| frame.map(pass).map_err(Into::into)));
                }
                WaitingStep::Refused(event) => {
                    let event = ready!(Pin::new(event).poll_frame(cx));
                    this.step = WaitingStep::Over;
                    return Poll::Ready(event.map(|event| event.map_err(Into::into)));
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
                    let event = head.event(&this.turn, aborted.as_ref());
                    this.step = WaitingStep::Over;
                    return Poll::Ready(Some(Ok(Frame::data(event))));
                }
                WaitingStep::Over => return Poll::Ready(None),
            }
        }
        ready!(this.timer.as_mut().poll(cx));
        this.turn.comments.sent();
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
            let fits = unfit_response(&response).is_none();
            assert_eq!(fits, expected, "{encoding:?}");
        }
    }

    #[test]
    fn a_client_that_excludes_event_streams_reads_none() {
        for (accept, expected) in [
            ("text/event-stream", true),
            (
                "application/json, Text/Event-Stream; charset=utf-8; q=0.1",
                true,
            ),
            ("text/event-stream;q=0, */*", false),
            ("text/event-stream; Q=0.000", false),
            ("*/*", false),
            ("text/event-streams", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(ACCEPT, HeaderValue::from_static("application/json"));
            headers.append(ACCEPT, HeaderValue::from_static(accept));
            let reads = reads_events(StreamKind::Accept, &headers);
            assert_eq!(reads, expected, "{accept:?}");
        }
    }

    #[test]
    fn a_wait_below_a_second_is_told_in_milliseconds() {
        for (millis, expected) in [
            (0, "0ms"),
            (100, "100ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1999, "1s"),
            (90_000, "90s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn a_byte_order_mark_does_not_follow_comments() {
        for (sent, left) in [
            ("\u{feff}data: 1\n\n", "data: 1\n\n"),
            ("\u{feff}\u{feff}x", "\u{feff}x"),
            ("data: \u{feff}\n\n", "data: \u{feff}\n\n"),
            // Begins as the mark does.
            ("\u{fec0}: x\n\n", "\u{fec0}: x\n\n"),
            ("", ""),
        ] {
            let bytes = Bytes::from_static(sent.as_bytes());
            // However the stream is cut.
            for first in 0..=sent.len() {
                for second in first..=sent.len() {
                    let mut mark = MarkFilter::default();
                    let parts = [0..first, first..second, second..sent.len()];
                    let parts = parts.map(|part| mark.pass(bytes.slice(part)));
                    let cut = format!("{sent:?} cut at {first} and {second}");
                    assert_eq!(parts.concat(), left.as_bytes(), "{cut}");
                }
            }
        }
    }
}
