//! Both stores side by side: each gives the same reply to the same step.

use crate::store_contract::at_once;
use std::sync::Arc;
use std::time::Duration;

use seriatim::key::SessionKey;
use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, ClaimId, LockHolder, QueueState, Ticket, WatchedQueue,
};

use super::{How, INSTANCES, SESSIONS, Step, place};
use crate::store_contract::StoreSetup;

/// A store's reply, without details in which the stores may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
enum StoreAnswer {
    Granted,
    Busy(ClaimId),
    Waiting(ClaimId),
    Full,
    Superseded,
    Freed(bool),
    Extended(bool),
    Found(Vec<ClaimId>, Option<ClaimId>),
    Nothing,
}

const LEASE: Duration = Duration::from_secs(60);

/// One of the stores, with its turns.
struct Side<'b> {
    bench: &'b StoreSetup,
    case: usize,
    turns: Vec<SideTurn>,
}

/// A turn; the other side has the same turn under the same number.
struct SideTurn {
    claim: Arc<Claim>,
    of: usize,
    to: usize,
    how: How,
    ticket: Option<Ticket>,
    /// Whether it has neither a lock nor a place.
    over: bool,
    /// Whether another turn may have its lock or its place.
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

    async fn step(&mut self, step: Step) -> StoreAnswer {
        match step {
            Step::Arrives { of, to, how } => {
                self.turns.push(SideTurn {
                    claim: self.bench.claim_of(of, &self.key(to), LEASE),
                    of,
                    to,
                    how,
                    ticket: None,
                    over: false,
                    ousted: false,
                });
                self.request(self.turns.len() - 1, None).await
            }
            Step::Retries(n) => match self.pick(n) {
                Some(at) => self.request(at, None).await,
                None => StoreAnswer::Nothing,
            },
            Step::TakesOver(who, whom) => match self.pick(who) {
                // A turn never treats itself as dead.
                Some(who) if who == whom % self.turns.len() => StoreAnswer::Nothing,
                Some(who) => {
                    let whom = whom % self.turns.len();
                    self.turns[whom].ousted = true;
                    let dead = LockHolder::from(&self.turns[whom].claim.token);
                    self.request(who, Some(dead)).await
                }
                None => StoreAnswer::Nothing,
            },
            Step::Ends(n) => match self.pick(n) {
                Some(at) => self.end(at).await,
                None => StoreAnswer::Nothing,
            },
            Step::Extends(n) => match self.pick(n) {
                Some(at) => {
                    let claims = [Arc::clone(&self.turns[at].claim)];
                    let store = self.bench.store(self.turns[at].of);
                    let extended = store.extend(&claims).await.expect("the store answers");
                    StoreAnswer::Extended(extended[0].expect("the only server"))
                }
                None => StoreAnswer::Nothing,
            },
            Step::ForceReleases(n) => match self.pick(n) {
                Some(at) => {
                    let turn = &mut self.turns[at];
                    let holder = LockHolder::from(&turn.claim.token);
                    let store = self.bench.store(turn.of);
                    let forced = store.force_release(&turn.claim.key, &holder).await;
                    let forced = forced.expect("the store answers").is_some();
                    turn.ousted |= forced;
                    StoreAnswer::Freed(forced)
                }
                None => StoreAnswer::Nothing,
            },
            Step::Watches(n) => self.watch_queue(n, n % SESSIONS).await,
            Step::Receives(_) | Step::LosesMessages(_) | Step::Passes(_) | Step::Dies(_) => {
                StoreAnswer::Nothing
            }
        }
    }

    async fn end(&mut self, at: usize) -> StoreAnswer {
        self.turns[at].over = true;
        StoreAnswer::Freed(self.bench.release(&self.turns[at].claim).await)
    }

    /// Whether a later interrupting turn still exists, and the session with it; `None` if there
    /// never was one. In memory the mark ends with the session; Redis keeps it for a while.
    fn is_marked(&self, to: usize, ticket: Option<Ticket>) -> Option<bool> {
        let newer = self
            .turns
            .iter()
            .filter(|turn| turn.to == to && turn.how == How::Interrupts && turn.ticket > ticket);
        newer
            .map(|turn| !turn.over && !turn.ousted)
            .reduce(|a, b| a || b)
    }

    async fn request(&mut self, at: usize, dead: Option<LockHolder>) -> StoreAnswer {
        let (to, ticket) = (self.turns[at].to, self.turns[at].ticket);
        if ticket.is_some() && self.is_marked(to, ticket) == Some(false) {
            return self.end(at).await;
        }
        let reply = self.send_request(at, dead).await;
        if let StoreAnswer::Waiting(holder) = reply
            && ticket.is_none()
            && self.turns[at].how == How::Interrupts
        {
            let newest = self.turns[at].ticket;
            for turn in &mut self.turns {
                turn.ousted |= turn.to == to && turn.ticket < newest && turn.claim.id != holder;
            }
        }
        reply
    }

    async fn send_request(&mut self, at: usize, dead: Option<LockHolder>) -> StoreAnswer {
        let turn = &mut self.turns[at];
        let wait = place(turn.how, turn.ticket);
        match self
            .bench
            .ask(
                &turn.claim,
                &AcquireRequest {
                    take_over: dead.map(at_once),
                    queue: wait,
                },
            )
            .await
        {
            AcquireReply::Granted(_) => StoreAnswer::Granted,
            AcquireReply::Busy(holder, _) => {
                turn.over = true;
                StoreAnswer::Busy(id(&holder))
            }
            AcquireReply::Waiting(ticket, holder) => {
                turn.ticket = Some(ticket);
                StoreAnswer::Waiting(id(&holder))
            }
            AcquireReply::TookOver(_) => unreachable!("`ask` gives the reply apart from that"),
            AcquireReply::QueueFull(_) => {
                turn.over = true;
                StoreAnswer::Full
            }
            AcquireReply::Superseded => {
                turn.over = true;
                StoreAnswer::Superseded
            }
            AcquireReply::Dequeued => panic!("no operator takes turns out"),
            AcquireReply::Repeated(_) | AcquireReply::KeyReused => panic!("no turn has a once id"),
        }
    }

    async fn watch_queue(&self, of: usize, to: usize) -> StoreAnswer {
        let waiting = self.turns.iter();
        let waiting = waiting
            .filter(|turn| (turn.of, turn.to) == (of, to) && turn.ticket.is_some() && !turn.over);
        let queue = [WatchedQueue {
            key: SessionKey::literal(&self.key(to)),
            take_over: None,
            wants_places: false,
            waiters: waiting.map(|turn| turn.claim.id).collect(),
        }];
        let name = format!("pod-{of}");
        let found = self.bench.store(of).watch(&name, &queue).await;
        let found = found.expect("the store answers").remove(0);
        let QueueState {
            missing, holder, ..
        } = found.expect("the only server answers");
        StoreAnswer::Found(missing, holder.as_ref().map(id))
    }

    /// The turns that had places, in the order of their tickets.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.turns.len()).collect();
        order.retain(|at| self.turns[*at].ticket.is_some());
        order.sort_by_key(|at| (self.turns[*at].to, self.turns[*at].ticket));
        order
    }
}

fn id(holder: &LockHolder) -> ClaimId {
    holder.turn().expect("a turn's holder").id
}

/// Runs the same steps on both sides, in sessions of this case only; returns the first difference.
pub(super) async fn compare(
    memory: &StoreSetup,
    redis: &StoreSetup,
    case: usize,
    steps: &[Step],
) -> Result<(), String> {
    let [mut memory, mut redis] = [memory, redis].map(|bench| Side {
        bench,
        case,
        turns: Vec::new(),
    });
    let mut compared = Ok(());
    for (at, step) in steps.iter().enumerate() {
        let (here, there) = (memory.step(*step).await, redis.step(*step).await);
        if here != there {
            compared = Err(format!(
                "step {at}, {step:?}: {here:?} in memory, {there:?} in Redis"
            ));
            break;
        }
        if memory.order() != redis.order() {
            compared = Err(format!("step {at}, {step:?}: tickets are in another order"));
            break;
        }
    }
    // The next case uses the same stores, so clean up in any case.
    for side in [&mut memory, &mut redis] {
        for at in 0..side.turns.len() {
            side.end(at).await;
        }
        // A force released lock leaves its fence until the next turn ends.
        for to in 0..SESSIONS {
            let claim = side.bench.claim_of(0, &side.key(to), LEASE);
            let answer = side.bench.ask(&claim, &AcquireRequest::default()).await;
            if !side.bench.release(&claim).await {
                compared = compared.and(Err(format!("{to} isn't free: {answer:?}")));
            }
        }
    }
    for of in 0..INSTANCES {
        let (here, there) = (
            memory.bench.received(of).await,
            redis.bench.received(of).await,
        );
        if here != there {
            let differs = format!("instance {of} received {here:?} in memory, {there:?} in Redis");
            compared = compared.and(Err(differs));
        }
    }
    for side in [&memory, &redis] {
        let left = side.bench.left().await;
        if !left.is_empty() {
            compared = compared.and(Err(format!("{left:?} is left")));
        }
    }
    compared
}
