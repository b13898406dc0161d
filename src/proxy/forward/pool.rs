//! Connections to the backend that are kept for the next request. One pool for each worker.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::OutgoingBody;
use crate::wire::Bounds;

/// Idle connections, the latest last. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Mutex<Vec<IdleConnection>>>);

/// A connection in use. Dropping it closes it at once, whatever is under way on it.
pub(super) struct PooledConnection {
    pub(super) bounds: Bounds,
    sender: RequestSender,
    tasks: ConnectionTask,
    pool: Pool,
}

/// Where its requests are handed over.
pub(super) enum RequestSender {
    Http1(http1::SendRequest<OutgoingBody>),
    Http2(http2::SendRequest<OutgoingBody>),
}

/// What moves its bytes.
pub(super) enum ConnectionTask {
    One(AbortHandle),
    /// hyper's for HTTP/2: one for the connection, one for its requests, and for each request one
    /// that sends its body and one that waits for the head of its answer.
    Several(Arc<Mutex<JoinSet<()>>>),
}

struct IdleConnection {
    connection: PooledConnection,
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
    pub(super) fn take(&self) -> Option<PooledConnection> {
        loop {
            let idle = self.0.lock().pop()?;
            let good = idle.connection.is_ready() && idle.since.elapsed() < KEEP;
            if good {
                return Some(idle.connection);
            }
        }
    }

    fn put(&self, connection: PooledConnection) {
        connection.bounds.lift();
        self.0.lock().push(IdleConnection {
            connection,
            since: Instant::now(),
        });
    }

    fn drop_old(&self, now: Instant) {
        let mut idle = self.0.lock();
        let young = idle.partition_point(|idle| idle.since + KEEP <= now);
        let old: Vec<_> = idle.drain(..young).collect();
        drop(idle);
        drop(old);
    }
}

// === impl Connection ===

impl PooledConnection {
    pub(super) fn new(
        sender: RequestSender,
        tasks: ConnectionTask,
        bounds: Bounds,
        pool: Pool,
    ) -> Self {
        Self {
            bounds,
            sender,
            tasks,
            pool,
        }
    }

    /// Sends a request, and gives the head of its answer; gives the request back if nothing of it was
    /// sent.
    pub(super) async fn send(
        &mut self,
        request: Request<OutgoingBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<OutgoingBody>>> {
        match &mut self.sender {
            RequestSender::Http1(sender) => sender.try_send_request(request).await,
            RequestSender::Http2(sender) => sender.try_send_request(request).await,
        }
    }

    /// Keeps it for the next request. Its answer is over; as long as its request isn't, the turn's
    /// deadline stands.
    pub(super) fn give_back(mut self) {
        let pool = self.pool.clone();
        if self.is_ready() {
            pool.put(self);
        } else if let RequestSender::Http1(sender) = &self.sender
            && !sender.is_closed()
        {
            tokio::spawn(async move {
                if let Ok(Ok(())) = timeout(READY_WITHIN, self.sender.ready()).await {
                    pool.put(self);
                }
            });
        }
    }

    /// Whether it can take a request. In HTTP/2 it always could: but not while it still sends one
    /// that was answered early.
    fn is_ready(&self) -> bool {
        match &self.sender {
            RequestSender::Http1(sender) => sender.is_ready(),
            RequestSender::Http2(sender) => sender.is_ready() && self.tasks.are_idle(),
        }
    }
}

// === impl Sender ===

impl RequestSender {
    async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        }
    }
}

// === impl Tasks ===

impl ConnectionTask {
    /// Whether none of them serves a request.
    fn are_idle(&self) -> bool {
        /// The connection's own.
        const IDLE: usize = 2;
        match self {
            Self::One(_) => true,
            Self::Several(tasks) => {
                let mut tasks = tasks.lock();
                while tasks.try_join_next().is_some() {}
                tasks.len() == IDLE
            }
        }
    }

    fn abort(&self) {
        match self {
            Self::One(task) => task.abort(),
            Self::Several(tasks) => {
                let mut tasks = tasks.lock();
                tasks.abort_all();
            }
        }
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        // Not left to hyper, which would first send what the backend no longer has to know.
        self.tasks.abort();
    }
}
