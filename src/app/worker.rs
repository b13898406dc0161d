//! A worker: one thread with one tokio runtime, and everything that serves the worker's connections.
//!
//! Invariant: the thread ends only after all its connections and turns have ended and its locks are released,
//! or the time for that is over. Which worker gets a connection is decided in `app`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::stores::{MakeAnswers, MakeLocks};
use crate::drain::DrainWatch;
use crate::listen::{self, AcceptedConnection, ConnectionPermit, ServeSettings};
use crate::proxy::{ProcessShared, Proxy};
use crate::reload::CurrentConfig;

/// A running worker.
#[derive(Debug)]
pub(super) struct Worker {
    /// Where the worker receives connections.
    pub(super) inbox: WorkerInbox,
    idle: oneshot::Receiver<()>,
    released: oneshot::Receiver<bool>,
}

/// What all workers are started with.
#[derive(Clone)]
pub(super) struct WorkerContext {
    pub(super) current: CurrentConfig,
    pub(super) settings: Arc<ServeSettings>,
    pub(super) make_locks: MakeLocks,
    pub(super) make_answers: MakeAnswers,
    pub(super) shared: ProcessShared,
    /// A random number of this process, for request ids. It isn't the epoch, which nobody may learn from them:
    /// a turn's tag is made of it.
    pub(super) process: u64,
    pub(super) drain: DrainWatch,
}

/// A connection with its permit, which counts it while it is open.
type CountedConnection = (AcceptedConnection, ConnectionPermit);

/// Hands connections to a worker. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct WorkerInbox {
    sender: mpsc::UnboundedSender<CountedConnection>,
    /// How many connections the worker has.
    pub(super) connections: Arc<AtomicUsize>,
}

/// Counts one of a worker's connections until it is dropped, also when the connection's task panics.
struct ConnectionGuard(Arc<AtomicUsize>);

/// How long releasing locks may take at the end, beyond the time for one command: enough for a few attempts
/// of the releaser, and well below the ten seconds of the pod's grace period that `timeouts.drain` leaves.
const RELEASE_LIMIT: Duration = Duration::from_secs(4);

// === impl Worker ===

impl Worker {
    /// Starts the worker's thread.
    ///
    /// # Errors
    /// When the system can't start a thread, or a runtime.
    pub(super) fn start(index: usize, context: WorkerContext) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let (send_idle, idle) = oneshot::channel();
        let (send_released, released) = oneshot::channel();
        let inbox = WorkerInbox {
            sender,
            connections: Arc::default(),
        };
        let connections = Arc::clone(&inbox.connections);
        // So that request ids differ between workers.
        let process = context.process.rotate_left(32).wrapping_add(index as u64);
        thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let all_released = runtime.block_on(async {
                    let locks = Arc::new((context.make_locks)());
                    let answers = (context.make_answers)();
                    let serving = TaskTracker::new();
                    let proxy = Proxy::new(
                        Arc::clone(&context.current.borrow()),
                        Arc::clone(&locks),
                        context.shared.clone(),
                        process,
                        context.drain.clone(),
                        serving.clone(),
                    )
                    .sharing_answers(answers.clone());
                    serve(&context, proxy, serving, receiver, connections).await;
                    // Nobody receives it if the process was dropped instead of stopped.
                    let _ = send_idle.send(());
                    let limit = {
                        let config = context.current.borrow();
                        config.store.timeout + config.longest_settling() + RELEASE_LIMIT
                    };
                    let (all_released, _) = tokio::join!(locks.flush(limit), answers.flush(limit));
                    all_released
                });
                // Doesn't wait for name look-ups, which block.
                runtime.shutdown_background();
                let _ = send_released.send(all_released);
            })?;
        Ok(Self {
            inbox,
            idle,
            released,
        })
    }

    /// Resolves when the worker's last connection and last turn have ended after draining began. May be
    /// awaited to its end only once.
    pub(super) async fn idle(&mut self) {
        // An error means that the worker has panicked, and so serves nothing.
        let _ = (&mut self.idle).await;
    }

    /// Resolves when the worker's thread is done. Returns whether all locks were released.
    pub(super) async fn join(self) -> bool {
        drop(self.inbox);
        self.released.await.unwrap_or(false)
    }
}

/// Serves connections until draining begins, and then until the last connection and the last turn have ended;
/// a turn in `serving` may outlive its connection. A new configuration applies to all requests that begin
/// after it, also on open connections.
async fn serve(
    context: &WorkerContext,
    proxy: Proxy,
    serving: TaskTracker,
    mut inbox: mpsc::UnboundedReceiver<CountedConnection>,
    connections: Arc<AtomicUsize>,
) {
    let proxy = Arc::new(ArcSwap::from_pointee(proxy));
    let mut settings = Arc::clone(&context.settings);
    let (mut current, mut drain) = (context.current.clone(), context.drain.clone());
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
                // The time for which a connection is kept applies to new connections only.
                let idle = config.timeouts.keep_alive;
                settings = Arc::new(ServeSettings { idle, ..(*settings).clone() });
                proxy.store(Arc::new(proxy.load().with_config(config)));
                continue;
            }
        };
        let (proxy, drain) = (Arc::clone(&proxy), drain.clone());
        let settings = Arc::clone(&settings);
        let guard = ConnectionGuard(Arc::clone(&connections));
        serving.spawn(async move {
            let _counted = (guard, permit);
            listen::serve(accepted, &settings, drain, proxy).await;
        });
    }
    serving.close();
    serving.wait().await;
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl WorkerInbox ===

impl WorkerInbox {
    /// Hands a connection to the worker. If the worker accepts nothing more, the connection is closed.
    pub(super) fn send(&self, accepted: AcceptedConnection, permit: ConnectionPermit) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let _ = self.sender.send((accepted, permit));
    }
}
