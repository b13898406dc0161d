//! The protocol of the lock and its queue, explored: every order in which commands, answers, messages
//! and the ends of leases can follow one another, with a few faults among them.
//!
//! Invariant: `model/scripts.rs` does what the scripts of the store do, step for step, and
//! `model/steps.rs` what turns and their instances do, `model/faults.rs` what befalls them. Each rule that can be left out ([`Flaw`]) has
//! to be missed by the checker, so that no property is one that can't fail; and no scenario may
//! become empty unnoticed, so each names the states that it comes by, and how many there are.
//!
//! Left out: extensions (by compare; they only move a deadline and the lease that ends after it), a
//! holder's instance that comes back under its name with another epoch (to the others it is as gone
//! as one whose key is), a take-over by a turn that doesn't wait, the store's own failover, and more
//! than one session (they share nothing but their instances' keys).

mod faults;
mod properties;
mod scripts;
mod steps;
mod world;

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::{Hash, Hasher};

use stateright::{Checker, HasDiscoveries, Model};

use properties as property;
use world::{Fault, Flaw, Mode, Scenario, World};

/// A turn on the first instance, or on the second.
const A: usize = 0;
const B: usize = 1;

/// Three turns that wait for each other: two neighbours, and one elsewhere.
const THREE: &[(usize, Mode)] = &[(A, Mode::Wait), (B, Mode::Wait), (A, Mode::Wait)];
const TWO: &[(usize, Mode)] = &[(A, Mode::Wait), (B, Mode::Wait)];

// === The scenarios ===

const FOUR_IN_QUEUE: Scenario = Scenario::of(&[
    (A, Mode::Wait),
    (B, Mode::Wait),
    (A, Mode::Wait),
    (B, Mode::Wait),
])
.that_reaches(&[property::HANDED_OVER, property::TWO_WAIT]);

const SHORT_QUEUE: Scenario = Scenario::of(&[
    (A, Mode::Wait),
    (B, Mode::Wait),
    (A, Mode::Wait),
    (B, Mode::Refuse),
])
.with_max_waiters(1)
.that_reaches(&[property::QUEUE_FULL, property::REFUSED]);

const LOST_COMMANDS: Scenario = Scenario::of(THREE)
    .with_faults(1, &[Fault::Lost, Fault::Delayed, Fault::Late, Fault::Left])
    .that_reaches(&[property::LATE, property::GIVEN_UP]);

const LOST_MESSAGES: Scenario = Scenario::of(THREE)
    .with_faults(
        2,
        &[Fault::MessageLost, Fault::OfferMissed, Fault::Unsubscribed],
    )
    .that_reaches(&[property::NOBODY_TOLD, property::OUT_OF_PLACE]);

const LEASES: Scenario = Scenario::of(TWO)
    .with_faults(
        2,
        &[Fault::Lost, Fault::Delayed, Fault::Left, Fault::Paused],
    )
    .whose_leases_end()
    .that_reaches(&[property::CUT, property::CUT_AND_FOLLOWED]);

const PAUSES: Scenario = Scenario::of(THREE)
    .with_faults(1, &[Fault::Paused])
    .that_reaches(&[property::OUT_OF_PLACE]);

const CRASHES: Scenario = Scenario::of(THREE)
    .with_faults(2, &[Fault::Crashed, Fault::MessageLost, Fault::OfferMissed])
    .that_reaches(&[property::TAKEN_OVER, property::OFFERED_TO_DEAD]);

/// Of these no state is asked for but the one that a missing rule leads to.
const ONE_CRASH: Scenario = Scenario::of(THREE).with_faults(1, &[Fault::Crashed]);

const LAPSES: Scenario = Scenario::of(TWO)
    .with_faults(2, &[Fault::Lapsed, Fault::MessageLost])
    .that_reaches(&[property::FOUND_DEAD_ALIVE]);

const CLOCK: Scenario = Scenario::of(THREE)
    .with_faults(1, &[Fault::ClockSetBack])
    .whose_clock_may_stand()
    .that_reaches(&[property::FENCE_AHEAD]);

const STRANGER: Scenario = Scenario::of(&[(A, Mode::Foreign), (B, Mode::Wait), (A, Mode::Wait)])
    .with_faults(1, &[Fault::MessageLost, Fault::Lost, Fault::Left])
    .that_reaches(&[property::FREED_BY_STRANGER]);

const ONE_INTERRUPTS: &[(usize, Mode)] = &[(A, Mode::Wait), (B, Mode::Wait), (A, Mode::Interrupt)];
const TWO_INTERRUPT: &[(usize, Mode)] =
    &[(A, Mode::Wait), (B, Mode::Interrupt), (A, Mode::Interrupt)];

const INTERRUPT: Scenario =
    Scenario::of(ONE_INTERRUPTS).that_reaches(&[property::INTERRUPTED_EARLY, property::SUPERSEDED]);

const INTERRUPT_LOST_COMMANDS: Scenario = Scenario::of(ONE_INTERRUPTS)
    .with_faults(1, &[Fault::Lost, Fault::Delayed, Fault::Late, Fault::Left])
    .that_reaches(&[property::INTERRUPTED_EARLY, property::GIVEN_UP]);

const INTERRUPT_LOST_MESSAGES: Scenario = Scenario::of(ONE_INTERRUPTS)
    .with_faults(
        2,
        &[Fault::MessageLost, Fault::OfferMissed, Fault::Unsubscribed],
    )
    .that_reaches(&[property::NOBODY_TOLD, property::OUT_OF_PLACE]);

const INTERRUPTS_AND_PAUSES: Scenario = Scenario::of(TWO_INTERRUPT)
    .with_faults(1, &[Fault::Paused, Fault::MessageLost])
    .that_reaches(&[property::SUPERSEDED, property::OUT_OF_PLACE]);

const INTERRUPTS_AND_CRASHES: Scenario = Scenario::of(TWO_INTERRUPT)
    .with_faults(1, &[Fault::Crashed])
    .that_reaches(&[property::TAKEN_OVER]);

// === The protocol keeps its promises ===

#[test]
fn four_turns_are_served_one_by_one_and_in_order() {
    explore(&FOUR_IN_QUEUE, 12_000);
}

#[test]
fn a_queue_that_is_full_refuses_one_more() {
    explore(&SHORT_QUEUE, 8_000);
}

#[test]
fn nobody_waits_for_ever_when_commands_and_answers_are_lost_or_late() {
    explore(&LOST_COMMANDS, 25_000);
}

#[test]
fn nobody_waits_for_ever_when_messages_are_lost_and_offers_missed() {
    explore(&LOST_MESSAGES, 30_000);
}

#[test]
fn a_holder_stops_before_its_lease_can_be_anothers() {
    explore(&LEASES, 30_000);
}

#[test]
fn an_instance_that_stood_still_finds_its_waiters_a_place_again() {
    explore(&PAUSES, 12_000);
}

#[test]
fn a_dead_instance_holds_nobody_up() {
    explore(&CRASHES, 75_000);
}

#[test]
fn an_instance_that_was_taken_for_dead_serves_nothing_it_claimed_before() {
    explore(&LAPSES, 17_000);
}

#[test]
fn the_fence_rises_while_the_clock_stands_or_is_set_back() {
    explore(&CLOCK, 6_000);
}

#[test]
fn a_lock_that_a_stranger_deleted_goes_to_the_queue() {
    explore(&STRANGER, 14_000);
}

#[test]
fn an_interrupting_turn_is_served_next() {
    explore(&INTERRUPT, 1_400);
}

#[test]
fn an_interrupting_turn_is_served_though_commands_and_answers_are_lost_or_late() {
    explore(&INTERRUPT_LOST_COMMANDS, 55_000);
}

#[test]
fn an_interrupting_turn_is_served_though_messages_are_lost_and_offers_missed() {
    explore(&INTERRUPT_LOST_MESSAGES, 50_000);
}

#[test]
fn the_newest_of_two_interrupting_turns_wins_though_an_instance_stands_still() {
    explore(&INTERRUPTS_AND_PAUSES, 38_000);
}

#[test]
fn the_newest_of_two_interrupting_turns_wins_though_an_instance_dies() {
    explore(&INTERRUPTS_AND_CRASHES, 36_000);
}

// === And would not without any one of its rules ===

#[test]
fn two_turns_are_served_at_once_if_a_release_does_not_compare() {
    misses(
        &LOST_COMMANDS,
        Flaw::ReleaseWithoutCompare,
        property::ONE_AT_A_TIME,
    );
}

#[test]
fn two_turns_are_served_at_once_if_a_take_over_does_not_compare() {
    misses(
        &CRASHES,
        Flaw::TakeOverWithoutCompare,
        property::ONE_AT_A_TIME,
    );
}

#[test]
fn two_turns_are_served_at_once_if_a_holder_ignores_its_deadline() {
    misses(&LEASES, Flaw::DeadlineIgnored, property::ONE_AT_A_TIME);
}

#[test]
fn two_turns_are_served_at_once_if_a_lease_counts_from_its_answer() {
    misses(&LEASES, Flaw::DeadlineFromAnswer, property::ONE_AT_A_TIME);
}

#[test]
fn two_turns_are_served_at_once_if_a_waiter_starts_on_a_message() {
    misses(
        &LOST_MESSAGES,
        Flaw::StartsOnMessage,
        property::ONE_AT_A_TIME,
    );
}

#[test]
fn two_turns_are_served_at_once_if_claims_outlive_their_instances_key() {
    misses(&LAPSES, Flaw::OldClaimsGoOn, property::ONE_AT_A_TIME);
}

#[test]
fn the_fence_falls_if_it_is_the_clock_alone() {
    misses(&CLOCK, Flaw::FenceIsClock, property::FENCE_RISES);
}

#[test]
fn the_fence_falls_if_a_release_forgets_it_too_soon() {
    misses(&CLOCK, Flaw::FenceForgotten, property::FENCE_RISES);
}

#[test]
fn a_waiter_is_overtaken_if_a_free_lock_is_taken_past_the_queue() {
    misses(&STRANGER, Flaw::TakenPastQueue, property::IN_ORDER);
}

#[test]
fn a_lock_outlives_its_turn_if_a_command_is_executed_however_late() {
    misses(
        &LOST_COMMANDS,
        Flaw::NotAfterIgnored,
        property::NOTHING_LEFT,
    );
}

#[test]
fn a_lock_outlives_its_turn_if_a_claim_in_doubt_is_taken_back_only_once() {
    misses(
        &LOST_COMMANDS,
        Flaw::InDoubtReleasedOnce,
        property::NOTHING_LEFT,
    );
}

#[test]
fn a_place_outlives_its_turn_if_coming_too_late_is_taken_for_a_refusal() {
    misses(
        &INTERRUPT_LOST_COMMANDS,
        Flaw::LateIsRefusal,
        property::NOTHING_LEFT,
    );
}

#[test]
fn a_waiter_waits_for_ever_if_an_instance_is_asked_about_instead_of_each_waiter() {
    misses(
        &INTERRUPT_LOST_MESSAGES,
        Flaw::LossSeenByFieldAlone,
        property::ALL_ENDS,
    );
}

#[test]
fn a_waiter_waits_for_ever_if_a_poll_leaves_a_free_lock_free() {
    misses(&STRANGER, Flaw::PollHandsNothingOver, property::ALL_ENDS);
}

#[test]
fn a_waiter_waits_for_ever_if_a_poll_overlooks_what_was_offered() {
    misses(&LOST_MESSAGES, Flaw::PollOverlooksOffer, property::ALL_ENDS);
}

#[test]
fn a_waiter_waits_for_ever_if_an_offer_has_no_end() {
    misses(&ONE_CRASH, Flaw::OfferWithoutEnd, property::ALL_ENDS);
}

#[test]
fn a_superseded_turn_is_served_if_a_free_lock_is_given_before_that_is_asked() {
    misses(&INTERRUPT, Flaw::SupersededServed, property::NEWEST_WINS);
}

#[test]
fn a_holder_is_superseded_if_it_keeps_its_place_in_the_queue() {
    misses(&INTERRUPT, Flaw::PlaceKept, property::NEWEST_WINS);
}

#[test]
fn a_newer_turn_is_interrupted_if_one_that_lost_its_place_interrupts_anew() {
    misses(
        &INTERRUPT_LOST_MESSAGES,
        Flaw::OlderInterrupts,
        property::OLDER_YIELD,
    );
}

/// Looks at every state; there have to be `at_least` so many.
fn explore(scenario: &Scenario, at_least: usize) {
    let checker = scenario.clone().checker().spawn_bfs().join();
    checker.assert_properties();
    let states = checker.unique_state_count();
    assert!(
        states >= at_least,
        "a scenario does not lose its states: {states} of {at_least}"
    );
    // What `eventually` overlooks: see `properties`.
    assert_eq!(
        circle(scenario),
        None,
        "no history comes by the same state twice"
    );
}

/// Looks for a state, or an end, that breaks the property when the rule is left out.
fn misses(scenario: &Scenario, flaw: Flaw, property: &'static str) {
    let broken = scenario.clone().broken_by(flaw);
    let when = HasDiscoveries::AnyOf([property].into());
    let checker = broken.checker().finish_when(when).spawn_bfs().join();
    assert!(
        checker.discovery(property).is_some(),
        "without the rule the checker finds a history in which it does not hold that {property}"
    );
}

/// A state that a history comes by twice, if there is one.
fn circle(scenario: &Scenario) -> Option<World> {
    let fingerprint = |world: &World| {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        hasher.finish()
    };
    // Of the states that were seen: whether the way from the first to the present one leads by it.
    let mut on_the_way = HashMap::new();
    let mut way: Vec<(u64, Vec<World>)> = vec![(0, scenario.init_states())];
    while let Some((here, ahead)) = way.last_mut() {
        let Some(next) = ahead.pop() else {
            on_the_way.insert(*here, false);
            way.pop();
            continue;
        };
        let mark = fingerprint(&next);
        match on_the_way.entry(mark) {
            Entry::Occupied(seen) if *seen.get() => return Some(next),
            Entry::Occupied(_) => {}
            Entry::Vacant(new) => {
                new.insert(true);
                way.push((mark, scenario.next_states(&next)));
            }
        }
    }
    None
}
