//! Both stores, side by side: what one answers, the other answers, too.

use crate::store_contract::at_once;
use std::sync::Arc;
use std::time::Duration;

use seriatim::key::SessionKey;
use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, ClaimId, LockHolder, QueueState, Ticket, WatchedQueue,
};

use super::{How, INSTANCES, SESSIONS, Step, place};
use crate::store_contract::StoreSetup;

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

const LEASE: Duration = Duration::from_secs(60);

/// One of the stores, and the turns as they are there.
struct Side<'b> {
    bench: &'b StoreSetup,
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
                self.turns.push(There {
                    claim: self.bench.claim_of(of, &self.key(to), LEASE),
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
                // Nobody takes himself for dead.
                Some(who) if who == whom % self.turns.len() => Said::Nothing,
                Some(who) => {
                    let whom = whom % self.turns.len();
                    self.turns[whom].ousted = true;
                    let dead = LockHolder::from(&self.turns[whom].claim.token);
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
            Step::Forces(n) => match self.pick(n) {
                Some(at) => {
                    let turn = &mut self.turns[at];
                    let holder = LockHolder::from(&turn.claim.token);
                    let store = self.bench.store(turn.of);
                    let forced = store.force_release(&turn.claim.key, &holder).await;
                    let forced = forced.expect("the store answers").is_some();
                    turn.ousted |= forced;
                    Said::Freed(forced)
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

    async fn asks(&mut self, at: usize, dead: Option<LockHolder>) -> Said {
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

    async fn asks_anyhow(&mut self, at: usize, dead: Option<LockHolder>) -> Said {
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
            AcquireReply::Granted(_) => Said::Granted,
            AcquireReply::Busy(holder) => {
                turn.over = true;
                Said::Busy(id(&holder))
            }
            AcquireReply::Waiting(ticket, holder) => {
                turn.ticket = Some(ticket);
                Said::Waiting(id(&holder))
            }
            AcquireReply::QueueFull => {
                turn.over = true;
                Said::Full
            }
            AcquireReply::Superseded => {
                turn.over = true;
                Said::Superseded
            }
        }
    }

    async fn looks(&self, of: usize, to: usize) -> Said {
        let waiting = self.turns.iter();
        let waiting = waiting
            .filter(|turn| (turn.of, turn.to) == (of, to) && turn.ticket.is_some() && !turn.over);
        let line = [WatchedQueue {
            key: SessionKey::literal(&self.key(to)),
            take_over: None,
            waiters: waiting.map(|turn| turn.claim.id).collect(),
        }];
        let name = format!("pod-{of}");
        let found = self.bench.store(of).watch(&name, &line).await;
        let QueueState { present, holder } = &found.expect("the store answers")[0];
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

fn id(holder: &LockHolder) -> ClaimId {
    holder.turn().expect("a turn's").id
}

/// Takes the same steps on both sides, in sessions of this case's own; gives the first difference.
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
                "step {at}, {step:?}: in memory it is {here:?}, in Redis {there:?}"
            ));
            break;
        }
        if memory.order() != redis.order() {
            compared = Err(format!("step {at}, {step:?}: tickets are in another order"));
            break;
        }
    }
    // Whatever was found: the next case has the same stores.
    for side in [&mut memory, &mut redis] {
        for at in 0..side.turns.len() {
            side.ends(at).await;
        }
        // A lock that was taken away leaves its fence, until the next turn is over.
        for to in 0..SESSIONS {
            let claim = side.bench.claim_of(0, &side.key(to), LEASE);
            let answer = side.bench.ask(&claim, &AcquireRequest::default()).await;
            if !side.bench.release(&claim).await {
                compared = compared.and(Err(format!("{to} isn't free: {answer:?}")));
            }
        }
    }
    for of in 0..INSTANCES {
        let (here, there) = (memory.bench.heard(of).await, redis.bench.heard(of).await);
        if here != there {
            let differs = format!("instance {of} is told {here:?} in memory, in Redis {there:?}");
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
