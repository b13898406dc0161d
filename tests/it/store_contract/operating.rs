//! What an operator sees of the locks, and takes from their holders.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;
use seriatim::key::{KeyTemplate, Keyspace, SessionKey};
use seriatim::lock::{Claim, Fence, LockHolder, LockInfo, Message};
use tokio::time::sleep;

use super::{DEAF, INTERRUPTING, KEY, LEASE, StoreSetup, held_by};
use crate::support::redis::Redis;

store_contract!(
    every_lock_that_is_there_is_found_by_cursor,
    what_is_found_is_held_and_in_the_space,
    a_look_tells_holder_fence_age_time_left_and_line,
    a_look_at_what_nobody_holds_says_so,
    a_look_changes_nothing,
    an_offer_is_seen_as_held_by_whom_it_is_for,
    a_lock_taken_by_force_is_free,
    its_holder_is_told_and_nobody_else,
    a_lock_taken_by_force_goes_to_the_first_who_waits,
    the_fence_rises_with_force,
    only_the_holder_that_was_meant_loses_its_lock,
    who_lost_its_lock_by_force_frees_and_extends_nobodys,
    an_offer_taken_by_force_goes_to_the_next,
    a_turn_that_is_told_to_make_way_is_told_by_its_instances_ears,
);

fn space(templates: &[&str]) -> Keyspace {
    let parse = |text: &&str| KeyTemplate::parse(text).expect("a template");
    Keyspace::new(templates.iter().map(parse))
}

impl StoreSetup {
    async fn look_at(&self, key: &str) -> LockInfo {
        let looks = self.store(0).inspect(&[SessionKey::literal(key)], true).await;
        let mut looks = looks.expect("the store answers");
        assert_eq!(looks.len(), 1, "one look for one key");
        looks.remove(0)
    }

    async fn force_release(&self, claim: &Claim) -> Option<Fence> {
        let holder = LockHolder::from(&claim.token);
        let forced = self.store(2).force_release(&claim.key, &holder).await;
        forced.expect("the store answers")
    }

    /// All keys of the space, page by page.
    async fn scan(&self, space: &Keyspace, about: usize) -> BTreeSet<String> {
        let (mut found, mut from) = (BTreeSet::new(), None);
        // More pages than there are keys would be a cursor that goes round.
        for _ in 0..10_000 {
            let scanned = self.store(0).scan(space, from, about).await;
            let scanned = scanned.expect("the store answers");
            found.extend(scanned.keys.iter().map(|key| key.as_str().to_owned()));
            from = scanned.next;
            if from.is_none() {
                return found;
            }
        }
        panic!("the cursor comes to no end");
    }
}

async fn every_lock_that_is_there_is_found_by_cursor(bench: StoreSetup) {
    let mut expected = BTreeSet::new();
    for n in 0..300 {
        let key = format!("lock:session:u:{n}");
        bench.granted(&bench.claim(&key, LEASE)).await;
        expected.insert(key);
    }
    let space = space(&["lock:session:{user_id}:{session_id}"]);
    for about in [1, 7, 100, 1000] {
        let found = bench.scan(&space, about).await;
        assert_eq!(found, expected, "each of them, by pages of about {about}");
    }
    for n in (0..300).step_by(2) {
        let key = format!("lock:session:u:{n}");
        bench.claim(&key, LEASE);
        let look = bench.look_at(&key).await;
        let holder = look.holder.expect("it is held");
        let forced = bench
            .store(0)
            .force_release(&SessionKey::literal(&key), &holder)
            .await;
        forced.expect("the store answers").expect("it was held");
        expected.remove(&key);
    }
    assert_eq!(
        bench.scan(&space, 10).await,
        expected,
        "and none that is gone"
    );
}

async fn what_is_found_is_held_and_in_the_space(bench: StoreSetup) {
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
        assert_eq!(found, expected, "by {templates:?}, and no companion key");
    }
    bench.release(&holder).await;
    bench.are_served([&waiter], "the line is as it was").await;
}

async fn a_look_tells_holder_fence_age_time_left_and_line(bench: StoreSetup) {
    let claim = bench.claim(KEY, LEASE);
    let fence = bench.granted(&claim).await;
    sleep(Duration::from_millis(20)).await;
    let waiters = [bench.join(1).await, bench.join(2).await];
    let look = bench.look_at(KEY).await;
    assert_eq!(
        (look.holder, look.fence, look.waiters),
        (Some(LockHolder::from(&claim.token)), Some(fence), 2),
        "who holds it, since when, and how many wait"
    );
    let line: Vec<_> = waiters
        .iter()
        .map(|waiter| LockHolder::from(&waiter.claim.token))
        .collect();
    assert_eq!(look.queue, line, "who waits, in order");
    let (age, left) = (
        look.age.expect("it has a fence"),
        look.ttl.expect("a lease"),
    );
    assert!(
        (Duration::from_millis(19)..LEASE).contains(&age)
            && left <= LEASE - age + Duration::from_millis(2),
        "by the store's clock: {age:?} old, {left:?} left of {LEASE:?}"
    );
    let keys = [SessionKey::literal("nobody's"), SessionKey::literal(KEY)];
    let looks = bench.store(0).inspect(&keys, false).await.expect("it answers");
    assert_eq!(
        (looks[0].waiters, looks[1].waiters, looks[1].queue.len()),
        (0, 2, 0),
        "several at once, and without their lines"
    );
}

async fn a_look_at_what_nobody_holds_says_so(bench: StoreSetup) {
    let free = LockInfo {
        holder: None,
        fence: None,
        age: None,
        ttl: None,
        waiters: 0,
        queue: Vec::new(),
    };
    assert_eq!(bench.look_at(KEY).await, free, "it was never held");
    let claim = bench.holder_for(0, Duration::from_millis(50)).await;
    sleep(Duration::from_millis(60)).await;
    assert_eq!(bench.look_at(KEY).await, free, "its lease has run out");
    assert!(!bench.release(&claim).await, "and it is nobody's");
    bench.is_quiet().await;
}

async fn a_look_changes_nothing(bench: StoreSetup) {
    let orphans = bench.orphans(&[1, 2]).await;
    // Nobody holds it, and whoever asks for it first is handed it: not who only looks.
    let look = bench.look_at(KEY).await;
    assert_eq!((look.holder, look.waiters), (None, 2), "as it stands");
    bench.scan(&space(&["{session_id}"]), 10).await;
    assert_eq!(bench.heard(1).await, [], "nobody is told anything");
    let [first, second] = &orphans[..] else {
        panic!("two of them");
    };
    assert_eq!(
        bench.watch(2).await,
        held_by(&first.claim),
        "who waits gets it by a look at the line"
    );
    bench.are_served([first, second], "in order").await;
    bench.is_quiet().await;
}

async fn an_offer_is_seen_as_held_by_whom_it_is_for(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiter = bench.join(1).await;
    bench.release(&holder).await;
    let look = bench.look_at(KEY).await;
    assert_eq!(
        (look.holder, look.waiters),
        (Some(LockHolder::from(&waiter.claim.token)), 0),
        "nobody else gets it"
    );
    bench.are_served([&waiter], "it takes it up").await;
    bench.is_quiet().await;
}

async fn a_lock_taken_by_force_is_free(bench: StoreSetup) {
    let claim = bench.holder(0).await;
    assert!(bench.force_release(&claim).await.is_some(), "it was held");
    assert_eq!(bench.look_at(KEY).await.holder, None, "nobody holds it");
    let next = bench.holder(1).await;
    assert!(bench.release(&next).await, "somebody else can");
    bench.is_quiet().await;
}

async fn its_holder_is_told_and_nobody_else(bench: StoreSetup) {
    let claim = bench.holder(1).await;
    bench.force_release(&claim).await;
    assert_eq!(
        bench.heard(1).await,
        [Message::Taken(claim.id)],
        "its instance is told which turn has lost its lock"
    );
    for other in [0, 2] {
        assert_eq!(bench.heard(other).await, [], "no other is");
    }
    // One that can't hear it loses its lock all the same.
    let deaf = bench.claim_of(DEAF, KEY, LEASE);
    bench.granted(&deaf).await;
    assert!(bench.force_release(&deaf).await.is_some(), "heard or not");
    assert_eq!(bench.look_at(KEY).await.holder, None, "it is free");
}

async fn a_lock_taken_by_force_goes_to_the_first_who_waits(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let waiters = [
        bench.join(1).await,
        bench.join(0).await,
        bench.join(2).await,
    ];
    assert!(bench.force_release(&holder).await.is_some(), "it was held");
    assert_eq!(
        bench.heard(1).await,
        [Message::Granted(waiters[0].claim.id)],
        "as with a release"
    );
    assert_eq!(
        bench.heard(0).await,
        [Message::Taken(holder.id)],
        "and the holder is told"
    );
    bench.are_served(&waiters, "in order of arrival").await;
    assert!(!bench.release(&holder).await, "the holder has nothing left");
    bench.is_quiet().await;
}

async fn the_fence_rises_with_force(bench: StoreSetup) {
    let mut last = Fence(0);
    for _ in 0..20 {
        let claim = bench.claim(KEY, LEASE);
        let granted = bench.granted(&claim).await;
        assert!(granted > last, "larger than any given so far");
        let forced = bench.force_release(&claim).await.expect("it was held");
        assert!(forced > granted, "and so is the one it is raised to");
        last = forced;
    }
    let holder = bench.claim(KEY, LEASE);
    bench.granted(&holder).await;
    let waiter = bench.join(1).await;
    let forced = bench.force_release(&holder).await.expect("it was held");
    let fence = bench.take_up(&waiter).await;
    assert!(fence > forced, "also where the lock is handed over");
    bench.release(&waiter.claim).await;
    bench.is_quiet().await;
}

async fn only_the_holder_that_was_meant_loses_its_lock(bench: StoreSetup) {
    let before = bench.holder(0).await;
    bench.release(&before).await;
    assert_eq!(bench.force_release(&before).await, None, "a free lock is nobody's");
    let now = bench.holder(1).await;
    assert_eq!(bench.force_release(&before).await, None, "it has changed hands");
    assert!(bench.holds(&now).await, "who holds it now has it still");
    assert_eq!(bench.heard(1).await, [], "and is told nothing");
    let waiter = bench.join(2).await;
    assert_eq!(
        bench.force_release(&waiter.claim).await,
        None,
        "a waiter holds nothing"
    );
    bench.release(&now).await;
    bench.are_served([&waiter], "and stays in the line").await;
    bench.is_quiet().await;
}

async fn who_lost_its_lock_by_force_frees_and_extends_nobodys(bench: StoreSetup) {
    let old = bench.holder(0).await;
    bench.force_release(&old).await;
    assert_eq!(
        bench.extend(&[Arc::clone(&old)]).await,
        [false],
        "it is gone"
    );
    let new = bench.holder(1).await;
    assert!(!bench.release(&old).await, "it isn't the old one's to free");
    assert!(bench.holds(&new).await, "the new one has it");
    bench.release(&new).await;
    bench.is_quiet().await;
}

async fn an_offer_taken_by_force_goes_to_the_next(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let (first, second) = (bench.join(1).await, bench.join(2).await);
    bench.release(&holder).await;
    assert_eq!(
        bench.heard(1).await,
        [Message::Granted(first.claim.id)],
        "it is offered to the first"
    );
    assert!(bench.force_release(&first.claim).await.is_some(), "who has it");
    assert_eq!(
        bench.heard(1).await,
        [Message::Taken(first.claim.id)],
        "and is told that it hasn't any more"
    );
    bench.withdraw(&first.claim).await;
    bench.are_served([&second], "the next one has it").await;
    bench.is_quiet().await;
}

async fn a_turn_that_is_told_to_make_way_is_told_by_its_instances_ears(bench: StoreSetup) {
    let holder = bench.holder(1).await;
    let waiter = bench.join_as(0, INTERRUPTING).await;
    for message in [Message::Interrupt(holder.id), Message::Taken(holder.id)] {
        let told = bench.store(2).send_message("pod-1", message).await;
        told.expect("the store answers");
        assert_eq!(bench.heard(1).await, [message], "word for word");
    }
    bench.release(&holder).await;
    bench.are_served([&waiter], "and the line goes on").await;
    bench.is_quiet().await;
}

// === what else may be in a Redis ===

#[tokio::test]
async fn keys_of_others_do_not_break_a_look_and_a_foreign_holder_is_freed_too() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    for command in [
        &["SET", "k:python", "0b7e", "NX", "PX", "60000"][..],
        &["SET", "k:endless", "0b7e"],
        &["SET", "k:json", "{\"token\":\"x\"}", "PX", "60000"],
        &["RPUSH", "k:list", "a"],
        &["HSET", "k:hash", "a", "b"],
        &["SET", "k:\u{1}[x]*?", "odd", "PX", "60000"],
        &["RPUSH", "{k:python}:queue", "not a line"],
        &["RPUSH", "{k:json}:fence", "not a fence"],
        &["SET", "{k:json}:waiters", "no hash"],
        &["ZADD", "{k:json}:queue", "1", "whoever"],
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
        "what may be a lock, whoever wrote it"
    );
    let python = bench.look_at("k:python").await;
    assert_eq!(
        (python.holder, python.fence, python.waiters),
        (Some(LockHolder::new("0b7e")), None, 0),
        "a line that is none has nobody in it"
    );
    assert!(python.ttl.is_some(), "it ends");
    assert_eq!(bench.look_at("k:endless").await.ttl, None, "it doesn't");
    let json = bench.look_at("k:json").await;
    assert_eq!(
        (json.fence, json.waiters),
        (None, 1),
        "no fence; somebody odd"
    );
    for key in ["k:list", "k:hash"] {
        assert_eq!(bench.look_at(key).await.holder, None, "{key} is no lock");
        let forced = bench
            .store(0)
            .force_release(&SessionKey::literal(key), &LockHolder::new("a"))
            .await;
        assert_eq!(forced.expect("it answers"), None, "and nobody frees it");
        assert_ne!(
            redis.command(&["EXISTS", key]).await,
            Value::Int(0),
            "{key}"
        );
    }
    for key in ["k:python", "k:endless", "k:json"] {
        let value = redis.get(key).await.expect("it is there");
        let forced = bench
            .store(0)
            .force_release(&SessionKey::literal(key), &LockHolder::new(&value))
            .await;
        assert!(forced.expect("it answers").is_some(), "{key} was held");
        assert_eq!(redis.get(key).await, None, "and is free");
        let fence = format!("{{{key}}}:fence");
        assert_ne!(redis.pttl(&fence).await, -1, "nothing is left for good");
    }
}

#[tokio::test]
async fn a_fence_raised_by_force_outlasts_a_clock_that_is_set_back() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let claim = bench.holder(0).await;
    // As if the clock had been an hour ahead when it was granted.
    let time: (u64, u64) =
        ::redis::from_redis_value(redis.command(&["TIME"]).await).expect("the time");
    let ahead = ((time.0 + 3600) * 1_000_000).to_string();
    redis
        .command(&["SET", "{k}:fence", &ahead, "PX", "60000"])
        .await;
    let forced = bench.force_release(&claim).await.expect("it was held");
    assert_eq!(
        forced.0,
        ahead.parse::<u64>().expect("a number") + 1,
        "it rises"
    );
    let left = redis.pttl("{k}:fence").await;
    assert!(
        left > 3_590_000,
        "it is kept until the clock has passed it: {left}"
    );
    let next = bench.claim_of(1, KEY, LEASE);
    assert!(bench.granted(&next).await > forced, "and rises on");
}
