//! Errors of Redis: a failed command changes nothing, blocks nothing, and affects no other session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use seriatim::key::SessionKey;
use seriatim::lock::redis::{RedisAddress, RedisStore};
use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, LockHolder, QueueOptions, Store, Ticket, WAITER_TIMEOUT,
    WatchedQueue,
};

use super::{KEY, LEASE, PATIENT, StoreSetup, all, at_once};
use crate::support::redis::Redis;

/// The companion keys of a session's lock, and for each a command that gives it another type.
const COMPANION_KEYS: [(&str, [&str; 3]); 3] = [
    ("{k}:fence", ["RPUSH", "{k}:fence", "x"]),
    ("{k}:1:queue", ["SET", "{k}:1:queue", "x"]),
    ("{k}:1:waiters", ["SET", "{k}:1:waiters", "x"]),
];

/// The kinds of acquire requests.
fn requests() -> [AcquireRequest; 4] {
    let waiting = |ticket, interrupts| {
        Some(QueueOptions {
            ticket,
            interrupts,
            ..PATIENT
        })
    };
    [
        None,
        waiting(None, false),
        waiting(Some(Ticket(7)), false),
        waiting(None, true),
    ]
    .map(|wait| AcquireRequest {
        take_over: None,
        queue: wait,
    })
}

/// All keys in Redis and their content, without those of instances.
async fn everything(redis: &Redis) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for key in redis.keys().await {
        let dumped = redis.command(&["DUMP", &key]).await;
        all.insert(key, dumped);
    }
    all
}

/// Requests the lock and asserts that an error changes nothing.
async fn assert_error_changes_nothing(
    redis: &Redis,
    store: &dyn Store,
    claim: &Arc<Claim>,
    ask: &AcquireRequest,
) {
    let before = everything(redis).await;
    let Err(error) = store.acquire(claim, ask).await else {
        return;
    };
    assert!(
        error.was_not_executed(),
        "the error says that nothing was executed: {error}"
    );
    let after = everything(redis).await;
    assert_eq!(after, before, "a failed {ask:?} writes nothing: {error}");
}

#[tokio::test]
async fn an_acquisition_with_a_key_of_another_type_changes_nothing() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let store = &**bench.store(0);
    for (_, spoil) in COMPANION_KEYS
        .into_iter()
        .chain([("k", ["RPUSH", "k", "x"])])
    {
        for state in ["free", "held", "dead"] {
            for mut ask in requests() {
                redis.command(&["FLUSHALL"]).await;
                let holder = bench.claim_of(1, KEY, LEASE);
                if state != "free" {
                    bench.granted(&holder).await;
                }
                if state == "dead" {
                    ask.take_over = Some(at_once(LockHolder::from(&holder.token)));
                }
                redis.command(&["DEL", spoil[1]]).await;
                redis.command(&spoil).await;
                let claim = bench.claim_of(0, KEY, LEASE);
                assert_error_changes_nothing(&redis, store, &claim, &ask).await;
            }
        }
    }
    redis.command(&["FLUSHALL"]).await;
}

#[tokio::test]
async fn an_acquisition_without_a_permission_takes_no_lock_and_no_place() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    redis
        .command(&["ACL", "SETUSER", "poor", "on", ">pw", "~*", "&*", "+@all"])
        .await;
    let url = format!("redis://poor:pw@{}/0", redis.addr());
    let address = RedisAddress::parse(&url, Duration::from_secs(1)).expect("a URL");
    let poor = RedisStore::connect(address);
    for right in [
        "evalsha",
        "get",
        "set",
        "exists",
        "zadd",
        "zrem",
        "zrange",
        "zrangebyscore",
        "zscore",
        "zcard",
        "hset",
        "hget",
        "hdel",
        "pexpire",
        "publish",
        "time",
    ] {
        for state in ["free", "held", "offered"] {
            for ask in requests() {
                redis.command(&["FLUSHALL"]).await;
                let holder = bench.claim_of(1, KEY, LEASE);
                if state != "free" {
                    bench.granted(&holder).await;
                }
                if state == "offered" {
                    bench.join(2).await;
                    redis.command(&["DEL", KEY]).await;
                }
                redis
                    .command(&["ACL", "SETUSER", "poor", &format!("-{right}")])
                    .await;
                let claim = bench.claim_of(0, KEY, LEASE);
                if let Err(error) = poor.acquire(&claim, &ask).await {
                    assert!(
                        error.was_not_executed(),
                        "without {right} the error says that nothing was executed: {error}"
                    );
                    let held = redis.get(KEY).await;
                    assert_ne!(
                        held.as_deref(),
                        Some(claim.token.as_str()),
                        "without {right} the lock isn't held: {state} {ask:?}"
                    );
                    if ask.queue.is_some_and(|place| place.ticket.is_none()) {
                        let id = claim.id.to_string();
                        let place = redis.command(&["ZSCORE", "{k}:1:queue", &id]).await;
                        assert_eq!(
                            place,
                            Value::Nil,
                            "without {right} the turn isn't in the queue: {state} {ask:?}"
                        );
                    }
                    let message = error.to_string();
                    // Within a script, Redis 7.0 reports ERR instead of NOPERM.
                    assert!(
                        [" answered: NOPERM ", " answered: ERR "]
                            .iter()
                            .any(|word| message.contains(word)),
                        "the error has the code of Redis: {message}"
                    );
                    assert!(
                        !message.contains("user_script") && !message.contains('\n'),
                        "the error is one line: {message}"
                    );
                }
                redis
                    .command(&["ACL", "SETUSER", "poor", &format!("+{right}")])
                    .await;
            }
        }
    }
    redis.command(&["FLUSHALL"]).await;
}

#[tokio::test]
async fn a_lock_is_released_whatever_its_companion_keys_are() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    for (key, spoil) in COMPANION_KEYS {
        for waits in [false, true] {
            redis.command(&["FLUSHALL"]).await;
            let claim = bench.holder(0).await;
            if waits {
                bench.join(1).await;
            }
            redis.command(&["DEL", key]).await;
            redis.command(&spoil).await;
            assert!(bench.release(&claim).await, "the release succeeds: {key}");
            let held = redis.get(KEY).await;
            assert_ne!(
                held.as_deref(),
                Some(claim.token.as_str()),
                "the lock is free: {key}"
            );
        }
    }
    redis.command(&["FLUSHALL"]).await;
    let claim = bench.holder(0).await;
    redis.command(&["DEL", KEY]).await;
    redis.command(&["RPUSH", KEY, "x"]).await;
    assert!(
        !bench.release(&claim).await,
        "a key of another type isn't released"
    );
    redis.command(&["FLUSHALL"]).await;
}

#[tokio::test]
async fn an_invalid_fence_is_replaced() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let first = bench.claim("k", LEASE);
    let before = bench.granted(&first).await;
    bench.release(&first).await;
    redis.command(&["RPUSH", "{k}:fence", "x"]).await;
    let second = bench.claim("k", LEASE);
    let after = bench.granted(&second).await;
    assert!(
        after > before,
        "the new fence follows the clock: {after} after {before}"
    );
    assert!(bench.release(&second).await, "the lock is released");
    for odd in ["9223372036854775807", "1e308", "inf", "-1", "nan"] {
        redis.command(&["SET", "{k}:fence", odd]).await;
        let claim = bench.claim("k", LEASE);
        let fence = bench.granted(&claim).await;
        assert!(fence > after, "the fence {odd} is replaced: {fence}");
        assert!(bench.release(&claim).await, "the lock is released: {odd}");
    }
}

#[tokio::test]
async fn a_lock_without_a_value_is_held() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    redis.command(&["SET", "k", "", "PX", "60000"]).await;
    let wait = Some(PATIENT);
    for ask in [None, wait].map(|wait| AcquireRequest {
        take_over: None,
        queue: wait,
    }) {
        let claim = bench.claim_of(0, "k", LEASE);
        let answer = bench.store(0).acquire(&claim, &ask).await;
        let answer = answer.expect("the store answers");
        assert!(
            matches!(answer, AcquireReply::Busy(..) | AcquireReply::Waiting(..)),
            "a lock with an empty value is held: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_queue_of_another_type_affects_no_other_queue() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let holder = bench.holder(0).await;
    let waiter = bench.join(1).await;
    redis
        .command(&["SET", "{other}:1:queue", "x", "PX", "60000"])
        .await;
    let spoilt = bench.claim_of(1, "other", LEASE);
    let watched = |key: &str, claim: &Claim| WatchedQueue {
        key: SessionKey::literal(key),
        take_over: None,
        wants_places: false,
        waiters: vec![claim.id],
    };
    let queues = [watched("other", &spoilt), watched(KEY, &waiter.claim)];
    let found = bench.store(1).watch(&spoilt.instance, &queues).await;
    let found = all(found);
    assert_eq!(
        found[0].holder, None,
        "whoever waits in a queue of another type has to ask again"
    );
    assert_eq!(found[1].missing, [], "the other queue is watched");
    assert_eq!(
        found[1].holder,
        Some(LockHolder::from(&holder.token)),
        "the other queue has its holder"
    );
    bench.release(&holder).await;
    bench
        .are_served([&waiter], "the other queue moves on")
        .await;
}

/// The number of commands that a script calls to refuse one more turn.
async fn cost(redis: &Redis, bench: &StoreSetup, place: QueueOptions) -> usize {
    let one_more = bench.claim_of(0, KEY, LEASE);
    let monitor = redis.monitor().await;
    assert!(
        matches!(
            bench.wait(&one_more, place).await,
            AcquireReply::QueueFull(_)
        ),
        "the queue is full"
    );
    let lines = monitor.lines().await;
    lines.iter().filter(|line| line.contains(" lua] ")).count()
}

#[tokio::test]
async fn a_refusal_by_a_longer_queue_costs_no_more_commands() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    bench.holder(0).await;
    let mut costs = Vec::new();
    let mut waiting = 0;
    for max_waiters in [10, 150] {
        for of in waiting..max_waiters {
            bench.join(of as usize % 3).await;
        }
        waiting = max_waiters;
        let place = QueueOptions {
            max_waiters,
            ..PATIENT
        };
        costs.push(cost(&redis, &bench, place).await);
    }
    assert_eq!(
        costs[0], costs[1],
        "a refusal takes the same commands at any length: {costs:?}"
    );
}

#[tokio::test]
async fn a_queue_full_of_dead_waiters_admits_new_ones() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    bench.holder(0).await;
    const MOST: u32 = 40;
    for of in 0..MOST {
        // Every second waiter belongs to the live instance.
        bench.join(1 + of as usize % 2).await;
    }
    bench
        .pass(WAITER_TIMEOUT + Duration::from_millis(100), &[2])
        .await;
    let place = QueueOptions {
        max_waiters: MOST,
        ..PATIENT
    };
    let mut admitted = 0;
    // Each request that finds a dead waiter makes room. That fewer than ten of a thousand do is
    // less likely than any other failure.
    for _ in 0..1000 {
        let claim = bench.claim_of(0, KEY, LEASE);
        admitted += u32::from(!matches!(
            bench.wait(&claim, place).await,
            AcquireReply::QueueFull(_)
        ));
        if admitted == 10 {
            return;
        }
    }
    panic!("half of the waiters are dead, and only {admitted} of a thousand turns were admitted");
}
