//! The ages of the locks that this process holds, computed when somebody asks for the metrics.
//!
//! Invariant: nothing is counted while turns run. Who holds locks knows since when.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// The ages of the locks that this process holds; zero if it holds none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockAges {
    /// For how long the oldest lock has been held.
    pub oldest: Duration,
    /// For how long no byte has moved of the turn of which none has moved for the longest time.
    pub quietest: Duration,
}

/// Who knows the ages of locks. Clones share the list.
#[derive(Clone, Default)]
pub(super) struct LockAgeSources(Arc<Mutex<Vec<LockAgeSource>>>);

/// Gives the ages of the locks in one store.
type LockAgeSource = Box<dyn Fn() -> LockAges + Send + Sync>;

// === impl LockAgeSources ===

impl LockAgeSources {
    /// Registers the metrics, which are zero until there is a source.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let sources = Self::default();
        registry.register_collector(Box::new(sources.clone()));
        sources
    }

    /// Adds a source. The greatest age of all sources is shown.
    pub(super) fn add(&self, source: impl Fn() -> LockAges + Send + Sync + 'static) {
        self.0.lock().push(Box::new(source));
    }

    fn ages(&self) -> LockAges {
        let sources = self.0.lock();
        let ages = sources.iter().map(|source| source());
        ages.fold(LockAges::default(), |most, ages| LockAges {
            oldest: most.oldest.max(ages.oldest),
            quietest: most.quietest.max(ages.quietest),
        })
    }
}

impl Collector for LockAgeSources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ages = self.ages();
        let mut show = |name, help, age: Duration| {
            let gauge = ConstGauge::new(age.as_secs_f64());
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        show(
            "oldest_lock_seconds",
            "For how long the oldest lock of this process has been held; 0 if it holds none",
            ages.oldest,
        )?;
        show(
            "quietest_turn_seconds",
            "For how long no byte has moved between client and proxy, in the turn with a lock that has been \
             quiet for the longest time; 0 if there is none",
            ages.quietest,
        )
    }
}

impl fmt::Debug for LockAgeSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockAgeSources").field(&self.ages()).finish()
    }
}
