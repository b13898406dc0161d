//! Tests that this process can lock turns: at its start, when a reload changes the keys of locks, and when the
//! store refuses a turn.
//!
//! Invariant: `/readyz` doesn't say ready before a test with every template of `lock.key` has worked. What
//! a test does is in `lock::self_test`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::config::Config;
use crate::key::KeyTemplate;
use crate::lock::{Instance, SelfTestError, StoreHealth, TestFailure};
use crate::reload::CurrentConfig;

/// The pause before a test that failed is tried again, and the shortest one between two tests for turns that
/// were refused. A second after the operator's remedy, the replica is ready.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Tests the keys of the configuration in force until they work, those that a reload changes, and all of them
/// when the store has refused a turn. Notes the results in `health`. Resolves when the process ends. Cancel-safe.
pub(super) async fn keep_tested(
    instance: Arc<Instance>,
    mut current: CurrentConfig,
    health: StoreHealth,
) {
    let mut working = Vec::new();
    let mut logged = None;
    loop {
        let wanted = wanted_tests(&current.borrow_and_update());
        let failed = test(&instance, &wanted, &working).await.err();
        let failure = failed.as_ref().map(|error| TestFailure {
            error: error.to_string(),
            was_answered: error.was_answered(),
        });
        health.tested(failure.map_or(Ok(()), Err));
        if let Some(error) = failed {
            report(&error, &mut logged);
            tokio::select! {
                changed = current.changed() => if changed.is_err() { return },
                () = sleep(RETRY_PAUSE) => {}
            }
            continue;
        }
        if logged.take().is_some() {
            tracing::info!("turns can be locked now");
        }
        working = wanted;
        let doubted = async {
            sleep(RETRY_PAUSE).await;
            health.doubted().await;
        };
        tokio::select! {
            changed = current.changed() => if changed.is_err() { return },
            () = doubted => working.clear(),
        }
    }
}

/// A key template that is tested, and whether answers are kept beside its locks.
type WantedTest = (KeyTemplate, bool);

/// The different templates of the locks of all routes.
fn wanted_tests(config: &Config) -> Vec<WantedTest> {
    let mut different = Vec::new();
    for template in config.lock_keys() {
        let test = (template.clone(), config.keeps_answers());
        if !different.contains(&test) {
            different.push(test);
        }
    }
    different
}

async fn test(
    instance: &Instance,
    wanted: &[WantedTest],
    working: &[WantedTest],
) -> Result<(), SelfTestError> {
    for test in wanted.iter().filter(|test| !working.contains(test)) {
        let (template, keeps_answers) = test;
        instance.self_test(template, *keeps_answers).await?;
    }
    Ok(())
}

/// Logs an error that the last test didn't have. That the store can't be reached, its connection logs.
fn report(error: &SelfTestError, logged: &mut Option<String>) {
    let cause = error.to_string();
    if !error.was_answered() || logged.as_ref() == Some(&cause) {
        return tracing::debug!(%error, "self-test failed; trying again");
    }
    tracing::error!(%error, "turns can't be locked");
    *logged = Some(cause);
}
