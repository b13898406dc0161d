//! Generated histories: what turns of several instances do, in any order, with messages that get
//! lost, time that passes and instances that die; and what must be true all the same.

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

/// Of sessions and of instances there are so many; one more instance hears nothing, where both stores
/// are compared.
const SESSIONS: usize = 2;
const INSTANCES: usize = 3;

/// So few that it comes to be.
const MAX_WAITERS: u32 = 4;

/// How a turn asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Tries,
    Waits,
    Interrupts,
}

/// Something that happens. A number of a turn counts those that could do it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Comes {
        of: usize,
        to: usize,
        how: How,
    },
    AsksAgain(usize),
    /// Lets go of its lock, or leaves the line.
    Ends(usize),
    Extends(usize),
    /// An instance looks at its lines, and does what it finds out.
    Looks(usize),
    /// An instance acts on what it was told.
    Hears(usize),
    /// What an instance was told is lost, but for what is never sent twice.
    Misses(usize),
    /// A turn takes another one's for dead, rightly or not.
    TakesOver(usize, usize),
    /// An operator takes a turn's lock away by force.
    Forces(usize),
    /// Milliseconds go by.
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
        6 => (0..instances, to, how).prop_map(|(of, to, how)| Step::Comes { of, to, how }),
        3 => turn.clone().prop_map(Step::AsksAgain),
        4 => turn.clone().prop_map(Step::Ends),
        1 => turn.clone().prop_map(Step::Extends),
        1 => turn.clone().prop_map(Step::Forces),
        3 => (0..instances).prop_map(Step::Looks),
    ];
    let step = if timed {
        prop_oneof![
            16 => common,
            4 => (0..INSTANCES).prop_map(Step::Hears),
            1 => (0..INSTANCES).prop_map(Step::Misses),
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

/// Runs `check` on so many histories.
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
fn turns_never_overlap_nobody_is_passed_over_and_none_waits_for_ever() {
    explore(400, true, |steps| {
        runtime(true).block_on(async {
            let mut world = world::World::new();
            for step in steps {
                world.step(step).await;
            }
            world.comes_to_rest().await;
            Ok(())
        })
    });
}

#[test]
fn both_stores_give_the_same_answers() {
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
