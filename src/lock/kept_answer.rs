//! Answers that a store keeps for a while, so that every replica can read them.
//!
//! An answer is a sequence of entries: its head, pieces of its body, and its end. What an entry contains, only the
//! writer and the readers know; a store sees bytes. Invariant: entries are added in the order of their places, and a
//! reader that finds a place missing knows that the answer has lost something.

use std::time::Duration;

use bytes::Bytes;

use super::{ClaimId, LockHolder};

/// The place of an entry in a kept answer. A later entry has a larger one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryPlace {
    /// How many bytes the answer's body has up to the end of this entry.
    pub bytes: u64,
    /// What the entry is.
    pub kind: EntryKind,
}

/// What an entry of a kept answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKind {
    /// Nothing: the place before the first entry.
    #[default]
    Start = 0,
    /// The status and the headers.
    Head = 1,
    /// A piece of the body, which isn't empty.
    Data = 2,
    /// How the answer ended, and its trailers.
    End = 3,
}

/// One entry of a kept answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerEntry {
    /// Where the entry is in the answer.
    pub place: EntryPlace,
    /// The content, as its writer wrote it.
    pub payload: Bytes,
}

/// What a writer adds to a kept answer.
#[derive(Clone, Debug)]
pub struct AnswerWrite {
    /// The place of the last entry that was written before; the default for the first write.
    pub after: EntryPlace,
    /// The new entries, in order. Without one, the answer is kept for longer, and nothing else changes.
    pub entries: Vec<AnswerEntry>,
    /// Places of old entries that the store may forget. The last entry is none of them.
    pub forgotten: Vec<EntryPlace>,
    /// For how long the store keeps the answer from now on.
    pub ttl: Duration,
}

/// Which answers a store has for a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerLookup {
    /// Who holds the session's lock; `None`: nobody.
    pub holder: Option<LockHolder>,
    /// The turn of the newest answer that the store keeps; `None`: it keeps none.
    pub last: Option<ClaimId>,
}

// === impl EntryKind ===

impl EntryKind {
    /// The kind with this number.
    pub(super) fn from_number(number: u64) -> Option<Self> {
        [Self::Start, Self::Head, Self::Data, Self::End]
            .into_iter()
            .find(|kind| *kind as u64 == number)
    }
}
