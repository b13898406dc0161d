//! The properties that hold in every state, the required end of every history, and the states that a
//! scenario must reach so that its exploration means something.
//!
//! "No turn waits for ever" and "every key expires" are one property of the ends of histories: each
//! history ends, and then every turn is over and the store is empty. `eventually` checks that, with
//! two known gaps. First, it overlooks a history with a cycle, so every exploration looks for one.
//! Second, where two paths lead to a state, it takes what was fulfilled on one path for fulfilled
//! on both. That does no harm here, as no history leaves this goal again. Faults are counted and
//! there is no cycle, so every history is finite, and no history can end otherwise.

use stateright::Property;

use super::world::{Instance, Mode, Phase, Recorded, Reply, Scenario, Term, Turn, Wire, World};

pub(crate) const ONE_AT_A_TIME: &str = "at most one turn is at the backend within its lease";
pub(crate) const FENCE_RISES: &str = "the fence rises with every grant";
pub(crate) const IN_ORDER: &str = "no turn is served before an older waiter that kept its place";
pub(crate) const NOTHING_LEFT: &str = "no lock and no place in the queue outlives its turn";
pub(crate) const NEWEST_WINS: &str = "no turn is served after it was superseded";
pub(crate) const OLDER_YIELD: &str = "no turn is interrupted by an older one";
pub(crate) const ONCE: &str = "of turns with one once id, at most one reaches the backend";
pub(crate) const NO_FALSE_DOUBT: &str = "no turn that was sent nothing stays in doubt";
pub(crate) const ALL_ENDS: &str = "every turn ends, and every key expires";

pub(crate) const HANDED_OVER: &str = "a lock is handed to a waiter";
pub(crate) const TWO_WAIT: &str = "two turns wait";
pub(crate) const QUEUE_FULL: &str = "the queue is full";
pub(crate) const REFUSED: &str = "a non-blocking turn is refused";
pub(crate) const LATE: &str = "a command arrives after its deadline";
pub(crate) const GIVEN_UP: &str = "a lock goes to a turn that has given up";
pub(crate) const NOT_NOTIFIED: &str = "a lock is offered without a message";
pub(crate) const OUT_OF_PLACE: &str = "a waiter lost its place, or missed its offer";
pub(crate) const CUT: &str = "a deadline passes at the backend";
pub(crate) const CUT_AND_FOLLOWED: &str =
    "a turn is served while the one before it is still at the backend";
pub(crate) const TAKEN_OVER: &str = "a dead holder's lock is taken over";
pub(crate) const OFFERED_TO_DEAD: &str = "a lock is offered to a dead waiter";
pub(crate) const FOUND_DEAD_ALIVE: &str = "an instance that is back is taken for dead";
pub(crate) const FENCE_AHEAD: &str = "the fence of a free lock is ahead of the clock";
pub(crate) const FREED_BY_STRANGER: &str = "a lock is free while a turn waits";
pub(crate) const INTERRUPTED_EARLY: &str = "an interrupt comes between grant and start";
pub(crate) const SUPERSEDED: &str = "a waiter is superseded";
pub(crate) const REPEAT_OF_WAITER: &str = "a repeat of a turn that waits is refused";
pub(crate) const REPEAT_IN_DOUBT: &str = "a repeat of a turn in doubt is refused";
pub(crate) const REPEAT_AFTER_END: &str = "a repeat of a turn that has ended is refused";
pub(crate) const REPEAT_SERVED: &str = "a repeat is served after a turn that was sent nothing";

/// The properties of a scenario.
pub(super) fn for_scenario(scenario: &Scenario) -> Vec<Property<Scenario>> {
    let mut properties = vec![
        Property::always(ONE_AT_A_TIME, |scenario: &Scenario, world: &World| {
            let turns = 0..world.turns.len();
            turns.filter(|turn| world.is_live(scenario, *turn)).count() <= 1
        }),
        Property::always(FENCE_RISES, |_, world: &World| !world.broken.fence),
        Property::always(IN_ORDER, |_, world: &World| !world.broken.order),
        Property::always(NEWEST_WINS, |_, world: &World| {
            let served = |phase, superseded| phase == Phase::AtBackend && superseded;
            !world
                .turns
                .iter()
                .any(|turn| served(turn.phase, turn.superseded))
        }),
        Property::always(OLDER_YIELD, |_, world: &World| !world.broken.interruption),
        Property::always(ONCE, |scenario: &Scenario, world: &World| {
            let turns = world.turns.iter().enumerate();
            let sent = turns.filter(|(number, turn)| scenario.is_once(*number) && turn.was_sent);
            sent.count() <= 1
        }),
        Property::always(NO_FALSE_DOUBT, |_, world: &World| {
            let unsent = |turn: &Turn| turn.phase == Phase::Over && !turn.was_sent;
            world.store.record.is_none_or(|record| {
                record.state != Recorded::Granted || !unsent(&world.turns[record.turn])
            })
        }),
        Property::always(NOTHING_LEFT, |_, world: &World| {
            let left = |turn| world.store.is_locked_by(turn) || world.store.has_in_queue(turn);
            let over = |turn: &usize| world.turns[*turn].phase == Phase::Over;
            !(0..world.turns.len()).filter(over).any(left)
        }),
        Property::eventually(ALL_ENDS, |_, world: &World| {
            world.is_over() && world.store.is_empty()
        }),
    ];
    let reached = witnesses().into_iter();
    properties.extend(reached.filter(|property| scenario.reaches.contains(&property.name)));
    properties
}

fn witnesses() -> Vec<Property<Scenario>> {
    vec![
        Property::sometimes(HANDED_OVER, |_, world: &World| offered(world).is_some()),
        Property::sometimes(TWO_WAIT, |_, world: &World| world.store.queue.len() > 1),
        Property::sometimes(QUEUE_FULL, |_, world: &World| {
            replied(world, Reply::Full).is_some()
        }),
        Property::sometimes(REFUSED, |_, world: &World| {
            replied(world, Reply::Busy).is_some()
        }),
        Property::sometimes(LATE, |_, world: &World| {
            replied(world, Reply::Late).is_some()
        }),
        Property::sometimes(GIVEN_UP, |_, world: &World| {
            let lock = world.store.lock.map(|lock| &world.turns[lock.turn]);
            lock.is_some_and(|turn| turn.phase == Phase::Leaving && turn.wire == Wire::Silent)
        }),
        Property::sometimes(NOT_NOTIFIED, |_, world: &World| {
            let unaware = |turn: &Turn| turn.phase == Phase::Waiting && !turn.mail.granted;
            offered(world).is_some_and(unaware)
        }),
        Property::sometimes(OUT_OF_PLACE, |_, world: &World| {
            world.turns.iter().enumerate().any(|(number, turn)| {
                turn.phase == Phase::Waiting
                    && !turn.superseded
                    && !world.store.has_in_queue(number)
                    && !world.store.is_locked_by(number)
            })
        }),
        Property::sometimes(CUT, |_, world: &World| turns_at_backend(world).any(is_cut)),
        Property::sometimes(CUT_AND_FOLLOWED, |_, world: &World| {
            turns_at_backend(world).any(is_cut) && !turns_at_backend(world).all(is_cut)
        }),
        Property::sometimes(TAKEN_OVER, |scenario: &Scenario, world: &World| {
            // Where leases don't end before their turns, a take-over is the only way to this state.
            let died_holding = |turn: &Turn| turn.phase == Phase::Crashed && turn.had_lock;
            !scenario.leases_end
                && world.turns.iter().any(died_holding)
                && turns_at_backend(world).next().is_some()
        }),
        Property::sometimes(OFFERED_TO_DEAD, |_, world: &World| {
            offered(world).is_some_and(|turn| turn.phase == Phase::Crashed)
        }),
        Property::sometimes(FOUND_DEAD_ALIVE, |scenario: &Scenario, world: &World| {
            let found = |instance: &Instance| instance.dead;
            let mut dead = world.instances.iter().filter_map(found);
            dead.any(|turn| world.instances[scenario.instance_of(turn)].key)
        }),
        Property::sometimes(FENCE_AHEAD, |_, world: &World| {
            world.store.lock.is_none() && world.store.fence.is_some_and(|fence| fence > 0)
        }),
        Property::sometimes(FREED_BY_STRANGER, |scenario: &Scenario, world: &World| {
            let stranger = scenario.turns.iter().any(|turn| turn.1 == Mode::Foreign);
            stranger && world.store.lock.is_none() && !world.store.queue.is_empty()
        }),
        Property::sometimes(INTERRUPTED_EARLY, |_, world: &World| {
            replied(world, Reply::Granted).is_some_and(|turn| turn.must_stop)
        }),
        Property::sometimes(REPEAT_OF_WAITER, |_, world: &World| {
            has_refused_repeat(world, Recorded::Waits)
        }),
        Property::sometimes(REPEAT_IN_DOUBT, |_, world: &World| {
            let first = world.store.record.map(|record| record.turn);
            has_refused_repeat(world, Recorded::Granted)
                && first.is_some_and(|first| !world.store.is_locked_by(first))
        }),
        Property::sometimes(REPEAT_AFTER_END, |_, world: &World| {
            has_refused_repeat(world, Recorded::Ended)
        }),
        Property::sometimes(REPEAT_SERVED, |scenario: &Scenario, world: &World| {
            let turns = world.turns.iter().enumerate();
            let mut repeats = turns.filter(|(number, _)| scenario.is_once(*number));
            let served = repeats
                .clone()
                .find(|(_, turn)| turn.phase == Phase::AtBackend);
            served.is_some_and(|(_, served)| {
                repeats.any(|(_, turn)| {
                    turn.phase == Phase::Over
                        && !turn.was_sent
                        && (1..served.arrival).contains(&turn.arrival)
                })
            })
        }),
        Property::sometimes(SUPERSEDED, |_, world: &World| {
            world.turns.iter().any(|turn| turn.superseded)
        }),
    ]
}

/// Whether a turn was just refused as a repeat of one in this state.
fn has_refused_repeat(world: &World, state: Recorded) -> bool {
    let record = world.store.record;
    replied(world, Reply::Repeated).is_some() && record.is_some_and(|record| record.state == state)
}

fn replied(world: &World, answer: Reply) -> Option<&Turn> {
    let wire = Wire::Reply(answer);
    world.turns.iter().find(|turn| turn.wire == wire)
}

fn offered(world: &World) -> Option<&Turn> {
    let lock = world.store.lock?;
    (lock.term == Term::Offer).then(|| &world.turns[lock.turn])
}

fn turns_at_backend(world: &World) -> impl Iterator<Item = &Turn> {
    let turns_at_backend = |turn: &&Turn| turn.phase == Phase::AtBackend;
    world.turns.iter().filter(turns_at_backend)
}

fn is_cut(turn: &Turn) -> bool {
    turn.deadline_passed
}
