//! The contract of every store, run against each of them.
//!
//! Several instances share one store, each with its own message handler; one more has none. With
//! the memory store, time is paused and advances when every task waits; with Redis it is real.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::Value;
use seriatim::key::SessionKey;
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::redis::{RedisAddress, RedisStore};
use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, ClaimId, ClaimIssuer, DeadHolder, Epoch, Fence,
    LockHolder, Message, MessageHandler, QUEUE_TTL, QueueOptions, Store, StoreError, Ticket,
    WAITER_TIMEOUT, WatchedQueue,
};
use tokio::time::{Instant, sleep};

use crate::support::cluster_redis::ClusterRedis;
use crate::support::pool::Pooled;
use crate::support::redis::Redis;
use crate::support::sentinel_redis::SentinelRedis;
use crate::support::{wait_for, wait_for_async};

/// Runs each rule of the contract against the memory store, and against Redis: one server without and with TLS and
/// with RESP2, a master behind Sentinels, and clusters of three shards and of one. `RULES` has the rules for other
/// tests.
macro_rules! store_contract {
    ($($rule:ident),* $(,)?) => {
        pub(super) const RULES: &[crate::store_contract::Rule] = &[$(crate::store_contract::Rule {
            name: concat!(module_path!(), "::", stringify!($rule)),
            run: |store| Box::pin($rule(store)),
        }),*];
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $rule() {
                super::$rule(crate::store_contract::StoreSetup::in_memory()).await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $rule() {
                let redis = std::sync::Arc::new(crate::support::redis::Redis::start().await);
                super::$rule(crate::store_contract::StoreSetup::on_redis(&redis).await).await;
                crate::store_contract::assert_keys_expire(&redis).await;
            })*
        }
        mod redis_over_tls {
            $(#[tokio::test]
            async fn $rule() {
                let server = crate::support::tls_redis::TlsRedis::start().await;
                let address = server.address();
                let store = crate::store_contract::StoreSetup::at(address, &server.redis).await;
                super::$rule(store).await;
            })*
        }
        mod redis_sentinel {
            $(#[tokio::test]
            async fn $rule() {
                crate::store_contract::on_sentinel(super::$rule).await;
            })*
        }
        mod redis_cluster {
            $(#[tokio::test]
            async fn $rule() {
                crate::store_contract::on_cluster(super::$rule).await;
            })*
        }
        mod redis_cluster_of_one_shard {
            $(#[tokio::test]
            async fn $rule() {
                crate::store_contract::on_one_shard(super::$rule).await;
            })*
        }
        mod redis_with_resp2 {
            $(#[tokio::test]
            async fn $rule() {
                let redis = crate::support::redis::Redis::start_without_hello(&[]).await;
                let redis = std::sync::Arc::new(redis);
                super::$rule(crate::store_contract::StoreSetup::on_redis(&redis).await).await;
            })*
        }
    };
}

mod full_memory;
mod instances;
mod interrupts;
mod kept_answers;
mod locks;
mod once;
mod operating;
mod queues;
mod refusals;
mod silence;
mod takeovers;

/// The timeout of a command.
const TIMEOUT: Duration = Duration::from_secs(1);

const LEASE: Duration = Duration::from_secs(30);

/// A rule of the contract.
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    pub(crate) run: fn(StoreSetup) -> Pin<Box<dyn Future<Output = ()>>>,
}

/// All rules of the contract.
pub(crate) fn rules() -> impl Iterator<Item = &'static Rule> {
    let all = [
        instances::RULES,
        interrupts::RULES,
        kept_answers::RULES,
        locks::RULES,
        once::RULES,
        operating::RULES,
        queues::RULES,
        silence::RULES,
        takeovers::RULES,
    ];
    all.into_iter().flatten()
}

/// Asserts that nothing stays in this Redis for ever.
pub(crate) async fn assert_keys_expire(redis: &Arc<Redis>) {
    Backing::Redis(Arc::clone(redis)).assert_keys_expire().await;
}

/// Runs a rule against the master behind Sentinels.
async fn on_sentinel(rule: impl AsyncFnOnce(StoreSetup)) {
    let servers = Arc::new(SentinelRedis::pooled().await);
    let url = servers.url();
    on_servers(rule, &url, Backing::Sentinel(servers)).await;
}

/// Runs a rule against a cluster of three shards.
async fn on_cluster(rule: impl AsyncFnOnce(StoreSetup)) {
    let cluster = Arc::new(ClusterRedis::pooled_of_six().await);
    let url = cluster.url();
    on_servers(rule, &url, Backing::Cluster(cluster)).await;
}

/// Runs a rule against a cluster of one shard.
async fn on_one_shard(rule: impl AsyncFnOnce(StoreSetup)) {
    let cluster = Arc::new(ClusterRedis::pooled_of_one_shard().await);
    let url = cluster.url();
    on_servers(rule, &url, Backing::Cluster(cluster)).await;
}

async fn on_servers(rule: impl AsyncFnOnce(StoreSetup), url: &str, servers: Backing) {
    let address = RedisAddress::parse(url, TIMEOUT).expect("the servers' URL");
    rule(StoreSetup::connected(address, servers.clone()).await).await;
    servers.assert_keys_expire().await;
}

/// The number of the instance that gets no messages.
pub(crate) const UNREACHABLE: usize = 3;

/// A store, and the instances that share it.
pub(crate) struct StoreSetup {
    backing: Backing,
    instances: Vec<Instance>,
}

/// What has the store's content.
#[derive(Clone)]
enum Backing {
    Memory(Arc<MemoryStore>),
    Redis(Arc<Redis>),
    Sentinel(Arc<Pooled<SentinelRedis>>),
    Cluster(Arc<Pooled<ClusterRedis>>),
}

struct Instance {
    store: Arc<dyn Store>,
    issuer: ClaimIssuer,
    handler: Arc<Recorder>,
    /// The instance's turns that wait for [`KEY`].
    waiting: Mutex<Vec<Arc<Claim>>>,
}

/// A message handler that records its messages.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<Vec<Message>>);

/// A turn in the queue of [`KEY`].
pub(crate) struct Waiter {
    pub(crate) claim: Arc<Claim>,
    pub(crate) ticket: Ticket,
    /// The number of its instance.
    pub(crate) of: usize,
}

/// The key of most rules.
pub(crate) const KEY: &str = "k";

/// Options of a new turn that interrupts nobody, in a queue that is never full.
pub(crate) const PATIENT: QueueOptions = QueueOptions {
    ticket: None,
    max_waiters: 1000,
    interrupts: false,
};

/// Options of a turn that supersedes all earlier ones.
pub(crate) const INTERRUPTING: QueueOptions = QueueOptions {
    interrupts: true,
    ..PATIENT
};

/// What the store replied about each of several sessions.
fn all<T>(reply: Result<Vec<Option<T>>, StoreError>) -> Vec<T> {
    let each = reply.expect("the store answers").into_iter();
    each.map(|one| one.expect("the session's server answers"))
        .collect()
}

// === impl Recorder ===

impl MessageHandler for Recorder {
    fn on_message(&self, message: Message) {
        self.lock().push(message);
    }

    fn on_reconnect(&self) {}
}

impl Recorder {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Message>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The messages since the last call.
    pub(crate) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.lock())
    }

    /// The messages since the last call, up to `mark`; `None` if `mark` hasn't arrived.
    fn up_to(&self, mark: &Message) -> Option<Vec<Message>> {
        let mut received = self.lock();
        let at = received.iter().position(|message| message == mark)?;
        // Marks of the test before this one may come late in a cluster.
        let is_mark =
            |message: &Message| matches!(message, Message::Interrupt(id) if id.epoch == Epoch(0));
        let before = received.drain(..=at).filter(|message| !is_mark(message));
        Some(before.collect())
    }
}

// === impl StoreSetup ===

impl StoreSetup {
    pub(crate) fn in_memory() -> Self {
        let store = Arc::new(MemoryStore::new());
        let instances = (0..=UNREACHABLE).map(|n| {
            let instance = Instance::new(n, Arc::clone(&store) as _);
            if n != UNREACHABLE {
                let handler = Arc::clone(&instance.handler) as _;
                store.listen(instance.issuer.instance(), handler);
            }
            instance
        });
        let instances = instances.collect();
        Self {
            backing: Backing::Memory(store),
            instances,
        }
    }

    pub(crate) async fn on_redis(redis: &Arc<Redis>) -> Self {
        let address = RedisAddress::parse(&redis.url(), TIMEOUT).expect("the server's URL");
        Self::at(address, redis).await
    }

    /// Instances that connect to `redis` at this address.
    pub(crate) async fn at(address: RedisAddress, redis: &Arc<Redis>) -> Self {
        Self::connected(address, Backing::Redis(Arc::clone(redis))).await
    }

    async fn connected(address: RedisAddress, servers: Backing) -> Self {
        let instances = (0..=UNREACHABLE).map(|n| {
            let handler = Arc::<Recorder>::default();
            let store = if n == UNREACHABLE {
                RedisStore::connect(address.clone())
            } else {
                RedisStore::listen(address.clone(), &name(n), Arc::clone(&handler) as _)
            };
            Instance {
                handler,
                ..Instance::new(n, Arc::new(store))
            }
        });
        let bench = Self {
            instances: instances.collect(),
            backing: servers,
        };
        // An instance is subscribed when its first command has a reply.
        for instance in &bench.instances {
            let answered = instance.store.liveness("nobody").await;
            answered.expect("the store answers");
        }
        if let Backing::Cluster(cluster) = &bench.backing {
            for of in 0..UNREACHABLE {
                let channel = format!("*{}", name(of));
                cluster.wait_for_subscriber(&channel).await;
            }
        }
        bench
    }

    /// The store handle of the nth instance.
    pub(crate) fn store(&self, of: usize) -> &Arc<dyn Store> {
        &self.instances[of].store
    }

    pub(crate) fn claim(&self, key: &str, lease: Duration) -> Arc<Claim> {
        self.claim_of(0, key, lease)
    }

    pub(crate) fn claim_of(&self, of: usize, key: &str, lease: Duration) -> Arc<Claim> {
        let key = SessionKey::literal(key);
        let issuer = &self.instances[of].issuer;
        Arc::new(issuer.issue(key, "route", "request", lease))
    }

    /// Requests the lock; gives the reply apart from a take-over.
    pub(crate) async fn ask(&self, claim: &Arc<Claim>, ask: &AcquireRequest) -> AcquireReply {
        let reply = self.store_of(claim).acquire(claim, ask).await;
        apart_from_takeover(reply.expect("the store answers"))
    }

    fn store_of(&self, claim: &Claim) -> &Arc<dyn Store> {
        let mut instances = self.instances.iter();
        let own = instances.find(|instance| *instance.issuer.instance() == claim.instance);
        &own.expect("a claim of one of the instances").store
    }

    async fn acquire(&self, claim: &Arc<Claim>) -> AcquireReply {
        self.ask(claim, &AcquireRequest::default()).await
    }

    async fn granted(&self, claim: &Arc<Claim>) -> Fence {
        match self.acquire(claim).await {
            AcquireReply::Granted(fence) => fence,
            other => panic!("{} should be free: {other:?}", claim.key.as_str()),
        }
    }

    /// Whether another claim holds the lock.
    async fn is_busy(&self, claim: &Arc<Claim>) -> bool {
        matches!(self.acquire(claim).await, AcquireReply::Busy(..))
    }

    pub(crate) async fn release(&self, claim: &Claim) -> bool {
        let store = self.store_of(claim);
        store.release(claim).await.expect("the store answers")
    }

    async fn extend(&self, claims: &[Arc<Claim>]) -> Vec<bool> {
        let store = self.store(0);
        all(store.extend(claims).await)
    }

    // --- the queue of KEY ---

    /// Starts a turn of the nth instance that holds the lock.
    async fn holder(&self, of: usize) -> Arc<Claim> {
        self.holder_for(of, LEASE).await
    }

    async fn holder_for(&self, of: usize, lease: Duration) -> Arc<Claim> {
        let claim = self.claim_of(of, KEY, lease);
        self.granted(&claim).await;
        claim
    }

    /// Starts a turn of the nth instance that joins the queue.
    async fn join(&self, of: usize) -> Waiter {
        self.join_as(of, PATIENT).await
    }

    async fn join_as(&self, of: usize, place: QueueOptions) -> Waiter {
        let claim = self.claim_of(of, KEY, LEASE);
        match self.wait(&claim, place).await {
            AcquireReply::Waiting(ticket, _) => {
                self.waits(&claim, true);
                Waiter { claim, ticket, of }
            }
            other => panic!("the lock is busy, and there is room in the queue: {other:?}"),
        }
    }

    /// Requests the lock or a place in the queue.
    async fn wait(&self, claim: &Arc<Claim>, place: QueueOptions) -> AcquireReply {
        let ask = AcquireRequest {
            take_over: None,
            queue: Some(place),
        };
        self.ask(claim, &ask).await
    }

    /// Requests the lock again, with the waiter's ticket.
    async fn ask_again(&self, waiter: &Waiter) -> AcquireReply {
        let place = QueueOptions {
            ticket: Some(waiter.ticket),
            ..PATIENT
        };
        let answer = self.wait(&waiter.claim, place).await;
        self.waits(&waiter.claim, matches!(answer, AcquireReply::Waiting(..)));
        answer
    }

    /// Accepts the offer of a waiter.
    async fn take_up(&self, waiter: &Waiter) -> Fence {
        match self.ask_again(waiter).await {
            AcquireReply::Granted(fence) => fence,
            other => panic!("the lock was offered to this waiter: {other:?}"),
        }
    }

    async fn withdraw(&self, claim: &Arc<Claim>) {
        self.waits(claim, false);
        let store = self.store_of(claim);
        store.withdraw(claim).await.expect("the store answers");
    }

    /// The nth instance watches the queue.
    async fn watch(&self, of: usize) -> Watched {
        self.watch_for(of, None).await
    }

    async fn watch_for(&self, of: usize, dead: Option<&Claim>) -> Watched {
        let instance = &self.instances[of];
        let waiting = instance.waiting.lock().expect("no panic").clone();
        let queues = [WatchedQueue {
            key: SessionKey::literal(KEY),
            take_over: dead.map(|dead| at_once(LockHolder::from(&dead.token))),
            wants_places: false,
            waiters: waiting.iter().map(|claim| claim.id).collect(),
        }];
        let found = instance
            .store
            .watch(instance.issuer.instance(), &queues)
            .await;
        let [found] = &all(found)[..] else {
            panic!("one reply for one queue");
        };
        let is_own =
            |holder: &LockHolder| waiting.iter().any(|claim| holder.has_token(&claim.token));
        let own = usize::from(found.holder.as_ref().is_some_and(is_own));
        match &found.holder {
            _ if waiting.is_empty() || found.missing.len() > own => Watched::Unknown,
            Some(holder) => Watched::Held(holder.clone()),
            None => Watched::Free,
        }
    }

    /// Adds the claim to the waiters of its instance, or removes it.
    fn waits(&self, claim: &Arc<Claim>, does: bool) {
        let mut instances = self.instances.iter();
        let own = instances.find(|instance| *instance.issuer.instance() == claim.instance);
        let own = own.expect("a claim of one of the instances");
        let mut waiting = own.waiting.lock().expect("no panic");
        waiting.retain(|other| other.id != claim.id);
        if does {
            waiting.push(Arc::clone(claim));
        }
    }

    /// Whether the claim holds the lock. Panics if the lock is free, as the stranger that asks
    /// would take it.
    async fn holds(&self, claim: &Claim) -> bool {
        let stranger = self.claim_of(0, KEY, LEASE);
        match self.acquire(&stranger).await {
            AcquireReply::Busy(holder, _) => holder.has_token(&claim.token),
            other => panic!("the lock is held or offered: {other:?}"),
        }
    }

    /// Asserts that the waiters are served in this order: each accepts the lock and releases it.
    async fn are_served(&self, waiters: impl IntoIterator<Item = &Waiter>, why: &str) {
        for (at, waiter) in waiters.into_iter().enumerate() {
            assert!(self.holds(&waiter.claim).await, "{why}: number {at}");
            self.take_up(waiter).await;
            assert!(
                self.release(&waiter.claim).await,
                "a waiter that accepted its offer holds the lock"
            );
        }
    }

    /// Waits for `time` while these instances watch the queue, as often as instances do.
    async fn pass(&self, time: Duration, watching: &[usize]) {
        let until = Instant::now() + time;
        loop {
            for &of in watching {
                self.watch(of).await;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sleep(left.min(Duration::from_millis(500))).await;
        }
    }

    /// Turns that join the queue of a holder whose lease then expires unnoticed.
    async fn orphans(&self, joining: &[usize]) -> Vec<Waiter> {
        // Long enough for all of them to join on a slow machine.
        let lease = Duration::from_millis(500);
        self.holder_for(0, lease).await;
        let mut waiters = Vec::new();
        for &of in joining {
            waiters.push(self.join(of).await);
        }
        sleep(lease + Duration::from_millis(10)).await;
        waiters
    }

    /// A waiter for an expired lock whose instance stops watching.
    async fn join_orphan(&self, of: usize) -> Waiter {
        let waiters = self.orphans(&[of]).await;
        sleep(WAITER_TIMEOUT).await;
        let waiter = waiters.into_iter().next();
        waiter.expect("a waiter that joined")
    }

    /// The messages that the nth instance received since the last call.
    pub(crate) async fn received(&self, of: usize) -> Vec<Message> {
        // Messages over one connection keep their order: when the last one has arrived, all have. In a cluster
        // there are several, and each has the time of another round trip.
        let mut received = self.received_until_mark(of).await;
        received.extend(self.received_until_mark(of).await);
        received
    }

    /// The messages that the nth instance received before one that is sent now.
    async fn received_until_mark(&self, of: usize) -> Vec<Message> {
        static MARKS: AtomicU64 = AtomicU64::new(0);
        let instance = &self.instances[of];
        let last = ClaimId {
            epoch: Epoch(0),
            number: MARKS.fetch_add(1, Ordering::Relaxed),
        };
        let mark = Message::Interrupt(last);
        let sent = self
            .store(0)
            .send_message(instance.issuer.instance(), mark.clone())
            .await;
        sent.expect("the store answers");
        let mut received = None;
        let has_received = || {
            received = instance.handler.up_to(&mark);
            received.is_some()
        };
        wait_for(has_received, "a message to an instance arrives").await;
        received.unwrap_or_default()
    }

    /// Waits until the store is empty. In Redis, marks and liveness fields may stay for a while: a
    /// waiter that was superseded or skipped, and doesn't know it yet, finds them there.
    async fn wait_until_no_keys(&self) {
        let quiet = async || self.left().await.is_empty();
        wait_for_async(quiet, "the store is empty after all turns").await;
    }

    /// The remaining content of the store.
    pub(crate) async fn left(&self) -> Vec<String> {
        if let Backing::Memory(store) = &self.backing {
            let content = (!store.is_empty()).then(|| format!("{store:?}"));
            return content.into_iter().collect();
        }
        let mut left = Vec::new();
        for key in self.backing.keys().await {
            let redis = self.backing.server_of(&key).await;
            let fields = if key.ends_with(":waiters") {
                redis.command(&["HKEYS", &key]).await
            } else {
                Value::Nil
            };
            let fields: Vec<String> = ::redis::from_redis_value(fields).unwrap_or_default();
            let is_mark = fields.iter().any(|field| field == "!");
            let nobody = fields.iter().all(|field| field.starts_with(['!', '@']));
            let is_gone = redis.pttl(&key).await == -2;
            if is_gone {
                // The key expired in between.
            } else if !(is_mark && nobody) {
                left.push(key);
            } else {
                let ttl = redis.pttl(&key).await;
                assert!(
                    ttl <= QUEUE_TTL.as_millis() as i64,
                    "marks are kept for QUEUE_TTL at most: {ttl}"
                );
            }
        }
        left
    }
}

// === impl Backing ===

impl Backing {
    /// The keys of all servers.
    async fn keys(&self) -> Vec<String> {
        match self {
            Self::Memory(_) => Vec::new(),
            Self::Redis(redis) => redis.keys().await,
            Self::Sentinel(servers) => servers.keys().await,
            Self::Cluster(cluster) => cluster.keys().await,
        }
    }

    /// The server that has this key.
    async fn server_of(&self, key: &str) -> &Redis {
        match self {
            Self::Memory(_) => panic!("the memory store has no keys"),
            Self::Redis(redis) => redis,
            Self::Sentinel(servers) => servers.server(servers.master().await),
            Self::Cluster(cluster) => cluster.owner_of(key).await,
        }
    }

    async fn assert_keys_expire(&self) {
        for key in self.keys().await {
            let ttl = self.server_of(&key).await.pttl(&key).await;
            assert_ne!(ttl, -1, "every key has a TTL: {key}");
        }
    }
}

impl Instance {
    fn new(n: usize, store: Arc<dyn Store>) -> Self {
        let epoch = Epoch(n as u64 + 1);
        Self {
            store,
            issuer: ClaimIssuer::new(&name(n), epoch, true),
            handler: Arc::default(),
            waiting: Mutex::default(),
        }
    }
}

/// What a turn gets, whether a dead holder lost the lock or not.
pub(crate) fn apart_from_takeover(reply: AcquireReply) -> AcquireReply {
    match reply {
        AcquireReply::TookOver(reply) => *reply,
        reply => reply,
    }
}

/// A dead holder whose lock may be of any age.
pub(crate) fn at_once(holder: LockHolder) -> DeadHolder {
    DeadHolder {
        holder,
        min_age: Duration::ZERO,
    }
}

/// What an instance concludes from watching the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Watched {
    Held(LockHolder),
    Free,
    /// None of its waiters is in the queue, or not all of them.
    Unknown,
}

fn held_by(claim: &Claim) -> Watched {
    Watched::Held(LockHolder::from(&claim.token))
}

fn name(n: usize) -> String {
    format!("pod-{n}")
}
