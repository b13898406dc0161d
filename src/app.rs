//! The composition root: starts the workers from a configuration, and stops them.
//!
//! Each worker is a thread with a tokio runtime of its own, which owns what serves its connections: the
//! connections to backends, the connection to Redis, the leases. Shared by the process are the listening
//! sockets, the instance (its name, heartbeat and messages), and the signal to stop. Nothing here handles
//! a request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::available_parallelism;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::{AccessPolicy, AdminServer, StatusSource};
use crate::answer::Answers;
use crate::budget::Budget;
use crate::config::listen::ListenAddress;
use crate::config::{Config, ErrorsConfig, OnError, StoreAddress};
use crate::drain::{self, Drain};
use crate::journal::Journal;
use crate::key::Keyspace;
use crate::listen::shed::LoadShedder;
use crate::listen::{
    AcceptedConnection, BadRequest, ConnectionLimit, HeadBudget, ListenEndpoint, Listener,
    ServeSettings, TlsServer,
};
use crate::lock::{Epoch, Instance, Operator, StoreHealth};
use crate::metrics::Metrics;
use crate::proxy::{self, CorsMemory, ProcessShared, RecordSinks};
use crate::reload::{CurrentConfig, Reloader};
use crate::trace::{ExporterHandle, Tracer};
use stores::{Stores, locks, shared_answers};
use worker::{Worker, WorkerContext, WorkerInbox};

mod admin_listener;
mod certificate;
mod self_test;
mod stores;
mod worker;

/// A process that serves until [`RunningApp::stop`].
#[derive(Debug)]
pub struct RunningApp {
    proxy_addr: ListenEndpoint,
    admin_addr: SocketAddr,
    drain: Drain,
    reloader: Reloader,
    acceptor: JoinHandle<io::Result<()>>,
    /// The admin interface, which also answers while turns end.
    _admin: AbortOnDropHandle<io::Result<()>>,
    /// Samples the metrics for the journal.
    _sampling: AbortOnDropHandle<()>,
    metrics: Metrics,
    /// Tests that turns can be locked; `None` with locks in memory.
    _testing: Option<AbortOnDropHandle<()>>,
    /// Watches for a renewed certificate; `None` without TLS.
    _renewing: Option<AbortOnDropHandle<()>>,
    workers: Vec<Worker>,
    instance: Arc<Instance>,
    /// Sends spans to the collector; `None` without tracing.
    exporter: Option<ExporterHandle>,
    /// How long deleting the instance's key may take.
    release_limit: Duration,
}

/// How the turns and locks ended when the process stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopReport {
    /// Whether every turn ended within `timeouts.drain`; otherwise the rest were aborted.
    pub in_time: bool,
    /// Whether every lock was released; otherwise some stay locked until their leases expire.
    pub all_released: bool,
}

/// Why the process could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The listening socket can't be bound.
    #[error("can't listen on {address}: {reason}; set `{option}` to a free address")]
    Listen {
        /// The option with the address.
        option: &'static str,
        /// The address that can't be bound.
        address: ListenEndpoint,
        /// The system's error.
        reason: io::Error,
    },
    /// The certificate can't be used.
    #[error("can't start TLS: {0}")]
    Tls(String),
    /// A worker's thread or runtime can't be started.
    #[error("can't start a worker: {0}")]
    Worker(io::Error),
    /// The exporter of spans can't be started.
    #[error("can't start to send spans: {0}")]
    Spans(io::Error),
    /// The system's random number generator failed.
    #[error("can't get random numbers from the system: {0}")]
    Random(getrandom::Error),
}

/// Starts to serve, and returns when clients can connect. The listening sockets are bound by then, so that
/// port 0 has become a number.
///
/// # Errors
/// When an address can't be bound, the certificate or the store's URL can't be used, or the system can't
/// start a thread.
///
/// # Panics
/// Outside of a tokio runtime, which accepts the connections.
pub fn start(config: Config) -> Result<RunningApp, StartError> {
    let unreachable = config.timeouts.client_unreachable.unwrap_or_default();
    let listener = bind("listen", proxy_endpoint(&config.listen), unreachable)?;
    let proxy_addr = listener.address().clone();
    let admin_endpoint = ListenEndpoint::Tcp(config.admin.listen);
    let admin_listener = bind("admin.listen", admin_endpoint, unreachable)?;
    let admin_addr = admin_listener.address().tcp();
    let admin_addr = admin_addr.unwrap_or(config.admin.listen);

    let (metrics, journal) = (Metrics::new(), Journal::default());
    let sampling = tokio::spawn(journal.clone().keep(metrics.clone()));
    let (tls, renewing) = start_tls(&config)?.unzip();
    let max_connections = config.limits.max_connections;
    let settings = Arc::new(serve_settings(&config, tls));
    // Redis counts as down until it has answered.
    let health = StoreHealth::new(config.store.url == StoreAddress::Memory, &metrics);
    let stores = Arc::new(Stores::new(&config.store, &metrics, &health));
    let epoch = getrandom::u64().map_err(StartError::Random)?;
    let (instance, make_locks) = locks(
        &config.store,
        Arc::clone(&stores),
        Epoch(epoch),
        &metrics,
        &health,
    );
    let tracing = Tracer::start(&config.tracing, instance.name()).map_err(StartError::Spans)?;
    let (tracer, exporter) = tracing.unzip();
    let sinks = RecordSinks::new(metrics.clone(), journal, tracer);
    let (drain, drain_watch) = drain::channel();
    let release_limit = config.store.timeout;
    let needs_store = config.store.on_error == OnError::Reject;
    let unready_after = config.store.unready_after;
    let access = AccessPolicy::new(admin_addr.ip(), config.admin.token_file.clone());
    let (reloader, current) = Reloader::new(config);
    let testing = start_self_tests(&stores, &instance, &current, &health);
    let admin = AdminServer {
        instance: Arc::clone(&instance),
        needs_store,
        unready_after,
        status: StatusSource {
            metrics: metrics.clone(),
            journal: sinks.journal.clone(),
            health,
            store: stores.kind(),
        },
        drain: drain_watch.clone(),
        access,
        operator: reloading_operator(&stores, &current),
    };
    let admin_settings = ServeSettings {
        idle: settings.idle,
        unreachable,
        ..ServeSettings::default()
    };
    let admin = admin_listener::serve(admin_listener, Arc::new(admin), admin_settings);
    let admin = tokio::spawn(admin);
    let latest = current.clone();
    let errors = move || latest.borrow().errors.clone();
    let answers = Answers::new(&metrics);
    let workers = start_workers(&WorkerContext {
        make_answers: shared_answers(stores, &instance, answers.clone()),
        current,
        settings: Arc::clone(&settings),
        make_locks,
        shared: ProcessShared {
            answers,
            budget: Budget::new(metrics.buffered()),
            cors: CorsMemory::default(),
            sinks: sinks.clone(),
        },
        process: getrandom::u64().map_err(StartError::Random)?,
        drain: drain_watch.clone(),
    })?;
    let inboxes = workers.iter().map(|worker| worker.inbox.clone()).collect();
    let hand_over = hand_over(
        inboxes,
        ConnectionLimit::new(max_connections, metrics.connections()),
        &sinks,
        errors,
        settings,
    );
    Ok(RunningApp {
        proxy_addr,
        admin_addr,
        drain,
        reloader,
        acceptor: tokio::spawn(listener.accept(drain_watch, hand_over)),
        _admin: AbortOnDropHandle::new(admin),
        _sampling: AbortOnDropHandle::new(sampling),
        metrics,
        _testing: testing,
        _renewing: renewing,
        workers,
        instance,
        exporter,
        release_limit,
    })
}

/// An operator on the locks of the configured store, for a process that doesn't serve. It connects to the
/// store at its first call, on the runtime of that call.
///
/// # Errors
/// When `store.url` can't be used.
pub fn operator(config: &Config) -> Result<Operator, StartError> {
    let metrics = Metrics::new();
    let health = StoreHealth::new(false, &metrics);
    let stores = Stores::new(&config.store, &metrics, &health);
    let keyspace = Keyspace::new(config.lock_keys().cloned());
    let operator = Operator::new(move || stores.store(), move || keyspace.clone());
    Ok(operator.with_prefix(config.store.key_prefix()))
}

/// An operator that follows the configuration's reloads. It has a store connection of its own, made at its
/// first call, so that no turn waits for it.
fn reloading_operator(stores: &Arc<Stores>, current: &CurrentConfig) -> Operator {
    let (stores, current) = (Arc::clone(stores), current.clone());
    let prefix: Box<str> = current.borrow().store.key_prefix().into();
    Operator::new(
        move || stores.store(),
        move || Keyspace::new(current.borrow().lock_keys().cloned()),
    )
    .with_prefix(&prefix)
}

/// Starts the task that tests whether turns can be locked. Locks in memory need no test.
fn start_self_tests(
    stores: &Stores,
    instance: &Arc<Instance>,
    current: &CurrentConfig,
    health: &StoreHealth,
) -> Option<AbortOnDropHandle<()>> {
    if matches!(stores, Stores::Memory(_)) {
        health.tested(Ok(()));
        return None;
    }
    let (instance, current) = (Arc::clone(instance), current.clone());
    let testing = self_test::keep_tested(instance, current, health.clone());
    Some(AbortOnDropHandle::new(tokio::spawn(testing)))
}

fn proxy_endpoint(address: &ListenAddress) -> ListenEndpoint {
    match address {
        ListenAddress::Tcp(address) => ListenEndpoint::Tcp(*address),
        ListenAddress::Unix(path) => ListenEndpoint::Unix(path.clone()),
    }
}

/// Binds a listener whose idle clients are probed, so that none is `unreachable` for longer.
fn bind(
    option: &'static str,
    address: ListenEndpoint,
    unreachable: Duration,
) -> Result<Listener, StartError> {
    let bound = Listener::bind(&address).and_then(|listener| {
        listener.probe_idle_clients(unreachable)?;
        Ok(listener)
    });
    bound.map_err(|reason| StartError::Listen {
        option,
        address,
        reason,
    })
}

/// TLS with the configured certificate, and the task that watches for a renewed one; `None` without TLS.
fn start_tls(config: &Config) -> Result<Option<(TlsServer, AbortOnDropHandle<()>)>, StartError> {
    let Some(files) = &config.tls else {
        return Ok(None);
    };
    let tls = TlsServer::new(Arc::clone(&files.certificate));
    let tls = tls.map_err(|error| StartError::Tls(error.to_string()))?;
    let renewing = tokio::spawn(certificate::renew(files.clone(), tls.clone()));
    Ok(Some((tls, AbortOnDropHandle::new(renewing))))
}

/// How the connections of clients are served.
fn serve_settings(config: &Config, tls: Option<TlsServer>) -> ServeSettings {
    ServeSettings {
        request_head: config.timeouts.request_head,
        idle: config.timeouts.keep_alive,
        unreachable: config.timeouts.client_unreachable.unwrap_or_default(),
        tls,
        heads: HeadBudget::for_connections(config.limits.max_connections),
    }
}

/// The most workers of a process. Each has connections of its own to Redis, and a Redis serves the processes of all
/// pods: on nodes with many cores they would be thousands. A sidecar needs fewer cores than its backend.
const MOST_WORKERS: usize = 16;

/// Starts one worker for each core, or for as many cores as the container's quota allows.
fn start_workers(context: &WorkerContext) -> Result<Vec<Worker>, StartError> {
    let count = available_parallelism()
        .map_or(1, usize::from)
        .min(MOST_WORKERS);
    (0..count)
        .map(|index| Worker::start(index, context.clone()))
        .collect::<io::Result<_>>()
        .map_err(StartError::Worker)
}

/// Hands accepted connections to the worker with the fewest connections, because the kernel's own choice
/// is uneven. A connection beyond the limit gets an error response instead.
fn hand_over(
    inboxes: Vec<WorkerInbox>,
    limit: ConnectionLimit,
    sinks: &RecordSinks,
    errors: impl Fn() -> ErrorsConfig + Send + 'static,
    settings: Arc<ServeSettings>,
) -> impl FnMut(AcceptedConnection) + Send + 'static {
    let shedder = LoadShedder::default();
    let refuse = proxy::refusing(sinks, errors);
    move |accepted| {
        let Some(permit) = limit.try_open() else {
            let response = refuse(&BadRequest::TOO_MANY_CONNECTIONS.into());
            let response = settings.tls.is_none().then_some(&response);
            return shedder.turn_away(accepted, response);
        };
        if let Some(inbox) = inboxes
            .iter()
            .min_by_key(|inbox| inbox.connections.load(Ordering::Relaxed))
        {
            inbox.send(accepted, permit);
        }
    }
}

// === impl RunningApp ===

impl RunningApp {
    /// The address of the proxy's listener, with the actual port.
    pub fn proxy_addr(&self) -> &ListenEndpoint {
        &self.proxy_addr
    }

    /// The address of the admin interface's listener, with the actual port.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Stops: accepts nothing more, lets turns end within `timeouts.drain`, aborts the rest, and releases all
    /// locks. Not cancel-safe: dropping the future leaves locks to the end of their leases.
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
        self.instance.stop(self.release_limit).await;
        if let Some(exporter) = self.exporter {
            exporter.stop().await;
        }
        // It has ended: it stops accepting when draining begins.
        if let Ok(Err(error)) = self.acceptor.await {
            tracing::warn!(%error, "accepting connections failed");
        }
        StopReport {
            in_time,
            all_released,
        }
    }

    /// The process's metrics.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Replaces the configuration while the process runs.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Can abort the turns that still run while [`RunningApp::stop`] waits for them.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }
}
