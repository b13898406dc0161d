//! Interrupting turns, and taking over the locks of dead holders.

use std::sync::Arc;
use std::time::Duration;

use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, DeadHolder, LockHolder, Message, QueueOptions,
};

use tokio::time::sleep;

use super::{INTERRUPTING, KEY, LEASE, PATIENT, StoreSetup, Waiter, Watched, at_once};
use crate::support::redis::Redis;

store_contract!(
    waiters_of_a_silent_instance_are_superseded_too,
    an_interrupting_turn_supersedes_all_earlier_waiters,
    only_superseded_waiters_are_notified,
    a_superseded_waiter_that_missed_the_message_learns_it_on_retry,
    later_turns_wait_behind_an_interrupting_turn,
    only_the_newest_of_many_interrupting_turns_waits,
    an_interrupting_turn_that_retries_supersedes_no_later_turn,
    an_interrupting_turn_finds_room_in_a_full_queue,
    an_interrupting_turn_that_leaves_restores_no_superseded_turn,
    an_interrupting_turn_waits_for_a_waiter_with_an_offer,
    the_lock_of_a_dead_holder_is_taken_over,
    a_lock_that_is_too_young_is_not_taken_over,
    the_lock_of_a_dead_holder_goes_to_the_first_waiter,
    a_lock_with_a_new_holder_is_not_taken_over,
    a_watch_takes_over_for_the_first_waiter,
);

/// The reply to a request that names a dead holder.
async fn take_over(
    bench: &StoreSetup,
    claim: &Arc<Claim>,
    dead: &Claim,
    wait: Option<QueueOptions>,
) -> AcquireReply {
    let dead = Some(at_once(LockHolder::from(&dead.token)));
    bench
        .ask(
            claim,
            &AcquireRequest {
                take_over: dead,
                queue: wait,
            },
        )
        .await
}

async fn interrupt_again(bench: &StoreSetup, waiter: &Waiter) -> AcquireReply {
    let place = QueueOptions {
        ticket: Some(waiter.ticket),
        ..INTERRUPTING
    };
    bench.wait(&waiter.claim, place).await
}

async fn an_interrupting_turn_supersedes_all_earlier_waiters(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    for of in [1, 0, 2] {
        bench.join(of).await;
    }
    let newest = bench.claim_of(1, KEY, LEASE);
    let answer = bench.wait(&newest, INTERRUPTING).await;
    let AcquireReply::Waiting(ticket, named) = answer else {
        panic!("the interrupting turn waits for the holder only: {answer:?}");
    };
    assert!(
        named.has_token(&holder.token),
        "the reply names the holder to interrupt"
    );
    let newest = Waiter {
        claim: newest,
        ticket,
        of: 1,
    };
    assert!(
        bench.release(&holder).await,
        "the holder keeps its lock until its release"
    );
    bench
        .are_served([&newest], "the interrupting turn is next")
        .await;
    bench.wait_until_no_keys().await;
}

async fn only_superseded_waiters_are_notified(bench: StoreSetup) {
    let _holder = bench.holder(0).await;
    let older = [
        bench.join(1).await,
        bench.join(2).await,
        bench.join(1).await,
    ];
    bench.join_as(0, INTERRUPTING).await;
    let notified = |n: usize| Message::Superseded(older[n].claim.id);
    assert_eq!(
        bench.received(1).await,
        [notified(0), notified(2)],
        "each instance is notified about its own waiters"
    );
    assert_eq!(
        bench.received(2).await,
        [notified(1)],
        "an instance isn't notified about other waiters"
    );
    assert_eq!(
        bench.received(0).await,
        [],
        "the store doesn't notify the holder: the interrupting instance does"
    );
}

async fn a_superseded_waiter_that_missed_the_message_learns_it_on_retry(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let older = [bench.join(1).await, bench.join(2).await];
    let newest = bench.join_as(0, INTERRUPTING).await;
    for waiter in &older {
        for _ in 0..2 {
            assert_eq!(
                bench.ask_again(waiter).await,
                AcquireReply::Superseded,
                "each retry says that the waiter is superseded"
            );
        }
    }
    bench.release(&holder).await;
    bench.take_up(&newest).await;
    assert_eq!(
        bench.ask_again(&older[0]).await,
        AcquireReply::Superseded,
        "a retry says so while the newer turn runs"
    );
    bench.release(&newest.claim).await;
    bench.wait_until_no_keys().await;
}

async fn later_turns_wait_behind_an_interrupting_turn(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let older = bench.join(1).await;
    let newest = bench.join_as(0, INTERRUPTING).await;
    let later = [bench.join(2).await, bench.join(1).await];
    bench.received(1).await;
    let again = bench.ask_again(&later[0]).await;
    assert!(
        matches!(again, AcquireReply::Waiting(ticket, _) if ticket == later[0].ticket),
        "a later turn isn't superseded: {again:?}"
    );
    assert_eq!(
        bench.ask_again(&older).await,
        AcquireReply::Superseded,
        "an earlier turn is superseded"
    );
    bench.release(&holder).await;
    let order = [&newest, &later[0], &later[1]];
    bench
        .are_served(order, "waiters are served in order of arrival")
        .await;
    bench.wait_until_no_keys().await;
}

async fn only_the_newest_of_many_interrupting_turns_waits(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let mut all = Vec::new();
    for of in [1, 2, 1, 0] {
        all.push(bench.join_as(of, INTERRUPTING).await);
    }
    let newest = all.pop().expect("the newest turn");
    for older in &all {
        assert_eq!(
            interrupt_again(&bench, older).await,
            AcquireReply::Superseded,
            "an older turn is superseded, and doesn't interrupt again"
        );
        let received = Message::Superseded(older.claim.id);
        let notified = bench.instances[older.of].handler.lock().contains(&received);
        assert!(
            notified || bench.received(older.of).await.contains(&received),
            "a superseded turn is notified"
        );
    }
    bench.release(&holder).await;
    bench
        .are_served([&newest], "the newest turn is served")
        .await;
    bench.wait_until_no_keys().await;
}

async fn an_interrupting_turn_that_retries_supersedes_no_later_turn(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let newest = bench.join_as(0, INTERRUPTING).await;
    let later = bench.join(1).await;
    let again = interrupt_again(&bench, &newest).await;
    assert!(
        matches!(again, AcquireReply::Waiting(ticket, _) if ticket == newest.ticket),
        "the turn keeps its place: {again:?}"
    );
    // Also after it lost its place.
    bench.withdraw(&newest.claim).await;
    let again = interrupt_again(&bench, &newest).await;
    assert!(
        matches!(again, AcquireReply::Waiting(ticket, _) if ticket == newest.ticket),
        "the turn gets its place back: {again:?}"
    );
    assert_eq!(bench.received(1).await, [], "a later turn isn't superseded");
    bench.release(&holder).await;
    bench
        .are_served([&newest, &later], "waiters are served in order of arrival")
        .await;
    bench.wait_until_no_keys().await;
}

async fn an_interrupting_turn_finds_room_in_a_full_queue(bench: StoreSetup) {
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
    assert!(
        matches!(
            bench.wait(&bench.claim(KEY, LEASE), full).await,
            AcquireReply::QueueFull(_)
        ),
        "an interrupting turn counts against max_waiters"
    );
    bench.release(&holder).await;
    bench
        .are_served(
            [&newest],
            "the interrupting turn takes the place of earlier ones",
        )
        .await;
    bench.wait_until_no_keys().await;
}

async fn an_interrupting_turn_that_leaves_restores_no_superseded_turn(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let older = bench.join(1).await;
    let newest = bench.join_as(2, INTERRUPTING).await;
    bench.withdraw(&newest.claim).await;
    assert_eq!(
        bench.ask_again(&older).await,
        AcquireReply::Superseded,
        "a superseded turn stays superseded"
    );
    bench.release(&holder).await;
    bench.wait_until_no_keys().await;
}

async fn an_interrupting_turn_waits_for_a_waiter_with_an_offer(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (offered, behind) = (bench.join(1).await, bench.join(2).await);
    bench.release(&holder).await;
    let newest = bench.claim_of(0, KEY, LEASE);
    let answer = bench.wait(&newest, INTERRUPTING).await;
    let AcquireReply::Waiting(ticket, named) = answer else {
        panic!("an offered lock counts as held: {answer:?}");
    };
    assert!(
        named.has_token(&offered.claim.token),
        "the waiter with the offer is named as the holder to interrupt"
    );
    let newest = Waiter {
        claim: newest,
        ticket,
        of: 0,
    };
    assert_eq!(
        bench.ask_again(&behind).await,
        AcquireReply::Superseded,
        "waiters without an offer are superseded"
    );
    bench.take_up(&offered).await;
    bench.release(&offered.claim).await;
    bench.are_served([&newest], "the newest turn is next").await;
    bench.wait_until_no_keys().await;
}

async fn the_lock_of_a_dead_holder_is_taken_over(bench: StoreSetup) {
    let dead = bench.claim_of(1, KEY, LEASE);
    let first = bench.granted(&dead).await;
    let claim = bench.claim_of(0, KEY, LEASE);
    let AcquireReply::Granted(fence) = take_over(&bench, &claim, &dead, None).await else {
        panic!("the lock of the dead holder is granted");
    };
    assert!(fence > first, "the fence rises with a take-over");
    assert!(bench.holds(&claim).await, "a taken-over lock is held");
    assert_eq!(
        bench.extend(&[Arc::clone(&dead)]).await,
        [false],
        "a holder that was wrongly taken for dead lost its lock"
    );
    assert!(!bench.release(&dead).await, "it can't release the lock");
    assert!(
        bench.release(&claim).await,
        "the new holder releases the lock"
    );
    bench.wait_until_no_keys().await;
}

async fn the_lock_of_a_dead_holder_goes_to_the_first_waiter(bench: StoreSetup) {
    let dead = bench.holder(1).await;
    let (first, second) = (bench.join(0).await, bench.join(2).await);
    let place = QueueOptions {
        ticket: Some(second.ticket),
        ..PATIENT
    };
    let answer = take_over(&bench, &second.claim, &dead, Some(place)).await;
    assert!(
        matches!(&answer, AcquireReply::Waiting(_, holder) if holder.has_token(&first.claim.token)),
        "the discoverer doesn't overtake earlier waiters: {answer:?}"
    );
    assert_eq!(
        bench.received(0).await,
        [Message::Granted(first.claim.id)],
        "the first waiter's instance is notified"
    );
    bench
        .are_served([&first, &second], "waiters are served in order of arrival")
        .await;

    let dead = bench.holder(1).await;
    let first = bench.join(0).await;
    let hasty = bench.claim_of(2, KEY, LEASE);
    let answer = take_over(&bench, &hasty, &dead, None).await;
    assert!(
        matches!(&answer, AcquireReply::Busy(holder, _) if holder.has_token(&first.claim.token)),
        "a non-blocking discoverer doesn't overtake waiters: {answer:?}"
    );
    bench
        .are_served([&first], "the lock goes to the first waiter")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_lock_with_a_new_holder_is_not_taken_over(bench: StoreSetup) {
    let dead = bench.holder(1).await;
    bench.release(&dead).await;
    let living = bench.holder(0).await;
    let claim = bench.claim_of(2, KEY, LEASE);
    let answer = take_over(&bench, &claim, &dead, None).await;
    assert!(
        matches!(&answer, AcquireReply::Busy(holder, _) if holder.has_token(&living.token)),
        "only the dead holder's lock is taken over: {answer:?}"
    );
    let waiter = bench.join(2).await;
    assert_eq!(
        bench.watch_for(2, Some(&dead)).await,
        Watched::Held(LockHolder::from(&living.token)),
        "a watch doesn't take over either"
    );
    assert_eq!(
        bench.extend(&[Arc::clone(&living)]).await,
        [true],
        "the lock is still held"
    );
    bench.release(&living).await;
    bench
        .are_served([&waiter], "the waiter is served after the release")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_watch_takes_over_for_the_first_waiter(bench: StoreSetup) {
    let dead = bench.holder(1).await;
    let (first, second) = (bench.join(0).await, bench.join(2).await);
    assert_eq!(
        bench.watch_for(2, Some(&dead)).await,
        Watched::Held(LockHolder::from(&first.claim.token)),
        "a watch gives the lock to the first waiter"
    );
    assert_eq!(
        bench.received(0).await,
        [Message::Granted(first.claim.id)],
        "the first waiter's instance is notified"
    );
    assert!(
        !bench.release(&dead).await,
        "the dead holder's lock is gone"
    );
    bench
        .are_served([&first, &second], "waiters are served in order of arrival")
        .await;
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_superseded_waiter_stays_superseded_after_the_newer_turn() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let holder = bench.holder(0).await;
    let older = bench.join(1).await;
    let newest = bench.join_as(2, INTERRUPTING).await;
    bench.release(&holder).await;
    bench
        .are_served([&newest], "the newest turn is served")
        .await;
    assert_eq!(
        bench.ask_again(&older).await,
        AcquireReply::Superseded,
        "a superseded turn stays superseded, also when the lock is free again"
    );
    bench.wait_until_no_keys().await;
    let left = redis.pttl("{k}:1:waiters").await;
    assert!(
        Duration::from_millis(left.unsigned_abs()) > Duration::ZERO && left > 0,
        "the mark of the superseded turn expires: {left}"
    );
}

async fn waiters_of_a_silent_instance_are_superseded_too(bench: StoreSetup) {
    let silent = bench.join_orphan(1).await;
    let claim = bench.claim_of(2, KEY, LEASE);
    let answer = bench.wait(&claim, INTERRUPTING).await;
    assert!(
        matches!(answer, AcquireReply::Granted(_)),
        "no live waiter precedes the interrupting turn: {answer:?}"
    );
    let later = bench.join(0).await;
    assert_eq!(
        bench.ask_again(&silent).await,
        AcquireReply::Superseded,
        "a returning waiter is older than the interrupting turn"
    );
    bench.release(&claim).await;
    bench
        .are_served([&later], "a later turn isn't affected")
        .await;
    bench.wait_until_no_keys().await;
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
        matches!(answer, AcquireReply::Busy(..)),
        "a young lock isn't taken over, as a heartbeat may be under way: {answer:?}"
    );
    sleep(Duration::from_millis(20)).await;
    let answer = bench.ask(&claim, &older(Duration::from_millis(10))).await;
    assert!(
        matches!(answer, AcquireReply::Granted(_)),
        "an older lock is taken over: {answer:?}"
    );
    bench.release(&claim).await;
    // An offer that isn't accepted yet has no age.
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
        matches!(answer, AcquireReply::Busy(..)),
        "an offer isn't taken over, as it expires: {answer:?}"
    );
    bench
        .are_served([&waiter], "the waiter accepts its offer")
        .await;
    bench.wait_until_no_keys().await;
}
