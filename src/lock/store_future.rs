//! The reply of a store that is on its way, or is there already.
//!
//! Invariant: the future borrows nothing, so a response body can poll it.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::StoreError;

/// The future of a store's reply. Redis gets its command when this is first polled; dropping it after that does not cancel
/// the command. It is not to be polled after its reply.
#[must_use = "Redis gets its command when this is polled"]
pub struct StoreFuture<T>(PendingReply<T>);

enum PendingReply<T> {
    /// The reply was there when the operation returned; `None` once it was given.
    Ready(Option<Result<T, StoreError>>),
    /// The reply comes later.
    Later(Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>),
}

// === impl StoreFuture ===

impl<T> StoreFuture<T> {
    /// A reply that comes later.
    pub fn new(reply: impl Future<Output = Result<T, StoreError>> + Send + 'static) -> Self {
        Self(PendingReply::Later(Box::pin(reply)))
    }

    /// A reply that is there already. Costs no allocation.
    pub fn ready(reply: Result<T, StoreError>) -> Self {
        Self(PendingReply::Ready(Some(reply)))
    }
}

/// No reply is pinned: it is either in a box of its own, or moved out whole.
impl<T> Unpin for StoreFuture<T> {}

impl<T> Future for StoreFuture<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            PendingReply::Ready(reply) => reply.take().map_or(Poll::Pending, Poll::Ready),
            PendingReply::Later(reply) => reply.as_mut().poll(cx),
        }
    }
}

impl<T> fmt::Debug for StoreFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[test]
    fn a_reply_is_given_once_whether_it_was_there_or_comes_later() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for mut reply in [StoreFuture::ready(Ok(7)), StoreFuture::new(ready(Ok(7)))] {
            let polled = Pin::new(&mut reply).poll(&mut cx);
            assert!(
                matches!(polled, Poll::Ready(Ok(7))),
                "the reply: {polled:?}"
            );
        }
        let mut reply = StoreFuture::ready(Ok(7));
        assert!(
            Pin::new(&mut reply).poll(&mut cx).is_ready(),
            "the reply is there at once"
        );
        assert!(
            Pin::new(&mut reply).poll(&mut cx).is_pending(),
            "nobody gets it a second time"
        );
    }
}
