//! Writes the answer of a turn of this process to the store, as its bytes come.
//!
//! Invariants: nobody waits for the store but the keeper itself; it repeats a write until it knows the outcome, so that
//! no entry is written twice or left out. An answer whose keeper has ended without a word expires.

use std::collections::VecDeque;
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, sleep, timeout_at};

use super::entry::{EntryCodec, EntryContent};
use super::{Answer, AnswerEnd, AnswerHead, AnswerPart, AnswerReader, SharingOptions};
use crate::lock::{AnswerEntry, AnswerWrite, EntryKind, EntryPlace, Store};

/// Writes one answer to the store.
pub(super) struct AnswerKeeper {
    store: Arc<dyn Store>,
    answer: Arc<Answer>,
    options: SharingOptions,
    codec: EntryCodec,
    /// The place of the last entry in the store.
    written: EntryPlace,
    /// When the last write began that succeeded, or the keeper.
    renewed: Instant,
    /// The places of the pieces of the body that are in the store, the oldest first.
    pieces: VecDeque<EntryPlace>,
}

/// What the next write has of the answer.
#[derive(Default)]
struct AnswerBatch {
    /// The number of the first byte, if what precedes it is lost; `None`: nothing is missing.
    skipped_to: Option<u64>,
    data: BytesMut,
    end: Option<AnswerEnd>,
}

/// How long bytes are collected for one write. The first ones after a silence are written at once.
const BATCH_TIME: Duration = Duration::from_millis(100);

/// From how many bytes on a batch is written without delay.
const BATCH_BYTES: usize = 32 * 1024;

/// The pause before a write that failed is repeated, at first and at most.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How many entries one write lets the store forget. Redis runs nothing else meanwhile.
const MOST_FORGOTTEN: usize = 500;

// === impl AnswerKeeper ===

impl AnswerKeeper {
    pub(super) fn new(store: Arc<dyn Store>, answer: Arc<Answer>, options: SharingOptions) -> Self {
        let codec = EntryCodec::new(answer.key(), answer.turn(), options.keys.clone());
        Self {
            store,
            answer,
            options,
            codec,
            written: EntryPlace::default(),
            renewed: Instant::now(),
            pieces: VecDeque::new(),
        }
    }

    /// Writes until the answer has ended, or the store has lost it.
    pub(super) async fn keep(mut self) {
        let mut reader = self.answer.reader();
        let mut head = match reader.head().await {
            Some(head) => Some(AnswerHead::clone(&head)),
            // So that nobody gets the answer of the turn before it instead, nor waits for this one.
            None => {
                self.renewed = Instant::now();
                let end = AnswerBatch {
                    end: Some(AnswerEnd::Aborted),
                    ..AnswerBatch::default()
                };
                self.write(None, end).await;
                return;
            }
        };
        self.renewed = Instant::now();
        let mut next_write = self.renewed;
        loop {
            let batch = self.collect(&mut reader, head.is_some(), next_write).await;
            next_write = Instant::now() + BATCH_TIME;
            let is_over = batch.end.is_some();
            if !self.write(head.take(), batch).await || is_over {
                return;
            }
        }
    }

    /// Waits for more of the answer, or until it has to be renewed. `is_first`: takes what is there.
    async fn collect(
        &self,
        reader: &mut AnswerReader,
        is_first: bool,
        next_write: Instant,
    ) -> AnswerBatch {
        let mut batch = AnswerBatch::default();
        if !is_first {
            let renewal = self.renewed + self.options.run_ttl / 3;
            match timeout_at(renewal, reader.next()).await {
                Ok(part) => batch.add(part, reader),
                Err(_) => return batch,
            }
        }
        while batch.has_room() {
            match timeout_at(next_write, reader.next()).await {
                Ok(part) => batch.add(part, reader),
                Err(_) => break,
            }
        }
        batch
    }

    /// Writes a batch. Gives `false` if it can't be written any more.
    async fn write(&mut self, head: Option<AnswerHead>, mut batch: AnswerBatch) -> bool {
        let data = take(&mut batch.data).freeze();
        let is_over = batch.end.is_some();
        let contents = [
            head.map(EntryContent::Head),
            (!data.is_empty()).then_some(EntryContent::Data(data)),
            batch.end.map(EntryContent::End),
        ];
        let mut entries = Vec::with_capacity(2);
        let mut bytes = batch.skipped_to.unwrap_or(self.written.bytes);
        for content in contents.into_iter().flatten() {
            let entry = match self.codec.write(bytes, &content) {
                Ok(entry) => entry,
                Err(error) => {
                    tracing::warn!(%error, "a kept answer can't be encrypted");
                    return false;
                }
            };
            bytes = entry.place.bytes;
            entries.push(entry);
        }
        let write = AnswerWrite {
            after: self.written,
            forgotten: self.forgotten(bytes, batch.skipped_to.is_some()),
            entries,
            ttl: match is_over {
                true => self.options.limits.keep,
                false => self.options.run_ttl,
            },
        };
        self.send(write).await
    }

    /// The pieces that aren't in the window any more, if only a window of the answer is kept. `is_cut`: nor are the
    /// others, because the next piece doesn't follow them.
    fn forgotten(&mut self, length: u64, is_cut: bool) -> Vec<EntryPlace> {
        if !self.answer.is_windowed() {
            return Vec::new();
        }
        let window = self.options.limits.window();
        let is_outside = |piece: &&EntryPlace| is_cut || piece.bytes + window <= length;
        let count = self.pieces.iter().take_while(is_outside).count();
        // The store's last entry stays, by which it knows what was written, unless another follows.
        let others = self.pieces.len() - usize::from(!is_cut && !self.pieces.is_empty());
        let count = count.min(MOST_FORGOTTEN).min(others);
        self.pieces.drain(..count).collect()
    }

    /// Sends a write, again and again until the store has the entries. Gives `false` if it can't have them any more.
    async fn send(&mut self, write: AnswerWrite) -> bool {
        let (mut pause, longest) = RETRY_PAUSES;
        loop {
            let sent = Instant::now();
            let (key, turn) = (self.answer.key(), self.answer.turn());
            let error = match self.store.write_answer(key, turn, &write).await {
                Ok(true) => {
                    self.renewed = sent;
                    self.note(&write.entries);
                    return true;
                }
                Ok(false) => {
                    tracing::debug!(key = %key.redacted(), "the store has lost a kept answer");
                    return false;
                }
                Err(error) => error,
            };
            // By then the store has forgotten what was written before.
            if Instant::now() + pause > self.renewed + self.options.run_ttl {
                tracing::debug!(key = %key.redacted(), %error, "an answer is not kept in the store");
                return false;
            }
            sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Notes that the store has these entries.
    fn note(&mut self, entries: &[AnswerEntry]) {
        for AnswerEntry { place, .. } in entries {
            self.written = *place;
            if place.kind == EntryKind::Data {
                self.pieces.push_back(*place);
            }
        }
    }
}

// === impl AnswerBatch ===

impl AnswerBatch {
    fn add(&mut self, part: AnswerPart, reader: &mut AnswerReader) {
        match part {
            AnswerPart::Data(data) => self.data.extend_from_slice(&data),
            AnswerPart::End(end) => self.end = Some(end),
            // The store is slower than an answer over its limit. Who begins to read later finds the rest.
            AnswerPart::Gone => {
                let start = reader.answer().start();
                *reader = reader.answer().reader_at(start);
                self.skipped_to = Some(start);
                self.data.clear();
            }
        }
    }

    fn has_room(&self) -> bool {
        self.end.is_none() && self.data.len() < BATCH_BYTES
    }
}
