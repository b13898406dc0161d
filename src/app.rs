//! The composition root: a configuration becomes running workers, and running workers stop.
//!
//! Each worker is a thread with a runtime of its own. What serves a connection belongs to it: the
//! backend's connections, the one to Redis, the leases. What is one per process does not: the
//! listening sockets, the instance with its name, its sign of life and its ears, the signal to stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::available_parallelism;
use std::time::Duration;

use thiserror::Error;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

use crate::admin::{AccessPolicy, AdminServer, StatusSource};
use crate::budget::Budget;
use crate::config::listen::ListenAddress;
use crate::config::{Config, OnError, StoreAddress, StoreConfig};
use crate::drain::{self, Drain};
use crate::journal::Journal;
use crate::key::Keyspace;
use crate::listen::shed::LoadShedder;
use crate::listen::{
    BadRequest, ConnectionLimit, HeadBudget, ListenEndpoint, Listener, ServeSettings, TlsServer,
};
use crate::lock::memory::MemoryStore;
use crate::lock::redis::{RedisAddress, RedisStore};
use crate::lock::{
    ClaimIssuer, Dispatcher, Epoch, Fallback, Instance, Locks, Operator, Store, StoreHealth,
};
use crate::metrics::Metrics;
use crate::proxy::{self, RecordSinks};
use crate::reload::Reloader;
use crate::trace::{ExporterHandle, Tracer};
use worker::Worker;

mod certificate;
mod operators;
mod worker;

/// A process that serves, until it is stopped.
#[derive(Debug)]
pub struct RunningApp {
    proxy_addr: ListenEndpoint,
    admin_addr: SocketAddr,
    drain: Drain,
    reloader: Reloader,
    acceptor: JoinHandle<io::Result<()>>,
    /// Ends with the rest, and not before: an operator may look on.
    _admin: AbortOnDrop,
    /// Writes down how much there is of everything.
    _keeping: AbortOnDrop,
    metrics: Metrics,
    /// Looks after the certificate.
    _renewing: Option<AbortOnDrop>,
    workers: Vec<Worker>,
    instance: Arc<Instance>,
    /// Sends what spans there are.
    exporting: Option<ExporterHandle>,
    /// For how long the instance's key may take to be given back.
    stop_limit: Duration,
}

/// How a process has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopReport {
    /// Every turn ended by itself; otherwise the rest was aborted.
    pub in_time: bool,
    /// Every lock was given back; otherwise the store's leases have to end.
    pub all_released: bool,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

/// Why a process could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address can't be listened on.
    #[error("can't listen on {address}: {reason}; set `{option}` to a free address")]
    Listen {
        /// The option that says so.
        option: &'static str,
        /// The address.
        address: ListenEndpoint,
        /// What the system said.
        reason: io::Error,
    },
    /// The certificate can't be used.
    #[error("can't speak TLS: {0}")]
    Tls(String),
    /// No thread, or no runtime in it.
    #[error("can't start a worker: {0}")]
    Worker(io::Error),
    /// The store's address can't be read.
    #[error("can't use store.url: {0}")]
    Store(String),
    /// Spans can't be sent.
    #[error("can't send spans: {0}")]
    Spans(io::Error),
    /// The system has no random numbers.
    #[error("no random numbers to be had: {0}")]
    Random(getrandom::Error),
}

/// Makes what a worker's turns are locked with, on the worker's runtime.
type MakeLocks = Arc<dyn Fn() -> Locks + Send + Sync>;

/// Where locks live, before anybody has connected to it.
enum Stores {
    /// One for all workers.
    Memory(Arc<MemoryStore>),
    /// One for each worker, so that no thread waits for another.
    Redis(RedisAddress),
}

/// Starts to serve. The listening socket is bound when this returns, so that port 0 has its number,
/// and clients that connect are served.
///
/// # Errors
/// When the address is taken, or the system lacks what a worker needs.
///
/// # Panics
/// Outside of a tokio runtime, which accepts the connections.
pub fn start(config: Config) -> Result<RunningApp, StartError> {
    let address = match &config.listen {
        ListenAddress::Tcp(address) => ListenEndpoint::Tcp(*address),
        ListenAddress::Unix(path) => ListenEndpoint::Unix(path.clone()),
    };
    let listener = bind("listen", address)?;
    let proxy_addr = listener.address().clone();
    let admin_listener = bind("admin.listen", ListenEndpoint::Tcp(config.admin.listen))?;
    let admin_addr = admin_listener
        .address()
        .tcp()
        .unwrap_or(config.admin.listen);

    let (metrics, journal) = (Metrics::new(), Journal::default());
    let keeping = tokio::spawn(journal.clone().keep(metrics.clone()));
    let budget = Budget::new(metrics.buffered());
    let (tls, renewing) = match &config.tls {
        None => (None, None),
        Some(files) => {
            let tls = TlsServer::new(Arc::clone(&files.certificate));
            let tls = tls.map_err(|error| StartError::Tls(error.to_string()))?;
            let renewing = tokio::spawn(certificate::renew(files.clone(), tls.clone()));
            (Some(tls), Some(AbortOnDrop(renewing.abort_handle())))
        }
    };
    let most = config.limits.max_connections;
    let settings = Arc::new(ServeSettings {
        request_head: config.timeouts.request_head,
        idle: config.timeouts.idle_stream,
        tls,
        heads: HeadBudget::for_connections(most),
    });
    // Redis is to answer first.
    let health = StoreHealth::new(config.store.url == StoreAddress::Memory, &metrics);
    let stores = Arc::new(Stores::of(&config.store, &metrics, &health)?);
    let epoch = getrandom::u64().map_err(StartError::Random)?;
    let (instance, make_locks) = locks(
        &config.store,
        Arc::clone(&stores),
        Epoch(epoch),
        &metrics,
        &health,
    );
    let tracing = Tracer::start(&config.tracing, instance.name()).map_err(StartError::Spans)?;
    let (tracer, exporting) = tracing.unzip();
    let (drain, watch) = drain::channel();
    let stop_limit = config.store.timeout;
    let needs_store = config.store.on_error == OnError::Reject;
    let access = AccessPolicy::new(admin_addr.ip(), config.admin.token_file.clone());
    let (reloader, current) = Reloader::new(config);
    let operator = {
        let current = current.clone();
        // A connection of its own, so that no turn waits for an operator, and none before one comes.
        let stores = Arc::clone(&stores);
        let connect = move || stores.store();
        Operator::new(connect, move || {
            Keyspace::new(current.borrow().lock_keys().cloned())
        })
    };
    let status = StatusSource {
        metrics: metrics.clone(),
        journal: journal.clone(),
        health,
        store: stores.kind(),
    };
    let admin = AdminServer::new(
        Arc::clone(&instance),
        needs_store,
        status,
        watch.clone(),
        access,
        operator,
    );
    let admin = tokio::spawn(operators::serve(admin_listener, Arc::new(admin)));

    let tally = RecordSinks {
        metrics: metrics.clone(),
        journal,
        tracer,
    };
    // As many as there are cores to run them, or as a container's quota allows.
    let count = available_parallelism().map_or(1, usize::from);
    let workers = (0..count)
        .map(|index| {
            // Request ids differ between workers in what would be the epoch's own digits.
            let process = epoch.rotate_left(32).wrapping_add(index as u64);
            let shared = (Arc::clone(&make_locks), budget.clone(), tally.clone());
            let settings = Arc::clone(&settings);
            Worker::start(
                index,
                current.clone(),
                settings,
                shared,
                process,
                watch.clone(),
            )
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(StartError::Worker)?;

    let seats: Vec<_> = workers.iter().map(Worker::seat).collect();
    let shed = LoadShedder::default();
    let limit = ConnectionLimit::new(most, metrics.connections());
    let refuse = proxy::refusing(&tally);
    let acceptor = tokio::spawn(listener.accept(watch, move |accepted| {
        let Some(permit) = limit.try_open() else {
            let answer = refuse(&BadRequest::TOO_MANY_CONNECTIONS.into());
            let answer = settings.tls.is_none().then_some(&answer);
            return shed.turn_away(accepted, answer);
        };
        // The worker with the fewest connections: the kernel's own choice is a lottery.
        if let Some(seat) = seats
            .iter()
            .min_by_key(|seat| seat.connections.load(Ordering::Relaxed))
        {
            seat.take(accepted, permit);
        }
    }));
    Ok(RunningApp {
        proxy_addr,
        admin_addr,
        drain,
        reloader,
        acceptor,
        _admin: AbortOnDrop(admin.abort_handle()),
        _keeping: AbortOnDrop(keeping.abort_handle()),
        metrics,
        _renewing: renewing,
        workers,
        instance,
        exporting,
        stop_limit,
    })
}

/// What operates the locks of the configuration's store without serving. It connects, on the current
/// runtime, when it is first asked.
///
/// # Errors
/// When the store's address can't be read.
pub fn operator(config: &Config) -> Result<Operator, StartError> {
    let metrics = Metrics::new();
    let health = StoreHealth::new(false, &metrics);
    let stores = Stores::of(&config.store, &metrics, &health)?;
    let space = Keyspace::new(config.lock_keys().cloned());
    Ok(Operator::new(move || stores.store(), move || space.clone()))
}

fn bind(option: &'static str, address: ListenEndpoint) -> Result<Listener, StartError> {
    Listener::bind(&address).map_err(|reason| StartError::Listen {
        option,
        address,
        reason,
    })
}

/// The instance, and what makes its workers' locks.
fn locks(
    config: &StoreConfig,
    stores: Arc<Stores>,
    epoch: Epoch,
    metrics: &Metrics,
    health: &StoreHealth,
) -> (Arc<Instance>, MakeLocks) {
    let name = config.instance.as_deref().map(str::to_owned);
    let name = name.unwrap_or_else(|| instance_name(epoch));
    // What is in this process' memory ends with it: nobody has to know whether it is alive.
    let recovery = config
        .crash_recovery
        .filter(|_| matches!(*stores, Stores::Redis(_)));
    let claimant = Arc::new(ClaimIssuer::new(&name, epoch, recovery.is_some()));
    let begin = |stores: &Stores, recovery, health: StoreHealth| {
        let switchboard = Dispatcher::new(&claimant);
        let store = stores.listening(claimant.instance(), switchboard.clone());
        let claimant = Arc::clone(&claimant);
        let metrics = metrics.clone();
        Arc::new(Instance::start(
            store,
            claimant,
            switchboard,
            recovery,
            metrics,
            health,
        ))
    };
    let instance = begin(&stores, recovery, health.clone());
    let local = (config.on_error == OnError::Local).then(|| {
        let own = Stores::Memory(Arc::default());
        // It gives no sign of life, and so nothing of its health.
        (begin(&own, None, health.clone()), own)
    });
    let on_error = config.on_error;
    let of = Arc::clone(&instance);
    let make_locks = move || {
        let fallback = match (&local, on_error) {
            (Some((instance, own)), _) => {
                let locks = Locks::new(own.store(), Arc::clone(instance), Fallback::Reject);
                Fallback::Local(Arc::new(locks))
            }
            (None, OnError::Allow) => Fallback::Allow,
            (None, OnError::Reject | OnError::Local) => Fallback::Reject,
        };
        Locks::new(stores.store(), Arc::clone(&of), fallback)
    };
    (instance, Arc::new(make_locks))
}

/// The host's name, as Kubernetes sets it to the pod's, and digits that no other process has.
fn instance_name(epoch: Epoch) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // As a name that is set has to be, for it stands in a key and in a channel.
    let host: String = host
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        .collect();
    let host = match &*host {
        "" => "seriatim",
        host => host,
    };
    format!("{host}-{:08x}", epoch.0 & 0xffff_ffff)
}

// === impl Stores ===

impl Stores {
    fn of(
        config: &StoreConfig,
        metrics: &Metrics,
        health: &StoreHealth,
    ) -> Result<Self, StartError> {
        match &config.url {
            StoreAddress::Memory => Ok(Self::Memory(Arc::default())),
            StoreAddress::Redis(url) => {
                let address =
                    RedisAddress::parse(url, config.timeout).map_err(StartError::Store)?;
                Ok(Self::Redis(address.observed_by(metrics, health)))
            }
        }
    }

    /// Which kind it is, in a word.
    fn kind(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Redis(..) => "redis",
        }
    }

    /// A store for a worker's commands.
    fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Redis(address) => Arc::new(RedisStore::connect(address.clone())),
        }
    }

    /// The store by which the instance is told things.
    fn listening(&self, instance: &Arc<str>, switchboard: Dispatcher) -> Arc<dyn Store> {
        let ears = Arc::new(switchboard);
        match self {
            Self::Memory(store) => {
                store.listen(instance, ears);
                Arc::clone(store) as Arc<dyn Store>
            }
            Self::Redis(address) => Arc::new(RedisStore::listen(address.clone(), instance, ears)),
        }
    }
}

// === impl AbortOnDrop ===

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl Running ===

impl RunningApp {
    /// Where it listens.
    pub fn proxy_addr(&self) -> &ListenEndpoint {
        &self.proxy_addr
    }

    /// Where operators ask.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Stops: accepts nothing more, lets turns end within `timeouts.drain`, aborts the rest, and
    /// gives all locks back.
    pub async fn stop(mut self) -> StopReport {
        self.metrics.draining();
        self.drain.begin();
        let ended = async {
            for worker in &mut self.workers {
                worker.idle().await;
            }
        };
        let drain_limit = self.reloader.current().timeouts.drain;
        let in_time = timeout(drain_limit, ended).await.is_ok();
        self.drain.abort();
        let mut all_released = true;
        for worker in self.workers {
            all_released &= worker.join().await;
        }
        self.instance.stop(self.stop_limit).await;
        if let Some(exporting) = self.exporting {
            exporting.stop().await;
        }
        // It has ended by now, for it stops accepting when draining begins.
        if let Ok(Err(error)) = self.acceptor.await {
            tracing::warn!(%error, "accepting connections had failed");
        }
        StopReport {
            in_time,
            all_released,
        }
    }

    /// What is counted.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// What puts a new configuration into force.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// What can abort the turns that still run, while [`RunningApp::stop`] waits for them.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }
}
