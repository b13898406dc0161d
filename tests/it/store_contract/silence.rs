//! How a line is looked at, and instances that fell silent or hear nothing.

use std::sync::Arc;

use seriatim::lock::{AcquireReply, Claim, LockHolder, Message, QueueOptions, WAITER_TIMEOUT, WatchedQueue};

use super::{DEAF, KEY, LEASE, PATIENT, StoreSetup, Waiter, Watched, held_by};

store_contract!(
    waiters_of_an_instance_that_fell_silent_make_room,
    an_instance_that_fell_silent_is_passed_over_and_joins_again_in_its_place,
    who_joins_anew_does_not_hide_that_others_of_its_instance_were_passed_over,
    an_instance_that_hears_nothing_is_passed_over_and_keeps_its_place,
    of_instances_that_hear_nothing_the_first_is_served,
    a_watch_knows_only_lines_in_which_the_instance_waits,
    a_watch_hands_over_a_free_lock,
    a_watch_answers_for_each_line_by_itself,
);

async fn waiters_of_an_instance_that_fell_silent_make_room(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let place = QueueOptions {
        max_waiters: 2,
        ..PATIENT
    };
    let silent = bench.join_as(1, place).await;
    let living = bench.join_as(2, place).await;
    let new = bench.claim_of(0, KEY, LEASE);
    assert_eq!(
        bench.wait(&new, place).await,
        AcquireReply::QueueFull,
        "both count"
    );
    bench.pass(WAITER_TIMEOUT, &[2]).await;
    let answer = bench.wait(&new, place).await;
    let AcquireReply::Waiting(ticket, _) = answer else {
        panic!("one of the two counts no more: {answer:?}");
    };
    let new = Waiter {
        claim: new,
        ticket,
        of: 0,
    };
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "its instance learns that it has to join again"
    );
    bench.release(&holder).await;
    bench
        .are_served([&living, &new], "those who are there are served")
        .await;
    bench.withdraw(&silent.claim).await;
    bench.is_quiet().await;
}

async fn an_instance_that_fell_silent_is_passed_over_and_joins_again_in_its_place(
    bench: StoreSetup,
) {
    let holder = bench.holder(0).await;
    let silent = [bench.join(1).await, bench.join(1).await];
    let living = [bench.join(2).await, bench.join(2).await];
    bench.pass(WAITER_TIMEOUT, &[2]).await;
    bench.release(&holder).await;
    assert!(
        bench.holds(&living[0].claim).await,
        "the lock goes to the first whose instance was heard of lately"
    );
    assert_eq!(bench.heard(1).await, [], "and not by way of the silent one");
    bench.take_up(&living[0]).await;
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "which learns that it has to join again"
    );
    for waiter in silent.iter().rev() {
        let answer = bench.ask_again(waiter).await;
        assert!(
            matches!(answer, AcquireReply::Waiting(ticket, _) if ticket == waiter.ticket),
            "where it was: {answer:?}"
        );
    }
    bench.release(&living[0].claim).await;
    let why = "who was passed over by mistake is served before those who came later";
    bench
        .are_served(silent.iter().chain([&living[1]]), why)
        .await;
    bench.is_quiet().await;
}

async fn who_joins_anew_does_not_hide_that_others_of_its_instance_were_passed_over(
    bench: StoreSetup,
) {
    let holder = bench.holder(0).await;
    let (silent, living) = (bench.join(1).await, bench.join(2).await);
    bench.pass(WAITER_TIMEOUT, &[2]).await;
    bench.release(&holder).await;
    bench.take_up(&living).await;
    let new = bench.join(1).await;
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "its instance learns that not all of its waiters are in the line"
    );
    for waiter in [&new, &silent] {
        let answer = bench.ask_again(waiter).await;
        assert!(
            matches!(answer, AcquireReply::Waiting(ticket, _) if ticket == waiter.ticket),
            "each has its place: {answer:?}"
        );
    }
    assert_eq!(
        bench.watch(1).await,
        held_by(&living.claim),
        "once they have asked again, they are"
    );
    bench.release(&living.claim).await;
    bench
        .are_served([&silent, &new], "in order of arrival")
        .await;
    bench.is_quiet().await;
}

async fn an_instance_that_hears_nothing_is_passed_over_and_keeps_its_place(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let deaf = bench.join(DEAF).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    bench.release(&holder).await;
    assert!(
        bench.holds(&first.claim).await,
        "the lock goes to the first that can hear of it"
    );
    bench.take_up(&first).await;
    assert_eq!(
        bench.watch(DEAF).await,
        held_by(&first.claim),
        "the other one is still in the line"
    );
    bench.release(&first.claim).await;
    bench
        .are_served([&second, &deaf], "and is served when it is alone")
        .await;
    bench.is_quiet().await;
}

async fn of_instances_that_hear_nothing_the_first_is_served(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let deaf = [bench.join(DEAF).await, bench.join(DEAF).await];
    bench.release(&holder).await;
    assert_eq!(
        bench.watch(DEAF).await,
        held_by(&deaf[0].claim),
        "it notices at its next look"
    );
    bench.are_served(&deaf, "in order").await;
    bench.is_quiet().await;
}

async fn a_watch_knows_only_lines_in_which_the_instance_waits(bench: StoreSetup) {
    assert_eq!(bench.watch(1).await, Watched::Unknown, "there is no line");
    let holder = bench.holder(0).await;
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "a busy lock alone has none"
    );
    let waiter = bench.join(1).await;
    assert_eq!(
        bench.watch(1).await,
        held_by(&holder),
        "the holder is named"
    );
    assert_eq!(
        bench.watch(2).await,
        Watched::Unknown,
        "another instance isn't known by it"
    );
    bench.release(&holder).await;
    assert_eq!(
        bench.watch(1).await,
        held_by(&waiter.claim),
        "and then it is the one who has waited"
    );
    bench.take_up(&waiter).await;
    bench.withdraw(&waiter.claim).await;
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "there is no line any more"
    );
    bench.is_quiet().await;
}

async fn a_watch_hands_over_a_free_lock(bench: StoreSetup) {
    let waiters = bench.orphans(&[1, 2]).await;
    assert_eq!(
        bench.watch(2).await,
        held_by(&waiters[0].claim),
        "whoever looks gives it to the first in the line"
    );
    assert_eq!(
        bench.heard(1).await,
        [Message::Granted(waiters[0].claim.id)],
        "whose instance is told"
    );
    assert_eq!(
        bench.watch(1).await,
        Watched::Held(LockHolder::from(&waiters[0].claim.token)),
        "a second look gives it to nobody else"
    );
    assert_eq!(bench.heard(2).await, [], "and tells nobody anything");
    bench.are_served(&waiters, "in order").await;
    bench.is_quiet().await;
}

async fn a_watch_answers_for_each_line_by_itself(bench: StoreSetup) {
    let (mut holders, mut waiters) = (Vec::new(), Vec::new());
    for key in ["a", "b", "c"] {
        let holder = bench.claim(key, LEASE);
        bench.granted(&holder).await;
        if key != "b" {
            let waiter = bench.claim_of(1, key, LEASE);
            let answer = bench.wait(&waiter, PATIENT).await;
            waiters.push(waiter);
            assert!(
                matches!(answer, AcquireReply::Waiting(..)),
                "it is busy: {answer:?}"
            );
        }
        holders.push(holder);
    }
    let lines: Vec<_> = holders
        .iter()
        .zip([1, 0, 1])
        .map(|(holder, waiting)| WatchedQueue {
            key: holder.key.clone(),
            take_over: None,
            waiters: waiters
                .iter()
                .filter(|waiter: &&Arc<Claim>| waiter.key == holder.key)
                .take(waiting)
                .map(|waiter| waiter.id)
                .collect(),
        })
        .collect();
    let found = bench.store(1).watch("pod-1", &lines).await;
    let found = found.expect("the store answers");
    let present: Vec<_> = found.iter().map(|found| found.present).collect();
    assert_eq!(
        present,
        [1, 0, 1],
        "in the order in which they were asked for"
    );
    for (found, holder) in found.iter().zip(&holders) {
        let held = found.holder.as_ref().expect("each is held");
        assert!(held.has_token(&holder.token), "each has its own holder");
    }
    let found = bench.store(1).watch("pod-1", &[]).await;
    assert_eq!(
        found.expect("the store answers"),
        [],
        "and nothing is nothing"
    );
}
