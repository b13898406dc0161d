//! A turn on the way to its lock is interrupted, or dropped, between any two steps, while the store
//! is slow.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use seriatim::key::{Keyspace, SessionKey};
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{
    AcquireError, AcquireReply, AcquireRequest, CallChain, Claim, ClaimId, ClaimIssuer, Dispatcher,
    Epoch, Fallback, Fence, HeartbeatReply, Instance, InstanceLiveness, LockGuard, LockHolder,
    LockInfo, LockLoss, LockOptions, LockRequest, Locks, Message, OFFER_TTL, QueueOptions,
    QueueState, ScanCursor, ScanPage, Store, StoreFuture, StoreHealth, WatchedQueue, Withdrawal,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::support::{wait_for, wait_for_async, within};

/// A store that delays its commands, or the replies to them, until the test lets them go.
#[derive(Debug)]
struct Slow {
    inner: Arc<MemoryStore>,
    gate: watch::Sender<Gate>,
    /// How many acquisitions were requested, and how many of them are executed.
    requested: AtomicUsize,
    executed: Arc<AtomicUsize>,
    /// How many messages were sent.
    sent: AtomicUsize,
    /// How often the queues were watched, how many of these commands are executed, and whether they may be.
    watched: AtomicUsize,
    watches_executed: Arc<AtomicUsize>,
    may_watch: watch::Sender<Gate>,
    /// How many waiters the store misses in each queue: the newest.
    missing: Arc<AtomicUsize>,
    /// When another server answered for the store; unset: none has.
    changed: OnceLock<Instant>,
}

/// The part of an acquisition that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Gate {
    Nothing,
    /// The command is executed, and its reply is delayed.
    Command,
    CommandAndAnswer,
}

/// One instance, with its own slow store in front of the shared one.
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

    async fn is_requested(&self, count: usize) {
        let requested = || self.requested.load(Ordering::SeqCst) >= count;
        wait_for(requested, "the lock to be requested from the store").await;
    }

    async fn executes(&self, count: usize) {
        let executed = || self.executed.load(Ordering::SeqCst) >= count;
        wait_for(executed, "the store to execute the acquisition").await;
    }

    fn watches_pending(&self) -> usize {
        self.watched.load(Ordering::SeqCst) - self.watches_executed.load(Ordering::SeqCst)
    }

    /// Waits until the queues are watched by a command that may not be executed yet. The last one is handled then.
    async fn is_watching(&self) {
        wait_for(|| self.watches_pending() == 1, "the queues to be watched").await;
    }

    /// Lets that command be executed. Its reply is delayed.
    async fn watch(&self) {
        self.may_watch.send_replace(Gate::Command);
        let executed = || self.watches_pending() == 0;
        wait_for(executed, "the store to look at the queues").await;
        self.may_watch.send_replace(Gate::Nothing);
    }

    /// Lets its reply pass, too, and waits until that is handled.
    async fn watched(&self) {
        self.may_watch.send_replace(Gate::CommandAndAnswer);
        let executed = || self.watches_pending() == 0;
        wait_for(executed, "the store to look at the queues").await;
        sleep(Duration::from_millis(1)).await;
        self.may_watch.send_replace(Gate::Nothing);
        self.is_watching().await;
    }

    async fn sends(&self) {
        let sent = || self.sent.load(Ordering::SeqCst) > 0;
        wait_for(sent, "the interrupt message to be sent").await;
    }
}

impl Store for Slow {
    fn acquire(&self, claim: &Arc<Claim>, ask: &AcquireRequest) -> StoreFuture<AcquireReply> {
        self.requested.fetch_add(1, Ordering::SeqCst);
        let (inner, claim, ask) = (Arc::clone(&self.inner), Arc::clone(claim), ask.clone());
        let (mut gate, executed) = (self.gate.subscribe(), Arc::clone(&self.executed));
        StoreFuture::new(async move {
            let _ = gate.wait_for(|gate| *gate >= Gate::Command).await;
            let answer = inner.acquire(&claim, &ask).await;
            executed.fetch_add(1, Ordering::SeqCst);
            let _ = gate.wait_for(|gate| *gate >= Gate::CommandAndAnswer).await;
            answer
        })
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<Option<bool>>> {
        self.inner.extend(claims)
    }

    fn release(&self, claim: &Claim) -> StoreFuture<bool> {
        self.inner.release(claim)
    }

    fn withdraw(&self, claim: &Claim) -> StoreFuture<Withdrawal> {
        self.inner.withdraw(claim)
    }

    fn watch(
        &self,
        instance: &str,
        queues: &[WatchedQueue],
    ) -> StoreFuture<Vec<Option<QueueState>>> {
        self.watched.fetch_add(1, Ordering::SeqCst);
        let (inner, instance) = (Arc::clone(&self.inner), instance.to_owned());
        let (queues, mut may_watch) = (queues.to_vec(), self.may_watch.subscribe());
        let (missing, executed) = (
            Arc::clone(&self.missing),
            Arc::clone(&self.watches_executed),
        );
        StoreFuture::new(async move {
            let _ = may_watch.wait_for(|gate| *gate >= Gate::Command).await;
            let mut states = inner.watch(&instance, &queues).await?;
            executed.fetch_add(1, Ordering::SeqCst);
            for (queue, state) in queues.iter().zip(&mut states) {
                let missing = missing.load(Ordering::SeqCst);
                let last = queue.waiters.iter().rev().take(missing);
                state
                    .iter_mut()
                    .for_each(|state| state.missing.extend(last.clone()));
            }
            let _ = may_watch
                .wait_for(|gate| *gate >= Gate::CommandAndAnswer)
                .await;
            Ok(states)
        })
    }

    fn send_message(&self, instance: &str, message: Message) -> StoreFuture<bool> {
        let sent = self.inner.send_message(instance, message);
        self.sent.fetch_add(1, Ordering::SeqCst);
        sent
    }

    fn scan(
        &self,
        space: &Keyspace,
        from: Option<ScanCursor>,
        about: usize,
    ) -> StoreFuture<ScanPage> {
        self.inner.scan(space, from, about)
    }

    fn inspect(&self, keys: &[SessionKey], queues: bool) -> StoreFuture<Vec<LockInfo>> {
        self.inner.inspect(keys, queues)
    }

    fn force_release(&self, key: &SessionKey, holder: &LockHolder) -> StoreFuture<Option<Fence>> {
        self.inner.force_release(key, holder)
    }

    fn dequeue(&self, key: &SessionKey, waiter: ClaimId) -> StoreFuture<bool> {
        self.inner.dequeue(key, waiter)
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

    fn server_changed(&self, _: &SessionKey) -> Option<Instant> {
        self.changed.get().copied()
    }
}

// === impl Replica ===

impl Replica {
    fn new(store: &Arc<MemoryStore>, name: &str, epoch: u64) -> Self {
        let slow = Arc::new(Slow {
            inner: Arc::clone(store),
            gate: watch::Sender::new(Gate::CommandAndAnswer),
            requested: AtomicUsize::new(0),
            executed: Arc::default(),
            sent: AtomicUsize::new(0),
            watched: AtomicUsize::new(0),
            watches_executed: Arc::default(),
            may_watch: watch::Sender::new(Gate::CommandAndAnswer),
            missing: Arc::default(),
            changed: OnceLock::new(),
        });
        let issuer = Arc::new(ClaimIssuer::new(name, Epoch(epoch), false));
        let switchboard = Dispatcher::new(&issuer);
        store.listen(issuer.instance(), Arc::new(switchboard.clone()));
        let name = Arc::clone(issuer.instance());
        let metrics = seriatim::metrics::Metrics::new();
        let health = StoreHealth::new(true, &metrics);
        let slow_store = Arc::clone(&slow) as _;
        let instance = Instance::start(slow_store, issuer, switchboard, None, metrics, health);
        let locks = Locks::new(Arc::clone(&slow) as _, Arc::new(instance), Fallback::Reject);
        Self {
            slow,
            locks: Arc::new(locks),
            name,
        }
    }

    /// Starts a turn in its own task.
    fn turn(&self, interrupts: bool) -> Turn {
        self.turn_on(&options(interrupts))
    }

    fn turn_on(&self, options: &LockOptions) -> Turn {
        let (locks, options) = (Arc::clone(&self.locks), *options);
        tokio::spawn(async move {
            let nobody = CallChain::default();
            let request = LockRequest::new("route", "request", &nobody);
            locks.acquire(key(), request, &options).await
        })
    }

    /// Starts a turn that holds the lock.
    async fn holds(&self) -> LockGuard {
        got(self.turn(false), "a free lock is granted").await
    }

    /// Starts a turn that waits in the queue.
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

/// The holder of the lock; panics if the lock is free.
async fn holder(store: &MemoryStore) -> LockHolder {
    let stranger = ClaimIssuer::new("stranger", Epoch(9), false);
    let stranger = stranger.issue(key(), "route", "request", Duration::from_secs(1));
    match store
        .acquire(&Arc::new(stranger), &AcquireRequest::default())
        .await
    {
        Ok(AcquireReply::Busy(holder, _)) => holder,
        other => panic!("the lock is held: {other:?}"),
    }
}

async fn wait_until_no_keys(store: &MemoryStore, after: &str) {
    let quiet = || store.is_empty();
    wait_for(quiet, &format!("nothing is left in the store {after}")).await;
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_between_grant_and_start_is_not_lost() {
    let (store, a, b) = stores();
    a.slow.set(Gate::Command);
    let old = a.turn(false);
    a.slow.executes(1).await;
    let new = b.turn(true);
    b.slow.sends().await;
    assert!(
        !old.is_finished(),
        "the older turn doesn't know yet that it holds the lock"
    );
    a.slow.set(Gate::CommandAndAnswer);
    let mut old = got(old, "the store granted the older turn its lock").await;
    assert_eq!(
        old.must_stop(),
        Some(LockLoss::Interrupted),
        "the older turn must stop before it starts"
    );
    let deadline = old.deadline().expect("the turn holds a lock");
    assert!(
        deadline.get() <= Some(Instant::now() + Duration::from_millis(200)),
        "its client's connection stops, too, as soon as the error response may have gone out"
    );
    assert!(
        !new.is_finished(),
        "the newer turn waits until the older one ends"
    );
    let fence = old.fence();
    drop(old);
    let mut new = got(new, "the newer turn gets the lock").await;
    assert!(new.fence() > fence, "the newer turn has a larger fence");
    assert_eq!(new.must_stop(), None, "the newer turn may go on");
    new.release().await;
    wait_until_no_keys(&store, "after an interrupt").await;
}

#[tokio::test(start_paused = true)]
async fn an_unenforced_turn_does_not_retake_a_force_released_lock() {
    let (store, a, _b) = stores();
    let watched = LockOptions {
        enforce: false,
        ..options(false)
    };
    let mut turn = got(a.turn_on(&watched), "an unenforced turn is never refused").await;
    a.slow.executes(1).await;
    let forced = store.force_release(&key(), &holder(&store).await).await;
    assert!(
        forced.expect("the store answers").is_some(),
        "the lock is force released"
    );
    for _ in 0..20 {
        sleep(Duration::from_millis(50)).await;
        assert!(
            store.is_empty(),
            "the lock stays free while the turn goes on"
        );
    }
    assert_eq!(turn.must_stop(), None, "an unenforced turn is not stopped");
    drop(turn);
    wait_until_no_keys(&store, "after a lock was freed").await;
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
    b.slow.sends().await;
    let deadline = old.deadline().expect("the turn holds a lock").clone();
    // The deadline leaves time for data that the connection is about to send.
    sleep(Duration::from_millis(210)).await;
    for _ in 0..20 {
        assert!(
            deadline.passed(Instant::now()),
            "an interrupted turn stays past its deadline, although its lock is extended"
        );
        sleep(Duration::from_millis(37)).await;
    }
    assert_eq!(
        old.must_stop(),
        Some(LockLoss::Interrupted),
        "the turn must stop"
    );
    assert!(!new.is_finished(), "the newer turn waits for the release");
    drop(old);
    drop(got(new, "the newer turn gets the lock").await);
}

/// Replica `a`, where a turn holds the lock, so many others wait, and the queue is watched as the test says.
async fn watched_queue(a: &Replica, waiters: usize) -> (LockGuard, VecDeque<Turn>) {
    a.slow.may_watch.send_replace(Gate::Nothing);
    let held = a.holds().await;
    let mut waiting = VecDeque::new();
    for _ in 0..waiters {
        waiting.push_back(a.waits().await);
    }
    (held, waiting)
}

/// Serves the turn that waits longest while the queue is watched: before the store looks at the queue, or behind that.
/// Returns its lock, and how many acquisitions the others requested because of that.
async fn serve_while_watched(
    a: &Replica,
    held: LockGuard,
    waiting: &mut VecDeque<Turn>,
    is_behind: bool,
) -> (LockGuard, usize) {
    let requested = || a.slow.requested.load(Ordering::SeqCst);
    a.slow.is_watching().await;
    if is_behind {
        a.slow.watch().await;
    }
    held.release().await;
    let next = waiting.pop_front().expect("a turn waits");
    let held = got(next, "the first waiter gets the lock").await;
    let before = requested();
    a.slow.watched().await;
    (held, requested() - before)
}

#[tokio::test(start_paused = true)]
async fn turns_served_while_their_queue_is_watched_make_no_other_turn_ask_again() {
    let (_store, a, _b) = stores();
    let (mut held, mut waiting) = watched_queue(&a, 4).await;
    for _ in 0..3 {
        let asked;
        (held, asked) = serve_while_watched(&a, held, &mut waiting, false).await;
        assert_eq!(
            asked, 0,
            "those who wait have their places, and ask nothing"
        );
    }
    drop((held, waiting));
}

#[tokio::test(start_paused = true)]
async fn only_a_missing_waiter_asks_again_and_at_once() {
    let (_store, a, _b) = stores();
    let (held, waiting) = watched_queue(&a, 4).await;
    a.slow.missing.store(1, Ordering::SeqCst);
    a.slow.is_watching().await;
    let before = a.slow.requested.load(Ordering::SeqCst);
    a.slow.watched().await;
    let asked = a.slow.requested.load(Ordering::SeqCst) - before;
    assert_eq!(asked, 1, "the others have their places, and ask nothing");
    drop((held, waiting));
}

#[tokio::test(start_paused = true)]
async fn turns_that_are_served_hide_no_missing_waiter() {
    let (_store, a, _b) = stores();
    let (mut held, mut waiting) = watched_queue(&a, 4).await;
    a.slow.missing.store(1, Ordering::SeqCst);
    for is_behind in [false, true] {
        let asked;
        (held, asked) = serve_while_watched(&a, held, &mut waiting, is_behind).await;
        assert_eq!(asked, 1, "the missing waiter asks again, and no other one");
    }
    drop((held, waiting));
}

#[tokio::test(start_paused = true)]
async fn the_time_in_the_queue_begins_when_turns_may_begin() {
    let (store, a, _b) = stores();
    let changed = a.slow.changed.set(Instant::now());
    changed.expect("it is set once");
    let waits = LockOptions {
        blocking_timeout: Some(Duration::from_millis(500)),
        ..options(false)
    };
    let turns = [a.turn_on(&waits), a.turn_on(&waits)];
    wait_for(|| turns.iter().any(Turn::is_finished), "a turn to begin").await;
    sleep(Duration::from_millis(400)).await;
    let [first, second] = turns;
    let (runs, waits) = match first.is_finished() {
        true => (first, second),
        false => (second, first),
    };
    assert!(
        !waits.is_finished(),
        "the pause behind a change of the server is not a part of the time in the queue"
    );
    got(runs, "the first one runs").await.release().await;
    got(waits, "the other one is served").await.release().await;
    wait_until_no_keys(&store, "after both turns").await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_interrupted_before_it_accepts_its_offer_hands_it_on() {
    let (store, a, b) = stores();
    let held = a.holds().await;
    let waiter = a.waits().await;
    // No other task runs in between: the waiter is woken and interrupted before it runs.
    let released = held.release();
    within("the release", released).await;
    let offered = holder(&store).await;
    let offered = offered.turn().expect("a holder of Seriatim");
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
    let answer = store
        .acquire(&newest, &ask)
        .await
        .expect("the store answers");
    assert!(
        matches!(&answer, AcquireReply::Waiting(_, holder) if holder.turn() == Some(offered)),
        "the waiter with the offer is named as the holder: {answer:?}"
    );
    let sent = store
        .send_message(&a.name, Message::Interrupt(offered.id))
        .await;
    sent.expect("the store answers");
    assert!(!waiter.is_finished(), "the waiter hasn't run yet");
    is_superseded(waiter, "the waiter never starts").await;
    let handed_on = async || holder(&store).await.has_token(&newest.token);
    wait_for_async(handed_on, "the offer goes to the newer turn").await;
    assert_eq!(
        a.slow.executed.load(Ordering::SeqCst),
        2,
        "the waiter doesn't accept the offer first"
    );
    store.release(&newest).await.expect("the store answers");
    wait_until_no_keys(&store, "after an offer was handed on").await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_interrupted_while_it_accepts_its_offer_stops_at_once() {
    let (store, a, b) = stores();
    let held = a.holds().await;
    let waiter = a.waits().await;
    a.slow.set(Gate::Nothing);
    held.release().await;
    a.slow.is_requested(2).await;
    let new = b.turn(true);
    b.slow.sends().await;
    a.slow.set(Gate::CommandAndAnswer);
    let mut held = got(waiter, "the waiter accepts its offer").await;
    assert_eq!(
        held.must_stop(),
        Some(LockLoss::Interrupted),
        "the granted waiter must stop"
    );
    assert!(held.waited().is_some(), "the waiter reports its wait");
    drop(held);
    got(new, "the newer turn is next").await.release().await;
    wait_until_no_keys(&store, "after an interrupt").await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_superseded_before_it_knows_its_place_is_refused() {
    let (store, a, b) = stores();
    let held = a.holds().await;
    a.slow.set(Gate::Command);
    let waiter = a.turn(false);
    a.slow.executes(2).await;
    let new = b.turn(true);
    b.slow.sends().await;
    a.slow.set(Gate::CommandAndAnswer);
    is_superseded(
        waiter,
        "the message arrives before the waiter knows its place",
    )
    .await;
    drop(held);
    got(new, "the newer turn is next").await.release().await;
    wait_until_no_keys(&store, "after an interrupt").await;
}

/// Drops a turn at the step that `reach` brings it to, and asserts that nothing is left of it. A
/// holder that `reach` doesn't release is released afterwards.
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
        "{what}: the turn is dropped, and not refused"
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
        "dropped {what}: the next turn doesn't wait for remains of it"
    );
    next.release().await;
    wait_until_no_keys(&store, &format!("of a turn that was dropped {what}")).await;
    let finished = a.locks.flush(Duration::from_secs(1)).await;
    assert!(finished, "dropped {what}: no release is pending");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_dropped_at_any_step_leaves_nothing_in_the_store() {
    dropped("before it has requested", false, async |a, _| {
        Begun(a.turn(false))
    })
    .await;
    for is_busy in [false, true] {
        dropped("before its command is executed", is_busy, async |a, _| {
            a.slow.set(Gate::Nothing);
            let turn = a.turn(false);
            a.slow.is_requested(1).await;
            Begun(turn)
        })
        .await;
        let what = "before it knows that it has its lock, or a place in the queue";
        dropped(what, is_busy, async |a, _| {
            a.slow.set(Gate::Command);
            let turn = a.turn(false);
            a.slow.executes(1).await;
            Begun(turn)
        })
        .await;
    }
    dropped("in the queue", true, async |a, _| Begun(a.waits().await)).await;
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
        a.slow.is_requested(2).await;
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
async fn a_waiter_that_times_out_leaves_nothing_in_the_store() {
    let (store, a, b) = stores();
    let held = b.holds().await;
    let limit = Duration::from_secs(2);
    let mut impatient = options(false);
    impatient.blocking_timeout = Some(limit);
    let since = Instant::now();
    let answer = a.turn_on(&impatient);
    let answer = within("the waiter's result", answer).await;
    assert!(
        matches!(answer, Ok(Err(AcquireError::TimedOut(_, after, _))) if after == limit),
        "the waiter times out: {answer:?}"
    );
    assert!(
        since.elapsed() >= limit,
        "the waiter waits for its whole timeout"
    );
    let since = Instant::now();
    drop(held);
    got(b.turn(false), "the next turn is served")
        .await
        .release()
        .await;
    assert!(
        since.elapsed() < OFFER_TTL / 3,
        "the next turn doesn't wait for the timed-out waiter"
    );
    wait_until_no_keys(&store, "when a waiter's time was over").await;
}
