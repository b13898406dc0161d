//! The place of a waiting turn in its session's queue, for who tells it to the client.

use parking_lot::Mutex;
use tokio::time::Instant;

/// The place of a waiting turn among the waiters of its session that are alive. The turn and the task that watches the
/// queues share it.
#[derive(Debug, Default)]
pub struct WaitPlace(Mutex<Option<KnownPlace>>);

#[derive(Clone, Copy, Debug)]
struct KnownPlace {
    /// Counted from 1.
    place: u32,
    /// From then on it is too old to be told.
    until: Instant,
}

// === impl WaitPlace ===

impl WaitPlace {
    /// The place, counted from 1, as it was when the queue was last watched; `None`: not known, or not any more.
    pub fn get(&self) -> Option<u32> {
        let known = (*self.0.lock())?;
        (Instant::now() < known.until).then_some(known.place)
    }

    /// Sets the place, which is true enough `until` then; `None`: the turn has none.
    pub(super) fn set(&self, place: Option<u32>, until: Instant) {
        *self.0.lock() = place.map(|place| KnownPlace { place, until });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_place_is_told_until_it_is_too_old() {
        let (now, place) = (Instant::now(), WaitPlace::default());
        assert_eq!(place.get(), None, "nobody has set it");
        place.set(Some(2), now + Duration::from_secs(3600));
        assert_eq!(place.get(), Some(2), "it is new");
        place.set(Some(1), now);
        assert_eq!(place.get(), None, "it is too old");
        place.set(None, now + Duration::from_secs(3600));
        assert_eq!(place.get(), None, "there is none");
    }
}
