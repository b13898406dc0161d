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
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    AcquireReply, AcquireRequest, AnswerEntry, AnswerLookup, AnswerWrite, Claim, ClaimId,
    DeadHolder, EntryPlace, Epoch, Fence, HeartbeatReply, InstanceLiveness, LockHolder, LockInfo,
    Message, MessageHandler, QueueState, ScanCursor, ScanPage, Store, StoreFuture, Ticket,
    WatchedQueue, Withdrawal, millis,
};
use crate::key::{Keyspace, SessionKey};
use clock::{RedisClock, micros};
use command::StoreCommand;
use connection::{ChannelListener, packed};
use keys::{ALL_KEYS, KeyNames, LOCK_AND_FENCE, instance_key};
use reply::AcquireOutcome;
use routes::{RedisRoutes, SharedTopology};

mod access;
mod address;
mod answers;
mod call;
mod claim_calls;
mod clock;
mod cluster;
mod command;
mod connection;
mod echoes;
mod error;
mod frame;
mod keys;
mod login;
mod node;
mod pipelined;
mod poll;
mod reauth;
mod replicas;
mod reply;
mod routes;
mod scripts;
mod sentinel;
mod server;
mod slots;
mod stream;
mod target;
mod tls;
mod url;

pub use address::RedisAddress;
pub use tls::RedisTls;
pub use url::{RedisUrl, RedisUrlError};

/// Makes the stores of one process, which share what is known of the servers.
pub struct RedisStores {
    address: RedisAddress,
    topology: SharedTopology,
}

/// Locks in Redis, over one multiplexed connection to each server that has locks.
#[derive(Debug)]
pub struct RedisStore {
    routes: RedisRoutes,
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

/// The size of a script's call about one claim, in bytes: its keys are as long as its arguments.
const CALL_BYTES: usize = 640;

/// The size of a claim's id as an argument, in bytes.
const ID_BYTES: usize = 48;

/// How many waiters of a queue an operator sees: more than anybody reads, and few enough for one
/// reply.
const MAX_LISTED: usize = 1000;

// === impl RedisStores ===

impl RedisStores {
    /// Stores in the Redis at this address. Connects to nothing yet.
    pub fn new(address: RedisAddress) -> Self {
        Self {
            address,
            topology: SharedTopology::default(),
        }
    }

    /// A store with connections of its own. See [`RedisStore::connect`]. The tasks that find out which servers there
    /// are run on the runtime of the first call.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(&self) -> RedisStore {
        self.store(None)
    }

    /// Like [`RedisStores::connect`], and passes the messages for this instance to `handler`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen(&self, instance: &str, handler: Arc<dyn MessageHandler>) -> RedisStore {
        let channel = self.address.names.instance(instance).into();
        self.store(Some(ChannelListener { channel, handler }))
    }

    fn store(&self, listener: Option<ChannelListener>) -> RedisStore {
        let instance = listener.as_ref().map(|it| it.channel.to_string());
        RedisStore {
            routes: RedisRoutes::connect(&self.address, &self.topology, listener),
            names: self.address.names.clone(),
            instance,
        }
    }
}

// === impl RedisStore ===

impl RedisStore {
    /// Connects in tasks on the current runtime, and again whenever a connection is lost. The tasks end with the
    /// store.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(address: RedisAddress) -> Self {
        RedisStores::new(address).connect()
    }

    /// Like [`RedisStore::connect`], and passes the messages for this instance to `handler`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen(address: RedisAddress, instance: &str, handler: Arc<dyn MessageHandler>) -> Self {
        RedisStores::new(address).listen(instance, handler)
    }

    /// Sends a command about keys of `slot` and parses its reply; a reply that `parse` doesn't accept is an error.
    fn send<T: Send + 'static>(
        &self,
        name: StoreCommand,
        slot: u16,
        command: Cmd,
        parse: impl FnOnce(&Value) -> Option<T> + Send + 'static,
    ) -> StoreFuture<T> {
        let routes = self.routes.clone();
        StoreFuture::new(async move {
            let (value, link) = routes.send(slot, name, packed(&command)).await?;
            parse(&value).ok_or_else(|| link.unreadable(&value))
        })
    }

    /// Sends a command about several sessions, or several commands if one may not have all keys. `build` makes the
    /// command about the sessions with these indexes, and `parse` gives what its reply says about each of them. The
    /// result has `None` for each session whose command failed, and is an error if all of them did.
    fn send_about_each<'k, T: Send + 'static>(
        &self,
        name: StoreCommand,
        keys: &[&'k SessionKey],
        build: impl Fn(&[usize]) -> Cmd,
        parse: fn(&Value) -> Option<T>,
    ) -> StoreFuture<Vec<Option<T>>> {
        let all = self.routes.groups(keys.iter().map(|key| key.as_str()));
        let commands: Vec<_> = all
            .into_iter()
            .map(|group| {
                let expected = group.len();
                let key = group.first().map_or("", |first| keys[*first].as_str());
                let reply = self.send(name, self.routes.slot(key), build(&group), move |value| {
                    let items = reply::array(value).filter(|items| items.len() == expected)?;
                    items.iter().map(parse).collect::<Option<Vec<T>>>()
                });
                async move { (group, reply.await) }
            })
            .collect();
        let count = keys.len();
        StoreFuture::new(async move {
            let mut all: Vec<_> = std::iter::repeat_with(|| None).take(count).collect();
            let (mut is_any, mut failure) = (false, None);
            for (group, reply) in join_all(commands).await {
                match reply {
                    Ok(items) => {
                        is_any = true;
                        for (index, item) in group.into_iter().zip(items) {
                            all[index] = Some(item);
                        }
                    }
                    Err(error) => failure = Some(error),
                }
            }
            match failure {
                Some(error) if !is_any => Err(error),
                _ => Ok(all),
            }
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
        let mut written = Vec::with_capacity(CALL_BYTES);
        claim_calls::write_release(&self.names, claim, &mut written);
        let (routes, slot) = (self.routes.clone(), self.routes.slot(claim.key.as_str()));
        StoreFuture::new(async move {
            let write =
                |_: &RedisClock, _, unsent: &mut Vec<u8>| unsent.extend_from_slice(&written);
            let (value, link) = routes.send(slot, name, write).await?;
            match value {
                Value::Int(bits) => Ok(parse(bits & 1 != 0, bits & 2 != 0)),
                _ => Err(link.unreadable(&value)),
            }
        })
    }
}

impl Store for RedisStore {
    fn acquire(&self, claim: &Arc<Claim>, request: &AcquireRequest) -> StoreFuture<AcquireReply> {
        let routes = self.routes.clone();
        let (claim, request) = (Arc::clone(claim), request.clone());
        let names = self.names.clone();
        StoreFuture::new(async move {
            let attempt = |clock: &RedisClock, give_up: Instant, unsent: &mut Vec<u8>| {
                let not_after = clock.at(give_up + CLOCK_SLACK);
                claim.raise_not_after(not_after);
                claim_calls::write_acquisition(&names, &claim, &request, not_after, unsent);
            };
            let slot = routes.slot(claim.key.as_str());
            // The second attempt is for a first one that was late by a wrong estimate of the clock. The
            // first reply has corrected the estimate.
            for _ in 0..2 {
                let sent = routes.send(slot, StoreCommand::Acquire, attempt);
                let (value, link) = sent.await?;
                match reply::acquired(&value) {
                    Some(AcquireOutcome::Late { now }) => link.clock().set(now),
                    Some(AcquireOutcome::Reply(reply)) => {
                        if let AcquireReply::Granted(Fence(fence)) = reply {
                            // A fence is Redis's time, or larger after the clock was set back. Then the
                            // estimate is ahead until the next reply, and doubts last longer.
                            link.clock().set(fence);
                        }
                        if reply.is_granted() && link.waits_for_replicas() {
                            let key = names.confirmation(&claim.key);
                            routes.confirm(&link, key).await?;
                        }
                        return Ok(reply);
                    }
                    None => return Err(link.unreadable(&value)),
                }
            }
            Err(routes.not_sent("the command arrived too late to be executed"))
        })
    }

    fn connection(&self) -> u64 {
        self.routes.number()
    }

    fn server_changed(&self, key: &SessionKey) -> Option<Instant> {
        self.routes.server_changed(self.routes.slot(key.as_str()))
    }

    fn server_changes(&self) -> watch::Receiver<Option<Instant>> {
        self.routes.server_changes()
    }

    fn ticket_at(&self, key: &SessionKey, arrived: Instant) -> Option<Ticket> {
        self.routes
            .time_at(self.routes.slot(key.as_str()), arrived)
            .map(Ticket)
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<Option<bool>>> {
        let keys: Vec<_> = claims.iter().map(|claim| &claim.key).collect();
        let build = |group: &[usize]| {
            let (keys, bytes) = (group.iter().map(|at| keys[*at]), group.len() * CLAIM_BYTES);
            let claims = group.iter().map(|at| &claims[*at]);
            let records = claims
                .clone()
                .filter_map(|claim| self.names.record_of(claim));
            let records: Vec<_> = records.collect();
            let mut command =
                self.names
                    .call_for(keys, &records, &scripts::EXTEND, LOCK_AND_FENCE, bytes);
            for claim in claims {
                let record_ttl = claim.once.as_ref().map(|once| once.record_ttl(claim.lease));
                command
                    .arg(claim.token.as_str())
                    .arg(millis(claim.lease))
                    .arg(record_ttl.map_or(0, millis));
            }
            command
        };
        self.send_about_each(StoreCommand::Extend, &keys, build, |item| {
            Some(*item == Value::Int(1))
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

    fn watch(
        &self,
        instance: &str,
        queues: &[WatchedQueue],
    ) -> StoreFuture<Vec<Option<QueueState>>> {
        let keys: Vec<_> = queues.iter().map(|queue| &queue.key).collect();
        let channel = self.names.instance(instance);
        let build = |group: &[usize]| {
            let queues = group.iter().map(|at| &queues[*at]);
            let waiters: usize = queues.clone().map(|queue| queue.waiters.len()).sum();
            let (keys, bytes) = (
                group.iter().map(|at| keys[*at]),
                CLAIM_BYTES + waiters * ID_BYTES,
            );
            let mut command = self
                .names
                .call_for(keys, &[], &scripts::WATCH, ALL_KEYS, bytes);
            command.arg(&channel);
            for queue in queues {
                add_dead_holder(&mut command, queue.take_over.as_ref());
                command.arg(u8::from(queue.wants_places));
                command.arg(queue.waiters.len());
                for id in &queue.waiters {
                    command.arg(id.to_string());
                }
            }
            command
        };
        self.send_about_each(StoreCommand::Watch, &keys, build, reply::queue_state)
    }

    fn send_message(&self, instance: &str, message: Message) -> StoreFuture<bool> {
        let channel = self.names.instance(instance);
        let mut command = cmd("PUBLISH");
        command.arg(&channel).arg(message.to_string());
        self.send(
            StoreCommand::SendMessage,
            self.routes.slot(&channel),
            command,
            |value| match value {
                Value::Int(receivers) => Some(*receivers > 0),
                _ => None,
            },
        )
    }

    fn scan(
        &self,
        space: &Keyspace,
        from: Option<ScanCursor>,
        count: usize,
    ) -> StoreFuture<ScanPage> {
        let ScanCursor { server, position } = from.unwrap_or_default();
        let mut command = cmd("SCAN");
        command.arg(position);
        command.arg("MATCH").arg(space.glob());
        command.arg("COUNT").arg(count).arg("TYPE").arg("string");
        let (space, names, routes) = (space.clone(), self.names.clone(), self.routes.clone());
        StoreFuture::new(async move {
            let Some(value) = routes.send_to(server, StoreCommand::Scan, &command).await? else {
                return Ok(ScanPage::default());
            };
            let is_lock = |key: &str| space.contains(key) && !names.is_beside_locks(key);
            let page = reply::scan_page(&value, is_lock);
            let (keys, position) = page.ok_or_else(|| routes.unreadable(&value))?;
            let next = match position {
                // The next server, if there is one.
                0 if routes.has_server(server + 1) => Some((server + 1, 0)),
                0 => None,
                position => Some((server, position)),
            };
            let next = next.map(|(server, position)| ScanCursor { server, position });
            Ok(ScanPage { keys, next })
        })
    }

    fn inspect(&self, keys: &[SessionKey], with_queue: bool) -> StoreFuture<Vec<LockInfo>> {
        let keys: Vec<_> = keys.iter().collect();
        let build = |group: &[usize]| {
            let keys = group.iter().map(|at| keys[*at]);
            let mut command = self
                .names
                .call_for(keys, &[], &scripts::INSPECT, ALL_KEYS, 0);
            command.arg(if with_queue { MAX_LISTED } else { 0 });
            command
        };
        let routes = self.routes.clone();
        let sent = self.send_about_each(StoreCommand::Inspect, &keys, build, reply::lock_info);
        StoreFuture::new(async move {
            let infos = sent.await?.into_iter().collect::<Option<_>>();
            infos.ok_or_else(|| routes.not_sent("one of its servers doesn't answer"))
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
        self.send(
            StoreCommand::ForceRelease,
            self.routes.slot(key.as_str()),
            command,
            |value| match value {
                Value::Nil => Some(None),
                Value::Int(fence) => Some(Some(Fence(fence.unsigned_abs()))),
                _ => None,
            },
        )
    }

    fn dequeue(&self, key: &SessionKey, waiter: ClaimId) -> StoreFuture<bool> {
        let mut command = self.names.session(key).call(&scripts::DEQUEUE, ID_BYTES);
        command.arg(waiter.to_string());
        let slot = self.routes.slot(key.as_str());
        self.send(StoreCommand::Dequeue, slot, command, |value| match value {
            Value::Int(removed) => Some(*removed == 1),
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
        let sent = self.send(
            StoreCommand::Heartbeat,
            self.routes.slot(&key),
            command,
            |value| match value {
                Value::Int(0) => Some(HeartbeatReply::NameTaken),
                Value::Int(1) => Some(HeartbeatReply::Renewed),
                Value::Int(2) => Some(HeartbeatReply::Registered),
                _ => None,
            },
        );
        StoreFuture::new(async move {
            let named = |error| access::name_denied(error, &format!("GET, SET and PEXPIRE {key}"));
            sent.await.map_err(named)
        })
    }

    fn unregister(&self, instance: &str, epoch: Epoch) -> StoreFuture<()> {
        let key = self.names.instance(instance);
        let mut command = scripts::UNREGISTER.call([&*key].into_iter(), CLAIM_BYTES);
        command.arg(epoch.to_string());
        self.send(
            StoreCommand::Unregister,
            self.routes.slot(&key),
            command,
            |_| Some(()),
        )
    }

    fn liveness(&self, instance: &str) -> StoreFuture<Option<InstanceLiveness>> {
        let key = self.names.instance(instance);
        let command = scripts::LIVENESS.call([&*key].into_iter(), 0);
        self.send(
            StoreCommand::Liveness,
            self.routes.slot(&key),
            command,
            reply::liveness,
        )
    }

    fn check_access(&self, key: &SessionKey) -> StoreFuture<()> {
        self.try_access(key)
    }

    fn keeps_answers(&self) -> bool {
        true
    }

    fn write_answer(
        &self,
        key: &SessionKey,
        turn: ClaimId,
        write: &AnswerWrite,
    ) -> StoreFuture<bool> {
        self.write_to_answer(key, turn, write)
    }

    fn find_answer(&self, key: &SessionKey) -> StoreFuture<AnswerLookup> {
        self.look_up_answer(key)
    }

    fn read_answer(
        &self,
        key: &SessionKey,
        turn: ClaimId,
        after: EntryPlace,
        limit: usize,
    ) -> StoreFuture<Option<Vec<AnswerEntry>>> {
        self.read_from_answer(key, turn, after, limit)
    }

    fn check_answer_access(&self, key: &SessionKey) -> StoreFuture<()> {
        self.try_answer_access(key)
    }
}

fn add_dead_holder(command: &mut Cmd, dead: Option<&DeadHolder>) {
    command
        .arg(dead.map_or("", |dead| dead.holder.as_str()))
        .arg(dead.map_or(0, |dead| micros(dead.min_age)));
}
