//! How many bytes of requests' bodies the process holds on to, and whether it may hold more.
//!
//! Invariant: what was reserved is given back when its owner is dropped, wherever that happens: with
//! the future of a request, or with the last piece of a body that was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// The count, one for all workers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Budget(Arc<AtomicUsize>);

/// Some bytes of it. Dropping it gives them back.
#[derive(Debug)]
pub struct Reserved {
    budget: Budget,
    bytes: usize,
}

/// A body, and what it was reserved by.
struct Counted {
    body: Bytes,
    _reserved: Reserved,
}

// === impl Budget ===

impl Budget {
    /// A budget of which nothing is taken; `count` is where that is kept.
    pub fn new(count: Arc<AtomicUsize>) -> Self {
        Self(count)
    }

    /// How many bytes are reserved.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Nothing as yet.
    pub fn reserve(&self) -> Reserved {
        Reserved {
            budget: self.clone(),
            bytes: 0,
        }
    }
}

// === impl Reserved ===

impl Reserved {
    /// Reserves so many bytes more, unless all that are reserved would come to more than `max`.
    #[must_use]
    pub fn grow(&mut self, bytes: usize, max: usize) -> bool {
        let before = self.budget.0.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        let fits = before.saturating_add(bytes) <= max;
        if !fits {
            self.shrink(bytes);
        }
        fits
    }

    /// Reserves so many bytes more that are there already.
    pub fn add(&mut self, bytes: usize) {
        self.budget.0.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// Gives so many bytes back, or all if there are fewer.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.0.fetch_sub(bytes, Ordering::Relaxed);
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
}
