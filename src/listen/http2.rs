//! A connection that speaks HTTP/2: many requests at once, each with bounds of its own.
//!
//! Invariant: a request that reaches its bounds is reset alone, a moment before its deadline, and
//! never ended as if its answer were whole. What can't be cut that way, because the process was
//! stopped or the client takes nothing, the connection's [`Bounds`] keep from being written: then
//! the connection ends with it. hyper and h2 do the rest; CONNECT over HTTP/2 is not offered.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::stream::ClientStream;
use super::{ClientConnection, ConnectionAlarm, RejectedRequest, Serve, ServedConnection};
use crate::wire::{Bounds, Ended};
use answer::detach;
use body::{OpenStreams, StreamBody};
use head_timer::FrameWatcher;
use request::checked;

mod answer;
mod body;
mod head_timer;
mod request;

/// What hyper wants to have run: one future for each request. They are part of the connection's own
/// task, and dropped with it.
#[derive(Clone, Default)]
struct StreamExecutor(Arc<Mutex<ArrivedRequest>>);

#[derive(Default)]
struct ArrivedRequest {
    /// Of the request that hyper has handed over last, and whose future is to follow.
    bounds: Option<Bounds>,
    tasks: Vec<StreamTask>,
}

/// A request while it is being answered.
struct StreamTask {
    /// `None` when it is over.
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    bounds: Bounds,
    alarm: ConnectionAlarm,
}

/// What a connection is waited for.
#[derive(Clone, Copy)]
enum WaitingFor {
    /// For its first request, until then.
    First(Instant),
    /// For nothing: a request is being answered, or one may come later.
    Open { idle_since: Option<Instant> },
    /// For its end, while bytes move, and `goodbye` longer.
    Ending {
        idle_since: Option<Instant>,
        goodbye: Duration,
    },
}

/// Requests at once on one connection: what RFC 9113 §6.5.2 has a client expect at least, and more
/// than a browser has tabs, so that some may wait in line while others stream.
const MAX_STREAMS: u32 = 100;

/// What a client may send of one request before it is read, in bytes: a whole turn as a rule.
const STREAM_WINDOW: u32 = 128 * 1024;

/// And of all together, which bounds what a connection costs.
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// What is held of one answer that its client doesn't take, in bytes: the largest frame. There are
/// as many of them as requests, and more doesn't make one faster: what was written is followed at
/// once.
const SEND_BUFFER: usize = 16 * 1024;

/// All headers of a request, in bytes, each counted with 32 more: as HTTP/1 has it.
const MAX_HEADERS: u32 = 64 * 1024;

/// Requests that were cancelled before anybody looked at them, beyond which the client is up to no
/// good (CVE-2023-44487): h2's own number.
const MAX_PENDING_RESETS: usize = 20;

/// Requests that broke the protocol, likewise. A client that does so is broken by then.
const MAX_BROKEN: usize = 128;

/// How long before its deadline a request is cut, so that the connection needn't be: a tick of the
/// timer and the time until a busy thread comes to it.
const EARLY: Duration = Duration::from_millis(10);

/// After how long a silent connection is closed that was told to end and has no request: a round
/// trip, for a request that is on its way, and for a client that reads slowly.
const GOODBYE: Duration = Duration::from_secs(5);

/// The same where the process waits for it: many a client reads nothing while it has no request.
const GOODBYE_DRAINING: Duration = Duration::from_secs(1);

/// Serves it until it is over, and says whether it ended as its protocol says. `gone` resolves when
/// the client is.
pub(super) async fn serve<H: Serve>(
    stream: ClientStream,
    connection: ServedConnection<'_, H>,
    mut gone: Pin<&mut (impl Future<Output = ()> + Send)>,
) -> bool {
    let ServedConnection {
        handler,
        client,
        settings,
        head_due,
        mut drain,
        early,
    } = connection;
    let (bounds, ip) = (client.bounds.clone(), client.ip);
    let requests = StreamExecutor::default();
    let under_way = OpenStreams::default();
    let service = {
        let (requests, room) = (requests.clone(), settings.room.clone());
        let under_way = under_way.clone();
        service_fn(move |request| {
            let is_first = under_way.is_none();
            let one = under_way.clone();
            let mut taken = room.take();
            let bounds = client.bounds.of_a_stream();
            requests.lock().bounds = Some(bounds.clone());
            let body_bounds = bounds.clone();
            let client = ClientConnection {
                bounds,
                ..client.clone()
            };
            let handler = handler.clone();
            async move {
                let mut response = match checked(request, &mut taken, is_first) {
                    Ok(request) => {
                        let response = handler.serve(client, request).await;
                        response.map(|body| StreamBody::new(body, body_bounds, (taken, one)))
                    }
                    Err((line, why)) => {
                        let in_body = false;
                        let refused = RejectedRequest { why, line, in_body };
                        handler.refuse(client.ip, &refused).map(StreamBody::own)
                    }
                };
                detach(response.headers_mut());
                Ok::<_, Infallible>(response)
            }
        })
    };
    let io = FrameWatcher::new(early, stream, settings.room.take(), under_way);
    let moved = io.moved();
    let mut conn = pin!(
        http2::Builder::new(requests.clone())
            .auto_date_header(false)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADERS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_BROKEN)
            .serve_connection(TokioIo::new(io), service)
    );
    let mut tasks = FuturesUnordered::new();
    let mut alarm = ConnectionAlarm::default();
    let mut stopping = pin!({
        let mut drain = drain.clone();
        async move { drain.draining().await }
    });
    let mut aborting = pin!(drain.aborting());
    let mut pace = WaitingFor::First(head_due);
    let mut is_draining = false;
    let served = poll_fn(|cx| {
        loop {
            // Before the connection: what a request that is over has left is not written.
            while let Poll::Ready(Some(())) = tasks.poll_next_unpin(cx) {}
            if let Poll::Ready(result) = conn.as_mut().poll(cx) {
                return Poll::Ready(Ok(result));
            }
            let arrived = std::mem::take(&mut requests.lock().tasks);
            if !arrived.is_empty() {
                tasks.extend(arrived);
                pace.begin();
                continue;
            }
            if gone.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Ended::PeerGone));
            }
            if aborting.as_mut().poll(cx).is_ready() {
                // Each handler is asked once more, and may say why.
                for task in tasks.iter_mut() {
                    let _ = Pin::new(task).poll(cx);
                }
                let _ = conn.as_mut().poll(cx);
                return Poll::Ready(Err(Ended::Aborted));
            }
            if !is_draining && stopping.as_mut().poll(cx).is_ready() {
                is_draining = true;
                pace.end(GOODBYE_DRAINING);
                conn.as_mut().graceful_shutdown();
                continue;
            }
            if tasks.is_empty() {
                pace.rest();
            }
            let head_due = || Some(moved.head_since()? + settings.request_head);
            let due = || {
                let due = pace.due(settings.idle, || moved.answer_at());
                due.into_iter().chain(head_due()).min()
            };
            if alarm.poll(cx, due).is_pending() {
                return Poll::Pending;
            }
            let is_late = head_due().is_some_and(|due| Instant::now() >= due);
            if is_late || pace.is_ending() {
                // What it has not sent is not waited for, and it may hear so.
                conn.as_mut().graceful_shutdown();
                let _ = conn.as_mut().poll(cx);
                return Poll::Ready(Err(Ended::Silent));
            }
            pace.end(GOODBYE);
            conn.as_mut().graceful_shutdown();
        }
    })
    .await;
    // They hold what they stand in.
    drop(std::mem::take(&mut requests.lock().tasks));
    match served {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(?ip, %error, "connection ended with an error");
            false
        }
        // What still serves is dropped on return, after it can see the reason.
        Err(why) => {
            tracing::debug!(?ip, ?why, "connection ended");
            bounds.end(why);
            false
        }
    }
}

// === impl Requests ===

impl StreamExecutor {
    fn lock(&self) -> MutexGuard<'_, ArrivedRequest> {
        // Nothing can panic while it is held; a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        let mut arrived = self.lock();
        // hyper hands over a request, and then the future that answers it.
        let bounds = arrived.bounds.take().unwrap_or_default();
        arrived.tasks.push(StreamTask {
            work: Some(Box::pin(work)),
            bounds,
            alarm: ConnectionAlarm::default(),
        });
    }
}

// === impl Pace ===

impl WaitingFor {
    /// A request has come.
    fn begin(&mut self) {
        match self {
            Self::First(_) => *self = Self::Open { idle_since: None },
            Self::Open { idle_since } | Self::Ending { idle_since, .. } => *idle_since = None,
        }
    }

    /// No request is being answered.
    fn rest(&mut self) {
        match self {
            Self::First(_) => {}
            Self::Open { idle_since } | Self::Ending { idle_since, .. } => {
                idle_since.get_or_insert_with(Instant::now);
            }
        }
    }

    /// It was told to end.
    fn end(&mut self, goodbye: Duration) {
        let idle_since = None;
        *self = Self::Ending {
            idle_since,
            goodbye,
        };
    }

    fn is_ending(&self) -> bool {
        matches!(self, Self::Ending { .. })
    }

    /// Until when it is waited for; `None`: as long as its requests take.
    fn due(&self, idle: Duration, answer_moved: impl FnOnce() -> Instant) -> Option<Instant> {
        match *self {
            Self::First(due) => Some(due),
            Self::Open { idle_since } => Some(idle_since? + idle),
            Self::Ending {
                idle_since,
                goodbye,
            } => {
                // The rest of an answer may be on its way, or wait in h2 for a client that never
                // takes it, and has us talk meanwhile.
                let since = idle_since?;
                let silent = answer_moved() + goodbye;
                Some(silent.clamp(since + goodbye, since + idle.max(goodbye)))
            }
        }
    }
}

// === impl Task ===

impl Future for StreamTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(work) = &mut this.work else {
            return Poll::Ready(());
        };
        loop {
            if let Some(why) = this.bounds.reached(Instant::now() + EARLY) {
                this.bounds.end(why);
                // Its body ends with an error now, and its stream with a reset that takes along
                // what was to be sent. Where it isn't asked, because its client takes nothing, what
                // was to be sent stays behind it.
                if work.as_mut().poll(cx).is_pending() {
                    this.bounds.keep_deadline();
                }
                this.work = None;
                return Poll::Ready(());
            }
            if work.as_mut().poll(cx).is_ready() {
                this.work = None;
                return Poll::Ready(());
            }
            let bounds = &this.bounds;
            // Asked when the bounds are as far as they are allowed to come.
            let due = || Some(bounds.due()? - EARLY);
            if this.alarm.poll(cx, due).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_answer_is_waited_for_while_it_moves_and_no_longer_than_idle_ones_are() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let (idle, goodbye) = (second * 300, second * 5);
        let ending = WaitingFor::Ending {
            idle_since: Some(start),
            goodbye,
        };
        for (moved, due, case) in [
            (0, 5, "nothing moves, whatever else the client sends"),
            (100, 105, "it moves"),
            (299, 300, "it moves for ever"),
        ] {
            let due = Some(start + second * due);
            let due_at = ending.due(idle, || start + second * moved);
            assert_eq!(due_at, due, "{case}");
        }
    }
}
