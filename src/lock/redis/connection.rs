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

use futures_util::StreamExt;
use redis::aio::PubSubStream;
use redis::{Cmd, PushInfo, PushKind, RedisResult, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::address::RedisAddress;
use super::clock::RedisClock;
use super::command::StoreCommand;
use super::error::{
    Redirection, is_not_writable, not_executed, not_sent, of_server, redirection, server_error,
    unconfirmed, unreadable,
};
use super::login;
use super::node::{NodeRole, RedisNode};
use super::pipelined::PipelinedConnection;
use super::reauth::LoginKeeper;
use super::replicas::ReplicaWait;
use super::scripts;
use super::server::RedisServer;
use super::target::LinkTarget;
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

/// Appends a command to the bytes that wait to be written to a server. Gets the clock of the server, and the moment until
/// which the caller waits for the reply. Called once for each attempt, while the connection's mutex is locked.
pub(super) trait WriteCommand: Fn(&RedisClock, Instant, &mut Vec<u8>) {}

impl<W: Fn(&RedisClock, Instant, &mut Vec<u8>)> WriteCommand for W {}

/// Writes a command that the redis crate has made.
pub(super) fn packed(command: &Cmd) -> impl WriteCommand {
    |_: &RedisClock, _, unsent: &mut Vec<u8>| command.write_packed_command(unsent)
}

/// Who receives the messages on a channel.
#[derive(Clone)]
pub(super) struct ChannelListener {
    pub(super) channel: Arc<str>,
    pub(super) handler: Arc<dyn MessageHandler>,
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
    connection: PipelinedConnection,
    number: u64,
    /// What lets replicas of the same server confirm locks; `None`: they need not.
    replicas: Option<Arc<ReplicaWait>>,
}

/// What the keeper learns about a connection.
enum LinkReport {
    /// The connection with this number has to be given up.
    Useless { number: u64, reason: Arc<str> },
    /// A connection, perhaps an earlier one, received a push: a message, or one of another kind.
    Pushed(PushInfo),
}

/// The current connection, as its keeper has it.
struct KeptLink {
    node: RedisNode,
    connection: PipelinedConnection,
    /// The task that reads and writes. It ends when the connection is lost.
    driver: JoinHandle<()>,
    login: Option<LoginKeeper>,
    /// The messages, if they come over a connection of their own. Ends when that one is lost.
    messages: Option<PubSubStream>,
    replicas: Option<Arc<ReplicaWait>>,
    /// The place, and the server there. `None`: servers take turns there, or may do so.
    server: Option<(Box<str>, Box<str>)>,
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

    /// Sends the command that `write` writes as soon as there is a connection, and gives its reply. `is_asking`: the
    /// command follows `ASKING`. `began`: since when the caller waits,
    /// for the metrics. Dropping the future does not
    /// cancel the command.
    ///
    /// # Errors
    /// When the server can't be reached, doesn't reply until `give_up`, or replies with an error.
    pub(super) async fn exchange(
        &self,
        command: StoreCommand,
        write: impl WriteCommand,
        is_asking: bool,
        began: Instant,
        give_up: Instant,
    ) -> Result<Value, LinkError> {
        let up = self.up(give_up).await?;
        let _timed = TimedCommand {
            began,
            recorder: &self.times[command as usize],
        };
        let mut has_loaded = false;
        loop {
            let write = |unsent: &mut Vec<u8>| write(&self.clock, give_up, unsent);
            let reply = match is_asking {
                false => up.connection.send_written(give_up, write),
                true => up.connection.send_asking(give_up, write),
            };
            let sent = reply.await;
            let error = match sent {
                Ok(value) => return Ok(value),
                Err(error) if error.is_timeout() => {
                    self.give_up(up.number, "a command got no reply");
                    return Err(self.timed_out().into());
                }
                Err(error) => error,
            };
            // After `SCRIPT FLUSH`, or a restart.
            if error.code() == Some("NOSCRIPT") && !std::mem::replace(&mut has_loaded, true) {
                self.load_scripts(&up, give_up).await?;
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

    /// Whether replicas have to confirm a lock before its turn begins.
    pub(super) fn waits_for_replicas(&self) -> bool {
        self.address.wait_replicas > 0
    }

    /// Waits until enough replicas of the server have what was written before. `key` is one that nobody uses, on the
    /// same server as the lock.
    ///
    /// # Errors
    /// When they don't have it at `give_up`, or the server can't be asked.
    pub(super) async fn confirm(&self, key: String, give_up: Instant) -> Result<(), StoreError> {
        let _timed = TimedCommand {
            began: Instant::now(),
            recorder: &self.times[StoreCommand::Confirm as usize],
        };
        let up = self.up(give_up).await;
        // The lock was granted, whatever happens to this command.
        let up = up.map_err(|error| unconfirmed(&self.label, &of_server(&error)))?;
        match up.replicas {
            Some(replicas) => replicas.confirm(key, give_up).await,
            None => Ok(()),
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

    async fn load_scripts(&self, up: &LinkConnected, give_up: Instant) -> Result<(), StoreError> {
        match up.connection.execute(&scripts::load(), give_up).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_timeout() => Err(self.timed_out()),
            // The command that needs the scripts was not executed.
            Err(error) => Err(not_executed(&self.label, &error)),
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

/// Waits until another server has answered at the place of a connection: behind an address that moves, the old one
/// may still accept writes.
async fn is_replaced(servers: RedisServer, server: Option<(Box<str>, Box<str>)>) {
    match server {
        Some((place, server)) => servers.replaced(place, server).await,
        None => pending().await,
    }
}

/// Keeps the connection logged in. Resolves with the reason when the connection has to be given up.
async fn keep_login(login: Option<LoginKeeper>, connection: PipelinedConnection) -> Arc<str> {
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
                Ok(Ok(mut link)) => {
                    if is_down {
                        tracing::info!(store = %self.label, "store usable again");
                    }
                    is_down = false;
                    let began = Instant::now();
                    let number = self.number;
                    let kept = keep_login(link.login.take(), link.connection.clone());
                    self.numbers.published.fetch_max(number, Ordering::AcqRel);
                    self.state
                        .send_replace(LinkState::Up(link.connected(number)));
                    self.address.health.set(true);
                    if let Some(listener) = &self.listener {
                        listener.handler.on_reconnect();
                    }
                    let target = self.target.clone();
                    let replaced = is_replaced(self.address.server.clone(), link.server.take());
                    let reason = tokio::select! {
                        reason = self.lost(&mut link.driver, &mut link.messages) => reason,
                        reason = kept => reason,
                        () = target.is_no_longer(Some(&link.node)) => "another server is the master".into(),
                        () = replaced => "another server answers at its address".into(),
                    };
                    tracing::debug!(store = %self.label, %reason, "reconnecting to the store");
                    self.state.send_replace(LinkState::Connecting);
                    // Replies that are on their way may still arrive, for as long as a caller waits.
                    let limit = self.address.timeout;
                    tokio::spawn(async move {
                        sleep(limit).await;
                        link.driver.abort();
                    });
                    // A replica without RESP3 accepts connections, and refuses the first write over each of them.
                    if began.elapsed() > RECONNECT_PAUSE.end {
                        pause = RECONNECT_PAUSE.start;
                        continue;
                    }
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
        // One master of several says nothing of the others. Heartbeats and self-tests do.
        if !matches!(self.target, LinkTarget::Fixed(_, NodeRole::ClusterNode)) {
            self.address.health.failed(error.clone());
        }
        self.state.send_replace(LinkState::Down(error));
    }

    /// Connects, logs in, and prepares the connection. All of this ends at `give_up`, or when another server becomes
    /// the target.
    async fn open(
        &mut self,
        reports: &mpsc::UnboundedSender<LinkReport>,
        give_up: Instant,
    ) -> Result<KeptLink, StoreError> {
        let (node, role) = self.target.server().await?;
        self.tried = Some(node.clone());
        let reports = reports.clone();
        let on_push = move |info| {
            // The keeper is gone only when the process is stopping.
            let _ = reports.send(LinkReport::Pushed(info));
        };
        let opening = async {
            let opened = login::open(&self.address, &node, role, on_push, give_up).await?;
            let place = self.place(role, &node);
            let prepared = self
                .prepare(place, &node, &opened.connection, give_up)
                .await;
            let server = prepared.map_err(|error| not_executed(&node.label, &error))?;
            // Without RESP3 it may be a proxy, which asks any of its servers.
            let is_one = opened.has_messages;
            let messages = match &self.listener {
                Some(ChannelListener { channel, .. }) if opened.has_messages => {
                    let subscribed = opened.connection.subscribe(channel, give_up).await;
                    subscribed.map_err(|error| not_executed(&node.label, &error))?;
                    None
                }
                Some(ChannelListener { channel, .. }) => {
                    Some(login::subscribe(&self.address, &node, channel, give_up).await?)
                }
                None => None,
            };
            Ok(KeptLink {
                node: node.clone(),
                replicas: ReplicaWait::start(&self.address, &node, role, place).map(Arc::new),
                connection: opened.connection,
                driver: opened.driver,
                login: opened.keeper,
                messages,
                server: is_one.then(|| ((**place).into(), server)),
            })
        };
        tokio::select! {
            opened = opening => opened,
            () = self.target.is_no_longer(Some(&node)) => {
                Err(not_sent(&node.label, "another server is the master"))
            }
        }
    }

    /// Under which name the server of a connection is known.
    fn place<'p>(&'p self, role: NodeRole, node: &'p RedisNode) -> &'p Arc<str> {
        match role {
            // The servers of a cluster have different locks.
            NodeRole::ClusterNode => &node.label,
            NodeRole::Single | NodeRole::Master | NodeRole::Sentinel => &self.label,
        }
    }

    /// Loads the scripts over a new connection, notes the server, and reads Redis's time.
    async fn prepare(
        &self,
        place: &str,
        node: &RedisNode,
        connection: &PipelinedConnection,
        give_up: Instant,
    ) -> RedisResult<Box<str>> {
        connection.execute(&scripts::load(), give_up).await?;
        let server = (self.address.server).note(place, node, connection, give_up);
        let server = server.await?;
        let time = connection.send(&redis::cmd("TIME"), give_up).await?;
        self.clock.set_from_reply(&time)?;
        Ok(server)
    }

    /// Waits until the current connection has to be given up; gives the reason. Passes messages to the listener.
    async fn lost(
        &mut self,
        driver: &mut JoinHandle<()>,
        messages: &mut Option<PubSubStream>,
    ) -> Arc<str> {
        loop {
            tokio::select! {
                // What arrived before the connection was lost comes first.
                biased;
                Some(report) = self.inbox.recv() => match report {
                    LinkReport::Useless { number, reason } if number == self.number => return reason,
                    LinkReport::Pushed(info) if info.kind == PushKind::Message => {
                        if let [_, Value::BulkString(text)] = &*info.data {
                            self.on_message(text);
                        }
                    }
                    // About an earlier connection, or a push of another kind.
                    LinkReport::Useless { .. } | LinkReport::Pushed(_) => {}
                },
                message = next_message(messages) => match message {
                    Some(message) => self.on_message(message.get_payload_bytes()),
                    None => return "the connection with the messages was closed".into(),
                },
                _ = &mut *driver => return "the connection was closed".into(),
            }
        }
    }

    /// Passes a message to the listener. One from an earlier connection counts as well.
    fn on_message(&self, text: &[u8]) {
        let text = std::str::from_utf8(text).ok();
        match (text.and_then(|text| text.parse().ok()), &self.listener) {
            (Some(message), Some(listener)) => listener.handler.on_message(message),
            // Another program may have written it.
            _ if redact::is_enabled() => tracing::debug!("message can't be parsed"),
            _ => tracing::debug!(?text, "message can't be parsed"),
        }
    }
}

/// The next message, if messages come over a connection of their own; `None`: that one was lost.
async fn next_message(messages: &mut Option<PubSubStream>) -> Option<redis::Msg> {
    match messages {
        Some(messages) => messages.next().await,
        None => pending().await,
    }
}

// === impl KeptLink ===

impl KeptLink {
    fn connected(&self, number: u64) -> LinkConnected {
        LinkConnected {
            connection: self.connection.clone(),
            number,
            replicas: self.replicas.clone(),
        }
    }
}
