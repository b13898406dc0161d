//! Replicas of Seriatim in this process: everything that it has but HTTP.

use std::sync::Arc;
use std::time::Duration;

use seriatim::key::{KeyTemplate, SessionKey};
use seriatim::lock::redis::RedisStores;
use seriatim::lock::{
    CallChain, ClaimIssuer, Dispatcher, Epoch, Fallback, Instance, LockGuard, LockOptions,
    LockRequest, Locks, OnLost, StoreHealth,
};
use seriatim::metrics::Metrics;

use super::servers::Servers;
use crate::Failure;

/// One replica: an instance with a connection of its own, and workers with one connection each.
pub(crate) struct Replica {
    pub(crate) workers: Vec<Arc<Locks>>,
    instance: Arc<Instance>,
    _stores: RedisStores,
}

/// The default options of a lock.
pub(crate) const REFUSED_IF_BUSY: LockOptions = LockOptions {
    lock_timeout: LEASE,
    extend_lock_interval: None,
    blocking: false,
    blocking_timeout: None,
    interrupt: false,
    max_waiters: 1_000_000,
    on_lost: OnLost::Abort,
    settle: Duration::ZERO,
    settle_cancelled: None,
    enforce: true,
};

pub(crate) const WAITING: LockOptions = LockOptions {
    blocking: true,
    ..REFUSED_IF_BUSY
};

pub(crate) const INTERRUPTING: LockOptions = LockOptions {
    interrupt: true,
    ..WAITING
};

/// The default of `lock.lock_timeout`.
pub(crate) const LEASE: Duration = Duration::from_secs(300);

/// The default of `store.crash_recovery`.
const CRASH_RECOVERY: Duration = Duration::from_secs(30);

/// The name of the route in the locks.
pub(crate) const ROUTE: &str = "chat";

/// The key of the session with this number. User and session have UUIDs.
pub(crate) fn session(number: usize) -> SessionKey {
    KeyTemplate::conventional().fill(&uuid(number as u64 ^ 0xa5a5), &uuid(number as u64))
}

/// An id as long as those of requests.
pub(crate) fn request_id(number: usize) -> String {
    uuid(number as u64)
}

/// A text of the form and length of a UUID, which is the same in each run.
fn uuid(number: u64) -> String {
    // The constants of the generator splitmix64.
    let mix = |seed: u64| {
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    };
    let (high, low) = (mix(number + 1), mix(number + 0x5eed));
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}

/// The issuer of the replica with this number, whose name is as long as that of a pod.
pub(crate) fn issuer(number: usize) -> ClaimIssuer {
    let name = format!("agent-7c9d8b6f5d-{number:05}-{number:08x}");
    ClaimIssuer::new(&name, Epoch(number as u64 + 1), true)
}

// === impl Replica ===

impl Replica {
    /// Starts the replicas with these numbers, and waits until each has its heartbeat.
    pub(crate) async fn start_all(
        servers: &Servers,
        count: usize,
        workers: usize,
    ) -> Result<Vec<Self>, Failure> {
        let mut replicas = Vec::new();
        for number in 0..count {
            let stores = servers.stores()?;
            let issuer = Arc::new(issuer(number));
            let dispatcher = Dispatcher::new(&issuer);
            let handler = Arc::new(dispatcher.clone());
            let store = Arc::new(stores.listen(issuer.instance(), handler));
            let metrics = Metrics::new();
            let health = StoreHealth::new(false, &metrics);
            let recovery = Some(CRASH_RECOVERY);
            let instance = Instance::start(store, issuer, dispatcher, recovery, metrics, health);
            let instance = Arc::new(instance);
            let locks = || {
                let (store, instance) = (Arc::new(stores.connect()), Arc::clone(&instance));
                Arc::new(Locks::new(store, instance, Fallback::Reject))
            };
            let workers = (0..workers).map(|_| locks()).collect();
            replicas.push(Self {
                workers,
                instance,
                _stores: stores,
            });
        }
        for replica in &replicas {
            replica.instance.wait_until_alive().await?;
        }
        Ok(replicas)
    }
}

/// Takes the lock of a session for a turn.
pub(crate) async fn acquire(
    locks: &Locks,
    number: usize,
    options: &LockOptions,
) -> Result<LockGuard, seriatim::lock::AcquireError> {
    let (key, request) = (session(number), request_id(number));
    let callers = CallChain::default();
    let request = LockRequest::new(ROUTE, &request, &callers);
    locks.acquire(key, request, options).await
}
