//! What requests take beside one small head for each connection: large heads, and further requests on
//! a connection that speaks HTTP/2. All of it together is bounded, for the whole process.
//!
//! Invariant: what one connection may take by itself is small and always there, so that those who take
//! much never keep the others out. A connection without a request under way makes way for one that
//! needs what it holds.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::bad_request::BadRequest;
use crate::budget::{Budget, Reservation};

/// The room of a process for large heads and further requests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HeadRoom {
    budget: Budget,
    /// How much of it there is, in bytes.
    limit: usize,
}

/// What a connection or a request has of the room. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct HeadReservation {
    room: HeadRoom,
    /// Empty while it is lent.
    reserved: Reservation,
    lent: Option<LentShare>,
    bytes: usize,
    /// How long its longest head was.
    longest: usize,
}

/// A reservation that others may take.
struct LentShare {
    /// Ends the loan.
    end: oneshot::Sender<()>,
    /// Gives the reservation when the loan has ended; `None`: others have taken it.
    ended: Pin<Box<dyn Future<Output = Option<Reservation>> + Send>>,
}

/// How much room there is at least, in bytes: for 682 of the largest heads at once.
const LEAST: usize = 128 << 20;

/// A head of so many bytes needs no room: most have a tenth of it, and Node takes twice as much.
const SMALL_HEAD: usize = 8 << 10;

/// How often the bytes of a head are there: as they came, as they are parsed, and as they go to the
/// backend.
const COPIES: usize = 3;

/// What a request costs beside its head, in bytes: what serves it, and its connection to the backend.
const REQUEST: usize = 32 << 10;

/// Why a head is refused when there is no room left.
pub(super) const FULL: BadRequest = BadRequest::Overloaded(
    "there are too many large heads, or requests beyond the first on their connections",
);

// === impl HeadRoom ===

impl HeadRoom {
    /// The room of a process that has at most so many connections: there may be as many further
    /// requests.
    pub fn for_connections(most: usize) -> Self {
        Self {
            budget: Budget::default(),
            limit: most.saturating_mul(REQUEST).max(LEAST),
        }
    }

    /// A share of the room that has taken nothing yet.
    pub(super) fn take(&self) -> HeadReservation {
        HeadReservation {
            room: self.clone(),
            reserved: self.budget.reserve(),
            lent: None,
            bytes: 0,
            longest: 0,
        }
    }
}

impl Default for HeadRoom {
    /// The least that a process has.
    fn default() -> Self {
        Self::for_connections(0)
    }
}

// === impl HeadReservation ===

impl HeadReservation {
    /// Takes what a head of so many bytes needs, for as long as this lives; `false`: there isn't so
    /// much left.
    #[must_use]
    pub(super) fn fits_head(&mut self, bytes: usize) -> bool {
        self.grow_to(share_of_head(bytes), bytes)
    }

    /// Takes what one more request needs; `false`: there isn't so much left.
    #[must_use]
    pub(super) fn fits_request(&mut self, head: usize) -> bool {
        self.grow_to(REQUEST + share_of_head(head), head)
    }

    /// Gives everything back.
    pub(super) fn give_back(&mut self) {
        self.end_loan();
        self.longest = 0;
        self.keep(0);
    }

    /// Whether there is anything to give back.
    pub(super) fn holds_any(&self) -> bool {
        self.bytes > 0
    }

    /// Gives back what only a request under way needs. The buffer stays that its connection's longest
    /// head was read into.
    pub(super) fn keep_buffer(&mut self) {
        self.keep(self.longest);
    }

    /// Ready when others have taken what is held here, which they may until it is used next.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.bytes == 0 {
            return Poll::Pending;
        }
        let lent = self.lent.get_or_insert_with(|| {
            let empty = self.room.budget.reserve();
            LentShare::new(std::mem::replace(&mut self.reserved, empty))
        });
        let reserved = ready!(lent.ended.as_mut().poll(cx));
        self.lent = None;
        self.regain(reserved);
        Poll::Ready(())
    }

    fn grow_to(&mut self, bytes: usize, head: usize) -> bool {
        self.end_loan();
        let more = bytes.saturating_sub(self.bytes);
        let fits = more == 0 || self.reserved.grow(more, self.room.limit);
        if fits && bytes > 0 {
            self.bytes += more;
            self.longest = self.longest.max(head);
        }
        fits
    }

    fn keep(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        if less > 0 && self.lent.is_none() {
            self.reserved.shrink(less);
            self.bytes -= less;
        }
    }

    fn end_loan(&mut self) {
        if let Some(lent) = self.lent.take() {
            let reserved = lent.end();
            self.regain(reserved);
        }
    }

    fn regain(&mut self, reserved: Option<Reservation>) {
        match reserved {
            Some(reserved) => self.reserved = reserved,
            None => (self.bytes, self.longest) = (0, 0),
        }
    }
}

#[cfg(test)]
impl Default for HeadReservation {
    /// Of a room of its own.
    fn default() -> Self {
        HeadRoom::default().take()
    }
}

fn share_of_head(bytes: usize) -> usize {
    match bytes <= SMALL_HEAD {
        true => 0,
        false => bytes * COPIES,
    }
}

// === impl LentShare ===

impl LentShare {
    fn new(mut reserved: Reservation) -> Self {
        let (end, is_to_end) = oneshot::channel();
        let ended = async move {
            let kept = reserved.reclaimable_until(is_to_end).await;
            kept.map(|_| reserved)
        };
        Self {
            end,
            ended: Box::pin(ended),
        }
    }

    /// Gives the reservation; `None`: others have taken it.
    fn end(self) -> Option<Reservation> {
        let _ = self.end.send(());
        self.ended.now_or_never().flatten()
    }
}

impl fmt::Debug for LentShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentShare").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const LARGE: usize = 64 << 10;

    fn is_lost(lent: &mut HeadReservation) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        lent.poll_lost(&mut cx).is_ready()
    }

    /// Takes room for large heads until there is none for one more.
    fn fill(room: &HeadRoom) -> Vec<HeadReservation> {
        let all = std::iter::repeat_with(|| room.take());
        let fitting = all.map(|mut next| next.fits_head(LARGE).then_some(next));
        fitting.map_while(|next| next).collect()
    }

    #[test]
    fn large_heads_take_room_and_small_ones_none() {
        let room = HeadRoom::default();
        let mut all = fill(&room);
        assert_eq!(
            all.len(),
            LEAST / (LARGE * COPIES),
            "as many as there is room for"
        );
        assert!(
            all[0].fits_head(LARGE / 2),
            "the next one has the same room"
        );
        let mut small = room.take();
        assert!(small.fits_head(SMALL_HEAD), "a small one needs none");
        assert!(!small.fits_request(LARGE), "a large one doesn't fit");
        all.pop();
        assert!(
            small.fits_request(SMALL_HEAD),
            "what is given back is there again"
        );
    }

    #[test]
    fn there_is_room_for_as_many_further_requests_as_connections() {
        for (connections, requests) in [(1, 4096), (10_000, 10_000)] {
            let room = HeadRoom::for_connections(connections);
            let all = std::iter::repeat_with(|| room.take());
            let fitting = all.map(|mut next| next.fits_request(0).then_some(next));
            let all: Vec<_> = fitting.map_while(|next| next).collect();
            assert_eq!(all.len(), requests, "of {connections} connections");
        }
    }

    #[test]
    fn what_is_lent_makes_way_and_is_there_again_when_nobody_needs_it() {
        let room = HeadRoom::default();
        let mut all = fill(&room);
        let mut next = room.take();
        assert!(!next.fits_head(LARGE), "all of them are under way");
        assert!(!is_lost(&mut all[0]) && !is_lost(&mut all[1]), "they rest");
        assert!(all[1].fits_head(SMALL_HEAD), "one of them goes on");
        assert!(next.fits_head(LARGE), "the other makes way");
        assert!(is_lost(&mut all[0]), "and hears so");
        assert!(!is_lost(&mut all[0]), "once");
        assert!(!room.take().fits_head(LARGE), "nobody else does");
        assert!(!all[0].fits_head(LARGE), "it has nothing any more");
        drop(next);
        assert!(all[0].fits_head(LARGE), "and begins anew");
        drop(all);
        assert_eq!(room.budget.bytes(), 0, "everything is counted once");
    }

    #[test]
    fn what_rests_keeps_the_buffer_of_its_longest_head() {
        let room = HeadRoom::default();
        let mut one = room.take();
        assert!(one.fits_head(LARGE) && one.fits_head(LARGE / 2));
        for _ in 0..2 {
            one.keep_buffer();
            assert_eq!(room.budget.bytes(), LARGE, "of the longest, once");
        }
        assert!(!is_lost(&mut one), "nobody needs it");
        one.give_back();
        assert_eq!(room.budget.bytes(), 0, "nothing is left");
    }
}
