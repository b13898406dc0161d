//! What has happened in this process lately, for the operator's page: the last refusals and lost locks,
//! and a sample of the totals for each step of time.
//!
//! Invariant: both lists are bounded. A request that went well writes nothing here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use crate::key::SessionKey;
use crate::metrics::{Metrics, Totals};
use crate::outcome::Outcome;

/// The recent events and samples of the process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<JournalState>);

#[derive(Debug, Default)]
struct JournalState {
    events: Mutex<VecDeque<JournalEvent>>,
    samples: Mutex<VecDeque<JournalSample>>,
}

/// A request that was refused or lost its lock.
#[derive(Clone, Debug)]
pub struct JournalEvent {
    /// When the request ended, by this machine's clock.
    pub at: SystemTime,
    /// How the request ended.
    pub outcome: Outcome,
    /// The status of the response; `None`: there was none.
    pub status: Option<u16>,
    /// The name of the request's route; `None`: no route took it.
    pub route: Option<Box<str>>,
    /// The request's session; `None`: it was not read.
    pub key: Option<SessionKey>,
    /// The request's id; empty for bytes that were no request.
    pub request_id: String,
    /// For how long the request waited for its lock; `None`: it did not ask for one.
    pub wait: Option<Duration>,
    /// What went wrong; `None`: the outcome says it all.
    pub error: Option<String>,
}

/// What was counted in one step of [`STEP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalSample {
    /// The end of the step, by this machine's clock.
    pub at: SystemTime,
    /// What was counted in the step, and the locks held and the turns waiting at its end.
    pub counts: Totals,
    /// The longest wait that ended, in milliseconds.
    pub longest_wait: u64,
}

/// How many events are kept: as many as a person reads.
const EVENTS: usize = 100;

/// The time between two samples.
pub const STEP: Duration = Duration::from_secs(10);

/// How many samples are kept: a quarter of an hour. The monitoring system has older ones.
const STEPS: usize = 90;

// === impl Journal ===

impl Journal {
    /// Adds a request that was refused or lost its lock.
    pub fn note(&self, event: JournalEvent) {
        let mut events = self.0.events.lock();
        if events.len() == EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// The last refusals and lost locks, the newest first.
    pub fn events(&self) -> Vec<JournalEvent> {
        self.0.events.lock().iter().rev().cloned().collect()
    }

    /// The last samples, the oldest first.
    pub fn samples(&self) -> Vec<JournalSample> {
        self.0.samples.lock().iter().copied().collect()
    }

    /// Takes a sample at the end of every step, and never returns. What was counted before the first
    /// poll is in no sample.
    pub async fn keep(self, metrics: Metrics) {
        let mut steps = interval(STEP);
        // A process that was suspended has one long step, and not many empty ones.
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        steps.tick().await;
        let mut before = metrics.totals();
        metrics.take_longest_wait();
        loop {
            steps.tick().await;
            let now = metrics.totals();
            self.sample(JournalSample {
                at: SystemTime::now(),
                counts: now.since(before),
                longest_wait: metrics.take_longest_wait(),
            });
            before = now;
        }
    }

    fn sample(&self, sample: JournalSample) {
        let mut samples = self.0.samples.lock();
        if samples.len() == STEPS {
            samples.pop_front();
        }
        samples.push_back(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::RequestTimes;
    use crate::outcome::LockLoss;

    fn refused(number: usize) -> JournalEvent {
        JournalEvent {
            at: SystemTime::UNIX_EPOCH,
            outcome: Outcome::SessionBusy,
            status: Some(429),
            route: None,
            key: None,
            request_id: number.to_string(),
            wait: None,
            error: None,
        }
    }

    #[test]
    fn the_newest_are_remembered_and_come_first() {
        let journal = Journal::default();
        (0..250).for_each(|number| journal.note(refused(number)));
        let ids: Vec<_> = journal.events().into_iter().map(|n| n.request_id).collect();
        let expected: Vec<_> = (150..250).rev().map(|number| number.to_string()).collect();
        assert_eq!(ids, expected, "the last hundred, whatever came before");
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_holds_what_there_was_in_it() {
        crate::time_limit::limit_this_test();
        let (journal, metrics) = (Journal::default(), Metrics::new());
        let routes = metrics.routes(["chat"].into_iter());
        let chat = routes.route(Some(0));
        chat.turn_began();
        let keeping = tokio::spawn(journal.clone().keep(metrics.clone()));
        tokio::time::sleep(STEP / 2).await;
        chat.turn_began();
        chat.request_ended(Outcome::SessionBusy, RequestTimes::default());
        chat.request_ended(Outcome::Complete, RequestTimes::default());
        chat.request_ended(Outcome::NoSession, RequestTimes::default());
        metrics.lost(LockLoss::Expired);
        drop(metrics.waiting());
        let (_held, _waiting) = (metrics.holding(), metrics.waiting());
        tokio::time::sleep(STEP * 2).await;
        keeping.abort();
        let samples = journal.samples();
        assert_eq!(samples.len(), 2, "one for each step");
        let mut counts = Totals {
            turns: 1,
            no_session: 1,
            refused: 1,
            lost: 1,
            waited: 2,
            held: 1,
            waiting: 1,
        };
        assert_eq!(samples[0].counts, counts, "what began before isn't in it");
        (counts.turns, counts.no_session) = (0, 0);
        (counts.refused, counts.lost, counts.waited) = (0, 0, 0);
        let quiet = JournalSample {
            at: samples[1].at,
            counts,
            longest_wait: 0,
        };
        assert_eq!(samples[1], quiet, "what is still held and waits is");
        tokio::task::yield_now().await;
        for _ in 0..2 * STEPS {
            journal.sample(quiet);
        }
        assert_eq!(
            journal.samples().len(),
            STEPS,
            "and no more of them than that"
        );
    }
}
