//! What requests take beside one small head for each connection: large heads, and further requests on
//! a connection that speaks HTTP/2. All of it together is bounded, for the whole process.
//!
//! Invariant: what one connection may take by itself is small and always there, so that those who take
//! much never keep the others out.

use super::unfit::Unfit;
use crate::budget::{Budget, Reserved};

/// The room of a process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Room(Budget);

/// What a connection or a request has of it. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Taken {
    reserved: Reserved,
    bytes: usize,
}

/// How much of it there is, in bytes: some two hundred of the largest heads at once, or four thousand
/// requests beyond the first of their connections.
pub(super) const ROOM: usize = 128 << 20;

/// A head of so many bytes needs no room: most have a tenth of it, and Node takes twice as much.
const SMALL_HEAD: usize = 8 << 10;

/// How often the bytes of a head are there: as they came, as they are parsed, and as they go to the
/// backend.
const COPIES: usize = 3;

/// What a request costs beside its head, in bytes: what serves it, and its connection to the backend.
const REQUEST: usize = 32 << 10;

/// What is refused when there is none left.
pub(super) const FULL: Unfit = Unfit::Overloaded(
    "there are too many large heads, or requests beyond the first on their connections",
);

// === impl Room ===

impl Room {
    /// Nothing of it as yet.
    pub(super) fn take(&self) -> Taken {
        Taken {
            reserved: self.0.reserve(),
            bytes: 0,
        }
    }
}

// === impl Taken ===

impl Taken {
    /// Takes what a head of so many bytes needs, for as long as this lives; `false`: there isn't so
    /// much left.
    #[must_use]
    pub(super) fn fits_head(&mut self, bytes: usize) -> bool {
        bytes <= SMALL_HEAD || self.grow_to(bytes * COPIES)
    }

    /// Takes what one more request needs; `false`: there isn't so much left.
    #[must_use]
    pub(super) fn fits_request(&mut self, head: usize) -> bool {
        let head = if head <= SMALL_HEAD { 0 } else { head * COPIES };
        self.grow_to(REQUEST + head)
    }

    fn grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let fits = more == 0 || self.reserved.grow(more, ROOM);
        if fits {
            self.bytes += more;
        }
        fits
    }
}

impl Default for Taken {
    /// Of a room of its own.
    fn default() -> Self {
        Room::default().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_heads_take_room_and_small_ones_none() {
        let room = Room::default();
        let mut all: Vec<Taken> = Vec::new();
        let large = 64 << 10;
        loop {
            let mut next = room.take();
            if !next.fits_head(large) {
                break;
            }
            assert!(next.fits_head(large / 2), "the next one has the same room");
            all.push(next);
        }
        assert_eq!(
            all.len(),
            ROOM / (large * COPIES),
            "as many as there is room for"
        );
        let mut small = room.take();
        assert!(small.fits_head(SMALL_HEAD), "a small one needs none");
        assert!(!small.fits_request(large), "a large one doesn't fit");
        all.pop();
        assert!(
            small.fits_request(SMALL_HEAD),
            "what is given back is there again"
        );
    }
}
