//! The backend: a child process that answers turns at once, or with a stream of events.
//!
//! It runs on one thread and reads the body without using it: the benchmark measures the proxy in front of it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{Instant, Interval, interval_at};

use super::process;
use crate::Failure;

/// The query that asks for a stream of one event, which stays open until the client leaves.
pub(crate) const HOLD: &str = "hold";

/// The query that asks for a stream of [`EVENTS_PER_SECOND`].
pub(crate) const EVENTS: &str = "events";

/// About as many as a language model sends tokens in a second.
pub(crate) const EVENTS_PER_SECOND: u32 = 20;

/// The last byte of each event. No other byte of a streamed response equals it, so counting it counts events.
pub(crate) const EVENT_END: u8 = b'}';

const EVENT: &[u8] =
    b"data: {\"type\":\"text-delta\",\"id\":\"msg_01\",\"delta\":\" another word or two\"}\n\n";

const ANSWER: &[u8] = b"{\"success\":true,\"answer\":\"It will be delivered on Thursday.\"}";

/// Streams begin in this many phases, so that fifty streams don't send their events at the same moment.
const PHASES: u32 = 50;

static STREAMS_BEGUN: AtomicU32 = AtomicU32::new(0);

/// Serves until the parent has ended.
pub(crate) fn run() -> Result<bool, Failure> {
    process::end_with_parent();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            process::print_address(listener.local_addr()?);
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                // A connection that breaks is the other side's story, and is counted there.
                tokio::spawn(
                    http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
        })
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<Either<Full<Bytes>, Events>>, hyper::Error> {
    let period = match request.uri().query() {
        Some(HOLD) => Some(Duration::from_secs(24 * 60 * 60)),
        Some(EVENTS) => Some(Duration::from_secs(1) / EVENTS_PER_SECOND),
        _ => None,
    };
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    let (body, kind) = match period {
        Some(period) => (Either::Right(Events::every(period)), "text/event-stream"),
        None => (
            Either::Left(Full::new(Bytes::from_static(ANSWER))),
            "application/json",
        ),
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// A body with one event at once, and one more in each period, without an end.
struct Events {
    begun: bool,
    ticks: Interval,
}

// === impl Events ===

impl Events {
    fn every(period: Duration) -> Self {
        let phase = STREAMS_BEGUN.fetch_add(1, Ordering::Relaxed) % PHASES;
        Self {
            begun: false,
            ticks: interval_at(Instant::now() + period + period * phase / PHASES, period),
        }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.begun {
            std::task::ready!(self.ticks.poll_tick(cx));
        }
        self.begun = true;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(EVENT)))))
    }
}
