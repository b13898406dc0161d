//! The connection to Redis: connects, watches the connection, and reconnects.
//!
//! A connection that breaks reports it. Two kinds of useless connections don't: one that died silently
//! is given up at the first command without a reply, one to a server that has become a replica at the
//! first error that says so.
//!
//! Invariant: a reply belongs to a command by its order alone, so a connection that may have lost a reply
//! is given up. No command is sent twice: whether a command without a reply was executed is for the
//! caller to find out.

use std::borrow::Cow;
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
use super::error::{
    Redirection, is_not_writable, not_executed, not_sent, redirection, server_error, unreadable,
};
use super::login::{self, NodeConnection};
use super::node::{NodeRole, RedisNode};
use super::reauth::LoginKeeper;
use super::scripts;
use super::sentinel::MasterWatch;
use crate::lock::{MessageHandler, StoreError};
use crate::metrics::DurationRecorder;
use crate::redact;

/// A connection that is replaced when it fails. Dropping it ends its task.
pub(super) struct RedisConnection {
    state: watch::Receiver<LinkState>,
    reports: mpsc::UnboundedSender<LinkReport>,
    address: RedisAddress,
    /// The server or the Sentinels, for errors.
    label: Arc<str>,
    clock: Arc<RedisClock>,
    /// One recorder for each command.
    times: [DurationRecorder; StoreCommand::COUNT],
    _task: AbortOnDropHandle<()>,
}

/// Who receives the messages on a channel.
#[derive(Clone)]
pub(super) struct ChannelListener {
    pub(super) channel: Arc<str>,
    pub(super) handler: Arc<dyn MessageHandler>,
}

/// To which server a connection goes.
#[derive(Clone)]
pub(super) enum LinkTarget {
    /// Always to this one.
    Fixed(RedisNode, NodeRole),
    /// To the master that the Sentinels name, and to the next one when they name another.
    Master(MasterWatch),
}

/// The numbers of connections, in the order of their attempts. Several connections may share them.
#[derive(Debug, Default)]
pub(super) struct LinkNumbers {
    last: AtomicU64,
    /// The highest number of a connection that was usable.
    published: AtomicU64,
}

/// Why a command has no reply.
pub(super) struct LinkError {
    pub(super) error: StoreError,
    /// Where to send the command, which was not executed; `None`: nowhere else.
    pub(super) redirection: Option<Redirection>,
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
        target: LinkTarget,
        listener: Option<ChannelListener>,
        numbers: Arc<LinkNumbers>,
    ) -> Self {
        let (state_sender, state) = watch::channel(LinkState::Connecting);
        let (reports, inbox) = mpsc::unbounded_channel();
        let clock = Arc::new(RedisClock::new());
        let label = match &target {
            LinkTarget::Fixed(node, _) => Arc::clone(&node.label),
            LinkTarget::Master(_) => Arc::clone(&address.label),
        };
        let keeper = ConnectionKeeper {
            address: address.clone(),
            label: Arc::clone(&label),
            target,
            tried: None,
            numbers,
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
            address: address.clone(),
            label,
            clock,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The clock of the server, as the connection's replies tell it.
    pub(super) fn clock(&self) -> &RedisClock {
        &self.clock
    }

    /// Sends the command that `build` makes as soon as there is a connection, and gives its reply. `is_asking`: the
    /// command follows `ASKING`. Dropping the future does not cancel the command.
    ///
    /// # Errors
    /// When the server can't be reached, doesn't reply until `give_up`, or replies with an error.
    pub(super) async fn exchange<'c>(
        &self,
        command: StoreCommand,
        build: impl FnOnce(&RedisClock) -> Cow<'c, Cmd>,
        is_asking: bool,
        give_up: Instant,
    ) -> Result<Value, LinkError> {
        let began = Instant::now();
        let mut up = self.up(give_up).await?;
        let _timed = TimedCommand {
            began,
            recorder: &self.times[command as usize],
        };
        let command = build(&self.clock);
        loop {
            let sent = async {
                let sent = match is_asking {
                    false => up.connection.send_packed_command(&command).await,
                    true => send_asking(&mut up.connection, &command).await,
                };
                sent.and_then(Value::extract_error)
            };
            let error = match timeout_at(give_up, sent).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => {
                    self.give_up(up.number, "a command got no reply");
                    return Err(self.timed_out().into());
                }
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
            let redirection = redirection(&error);
            let error = match reason {
                Some(_) => not_executed(&self.label, &error),
                None => StoreError::Unreachable {
                    store: Arc::clone(&self.label),
                    reason: error.to_string().into(),
                },
            };
            return Err(LinkError { error, redirection });
        }
    }

    /// The error for a reply that can't be parsed. Logs the reply, unless ids are hidden.
    pub(super) fn unreadable(&self, reply: &Value) -> StoreError {
        unreadable(&self.label, reply)
    }

    fn not_sent(&self, reason: &str) -> StoreError {
        not_sent(&self.label, reason)
    }

    fn timed_out(&self) -> StoreError {
        StoreError::TimedOut {
            store: Arc::clone(&self.label),
            timeout: self.address.timeout,
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
            Ok(Err(error)) => Err(not_executed(&self.label, &error)),
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
            .field("store", &self.label)
            .finish_non_exhaustive()
    }
}

impl From<StoreError> for LinkError {
    fn from(error: StoreError) -> Self {
        Self {
            error,
            redirection: None,
        }
    }
}

/// Sends a command that a cluster's node executes although it does not own the slot yet.
async fn send_asking(connection: &mut MultiplexedConnection, command: &Cmd) -> RedisResult<Value> {
    let mut both = redis::pipe();
    both.cmd("ASKING").add_command(command.clone());
    let mut replies = connection.send_packed_commands(&both, 1, 1).await?;
    Ok(replies.pop().unwrap_or(Value::Nil))
}

/// Keeps the connection logged in. Resolves with the reason when the connection has to be given up.
async fn keep_login(login: Option<LoginKeeper>, connection: MultiplexedConnection) -> Arc<str> {
    match login {
        Some(login) => login.keep(connection).await,
        None => pending().await,
    }
}

// === impl LinkNumbers ===

impl LinkNumbers {
    /// The highest number of a connection that was usable, which is set before the first command goes over it; 0
    /// before the first connection.
    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }
}

// === impl LinkTarget ===

impl LinkTarget {
    /// The server to connect to now. Cancel-safe.
    async fn server(&self) -> Result<(RedisNode, NodeRole), StoreError> {
        match self {
            Self::Fixed(node, role) => Ok((node.clone(), *role)),
            Self::Master(watch) => Ok((watch.master().await?, NodeRole::Master)),
        }
    }

    /// Waits until another server than this one is the target. Cancel-safe.
    async fn is_no_longer(&self, node: Option<&RedisNode>) {
        match (self, node) {
            (Self::Master(watch), Some(node)) => watch.is_no_longer(node).await,
            _ => pending().await,
        }
    }
}

// === the task ===

struct ConnectionKeeper {
    address: RedisAddress,
    /// The server or the Sentinels, for errors.
    label: Arc<str>,
    target: LinkTarget,
    /// The server of the last attempt.
    tried: Option<RedisNode>,
    clock: Arc<RedisClock>,
    listener: Option<ChannelListener>,
    state: watch::Sender<LinkState>,
    inbox: mpsc::UnboundedReceiver<LinkReport>,
    /// The number of the current connection, or of the current attempt.
    number: u64,
    numbers: Arc<LinkNumbers>,
}

impl ConnectionKeeper {
    async fn run(mut self, reports: mpsc::UnboundedSender<LinkReport>) {
        let mut pause = RECONNECT_PAUSE.start;
        let mut is_down = false;
        loop {
            self.number = self.numbers.last.fetch_add(1, Ordering::Relaxed) + 1;
            let give_up = Instant::now() + self.address.timeout;
            match timeout_at(give_up, self.open(&reports, give_up)).await {
                Ok(Ok((node, opened))) => {
                    let NodeConnection {
                        connection,
                        driver,
                        keeper,
                    } = opened;
                    if is_down {
                        tracing::info!(store = %self.label, "store usable again");
                    }
                    (pause, is_down) = (RECONNECT_PAUSE.start, false);
                    let number = self.number;
                    let kept = keep_login(keeper, connection.clone());
                    self.numbers.published.fetch_max(number, Ordering::AcqRel);
                    self.state
                        .send_replace(LinkState::Up(LinkConnected { connection, number }));
                    self.address.health.set(true);
                    if let Some(listener) = &self.listener {
                        listener.handler.on_reconnect();
                    }
                    let target = self.target.clone();
                    let reason = tokio::select! {
                        reason = self.lost() => reason,
                        reason = kept => reason,
                        () = target.is_no_longer(Some(&node)) => "another server is the master".into(),
                    };
                    tracing::debug!(store = %self.label, %reason, "reconnecting to the store");
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
                    let error = not_sent(&self.label, "no reply while connecting");
                    self.failed(error, &mut is_down);
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.target.is_no_longer(self.tried.as_ref()) => {}
            }
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

    /// Connects, logs in, and prepares the connection. All of this ends at `give_up`, or when another server becomes
    /// the target.
    async fn open(
        &mut self,
        reports: &mpsc::UnboundedSender<LinkReport>,
        give_up: Instant,
    ) -> Result<(RedisNode, NodeConnection), StoreError> {
        let (node, role) = self.target.server().await?;
        self.tried = Some(node.clone());
        let (reports, number) = (reports.clone(), self.number);
        let on_push = move |info| reports.send(LinkReport::Pushed { number, info }).is_ok();
        let opening = async {
            let mut opened = login::open(&self.address, &node, role, on_push, give_up).await?;
            let prepared = self.prepare(role, &node, &mut opened.connection).await;
            prepared.map_err(|error| not_executed(&node.label, &error))?;
            Ok(opened)
        };
        tokio::select! {
            opened = opening => opened.map(|opened| (node.clone(), opened)),
            () = self.target.is_no_longer(Some(&node)) => {
                Err(not_sent(&node.label, "another server is the master"))
            }
        }
    }

    /// Loads the scripts over a new connection, notes the server, subscribes to the channel, and reads Redis's
    /// time.
    async fn prepare(
        &self,
        role: NodeRole,
        node: &RedisNode,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<()> {
        scripts::load().exec_async(connection).await?;
        let place = match role {
            // The servers of a cluster have different locks.
            NodeRole::ClusterNode => &node.label,
            NodeRole::Single | NodeRole::Master | NodeRole::Sentinel => &self.label,
        };
        self.address.server.note(place, connection).await?;
        if let Some(listener) = &self.listener {
            connection.subscribe(&*listener.channel).await?;
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
