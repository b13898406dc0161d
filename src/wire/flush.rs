//! Waits until a connection has written what was handed to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// A wait until a connection has written everything that its protocol had buffered when the wait began
/// ([`Bounds::poll_flushed`](super::Bounds::poll_flushed)).
#[derive(Debug, Default)]
pub struct FlushWait(Option<Arc<FlushWaiter>>);

/// One wait, as the connection sees it.
#[derive(Debug, Default)]
pub(super) struct FlushWaiter {
    is_flushed: AtomicBool,
    waker: AtomicWaker,
}

// === impl FlushWait ===

impl FlushWait {
    /// Ready at the next flush. The first call begins the wait, and hands the connection's side of it to
    /// `begin`.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        begin: impl FnOnce(Arc<FlushWaiter>),
    ) -> Poll<()> {
        let waiter = self.0.get_or_insert_with(|| {
            let waiter = Arc::<FlushWaiter>::default();
            begin(Arc::clone(&waiter));
            waiter
        });
        waiter.waker.register(cx.waker());
        match waiter.is_flushed.load(Ordering::Acquire) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

// === impl FlushWaiter ===

impl FlushWaiter {
    /// Ends the wait.
    pub(super) fn on_flushed(&self) {
        self.is_flushed.store(true, Ordering::Release);
        self.waker.wake();
    }
}
