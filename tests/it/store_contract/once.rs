//! A turn that is executed once: its repeats get no lock while it waits, runs, or is remembered, and it is forgotten if
//! its backend was sent nothing.

use std::sync::Arc;
use std::time::Duration;

use seriatim::key::{OnceKey, SessionKey};
use seriatim::lock::{
    AcquireReply, AcquireRequest, BusySession, Claim, ClaimId, Dismissal, LockHolder, OnceTurn,
    QueueOptions, RepeatedState, RepeatedTurn, StoreError, WAITER_TIMEOUT,
};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{INTERRUPTING, KEY, LEASE, PATIENT, StoreSetup, Waiter, at_once};
use crate::support::redis::Redis;

store_contract!(
    a_repeat_is_refused_while_its_turn_runs_and_after_it,
    another_request_with_the_same_id_is_refused_as_such,
    an_id_is_that_of_one_session,
    a_turn_whose_backend_was_sent_nothing_is_forgotten,
    a_repeat_of_a_turn_that_waits_is_refused,
    a_repeat_of_a_turn_to_which_the_lock_is_offered_is_refused,
    a_turn_that_waited_and_is_gone_is_forgotten,
    a_turn_that_left_the_queue_is_forgotten,
    a_repeat_of_a_turn_that_is_not_to_run_gets_the_same_reply,
    a_turn_that_is_interrupted_before_it_is_sent_leaves_that_to_its_repeats,
    a_turn_whose_lock_is_lost_is_in_doubt_until_it_says_how_it_ended,
    a_turn_whose_holder_is_dead_is_in_doubt,
    commands_of_one_turn_may_be_repeated,
    a_turn_is_the_same_with_another_claim,
    a_turn_is_remembered_for_as_long_as_it_is_told,
    a_long_turn_is_remembered_while_its_lease_is_extended,
    of_many_repeats_at_once_one_is_granted,
    a_repeat_is_told_how_busy_its_session_is,
);

/// For how long the turns of most rules are remembered.
const KEEP: Duration = Duration::from_secs(60);

/// A request that waits.
fn waiting() -> AcquireRequest {
    AcquireRequest {
        take_over: None,
        queue: Some(PATIENT),
    }
}

fn repeated(first: &Claim, state: RepeatedState) -> AcquireReply {
    let has_ended = state == RepeatedState::Ended;
    AcquireReply::Repeated(RepeatedTurn {
        turn: turn_of(first),
        state,
        holder: (!has_ended).then(|| LockHolder::from(&first.token)),
        session: NOT_BUSY,
    })
}

/// What most rules don't look at.
const NOT_BUSY: BusySession = BusySession {
    since: None,
    age: None,
    waiters: 0,
};

/// A reply without how busy the session is.
fn plain(reply: AcquireReply) -> AcquireReply {
    match reply {
        AcquireReply::Repeated(first) => AcquireReply::Repeated(RepeatedTurn {
            session: NOT_BUSY,
            ..first
        }),
        other => other,
    }
}

fn turn_of(claim: &Claim) -> ClaimId {
    claim
        .once
        .as_ref()
        .expect("a turn with a once id")
        .turn
        .turn
}

/// Notes that the claim's backend may have run the turn.
fn send(claim: &Claim) {
    let once = claim.once.as_ref().expect("a turn with a once id");
    let flag = once.sent_flag().as_bool();
    flag.store(true, std::sync::atomic::Ordering::Relaxed);
}

impl StoreSetup {
    /// A new turn of the nth instance with a once id and a fingerprint.
    fn turn(&self, of: usize, key: &str, id: &str, fingerprint: &str) -> Arc<Claim> {
        self.turn_for(of, key, (id, fingerprint), LEASE, KEEP)
    }

    fn turn_for(
        &self,
        of: usize,
        key: &str,
        (id, fingerprint): (&str, &str),
        lease: Duration,
        keep: Duration,
    ) -> Arc<Claim> {
        let issuer = &self.instances[of].issuer;
        let once = OnceTurn {
            key: OnceKey {
                id: id.into(),
                fingerprint: fingerprint.into(),
            },
            keep,
            turn: issuer.reserve_id(),
        };
        let claim = issuer.issue(SessionKey::literal(key), "route", "request", lease);
        Arc::new(claim.with_once(Arc::new(once)))
    }

    /// A new turn with the id of most rules.
    fn repeat(&self, of: usize) -> Arc<Claim> {
        self.turn(of, KEY, "id", "print")
    }

    /// What a repeat of the turn with the id of most rules gets, which doesn't wait; and the same if it would wait.
    async fn both(&self, why: &str) -> AcquireReply {
        let at_once = self.try_now(&self.repeat(1)).await;
        let patient = self.try_with(&self.repeat(2), &waiting()).await;
        assert_eq!(at_once, patient, "{why}, whether the repeat waits or not");
        at_once
    }

    /// Requests the lock, and doesn't wait.
    async fn try_now(&self, claim: &Arc<Claim>) -> AcquireReply {
        self.try_with(claim, &AcquireRequest::default()).await
    }

    async fn try_with(&self, claim: &Arc<Claim>, request: &AcquireRequest) -> AcquireReply {
        plain(self.ask(claim, request).await)
    }

    async fn join_once(&self, of: usize, place: QueueOptions) -> Waiter {
        let claim = self.repeat(of);
        match self.wait(&claim, place).await {
            AcquireReply::Waiting(ticket, _) => {
                self.waits(&claim, true);
                Waiter { claim, ticket, of }
            }
            other => panic!("the lock is busy, and the id is new: {other:?}"),
        }
    }

    async fn end(&self, claim: &Claim) -> bool {
        send(claim);
        self.release(claim).await
    }
}

async fn a_repeat_is_refused_while_its_turn_runs_and_after_it(bench: StoreSetup) {
    let first = bench.repeat(0);
    bench.granted(&first).await;
    let reply = bench.both("the first turn runs").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Runs));
    assert!(bench.end(&first).await, "the first turn had its lock");
    let reply = bench.both("the first turn has ended").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Ended));
    let other = bench.turn(1, KEY, "other", "print");
    bench.granted(&other).await;
    let reply = bench.both("another turn runs").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Ended));
}

async fn another_request_with_the_same_id_is_refused_as_such(bench: StoreSetup) {
    let first = bench.repeat(0);
    bench.granted(&first).await;
    let other = || bench.turn(1, KEY, "id", "another");
    assert_eq!(bench.try_now(&other()).await, AcquireReply::KeyReused);
    bench.end(&first).await;
    assert_eq!(bench.try_now(&other()).await, AcquireReply::KeyReused);
    let reply = bench.try_with(&other(), &waiting()).await;
    assert_eq!(reply, AcquireReply::KeyReused, "it doesn't wait, either");
}

async fn an_id_is_that_of_one_session(bench: StoreSetup) {
    let first = bench.repeat(0);
    bench.granted(&first).await;
    let elsewhere = bench.turn(0, "k2", "id", "print");
    bench.granted(&elsewhere).await;
    bench.end(&first).await;
    bench.end(&elsewhere).await;
    // A turn without an id is no repeat.
    let claim = bench.claim(KEY, LEASE);
    bench.granted(&claim).await;
}

async fn a_turn_whose_backend_was_sent_nothing_is_forgotten(bench: StoreSetup) {
    let first = bench.repeat(0);
    bench.granted(&first).await;
    assert!(bench.release(&first).await, "the turn had its lock");
    let second = bench.turn(1, KEY, "id", "another");
    bench.granted(&second).await;
    bench.withdraw(&second).await;
    let third = bench.repeat(2);
    bench.granted(&third).await;
    bench.release(&third).await;
    bench.wait_until_no_keys().await;
}

async fn a_repeat_of_a_turn_that_waits_is_refused(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let first = bench.join_once(0, PATIENT).await;
    let reply = bench.both("the first turn waits").await;
    assert_eq!(reply, repeated(&first.claim, RepeatedState::Waits));
    let other = bench.turn(1, KEY, "id", "another");
    let reply = bench.try_with(&other, &waiting()).await;
    assert_eq!(reply, AcquireReply::KeyReused);
    let again = bench.ask_again(&first).await;
    assert!(
        matches!(again, AcquireReply::Waiting(ticket, _) if ticket == first.ticket),
        "the first turn keeps its place: {again:?}"
    );
    bench.withdraw(&first.claim).await;
    let second = bench.join_once(1, PATIENT).await;
    bench.release(&holder).await;
    bench
        .are_served([&second], "the repeat takes its place")
        .await;
    bench.wait_until_no_keys().await;
}

async fn a_repeat_of_a_turn_to_which_the_lock_is_offered_is_refused(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let first = bench.join_once(1, PATIENT).await;
    bench.release(&holder).await;
    let reply = bench.both("the lock is offered to the first turn").await;
    assert_eq!(reply, repeated(&first.claim, RepeatedState::Waits));
    bench.take_up(&first).await;
    let reply = bench.both("the first turn runs").await;
    assert_eq!(reply, repeated(&first.claim, RepeatedState::Runs));
}

async fn a_turn_that_waited_and_is_gone_is_forgotten(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let first = bench.join_once(1, PATIENT).await;
    sleep(WAITER_TIMEOUT + Duration::from_millis(10)).await;
    // Even another request gets the id.
    let claim = bench.turn(2, KEY, "id", "another");
    let AcquireReply::Waiting(ticket, _) = bench.try_with(&claim, &waiting()).await else {
        panic!("the instance of the first turn is gone");
    };
    let second = Waiter {
        claim,
        ticket,
        of: 2,
    };
    let reply = bench.ask_again(&first).await;
    assert_eq!(
        reply,
        AcquireReply::KeyReused,
        "the first turn comes back, and another has its id"
    );
    bench.withdraw(&first.claim).await;
    bench.release(&holder).await;
    bench
        .are_served([&second], "the place of the first turn is gone")
        .await;
}

async fn a_turn_that_left_the_queue_is_forgotten(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let first = bench.join_once(1, PATIENT).await;
    bench.withdraw(&first.claim).await;
    // No other turn has the id after that, so the record is seen if it is left.
    bench.release(&holder).await;
    bench.wait_until_no_keys().await;
}

/// How a turn learns that it is not to run.
#[derive(Clone, Copy, Debug)]
enum Learns {
    /// It gets the message, and gives its claim up.
    ByMessage,
    /// It misses the message, and asks again.
    ByReply,
    /// Its client leaves before it gets the message.
    Never,
}

async fn a_repeat_of_a_turn_that_is_not_to_run_gets_the_same_reply(bench: StoreSetup) {
    for (n, learns) in [Learns::ByMessage, Learns::ByReply, Learns::Never]
        .into_iter()
        .enumerate()
    {
        for why in [Dismissal::Dequeued, Dismissal::Superseded] {
            let case = format!("{why:?}, {learns:?}");
            let key = format!("k{n}{why:?}");
            let new = |of: usize, print: &str| bench.turn(of, &key, "id", print);
            let holder = bench.claim(&key, LEASE);
            bench.granted(&holder).await;
            let claim = new(1, "print");
            let AcquireReply::Waiting(ticket, _) = bench.wait(&claim, PATIENT).await else {
                panic!("{case}: the lock is busy");
            };
            bench.waits(&claim, true);
            let first = Waiter {
                claim,
                ticket,
                of: 1,
            };
            let expected = match why {
                Dismissal::Dequeued => {
                    let removed = bench.store(0).dequeue(&first.claim.key, first.claim.id);
                    assert!(removed.await.expect("the store answers"), "it waited");
                    AcquireReply::Dequeued
                }
                Dismissal::Superseded => {
                    let newest = bench.claim_of(2, &key, LEASE);
                    bench.wait(&newest, INTERRUPTING).await;
                    AcquireReply::Superseded
                }
            };
            // Before the turn has given its claim up, and after that.
            for gives_up in [false, true] {
                if gives_up {
                    match learns {
                        Learns::ByMessage => {
                            let once = first.claim.once.as_ref().expect("it has an id");
                            once.dismiss(why);
                        }
                        Learns::ByReply => assert_eq!(bench.ask_again(&first).await, expected),
                        Learns::Never => {}
                    }
                    // Twice, as if the first reply had got lost.
                    bench.withdraw(&first.claim).await;
                    bench.withdraw(&first.claim).await;
                }
                for request in [AcquireRequest::default(), waiting()] {
                    let reply = bench.try_with(&new(0, "print"), &request).await;
                    assert_eq!(reply, expected, "{case}, given up: {gives_up}");
                }
                let reply = bench.try_now(&new(0, "another")).await;
                assert_eq!(reply, AcquireReply::KeyReused, "{case}");
            }
        }
    }
}

async fn a_turn_that_is_interrupted_before_it_is_sent_leaves_that_to_its_repeats(
    bench: StoreSetup,
) {
    let first = bench.repeat(0);
    bench.granted(&first).await;
    let once = first.once.as_ref().expect("it has an id");
    once.dismiss(Dismissal::Superseded);
    assert!(bench.release(&first).await, "it had its lock");
    let reply = bench.both("it was interrupted").await;
    assert_eq!(reply, AcquireReply::Superseded);
    let sent = bench.turn(0, "k2", "id", "print");
    bench.granted(&sent).await;
    let once = sent.once.as_ref().expect("it has an id");
    once.dismiss(Dismissal::Superseded);
    bench.end(&sent).await;
    let reply = bench.try_now(&bench.turn(1, "k2", "id", "print")).await;
    assert_eq!(reply, repeated(&sent, RepeatedState::Ended), "it was sent");
}

async fn a_turn_whose_lock_is_lost_is_in_doubt_until_it_says_how_it_ended(bench: StoreSetup) {
    let lease = Duration::from_millis(300);
    let first = bench.turn_for(0, KEY, ("id", "print"), lease, KEEP);
    bench.granted(&first).await;
    sleep(lease + Duration::from_millis(20)).await;
    let reply = bench.both("the lease of the first turn is over").await;
    assert_eq!(reply, repeated(&first, RepeatedState::InDoubt));
    let other = bench.claim(KEY, LEASE);
    bench.granted(&other).await;
    let reply = bench.both("another turn has the lock").await;
    assert_eq!(reply, repeated(&first, RepeatedState::InDoubt));
    let reply = bench.try_now(&bench.turn(1, KEY, "id", "another")).await;
    assert_eq!(reply, AcquireReply::KeyReused);
    assert!(!bench.end(&first).await, "the first turn has no lock");
    let reply = bench.both("the first turn says that it has ended").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Ended));
    assert!(bench.release(&other).await, "the other turn has the lock");

    let first = bench.turn_for(0, KEY, ("new id", "print"), lease, KEEP);
    bench.granted(&first).await;
    sleep(lease + Duration::from_millis(20)).await;
    assert!(!bench.release(&first).await, "its lock is lost");
    let repeat = bench.turn(1, KEY, "new id", "print");
    // Its backend was sent nothing, so it is forgotten.
    bench.granted(&repeat).await;
}

async fn a_turn_whose_holder_is_dead_is_in_doubt(bench: StoreSetup) {
    let first = bench.repeat(0);
    bench.granted(&first).await;
    let request = |queue| AcquireRequest {
        take_over: Some(at_once(LockHolder::from(&first.token))),
        queue,
    };
    for queue in [None, Some(PATIENT)] {
        let reply = bench.try_with(&bench.repeat(1), &request(queue)).await;
        assert_eq!(reply, repeated(&first, RepeatedState::InDoubt));
    }
    let reply = bench.both("nobody has taken the lock over").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Runs));
    let other = bench.claim_of(1, KEY, LEASE);
    let reply = bench.try_with(&other, &request(None)).await;
    assert!(matches!(reply, AcquireReply::Granted(_)), "{reply:?}");
    let reply = bench.both("another turn has taken the lock over").await;
    assert_eq!(reply, repeated(&first, RepeatedState::InDoubt));
}

async fn commands_of_one_turn_may_be_repeated(bench: StoreSetup) {
    let first = bench.repeat(0);
    let fence = bench.granted(&first).await;
    assert!(fence < bench.granted(&first).await, "it is granted again");
    bench.end(&first).await;
    for _ in 0..2 {
        assert!(!bench.release(&first).await, "it was released before");
        let reply = bench.both("the release came again").await;
        assert_eq!(reply, repeated(&first, RepeatedState::Ended));
    }
    let other = bench.turn(0, KEY, "other", "print");
    bench.granted(&other).await;
    bench.release(&other).await;
    let next = bench.turn(0, KEY, "other", "print");
    bench.granted(&next).await;
    // The release of a turn that was forgotten comes again, while a repeat of it runs.
    assert!(!bench.release(&other).await);
    send(&other);
    assert!(!bench.release(&other).await);
    let repeat = bench.turn(1, KEY, "other", "print");
    let reply = bench.try_now(&repeat).await;
    assert_eq!(reply, repeated(&next, RepeatedState::Runs));
}

async fn a_turn_is_the_same_with_another_claim(bench: StoreSetup) {
    let holder = bench.holder(0).await;
    let first = bench.join_once(1, PATIENT).await;
    let once = first.claim.once.as_ref().expect("it has an id");
    let issuer = &bench.instances[1].issuer;
    let claim = issuer.issue(SessionKey::literal(KEY), "route", "request", LEASE);
    let claim = Arc::new(claim.with_once(Arc::clone(&once.turn)));
    let place = QueueOptions {
        ticket: Some(first.ticket),
        ..PATIENT
    };
    // Before and after the first claim is given up.
    for gives_up in [false, true] {
        if gives_up {
            bench.withdraw(&first.claim).await;
        }
        let reply = bench.wait(&claim, place).await;
        assert!(
            matches!(reply, AcquireReply::Waiting(ticket, _) if ticket == first.ticket),
            "the turn goes on with its new claim: {reply:?}"
        );
    }
    let reply = bench.both("the turn waits with its new claim").await;
    assert_eq!(reply, repeated(&claim, RepeatedState::Waits));
    bench.release(&holder).await;
    bench.granted(&claim).await;
    bench.withdraw(&first.claim).await;
    let reply = bench.both("the turn runs under its new claim").await;
    assert_eq!(reply, repeated(&claim, RepeatedState::Runs));
}

async fn a_turn_is_remembered_for_as_long_as_it_is_told(bench: StoreSetup) {
    let keep = Duration::from_millis(400);
    let first = bench.turn_for(0, KEY, ("id", "print"), LEASE, keep);
    bench.granted(&first).await;
    sleep(keep * 2).await;
    let reply = bench.both("the turn runs for longer than that").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Runs));
    bench.end(&first).await;
    let reply = bench.both("the turn has just ended").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Ended));
    sleep(keep).await;
    let second = bench.repeat(1);
    bench.granted(&second).await;
    bench.release(&second).await;
    bench.wait_until_no_keys().await;
}

async fn a_long_turn_is_remembered_while_its_lease_is_extended(bench: StoreSetup) {
    let (lease, keep) = (Duration::from_millis(600), Duration::from_millis(300));
    let first = bench.turn_for(0, KEY, ("id", "print"), lease, keep);
    bench.granted(&first).await;
    // Beside it, locks of other sessions without and with a record.
    let plain = bench.claim("k2", LEASE);
    let other = bench.turn(0, "k3", "id", "print");
    bench.granted(&plain).await;
    bench.granted(&other).await;
    let claims = [Arc::clone(&plain), Arc::clone(&first), other];
    for _ in 0..6 {
        sleep(lease / 3).await;
        assert_eq!(bench.extend(&claims).await, [true; 3], "all are extended");
    }
    let reply = bench.both("the turn runs").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Runs));
    let reply = bench.try_now(&bench.turn(1, "k3", "id", "print")).await;
    assert_eq!(reply, repeated(&claims[2], RepeatedState::Runs));
}

async fn of_many_repeats_at_once_one_is_granted(bench: StoreSetup) {
    let bench = Arc::new(bench);
    let mut repeats = JoinSet::new();
    for n in 0..100 {
        let bench = Arc::clone(&bench);
        repeats.spawn(async move {
            let claim = bench.repeat(n % 3);
            let request = if n % 2 == 0 {
                waiting()
            } else {
                AcquireRequest::default()
            };
            bench.try_with(&claim, &request).await
        });
    }
    let replies = repeats.join_all().await;
    let is_granted = |reply: &&AcquireReply| matches!(reply, AcquireReply::Granted(_));
    let granted = replies.iter().filter(is_granted).count();
    let is_refused = |reply: &&AcquireReply| matches!(reply, AcquireReply::Repeated(_));
    let refused = replies.iter().filter(is_refused).count();
    assert_eq!((granted, refused), (1, 99), "{replies:?}");
}

async fn a_repeat_is_told_how_busy_its_session_is(bench: StoreSetup) {
    let first = bench.repeat(0);
    let fence = bench.granted(&first).await;
    bench.join(1).await;
    let reply = bench.ask(&bench.repeat(2), &waiting()).await;
    let AcquireReply::Repeated(RepeatedTurn { session, .. }) = reply else {
        panic!("the first turn runs: {reply:?}");
    };
    let since = std::time::UNIX_EPOCH + Duration::from_micros(fence.0);
    assert_eq!((session.since, session.waiters), (Some(since), 1));
    assert!(session.age.is_some(), "by the store's clock");
}

// === Redis alone ===

/// The record of the turn with the id of most rules.
const RECORD: &str = "{k}:1:once:id";

#[tokio::test]
async fn a_record_of_another_type_is_replaced() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    redis.command(&["RPUSH", RECORD, "x"]).await;
    let first = bench.repeat(0);
    bench.granted(&first).await;
    let reply = bench.both("the first turn runs").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Runs));
    redis.command(&["DEL", RECORD]).await;
    redis.command(&["RPUSH", RECORD, "x"]).await;
    assert!(bench.end(&first).await, "the lock is released");
    let reply = bench.both("the first turn has ended").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Ended));
}

#[tokio::test]
async fn a_turn_ends_in_a_redis_whose_memory_is_full_and_no_new_one_begins() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let lost = bench.turn_for(0, "k2", ("id", "print"), LEASE, KEEP);
    let first = bench.repeat(0);
    bench.granted(&lost).await;
    bench.granted(&first).await;
    let waiter = {
        let claim = bench.turn(1, KEY, "other", "print");
        let AcquireReply::Waiting(ticket, _) = bench.wait(&claim, PATIENT).await else {
            panic!("the lock is busy");
        };
        bench.waits(&claim, true);
        Waiter {
            claim,
            ticket,
            of: 1,
        }
    };
    redis.command(&["DEL", "k2"]).await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert!(!bench.end(&lost).await, "its lock is lost");
    assert!(bench.end(&first).await, "the lock is released");
    let reply = bench.try_now(&bench.turn(1, "k2", "id", "print")).await;
    assert_eq!(reply, repeated(&lost, RepeatedState::Ended));
    let reply = bench.both("the first turn has ended").await;
    assert_eq!(reply, repeated(&first, RepeatedState::Ended));
    bench.take_up(&waiter).await;
    let reply = bench.try_now(&bench.turn(1, KEY, "other", "print")).await;
    assert_eq!(reply, repeated(&waiter.claim, RepeatedState::Runs));
    let new = bench.turn(0, "k3", "id", "print");
    for request in [AcquireRequest::default(), waiting()] {
        let reply = bench.store(0).acquire(&new, &request).await;
        let is_full =
            matches!(&reply, Err(StoreError::Refused { reason, .. }) if reason.starts_with("OOM"));
        assert!(is_full, "a new turn is refused: {reply:?}");
    }
    let left = redis.keys().await;
    let of_new = left.iter().filter(|key| key.contains("k3")).count();
    assert_eq!(of_new, 0, "nothing is left of it: {left:?}");
}
