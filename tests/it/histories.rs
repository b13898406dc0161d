//! Generated histories: what turns of several instances do, in any order, with messages that get
//! lost, time that passes and instances that die; and what must be true all the same.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use seriatim::key::SessionKey;
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{
    Answer, Ask, Beat, Claim, ClaimId, Claimant, Epoch, Fence, Found, Holder, Line, Message, OFFER,
    Place, STALE, Store, Ticket,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, advance};

use crate::store_contract::{Bench, Recorder};
use crate::support::redis::Redis;

/// Of sessions and of instances there are so many; one more instance hears nothing, where both stores
/// are compared.
const SESSIONS: usize = 2;
const INSTANCES: usize = 3;

const LEASE: Duration = Duration::from_secs(5);
const RECOVERY: Duration = Duration::from_secs(4);

/// So few that it comes to be.
const MAX_WAITERS: u32 = 4;

/// How a turn asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Tries,
    Waits,
    Interrupts,
}

/// Something that happens. A number of a turn counts those that could do it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Comes {
        of: usize,
        to: usize,
        how: How,
    },
    AsksAgain(usize),
    /// Lets go of its lock, or leaves the line.
    Ends(usize),
    Extends(usize),
    /// An instance looks at its lines, and does what it finds out.
    Looks(usize),
    /// An instance acts on what it was told.
    Hears(usize),
    /// What an instance was told is lost, but for what is never sent twice.
    Misses(usize),
    /// A turn takes another one's for dead, rightly or not.
    TakesOver(usize, usize),
    /// Milliseconds go by.
    Passes(u64),
    Dies(usize),
}

fn steps(timed: bool) -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![
        1 => Just(How::Tries),
        5 => Just(How::Waits),
        1 => Just(How::Interrupts),
    ];
    let instances = if timed { INSTANCES } else { INSTANCES + 1 };
    let (to, turn) = (0..SESSIONS, 0..64_usize);
    let common = prop_oneof![
        6 => (0..instances, to, how).prop_map(|(of, to, how)| Step::Comes { of, to, how }),
        3 => turn.clone().prop_map(Step::AsksAgain),
        4 => turn.clone().prop_map(Step::Ends),
        1 => turn.clone().prop_map(Step::Extends),
        3 => (0..instances).prop_map(Step::Looks),
    ];
    let step = if timed {
        prop_oneof![
            16 => common,
            4 => (0..INSTANCES).prop_map(Step::Hears),
            1 => (0..INSTANCES).prop_map(Step::Misses),
            5 => (1..1500_u64).prop_map(Step::Passes),
            1 => (1500..7000_u64).prop_map(Step::Passes),
            1 => (0..INSTANCES).prop_map(Step::Dies),
        ]
        .boxed()
    } else {
        let takes_over = (turn.clone(), turn).prop_map(|(who, whom)| Step::TakesOver(who, whom));
        prop_oneof![16 => common, 1 => takes_over].boxed()
    };
    prop::collection::vec(step, 1..80)
}

/// Runs `check` on so many histories.
fn explore(cases: u32, timed: bool, check: impl Fn(Vec<Step>)) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let explored = TestRunner::new(config).run(&steps(timed), |steps| {
        check(steps);
        Ok(())
    });
    if let Err(found) = explored {
        panic!("{found}");
    }
}

fn place(how: How, ticket: Option<Ticket>) -> Option<Place> {
    (how != How::Tries).then_some(Place {
        ticket,
        max_waiters: MAX_WAITERS,
        interrupts: how == How::Interrupts,
    })
}

// === time passes, and what must be true ===

/// Sessions in memory, and turns that behave as those of instances do.
struct World {
    store: Arc<MemoryStore>,
    instances: Vec<Instance>,
    turns: Vec<Turn>,
    fences: [Fence; SESSIONS],
    tickets: [Ticket; SESSIONS],
}

struct Instance {
    claimant: Claimant,
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
    dead: Option<Holder>,
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
    fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let instances = (0..INSTANCES).map(|n| {
            let claimant = Claimant::new(&format!("pod-{n}"), Epoch(n as u64 + 1), true);
            let ears = Arc::<Recorder>::default();
            store.listen(claimant.instance(), Arc::clone(&ears) as _);
            Instance {
                claimant,
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

    async fn step(&mut self, step: Step) {
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
            .claimant
            .claim(key, "route", "request", LEASE);
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
            let ask = Ask {
                dead: turn.dead.clone(),
                wait: place(turn.how, ticket),
            };
            let answer = self.store.acquire(&turn.claim, &ask).await;
            let answer = answer.expect("memory answers");
            if let Answer::Waiting(ticket, _) = answer {
                self.turns[at].ticket = Some(ticket);
            }
            // What was told in between comes first.
            self.told();
            let holder = match answer {
                Answer::Granted(fence) => return self.granted(at, fence),
                Answer::Superseded => {
                    self.is_replaced(at, ticket.expect("only who waited is replaced"));
                    self.turns[at].state = State::Over;
                    return;
                }
                Answer::Full => {
                    assert!(ticket.is_none(), "who has a place is never one too many");
                    self.turns[at].state = State::Over;
                    return;
                }
                Answer::Busy(holder) => {
                    if !self.found_dead(at, &holder).await {
                        self.turns[at].state = State::Over;
                        return;
                    }
                    continue;
                }
                Answer::Waiting(ticket, holder) => {
                    self.waits(at, ticket).await;
                    holder
                }
            };
            if self.turns[at].how == How::Interrupts {
                let other = holder.turn().expect("a turn's");
                let message = Message::Interrupt(other.id);
                let told = self.store.tell(&other.instance, message).await;
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

    async fn found_dead(&mut self, at: usize, holder: &Holder) -> bool {
        let dead = self.is_dead(holder).await && self.turns[at].dead.as_ref() != Some(holder);
        if dead {
            self.turns[at].dead = Some(holder.clone());
        }
        dead
    }

    async fn is_dead(&self, holder: &Holder) -> bool {
        let turn = holder.turn().expect("a turn's");
        let epoch = self.store.epoch_of(&turn.instance).await;
        epoch.expect("memory answers") != Some(turn.id.epoch)
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
            for message in self.instances[of].ears.take() {
                let (Message::Granted(id) | Message::Superseded(id) | Message::Interrupt(id)) =
                    message;
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
                }
            }
        }
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
    async fn looks(&mut self, of: usize, dead: &mut [Option<Holder>; SESSIONS]) {
        self.beats(of).await;
        for to in 0..SESSIONS {
            let waits = |turn: &Turn| {
                (turn.of, turn.to) == (of, to) && matches!(turn.state, State::Waits { .. })
            };
            if self.pick(0, waits).is_none() {
                continue;
            }
            let name = Arc::clone(self.instances[of].claimant.instance());
            let waiting: Vec<_> = (0..self.turns.len())
                .filter(|at| waits(&self.turns[*at]))
                .collect();
            let line = [Line {
                key: SessionKey::literal(&format!("k{to}")),
                dead: dead[to].take(),
                waiters: waiting.iter().map(|at| self.turns[*at].claim.id).collect(),
            }];
            let found = self
                .store
                .watch(&name, &line)
                .await
                .expect("memory answers");
            self.told();
            let mut called = Vec::new();
            let Found { present, holder } = &found[0];
            let is_own = |holder: &Holder| {
                waiting
                    .iter()
                    .any(|at| holder.is(&self.turns[*at].claim.token))
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
                        let told = self.store.tell(&other.instance, message).await;
                        told.expect("memory answers");
                        self.told();
                    }
                    if self.is_dead(holder).await {
                        dead[to] = Some(holder.clone());
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
        let (name, epoch) = (instance.claimant.instance(), instance.claimant.epoch());
        let beaten = self.store.beat(name, epoch, RECOVERY, false).await;
        let beaten = beaten.expect("memory answers");
        assert_ne!(beaten, Beat::Refused, "nobody else has the name");
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
                    *keeps &= now < seen + STALE;
                }
                _ => {}
            }
        }
    }

    /// From now on every instance that lives does what it should, until everybody is served.
    async fn comes_to_rest(&mut self) {
        let mut dead = vec![[None, None]; INSTANCES];
        // Each turn takes a round, and each lock that nobody gives back the longest of these.
        let longest = (LEASE + OFFER + RECOVERY).as_millis() / 500;
        let rounds = self.turns.len() * 2 + INSTANCES * SESSIONS * longest as usize;
        for _ in 0..rounds {
            for of in 0..INSTANCES {
                if self.instances[of].is_dead {
                    continue;
                }
                self.acts(of).await;
                self.looks(of, &mut dead[of]).await;
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
        self.passes(LEASE.max(OFFER).max(STALE)).await;
        for to in 0..SESSIONS {
            let key = SessionKey::literal(&format!("k{to}"));
            let claimant = Claimant::new("last", Epoch(99), false);
            let claim = Arc::new(claimant.claim(key, "route", "request", LEASE));
            let answer = self.store.acquire(&claim, &Ask::default()).await;
            assert!(
                matches!(answer, Ok(Answer::Granted(fence)) if fence > self.fences[to]),
                "a session is free when everybody has gone: {answer:?}"
            );
            self.store.release(&claim).await.expect("memory answers");
        }
        assert!(self.store.is_empty(), "nothing is left: {:?}", self.store);
    }
}

fn runtime(paused: bool) -> Runtime {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(paused).build();
    runtime.expect("a runtime")
}

#[test]
fn turns_never_overlap_nobody_is_passed_over_and_none_waits_for_ever() {
    explore(400, true, |steps| {
        runtime(true).block_on(async {
            let mut world = World::new();
            for step in steps {
                world.step(step).await;
            }
            world.comes_to_rest().await;
        });
    });
}

// === both stores, side by side ===

/// What a store said, without what is its own affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Granted,
    Busy(ClaimId),
    Waiting(ClaimId),
    Full,
    Superseded,
    Freed(bool),
    Extended(bool),
    Found(usize, Option<ClaimId>),
    Nothing,
}

/// One of the stores, and the turns as they are there.
struct Side<'b> {
    bench: &'b Bench,
    case: usize,
    turns: Vec<There>,
}

/// A turn, where the other side has the same under the same number.
struct There {
    claim: Arc<Claim>,
    of: usize,
    to: usize,
    how: How,
    ticket: Option<Ticket>,
    /// It has neither a lock nor a place.
    over: bool,
    /// Its lock or its place may be another's by now.
    ousted: bool,
}

impl Side<'_> {
    fn key(&self, to: usize) -> String {
        format!("{}-{to}", self.case)
    }

    fn pick(&self, n: usize) -> Option<usize> {
        let turns = (0..self.turns.len()).filter(|at| !self.turns[*at].over);
        let all: Vec<_> = turns.collect();
        (!all.is_empty()).then(|| all[n % all.len()])
    }

    async fn step(&mut self, step: Step) -> Said {
        match step {
            Step::Comes { of, to, how } => {
                let lease = Duration::from_secs(60);
                self.turns.push(There {
                    claim: self.bench.claim_of(of, &self.key(to), lease),
                    of,
                    to,
                    how,
                    ticket: None,
                    over: false,
                    ousted: false,
                });
                self.asks(self.turns.len() - 1, None).await
            }
            Step::AsksAgain(n) => match self.pick(n) {
                Some(at) => self.asks(at, None).await,
                None => Said::Nothing,
            },
            Step::TakesOver(who, whom) => match self.pick(who) {
                Some(who) => {
                    let whom = whom % self.turns.len();
                    self.turns[whom].ousted = true;
                    let dead = Holder::from(&self.turns[whom].claim.token);
                    self.asks(who, Some(dead)).await
                }
                None => Said::Nothing,
            },
            Step::Ends(n) => match self.pick(n) {
                Some(at) => self.ends(at).await,
                None => Said::Nothing,
            },
            Step::Extends(n) => match self.pick(n) {
                Some(at) => {
                    let claims = [Arc::clone(&self.turns[at].claim)];
                    let store = self.bench.store(self.turns[at].of);
                    let extended = store.extend(&claims).await.expect("the store answers");
                    Said::Extended(extended[0])
                }
                None => Said::Nothing,
            },
            Step::Looks(n) => self.looks(n, n % SESSIONS).await,
            Step::Hears(_) | Step::Misses(_) | Step::Passes(_) | Step::Dies(_) => Said::Nothing,
        }
    }

    async fn ends(&mut self, at: usize) -> Said {
        self.turns[at].over = true;
        Said::Freed(self.bench.release(&self.turns[at].claim).await)
    }

    /// Turns that came before one that interrupts, and whether that one is there still, so that the
    /// session is. In memory the mark goes with the session; Redis keeps it for a while.
    fn is_marked(&self, to: usize, ticket: Option<Ticket>) -> Option<bool> {
        let newer = self
            .turns
            .iter()
            .filter(|turn| turn.to == to && turn.how == How::Interrupts && turn.ticket > ticket);
        newer
            .map(|turn| !turn.over && !turn.ousted)
            .reduce(|a, b| a || b)
    }

    async fn asks(&mut self, at: usize, dead: Option<Holder>) -> Said {
        let (to, ticket) = (self.turns[at].to, self.turns[at].ticket);
        if ticket.is_some() && self.is_marked(to, ticket) == Some(false) {
            return self.ends(at).await;
        }
        let said = self.asks_anyhow(at, dead).await;
        if let Said::Waiting(holder) = said
            && ticket.is_none()
            && self.turns[at].how == How::Interrupts
        {
            let newest = self.turns[at].ticket;
            for turn in &mut self.turns {
                turn.ousted |= turn.to == to && turn.ticket < newest && turn.claim.id != holder;
            }
        }
        said
    }

    async fn asks_anyhow(&mut self, at: usize, dead: Option<Holder>) -> Said {
        let turn = &mut self.turns[at];
        let wait = place(turn.how, turn.ticket);
        match self.bench.ask(&turn.claim, &Ask { dead, wait }).await {
            Answer::Granted(_) => Said::Granted,
            Answer::Busy(holder) => {
                turn.over = true;
                Said::Busy(id(&holder))
            }
            Answer::Waiting(ticket, holder) => {
                turn.ticket = Some(ticket);
                Said::Waiting(id(&holder))
            }
            Answer::Full => {
                turn.over = true;
                Said::Full
            }
            Answer::Superseded => {
                turn.over = true;
                Said::Superseded
            }
        }
    }

    async fn looks(&self, of: usize, to: usize) -> Said {
        let waiting = self.turns.iter();
        let waiting = waiting
            .filter(|turn| (turn.of, turn.to) == (of, to) && turn.ticket.is_some() && !turn.over);
        let line = [Line {
            key: SessionKey::literal(&self.key(to)),
            dead: None,
            waiters: waiting.map(|turn| turn.claim.id).collect(),
        }];
        let name = format!("pod-{of}");
        let found = self.bench.store(of).watch(&name, &line).await;
        let Found { present, holder } = &found.expect("the store answers")[0];
        Said::Found(*present, holder.as_ref().map(id))
    }

    /// The turns that had places, in the order of their tickets.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.turns.len()).collect();
        order.retain(|at| self.turns[*at].ticket.is_some());
        order.sort_by_key(|at| (self.turns[*at].to, self.turns[*at].ticket));
        order
    }
}

fn id(holder: &Holder) -> ClaimId {
    holder.turn().expect("a turn's").id
}

#[test]
fn both_stores_give_the_same_answers() {
    let runtime = runtime(false);
    let (redis, memory, on_redis) = runtime.block_on(async {
        let redis = Arc::new(Redis::start().await);
        let on_redis = Bench::on_redis(&redis).await;
        (redis, Bench::in_memory(), on_redis)
    });
    let cases = std::cell::Cell::new(0);
    explore(24, false, |steps| {
        cases.set(cases.get() + 1);
        runtime.block_on(compare(&memory, &on_redis, cases.get(), &steps));
    });
    drop(redis);
}

async fn compare(memory: &Bench, redis: &Bench, case: usize, steps: &[Step]) {
    let [mut memory, mut redis] = [memory, redis].map(|bench| Side {
        bench,
        case,
        turns: Vec::new(),
    });
    for (at, step) in steps.iter().enumerate() {
        let (here, there) = (memory.step(*step).await, redis.step(*step).await);
        assert!(
            here == there,
            "step {at}, {step:?}: in memory it is {here:?}, in Redis {there:?}"
        );
        assert_eq!(
            memory.order(),
            redis.order(),
            "tickets are in the same order"
        );
    }
    for side in [&mut memory, &mut redis] {
        while let Some(at) = side.pick(0) {
            side.ends(at).await;
        }
    }
    for of in 0..INSTANCES {
        assert_eq!(
            memory.bench.heard(of).await,
            redis.bench.heard(of).await,
            "instance {of} is told the same"
        );
    }
    for side in [&memory, &redis] {
        assert_eq!(side.bench.left().await, [""; 0], "nothing is left");
    }
}
