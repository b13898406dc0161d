//! The store in Redis: which command each operation sends.
//!
//! One command acquires a lock and one releases it. Both are scripts, so each runs as a whole.
//!
//! Invariant: an acquisition carries the last moment, by Redis's clock, at which it may be executed. A
//! command that arrives later does nothing. So a claim that was given up is out of the store for good
//! once that moment has passed.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Value, cmd};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    AcquireReply, AcquireRequest, Claim, DeadHolder, Epoch, Fence, HeartbeatReply,
    InstanceLiveness, LockHolder, LockInfo, Message, MessageHandler, QueueState, ScanPage, Store,
    StoreFuture, Ticket, WatchedQueue, Withdrawal, millis,
};
use crate::key::{Keyspace, SessionKey};
use access::AccessAttempt;
use clock::micros;
use command::StoreCommand;
use connection::{ChannelListener, RedisConnection};
use keys::{ALL_KEYS, KeyNames, LOCK_AND_FENCE, instance_key};
use node::{NodeRole, RedisNode};
use reply::AcquireOutcome;
use url::RedisTopology;

mod access;
mod address;
mod clock;
mod command;
mod connection;
mod error;
mod keys;
mod login;
mod node;
mod reauth;
mod reply;
mod scripts;
mod server;
mod stream;
mod tls;
mod url;
mod write_buffer;

pub use address::RedisAddress;
pub use tls::RedisTls;
pub use url::{RedisUrl, RedisUrlError};

/// Locks in one Redis, over one multiplexed connection.
#[derive(Debug)]
pub struct RedisStore {
    connection: Arc<RedisConnection>,
    names: KeyNames,
    /// The key of this process's heartbeat, and the channel of its messages; `None`: the store gets no
    /// messages.
    instance: Option<String>,
}

/// How far the estimate of Redis's clock may be off before a command in time counts as late. If the
/// clock was set forward by more, each worker sends one command twice: the first reply corrects the
/// estimate. A larger slack would keep a claim that was given up in doubt for longer.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// The size of the arguments about one claim, in bytes: a token of about two hundred, and the rest.
const CLAIM_BYTES: usize = 320;

/// The size of a claim's id as an argument, in bytes.
const ID_BYTES: usize = 48;

/// How many waiters of a queue an operator sees: more than anybody reads, and few enough for one
/// reply.
const MAX_LISTED: usize = 1000;

// === impl RedisStore ===

impl RedisStore {
    /// Connects in a task on the current runtime, and again whenever the connection is lost. The task
    /// ends with the store.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(address: RedisAddress) -> Self {
        Self::new(address, None)
    }

    /// Like [`RedisStore::connect`], and passes the messages for this instance to `handler`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen(address: RedisAddress, instance: &str, handler: Arc<dyn MessageHandler>) -> Self {
        let channel = address.names.instance(instance);
        Self::new(address, Some(ChannelListener { channel, handler }))
    }

    fn new(address: RedisAddress, listener: Option<ChannelListener>) -> Self {
        let names = address.names.clone();
        let instance = listener.as_ref().map(|it| it.channel.clone());
        let RedisTopology::Single(endpoint) = &address.url.topology else {
            unimplemented!("Sentinel and Cluster");
        };
        let node = RedisNode::new(endpoint.clone(), address.url.database);
        let connection = RedisConnection::connect(&address, node, NodeRole::Single, listener);
        Self {
            connection: Arc::new(connection),
            names,
            instance,
        }
    }

    /// Sends a command and parses its reply; a reply that `parse` doesn't accept is an error.
    fn send<T: Send + 'static>(
        &self,
        name: StoreCommand,
        command: Cmd,
        parse: impl FnOnce(&Value) -> Option<T> + Send + 'static,
    ) -> StoreFuture<T> {
        let connection = Arc::clone(&self.connection);
        Box::pin(async move {
            let value = connection.send(name, || command).await?;
            parse(&value).ok_or_else(|| connection.unreadable(&value))
        })
    }

    /// Frees the claim's lock. `parse` gets whether the lock was freed, and whether no acquisition by the
    /// claim can be executed any more.
    fn free<T: Send + 'static>(
        &self,
        name: StoreCommand,
        claim: &Claim,
        parse: fn(bool, bool) -> T,
    ) -> StoreFuture<T> {
        let mut command = self
            .names
            .session(&claim.key)
            .call(&scripts::RELEASE, CLAIM_BYTES);
        command
            .arg(claim.token.as_str())
            .arg(claim.not_after())
            .arg(claim.id.to_string());
        self.send(name, command, move |value| match value {
            Value::Int(bits) => Some(parse(bits & 1 != 0, bits & 2 != 0)),
            _ => None,
        })
    }
}

impl Store for RedisStore {
    fn acquire(&self, claim: &Arc<Claim>, request: &AcquireRequest) -> StoreFuture<AcquireReply> {
        let connection = Arc::clone(&self.connection);
        let (claim, request) = (Arc::clone(claim), request.clone());
        let command = self
            .names
            .session(&claim.key)
            .call(&scripts::ACQUIRE, CLAIM_BYTES);
        let waits = request.queue.is_some();
        let channel = waits.then(|| self.names.instance(&claim.instance));
        Box::pin(async move {
            let attempt = || {
                let clock = connection.clock();
                let not_after = clock.at(Instant::now() + connection.timeout() + CLOCK_SLACK);
                claim.raise_not_after(not_after);
                let mut command = command.clone();
                command
                    .arg(claim.token.as_str())
                    .arg(millis(claim.lease))
                    .arg(not_after);
                add_request(&mut command, &claim, &request, channel.as_deref());
                command
            };
            // The second attempt is for a first one that was late by a wrong estimate of the clock. The
            // first reply has corrected the estimate.
            for _ in 0..2 {
                let value = connection.send(StoreCommand::Acquire, attempt).await?;
                match reply::acquired(&value) {
                    Some(AcquireOutcome::Late { now }) => connection.clock().set(now),
                    Some(AcquireOutcome::Reply(reply)) => {
                        if let AcquireReply::Granted(Fence(fence)) = reply {
                            // A fence is Redis's time, or larger after the clock was set back. Then the
                            // estimate is ahead until the next reply, and doubts last longer.
                            connection.clock().set(fence);
                        }
                        return Ok(reply);
                    }
                    None => return Err(connection.unreadable(&value)),
                }
            }
            Err(connection.not_sent("the command arrived too late to be executed"))
        })
    }

    fn connection(&self) -> u64 {
        self.connection.number()
    }

    fn server_changes(&self) -> watch::Receiver<Option<Instant>> {
        self.connection.server_changes()
    }

    fn ticket_at(&self, arrived: Instant) -> Option<Ticket> {
        let clock = self.connection.clock();
        clock.is_set().then(|| Ticket(clock.at(arrived)))
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<bool>> {
        let keys = claims.iter().map(|claim| &claim.key);
        let bytes = claims.len() * CLAIM_BYTES;
        let mut command = self
            .names
            .call_for(keys, &scripts::EXTEND, LOCK_AND_FENCE, bytes);
        for claim in claims {
            command.arg(claim.token.as_str()).arg(millis(claim.lease));
        }
        let expected = claims.len();
        self.send(StoreCommand::Extend, command, move |value| {
            let items = reply::array(value).filter(|items| items.len() == expected)?;
            Some(items.iter().map(|item| *item == Value::Int(1)).collect())
        })
    }

    fn release(&self, claim: &Claim) -> StoreFuture<bool> {
        self.free(StoreCommand::Release, claim, |is_freed, _| is_freed)
    }

    fn withdraw(&self, claim: &Claim) -> StoreFuture<Withdrawal> {
        self.free(StoreCommand::Withdraw, claim, |_, is_final| {
            if is_final {
                Withdrawal::ForGood
            } else {
                Withdrawal::ForNow
            }
        })
    }

    fn watch(&self, instance: &str, queues: &[WatchedQueue]) -> StoreFuture<Vec<QueueState>> {
        let keys = queues.iter().map(|queue| &queue.key);
        let waiters: usize = queues.iter().map(|queue| queue.waiters.len()).sum();
        let bytes = CLAIM_BYTES + waiters * ID_BYTES;
        let mut command = self.names.call_for(keys, &scripts::WATCH, ALL_KEYS, bytes);
        command.arg(self.names.instance(instance));
        for queue in queues {
            add_dead_holder(&mut command, queue.take_over.as_ref());
            command.arg(queue.waiters.len());
            for id in &queue.waiters {
                command.arg(id.to_string());
            }
        }
        let expected = queues.len();
        self.send(StoreCommand::Watch, command, move |value| {
            let items = reply::array(value).filter(|items| items.len() == expected)?;
            items.iter().map(reply::queue_state).collect()
        })
    }

    fn send_message(&self, instance: &str, message: Message) -> StoreFuture<bool> {
        let mut command = cmd("PUBLISH");
        command
            .arg(self.names.instance(instance))
            .arg(message.to_string());
        self.send(StoreCommand::SendMessage, command, |value| match value {
            Value::Int(receivers) => Some(*receivers > 0),
            _ => None,
        })
    }

    fn scan(&self, space: &Keyspace, from: Option<u64>, count: usize) -> StoreFuture<ScanPage> {
        let mut command = cmd("SCAN");
        command.arg(from.unwrap_or_default());
        command.arg("MATCH").arg(space.glob());
        command.arg("COUNT").arg(count).arg("TYPE").arg("string");
        let (space, names) = (space.clone(), self.names.clone());
        self.send(StoreCommand::Scan, command, move |value| {
            reply::scan_page(value, |key| {
                space.contains(key) && !names.is_beside_locks(key)
            })
        })
    }

    fn inspect(&self, keys: &[SessionKey], with_queue: bool) -> StoreFuture<Vec<LockInfo>> {
        let expected = keys.len();
        let mut command = self
            .names
            .call_for(keys.iter(), &scripts::INSPECT, ALL_KEYS, 0);
        command.arg(if with_queue { MAX_LISTED } else { 0 });
        self.send(StoreCommand::Inspect, command, move |value| {
            reply::lock_infos(value, expected)
        })
    }

    fn force_release(&self, key: &SessionKey, holder: &LockHolder) -> StoreFuture<Option<Fence>> {
        let turn = holder.turn();
        // The holder may have another prefix than this process.
        let channel = turn
            .as_ref()
            .map(|turn| instance_key(&turn.prefix, &turn.instance));
        let id = turn.map(|turn| turn.id.to_string());
        let mut command = self
            .names
            .session(key)
            .call(&scripts::FORCE_RELEASE, CLAIM_BYTES);
        command
            .arg(holder.as_str())
            .arg(channel.unwrap_or_default())
            .arg(id.unwrap_or_default());
        self.send(StoreCommand::ForceRelease, command, |value| match value {
            Value::Nil => Some(None),
            Value::Int(fence) => Some(Some(Fence(fence.unsigned_abs()))),
            _ => None,
        })
    }

    fn heartbeat(
        &self,
        instance: &str,
        epoch: Epoch,
        ttl: Duration,
        take_name: bool,
    ) -> StoreFuture<HeartbeatReply> {
        let key = self.names.instance(instance);
        let mut command = scripts::HEARTBEAT.call([&*key].into_iter(), CLAIM_BYTES);
        command
            .arg(epoch.to_string())
            .arg(millis(ttl))
            .arg(u8::from(take_name));
        let sent = self.send(StoreCommand::Heartbeat, command, |value| match value {
            Value::Int(0) => Some(HeartbeatReply::NameTaken),
            Value::Int(1) => Some(HeartbeatReply::Renewed),
            Value::Int(2) => Some(HeartbeatReply::Registered),
            _ => None,
        });
        Box::pin(async move {
            let named = |error| access::name_denied(error, &format!("GET, SET and PEXPIRE {key}"));
            sent.await.map_err(named)
        })
    }

    fn unregister(&self, instance: &str, epoch: Epoch) -> StoreFuture<()> {
        let key = self.names.instance(instance);
        let mut command = scripts::UNREGISTER.call([&*key].into_iter(), CLAIM_BYTES);
        command.arg(epoch.to_string());
        self.send(StoreCommand::Unregister, command, |_| Some(()))
    }

    fn liveness(&self, instance: &str) -> StoreFuture<Option<InstanceLiveness>> {
        let key = self.names.instance(instance);
        let command = scripts::LIVENESS.call([&*key].into_iter(), 0);
        self.send(StoreCommand::Liveness, command, reply::liveness)
    }

    fn check_access(&self, key: &SessionKey) -> StoreFuture<()> {
        let attempts = AccessAttempt::all(self.names.session(key), self.instance.as_ref());
        let (connection, channel) = (Arc::clone(&self.connection), self.instance.clone());
        Box::pin(async move {
            // An error of the connection is about none of the attempts. It may be about the channel, to which
            // each new connection subscribes.
            let sent = connection.send(StoreCommand::CheckAccess, || cmd("TIME"));
            sent.await.map_err(|error| match &channel {
                Some(channel) if access::is_channel_denied(&error) => {
                    access::name_denied(error, &format!("SUBSCRIBE {channel}"))
                }
                _ => error,
            })?;
            for AccessAttempt { command, text } in attempts {
                let sent = connection.exchange(StoreCommand::CheckAccess, || command);
                let denied = |error| AccessAttempt::denied(&text, error);
                if let Some(error) = sent.await.err().and_then(denied) {
                    connection.count_failure();
                    return Err(error);
                }
            }
            Ok(())
        })
    }
}

/// Adds the arguments of an acquisition that only matter for a busy lock. `channel` is that of the claim's
/// instance.
fn add_request(command: &mut Cmd, claim: &Claim, request: &AcquireRequest, channel: Option<&str>) {
    if request.take_over.is_none() && request.queue.is_none() {
        return;
    }
    add_dead_holder(command, request.take_over.as_ref());
    if let Some(options) = request.queue {
        command
            .arg(claim.id.to_string())
            .arg(channel.unwrap_or_default())
            .arg(options.ticket.map_or(0, |Ticket(ticket)| ticket))
            .arg(options.max_waiters)
            .arg(u8::from(options.interrupts));
    }
}

fn add_dead_holder(command: &mut Cmd, dead: Option<&DeadHolder>) {
    command
        .arg(dead.map_or("", |dead| dead.holder.as_str()))
        .arg(dead.map_or(0, |dead| micros(dead.min_age)));
}
