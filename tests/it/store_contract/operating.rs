//! What an operator sees of locks, and force releases.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;
use seriatim::key::{KeyTemplate, Keyspace, SessionKey};
use seriatim::lock::{AcquireReply, Claim, Fence, LockHolder, LockInfo, Message, QUEUE_TTL};
use tokio::time::sleep;

use super::{INTERRUPTING, KEY, LEASE, StoreSetup, UNREACHABLE, held_by};
use crate::support::redis::Redis;

store_contract!(
    a_scan_finds_every_lock,
    a_scan_finds_only_held_locks_of_the_space,
    an_inspection_has_holder_fence_age_time_left_and_queue,
    an_inspection_of_a_free_lock_is_empty,
    an_inspection_changes_nothing,
    an_inspection_shows_an_offer_as_held_by_its_waiter,
    a_force_released_lock_is_free,
    a_forced_release_notifies_only_the_holder,
    a_forced_release_hands_the_lock_to_the_first_waiter,
    the_fence_rises_with_a_forced_release,
    a_forced_release_affects_only_the_named_holder,
    a_force_released_holder_can_neither_extend_nor_release,
    a_force_released_offer_goes_to_the_next_waiter,
    a_message_about_a_turn_reaches_its_instance_unchanged,
    a_dequeued_waiter_is_out_for_good_and_its_instance_is_notified,
    a_dequeued_waiter_that_missed_the_message_learns_it_on_retry,
    only_a_waiter_is_dequeued,
);

fn space(templates: &[&str]) -> Keyspace {
    let parse = |text: &&str| KeyTemplate::parse(text).expect("a template");
    Keyspace::new(templates.iter().map(parse))
}

impl StoreSetup {
    async fn inspect_key(&self, key: &str) -> LockInfo {
        let replies = self
            .store(0)
            .inspect(&[SessionKey::literal(key)], true)
            .await;
        let mut replies = replies.expect("the store answers");
        assert_eq!(replies.len(), 1, "one reply for one key");
        replies.remove(0)
    }

    async fn force_release(&self, claim: &Claim) -> Option<Fence> {
        let holder = LockHolder::from(&claim.token);
        let forced = self.store(2).force_release(&claim.key, &holder).await;
        forced.expect("the store answers")
    }

    async fn dequeue(&self, claim: &Claim) -> bool {
        let removed = self.store(2).dequeue(&claim.key, claim.id).await;
        removed.expect("the store answers")
    }

    /// All keys of the space, read page by page.
    async fn scan(&self, space: &Keyspace, about: usize) -> BTreeSet<String> {
        let (mut found, mut from) = (BTreeSet::new(), None);
        // More pages than keys would mean a cursor that never ends.
        for _ in 0..10_000 {
            let scanned = self.store(0).scan(space, from, about).await;
            let scanned = scanned.expect("the store answers");
            found.extend(scanned.keys.iter().map(|key| key.as_str().to_owned()));
            from = scanned.next;
            if from.is_none() {
                return found;
            }
        }
        panic!("the cursor ends");
    }
}

async fn a_scan_finds_every_lock(bench: StoreSetup) {
    let mut expected = BTreeSet::new();
    for n in 0..300 {
        let key = format!("lock:session:u:{n}");
        bench.granted(&bench.claim(&key, LEASE)).await;
        expected.insert(key);
    }
    let space = space(&["lock:session:{user_id}:{session_id}"]);
    for about in [1, 7, 100, 1000] {
        let found = bench.scan(&space, about).await;
        assert_eq!(
            found, expected,
            "a scan by pages of about {about} finds every lock"
        );
    }
    for n in (0..300).step_by(2) {
        let key = format!("lock:session:u:{n}");
        bench.claim(&key, LEASE);
        let info = bench.inspect_key(&key).await;
        let holder = info.holder.expect("the lock is held");
        let forced = bench
            .store(0)
            .force_release(&SessionKey::literal(&key), &holder)
            .await;
        forced
            .expect("the store answers")
            .expect("the lock was held");
        expected.remove(&key);
    }
    assert_eq!(
        bench.scan(&space, 10).await,
        expected,
        "a scan finds no released lock"
    );
}

async fn a_scan_finds_only_held_locks_of_the_space(bench: StoreSetup) {
    for key in ["a:1", "a:2:x", "b[1]:1", "b1:1", "c:1"] {
        bench.granted(&bench.claim(key, LEASE)).await;
    }
    let holder = bench.holder(0).await;
    let waiter = bench.join(1).await;
    for (templates, expected) in [
        (&["a:{session_id}"][..], &["a:1", "a:2:x"][..]),
        (&["b[1]:{session_id}"], &["b[1]:1"]),
        (
            &["a:{session_id}", "c:{session_id}"],
            &["a:1", "a:2:x", "c:1"],
        ),
        (
            &["{session_id}"],
            &["a:1", "a:2:x", "b1:1", "b[1]:1", "c:1", "k"],
        ),
        (&["d:{session_id}"], &[]),
    ] {
        let found = bench.scan(&space(templates), 100).await;
        let expected = expected.iter().map(|&key| key.to_owned()).collect();
        assert_eq!(
            found, expected,
            "a scan for {templates:?} finds its locks and no companion keys"
        );
    }
    bench.release(&holder).await;
    bench.are_served([&waiter], "the queue is unchanged").await;
}

async fn an_inspection_has_holder_fence_age_time_left_and_queue(bench: StoreSetup) {
    let claim = bench.claim(KEY, LEASE);
    let fence = bench.granted(&claim).await;
    sleep(Duration::from_millis(20)).await;
    let waiters = [bench.join(1).await, bench.join(2).await];
    let info = bench.inspect_key(KEY).await;
    assert_eq!(
        (info.holder, info.fence, info.waiters),
        (Some(LockHolder::from(&claim.token)), Some(fence), 2),
        "the inspection has holder, fence and number of waiters"
    );
    let queue: Vec<_> = waiters
        .iter()
        .map(|waiter| LockHolder::from(&waiter.claim.token))
        .collect();
    assert_eq!(
        info.queue, queue,
        "the inspection lists the waiters in order"
    );
    let (age, left) = (
        info.age.expect("the lock has a fence"),
        info.ttl.expect("a lease"),
    );
    assert!(
        (Duration::from_millis(19)..LEASE).contains(&age)
            && left <= LEASE - age + Duration::from_millis(2),
        "age and time left follow the store's clock: {age:?} old, {left:?} left of {LEASE:?}"
    );
    let keys = [SessionKey::literal("nobody's"), SessionKey::literal(KEY)];
    let replies = bench
        .store(0)
        .inspect(&keys, false)
        .await
        .expect("the store answers");
    assert_eq!(
        (
            replies[0].waiters,
            replies[1].waiters,
            replies[1].queue.len()
        ),
        (0, 2, 0),
        "several keys are inspected at once, without their queues"
    );
}

async fn an_inspection_of_a_free_lock_is_empty(bench: StoreSetup) {
    let free = LockInfo {
        holder: None,
        fence: None,
        age: None,
        ttl: None,
        waiters: 0,
        queue: Vec::new(),
    };
    assert_eq!(
        bench.inspect_key(KEY).await,
        free,
        "a lock that was never held is free"
    );
    let claim = bench.holder_for(0, Duration::from_millis(50)).await;
    sleep(Duration::from_millis(60)).await;
    assert_eq!(
        bench.inspect_key(KEY).await,
        free,
        "an expired lock is free"
    );
    assert!(
        !bench.release(&claim).await,
        "an expired lock can't be released"
    );
    bench.wait_until_no_keys().await;
}

async fn an_inspection_changes_nothing(bench: StoreSetup) {
    let orphans = bench.orphans(&[1, 2]).await;
    // The lock is free, and the next request hands it over. An inspection doesn't.
    let info = bench.inspect_key(KEY).await;
    assert_eq!(
        (info.holder, info.waiters),
        (None, 2),
        "an inspection doesn't hand over a free lock"
    );
    bench.scan(&space(&["{session_id}"]), 10).await;
    assert_eq!(
        bench.received(1).await,
        [],
        "an inspection sends no message"
    );
    let [first, second] = &orphans[..] else {
        panic!("two waiters");
    };
    assert_eq!(
        bench.watch(2).await,
        held_by(&first.claim),
        "a watch hands the lock to the first waiter"
    );
    bench
        .are_served([first, second], "waiters are served in order")
        .await;
    bench.wait_until_no_keys().await;
}

async fn an_inspection_shows_an_offer_as_held_by_its_waiter(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiter = bench.join(1).await;
    bench.release(&holder).await;
    let info = bench.inspect_key(KEY).await;
    assert_eq!(
        (info.holder, info.waiters),
        (Some(LockHolder::from(&waiter.claim.token)), 0),
        "the waiter with the offer is shown as the holder"
    );
    bench
        .are_served([&waiter], "the waiter accepts its offer")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_force_released_lock_is_free(bench: StoreSetup) {
    let claim = bench.holder(0).await;
    assert!(
        bench.force_release(&claim).await.is_some(),
        "the lock was held"
    );
    assert_eq!(
        bench.inspect_key(KEY).await.holder,
        None,
        "the lock is free"
    );
    let next = bench.holder(1).await;
    assert!(bench.release(&next).await, "another turn can hold the lock");
    bench.wait_until_no_keys().await;
}

async fn a_forced_release_notifies_only_the_holder(bench: StoreSetup) {
    let claim = bench.holder(1).await;
    bench.force_release(&claim).await;
    assert_eq!(
        bench.received(1).await,
        [Message::Taken(claim.id)],
        "the instance is notified which turn lost its lock"
    );
    for other in [0, 2] {
        assert_eq!(
            bench.received(other).await,
            [],
            "no other instance is notified"
        );
    }
    // A holder that gets no messages loses its lock all the same.
    let unreachable = bench.claim_of(UNREACHABLE, KEY, LEASE);
    bench.granted(&unreachable).await;
    assert!(
        bench.force_release(&unreachable).await.is_some(),
        "a holder without messages loses its lock"
    );
    assert_eq!(
        bench.inspect_key(KEY).await.holder,
        None,
        "the lock is free"
    );
}

async fn a_forced_release_hands_the_lock_to_the_first_waiter(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiters = [
        bench.join(1).await,
        bench.join(0).await,
        bench.join(2).await,
    ];
    assert!(
        bench.force_release(&holder).await.is_some(),
        "the lock was held"
    );
    assert_eq!(
        bench.received(1).await,
        [Message::Granted(waiters[0].claim.id)],
        "the first waiter is notified as with a release"
    );
    assert_eq!(
        bench.received(0).await,
        [Message::Taken(holder.id)],
        "the holder is notified"
    );
    bench
        .are_served(&waiters, "waiters are served in order of arrival")
        .await;
    assert!(!bench.release(&holder).await, "the holder's lock is gone");
    bench.wait_until_no_keys().await;
}

async fn the_fence_rises_with_a_forced_release(bench: StoreSetup) {
    let mut last = Fence(0);
    for _ in 0..20 {
        let claim = bench.claim(KEY, LEASE);
        let granted = bench.granted(&claim).await;
        assert!(granted > last, "the fence is larger than all before");
        let forced = bench
            .force_release(&claim)
            .await
            .expect("the lock was held");
        assert!(forced > granted, "a forced release raises the fence");
        last = forced;
    }
    let holder = bench.claim(KEY, LEASE);
    bench.granted(&holder).await;
    let waiter = bench.join(1).await;
    let forced = bench
        .force_release(&holder)
        .await
        .expect("the lock was held");
    let fence = bench.take_up(&waiter).await;
    assert!(fence > forced, "a hand-over raises the fence further");
    bench.release(&waiter.claim).await;
    bench.wait_until_no_keys().await;
}

async fn a_forced_release_affects_only_the_named_holder(bench: StoreSetup) {
    let before = bench.holder(0).await;
    bench.release(&before).await;
    assert_eq!(
        bench.force_release(&before).await,
        None,
        "a free lock can't be force released"
    );
    let now = bench.holder(1).await;
    assert_eq!(
        bench.force_release(&before).await,
        None,
        "a lock with a new holder isn't force released"
    );
    assert!(bench.holds(&now).await, "the new holder keeps its lock");
    assert_eq!(bench.received(1).await, [], "the new holder isn't notified");
    let waiter = bench.join(2).await;
    assert_eq!(
        bench.force_release(&waiter.claim).await,
        None,
        "a waiter can't be force released"
    );
    bench.release(&now).await;
    bench
        .are_served([&waiter], "the waiter stays in the queue")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_force_released_holder_can_neither_extend_nor_release(bench: StoreSetup) {
    let old = bench.holder(0).await;
    bench.force_release(&old).await;
    assert_eq!(
        bench.extend(&[Arc::clone(&old)]).await,
        [false],
        "a force released lock can't be extended"
    );
    let new = bench.holder(1).await;
    assert!(
        !bench.release(&old).await,
        "the old holder can't release the lock"
    );
    assert!(bench.holds(&new).await, "the new holder keeps its lock");
    bench.release(&new).await;
    bench.wait_until_no_keys().await;
}

async fn a_force_released_offer_goes_to_the_next_waiter(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    bench.release(&holder).await;
    assert_eq!(
        bench.received(1).await,
        [Message::Granted(first.claim.id)],
        "the lock is offered to the first waiter"
    );
    assert!(
        bench.force_release(&first.claim).await.is_some(),
        "the offer is force released"
    );
    assert_eq!(
        bench.received(1).await,
        [Message::Taken(first.claim.id)],
        "the first waiter is notified of its loss"
    );
    bench.withdraw(&first.claim).await;
    bench
        .are_served([&second], "the next waiter is served")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_message_about_a_turn_reaches_its_instance_unchanged(bench: StoreSetup) {
    let holder = bench.holder(1).await;
    let waiter = bench.join_as(0, INTERRUPTING).await;
    for message in [Message::Interrupt(holder.id), Message::Taken(holder.id)] {
        let sent = bench.store(2).send_message("pod-1", message.clone()).await;
        sent.expect("the store answers");
        assert_eq!(
            bench.received(1).await,
            [message],
            "the message arrives unchanged"
        );
    }
    bench.release(&holder).await;
    bench.are_served([&waiter], "the queue moves on").await;
    bench.wait_until_no_keys().await;
}

async fn a_dequeued_waiter_is_out_for_good_and_its_instance_is_notified(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (first, out, last) = (
        bench.join(1).await,
        bench.join(1).await,
        bench.join(2).await,
    );
    assert!(bench.dequeue(&out.claim).await, "it was in the queue");
    assert_eq!(
        bench.received(1).await.first(),
        Some(&Message::Dequeued(out.claim.id)),
        "its instance is notified"
    );
    assert_eq!(bench.received(2).await, [], "no other instance is");
    assert!(!bench.dequeue(&out.claim).await, "it was taken out before");
    let info = bench.inspect_key(KEY).await;
    let tokens = [&first, &last].map(|waiter| LockHolder::from(&waiter.claim.token));
    assert_eq!(info.queue, tokens, "the others keep their places");
    assert_eq!(
        bench.watch(1).await,
        super::Watched::Unknown,
        "its instance finds out that a waiter has no place"
    );
    assert_eq!(bench.ask_again(&out).await, AcquireReply::Dequeued, "why");
    assert!(bench.holds(&holder).await, "the holder keeps its lock");
    bench.withdraw(&out.claim).await;
    bench.release(&holder).await;
    bench
        .are_served([&first, &last], "the others are served in order")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_dequeued_waiter_that_missed_the_message_learns_it_on_retry(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let out = bench.join(UNREACHABLE).await;
    assert!(bench.dequeue(&out.claim).await, "it was in the queue");
    let later = bench.join(1).await;
    bench.withdraw(&later.claim).await;
    for _ in 0..2 {
        let reply = bench.ask_again(&out).await;
        assert_eq!(reply, AcquireReply::Dequeued, "each retry says so");
    }
    let reply = bench.wait(&out.claim, super::PATIENT).await;
    assert_eq!(
        reply,
        AcquireReply::Dequeued,
        "also if the waiter doesn't know its place"
    );
    let another = bench.join(UNREACHABLE).await;
    bench.release(&holder).await;
    bench
        .are_served([&another], "another turn of the instance is served")
        .await;
    bench.wait_until_no_keys().await;
}

async fn only_a_waiter_is_dequeued(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    assert!(!bench.dequeue(&holder).await, "a holder doesn't wait");
    let waiter = bench.join(1).await;
    let stranger = bench.claim_of(2, KEY, LEASE);
    assert!(!bench.dequeue(&stranger).await, "this turn never asked");
    bench.release(&holder).await;
    assert_eq!(
        bench.received(1).await,
        [Message::Granted(waiter.claim.id)],
        "the lock is offered to the waiter"
    );
    assert!(
        !bench.dequeue(&waiter.claim).await,
        "a waiter with an offer doesn't wait any more"
    );
    assert_eq!(bench.received(1).await, [], "and isn't notified");
    bench
        .are_served([&waiter], "a turn that isn't taken out is served")
        .await;
    assert!(!bench.dequeue(&waiter.claim).await, "its turn is over");
    bench.wait_until_no_keys().await;
}

// === foreign keys in Redis ===

#[tokio::test]
async fn the_mark_of_a_dequeued_waiter_expires_and_supersedes_nobody() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let holder = bench.holder(0).await;
    let out = bench.join(UNREACHABLE).await;
    redis.command(&["PEXPIRE", "{k}:1:waiters", "1000"]).await;
    bench.dequeue(&out.claim).await;
    let left = redis.pttl("{k}:1:waiters").await;
    let most = i64::try_from(QUEUE_TTL.as_millis()).expect("a small number");
    assert!(
        (1001..=most).contains(&left),
        "the mark expires, and not earlier than a queue: {left}"
    );
    let waiter = bench.join(1).await;
    let reply = bench.ask_again(&waiter).await;
    assert!(
        matches!(reply, AcquireReply::Waiting(..)),
        "a later waiter keeps its place: {reply:?}"
    );
    redis.command(&["DEL", "{k}:1:waiters"]).await;
    redis.command(&["SET", "{k}:1:waiters", "no hash"]).await;
    assert!(
        !bench.dequeue(&waiter.claim).await,
        "another program's key breaks nothing"
    );
    redis.command(&["DEL", "{k}:1:waiters"]).await;
    bench.release(&holder).await;
}

#[tokio::test]
async fn foreign_keys_break_no_inspection_and_foreign_locks_can_be_released() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    for command in [
        &["SET", "k:python", "0b7e", "NX", "PX", "60000"][..],
        &["SET", "k:endless", "0b7e"],
        &[
            "SET",
            "k:json",
            "{\"format\":1,\"claim\":\"x\"}",
            "PX",
            "60000",
        ],
        &["RPUSH", "k:list", "a"],
        &["HSET", "k:hash", "a", "b"],
        &["SET", "k:\u{1}[x]*?", "odd", "PX", "60000"],
        &["RPUSH", "{k:python}:1:queue", "not a queue"],
        &["RPUSH", "{k:json}:fence", "not a fence"],
        &["SET", "{k:json}:1:waiters", "no hash"],
        &["ZADD", "{k:json}:1:queue", "1", "whoever"],
        &["SET", "other", "x"],
    ] {
        redis.command(command).await;
    }
    let space = space(&["k:{session_id}"]);
    let strings = ["k:\u{1}[x]*?", "k:endless", "k:json", "k:python"];
    let expected: BTreeSet<_> = strings.iter().map(|&key| key.to_owned()).collect();
    assert_eq!(
        bench.scan(&space, 100).await,
        expected,
        "a scan finds every string key of the space"
    );
    let python = bench.inspect_key("k:python").await;
    assert_eq!(
        (python.holder, python.fence, python.waiters),
        (Some(LockHolder::new("0b7e")), None, 0),
        "a queue of another type counts as empty"
    );
    assert!(python.ttl.is_some(), "the foreign lock has a TTL");
    assert_eq!(
        bench.inspect_key("k:endless").await.ttl,
        None,
        "a lock without a TTL has no end"
    );
    let json = bench.inspect_key("k:json").await;
    assert_eq!(
        (json.fence, json.waiters),
        (None, 1),
        "a fence of another type is none, and an unknown waiter counts"
    );
    for key in ["k:list", "k:hash"] {
        assert_eq!(
            bench.inspect_key(key).await.holder,
            Some(LockHolder::new("?")),
            "{key} blocks the turns of its session, so an operator sees it as held"
        );
        let forced = bench
            .store(0)
            .force_release(&SessionKey::literal(key), &LockHolder::new("a"))
            .await;
        assert_eq!(
            forced.expect("the store answers"),
            None,
            "a key that isn't a lock isn't released"
        );
        assert_ne!(
            redis.command(&["EXISTS", key]).await,
            Value::Int(0),
            "{key}"
        );
    }
    for key in ["k:python", "k:endless", "k:json"] {
        let value = redis.get(key).await.expect("the key exists");
        let forced = bench
            .store(0)
            .force_release(&SessionKey::literal(key), &LockHolder::new(&value))
            .await;
        assert!(
            forced.expect("the store answers").is_some(),
            "{key} was held"
        );
        assert_eq!(redis.get(key).await, None, "{key} is free");
        let fence = format!("{{{key}}}:fence");
        assert_ne!(redis.pttl(&fence).await, -1, "the fence has a TTL");
    }
}

#[tokio::test]
async fn a_fence_raised_by_a_forced_release_outlasts_a_clock_set_back() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let claim = bench.holder(0).await;
    // As if the clock had been an hour ahead at the grant.
    let time: (u64, u64) =
        ::redis::from_redis_value(redis.command(&["TIME"]).await).expect("the time");
    let ahead = ((time.0 + 3600) * 1_000_000).to_string();
    redis
        .command(&["SET", "{k}:fence", &ahead, "PX", "60000"])
        .await;
    let forced = bench
        .force_release(&claim)
        .await
        .expect("the lock was held");
    assert_eq!(
        forced.0,
        ahead.parse::<u64>().expect("a number") + 1,
        "the fence rises"
    );
    let left = redis.pttl("{k}:fence").await;
    assert!(
        left > 3_590_000,
        "the fence is kept until the clock has passed it: {left}"
    );
    let next = bench.claim_of(1, KEY, LEASE);
    assert!(
        bench.granted(&next).await > forced,
        "the next fence is larger"
    );
}
