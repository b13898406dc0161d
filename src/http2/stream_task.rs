//! The task of one HTTP/2 request. All tasks of a connection are polled by the connection's own task,
//! and dropped with it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::deadline::Alarm;
use crate::wire::{Bounds, Ended};

/// Collects the futures that hyper wants to run: one for each request. Clones share the collection.
#[derive(Clone, Default)]
pub(super) struct StreamExecutor(Arc<Mutex<NewStreams>>);

#[derive(Default)]
struct NewStreams {
    /// The bounds of the request that hyper handed over last. Its future follows.
    next_bounds: Option<Bounds>,
    tasks: Vec<StreamTask>,
}

/// A request that is being answered.
pub(super) struct StreamTask {
    /// `None` when the request is over.
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    bounds: Bounds,
    alarm: Alarm,
}

/// How long before its deadline a request is reset, so that its connection can go on: a tick of the
/// timer, and the time until a busy thread polls the task.
const EARLY: Duration = Duration::from_millis(10);

// === impl StreamExecutor ===

impl StreamExecutor {
    /// Sets the bounds of the future that hyper runs next.
    pub(super) fn set_next_bounds(&self, bounds: Bounds) {
        self.0.lock().next_bounds = Some(bounds);
    }

    /// Takes the tasks that are new since the last call.
    pub(super) fn take_new(&self) -> Vec<StreamTask> {
        std::mem::take(&mut self.0.lock().tasks)
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        let mut new = self.0.lock();
        // hyper calls the service with a request, and then runs the future that answers it.
        let bounds = new.next_bounds.take().unwrap_or_default();
        new.tasks.push(StreamTask {
            work: Some(Box::pin(work)),
            bounds,
            alarm: Alarm::default(),
        });
    }
}

// === impl StreamTask ===

impl Future for StreamTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(work) = &mut this.work else {
            return Poll::Ready(());
        };
        let mut was_polled = false;
        loop {
            // Silence is judged when the request had its turn, as that of an HTTP/1 connection.
            let reached = this.bounds.reached(Instant::now() + EARLY);
            if let Some(why) = reached.filter(|why| was_polled || *why != Ended::Silent) {
                this.bounds.end(why);
                // The response's body now ends with an error, and h2 resets the stream and drops what
                // it has buffered of it. If the client reads nothing, h2 doesn't poll the body, and
                // the buffered bytes stay.
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
            let due = || Some(bounds.due()? - EARLY);
            if this.alarm.poll(cx, due).is_pending() {
                return Poll::Pending;
            }
            was_polled = true;
        }
    }
}
