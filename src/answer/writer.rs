//! The one who writes an answer: the turn, or whoever follows it on another replica.
//!
//! Invariant: an answer whose writer is dropped has ended, as aborted unless the writer said otherwise.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::kept::Answer;
use super::{AnswerEnd, AnswerHead, AnswerLimits, Answers, SMALL_WINDOW};

/// Writes the answer of one turn. Dropping it ends the answer as aborted.
#[derive(Debug)]
pub struct AnswerWriter {
    answers: Answers,
    answer: Arc<Answer>,
    limits: AnswerLimits,
    /// The runtime that forgets the answer after its time; `None`: there is none, and the answer isn't kept.
    runtime: Option<Handle>,
    /// How many bytes at the end of the answer are kept; `None`: all are.
    window: Option<u64>,
    /// Whether another process writes the answer, too.
    is_copy: bool,
    /// The trailers that came.
    trailers: Option<HeaderMap>,
}

// === impl AnswerWriter ===

impl AnswerWriter {
    pub(super) fn new(answers: Answers, answer: Arc<Answer>, limits: AnswerLimits) -> Self {
        Self {
            answers,
            answer,
            limits,
            runtime: Handle::try_current().ok(),
            window: None,
            is_copy: false,
            trailers: None,
        }
    }

    /// A writer of what another process writes, too. That one counts it, and keeps it for some time.
    pub(super) fn copy(answers: Answers, answer: Arc<Answer>, limits: AnswerLimits) -> Self {
        let limits = AnswerLimits {
            keep: Duration::ZERO,
            ..limits
        };
        let mut writer = Self::new(answers, answer, limits);
        writer.is_copy = true;
        writer
    }

    /// The answer that is written.
    pub fn answer(&self) -> &Arc<Answer> {
        &self.answer
    }

    /// Writes the head.
    pub fn head(&mut self, head: AnswerHead) {
        self.answer.set_head(head);
    }

    /// Adds bytes to the body. Never waits. Returns whether the beginning of the answer is lost just now.
    pub fn push(&mut self, data: &[u8]) -> bool {
        if data.is_empty() {
            return false;
        }
        let (limits, more) = (self.limits, data.len() as u64);
        if self.answer.length().saturating_add(more) > limits.max_turn {
            self.shrink(limits.window());
        }
        // An answer with the smallest window always has room for it.
        if self.window.is_none_or(|window| window > SMALL_WINDOW) {
            let growth = self.answer.growth(more, self.window);
            if !self.answers.make_room(growth, limits.max_total) {
                self.shrink(SMALL_WINDOW);
            }
        }
        let is_cut = self.answer.push(data, self.window);
        if is_cut && !self.is_copy {
            self.answers.note_too_long(&self.answer, limits);
        }
        is_cut
    }

    /// Keeps no more than the last `window` bytes from now on.
    fn shrink(&mut self, window: u64) {
        self.window = Some(self.window.map_or(window, |known| known.min(window)));
    }

    /// Adds what a body's frame has: bytes, or the trailers.
    pub fn frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.push(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
    }

    /// Ends an answer whose last frame has come.
    pub fn end_whole(mut self) {
        let trailers = self.trailers.take();
        self.end(AnswerEnd::Whole { trailers });
    }

    /// Begins at the byte with this number, because what precedes it isn't kept. Nothing may have been added.
    pub(super) fn skip_to(&mut self, at: u64) {
        let window = self.limits.window();
        self.shrink(window);
        self.answer.skip_to(at, window);
    }

    /// Ends the answer. It is kept for some time, if it has a head.
    pub fn end(self, end: AnswerEnd) {
        self.finish(end);
    }

    pub(super) fn finish(&self, end: AnswerEnd) {
        let has_head = self.answer.head().is_some();
        let is_kept = has_head && !self.limits.keep.is_zero();
        if !has_head && !self.is_copy {
            self.answers.outdate_before(&self.answer);
        }
        match &self.runtime {
            Some(runtime) if is_kept => {
                let number = self.answers.note_end(&self.answer);
                // An answer that has ended is kept only if there is room.
                self.answers.make_room(0, self.limits.max_total);
                let (answers, keep) = (self.answers.clone(), self.limits.keep);
                runtime.spawn(async move {
                    sleep(keep).await;
                    answers.forget_ended(number);
                });
            }
            _ => self.answers.forget(&self.answer),
        }
        self.answer.set_end(end);
    }
}

impl Drop for AnswerWriter {
    fn drop(&mut self) {
        if self.answer.end().is_none() {
            self.finish(AnswerEnd::Aborted);
        }
    }
}
