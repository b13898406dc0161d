//! What has happened in this process lately, for whoever looks at it: the last refusals and losses,
//! one by one, and how much there was of everything, step by step.
//!
//! Invariant: both are bounded, and a request that went well writes nothing in here.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};

use crate::key::SessionKey;
use crate::metrics::{Metrics, Totals};
use crate::outcome::Outcome;

/// What is remembered. Cheap to clone.
#[derive(Clone, Default)]
pub struct Journal(Arc<JournalState>);

#[derive(Default)]
struct JournalState {
    notable: Mutex<VecDeque<JournalEvent>>,
    samples: Mutex<VecDeque<JournalSample>>,
}

/// A request that was refused, or lost its lock.
#[derive(Clone, Debug)]
pub struct JournalEvent {
    /// When it ended, by this machine's clock.
    pub at: SystemTime,
    /// How it ended.
    pub outcome: Outcome,
    /// What its client was answered, if it was.
    pub status: Option<u16>,
    /// The route that took it.
    pub route: Option<Box<str>>,
    /// Its session's lock, if it came so far.
    pub key: Option<SessionKey>,
    /// Its id; empty for what was no request.
    pub request_id: String,
    /// For how long it asked for its lock.
    pub wait: Option<Duration>,
    /// What the operator should know of it.
    pub error: Option<String>,
}

/// How much there was in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalSample {
    /// The step's end, by this machine's clock.
    pub at: SystemTime,
    /// Turns that began.
    pub turns: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Locks that were lost by running turns.
    pub lost: u64,
    /// Turns that went to stand in line.
    pub waited: u64,
    /// The longest wait in line that ended, in ms.
    pub longest_wait: u64,
    /// Locks that were held at the step's end.
    pub held: i64,
    /// Turns that waited in line at the step's end.
    pub waiting: i64,
}

/// How many refusals and losses are remembered: as many as a person reads.
const NOTABLE: usize = 100;

/// How long a step is.
pub const STEP: Duration = Duration::from_secs(10);

/// How many steps are remembered: a quarter of an hour, which is how long ago things happen that
/// somebody comes to ask about; what was before is the monitoring system's to know.
const STEPS: usize = 90;

// === impl Journal ===

impl Journal {
    /// Writes down a request that was refused, or lost its lock.
    pub fn note(&self, notable: JournalEvent) {
        let mut notables = lock(&self.0.notable);
        if notables.len() == NOTABLE {
            notables.pop_front();
        }
        notables.push_back(notable);
    }

    /// The last refusals and losses, the newest first.
    pub fn notable(&self) -> Vec<JournalEvent> {
        lock(&self.0.notable).iter().rev().cloned().collect()
    }

    /// The last steps, the oldest first.
    pub fn samples(&self) -> Vec<JournalSample> {
        lock(&self.0.samples).iter().copied().collect()
    }

    /// Takes a sample at the end of every step, for ever. What there was before this is first polled
    /// is in none.
    pub async fn keep(self, metrics: Metrics) {
        let mut steps = interval(STEP);
        // A process that was stopped for a while has one long step, and not many empty ones.
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        steps.tick().await;
        let mut before = metrics.totals();
        metrics.take_longest_wait();
        loop {
            steps.tick().await;
            let now = metrics.totals();
            let longest_wait = metrics.take_longest_wait();
            self.sample(JournalSample::between(before, now, longest_wait));
            before = now;
        }
    }

    fn sample(&self, sample: JournalSample) {
        let mut samples = lock(&self.0.samples);
        if samples.len() == STEPS {
            samples.pop_front();
        }
        samples.push_back(sample);
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

// === impl Sample ===

impl JournalSample {
    fn between(before: Totals, now: Totals, longest_wait: u64) -> Self {
        Self {
            at: SystemTime::now(),
            turns: now.turns.saturating_sub(before.turns),
            refused: now.refused.saturating_sub(before.refused),
            lost: now.lost.saturating_sub(before.lost),
            waited: now.waited.saturating_sub(before.waited),
            longest_wait,
            held: now.held,
            waiting: now.waiting,
        }
    }
}

fn lock<T>(pages: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics while holding it; a poisoned lock is as good as any.
    pages.lock().unwrap_or_else(PoisonError::into_inner)
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
        let ids: Vec<_> = journal
            .notable()
            .into_iter()
            .map(|n| n.request_id)
            .collect();
        let expected: Vec<_> = (150..250).rev().map(|number| number.to_string()).collect();
        assert_eq!(ids, expected, "the last hundred, whatever came before");
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_holds_what_there_was_in_it() {
        let (journal, metrics) = (Journal::default(), Metrics::new());
        let routes = metrics.routes(["chat"].into_iter());
        let chat = routes.route(Some(0));
        chat.turn_began();
        let keeping = tokio::spawn(journal.clone().keep(metrics.clone()));
        tokio::time::sleep(STEP / 2).await;
        chat.turn_began();
        chat.request_ended(Outcome::SessionBusy, RequestTimes::default());
        chat.request_ended(Outcome::Complete, RequestTimes::default());
        metrics.lost(LockLoss::Expired);
        drop(metrics.waiting());
        let (_held, _waiting) = (metrics.holding(), metrics.waiting());
        tokio::time::sleep(STEP * 2).await;
        keeping.abort();
        let samples = journal.samples();
        assert_eq!(samples.len(), 2, "one for each step");
        let JournalSample {
            at, longest_wait, ..
        } = samples[0];
        let expected = JournalSample {
            at,
            turns: 1,
            refused: 1,
            lost: 1,
            waited: 2,
            longest_wait,
            held: 1,
            waiting: 1,
        };
        assert_eq!(samples[0], expected, "what began before isn't in it");
        let quiet = JournalSample {
            at: samples[1].at,
            turns: 0,
            refused: 0,
            lost: 0,
            waited: 0,
            longest_wait: 0,
            held: 1,
            waiting: 1,
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
