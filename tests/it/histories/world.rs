//! Sessions in the memory store with controlled time, turns that behave like those of instances,
//! and the rules that must hold at every step.

use crate::store_contract::{apart_from_takeover, at_once};
use std::sync::Arc;
use std::time::Duration;

use seriatim::key::SessionKey;
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, ClaimId, ClaimIssuer, Epoch, Fence, HeartbeatReply,
    LockHolder, Message, OFFER_TTL, QueueState, Store, Ticket, WAITER_TIMEOUT, WatchedQueue,
};
use tokio::time::{Instant, advance};

use super::{How, INSTANCES, SESSIONS, Step, place};
use crate::store_contract::Recorder;

const LEASE: Duration = Duration::from_secs(5);
const RECOVERY: Duration = Duration::from_secs(4);

/// Sessions in the memory store, and turns that behave like those of instances.
pub(super) struct World {
    store: Arc<MemoryStore>,
    instances: Vec<Instance>,
    turns: Vec<Turn>,
    fences: [Fence; SESSIONS],
    tickets: [Ticket; SESSIONS],
}

struct Instance {
    issuer: ClaimIssuer,
    handler: Arc<Recorder>,
    /// Messages that it received and hasn't acted on.
    inbox: Vec<Message>,
    /// Until then other instances take it for alive, and its turns go on.
    alive_until: Instant,
    is_dead: bool,
    /// When the store last saw it, for each queue.
    seen: [Option<Instant>; SESSIONS],
}

struct Turn {
    claim: Arc<Claim>,
    of: usize,
    to: usize,
    how: How,
    /// The ticket of its place, also of a lost one.
    ticket: Option<Ticket>,
    state: State,
    /// Whether a newer turn took its place or is to get its lock.
    superseded: bool,
    dead: Option<LockHolder>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the queue; `keeps` while the store has no reason to serve a later waiter first.
    Waits {
        ticket: Ticket,
        keeps: bool,
    },
    /// Until that moment, or the end of its instance.
    Holds(Instant),
    /// Stopped, and the lock isn't released yet.
    Stopped,
    Over,
}

impl World {
    pub(super) fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let instances = (0..INSTANCES).map(|n| {
            let issuer = ClaimIssuer::new(&format!("pod-{n}"), Epoch(n as u64 + 1), true);
            let handler = Arc::<Recorder>::default();
            store.listen(issuer.instance(), Arc::clone(&handler) as _);
            Instance {
                issuer,
                handler,
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

    /// The nth of the turns that are not over, belong to live instances, and are `fit`.
    fn pick(&self, n: usize, fit: impl Fn(&Turn) -> bool) -> Option<usize> {
        let there = |turn: &Turn| turn.state != State::Over && !self.instances[turn.of].is_dead;
        let turns = self.turns.iter().enumerate();
        let all: Vec<_> = turns
            .filter(|(_, turn)| there(turn) && fit(turn))
            .map(|(at, _)| at)
            .collect();
        (!all.is_empty()).then(|| all[n % all.len()])
    }

    fn turn_with(&self, id: ClaimId) -> Option<usize> {
        self.turns.iter().position(|turn| turn.claim.id == id)
    }

    pub(super) async fn step(&mut self, step: Step) {
        match step {
            Step::Arrives { of, .. }
            | Step::Watches(of)
            | Step::Receives(of)
            | Step::LosesMessages(of)
                if self.instances[of].is_dead => {}
            Step::Arrives { of, to, how } => self.arrive(of, to, how).await,
            Step::Retries(n) => {
                let waits = |turn: &Turn| matches!(turn.state, State::Waits { .. });
                if let Some(at) = self.pick(n, waits) {
                    self.request(at).await;
                }
            }
            Step::Ends(n) => {
                if let Some(at) = self.pick(n, |_| true) {
                    self.end(at).await;
                }
            }
            Step::Extends(n) => {
                let holds = |turn: &Turn| matches!(turn.state, State::Holds(_));
                if let Some(at) = self.pick(n, holds) {
                    let claim = Arc::clone(&self.turns[at].claim);
                    let extended = self
                        .store
                        .extend(&[claim])
                        .await
                        .expect("the memory store answers");
                    assert_eq!(extended, [Some(true)], "a lock is held for its whole lease");
                    self.turns[at].state = State::Holds(Instant::now() + LEASE);
                }
            }
            Step::ForceReleases(n) => {
                if let Some(at) = self.pick(n, |_| true) {
                    self.force_release(at).await;
                }
            }
            Step::Watches(of) => self.watch_queues(of, &mut [None, None]).await,
            Step::Receives(of) => self.act_on_messages(of).await,
            Step::LosesMessages(of) => self.instances[of].inbox.clear(),
            Step::TakesOver(..) => {}
            Step::Passes(millis) => self.pass(Duration::from_millis(millis)).await,
            Step::Dies(of) => self.instances[of].is_dead = true,
        }
        self.process_messages();
    }

    async fn arrive(&mut self, of: usize, to: usize, how: How) {
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
            superseded: false,
            dead: None,
        });
        self.request(self.turns.len() - 1).await;
    }

    /// A turn requests its lock, again for each dead holder that it finds.
    async fn request(&mut self, at: usize) {
        loop {
            if self.turns[at].superseded {
                return self.end(at).await;
            }
            self.heartbeat(self.turns[at].of).await;
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
            let answer = apart_from_takeover(answer.expect("the memory store answers"));
            if let AcquireReply::Waiting(ticket, _) = answer {
                self.turns[at].ticket = Some(ticket);
            }
            // Messages that were sent in between come first.
            self.process_messages();
            let holder = match answer {
                AcquireReply::TookOver(_) => unreachable!("it was taken out"),
                AcquireReply::Granted(fence) => {
                    // A turn that is served at once is newer than all waiters.
                    self.turns[at].ticket.get_or_insert(Ticket(fence.0));
                    return self.granted(at, fence);
                }
                AcquireReply::Superseded => {
                    self.assert_superseded(at, ticket.expect("only a waiter can be superseded"));
                    self.turns[at].state = State::Over;
                    return;
                }
                AcquireReply::Dequeued => panic!("no operator takes turns out"),
                AcquireReply::Repeated(_) | AcquireReply::KeyReused => {
                    panic!("no turn has a once id")
                }
                AcquireReply::QueueFull(_) => {
                    assert!(
                        ticket.is_none(),
                        "a waiter with a place is never refused as full"
                    );
                    self.turns[at].state = State::Over;
                    return;
                }
                AcquireReply::Busy(holder, _) => {
                    if !self.finds_dead(at, &holder).await {
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
                let other = holder.turn().expect("a turn's holder");
                let message = Message::Interrupt(other.id);
                let sent = self.store.send_message(&other.instance, message).await;
                sent.expect("the memory store answers");
            }
            if !self.finds_dead(at, &holder).await {
                return;
            }
        }
    }

    /// Asserts that a newer interrupting turn superseded the waiter.
    fn assert_superseded(&self, at: usize, ticket: Ticket) {
        let superseded = self.turns.iter().any(|turn| {
            turn.to == self.turns[at].to
                && turn.how == How::Interrupts
                && turn.ticket > Some(ticket)
        });
        assert!(
            superseded,
            "turn {at} is superseded, but not by a newer one"
        );
    }

    async fn finds_dead(&mut self, at: usize, holder: &LockHolder) -> bool {
        let dead = self.is_dead(holder).await && self.turns[at].dead.as_ref() != Some(holder);
        if dead {
            self.turns[at].dead = Some(holder.clone());
        }
        dead
    }

    async fn is_dead(&self, holder: &LockHolder) -> bool {
        let turn = holder.turn().expect("a turn's holder");
        let sign = self.store.liveness(&turn.instance).await;
        let sign = sign.expect("the memory store answers");
        sign.map(|sign| sign.epoch) != Some(turn.id.epoch)
    }

    async fn waits(&mut self, at: usize, ticket: Ticket) {
        let (of, to) = (self.turns[at].of, self.turns[at].to);
        match self.turns[at].state {
            State::Waits { ticket: had, .. } => {
                assert_eq!(ticket, had, "a waiter keeps its ticket")
            }
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
                "turn {at} runs at the same time as turn {other}"
            );
        }
        assert!(fence > self.fences[to], "fences rise with each turn");
        self.fences[to] = fence;
        match was {
            State::Waits {
                ticket,
                keeps: true,
            } => self.assert_first(at, ticket),
            State::Waits { .. } => {}
            _ => self.assert_first(at, Ticket(u64::MAX)),
        }
        self.turns[at].state = State::Holds(now + LEASE);
    }

    /// Asserts that no waiter that kept its place is overtaken.
    fn assert_first(&self, at: usize, ticket: Ticket) {
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

    /// Processes the messages that the store sent.
    fn process_messages(&mut self) {
        for of in 0..INSTANCES {
            let sent = self.instances[of].handler.take();
            self.receive(of, sent);
        }
    }

    fn receive(&mut self, of: usize, sent: Vec<Message>) {
        for message in sent {
            let (Message::Granted(id)
            | Message::Superseded(id)
            | Message::Dequeued(id)
            | Message::Interrupt(id)
            | Message::Taken(id)
            | Message::Stop(id, _)
            | Message::Stops(id)
            | Message::GoesOn(id)
            | Message::InUse(id, _)
            | Message::Operated(id, ..)) = message;
            let Some(at) = self.turn_with(id).filter(|&at| self.turns[at].of == of) else {
                panic!("instance {of} got a message about another instance's turn: {message}");
            };
            match (&message, self.turns[at].state) {
                (Message::Granted(_), State::Waits { ticket, keeps }) => {
                    if keeps {
                        self.assert_first(at, ticket);
                    }
                    // From now on others may be served, if it doesn't accept the offer.
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
                    self.assert_superseded(at, ticket);
                    self.turns[at].superseded = true;
                    self.turns[at].state = State::Waits {
                        ticket,
                        keeps: false,
                    };
                }
                (Message::Superseded(_), state) => {
                    panic!("turn {at} is superseded in a queue where it isn't: {state:?}")
                }
                (Message::Interrupt(_), _) => self.turns[at].superseded = true,
                (Message::Taken(_), state) => {
                    panic!("the lock of turn {at} was not force released: {state:?}")
                }
                (Message::InUse(..), _) => panic!("nobody asks whether turn {at} still runs"),
                (Message::Stop(..) | Message::Stops(_) | Message::GoesOn(_), _) => {
                    panic!("no client stops turn {at}")
                }
                (Message::Dequeued(_) | Message::Operated(..), _) => {
                    panic!("no operator acts on turn {at}")
                }
            }
        }
    }

    /// An operator force releases a turn's lock, if it has one; a notified turn has stopped.
    async fn force_release(&mut self, at: usize) {
        let (key, to) = (self.turns[at].claim.key.clone(), self.turns[at].to);
        let holds = matches!(self.turns[at].state, State::Holds(_));
        let holder = LockHolder::from(&self.turns[at].claim.token);
        let forced = self.store.force_release(&key, &holder).await;
        let Some(fence) = forced.expect("the memory store answers") else {
            assert!(!holds, "a turn holds its lock as long as it runs");
            return;
        };
        assert!(
            fence > self.fences[to],
            "fences rise with each forced release"
        );
        self.fences[to] = fence;
        let sent = self.instances[self.turns[at].of].handler.take();
        let taken = Message::Taken(self.turns[at].claim.id);
        assert_eq!(sent.first(), Some(&taken), "its instance is notified first");
        // A waiter with an offer stops too.
        self.turns[at].state = State::Stopped;
        self.turns[at].superseded = true;
        self.receive(self.turns[at].of, sent.into_iter().skip(1).collect());
    }

    /// An instance act_on_messages on its messages.
    async fn act_on_messages(&mut self, of: usize) {
        for message in std::mem::take(&mut self.instances[of].inbox) {
            let Message::Granted(id) = message else {
                continue;
            };
            let at = self.turn_with(id).expect("a known turn");
            if matches!(self.turns[at].state, State::Waits { .. }) {
                self.request(at).await;
                self.process_messages();
            }
        }
        while let Some(at) = self.pick(0, |turn| turn.of == of && turn.superseded) {
            self.end(at).await;
            self.process_messages();
        }
    }

    /// An instance watches its queues; `dead` has the dead holders that it knows, and is updated.
    async fn watch_queues(&mut self, of: usize, dead: &mut [Option<LockHolder>; SESSIONS]) {
        self.heartbeat(of).await;
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
            let queue = [WatchedQueue {
                key: SessionKey::literal(&format!("k{to}")),
                take_over: dead.take().map(at_once),
                wants_places: false,
                waiters: waiting.iter().map(|at| self.turns[*at].claim.id).collect(),
            }];
            let found = self
                .store
                .watch(&name, &queue)
                .await
                .expect("the memory store answers");
            self.process_messages();
            let mut called = Vec::new();
            let QueueState {
                missing, holder, ..
            } = found[0].as_ref().expect("the only server answers");
            let is_missing = |at: &&usize| missing.contains(&self.turns[**at].claim.id);
            called.extend(waiting.iter().filter(is_missing));
            match holder {
                None => called.clone_from(&waiting),
                Some(holder) => {
                    self.instances[of].seen[to] = Some(Instant::now());
                    let other = holder.turn().expect("a turn's holder");
                    let own = self.turn_with(other.id).expect("a known turn");
                    let interrupts = self
                        .turns
                        .iter()
                        .any(|turn| waits(turn) && turn.how == How::Interrupts);
                    if waits(&self.turns[own]) {
                        called.push(own);
                    } else if interrupts {
                        let message = Message::Interrupt(other.id);
                        let sent = self.store.send_message(&other.instance, message).await;
                        sent.expect("the memory store answers");
                        self.process_messages();
                    }
                    if self.is_dead(holder).await {
                        *dead = Some(holder.clone());
                    }
                }
            }
            for at in called {
                if waits(&self.turns[at]) {
                    self.request(at).await;
                    self.process_messages();
                }
            }
        }
    }

    /// A turn releases its lock or leaves the queue.
    async fn end(&mut self, at: usize) {
        let claim = Arc::clone(&self.turns[at].claim);
        let holds = matches!(self.turns[at].state, State::Holds(_));
        self.turns[at].state = State::Over;
        let freed = self
            .store
            .release(&claim)
            .await
            .expect("the memory store answers");
        assert!(freed || !holds, "a turn holds its lock as long as it runs");
        let again = self
            .store
            .release(&claim)
            .await
            .expect("the memory store answers");
        assert!(!again, "a released lock is gone");
        self.process_messages();
    }

    async fn heartbeat(&mut self, of: usize) {
        let instance = &mut self.instances[of];
        let (name, epoch) = (instance.issuer.instance(), instance.issuer.epoch());
        let beaten = self.store.heartbeat(name, epoch, RECOVERY, false).await;
        let beaten = beaten.expect("the memory store answers");
        assert_ne!(
            beaten,
            HeartbeatReply::NameTaken,
            "no other process has the name"
        );
        instance.alive_until = Instant::now() + RECOVERY;
    }

    async fn pass(&mut self, time: Duration) {
        advance(time).await;
        let now = Instant::now();
        for turn in &mut self.turns {
            let instance = &self.instances[turn.of];
            match &mut turn.state {
                State::Holds(until) if now >= (*until).min(instance.alive_until) => {
                    turn.state = State::Stopped;
                }
                State::Waits { keeps, .. } => {
                    let seen = instance.seen[turn.to].expect("the turn has joined");
                    *keeps &= now < seen + WAITER_TIMEOUT;
                }
                _ => {}
            }
        }
    }

    /// From now on every live instance does its work, until all turns are served.
    pub(super) async fn run_to_completion(&mut self) {
        let mut dead = vec![[None, None]; INSTANCES];
        // Each turn takes a round, and each abandoned lock the longest of these times.
        let longest = (LEASE + OFFER_TTL + RECOVERY).as_millis() / 500;
        let rounds = self.turns.len() * 2 + INSTANCES * SESSIONS * longest as usize;
        for _ in 0..rounds {
            for (of, dead) in dead.iter_mut().enumerate() {
                if self.instances[of].is_dead {
                    continue;
                }
                self.act_on_messages(of).await;
                self.watch_queues(of, dead).await;
                let over = |turn: &Turn| {
                    turn.of == of && matches!(turn.state, State::Holds(_) | State::Stopped)
                };
                while let Some(at) = self.pick(0, over) {
                    self.end(at).await;
                }
            }
            if self.pick(0, |_| true).is_none() {
                return self.assert_empty().await;
            }
            self.pass(Duration::from_millis(500)).await;
        }
        let left = self.pick(0, |_| true).map(|at| &self.turns[at].claim);
        panic!("stuck: {left:?} in {:?}", self.store);
    }

    async fn assert_empty(&mut self) {
        // The remains of dead instances have expired.
        self.pass(LEASE.max(OFFER_TTL).max(WAITER_TIMEOUT)).await;
        for to in 0..SESSIONS {
            let key = SessionKey::literal(&format!("k{to}"));
            let issuer = ClaimIssuer::new("last", Epoch(99), false);
            let claim = Arc::new(issuer.issue(key, "route", "request", LEASE));
            let answer = self.store.acquire(&claim, &AcquireRequest::default()).await;
            assert!(
                matches!(answer, Ok(AcquireReply::Granted(fence)) if fence > self.fences[to]),
                "a session is free after all turns: {answer:?}"
            );
            self.store
                .release(&claim)
                .await
                .expect("the memory store answers");
        }
        assert!(self.store.is_empty(), "nothing is left: {:?}", self.store);
    }
}
