//! What the callers of a connection share with its driver: the commands that are yet to be written, and the place of
//! each command among those without a reply.
//!
//! Invariant: no waker is woken while the state is locked. What is woken may send the next command.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::task::{Context, Poll, Waker};

use redis::{RedisError, RedisResult, Value};
use tokio::time::Instant;

/// What callers and the driver share.
#[derive(Default)]
pub(super) struct PipelineState {
    /// Encoded commands that the driver has yet to write.
    unsent: Vec<u8>,
    /// The commands from the oldest one on that has no reply, or whose caller has not taken the reply.
    places: VecDeque<ReplyPlace>,
    /// The number of the first of these commands.
    first: u64,
    /// How many of the commands have a reply, or can't get one any more. They come first.
    settled: usize,
    /// When the first of the callers that came since the driver has looked stops to wait; `None`: none came.
    soonest: Option<Instant>,
    /// Wakes the driver.
    driver: Option<Waker>,
    /// Whether nobody sends commands any more.
    is_closed: bool,
    /// Why there will be no more replies; `None`: there will be.
    lost: Option<RedisError>,
}

/// A command's place among the commands of the connection.
struct ReplyPlace {
    /// When the caller stops to wait.
    give_up: Instant,
    /// Whether a push replies to the command.
    subscribes: bool,
    state: PlaceState,
}

enum PlaceState {
    /// The caller waits, and is woken by this.
    Waiting(Option<Waker>),
    /// What the caller has yet to take: the reply, or why there was none.
    Ended(RedisResult<Value>),
    /// The caller has gone.
    Left,
}

/// What the driver has to do besides reading.
pub(super) struct DriverWork {
    /// When the first of the callers that came since the last look stops to wait; `None`: none came.
    pub(super) soonest: Option<Instant>,
    /// Whether nobody sends commands any more.
    pub(super) is_closed: bool,
    /// Whether a command has no reply yet.
    pub(super) awaits_replies: bool,
}

// === impl PipelineState ===

impl PipelineState {
    // --- for callers ---

    /// Adds commands, which `write` encodes. Gives the number of the first of them, and what wakes the driver. Over a
    /// lost connection nothing is sent.
    pub(super) fn enqueue(
        &mut self,
        count: usize,
        give_up: Instant,
        subscribes: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> (u64, Option<Waker>) {
        let number = self.first + self.places.len() as u64;
        if self.lost.is_some() {
            return (number, None);
        }
        write(&mut self.unsent);
        let soonest = self.soonest.unwrap_or(give_up).min(give_up);
        self.soonest = Some(soonest);
        self.places.extend((0..count).map(|_| ReplyPlace {
            give_up,
            subscribes,
            state: PlaceState::Waiting(None),
        }));
        (number, self.driver.take())
    }

    /// Gives the reply to a command to its caller.
    pub(super) fn poll_reply(&mut self, number: u64, cx: &Context<'_>) -> Poll<RedisResult<Value>> {
        let Some(place) = self.place(number) else {
            return Poll::Ready(Err(self.lost.clone().unwrap_or_else(closed)));
        };
        if let PlaceState::Waiting(waker) = &mut place.state {
            match waker {
                // The caller may be another task than before.
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let ended = mem::replace(&mut place.state, PlaceState::Left);
        self.remove_left();
        Poll::Ready(match ended {
            PlaceState::Ended(result) => result,
            PlaceState::Waiting(_) | PlaceState::Left => Err(closed()),
        })
    }

    /// Notes that the caller of a command has gone. The command keeps its place until it is settled.
    pub(super) fn leave(&mut self, number: u64) {
        if let Some(place) = self.place(number) {
            place.state = PlaceState::Left;
            self.remove_left();
        }
    }

    /// Notes that nobody sends commands any more. Gives what wakes the driver.
    pub(super) fn close(&mut self) -> Option<Waker> {
        self.is_closed = true;
        self.driver.take()
    }

    fn place(&mut self, number: u64) -> Option<&mut ReplyPlace> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.places.get_mut(at)
    }

    /// Removes the places that nobody needs, from the oldest one on.
    fn remove_left(&mut self) {
        let is_left = |place: &ReplyPlace| matches!(place.state, PlaceState::Left);
        while self.settled > 0 && self.places.front().is_some_and(is_left) {
            self.places.pop_front();
            self.first += 1;
            self.settled -= 1;
        }
    }

    // --- for the driver ---

    /// What there is to do. The driver is woken when there is more.
    pub(super) fn work(&mut self, cx: &Context<'_>) -> DriverWork {
        match &mut self.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            driver => *driver = Some(cx.waker().clone()),
        }
        DriverWork {
            soonest: self.soonest.take(),
            is_closed: self.is_closed,
            awaits_replies: self.settled < self.places.len(),
        }
    }

    /// Exchanges `written`, which has to be empty, for the commands that are yet to be written.
    pub(super) fn take_unsent(&mut self, written: &mut Vec<u8>) {
        debug_assert!(written.is_empty(), "no command gets lost");
        mem::swap(&mut self.unsent, written);
    }

    /// Gives a reply to the oldest command without one. Gives what wakes its caller.
    ///
    /// # Errors
    /// When there is no such command: an error that the server sent by itself, for it refuses the connection.
    pub(super) fn on_reply(&mut self, value: Value) -> RedisResult<Option<Waker>> {
        let Some(place) = self.places.get_mut(self.settled) else {
            value.extract_error()?;
            return Err(io::Error::other("the server replied to no command").into());
        };
        self.settled += 1;
        let waker = match &mut place.state {
            PlaceState::Waiting(waker) => {
                let waker = waker.take();
                place.state = PlaceState::Ended(Ok(value));
                waker
            }
            // The caller has given up, or has gone.
            PlaceState::Ended(_) | PlaceState::Left => None,
        };
        self.remove_left();
        Ok(waker)
    }

    /// Whether the next reply is a push.
    pub(super) fn awaits_subscription(&self) -> bool {
        let next = self.places.get(self.settled);
        next.is_some_and(|place| place.subscribes)
    }

    /// Ends the wait of callers that have waited for long enough. Gives what wakes them, and when the next command
    /// without a reply is given up, even if its caller has gone; `None`: there is none.
    pub(super) fn expire(&mut self, now: Instant) -> (Vec<Waker>, Option<Instant>) {
        let (mut wakers, mut next) = (Vec::new(), None::<Instant>);
        for place in self.places.range_mut(self.settled..) {
            if place.give_up > now {
                next = Some(next.unwrap_or(place.give_up).min(place.give_up));
            } else if let PlaceState::Waiting(waker) = &mut place.state {
                wakers.extend(waker.take());
                place.state = PlaceState::Ended(Err(no_reply()));
            }
        }
        (wakers, next)
    }

    /// Notes that there will be no more replies. Gives what wakes the callers. Only the first reason counts.
    pub(super) fn lose(&mut self, error: RedisError) -> Vec<Waker> {
        let error = self.lost.get_or_insert_with(|| match error.is_timeout() {
            // The timeout of the network is none of a caller's.
            true => io::Error::new(io::ErrorKind::ConnectionAborted, error.to_string()).into(),
            false => error,
        });
        let mut wakers = Vec::new();
        for place in &mut self.places {
            if let PlaceState::Waiting(waker) = &mut place.state {
                wakers.extend(waker.take());
                place.state = PlaceState::Ended(Err(error.clone()));
            }
        }
        self.settled = self.places.len();
        self.unsent = Vec::new();
        self.remove_left();
        wakers
    }

    /// How many commands the connection remembers.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.places.len()
    }
}

/// The error for a command over a connection that was closed.
pub(super) fn closed() -> RedisError {
    let text = "the connection was closed";
    io::Error::new(io::ErrorKind::ConnectionAborted, text).into()
}

/// The error for a command without a reply in time.
fn no_reply() -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, "no reply in time").into()
}
