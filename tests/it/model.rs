//! A model of the lock and its queue. The checker explores every order of commands, replies, messages
//! and expiring leases, with a few faults.
//!
//! Invariant: `model/scripts.rs` does what the scripts of the store do, step for step,
//! `model/steps.rs` does what turns and their instances do, and `model/faults.rs` what goes wrong.
//! The checker must find a violation when any one rule is left out ([`Flaw`]), so that every property
//! can fail. No scenario may become empty unnoticed, so each names the states that it must reach, and
//! their minimum number.
//!
//! Left out: extensions (compare and extend; they only move a deadline and the lease that ends after
//! it), a turn's second claim after its first counts as lost, a holder's instance that returns under its
//! name with another epoch (for others it is as gone as one whose key expired), a take-over by a turn that
//! doesn't wait, the store's own failover and what it may bring back (a lock whose turn is over, which its
//! instance withdraws when somebody asks), and more than one session (sessions share nothing but the keys
//! of their instances).

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

/// The instances of turns.
const A: usize = 0;
const B: usize = 1;

/// Three blocking turns: two on one instance, and one on another.
const THREE: &[(usize, Mode)] = &[(A, Mode::Wait), (B, Mode::Wait), (A, Mode::Wait)];
const TWO: &[(usize, Mode)] = &[(A, Mode::Wait), (B, Mode::Wait)];

// === The scenarios ===

const FOUR_IN_QUEUE: Scenario = Scenario::new(&[
    (A, Mode::Wait),
    (B, Mode::Wait),
    (A, Mode::Wait),
    (B, Mode::Wait),
])
.that_reaches(&[property::HANDED_OVER, property::TWO_WAIT]);

const SHORT_QUEUE: Scenario = Scenario::new(&[
    (A, Mode::Wait),
    (B, Mode::Wait),
    (A, Mode::Wait),
    (B, Mode::Refuse),
])
.with_max_waiters(1)
.that_reaches(&[property::QUEUE_FULL, property::REFUSED]);

const LOST_COMMANDS: Scenario = Scenario::new(THREE)
    .with_faults(1, &[Fault::Lost, Fault::Delayed, Fault::Late, Fault::Left])
    .that_reaches(&[property::LATE, property::GIVEN_UP]);

const LOST_MESSAGES: Scenario = Scenario::new(THREE)
    .with_faults(
        2,
        &[Fault::MessageLost, Fault::OfferMissed, Fault::Unsubscribed],
    )
    .that_reaches(&[property::NOT_NOTIFIED, property::OUT_OF_PLACE]);

const LEASES: Scenario = Scenario::new(TWO)
    .with_faults(
        2,
        &[Fault::Lost, Fault::Delayed, Fault::Left, Fault::Paused],
    )
    .whose_leases_end()
    .that_reaches(&[property::CUT, property::CUT_AND_FOLLOWED]);

const PAUSES: Scenario = Scenario::new(THREE)
    .with_faults(1, &[Fault::Paused])
    .that_reaches(&[property::OUT_OF_PLACE]);

const CRASHES: Scenario = Scenario::new(THREE)
    .with_faults(2, &[Fault::Crashed, Fault::MessageLost, Fault::OfferMissed])
    .that_reaches(&[property::TAKEN_OVER, property::OFFERED_TO_DEAD]);

/// This scenario requires no states: it serves only to find the violation without its rule.
const ONE_CRASH: Scenario = Scenario::new(THREE).with_faults(1, &[Fault::Crashed]);

const LAPSES: Scenario = Scenario::new(TWO)
    .with_faults(2, &[Fault::Lapsed, Fault::MessageLost])
    .that_reaches(&[property::FOUND_DEAD_ALIVE]);

const CLOCK: Scenario = Scenario::new(THREE)
    .with_faults(1, &[Fault::ClockSetBack])
    .whose_clock_may_stand()
    .that_reaches(&[property::FENCE_AHEAD]);

const STRANGER: Scenario = Scenario::new(&[(A, Mode::Foreign), (B, Mode::Wait), (A, Mode::Wait)])
    .with_faults(1, &[Fault::MessageLost, Fault::Lost, Fault::Left])
    .that_reaches(&[property::FREED_BY_STRANGER]);

const ONE_INTERRUPTS: &[(usize, Mode)] = &[(A, Mode::Wait), (B, Mode::Wait), (A, Mode::Interrupt)];
const TWO_INTERRUPT: &[(usize, Mode)] =
    &[(A, Mode::Wait), (B, Mode::Interrupt), (A, Mode::Interrupt)];

const INTERRUPT: Scenario = Scenario::new(ONE_INTERRUPTS)
    .that_reaches(&[property::INTERRUPTED_EARLY, property::SUPERSEDED]);

const INTERRUPT_LOST_COMMANDS: Scenario = Scenario::new(ONE_INTERRUPTS)
    .with_faults(1, &[Fault::Lost, Fault::Delayed, Fault::Late, Fault::Left])
    .that_reaches(&[property::INTERRUPTED_EARLY, property::GIVEN_UP]);

const INTERRUPT_LOST_MESSAGES: Scenario = Scenario::new(ONE_INTERRUPTS)
    .with_faults(
        2,
        &[Fault::MessageLost, Fault::OfferMissed, Fault::Unsubscribed],
    )
    .that_reaches(&[property::NOT_NOTIFIED, property::OUT_OF_PLACE]);

const INTERRUPTS_AND_PAUSES: Scenario = Scenario::new(TWO_INTERRUPT)
    .with_faults(1, &[Fault::Paused, Fault::MessageLost])
    .that_reaches(&[property::SUPERSEDED, property::OUT_OF_PLACE]);

const INTERRUPTS_AND_CRASHES: Scenario = Scenario::new(TWO_INTERRUPT)
    .with_faults(1, &[Fault::Crashed])
    .that_reaches(&[property::TAKEN_OVER]);

const REPEATS: Scenario = Scenario::new(THREE)
    .with_faults(1, &[Fault::Lost, Fault::Delayed, Fault::Late, Fault::Left])
    .whose_turns_are_repeats_from(0)
    .that_reaches(&[property::REPEAT_AFTER_END, property::REPEAT_SERVED]);

/// Two repeats behind another turn, so that they wait.
const REPEATS_AND_PLACES: Scenario = Scenario::new(THREE)
    .with_faults(
        2,
        &[
            Fault::Crashed,
            Fault::Paused,
            Fault::MessageLost,
            Fault::OfferMissed,
        ],
    )
    .whose_turns_are_repeats_from(1)
    .that_reaches(&[
        property::REPEAT_OF_WAITER,
        property::REPEAT_IN_DOUBT,
        property::REPEAT_SERVED,
    ]);

const REPEATS_AND_LEASES: Scenario = Scenario::new(TWO)
    .with_faults(2, &[Fault::Lost, Fault::Delayed, Fault::Lapsed])
    .whose_turns_are_repeats_from(0)
    .whose_leases_end()
    .that_reaches(&[property::REPEAT_IN_DOUBT]);

// === The properties hold ===

#[test]
fn four_turns_are_served_one_at_a_time_and_in_order() {
    explore(&FOUR_IN_QUEUE, 12_000);
}

#[test]
fn a_full_queue_refuses_another_turn() {
    explore(&SHORT_QUEUE, 8_000);
}

#[test]
fn no_turn_waits_for_ever_with_lost_or_late_commands_and_replies() {
    explore(&LOST_COMMANDS, 25_000);
}

#[test]
fn no_turn_waits_for_ever_with_lost_messages_and_missed_offers() {
    explore(&LOST_MESSAGES, 30_000);
}

#[test]
fn a_holder_stops_before_its_lease_can_expire() {
    explore(&LEASES, 30_000);
}

#[test]
fn waiters_of_a_paused_instance_get_their_places_back() {
    explore(&PAUSES, 12_000);
}

#[test]
fn a_dead_instance_blocks_no_other_turn() {
    explore(&CRASHES, 75_000);
}

#[test]
fn an_instance_taken_for_dead_serves_none_of_its_old_claims() {
    explore(&LAPSES, 17_000);
}

#[test]
fn the_fence_rises_while_the_clock_stands_or_is_set_back() {
    explore(&CLOCK, 6_000);
}

#[test]
fn a_lock_deleted_by_foreign_code_goes_to_the_queue() {
    explore(&STRANGER, 14_000);
}

#[test]
fn an_interrupting_turn_is_served_next() {
    explore(&INTERRUPT, 1_400);
}

#[test]
fn an_interrupting_turn_is_served_despite_lost_commands_and_replies() {
    explore(&INTERRUPT_LOST_COMMANDS, 55_000);
}

#[test]
fn an_interrupting_turn_is_served_despite_lost_messages_and_offers() {
    explore(&INTERRUPT_LOST_MESSAGES, 50_000);
}

#[test]
fn the_newest_interrupting_turn_wins_despite_a_paused_instance() {
    explore(&INTERRUPTS_AND_PAUSES, 38_000);
}

#[test]
fn the_newest_interrupting_turn_wins_despite_a_crashed_instance() {
    explore(&INTERRUPTS_AND_CRASHES, 36_000);
}

#[test]
fn of_repeats_one_reaches_the_backend_despite_lost_commands_and_replies() {
    explore(&REPEATS, 4_000);
}

#[test]
fn of_repeats_one_reaches_the_backend_despite_lost_places_and_crashes() {
    explore(&REPEATS_AND_PLACES, 140_000);
}

#[test]
fn of_repeats_one_reaches_the_backend_despite_lost_leases() {
    explore(&REPEATS_AND_LEASES, 26_000);
}

// === Each rule is needed: without it a property fails ===

#[test]
fn a_turn_is_sent_twice_if_one_in_doubt_is_forgotten() {
    for scenario in [&REPEATS_AND_PLACES, &REPEATS_AND_LEASES] {
        assert_flaw_is_found(scenario, Flaw::DoubtIsForgotten, property::ONCE);
    }
}

#[test]
fn a_turn_is_sent_twice_if_it_comes_back_for_its_place_unchecked() {
    assert_flaw_is_found(&REPEATS_AND_PLACES, Flaw::ReturnUnchecked, property::ONCE);
}

#[test]
fn a_turn_that_was_sent_nothing_stays_in_doubt_if_it_is_not_forgotten() {
    assert_flaw_is_found(&REPEATS, Flaw::NothingIsForgotten, property::NO_FALSE_DOUBT);
}

#[test]
fn a_turn_is_sent_twice_if_another_deletes_its_record() {
    assert_flaw_is_found(&REPEATS, Flaw::ForgetsAnyRecord, property::ONCE);
}

#[test]
fn a_turn_is_sent_twice_if_its_end_is_forgotten() {
    assert_flaw_is_found(&REPEATS, Flaw::EndedIsForgotten, property::ONCE);
}

#[test]
fn turns_overlap_if_a_release_does_not_compare_the_token() {
    assert_flaw_is_found(
        &LOST_COMMANDS,
        Flaw::ReleaseWithoutCompare,
        property::ONE_AT_A_TIME,
    );
}

#[test]
fn turns_overlap_if_a_take_over_does_not_compare_the_token() {
    assert_flaw_is_found(
        &CRASHES,
        Flaw::TakeOverWithoutCompare,
        property::ONE_AT_A_TIME,
    );
}

#[test]
fn turns_overlap_if_a_holder_ignores_its_deadline() {
    assert_flaw_is_found(&LEASES, Flaw::DeadlineIgnored, property::ONE_AT_A_TIME);
}

#[test]
fn turns_overlap_if_a_lease_counts_from_the_reply() {
    assert_flaw_is_found(&LEASES, Flaw::DeadlineFromReply, property::ONE_AT_A_TIME);
}

#[test]
fn turns_overlap_if_a_waiter_starts_on_a_message() {
    assert_flaw_is_found(
        &LOST_MESSAGES,
        Flaw::StartsOnMessage,
        property::ONE_AT_A_TIME,
    );
}

#[test]
fn turns_overlap_if_claims_outlive_the_key_of_their_instance() {
    assert_flaw_is_found(&LAPSES, Flaw::OldClaimsGoOn, property::ONE_AT_A_TIME);
}

#[test]
fn the_fence_falls_if_it_is_only_the_clock() {
    assert_flaw_is_found(&CLOCK, Flaw::FenceIsClock, property::FENCE_RISES);
}

#[test]
fn the_fence_falls_if_a_release_deletes_it_too_soon() {
    assert_flaw_is_found(&CLOCK, Flaw::FenceForgotten, property::FENCE_RISES);
}

#[test]
fn a_waiter_is_overtaken_if_a_free_lock_bypasses_the_queue() {
    assert_flaw_is_found(&STRANGER, Flaw::TakenPastQueue, property::IN_ORDER);
}

#[test]
fn a_lock_outlives_its_turn_if_a_late_command_is_executed() {
    assert_flaw_is_found(
        &LOST_COMMANDS,
        Flaw::NotAfterIgnored,
        property::NOTHING_LEFT,
    );
}

#[test]
fn a_lock_outlives_its_turn_if_a_claim_in_doubt_is_released_only_once() {
    assert_flaw_is_found(
        &LOST_COMMANDS,
        Flaw::InDoubtReleasedOnce,
        property::NOTHING_LEFT,
    );
}

#[test]
fn a_place_outlives_its_turn_if_a_late_command_counts_as_refused() {
    assert_flaw_is_found(
        &INTERRUPT_LOST_COMMANDS,
        Flaw::LateIsRefusal,
        property::NOTHING_LEFT,
    );
}

#[test]
fn a_waiter_waits_for_ever_if_a_poll_checks_only_its_instance() {
    assert_flaw_is_found(
        &INTERRUPT_LOST_MESSAGES,
        Flaw::LossSeenByFieldAlone,
        property::ALL_ENDS,
    );
}

#[test]
fn a_waiter_waits_for_ever_if_a_poll_does_not_hand_over_a_free_lock() {
    assert_flaw_is_found(&STRANGER, Flaw::PollHandsNothingOver, property::ALL_ENDS);
}

#[test]
fn a_waiter_waits_for_ever_if_a_poll_overlooks_an_offer() {
    assert_flaw_is_found(&LOST_MESSAGES, Flaw::PollOverlooksOffer, property::ALL_ENDS);
}

#[test]
fn a_waiter_waits_for_ever_if_an_offer_never_expires() {
    assert_flaw_is_found(&ONE_CRASH, Flaw::OfferWithoutEnd, property::ALL_ENDS);
}

#[test]
fn a_superseded_turn_is_served_if_a_free_lock_is_granted_unchecked() {
    assert_flaw_is_found(&INTERRUPT, Flaw::SupersededServed, property::NEWEST_WINS);
}

#[test]
fn a_holder_is_superseded_if_it_keeps_its_place_in_the_queue() {
    assert_flaw_is_found(&INTERRUPT, Flaw::PlaceKept, property::NEWEST_WINS);
}

#[test]
fn a_newer_turn_is_interrupted_if_an_older_one_interrupts_again() {
    assert_flaw_is_found(
        &INTERRUPT_LOST_MESSAGES,
        Flaw::OlderInterrupts,
        property::OLDER_YIELD,
    );
}

/// Checks every state; there must be at least `at_least` states.
fn explore(scenario: &Scenario, at_least: usize) {
    let checker = scenario.clone().checker().spawn_bfs().join();
    checker.assert_properties();
    let states = checker.unique_state_count();
    assert!(
        states >= at_least,
        "the scenario reaches enough states: {states} of {at_least}"
    );
    // `eventually` overlooks cycles: see `properties`.
    assert_eq!(
        find_cycle(scenario),
        None,
        "no history reaches the same state twice"
    );
}

/// Asserts that the checker finds a violation of the property when the rule is left out.
fn assert_flaw_is_found(scenario: &Scenario, flaw: Flaw, property: &'static str) {
    let broken = scenario.clone().broken_by(flaw);
    let when = HasDiscoveries::AnyOf([property].into());
    let checker = broken.checker().finish_when(when).spawn_bfs().join();
    assert!(
        checker.discovery(property).is_some(),
        "without the rule the checker finds a violation of: {property}"
    );
}

/// A state that one history reaches twice, if there is one.
fn find_cycle(scenario: &Scenario) -> Option<World> {
    let fingerprint = |world: &World| {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        hasher.finish()
    };
    // For each seen state: whether it is on the current path.
    let mut on_path = HashMap::new();
    let mut path: Vec<(u64, Vec<World>)> = vec![(0, scenario.init_states())];
    while let Some((here, ahead)) = path.last_mut() {
        let Some(next) = ahead.pop() else {
            on_path.insert(*here, false);
            path.pop();
            continue;
        };
        let mark = fingerprint(&next);
        match on_path.entry(mark) {
            Entry::Occupied(seen) if *seen.get() => return Some(next),
            Entry::Occupied(_) => {}
            Entry::Vacant(new) => {
                new.insert(true);
                path.push((mark, scenario.next_states(&next)));
            }
        }
    }
    None
}
