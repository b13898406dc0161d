//! One connection to one server, over which all callers send their commands.
//!
//! A command is encoded into a buffer that all callers share. The driver writes the buffer when it runs next, so the
//! commands of all turns that run before it leave in one system call, and it gives each reply to its caller.
//!
//! Invariant: a reply belongs to the oldest command without one. So a command whose caller has gone keeps its place
//! until its reply has arrived.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use redis::{Cmd, Pipeline, PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::frame::FrameBuffer;

/// A connection over which commands are sent. Clones share it; it is closed with the last of them.
#[derive(Clone)]
pub(super) struct PipelinedConnection(Arc<OpenConnection>);

/// Closes the connection when it is dropped.
struct OpenConnection(Arc<Mutex<ConnectionState>>);

/// What callers and the driver share.
#[derive(Default)]
struct ConnectionState {
    /// Encoded commands that the driver has yet to write.
    unsent: Vec<u8>,
    /// The commands from the oldest one on that has no reply, or whose caller has not taken the reply.
    places: VecDeque<ReplyPlace>,
    /// The number of the first of these commands.
    first: u64,
    /// How many of the commands have a reply. They come first.
    replied: usize,
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
    /// The reply, which the caller has yet to take.
    Replied(Value),
    /// The caller has yet to learn that there was no reply in time.
    Expired,
    /// The caller has gone.
    Left,
}

/// The reply to a command. Dropping it does not cancel the command.
pub(super) struct Reply<'c> {
    connection: &'c PipelinedConnection,
    number: u64,
    is_taken: bool,
}

/// Reads and writes a connection until it is lost, or nobody uses it any more. Dropping it closes the connection.
pub(super) struct ConnectionDriver<S, P> {
    stream: S,
    state: Arc<Mutex<ConnectionState>>,
    /// Gets what the server sends without being asked.
    on_push: P,
    /// Where the stream puts what it has received.
    chunk: Box<[u8]>,
    received: FrameBuffer,
    /// Commands that are being written.
    writing: Vec<u8>,
    written: usize,
    /// Whether the stream may keep what was written.
    needs_flush: bool,
    /// Fires when a caller may have waited for long enough; `None`: nobody waits.
    timer: Option<Pin<Box<Sleep>>>,
}

/// How much is read at once, in bytes: the replies to several hundred turns.
const CHUNK: usize = 8 << 10;

/// How much memory for commands is kept when they are written, in bytes.
const LARGEST_KEPT: usize = 64 << 10;

// === impl PipelinedConnection ===

impl PipelinedConnection {
    /// A connection over `stream`, and the driver that has to run for it. `on_push` gets what the server sends without
    /// being asked.
    pub(super) fn new<S, P>(stream: S, on_push: P) -> (Self, ConnectionDriver<S, P>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
        P: Fn(PushInfo) + Unpin,
    {
        let state = Arc::<Mutex<ConnectionState>>::default();
        let connection = Self(Arc::new(OpenConnection(Arc::clone(&state))));
        let driver = ConnectionDriver {
            stream,
            state,
            on_push,
            chunk: vec![0; CHUNK].into(),
            received: FrameBuffer::default(),
            writing: Vec::new(),
            written: 0,
            needs_flush: false,
            timer: None,
        };
        (connection, driver)
    }

    /// Sends a command. The future resolves with its reply, or with the error that the server replied.
    pub(super) fn send(&self, command: &Cmd, give_up: Instant) -> Reply<'_> {
        let write = |unsent: &mut Vec<u8>| command.write_packed_command(unsent);
        self.enqueue(1, give_up, false, write)
    }

    /// Sends a command that a cluster's node executes although it does not own the slot yet.
    pub(super) fn send_asking(&self, command: &Cmd, give_up: Instant) -> Reply<'_> {
        let mut reply = self.enqueue(2, give_up, false, |unsent| {
            redis::cmd("ASKING").write_packed_command(unsent);
            command.write_packed_command(unsent);
        });
        let mut state = self.state();
        state.leave(reply.number);
        reply.number += 1;
        reply
    }

    /// Sends all commands of a pipeline, and gives their replies. An error that the server replied is one of them.
    ///
    /// # Errors
    /// When the connection is lost, or a reply doesn't arrive until `give_up`.
    pub(super) async fn send_all(
        &self,
        commands: &Pipeline,
        give_up: Instant,
    ) -> RedisResult<Vec<Value>> {
        let count = commands.len();
        let first = self.enqueue(count, give_up, false, |unsent| {
            unsent.extend_from_slice(&commands.get_packed_pipeline());
        });
        let mut replies: Vec<_> = (1..count as u64)
            .map(|at| Reply {
                connection: self,
                number: first.number + at,
                is_taken: false,
            })
            .collect();
        replies.insert(0, first);
        let mut values = Vec::with_capacity(count);
        for reply in &mut replies {
            values.push(std::future::poll_fn(|cx| reply.poll_value(cx)).await?);
        }
        Ok(values)
    }

    /// Sends all commands of a pipeline.
    ///
    /// # Errors
    /// As [`PipelinedConnection::send_all`], and when the server replies to one of them with an error.
    pub(super) async fn execute(&self, commands: &Pipeline, give_up: Instant) -> RedisResult<()> {
        let replies = self.send_all(commands, give_up).await?;
        replies
            .into_iter()
            .try_for_each(|reply| reply.extract_error().map(drop))
    }

    /// Subscribes to a channel. RESP3 only.
    ///
    /// # Errors
    /// When the server refuses it, the connection is lost, or the reply doesn't arrive until `give_up`.
    pub(super) async fn subscribe(&self, channel: &str, give_up: Instant) -> RedisResult<()> {
        let mut subscribe = redis::cmd("SUBSCRIBE");
        subscribe.arg(channel);
        let write = |unsent: &mut Vec<u8>| subscribe.write_packed_command(unsent);
        self.enqueue(1, give_up, true, write).await.map(drop)
    }

    fn enqueue(
        &self,
        count: usize,
        give_up: Instant,
        subscribes: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Reply<'_> {
        let mut state = self.state();
        let number = state.first + state.places.len() as u64;
        if state.lost.is_none() {
            write(&mut state.unsent);
        }
        let soonest = state
            .soonest
            .map_or(give_up, |soonest| soonest.min(give_up));
        state.soonest = Some(soonest);
        for _ in 0..count {
            state.places.push_back(ReplyPlace {
                give_up,
                subscribes,
                state: PlaceState::Waiting(None),
            });
        }
        state.wake_driver();
        Reply {
            connection: self,
            number,
            is_taken: false,
        }
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, ConnectionState> {
        self.0.0.lock()
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_closed = true;
        state.wake_driver();
    }
}

// === impl ConnectionState ===

impl ConnectionState {
    fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    fn place(&mut self, number: u64) -> Option<&mut ReplyPlace> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.places.get_mut(at)
    }

    /// Gives the reply to a command to its caller.
    fn poll_reply(&mut self, number: u64, cx: &Context<'_>) -> Poll<RedisResult<Value>> {
        let lost = self.lost.clone();
        let Some(place) = self.place(number) else {
            return Poll::Ready(Err(closed()));
        };
        let result = match &mut place.state {
            PlaceState::Waiting(waker) => match lost {
                Some(error) => Err(error),
                None => {
                    match waker {
                        Some(waker) => waker.clone_from(cx.waker()),
                        None => *waker = Some(cx.waker().clone()),
                    }
                    return Poll::Pending;
                }
            },
            PlaceState::Expired => Err(no_reply()),
            state @ PlaceState::Replied(_) => match mem::replace(state, PlaceState::Left) {
                PlaceState::Replied(value) => Ok(value),
                _ => Err(closed()),
            },
            PlaceState::Left => Err(closed()),
        };
        self.leave(number);
        Poll::Ready(result)
    }

    /// Notes that the caller of a command has gone.
    fn leave(&mut self, number: u64) {
        if let Some(place) = self.place(number) {
            place.state = PlaceState::Left;
        }
        while self.replied > 0
            && let Some(ReplyPlace {
                state: PlaceState::Left,
                ..
            }) = self.places.front()
        {
            self.places.pop_front();
            self.first += 1;
            self.replied -= 1;
        }
    }

    /// Gives a reply to the oldest command without one.
    fn on_reply(&mut self, value: Value) -> RedisResult<()> {
        let number = self.first + self.replied as u64;
        let Some(place) = self.places.get_mut(self.replied) else {
            return Err(io::Error::other("the server replied to no command").into());
        };
        self.replied += 1;
        match &mut place.state {
            PlaceState::Waiting(waker) => {
                let waker = waker.take();
                place.state = PlaceState::Replied(value);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            PlaceState::Left => self.leave(number),
            PlaceState::Expired | PlaceState::Replied(_) => {}
        }
        Ok(())
    }

    /// Whether the next reply is a push.
    fn awaits_subscription(&self) -> bool {
        let next = self.places.get(self.replied);
        next.is_some_and(|place| place.subscribes)
    }

    /// Tells callers that have waited for long enough. Gives when the next of them has; `None`: nobody waits.
    fn expire(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for place in self.places.range_mut(self.replied..) {
            let PlaceState::Waiting(waker) = &mut place.state else {
                continue;
            };
            if place.give_up <= now {
                let waker = waker.take();
                place.state = PlaceState::Expired;
                if let Some(waker) = waker {
                    waker.wake();
                }
            } else {
                next = Some(next.map_or(place.give_up, |next| next.min(place.give_up)));
            }
        }
        next
    }

    /// Tells all callers that there will be no more replies.
    fn lose(&mut self, error: RedisError) {
        self.lost.get_or_insert(error);
        self.unsent = Vec::new();
        for place in &mut self.places {
            if let PlaceState::Waiting(waker) = &mut place.state
                && let Some(waker) = waker.take()
            {
                waker.wake();
            }
        }
    }
}

/// The error for a command over a connection that was closed.
fn closed() -> RedisError {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection was closed",
    )
    .into()
}

/// The error for a command without a reply in time.
fn no_reply() -> RedisError {
    io::Error::new(io::ErrorKind::TimedOut, "no reply in time").into()
}

// === impl Reply ===

impl Reply<'_> {
    fn poll_value(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        let value = ready!(self.connection.state().poll_reply(self.number, cx));
        self.is_taken = true;
        Poll::Ready(value)
    }
}

impl Future for Reply<'_> {
    type Output = RedisResult<Value>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let value = ready!(self.poll_value(cx));
        Poll::Ready(value.and_then(Value::extract_error))
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if !self.is_taken {
            self.connection.state().leave(self.number);
        }
    }
}

// === impl ConnectionDriver ===

impl<S: AsyncRead + AsyncWrite + Unpin, P: Fn(PushInfo) + Unpin> ConnectionDriver<S, P> {
    /// Ready when the connection has ended.
    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<()>> {
        if self.poll_read(cx)?.is_ready() {
            return Poll::Ready(Err(closed()));
        }
        // The waker stands there before the buffer is looked at, so that no command is overlooked.
        let (is_closed, soonest) = {
            let mut state = self.state.lock();
            match &mut state.driver {
                Some(waker) => waker.clone_from(cx.waker()),
                driver => *driver = Some(cx.waker().clone()),
            }
            (state.is_closed, state.soonest.take())
        };
        // What was sent before is written all the same.
        if self.poll_write(cx)?.is_ready() && is_closed {
            return Poll::Ready(Ok(()));
        }
        self.poll_expire(soonest, cx);
        Poll::Pending
    }

    /// Reads until nothing is left. Ready when the server has closed the connection.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<()>> {
        loop {
            let mut buffer = ReadBuf::new(&mut self.chunk);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.received.extend(buffer.filled());
            while let Some(value) = self.received.next()? {
                match value {
                    Value::Push { kind, data } => self.on_push(kind, data)?,
                    value => self.state.lock().on_reply(value)?,
                }
            }
        }
    }

    fn on_push(&mut self, kind: PushKind, data: Vec<Value>) -> RedisResult<()> {
        let mut state = self.state.lock();
        if kind == PushKind::Subscribe && state.awaits_subscription() {
            return state.on_reply(Value::Okay);
        }
        drop(state);
        (self.on_push)(PushInfo { kind, data });
        Ok(())
    }

    /// Writes what callers have sent. Ready when everything is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<()>> {
        loop {
            if self.written == self.writing.len() {
                self.writing.clear();
                self.writing.shrink_to(LARGEST_KEPT);
                self.written = 0;
                mem::swap(&mut self.writing, &mut self.state.lock().unsent);
            }
            let left = &self.writing[self.written..];
            if left.is_empty() {
                break;
            }
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, left))?;
            if count == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
            }
            self.written += count;
            self.needs_flush = true;
        }
        if self.needs_flush {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells callers that have waited for long enough. `soonest`: when the first of the new ones has; `None`: there are
    /// none. The timer is set when it fires, and hardly ever for a command.
    fn poll_expire(&mut self, soonest: Option<Instant>, cx: &mut Context<'_>) {
        match (&mut self.timer, soonest) {
            (Some(timer), Some(soonest)) if soonest < timer.deadline() => {
                timer.as_mut().reset(soonest);
            }
            (timer @ None, Some(soonest)) => *timer = Some(Box::pin(sleep_until(soonest))),
            _ => {}
        }
        while let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            match self.state.lock().expire(Instant::now()) {
                Some(next) => timer.as_mut().reset(next),
                None => self.timer = None,
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, P: Fn(PushInfo) + Unpin> Future for ConnectionDriver<S, P> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ended = ready!(self.poll_run(cx));
        let error = ended.err().unwrap_or_else(closed);
        self.state.lock().lose(error);
        Poll::Ready(())
    }
}

impl<S, P> Drop for ConnectionDriver<S, P> {
    fn drop(&mut self) {
        self.state.lock().lose(closed());
    }
}
