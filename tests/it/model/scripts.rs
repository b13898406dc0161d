//! The store's scripts: each function is one script, and one step.
//!
//! Invariant: a script sees only the store, and of the instances only how many subscribe to a
//! channel. The turns' state is read only to check properties ([`Broken`]).
//!
//! [`Broken`]: super::world::Broken

use super::world::{
    Flaw, Letter, Lock, Mode, Phase, Process, Record, Recorded, Reply, Scenario, Seen, Term, World,
};

impl World {
    /// Takes the lock, or joins the queue. `ticket` is 0 if the turn knows none.
    pub(super) fn acquire(&mut self, scenario: &Scenario, turn: usize, ticket: u8) -> Reply {
        let mode = scenario.mode_of(turn);
        if self.turns[turn].arrival == 0 {
            self.turns[turn].arrival = self.store.tickets;
            self.store.tickets += 1;
        }
        if mode == Mode::Foreign {
            if self.store.lock.is_some() {
                return Reply::Busy;
            }
            self.grant(scenario, turn);
            return Reply::Granted;
        }
        let is_checked = ticket == 0 || !scenario.has(Flaw::ReturnUnchecked);
        if is_checked && self.is_repeat(scenario, turn) {
            return Reply::Repeated;
        }
        if self.store.is_locked_by(turn) {
            self.grant(scenario, turn);
            return Reply::Granted;
        }
        let superseded = ticket != 0 && self.store.newest > ticket;
        if superseded && !scenario.has(Flaw::SupersededServed) {
            if scenario.is_once(turn) {
                self.store.record = None;
            }
            return Reply::Superseded;
        }
        if self.store.lock.is_none() {
            if !scenario.has(Flaw::TakenPastQueue) {
                self.hand_over(scenario);
            }
            if self.store.lock.is_none() || self.store.is_locked_by(turn) {
                self.record_order(scenario, turn);
                self.grant(scenario, turn);
                return Reply::Granted;
            }
        }
        let holder = self.store.lock.map_or(turn, |lock| lock.turn);
        if mode == Mode::Refuse {
            return Reply::Busy;
        }
        if superseded {
            return Reply::Superseded;
        }
        if let Some((ticket, _)) = self.store.queue.iter().find(|(_, waiter)| *waiter == turn) {
            let ticket = *ticket;
            self.store.seen[scenario.instance_of(turn)] = Some(Seen::Fresh);
            self.note(scenario, turn, Recorded::Waits);
            return Reply::Waiting { ticket, holder };
        }
        self.prune(scenario);
        if self.store.queue.len() >= scenario.max_waiters {
            return Reply::Full;
        }
        let ticket = self.join(scenario, turn, ticket);
        Reply::Waiting { ticket, holder }
    }

    /// Whether the turn repeats another one that isn't gone.
    fn is_repeat(&self, scenario: &Scenario, turn: usize) -> bool {
        let Some(Record { turn: first, state }) = self.store.record else {
            return false;
        };
        let holds = self.store.is_locked_by(first);
        let seen = self.store.seen[scenario.instance_of(first)];
        let is_there = match state {
            Recorded::Waits => {
                holds || (self.store.has_in_queue(first) && seen == Some(Seen::Fresh))
            }
            Recorded::Granted => holds || !scenario.has(Flaw::DoubtIsForgotten),
            Recorded::Ended => true,
        };
        scenario.is_once(turn) && first != turn && is_there
    }

    /// Notes the state of a turn that is executed once.
    fn note(&mut self, scenario: &Scenario, turn: usize, state: Recorded) {
        if scenario.is_once(turn) {
            self.store.record = Some(Record { turn, state });
        }
    }

    /// Notes the end of a turn, or forgets it if its backend was sent nothing.
    fn settle_record(&mut self, scenario: &Scenario, turn: usize) {
        if !scenario.is_once(turn) {
            return;
        }
        let record = self.store.record;
        let is_own = record.is_none_or(|record| record.turn == turn);
        let is_ended = record.is_some_and(|record| record.state == Recorded::Ended);
        if self.turns[turn].was_sent && !scenario.has(Flaw::EndedIsForgotten) {
            if is_own && !is_ended {
                self.note(scenario, turn, Recorded::Ended);
            }
        } else if (is_own && !is_ended && !scenario.has(Flaw::NothingIsForgotten))
            || scenario.has(Flaw::ForgetsAnyRecord)
        {
            self.store.record = None;
        }
    }

    fn join(&mut self, scenario: &Scenario, turn: usize, ticket: u8) -> u8 {
        self.note(scenario, turn, Recorded::Waits);
        let ticket = if ticket != 0 {
            ticket
        } else if self.turns[turn].joined {
            self.store.tickets += 1;
            self.store.tickets - 1
        } else {
            self.turns[turn].arrival
        };
        self.turns[turn].joined = true;
        self.store.seen[scenario.instance_of(turn)] = Some(Seen::Fresh);
        if scenario.mode_of(turn) == Mode::Interrupt {
            let newer = self
                .store
                .queue
                .partition_point(|(other, _)| *other < ticket);
            let older: Vec<_> = self.store.queue.drain(..newer).collect();
            for (_, waiter) in older {
                self.turns[waiter].superseded = true;
                self.publish(scenario, waiter, Letter::Superseded);
            }
            self.store.newest = ticket;
        }
        self.store.queue.push((ticket, turn));
        self.store.queue.sort_unstable();
        ticket
    }

    /// Offers the lock to the first live waiter, if there is one.
    pub(super) fn hand_over(&mut self, scenario: &Scenario) {
        let mut skipped = None;
        let mut place = 0;
        while let Some((_, waiter)) = self.store.queue.get(place).copied() {
            let instance = scenario.instance_of(waiter);
            if self.store.seen[instance] != Some(Seen::Fresh) {
                self.store.queue.remove(place);
                self.store.seen[instance] = None;
            } else if self.instances[instance].subscribed {
                return self.offer(scenario, waiter);
            } else {
                skipped = skipped.or(Some(waiter));
                place += 1;
            }
        }
        match skipped {
            Some(waiter) => self.offer(scenario, waiter),
            None => self.forget_empty_queue(),
        }
    }

    fn offer(&mut self, scenario: &Scenario, turn: usize) {
        self.record_order(scenario, turn);
        if !scenario.has(Flaw::PlaceKept) {
            self.store.queue.retain(|(_, waiter)| *waiter != turn);
            self.forget_empty_queue();
        }
        let term = Term::Offer;
        self.store.lock = Some(Lock { turn, term });
        self.publish(scenario, turn, Letter::Granted);
    }

    /// The waiters' hash is deleted with the last waiter, unless it records an interrupting turn.
    fn forget_empty_queue(&mut self) {
        if self.store.queue.is_empty() && self.store.newest == 0 {
            self.store.seen.fill(None);
        }
    }

    /// In a queue as short as these, the script checks every place.
    fn prune(&mut self, scenario: &Scenario) {
        let mut place = 0;
        while let Some((_, waiter)) = self.store.queue.get(place).copied() {
            let seen = &mut self.store.seen[scenario.instance_of(waiter)];
            if *seen == Some(Seen::Fresh) {
                place += 1;
            } else {
                *seen = None;
                self.store.queue.remove(place);
            }
        }
    }

    /// Grants the lock for a lease, with a fence.
    fn grant(&mut self, scenario: &Scenario, turn: usize) {
        self.note(scenario, turn, Recorded::Granted);
        let term = Term::Lease;
        self.store.lock = Some(Lock { turn, term });
        if !scenario.has(Flaw::PlaceKept) {
            self.store.queue.retain(|(_, waiter)| *waiter != turn);
            self.forget_empty_queue();
        }
        if !scenario.clock_stands {
            self.clock_ticks();
        }
        if scenario.mode_of(turn) == Mode::Foreign {
            return;
        }
        let fence = match self.store.fence {
            Some(fence) if !scenario.has(Flaw::FenceIsClock) => (fence + 1).max(0),
            _ => 0,
        };
        self.broken.fence |= fence <= self.store.given;
        self.store.given = fence;
        self.store.fence = Some(fence);
        if !scenario.clock_stands {
            self.clock_ticks();
        }
    }

    pub(super) fn clock_ticks(&mut self) {
        let passes = |ahead: i8| (ahead - 1).max(-1);
        self.store.fence = self.store.fence.map(passes);
        self.store.given = passes(self.store.given);
    }

    /// Releases the lock if the turn holds it, and leaves the queue.
    pub(super) fn release(&mut self, scenario: &Scenario, turn: usize) {
        let own = self.store.is_locked_by(turn) || scenario.has(Flaw::ReleaseWithoutCompare);
        if scenario.mode_of(turn) == Mode::Foreign {
            self.store.lock = self.store.lock.filter(|lock| lock.turn != turn);
            return;
        }
        self.settle_record(scenario, turn);
        self.store.queue.retain(|(_, waiter)| *waiter != turn);
        self.forget_empty_queue();
        if own {
            self.unlock(scenario);
            self.hand_over(scenario);
        }
    }

    fn unlock(&mut self, scenario: &Scenario) {
        self.store.lock = None;
        let passed = self.store.fence.is_some_and(|fence| fence < 0);
        if passed || scenario.has(Flaw::FenceForgotten) {
            self.store.fence = None;
        }
    }

    /// An instance polls the queue. Returns whether the queue has its liveness field.
    pub(super) fn poll(&mut self, scenario: &Scenario, instance: usize) -> bool {
        let known = self.store.seen[instance].is_some();
        if !known && scenario.has(Flaw::LossSeenByFieldAlone) {
            return false;
        }
        let waits = |(_, turn): &(u8, usize)| scenario.instance_of(*turn) == instance;
        if known || self.store.queue.iter().any(waits) {
            self.store.seen[instance] = Some(Seen::Fresh);
        }
        if let Some(dead) = self.instances[instance].dead.take()
            && (self.store.is_locked_by(dead) || scenario.has(Flaw::TakeOverWithoutCompare))
        {
            self.store.lock = None;
        }
        if self.store.lock.is_none() && !scenario.has(Flaw::PollHandsNothingOver) {
            self.hand_over(scenario);
        }
        known
    }

    /// Sends a message to a turn's instance, if it subscribes.
    pub(super) fn publish(&mut self, scenario: &Scenario, turn: usize, letter: Letter) {
        let over = matches!(self.turns[turn].phase, Phase::Over | Phase::Crashed);
        if self.instances[scenario.instance_of(turn)].subscribed && !over {
            *self.turns[turn].mail.slot(letter) = true;
        }
    }

    /// Records, for the properties, whether `next` overtakes a waiter.
    fn record_order(&mut self, scenario: &Scenario, next: usize) {
        if self.store.is_locked_by(next) {
            return;
        }
        let next_joined = self.turns[next].joined;
        let next_arrival = self.turns[next].arrival;
        self.broken.order |= self.turns.iter().enumerate().any(|(turn, waiter)| {
            let instance = &self.instances[scenario.instance_of(turn)];
            turn != next
                && waiter.joined
                && matches!(waiter.phase, Phase::Asking | Phase::Waiting)
                && !waiter.disturbed
                && !waiter.must_stop
                && !waiter.superseded
                && !waiter.mail.interrupt
                && instance.process == Process::Running
                && (!next_joined || waiter.arrival < next_arrival)
        });
    }
}
