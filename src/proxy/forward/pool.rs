//! Connections to the backend that are kept for the next request. One pool for each worker.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Outgoing;
use crate::wire::Bounds;

/// Idle connections, the latest last. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Mutex<Vec<Idle>>>);

/// A connection in use. Dropping it closes it at once, whatever is under way on it.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Outgoing>,
    pub(super) bounds: Bounds,
    task: AbortHandle,
    pool: Pool,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// How long a connection is kept: below the shortest time after which a usual backend closes it
/// (gunicorn's 2 s; uvicorn's and Node's are 5 s), so that a request doesn't meet the closing.
const KEEP: Duration = Duration::from_millis(1500);

/// How long a connection whose answer is over may take to be ready again. What isn't by then is
/// still being sent a request that the backend has answered early, and is of no use.
const READY_WITHIN: Duration = Duration::from_secs(1);

// === impl Pool ===

impl Pool {
    /// An empty pool; a task on the current runtime closes what was kept too long.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new() -> Self {
        let idle = Arc::new(Mutex::new(Vec::new()));
        let weak = Arc::downgrade(&idle);
        tokio::spawn(async move {
            while let Some(idle) = weak.upgrade() {
                Self(idle).drop_old(Instant::now());
                sleep(KEEP).await;
            }
        });
        Self(idle)
    }

    /// The connection that was used last, if it is still good.
    pub(super) fn take(&self) -> Option<Connection> {
        loop {
            let idle = self.lock().pop()?;
            let good = idle.connection.sender.is_ready() && idle.since.elapsed() < KEEP;
            if good {
                return Some(idle.connection);
            }
        }
    }

    fn put(&self, connection: Connection) {
        self.lock().push(Idle {
            connection,
            since: Instant::now(),
        });
    }

    fn drop_old(&self, now: Instant) {
        let mut idle = self.lock();
        let young = idle.partition_point(|idle| idle.since + KEEP <= now);
        let old: Vec<_> = idle.drain(..young).collect();
        drop(idle);
        drop(old);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        // Nothing in here panics while holding it; a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Connection ===

impl Connection {
    pub(super) fn new(
        sender: SendRequest<Outgoing>,
        task: AbortHandle,
        bounds: Bounds,
        pool: Pool,
    ) -> Self {
        Self {
            sender,
            bounds,
            task,
            pool,
        }
    }

    /// Keeps it for the next request. Its answer is over.
    pub(super) fn give_back(mut self) {
        self.bounds.lift();
        let pool = self.pool.clone();
        if self.sender.is_ready() {
            pool.put(self);
        } else if !self.sender.is_closed() {
            tokio::spawn(async move {
                if let Ok(Ok(())) = timeout(READY_WITHIN, self.sender.ready()).await {
                    pool.put(self);
                }
            });
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Not left to hyper, which would first send what the backend no longer has to know.
        self.task.abort();
    }
}
