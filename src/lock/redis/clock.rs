//! An estimate of Redis's clock, so that an acquisition can say until when it may be executed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::{RedisError, Value};
use tokio::time::Instant;

/// Redis's clock as seen from here, exact to a round trip.
#[derive(Debug)]
pub(super) struct RedisClock {
    base: Instant,
    /// Redis's time at `base`, in microseconds since 1970.
    at_base: AtomicU64,
}

// === impl RedisClock ===

impl RedisClock {
    pub(super) fn new() -> Self {
        Self {
            base: Instant::now(),
            at_base: AtomicU64::new(0),
        }
    }

    /// Sets the clock from a reply that just came: `time` in microseconds since 1970.
    pub(super) fn set(&self, time: u64) {
        let at_base = time.saturating_sub(micros(self.base.elapsed()));
        self.at_base.store(at_base, Ordering::Relaxed);
    }

    /// Whether Redis's time is known.
    pub(super) fn is_set(&self) -> bool {
        self.at_base.load(Ordering::Relaxed) > 0
    }

    /// Sets the clock from the reply of `TIME`.
    pub(super) fn set_from_reply(&self, reply: &Value) -> Result<(), RedisError> {
        let (seconds, micros): (u64, u64) = redis::from_redis_value_ref(reply)?;
        self.set(seconds.saturating_mul(1_000_000).saturating_add(micros));
        Ok(())
    }

    /// Redis's time at a moment of this process, in microseconds since 1970.
    pub(super) fn at(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.base);
        self.at_base
            .load(Ordering::Relaxed)
            .saturating_add(micros(since))
    }
}

/// A duration in whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
