//! Whether this process can lock turns: whether the store answers it, and whether a test lock worked.
//!
//! The connections to the store, the heartbeat and the self-test write it; `/readyz` and `/status` read
//! it. A turn that the store refuses only asks for another self-test: perhaps its key alone is refused.
//! The metric follows it, and nothing reads the metric. What follows from it is decided in
//! `crate::admin`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::StoreError;
use crate::metrics::Metrics;

/// Whether this process can lock turns. Clones share one value.
#[derive(Clone, Debug)]
pub struct StoreHealth(Arc<HealthState>);

#[derive(Debug)]
struct HealthState {
    report: watch::Sender<HealthReport>,
    /// Notified when the store refuses a turn.
    doubted: Notify,
    metrics: Metrics,
}

/// What is known of the store.
#[derive(Debug, Default)]
struct HealthReport {
    is_up: bool,
    /// The last time without replies, which may be over; `None`: there was none.
    outage: Option<StoreOutage>,
    /// Why the last self-test failed, and since when self-tests fail; `None`: the last one worked.
    test_failure: Option<(TestFailure, Instant)>,
    /// Whether any self-test has ended.
    is_tested: bool,
    /// Whether any self-test has worked.
    has_worked: bool,
}

/// A time in which the store did not answer.
#[derive(Debug)]
struct StoreOutage {
    since: Instant,
    /// When the store answered again; `None`: not yet.
    until: Option<Instant>,
    /// The error of a connection; `None`: none has failed.
    error: Option<StoreError>,
}

/// Why a self-test failed.
#[derive(Clone, Debug)]
pub struct TestFailure {
    /// The error, in one line.
    pub error: String,
    /// Whether the store answered. Then the error says more than that of a heartbeat, which uses few of the
    /// commands that turns use.
    pub was_answered: bool,
}

/// Why turns can't be locked at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreProblem {
    /// The last error, in one line.
    pub error: String,
    /// For how long it has been so; `None`: since the process began.
    pub lasts: Option<Duration>,
}

/// An outage that begins so soon after another one is the same: a store that accepts connections and no
/// commands is up for a moment after each attempt to connect.
const SAME_OUTAGE: Duration = Duration::from_secs(5);

// === impl StoreHealth ===

impl StoreHealth {
    /// The health of a store that is up or not to begin with. Each change is counted in `metrics`.
    pub fn new(is_up: bool, metrics: &Metrics) -> Self {
        let health = Self(Arc::new(HealthState {
            report: watch::Sender::default(),
            doubted: Notify::new(),
            metrics: metrics.clone(),
        }));
        health.set(is_up);
        health
    }

    /// Notes whether the store has just answered.
    pub fn set(&self, is_up: bool) {
        self.note(is_up, None);
    }

    /// Notes that the store has just not answered, and why.
    pub fn failed(&self, error: StoreError) {
        self.note(false, Some(error));
    }

    fn note(&self, is_up: bool, error: Option<StoreError>) {
        let now = Instant::now();
        self.0.report.send_modify(|report| {
            report.is_up = is_up;
            let outage = &mut report.outage;
            if is_up {
                if let Some(outage) = outage {
                    outage.until.get_or_insert(now);
                    outage.error = None;
                }
                return;
            }
            outage.take_if(|outage| outage.is_over(now));
            let outage = outage.get_or_insert(StoreOutage {
                since: now,
                until: None,
                error: None,
            });
            outage.until = None;
            outage.error = error.or(outage.error.take());
        });
        self.0.metrics.store_is_up(is_up);
    }

    /// Notes the result of a self-test: whether a lock could be taken, kept and released.
    pub fn tested(&self, result: Result<(), TestFailure>) {
        let now = Instant::now();
        self.0.report.send_modify(|report| {
            report.is_tested = true;
            report.has_worked |= result.is_ok();
            let since = report.test_failure.as_ref().map(|(_, since)| *since);
            let failure = result.err();
            report.test_failure = failure.map(|failure| (failure, since.unwrap_or(now)));
        });
    }

    /// Notes that the store has refused a turn. A self-test finds out whether it refuses all turns.
    pub fn doubt(&self) {
        self.0.doubted.notify_one();
    }

    /// Waits until the store has refused a turn since the last call. Cancel-safe.
    pub async fn doubted(&self) {
        self.0.doubted.notified().await;
    }

    /// Waits until the first self-test has ended. Cancel-safe.
    pub async fn wait_until_tested(&self) {
        let mut report = self.0.report.subscribe();
        // The sender lives as long as `self`.
        let _ = report.wait_for(|report| report.is_tested).await;
    }

    /// Whether the store answered when it was last asked.
    pub fn is_up(&self) -> bool {
        self.0.report.borrow().is_up
    }

    /// Why turns can't be locked at the moment; `None`: they can. `heartbeat` is the error of the last
    /// heartbeat, if it failed.
    pub fn problem(&self, heartbeat: Option<&StoreError>) -> Option<StoreProblem> {
        let report = self.0.report.borrow();
        // A connection may be there again, and its first heartbeat not yet.
        let is_on = |outage: &&StoreOutage| {
            !report.is_up || (heartbeat.is_some() && !outage.is_over(Instant::now()))
        };
        let outage = report.outage.as_ref().filter(is_on);
        let failure = report.test_failure.as_ref();
        let (tested, since_test) = failure.map(|(failure, since)| (failure, *since)).unzip();
        let answered = tested.filter(|tested| tested.was_answered);
        let connection = outage.and_then(|outage| outage.error.as_ref());
        // A test that fails is repeated soon, and names what its error is about.
        let error = answered.map(|tested| tested.error.clone());
        let error = error.or_else(|| connection.map(ToString::to_string));
        let error = error.or_else(|| heartbeat.map(ToString::to_string));
        let error = error.or_else(|| tested.map(|tested| tested.error.clone()));
        let error = error.or_else(|| outage.map(|_| "the store does not answer".into()));
        let not_yet = || (!report.is_tested).then(|| "no lock could be taken yet".into());
        let error = error.or_else(not_yet)?;
        let since = outage.map(|outage| outage.since);
        let since = since.into_iter().chain(since_test).min();
        Some(StoreProblem {
            error,
            lasts: report
                .has_worked
                .then(|| since.map_or(Duration::ZERO, |since| since.elapsed())),
        })
    }
}

// === impl StoreOutage ===

impl StoreOutage {
    /// Whether the store has answered for so long that the next failure begins another outage.
    fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now - until > SAME_OUTAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn unreachable(reason: &str) -> StoreError {
        StoreError::NotSent {
            store: "redis:6379/0".into(),
            reason: reason.into(),
        }
    }

    fn failure(error: &str, was_answered: bool) -> Result<(), TestFailure> {
        let error = error.into();
        Err(TestFailure {
            error,
            was_answered,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_problem_has_its_last_error_and_the_time_since_it_began() {
        crate::time_limit::limit_this_test();
        let health = StoreHealth::new(false, &Metrics::new());
        let problem = || health.problem(None).expect("turns can't be locked");
        health.failed(unreachable("refused"));
        health.tested(failure("no heartbeat", false));
        tokio::time::advance(SECOND).await;
        assert_eq!(problem().lasts, None, "it has never worked");
        assert!(problem().error.ends_with("refused"), "{:?}", problem());
        health.set(true);
        health.tested(Ok(()));
        assert_eq!(health.problem(None), None, "now it works");
        tokio::time::advance(SECOND * 60).await;
        health.failed(unreachable("refused"));
        tokio::time::advance(SECOND * 3).await;
        // The heartbeat knows no error of the connection.
        health.set(false);
        assert_eq!(problem().lasts, Some(SECOND * 3), "since the first failure");
        assert!(problem().error.ends_with("refused"), "{:?}", problem());
        health.set(true);
        assert_eq!(health.problem(None), None, "the store answers");
        tokio::time::advance(SECOND).await;
        health.failed(unreachable("read only"));
        assert_eq!(problem().lasts, Some(SECOND * 4), "the same outage goes on");
        assert!(problem().error.ends_with("read only"), "{:?}", problem());
        health.set(true);
        tokio::time::advance(SECOND * 60).await;
        health.tested(failure("denied", true));
        tokio::time::advance(SECOND).await;
        health.tested(failure("still denied", true));
        let expected = StoreProblem {
            error: "still denied".into(),
            lasts: Some(SECOND),
        };
        assert_eq!(problem(), expected, "a test that fails is a problem, too");
        health.set(false);
        let refused = unreachable("refused");
        let told = health.problem(Some(&refused)).expect("a problem");
        assert_eq!(told.error, "still denied", "the store's answer says most");
        health.tested(failure("not tested", false));
        let told = health.problem(Some(&refused)).expect("a problem");
        assert!(
            told.error.ends_with("refused"),
            "else the heartbeat's error"
        );
        health.set(true);
        health.tested(Ok(()));
        assert_eq!(health.problem(None), None, "until one works");
    }
}
