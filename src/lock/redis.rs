//! The store on Redis: what each operation is as a command, and what its answer means.
//!
//! One command acquires and one releases; both are scripts, so that what belongs together happens
//! at once. Invariant: an acquisition carries the last moment, by Redis's clock, at which it may
//! still be executed. One that was delayed beyond it does nothing, and so a claim that was given
//! up is known to be out of the store for good once that moment has passed.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::{Cmd, ConnectionAddr, ConnectionInfo, RedisError, Value};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{
    AcquireReply, AcquireRequest, Claim, DeadHolder, Epoch, Fence, HeartbeatReply,
    InstanceLiveness, LockHolder, LockInfo, Message, MessageHandler, QueueState, ScanPage, Store,
    StoreFuture, StoreHealth, Ticket, WatchedQueue, Withdrawal, millis,
};
use crate::key::{INSTANCE, Keyspace, SessionKey};
use crate::metrics::Metrics;
use command::StoreCommand;
use connection::RedisConnection;

mod command;
mod connection;
mod inspect;
mod scripts;
mod write_buffer;

/// Locks in one Redis, over one multiplexed connection.
pub struct RedisStore {
    link: Arc<RedisConnection>,
    clock: Arc<RedisClock>,
}

/// Redis's clock as seen from here, good to a round trip.
#[derive(Debug)]
struct RedisClock {
    base: Instant,
    /// Redis's time at `base`, in microseconds since 1970.
    at_base: AtomicU64,
}

/// Where Redis is, and how long one command may take.
#[derive(Clone)]
pub struct RedisAddress {
    info: ConnectionInfo,
    label: Arc<str>,
    timeout: Duration,
    metrics: Metrics,
    health: StoreHealth,
}

/// How far apart the guessed and the real clock of Redis may be before a command on time counts as
/// late. A clock that was set forward by more costs each worker one command, whose answer sets the
/// guess right. The price of a larger slack is a longer doubt about a claim that was given up.
const SLACK: Duration = Duration::from_secs(1);

/// How often an idle connection is looked after: several times within the shortest time after which
/// load balancers and NATs forget one, a minute.
const KEEPALIVE: Duration = Duration::from_secs(10);

// === impl Address ===

impl RedisAddress {
    /// Reads a `redis://` URL. `timeout` bounds one command, the wait for a connection included.
    ///
    /// # Errors
    /// When the URL can't be read; the text doesn't hold its password.
    pub fn parse(url: &str, timeout: Duration) -> Result<Self, String> {
        use ::redis::{IntoConnectionInfo, ProtocolVersion};
        let info = url
            .into_connection_info()
            .map_err(|error| match error.detail() {
                Some(detail) => detail.to_owned(),
                None => error.to_string(),
            })?;
        // RESP3, because its connections say when they are lost, and nobody has to find out.
        let redis = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let redis = redis.set_skip_set_lib_name();
        let label = format!("{}/{}", info.addr(), redis.db()).into();
        let info = info.set_redis_settings(redis);
        let metrics = Metrics::new();
        Ok(Self {
            info,
            label,
            timeout,
            health: StoreHealth::new(false, &metrics),
            metrics,
        })
    }

    /// This address, with its commands counted in `metrics`, and with `health` following whether its
    /// connections are up.
    pub fn observed_by(self, metrics: &Metrics, health: &StoreHealth) -> Self {
        Self {
            metrics: metrics.clone(),
            health: health.clone(),
            ..self
        }
    }
}

impl RedisAddress {
    /// A connection, set up so that a turn that waits for its command waits for nothing else, and
    /// that whatever stands between neither forgets it while it is idle nor swallows what is sent.
    async fn connect(&self) -> io::Result<TcpStream> {
        let ConnectionAddr::Tcp(host, port) = self.info.addr() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE / 2);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(self.timeout.max(KEEPALIVE)))?;
        Ok(stream)
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.label).finish()
    }
}

// === impl RedisStore ===

impl RedisStore {
    /// A store that connects at once, and again whenever the connection is lost, in a task on the
    /// current runtime which ends with the store.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(address: RedisAddress) -> Self {
        Self::with(address, None)
    }

    /// As [`RedisStore::connect`], and tells `ears` what comes for this instance.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen(address: RedisAddress, instance: &str, ears: Arc<dyn MessageHandler>) -> Self {
        Self::with(address, Some((name_of(instance), ears)))
    }

    fn with(address: RedisAddress, listener: Option<(String, Arc<dyn MessageHandler>)>) -> Self {
        let clock = Arc::new(RedisClock::new());
        let link = Arc::new(RedisConnection::connect(
            address,
            Arc::clone(&clock),
            listener,
        ));
        Self { link, clock }
    }

    /// Sends a command, and reads its answer with `read`; one that it can't read is an error.
    fn ask<T: Send + 'static>(
        &self,
        name: StoreCommand,
        command: Cmd,
        read: impl FnOnce(&Value) -> Option<T> + Send + 'static,
    ) -> StoreFuture<T> {
        let link = Arc::clone(&self.link);
        Box::pin(async move {
            let value = link.send(name, || command).await?;
            read(&value).ok_or_else(|| link.unreadable(&value))
        })
    }

    /// Frees the claim's lock; `read` is told whether it was there, and whether no acquisition by the
    /// claim can come any more.
    fn free<T: Send + 'static>(
        &self,
        name: StoreCommand,
        claim: &Claim,
        read: fn(bool, bool) -> T,
    ) -> StoreFuture<T> {
        let mut command = SessionKeys::of(&claim.key).call(&scripts::RELEASE, ARGUMENTS);
        command
            .arg(claim.token.as_str())
            .arg(claim.last_moment())
            .arg(claim.id.to_string());
        self.ask(name, command, move |value| match value {
            Value::Int(bits) => Some(read(bits & 1 != 0, bits & 2 != 0)),
            _ => None,
        })
    }
}

/// What the arguments about one claim take, in bytes: a token of some two hundred, and the rest.
const ARGUMENTS: usize = 320;

/// How many of a line are named to an operator: more than anybody reads, and no more than one command
/// should answer.
const NAMED: usize = 1000;

impl Store for RedisStore {
    fn acquire(&self, claim: &Arc<Claim>, ask: &AcquireRequest) -> StoreFuture<AcquireReply> {
        let (link, clock) = (Arc::clone(&self.link), Arc::clone(&self.clock));
        let (claim, ask) = (Arc::clone(claim), ask.clone());
        let command = SessionKeys::of(&claim.key).call(&scripts::ACQUIRE, ARGUMENTS);
        Box::pin(async move {
            let attempt = || {
                let last_moment = clock.at(Instant::now() + link.timeout() + SLACK);
                claim.may_be_executed_until(last_moment);
                let mut command = command.clone();
                command
                    .arg(claim.token.as_str())
                    .arg(millis(claim.lease))
                    .arg(last_moment);
                add_ask(&mut command, &claim, &ask);
                command
            };
            // A second time only when the first came too late by a clock that was wrongly guessed;
            // its answer has put the guess right.
            for _ in 0..2 {
                let answer = link.send(StoreCommand::Acquire, attempt).await?;
                match acquired(&answer) {
                    Some(AcquireOutcome::Late(now)) => clock.set(now),
                    Some(AcquireOutcome::Answer(answer)) => {
                        if let AcquireReply::Granted(Fence(fence)) = answer {
                            // A fence is the time, or larger where the clock was set back: then the
                            // guess is ahead, doubts last longer, and the next one puts it right.
                            clock.set(fence);
                        }
                        return Ok(answer);
                    }
                    None => return Err(link.unreadable(&answer)),
                }
            }
            Err(link.not_sent("the command came too late to be executed"))
        })
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<bool>> {
        let keys: Vec<_> = claims
            .iter()
            .map(|claim| SessionKeys::of(&claim.key))
            .collect();
        let keys: Vec<_> = keys.iter().flat_map(SessionKeys::of_a_lock).collect();
        let mut command = scripts::EXTEND.call(keys.iter().copied(), claims.len() * ARGUMENTS);
        for claim in claims {
            command.arg(claim.token.as_str()).arg(millis(claim.lease));
        }
        let expected = claims.len();
        self.ask(StoreCommand::Extend, command, move |value| match value {
            Value::Array(items) if items.len() == expected => {
                Some(items.iter().map(|item| *item == Value::Int(1)).collect())
            }
            _ => None,
        })
    }

    fn release(&self, claim: &Claim) -> StoreFuture<bool> {
        self.free(StoreCommand::Release, claim, |freed, _| freed)
    }

    fn withdraw(&self, claim: &Claim) -> StoreFuture<Withdrawal> {
        self.free(StoreCommand::Withdraw, claim, |_, last| match last {
            true => Withdrawal::ForGood,
            false => Withdrawal::ForNow,
        })
    }

    fn watch(&self, instance: &str, lines: &[WatchedQueue]) -> StoreFuture<Vec<QueueState>> {
        /// What an id takes, in bytes.
        const ID: usize = 48;
        let keys: Vec<_> = lines
            .iter()
            .map(|line| SessionKeys::of(&line.key))
            .collect();
        let keys: Vec<_> = keys.iter().flat_map(SessionKeys::all).collect();
        let waiters: usize = lines.iter().map(|line| line.waiters.len()).sum();
        let mut command = scripts::WATCH.call(keys.iter().copied(), ARGUMENTS + waiters * ID);
        command.arg(name_of(instance));
        for line in lines {
            add_dead(&mut command, line.dead.as_ref());
            command.arg(line.waiters.len());
            for id in &line.waiters {
                command.arg(id.to_string());
            }
        }
        let expected = lines.len();
        self.ask(StoreCommand::Watch, command, move |value| match value {
            Value::Array(items) if items.len() == expected => items.iter().map(found).collect(),
            _ => None,
        })
    }

    fn tell(&self, instance: &str, message: Message) -> StoreFuture<()> {
        let mut command = ::redis::cmd("PUBLISH");
        command.arg(name_of(instance)).arg(message.to_string());
        // How many have heard it, which nothing is decided by.
        self.ask(StoreCommand::Tell, command, |value| {
            matches!(value, Value::Int(_)).then_some(())
        })
    }

    fn scan(&self, space: &Keyspace, from: Option<u64>, about: usize) -> StoreFuture<ScanPage> {
        let mut command = ::redis::cmd("SCAN");
        command.arg(from.unwrap_or_default());
        command.arg("MATCH").arg(space.glob());
        command.arg("COUNT").arg(about).arg("TYPE").arg("string");
        let space = space.clone();
        self.ask(StoreCommand::Scan, command, move |value| {
            inspect::scanned(value, &space)
        })
    }

    fn look(&self, keys: &[SessionKey], lines: bool) -> StoreFuture<Vec<LockInfo>> {
        let expected = keys.len();
        let keys: Vec<_> = keys.iter().map(SessionKeys::of).collect();
        let keys: Vec<_> = keys.iter().flat_map(SessionKeys::all).collect();
        let mut command = scripts::LOOK.call(keys.iter().copied(), 0);
        command.arg(if lines { NAMED } else { 0 });
        self.ask(StoreCommand::Look, command, move |value| {
            inspect::looked(value, expected)
        })
    }

    fn force(&self, key: &SessionKey, holder: &LockHolder) -> StoreFuture<Option<Fence>> {
        let turn = holder.turn();
        let channel = turn.as_ref().map(|turn| name_of(&turn.instance));
        let id = turn.map(|turn| turn.id.to_string());
        let mut command = SessionKeys::of(key).call(&scripts::FORCE, ARGUMENTS);
        command
            .arg(holder.as_str())
            .arg(channel.unwrap_or_default())
            .arg(id.unwrap_or_default());
        self.ask(StoreCommand::Force, command, |value| match value {
            Value::Nil => Some(None),
            Value::Int(fence) => Some(Some(Fence(fence.unsigned_abs()))),
            _ => None,
        })
    }

    fn beat(
        &self,
        instance: &str,
        epoch: Epoch,
        for_so_long: Duration,
        taken: bool,
    ) -> StoreFuture<HeartbeatReply> {
        let name = name_of(instance);
        let mut command = scripts::BEAT.call([&*name].into_iter(), ARGUMENTS);
        command
            .arg(epoch.to_string())
            .arg(millis(for_so_long))
            .arg(u8::from(taken));
        self.ask(StoreCommand::Beat, command, |value| match value {
            Value::Int(0) => Some(HeartbeatReply::Refused),
            Value::Int(1) => Some(HeartbeatReply::Kept),
            Value::Int(2) => Some(HeartbeatReply::Begun),
            _ => None,
        })
    }

    fn stop(&self, instance: &str, epoch: Epoch) -> StoreFuture<()> {
        let name = name_of(instance);
        let mut command = scripts::STOP.call([&*name].into_iter(), ARGUMENTS);
        command.arg(epoch.to_string());
        self.ask(StoreCommand::Stop, command, |_| Some(()))
    }

    fn sign_of(&self, instance: &str) -> StoreFuture<Option<InstanceLiveness>> {
        let name = name_of(instance);
        let command = scripts::SIGN.call([&*name].into_iter(), 0);
        self.ask(StoreCommand::Sign, command, |value| match value {
            Value::Nil => Some(None),
            Value::Array(items) => match &**items {
                // What isn't an epoch is no sign of life of anybody's.
                [epoch, Value::Int(lasts)] => {
                    Some(text(epoch)?.parse().ok().map(|epoch| InstanceLiveness {
                        epoch,
                        lasts: Duration::from_millis((*lasts).max(0).unsigned_abs()),
                    }))
                }
                _ => None,
            },
            _ => None,
        })
    }
}

/// What the script that acquires has answered.
enum AcquireOutcome {
    /// The command came too late; it was this time.
    Late(u64),
    Answer(AcquireReply),
}

fn acquired(value: &Value) -> Option<AcquireOutcome> {
    let answer = match value {
        Value::Int(late) if *late < 0 => return Some(AcquireOutcome::Late(late.unsigned_abs())),
        Value::Int(fence) => AcquireReply::Granted(Fence(fence.unsigned_abs())),
        Value::Array(items) => match &**items {
            [Value::Int(ticket), holder] => AcquireReply::Waiting(
                Ticket(ticket.unsigned_abs()),
                LockHolder::new(text(holder)?),
            ),
            [Value::Int(0)] => AcquireReply::Full,
            [Value::Int(-1)] => AcquireReply::Superseded,
            _ => return None,
        },
        holder => AcquireReply::Busy(LockHolder::new(text(holder)?)),
    };
    Some(AcquireOutcome::Answer(answer))
}

fn found(value: &Value) -> Option<QueueState> {
    let Value::Array(items) = value else {
        return None;
    };
    let [Value::Int(present), holder] = &**items else {
        return None;
    };
    let holder = Some(text(holder)?).filter(|holder| !holder.is_empty());
    Some(QueueState {
        present: usize::try_from(*present).ok()?,
        holder: holder.map(LockHolder::new),
    })
}

/// A text that Redis gives. A lock's value may be anything when it isn't ours.
fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => Some(std::str::from_utf8(bytes).unwrap_or("?")),
        _ => None,
    }
}

/// The arguments of an acquisition that are for a busy lock.
fn add_ask(command: &mut Cmd, claim: &Claim, ask: &AcquireRequest) {
    if ask.dead.is_none() && ask.wait.is_none() {
        return;
    }
    add_dead(command, ask.dead.as_ref());
    if let Some(place) = ask.wait {
        command
            .arg(claim.id.to_string())
            .arg(name_of(&claim.instance))
            .arg(place.ticket.map_or(0, |Ticket(ticket)| ticket))
            .arg(place.max_waiters)
            .arg(u8::from(place.interrupts));
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("link", &self.link)
            .finish()
    }
}

fn add_dead(command: &mut Cmd, dead: Option<&DeadHolder>) {
    command
        .arg(dead.map_or("", |dead| dead.holder.as_str()))
        .arg(dead.map_or(0, |dead| micros(dead.after)));
}

/// The keys of one session: the lock, and what stands beside it. The braces make the lock's whole
/// name a hash tag, so that in a cluster all of them live in the lock's own slot.
struct SessionKeys([String; 4]);

impl SessionKeys {
    fn of(key: &SessionKey) -> Self {
        let lock = key.as_str();
        let beside = |what: &str| ["{", lock, "}:", what].concat();
        Self([
            lock.to_owned(),
            beside("fence"),
            beside("queue"),
            beside("waiters"),
        ])
    }

    fn all(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.0.iter().map(String::as_str)
    }

    /// Those that are there while a lock is held.
    fn of_a_lock(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.all().take(2)
    }

    fn call(&self, script: &scripts::Script, arguments: usize) -> Cmd {
        script.call(self.all(), arguments)
    }
}

/// The key by which an instance is known to be alive, and the channel on which it is told things.
fn name_of(instance: &str) -> String {
    [INSTANCE, instance].concat()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

// === impl Clock ===

impl RedisClock {
    fn new() -> Self {
        Self {
            base: Instant::now(),
            at_base: AtomicU64::new(0),
        }
    }

    /// Redis has just said that it is `time`.
    fn set(&self, time: u64) {
        let at_base = time.saturating_sub(micros(self.base.elapsed()));
        self.at_base.store(at_base, Ordering::Relaxed);
    }

    /// Redis's time at a moment here.
    fn at(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.base);
        self.at_base
            .load(Ordering::Relaxed)
            .saturating_add(micros(since))
    }

    /// Reads the answer of `TIME`.
    fn set_from(&self, answer: &Value) -> Result<(), RedisError> {
        let (seconds, micros): (u64, u64) = ::redis::from_redis_value_ref(answer)?;
        self.set(seconds.saturating_mul(1_000_000).saturating_add(micros));
        Ok(())
    }
}
