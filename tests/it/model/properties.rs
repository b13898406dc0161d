//! What has to hold in every state, where every history has to end, and which states a scenario has
//! to come by for its exploration to mean anything.
//!
//! "Nobody waits for ever" and "every key goes" are one sentence about the ends of histories: each
//! ends, and where it does, every turn is over and the store is empty. That is what `eventually`
//! checks, but for two gaps that it is known to have. It overlooks a history that goes round in a
//! circle: every exploration looks for one. And where two ways lead to a state, it takes what was
//! fulfilled on one for fulfilled on both: this goal is not left again, so whether it is fulfilled
//! does not depend on the way. As faults are counted and there is no circle, every history is finite;
//! so this says more than that there is a fair way for it to end well: it can't end otherwise.

use stateright::Property;

use super::world::{Answer, Instance, Mode, Phase, Scenario, Term, Turn, Wire, World};

pub(crate) const ONE_AT_A_TIME: &str = "at most one turn is at the backend within its lease";
pub(crate) const FENCE_RISES: &str = "the fence rises with every grant";
pub(crate) const IN_ORDER: &str = "nobody is served before an older waiter that kept its place";
pub(crate) const NOTHING_LEFT: &str = "no lock and no place in the queue outlives its turn";
pub(crate) const NEWEST_WINS: &str = "no turn is served after it was superseded";
pub(crate) const OLDER_YIELD: &str = "no turn is interrupted by an older one";
pub(crate) const ALL_ENDS: &str = "every turn ends, and every key goes";

pub(crate) const HANDED_OVER: &str = "a lock is handed to a waiter";
pub(crate) const TWO_WAIT: &str = "two wait";
pub(crate) const QUEUE_FULL: &str = "the queue is full";
pub(crate) const REFUSED: &str = "a turn that doesn't wait is refused";
pub(crate) const LATE: &str = "a command comes after its last moment";
pub(crate) const GIVEN_UP: &str = "a lock goes to a turn that has given up";
pub(crate) const NOBODY_TOLD: &str = "a lock is offered and nobody told";
pub(crate) const OUT_OF_PLACE: &str = "a waiter has lost its place, or missed its offer";
pub(crate) const CUT: &str = "a deadline passes at the backend";
pub(crate) const CUT_AND_FOLLOWED: &str = "a turn is served that follows one still at the backend";
pub(crate) const TAKEN_OVER: &str = "a dead holder's lock is another's";
pub(crate) const OFFERED_TO_DEAD: &str = "a lock is offered to a dead waiter";
pub(crate) const FOUND_DEAD_ALIVE: &str = "an instance is taken for dead that is back";
pub(crate) const FENCE_AHEAD: &str = "the fence of a free lock is ahead of the clock";
pub(crate) const FREED_BY_STRANGER: &str = "a lock is free while somebody waits";
pub(crate) const INTERRUPTED_EARLY: &str = "an interrupt comes between grant and start";
pub(crate) const SUPERSEDED: &str = "a waiter is superseded";

/// The properties of a scenario.
pub(super) fn of(scenario: &Scenario) -> Vec<Property<Scenario>> {
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
            answered(world, Answer::Full).is_some()
        }),
        Property::sometimes(REFUSED, |_, world: &World| {
            answered(world, Answer::Busy).is_some()
        }),
        Property::sometimes(LATE, |_, world: &World| {
            answered(world, Answer::Late).is_some()
        }),
        Property::sometimes(GIVEN_UP, |_, world: &World| {
            let lock = world.store.lock.map(|lock| &world.turns[lock.turn]);
            lock.is_some_and(|turn| turn.phase == Phase::Leaving && turn.wire == Wire::Silent)
        }),
        Property::sometimes(NOBODY_TOLD, |_, world: &World| {
            let deaf = |turn: &Turn| turn.phase == Phase::Waiting && !turn.mail.granted;
            offered(world).is_some_and(deaf)
        }),
        Property::sometimes(OUT_OF_PLACE, |_, world: &World| {
            world.turns.iter().enumerate().any(|(number, turn)| {
                turn.phase == Phase::Waiting
                    && !turn.superseded
                    && !world.store.has_in_queue(number)
                    && !world.store.is_locked_by(number)
            })
        }),
        Property::sometimes(CUT, |_, world: &World| at_backend(world).any(is_cut)),
        Property::sometimes(CUT_AND_FOLLOWED, |_, world: &World| {
            at_backend(world).any(is_cut) && !at_backend(world).all(is_cut)
        }),
        Property::sometimes(TAKEN_OVER, |scenario: &Scenario, world: &World| {
            // Where leases don't end before their turns, there is no other way to it.
            let died_holding = |turn: &Turn| turn.phase == Phase::Crashed && turn.had_lock;
            !scenario.leases_end
                && world.turns.iter().any(died_holding)
                && at_backend(world).next().is_some()
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
            answered(world, Answer::Granted).is_some_and(|turn| turn.told_to_stop)
        }),
        Property::sometimes(SUPERSEDED, |_, world: &World| {
            world.turns.iter().any(|turn| turn.superseded)
        }),
    ]
}

fn answered(world: &World, answer: Answer) -> Option<&Turn> {
    let wire = Wire::Answer(answer);
    world.turns.iter().find(|turn| turn.wire == wire)
}

fn offered(world: &World) -> Option<&Turn> {
    let lock = world.store.lock?;
    (lock.term == Term::Offer).then(|| &world.turns[lock.turn])
}

fn at_backend(world: &World) -> impl Iterator<Item = &Turn> {
    let at_backend = |turn: &&Turn| turn.phase == Phase::AtBackend;
    world.turns.iter().filter(at_backend)
}

fn is_cut(turn: &Turn) -> bool {
    turn.deadline_passed
}
