//! What Redis answers with an error: nothing was taken, nothing is held fast by it, and the others go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use seriatim::key::SessionKey;
use seriatim::lock::redis::{RedisAddress, RedisStore};
use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, LockHolder, QueueOptions, WAITER_TIMEOUT, Store, Ticket,
    WatchedQueue,
};

use super::{KEY, LEASE, PATIENT, StoreSetup, at_once};
use crate::support::redis::Redis;

/// The keys that a session's lock has beside it, and of each a command that makes it another thing.
const BESIDE: [(&str, [&str; 3]); 3] = [
    ("{k}:fence", ["RPUSH", "{k}:fence", "x"]),
    ("{k}:queue", ["SET", "{k}:queue", "x"]),
    ("{k}:waiters", ["SET", "{k}:waiters", "x"]),
];

/// The ways to ask for a lock.
fn asks() -> [AcquireRequest; 4] {
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
    .map(|wait| AcquireRequest { take_over: None, queue: wait })
}

/// All that is in Redis, but for instances.
async fn everything(redis: &Redis) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for key in redis.keys().await {
        let dumped = redis.command(&["DUMP", &key]).await;
        all.insert(key, dumped);
    }
    all
}

/// Asks for the lock, and sees that an error leaves everything as it was.
async fn takes_nothing_by_an_error(
    redis: &Redis,
    store: &dyn Store,
    claim: &Arc<Claim>,
    ask: &AcquireRequest,
) {
    let before = everything(redis).await;
    let Err(error) = store.acquire(claim, ask).await else {
        return;
    };
    assert!(error.was_not_executed(), "it is known: {error}");
    let after = everything(redis).await;
    assert_eq!(after, before, "nothing was written by {ask:?}: {error}");
}

#[tokio::test]
async fn an_acquisition_that_meets_a_key_of_another_type_takes_nothing() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let store = &**bench.store(0);
    for (_, spoil) in BESIDE.into_iter().chain([("k", ["RPUSH", "k", "x"])]) {
        for state in ["free", "held", "dead"] {
            for mut ask in asks() {
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
                takes_nothing_by_an_error(&redis, store, &claim, &ask).await;
            }
        }
    }
    redis.command(&["FLUSHALL"]).await;
}

#[tokio::test]
async fn an_acquisition_that_lacks_a_right_takes_no_lock_and_no_place() {
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
            for ask in asks() {
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
                    assert!(error.was_not_executed(), "without {right}: {error}");
                    let held = redis.get(KEY).await;
                    assert_ne!(
                        held.as_deref(),
                        Some(claim.token.as_str()),
                        "without {right} it isn't held: {state} {ask:?}"
                    );
                    if ask.queue.is_some_and(|place| place.ticket.is_none()) {
                        let id = claim.id.to_string();
                        let place = redis.command(&["ZSCORE", "{k}:queue", &id]).await;
                        assert_eq!(
                            place,
                            Value::Nil,
                            "nor does it stand in the line without {right}: {state} {ask:?}"
                        );
                    }
                    let said = error.to_string();
                    // Inside of a script, Redis 7.0 has another word for it than NOPERM.
                    assert!(
                        [" answered: NOPERM ", " answered: ERR "]
                            .iter()
                            .any(|word| said.contains(word)),
                        "it is told: {said}"
                    );
                    assert!(
                        !said.contains("user_script") && !said.contains('\n'),
                        "in one line: {said}"
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
async fn a_lock_is_released_whatever_stands_beside_it() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    for (key, spoil) in BESIDE {
        for waits in [false, true] {
            redis.command(&["FLUSHALL"]).await;
            let claim = bench.holder(0).await;
            if waits {
                bench.join(1).await;
            }
            redis.command(&["DEL", key]).await;
            redis.command(&spoil).await;
            assert!(bench.release(&claim).await, "it was held: {key}");
            let held = redis.get(KEY).await;
            assert_ne!(
                held.as_deref(),
                Some(claim.token.as_str()),
                "and isn't any more: {key}"
            );
        }
    }
    redis.command(&["FLUSHALL"]).await;
    let claim = bench.holder(0).await;
    redis.command(&["DEL", KEY]).await;
    redis.command(&["RPUSH", KEY, "x"]).await;
    assert!(
        !bench.release(&claim).await,
        "what isn't a lock isn't this turn's"
    );
    redis.command(&["FLUSHALL"]).await;
}

#[tokio::test]
async fn a_fence_of_another_type_is_made_anew() {
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
        "the clock has gone on: {after} after {before}"
    );
    assert!(bench.release(&second).await, "and it is released");
    for odd in ["9223372036854775807", "1e308", "inf", "-1", "nan"] {
        redis.command(&["SET", "{k}:fence", odd]).await;
        let claim = bench.claim("k", LEASE);
        let fence = bench.granted(&claim).await;
        assert!(
            fence > after,
            "{odd} is no number to count on from: {fence}"
        );
        assert!(bench.release(&claim).await, "and it is released: {odd}");
    }
}

#[tokio::test]
async fn a_lock_without_a_value_is_held() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    redis.command(&["SET", "k", "", "PX", "60000"]).await;
    let wait = Some(PATIENT);
    for ask in [None, wait].map(|wait| AcquireRequest { take_over: None, queue: wait }) {
        let claim = bench.claim_of(0, "k", LEASE);
        let answer = bench.store(0).acquire(&claim, &ask).await;
        let answer = answer.expect("the store answers");
        assert!(
            matches!(answer, AcquireReply::Busy(_) | AcquireReply::Waiting(..)),
            "somebody has it: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_line_of_another_type_disturbs_no_other_line() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let holder = bench.holder(0).await;
    let waiter = bench.join(1).await;
    redis
        .command(&["SET", "{other}:queue", "x", "PX", "60000"])
        .await;
    let spoilt = bench.claim_of(1, "other", LEASE);
    let line = |key: &str, claim: &Claim| WatchedQueue {
        key: SessionKey::literal(key),
        take_over: None,
        waiters: vec![claim.id],
    };
    let lines = [line("other", &spoilt), line(KEY, &waiter.claim)];
    let found = bench.store(1).watch(&spoilt.instance, &lines).await;
    let found = found.expect("the store answers");
    assert_eq!(
        (found[0].present, &found[0].holder),
        (0, &None),
        "nobody waits there"
    );
    assert_eq!(found[1].present, 1, "and the other line is looked at");
    assert_eq!(
        found[1].holder,
        Some(LockHolder::from(&holder.token)),
        "as ever"
    );
    bench.release(&holder).await;
    bench.are_served([&waiter], "it goes on").await;
}

/// How many commands a script has called when one more was refused by a line of so many.
async fn effort(redis: &Redis, bench: &StoreSetup, place: QueueOptions) -> usize {
    let one_more = bench.claim_of(0, KEY, LEASE);
    let monitor = redis.monitor().await;
    assert_eq!(
        bench.wait(&one_more, place).await,
        AcquireReply::QueueFull,
        "there is no room"
    );
    let lines = monitor.lines().await;
    lines.iter().filter(|line| line.contains(" lua] ")).count()
}

#[tokio::test]
async fn a_refusal_costs_no_more_when_the_line_is_longer() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    bench.holder(0).await;
    let mut efforts = Vec::new();
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
        efforts.push(effort(&redis, &bench, place).await);
    }
    assert_eq!(
        efforts[0], efforts[1],
        "the same commands, whatever its length: {efforts:?}"
    );
}

#[tokio::test]
async fn a_long_line_of_the_dead_lets_others_in() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    bench.holder(0).await;
    const MOST: u32 = 40;
    for of in 0..MOST {
        // The second of two instances lives.
        bench.join(1 + of as usize % 2).await;
    }
    bench.pass(WAITER_TIMEOUT + Duration::from_millis(100), &[2]).await;
    let place = QueueOptions {
        max_waiters: MOST,
        ..PATIENT
    };
    let mut let_in = 0;
    // Each call that finds one of the dead makes room. That of a thousand fewer than ten do is less likely than
    // anything else that could go wrong here.
    for _ in 0..1000 {
        let claim = bench.claim_of(0, KEY, LEASE);
        let_in += u32::from(bench.wait(&claim, place).await != AcquireReply::QueueFull);
        if let_in == 10 {
            return;
        }
    }
    panic!("half of the line is dead, and only {let_in} of a thousand were let in");
}
