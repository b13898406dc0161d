//! The pool of idle connections to one backend. Each worker has its own.
//!
//! Invariant: a pooled connection has no request under way, and is younger than [`MAX_AGE`].

use std::mem;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::Either;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::OutgoingBody;
use super::exchange_notes::{ExchangeNotes, InterimTarget};
use crate::wire::Bounds;

/// Idle connections. Cheap to clone. While there are any, a task closes those that nobody takes.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<IdleConnections>>);

#[derive(Default)]
struct IdleConnections {
    /// The connection that was used last is at the end.
    connections: Vec<IdleConnection>,
    /// A task runs that closes old connections.
    has_closer: bool,
}

/// A connection in use. Dropping it closes the connection at once.
pub(super) struct PooledConnection {
    pub(super) bounds: Bounds,
    pub(super) sender: RequestSender,
    pub(super) tasks: ConnectionTask,
    /// What is noted of the last request and its response.
    pub(super) notes: ExchangeNotes,
    /// When the connection was opened.
    pub(super) opened: Instant,
    /// Where the connection goes when it is given back.
    pub(super) pool: Pool,
}

/// Sends requests on a connection.
pub(super) enum RequestSender {
    Http1(http1::SendRequest<OutgoingBody>),
    Http2(http2::SendRequest<OutgoingBody>),
}

/// The tasks that read and write a connection.
pub(super) enum ConnectionTask {
    /// The one task of an HTTP/1.1 connection.
    One(AbortHandle),
    /// hyper's tasks for HTTP/2: one for the connection, one for its requests, and for each request one
    /// that sends its body and one that waits for the head of its response.
    Several(Arc<Mutex<JoinSet<()>>>),
}

struct IdleConnection {
    connection: PooledConnection,
    since: Instant,
}

/// How long an idle connection is kept: less than the shortest keep-alive timeout of usual backends
/// (gunicorn 2 s, uvicorn and Node 5 s), so that few requests meet a connection that is being closed.
const KEEP: Duration = Duration::from_millis(1500);

/// How old a connection may be to be kept. Under steady traffic it would otherwise live for ever, and the
/// proxy would not notice that the backend's name has another address. About as long as such names may be
/// cached; a new connection a minute costs nothing.
const MAX_AGE: Duration = Duration::from_secs(60);

/// How long a connection may take to be ready again after its response. If the backend responded early,
/// the rest of the request is still being sent; a connection that takes longer is closed.
const READY_WITHIN: Duration = Duration::from_secs(1);

// === impl Pool ===

impl Pool {
    /// The connection that was used last and can still be used; `None`: there is none.
    pub(super) fn take(&self) -> Option<PooledConnection> {
        loop {
            let idle = self.0.lock().connections.pop()?;
            let is_usable = idle.connection.is_ready() && idle.since.elapsed() < KEEP;
            if is_usable {
                return Some(idle.connection);
            }
        }
    }

    fn put(&self, connection: PooledConnection) {
        if connection.opened.elapsed() >= MAX_AGE {
            return;
        }
        connection.bounds.lift();
        let mut idle = self.0.lock();
        idle.connections.push(IdleConnection {
            connection,
            since: Instant::now(),
        });
        if !mem::replace(&mut idle.has_closer, true) {
            let weak = Arc::downgrade(&self.0);
            tokio::spawn(Self::close_old(weak));
        }
    }

    /// Closes connections after [`KEEP`], until none is idle: a worker without traffic has no timer.
    async fn close_old(idle: Weak<Mutex<IdleConnections>>) {
        loop {
            sleep(KEEP).await;
            let Some(idle) = idle.upgrade() else {
                return;
            };
            if !Self(idle).drop_old(Instant::now()) {
                return;
            }
        }
    }

    /// Drops the connections that are too old, and returns whether others are left. If none is, the task that closes them
    /// has to end: the next connection starts another one.
    fn drop_old(&self, now: Instant) -> bool {
        let mut idle = self.0.lock();
        let young = idle
            .connections
            .partition_point(|idle| idle.since + KEEP <= now);
        let old: Vec<_> = idle.connections.drain(..young).collect();
        idle.has_closer = !idle.connections.is_empty();
        let has_closer = idle.has_closer;
        drop(idle);
        drop(old);
        has_closer
    }
}

// === impl PooledConnection ===

impl PooledConnection {
    /// Sends a request, and returns when the head of the response has arrived. Until then, interim responses pass to
    /// `interim`; `None`: they are left out.
    ///
    /// # Errors
    /// When the connection breaks. The error has the request if no byte of it was sent.
    pub(super) fn send(
        &mut self,
        request: Request<OutgoingBody>,
        interim: Option<InterimTarget>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<OutgoingBody>>>> + use<>
    {
        match &mut self.sender {
            RequestSender::Http1(sender) => {
                self.notes.begin(request.extensions().get(), interim);
                Either::Left(sender.try_send_request(request))
            }
            RequestSender::Http2(sender) => {
                self.notes.begin(None, None);
                Either::Right(sender.try_send_request(request))
            }
        }
    }

    /// Puts the connection into the pool after its response. While the rest of its request is still
    /// being sent, the turn's deadline stays.
    pub(super) fn give_back(mut self) {
        let pool = self.pool.clone();
        if self.is_ready() {
            pool.put(self);
        } else if matches!(&self.sender, RequestSender::Http1(sender) if !sender.is_closed()) {
            tokio::spawn(async move {
                if let RequestSender::Http1(sender) = &mut self.sender
                    && let Ok(Ok(())) = timeout(READY_WITHIN, sender.ready()).await
                {
                    pool.put(self);
                }
            });
        }
    }

    /// Whether the connection can take a request. HTTP/2 could always take one, but here it waits until
    /// the last request is sent.
    fn is_ready(&self) -> bool {
        match &self.sender {
            RequestSender::Http1(sender) => sender.is_ready(),
            RequestSender::Http2(sender) => sender.is_ready() && self.tasks.are_idle(),
        }
    }
}

// === impl ConnectionTask ===

impl ConnectionTask {
    /// Whether no task serves a request.
    fn are_idle(&self) -> bool {
        /// The tasks of a connection without a request.
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
            Self::Several(tasks) => tasks.lock().abort_all(),
        }
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        // Without the abort, hyper would first send what it has buffered.
        self.tasks.abort();
    }
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::advance;

    use super::*;

    /// A connection to a backend that answers each request.
    async fn connected(pool: &Pool) -> PooledConnection {
        let (near, far) = duplex(1 << 10);
        tokio::spawn(answer_all(far));
        let handshake = http1::handshake(TokioIo::new(near));
        let (sender, driver) = handshake.await.expect("it needs no reply");
        PooledConnection {
            bounds: Bounds::default(),
            sender: RequestSender::Http1(sender),
            tasks: ConnectionTask::One(tokio::spawn(driver).abort_handle()),
            notes: ExchangeNotes::default(),
            opened: Instant::now(),
            pool: pool.clone(),
        }
    }

    async fn answer_all(mut far: DuplexStream) {
        let mut request = [0; 1 << 10];
        while let Ok(1..) = far.read(&mut request).await {
            let response = b"HTTP/1.1 204 No Content\r\n\r\n";
            far.write_all(response).await.expect("there is room");
        }
    }

    async fn ask(connection: &mut PooledConnection) {
        let request = Request::new(OutgoingBody::Nothing);
        let sent = connection.send(request, None).await;
        sent.unwrap_or_else(|error| panic!("no response: {:?}", error.error()));
        if let RequestSender::Http1(sender) = &mut connection.sender {
            sender.ready().await.expect("it stays open");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_under_steady_traffic_is_given_up_at_its_greatest_age() {
        crate::time_limit::limit_this_test();
        let pool = Pool::default();
        let opened = Instant::now();
        let mut connection = connected(&pool).await;
        ask(&mut connection).await;
        connection.give_back();
        while let Some(mut connection) = pool.take() {
            assert!(opened.elapsed() < MAX_AGE, "it was kept no longer");
            ask(&mut connection).await;
            advance(KEEP / 2).await;
            connection.give_back();
        }
        let age = opened.elapsed();
        assert!(
            (MAX_AGE..MAX_AGE + KEEP).contains(&age),
            "until then it was used again and again: {age:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn old_connections_are_closed_whenever_there_are_any() {
        crate::time_limit::limit_this_test();
        let pool = Pool::default();
        for _ in 0..2 {
            let mut connection = connected(&pool).await;
            ask(&mut connection).await;
            connection.give_back();
            assert!(pool.0.lock().has_closer, "somebody closes it in time");
            sleep(KEEP * 2).await;
            let idle = pool.0.lock();
            assert!(idle.connections.is_empty(), "it is closed");
            assert!(!idle.has_closer, "nobody waits without a connection");
        }
    }
}
