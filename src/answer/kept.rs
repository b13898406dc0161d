//! One kept answer, and its readers.
//!
//! Invariant: all bytes between `start` and `length` are there, in order. Bytes are copied into blocks of the answer's
//! own: a piece of a connection's read buffer would keep the whole buffer in memory.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::text::{behind_last_event, find_event, has_event};
use super::{AnswerEnd, AnswerHead, AnswerPart};
use crate::key::SessionKey;
use crate::lock::ClaimId;

/// The answer of one turn, which runs or has ended.
#[derive(Debug)]
pub struct Answer {
    key: SessionKey,
    turn: ClaimId,
    /// Whether a later turn of the session had no answer.
    is_outdated: AtomicBool,
    state: Mutex<AnswerState>,
    /// How many bytes of answers the process has in memory.
    all_bytes: Arc<AtomicUsize>,
}

/// Reads an answer from some byte on. Dropping it is all that a reader does who has enough.
#[derive(Debug)]
pub struct AnswerReader {
    answer: Arc<Answer>,
    /// The number of the next byte, from the beginning of the body.
    at: u64,
    /// Its number among the readers of the answer.
    number: u64,
}

#[derive(Debug)]
struct AnswerState {
    head: Option<Arc<AnswerHead>>,
    /// Blocks that are full, the oldest first.
    blocks: VecDeque<Bytes>,
    /// The size of a full block.
    block: usize,
    /// The block that is being filled.
    tail: BytesMut,
    /// The number of the first byte that is there.
    start: u64,
    /// The number of the byte behind the last.
    length: u64,
    /// How many bytes at the end are kept at most; `None`: all are kept.
    window: Option<u64>,
    end: Option<AnswerEnd>,
    /// The tasks that wait for more, by their readers' numbers.
    waiting: Vec<(u64, Waker)>,
    /// How many readers there have been.
    readers: u64,
    /// How many of them are left.
    open_readers: usize,
}

/// The size of a full block: few blocks even for a long answer, and little memory for a short one.
const BLOCK: usize = 16 * 1024;

/// The size of the smallest block. A window has several blocks, because a block is forgotten as a whole.
const LEAST_BLOCK: u64 = 16;

// === impl Answer ===

impl Answer {
    /// An empty answer. It counts its bytes in `all_bytes`, too.
    pub(super) fn new(key: SessionKey, turn: ClaimId, all_bytes: Arc<AtomicUsize>) -> Self {
        Self {
            key,
            turn,
            is_outdated: AtomicBool::new(false),
            state: Mutex::new(AnswerState::new()),
            all_bytes,
        }
    }

    /// The session.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// The turn.
    pub fn turn(&self) -> ClaimId {
        self.turn
    }

    /// The head; `None`: it isn't there yet, or there never was one.
    pub fn head(&self) -> Option<Arc<AnswerHead>> {
        self.state.lock().head.clone()
    }

    /// How it ended; `None`: it goes on.
    pub fn end(&self) -> Option<AnswerEnd> {
        self.state.lock().end.clone()
    }

    /// The number of the first byte that can be read: 0 unless the answer is over its limit.
    pub fn start(&self) -> u64 {
        self.state.lock().start
    }

    /// How many bytes the answer has so far, whether they are kept or not.
    pub fn length(&self) -> u64 {
        self.state.lock().length
    }

    /// Whether the answer is over its limit, so that new readers can't have it from its first byte, or soon can't.
    pub fn is_windowed(&self) -> bool {
        self.state.lock().window.is_some()
    }

    /// A reader that begins at the byte with this number.
    pub fn reader_at(self: &Arc<Self>, at: u64) -> AnswerReader {
        let mut state = self.state.lock();
        state.readers += 1;
        state.open_readers += 1;
        AnswerReader {
            answer: Arc::clone(self),
            at,
            number: state.readers,
        }
    }

    /// A reader of the whole answer.
    pub fn reader(self: &Arc<Self>) -> AnswerReader {
        self.reader_at(0)
    }

    /// A reader of what comes from now on, of an event stream. It begins with the event that is under way. `None`: the
    /// beginning of that event isn't kept.
    pub fn live_reader(self: &Arc<Self>) -> Option<AnswerReader> {
        let (kept, start) = self.kept();
        let at = behind_last_event(&kept)?;
        Some(self.reader_at(start + at as u64))
    }

    /// A reader of what follows the first event with this id, of an event stream. `None`: nothing follows it, and the
    /// answer has ended. A reader of the whole answer if no kept event has the id, or if several have it and earlier
    /// ones may be lost.
    pub fn reader_behind(self: &Arc<Self>, event_id: &[u8]) -> Option<AnswerReader> {
        let is_over = self.end().is_some();
        let (kept, start) = self.kept();
        let found = find_event(&kept, event_id);
        let Some(event) = found.filter(|event| start == 0 || !event.comes_again) else {
            return Some(self.reader());
        };
        let nothing_follows = is_over && !has_event(&kept[event.behind..]);
        (!nothing_follows).then(|| self.reader_at(start + event.behind as u64))
    }

    /// The bytes that are kept now, in one piece, and the number of the first of them.
    pub fn kept(&self) -> (Bytes, u64) {
        // Copied when the writer can go on: handles of blocks are cheap.
        let (blocks, tail, start) = {
            let state = self.state.lock();
            let tail = Bytes::copy_from_slice(&state.tail);
            (state.blocks.clone(), tail, state.start)
        };
        let length = blocks.iter().map(Bytes::len).sum::<usize>() + tail.len();
        let mut kept = BytesMut::with_capacity(length);
        for block in blocks.iter().chain([&tail]) {
            kept.extend_from_slice(block);
        }
        (kept.freeze(), start)
    }

    /// Whether there is a reader.
    pub(super) fn is_read(&self) -> bool {
        self.state.lock().open_readers > 0
    }

    /// Begins at the byte with this number, because what precedes it isn't kept. Nothing may have been added.
    pub(super) fn skip_to(&self, at: u64, window: u64) {
        self.change(|state| {
            (state.start, state.length) = (at, at);
            state.window = Some(window);
        });
    }

    /// Whether the session's newest answer is neither this nor another one: a later turn had none.
    pub(super) fn is_outdated(&self) -> bool {
        self.is_outdated.load(Ordering::Relaxed)
    }

    pub(super) fn set_outdated(&self) {
        self.is_outdated.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_head(&self, head: AnswerHead) {
        self.change(|state| state.head = Some(Arc::new(head)));
    }

    pub(super) fn set_end(&self, end: AnswerEnd) {
        self.change(|state| state.end = Some(end));
    }

    /// How many bytes more the answer needs if `more` are added, and only a window of this size is kept.
    pub(super) fn growth(&self, more: u64, window: Option<u64>) -> u64 {
        let state = self.state.lock();
        let kept = state.length - state.start;
        let after = (kept + more).min(window.unwrap_or(u64::MAX));
        after.saturating_sub(kept)
    }

    /// Adds bytes at the end. Keeps only a window of this size at the end from now on; `None`: all. Returns whether
    /// bytes are lost that were there, and none were before.
    pub(super) fn push(&self, data: &[u8], window: Option<u64>) -> bool {
        self.change(|state| {
            let was_whole = state.start == 0;
            let before = state.length - state.start;
            if let Some(window) = window {
                state.set_window(window);
            }
            state.add(data);
            state.shorten();
            let after = state.length - state.start;
            if after >= before {
                self.all_bytes
                    .fetch_add((after - before) as usize, Ordering::Relaxed);
            } else {
                self.all_bytes
                    .fetch_sub((before - after) as usize, Ordering::Relaxed);
            }
            was_whole && state.start > 0
        })
    }

    /// Changes the answer, and then wakes those who wait for that.
    fn change<T>(&self, change: impl FnOnce(&mut AnswerState) -> T) -> T {
        let (changed, waiting) = {
            let mut state = self.state.lock();
            (change(&mut state), take(&mut state.waiting))
        };
        for (_, waker) in waiting {
            waker.wake();
        }
        changed
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let bytes = state.length - state.start;
        self.all_bytes.fetch_sub(bytes as usize, Ordering::Relaxed);
    }
}

// === impl AnswerState ===

impl AnswerState {
    fn new() -> Self {
        Self {
            head: None,
            blocks: VecDeque::new(),
            block: BLOCK,
            tail: BytesMut::new(),
            start: 0,
            length: 0,
            window: None,
            end: None,
            waiting: Vec::new(),
            readers: 0,
            open_readers: 0,
        }
    }

    fn add(&mut self, data: &[u8]) {
        self.length += data.len() as u64;
        self.fill(data);
    }

    /// Puts bytes into blocks.
    fn fill(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let room = self.block - self.tail.len();
            let (now, later) = data.split_at(data.len().min(room));
            // By itself, a buffer doubles from whatever size came first, and a full block would take up to two.
            let needed = (self.tail.len() + now.len()).next_power_of_two();
            if self.tail.capacity() < needed {
                self.tail.reserve(needed - self.tail.len());
            }
            self.tail.extend_from_slice(now);
            if self.tail.len() == self.block {
                self.blocks.push_back(take(&mut self.tail).freeze());
            }
            data = later;
        }
    }

    /// Keeps no more than this.
    fn set_window(&mut self, window: u64) {
        let window = self.window.map_or(window, |known| known.min(window));
        self.window = Some(window);
        let block = (window / 16).clamp(LEAST_BLOCK, BLOCK as u64);
        let block = 1_usize << block.ilog2();
        if block < self.block {
            self.shorten();
            self.block = block;
            let (blocks, tail) = (take(&mut self.blocks), take(&mut self.tail));
            for block in &blocks {
                self.fill(block);
            }
            self.fill(&tail);
        }
    }

    /// Forgets blocks in front of the window.
    fn shorten(&mut self) {
        let Some(window) = self.window else {
            return;
        };
        while self.length - self.start > window
            && let Some(first) = self.blocks.pop_front()
        {
            self.start += first.len() as u64;
        }
    }

    /// What follows from byte `at` on; `None`: nothing yet.
    fn part(&self, at: u64) -> Option<AnswerPart> {
        if at < self.start {
            return Some(AnswerPart::Gone);
        }
        if at >= self.length {
            return self.end.clone().map(AnswerPart::End);
        }
        // All blocks but the tail are full, and begin one behind the other.
        let (block, offset) = (
            (at - self.start) as usize / self.block,
            (at - self.start) as usize % self.block,
        );
        let data = match self.blocks.get(block) {
            Some(full) => full.slice(offset..),
            None => Bytes::copy_from_slice(&self.tail[offset..]),
        };
        Some(AnswerPart::Data(data))
    }

    fn wait(&mut self, number: u64, waker: &Waker) {
        match self
            .waiting
            .iter_mut()
            .find(|(reader, _)| *reader == number)
        {
            Some((_, known)) => known.clone_from(waker),
            None => self.waiting.push((number, waker.clone())),
        }
    }
}

// === impl AnswerReader ===

impl AnswerReader {
    /// The answer.
    pub fn answer(&self) -> &Arc<Answer> {
        &self.answer
    }

    /// The number of the byte that comes next.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The head, as soon as it is there. `None`: the answer ended without one.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arc<AnswerHead>>> {
        let mut state = self.answer.state.lock();
        match (&state.head, &state.end) {
            (Some(head), _) => Poll::Ready(Some(Arc::clone(head))),
            (None, Some(_)) => Poll::Ready(None),
            (None, None) => {
                state.wait(self.number, cx.waker());
                Poll::Pending
            }
        }
    }

    /// What comes next. After an end, or after bytes that are gone, it is the same again.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<AnswerPart> {
        let mut state = self.answer.state.lock();
        let Some(part) = state.part(self.at) else {
            state.wait(self.number, cx.waker());
            return Poll::Pending;
        };
        if let AnswerPart::Data(data) = &part {
            self.at += data.len() as u64;
        }
        Poll::Ready(part)
    }

    /// Waits for the head, as [`Self::poll_head`]. Cancel-safe.
    pub async fn head(&mut self) -> Option<Arc<AnswerHead>> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    /// Waits for what comes next, as [`Self::poll_next`]. Cancel-safe.
    pub async fn next(&mut self) -> AnswerPart {
        poll_fn(|cx| self.poll_next(cx)).await
    }
}

impl Drop for AnswerReader {
    fn drop(&mut self) {
        let mut state = self.answer.state.lock();
        state.waiting.retain(|(reader, _)| *reader != self.number);
        state.open_readers -= 1;
    }
}
