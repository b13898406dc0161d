//! The configured store, and the locks that workers make on it.
//!
//! Invariant: the instance has a connection of its own, and each worker has another, and one more for kept answers, so
//! that none waits for another. The locks themselves are in `crate::lock`.

use std::sync::Arc;

use crate::answer::{Answers, SharedAnswers};
use crate::config::{OnError, StoreAddress, StoreConfig};
use crate::lock::memory::MemoryStore;
use crate::lock::redis::{RedisAddress, RedisStores};
use crate::lock::{ClaimIssuer, Dispatcher, Epoch, Fallback, Instance, Locks, Store, StoreHealth};
use crate::metrics::Metrics;

/// Makes the locks of one worker, on the worker's runtime.
pub(super) type MakeLocks = Arc<dyn Fn() -> Locks + Send + Sync>;

/// Makes one worker's access to kept answers, on the worker's runtime.
pub(super) type MakeAnswers = Arc<dyn Fn() -> SharedAnswers + Send + Sync>;

/// The configured store, from which connections are made.
pub(super) enum Stores {
    /// The process's memory: one store for all workers.
    Memory(Arc<MemoryStore>),
    /// Redis: connections of its own for each worker.
    Redis(Box<RedisStores>),
}

/// Starts this process's instance, and returns it with the function that makes each worker's locks.
pub(super) fn locks(
    config: &StoreConfig,
    stores: Arc<Stores>,
    epoch: Epoch,
    metrics: &Metrics,
    health: &StoreHealth,
) -> (Arc<Instance>, MakeLocks) {
    let name = config.instance.clone();
    let name = name.unwrap_or_else(|| instance_name(epoch));
    // Locks in this process's memory end with it: they need no crash recovery.
    let is_redis = matches!(*stores, Stores::Redis(_));
    let recovery = config.crash_recovery.filter(|_| is_redis);
    let issuer = ClaimIssuer::new(&name, epoch, recovery.is_some());
    let issuer = Arc::new(issuer.with_prefix(config.key_prefix()));
    let start = |stores: &Stores, recovery, health: StoreHealth| {
        let dispatcher = Dispatcher::new(&issuer);
        let store = stores.listening_store(issuer.instance(), dispatcher.clone());
        let (issuer, metrics) = (Arc::clone(&issuer), metrics.clone());
        let instance = Instance::start(store, issuer, dispatcher, recovery, metrics, health);
        Arc::new(instance.with_failover_grace(config.failover_grace))
    };
    let instance = start(&stores, recovery, health.clone());
    let local = (config.on_error == OnError::Local).then(|| {
        let memory = Stores::Memory(Arc::default());
        // Without a heartbeat, it reports nothing about its health.
        (start(&memory, None, health.clone()), memory)
    });
    let allows = config.on_error == OnError::Allow;
    let workers_instance = Arc::clone(&instance);
    let make_locks = move || {
        let fallback = match &local {
            Some((instance, memory)) => {
                let locks = Locks::new(memory.store(), Arc::clone(instance), Fallback::Reject);
                Fallback::Local(Arc::new(locks))
            }
            None if allows => Fallback::Allow,
            None => Fallback::Reject,
        };
        Locks::new(stores.store(), Arc::clone(&workers_instance), fallback)
    };
    (instance, Arc::new(make_locks))
}

/// Returns the function that makes each worker's access to the process's answers and those in the store. It connects
/// when a request needs it first.
pub(super) fn shared_answers(
    stores: Arc<Stores>,
    instance: &Instance,
    answers: Answers,
) -> MakeAnswers {
    let issuer = Arc::clone(instance.issuer());
    Arc::new(move || {
        let stores = Arc::clone(&stores);
        SharedAnswers::new(answers.clone(), Arc::clone(&issuer), move || stores.store())
    })
}

/// The default of `store.instance`: the host's name, which Kubernetes sets to the pod's, and random digits.
fn instance_name(epoch: Epoch) -> Box<str> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // The characters that `store.instance` may have, because the name is part of a key and of a channel.
    let host: String = host
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        .collect();
    let host = match &*host {
        "" => "seriatim",
        host => host,
    };
    format!("{host}-{:08x}", epoch.0 & 0xffff_ffff).into()
}

// === impl Stores ===

impl Stores {
    pub(super) fn new(config: &StoreConfig, metrics: &Metrics, health: &StoreHealth) -> Self {
        match &config.url {
            StoreAddress::Memory => Self::Memory(Arc::default()),
            StoreAddress::Redis(url) => {
                let address = RedisAddress::new(url, config.timeout)
                    .with_password_file(config.password_file.clone())
                    .with_sentinel_login(
                        config.sentinel_user.as_deref().map(str::to_owned),
                        config.sentinel_password_file.clone(),
                    )
                    .with_wait_replicas(config.wait_replicas)
                    .with_tls(config.tls())
                    .with_prefix(config.key_prefix())
                    .observed_by(metrics, health);
                Self::Redis(Box::new(RedisStores::new(address)))
            }
        }
    }

    /// The kind of store, as `/status` shows it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Redis(..) => "redis",
        }
    }

    /// A store for commands, with a connection of its own.
    pub(super) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Redis(stores) => Arc::new(stores.connect()),
        }
    }

    /// A store that hands the messages for `instance` to `dispatcher`.
    fn listening_store(&self, instance: &Arc<str>, dispatcher: Dispatcher) -> Arc<dyn Store> {
        let handler = Arc::new(dispatcher);
        match self {
            Self::Memory(store) => {
                store.listen(instance, handler);
                Arc::clone(store) as Arc<dyn Store>
            }
            Self::Redis(stores) => Arc::new(stores.listen(instance, handler)),
        }
    }
}
