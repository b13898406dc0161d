//! The heartbeat of an instance, and messages between instances.

use std::time::Duration;

use seriatim::lock::{ClaimId, Epoch, HeartbeatReply, Message};

use super::{KEY, LEASE, StoreSetup, UNREACHABLE};
use crate::support::wait_for_async;

store_contract!(
    a_heartbeat_registers_the_epoch_of_its_instance,
    the_name_of_another_live_process_is_refused,
    a_starting_process_may_take_over_its_name,
    an_instance_without_heartbeats_expires,
    a_heartbeat_renews_the_registration,
    a_heartbeat_reports_whether_the_instance_was_registered,
    an_instance_that_stops_is_unregistered_at_once,
    a_message_reaches_only_the_addressed_instance,
    a_message_to_an_unknown_instance_is_no_error,
);

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

const OLD: Epoch = Epoch(7);
const NEW: Epoch = Epoch(u64::MAX);

/// Sends a heartbeat; returns whether the name belongs to `epoch` afterwards.
async fn owns_name(bench: &StoreSetup, epoch: Epoch, for_so_long: Duration, taken: bool) -> bool {
    send_heartbeat(bench, epoch, for_so_long, taken).await != HeartbeatReply::NameTaken
}

async fn send_heartbeat(
    bench: &StoreSetup,
    epoch: Epoch,
    for_so_long: Duration,
    taken: bool,
) -> HeartbeatReply {
    let reply = bench
        .store(0)
        .heartbeat("pod", epoch, for_so_long, taken)
        .await;
    reply.expect("the store answers")
}

async fn epoch(bench: &StoreSetup) -> Option<Epoch> {
    let sign = bench.store(1).liveness("pod").await;
    let sign = sign.expect("the store answers");
    let is_long = sign.is_none_or(|sign| sign.ttl <= LONG);
    assert!(is_long, "the liveness lasts as long as requested: {sign:?}");
    sign.map(|sign| sign.epoch)
}

async fn stop(bench: &StoreSetup, epoch: Epoch) {
    let stopped = bench.store(0).unregister("pod", epoch).await;
    stopped.expect("the store answers");
}

async fn a_heartbeat_registers_the_epoch_of_its_instance(bench: StoreSetup) {
    assert_eq!(
        epoch(&bench).await,
        None,
        "no instance is registered before its first heartbeat"
    );
    assert!(
        owns_name(&bench, NEW, LONG, false).await,
        "a free name can be taken"
    );
    assert_eq!(
        epoch(&bench).await,
        Some(NEW),
        "other instances see the epoch"
    );
    let other = bench.store(1).liveness("pod-0").await;
    assert_eq!(
        other.expect("the store answers"),
        None,
        "only its own name is registered"
    );
    bench.holder(0).await;
    assert_eq!(
        epoch(&bench).await,
        Some(NEW),
        "locks don't affect the liveness"
    );
}

async fn the_name_of_another_live_process_is_refused(bench: StoreSetup) {
    assert!(owns_name(&bench, OLD, LONG, true).await, "the name is free");
    assert!(
        !owns_name(&bench, NEW, LONG, false).await,
        "a name belongs to one process"
    );
    assert_eq!(
        epoch(&bench).await,
        Some(OLD),
        "a refused heartbeat changes nothing"
    );
    assert!(
        owns_name(&bench, OLD, LONG, false).await,
        "the owner of the name goes on"
    );
}

async fn a_starting_process_may_take_over_its_name(bench: StoreSetup) {
    assert!(owns_name(&bench, OLD, LONG, true).await, "the name is free");
    assert!(
        owns_name(&bench, NEW, LONG, true).await,
        "a starting process takes the name from its predecessor"
    );
    assert_eq!(epoch(&bench).await, Some(NEW), "the new epoch is seen");
    assert!(
        !owns_name(&bench, OLD, LONG, false).await,
        "the predecessor learns it from its next heartbeat"
    );
    stop(&bench, OLD).await;
    assert_eq!(
        epoch(&bench).await,
        Some(NEW),
        "the predecessor's stop doesn't affect the new process"
    );
}

async fn an_instance_without_heartbeats_expires(bench: StoreSetup) {
    assert!(
        owns_name(&bench, OLD, SHORT, true).await,
        "the name is free"
    );
    let gone = async || epoch(&bench).await.is_none();
    wait_for_async(gone, "an instance without heartbeats expires").await;
    assert!(
        owns_name(&bench, NEW, LONG, false).await,
        "its name is free"
    );
    stop(&bench, NEW).await;
}

async fn a_heartbeat_reports_whether_the_instance_was_registered(bench: StoreSetup) {
    let heartbeat = async |epoch, taken| send_heartbeat(&bench, epoch, LONG, taken).await;
    assert_eq!(
        heartbeat(OLD, true).await,
        HeartbeatReply::Registered,
        "the name was free"
    );
    assert_eq!(
        heartbeat(OLD, false).await,
        HeartbeatReply::Renewed,
        "the instance was registered"
    );
    assert_eq!(
        heartbeat(NEW, true).await,
        HeartbeatReply::Registered,
        "another process was registered"
    );
    assert_eq!(
        heartbeat(OLD, false).await,
        HeartbeatReply::NameTaken,
        "another process is registered"
    );
    stop(&bench, NEW).await;
    assert_eq!(
        heartbeat(NEW, false).await,
        HeartbeatReply::Registered,
        "an expired instance learns it, as its locks may have been taken over"
    );
    stop(&bench, NEW).await;
}

async fn a_heartbeat_renews_the_registration(bench: StoreSetup) {
    assert!(
        owns_name(&bench, OLD, SHORT, true).await,
        "the name is free"
    );
    assert!(
        owns_name(&bench, OLD, LONG, false).await,
        "the name is the instance's own"
    );
    tokio::time::sleep(SHORT * 2).await;
    assert_eq!(
        epoch(&bench).await,
        Some(OLD),
        "each heartbeat restarts the TTL"
    );
}

async fn an_instance_that_stops_is_unregistered_at_once(bench: StoreSetup) {
    stop(&bench, OLD).await;
    assert!(owns_name(&bench, OLD, LONG, true).await, "the name is free");
    stop(&bench, NEW).await;
    assert_eq!(
        epoch(&bench).await,
        Some(OLD),
        "a process can stop only itself"
    );
    stop(&bench, OLD).await;
    assert_eq!(
        epoch(&bench).await,
        None,
        "a stopped instance is not registered"
    );
    assert!(
        owns_name(&bench, NEW, LONG, false).await,
        "its name is free"
    );
}

async fn a_message_reaches_only_the_addressed_instance(bench: StoreSetup) {
    let claim = bench.claim_of(1, KEY, LEASE);
    let messages = [
        Message::Interrupt(claim.id),
        Message::Superseded(claim.id),
        Message::Granted(ClaimId {
            epoch: NEW,
            number: u64::MAX,
        }),
    ];
    for message in messages.clone() {
        let sent = bench.store(2).send_message("pod-1", message).await;
        sent.expect("the store answers");
    }
    assert_eq!(
        bench.received(1).await,
        messages,
        "messages arrive complete and in order"
    );
    assert_eq!(bench.received(0).await, [], "another instance gets nothing");
    assert_eq!(bench.received(2).await, [], "the sender gets nothing");
}

async fn a_message_to_an_unknown_instance_is_no_error(bench: StoreSetup) {
    let claim = bench.claim_of(UNREACHABLE, KEY, LEASE);
    for name in ["nobody", "pod-3"] {
        let sent = bench
            .store(0)
            .send_message(name, Message::Interrupt(claim.id))
            .await;
        sent.expect("a message may be lost without an error");
    }
}
