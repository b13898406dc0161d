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
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::response;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::{Either, Full};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use super::refusal::{ErrorFormat, SentenceLanguage};
use super::stream::GuardedBody;
use crate::config::{EventName, LockConfig, StreamKind};
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
    /// The response is to begin now.
    Wanted(WaitingTurn),
    /// The response has begun, and the turn waits.
    Waiting,
    /// The response has begun, and the turn runs.
    Running,
}

/// What the client of a waiting turn is told.
pub(super) struct WaitingTurn {
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
type OwnBody = Either<Full<Bytes>, GuardedBody>;

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
    Stream(OwnBody),
    /// An error of the proxy, or another response of the backend: its first bytes are told.
    Other {
        status: StatusCode,
        body: OwnBody,
        text: Vec<u8>,
    },
    Over,
}

/// How many bytes of another response than an event stream its client is told.
const LONGEST_TEXT: usize = 2048;

// === impl EarlyResponse ===

impl EarlyResponse {
    /// For a request whose client can get the head of its response early: HTTP/1.0 could not tell a whole body from
    /// one that is cut off.
    pub(super) fn for_request<B>(request: &Request<B>) -> Option<Self> {
        let can_begin = request.version() >= Version::HTTP_11 && request.method() != Method::HEAD;
        can_begin.then(Self::default)
    }

    /// Asks for the response to begin. It begins when the task of the request polls it next.
    pub(super) fn want(&self, turn: WaitingTurn) {
        *self.0.lock() = EarlyStep::Wanted(turn);
    }

    /// Notes that the turn has its lock, or is refused. Gives whether the response has begun.
    pub(super) fn wait_ended(&self) -> bool {
        let mut step = self.0.lock();
        match *step {
            EarlyStep::Waiting | EarlyStep::Running => {
                *step = EarlyStep::Running;
                true
            }
            EarlyStep::NotWanted | EarlyStep::Wanted(_) => {
                *step = EarlyStep::NotWanted;
                false
            }
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

/// Whether the client of a request reads an event stream.
pub(super) fn reads_events(lock: &LockConfig, head: &Parts) -> bool {
    let is_listed = |value: &HeaderValue| {
        let value = value.to_str().unwrap_or_default();
        let mut types = value.split(',').map(|item| item.split(';').next());
        types.any(|name| name.is_some_and(is_event_stream))
    };
    match lock.stream {
        StreamKind::Sse => true,
        StreamKind::Accept => head.headers.get_all(ACCEPT).iter().any(is_listed),
    }
}

/// Whether a media type without its parameters is that of an event stream.
fn is_event_stream(name: &str) -> bool {
    name.trim().eq_ignore_ascii_case("text/event-stream")
}

/// Whether a response is an event stream into which comments can be written.
pub(super) fn is_open_stream(head: &response::Parts) -> bool {
    is_plain_stream(head) && !head.headers.contains_key(CONTENT_LENGTH)
}

/// Whether a response is an event stream without an encoding.
fn is_plain_stream(head: &response::Parts) -> bool {
    let headers = &head.headers;
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let name = kind.and_then(|kind| kind.split(';').next());
    head.status == StatusCode::OK
        && name.is_some_and(is_event_stream)
        && !headers.contains_key(CONTENT_ENCODING)
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
        let (head, body) = response.into_parts();
        if matches!(body, Either::Right(_)) && is_plain_stream(&head) {
            return WaitingStep::Stream(body);
        }
        WaitingStep::Other {
            status: head.status,
            body,
            text: Vec::new(),
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
                WaitingStep::Turn(turn) => {
                    if let Poll::Ready(response) = turn.as_mut().poll(cx) {
                        this.step = Self::own(response);
                        continue;
                    }
                    ready!(this.timer.as_mut().poll(cx));
                    this.timer
                        .as_mut()
                        .reset(Instant::now() + this.turn.interval);
                    return Poll::Ready(Some(Ok(Frame::data(this.notice()))));
                }
                WaitingStep::Stream(body) => return Pin::new(body).poll_frame(cx),
                WaitingStep::Other { status, body, text } => {
                    if let Some(Ok(frame)) = ready!(Pin::new(&mut *body).poll_frame(cx)) {
                        let data = frame.into_data().unwrap_or_default();
                        let room = LONGEST_TEXT.saturating_sub(text.len());
                        text.extend(data.into_iter().take(room));
                        continue;
                    }
                    let event = match body {
                        // In the route's format already.
                        Either::Left(_) => error_event(text),
                        Either::Right(_) => {
                            let (turn, text) = (&this.turn, String::from_utf8_lossy(text));
                            let error = turn.format.backend_error(*status, &text, turn.language);
                            error_event(&error)
                        }
                    };
                    this.step = WaitingStep::Over;
                    return Poll::Ready(Some(Ok(Frame::data(event))));
                }
                WaitingStep::Over => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.step, WaitingStep::Over)
    }
}
