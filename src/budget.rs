//! A limit on the bytes of request bodies that the process holds in memory.
//!
//! Invariant: reserved bytes are given back when their owner is dropped, be it the future of a request
//! or the last piece of a body that was sent. A request whose client sends nothing never keeps out one
//! whose body is there: while it waits, its reservation is reclaimable.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The number of reserved bytes, one for all workers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<BudgetCounts>);

#[derive(Debug, Default)]
struct BudgetCounts {
    /// All bytes that are reserved, including those that are reclaimable.
    bytes: Arc<AtomicUsize>,
    reclaimable: Mutex<ReclaimableReservations>,
}

/// The reservations that may be taken back at the moment.
#[derive(Debug, Default)]
struct ReclaimableReservations {
    /// By age: the first one has waited first.
    by_age: BTreeMap<u64, ReclaimableBytes>,
    /// The sum of their bytes.
    bytes: usize,
    /// The number of the next reservation that becomes reclaimable for the first time.
    next_age: u64,
}

/// One reservation that may be taken back. Dropping this notifies its owner.
#[derive(Debug)]
struct ReclaimableBytes {
    bytes: usize,
    _on_reclaim: oneshot::Sender<Infallible>,
}

/// Bytes of a [`Budget`] that its owner may use. Dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    /// Its place by age among reclaimable reservations; `None` until it is reclaimable for the first time.
    age: Option<u64>,
    bytes: usize,
}

/// Keeps a reservation reclaimable. Dropping it makes the reservation the owner's own again.
struct ReclaimGuard<'r>(&'r mut Reservation);

/// A body in memory, with the reservation for its bytes.
#[derive(Debug)]
pub struct ReservedBytes {
    body: Bytes,
    reservation: Reservation,
}

// === impl Budget ===

impl Budget {
    /// A budget without reservations, which keeps its number of reserved bytes in `count`.
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

    /// Makes a reservation of zero bytes, which [`Reservation::grow`] enlarges.
    pub fn reserve(&self) -> Reservation {
        Reservation {
            budget: self.clone(),
            age: None,
            bytes: 0,
        }
    }

    /// Adds `bytes` unless the sum would exceed `max`. An addition that fails is never visible to others:
    /// they would give way to it.
    fn try_add(&self, bytes: usize, max: usize) -> bool {
        let add = |now: usize| now.checked_add(bytes).filter(|sum| *sum <= max);
        let count = &self.0.bytes;
        let added = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.is_ok()
    }

    /// Adds `bytes`, and reclaims as many reservations as that needs, the oldest first. Reclaims nothing if
    /// all of them together would not be enough.
    fn add_by_reclaiming(&self, bytes: usize, max: usize) -> bool {
        let mut reclaimable = self.0.reclaimable.lock();
        let in_use = self.bytes().saturating_sub(reclaimable.bytes);
        if in_use.saturating_add(bytes) > max {
            return false;
        }
        while !self.try_add(bytes, max) {
            let Some((_, oldest)) = reclaimable.by_age.pop_first() else {
                return false;
            };
            reclaimable.bytes -= oldest.bytes;
            self.0.bytes.fetch_sub(oldest.bytes, Ordering::Relaxed);
        }
        true
    }
}

// === impl Reservation ===

impl Reservation {
    /// Reserves `bytes` more, unless the whole budget would then exceed `max`. Reclaims the reservations of
    /// others that are reclaimable, the oldest first. Returns whether the bytes are reserved.
    #[must_use]
    pub fn grow(&mut self, bytes: usize, max: usize) -> bool {
        let fits = self.budget.try_add(bytes, max) || self.budget.add_by_reclaiming(bytes, max);
        if fits {
            self.bytes += bytes;
        }
        fits
    }

    /// Waits for `future`; meanwhile others may reclaim this reservation. Returns `None` if they have: then
    /// nothing is reserved any more.
    ///
    /// Cancel-safe: if the returned future is dropped, the reservation is as it was, or empty if it was
    /// reclaimed.
    pub async fn reclaimable_until<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        if self.bytes == 0 {
            return Some(future.await);
        }
        let (guard, reclaimed) = ReclaimGuard::new(self);
        let output = tokio::select! {
            biased;
            output = future => Some(output),
            _ = reclaimed => None,
        };
        drop(guard);
        output.filter(|_| self.bytes > 0)
    }

    /// Reserves `bytes` more without a limit, for bytes that are in memory already.
    pub fn add(&mut self, bytes: usize) {
        self.budget.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// Gives `bytes` back, or all bytes if fewer are reserved.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Joins this reservation with the body for which it was made.
    pub fn with(self, body: Bytes) -> ReservedBytes {
        ReservedBytes {
            body,
            reservation: self,
        }
    }
}

// === impl ReservedBytes ===

impl ReservedBytes {
    /// The bytes of the body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Lets others reclaim the reservation while the body isn't needed. Resolves when they have. Cancel-safe.
    pub async fn reclaimed(&mut self) {
        let until = self.reservation.reclaimable_until(pending::<Infallible>());
        // `pending` never ends, so this is the reclaiming.
        let _ = until.await;
    }

    /// The bytes of the body, which keep their reservation until the last of their clones and slices is
    /// dropped.
    pub fn into_bytes(mut self) -> Bytes {
        // Others may have reclaimed it just before.
        let missing = self.body.len().saturating_sub(self.reservation.bytes);
        self.reservation.add(missing);
        Bytes::from_owner(self)
    }
}

// === impl ReclaimGuard ===

impl<'r> ReclaimGuard<'r> {
    /// Makes a reservation reclaimable. The receiver resolves when others have reclaimed it.
    fn new(reservation: &'r mut Reservation) -> (Self, oneshot::Receiver<Infallible>) {
        let (sender, reclaimed) = oneshot::channel();
        let entry = ReclaimableBytes {
            bytes: reservation.bytes,
            _on_reclaim: sender,
        };
        let mut reclaimable = reservation.budget.0.reclaimable.lock();
        let age = *reservation.age.get_or_insert(reclaimable.next_age);
        reclaimable.next_age = reclaimable.next_age.max(age + 1);
        reclaimable.bytes += entry.bytes;
        reclaimable.by_age.insert(age, entry);
        drop(reclaimable);
        (Self(reservation), reclaimed)
    }
}

impl Drop for ReclaimGuard<'_> {
    fn drop(&mut self) {
        let Reservation { budget, age, bytes } = &mut *self.0;
        let mut reclaimable = budget.0.reclaimable.lock();
        match age.and_then(|age| reclaimable.by_age.remove(&age)) {
            Some(entry) => reclaimable.bytes -= entry.bytes,
            // Whoever reclaimed it has subtracted its bytes from the budget.
            None => *bytes = 0,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

    use super::*;

    #[test]
    fn a_reservation_is_given_back_with_the_last_piece_of_its_body() {
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

    /// Begins to wait for a client that sends nothing; the reservation is reclaimable.
    async fn wait(mut reserved: Reservation) -> JoinHandle<Option<()>> {
        let waiting = tokio::spawn(async move {
            let waited = reserved.reclaimable_until(pending::<()>()).await;
            assert_eq!(reserved.bytes, 0, "nothing is left to be subtracted twice");
            waited
        });
        yield_now().await;
        waiting
    }

    #[tokio::test]
    async fn reservations_that_wait_for_their_client_are_reclaimed_the_oldest_first() {
        crate::time_limit::limit_this_test();
        let budget = Budget::default();
        let [mut oldest, mut older, mut newer] = [(); 3].map(|()| budget.reserve());
        assert!(newer.grow(4, 10) && oldest.grow(3, 10) && older.grow(3, 10));
        let (mut newest, mut large) = (budget.reserve(), budget.reserve());
        assert!(!newest.grow(1, 10), "none of them is reclaimable");

        let briefly = oldest.reclaimable_until(yield_now());
        assert_eq!(briefly.await, Some(()), "it has waited before the others");
        let older = wait(older).await;
        let oldest = wait(oldest).await;
        assert!(newest.grow(1, 10), "a body that is there gets its room");
        assert_eq!(budget.bytes(), 8, "and no more than needed is reclaimed");
        assert_eq!(
            oldest.await.expect("no panic"),
            None,
            "the oldest is notified"
        );
        assert!(large.grow(5, 10), "the next one needs more");
        assert_eq!(older.await.expect("no panic"), None, "the next one goes");
        assert!(
            !large.grow(1, 10),
            "one that does not wait is not reclaimed"
        );
        assert_eq!(newer.bytes, 4, "which has what it had");

        let newer = wait(newer).await;
        newer.abort();
        assert!(newer.await.is_err(), "its client has left");
        assert_eq!(budget.bytes(), 6, "it gives back what it had");
        assert!(!budget.reserve().grow(5, 10), "and is not reclaimed again");
        drop((newest, large));
        assert_eq!(budget.bytes(), 0, "everything is counted once");
    }

    #[tokio::test]
    async fn nothing_is_reclaimed_for_a_reservation_that_fails_anyway() {
        crate::time_limit::limit_this_test();
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
        assert_eq!(
            budget.0.reclaimable.lock().bytes,
            0,
            "so is what was reclaimable"
        );
    }

    #[test]
    fn concurrent_reservations_reclaim_no_more_than_they_need() {
        crate::time_limit::limit_this_test();
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
            assert_eq!(
                budget.0.reclaimable.lock().by_age.len(),
                60,
                "forty were reclaimed"
            );
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
    async fn a_body_that_is_sent_after_its_reservation_was_reclaimed_is_counted_again() {
        crate::time_limit::limit_this_test();
        let budget = Budget::default();
        let mut reserved = budget.reserve();
        assert!(reserved.grow(6, 10));
        let mut body = reserved.with(Bytes::from_static(b"abcdef"));
        let mut other = budget.reserve();
        {
            let mut reclaimed = pin!(body.reclaimed());
            let polled = poll_fn(|cx| Poll::Ready(reclaimed.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "nobody needs it yet");
            assert!(other.grow(10, 10), "it makes way");
        }
        let body = body.into_bytes();
        assert_eq!(budget.bytes(), 16, "what is there is counted in any case");
        drop((body, other));
        assert_eq!(budget.bytes(), 0, "everything is counted once");
    }

    #[tokio::test]
    async fn a_reservation_that_nobody_reclaimed_is_as_it_was() {
        crate::time_limit::limit_this_test();
        let budget = Budget::default();
        let mut reserved = budget.reserve();
        assert!(reserved.grow(4, 10));
        let soon = reserved.reclaimable_until(yield_now());
        assert_eq!(soon.await, Some(()), "its client went on");
        assert_eq!(
            (reserved.bytes, budget.bytes()),
            (4, 4),
            "it has what it had"
        );
        assert!(
            !budget.reserve().grow(7, 10),
            "and is no longer reclaimable"
        );
    }
}
