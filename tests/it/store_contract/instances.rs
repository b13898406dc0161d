//! The sign of life of an instance, and what one tells another.

use std::time::Duration;

use seriatim::lock::{ClaimId, Epoch, HeartbeatReply, Message};

use super::{DEAF, KEY, LEASE, StoreSetup};
use crate::support::wait_for_async;

store_contract!(
    an_instance_that_beats_is_known_by_its_epoch,
    a_name_that_another_process_has_is_refused,
    a_name_that_is_taken_is_the_new_processs,
    a_sign_of_life_ends_by_itself,
    a_beat_keeps_the_sign_of_life,
    a_beat_tells_whether_the_sign_of_life_was_there,
    an_instance_that_stops_is_gone_at_once,
    what_an_instance_is_told_nobody_else_hears,
    telling_one_who_is_not_there_is_no_error,
);

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

const OLD: Epoch = Epoch(7);
const NEW: Epoch = Epoch(u64::MAX);

/// Whether the name is the epoch's after a beat.
async fn beat(bench: &StoreSetup, epoch: Epoch, for_so_long: Duration, taken: bool) -> bool {
    beaten(bench, epoch, for_so_long, taken).await != HeartbeatReply::NameTaken
}

async fn beaten(
    bench: &StoreSetup,
    epoch: Epoch,
    for_so_long: Duration,
    taken: bool,
) -> HeartbeatReply {
    let beaten = bench.store(0).heartbeat("pod", epoch, for_so_long, taken).await;
    beaten.expect("the store answers")
}

async fn epoch(bench: &StoreSetup) -> Option<Epoch> {
    let sign = bench.store(1).liveness("pod").await;
    let sign = sign.expect("the store answers");
    let is_long = sign.is_none_or(|sign| sign.ttl <= LONG);
    assert!(is_long, "it lasts for as long as was said: {sign:?}");
    sign.map(|sign| sign.epoch)
}

async fn stop(bench: &StoreSetup, epoch: Epoch) {
    let stopped = bench.store(0).unregister("pod", epoch).await;
    stopped.expect("the store answers");
}

async fn an_instance_that_beats_is_known_by_its_epoch(bench: StoreSetup) {
    assert_eq!(
        epoch(&bench).await,
        None,
        "nobody is there before the first beat"
    );
    assert!(
        beat(&bench, NEW, LONG, false).await,
        "a free name is anybody's"
    );
    assert_eq!(
        epoch(&bench).await,
        Some(NEW),
        "every other instance sees it"
    );
    let other = bench.store(1).liveness("pod-0").await;
    assert_eq!(
        other.expect("the store answers"),
        None,
        "under its own name only"
    );
    bench.holder(0).await;
    assert_eq!(epoch(&bench).await, Some(NEW), "locks are something else");
}

async fn a_name_that_another_process_has_is_refused(bench: StoreSetup) {
    assert!(beat(&bench, OLD, LONG, true).await, "the name is free");
    assert!(
        !beat(&bench, NEW, LONG, false).await,
        "one name, one process"
    );
    assert_eq!(epoch(&bench).await, Some(OLD), "and nothing has changed");
    assert!(
        beat(&bench, OLD, LONG, false).await,
        "whose name it is goes on"
    );
}

async fn a_name_that_is_taken_is_the_new_processs(bench: StoreSetup) {
    assert!(beat(&bench, OLD, LONG, true).await, "the name is free");
    assert!(
        beat(&bench, NEW, LONG, true).await,
        "a process that starts takes its name from the one before it"
    );
    assert_eq!(epoch(&bench).await, Some(NEW), "and is seen");
    assert!(
        !beat(&bench, OLD, LONG, false).await,
        "the one before it learns of it by its next beat"
    );
    stop(&bench, OLD).await;
    assert_eq!(
        epoch(&bench).await,
        Some(NEW),
        "and takes nothing away when it stops"
    );
}

async fn a_sign_of_life_ends_by_itself(bench: StoreSetup) {
    assert!(beat(&bench, OLD, SHORT, true).await, "the name is free");
    let gone = async || epoch(&bench).await.is_none();
    wait_for_async(gone, "an instance that beats no more is gone").await;
    assert!(beat(&bench, NEW, LONG, false).await, "and its name is free");
    stop(&bench, NEW).await;
}

async fn a_beat_tells_whether_the_sign_of_life_was_there(bench: StoreSetup) {
    let beaten = async |epoch, taken| beaten(&bench, epoch, LONG, taken).await;
    assert_eq!(
        beaten(OLD, true).await,
        HeartbeatReply::Registered,
        "nobody was there"
    );
    assert_eq!(beaten(OLD, false).await, HeartbeatReply::Renewed, "now it is");
    assert_eq!(
        beaten(NEW, true).await,
        HeartbeatReply::Registered,
        "another was there"
    );
    assert_eq!(
        beaten(OLD, false).await,
        HeartbeatReply::NameTaken,
        "and still is"
    );
    stop(&bench, NEW).await;
    assert_eq!(
        beaten(NEW, false).await,
        HeartbeatReply::Registered,
        "who was gone learns of it: its locks may be somebody else's"
    );
    stop(&bench, NEW).await;
}

async fn a_beat_keeps_the_sign_of_life(bench: StoreSetup) {
    assert!(beat(&bench, OLD, SHORT, true).await, "the name is free");
    assert!(beat(&bench, OLD, LONG, false).await, "and then its own");
    tokio::time::sleep(SHORT * 2).await;
    assert_eq!(epoch(&bench).await, Some(OLD), "each beat counts from anew");
}

async fn an_instance_that_stops_is_gone_at_once(bench: StoreSetup) {
    stop(&bench, OLD).await;
    assert!(beat(&bench, OLD, LONG, true).await, "the name is free");
    stop(&bench, NEW).await;
    assert_eq!(
        epoch(&bench).await,
        Some(OLD),
        "only a process itself stops"
    );
    stop(&bench, OLD).await;
    assert_eq!(epoch(&bench).await, None, "whoever looks sees it");
    assert!(beat(&bench, NEW, LONG, false).await, "its name is free");
}

async fn what_an_instance_is_told_nobody_else_hears(bench: StoreSetup) {
    let claim = bench.claim_of(1, KEY, LEASE);
    let messages = [
        Message::Interrupt(claim.id),
        Message::Superseded(claim.id),
        Message::Granted(ClaimId {
            epoch: NEW,
            number: u64::MAX,
        }),
    ];
    for message in messages {
        let told = bench.store(2).send_message("pod-1", message).await;
        told.expect("the store answers");
    }
    assert_eq!(bench.heard(1).await, messages, "whole and in order");
    assert_eq!(bench.heard(0).await, [], "another instance hears nothing");
    assert_eq!(bench.heard(2).await, [], "nor does the one who told it");
}

async fn telling_one_who_is_not_there_is_no_error(bench: StoreSetup) {
    let claim = bench.claim_of(DEAF, KEY, LEASE);
    for name in ["nobody", "pod-3"] {
        let told = bench
            .store(0)
            .send_message(name, Message::Interrupt(claim.id))
            .await;
        told.expect("a message may get lost");
    }
}
