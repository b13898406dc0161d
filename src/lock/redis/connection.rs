//! The connection to Redis: connects, watches the connection, and reconnects.
//!
//! A connection that breaks reports it. Two kinds of useless connections don't: one that died silently
//! is given up at the first command without a reply, one to a server that has become a replica at the
//! first error that says so.
//!
//! Invariant: a reply belongs to a command by its order alone, so a connection that may have lost a reply
//! is given up. No command is sent twice: whether a command without a reply was executed is for the
//! caller to find out.

use std::fmt;
use std::future::pending;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, PushInfo, PushKind, RedisResult, Value};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::address::RedisAddress;
use super::clock::RedisClock;
use super::command::StoreCommand;
use super::error::{is_not_writable, not_executed, not_sent, server_error};
use super::login::{self, NodeConnection};
use super::node::{NodeRole, RedisNode};
use super::reauth::LoginKeeper;
use super::scripts;
use crate::lock::{MessageHandler, StoreError};
use crate::metrics::DurationRecorder;
use crate::redact;

/// A connection that is replaced when it fails. Dropping it ends its task.
pub(super) struct RedisConnection {
    state: watch::Receiver<LinkState>,
    reports: mpsc::UnboundedSender<LinkReport>,
    address: RedisAddress,
    node: RedisNode,
    clock: Arc<RedisClock>,
    /// One recorder for each command.
    times: [DurationRecorder; StoreCommand::COUNT],
    /// The number of the current connection, which is set before the first command goes over it.
    number: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

/// Who receives the messages on a channel.
pub(super) struct ChannelListener {
    pub(super) channel: String,
    pub(super) handler: Arc<dyn MessageHandler>,
}

#[derive(Clone)]
enum LinkState {
    /// The first attempt to reconnect is under way. Callers wait for it.
    Connecting,
    /// The connection is usable.
    Up(LinkConnected),
    /// The last attempt failed with this error. Another one follows.
    Down(StoreError),
}

#[derive(Clone)]
struct LinkConnected {
    connection: MultiplexedConnection,
    number: u64,
}

/// What the keeper learns about the connection with this number.
enum LinkReport {
    /// The connection has to be given up.
    Useless { number: u64, reason: Arc<str> },
    /// The connection received a push: a message, or the end of the connection.
    Pushed { number: u64, info: PushInfo },
}

/// The pause before the next attempt to connect: short enough to be back within a second of Redis's
/// return, long enough not to be a load.
const RECONNECT_PAUSE: Range<Duration> = Duration::from_millis(20)..Duration::from_millis(500);

// === impl RedisConnection ===

impl RedisConnection {
    /// Connects in a task on the current runtime, and passes messages to the listener.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn connect(
        address: &RedisAddress,
        node: RedisNode,
        role: NodeRole,
        listener: Option<ChannelListener>,
    ) -> Self {
        let (state_sender, state) = watch::channel(LinkState::Connecting);
        let (reports, inbox) = mpsc::unbounded_channel();
        let number = Arc::<AtomicU64>::default();
        let clock = Arc::new(RedisClock::new());
        let keeper = ConnectionKeeper {
            address: address.clone(),
            node: node.clone(),
            role,
            published: Arc::clone(&number),
            clock: Arc::clone(&clock),
            listener,
            state: state_sender,
            inbox,
            number: 0,
        };
        let task = tokio::spawn(keeper.run(reports.clone()));
        Self {
            state,
            reports,
            times: StoreCommand::recorders(&address.metrics),
            number,
            address: address.clone(),
            node,
            clock,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The number of the current connection, or of the last one; 0 before the first.
    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// When this process last found another server at the address; `None`: never.
    pub(super) fn server_changes(&self) -> watch::Receiver<Option<Instant>> {
        self.address.server.changes()
    }

    /// The clock of the server, as the connection's replies tell it.
    pub(super) fn clock(&self) -> &RedisClock {
        &self.clock
    }

    /// The timeout of one command, including the wait for a connection.
    pub(super) fn timeout(&self) -> Duration {
        self.address.timeout
    }

    /// Sends the command that `build` makes as soon as there is a connection, and gives its reply.
    /// Dropping the future does not cancel the command.
    ///
    /// # Errors
    /// When the store can't be reached, doesn't reply in time, or replies with an error.
    pub(super) async fn send(
        &self,
        command: StoreCommand,
        build: impl FnOnce() -> Cmd,
    ) -> Result<Value, StoreError> {
        let reply = self.exchange(command, build).await;
        if reply.is_err() {
            self.count_failure();
        }
        reply
    }

    /// Counts a command that failed.
    pub(super) fn count_failure(&self) {
        self.address.metrics.store_failed();
    }

    /// Like [`RedisConnection::send`], but counts no failure.
    ///
    /// # Errors
    /// As [`RedisConnection::send`].
    pub(super) async fn exchange(
        &self,
        command: StoreCommand,
        build: impl FnOnce() -> Cmd,
    ) -> Result<Value, StoreError> {
        let began = Instant::now();
        let give_up = began + self.timeout();
        let mut up = self.up(give_up).await?;
        let _timed = TimedCommand {
            began,
            recorder: &self.times[command as usize],
        };
        let command = build();
        loop {
            let sent = up.connection.send_packed_command(&command);
            let reply = match timeout_at(give_up, sent).await {
                Ok(reply) => reply.and_then(Value::extract_error),
                Err(_) => {
                    self.give_up(up.number, "a command got no reply");
                    return Err(self.timed_out());
                }
            };
            let error = match reply {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            // After `SCRIPT FLUSH`, or a restart.
            if error.code() == Some("NOSCRIPT") {
                self.load_scripts(&mut up, give_up).await?;
                continue;
            }
            let reason = server_error(&error);
            if reason.is_none() || is_not_writable(&error) {
                let reason = reason.as_deref().unwrap_or("the connection broke");
                self.give_up(up.number, reason);
            }
            return Err(match reason {
                Some(_) => not_executed(&self.node.label, &error),
                None => StoreError::Unreachable {
                    store: Arc::clone(&self.node.label),
                    reason: error.to_string().into(),
                },
            });
        }
    }

    /// The error for a reply that can't be parsed. Logs the reply, unless ids are hidden.
    pub(super) fn unreadable(&self, reply: &Value) -> StoreError {
        if !redact::is_enabled() {
            tracing::debug!(?reply, "reply from the store can't be parsed");
        }
        let store = Arc::clone(&self.node.label);
        StoreError::Unreadable { store }
    }

    /// The error for a command that was not sent, or not executed because it was late.
    pub(super) fn not_sent(&self, reason: &str) -> StoreError {
        not_sent(&self.node.label, reason)
    }

    fn timed_out(&self) -> StoreError {
        StoreError::TimedOut {
            store: Arc::clone(&self.node.label),
            timeout: self.timeout(),
        }
    }

    /// The connection. Waits for the first attempt to reconnect, but not while Redis is known to be down.
    async fn up(&self, give_up: Instant) -> Result<LinkConnected, StoreError> {
        if let LinkState::Up(connected) = &*self.state.borrow() {
            return Ok(connected.clone());
        }
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| !matches!(state, LinkState::Connecting));
        let Ok(settled) = timeout_at(give_up, settled).await else {
            return Err(self.not_sent("still connecting"));
        };
        match settled.as_deref() {
            Ok(LinkState::Up(connected)) => Ok(connected.clone()),
            Ok(LinkState::Down(error)) => Err(error.clone()),
            Ok(LinkState::Connecting) => Err(self.not_sent("still connecting")),
            Err(_) => Err(self.not_sent("the process is stopping")),
        }
    }

    async fn load_scripts(
        &self,
        up: &mut LinkConnected,
        give_up: Instant,
    ) -> Result<(), StoreError> {
        let load = scripts::load();
        let loaded = load.exec_async(&mut up.connection);
        match timeout_at(give_up, loaded).await {
            Ok(Ok(())) => Ok(()),
            // The command that needs the scripts was not executed.
            Ok(Err(error)) => Err(not_executed(&self.node.label, &error)),
            Err(_) => Err(self.timed_out()),
        }
    }

    fn give_up(&self, number: u64, reason: &str) {
        // The keeper is gone only when the process is stopping.
        let _ = self.reports.send(LinkReport::Useless {
            number,
            reason: reason.into(),
        });
    }
}

/// Records how long a command took when it is dropped, even if nobody waits for the reply any more.
struct TimedCommand<'c> {
    began: Instant,
    recorder: &'c DurationRecorder,
}

impl Drop for TimedCommand<'_> {
    fn drop(&mut self) {
        self.recorder.note(self.began.elapsed());
    }
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConnection")
            .field("store", &self.node.label)
            .finish_non_exhaustive()
    }
}

/// Keeps the connection logged in. Resolves with the reason when the connection has to be given up.
async fn keep_login(login: Option<LoginKeeper>, connection: MultiplexedConnection) -> Arc<str> {
    match login {
        Some(login) => login.keep(connection).await,
        None => pending().await,
    }
}

// === the task ===

struct ConnectionKeeper {
    address: RedisAddress,
    node: RedisNode,
    role: NodeRole,
    clock: Arc<RedisClock>,
    listener: Option<ChannelListener>,
    state: watch::Sender<LinkState>,
    inbox: mpsc::UnboundedReceiver<LinkReport>,
    /// The number of the current connection, or of the current attempt.
    number: u64,
    /// The number of the last connection that was usable.
    published: Arc<AtomicU64>,
}

impl ConnectionKeeper {
    async fn run(mut self, reports: mpsc::UnboundedSender<LinkReport>) {
        let mut pause = RECONNECT_PAUSE.start;
        let mut is_down = false;
        loop {
            self.number += 1;
            let give_up = Instant::now() + self.address.timeout;
            match timeout_at(give_up, self.open(&reports, give_up)).await {
                Ok(Ok(opened)) => {
                    let NodeConnection {
                        connection,
                        driver,
                        keeper,
                    } = opened;
                    if is_down {
                        tracing::info!(store = %self.node.label, "store usable again");
                    }
                    (pause, is_down) = (RECONNECT_PAUSE.start, false);
                    let number = self.number;
                    let kept = keep_login(keeper, connection.clone());
                    self.published.store(number, Ordering::Release);
                    self.state
                        .send_replace(LinkState::Up(LinkConnected { connection, number }));
                    self.address.health.set(true);
                    if let Some(listener) = &self.listener {
                        listener.handler.on_reconnect();
                    }
                    let reason = tokio::select! {
                        reason = self.lost() => reason,
                        reason = kept => reason,
                    };
                    tracing::debug!(store = %self.node.label, %reason, "reconnecting to the store");
                    self.state.send_replace(LinkState::Connecting);
                    // Replies that are on their way may still arrive, for as long as a caller waits.
                    let limit = self.address.timeout;
                    tokio::spawn(async move {
                        sleep(limit).await;
                        driver.abort();
                    });
                    continue;
                }
                Ok(Err(error)) => self.failed(error, &mut is_down),
                Err(_) => {
                    let error = not_sent(&self.node.label, "no reply while connecting");
                    self.failed(error, &mut is_down);
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_PAUSE.end);
        }
    }

    fn failed(&self, error: StoreError, is_down: &mut bool) {
        if !*is_down {
            tracing::warn!(%error, "store not usable");
        }
        *is_down = true;
        self.address.health.failed(error.clone());
        self.state.send_replace(LinkState::Down(error));
    }

    /// Connects, logs in, and prepares the connection. All of this ends at `give_up`.
    async fn open(
        &self,
        reports: &mpsc::UnboundedSender<LinkReport>,
        give_up: Instant,
    ) -> Result<NodeConnection, StoreError> {
        let (reports, number) = (reports.clone(), self.number);
        let on_push = move |info| reports.send(LinkReport::Pushed { number, info }).is_ok();
        let mut opened =
            login::open(&self.address, &self.node, self.role, on_push, give_up).await?;
        let prepared = self.prepare(&mut opened.connection).await;
        prepared.map_err(|error| not_executed(&self.node.label, &error))?;
        Ok(opened)
    }

    /// Loads the scripts over a new connection, notes the server, subscribes to the channel, and reads Redis's
    /// time.
    async fn prepare(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        scripts::load().exec_async(connection).await?;
        let (server, label) = (&self.address.server, &self.node.label);
        server.note(label, connection).await?;
        if let Some(listener) = &self.listener {
            connection.subscribe(&listener.channel).await?;
        }
        let time = connection.send_packed_command(&redis::cmd("TIME")).await?;
        self.clock.set_from_reply(&time.extract_error()?)
    }

    /// Waits until the current connection has to be given up; gives the reason.
    async fn lost(&mut self) -> Arc<str> {
        loop {
            // The sender lives as long as the `RedisConnection`, whose end aborts this task.
            let Some(report) = self.inbox.recv().await else {
                pending().await
            };
            match report {
                LinkReport::Useless { number, reason } if number == self.number => return reason,
                LinkReport::Pushed { number, info }
                    if number == self.number && info.kind == PushKind::Disconnection =>
                {
                    return "the connection was closed".into();
                }
                LinkReport::Pushed { info, .. } if info.kind == PushKind::Message => {
                    self.on_message(&info);
                }
                // About an earlier connection, or a push of another kind.
                LinkReport::Useless { .. } | LinkReport::Pushed { .. } => {}
            }
        }
    }

    /// Passes a message to the listener. One from an earlier connection counts as well.
    fn on_message(&self, info: &PushInfo) {
        let text = match &*info.data {
            [_, Value::BulkString(text)] => std::str::from_utf8(text).ok(),
            _ => None,
        };
        match (text.and_then(|text| text.parse().ok()), &self.listener) {
            (Some(message), Some(listener)) => listener.handler.on_message(message),
            // Another program may have written it.
            _ if redact::is_enabled() => tracing::debug!("message can't be parsed"),
            _ => tracing::debug!(?info, "message can't be parsed"),
        }
    }
}
