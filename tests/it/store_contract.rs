//! What every store keeps: one contract, run against both.
//!
//! Several instances share one store, each with ears of its own; one more has none. In memory time
//! stands still and passes by itself when everybody waits for it; in Redis it takes its time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::Value;
use seriatim::key::SessionKey;
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::redis::{RedisAddress, RedisStore};
use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, ClaimId, ClaimIssuer, DeadHolder, Epoch, Fence, QUEUE_TTL,
    LockHolder, Message, MessageHandler, QueueOptions, WAITER_TIMEOUT, Store, Ticket, WatchedQueue,
};
use tokio::time::{Instant, sleep};

use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async};

/// Runs each of the contract's sentences against a store in memory and one in Redis.
macro_rules! store_contract {
    ($($sentence:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $sentence() {
                super::$sentence(crate::store_contract::StoreSetup::in_memory()).await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $sentence() {
                let redis = std::sync::Arc::new(crate::support::redis::Redis::start().await);
                super::$sentence(crate::store_contract::StoreSetup::on_redis(&redis).await).await;
                let keys = redis.keys().await;
                for key in keys {
                    assert!(redis.pttl(&key).await > 0, "no key is ever without a TTL: {key}");
                }
            })*
        }
    };
}

mod instances;
mod interrupts;
mod lines;
mod locks;
mod operating;
mod refusals;
mod silence;

const LEASE: Duration = Duration::from_secs(30);

/// The number of the instance that hears nothing.
pub(crate) const DEAF: usize = 3;

/// A store, and the instances that share it.
pub(crate) struct StoreSetup {
    backing: Backing,
    instances: Vec<Instance>,
}

enum Backing {
    Memory(Arc<MemoryStore>),
    Redis(Arc<Redis>),
}

struct Instance {
    store: Arc<dyn Store>,
    issuer: ClaimIssuer,
    ears: Arc<Recorder>,
    /// Those of its turns that wait for [`KEY`].
    waiting: Mutex<Vec<Arc<Claim>>>,
}

/// Ears that remember.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Vec<Message>>);

/// A turn that stands in the line of [`KEY`].
pub(crate) struct Waiter {
    pub(crate) claim: Arc<Claim>,
    pub(crate) ticket: Ticket,
    /// The number of its instance.
    pub(crate) of: usize,
}

/// The lock that most sentences are about.
pub(crate) const KEY: &str = "k";

/// How a turn waits that is new, replaces nobody and is one of any number.
pub(crate) const PATIENT: QueueOptions = QueueOptions {
    ticket: None,
    max_waiters: 1000,
    interrupts: false,
};

/// How one waits that replaces everybody before it.
pub(crate) const INTERRUPTING: QueueOptions = QueueOptions {
    interrupts: true,
    ..PATIENT
};

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

    /// What was heard since this was asked last.
    pub(crate) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.lock())
    }

    /// The same, up to `mark`; `None` if that wasn't heard yet.
    fn up_to(&self, mark: Message) -> Option<Vec<Message>> {
        let mut heard = self.lock();
        let at = heard.iter().position(|message| *message == mark)?;
        let before = heard.drain(..=at).filter(|message| *message != mark);
        Some(before.collect())
    }
}

// === impl StoreSetup ===

impl StoreSetup {
    pub(crate) fn in_memory() -> Self {
        let store = Arc::new(MemoryStore::new());
        let instances = (0..=DEAF).map(|n| {
            let instance = Instance::new(n, Arc::clone(&store) as _);
            if n != DEAF {
                let ears = Arc::clone(&instance.ears) as _;
                store.listen(instance.issuer.instance(), ears);
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
        let address =
            RedisAddress::parse(&redis.url(), Duration::from_secs(1)).expect("its own URL");
        let instances = (0..=DEAF).map(|n| {
            let ears = Arc::<Recorder>::default();
            let store = if n == DEAF {
                RedisStore::connect(address.clone())
            } else {
                RedisStore::listen(address.clone(), &name(n), Arc::clone(&ears) as _)
            };
            Instance {
                ears,
                ..Instance::new(n, Arc::new(store))
            }
        });
        let bench = Self {
            instances: instances.collect(),
            backing: Backing::Redis(Arc::clone(redis)),
        };
        // Whose first command is answered hears, too.
        for instance in &bench.instances {
            let answered = instance.store.liveness("nobody").await;
            answered.expect("the store answers");
        }
        bench
    }

    /// The store as the nth instance has it.
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

    pub(crate) async fn ask(&self, claim: &Arc<Claim>, ask: &AcquireRequest) -> AcquireReply {
        let store = self.store_of(claim);
        store.acquire(claim, ask).await.expect("the store answers")
    }

    fn store_of(&self, claim: &Claim) -> &Arc<dyn Store> {
        let mut instances = self.instances.iter();
        let own = instances.find(|instance| *instance.issuer.instance() == claim.instance);
        &own.expect("a claim of one of them").store
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

    /// Whether somebody else has it.
    async fn is_busy(&self, claim: &Arc<Claim>) -> bool {
        matches!(self.acquire(claim).await, AcquireReply::Busy(_))
    }

    pub(crate) async fn release(&self, claim: &Claim) -> bool {
        let store = self.store_of(claim);
        store.release(claim).await.expect("the store answers")
    }

    async fn extend(&self, claims: &[Arc<Claim>]) -> Vec<bool> {
        let store = self.store(0);
        store.extend(claims).await.expect("the store answers")
    }

    // --- the line of KEY ---

    /// A turn of the nth instance that holds the lock.
    async fn holder(&self, of: usize) -> Arc<Claim> {
        self.holder_for(of, LEASE).await
    }

    async fn holder_for(&self, of: usize, lease: Duration) -> Arc<Claim> {
        let claim = self.claim_of(of, KEY, lease);
        self.granted(&claim).await;
        claim
    }

    /// A turn of the nth instance joins the line.
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
            other => panic!("the lock is busy, and there is room in the line: {other:?}"),
        }
    }

    /// Asks for a place in the line.
    async fn wait(&self, claim: &Arc<Claim>, place: QueueOptions) -> AcquireReply {
        let ask = AcquireRequest {
            take_over: None,
            queue: Some(place),
        };
        self.ask(claim, &ask).await
    }

    /// A waiter asks again, with its ticket.
    async fn ask_again(&self, waiter: &Waiter) -> AcquireReply {
        let place = QueueOptions {
            ticket: Some(waiter.ticket),
            ..PATIENT
        };
        let answer = self.wait(&waiter.claim, place).await;
        self.waits(&waiter.claim, matches!(answer, AcquireReply::Waiting(..)));
        answer
    }

    /// A waiter to whom the lock was offered takes it up.
    async fn take_up(&self, waiter: &Waiter) -> Fence {
        match self.ask_again(waiter).await {
            AcquireReply::Granted(fence) => fence,
            other => panic!("the lock was offered to this one: {other:?}"),
        }
    }

    async fn withdraw(&self, claim: &Arc<Claim>) {
        self.waits(claim, false);
        let store = self.store_of(claim);
        store.withdraw(claim).await.expect("the store answers");
    }

    /// The nth instance looks at the line.
    async fn watch(&self, of: usize) -> Watched {
        self.watch_for(of, None).await
    }

    async fn watch_for(&self, of: usize, dead: Option<&Claim>) -> Watched {
        let instance = &self.instances[of];
        let waiting = instance.waiting.lock().expect("no panic").clone();
        let lines = [WatchedQueue {
            key: SessionKey::literal(KEY),
            take_over: dead.map(|dead| at_once(LockHolder::from(&dead.token))),
            waiters: waiting.iter().map(|claim| claim.id).collect(),
        }];
        let found = instance
            .store
            .watch(instance.issuer.instance(), &lines)
            .await;
        let [found] = &found.expect("the store answers")[..] else {
            panic!("one answer for one line");
        };
        let is_own = |holder: &LockHolder| waiting.iter().any(|claim| holder.has_token(&claim.token));
        let own = usize::from(found.holder.as_ref().is_some_and(is_own));
        match &found.holder {
            _ if waiting.is_empty() || found.present + own < waiting.len() => Watched::Unknown,
            Some(holder) => Watched::Held(holder.clone()),
            None => Watched::Free,
        }
    }

    /// The nth instance has one more, or one less, who waits.
    fn waits(&self, claim: &Arc<Claim>, does: bool) {
        let mut instances = self.instances.iter();
        let own = instances.find(|instance| *instance.issuer.instance() == claim.instance);
        let own = own.expect("a claim of one of them");
        let mut waiting = own.waiting.lock().expect("no panic");
        waiting.retain(|other| other.id != claim.id);
        if does {
            waiting.push(Arc::clone(claim));
        }
    }

    /// Who holds the lock, as it is told to one who doesn't wait; `None` is never seen, for that one
    /// would get it.
    async fn holds(&self, claim: &Claim) -> bool {
        let stranger = self.claim_of(0, KEY, LEASE);
        match self.acquire(&stranger).await {
            AcquireReply::Busy(holder) => holder.has_token(&claim.token),
            other => panic!("somebody holds the lock, or waits for it: {other:?}"),
        }
    }

    /// Takes up the lock for each of them in this order, and gives it on.
    async fn are_served(&self, waiters: impl IntoIterator<Item = &Waiter>, why: &str) {
        for (at, waiter) in waiters.into_iter().enumerate() {
            assert!(self.holds(&waiter.claim).await, "{why}: number {at}");
            self.take_up(waiter).await;
            assert!(
                self.release(&waiter.claim).await,
                "whoever took up an offer holds the lock"
            );
        }
    }

    /// Passes `time` while these instances look at the line, as often as instances do.
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

    /// Turns that join the line of a holder whose lease then runs out, unseen by anybody.
    async fn orphans(&self, joining: &[usize]) -> Vec<Waiter> {
        // Long enough for a slow machine to get them all into the line.
        let lease = Duration::from_millis(500);
        self.holder_for(0, lease).await;
        let mut waiters = Vec::new();
        for &of in joining {
            waiters.push(self.join(of).await);
        }
        sleep(lease + Duration::from_millis(10)).await;
        waiters
    }

    /// A turn whose instance falls silent in the line of a lock that runs out.
    async fn join_orphan(&self, of: usize) -> Waiter {
        let waiters = self.orphans(&[of]).await;
        sleep(WAITER_TIMEOUT).await;
        let waiter = waiters.into_iter().next();
        waiter.expect("one who joined")
    }

    /// What the nth instance has heard since this was asked last.
    pub(crate) async fn heard(&self, of: usize) -> Vec<Message> {
        // What is told after all else is heard after all else.
        let instance = &self.instances[of];
        let last = ClaimId {
            epoch: Epoch(0),
            number: 0,
        };
        let mark = Message::Interrupt(last);
        let told = self.store(0).send_message(instance.issuer.instance(), mark).await;
        told.expect("the store answers");
        let mut heard = None;
        let has_heard = || {
            heard = instance.ears.up_to(mark);
            heard.is_some()
        };
        wait_for(has_heard, "what an instance is told is heard").await;
        heard.unwrap_or_default()
    }

    /// Waits until nothing is left in the store but, in Redis, marks and who was there: a waiter that
    /// was replaced or passed over, and doesn't know it yet, finds them there for a while.
    async fn is_quiet(&self) {
        let quiet = async || self.left().await.is_empty();
        wait_for_async(quiet, "nothing is left when all is quiet").await;
    }

    /// What is in the store, in words.
    pub(crate) async fn left(&self) -> Vec<String> {
        let redis = match &self.backing {
            Backing::Memory(store) if store.is_empty() => return Vec::new(),
            Backing::Memory(store) => return vec![format!("{store:?}")],
            Backing::Redis(redis) => redis,
        };
        let mut left = Vec::new();
        for key in redis.keys().await {
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
                // Its time was over in between.
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

impl Instance {
    fn new(n: usize, store: Arc<dyn Store>) -> Self {
        let epoch = Epoch(n as u64 + 1);
        Self {
            store,
            issuer: ClaimIssuer::new(&name(n), epoch, true),
            ears: Arc::default(),
            waiting: Mutex::default(),
        }
    }
}

/// A holder who is dead, however young his lock.
pub(crate) fn at_once(holder: LockHolder) -> DeadHolder {
    DeadHolder {
        holder,
        min_age: Duration::ZERO,
    }
}

/// What an instance makes of a look at the line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Watched {
    Held(LockHolder),
    Free,
    /// Nobody of it waits there, or not all who should.
    Unknown,
}

fn held_by(claim: &Claim) -> Watched {
    Watched::Held(LockHolder::from(&claim.token))
}

fn name(n: usize) -> String {
    format!("pod-{n}")
}
