//! Turns that replace everybody before them, and holders that are gone.

use std::sync::Arc;
use std::time::Duration;

use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, DeadHolder, LockHolder, Message, QueueOptions,
};

use tokio::time::sleep;

use super::{INTERRUPTING, KEY, LEASE, PATIENT, StoreSetup, Waiter, Watched, at_once};
use crate::support::redis::Redis;

store_contract!(
    waiters_whose_instance_fell_silent_are_replaced_too,
    an_interrupting_turn_replaces_all_who_came_before_it,
    who_was_replaced_is_told_so_and_nobody_else,
    who_missed_that_it_was_replaced_is_told_when_it_asks_again,
    who_comes_after_an_interrupting_turn_waits_behind_it,
    the_newest_of_many_interrupting_turns_is_the_one_that_waits,
    an_interrupting_turn_that_asks_again_replaces_nobody_else,
    an_interrupting_turn_finds_room_in_a_full_line,
    an_interrupting_turn_that_leaves_brings_nobody_back,
    an_interrupting_turn_waits_for_one_who_has_an_offer,
    the_lock_of_a_dead_holder_is_taken_over,
    a_lock_that_is_too_young_is_not_taken_over,
    the_lock_of_a_dead_holder_goes_to_the_first_in_the_line,
    a_lock_that_has_changed_hands_since_is_not_taken_over,
    a_watch_takes_over_for_the_first_in_the_line,
);

/// The answer to one who waits and knows of a dead holder.
async fn take_over(
    bench: &StoreSetup,
    claim: &Arc<Claim>,
    dead: &Claim,
    wait: Option<QueueOptions>,
) -> AcquireReply {
    let dead = Some(at_once(LockHolder::from(&dead.token)));
    bench.ask(claim, &AcquireRequest { take_over: dead, queue: wait }).await
}

async fn interrupt_again(bench: &StoreSetup, waiter: &Waiter) -> AcquireReply {
    let place = QueueOptions {
        ticket: Some(waiter.ticket),
        ..INTERRUPTING
    };
    bench.wait(&waiter.claim, place).await
}

async fn an_interrupting_turn_replaces_all_who_came_before_it(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    for of in [1, 0, 2] {
        bench.join(of).await;
    }
    let newest = bench.claim_of(1, KEY, LEASE);
    let answer = bench.wait(&newest, INTERRUPTING).await;
    let AcquireReply::Waiting(ticket, named) = answer else {
        panic!("it waits for the holder alone: {answer:?}");
    };
    assert!(named.has_token(&holder.token), "whom it can ask to make way");
    let newest = Waiter {
        claim: newest,
        ticket,
        of: 1,
    };
    assert!(bench.release(&holder).await, "nobody else takes it away");
    bench.are_served([&newest], "it is the next").await;
    bench.is_quiet().await;
}

async fn who_was_replaced_is_told_so_and_nobody_else(bench: StoreSetup) {
    let _holder = bench.holder(0).await;
    let older = [
        bench.join(1).await,
        bench.join(2).await,
        bench.join(1).await,
    ];
    bench.join_as(0, INTERRUPTING).await;
    let told = |n: usize| Message::Superseded(older[n].claim.id);
    assert_eq!(
        bench.heard(1).await,
        [told(0), told(2)],
        "each instance is told about its own"
    );
    assert_eq!(bench.heard(2).await, [told(1)], "and about no others");
    assert_eq!(
        bench.heard(0).await,
        [],
        "the store tells a holder nothing: whoever interrupts does"
    );
}

async fn who_missed_that_it_was_replaced_is_told_when_it_asks_again(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let older = [bench.join(1).await, bench.join(2).await];
    let newest = bench.join_as(0, INTERRUPTING).await;
    for waiter in &older {
        for _ in 0..2 {
            assert_eq!(
                bench.ask_again(waiter).await,
                AcquireReply::Superseded,
                "however often it asks"
            );
        }
    }
    bench.release(&holder).await;
    bench.take_up(&newest).await;
    assert_eq!(
        bench.ask_again(&older[0]).await,
        AcquireReply::Superseded,
        "also when the newer one runs"
    );
    bench.release(&newest.claim).await;
    bench.is_quiet().await;
}

async fn who_comes_after_an_interrupting_turn_waits_behind_it(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let older = bench.join(1).await;
    let newest = bench.join_as(0, INTERRUPTING).await;
    let later = [bench.join(2).await, bench.join(1).await];
    bench.heard(1).await;
    let again = bench.ask_again(&later[0]).await;
    assert!(
        matches!(again, AcquireReply::Waiting(ticket, _) if ticket == later[0].ticket),
        "it isn't replaced by one that was there before it: {again:?}"
    );
    assert_eq!(
        bench.ask_again(&older).await,
        AcquireReply::Superseded,
        "as is who was"
    );
    bench.release(&holder).await;
    let order = [&newest, &later[0], &later[1]];
    bench.are_served(order, "in order of arrival").await;
    bench.is_quiet().await;
}

async fn the_newest_of_many_interrupting_turns_is_the_one_that_waits(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let mut all = Vec::new();
    for of in [1, 2, 1, 0] {
        all.push(bench.join_as(of, INTERRUPTING).await);
    }
    let newest = all.pop().expect("the last one");
    for older in &all {
        assert_eq!(
            interrupt_again(&bench, older).await,
            AcquireReply::Superseded,
            "an older one is replaced, and doesn't replace in turn"
        );
        let heard = Message::Superseded(older.claim.id);
        let told = bench.instances[older.of].ears.lock().contains(&heard);
        assert!(
            told || bench.heard(older.of).await.contains(&heard),
            "it is told so"
        );
    }
    bench.release(&holder).await;
    bench.are_served([&newest], "the newest is served").await;
    bench.is_quiet().await;
}

async fn an_interrupting_turn_that_asks_again_replaces_nobody_else(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let newest = bench.join_as(0, INTERRUPTING).await;
    let later = bench.join(1).await;
    let again = interrupt_again(&bench, &newest).await;
    assert!(
        matches!(again, AcquireReply::Waiting(ticket, _) if ticket == newest.ticket),
        "it has its place: {again:?}"
    );
    // Also after its place was lost.
    bench.withdraw(&newest.claim).await;
    let again = interrupt_again(&bench, &newest).await;
    assert!(
        matches!(again, AcquireReply::Waiting(ticket, _) if ticket == newest.ticket),
        "it has it again: {again:?}"
    );
    assert_eq!(bench.heard(1).await, [], "who came later isn't replaced");
    bench.release(&holder).await;
    bench
        .are_served([&newest, &later], "in order of arrival")
        .await;
    bench.is_quiet().await;
}

async fn an_interrupting_turn_finds_room_in_a_full_line(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let full = QueueOptions {
        max_waiters: 1,
        ..PATIENT
    };
    bench.join_as(1, full).await;
    let place = QueueOptions {
        interrupts: true,
        ..full
    };
    let newest = bench.join_as(2, place).await;
    assert_eq!(
        bench.wait(&bench.claim(KEY, LEASE), full).await,
        AcquireReply::QueueFull,
        "and counts like any other"
    );
    bench.release(&holder).await;
    bench
        .are_served([&newest], "it takes the place of those before it")
        .await;
    bench.is_quiet().await;
}

async fn an_interrupting_turn_that_leaves_brings_nobody_back(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let older = bench.join(1).await;
    let newest = bench.join_as(2, INTERRUPTING).await;
    bench.withdraw(&newest.claim).await;
    assert_eq!(
        bench.ask_again(&older).await,
        AcquireReply::Superseded,
        "its client has had its answer"
    );
    bench.release(&holder).await;
    bench.is_quiet().await;
}

async fn an_interrupting_turn_waits_for_one_who_has_an_offer(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (offered, behind) = (bench.join(1).await, bench.join(2).await);
    bench.release(&holder).await;
    let newest = bench.claim_of(0, KEY, LEASE);
    let answer = bench.wait(&newest, INTERRUPTING).await;
    let AcquireReply::Waiting(ticket, named) = answer else {
        panic!("an offer is a lock that is held: {answer:?}");
    };
    assert!(
        named.has_token(&offered.claim.token),
        "who has the offer is named as the holder, to be asked to make way"
    );
    let newest = Waiter {
        claim: newest,
        ticket,
        of: 0,
    };
    assert_eq!(
        bench.ask_again(&behind).await,
        AcquireReply::Superseded,
        "those behind it are replaced"
    );
    bench.take_up(&offered).await;
    bench.release(&offered.claim).await;
    bench.are_served([&newest], "the newest is next").await;
    bench.is_quiet().await;
}

async fn the_lock_of_a_dead_holder_is_taken_over(bench: StoreSetup) {
    let dead = bench.claim_of(1, KEY, LEASE);
    let first = bench.granted(&dead).await;
    let claim = bench.claim_of(0, KEY, LEASE);
    let AcquireReply::Granted(fence) = take_over(&bench, &claim, &dead, None).await else {
        panic!("nobody else is there");
    };
    assert!(fence > first, "the fence rises, however the lock was got");
    assert!(bench.holds(&claim).await, "it is held like any other");
    assert_eq!(
        bench.extend(&[Arc::clone(&dead)]).await,
        [false],
        "who was taken for dead and isn't has lost it"
    );
    assert!(!bench.release(&dead).await, "and can't free it");
    assert!(bench.release(&claim).await, "only its holder can");
    bench.is_quiet().await;
}

async fn the_lock_of_a_dead_holder_goes_to_the_first_in_the_line(bench: StoreSetup) {
    let dead = bench.holder(1).await;
    let (first, second) = (bench.join(0).await, bench.join(2).await);
    let place = QueueOptions {
        ticket: Some(second.ticket),
        ..PATIENT
    };
    let answer = take_over(&bench, &second.claim, &dead, Some(place)).await;
    assert!(
        matches!(&answer, AcquireReply::Waiting(_, holder) if holder.has_token(&first.claim.token)),
        "whoever finds out doesn't get past the others by it: {answer:?}"
    );
    assert_eq!(
        bench.heard(0).await,
        [Message::Granted(first.claim.id)],
        "the first one's instance is told"
    );
    bench
        .are_served([&first, &second], "in order of arrival")
        .await;

    let dead = bench.holder(1).await;
    let first = bench.join(0).await;
    let hasty = bench.claim_of(2, KEY, LEASE);
    let answer = take_over(&bench, &hasty, &dead, None).await;
    assert!(
        matches!(&answer, AcquireReply::Busy(holder) if holder.has_token(&first.claim.token)),
        "nor does who wouldn't wait: {answer:?}"
    );
    bench.are_served([&first], "it is the first one's").await;
    bench.is_quiet().await;
}

async fn a_lock_that_has_changed_hands_since_is_not_taken_over(bench: StoreSetup) {
    let dead = bench.holder(1).await;
    bench.release(&dead).await;
    let living = bench.holder(0).await;
    let claim = bench.claim_of(2, KEY, LEASE);
    let answer = take_over(&bench, &claim, &dead, None).await;
    assert!(
        matches!(&answer, AcquireReply::Busy(holder) if holder.has_token(&living.token)),
        "only the lock of the one who is dead: {answer:?}"
    );
    let waiter = bench.join(2).await;
    assert_eq!(
        bench.watch_for(2, Some(&dead)).await,
        Watched::Held(LockHolder::from(&living.token)),
        "nor by a look at the line"
    );
    assert_eq!(
        bench.extend(&[Arc::clone(&living)]).await,
        [true],
        "it is held still"
    );
    bench.release(&living).await;
    bench.are_served([&waiter], "until it is released").await;
    bench.is_quiet().await;
}

async fn a_watch_takes_over_for_the_first_in_the_line(bench: StoreSetup) {
    let dead = bench.holder(1).await;
    let (first, second) = (bench.join(0).await, bench.join(2).await);
    assert_eq!(
        bench.watch_for(2, Some(&dead)).await,
        Watched::Held(LockHolder::from(&first.claim.token)),
        "whoever finds out gives it to the first"
    );
    assert_eq!(
        bench.heard(0).await,
        [Message::Granted(first.claim.id)],
        "whose instance is told"
    );
    assert!(!bench.release(&dead).await, "the dead one has nothing left");
    bench
        .are_served([&first, &second], "in order of arrival")
        .await;
    bench.is_quiet().await;
}

#[tokio::test]
async fn who_missed_that_it_was_replaced_does_not_run_after_the_newer_turn_either() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let holder = bench.holder(0).await;
    let older = bench.join(1).await;
    let newest = bench.join_as(2, INTERRUPTING).await;
    bench.release(&holder).await;
    bench.are_served([&newest], "the newest is served").await;
    assert_eq!(
        bench.ask_again(&older).await,
        AcquireReply::Superseded,
        "a turn that was replaced has to make way for good, also when the lock is free again"
    );
    bench.is_quiet().await;
    let left = redis.pttl("{k}:waiters").await;
    assert!(
        Duration::from_millis(left.unsigned_abs()) > Duration::ZERO && left > 0,
        "the mark by which it is known ends by itself: {left}"
    );
}

async fn waiters_whose_instance_fell_silent_are_replaced_too(bench: StoreSetup) {
    let silent = bench.join_orphan(1).await;
    let claim = bench.claim_of(2, KEY, LEASE);
    let answer = bench.wait(&claim, INTERRUPTING).await;
    assert!(
        matches!(answer, AcquireReply::Granted(_)),
        "nobody who is alive waits before it: {answer:?}"
    );
    let later = bench.join(0).await;
    assert_eq!(
        bench.ask_again(&silent).await,
        AcquireReply::Superseded,
        "who comes back is older than the turn that replaces everybody"
    );
    bench.release(&claim).await;
    bench
        .are_served([&later], "who came later is not concerned")
        .await;
    bench.is_quiet().await;
}

async fn a_lock_that_is_too_young_is_not_taken_over(bench: StoreSetup) {
    let young = bench.holder(1).await;
    let claim = bench.claim_of(2, KEY, LEASE);
    let older = |after| AcquireRequest {
        take_over: Some(DeadHolder {
            holder: LockHolder::from(&young.token),
            min_age: after,
        }),
        queue: None,
    };
    let answer = bench.ask(&claim, &older(LEASE)).await;
    assert!(
        matches!(answer, AcquireReply::Busy(_)),
        "its instance may be about to say that it lives: {answer:?}"
    );
    sleep(Duration::from_millis(20)).await;
    let answer = bench.ask(&claim, &older(Duration::from_millis(10))).await;
    assert!(
        matches!(answer, AcquireReply::Granted(_)),
        "it would have by now: {answer:?}"
    );
    bench.release(&claim).await;
    // Offered, and not taken up: how old is the lock?
    let holder = bench.holder(0).await;
    let waiter = bench.join(1).await;
    bench.release(&holder).await;
    sleep(Duration::from_millis(20)).await;
    let dead = DeadHolder {
        holder: LockHolder::from(&waiter.claim.token),
        min_age: Duration::from_millis(10),
    };
    let ask = AcquireRequest {
        take_over: Some(dead),
        queue: None,
    };
    let answer = bench.ask(&bench.claim_of(2, KEY, LEASE), &ask).await;
    assert!(
        matches!(answer, AcquireReply::Busy(_)),
        "an offer ends by itself: {answer:?}"
    );
    bench.are_served([&waiter], "and is taken up").await;
    bench.is_quiet().await;
}
