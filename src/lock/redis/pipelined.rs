//! One connection to one server, over which all callers send their commands.
//!
//! A command is encoded into a buffer that all callers share. The driver writes the buffer when it runs next, so the
//! commands of all turns that run before it leave in one system call, and it gives each reply to its caller.
//!
//! Invariant: a reply belongs to the oldest command without one. So a command whose caller has gone keeps its place
//! until its reply has arrived.
//!
//! Nothing bounds how many commands wait for a server that has stopped to read. Each caller gives up in time, and the
//! connection is given up at the first command without a reply.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::{Mutex, MutexGuard};
use redis::{Cmd, Pipeline, PushInfo, RedisResult, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use driver::ConnectionDriver;
use places::PipelineState;

mod driver;
mod places;

/// A connection over which commands are sent. Clones share it. When the last of them is dropped, the driver writes
/// what was sent, and closes the connection when the replies have arrived, or nobody would wait for them any more.
#[derive(Clone)]
pub(super) struct PipelinedConnection(Arc<OpenConnection>);

/// Closes the connection when it is dropped.
struct OpenConnection(Arc<Mutex<PipelineState>>);

/// The reply to a command, or the error that the server replied. Dropping it does not cancel the command.
pub(super) struct Reply<'c> {
    connection: &'c PipelinedConnection,
    number: u64,
    is_taken: bool,
}

// === impl PipelinedConnection ===

impl PipelinedConnection {
    /// A connection over `stream`, and the driver that has to run for it. Dropping the driver ends the connection at
    /// once. `on_push` gets what the server sends without being asked.
    pub(super) fn new<S, P>(stream: S, on_push: P) -> (Self, impl Future<Output = ()> + use<S, P>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
        P: Fn(PushInfo) + Unpin,
    {
        let state = Arc::<Mutex<PipelineState>>::default();
        let connection = Self(Arc::new(OpenConnection(Arc::clone(&state))));
        (connection, ConnectionDriver::new(stream, state, on_push))
    }

    /// Sends a command, even if the reply is never polled.
    pub(super) fn send(&self, command: &Cmd, give_up: Instant) -> Reply<'_> {
        self.send_written(give_up, |unsent| command.write_packed_command(unsent))
    }

    /// Sends the one command that `write` adds to what is yet to be written, even if the reply is never polled.
    pub(super) fn send_written(
        &self,
        give_up: Instant,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Reply<'_> {
        self.reply(self.enqueue(1, give_up, false, write))
    }

    /// Like [`PipelinedConnection::send_written`], and a cluster's node executes the command although it does not own
    /// the slot yet.
    pub(super) fn send_asking(
        &self,
        give_up: Instant,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Reply<'_> {
        let asking = self.enqueue(2, give_up, false, |unsent| {
            redis::cmd("ASKING").write_packed_command(unsent);
            write(unsent);
        });
        // Nobody waits for the reply to ASKING.
        drop(self.reply(asking));
        self.reply(asking + 1)
    }

    /// Sends all commands of a pipeline, which is no transaction, and gives their replies. An error that the server
    /// replied is one of them.
    ///
    /// # Errors
    /// When the connection is lost, or a reply doesn't arrive until `give_up`.
    pub(super) async fn send_all(
        &self,
        commands: &Pipeline,
        give_up: Instant,
    ) -> RedisResult<Vec<Value>> {
        debug_assert!(
            !commands.is_transaction(),
            "MULTI and EXEC have replies, too"
        );
        let count = commands.cmd_iter().count();
        let first = self.enqueue(count, give_up, false, |unsent| {
            for command in commands.cmd_iter() {
                command.write_packed_command(unsent);
            }
        });
        // Each has a reply of its own, so that all leave when this future is dropped.
        let numbers = first..first + count as u64;
        let replies: Vec<_> = numbers.map(|number| self.reply(number)).collect();
        let mut values = Vec::with_capacity(count);
        for mut reply in replies {
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
        let number = self.enqueue(1, give_up, true, write);
        self.reply(number).await.map(drop)
    }

    /// Sends commands, which `write` encodes. Gives the number of the first of them.
    fn enqueue(
        &self,
        count: usize,
        give_up: Instant,
        subscribes: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> u64 {
        let (number, driver) = self.state().enqueue(count, give_up, subscribes, write);
        driver.into_iter().for_each(Waker::wake);
        number
    }

    /// The reply to the command with this number. Each command has one only.
    fn reply(&self, number: u64) -> Reply<'_> {
        Reply {
            connection: self,
            number,
            is_taken: false,
        }
    }

    fn state(&self) -> MutexGuard<'_, PipelineState> {
        self.0.0.lock()
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let driver = self.0.lock().close();
        driver.into_iter().for_each(Waker::wake);
    }
}

// === impl Reply ===

impl Reply<'_> {
    /// The reply, even if it is an error that the server replied.
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

#[cfg(test)]
mod tests;
