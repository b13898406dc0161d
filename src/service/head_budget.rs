//! The memory that request heads take beyond one small head for each connection: large heads, and the
//! concurrent requests of an HTTP/2 connection. One limit holds for the whole process.
//!
//! Invariant: what every connection needs for one small request is outside of the limit, so clients
//! that need much memory never keep others out. A connection that serves no request gives its memory
//! up when another connection needs it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::bad_request::BadRequest;
use crate::budget::{Budget, Reservation};

/// The memory of a process for large heads and concurrent HTTP/2 requests. Cheap to clone; clones
/// share the limit.
#[derive(Clone, Debug)]
pub struct HeadBudget {
    budget: Budget,
    /// The limit, in bytes.
    limit: usize,
}

/// The part of a [`HeadBudget`] that a connection or a request has reserved. Dropping it returns the
/// memory.
pub(crate) struct HeadReservation {
    budget: HeadBudget,
    /// Empty while the reservation is reclaimable.
    reserved: Reservation,
    /// `None`: others can't take the reservation now.
    reclaimable: Option<ReclaimableHead>,
    /// How many bytes are reserved.
    bytes: usize,
    /// The longest head so far, in bytes: hyper keeps the buffer that the head was in.
    longest: usize,
}

/// A reservation that other connections may take.
struct ReclaimableHead {
    /// Ends the time in which others may take the reservation.
    end: oneshot::Sender<()>,
    /// Resolves with the reservation when that time has ended; with `None` when others took it.
    ended: Pin<Box<dyn Future<Output = Option<Reservation>> + Send>>,
}

/// The least limit, in bytes: 682 of the largest heads at once.
const MIN_LIMIT: usize = 128 << 20;

/// The largest head that needs no reservation, in bytes. Most heads have a tenth of it; Node allows
/// twice as much.
const SMALL_HEAD: usize = 8 << 10;

/// How often the bytes of a head are in memory: as received, as parsed, and as sent to the backend.
const COPIES: usize = 3;

/// What a request needs apart from its head, in bytes: its handler, and its connection to the backend.
const REQUEST: usize = 32 << 10;

/// Why a head is refused when the memory is used up.
pub(crate) const HEAD_BUDGET_EXCEEDED: BadRequest =
    BadRequest::Overloaded("there are too many large request heads or concurrent HTTP/2 requests");

// === impl HeadBudget ===

impl HeadBudget {
    /// The memory of a process that has at most `max_connections`: it suffices for as many concurrent
    /// HTTP/2 requests.
    pub fn for_connections(max_connections: usize) -> Self {
        Self {
            budget: Budget::default(),
            limit: max_connections.saturating_mul(REQUEST).max(MIN_LIMIT),
        }
    }

    /// An empty reservation.
    pub(crate) fn reserve(&self) -> HeadReservation {
        HeadReservation {
            budget: self.clone(),
            reserved: self.budget.reserve(),
            reclaimable: None,
            bytes: 0,
            longest: 0,
        }
    }
}

impl Default for HeadBudget {
    /// The least memory that a process has for heads.
    fn default() -> Self {
        Self::for_connections(0)
    }
}

// === impl HeadReservation ===

impl HeadReservation {
    /// Reserves what a head of `bytes` needs; `false`: there isn't enough memory.
    #[must_use]
    pub(crate) fn reserve_head(&mut self, bytes: usize) -> bool {
        self.grow_to(memory_of_head(bytes), bytes)
    }

    /// Reserves what one more request with a head of `head` bytes needs; `false`: there isn't enough
    /// memory.
    #[must_use]
    pub(crate) fn reserve_request(&mut self, head: usize) -> bool {
        self.grow_to(REQUEST + memory_of_head(head), head)
    }

    /// Returns all of the memory.
    pub(crate) fn release(&mut self) {
        self.end_reclaimable();
        self.longest = 0;
        self.shrink_to(0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Returns the memory that only a running request needs. The buffer of the connection's longest
    /// head stays reserved.
    pub(crate) fn shrink_to_buffer(&mut self) {
        self.shrink_to(self.longest);
    }

    /// Lets other connections take the reservation until it grows again. Ready when one has taken it.
    pub(crate) fn poll_reclaimed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes == 0 {
            return Poll::Pending;
        }
        let reclaimable = self.reclaimable.get_or_insert_with(|| {
            let empty = self.budget.budget.reserve();
            ReclaimableHead::new(std::mem::replace(&mut self.reserved, empty))
        });
        let reserved = ready!(reclaimable.ended.as_mut().poll(cx));
        self.reclaimable = None;
        self.restore(reserved);
        Poll::Ready(())
    }

    fn grow_to(&mut self, bytes: usize, head: usize) -> bool {
        self.end_reclaimable();
        let more = bytes.saturating_sub(self.bytes);
        let fits = more == 0 || self.reserved.grow(more, self.budget.limit);
        if fits && bytes > 0 {
            self.bytes += more;
            self.longest = self.longest.max(head);
        }
        fits
    }

    fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less > 0 && self.reclaimable.is_none() {
            self.reserved.shrink(less);
            self.bytes -= less;
        }
    }

    fn end_reclaimable(&mut self) {
        if let Some(reclaimable) = self.reclaimable.take() {
            let reserved = reclaimable.end();
            self.restore(reserved);
        }
    }

    fn restore(&mut self, reserved: Option<Reservation>) {
        match reserved {
            Some(reserved) => self.reserved = reserved,
            None => (self.bytes, self.longest) = (0, 0),
        }
    }
}

#[cfg(test)]
impl HeadBudget {
    /// Makes reservations with `reserve` until another one doesn't fit.
    pub(crate) fn fill(
        &self,
        reserve: impl Fn(&mut HeadReservation) -> bool,
    ) -> Vec<HeadReservation> {
        let all = std::iter::repeat_with(|| self.reserve());
        all.map_while(|mut next| reserve(&mut next).then_some(next))
            .collect()
    }
}

#[cfg(test)]
impl Default for HeadReservation {
    /// A reservation in a budget of its own.
    fn default() -> Self {
        HeadBudget::default().reserve()
    }
}

fn memory_of_head(bytes: usize) -> usize {
    match bytes <= SMALL_HEAD {
        true => 0,
        false => bytes * COPIES,
    }
}

// === impl ReclaimableHead ===

impl ReclaimableHead {
    fn new(mut reserved: Reservation) -> Self {
        let (end, is_to_end) = oneshot::channel();
        let ended = async move {
            reserved
                .reclaimable_until(is_to_end)
                .await
                .map(|_| reserved)
        };
        Self {
            end,
            ended: Box::pin(ended),
        }
    }

    /// Returns the reservation; `None`: another connection has taken it.
    fn end(self) -> Option<Reservation> {
        let _ = self.end.send(());
        self.ended.now_or_never().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const LARGE: usize = 64 << 10;

    fn is_reclaimed(reservation: &mut HeadReservation) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        reservation.poll_reclaimed(&mut cx).is_ready()
    }

    #[test]
    fn a_large_head_needs_memory_and_a_small_one_none() {
        let heads = HeadBudget::default();
        let mut all = heads.fill(|next| next.reserve_head(LARGE));
        assert_eq!(
            all.len(),
            MIN_LIMIT / (LARGE * COPIES),
            "as many large heads as fit"
        );
        assert!(
            all[0].reserve_head(LARGE / 2),
            "the next head of a connection uses the same memory"
        );
        let mut small = heads.reserve();
        assert!(small.reserve_head(SMALL_HEAD), "a small head needs none");
        assert!(
            !small.reserve_request(LARGE),
            "a large head doesn't fit any more"
        );
        all.pop();
        assert!(
            small.reserve_request(SMALL_HEAD),
            "returned memory can be reserved again"
        );
    }

    #[test]
    fn there_is_memory_for_as_many_concurrent_requests_as_connections() {
        for (connections, requests) in [(1, 4096), (10_000, 10_000)] {
            let heads = HeadBudget::for_connections(connections);
            let all = heads.fill(|next| next.reserve_request(0));
            assert_eq!(all.len(), requests, "of {connections} connections");
        }
    }

    #[test]
    fn an_idle_reservation_can_be_reclaimed_and_stays_if_nobody_needs_it() {
        let heads = HeadBudget::default();
        let mut all = heads.fill(|next| next.reserve_head(LARGE));
        let mut next = heads.reserve();
        assert!(!next.reserve_head(LARGE), "all requests run");
        assert!(
            !is_reclaimed(&mut all[0]) && !is_reclaimed(&mut all[1]),
            "both are idle and nobody needs their memory"
        );
        assert!(
            all[1].reserve_head(SMALL_HEAD),
            "one serves a request again"
        );
        assert!(next.reserve_head(LARGE), "the other gives its memory up");
        assert!(is_reclaimed(&mut all[0]), "and its connection is notified");
        assert!(!is_reclaimed(&mut all[0]), "it is notified once");
        assert!(
            !heads.reserve().reserve_head(LARGE),
            "no other connection gives up memory"
        );
        assert!(!all[0].reserve_head(LARGE), "the reservation is empty now");
        drop(next);
        assert!(all[0].reserve_head(LARGE), "the reservation can grow again");
        drop(all);
        assert_eq!(heads.budget.bytes(), 0, "every byte is counted once");
    }

    #[test]
    fn an_idle_connection_keeps_the_buffer_of_its_longest_head() {
        let heads = HeadBudget::default();
        let mut one = heads.reserve();
        assert!(one.reserve_head(LARGE) && one.reserve_head(LARGE / 2));
        for _ in 0..2 {
            one.shrink_to_buffer();
            assert_eq!(
                heads.budget.bytes(),
                LARGE,
                "the buffer of the longest head, counted once"
            );
        }
        assert!(!is_reclaimed(&mut one), "nobody needs the memory");
        one.release();
        assert_eq!(heads.budget.bytes(), 0, "nothing stays reserved");
    }
}
