//! The connection against a scripted server, with paused time.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use redis::{Cmd, PushInfo, PushKind, RedisResult, Value};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufWriter, DuplexStream, ReadBuf,
    duplex,
};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, advance};

use super::super::frame::FrameBuffer;
use super::PipelinedConnection;
use crate::time_limit::limit_this_test;

mod interleavings;

/// How long callers wait that are to get their replies.
const LONG: Duration = Duration::from_secs(60);

/// The other end of a connection.
struct FakeServer {
    stream: DuplexStream,
    received: FrameBuffer,
}

impl FakeServer {
    fn new(stream: DuplexStream) -> Self {
        let received = FrameBuffer::default();
        Self { stream, received }
    }

    /// The words of the next command; `None`: the connection was closed.
    async fn next_command(&mut self) -> Option<String> {
        loop {
            if let Some(command) = self.received.next().expect("a command") {
                return Some(words(&command));
            }
            let mut bytes = [0; 1024];
            match self.stream.read(&mut bytes).await.expect("readable") {
                0 => return None,
                read => self.received.extend(&bytes[..read]),
            }
        }
    }

    async fn expect(&mut self, command: &str) {
        let next = self.next_command().await;
        assert_eq!(next.as_deref(), Some(command), "the next command");
    }

    async fn reply(&mut self, replies: &str) {
        let sent = self.stream.write_all(replies.as_bytes()).await;
        sent.expect("the client reads");
    }
}

fn words(command: &Value) -> String {
    let Value::Array(words) = command else {
        panic!("{command:?} is no command")
    };
    let words = words.iter().map(|word| match word {
        Value::BulkString(word) => String::from_utf8_lossy(word),
        word => panic!("{word:?} is no word"),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A connection whose driver runs, its pushes, and the server.
struct Bench {
    connection: PipelinedConnection,
    driver: JoinHandle<()>,
    pushes: Arc<Mutex<Vec<PushInfo>>>,
    server: FakeServer,
}

fn start() -> Bench {
    let (stream, server) = duplex(64 << 10);
    start_over(stream, server)
}

fn start_over<S>(stream: S, server: DuplexStream) -> Bench
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let pushes = Arc::<Mutex<Vec<_>>>::default();
    let on_push = {
        let pushes = Arc::clone(&pushes);
        move |push| pushes.lock().push(push)
    };
    let (connection, driver) = PipelinedConnection::new(stream, on_push);
    Bench {
        connection,
        driver: tokio::spawn(driver),
        pushes,
        server: FakeServer::new(server),
    }
}

fn get(key: impl ToString) -> Cmd {
    let mut get = redis::cmd("GET");
    get.arg(key.to_string());
    get
}

fn soon() -> Instant {
    Instant::now() + LONG
}

fn is_late(result: &RedisResult<Value>) -> bool {
    matches!(result, Err(error) if error.is_timeout())
}

fn remembered(connection: &PipelinedConnection) -> usize {
    connection.state().remembered()
}

/// Counts how often it wakes.
#[derive(Default)]
struct CountingWaker(AtomicUsize);

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// === order ===

#[tokio::test(start_paused = true)]
async fn a_dropped_caller_keeps_the_place_of_its_command() {
    limit_this_test();
    let mut it = start();
    let [first, gone, third] = [1, 2, 3].map(|key| it.connection.send(&get(key), soon()));
    drop(gone);
    for key in 1..=3 {
        it.server.expect(&format!("GET {key}")).await;
    }
    it.server.reply(":1\r\n:2\r\n:3\r\n").await;
    assert_eq!(third.await, Ok(Value::Int(3)), "its own, polled first");
    assert_eq!(first.await, Ok(Value::Int(1)), "its own");
    assert_eq!(remembered(&it.connection), 0, "no place stays");
}

#[tokio::test(start_paused = true)]
async fn the_reply_to_asking_belongs_to_nobody() {
    limit_this_test();
    let mut it = start();
    let asked = it
        .connection
        .send_asking(soon(), |unsent| get(1).write_packed_command(unsent));
    let next = it.connection.send(&get(2), soon());
    for command in ["ASKING", "GET 1", "GET 2"] {
        it.server.expect(command).await;
    }
    it.server.reply("-ERR no cluster\r\n:1\r\n:2\r\n").await;
    assert_eq!(asked.await, Ok(Value::Int(1)), "the command's own reply");
    assert_eq!(next.await, Ok(Value::Int(2)), "and that of the next one");
    assert_eq!(remembered(&it.connection), 0, "no place stays");
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_gives_errors_as_replies_and_may_be_dropped_in_the_middle() {
    limit_this_test();
    let mut it = start();
    let mut commands = redis::pipe();
    for key in 1..=3 {
        commands.add_command(get(key));
    }
    {
        let mut dropped = Box::pin(it.connection.send_all(&commands, soon()));
        assert!(dropped.as_mut().now_or_never().is_none(), "no reply yet");
        it.server.reply(":1\r\n").await;
        yield_now().await;
        assert!(dropped.as_mut().now_or_never().is_none(), "one of three");
    }
    let next = it.connection.send_all(&commands, soon());
    let refused = it.connection.execute(&commands, soon());
    let nothing = redis::pipe();
    let empty = it.connection.send_all(&nothing, soon());
    let after = it.connection.send(&get(4), soon());
    it.server.reply(":2\r\n:3\r\n:4\r\n").await;
    it.server
        .reply(":5\r\n-ERR six\r\n:7\r\n:8\r\n-ERR nine\r\n:10\r\n")
        .await;
    let (after, next, refused, empty) = tokio::join!(after, next, refused, empty);
    assert_eq!(
        after,
        Ok(Value::Int(4)),
        "sent first, for the others are lazy"
    );
    let next = next.expect("replies");
    assert_eq!([&next[0], &next[2]], [&Value::Int(5), &Value::Int(7)]);
    let error = next[1].clone().extract_error().expect_err("an error");
    assert_eq!(error.detail(), Some("six"), "an error is a reply");
    let error = refused.expect_err("one command failed");
    assert_eq!(error.detail(), Some("nine"), "the first error");
    assert_eq!(empty, Ok(vec![]), "no command has no reply");
    assert_eq!(remembered(&it.connection), 0, "no place stays");
}

#[tokio::test(start_paused = true)]
async fn a_reply_to_no_command_ends_the_connection_and_an_error_is_its_reason() {
    limit_this_test();
    for (reply, reason) in [
        (":1\r\n", "replied to no command"),
        (
            "-ERR max number of clients reached\r\n",
            "max number of clients",
        ),
        ("HTTP/1.1 400 Bad Request\r\n", "no reply of Redis"),
    ] {
        let mut it = start();
        it.server.reply(reply).await;
        it.driver.await.expect("ended");
        let error = it.connection.send(&get(1), soon()).await;
        let error = error.expect_err("no connection").to_string();
        assert!(error.contains(reason), "{error}");
    }
}

// === pushes ===

#[tokio::test(start_paused = true)]
async fn a_subscription_is_confirmed_by_a_push_and_refused_by_an_error() {
    limit_this_test();
    let mut it = start();
    let message = ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n";
    let confirmed = ">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n";
    let serve = async {
        it.server.expect("SUBSCRIBE c").await;
        it.server.reply(message).await;
        it.server.reply(confirmed).await;
        it.server.expect("SUBSCRIBE d").await;
        it.server.reply("-NOPERM no\r\n").await;
    };
    let subscribe = async {
        let subscribed = it.connection.subscribe("c", soon()).await;
        subscribed.expect("confirmed by its own push");
        let refused = it.connection.subscribe("d", soon()).await;
        assert_eq!(refused.expect_err("refused").code(), Some("NOPERM"));
    };
    tokio::join!(serve, subscribe);
    let kinds = |it: &Bench| {
        it.pushes
            .lock()
            .iter()
            .map(|push| push.kind.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(&it), [PushKind::Message], "a message is no reply");
    let reply = it.connection.send(&get(1), soon());
    it.server.expect("GET 1").await;
    it.server.reply(confirmed).await;
    it.server.reply(":1\r\n").await;
    assert_eq!(reply.await, Ok(Value::Int(1)), "no push replies to GET");
    let expected = [PushKind::Message, PushKind::Subscribe];
    assert_eq!(kinds(&it), expected, "nobody asked for it");
}

#[tokio::test(start_paused = true)]
async fn who_is_called_or_woken_may_send_the_next_command() {
    limit_this_test();
    struct SendingWaker(PipelinedConnection);
    impl Wake for SendingWaker {
        fn wake(self: Arc<Self>) {
            drop(self.0.send(&get("woken"), soon()));
        }
    }
    let (stream, server) = duplex(1024);
    let shared = Arc::new(OnceLock::<PipelinedConnection>::new());
    let on_push = {
        let shared = Arc::clone(&shared);
        move |_| drop(shared.get().expect("set").send(&get("pushed"), soon()))
    };
    let (connection, driver) = PipelinedConnection::new(stream, on_push);
    shared.set(connection.clone()).ok().expect("set once");
    let driver = tokio::spawn(driver);
    let mut server = FakeServer::new(server);
    server.reply(">2\r\n+message\r\n+c\r\n").await;
    server.expect("GET pushed").await;
    server.reply(":0\r\n").await;
    let waker = Waker::from(Arc::new(SendingWaker(connection.clone())));
    let mut cx = Context::from_waker(&waker);
    let mut replied = connection.send(&get(1), soon());
    let mut expired = connection.send(&get(2), Instant::now() + LONG / 2);
    let mut lost = connection.send(&get(3), soon());
    for reply in [&mut replied, &mut expired, &mut lost] {
        assert!(Pin::new(reply).poll(&mut cx).is_pending(), "no reply yet");
    }
    for key in 1..=3 {
        server.expect(&format!("GET {key}")).await;
    }
    server.reply(":1\r\n").await;
    server.expect("GET woken").await;
    advance(LONG / 2).await;
    server.expect("GET woken").await;
    driver.abort();
    let ended = driver.await.expect_err("aborted");
    assert!(ended.is_cancelled(), "nothing has failed: {ended}");
    assert!(lost.await.is_err(), "there is no reply");
}

// === time ===

#[tokio::test(start_paused = true)]
async fn each_caller_waits_until_its_own_time_and_a_late_reply_is_nobodys() {
    limit_this_test();
    let mut it = start();
    let began = Instant::now();
    let at = |seconds| began + Duration::from_secs(seconds);
    let patient = it.connection.send(&get(1), at(9));
    yield_now().await;
    let soon = it.connection.send(&get(2), at(2));
    let later = it.connection.send(&get(3), at(5));
    let unpolled = it.connection.send(&get(4), at(5));
    assert!(is_late(&soon.await), "no reply");
    assert_eq!(
        Instant::now().duration_since(began).as_secs(),
        2,
        "the earliest"
    );
    assert!(is_late(&later.await), "no reply");
    assert_eq!(
        Instant::now().duration_since(began).as_secs(),
        5,
        "the next one"
    );
    it.server.reply(":1\r\n:2\r\n:3\r\n:4\r\n").await;
    assert_eq!(patient.await, Ok(Value::Int(1)), "it is not late");
    assert!(is_late(&unpolled.await), "its time was over");
    let next = it.connection.send(&get(5), at(9));
    it.server.reply(":5\r\n").await;
    assert_eq!(
        next.await,
        Ok(Value::Int(5)),
        "late replies were not its own"
    );
    let last = it.connection.send(&get(6), at(20));
    assert!(is_late(&last.await), "the timer is set again");
    assert_eq!(
        Instant::now().duration_since(began).as_secs(),
        20,
        "and not late"
    );
    drop(it.connection);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_reads_nothing_delays_no_timeout() {
    limit_this_test();
    let (stream, server) = duplex(16);
    let it = start_over(stream, server);
    let reply = it.connection.send(&get("k".repeat(1000)), soon());
    assert!(is_late(&reply.await), "no reply");
    drop(it.connection);
    it.driver.await.expect("nobody waits for the rest");
}

#[tokio::test(start_paused = true)]
async fn replies_are_read_while_the_server_reads_nothing() {
    limit_this_test();
    let (stream, server) = duplex(16);
    let mut it = start_over(stream, server);
    let first = it.connection.send(&get(1), soon());
    it.server.expect("GET 1").await;
    let second = it.connection.send(&get("k".repeat(1000)), soon());
    let long = format!("$1000\r\n{}\r\n", "v".repeat(1000));
    it.server.reply(&long).await;
    assert!(first.await.is_ok(), "the reply was read");
    it.server.expect(&format!("GET {}", "k".repeat(1000))).await;
    it.server.reply(":2\r\n").await;
    assert_eq!(second.await, Ok(Value::Int(2)), "and the rest was written");
}

// === the end ===

#[tokio::test(start_paused = true)]
async fn a_lost_connection_wakes_all_callers_and_remembers_none() {
    limit_this_test();
    let mut it = start();
    let [replied, one, two] = [1, 2, 3].map(|key| it.connection.send(&get(key), soon()));
    it.server.reply(":1\r\n").await;
    let wait = async { tokio::join!(one, two) };
    let lose = async {
        yield_now().await;
        drop(it.server);
    };
    let ((one, two), ()) = tokio::join!(wait, lose);
    for result in [one, two] {
        let error = result.expect_err("no reply");
        assert!(!error.is_timeout(), "nobody waits for it: {error}");
    }
    assert_eq!(replied.await, Ok(Value::Int(1)), "it came before");
    for key in 0..100 {
        let sent = it.connection.send(&get(key), soon());
        let result = sent.now_or_never().expect("it fails at once");
        result.expect_err("there is no connection");
    }
    assert_eq!(remembered(&it.connection), 0, "no place stays");
    it.driver.await.expect("ended");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_network_is_none_of_a_caller() {
    limit_this_test();
    struct DeadStream;
    impl AsyncRead for DeadStream {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
        }
    }
    impl AsyncWrite for DeadStream {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
    let it = start_over(DeadStream, duplex(1).0);
    let error = it.connection.send(&get(1), soon()).await.expect_err("dead");
    assert!(!error.is_timeout(), "the connection is lost: {error}");
    assert!(error.to_string().contains("timed out"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_is_written_and_executed_though_everybody_has_gone() {
    limit_this_test();
    let Bench {
        connection,
        driver,
        mut server,
        ..
    } = start();
    drop(connection.send(&get("release"), soon()));
    drop(connection);
    server.expect("GET release").await;
    yield_now().await;
    assert!(!driver.is_finished(), "the server may yet execute it");
    server.reply(":1\r\n").await;
    assert_eq!(
        server.next_command().await,
        None,
        "then the connection ends"
    );
    driver.await.expect("ended");
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_ends_when_nobody_would_wait_any_more() {
    limit_this_test();
    let it = start();
    let began = Instant::now();
    let short = it.connection.send(&get(1), began + LONG / 2);
    drop(it.connection.send(&get(2), began + LONG));
    assert!(is_late(&short.await), "no reply");
    drop(it.connection);
    yield_now().await;
    assert!(
        !it.driver.is_finished(),
        "the other command may be executed"
    );
    it.driver.await.expect("ended");
    assert_eq!(
        Instant::now().duration_since(began).as_secs(),
        LONG.as_secs(),
        "in time"
    );
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_with_its_last_clone() {
    limit_this_test();
    let mut it = start();
    let clone = it.connection.clone();
    drop(it.connection);
    yield_now().await;
    assert!(!it.driver.is_finished(), "a clone is there");
    drop(clone);
    it.driver.await.expect("ended");
    assert_eq!(it.server.next_command().await, None, "the server is told");
}

// === tasks and streams ===

#[tokio::test(start_paused = true)]
async fn the_task_that_polled_last_is_woken() {
    limit_this_test();
    let mut it = start();
    let mut reply = it.connection.send(&get(1), soon());
    let [first, second] = [(); 2].map(|()| Arc::new(CountingWaker::default()));
    for counter in [&first, &second] {
        let waker = Waker::from(Arc::clone(counter));
        let polled = Pin::new(&mut reply).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending(), "no reply yet");
    }
    it.server.expect("GET 1").await;
    it.server.reply(":1\r\n").await;
    yield_now().await;
    let woken = [first, second].map(|counter| counter.0.load(Ordering::Relaxed));
    assert_eq!(woken, [0, 1], "the last one, once");
    assert_eq!(reply.await, Ok(Value::Int(1)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_a_buffer_is_flushed() {
    limit_this_test();
    let (stream, server) = duplex(1024);
    let mut it = start_over(BufWriter::new(stream), server);
    let reply = it.connection.send(&get(1), soon());
    it.server.expect("GET 1").await;
    it.server.reply(":1\r\n").await;
    assert_eq!(reply.await, Ok(Value::Int(1)));
}

/// Counts the writes.
struct CountedWrites(DuplexStream, Arc<AtomicUsize>);

impl AsyncRead for CountedWrites {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for CountedWrites {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn the_commands_of_one_round_leave_in_one_write() {
    limit_this_test();
    let (stream, server) = duplex(1024);
    let writes = Arc::<AtomicUsize>::default();
    let mut it = start_over(CountedWrites(stream, Arc::clone(&writes)), server);
    for round in 1..=2 {
        let replies = [1, 2, 3].map(|key| it.connection.send(&get(key), soon()));
        for key in 1..=3 {
            it.server.expect(&format!("GET {key}")).await;
        }
        assert_eq!(
            writes.load(Ordering::Relaxed),
            round,
            "one for three commands"
        );
        it.server.reply(":1\r\n:2\r\n:3\r\n").await;
        for reply in replies {
            reply.await.expect("a reply");
        }
    }
}
