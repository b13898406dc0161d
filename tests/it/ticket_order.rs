//! Tickets rise, whatever Redis's clock does: a turn that joins a queue is behind all that have joined
//! before, also in the same microsecond, and after the clock was set back.

use std::sync::Arc;

use seriatim::lock::{AcquireReply, AcquireRequest, Claim, QueueOptions, Ticket};

use crate::store_contract::{INTERRUPTING, KEY, PATIENT, StoreSetup};
use crate::support::redis::Redis;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(300);

/// A ticket of an hour from now, as large as one is after the clock was set back by an hour.
async fn ahead(redis: &Redis) -> u64 {
    let time = redis.command(&["TIME"]).await;
    let (seconds, _): (u64, u64) = redis::from_redis_value(time).expect("the reply to TIME");
    (seconds + 3600) * 1_000_000
}

/// Joins the queue.
async fn join(bench: &StoreSetup, claim: &Arc<Claim>, options: QueueOptions) -> Ticket {
    let request = AcquireRequest {
        take_over: None,
        queue: Some(options),
    };
    match bench.ask(claim, &request).await {
        AcquireReply::Waiting(ticket, _) => ticket,
        other => panic!("the lock is busy: {other:?}"),
    }
}

/// Who holds the lock, or has an offer of it.
async fn holder(redis: &Redis) -> Option<String> {
    redis.get(KEY).await
}

#[tokio::test]
async fn a_turn_joins_behind_a_ticket_that_is_ahead_of_the_clock() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let held = bench.claim_of(0, KEY, LEASE);
    bench.ask(&held, &AcquireRequest::default()).await;
    // Redis orders equal tickets by id, and the later turns have the smaller ids.
    let [first, second, third] = [2, 1, 0].map(|of| bench.claim_of(of, KEY, LEASE));
    join(&bench, &first, PATIENT).await;
    let last = ahead(&redis).await;
    let queue = format!("{{{KEY}}}:1:queue");
    let moved = [
        "ZADD",
        &queue,
        "XX",
        &last.to_string(),
        &first.id.to_string(),
    ];
    redis.command(&moved).await;
    let second_ticket = join(&bench, &second, PATIENT).await;
    let third_ticket = join(&bench, &third, PATIENT).await;
    assert!(
        Ticket(last) < second_ticket && second_ticket < third_ticket,
        "each ticket is larger than the one before: {last}, {second_ticket:?}, {third_ticket:?}"
    );
    bench.release(&held).await;
    for (claim, which) in [(first, "first"), (second, "second"), (third, "third")] {
        assert_eq!(
            holder(&redis).await.as_deref(),
            Some(claim.token.as_str()),
            "the turns are served in the order in which they joined: {which}"
        );
        bench.release(&claim).await;
    }
    assert_eq!(holder(&redis).await, None, "nobody is left");
}

#[tokio::test]
async fn a_turn_that_joins_after_an_interrupt_ahead_of_the_clock_is_not_superseded_by_it() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let held = bench.claim_of(0, KEY, LEASE);
    bench.ask(&held, &AcquireRequest::default()).await;
    let [newest, later] = [1, 0].map(|of| bench.claim_of(of, KEY, LEASE));
    join(&bench, &newest, INTERRUPTING).await;
    let last = ahead(&redis).await;
    let waiters = format!("{{{KEY}}}:1:waiters");
    redis
        .command(&["HSET", &waiters, "!", &last.to_string()])
        .await;
    let ticket = join(&bench, &later, PATIENT).await;
    assert!(ticket > Ticket(last), "it is newer: {ticket:?}, {last}");
    let again = QueueOptions {
        ticket: Some(ticket),
        ..PATIENT
    };
    assert_eq!(
        join(&bench, &later, again).await,
        ticket,
        "it keeps its place"
    );
}
