//! The kept answers of turns: what a backend responds, for requests that read it later or from elsewhere.
//!
//! A turn writes its answer with an [`AnswerWriter`]. Any number of [`AnswerReader`]s read it, from any thread, each at
//! its own pace. Invariants: writing never waits for a reader; an answer that isn't whole never ends as if it were;
//! [`AnswerLimits`] bound the memory. This module doesn't know HTTP connections, nor who may read an answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, SET_COOKIE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, StatusCode};
use parking_lot::Mutex;

use crate::cipher::CipherKeys;
use crate::key::SessionKey;
use crate::lock::ClaimId;
use crate::metrics::Metrics;

pub use kept::{Answer, AnswerReader};
pub use shared::SharedAnswers;
pub use writer::AnswerWriter;

mod entry;
mod follower;
mod keeper;
mod kept;
mod shared;
mod text;
mod writer;

/// The answers that a process keeps. Cheap to clone: clones share them.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<AnswerTable>);

/// The bounds of kept answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerLimits {
    /// The most bytes that are kept of one answer. Of a longer one, only a window at its end is kept.
    pub max_turn: u64,
    /// The most bytes that are kept of all answers of the process. Those that run have a little more, each.
    pub max_total: u64,
    /// How long an answer is kept after its end.
    pub keep: Duration,
}

/// How answers are kept in the store.
#[derive(Clone, Debug)]
pub struct SharingOptions {
    /// The bounds of an answer.
    pub limits: AnswerLimits,
    /// For how long the store keeps the answer of a turn that runs without hearing of its process:
    /// `store.crash_recovery`.
    pub run_ttl: Duration,
    /// What the answers are encrypted with; `None`: nothing.
    pub keys: Option<CipherKeys>,
}

/// How many bytes are kept of an answer over its limit at most, for readers that are at its end.
const WINDOW: u64 = 256 * 1024;

/// How many bytes are kept at most of an answer that grows while `AnswerLimits::max_total` is reached.
const SMALL_WINDOW: u64 = 16 * 1024;

/// The head of an answer, as later readers get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// The status of the backend's response.
    pub status: StatusCode,
    /// The headers without those of the first client's connection, and without its cookies.
    pub headers: HeaderMap,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEnd {
    /// The backend finished it.
    Whole {
        /// The trailers; `None`: there were none.
        trailers: Option<HeaderMap>,
    },
    /// It broke off, for whatever reason.
    Aborted,
}

/// What a reader gets next of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPart {
    /// The next bytes of the body.
    Data(bytes::Bytes),
    /// The end; nothing follows.
    End(AnswerEnd),
    /// The next bytes aren't kept any more: the reader was too slow for an answer over its limit.
    Gone,
}

/// What all clones of [`Answers`] share.
#[derive(Debug, Default)]
struct AnswerTable {
    sessions: Mutex<KeptSessions>,
    /// How many bytes are in memory, over all answers that somebody keeps or reads.
    bytes: Arc<AtomicUsize>,
    /// How many answers are kept.
    count: Arc<AtomicUsize>,
    /// Counts answers that lost their beginning; `None`: nobody does.
    metrics: Option<Metrics>,
}

#[derive(Debug, Default)]
struct KeptSessions {
    /// The answers of each session that has some, the newest last.
    by_key: HashMap<SessionKey, Vec<Arc<Answer>>>,
    /// The kept answers that have ended, by the number of their end.
    ended: BTreeMap<u64, Arc<Answer>>,
    /// The number of the next end.
    next_end: u64,
}

// === impl AnswerLimits ===

impl AnswerLimits {
    /// How many bytes are kept of a longer answer than `max_turn`.
    fn window(&self) -> u64 {
        self.max_turn.min(WINDOW)
    }
}

// === impl AnswerHead ===

impl AnswerHead {
    /// The head of a response with these headers. Leaves out what is for the first client's connection alone (RFC 9110
    /// §7.6.1), the length, which another reader's body may not have, and cookies.
    pub fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        const FOR_ONE: [HeaderName; 5] = [
            CONNECTION,
            CONTENT_LENGTH,
            SET_COOKIE,
            TRANSFER_ENCODING,
            UPGRADE,
        ];
        let mut headers = headers.clone();
        for name in FOR_ONE {
            headers.remove(name);
        }
        headers.remove("keep-alive");
        headers.remove("proxy-connection");
        Self { status, headers }
    }
}

// === impl Answers ===

impl Answers {
    /// No answers yet. Their numbers are shown in the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        Self(Arc::new(AnswerTable {
            sessions: Mutex::default(),
            bytes: metrics.kept_answer_bytes(),
            count: metrics.kept_answers(),
            metrics: Some(metrics.clone()),
        }))
    }

    /// Begins the answer of a turn, which becomes the newest of its session.
    pub fn begin(&self, key: &SessionKey, turn: ClaimId, limits: AnswerLimits) -> AnswerWriter {
        let answer = Arc::new(Answer::new(key.clone(), turn, Arc::clone(&self.0.bytes)));
        let mut sessions = self.0.sessions.lock();
        let of_session = sessions.by_key.entry(key.clone()).or_default();
        of_session.push(Arc::clone(&answer));
        self.0.count.fetch_add(1, Ordering::Relaxed);
        drop(sessions);
        AnswerWriter::new(self.clone(), answer, limits)
    }

    /// A reader of a turn's answer, which another process has: the writer fills it from there. Without a writer, this
    /// process has the answer already. It isn't kept beyond its end.
    fn follow(
        &self,
        key: &SessionKey,
        turn: ClaimId,
        limits: AnswerLimits,
    ) -> (AnswerReader, Option<AnswerWriter>) {
        let mut sessions = self.0.sessions.lock();
        let of_session = sessions.by_key.entry(key.clone()).or_default();
        if let Some(answer) = of_session.iter().find(|answer| answer.turn() == turn) {
            return (answer.reader(), None);
        }
        let answer = Arc::new(Answer::new(key.clone(), turn, Arc::clone(&self.0.bytes)));
        // In front: an own turn's answer is newer.
        of_session.insert(0, Arc::clone(&answer));
        self.0.count.fetch_add(1, Ordering::Relaxed);
        let reader = answer.reader();
        (
            reader,
            Some(AnswerWriter::copy(self.clone(), answer, limits)),
        )
    }

    /// Forgets an answer that nobody reads. Gives `false` if somebody does.
    fn forget_unread(&self, answer: &Arc<Answer>) -> bool {
        let mut sessions = self.0.sessions.lock();
        // A reader that `follow` gives has begun under this mutex.
        let is_unread = !answer.is_read();
        if is_unread {
            self.remove(&mut sessions, answer);
        }
        is_unread
    }

    /// The newest answer of a session: that of the turn that runs, or the last that is kept. `None`, too, if a later
    /// turn had no answer.
    pub fn find(&self, key: &SessionKey) -> Option<Arc<Answer>> {
        let sessions = self.0.sessions.lock();
        let newest = sessions.by_key.get(key)?.last()?;
        (!newest.is_outdated()).then(|| Arc::clone(newest))
    }

    /// Notes that a turn of this process had no answer, so that those before it aren't the session's newest.
    fn outdate_before(&self, answer: &Arc<Answer>) {
        let sessions = self.0.sessions.lock();
        let of_session = sessions.by_key.get(answer.key()).into_iter().flatten();
        for older in of_session.take_while(|other| !Arc::ptr_eq(other, answer)) {
            // The turn of another process may be newer.
            if older.turn().epoch == answer.turn().epoch {
                older.set_outdated();
            }
        }
    }

    /// The answer of one turn of a session.
    pub fn find_turn(&self, key: &SessionKey, turn: ClaimId) -> Option<Arc<Answer>> {
        let sessions = self.0.sessions.lock();
        let mut answers = sessions.by_key.get(key)?.iter();
        answers.find(|answer| answer.turn() == turn).cloned()
    }

    /// How many answers are kept, whether they have ended or not.
    pub fn len(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Whether no answer is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes of answers are in memory.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed) as u64
    }

    /// Makes room for `bytes` more: forgets answers that have ended, the oldest first. Returns whether there is room.
    fn make_room(&self, bytes: u64, max_total: u64) -> bool {
        let fits = || self.bytes().saturating_add(bytes) <= max_total;
        if fits() {
            return true;
        }
        let mut sessions = self.0.sessions.lock();
        while !fits() {
            let Some((_, oldest)) = sessions.ended.pop_first() else {
                return false;
            };
            // Its bytes are given back here, unless somebody still reads it.
            self.remove(&mut sessions, &oldest);
        }
        true
    }

    /// Notes that an answer has ended. Gives the number of its end.
    fn note_end(&self, answer: &Arc<Answer>) -> u64 {
        let mut sessions = self.0.sessions.lock();
        let number = sessions.next_end;
        sessions.next_end += 1;
        sessions.ended.insert(number, Arc::clone(answer));
        number
    }

    /// Forgets the answer whose end has this number. Who reads it goes on.
    fn forget_ended(&self, number: u64) {
        let mut sessions = self.0.sessions.lock();
        if let Some(answer) = sessions.ended.remove(&number) {
            self.remove(&mut sessions, &answer);
        }
    }

    /// Logs and counts an answer whose beginning is lost.
    fn note_too_long(&self, answer: &Answer, limits: AnswerLimits) {
        if let Some(metrics) = &self.0.metrics {
            metrics.answer_too_long();
        }
        let key = answer.key().redacted();
        let (bytes, max_turn) = (answer.length(), limits.max_turn);
        match bytes > max_turn {
            true => {
                tracing::warn!(%key, max_turn, "an answer is longer than replay.max_turn, so it isn't kept whole")
            }
            false => {
                tracing::warn!(%key, bytes, max_total = limits.max_total, "replay.max_total is reached, so an answer isn't kept whole")
            }
        }
    }

    /// Forgets an answer that has not ended.
    fn forget(&self, answer: &Arc<Answer>) {
        self.remove(&mut self.0.sessions.lock(), answer);
    }

    fn remove(&self, sessions: &mut KeptSessions, answer: &Arc<Answer>) {
        if sessions.remove(answer) {
            self.0.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

// === impl KeptSessions ===

impl KeptSessions {
    /// Returns whether it was there.
    fn remove(&mut self, answer: &Arc<Answer>) -> bool {
        let Some(answers) = self.by_key.get_mut(answer.key()) else {
            return false;
        };
        let before = answers.len();
        answers.retain(|kept| !Arc::ptr_eq(kept, answer));
        let is_removed = answers.len() < before;
        if answers.is_empty() {
            self.by_key.remove(answer.key());
        }
        is_removed
    }
}

#[cfg(test)]
mod tests;
