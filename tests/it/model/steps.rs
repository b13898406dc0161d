//! The possible steps and their effects: on turns, their instances, the commands and messages under
//! way, the store, and time.
//!
//! Invariant: every step changes the state. A poll without news, or a repeated message while the
//! first is under way, could repeat for ever, and would only mean that time passes.

use stateright::{Model, Property};

use super::properties;
use super::world::{
    Doubt, Fault, Flaw, Letter, Mode, Phase, Process, Reply, Scenario, Seen, Term, Turn, Wire,
    World,
};

/// One step. The numbers identify turns or instances.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// A client's turn starts: it requests the lock.
    Arrive(usize),
    /// The store executes the turn's command.
    Execute(usize),
    /// The store executes a command that its sender gave up.
    ExecuteStray(usize),
    /// The turn receives its reply.
    ReceiveReply(usize),
    /// The turn receives a message.
    Read(usize, Letter),
    /// The turn's response ends, or is cut.
    Finish(usize),
    /// A turn that leaves repeats its release.
    RepeatRelease(usize),
    /// An instance polls the queues of its turns.
    Poll(usize),
    /// An instance checks whether the instance of the holder that it saw is alive.
    LookUp(usize),

    /// From now on no command that the turn gave up can be executed.
    CommandDeadlinePasses(usize),
    DeadlinePasses(usize),
    LockExpires,
    QueueExpires,
    FenceExpires,
    RecordExpires,
    LivenessGrowsStale(usize),
    ClockTicks,
    KeyExpires(usize),
    ConnectionSeenBroken(usize),

    LoseCommand(usize),
    LoseReply(usize),
    Delay(usize),
    ComeLate(usize),
    MissOffer,
    LoseMessage(usize, Letter),
    Leave(usize),
    Unsubscribe(usize),
    SubscribeAgain(usize),
    Crash(usize),
    Pause(usize),
    Resume(usize),
    Lapse(usize),
    RestoreKey(usize),
    SetClockBack,
}

const LETTERS: [Letter; 3] = [Letter::Granted, Letter::Superseded, Letter::Interrupt];

impl Model for Scenario {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::before(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for turn in 0..self.turns.len() {
            world.steps_of_turn(self, turn, steps);
        }
        for instance in 0..world.instances.len() {
            world.steps_of_instance(self, instance, steps);
        }
        world.steps_of_time(self, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.apply(self, step);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::for_scenario(self)
    }
}

// === Possible steps ===

impl World {
    fn steps_of_turn(&self, scenario: &Scenario, number: usize, steps: &mut Vec<Step>) {
        let turn = &self.turns[number];
        let running = self.process_of(scenario, number) == Process::Running;
        let may = |fault| self.faults_left > 0 && scenario.kinds.contains(&fault);
        if turn.stray.is_some() {
            steps.push(Step::ExecuteStray(number));
        }
        if turn.stray.is_some() || turn.doubt == Doubt::MayCome {
            steps.push(Step::CommandDeadlinePasses(number));
        }
        match turn.wire {
            Wire::Acquire => {
                steps.push(Step::Execute(number));
                if may(Fault::Lost) && running {
                    steps.push(Step::LoseCommand(number));
                }
                if may(Fault::Delayed) && running {
                    steps.push(Step::Delay(number));
                }
                if may(Fault::Late) {
                    steps.push(Step::ComeLate(number));
                }
            }
            Wire::Release => {
                steps.push(Step::Execute(number));
                if may(Fault::Lost) && running {
                    steps.push(Step::LoseReply(number));
                }
            }
            Wire::Reply(_) if running => {
                steps.push(Step::ReceiveReply(number));
                if may(Fault::Lost) {
                    steps.push(Step::LoseReply(number));
                }
            }
            _ => {}
        }
        for letter in LETTERS {
            if *turn.mail.clone().slot(letter) {
                if running {
                    steps.push(Step::Read(number, letter));
                }
                if may(Fault::MessageLost) {
                    steps.push(Step::LoseMessage(number, letter));
                }
            }
        }
        if !running {
            return;
        }
        match turn.phase {
            Phase::Absent => {
                let arrived = |before: usize| self.turns[before].phase != Phase::Absent;
                if number.checked_sub(1).is_none_or(arrived) {
                    steps.push(Step::Arrive(number));
                }
            }
            Phase::AtBackend => steps.push(Step::Finish(number)),
            Phase::Leaving if turn.wire == Wire::Silent => steps.push(Step::RepeatRelease(number)),
            Phase::Asking | Phase::Waiting if may(Fault::Left) => steps.push(Step::Leave(number)),
            _ => {}
        }
    }

    fn steps_of_instance(&self, scenario: &Scenario, number: usize, steps: &mut Vec<Step>) {
        let instance = &self.instances[number];
        let may = |fault| self.faults_left > 0 && scenario.kinds.contains(&fault);
        let crashed = instance.process == Process::Crashed;
        if self.store.seen[number] == Some(Seen::Fresh) && !self.polls(scenario, number) {
            steps.push(Step::LivenessGrowsStale(number));
        }
        if instance.key && (crashed || instance.lapsed) {
            steps.push(Step::KeyExpires(number));
        }
        if crashed {
            if instance.subscribed {
                steps.push(Step::ConnectionSeenBroken(number));
            }
            return;
        }
        if may(Fault::Lapsed) && !instance.lapsed {
            steps.push(Step::Lapse(number));
        }
        if may(Fault::Crashed) {
            steps.push(Step::Crash(number));
        }
        if may(Fault::Unsubscribed) && instance.subscribed {
            steps.push(Step::Unsubscribe(number));
        }
        if instance.process == Process::Paused {
            steps.push(Step::Resume(number));
            return;
        }
        if may(Fault::Paused) {
            steps.push(Step::Pause(number));
        }
        if self.polls(scenario, number) {
            steps.push(Step::Poll(number));
        }
        if let Some(holder) = instance.holder
            && !self.instances[scenario.instance_of(holder)].key
        {
            steps.push(Step::LookUp(number));
        }
        if !instance.subscribed {
            steps.push(Step::SubscribeAgain(number));
        }
        if instance.lapsed {
            steps.push(Step::RestoreKey(number));
        }
    }

    fn steps_of_time(&self, scenario: &Scenario, steps: &mut Vec<Step>) {
        let may = |fault| self.faults_left > 0 && scenario.kinds.contains(&fault);
        if let Some(lock) = self.store.lock {
            let turn = &self.turns[lock.turn];
            let crashed = turn.phase == Phase::Crashed;
            let gone = crashed || turn.phase == Phase::Over;
            match lock.term {
                Term::Offer if scenario.has(Flaw::OfferWithoutEnd) => {}
                // A few seconds are enough for a waiter that subscribes or polls.
                Term::Offer => {
                    if gone || self.process_of(scenario, lock.turn) != Process::Running {
                        steps.push(Step::LockExpires);
                    } else if may(Fault::OfferMissed) {
                        steps.push(Step::MissOffer);
                    }
                }
                Term::Lease | Term::OlderLease => {
                    let counted = lock.term == Term::Lease && !gone;
                    if scenario.leases_end && counted && !turn.deadline_passed {
                        steps.push(Step::DeadlinePasses(lock.turn));
                    }
                    let deadline_first = counted && !scenario.has(Flaw::DeadlineIgnored);
                    let ends = scenario.leases_end && (turn.deadline_passed || !deadline_first);
                    // A lease is longer than the detection of a dead holder takes. So where leases
                    // don't end before their turns, they end only after all turns.
                    if ends || self.is_over() {
                        steps.push(Step::LockExpires);
                    }
                }
            }
        }
        let polled = (0..self.instances.len()).any(|number| self.polls(scenario, number));
        // A queue is kept for longer than a command may be under way.
        let acquires = |turn: &Turn| turn.wire == Wire::Acquire || turn.stray.is_some();
        if self.store.has_queue() && !polled && !self.turns.iter().any(acquires) {
            steps.push(Step::QueueExpires);
        }
        let leased = self.store.lock.is_some_and(|lock| lock.term != Term::Offer);
        // The fence is kept for at least the lease that it came with, and at least until the clock
        // has passed it, unless the clock is set back by more than a lease.
        let may_go = scenario.clock_stands || self.is_over();
        if self.store.fence.is_some_and(|ahead| ahead < 0) && !leased && may_go {
            steps.push(Step::FenceExpires);
        }
        // A turn is remembered for longer than a command may be under way, and its repeats come before that.
        if self.store.record.is_some() && self.is_over() && !self.turns.iter().any(acquires) {
            steps.push(Step::RecordExpires);
        }
        if scenario.clock_stands {
            steps.push(Step::ClockTicks);
            // Without a kept fence nothing could know that the clock was ahead.
            if may(Fault::ClockSetBack) && self.store.fence.is_some() {
                steps.push(Step::SetClockBack);
            }
        }
    }

    pub(super) fn process_of(&self, scenario: &Scenario, turn: usize) -> Process {
        self.instances[scenario.instance_of(turn)].process
    }
}

// === Effects of steps ===

impl World {
    fn apply(&mut self, scenario: &Scenario, step: Step) {
        match step {
            Step::Arrive(turn) => self.ask(turn),
            Step::Execute(turn) => self.execute(scenario, turn),
            Step::ExecuteStray(turn) => self.execute_stray(scenario, turn),
            Step::ReceiveReply(turn) => self.receive_reply(scenario, turn),
            Step::Read(turn, letter) => self.read(scenario, turn, letter),
            Step::Finish(turn) => self.turns[turn].leave(),
            Step::RepeatRelease(turn) => self.repeat_release(turn),
            Step::Poll(instance) => self.poll_queue(scenario, instance),
            Step::LookUp(instance) => {
                let instance = &mut self.instances[instance];
                instance.dead = instance.holder;
            }
            Step::CommandDeadlinePasses(turn) => {
                self.turns[turn].doubt = Doubt::MayHaveCome;
                if !scenario.has(Flaw::NotAfterIgnored) {
                    self.turns[turn].stray = None;
                }
            }
            Step::DeadlinePasses(turn) => {
                self.turns[turn].disturbed = true;
                self.turns[turn].deadline_passed = !scenario.has(Flaw::DeadlineIgnored);
            }
            Step::LockExpires => self.store.lock = None,
            Step::QueueExpires => {
                self.store.queue.clear();
                self.store.seen.fill(None);
                self.store.newest = 0;
                // Superseded turns are known only until then.
                for turn in &mut self.turns {
                    turn.superseded = false;
                }
            }
            Step::FenceExpires => self.store.fence = None,
            Step::RecordExpires => self.store.record = None,
            Step::LivenessGrowsStale(instance) => self.store.seen[instance] = Some(Seen::Stale),
            Step::ClockTicks => self.clock_ticks(),
            Step::KeyExpires(instance) => self.instances[instance].key = false,
            Step::ConnectionSeenBroken(instance) => self.instances[instance].subscribed = false,
            fault => self.go_wrong(scenario, fault),
        }
    }

    pub(super) fn ask(&mut self, number: usize) {
        let turn = &mut self.turns[number];
        turn.phase = Phase::Asking;
        turn.wire = Wire::Acquire;
        turn.deadline_passed = false;
        if let Some(lock) = &mut self.store.lock
            && lock.turn == number
            && lock.term == Term::Lease
        {
            lock.term = Term::OlderLease;
        }
    }

    fn execute(&mut self, scenario: &Scenario, number: usize) {
        match self.turns[number].wire {
            Wire::Acquire => {
                let ticket = self.turns[number].ticket;
                let reply = self.acquire(scenario, number, ticket);
                self.turns[number].wire = Wire::Reply(reply);
            }
            Wire::Release => {
                self.release(scenario, number);
                let turn = &mut self.turns[number];
                turn.wire = Wire::Silent;
                if turn.doubt != Doubt::MayCome || scenario.has(Flaw::InDoubtReleasedOnce) {
                    turn.end();
                }
            }
            Wire::Silent | Wire::Reply(_) => {}
        }
    }

    fn execute_stray(&mut self, scenario: &Scenario, number: usize) {
        let before = self.store.lock;
        if let Some(ticket) = self.turns[number].stray.take() {
            self.acquire(scenario, number, ticket);
        }
        match &mut self.store.lock {
            Some(lock) if before.is_none_or(|before| before != *lock) && lock.turn == number => {
                lock.term = match lock.term {
                    Term::Lease => Term::OlderLease,
                    other => other,
                }
            }
            _ => {}
        }
    }

    fn receive_reply(&mut self, scenario: &Scenario, number: usize) {
        let lapsed = self.instances[scenario.instance_of(number)].lapsed;
        let turn = &mut self.turns[number];
        let Wire::Reply(reply) = turn.wire else {
            return;
        };
        turn.wire = Wire::Silent;
        match reply {
            Reply::Granted => {
                if scenario.has(Flaw::DeadlineFromReply) {
                    turn.deadline_passed = false;
                }
                if turn.must_stop || turn.deadline_passed || lapsed {
                    turn.leave();
                } else {
                    turn.begin();
                }
            }
            // A place or an offer that it has is given back.
            Reply::Repeated if turn.ticket != 0 => turn.leave(),
            Reply::Waiting { ticket, holder } => {
                turn.ticket = ticket;
                if turn.must_stop {
                    return turn.leave();
                }
                turn.phase = Phase::Waiting;
                if scenario.mode_of(number) == Mode::Interrupt {
                    let first = turn.target.is_none();
                    if first || scenario.has(Flaw::OlderInterrupts) {
                        turn.target = Some(holder);
                    }
                    self.interrupt(scenario, number, holder);
                }
            }
            Reply::Late if turn.ticket != 0 && !turn.must_stop => turn.phase = Phase::Waiting,
            Reply::Busy | Reply::Full | Reply::Superseded | Reply::Repeated | Reply::Late => {
                // A late command did not change its place in the queue, or its offer.
                let placed = reply == Reply::Late && turn.ticket != 0;
                // And this reply says nothing about an earlier command that was executed
                // after it, even if that one's deadline has passed by now. (Without this rule
                // it takes four turns, two faults and four million states until a lock is left over.)
                let in_doubt = turn.doubt != Doubt::Nothing;
                if in_doubt || (placed && !scenario.has(Flaw::LateIsRefusal)) {
                    turn.leave();
                } else {
                    turn.end();
                }
            }
        }
    }

    /// An interrupting turn that waits tells the holder to stop.
    fn interrupt(&mut self, scenario: &Scenario, by: usize, holder: usize) {
        let target = &self.turns[holder];
        let heeds = matches!(
            target.phase,
            Phase::Asking | Phase::Waiting | Phase::AtBackend
        );
        if scenario.mode_of(holder) != Mode::Foreign
            && self.turns[by].target == Some(holder)
            && holder != by
            && heeds
            && !target.must_stop
        {
            self.broken.interruption |= target.arrival > self.turns[by].arrival;
            self.publish(scenario, holder, Letter::Interrupt);
        }
    }

    fn read(&mut self, scenario: &Scenario, number: usize, letter: Letter) {
        *self.turns[number].mail.slot(letter) = false;
        let turn = &mut self.turns[number];
        match (letter, turn.phase) {
            (Letter::Granted, Phase::Waiting) if scenario.has(Flaw::StartsOnMessage) => {
                turn.begin();
            }
            (Letter::Granted, Phase::Waiting) => self.ask(number),
            // A turn that asks learns it from the reply, or at the next poll.
            (Letter::Granted, _) => {}
            (_, Phase::Asking) => turn.must_stop = true,
            (_, Phase::Waiting | Phase::AtBackend) => turn.leave(),
            _ => {}
        }
    }

    fn repeat_release(&mut self, number: usize) {
        let turn = &self.turns[number];
        // The release is repeated for ever; only these repetitions have an effect.
        if turn.doubt != Doubt::MayCome
            || self.store.is_locked_by(number)
            || self.store.has_in_queue(number)
        {
            self.turns[number].wire = Wire::Release;
        }
    }

    fn poll_queue(&mut self, scenario: &Scenario, instance: usize) {
        let known = self.poll(scenario, instance);
        let holder = self.store.lock.map(|lock| lock.turn);
        if scenario
            .kinds
            .iter()
            .any(|kind| matches!(kind, Fault::Crashed | Fault::Lapsed))
        {
            let elsewhere = |turn: &usize| scenario.instance_of(*turn) != instance;
            self.instances[instance].holder = holder.filter(elsewhere);
        }
        for turn in self.turns_of(scenario, instance) {
            if self.turns[turn].phase != Phase::Waiting {
                continue;
            }
            let lost = if scenario.has(Flaw::LossSeenByFieldAlone) {
                !known
            } else {
                !self.store.has_in_queue(turn) && holder != Some(turn)
            };
            let offered = holder == Some(turn) && !scenario.has(Flaw::PollOverlooksOffer);
            if lost || offered {
                self.ask(turn);
            } else if let Some(holder) = holder {
                self.interrupt(scenario, turn, holder);
            }
        }
    }
}

// === impl Turn ===

impl Turn {
    /// Sends its request to the backend.
    fn begin(&mut self) {
        self.phase = Phase::AtBackend;
        self.was_sent = true;
    }

    pub(super) fn leave(&mut self) {
        self.phase = Phase::Leaving;
        self.wire = Wire::Release;
    }

    /// Leaves without waiting for a pending reply.
    pub(super) fn abandon(&mut self) {
        if self.wire == Wire::Acquire {
            self.stray = Some(self.ticket);
        }
        if self.wire != Wire::Silent {
            self.doubt = Doubt::MayCome;
        }
        self.leave();
    }

    /// No reply came in time. A turn with a place in the queue goes on waiting, and asks again when
    /// there is a reason; a turn without a place is refused.
    pub(super) fn give_up_command(&mut self) {
        self.disturbed = true;
        self.doubt = Doubt::MayCome;
        self.wire = Wire::Silent;
        if self.ticket != 0 && !self.must_stop {
            self.phase = Phase::Waiting;
        } else {
            self.leave();
        }
    }

    /// Turns that are over are indistinguishable, to keep the number of states small.
    fn end(&mut self) {
        *self = Self {
            phase: Phase::Over,
            arrival: self.arrival,
            joined: self.joined,
            stray: self.stray,
            was_sent: self.was_sent,
            ..Self::absent()
        };
    }

    pub(super) fn crash(&mut self) {
        if self.phase != Phase::Over {
            let had_lock = self.phase == Phase::AtBackend;
            self.end();
            self.had_lock = had_lock;
            self.phase = Phase::Crashed;
            self.stray = None;
        }
    }
}
