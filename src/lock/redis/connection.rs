//! The connection to Redis: made, watched, and made anew.
//!
//! A connection that breaks says so itself. One that died silently doesn't, and neither does one to
//! a server that has become a replica: the first is given up when a command has had no answer in
//! its time, the second on its first refusal. Answers are matched with commands by their order
//! alone, so a connection that may have lost one is not trusted again. Nothing is sent twice from
//! here: whether a command whose answer didn't come was executed is for the caller to make good.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::command::{CommandTimes, StoreCommand};
use super::write_buffer::WriteBuffer;
use super::{RedisAddress, RedisClock, scripts};
use crate::lock::{MessageHandler, StoreError};
use crate::metrics::Metrics;
use crate::redact;

/// A connection that is replaced when it fails. Its task ends with it.
pub(super) struct RedisConnection {
    state: watch::Receiver<LinkState>,
    reports: mpsc::UnboundedSender<LinkReport>,
    label: Arc<str>,
    timeout: Duration,
    metrics: Metrics,
    times: CommandTimes,
    task: AbortHandle,
}

#[derive(Clone)]
enum LinkState {
    /// The first attempt since the last connection isn't over: worth waiting for.
    Connecting,
    Up(LinkConnected),
    /// The last attempt failed like this; the next one is to come.
    Down(StoreError),
}

#[derive(Clone)]
struct LinkConnected {
    connection: MultiplexedConnection,
    number: u64,
}

/// What is said of a connection to the task that keeps it.
enum LinkReport {
    /// It is of no more use.
    Useless { number: u64, reason: Arc<str> },
    /// Redis pushed something: the loss of the connection is told like this.
    Pushed { number: u64, info: PushInfo },
}

/// How long to wait before connecting again: Redis may be restarting, so it is asked often enough
/// to be back in service within a second of its return, and rarely enough not to be a load.
const RECONNECT: std::ops::Range<Duration> = Duration::from_millis(20)..Duration::from_millis(500);

/// What Redis answered, in one line; `None` if the error is of the connection to it. Of several commands
/// at once, what it answered to the first that it refused. Its own words may name the keys that they are
/// about: while ids are hidden, only its word for the kind of error is left of them.
fn answered(error: &RedisError) -> Option<String> {
    let errors = error.clone().into_server_errors();
    let first = errors.iter().flat_map(|errors| errors.iter()).next();
    let (code, detail) = match first {
        Some((_, first)) => (first.code(), first.details()),
        None => (error.code()?, error.detail()),
    };
    Some(match detail {
        Some(detail) if !redact::is_enabled() => format!("{code} {}", gist(detail)),
        _ => code.to_owned(),
    })
}

/// Of Redis' words those that say what is wrong, without the place in a script and without the command's
/// arguments, of which one may be a password.
fn gist(detail: &str) -> &str {
    const ENDS: [&str; 4] = [" script: ", ", with args beginning with", "\r", "\n"];
    let end = ENDS.iter().filter_map(|end| detail.find(end)).min();
    &detail[..end.unwrap_or(detail.len())]
}

/// Why nothing was executed at `store`, where this error came before.
fn not_executed(store: &Arc<str>, error: &RedisError) -> StoreError {
    let store = Arc::clone(store);
    match answered(error) {
        Some(said) => StoreError::Refused {
            store,
            reason: said.into(),
        },
        None => StoreError::NotSent {
            store,
            reason: error.to_string().into(),
        },
    }
}

// === impl Link ===

impl RedisConnection {
    /// Connects, and tells the listener, if there is one, what is said on its channel.
    pub(super) fn connect(
        address: RedisAddress,
        clock: Arc<RedisClock>,
        listener: Option<(String, Arc<dyn MessageHandler>)>,
    ) -> Self {
        let (state_sender, state) = watch::channel(LinkState::Connecting);
        let (reports, inbox) = mpsc::unbounded_channel();
        let (label, timeout) = (Arc::clone(&address.label), address.timeout);
        let metrics = address.metrics.clone();
        let times = CommandTimes::of(&metrics);
        let keeper = ConnectionKeeper {
            address,
            clock,
            listener,
            state: state_sender,
            inbox,
            number: 0,
        };
        let task = tokio::spawn(keeper.run(reports.clone())).abort_handle();
        Self {
            state,
            reports,
            label,
            timeout,
            metrics,
            times,
            task,
        }
    }

    /// How long one command may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends the command that `build` makes once there is a connection, and gives its answer.
    ///
    /// Dropping the future doesn't take the command back.
    pub(super) async fn send(
        &self,
        command: StoreCommand,
        build: impl FnOnce() -> Cmd,
    ) -> Result<Value, StoreError> {
        let answer = self.exchange(command, build).await;
        if answer.is_err() {
            self.metrics.store_failed();
        }
        answer
    }

    async fn exchange(
        &self,
        command: StoreCommand,
        build: impl FnOnce() -> Cmd,
    ) -> Result<Value, StoreError> {
        let begun = Instant::now();
        let give_up = begun + self.timeout;
        let mut up = self.up(give_up).await?;
        let _timed = TimedCommand {
            begun,
            command,
            times: &self.times,
        };
        let command = build();
        loop {
            let sent = up.connection.send_packed_command(&command);
            let answer = match timeout_at(give_up, sent).await {
                Ok(answer) => answer.and_then(Value::extract_error),
                Err(_) => {
                    self.useless(up.number, "a command had no answer");
                    return Err(self.timed_out());
                }
            };
            let error = match answer {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            // `SCRIPT FLUSH`, or a restart between.
            if error.code() == Some("NOSCRIPT") {
                self.load_scripts(&mut up, give_up).await?;
                continue;
            }
            let said = answered(&error);
            if said.is_none() || is_of_no_use(&error) {
                self.useless(up.number, said.as_deref().unwrap_or("the connection broke"));
            }
            return Err(match said {
                Some(_) => not_executed(&self.label, &error),
                None => self.unreachable(&error.to_string()),
            });
        }
    }

    /// An error that tells of this answer: it may be anything, also an id.
    pub(super) fn unreadable(&self, answer: &Value) -> StoreError {
        if !redact::is_enabled() {
            tracing::debug!(?answer, "an answer that can't be read");
        }
        StoreError::Unreadable {
            store: Arc::clone(&self.label),
        }
    }

    pub(super) fn not_sent(&self, reason: &str) -> StoreError {
        StoreError::NotSent {
            store: Arc::clone(&self.label),
            reason: reason.into(),
        }
    }

    fn unreachable(&self, reason: &str) -> StoreError {
        StoreError::Unreachable {
            store: Arc::clone(&self.label),
            reason: reason.into(),
        }
    }

    fn timed_out(&self) -> StoreError {
        StoreError::TimedOut {
            store: Arc::clone(&self.label),
            timeout: self.timeout,
        }
    }

    /// The connection; waits for one that is being made, but not while Redis is known to be down.
    async fn up(&self, give_up: Instant) -> Result<LinkConnected, StoreError> {
        if let LinkState::Up(connected) = &*self.state.borrow() {
            return Ok(connected.clone());
        }
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| !matches!(state, LinkState::Connecting));
        match timeout_at(give_up, settled).await {
            Ok(Ok(state)) => match &*state {
                LinkState::Up(connected) => Ok(connected.clone()),
                LinkState::Down(error) => Err(error.clone()),
                LinkState::Connecting => Err(self.not_sent("still connecting")),
            },
            Ok(Err(_)) => Err(self.not_sent("the process is stopping")),
            Err(_) => Err(self.not_sent("still connecting")),
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
            // The command that is waiting for them was not executed without.
            Ok(Err(error)) => Err(not_executed(&self.label, &error)),
            Err(_) => Err(self.timed_out()),
        }
    }

    fn useless(&self, number: u64, reason: &str) {
        // Nobody listens only when the process is stopping.
        let _ = self.reports.send(LinkReport::Useless {
            number,
            reason: reason.into(),
        });
    }
}

/// Notes how long a command has taken, also when nobody waits for its answer any more.
struct TimedCommand<'l> {
    begun: Instant,
    command: StoreCommand,
    times: &'l CommandTimes,
}

impl Drop for TimedCommand<'_> {
    fn drop(&mut self) {
        self.times.note(self.command, self.begun.elapsed());
    }
}

impl Drop for RedisConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("store", &self.label)
            .finish_non_exhaustive()
    }
}

/// Whether Redis says that it can't be written to. Before Redis 7, what a script met is told in the
/// text of another error.
fn is_of_no_use(error: &RedisError) -> bool {
    const WORDS: [&str; 4] = ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"];
    let text = error.detail().unwrap_or_default();
    WORDS
        .iter()
        .any(|word| error.code() == Some(word) || text.contains(word))
}

// === the task ===

struct ConnectionKeeper {
    address: RedisAddress,
    clock: Arc<RedisClock>,
    /// The channel, and who is told what is said on it.
    listener: Option<(String, Arc<dyn MessageHandler>)>,
    state: watch::Sender<LinkState>,
    inbox: mpsc::UnboundedReceiver<LinkReport>,
    /// Of the connection that is made or being made.
    number: u64,
}

impl ConnectionKeeper {
    async fn run(mut self, reports: mpsc::UnboundedSender<LinkReport>) {
        let mut pause = RECONNECT.start;
        let mut down = false;
        loop {
            self.number += 1;
            match timeout(self.address.timeout, self.open(&reports)).await {
                Ok(Ok((connection, driver))) => {
                    if down {
                        tracing::info!(store = %self.address.label, "store usable again");
                    }
                    (pause, down) = (RECONNECT.start, false);
                    let number = self.number;
                    self.state
                        .send_replace(LinkState::Up(LinkConnected { connection, number }));
                    self.address.metrics.store_is_up(true);
                    if let Some((_, ears)) = &self.listener {
                        // What was said before this connection is gone.
                        ears.was_deaf();
                    }
                    let reason = self.lost().await;
                    tracing::debug!(store = %self.address.label, %reason, "connecting anew");
                    self.state.send_replace(LinkState::Connecting);
                    // Answers that are on their way may still come, for as long as anybody waits.
                    let limit = self.address.timeout;
                    tokio::spawn(async move {
                        sleep(limit).await;
                        driver.abort();
                    });
                    continue;
                }
                Ok(Err(error)) => {
                    self.failed(not_executed(&self.address.label, &error), &mut down);
                }
                Err(_) => {
                    let error = StoreError::NotSent {
                        store: Arc::clone(&self.address.label),
                        reason: "no answer to the connection".into(),
                    };
                    self.failed(error, &mut down);
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(RECONNECT.end);
        }
    }

    fn failed(&self, error: StoreError, down: &mut bool) {
        if !*down {
            tracing::warn!(%error, "store not usable");
        }
        *down = true;
        self.address.metrics.store_is_up(false);
        self.state.send_replace(LinkState::Down(error));
    }

    /// Connects, and makes Redis ready: it knows the scripts, and we know its time.
    async fn open(
        &self,
        reports: &mpsc::UnboundedSender<LinkReport>,
    ) -> RedisResult<(MultiplexedConnection, AbortHandle)> {
        let (reports, number) = (reports.clone(), self.number);
        let config = AsyncConnectionConfig::new()
            // Each caller has a time limit of its own, the wait for a connection included.
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_push_sender(move |info| {
                reports
                    .send(LinkReport::Pushed { number, info })
                    .map_err(|_| redis::aio::SendError)
            });
        let stream = WriteBuffer::new(self.address.connect().await?);
        let redis = self.address.info.redis_settings();
        let (mut connection, driver) =
            MultiplexedConnection::new_with_config(redis, stream, config).await?;
        let driver = tokio::spawn(driver).abort_handle();
        scripts::load().exec_async(&mut connection).await?;
        if let Some((channel, _)) = &self.listener {
            connection.subscribe(channel).await?;
        }
        let time = connection.send_packed_command(&redis::cmd("TIME")).await?;
        self.clock.set_from(&time.extract_error()?)?;
        Ok((connection, driver))
    }

    /// Resolves when the present connection is of no more use.
    async fn lost(&mut self) -> Arc<str> {
        loop {
            // The sender is held by the link, whose end aborts this task.
            let Some(report) = self.inbox.recv().await else {
                std::future::pending().await
            };
            match report {
                LinkReport::Useless { number, reason } if number == self.number => return reason,
                LinkReport::Pushed { number, info }
                    if number == self.number && info.kind == PushKind::Disconnection =>
                {
                    return "the connection was closed".into();
                }
                LinkReport::Pushed { info, .. } if info.kind == PushKind::Message => {
                    self.heard(&info)
                }
                // Of an earlier connection, or nothing that concerns us.
                LinkReport::Useless { .. } | LinkReport::Pushed { .. } => {}
            }
        }
    }

    /// Passes on what was said on the channel; also by an earlier connection, which was heard, too.
    fn heard(&self, info: &PushInfo) {
        let said = match &*info.data {
            [_, Value::BulkString(said)] => std::str::from_utf8(said).ok(),
            _ => None,
        };
        match (said.and_then(|said| said.parse().ok()), &self.listener) {
            (Some(message), Some((_, ears))) => ears.hear(message),
            // Anybody may have written it.
            _ if redact::is_enabled() => tracing::debug!("a message that can't be read"),
            _ => tracing::debug!(?info, "a message that can't be read"),
        }
    }
}
