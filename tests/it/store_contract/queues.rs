//! The queue of a busy lock: its order, hand-over, and leaving.

use std::sync::Arc;
use std::time::Duration;

use seriatim::lock::{AcquireReply, AcquireRequest, Message, OFFER_TTL, QueueOptions, Ticket};
use tokio::time::Instant;

use super::{INTERRUPTING, KEY, LEASE, PATIENT, StoreSetup, Waiter, Watched, held_by};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

store_contract!(
    a_blocking_turn_gets_a_free_lock_at_once,
    a_waiting_turn_gets_its_ticket_and_the_holder,
    waiters_are_served_in_order_of_arrival,
    concurrent_waiters_are_each_served_once_in_ticket_order,
    only_the_next_waiter_is_notified,
    a_repeated_request_keeps_its_place,
    a_waiter_gets_its_lost_place_back_by_its_ticket,
    an_offer_that_is_not_accepted_goes_to_the_next_waiter,
    a_waiter_that_leaves_the_middle_of_the_queue_is_never_served,
    a_waiter_that_leaves_with_an_offer_hands_it_on,
    a_waiter_that_leaves_does_not_free_the_lock,
    a_turn_beyond_max_waiters_is_refused,
    a_waiter_that_retries_is_never_refused_as_full,
    a_non_blocking_turn_never_overtakes_a_waiter,
    a_turn_joins_behind_the_waiters_of_a_free_lock,
    the_first_waiter_gets_a_free_lock_by_retrying,
    the_fence_rises_along_the_queue,
);

async fn a_blocking_turn_gets_a_free_lock_at_once(bench: StoreSetup) {
    for place in [PATIENT, INTERRUPTING] {
        let claim = bench.claim(KEY, LEASE);
        let answer = bench.wait(&claim, place).await;
        assert!(
            matches!(answer, AcquireReply::Granted(_)),
            "a free lock is granted: {answer:?}"
        );
        assert!(bench.release(&claim).await, "the lock can be released");
        assert_eq!(
            bench.left().await,
            [""; 0],
            "a turn that didn't wait leaves no queue"
        );
    }
}

async fn a_waiting_turn_gets_its_ticket_and_the_holder(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let mut last = Ticket(0);
    for of in [1, 0, 2] {
        let claim = bench.claim_of(of, KEY, LEASE);
        match bench.wait(&claim, PATIENT).await {
            AcquireReply::Waiting(ticket, named) => {
                assert!(ticket > last, "tickets rise with each arrival");
                assert!(named.has_token(&holder.token), "the holder is named");
                last = ticket;
            }
            other => panic!("a turn waits for a busy lock: {other:?}"),
        }
    }
}

async fn waiters_are_served_in_order_of_arrival(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let mut waiters = Vec::new();
    for of in [1, 0, 2, 2, 0, 1] {
        waiters.push(bench.join(of).await);
    }
    bench.release(&holder).await;
    let why = "in order of arrival across instances";
    bench.are_served(&waiters, why).await;
    bench.wait_until_no_keys().await;
}

async fn concurrent_waiters_are_each_served_once_in_ticket_order(bench: StoreSetup) {
    let claims: Vec<_> = (0..60).map(|n| bench.claim_of(n % 3, KEY, LEASE)).collect();
    let ask = AcquireRequest {
        take_over: None,
        queue: Some(PATIENT),
    };
    let asked: Vec<_> = claims
        .iter()
        .enumerate()
        .map(|(n, claim)| tokio::spawn(bench.store(n % 3).acquire(claim, &ask)))
        .collect();
    let (mut holders, mut waiters) = (Vec::new(), Vec::new());
    for (n, asked) in asked.into_iter().enumerate() {
        let claim = Arc::clone(&claims[n]);
        match asked.await.expect("no panic").expect("the store answers") {
            AcquireReply::Granted(_) => holders.push(claim),
            AcquireReply::Waiting(ticket, _) => waiters.push(Waiter {
                claim,
                ticket,
                of: n % 3,
            }),
            other => panic!("there is room for all turns: {other:?}"),
        }
    }
    assert_eq!(holders.len(), 1, "exactly one turn is granted");
    waiters.sort_by_key(|waiter| waiter.ticket);
    assert!(
        waiters.windows(2).all(|two| two[0].ticket < two[1].ticket),
        "tickets are unique"
    );
    bench.release(&holders[0]).await;
    bench
        .are_served(&waiters, "in the order of their tickets")
        .await;
    bench.wait_until_no_keys().await;
}

async fn only_the_next_waiter_is_notified(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    for of in 0..3 {
        assert_eq!(
            bench.received(of).await,
            [],
            "no message is sent while the lock is held"
        );
    }
    bench.release(&holder).await;
    assert_eq!(
        bench.received(1).await,
        [Message::Granted(first.claim.id)],
        "the next waiter's instance is notified once"
    );
    assert_eq!(bench.received(2).await, [], "later waiters aren't notified");
    bench.take_up(&first).await;
    bench.release(&first.claim).await;
    assert_eq!(
        bench.received(2).await,
        [Message::Granted(second.claim.id)],
        "the second waiter is notified when it is next"
    );
    assert_eq!(
        bench.received(1).await,
        [],
        "the first waiter isn't notified again"
    );
    assert_eq!(
        bench.received(0).await,
        [],
        "an instance without waiters isn't notified"
    );
}

async fn a_repeated_request_keeps_its_place(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiters = [
        bench.join(1).await,
        bench.join(2).await,
        bench.join(1).await,
    ];
    for waiter in [&waiters[1], &waiters[0], &waiters[0]] {
        match bench.ask_again(waiter).await {
            AcquireReply::Waiting(ticket, named) => {
                assert_eq!(ticket, waiter.ticket, "the ticket stays the same");
                assert!(named.has_token(&holder.token), "the holder is named again");
            }
            other => panic!("the turn still waits: {other:?}"),
        }
    }
    // Also for a turn whose first reply was lost, so that it knows no ticket.
    match bench.wait(&waiters[0].claim, PATIENT).await {
        AcquireReply::Waiting(ticket, _) => {
            assert_eq!(ticket, waiters[0].ticket, "the store knows the ticket")
        }
        other => panic!("the turn still waits: {other:?}"),
    }
    bench.release(&holder).await;
    bench
        .are_served(&waiters, "each waiter is served once, in order of arrival")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_waiter_gets_its_lost_place_back_by_its_ticket(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let early = [
        bench.join(1).await,
        bench.join(2).await,
        bench.join(0).await,
    ];
    for waiter in &early {
        bench.withdraw(&waiter.claim).await;
    }
    let late = bench.join(1).await;
    for waiter in early.iter().rev() {
        match bench.ask_again(waiter).await {
            AcquireReply::Waiting(ticket, _) => {
                assert_eq!(
                    ticket, waiter.ticket,
                    "the waiter gets the place of its ticket"
                );
            }
            other => panic!("the waiter is in the queue again: {other:?}"),
        }
    }
    bench.release(&holder).await;
    let why = "the old order is kept, and later turns are behind";
    bench.are_served(early.iter().chain([&late]), why).await;
    bench.wait_until_no_keys().await;
}

async fn an_offer_that_is_not_accepted_goes_to_the_next_waiter(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (gone, next) = (bench.join(1).await, bench.join(2).await);
    let offered = Instant::now();
    bench.release(&holder).await;
    assert!(
        bench.holds(&gone.claim).await,
        "the lock is offered to the first waiter"
    );
    let mut last = offered;
    let goes_on = async || {
        let asked = Instant::now();
        if bench.watch(2).await == held_by(&next.claim) {
            return true;
        }
        last = asked;
        false
    };
    wait_for_async(goes_on, "the lock is offered to the next waiter").await;
    let (most, least) = (offered.elapsed(), last - offered);
    let slack = Duration::from_millis(50);
    assert!(
        most + slack >= OFFER_TTL,
        "the first waiter has all of OFFER_TTL to accept it, not {most:?}"
    );
    assert!(
        least <= OFFER_TTL + slack,
        "the offer ends after that time: {least:?}"
    );
    assert_eq!(
        bench.received(2).await,
        [Message::Granted(next.claim.id)],
        "the next waiter's instance is notified"
    );
    bench.take_up(&next).await;
    match bench.ask_again(&gone).await {
        AcquireReply::Waiting(ticket, holder) => {
            assert_eq!(ticket, gone.ticket, "a late waiter keeps its place");
            assert!(
                holder.has_token(&next.claim.token),
                "a late waiter doesn't get the lock"
            );
        }
        other => panic!("an expired offer can't be accepted: {other:?}"),
    }
    bench.pass(OFFER_TTL, &[1, 2]).await;
    assert!(
        bench.holds(&next.claim).await,
        "an accepted lock is held for its lease, not for OFFER_TTL"
    );
    bench.release(&next.claim).await;
    bench
        .are_served([&gone], "the late waiter is served later")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_waiter_that_leaves_the_middle_of_the_queue_is_never_served(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiters = [
        bench.join(0).await,
        bench.join(1).await,
        bench.join(2).await,
    ];
    bench.withdraw(&waiters[1].claim).await;
    bench.release(&holder).await;
    let left = [&waiters[0], &waiters[2]];
    bench
        .are_served(left, "the waiters behind it move up")
        .await;
    assert_eq!(
        bench.received(1).await,
        [],
        "the waiter that left isn't notified"
    );
    bench.wait_until_no_keys().await;
}

async fn a_waiter_that_leaves_with_an_offer_hands_it_on(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    bench.release(&holder).await;
    assert!(
        bench.holds(&first.claim).await,
        "the lock is offered to the first waiter"
    );
    bench.withdraw(&first.claim).await;
    assert_eq!(
        bench.received(2).await,
        [Message::Granted(second.claim.id)],
        "the next waiter's instance is notified at once"
    );
    bench
        .are_served([&second], "the lock is offered to the next waiter")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_waiter_that_leaves_does_not_free_the_lock(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    bench.withdraw(&first.claim).await;
    assert!(
        bench.holds(&holder).await,
        "a leaving waiter doesn't affect the holder"
    );
    assert!(
        !bench.release(&second.claim).await,
        "a waiter can't release the lock"
    );
    assert!(bench.holds(&holder).await, "the holder keeps its lock");
    assert!(bench.release(&holder).await, "the holder releases its lock");
    bench.wait_until_no_keys().await;
}

async fn a_turn_beyond_max_waiters_is_refused(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let place = QueueOptions {
        max_waiters: 2,
        ..PATIENT
    };
    let waiters = [bench.join_as(0, place).await, bench.join_as(1, place).await];
    let third = bench.claim_of(2, KEY, LEASE);
    assert!(
        matches!(bench.wait(&third, place).await, AcquireReply::QueueFull(_)),
        "there is no room for a third waiter"
    );
    assert_eq!(
        bench.watch(2).await,
        Watched::Unknown,
        "the refused turn isn't in the queue"
    );
    bench.withdraw(&waiters[0].claim).await;
    let third = bench.join_as(2, place).await;
    bench.release(&holder).await;
    let why = "there is room when a waiter has left";
    bench.are_served([&waiters[1], &third], why).await;
    let none = QueueOptions {
        max_waiters: 0,
        ..PATIENT
    };
    let holder = bench.holder(0).await;
    assert!(
        matches!(
            bench.wait(&bench.claim(KEY, LEASE), none).await,
            AcquireReply::QueueFull(_)
        ),
        "max_waiters = 0 allows no waiter"
    );
    bench.release(&holder).await;
    bench.wait_until_no_keys().await;
}

async fn a_waiter_that_retries_is_never_refused_as_full(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiters = [bench.join(0).await, bench.join(1).await];
    let full = QueueOptions {
        max_waiters: 1,
        ..PATIENT
    };
    let known = bench.wait(&waiters[1].claim, full).await;
    assert!(
        matches!(known, AcquireReply::Waiting(ticket, _) if ticket == waiters[1].ticket),
        "the turn is in the queue already: {known:?}"
    );
    bench.withdraw(&waiters[0].claim).await;
    let _late = bench.join(2).await;
    let again = QueueOptions {
        ticket: Some(waiters[0].ticket),
        ..full
    };
    let again = bench.wait(&waiters[0].claim, again).await;
    assert!(
        matches!(again, AcquireReply::Waiting(..)),
        "a waiter with a ticket gets its place back: {again:?}"
    );
    bench.release(&holder).await;
    bench.are_served(&waiters, "both are served").await;
}

async fn a_non_blocking_turn_never_overtakes_a_waiter(bench: StoreSetup) {
    let waiters = bench.orphans(&[1, 2]).await;
    let hasty = bench.claim_of(0, KEY, LEASE);
    match bench.acquire(&hasty).await {
        AcquireReply::Busy(holder, _) => assert!(
            holder.has_token(&waiters[0].claim.token),
            "a free lock goes to the first waiter"
        ),
        other => panic!("a turn waits for the lock: {other:?}"),
    }
    assert_eq!(
        bench.received(1).await,
        [Message::Granted(waiters[0].claim.id)],
        "the first waiter's instance is notified"
    );
    bench.are_served(&waiters, "the queue moves on").await;
    bench.wait_until_no_keys().await;
}

async fn a_turn_joins_behind_the_waiters_of_a_free_lock(bench: StoreSetup) {
    let waiters = bench.orphans(&[1, 2]).await;
    let late = bench.join(0).await;
    let why = "the lock goes to the first waiter, and the last turn is last";
    bench.are_served(waiters.iter().chain([&late]), why).await;
    bench.wait_until_no_keys().await;
}

async fn the_first_waiter_gets_a_free_lock_by_retrying(bench: StoreSetup) {
    let waiters = bench.orphans(&[1, 2]).await;
    let second = bench.ask_again(&waiters[1]).await;
    assert!(
        matches!(&second, AcquireReply::Waiting(_, holder) if holder.has_token(&waiters[0].claim.token)),
        "the second waiter doesn't overtake the first by retrying: {second:?}"
    );
    bench
        .are_served(&waiters, "waiters are served in order")
        .await;

    let waiters = bench.orphans(&[1, 2]).await;
    bench.received(1).await;
    bench.take_up(&waiters[0]).await;
    assert_eq!(
        bench.received(1).await,
        [],
        "a turn with a reply gets no message"
    );
    assert!(
        bench.release(&waiters[0].claim).await,
        "the first waiter holds the lock"
    );
    bench
        .are_served([&waiters[1]], "the second waiter is served")
        .await;
    bench.wait_until_no_keys().await;
}

async fn the_fence_rises_along_the_queue(bench: StoreSetup) {
    let first = bench.claim(KEY, LEASE);
    let mut last = bench.granted(&first).await;
    let mut waiters = Vec::new();
    for n in 0..20 {
        waiters.push(bench.join(n % 3).await);
    }
    bench.release(&first).await;
    for waiter in &waiters {
        let fence = bench.take_up(waiter).await;
        assert!(fence > last, "{fence} must be larger than {last}");
        last = fence;
        bench.release(&waiter.claim).await;
    }
}

#[tokio::test]
async fn a_queue_that_redis_lost_is_rebuilt_in_its_order() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let holder = bench.holder(0).await;
    let waiters = [
        bench.join(1).await,
        bench.join(2).await,
        bench.join(1).await,
    ];
    redis
        .command(&["DEL", "{k}:1:queue", "{k}:1:waiters"])
        .await;
    for of in [1, 2] {
        assert_eq!(
            bench.watch(of).await,
            Watched::Unknown,
            "each instance learns that its waiters must join again"
        );
    }
    for waiter in waiters.iter().rev() {
        let answer = bench.ask_again(waiter).await;
        assert!(
            matches!(answer, AcquireReply::Waiting(ticket, _) if ticket == waiter.ticket),
            "the waiter gets its place back: {answer:?}"
        );
    }
    bench.release(&holder).await;
    bench
        .are_served(&waiters, "waiters are served in order of arrival")
        .await;
    bench.wait_until_no_keys().await;
}
