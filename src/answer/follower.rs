//! Reads an answer from the store that another process writes, for the readers in this one.
//!
//! Invariants: one follower per answer and process, whatever the number of readers; an answer that the store has lost,
//! or has with a gap, ends as aborted. A follower ends when nobody reads its answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::entry::{EntryCodec, EntryContent, EntryError};
use super::{AnswerHead, AnswerWriter, Answers};
use crate::lock::{AnswerEntry, ClaimId, EntryKind, EntryPlace, LockHolder, Store};

/// Follows one answer.
pub(super) struct AnswerFollower {
    store: Arc<dyn Store>,
    answers: Answers,
    writer: AnswerWriter,
    codec: EntryCodec,
    /// The place of the last entry that was read.
    read: EntryPlace,
    /// The head, until all is read that the store has of the body so far.
    late_head: Option<AnswerHead>,
    /// For how long the store may be silent.
    patience: Duration,
    /// When the store last replied.
    replied: Instant,
    /// When the turn last had the lock, or the follower began.
    awaited: Instant,
}

/// What a look into the store came to.
enum Followed {
    /// There was as much as one look may find, so that there may be more.
    Full,
    /// There was something new.
    Some,
    /// There is nothing new yet.
    Nothing,
    /// Nothing will follow.
    Over,
}

/// The pause between two looks into the store, at first and after some in vain.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// How many entries are read at once: some megabytes at most.
const PAGE: usize = 64;

/// How long after the release of a turn's lock the first write of its answer may come. A short turn's lock is released
/// at the same time.
const FIRST_WRITE_TIME: Duration = Duration::from_secs(1);

/// How long a follower goes on for readers that may come.
const UNREAD_TIME: Duration = Duration::from_secs(2);

// === impl AnswerFollower ===

impl AnswerFollower {
    pub(super) fn new(
        store: Arc<dyn Store>,
        answers: Answers,
        writer: AnswerWriter,
        codec: EntryCodec,
        patience: Duration,
    ) -> Self {
        Self {
            store,
            answers,
            writer,
            codec,
            read: EntryPlace::default(),
            late_head: None,
            patience,
            replied: Instant::now(),
            awaited: Instant::now(),
        }
    }

    /// Reads until the answer has ended, or nobody reads it.
    ///
    /// # Errors
    /// When an entry can't be read.
    pub(super) async fn follow(mut self) -> Result<(), EntryError> {
        let (mut pause, longest) = PAUSES;
        let mut unread_since = None;
        loop {
            match self.look().await? {
                Followed::Over => return Ok(()),
                Followed::Full => continue,
                Followed::Some => pause = PAUSES.0,
                Followed::Nothing => pause = (pause + PAUSES.0).min(longest),
            }
            if self.writer.answer().is_read() {
                unread_since = None;
            } else if unread_since.get_or_insert_with(Instant::now).elapsed() > UNREAD_TIME
                && self.answers.forget_unread(self.writer.answer())
            {
                return Ok(());
            }
            sleep(pause).await;
        }
    }

    /// Reads what is new.
    async fn look(&mut self) -> Result<Followed, EntryError> {
        let (key, turn) = (self.writer.answer().key(), self.writer.answer().turn());
        let page = match self.store.read_answer(key, turn, self.read, PAGE).await {
            Ok(page) => page,
            Err(error) => {
                tracing::debug!(key = %key.redacted(), %error, "a kept answer can't be read; trying again");
                let is_lost = self.replied.elapsed() > self.patience;
                return Ok(if is_lost {
                    Followed::Over
                } else {
                    Followed::Nothing
                });
            }
        };
        self.replied = Instant::now();
        let Some(entries) = page else {
            let may_come = self.read == EntryPlace::default() && self.may_begin().await;
            return Ok(if may_come {
                Followed::Nothing
            } else {
                Followed::Over
            });
        };
        let followed = match entries.len() {
            0 => Followed::Nothing,
            PAGE.. => Followed::Full,
            _ => Followed::Some,
        };
        for entry in entries {
            if !self.take(entry)? {
                return Ok(Followed::Over);
            }
        }
        // Who waits for the head looks for a place in what is there: that has to be all that the store has.
        if !matches!(followed, Followed::Full) {
            self.show_head();
        }
        Ok(followed)
    }

    /// Hands an entry on. Gives `false` if nothing will follow.
    fn take(&mut self, entry: AnswerEntry) -> Result<bool, EntryError> {
        let place = entry.place;
        let content = self.codec.read(entry)?;
        let before = match &content {
            EntryContent::Data(data) => place.bytes.saturating_sub(data.len() as u64),
            EntryContent::Head(_) | EntryContent::End(_) => place.bytes,
        };
        if before != self.read.bytes {
            // The beginning of an answer over its limit isn't kept. Anything else must not be missing.
            if self.read.kind != EntryKind::Head || self.late_head.is_none() {
                return Ok(false);
            }
            self.writer.skip_to(before);
        }
        self.read = place;
        match content {
            EntryContent::Head(head) => self.late_head = Some(head),
            EntryContent::Data(data) => {
                self.writer.push(&data);
            }
            EntryContent::End(end) => {
                self.show_head();
                self.writer.finish(end);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn show_head(&mut self) {
        if let Some(head) = self.late_head.take() {
            self.writer.head(head);
        }
    }

    /// Whether the answer may begin yet: the turn has the lock, or released it so short a time ago that the first write
    /// may be under way.
    async fn may_begin(&mut self) -> bool {
        if self.is_awaited().await {
            self.awaited = Instant::now();
        }
        self.awaited.elapsed() < FIRST_WRITE_TIME
    }

    /// Whether the turn has the lock.
    async fn is_awaited(&self) -> bool {
        let answer = self.writer.answer();
        let (key, turn) = (answer.key(), answer.turn());
        match self.store.find_answer(key).await {
            Ok(found) => match found.holder {
                Some(holder) => has_turn(&holder, turn) && is_alive(&*self.store, &holder).await,
                None => false,
            },
            Err(_) => true,
        }
    }
}

/// Whether the holder is this turn.
fn has_turn(holder: &LockHolder, turn: ClaimId) -> bool {
    let holder = holder.turn();
    holder.is_some_and(|holder| holder.known_as == turn || holder.id == turn)
}

/// Whether the holder's instance is alive, or can't be looked up.
async fn is_alive(store: &dyn Store, holder: &LockHolder) -> bool {
    let Some(turn) = holder.turn().filter(|turn| turn.has_heartbeat) else {
        return true;
    };
    match store.liveness(&turn.instance).await {
        Ok(Some(live)) => live.epoch == turn.id.epoch,
        Ok(None) => false,
        Err(_) => true,
    }
}
