//! The heartbeat of an instance, and what one tells another.

use std::time::Duration;

use seriatim::lock::{ClaimId, Epoch, HeartbeatReply, Message};

use super::{KEY, LEASE, StoreSetup, UNREACHABLE};
use crate::support::wait_for_async;

store_contract!(
    an_instance_with_a_heartbeat_is_known_by_its_epoch,
    a_name_that_another_process_has_is_refused,
    a_process_that_starts_takes_the_name_of_the_one_before,
    a_heartbeat_ends_by_itself,
    a_heartbeat_renews_the_one_before,
    a_heartbeat_says_whether_there_was_one_before,
    an_instance_that_stops_is_gone_at_once,
    a_message_reaches_its_instance_alone,
    a_message_to_a_missing_instance_is_no_error,
);

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

const OLD: Epoch = Epoch(7);
const NEW: Epoch = Epoch(u64::MAX);

/// Whether the name is the epoch's after a heartbeat.
async fn heartbeat(bench: &StoreSetup, epoch: Epoch, ttl: Duration, take_name: bool) -> bool {
    heartbeat_reply(bench, epoch, ttl, take_name).await != HeartbeatReply::NameTaken
}

async fn heartbeat_reply(
    bench: &StoreSetup,
    epoch: Epoch,
    ttl: Duration,
    take_name: bool,
) -> HeartbeatReply {
    let reply = bench.store(0).heartbeat("pod", epoch, ttl, take_name).await;
    reply.expect("the store answers")
}

async fn epoch(bench: &StoreSetup) -> Option<Epoch> {
    let liveness = bench.store(1).liveness("pod").await;
    let liveness = liveness.expect("the store answers");
    let is_valid = liveness.is_none_or(|liveness| liveness.ttl <= LONG);
    assert!(is_valid, "the TTL is the one that was set: {liveness:?}");
    liveness.map(|liveness| liveness.epoch)
}

async fn stop(bench: &StoreSetup, epoch: Epoch) {
    let stopped = bench.store(0).unregister("pod", epoch).await;
    stopped.expect("the store answers");
}

async fn an_instance_with_a_heartbeat_is_known_by_its_epoch(bench: StoreSetup) {
    assert_eq!(
        epoch(&bench).await,
        None,
        "nobody is there before the first heartbeat"
    );
    assert!(
        heartbeat(&bench, NEW, LONG, false).await,
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
    assert!(heartbeat(&bench, OLD, LONG, true).await, "the name is free");
    assert!(
        !heartbeat(&bench, NEW, LONG, false).await,
        "one name, one process"
    );
    assert_eq!(epoch(&bench).await, Some(OLD), "and nothing has changed");
    assert!(
        heartbeat(&bench, OLD, LONG, false).await,
        "whose name it is goes on"
    );
}

async fn a_process_that_starts_takes_the_name_of_the_one_before(bench: StoreSetup) {
    assert!(heartbeat(&bench, OLD, LONG, true).await, "the name is free");
    assert!(
        heartbeat(&bench, NEW, LONG, true).await,
        "a process that starts takes its name from the one before it"
    );
    assert_eq!(epoch(&bench).await, Some(NEW), "and is seen");
    assert!(
        !heartbeat(&bench, OLD, LONG, false).await,
        "the one before it learns of it by its next heartbeat"
    );
    stop(&bench, OLD).await;
    assert_eq!(
        epoch(&bench).await,
        Some(NEW),
        "and takes nothing away when it stops"
    );
}

async fn a_heartbeat_ends_by_itself(bench: StoreSetup) {
    assert!(
        heartbeat(&bench, OLD, SHORT, true).await,
        "the name is free"
    );
    let gone = async || epoch(&bench).await.is_none();
    wait_for_async(gone, "an instance without a heartbeat is gone").await;
    assert!(
        heartbeat(&bench, NEW, LONG, false).await,
        "and its name is free"
    );
    stop(&bench, NEW).await;
}

async fn a_heartbeat_says_whether_there_was_one_before(bench: StoreSetup) {
    let reply = async |epoch, take_name| heartbeat_reply(&bench, epoch, LONG, take_name).await;
    assert_eq!(
        reply(OLD, true).await,
        HeartbeatReply::Registered,
        "nobody was there"
    );
    assert_eq!(
        reply(OLD, false).await,
        HeartbeatReply::Renewed,
        "now it is"
    );
    assert_eq!(
        reply(NEW, true).await,
        HeartbeatReply::Registered,
        "another was there"
    );
    assert_eq!(
        reply(OLD, false).await,
        HeartbeatReply::NameTaken,
        "and still is"
    );
    stop(&bench, NEW).await;
    assert_eq!(
        reply(NEW, false).await,
        HeartbeatReply::Registered,
        "who was gone learns of it: its locks may be somebody else's"
    );
    stop(&bench, NEW).await;
}

async fn a_heartbeat_renews_the_one_before(bench: StoreSetup) {
    assert!(
        heartbeat(&bench, OLD, SHORT, true).await,
        "the name is free"
    );
    assert!(
        heartbeat(&bench, OLD, LONG, false).await,
        "and then its own"
    );
    tokio::time::sleep(SHORT * 2).await;
    assert_eq!(
        epoch(&bench).await,
        Some(OLD),
        "each heartbeat starts a new TTL"
    );
}

async fn an_instance_that_stops_is_gone_at_once(bench: StoreSetup) {
    stop(&bench, OLD).await;
    assert!(heartbeat(&bench, OLD, LONG, true).await, "the name is free");
    stop(&bench, NEW).await;
    assert_eq!(
        epoch(&bench).await,
        Some(OLD),
        "only a process itself stops"
    );
    stop(&bench, OLD).await;
    assert_eq!(epoch(&bench).await, None, "whoever looks sees it");
    assert!(
        heartbeat(&bench, NEW, LONG, false).await,
        "its name is free"
    );
}

async fn a_message_reaches_its_instance_alone(bench: StoreSetup) {
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

async fn a_message_to_a_missing_instance_is_no_error(bench: StoreSetup) {
    let claim = bench.claim_of(UNREACHABLE, KEY, LEASE);
    for name in ["nobody", "pod-3"] {
        let told = bench
            .store(0)
            .send_message(name, Message::Interrupt(claim.id))
            .await;
        told.expect("a message may get lost");
    }
}
