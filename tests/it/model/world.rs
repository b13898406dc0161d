//! What there is: the store's keys for one session, the instances, the turns, and what is under way
//! between them. And what may be enabled, or broken, in one exploration.
//!
//! Invariant: a state holds no more than what a later step depends on, or a property asks; whatever
//! else it held would multiply the states.
//!
//! Time is left out. What it does (a lease ends, a heartbeat grows old) is an event of its own,
//! and all that is kept of durations is which event can't come before which other.

/// What is explored: who comes, what may go wrong and how often, and which rule is broken.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// Each turn's instance and what it wants of a busy session. They are sent in this order; the
    /// store may see them in any other.
    pub(crate) turns: &'static [(usize, Mode)],
    /// How many faults there may be in one history.
    pub(crate) faults: u8,
    /// Which.
    pub(crate) kinds: &'static [Fault],
    /// Whether leases run out while turns are under way.
    pub(crate) leases_end: bool,
    /// Whether the store's clock may stand still between two commands. If not, each is later than
    /// the one before, and the fence has nothing to prove.
    pub(crate) clock_stands: bool,
    /// How many may wait.
    pub(crate) max_waiters: usize,
    /// The states that have to be among those that were explored.
    pub(crate) reaches: &'static [&'static str],
    /// The rule that is left out, to see that the checker misses it.
    pub(crate) flaw: Option<Flaw>,
}

/// What a turn wants of a busy session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Refuse,
    Wait,
    Interrupt,
    /// Not Seriatim: sets the key if it is free, deletes it, and knows of no queue.
    Foreign,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// A command is lost, or its answer.
    Lost,
    /// A command is given up by its sender, and executed later.
    Delayed,
    /// A command arrives after its last moment.
    Late,
    /// An offer is taken up too late.
    OfferMissed,
    /// A message to one turn is lost, and nobody notices.
    MessageLost,
    /// The connection that messages come over breaks.
    Unsubscribed,
    /// A client goes while its turn asks or waits.
    Left,
    /// A process ends.
    Crashed,
    /// A process stands still for as long as it takes for anything to run out.
    Paused,
    /// An instance's own key isn't extended in time.
    Lapsed,
    /// The store's clock is set back.
    ClockSetBack,
}

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Flaw {
    /// A release deletes the lock, whoever has it.
    ReleaseWithoutCompare,
    /// A take-over deletes the lock, whoever has it.
    TakeOverWithoutCompare,
    /// A holder goes on when its lease may be over.
    DeadlineIgnored,
    /// A holder counts its lease from the answer instead of from the command.
    DeadlineFromAnswer,
    /// A waiter starts when it hears that it was granted, and doesn't ask the store again.
    StartsOnMessage,
    /// An instance whose key ran out goes on with the claims that it made before.
    OldClaimsGoOn,
    /// The fence is the clock alone.
    FenceIsClock,
    /// A release deletes the fence even if the clock has not passed it.
    FenceForgotten,
    /// A free lock is taken past those who wait.
    TakenPastQueue,
    /// A command is executed however late it comes.
    NotAfterIgnored,
    /// A claim is taken out of the store once, though an earlier command of it may still be
    /// under way.
    InDoubtReleasedOnce,
    /// A poll finds out that a waiter lost its place by its instance's field alone.
    LossSeenByFieldAlone,
    /// A poll leaves a free lock free.
    PollHandsNothingOver,
    /// A poll does not notice that the holder is one of its own waiters.
    PollOverlooksOffer,
    /// An offer has no end.
    OfferWithoutEnd,
    /// Who is told that its command came too late is over, though it may have a place in the queue.
    LateIsRefusal,
    /// Whoever is handed the lock keeps its place in the queue as well.
    PlaceKept,
    /// A free lock is given to whoever asks, also if a newer turn has superseded it.
    SupersededServed,
    /// An interrupting turn that comes back after it lost its place interrupts a newer one.
    OlderInterrupts,
}

/// Everything at one moment.
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
    /// Ticket and turn, by ticket. The tokens of the waiters are in here as well.
    pub(crate) queue: Vec<(u8, usize)>,
    /// Of the waiters' hash: when each instance was last seen.
    pub(crate) seen: Vec<Option<Seen>>,
    /// Of the waiters' hash: the ticket of the newest interrupting turn; 0: there is none.
    pub(crate) newest: u8,
    /// The fence that is kept, less the clock; below 0 it is -1: the clock has passed it.
    pub(crate) fence: Option<i8>,
    /// The fence that was last given, less the clock. Nobody knows it but the property.
    pub(crate) given: i8,
    /// The next ticket.
    pub(crate) tickets: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lock {
    pub(crate) turn: usize,
    pub(crate) term: Term,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Term {
    /// For the few seconds in which whoever it was handed to has to take it up.
    Offer,
    /// For a lease that the turn's own deadline comes before.
    Lease,
    /// For a lease from an earlier command than the one that the turn now counts from.
    OlderLease,
}

/// An instance's heartbeat in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    Fresh,
    Stale,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Instance {
    pub(crate) process: Process,
    /// Whether the store counts it when it publishes.
    pub(crate) subscribed: bool,
    /// Whether its own key is there.
    pub(crate) key: bool,
    /// Whether its own deadline has passed, which comes before the end of its key.
    pub(crate) lapsed: bool,
    /// Whom it last saw hold the lock.
    pub(crate) holder: Option<usize>,
    /// Whose instance it found gone.
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
    /// An acquisition that was given up and may yet be executed, with the ticket it gives.
    pub(crate) stray: Option<u8>,
    /// Whether it has given up an acquisition.
    pub(crate) doubt: Doubt,
    /// When the store first saw it; 0: not yet. Its ticket, if it came to wait.
    pub(crate) arrival: u8,
    /// Whether the store let it into the queue.
    pub(crate) joined: bool,
    /// Its ticket as far as it was told; 0: it wasn't.
    pub(crate) ticket: u8,
    /// Whether it heard, while it asked, that it has to stop.
    pub(crate) told_to_stop: bool,
    /// Whether its own deadline has passed, counted from the command it last sent.
    pub(crate) deadline_passed: bool,
    /// Messages under way to it.
    pub(crate) mail: Mail,
    /// Whether it met with a fault, which may cost it its place.
    pub(crate) disturbed: bool,
    /// Whether it was taken out of the queue in favour of a newer one.
    pub(crate) superseded: bool,
    /// Whether it crashed at the backend.
    pub(crate) had_lock: bool,
    /// Whom it interrupts: the holder that it was first told of.
    pub(crate) target: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Not yet here.
    Absent,
    /// Has sent an acquisition.
    Asking,
    Waiting,
    AtBackend,
    /// Takes itself out of the store.
    Leaving,
    /// Over, and out of the store as far as it knows.
    Over,
    Crashed,
}

/// What a turn knows of an acquisition that it sent and got no answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Doubt {
    Nothing,
    /// It may have been executed, or may yet be.
    MayCome,
    /// Its last moment has passed; it may have been executed before.
    MayHaveCome,
}

/// A turn's command under way, or the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    Silent,
    Acquire,
    Answer(Answer),
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Granted,
    Busy,
    Full,
    Superseded,
    Waiting { ticket: u8, holder: usize },
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

/// What a step, not a state, has shown to be broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    /// A fence was given that is not above the one before.
    pub(crate) fence: bool,
    /// Someone got the lock before an older waiter that had kept its place.
    pub(crate) order: bool,
    /// A turn was interrupted by an older one.
    pub(crate) interruption: bool,
}

// === impl Scenario ===

impl Scenario {
    pub(crate) const fn of(turns: &'static [(usize, Mode)]) -> Self {
        Self {
            turns,
            faults: 0,
            kinds: &[],
            leases_end: false,
            clock_stands: false,
            max_waiters: 8,
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

    /// Whether the instance comes by at the queue every half second.
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

    /// Whether there is a hash of waiters, or a queue.
    pub(crate) fn has_queue(&self) -> bool {
        self.newest != 0 || !self.queue.is_empty() || self.seen.iter().any(Option::is_some)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock.is_none() && !self.has_queue() && self.fence.is_none()
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
            told_to_stop: false,
            deadline_passed: false,
            mail: Mail::default(),
            disturbed: false,
            superseded: false,
            target: None,
            had_lock: false,
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
