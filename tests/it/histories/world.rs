//! Sessions in memory where time passes at will, turns that behave as those of instances do, and what
//! must be true of them at every step.

use crate::store_contract::at_once;
use std::sync::Arc;
use std::time::Duration;

use seriatim::key::SessionKey;
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, ClaimId, ClaimIssuer, Epoch, Fence, HeartbeatReply,
    LockHolder, Message, OFFER_TTL, QueueState, WAITER_TIMEOUT, Store, Ticket, WatchedQueue,
};
use tokio::time::{Instant, advance};

use super::{How, INSTANCES, SESSIONS, Step, place};
use crate::store_contract::Recorder;

const LEASE: Duration = Duration::from_secs(5);
const RECOVERY: Duration = Duration::from_secs(4);

/// Sessions in memory, and turns that behave as those of instances do.
pub(super) struct World {
    store: Arc<MemoryStore>,
    instances: Vec<Instance>,
    turns: Vec<Turn>,
    fences: [Fence; SESSIONS],
    tickets: [Ticket; SESSIONS],
}

struct Instance {
    issuer: ClaimIssuer,
    ears: Arc<Recorder>,
    /// Heard, and not acted upon.
    inbox: Vec<Message>,
    /// Until then it may be taken for alive, and its turns go on.
    alive_until: Instant,
    is_dead: bool,
    /// When the store heard of it last, for each line.
    seen: [Option<Instant>; SESSIONS],
}

struct Turn {
    claim: Arc<Claim>,
    of: usize,
    to: usize,
    how: How,
    /// Of the place that it has or had.
    ticket: Option<Ticket>,
    state: State,
    /// A newer turn has taken its place, or is to have its lock.
    replaced: bool,
    dead: Option<LockHolder>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the line; `keeps` as long as the store has no reason to serve anybody behind it first.
    Waits {
        ticket: Ticket,
        keeps: bool,
    },
    /// Until then, or its instance's end.
    Holds(Instant),
    /// It has stopped, and not let go yet.
    Stopped,
    Over,
}

impl World {
    pub(super) fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let instances = (0..INSTANCES).map(|n| {
            let issuer = ClaimIssuer::new(&format!("pod-{n}"), Epoch(n as u64 + 1), true);
            let ears = Arc::<Recorder>::default();
            store.listen(issuer.instance(), Arc::clone(&ears) as _);
            Instance {
                issuer,
                ears,
                inbox: Vec::new(),
                alive_until: Instant::now(),
                is_dead: false,
                seen: [None; SESSIONS],
            }
        });
        Self {
            instances: instances.collect(),
            store,
            turns: Vec::new(),
            fences: [Fence(0); SESSIONS],
            tickets: [Ticket(0); SESSIONS],
        }
    }

    /// The nth of the turns that are not over, of instances that live, and are `fit`.
    fn pick(&self, n: usize, fit: impl Fn(&Turn) -> bool) -> Option<usize> {
        let there = |turn: &Turn| turn.state != State::Over && !self.instances[turn.of].is_dead;
        let turns = self.turns.iter().enumerate();
        let all: Vec<_> = turns
            .filter(|(_, turn)| there(turn) && fit(turn))
            .map(|(at, _)| at)
            .collect();
        (!all.is_empty()).then(|| all[n % all.len()])
    }

    fn of(&self, id: ClaimId) -> Option<usize> {
        self.turns.iter().position(|turn| turn.claim.id == id)
    }

    pub(super) async fn step(&mut self, step: Step) {
        match step {
            Step::Comes { of, .. } | Step::Looks(of) | Step::Hears(of) | Step::Misses(of)
                if self.instances[of].is_dead => {}
            Step::Comes { of, to, how } => self.comes(of, to, how).await,
            Step::AsksAgain(n) => {
                let waits = |turn: &Turn| matches!(turn.state, State::Waits { .. });
                if let Some(at) = self.pick(n, waits) {
                    self.asks(at).await;
                }
            }
            Step::Ends(n) => {
                if let Some(at) = self.pick(n, |_| true) {
                    self.ends(at).await;
                }
            }
            Step::Extends(n) => {
                let holds = |turn: &Turn| matches!(turn.state, State::Holds(_));
                if let Some(at) = self.pick(n, holds) {
                    let claim = Arc::clone(&self.turns[at].claim);
                    let extended = self.store.extend(&[claim]).await.expect("memory answers");
                    assert_eq!(extended, [true], "a lock is held for its whole lease");
                    self.turns[at].state = State::Holds(Instant::now() + LEASE);
                }
            }
            Step::Forces(n) => {
                if let Some(at) = self.pick(n, |_| true) {
                    self.forced(at).await;
                }
            }
            Step::Looks(of) => self.looks(of, &mut [None, None]).await,
            Step::Hears(of) => self.acts(of).await,
            Step::Misses(of) => self.instances[of].inbox.clear(),
            Step::TakesOver(..) => {}
            Step::Passes(millis) => self.passes(Duration::from_millis(millis)).await,
            Step::Dies(of) => self.instances[of].is_dead = true,
        }
        self.told();
    }

    async fn comes(&mut self, of: usize, to: usize, how: How) {
        let key = SessionKey::literal(&format!("k{to}"));
        let claim = self.instances[of]
            .issuer
            .issue(key, "route", "request", LEASE);
        self.turns.push(Turn {
            claim: Arc::new(claim),
            of,
            to,
            how,
            ticket: None,
            state: State::Stopped,
            replaced: false,
            dead: None,
        });
        self.asks(self.turns.len() - 1).await;
    }

    /// A turn asks for its lock, as often as it finds a dead holder.
    async fn asks(&mut self, at: usize) {
        loop {
            if self.turns[at].replaced {
                return self.ends(at).await;
            }
            self.beats(self.turns[at].of).await;
            let turn = &self.turns[at];
            let ticket = match turn.state {
                State::Waits { ticket, .. } => Some(ticket),
                _ => None,
            };
            let ask = AcquireRequest {
                take_over: turn.dead.clone().map(at_once),
                queue: place(turn.how, ticket),
            };
            let answer = self.store.acquire(&turn.claim, &ask).await;
            let answer = answer.expect("memory answers");
            if let AcquireReply::Waiting(ticket, _) = answer {
                self.turns[at].ticket = Some(ticket);
            }
            // What was told in between comes first.
            self.told();
            let holder = match answer {
                AcquireReply::Granted(fence) => {
                    // One that is served at once is newer than whoever was in the line.
                    self.turns[at].ticket.get_or_insert(Ticket(fence.0));
                    return self.granted(at, fence);
                }
                AcquireReply::Superseded => {
                    self.is_replaced(at, ticket.expect("only who waited is replaced"));
                    self.turns[at].state = State::Over;
                    return;
                }
                AcquireReply::QueueFull => {
                    assert!(ticket.is_none(), "who has a place is never one too many");
                    self.turns[at].state = State::Over;
                    return;
                }
                AcquireReply::Busy(holder) => {
                    if !self.found_dead(at, &holder).await {
                        self.turns[at].state = State::Over;
                        return;
                    }
                    continue;
                }
                AcquireReply::Waiting(ticket, holder) => {
                    self.waits(at, ticket).await;
                    holder
                }
            };
            if self.turns[at].how == How::Interrupts {
                let other = holder.turn().expect("a turn's");
                let message = Message::Interrupt(other.id);
                let told = self.store.send_message(&other.instance, message).await;
                told.expect("memory answers");
            }
            if !self.found_dead(at, &holder).await {
                return;
            }
        }
    }

    /// It was, by a newer turn that interrupts.
    fn is_replaced(&self, at: usize, ticket: Ticket) {
        let replaced = self.turns.iter().any(|turn| {
            turn.to == self.turns[at].to
                && turn.how == How::Interrupts
                && turn.ticket > Some(ticket)
        });
        assert!(replaced, "turn {at} is replaced, but not by a newer one");
    }

    async fn found_dead(&mut self, at: usize, holder: &LockHolder) -> bool {
        let dead = self.is_dead(holder).await && self.turns[at].dead.as_ref() != Some(holder);
        if dead {
            self.turns[at].dead = Some(holder.clone());
        }
        dead
    }

    async fn is_dead(&self, holder: &LockHolder) -> bool {
        let turn = holder.turn().expect("a turn's");
        let sign = self.store.liveness(&turn.instance).await;
        let sign = sign.expect("memory answers");
        sign.map(|sign| sign.epoch) != Some(turn.id.epoch)
    }

    async fn waits(&mut self, at: usize, ticket: Ticket) {
        let (of, to) = (self.turns[at].of, self.turns[at].to);
        match self.turns[at].state {
            State::Waits { ticket: had, .. } => assert_eq!(ticket, had, "a place is kept"),
            _ => {
                assert!(ticket > self.tickets[to], "tickets rise with each arrival");
                self.tickets[to] = ticket;
            }
        }
        self.instances[of].seen[to] = Some(Instant::now());
        self.turns[at].state = State::Waits {
            ticket,
            keeps: true,
        };
    }

    fn granted(&mut self, at: usize, fence: Fence) {
        let now = Instant::now();
        let (to, was) = (self.turns[at].to, self.turns[at].state);
        for (other, turn) in self.turns.iter().enumerate() {
            let runs = match turn.state {
                State::Holds(until) => now < until.min(self.instances[turn.of].alive_until),
                _ => false,
            };
            assert!(
                other == at || turn.to != to || !runs,
                "turn {at} was let in beside turn {other}"
            );
        }
        assert!(fence > self.fences[to], "fences rise with each turn");
        self.fences[to] = fence;
        match was {
            State::Waits {
                ticket,
                keeps: true,
            } => self.is_first(at, ticket),
            State::Waits { .. } => {}
            _ => self.is_first(at, Ticket(u64::MAX)),
        }
        self.turns[at].state = State::Holds(now + LEASE);
    }

    /// Nobody is passed over who kept his place.
    fn is_first(&self, at: usize, ticket: Ticket) {
        for (other, turn) in self.turns.iter().enumerate() {
            let waits =
                matches!(turn.state, State::Waits { ticket: its, keeps: true } if its < ticket);
            assert!(
                other == at
                    || turn.to != self.turns[at].to
                    || self.instances[turn.of].is_dead
                    || !waits,
                "turn {at} was served before turn {other}, which came first"
            );
        }
    }

    /// Looks at what the store has told.
    fn told(&mut self) {
        for of in 0..INSTANCES {
            let told = self.instances[of].ears.take();
            self.hears(of, told);
        }
    }

    fn hears(&mut self, of: usize, told: Vec<Message>) {
        for message in told {
            let (Message::Granted(id)
            | Message::Superseded(id)
            | Message::Interrupt(id)
            | Message::Taken(id)) = message;
            let Some(at) = self.of(id).filter(|&at| self.turns[at].of == of) else {
                panic!("instance {of} is told about another one's turn: {message}");
            };
            match (message, self.turns[at].state) {
                (Message::Granted(_), State::Waits { ticket, keeps }) => {
                    if keeps {
                        self.is_first(at, ticket);
                    }
                    // From now on others may be served, if it doesn't take it up.
                    self.turns[at].state = State::Waits {
                        ticket,
                        keeps: false,
                    };
                    self.instances[of].inbox.push(message);
                }
                (Message::Granted(_), state) => {
                    panic!("turn {at} is offered a lock for which it doesn't wait: {state:?}")
                }
                (Message::Superseded(_), State::Waits { ticket, .. }) => {
                    self.is_replaced(at, ticket);
                    self.turns[at].replaced = true;
                    self.turns[at].state = State::Waits {
                        ticket,
                        keeps: false,
                    };
                }
                (Message::Superseded(_), state) => {
                    panic!("turn {at} is replaced in a line where it isn't: {state:?}")
                }
                (Message::Interrupt(_), _) => self.turns[at].replaced = true,
                (Message::Taken(_), state) => {
                    panic!("nobody has taken the lock of turn {at}: {state:?}")
                }
            }
        }
    }

    /// An operator takes a turn's lock away, if it has one: whoever is told so has stopped.
    async fn forced(&mut self, at: usize) {
        let (key, to) = (self.turns[at].claim.key.clone(), self.turns[at].to);
        let holds = matches!(self.turns[at].state, State::Holds(_));
        let holder = LockHolder::from(&self.turns[at].claim.token);
        let forced = self.store.force_release(&key, &holder).await;
        let Some(fence) = forced.expect("memory answers") else {
            assert!(!holds, "a turn has its lock as long as it runs");
            return;
        };
        assert!(
            fence > self.fences[to],
            "fences rise with each lock that is taken away"
        );
        self.fences[to] = fence;
        let told = self.instances[self.turns[at].of].ears.take();
        let taken = Message::Taken(self.turns[at].claim.id);
        assert_eq!(
            told.first(),
            Some(&taken),
            "its instance is told, before anybody else"
        );
        // One that was offered the lock gives up, too.
        self.turns[at].state = State::Stopped;
        self.turns[at].replaced = true;
        self.hears(self.turns[at].of, told.into_iter().skip(1).collect());
    }

    /// An instance acts on what it was told.
    async fn acts(&mut self, of: usize) {
        for message in std::mem::take(&mut self.instances[of].inbox) {
            let Message::Granted(id) = message else {
                continue;
            };
            let at = self.of(id).expect("looked at before");
            if matches!(self.turns[at].state, State::Waits { .. }) {
                self.asks(at).await;
                self.told();
            }
        }
        while let Some(at) = self.pick(0, |turn| turn.of == of && turn.replaced) {
            self.ends(at).await;
            self.told();
        }
    }

    /// An instance looks at its lines; gives and takes the dead holders that it knows of.
    async fn looks(&mut self, of: usize, dead: &mut [Option<LockHolder>; SESSIONS]) {
        self.beats(of).await;
        for (to, dead) in dead.iter_mut().enumerate() {
            let waits = |turn: &Turn| {
                (turn.of, turn.to) == (of, to) && matches!(turn.state, State::Waits { .. })
            };
            if self.pick(0, waits).is_none() {
                continue;
            }
            let name = Arc::clone(self.instances[of].issuer.instance());
            let waiting: Vec<_> = (0..self.turns.len())
                .filter(|at| waits(&self.turns[*at]))
                .collect();
            let line = [WatchedQueue {
                key: SessionKey::literal(&format!("k{to}")),
                take_over: dead.take().map(at_once),
                waiters: waiting.iter().map(|at| self.turns[*at].claim.id).collect(),
            }];
            let found = self
                .store
                .watch(&name, &line)
                .await
                .expect("memory answers");
            self.told();
            let mut called = Vec::new();
            let QueueState { present, holder } = &found[0];
            let is_own = |holder: &LockHolder| {
                waiting
                    .iter()
                    .any(|at| holder.has_token(&self.turns[*at].claim.token))
            };
            let own = usize::from(holder.as_ref().is_some_and(is_own));
            if present + own < waiting.len() {
                called.clone_from(&waiting);
            }
            match holder {
                None => called.clone_from(&waiting),
                Some(holder) => {
                    self.instances[of].seen[to] = Some(Instant::now());
                    let other = holder.turn().expect("a turn's");
                    let own = self.of(other.id).expect("a known turn");
                    let interrupts = self
                        .turns
                        .iter()
                        .any(|turn| waits(turn) && turn.how == How::Interrupts);
                    if waits(&self.turns[own]) {
                        called.push(own);
                    } else if interrupts {
                        let message = Message::Interrupt(other.id);
                        let told = self.store.send_message(&other.instance, message).await;
                        told.expect("memory answers");
                        self.told();
                    }
                    if self.is_dead(holder).await {
                        *dead = Some(holder.clone());
                    }
                }
            }
            for at in called {
                if waits(&self.turns[at]) {
                    self.asks(at).await;
                    self.told();
                }
            }
        }
    }

    /// A turn lets go of whatever it has.
    async fn ends(&mut self, at: usize) {
        let claim = Arc::clone(&self.turns[at].claim);
        let holds = matches!(self.turns[at].state, State::Holds(_));
        self.turns[at].state = State::Over;
        let freed = self.store.release(&claim).await.expect("memory answers");
        assert!(freed || !holds, "a turn has its lock as long as it runs");
        let again = self.store.release(&claim).await.expect("memory answers");
        assert!(!again, "what was given back is gone");
        self.told();
    }

    async fn beats(&mut self, of: usize) {
        let instance = &mut self.instances[of];
        let (name, epoch) = (instance.issuer.instance(), instance.issuer.epoch());
        let beaten = self.store.heartbeat(name, epoch, RECOVERY, false).await;
        let beaten = beaten.expect("memory answers");
        assert_ne!(beaten, HeartbeatReply::NameTaken, "nobody else has the name");
        instance.alive_until = Instant::now() + RECOVERY;
    }

    async fn passes(&mut self, time: Duration) {
        advance(time).await;
        let now = Instant::now();
        for turn in &mut self.turns {
            let instance = &self.instances[turn.of];
            match &mut turn.state {
                State::Holds(until) if now >= (*until).min(instance.alive_until) => {
                    turn.state = State::Stopped;
                }
                State::Waits { keeps, .. } => {
                    let seen = instance.seen[turn.to].expect("it has joined");
                    *keeps &= now < seen + WAITER_TIMEOUT;
                }
                _ => {}
            }
        }
    }

    /// From now on every instance that lives does what it should, until everybody is served.
    pub(super) async fn comes_to_rest(&mut self) {
        let mut dead = vec![[None, None]; INSTANCES];
        // Each turn takes a round, and each lock that nobody gives back the longest of these.
        let longest = (LEASE + OFFER_TTL + RECOVERY).as_millis() / 500;
        let rounds = self.turns.len() * 2 + INSTANCES * SESSIONS * longest as usize;
        for _ in 0..rounds {
            for (of, dead) in dead.iter_mut().enumerate() {
                if self.instances[of].is_dead {
                    continue;
                }
                self.acts(of).await;
                self.looks(of, dead).await;
                let over = |turn: &Turn| {
                    turn.of == of && matches!(turn.state, State::Holds(_) | State::Stopped)
                };
                while let Some(at) = self.pick(0, over) {
                    self.ends(at).await;
                }
            }
            if self.pick(0, |_| true).is_none() {
                return self.is_empty().await;
            }
            self.passes(Duration::from_millis(500)).await;
        }
        let left = self.pick(0, |_| true).map(|at| &self.turns[at].claim);
        panic!("stuck: {left:?} in {:?}", self.store);
    }

    async fn is_empty(&mut self) {
        // What dead instances have left behind has had its time.
        self.passes(LEASE.max(OFFER_TTL).max(WAITER_TIMEOUT)).await;
        for to in 0..SESSIONS {
            let key = SessionKey::literal(&format!("k{to}"));
            let issuer = ClaimIssuer::new("last", Epoch(99), false);
            let claim = Arc::new(issuer.issue(key, "route", "request", LEASE));
            let answer = self.store.acquire(&claim, &AcquireRequest::default()).await;
            assert!(
                matches!(answer, Ok(AcquireReply::Granted(fence)) if fence > self.fences[to]),
                "a session is free when everybody has gone: {answer:?}"
            );
            self.store.release(&claim).await.expect("memory answers");
        }
        assert!(self.store.is_empty(), "nothing is left: {:?}", self.store);
    }
}
