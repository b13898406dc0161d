//! Generated histories: steps of turns of several instances in any order, with lost messages,
//! passing time and dying instances; and the rules that must always hold.

use std::cell::Cell;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use seriatim::lock::{QueueOptions, Ticket};
use tokio::runtime::{Builder, Runtime};

use crate::store_contract::StoreSetup;
use crate::support::redis::Redis;

mod sides;
mod world;

/// The number of sessions and of instances. One more instance gets no messages, where both stores are
/// are compared.
const SESSIONS: usize = 2;
const INSTANCES: usize = 3;

/// Few enough for the limit to be reached.
const MAX_WAITERS: u32 = 4;

/// How a turn requests its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Tries,
    Waits,
    Interrupts,
}

/// One step of a history. The number of a turn counts the turns that can take the step.
#[derive(Clone, Copy, Debug)]
enum Step {
    Arrives {
        of: usize,
        to: usize,
        how: How,
    },
    Retries(usize),
    /// A turn releases its lock, or leaves the queue.
    Ends(usize),
    Extends(usize),
    /// An instance watches its queues and acts on the result.
    Watches(usize),
    /// An instance acts on its messages.
    Receives(usize),
    /// The messages of an instance are lost, except those that are never sent twice.
    LosesMessages(usize),
    /// A turn treats another turn's holder as dead, rightly or not.
    TakesOver(usize, usize),
    /// An operator force releases a turn's lock.
    ForceReleases(usize),
    /// Milliseconds pass.
    Passes(u64),
    Dies(usize),
}

fn steps(timed: bool) -> impl Strategy<Value = Vec<Step>> {
    let how = prop_oneof![
        1 => Just(How::Tries),
        5 => Just(How::Waits),
        1 => Just(How::Interrupts),
    ];
    let instances = if timed { INSTANCES } else { INSTANCES + 1 };
    let (to, turn) = (0..SESSIONS, 0..64_usize);
    let common = prop_oneof![
        6 => (0..instances, to, how).prop_map(|(of, to, how)| Step::Arrives { of, to, how }),
        3 => turn.clone().prop_map(Step::Retries),
        4 => turn.clone().prop_map(Step::Ends),
        1 => turn.clone().prop_map(Step::Extends),
        1 => turn.clone().prop_map(Step::ForceReleases),
        3 => (0..instances).prop_map(Step::Watches),
    ];
    let step = if timed {
        prop_oneof![
            16 => common,
            4 => (0..INSTANCES).prop_map(Step::Receives),
            1 => (0..INSTANCES).prop_map(Step::LosesMessages),
            5 => (1..1500_u64).prop_map(Step::Passes),
            1 => (1500..7000_u64).prop_map(Step::Passes),
            1 => (0..INSTANCES).prop_map(Step::Dies),
        ]
        .boxed()
    } else {
        let takes_over = (turn.clone(), turn).prop_map(|(who, whom)| Step::TakesOver(who, whom));
        prop_oneof![16 => common, 1 => takes_over].boxed()
    };
    prop::collection::vec(step, 1..80)
}

/// Runs `check` on `cases` histories.
fn explore(cases: u32, timed: bool, check: impl Fn(Vec<Step>) -> Result<(), String>) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let explored = TestRunner::new(config).run(&steps(timed), |steps| {
        check(steps).map_err(TestCaseError::fail)
    });
    if let Err(found) = explored {
        panic!("{found}");
    }
}

fn place(how: How, ticket: Option<Ticket>) -> Option<QueueOptions> {
    (how != How::Tries).then_some(QueueOptions {
        ticket,
        max_waiters: MAX_WAITERS,
        interrupts: how == How::Interrupts,
    })
}

fn runtime(paused: bool) -> Runtime {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(paused).build();
    runtime.expect("a runtime")
}

#[test]
fn turns_never_overlap_are_served_in_order_and_never_wait_for_ever() {
    explore(400, true, |steps| {
        runtime(true).block_on(async {
            let mut world = world::World::new();
            for step in steps {
                world.step(step).await;
            }
            world.run_to_completion().await;
            Ok(())
        })
    });
}

#[test]
fn both_stores_give_the_same_replies() {
    let runtime = runtime(false);
    let (redis, memory, on_redis) = runtime.block_on(async {
        let redis = Arc::new(Redis::start().await);
        let on_redis = StoreSetup::on_redis(&redis).await;
        (redis, StoreSetup::in_memory(), on_redis)
    });
    let cases = Cell::new(0);
    explore(24, false, |steps| {
        cases.set(cases.get() + 1);
        runtime.block_on(sides::compare(&memory, &on_redis, cases.get(), &steps))
    });
    drop(redis);
}
