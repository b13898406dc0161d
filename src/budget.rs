//! How many bytes of requests' bodies the process holds on to, and whether it may hold more.
//!
//! Invariant: what was reserved is given back when its owner is dropped, wherever that happens: with
//! the future of a request, or with the last piece of a body that was sent. A body that waits for its
//! client never keeps out one that is there: it makes way.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::oneshot;

/// The count, one for all workers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<BudgetCounts>);

#[derive(Debug, Default)]
struct BudgetCounts {
    bytes: Arc<AtomicUsize>,
    lent: Mutex<Loans>,
}

/// The reservations that may be taken back.
#[derive(Debug, Default)]
struct Loans {
    /// By their numbers: the oldest comes first.
    by_number: BTreeMap<u64, ReclaimableBytes>,
    /// What they come to.
    bytes: usize,
    /// The number of the next reservation that is lent for the first time.
    next: u64,
}

/// What may be taken back: so many bytes, from an owner that notices when this is dropped.
#[derive(Debug)]
struct ReclaimableBytes {
    bytes: usize,
    _taken: oneshot::Sender<Infallible>,
}

/// Some bytes of it. Dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    /// Which one it is of those that were ever lent.
    number: Option<u64>,
    bytes: usize,
}

/// A reservation that may be taken back for as long as this lives.
struct Loan<'r>(&'r mut Reservation);

/// A body that is held on to, and what is reserved for it.
#[derive(Debug)]
pub struct CountedBytes {
    body: Bytes,
    reserved: Reservation,
}

// === impl Budget ===

impl Budget {
    /// A budget of which nothing is taken; `count` is where that is kept.
    pub fn new(count: Arc<AtomicUsize>) -> Self {
        Self(Arc::new(BudgetCounts {
            bytes: count,
            ..BudgetCounts::default()
        }))
    }

    /// How many bytes are reserved.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Starts a reservation of no bytes; [`Reservation::grow`] adds to it.
    pub fn reserve(&self) -> Reservation {
        Reservation {
            budget: self.clone(),
            number: None,
            bytes: 0,
        }
    }

    /// Counts so many bytes more, if they fit. What doesn't fit is never counted: others would make
    /// way for it.
    fn count(&self, bytes: usize, max: usize) -> bool {
        let add = |now: usize| now.checked_add(bytes).filter(|sum| *sum <= max);
        let count = &self.0.bytes;
        let counted = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        counted.is_ok()
    }

    /// Counts so many bytes more, and takes back what has to make way for them. Where that would not
    /// do, nothing is taken back.
    fn make_room(&self, bytes: usize, max: usize) -> bool {
        let mut loans = self.loans();
        let at_work = self.bytes().saturating_sub(loans.bytes);
        if at_work.saturating_add(bytes) > max {
            return false;
        }
        while !self.count(bytes, max) {
            let Some((_, lent)) = loans.by_number.pop_first() else {
                return false;
            };
            loans.bytes -= lent.bytes;
            self.0.bytes.fetch_sub(lent.bytes, Ordering::Relaxed);
        }
        true
    }

    fn loans(&self) -> MutexGuard<'_, Loans> {
        // Nothing can panic while it is held; a poisoned lock is as good as any.
        self.0.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Reserved ===

impl Reservation {
    /// Reserves so many bytes more, unless all that are reserved would come to more than `max`. What may
    /// be taken back makes way, the oldest first.
    #[must_use]
    pub fn grow(&mut self, bytes: usize, max: usize) -> bool {
        let fits = self.budget.count(bytes, max) || self.budget.make_room(bytes, max);
        if fits {
            self.bytes += bytes;
        }
        fits
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

    /// The body that this was reserved for.
    pub fn with(self, body: Bytes) -> CountedBytes {
        CountedBytes {
            body,
            reserved: self,
        }
    }
}

// === impl Counted ===

impl CountedBytes {
    /// The body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Lets others have what is reserved if they need it. Resolves when they do.
    pub async fn taken_back(&mut self) {
        let until = self.reserved.lent_until(pending::<Infallible>());
        // There is no other end.
        let _ = until.await;
    }

    /// The same bytes, which give back what is reserved for them when the last of their clones and
    /// slices is dropped.
    pub fn into_bytes(mut self) -> Bytes {
        // It may have been taken back at the moment in which it went on.
        let missing = self.body.len().saturating_sub(self.reserved.bytes);
        self.reserved.add(missing);
        Bytes::from_owner(self)
    }
}

// === impl Loan ===

impl<'r> Loan<'r> {
    /// Resolves when the reservation has been taken back.
    fn new(reserved: &'r mut Reservation) -> (Self, oneshot::Receiver<Infallible>) {
        let (sender, taken) = oneshot::channel();
        let lent = ReclaimableBytes {
            bytes: reserved.bytes,
            _taken: sender,
        };
        let mut loans = reserved.budget.loans();
        let number = *reserved.number.get_or_insert(loans.next);
        loans.next = loans.next.max(number + 1);
        loans.bytes += lent.bytes;
        loans.by_number.insert(number, lent);
        drop(loans);
        (Self(reserved), taken)
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let Reservation {
            budget,
            number,
            bytes,
        } = &mut *self.0;
        let mut loans = budget.loans();
        match number.and_then(|number| loans.by_number.remove(&number)) {
            Some(lent) => loans.bytes -= lent.bytes,
            // Whoever has taken it has counted it off.
            None => *bytes = 0,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

impl AsRef<[u8]> for CountedBytes {
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
        let mut body = one.with(Bytes::from_static(b"abcdef")).into_bytes();
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
    async fn wait(mut reserved: Reservation) -> JoinHandle<Option<()>> {
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

        let briefly = oldest.lent_until(yield_now());
        assert_eq!(briefly.await, Some(()), "it has waited before the others");
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
    async fn nothing_makes_way_for_what_is_refused_all_the_same() {
        let budget = Budget::default();
        let [mut at_work, mut one, mut other] = [(); 3].map(|()| budget.reserve());
        assert!(at_work.grow(6, 10) && one.grow(2, 10) && other.grow(2, 10));
        let (one, other) = (wait(one).await, wait(other).await);
        let mut large = budget.reserve();
        assert!(!large.grow(5, 10), "what waits leaves no room for it");
        assert_eq!(budget.bytes(), 10, "it is as if it had never come");
        yield_now().await;
        assert!(
            !one.is_finished() && !other.is_finished(),
            "nobody makes way for nothing"
        );
        assert!(large.grow(4, 10), "there is room for less");
        assert_eq!(one.await.expect("no panic"), None, "of one");
        assert_eq!(other.await.expect("no panic"), None, "and of the other");
        drop((at_work, large));
        assert_eq!(budget.bytes(), 0, "everything is counted once");
        assert_eq!(budget.loans().bytes, 0, "also what was lent");
    }

    #[test]
    fn many_at_once_take_no_more_back_than_they_need() {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.expect("a runtime");
        for _ in 0..50 {
            let budget = Budget::default();
            let waiting = runtime.block_on(async {
                let mut waiting = Vec::new();
                for _ in 0..100 {
                    let mut reserved = budget.reserve();
                    assert!(reserved.grow(1, 100));
                    waiting.push(wait(reserved).await);
                }
                waiting
            });
            let barrier = std::sync::Barrier::new(4);
            let held: Vec<_> = std::thread::scope(|scope| {
                let growing = [(); 4].map(|()| {
                    scope.spawn(|| {
                        let mut reserved = budget.reserve();
                        barrier.wait();
                        // One of them is always too large.
                        let _ = budget.reserve().grow(101, 100);
                        assert!((0..10).all(|_| reserved.grow(1, 100)));
                        reserved
                    })
                });
                growing
                    .map(|thread| thread.join().expect("no panic"))
                    .into()
            });
            assert_eq!(budget.bytes(), 100, "the budget is full, and no more");
            assert_eq!(budget.loans().by_number.len(), 60, "forty made way");
            runtime.block_on(async {
                for waiting in waiting {
                    waiting.abort();
                    // Either it made way, or it was left.
                    let _ = waiting.await;
                }
            });
            drop(held);
            assert_eq!(budget.bytes(), 0, "everything is counted once");
        }
    }

    #[tokio::test]
    async fn what_goes_on_after_it_was_taken_back_is_counted_again() {
        let budget = Budget::default();
        let mut reserved = budget.reserve();
        assert!(reserved.grow(6, 10));
        let mut body = reserved.with(Bytes::from_static(b"abcdef"));
        let mut other = budget.reserve();
        {
            let mut taken = pin!(body.taken_back());
            let polled = poll_fn(|cx| Poll::Ready(taken.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "nobody needs it yet");
            assert!(other.grow(10, 10), "it makes way");
        }
        let body = body.into_bytes();
        assert_eq!(budget.bytes(), 16, "what is there is counted in any case");
        drop((body, other));
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
