//! Answers that the requests of all replicas can read, through the store.
//!
//! The process that serves a turn has its answer in memory, and a keeper writes it to the store. Any other process has a
//! follower, which reads it from there. Invariant: a store that keeps no answers is never asked.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::entry::{EntryCodec, EntryError};
use super::follower::AnswerFollower;
use super::keeper::AnswerKeeper;
use super::{Answer, AnswerReader, AnswerWriter, Answers, SharingOptions};
use crate::key::SessionKey;
use crate::lock::{ClaimId, ClaimIssuer, Epoch, LockHolder, Store};

/// The answers of one worker's turns, and those of other replicas. Cheap to clone: clones share them.
#[derive(Clone)]
pub struct SharedAnswers(Arc<SharedState>);

struct SharedState {
    answers: Answers,
    issuer: Arc<ClaimIssuer>,
    /// `None`: this process shares its answers with no other.
    connect: Option<ConnectAnswers>,
    /// A connection of its own, so that large answers delay no command about a lock. Made when it is needed first.
    store: OnceLock<Arc<dyn Store>>,
    keepers: TaskTracker,
    /// Whether it was logged that an answer of another replica can't be read.
    has_warned: AtomicBool,
}

type ConnectAnswers = Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>;

// === impl SharedAnswers ===

impl SharedAnswers {
    /// The answers of a process, and those in the store that `connect` connects to when it is needed first, on the
    /// runtime of that call. The answers of this process's turns have ids by `issuer`.
    pub fn new(
        answers: Answers,
        issuer: Arc<ClaimIssuer>,
        connect: impl Fn() -> Arc<dyn Store> + Send + Sync + 'static,
    ) -> Self {
        Self::with_store(answers, issuer, Some(Box::new(connect)))
    }

    /// The answers of a process that shares them with no other.
    pub fn in_memory(answers: Answers) -> Self {
        let issuer = ClaimIssuer::new("", Epoch(0), false);
        Self::with_store(answers, Arc::new(issuer), None)
    }

    fn with_store(
        answers: Answers,
        issuer: Arc<ClaimIssuer>,
        connect: Option<ConnectAnswers>,
    ) -> Self {
        Self(Arc::new(SharedState {
            answers,
            issuer,
            connect,
            store: OnceLock::new(),
            keepers: TaskTracker::new(),
            has_warned: AtomicBool::new(false),
        }))
    }

    /// The answers that this process has in memory.
    pub fn answers(&self) -> &Answers {
        &self.0.answers
    }

    /// Begins the answer of a turn, which becomes the newest of its session. A task writes it to the store.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn begin(&self, key: &SessionKey, turn: ClaimId, options: SharingOptions) -> AnswerWriter {
        let writer = self.0.answers.begin(key, turn, options.limits);
        if let Some(store) = self.store() {
            let keeper = AnswerKeeper::new(store, Arc::clone(writer.answer()), options);
            self.0.keepers.spawn(keeper.keep());
        }
        writer
    }

    /// A reader of the answer of the session's running turn, or else, if `takes_ended`, of its last turn; `None`: there
    /// is none, or it isn't kept. The reader of a turn without a response ends without a head. Cancel-safe.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn find(
        &self,
        key: &SessionKey,
        takes_ended: bool,
        options: &SharingOptions,
    ) -> Option<AnswerReader> {
        let own = self.0.answers.find(key);
        let is_own = |answer: &Answer| answer.turn().epoch == self.0.issuer.epoch();
        let runs = |answer: &Arc<Answer>| answer.end().is_none();
        let own = own.filter(|answer| takes_ended || runs(answer));
        let Some(store) = self.connected() else {
            return own.map(|answer| answer.reader());
        };
        if let Some(answer) = own.as_ref().filter(|answer| runs(answer) && is_own(answer)) {
            return Some(answer.reader());
        }
        let found = match store.find_answer(key).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(key = %key.redacted(), %error, "kept answers can't be looked up");
                return own.map(|answer| answer.reader());
            }
        };
        let running = match &found.holder {
            Some(holder) => Some(self.kept_turn(holder)?),
            None => None,
        };
        let last = found.last.filter(|last| {
            let known = self.0.answers.find_turn(key, *last);
            takes_ended && !known.is_some_and(|answer| answer.is_outdated())
        });
        match running.or(last) {
            Some(turn) if store.keeps_answers() => Some(self.join(store, key, turn, options)),
            _ => own.map(|answer| answer.reader()),
        }
    }

    /// The turn that holds a lock; `None`: its answer isn't kept, or has a name that this process doesn't know.
    fn kept_turn(&self, holder: &LockHolder) -> Option<ClaimId> {
        let turn = holder.turn()?;
        let is_known = turn.is_kept && *turn.prefix == *self.0.issuer.prefix();
        is_known.then_some(turn.known_as)
    }

    /// A reader of the answer to one turn of a session, which ends without a head if there is none.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn find_turn(
        &self,
        key: &SessionKey,
        turn: ClaimId,
        options: &SharingOptions,
    ) -> Option<AnswerReader> {
        match self.store() {
            Some(store) => Some(self.join(store, key, turn, options)),
            None => {
                let answer = self.0.answers.find_turn(key, turn)?;
                Some(answer.reader())
            }
        }
    }

    /// Waits until the answers that have ended are in the store, for `limit` at most. Gives `false` if some are not.
    /// Cancel-safe.
    pub async fn flush(&self, limit: Duration) -> bool {
        self.0.keepers.close();
        timeout(limit, self.0.keepers.wait()).await.is_ok()
    }

    /// The store, if it keeps answers.
    fn store(&self) -> Option<Arc<dyn Store>> {
        self.connected().filter(|store| store.keeps_answers())
    }

    /// The store that has the locks; `None`: this process has no access to it.
    fn connected(&self) -> Option<Arc<dyn Store>> {
        let connect = self.0.connect.as_ref()?;
        Some(Arc::clone(self.0.store.get_or_init(connect)))
    }

    /// A reader of a turn's answer. Starts a follower if this process doesn't have the answer.
    fn join(
        &self,
        store: Arc<dyn Store>,
        key: &SessionKey,
        turn: ClaimId,
        options: &SharingOptions,
    ) -> AnswerReader {
        let (reader, writer) = self.0.answers.follow(key, turn, options.limits);
        if let Some(writer) = writer {
            let codec = EntryCodec::new(key, turn, options.keys.clone());
            let answers = self.0.answers.clone();
            let follower = AnswerFollower::new(store, answers, writer, codec, options.run_ttl);
            let shared = self.clone();
            tokio::spawn(async move {
                if let Err(error) = follower.follow().await {
                    shared.warn(&error);
                }
            });
        }
        reader
    }

    /// Logs that an answer can't be read; once, because the others can't be read either.
    fn warn(&self, error: &EntryError) {
        if self.0.has_warned.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, "the answer of another replica can't be read");
        } else {
            tracing::warn!(
                %error,
                "the answer of another replica can't be read: all replicas need the same keys in replay.key_file"
            );
        }
    }
}

impl fmt::Debug for SharedAnswers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedAnswers")
            .field("answers", &self.0.answers)
            .finish_non_exhaustive()
    }
}
