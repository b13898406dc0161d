//! How many bytes of requests' bodies the process holds on to, and whether it may hold more.
//!
//! Invariant: what was reserved is given back when its owner is dropped, wherever that happens: with
//! the future of a request, or with the last piece of a body that was sent. A body that waits for its
//! client never keeps out one that is there: it makes way.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::oneshot;

/// The count, one for all workers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    bytes: Arc<AtomicUsize>,
    /// How many reservations there have been.
    begun: AtomicU64,
    /// Those that may be taken back, by their numbers: the oldest comes first.
    lent: Mutex<BTreeMap<u64, Lent>>,
}

/// What may be taken back: so many bytes, from an owner that notices when this is dropped.
#[derive(Debug)]
struct Lent {
    bytes: usize,
    _taken: oneshot::Sender<Infallible>,
}

/// Some bytes of it. Dropping it gives them back.
#[derive(Debug)]
pub struct Reserved {
    budget: Budget,
    number: u64,
    bytes: usize,
}

/// A reservation that may be taken back for as long as this lives.
struct Loan<'r>(&'r mut Reserved);

/// A body, and what it was reserved by.
struct Counted {
    body: Bytes,
    _reserved: Reserved,
}

// === impl Budget ===

impl Budget {
    /// A budget of which nothing is taken; `count` is where that is kept.
    pub fn new(count: Arc<AtomicUsize>) -> Self {
        Self(Arc::new(Shared {
            bytes: count,
            ..Shared::default()
        }))
    }

    /// How many bytes are reserved.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Nothing as yet.
    pub fn reserve(&self) -> Reserved {
        Reserved {
            budget: self.clone(),
            number: self.0.begun.fetch_add(1, Ordering::Relaxed),
            bytes: 0,
        }
    }

    /// Takes the oldest of those back that may be; `false`: there is none.
    fn take_back(&self) -> bool {
        let oldest = self.lent().pop_first();
        if let Some((_, lent)) = &oldest {
            self.0.bytes.fetch_sub(lent.bytes, Ordering::Relaxed);
        }
        oldest.is_some()
    }

    fn lent(&self) -> MutexGuard<'_, BTreeMap<u64, Lent>> {
        // Nothing can panic while it is held; a poisoned lock is as good as any.
        self.0.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Reserved ===

impl Reserved {
    /// Reserves so many bytes more, unless all that are reserved would come to more than `max`. What may
    /// be taken back then is, the oldest first.
    #[must_use]
    pub fn grow(&mut self, bytes: usize, max: usize) -> bool {
        self.add(bytes);
        while self.budget.bytes() > max {
            if !self.budget.take_back() {
                self.shrink(bytes);
                return false;
            }
        }
        true
    }

    /// Waits for `future`. If others need what is reserved before it is there, they get it, and this
    /// gives `None`: then nothing is reserved any more.
    pub async fn lent_until<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        if self.bytes == 0 {
            return Some(future.await);
        }
        let (loan, taken) = Loan::new(self);
        let output = tokio::select! {
            biased;
            output = future => Some(output),
            _ = taken => None,
        };
        drop(loan);
        output.filter(|_| self.bytes > 0)
    }

    /// Reserves so many bytes more that are there already.
    pub fn add(&mut self, bytes: usize) {
        self.budget.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// Gives so many bytes back, or all if there are fewer.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The same bytes, which give back what was reserved for them when the last of their clones and
    /// slices is dropped.
    pub fn into_bytes(self, body: Bytes) -> Bytes {
        Bytes::from_owner(Counted {
            body,
            _reserved: self,
        })
    }
}

// === impl Loan ===

impl<'r> Loan<'r> {
    /// Resolves when the reservation has been taken back.
    fn new(reserved: &'r mut Reserved) -> (Self, oneshot::Receiver<Infallible>) {
        let (sender, taken) = oneshot::channel();
        let lent = Lent {
            bytes: reserved.bytes,
            _taken: sender,
        };
        reserved.budget.lent().insert(reserved.number, lent);
        (Self(reserved), taken)
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let lent = self.0.budget.lent().remove(&self.0.number);
        if lent.is_none() {
            // Whoever has taken it has counted it off.
            self.0.bytes = 0;
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

    use super::*;

    #[test]
    fn what_is_reserved_is_given_back_with_the_last_piece_of_it() {
        let budget = Budget::default();
        let (mut one, mut two) = (budget.reserve(), budget.reserve());
        assert!(one.grow(6, 10) && two.grow(4, 10), "up to the limit");
        assert!(!one.grow(1, 10), "and no further");
        assert_eq!(budget.bytes(), 10, "what was refused isn't counted");
        two.shrink(1);
        two.add(3);
        assert_eq!(
            budget.bytes(),
            12,
            "what is there already is counted in any case"
        );
        drop(two);
        let mut body = one.into_bytes(Bytes::from_static(b"abcdef"));
        let piece = body.split_off(4);
        drop(body);
        assert_eq!(
            (budget.bytes(), &*piece),
            (6, &b"ef"[..]),
            "a piece keeps all of it"
        );
        drop(piece);
        assert_eq!(budget.bytes(), 0, "the last gives it back");
    }

    /// Begins to wait with it for a client that sends nothing.
    async fn wait(mut reserved: Reserved) -> JoinHandle<Option<()>> {
        let waiting = tokio::spawn(async move {
            let waited = reserved.lent_until(std::future::pending::<()>()).await;
            assert_eq!(
                reserved.bytes, 0,
                "there is nothing to be counted off twice"
            );
            waited
        });
        yield_now().await;
        waiting
    }

    #[tokio::test]
    async fn what_waits_for_its_client_makes_way_the_oldest_first() {
        let budget = Budget::default();
        let [mut oldest, mut older, mut newer] = [(); 3].map(|()| budget.reserve());
        assert!(newer.grow(4, 10) && oldest.grow(3, 10) && older.grow(3, 10));
        let (mut newest, mut large) = (budget.reserve(), budget.reserve());
        assert!(!newest.grow(1, 10), "they are all at work");

        let older = wait(older).await;
        let oldest = wait(oldest).await;
        assert!(newest.grow(1, 10), "what is there has its room");
        assert_eq!(budget.bytes(), 8, "and no more than that makes way");
        assert_eq!(oldest.await.expect("no panic"), None, "the oldest is told");
        assert!(large.grow(5, 10), "the next one needs more");
        assert_eq!(older.await.expect("no panic"), None, "the next one goes");
        assert!(!large.grow(1, 10), "and none that doesn't wait");
        assert_eq!(newer.bytes, 4, "which has what it had");

        let newer = wait(newer).await;
        newer.abort();
        assert!(newer.await.is_err(), "its client has left");
        assert_eq!(budget.bytes(), 6, "it gives back what it had");
        assert!(
            !budget.reserve().grow(5, 10),
            "and isn't taken for it again"
        );
        drop((newest, large));
        assert_eq!(budget.bytes(), 0, "everything is counted once");
    }

    #[tokio::test]
    async fn what_waited_and_was_not_needed_is_as_it_was() {
        let budget = Budget::default();
        let mut reserved = budget.reserve();
        assert!(reserved.grow(4, 10));
        let soon = reserved.lent_until(yield_now());
        assert_eq!(soon.await, Some(()), "its client went on");
        assert_eq!(
            (reserved.bytes, budget.bytes()),
            (4, 4),
            "it has what it had"
        );
        assert!(!budget.reserve().grow(7, 10), "and isn't lent any more");
    }
}
