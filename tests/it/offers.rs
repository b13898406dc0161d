//! What may happen to a turn on the way to its lock: it is interrupted, or dropped, between any two
//! steps, as the store takes its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use seriatim::key::{Keyspace, SessionKey};
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{
    AcquireError, AcquireReply, AcquireRequest, Claim, ClaimIssuer, Dispatcher, Epoch, Fallback,
    Fence, HeartbeatReply, Instance, InstanceLiveness, LockGuard, LockHolder, LockInfo, LockLoss,
    LockOptions, Locks, Message, OFFER_TTL, QueueOptions, QueueState, ScanPage, Store, StoreFuture,
    WatchedQueue, Withdrawal,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::support::{wait_for, wait_for_async, within};

/// A store that keeps its commands, or its answers to them, until it is told to let them go.
struct Slow {
    inner: Arc<MemoryStore>,
    gate: watch::Sender<Gate>,
    /// How many acquisitions it was asked for, and how many of them it has executed.
    asked: AtomicUsize,
    executed: Arc<AtomicUsize>,
    /// How many messages it has passed on.
    told: AtomicUsize,
}

/// What is let through of an acquisition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Gate {
    Nothing,
    /// It is executed, and nobody knows of it yet.
    Command,
    CommandAndAnswer,
}

/// One instance, on a slow store of its own before the one that all share.
struct Replica {
    slow: Arc<Slow>,
    locks: Arc<Locks>,
    name: Arc<str>,
}

type Turn = JoinHandle<Result<LockGuard, AcquireError>>;

/// A turn that has come so far.
struct Begun(Turn);

// === impl Slow ===

impl Slow {
    fn set(&self, gate: Gate) {
        self.gate.send_replace(gate);
    }

    async fn is_asked(&self, count: usize) {
        let asked = || self.asked.load(Ordering::SeqCst) >= count;
        wait_for(asked, "the store to be asked for the lock").await;
    }

    async fn executes(&self, count: usize) {
        let executed = || self.executed.load(Ordering::SeqCst) >= count;
        wait_for(executed, "the store to execute the acquisition").await;
    }

    async fn tells(&self) {
        let told = || self.told.load(Ordering::SeqCst) > 0;
        wait_for(told, "the holder to be told to make way").await;
    }
}

impl Store for Slow {
    fn acquire(&self, claim: &Arc<Claim>, ask: &AcquireRequest) -> StoreFuture<AcquireReply> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (inner, claim, ask) = (Arc::clone(&self.inner), Arc::clone(claim), ask.clone());
        let (mut gate, executed) = (self.gate.subscribe(), Arc::clone(&self.executed));
        Box::pin(async move {
            let _ = gate.wait_for(|gate| *gate >= Gate::Command).await;
            let answer = inner.acquire(&claim, &ask).await;
            executed.fetch_add(1, Ordering::SeqCst);
            let _ = gate.wait_for(|gate| *gate >= Gate::CommandAndAnswer).await;
            answer
        })
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<bool>> {
        self.inner.extend(claims)
    }

    fn release(&self, claim: &Claim) -> StoreFuture<bool> {
        self.inner.release(claim)
    }

    fn withdraw(&self, claim: &Claim) -> StoreFuture<Withdrawal> {
        self.inner.withdraw(claim)
    }

    fn watch(&self, instance: &str, lines: &[WatchedQueue]) -> StoreFuture<Vec<QueueState>> {
        self.inner.watch(instance, lines)
    }

    fn send_message(&self, instance: &str, message: Message) -> StoreFuture<()> {
        let told = self.inner.send_message(instance, message);
        self.told.fetch_add(1, Ordering::SeqCst);
        told
    }

    fn scan(&self, space: &Keyspace, from: Option<u64>, about: usize) -> StoreFuture<ScanPage> {
        self.inner.scan(space, from, about)
    }

    fn inspect(&self, keys: &[SessionKey], lines: bool) -> StoreFuture<Vec<LockInfo>> {
        self.inner.inspect(keys, lines)
    }

    fn force_release(&self, key: &SessionKey, holder: &LockHolder) -> StoreFuture<Option<Fence>> {
        self.inner.force_release(key, holder)
    }

    fn heartbeat(
        &self,
        instance: &str,
        epoch: Epoch,
        long: Duration,
        taken: bool,
    ) -> StoreFuture<HeartbeatReply> {
        self.inner.heartbeat(instance, epoch, long, taken)
    }

    fn unregister(&self, instance: &str, epoch: Epoch) -> StoreFuture<()> {
        self.inner.unregister(instance, epoch)
    }

    fn liveness(&self, instance: &str) -> StoreFuture<Option<InstanceLiveness>> {
        self.inner.liveness(instance)
    }
}

// === impl Replica ===

impl Replica {
    fn new(store: &Arc<MemoryStore>, name: &str, epoch: u64) -> Self {
        let slow = Arc::new(Slow {
            inner: Arc::clone(store),
            gate: watch::Sender::new(Gate::CommandAndAnswer),
            asked: AtomicUsize::new(0),
            executed: Arc::default(),
            told: AtomicUsize::new(0),
        });
        let issuer = Arc::new(ClaimIssuer::new(name, Epoch(epoch), false));
        let switchboard = Dispatcher::new(&issuer);
        store.listen(issuer.instance(), Arc::new(switchboard.clone()));
        let name = Arc::clone(issuer.instance());
        let metrics = seriatim::metrics::Metrics::new();
        let instance =
            Instance::start(Arc::clone(&slow) as _, issuer, switchboard, None, metrics);
        let locks = Locks::new(Arc::clone(&slow) as _, Arc::new(instance), Fallback::Reject);
        Self {
            slow,
            locks: Arc::new(locks),
            name,
        }
    }

    /// A turn in a task of its own.
    fn turn(&self, interrupts: bool) -> Turn {
        self.turn_on(&options(interrupts))
    }

    fn turn_on(&self, options: &LockOptions) -> Turn {
        let (locks, options) = (Arc::clone(&self.locks), *options);
        tokio::spawn(async move { locks.acquire(key(), "route", "request", &options).await })
    }

    /// A turn that holds the lock.
    async fn holds(&self) -> LockGuard {
        got(self.turn(false), "a free lock is granted").await
    }

    /// A turn that stands in the line.
    async fn waits(&self) -> Turn {
        let executed = self.slow.executed.load(Ordering::SeqCst);
        let turn = self.turn(false);
        self.slow.executes(executed + 1).await;
        turn
    }
}

fn stores() -> (Arc<MemoryStore>, Replica, Replica) {
    let store = Arc::new(MemoryStore::new());
    let replicas = [("a", 1), ("b", 2)].map(|(name, epoch)| Replica::new(&store, name, epoch));
    let [a, b] = replicas;
    (store, a, b)
}

fn key() -> SessionKey {
    SessionKey::literal("k")
}

fn options(interrupt: bool) -> LockOptions {
    LockOptions {
        lock_timeout: Duration::from_secs(30),
        blocking: true,
        max_waiters: 100,
        interrupt,
        ..LockOptions::default()
    }
}

async fn got(turn: Turn, why: &str) -> LockGuard {
    match within(why, turn).await.expect("no panic") {
        Ok(held) => held,
        Err(refused) => panic!("{why}: {refused}"),
    }
}

async fn is_superseded(turn: Turn, why: &str) {
    let answer = within(why, turn).await.expect("no panic");
    assert!(
        matches!(answer, Err(AcquireError::Superseded(_))),
        "{why}: {answer:?}"
    );
}

/// Who holds the lock; in passing, it is given to nobody, for somebody does.
async fn holder(store: &MemoryStore) -> LockHolder {
    let stranger = ClaimIssuer::new("stranger", Epoch(9), false);
    let stranger = stranger.issue(key(), "route", "request", Duration::from_secs(1));
    match store
        .acquire(&Arc::new(stranger), &AcquireRequest::default())
        .await
    {
        Ok(AcquireReply::Busy(holder)) => holder,
        other => panic!("somebody holds the lock: {other:?}"),
    }
}

async fn is_quiet(store: &MemoryStore, after: &str) {
    let quiet = || store.is_empty();
    wait_for(quiet, &format!("nothing is left in the store {after}")).await;
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_between_a_grant_and_its_start_is_not_lost() {
    let (store, a, b) = stores();
    a.slow.set(Gate::Command);
    let old = a.turn(false);
    a.slow.executes(1).await;
    let new = b.turn(true);
    b.slow.tells().await;
    assert!(
        !old.is_finished(),
        "the older turn doesn't know yet that it has the lock"
    );
    a.slow.set(Gate::CommandAndAnswer);
    let mut old = got(old, "the store has granted it").await;
    assert_eq!(
        old.must_stop(),
        Some(LockLoss::Interrupted),
        "it has to make way before it has begun"
    );
    let deadline = old.deadline().expect("it has a lock");
    assert!(
        deadline.passed(Instant::now()),
        "and whoever watches its deadline alone, as its client's connection does, sees it, too"
    );
    assert!(!new.is_finished(), "the newer turn waits until it has");
    let fence = old.fence();
    drop(old);
    let mut new = got(new, "the newer turn gets the lock").await;
    assert!(new.fence() > fence, "after the older one");
    assert_eq!(new.must_stop(), None, "and may go on");
    new.release().await;
    is_quiet(&store, "after an interrupt").await;
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_frees_a_turn_that_is_only_watched_does_not_take_again() {
    let (store, a, _b) = stores();
    let watched = LockOptions {
        enforce: false,
        ..options(false)
    };
    let mut turn = got(a.turn_on(&watched), "nothing is refused").await;
    a.slow.executes(1).await;
    let forced = store.force_release(&key(), &holder(&store).await).await;
    assert!(forced.expect("it answers").is_some(), "it is freed");
    for _ in 0..20 {
        sleep(Duration::from_millis(50)).await;
        assert!(store.is_empty(), "it stays free, though the turn runs on");
    }
    assert_eq!(turn.must_stop(), None, "nothing is stopped that is watched");
    drop(turn);
    is_quiet(&store, "after a lock was freed").await;
}

#[tokio::test(start_paused = true)]
async fn an_extension_does_not_undo_an_interrupt() {
    let (_store, a, b) = stores();
    let extended = LockOptions {
        extend_lock_interval: Some(Duration::from_millis(100)),
        ..options(false)
    };
    let mut old = got(a.turn_on(&extended), "a free lock is granted").await;
    let new = b.turn(true);
    b.slow.tells().await;
    let deadline = old.deadline().expect("it has a lock").clone();
    // What its connection is about to send may still be sent.
    sleep(Duration::from_millis(60)).await;
    for _ in 0..20 {
        assert!(
            deadline.passed(Instant::now()),
            "a turn that has to make way is past its deadline, as long as its lock is extended"
        );
        sleep(Duration::from_millis(37)).await;
    }
    assert_eq!(old.must_stop(), Some(LockLoss::Interrupted), "and says so");
    assert!(!new.is_finished(), "its lock is its own until it lets go");
    drop(old);
    drop(got(new, "then the newer turn gets it").await);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_interrupted_before_it_takes_its_offer_up_is_refused_and_hands_it_on() {
    let (store, a, b) = stores();
    let held = a.holds().await;
    let waiter = a.waits().await;
    // Nobody else runs between these: the waiter is called, and interrupted, before it looks.
    let released = held.release();
    within("the release", released).await;
    let offered = holder(&store).await.turn().expect("one of Seriatim's");
    let issuer = ClaimIssuer::new(&b.name, Epoch(2), false);
    let newest = Arc::new(issuer.issue(key(), "route", "request", Duration::from_secs(30)));
    let place = QueueOptions {
        ticket: None,
        max_waiters: 1,
        interrupts: true,
    };
    let ask = AcquireRequest {
        take_over: None,
        queue: Some(place),
    };
    let answer = store.acquire(&newest, &ask).await.expect("it answers");
    assert!(
        matches!(&answer, AcquireReply::Waiting(_, holder) if holder.turn().as_ref() == Some(&offered)),
        "who has the offer is to make way: {answer:?}"
    );
    let told = store.send_message(&a.name, Message::Interrupt(offered.id)).await;
    told.expect("it answers");
    assert!(!waiter.is_finished(), "it hasn't looked yet");
    is_superseded(waiter, "it never starts").await;
    let handed_on = async || holder(&store).await.has_token(&newest.token);
    wait_for_async(handed_on, "its offer goes on").await;
    assert_eq!(
        a.slow.executed.load(Ordering::SeqCst),
        2,
        "without being taken up first"
    );
    store.release(&newest).await.expect("it answers");
    is_quiet(&store, "after an offer was handed on").await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_interrupted_while_it_takes_its_offer_up_stops_at_once() {
    let (store, a, b) = stores();
    let held = a.holds().await;
    let waiter = a.waits().await;
    a.slow.set(Gate::Nothing);
    held.release().await;
    a.slow.is_asked(2).await;
    let new = b.turn(true);
    b.slow.tells().await;
    a.slow.set(Gate::CommandAndAnswer);
    let mut held = got(waiter, "the offer is its own").await;
    assert_eq!(
        held.must_stop(),
        Some(LockLoss::Interrupted),
        "what it was granted it has to give away"
    );
    assert!(held.waited().is_some(), "though it has waited for it");
    drop(held);
    got(new, "the newer turn is next").await.release().await;
    is_quiet(&store, "after an interrupt").await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_place_is_taken_before_it_knows_of_it_is_refused() {
    let (store, a, b) = stores();
    let held = a.holds().await;
    a.slow.set(Gate::Command);
    let waiter = a.turn(false);
    a.slow.executes(2).await;
    let new = b.turn(true);
    b.slow.tells().await;
    a.slow.set(Gate::CommandAndAnswer);
    is_superseded(waiter, "it was told before it was told its place").await;
    drop(held);
    got(new, "the newer turn is next").await.release().await;
    is_quiet(&store, "after an interrupt").await;
}

/// Drops a turn where `reach` brings it, and looks what is left of it. Where `reach` is given a holder
/// and doesn't release it, that one lets go afterwards.
async fn dropped(
    what: &str,
    is_busy: bool,
    reach: impl AsyncFnOnce(&Replica, &mut Option<LockGuard>) -> Begun,
) {
    let (store, a, b) = stores();
    let mut holder = match is_busy {
        true => Some(b.holds().await),
        false => None,
    };
    let Begun(turn) = reach(&a, &mut holder).await;
    turn.abort();
    let ended = within("the turn to be dropped", turn).await;
    assert!(
        !matches!(ended, Ok(Err(_))),
        "{what}: it is dropped, and not refused"
    );
    drop(ended);
    let since = Instant::now();
    a.slow.set(Gate::CommandAndAnswer);
    drop(holder);
    let next = got(
        b.turn(false),
        &format!("dropped {what}: the next turn is served"),
    )
    .await;
    assert!(
        since.elapsed() < OFFER_TTL / 3,
        "dropped {what}: nobody waits for what is left of it"
    );
    next.release().await;
    is_quiet(&store, &format!("of a turn that was dropped {what}")).await;
    let finished = a.locks.flush(Duration::from_secs(1)).await;
    assert!(finished, "dropped {what}: nothing is left to do");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_dropped_at_any_step_leaves_nothing_in_the_store() {
    dropped("before it has asked", false, async |a, _| {
        Begun(a.turn(false))
    })
    .await;
    for is_busy in [false, true] {
        dropped("before its command is executed", is_busy, async |a, _| {
            a.slow.set(Gate::Nothing);
            let turn = a.turn(false);
            a.slow.is_asked(1).await;
            Begun(turn)
        })
        .await;
        let what = "before it knows that it has its lock, or a place in the line";
        dropped(what, is_busy, async |a, _| {
            a.slow.set(Gate::Command);
            let turn = a.turn(false);
            a.slow.executes(1).await;
            Begun(turn)
        })
        .await;
    }
    dropped("in the line", true, async |a, _| Begun(a.waits().await)).await;
    dropped(
        "with an offer that it hasn't seen",
        true,
        async |a, holder| {
            let turn = a.waits().await;
            // The waiter doesn't run before it is dropped.
            let holder = holder.take().expect("there is one");
            holder.release().await;
            Begun(turn)
        },
    )
    .await;
    dropped("before its offer is taken up", true, async |a, holder| {
        let turn = a.waits().await;
        a.slow.set(Gate::Nothing);
        drop(holder.take());
        a.slow.is_asked(2).await;
        Begun(turn)
    })
    .await;
    let what = "before it knows that its offer is taken up";
    dropped(what, true, async |a, holder| {
        let turn = a.waits().await;
        a.slow.set(Gate::Command);
        drop(holder.take());
        a.slow.executes(2).await;
        Begun(turn)
    })
    .await;
    dropped("with its lock", false, async |a, _| {
        let turn = a.turn(false);
        wait_for(|| turn.is_finished(), "the turn to have its lock").await;
        Begun(turn)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_time_is_over_leaves_nothing_in_the_store() {
    let (store, a, b) = stores();
    let held = b.holds().await;
    let limit = Duration::from_secs(2);
    let mut impatient = options(false);
    impatient.blocking_timeout = Some(limit);
    let since = Instant::now();
    let answer = a.turn_on(&impatient);
    let answer = within("the waiter's answer", answer).await;
    assert!(
        matches!(answer, Ok(Err(AcquireError::TimedOut(_, after))) if after == limit),
        "it waits as long as it may: {answer:?}"
    );
    assert!(since.elapsed() >= limit, "and no less");
    let since = Instant::now();
    drop(held);
    got(b.turn(false), "the next turn is served")
        .await
        .release()
        .await;
    assert!(
        since.elapsed() < OFFER_TTL / 3,
        "nobody waits for one who has gone"
    );
    is_quiet(&store, "when a waiter's time was over").await;
}
