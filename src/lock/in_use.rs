//! Whether a turn still runs under a lock: the question to a holder's instance, and its answer.
//!
//! A lock may come back after its release: Redis restarts from an older snapshot, or a replica without the
//! release becomes the master. Its instance is alive, so nobody takes it over. Only that instance knows that no
//! turn runs under it. So whoever finds a session busy asks the holder's instance now and then, and an instance
//! that is asked about a claim that it doesn't know any more withdraws it.
//!
//! A turn of this process may run when the lock of an earlier one comes back, or is written over its own. It has
//! lost its lock then, and doesn't know it yet.
//!
//! Invariant: only a claim of this process whose registration is gone is withdrawn, by its own token, and only
//! when no turn of this process runs in its session. A question is a message and may get lost, so it is repeated
//! for as long as somebody finds the session busy.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::registry::ClaimRegistry;
use super::{
    ClaimId, ClaimIssuer, LockHolder, Message, StopSender, Store, StoreError, StoreFuture,
};
use crate::key::SessionKey;

/// Asks other instances whether their locks are in use.
#[derive(Debug)]
pub(super) struct UseInquiry {
    store: Arc<dyn Store>,
    issuer: Arc<ClaimIssuer>,
    /// The claims of this process.
    registry: ClaimRegistry,
    /// Where questions about claims of this process go.
    questions: QuestionSender,
    /// When each claim was last asked about.
    asked: Mutex<HashMap<ClaimId, Instant>>,
}

/// A question about a claim of this process that has no turn any more.
#[derive(Debug)]
pub(super) struct UseQuestion {
    id: ClaimId,
    key: SessionKey,
}

/// A question of another instance, or of this one.
#[derive(Debug)]
pub(super) enum Question {
    /// Whether a claim of this process is in use.
    IsUsed(UseQuestion),
    /// Whether a turn stops, and that it does.
    Stops(StopSender, bool),
}

/// Passes questions from the messages to the task that answers them. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct QuestionSender(mpsc::Sender<Question>);

/// How often a claim is asked about at most, however many turns find its session busy.
const INTERVAL: Duration = Duration::from_secs(1);

/// How many claims are remembered: 200 KB of memory. One more clears the table, so a claim may then be asked about
/// in every round.
const MAX_ASKED: usize = 4096;

/// How many questions wait for an answer at most. What is dropped is asked again.
const MAX_QUESTIONS: usize = 1024;

// === impl UseInquiry ===

impl UseInquiry {
    /// An inquiry by the turns of the issuer's instance.
    pub(super) fn new(
        store: Arc<dyn Store>,
        issuer: Arc<ClaimIssuer>,
        registry: ClaimRegistry,
        questions: QuestionSender,
    ) -> Self {
        Self {
            store,
            issuer,
            registry,
            questions,
            asked: Mutex::default(),
        }
    }

    /// Asks the holder's instance whether it still uses the lock. `None`: it was asked a moment ago, is this
    /// process, has another prefix and so would get no message, or isn't Seriatim.
    pub(super) fn ask(&self, key: &SessionKey, holder: &LockHolder) -> Option<StoreFuture<bool>> {
        let turn = holder.turn()?;
        let is_own = turn.id.epoch == self.issuer.epoch();
        if is_own || !turn.shares_prefix(&self.issuer) || !self.is_due(turn.id, Instant::now()) {
            return None;
        }
        let question = Message::InUse(turn.id, key.clone());
        Some(self.store.send_message(&turn.instance, question))
    }

    /// Whether the holder is a claim of this process that has no turn, although another turn of this process runs
    /// in the session. Then nobody takes the lock over before the store has been asked which of them it has.
    pub(super) fn is_doubtful(&self, key: &SessionKey, holder: &LockHolder) -> bool {
        let turn = holder.turn();
        let Some(turn) = turn.filter(|turn| self.registry.is_abandoned(turn.id)) else {
            return false;
        };
        let is_doubtful = !self.registry.running(key).is_empty();
        if is_doubtful {
            self.questions.add(turn.id, key.clone());
        }
        is_doubtful
    }

    /// Whether this claim may be asked about at `now`. Notes that it is.
    fn is_due(&self, id: ClaimId, now: Instant) -> bool {
        let mut asked = self.asked.lock();
        if asked.get(&id).is_some_and(|at| now < *at + INTERVAL) {
            return false;
        }
        if asked.len() >= MAX_ASKED {
            asked.clear();
        }
        asked.insert(id, now);
        true
    }
}

// === impl QuestionSender ===

impl QuestionSender {
    /// A sender of questions, and the receiver for the task that answers them.
    pub(super) fn channel() -> (Self, mpsc::Receiver<Question>) {
        let (sender, receiver) = mpsc::channel(MAX_QUESTIONS);
        (Self(sender), receiver)
    }

    /// Adds a question about a claim that this process has abandoned.
    pub(super) fn add(&self, id: ClaimId, key: SessionKey) {
        // It is dropped while too many wait, or while the process stops.
        let _ = self.0.try_send(Question::IsUsed(UseQuestion { id, key }));
    }

    /// Replies to a request to stop a turn of this process.
    pub(super) fn reply_to(&self, sender: StopSender, stops: bool) {
        // As with the other questions: the sender asks again.
        let _ = self.0.try_send(Question::Stops(sender, stops));
    }
}

// === the task ===

/// Answers questions, and withdraws the claims of this process that are asked about and have no turn. If another turn runs in the session
/// of such a claim, that turn is stopped first, and the claim is withdrawn after a later question. Ends with the
/// last sender.
pub(super) async fn answer_questions(
    store: Arc<dyn Store>,
    issuer: Arc<ClaimIssuer>,
    registry: ClaimRegistry,
    mut questions: mpsc::Receiver<Question>,
) {
    while let Some(question) = questions.recv().await {
        let question = match question {
            Question::IsUsed(question) => question,
            Question::Stops(StopSender { id, instance }, stops) => {
                let reply = if stops {
                    Message::Stops
                } else {
                    Message::GoesOn
                };
                if let Err(error) = store.send_message(&instance, reply(id)).await {
                    tracing::debug!(%error, "whether a turn stops isn't told to who asked");
                }
                continue;
            }
        };
        if !registry.is_abandoned(question.id) {
            continue;
        }
        match withdraw(&*store, &issuer, &registry, &question).await {
            Ok(true) => tracing::info!(
                key = %question.key.redacted(),
                "lock released again: the store had it although its turn was over"
            ),
            // Its release was on its way when another instance asked.
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "unused lock not released yet"),
        }
    }
}

/// Frees the lock of the claim if the claim holds it; gives whether it did. Frees nothing while another turn of
/// this process runs in the session: if the claim holds the lock, that turn doesn't.
async fn withdraw(
    store: &dyn Store,
    issuer: &ClaimIssuer,
    registry: &ClaimRegistry,
    question: &UseQuestion,
) -> Result<bool, StoreError> {
    // Before the store is asked: a turn that gets the lock after that has lost nothing.
    let running = registry.running(&question.key);
    let found = store.inspect(std::slice::from_ref(&question.key), false);
    let holder = found.await?.pop().and_then(|lock| lock.holder);
    let is_asked = |holder: &LockHolder| holder.turn().is_some_and(|turn| turn.id == question.id);
    let Some(holder) = holder.filter(is_asked) else {
        return Ok(false);
    };
    if !running.is_empty() {
        for state in running.iter().filter(|state| !state.is_lost()) {
            tracing::warn!(
                key = %question.key.redacted(),
                "lock lost: the store has the lock of an earlier turn in its place"
            );
            state.lose();
        }
        return Ok(false);
    }
    let claim = issuer.reissue(question.key.clone(), question.id, holder.as_str());
    store.release(&claim).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Epoch;
    use crate::lock::memory::MemoryStore;

    fn inquiry() -> UseInquiry {
        let issuer = ClaimIssuer::new("pod-1", Epoch(1), true);
        let registry = ClaimRegistry::new(issuer.epoch());
        let (questions, _) = QuestionSender::channel();
        let store = Arc::new(MemoryStore::new());
        UseInquiry::new(store, Arc::new(issuer), registry, questions)
    }

    fn holder(epoch: u64) -> LockHolder {
        let issuer = ClaimIssuer::new("pod-2", Epoch(epoch), true);
        let claim = issuer.issue(SessionKey::literal("k"), "chat", "r", INTERVAL);
        LockHolder::from(&claim.token)
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_is_asked_at_once_and_then_once_per_interval() {
        crate::time_limit::limit_this_test();
        let (inquiry, key) = (inquiry(), SessionKey::literal("k"));
        let is_asked = |epoch| inquiry.ask(&key, &holder(epoch)).is_some();
        assert!(is_asked(2), "the first time at once");
        assert!(!is_asked(2), "not again within the interval");
        assert!(is_asked(3), "another holder has its own interval");
        tokio::time::advance(INTERVAL).await;
        assert!(is_asked(2), "again after the interval");
        assert!(!is_asked(1), "a process doesn't ask itself");
        let foreign = inquiry.ask(&key, &LockHolder::new("0b7e"));
        assert!(foreign.is_none(), "another program can't be asked");
        let issuer = ClaimIssuer::new("pod-2", Epoch(4), true).with_prefix("staging:");
        let claim = issuer.issue(key.clone(), "chat", "r", INTERVAL);
        let elsewhere = inquiry.ask(&key, &LockHolder::from(&claim.token));
        assert!(
            elsewhere.is_none(),
            "an instance with another prefix gets no message"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_of_questions_is_bounded() {
        crate::time_limit::limit_this_test();
        let inquiry = inquiry();
        let now = Instant::now();
        let id = |number| ClaimId {
            epoch: Epoch(2),
            number,
        };
        let most = MAX_ASKED as u64;
        assert!((0..most).all(|number| inquiry.is_due(id(number), now)));
        assert!(!inquiry.is_due(id(0), now), "all of them are remembered");
        assert!(inquiry.is_due(id(most), now), "one more is asked about too");
        assert_eq!(inquiry.asked.lock().len(), 1, "the others are forgotten");
    }
}
