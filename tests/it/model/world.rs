//! The state of the model: the store's keys for one session, the instances, the turns, and what is
//! under way between them; and the options of an exploration.
//!
//! Invariant: a state holds only what a later step or a property depends on; anything
//! else would multiply the states.
//!
//! Time is left out. Each of its effects (a lease expires, a liveness field grows stale) is an
//! event of its own, and of durations only the possible order of events is kept.

/// The subject of an exploration: the turns, the possible faults and their number, and the broken
/// rule.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// The instance of each turn and its mode for a busy session. They are sent in this order; the
    /// store may see them in any order.
    pub(crate) turns: &'static [(usize, Mode)],
    /// The maximum number of faults in one history.
    pub(crate) faults: u8,
    /// The kinds of faults that may happen.
    pub(crate) kinds: &'static [Fault],
    /// Whether leases expire while turns are under way.
    pub(crate) leases_end: bool,
    /// Whether the store's clock may stand still between two commands. If not, each command is
    /// later than the one before, and the clock alone makes the fence rise.
    pub(crate) clock_stands: bool,
    /// The maximum number of waiters.
    pub(crate) max_waiters: usize,
    /// The first of the turns that have one once id, which are all from there on; `None`: no turn has one.
    pub(crate) repeats_from: Option<usize>,
    /// The states that the exploration must reach.
    pub(crate) reaches: &'static [&'static str],
    /// The rule that is left out, to prove that the checker finds the violation.
    pub(crate) flaw: Option<Flaw>,
}

/// What a turn does when its session is busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Refuse,
    Wait,
    Interrupt,
    /// Foreign code: sets the key if it is free, deletes it, and ignores the queue.
    Foreign,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// A command or its reply is lost.
    Lost,
    /// A command is executed after its sender gave it up.
    Delayed,
    /// A command arrives after its deadline.
    Late,
    /// An offer is accepted too late.
    OfferMissed,
    /// A message to one turn is lost unnoticed.
    MessageLost,
    /// The connection for messages breaks.
    Unsubscribed,
    /// A client disconnects while its turn asks or waits.
    Left,
    /// A process crashes.
    Crashed,
    /// A process pauses until anything may have expired.
    Paused,
    /// An instance's own key isn't renewed in time.
    Lapsed,
    /// The store's clock is set back.
    ClockSetBack,
}

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Flaw {
    /// A release deletes the lock of any holder.
    ReleaseWithoutCompare,
    /// A take-over deletes the lock of any holder.
    TakeOverWithoutCompare,
    /// A holder goes on after its lease may have expired.
    DeadlineIgnored,
    /// A holder counts its lease from the reply instead of the command.
    DeadlineFromReply,
    /// A waiter starts on the message that it was granted, without asking the store again.
    StartsOnMessage,
    /// An instance whose key expired goes on with its earlier claims.
    OldClaimsGoOn,
    /// The fence is only the clock.
    FenceIsClock,
    /// A release deletes the fence even if the clock has not passed it.
    FenceForgotten,
    /// A free lock is granted past the waiters.
    TakenPastQueue,
    /// A command is executed at any time, however late.
    NotAfterIgnored,
    /// A claim is released from the store only once, although an earlier command of it may still be
    /// under way.
    InDoubtReleasedOnce,
    /// A poll detects lost places only by the liveness field of the instance.
    LossSeenByFieldAlone,
    /// A poll doesn't hand over a free lock.
    PollHandsNothingOver,
    /// A poll overlooks that one of its own waiters holds the lock.
    PollOverlooksOffer,
    /// An offer never expires.
    OfferWithoutEnd,
    /// A turn whose command came too late ends, although it may have a place in the queue.
    LateIsRefusal,
    /// A turn that is handed the lock keeps its place in the queue.
    PlaceKept,
    /// A free lock is granted to any turn that asks, also to a superseded one.
    SupersededServed,
    /// An interrupting turn that lost its place and returns interrupts a newer one.
    OlderInterrupts,
    /// A turn that was granted its lock and lost it counts as forgotten.
    DoubtIsForgotten,
    /// A turn that comes back for its place isn't compared with the record.
    ReturnUnchecked,
    /// A turn that was sent nothing deletes the record of any turn.
    ForgetsAnyRecord,
    /// A turn that was sent nothing leaves its record.
    NothingIsForgotten,
    /// A turn that was sent deletes its record when it ends.
    EndedIsForgotten,
}

/// One state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) instances: Vec<Instance>,
    pub(crate) turns: Vec<Turn>,
    pub(crate) faults_left: u8,
    pub(crate) broken: Broken,
}

/// The store's keys for the session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) lock: Option<Lock>,
    /// Ticket and turn, by ticket. The waiters' tokens are part of it.
    pub(crate) queue: Vec<(u8, usize)>,
    /// From the waiters' hash: the liveness field of each instance.
    pub(crate) seen: Vec<Option<Seen>>,
    /// From the waiters' hash: the ticket of the newest interrupting turn; 0 if there is none.
    pub(crate) newest: u8,
    /// The kept fence minus the clock; -1 means that the clock has passed it.
    pub(crate) fence: Option<i8>,
    /// The last granted fence minus the clock. Only the property reads it.
    pub(crate) given: i8,
    /// The next ticket.
    pub(crate) tickets: u8,
    /// The record of the turns' once id.
    pub(crate) record: Option<Record>,
}

/// What the store remembers of a turn that is executed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) turn: usize,
    pub(crate) state: Recorded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Recorded {
    Waits,
    Granted,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lock {
    pub(crate) turn: usize,
    pub(crate) term: Term,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Term {
    /// For the few seconds in which a waiter must accept its offer.
    Offer,
    /// For a lease that ends after the turn's own deadline.
    Lease,
    /// For a lease from an earlier command than the one that the turn counts from.
    OlderLease,
}

/// The liveness field of an instance in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    Fresh,
    Stale,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Instance {
    pub(crate) process: Process,
    /// Whether it is subscribed to its channel.
    pub(crate) subscribed: bool,
    /// Whether its own key exists.
    pub(crate) key: bool,
    /// Whether its own deadline has passed, which comes before the end of its key.
    pub(crate) lapsed: bool,
    /// The turn that it last saw as the holder.
    pub(crate) holder: Option<usize>,
    /// The holder whose instance it found dead.
    pub(crate) dead: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Process {
    Running,
    Paused,
    Crashed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Turn {
    pub(crate) phase: Phase,
    pub(crate) wire: Wire,
    /// The ticket in an acquisition that was given up and may still be executed.
    pub(crate) stray: Option<u8>,
    /// Whether it gave up an acquisition, and what may have become of it.
    pub(crate) doubt: Doubt,
    /// The moment when the store first saw it, which is its ticket if it waits; 0 means not yet.
    pub(crate) arrival: u8,
    /// Whether the store admitted it to the queue.
    pub(crate) joined: bool,
    /// The ticket that it knows; 0 if it knows none.
    pub(crate) ticket: u8,
    /// Whether it received a message to stop while it asked.
    pub(crate) must_stop: bool,
    /// Whether its own deadline has passed, counted from the command it last sent.
    pub(crate) deadline_passed: bool,
    /// The messages under way to it.
    pub(crate) mail: Mail,
    /// Whether it had a fault, which may cost it its place.
    pub(crate) disturbed: bool,
    /// Whether it was removed from the queue in favour of a newer turn.
    pub(crate) superseded: bool,
    /// Whether it crashed at the backend.
    pub(crate) had_lock: bool,
    /// Whether its backend was sent something.
    pub(crate) was_sent: bool,
    /// The turn that it interrupts: the first holder that it was named.
    pub(crate) target: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Not started yet.
    Absent,
    /// Has sent an acquisition.
    Asking,
    Waiting,
    AtBackend,
    /// Removes itself from the store.
    Leaving,
    /// Over, and removed from the store as far as it knows.
    Over,
    Crashed,
}

/// What a turn knows about an acquisition without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Doubt {
    Nothing,
    /// It may have been executed, or may still be.
    MayCome,
    /// Its deadline has passed; it may have been executed before.
    MayHaveCome,
}

/// A turn's command under way, or the reply to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    Silent,
    Acquire,
    Reply(Reply),
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reply {
    Granted,
    Busy,
    Full,
    Superseded,
    /// Another turn with its once id waits, runs, has ended or is in doubt.
    Repeated,
    Waiting {
        ticket: u8,
        holder: usize,
    },
    Late,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Mail {
    pub(crate) granted: bool,
    pub(crate) superseded: bool,
    pub(crate) interrupt: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Letter {
    Granted,
    Superseded,
    Interrupt,
}

/// Violations that a step, not a state, shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    /// A fence was granted that is not above the last one.
    pub(crate) fence: bool,
    /// A turn got the lock before an older waiter that had kept its place.
    pub(crate) order: bool,
    /// A turn was interrupted by an older one.
    pub(crate) interruption: bool,
}

// === impl Scenario ===

impl Scenario {
    pub(crate) const fn new(turns: &'static [(usize, Mode)]) -> Self {
        Self {
            turns,
            faults: 0,
            kinds: &[],
            leases_end: false,
            clock_stands: false,
            max_waiters: 8,
            repeats_from: None,
            reaches: &[],
            flaw: None,
        }
    }

    pub(crate) const fn with_faults(mut self, faults: u8, kinds: &'static [Fault]) -> Self {
        self.faults = faults;
        self.kinds = kinds;
        self
    }

    pub(crate) const fn with_max_waiters(mut self, max_waiters: usize) -> Self {
        self.max_waiters = max_waiters;
        self
    }

    pub(crate) const fn whose_turns_are_repeats_from(mut self, first: usize) -> Self {
        self.repeats_from = Some(first);
        self
    }

    pub(crate) const fn whose_leases_end(mut self) -> Self {
        self.leases_end = true;
        self
    }

    pub(crate) const fn whose_clock_may_stand(mut self) -> Self {
        self.clock_stands = true;
        self
    }

    pub(crate) const fn that_reaches(mut self, states: &'static [&'static str]) -> Self {
        self.reaches = states;
        self
    }

    pub(crate) const fn broken_by(mut self, flaw: Flaw) -> Self {
        self.flaw = Some(flaw);
        self
    }

    pub(crate) fn instance_of(&self, turn: usize) -> usize {
        self.turns[turn].0
    }

    pub(crate) fn mode_of(&self, turn: usize) -> Mode {
        self.turns[turn].1
    }

    /// Whether the turn has the once id.
    pub(crate) fn is_once(&self, turn: usize) -> bool {
        self.repeats_from.is_some_and(|first| first <= turn)
    }

    pub(crate) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

// === impl World ===

impl World {
    pub(crate) fn before(scenario: &Scenario) -> Self {
        let instances = scenario.turns.iter().map(|turn| turn.0 + 1).max();
        let instances = instances.unwrap_or(0);
        Self {
            store: Store {
                lock: None,
                queue: Vec::new(),
                seen: vec![None; instances],
                newest: 0,
                fence: None,
                given: -1,
                tickets: 1,
                record: None,
            },
            instances: vec![Instance::new(); instances],
            turns: vec![Turn::absent(); scenario.turns.len()],
            faults_left: scenario.faults,
            broken: Broken::default(),
        }
    }

    /// Whether every turn is over.
    pub(crate) fn is_over(&self) -> bool {
        let over = |turn: &Turn| matches!(turn.phase, Phase::Over | Phase::Crashed);
        self.turns.iter().all(over)
    }

    /// Whether the turn is at the backend and may move bytes there.
    pub(crate) fn is_live(&self, scenario: &Scenario, turn: usize) -> bool {
        let instance = &self.instances[scenario.instance_of(turn)];
        self.turns[turn].phase == Phase::AtBackend
            && !self.turns[turn].deadline_passed
            && !instance.lapsed
    }

    /// Whether the instance polls the queue every half second.
    pub(crate) fn polls(&self, scenario: &Scenario, instance: usize) -> bool {
        let waits =
            |turn: &usize| matches!(self.turns[*turn].phase, Phase::Asking | Phase::Waiting);
        self.instances[instance].process == Process::Running
            && self.turns_of(scenario, instance).any(|turn| waits(&turn))
    }

    pub(crate) fn turns_of<'s>(
        &self,
        scenario: &'s Scenario,
        instance: usize,
    ) -> impl Iterator<Item = usize> + use<'s> {
        (0..scenario.turns.len()).filter(move |turn| scenario.instance_of(*turn) == instance)
    }
}

// === impl Store ===

impl Store {
    pub(crate) fn is_locked_by(&self, turn: usize) -> bool {
        self.lock.is_some_and(|lock| lock.turn == turn)
    }

    pub(crate) fn has_in_queue(&self, turn: usize) -> bool {
        self.queue.iter().any(|(_, waiter)| *waiter == turn)
    }

    /// Whether there is a waiters' hash or a queue.
    pub(crate) fn has_queue(&self) -> bool {
        self.newest != 0 || !self.queue.is_empty() || self.seen.iter().any(Option::is_some)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock.is_none() && !self.has_queue() && self.fence.is_none() && self.record.is_none()
    }
}

// === impl Instance ===

impl Instance {
    fn new() -> Self {
        Self {
            process: Process::Running,
            subscribed: true,
            key: true,
            lapsed: false,
            holder: None,
            dead: None,
        }
    }
}

// === impl Turn ===

impl Turn {
    pub(crate) fn absent() -> Self {
        Self {
            phase: Phase::Absent,
            wire: Wire::Silent,
            stray: None,
            doubt: Doubt::Nothing,
            arrival: 0,
            joined: false,
            ticket: 0,
            must_stop: false,
            deadline_passed: false,
            mail: Mail::default(),
            disturbed: false,
            superseded: false,
            target: None,
            had_lock: false,
            was_sent: false,
        }
    }
}

// === impl Mail ===

impl Mail {
    pub(crate) fn slot(&mut self, letter: Letter) -> &mut bool {
        match letter {
            Letter::Granted => &mut self.granted,
            Letter::Superseded => &mut self.superseded,
            Letter::Interrupt => &mut self.interrupt,
        }
    }
}
