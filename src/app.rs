//! The composition root: a configuration becomes running workers, and running workers stop.
//!
//! Each worker is a thread with a runtime of its own. What serves a connection belongs to it: the
//! backend's connections, the one to Redis, the leases. What is one per process does not: the
//! listening socket, the claimant's name, the signal to stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::available_parallelism;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::{Config, Store as StoreConfig, StorePlace};
use crate::drain::{self, Drain};
use crate::listen::Listener;
use crate::lock::memory::MemoryStore;
use crate::lock::redis::{Address, RedisStore};
use crate::lock::{Claimant, Store};
use worker::Worker;

mod worker;

/// A process that serves, until it is stopped.
#[derive(Debug)]
pub struct Running {
    proxy_addr: SocketAddr,
    drain: Drain,
    drain_limit: Duration,
    acceptor: JoinHandle<io::Result<()>>,
    workers: Vec<Worker>,
}

/// How a process has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Every turn ended by itself; otherwise the rest was aborted.
    pub in_time: bool,
    /// Every lock was given back; otherwise the store's leases have to end.
    pub all_released: bool,
}

/// Why a process could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address can't be listened on.
    #[error("can't listen on {address}: {reason}; set `listen` to a free address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        reason: io::Error,
    },
    /// No thread, or no runtime in it.
    #[error("can't start a worker: {0}")]
    Worker(io::Error),
    /// The store's address can't be read.
    #[error("can't use store.url: {0}")]
    Store(String),
    /// The system has no random numbers.
    #[error("no random numbers to be had: {0}")]
    Random(getrandom::Error),
}

/// Makes a worker's store, on the worker's runtime.
type MakeStore = Arc<dyn Fn() -> Arc<dyn Store> + Send + Sync>;

/// Starts to serve. The listening socket is bound when this returns, so that port 0 has its number,
/// and clients that connect are served.
///
/// # Errors
/// When the address is taken, or the system lacks what a worker needs.
///
/// # Panics
/// Outside of a tokio runtime, which accepts the connections.
pub fn start(config: Config) -> Result<Running, StartError> {
    let address = config.listen;
    let listen = |reason| StartError::Listen { address, reason };
    let listener = Listener::bind(address).map_err(listen)?;
    let proxy_addr = listener.address().map_err(listen)?;

    let make_store = make_store(&config.store)?;
    let epoch = getrandom::u64().map_err(StartError::Random)?;
    let claimant = Arc::new(Claimant::new(&instance_name(epoch), epoch));
    let (drain, watch) = drain::channel();
    let drain_limit = config.timeouts.drain;
    let config = Arc::new(config);

    // As many as there are cores to run them, or as a container's quota allows.
    let count = available_parallelism().map_or(1, usize::from);
    let workers = (0..count)
        .map(|index| {
            // Request ids differ between workers in what would be the epoch's own digits.
            let process = epoch.rotate_left(32).wrapping_add(index as u64);
            let (config, claimant) = (Arc::clone(&config), Arc::clone(&claimant));
            Worker::start(
                index,
                config,
                Arc::clone(&make_store),
                claimant,
                process,
                watch.clone(),
            )
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(StartError::Worker)?;

    let seats: Vec<_> = workers.iter().map(Worker::seat).collect();
    let acceptor = tokio::spawn(listener.accept(watch, move |stream, peer| {
        // The worker with the fewest connections: the kernel's own choice is a lottery.
        if let Some(seat) = seats
            .iter()
            .min_by_key(|seat| seat.connections.load(Ordering::Relaxed))
        {
            seat.take(stream, peer);
        }
    }));
    Ok(Running {
        proxy_addr,
        drain,
        drain_limit,
        acceptor,
        workers,
    })
}

/// What makes stores: one in memory is shared by all workers, each has a connection of its own to
/// one in Redis.
fn make_store(config: &StoreConfig) -> Result<MakeStore, StartError> {
    match &config.place {
        StorePlace::Memory => {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            Ok(Arc::new(move || Arc::clone(&store)))
        }
        StorePlace::Redis(url) => {
            let address = Address::parse(url, config.timeout).map_err(StartError::Store)?;
            Ok(Arc::new(move || {
                Arc::new(RedisStore::connect(address.clone()))
            }))
        }
    }
}

/// The host's name, as Kubernetes sets it to the pod's, and digits that no other process has.
fn instance_name(epoch: u64) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "seriatim",
        host => host,
    };
    format!("{host}-{:08x}", epoch & 0xffff_ffff)
}

// === impl Running ===

impl Running {
    /// Where it listens.
    pub fn proxy_addr(&self) -> SocketAddr {
        self.proxy_addr
    }

    /// Stops: accepts nothing more, lets turns end within `timeouts.drain`, aborts the rest, and
    /// gives all locks back.
    pub async fn stop(mut self) -> Stopped {
        self.drain.begin();
        let ended = async {
            for worker in &mut self.workers {
                worker.idle().await;
            }
        };
        let in_time = timeout(self.drain_limit, ended).await.is_ok();
        self.drain.abort();
        let mut all_released = true;
        for worker in self.workers {
            all_released &= worker.join().await;
        }
        // It has ended by now, for it stops accepting when draining begins.
        if let Ok(Err(error)) = self.acceptor.await {
            tracing::warn!(%error, "accepting connections had failed");
        }
        Stopped {
            in_time,
            all_released,
        }
    }

    /// What can abort the turns that still run, while [`Running::stop`] waits for them.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }
}
