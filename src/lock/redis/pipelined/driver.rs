//! The task of a connection: writes what callers have sent, gives them the replies, and ends their wait in time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::super::frame::{FrameBuffer, whole_number};
use super::places::{PipelineState, closed};

/// Reads and writes a connection until it is lost, or nobody uses it any more. Dropping it closes the connection.
pub(super) struct ConnectionDriver<S, P> {
    stream: S,
    state: Arc<Mutex<PipelineState>>,
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
    /// Fires when a command without a reply may have to be given up; `None`: there is none.
    timer: Option<Pin<Box<Sleep>>>,
}

/// How much is read at once, in bytes: the replies to several hundred turns.
const CHUNK: usize = 8 << 10;

/// How much memory for commands is kept when they are written, in bytes.
const LARGEST_KEPT: usize = 64 << 10;

// === impl ConnectionDriver ===

impl<S, P> ConnectionDriver<S, P> {
    pub(super) fn new(stream: S, state: Arc<Mutex<PipelineState>>, on_push: P) -> Self {
        Self {
            stream,
            state,
            on_push,
            chunk: vec![0; CHUNK].into(),
            received: FrameBuffer::default(),
            writing: Vec::new(),
            written: 0,
            needs_flush: false,
            timer: None,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, P: Fn(PushInfo) + Unpin> ConnectionDriver<S, P> {
    /// Ready when the connection has ended.
    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<()>> {
        // First, because a server may say why it closes the connection, and the next write fails then. And a server
        // may read nothing before its replies are read.
        if self.poll_read(cx)?.is_ready() {
            return Poll::Ready(Err(closed()));
        }
        // The waker stands there before the commands are looked at, so that none is overlooked.
        let work = self.state.lock().work(cx);
        if work.is_closed && !work.awaits_replies {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            return Poll::Ready(Ok(()));
        }
        // What was sent before the connection was closed is written all the same.
        let _ = self.poll_write(cx)?;
        self.poll_expire(work.soonest, cx);
        match work.is_closed && self.timer.is_none() {
            // Nobody would have waited for longer.
            true => Poll::Ready(Err(closed())),
            false => Poll::Pending,
        }
    }

    /// Reads until nothing is left. Ready when the server has closed the connection.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<()>> {
        loop {
            let mut buffer = ReadBuf::new(&mut self.chunk);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            let length = buffer.filled().len();
            if length == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut rest = &self.chunk[..length];
            if self.received.is_empty() {
                // The usual replies need no copy.
                while let Some((number, behind)) = whole_number(rest)? {
                    self.on_reply(Value::Int(number))?;
                    rest = behind;
                }
                if rest.is_empty() {
                    continue;
                }
            }
            self.received.extend(rest);
            while let Some(value) = self.received.next()? {
                match value {
                    Value::Push { kind, data } => self.on_push(kind, data)?,
                    value => self.on_reply(value)?,
                }
            }
        }
    }

    fn on_reply(&self, value: Value) -> RedisResult<()> {
        let caller = self.state.lock().on_reply(value)?;
        wake(caller);
        Ok(())
    }

    /// A push that confirms a subscription is a reply. All others go to the callback.
    fn on_push(&self, kind: PushKind, data: Vec<Value>) -> RedisResult<()> {
        if kind == PushKind::Subscribe && self.state.lock().awaits_subscription() {
            return self.on_reply(Value::Okay);
        }
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
                self.state.lock().take_unsent(&mut self.writing);
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

    /// Ends the wait of callers that have waited for long enough. `soonest`: when the first of the new ones has;
    /// `None`: there are none. The timer is set when it fires, and hardly ever for a command.
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
            let (callers, next) = self.state.lock().expire(Instant::now());
            match next {
                Some(next) => timer.as_mut().reset(next),
                None => self.timer = None,
            }
            wake(callers);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, P: Fn(PushInfo) + Unpin> Future for ConnectionDriver<S, P> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ended = ready!(self.poll_run(cx));
        let error = ended.err().unwrap_or_else(closed);
        let callers = self.state.lock().lose(error);
        wake(callers);
        Poll::Ready(())
    }
}

impl<S, P> Drop for ConnectionDriver<S, P> {
    fn drop(&mut self) {
        let callers = self.state.lock().lose(closed());
        wake(callers);
    }
}

/// Wakes tasks. The state must not be locked.
fn wake(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}
