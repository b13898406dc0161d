//! Watching a queue, and instances that are silent or get no messages.

use std::sync::Arc;

use seriatim::key::SessionKey;
use seriatim::lock::{
    AcquireReply, LockHolder, Message, QueueOptions, WAITER_TIMEOUT, WatchedQueue,
};

use super::{KEY, LEASE, PATIENT, StoreSetup, UNREACHABLE, Waiter, Watched, all, held_by};

store_contract!(
    waiters_of_a_silent_instance_make_room,
    a_silent_instance_is_skipped_and_gets_its_places_back,
    a_new_waiter_does_not_hide_skipped_ones_of_its_instance,
    an_instance_without_messages_is_skipped_and_keeps_its_place,
    the_first_of_only_instances_without_messages_is_served,
    a_watch_reports_only_queues_with_waiters_of_the_instance,
    a_watch_hands_over_a_free_lock,
    a_watch_reports_each_queue_on_its_own,
);

async fn waiters_of_a_silent_instance_make_room(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let place = QueueOptions {
        max_waiters: 2,
        ..PATIENT
    };
    let silent = bench.join_as(1, place).await;
    let living = bench.join_as(2, place).await;
    let new = bench.claim_of(0, KEY, LEASE);
    assert!(
        matches!(bench.wait(&new, place).await, AcquireReply::QueueFull(_)),
        "both waiters count"
    );
    bench.pass(WAITER_TIMEOUT, &[2]).await;
    let answer = bench.wait(&new, place).await;
    let AcquireReply::Waiting(ticket, _) = answer else {
        panic!("the silent waiter doesn't count any more: {answer:?}");
    };
    let new = Waiter {
        claim: new,
        ticket,
        of: 0,
    };
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "the silent instance learns that its waiter must join again"
    );
    bench.release(&holder).await;
    bench
        .are_served([&living, &new], "the live waiters are served")
        .await;
    bench.withdraw(&silent.claim).await;
    bench.wait_until_no_keys().await;
}

async fn a_silent_instance_is_skipped_and_gets_its_places_back(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let silent = [bench.join(1).await, bench.join(1).await];
    let living = [bench.join(2).await, bench.join(2).await];
    bench.pass(WAITER_TIMEOUT, &[2]).await;
    bench.release(&holder).await;
    assert!(
        bench.holds(&living[0].claim).await,
        "the lock goes to the first waiter of a live instance"
    );
    assert_eq!(
        bench.received(1).await,
        [],
        "the silent instance gets no offer"
    );
    bench.take_up(&living[0]).await;
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "the silent instance learns that its waiters must join again"
    );
    for waiter in silent.iter().rev() {
        let answer = bench.ask_again(waiter).await;
        assert!(
            matches!(answer, AcquireReply::Waiting(ticket, _) if ticket == waiter.ticket),
            "the waiter gets its place back: {answer:?}"
        );
    }
    bench.release(&living[0].claim).await;
    let why = "skipped waiters are served before later ones";
    bench
        .are_served(silent.iter().chain([&living[1]]), why)
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_new_waiter_does_not_hide_skipped_ones_of_its_instance(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (silent, living) = (bench.join(1).await, bench.join(2).await);
    bench.pass(WAITER_TIMEOUT, &[2]).await;
    bench.release(&holder).await;
    bench.take_up(&living).await;
    let new = bench.join(1).await;
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "the instance learns that not all of its waiters are in the queue"
    );
    for waiter in [&new, &silent] {
        let answer = bench.ask_again(waiter).await;
        assert!(
            matches!(answer, AcquireReply::Waiting(ticket, _) if ticket == waiter.ticket),
            "the waiter has its place: {answer:?}"
        );
    }
    assert_eq!(
        bench.watch(1).await,
        held_by(&living.claim),
        "all waiters are in the queue after their retries"
    );
    bench.release(&living.claim).await;
    bench
        .are_served([&silent, &new], "waiters are served in order of arrival")
        .await;
    bench.wait_until_no_keys().await;
}

async fn an_instance_without_messages_is_skipped_and_keeps_its_place(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let unreachable = bench.join(UNREACHABLE).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    bench.release(&holder).await;
    assert!(
        bench.holds(&first.claim).await,
        "the lock goes to the first waiter that gets messages"
    );
    bench.take_up(&first).await;
    assert_eq!(
        bench.watch(UNREACHABLE).await,
        held_by(&first.claim),
        "the skipped waiter is still in the queue"
    );
    bench.release(&first.claim).await;
    bench
        .are_served([&second, &unreachable], "the skipped waiter is served last")
        .await;
    bench.wait_until_no_keys().await;
}

async fn the_first_of_only_instances_without_messages_is_served(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let unreachable = [bench.join(UNREACHABLE).await, bench.join(UNREACHABLE).await];
    bench.release(&holder).await;
    assert_eq!(
        bench.watch(UNREACHABLE).await,
        held_by(&unreachable[0].claim),
        "the instance notices at its next watch"
    );
    bench
        .are_served(&unreachable, "waiters are served in order")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_watch_reports_only_queues_with_waiters_of_the_instance(bench: StoreSetup) {
    assert_eq!(bench.watch(1).await, Watched::Unknown, "there is no queue");
    let holder = bench.holder(0).await;
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "a held lock alone has no queue"
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
        "an instance without waiters isn't in the queue"
    );
    bench.release(&holder).await;
    assert_eq!(
        bench.watch(1).await,
        held_by(&waiter.claim),
        "the waiter holds the lock after the release"
    );
    bench.take_up(&waiter).await;
    bench.withdraw(&waiter.claim).await;
    assert_eq!(
        bench.watch(1).await,
        Watched::Unknown,
        "there is no queue any more"
    );
    bench.wait_until_no_keys().await;
}

async fn a_watch_hands_over_a_free_lock(bench: StoreSetup) {
    let waiters = bench.orphans(&[1, 2]).await;
    assert_eq!(
        bench.watch(2).await,
        held_by(&waiters[0].claim),
        "a watch hands the free lock to the first waiter"
    );
    assert_eq!(
        bench.received(1).await,
        [Message::Granted(waiters[0].claim.id)],
        "the first waiter's instance is notified"
    );
    assert_eq!(
        bench.watch(1).await,
        Watched::Held(LockHolder::from(&waiters[0].claim.token)),
        "a second watch changes nothing"
    );
    assert_eq!(
        bench.received(2).await,
        [],
        "a second watch sends no message"
    );
    bench
        .are_served(&waiters, "waiters are served in order")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_watch_reports_each_queue_on_its_own(bench: StoreSetup) {
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
                "the lock is busy: {answer:?}"
            );
        }
        holders.push(holder);
    }
    // Nobody has put this one into the queue of its session.
    let absent = bench.claim_of(1, "b", LEASE);
    waiters.push(Arc::clone(&absent));
    let of_session = |key: &SessionKey| {
        let own = waiters.iter().filter(|waiter| waiter.key == *key);
        own.map(|waiter| waiter.id).collect()
    };
    let queues: Vec<_> = holders
        .iter()
        .map(|holder| WatchedQueue {
            key: holder.key.clone(),
            take_over: None,
            wants_places: false,
            waiters: of_session(&holder.key),
        })
        .collect();
    let found = bench.store(1).watch("pod-1", &queues).await;
    let found = all(found);
    let missing: Vec<_> = found.iter().map(|found| &found.missing[..]).collect();
    assert_eq!(
        missing,
        [&[][..], &[absent.id], &[]],
        "who has no place in which queue"
    );
    for (found, holder) in found.iter().zip(&holders) {
        let held = found.holder.as_ref().expect("each lock is held");
        assert!(
            held.has_token(&holder.token),
            "each queue has its own holder"
        );
    }
    let found = bench.store(1).watch("pod-1", &[]).await;
    assert_eq!(all(found), [], "an empty request has an empty reply");
}
