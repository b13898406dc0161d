//! A worker: one thread, one runtime, and everything that its connections use.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::MakeLocks;
use crate::budget::Budget;
use crate::drain::DrainWatch;
use crate::listen::{self, AcceptedConnection, ConnectionPermit, ServeSettings};
use crate::proxy::{Proxy, RecordSinks};
use crate::reload::CurrentConfig;

/// A running worker.
#[derive(Debug)]
pub(super) struct Worker {
    seat: WorkerInbox,
    idle: oneshot::Receiver<()>,
    released: oneshot::Receiver<bool>,
}

/// Where connections are handed to a worker.
#[derive(Clone, Debug)]
pub(super) struct WorkerInbox {
    inbox: mpsc::UnboundedSender<(AcceptedConnection, ConnectionPermit)>,
    /// How many it has.
    pub(super) connections: Arc<AtomicUsize>,
}

/// How long locks may take to be given back at the end, beyond the time for one command: a few
/// attempts of the releaser, and well below the ten seconds that are left of Kubernetes' grace
/// period when turns had their thirty.
const RELEASE_LIMIT: Duration = Duration::from_secs(4);

// === impl Worker ===

impl Worker {
    pub(super) fn start(
        index: usize,
        current: CurrentConfig,
        settings: Arc<ServeSettings>,
        (make_locks, budget, tally): (MakeLocks, Budget, RecordSinks),
        process: u64,
        drain: DrainWatch,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (sender, inbox) = mpsc::unbounded_channel();
        let (tell_idle, idle) = oneshot::channel();
        let (tell_released, released) = oneshot::channel();
        let seat = WorkerInbox {
            inbox: sender,
            connections: Arc::default(),
        };
        let connections = Arc::clone(&seat.connections);
        thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let all_released = runtime.block_on(async {
                    let locks = Arc::new(make_locks());
                    let serving = TaskTracker::new();
                    let proxy = Proxy::new(
                        Arc::clone(&current.borrow()),
                        Arc::clone(&locks),
                        budget,
                        process,
                        drain.clone(),
                        serving.clone(),
                        tally,
                    );
                    let served = (Arc::new(ArcSwap::from_pointee(proxy)), settings);
                    serve(served, current.clone(), serving, inbox, connections, drain).await;
                    // Nobody listens when the process was not stopped but dropped.
                    let _ = tell_idle.send(());
                    let limit = {
                        let config = current.borrow();
                        config.store.timeout + config.longest_settling() + RELEASE_LIMIT
                    };
                    locks.flush(limit).await
                });
                // Not waiting for what is left on it: name look-ups that block.
                runtime.shutdown_background();
                let _ = tell_released.send(all_released);
            })?;
        Ok(Self {
            seat,
            idle,
            released,
        })
    }

    pub(super) fn seat(&self) -> WorkerInbox {
        self.seat.clone()
    }

    /// Resolves when its last connection and its last turn are over, after draining has begun. To be
    /// awaited once.
    pub(super) async fn idle(&mut self) {
        // An error is a worker that has panicked: as idle as can be.
        let _ = (&mut self.idle).await;
    }

    /// Resolves when its thread is done; whether all locks were given back.
    pub(super) async fn join(self) -> bool {
        drop(self.seat);
        self.released.await.unwrap_or(false)
    }
}

/// Serves what comes in until draining begins, and then what is left: also of turns, which the proxy
/// has among what is `serving`, whose connection is over. A new configuration is for each request that
/// begins after it came, on connections that were there before, too.
async fn serve(
    (proxy, mut settings): (Arc<ArcSwap<Proxy>>, Arc<ServeSettings>),
    mut current: CurrentConfig,
    serving: TaskTracker,
    mut inbox: mpsc::UnboundedReceiver<(AcceptedConnection, ConnectionPermit)>,
    connections: Arc<AtomicUsize>,
    mut drain: DrainWatch,
) {
    loop {
        let (accepted, permit) = tokio::select! {
            biased;
            connection = inbox.recv() => match connection {
                Some(connection) => connection,
                None => break,
            },
            () = drain.draining() => break,
            Ok(()) = current.changed() => {
                let config = Arc::clone(&current.borrow_and_update());
                // For the connections that come from now on.
                let idle = config.timeouts.idle_stream;
                settings = Arc::new(ServeSettings { idle, ..(*settings).clone() });
                proxy.store(Arc::new(proxy.load().with_config(config)));
                continue;
            }
        };
        let (proxy, drain) = (Arc::clone(&proxy), drain.clone());
        let settings = Arc::clone(&settings);
        let leaving = ConnectionGuard(Arc::clone(&connections));
        serving.spawn(async move {
            let _leaving = (leaving, permit);
            listen::serve(accepted, &settings, drain, proxy).await;
        });
    }
    serving.close();
    serving.wait().await;
}

/// Counts a connection out, also when what serves it panics.
struct ConnectionGuard(Arc<AtomicUsize>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Seat ===

impl WorkerInbox {
    /// Hands a connection over. One that the worker takes no more is closed with its inbox.
    pub(super) fn take(&self, accepted: AcceptedConnection, permit: ConnectionPermit) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let _ = self.inbox.send((accepted, permit));
    }
}
