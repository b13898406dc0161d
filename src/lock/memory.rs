//! The store in the memory of this process: for one replica only. It defines what every other store
//! has to do.
//!
//! Invariant: a command is executed when the operation returns its future, so dropping the future
//! never leaves a claim in doubt. Messages are passed on after the mutex is free.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    AcquireReply, AcquireRequest, AnswerLookup, Claim, ClaimId, Epoch, Fence, HeartbeatReply,
    InstanceLiveness, LockHolder, LockInfo, Message, MessageHandler, QueueState, ScanCursor,
    ScanPage, Store, StoreFuture, WatchedQueue, Withdrawal,
};
use crate::key::{Keyspace, SessionKey};
use once::OnceRecords;
use session::{Handlers, MemoryCommand, SessionState};

mod inspect;
mod once;
mod queue;
mod session;

/// Locks and queues in a map. Leases run by the monotonic clock, and are checked when somebody asks.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<MemoryState>,
}

#[derive(Debug, Default)]
struct MemoryState {
    sessions: HashMap<SessionKey, SessionState>,
    instances: HashMap<Box<str>, LiveInstance>,
    once: OnceRecords,
    handlers: Handlers,
    /// The last fence or ticket.
    last_number: u64,
}

/// An instance that has sent a heartbeat.
#[derive(Debug)]
struct LiveInstance {
    epoch: Epoch,
    expires: Instant,
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Passes the messages for this instance to `handler` from now on.
    pub fn listen(&self, instance: &Arc<str>, handler: Arc<dyn MessageHandler>) {
        let handlers = &mut self.state.lock().handlers;
        handlers.insert(Arc::clone(instance), handler);
    }

    /// Whether no session is left, nor a record of a turn. What has expired stays until somebody asks for it.
    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.sessions.is_empty() && state.once.is_empty()
    }

    /// Runs a command on a session, removes the session if nothing is left of it, and sends messages.
    fn with<T>(
        &self,
        key: &SessionKey,
        act: impl FnOnce(&mut SessionState, &mut MemoryCommand<'_>) -> T,
    ) -> T {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let (handlers, number) = (&state.handlers, &mut state.last_number);
        let mut command = MemoryCommand::new(handlers, number, &mut state.once);
        command.records.remove_expired(command.now);
        let mut session = match state.sessions.entry(key.clone()) {
            Entry::Occupied(session) => session,
            Entry::Vacant(none) => none.insert_entry(SessionState::default()),
        };
        let result = act(session.get_mut(), &mut command);
        if session.get_mut().is_over(command.now) {
            session.remove();
        }
        let messages = command.messages;
        drop(guard);
        for (handler, message) in messages {
            handler.on_message(message);
        }
        result
    }
}

fn reply<T>(reply: T) -> StoreFuture<T> {
    StoreFuture::ready(Ok(reply))
}

impl Store for MemoryStore {
    fn acquire(&self, claim: &Arc<Claim>, request: &AcquireRequest) -> StoreFuture<AcquireReply> {
        reply(self.with(&claim.key, |session, command| {
            session.acquire(claim, request, command)
        }))
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<Option<bool>>> {
        let now = Instant::now();
        let state = &mut *self.state.lock();
        let extended = claims.iter().map(|claim| {
            let session = state.sessions.get_mut(&claim.key);
            let is_own = session.is_some_and(|session| session.extend(claim, now));
            if is_own {
                state.once.extend(claim, now);
            }
            Some(is_own)
        });
        reply(extended.collect())
    }

    fn release(&self, claim: &Claim) -> StoreFuture<bool> {
        reply(self.with(&claim.key, |session, command| {
            session.release(claim, command)
        }))
    }

    fn withdraw(&self, claim: &Claim) -> StoreFuture<Withdrawal> {
        // No command can arrive late.
        drop(self.release(claim));
        reply(Withdrawal::ForGood)
    }

    fn watch(
        &self,
        instance: &str,
        queues: &[WatchedQueue],
    ) -> StoreFuture<Vec<Option<QueueState>>> {
        let states = queues.iter().map(|queue| {
            self.with(&queue.key, |session, command| {
                session.watch(instance, queue, command)
            })
        });
        reply(states.map(Some).collect())
    }

    fn send_message(&self, instance: &str, message: Message) -> StoreFuture<bool> {
        let handler = self.state.lock().handlers.get(instance).cloned();
        let is_received = handler.is_some();
        if let Some(handler) = handler {
            handler.on_message(message);
        }
        reply(is_received)
    }

    fn scan(
        &self,
        space: &Keyspace,
        from: Option<ScanCursor>,
        count: usize,
    ) -> StoreFuture<ScanPage> {
        let keys = self.state.lock().keys(space);
        reply(inspect::page(keys, from, count))
    }

    fn inspect(&self, keys: &[SessionKey], with_queue: bool) -> StoreFuture<Vec<LockInfo>> {
        let (now, state) = (Instant::now(), self.state.lock());
        let infos = keys.iter().map(|key| state.inspect(key, with_queue, now));
        reply(infos.collect())
    }

    fn find_answer(&self, key: &SessionKey) -> StoreFuture<AnswerLookup> {
        let info = self.state.lock().inspect(key, false, Instant::now());
        reply(AnswerLookup {
            holder: info.holder,
            last: None,
        })
    }

    fn force_release(&self, key: &SessionKey, holder: &LockHolder) -> StoreFuture<Option<Fence>> {
        reply(self.with(key, |session, command| {
            session.force_release(holder, command)
        }))
    }

    fn dequeue(&self, key: &SessionKey, waiter: ClaimId) -> StoreFuture<bool> {
        reply(self.with(key, |session, command| session.dequeue(waiter, command)))
    }

    fn heartbeat(
        &self,
        instance: &str,
        epoch: Epoch,
        ttl: Duration,
        take_name: bool,
    ) -> StoreFuture<HeartbeatReply> {
        let now = Instant::now();
        let instances = &mut self.state.lock().instances;
        let live = instances.get(instance).filter(|live| now < live.expires);
        let result = match live {
            Some(live) if live.epoch == epoch => HeartbeatReply::Renewed,
            Some(_) if !take_name => return reply(HeartbeatReply::NameTaken),
            _ => HeartbeatReply::Registered,
        };
        let expires = now + ttl;
        instances.insert(instance.into(), LiveInstance { epoch, expires });
        reply(result)
    }

    fn unregister(&self, instance: &str, epoch: Epoch) -> StoreFuture<()> {
        let instances = &mut self.state.lock().instances;
        let live = instances.get(instance);
        if live.is_some_and(|live| live.epoch == epoch) {
            instances.remove(instance);
        }
        reply(())
    }

    fn liveness(&self, instance: &str) -> StoreFuture<Option<InstanceLiveness>> {
        let now = Instant::now();
        let instances = &self.state.lock().instances;
        let live = instances.get(instance).filter(|live| now < live.expires);
        reply(live.map(|live| InstanceLiveness {
            epoch: live.epoch,
            ttl: live.expires - now,
        }))
    }
}
