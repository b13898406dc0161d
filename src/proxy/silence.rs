//! Comments in an event stream whose backend is silent.
//!
//! Invariant: a comment stands only where an event has ended, so no event is changed. It does not count as a sign of
//! life of the backend: a backend that is silent for `timeouts.idle_stream` is left.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

/// Fills the silence of a backend's event stream.
pub(super) struct SilenceFiller {
    interval: Duration,
    idle_stream: Duration,
    /// The end of what the backend has sent.
    tail: EventTail,
    /// When the backend sent something last.
    heard: Instant,
    /// When the client was sent something last.
    sent: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A response whose backend may be silent.
#[derive(Clone, Copy, Debug)]
pub(super) struct FilledResponse {
    /// It is an event stream.
    pub(super) is_stream: bool,
    /// Its client's response began before it.
    pub(super) is_early: bool,
    /// The backend has announced its length.
    pub(super) has_length: bool,
}

/// What a silent backend's client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SilentBackend {
    /// A comment.
    Comment,
    /// The end: the backend has been silent for too long.
    End,
}

/// The last bytes of an event stream: as many as tell whether an event has ended.
#[derive(Clone, Copy, Debug, Default)]
struct EventTail {
    /// The last four bytes, the last one lowest.
    bytes: u32,
    /// Whether there were any.
    has_begun: bool,
}

/// The comment.
pub(super) const COMMENT: Bytes = Bytes::from_static(b": silent\n\n");

// === impl SilenceFiller ===

impl SilenceFiller {
    /// The filler of a response on a route with this `keep_alive`; `None`: it needs none.
    pub(super) fn for_response(
        response: FilledResponse,
        keep_alive: Option<Duration>,
        idle_stream: Duration,
    ) -> Option<Self> {
        let interval = match response.is_stream {
            // A response has no room for more bytes than it has announced. An early one has announced nothing.
            true => keep_alive.filter(|_| response.is_early || !response.has_length),
            // No comments: other comments keep its client, and with it a connection that would end a silent one.
            false => response.is_early.then_some(idle_stream),
        };
        interval.map(|interval| Self::new(interval, idle_stream))
    }

    fn new(interval: Duration, idle_stream: Duration) -> Self {
        let now = Instant::now();
        Self {
            interval,
            idle_stream,
            tail: EventTail::default(),
            heard: now,
            sent: now,
            timer: None,
        }
    }

    /// Notes what the backend has sent.
    pub(super) fn heard(&mut self, data: &[u8]) {
        self.tail.extend(data);
        self.heard = Instant::now();
        self.sent = self.heard;
    }

    /// Ready when the client of a silent backend has to get something.
    pub(super) fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<SilentBackend> {
        loop {
            let end = self.heard + self.idle_stream;
            let due = end.min(self.sent + self.interval);
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if now < due {
                // The backend has sent something since the timer was set.
                timer.as_mut().reset(due);
                continue;
            }
            if now >= end {
                return Poll::Ready(SilentBackend::End);
            }
            self.sent = now;
            timer.as_mut().reset(end.min(now + self.interval));
            if self.tail.ends_event() {
                return Poll::Ready(SilentBackend::Comment);
            }
        }
    }
}

// === impl EventTail ===

impl EventTail {
    fn extend(&mut self, data: &[u8]) {
        let last = data.len().saturating_sub(4);
        for byte in &data[last..] {
            self.bytes = self.bytes << 8 | u32::from(*byte);
        }
        self.has_begun |= !data.is_empty();
    }

    /// Whether the stream stands where an event has ended, and nothing of the next one was sent. After a carriage return
    /// alone that is not known: a line feed may follow that belongs to it.
    fn ends_event(self) -> bool {
        let [_, a, b, c] = self.bytes.to_be_bytes();
        !self.has_begun || (b, c) == (b'\n', b'\n') || (a, b, c) == (b'\n', b'\r', b'\n')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_ended_behind_an_empty_line() {
        for (stream, ended) in [
            ("", true),
            ("data: x", false),
            ("data: x\n", false),
            ("data: x\n\n", true),
            ("data: x\n\ndata", false),
            ("data: x\r\n", false),
            ("data: x\r\n\r", false),
            ("data: x\r\n\r\n", true),
            ("data: x\n\r\n", true),
            ("data: x\r\r", false),
            (": comment\n\n", true),
        ] {
            // However the stream is cut.
            for cut in 0..=stream.len() {
                let mut tail = EventTail::default();
                tail.extend(&stream.as_bytes()[..cut]);
                tail.extend(&stream.as_bytes()[cut..]);
                assert_eq!(tail.ends_event(), ended, "{stream:?} cut at {cut}");
            }
        }
    }
}
