//! A store in memory behind a network that fails on demand: commands that are not sent or come late,
//! replies that come late or never.
//!
//! With paused time a test of a deadline is exact and takes no time. As in Redis, an acquisition carries
//! the last moment at which it may be executed, and a withdrawal is for good only after that moment.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seriatim::key::{Keyspace, SessionKey};
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{
    AcquireError, AcquireReply, AcquireRequest, CallChain, Claim, ClaimId, ClaimIssuer, Dispatcher,
    Epoch, Fallback, Fence, HeartbeatReply, Instance, InstanceLiveness, LockGuard, LockHolder,
    LockInfo, LockOptions, LockRequest, Locks, Message, QueueState, ScanCursor, ScanPage, Store,
    StoreError, StoreFuture, StoreHealth, WatchedQueue, Withdrawal,
};
use seriatim::metrics::Metrics;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{wait_for, within};

/// The session of these tests.
pub(crate) const SESSION: &str = "k";

/// How long a caller waits for a reply.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(300);

/// How long after it was sent an acquisition may be executed.
pub(crate) const NOT_AFTER: Duration = Duration::from_millis(1300);

/// A command that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Acquire,
    Extend,
    /// A release or a withdrawal, which are never late.
    Release,
    Heartbeat,
}

/// What happens to a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It is not sent, because there is no connection.
    NotSent,
    /// It is lost, and the caller gets no reply in time.
    Lost,
    /// It is executed at once, and its reply comes this much later.
    LateReply(Duration),
    /// It is executed at once, and the caller gets no reply, but this.
    NoReply(NoReply),
    /// It is executed this much later, and the caller gets no reply in time.
    LateCommand(Duration),
}

/// What a caller gets who gets no reply.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoReply {
    TimedOut,
    ConnectionBroke,
    Unreadable,
}

/// A store whose commands fail as the test says. Several of them may share one memory.
#[derive(Debug)]
pub(crate) struct FaultyStore {
    memory: Arc<MemoryStore>,
    faults: Mutex<HashMap<Call, Fault>>,
    /// How often each command was called.
    calls: Mutex<HashMap<Call, usize>>,
    /// Until when acquisitions of these claims may be executed.
    not_after: Mutex<HashMap<ClaimId, Instant>>,
}

/// One instance behind its own [`FaultyStore`].
pub(crate) struct FaultyReplica {
    pub(crate) store: Arc<FaultyStore>,
    pub(crate) locks: Arc<Locks>,
}

/// A turn on the way to its lock, and when it got it.
pub(crate) type Granted = JoinHandle<Result<(LockGuard, Instant), AcquireError>>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl NoReply ===

impl NoReply {
    async fn error(self) -> StoreError {
        let store: Arc<str> = "the test's".into();
        match self {
            Self::TimedOut => {
                sleep(TIMEOUT).await;
                StoreError::TimedOut {
                    store,
                    timeout: TIMEOUT,
                }
            }
            Self::ConnectionBroke => StoreError::Unreachable {
                store,
                reason: "the connection broke".into(),
            },
            Self::Unreadable => StoreError::Unreadable { store },
        }
    }
}

// === impl FaultyStore ===

impl FaultyStore {
    /// Lets a command fail from now on.
    pub(crate) fn fail(&self, call: Call, fault: Fault) {
        lock(&self.faults).insert(call, fault);
    }

    /// Lets all commands pass from now on.
    pub(crate) fn heal(&self) {
        lock(&self.faults).clear();
    }

    /// How often the command was called.
    pub(crate) fn calls(&self, call: Call) -> usize {
        lock(&self.calls).get(&call).copied().unwrap_or_default()
    }

    /// Frees a claim at once, if the command reaches the store: the claim is only lent.
    fn free<T: Send + 'static>(
        &self,
        free: impl FnOnce(&MemoryStore) -> StoreFuture<T>,
    ) -> StoreFuture<T> {
        match self.fault(Call::Release) {
            Some(Fault::NotSent | Fault::Lost) => StoreFuture::new(pending()),
            _ => free(&self.memory),
        }
    }

    fn fault(&self, call: Call) -> Option<Fault> {
        lock(&self.faults).get(&call).copied()
    }

    fn run<T: Send + 'static>(
        &self,
        call: Call,
        command: impl FnOnce(&MemoryStore) -> StoreFuture<T> + Send + 'static,
    ) -> StoreFuture<T> {
        *lock(&self.calls).entry(call).or_default() += 1;
        let fault = self.fault(call);
        let memory = Arc::clone(&self.memory);
        StoreFuture::new(async move {
            match fault {
                None => command(&memory).await,
                Some(Fault::NotSent) => Err(StoreError::NotSent {
                    store: "the test's".into(),
                    reason: "no connection".into(),
                }),
                Some(Fault::Lost) => Err(NoReply::TimedOut.error().await),
                Some(Fault::LateReply(delay)) => {
                    let reply = command(&memory).await;
                    sleep(delay).await;
                    reply
                }
                Some(Fault::NoReply(instead)) => {
                    drop(command(&memory).await);
                    Err(instead.error().await)
                }
                Some(Fault::LateCommand(delay)) => {
                    // Also if nobody waits for the reply any more.
                    tokio::spawn(async move {
                        sleep(delay).await;
                        drop(command(&memory).await);
                    });
                    Err(NoReply::TimedOut.error().await)
                }
            }
        })
    }
}

impl Store for FaultyStore {
    fn acquire(&self, claim: &Arc<Claim>, request: &AcquireRequest) -> StoreFuture<AcquireReply> {
        lock(&self.not_after).insert(claim.id, Instant::now() + NOT_AFTER);
        let (claim, request) = (Arc::clone(claim), request.clone());
        self.run(Call::Acquire, move |memory| {
            memory.acquire(&claim, &request)
        })
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<Option<bool>>> {
        let claims = claims.to_vec();
        self.run(Call::Extend, move |memory| memory.extend(&claims))
    }

    fn release(&self, claim: &Claim) -> StoreFuture<bool> {
        let released = self.free(|memory| memory.release(claim));
        self.run(Call::Release, |_| released)
    }

    fn withdraw(&self, claim: &Claim) -> StoreFuture<Withdrawal> {
        let not_after = lock(&self.not_after).get(&claim.id).copied();
        let may_come = not_after.is_some_and(|moment| Instant::now() <= moment);
        let withdrawn = self.free(|memory| memory.withdraw(claim));
        self.run(Call::Release, move |_| {
            StoreFuture::new(async move {
                withdrawn.await?;
                Ok(match may_come {
                    true => Withdrawal::ForNow,
                    false => Withdrawal::ForGood,
                })
            })
        })
    }

    fn watch(
        &self,
        instance: &str,
        queues: &[WatchedQueue],
    ) -> StoreFuture<Vec<Option<QueueState>>> {
        self.memory.watch(instance, queues)
    }

    fn send_message(&self, instance: &str, message: Message) -> StoreFuture<bool> {
        self.memory.send_message(instance, message)
    }

    fn scan(
        &self,
        space: &Keyspace,
        from: Option<ScanCursor>,
        count: usize,
    ) -> StoreFuture<ScanPage> {
        self.memory.scan(space, from, count)
    }

    fn inspect(&self, keys: &[SessionKey], with_queue: bool) -> StoreFuture<Vec<LockInfo>> {
        self.memory.inspect(keys, with_queue)
    }

    fn force_release(&self, key: &SessionKey, holder: &LockHolder) -> StoreFuture<Option<Fence>> {
        self.memory.force_release(key, holder)
    }

    fn dequeue(&self, key: &SessionKey, waiter: ClaimId) -> StoreFuture<bool> {
        self.memory.dequeue(key, waiter)
    }

    fn heartbeat(
        &self,
        instance: &str,
        epoch: Epoch,
        ttl: Duration,
        take_name: bool,
    ) -> StoreFuture<HeartbeatReply> {
        let instance = instance.to_owned();
        self.run(Call::Heartbeat, move |memory| {
            memory.heartbeat(&instance, epoch, ttl, take_name)
        })
    }

    fn unregister(&self, instance: &str, epoch: Epoch) -> StoreFuture<()> {
        self.memory.unregister(instance, epoch)
    }

    fn liveness(&self, instance: &str) -> StoreFuture<Option<InstanceLiveness>> {
        self.memory.liveness(instance)
    }
}

// === impl FaultyReplica ===

impl FaultyReplica {
    /// An instance on this memory. `crash_recovery` is how long its heartbeat is valid; `None`: it sends
    /// none.
    pub(crate) fn start(
        memory: &Arc<MemoryStore>,
        name: &str,
        crash_recovery: Option<Duration>,
    ) -> Self {
        let store = Arc::new(FaultyStore {
            memory: Arc::clone(memory),
            faults: Mutex::default(),
            calls: Mutex::default(),
            not_after: Mutex::default(),
        });
        let epoch = Epoch(name.bytes().map(u64::from).sum());
        let issuer = Arc::new(ClaimIssuer::new(name, epoch, crash_recovery.is_some()));
        let dispatcher = Dispatcher::new(&issuer);
        memory.listen(issuer.instance(), Arc::new(dispatcher.clone()));
        let metrics = Metrics::new();
        let health = StoreHealth::new(true, &metrics);
        let shared = Arc::clone(&store) as Arc<dyn Store>;
        let instance = Instance::start(
            Arc::clone(&shared),
            issuer,
            dispatcher,
            crash_recovery,
            metrics,
            health,
        );
        let locks = Locks::new(shared, Arc::new(instance), Fallback::Reject);
        Self {
            store,
            locks: Arc::new(locks),
        }
    }

    /// Two instances without heartbeats on one memory.
    pub(crate) fn two() -> (Arc<MemoryStore>, Self, Self) {
        let memory = Arc::new(MemoryStore::new());
        let [a, b] = ["a", "b"].map(|name| Self::start(&memory, name, None));
        (memory, a, b)
    }

    /// Starts a turn in a task of its own.
    pub(crate) fn turn(&self, options: &LockOptions) -> Granted {
        let (locks, options) = (Arc::clone(&self.locks), *options);
        tokio::spawn(async move {
            let key = SessionKey::literal(SESSION);
            let nobody = CallChain::default();
            let request = LockRequest::new("route", "request", &nobody);
            let guard = locks.acquire(key, request, &options).await?;
            Ok((guard, Instant::now()))
        })
    }

    /// A turn that holds its lock.
    pub(crate) async fn hold(&self, options: &LockOptions) -> LockGuard {
        granted(self.turn(options)).await.0
    }
}

/// The lock of a turn, and when the turn got it.
pub(crate) async fn granted(turn: Granted) -> (LockGuard, Instant) {
    match within("the lock to be granted", turn)
        .await
        .expect("no panic")
    {
        Ok(granted) => granted,
        Err(error) => panic!("the turn gets its lock: {error}"),
    }
}

/// Waits until the store is empty, without asking for a lock: a process takes over a lock of its own that
/// no turn of it has any more.
pub(crate) async fn wait_until_empty(memory: &MemoryStore, after: &str) {
    wait_for(
        || memory.is_empty(),
        &format!("nothing is left after {after}"),
    )
    .await;
}
