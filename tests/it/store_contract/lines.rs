//! The line of a busy lock: its order, what becomes of a lock that is handed over, and leaving.

use std::sync::Arc;
use std::time::Duration;

use seriatim::lock::{AcquireReply, AcquireRequest, Message, OFFER_TTL, QueueOptions, Ticket};
use tokio::time::Instant;

use super::{INTERRUPTING, KEY, LEASE, PATIENT, StoreSetup, Waiter, Watched, held_by};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

store_contract!(
    a_turn_that_waits_for_a_free_lock_has_it_at_once,
    a_turn_that_waits_is_told_its_ticket_and_who_holds_the_lock,
    waiters_are_served_in_the_order_in_which_they_came,
    of_many_that_join_at_once_each_is_served_once_and_in_order,
    the_one_whose_turn_it_is_is_told_and_nobody_else,
    a_repeated_ask_keeps_its_place,
    a_place_that_was_lost_is_taken_up_again_with_its_ticket,
    an_offer_that_nobody_takes_up_goes_on_to_the_next,
    a_waiter_that_leaves_from_the_middle_is_never_served,
    a_waiter_that_leaves_with_an_offer_hands_it_on,
    a_waiter_that_leaves_does_not_free_the_lock,
    one_more_than_may_wait_is_refused,
    a_waiter_that_asks_again_is_never_one_too_many,
    a_turn_that_does_not_wait_never_jumps_the_line,
    a_turn_that_comes_to_a_free_lock_joins_behind_those_who_wait_for_it,
    the_first_in_the_line_has_a_free_lock_for_the_asking,
    the_fence_rises_along_the_line,
);

async fn a_turn_that_waits_for_a_free_lock_has_it_at_once(bench: StoreSetup) {
    for place in [PATIENT, INTERRUPTING] {
        let claim = bench.claim(KEY, LEASE);
        let answer = bench.wait(&claim, place).await;
        assert!(
            matches!(answer, AcquireReply::Granted(_)),
            "nobody is before it: {answer:?}"
        );
        assert!(bench.release(&claim).await, "it holds it like any other");
        assert_eq!(
            bench.left().await,
            [""; 0],
            "who didn't wait leaves no line behind"
        );
    }
}

async fn a_turn_that_waits_is_told_its_ticket_and_who_holds_the_lock(bench: StoreSetup) {
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
            other => panic!("a busy lock is waited for: {other:?}"),
        }
    }
}

async fn waiters_are_served_in_the_order_in_which_they_came(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let mut waiters = Vec::new();
    for of in [1, 0, 2, 2, 0, 1] {
        waiters.push(bench.join(of).await);
    }
    bench.release(&holder).await;
    let why = "in order of arrival, whichever instance they came to";
    bench.are_served(&waiters, why).await;
    bench.is_quiet().await;
}

async fn of_many_that_join_at_once_each_is_served_once_and_in_order(bench: StoreSetup) {
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
            other => panic!("there is room for all of them: {other:?}"),
        }
    }
    assert_eq!(holders.len(), 1, "one holder at a time, however many ask");
    waiters.sort_by_key(|waiter| waiter.ticket);
    assert!(
        waiters.windows(2).all(|two| two[0].ticket < two[1].ticket),
        "no two have the same ticket"
    );
    bench.release(&holders[0]).await;
    bench
        .are_served(&waiters, "in the order of their tickets")
        .await;
    bench.is_quiet().await;
}

async fn the_one_whose_turn_it_is_is_told_and_nobody_else(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    for of in 0..3 {
        assert_eq!(
            bench.heard(of).await,
            [],
            "while it is busy there is nothing to say"
        );
    }
    bench.release(&holder).await;
    assert_eq!(
        bench.heard(1).await,
        [Message::Granted(first.claim.id)],
        "its instance is told, once"
    );
    assert_eq!(bench.heard(2).await, [], "the next one's isn't");
    bench.take_up(&first).await;
    bench.release(&first.claim).await;
    assert_eq!(
        bench.heard(2).await,
        [Message::Granted(second.claim.id)],
        "until it is"
    );
    assert_eq!(bench.heard(1).await, [], "and not the one before it again");
    assert_eq!(bench.heard(0).await, [], "nor who doesn't wait");
}

async fn a_repeated_ask_keeps_its_place(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiters = [
        bench.join(1).await,
        bench.join(2).await,
        bench.join(1).await,
    ];
    for waiter in [&waiters[1], &waiters[0], &waiters[0]] {
        match bench.ask_again(waiter).await {
            AcquireReply::Waiting(ticket, named) => {
                assert_eq!(ticket, waiter.ticket, "its ticket is the one it had");
                assert!(named.has_token(&holder.token), "the holder is named again");
            }
            other => panic!("it waits as before: {other:?}"),
        }
    }
    // Also of one whose first answer got lost, and who knows no ticket.
    match bench.wait(&waiters[0].claim, PATIENT).await {
        AcquireReply::Waiting(ticket, _) => assert_eq!(ticket, waiters[0].ticket, "it is known"),
        other => panic!("it waits as before: {other:?}"),
    }
    bench.release(&holder).await;
    bench
        .are_served(&waiters, "each once, in order of arrival")
        .await;
    bench.is_quiet().await;
}

async fn a_place_that_was_lost_is_taken_up_again_with_its_ticket(bench: StoreSetup) {
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
                assert_eq!(ticket, waiter.ticket, "it is the place that it asks for");
            }
            other => panic!("it is in the line again: {other:?}"),
        }
    }
    bench.release(&holder).await;
    let why = "the old order is kept, and who came later is behind them";
    bench.are_served(early.iter().chain([&late]), why).await;
    bench.is_quiet().await;
}

async fn an_offer_that_nobody_takes_up_goes_on_to_the_next(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (gone, next) = (bench.join(1).await, bench.join(2).await);
    let offered = Instant::now();
    bench.release(&holder).await;
    assert!(bench.holds(&gone.claim).await, "it is offered to the first");
    let mut last = offered;
    let goes_on = async || {
        let asked = Instant::now();
        if bench.watch(2).await == held_by(&next.claim) {
            return true;
        }
        last = asked;
        false
    };
    wait_for_async(goes_on, "the next in the line is offered it").await;
    let (most, least) = (offered.elapsed(), last - offered);
    let slack = Duration::from_millis(50);
    assert!(
        most + slack >= OFFER_TTL,
        "the first has all of OFFER_TTL to take it up, not {most:?}"
    );
    assert!(least <= OFFER_TTL + slack, "and no longer: {least:?}");
    assert_eq!(
        bench.heard(2).await,
        [Message::Granted(next.claim.id)],
        "and the next one's instance is told"
    );
    bench.take_up(&next).await;
    match bench.ask_again(&gone).await {
        AcquireReply::Waiting(ticket, holder) => {
            assert_eq!(
                ticket, gone.ticket,
                "who comes too late has its place still"
            );
            assert!(holder.has_token(&next.claim.token), "but not the lock");
        }
        other => panic!("an offer that is over can't be taken up: {other:?}"),
    }
    bench.pass(OFFER_TTL, &[1, 2]).await;
    assert!(
        bench.holds(&next.claim).await,
        "a lock that was taken up is held for its lease, not for OFFER_TTL"
    );
    bench.release(&next.claim).await;
    bench.are_served([&gone], "who was late is served").await;
    bench.is_quiet().await;
}

async fn a_waiter_that_leaves_from_the_middle_is_never_served(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiters = [
        bench.join(0).await,
        bench.join(1).await,
        bench.join(2).await,
    ];
    bench.withdraw(&waiters[1].claim).await;
    bench.release(&holder).await;
    let left = [&waiters[0], &waiters[2]];
    bench.are_served(left, "those behind it move up").await;
    assert_eq!(bench.heard(1).await, [], "who left is told nothing");
    bench.is_quiet().await;
}

async fn a_waiter_that_leaves_with_an_offer_hands_it_on(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    bench.release(&holder).await;
    assert!(
        bench.holds(&first.claim).await,
        "it is offered to the first"
    );
    bench.withdraw(&first.claim).await;
    assert_eq!(
        bench.heard(2).await,
        [Message::Granted(second.claim.id)],
        "the next one's instance is told at once"
    );
    bench
        .are_served([&second], "and it is offered to the next")
        .await;
    bench.is_quiet().await;
}

async fn a_waiter_that_leaves_does_not_free_the_lock(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    bench.withdraw(&first.claim).await;
    assert!(bench.holds(&holder).await, "it isn't its lock");
    assert!(
        !bench.release(&second.claim).await,
        "nor is it the one's that releases what it doesn't hold"
    );
    assert!(bench.holds(&holder).await, "the holder isn't disturbed");
    assert!(bench.release(&holder).await, "until it is done");
    bench.is_quiet().await;
}

async fn one_more_than_may_wait_is_refused(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let place = QueueOptions {
        max_waiters: 2,
        ..PATIENT
    };
    let waiters = [bench.join_as(0, place).await, bench.join_as(1, place).await];
    let third = bench.claim_of(2, KEY, LEASE);
    assert_eq!(
        bench.wait(&third, place).await,
        AcquireReply::QueueFull,
        "there is no room for a third"
    );
    assert_eq!(
        bench.watch(2).await,
        Watched::Unknown,
        "and it isn't in the line"
    );
    bench.withdraw(&waiters[0].claim).await;
    let third = bench.join_as(2, place).await;
    bench.release(&holder).await;
    let why = "there is when one has left";
    bench.are_served([&waiters[1], &third], why).await;
    let none = QueueOptions {
        max_waiters: 0,
        ..PATIENT
    };
    let holder = bench.holder(0).await;
    assert_eq!(
        bench.wait(&bench.claim(KEY, LEASE), none).await,
        AcquireReply::QueueFull,
        "there may be none at all"
    );
    bench.release(&holder).await;
    bench.is_quiet().await;
}

async fn a_waiter_that_asks_again_is_never_one_too_many(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiters = [bench.join(0).await, bench.join(1).await];
    let full = QueueOptions {
        max_waiters: 1,
        ..PATIENT
    };
    let known = bench.wait(&waiters[1].claim, full).await;
    assert!(
        matches!(known, AcquireReply::Waiting(ticket, _) if ticket == waiters[1].ticket),
        "it is in the line already: {known:?}"
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
        "it had its place before the others had theirs: {again:?}"
    );
    bench.release(&holder).await;
    bench.are_served(&waiters, "both are served").await;
}

async fn a_turn_that_does_not_wait_never_jumps_the_line(bench: StoreSetup) {
    let waiters = bench.orphans(&[1, 2]).await;
    let hasty = bench.claim_of(0, KEY, LEASE);
    match bench.acquire(&hasty).await {
        AcquireReply::Busy(holder) => assert!(
            holder.has_token(&waiters[0].claim.token),
            "the free lock is the first waiter's"
        ),
        other => panic!("somebody waits for the lock: {other:?}"),
    }
    assert_eq!(
        bench.heard(1).await,
        [Message::Granted(waiters[0].claim.id)],
        "whose instance is told"
    );
    bench.are_served(&waiters, "and the line goes on").await;
    bench.is_quiet().await;
}

async fn a_turn_that_comes_to_a_free_lock_joins_behind_those_who_wait_for_it(bench: StoreSetup) {
    let waiters = bench.orphans(&[1, 2]).await;
    let late = bench.join(0).await;
    let why = "the lock went to the first in the line, and who came last is last";
    bench.are_served(waiters.iter().chain([&late]), why).await;
    bench.is_quiet().await;
}

async fn the_first_in_the_line_has_a_free_lock_for_the_asking(bench: StoreSetup) {
    let waiters = bench.orphans(&[1, 2]).await;
    let second = bench.ask_again(&waiters[1]).await;
    assert!(
        matches!(&second, AcquireReply::Waiting(_, holder) if holder.has_token(&waiters[0].claim.token)),
        "the second doesn't get past the first by asking: {second:?}"
    );
    bench.are_served(&waiters, "in order").await;

    let waiters = bench.orphans(&[1, 2]).await;
    bench.heard(1).await;
    bench.take_up(&waiters[0]).await;
    assert_eq!(
        bench.heard(1).await,
        [],
        "who asks has its answer, and needs no message"
    );
    assert!(bench.release(&waiters[0].claim).await, "it holds the lock");
    bench.are_served([&waiters[1]], "in order").await;
    bench.is_quiet().await;
}

async fn the_fence_rises_along_the_line(bench: StoreSetup) {
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
async fn a_line_that_redis_has_forgotten_is_unknown_and_made_again_in_its_order() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let holder = bench.holder(0).await;
    let waiters = [
        bench.join(1).await,
        bench.join(2).await,
        bench.join(1).await,
    ];
    redis.command(&["DEL", "{k}:queue", "{k}:waiters"]).await;
    for of in [1, 2] {
        assert_eq!(
            bench.watch(of).await,
            Watched::Unknown,
            "each instance learns that its waiters have to join again"
        );
    }
    for waiter in waiters.iter().rev() {
        let answer = bench.ask_again(waiter).await;
        assert!(
            matches!(answer, AcquireReply::Waiting(ticket, _) if ticket == waiter.ticket),
            "where they were: {answer:?}"
        );
    }
    bench.release(&holder).await;
    bench.are_served(&waiters, "in order of arrival").await;
    bench.is_quiet().await;
}
