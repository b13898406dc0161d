//! A faulty network: a TCP proxy that can delay, hold back or break what passes through it. Its mode
//! can change while it runs.
//!
//! Invariants: bytes are neither reordered nor changed, and held-back bytes are not lost unless the
//! mode says so. A mode applies to all bytes that arrive after the call of [`FaultProxy::set`], on old
//! and new connections; connections from one address may have a mode of their own. The proxy knows no protocol: a request is what the connecting side sends, a
//! reply is what the target sends.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::{wait_for, within};

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// All bytes arrive this much later, in both directions.
    Delay(Duration),
    /// Connections are accepted, but nothing arrives, not even a close. The bytes are kept, and
    /// delivered when the mode changes.
    Blackhole,
    /// Requests arrive; replies are dropped, including those held back before. A close arrives.
    DropReplies,
    /// All connections are reset, and new ones are refused.
    Reset,
}

/// A running fault proxy. It ends with all its connections when dropped.
pub(crate) struct FaultProxy {
    addr: SocketAddr,
    orders: watch::Sender<Orders>,
    status: Arc<watch::Sender<Status>>,
    running: JoinHandle<()>,
}

/// What the test has ordered.
#[derive(Clone, Copy)]
struct Orders {
    mode: Mode,
    /// The mode of the connections from this address.
    exception: Option<(IpAddr, Mode)>,
    /// A connection with a smaller number must be closed.
    cuts: u64,
}

/// What the proxy has done.
#[derive(Default)]
struct Status {
    accepts: bool,
    /// The `cuts` of new connections.
    cuts: u64,
    /// The `cuts` of each open connection, from when it was accepted.
    open: Vec<u64>,
    withheld: usize,
}

/// The listener. A shut one keeps the port bound, so that no other process gets it, but refuses
/// connections.
enum Door {
    Open(TcpListener),
    Shut(TcpSocket),
}

/// Counts a connection as open until it is dropped.
struct Counted {
    cuts: u64,
    status: Arc<watch::Sender<Status>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Request,
    Answer,
}

/// When the next piece is due.
enum Due {
    Now,
    At(Instant),
    Never,
}

/// One direction of one connection.
struct Pipe<'a> {
    direction: Direction,
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    /// The address of the connecting side.
    source: IpAddr,
    orders: watch::Receiver<Orders>,
    status: &'a watch::Sender<Status>,
    /// The pieces that have arrived and are not delivered yet. An empty piece is the end of the stream.
    held: VecDeque<(Instant, Vec<u8>)>,
}

// === impl FaultProxy ===

impl FaultProxy {
    /// Starts in [`Mode::Pass`] on a free port. A connection is reset if no process listens at
    /// `target`.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port for the fault proxy");
        let addr = listener.local_addr().expect("the fault proxy's address");
        let orders = watch::Sender::new(Orders {
            mode: Mode::Pass,
            exception: None,
            cuts: 0,
        });
        let status = Arc::new(watch::Sender::new(Status::default()));
        let running = tokio::spawn(run(
            listener,
            target,
            orders.subscribe(),
            Arc::clone(&status),
        ));
        Self {
            addr,
            orders,
            status,
            running,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sets the mode, and returns when it applies. For [`Mode::Reset`] that is when every connection is
    /// closed and new ones are refused; after it, when new ones are accepted again.
    pub(crate) async fn set(&self, mode: Mode) {
        self.status.send_modify(|status| status.withheld = 0);
        self.orders.send_modify(|orders| orders.mode = mode);
        let reset = mode == Mode::Reset;
        let applied =
            |status: &Status| status.accepts != reset && (!reset || status.open.is_empty());
        self.wait("the fault proxy to change its mode", applied)
            .await;
    }

    /// Sets the mode of the connections from `source`, another loopback address than 127.0.0.1 for instance;
    /// `None`: they have the mode of all others again. A reset is none of these modes, as the proxy has accepted
    /// a connection before it knows its source.
    pub(crate) fn set_for(&self, source: IpAddr, mode: Option<Mode>) {
        assert_ne!(mode, Some(Mode::Reset), "a source can't be refused");
        self.status.send_modify(|status| status.withheld = 0);
        let exception = mode.map(|mode| (source, mode));
        self.orders
            .send_modify(|orders| orders.exception = exception);
    }

    /// Closes the present connections once, without a change of mode. Returns when they are closed.
    pub(crate) async fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
        let cuts = self.orders.borrow().cuts;
        let applied =
            |status: &Status| status.cuts >= cuts && status.open.iter().all(|under| *under >= cuts);
        self.wait("the fault proxy to close its connections", applied)
            .await;
    }

    /// How many connections are open.
    pub(crate) fn connections(&self) -> usize {
        self.status.borrow().open.len()
    }

    /// How many bytes were held back or dropped since the mode was set.
    pub(crate) fn withheld(&self) -> usize {
        self.status.borrow().withheld
    }

    /// Waits until a byte was held back or dropped since the mode was set.
    pub(crate) async fn bitten(&self) {
        self.wait("the fault proxy to hold something back", |status| {
            status.withheld > 0
        })
        .await;
    }

    async fn wait(&self, what: &str, condition: impl Fn(&Status) -> bool) {
        let mut changes = self.status.subscribe();
        let met = async { changes.wait_for(|status| condition(status)).await.map(drop) };
        within(what, met)
            .await
            .expect("the sender lives as long as the proxy");
    }
}

impl Orders {
    /// The mode of a connection from `source`.
    fn mode_for(&self, source: IpAddr) -> Mode {
        match self.exception {
            _ if self.mode == Mode::Reset => Mode::Reset,
            Some((excepted, mode)) if excepted == source => mode,
            _ => self.mode,
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

// === accepting ===

async fn run(
    listener: TcpListener,
    target: SocketAddr,
    mut orders: watch::Receiver<Orders>,
    status: Arc<watch::Sender<Status>>,
) {
    let addr = listener.local_addr().expect("the fault proxy's address");
    let mut door = Door::Open(listener);
    let mut connections = JoinSet::new();
    let mut cuts = 0;
    loop {
        let now = *orders.borrow_and_update();
        door = door.turned(addr, now.mode).await;
        if now.cuts > cuts {
            door.send_away();
            cuts = now.cuts;
        }
        status.send_modify(|status| {
            status.accepts = matches!(door, Door::Open(_));
            status.cuts = cuts;
        });
        tokio::select! {
            biased;
            changed = orders.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            client = door.accept() => {
                let counted = Counted::new(cuts, &status);
                connections.spawn(serve(counted, client, target, orders.clone()));
            }
        }
    }
}

impl Door {
    async fn turned(self, addr: SocketAddr, mode: Mode) -> Self {
        match (self, mode == Mode::Reset) {
            (Self::Open(listener), true) => {
                // Closing the listener resets connections that it has not accepted yet.
                drop(listener);
                let socket = TcpSocket::new_v4().expect("a socket");
                socket
                    .set_reuseaddr(true)
                    .expect("SO_REUSEADDR on a new socket");
                // A process that another test starts may hold a copy of the listener for a moment.
                wait_for(
                    || socket.bind(addr).is_ok(),
                    "the fault proxy's port to be free",
                )
                .await;
                Self::Shut(socket)
            }
            (Self::Shut(socket), false) => {
                Self::Open(socket.listen(1024).expect("the fault proxy listens again"))
            }
            (door, _) => door,
        }
    }

    async fn accept(&self) -> TcpStream {
        match self {
            Self::Open(listener) => listener.accept().await.expect("the fault proxy accepts").0,
            Self::Shut(_) => pending().await,
        }
    }

    /// Closes the connections that the listener has not accepted yet. tokio may not know of them.
    fn send_away(&self) {
        if let Self::Open(listener) = self {
            let listener = listener
                .as_fd()
                .try_clone_to_owned()
                .expect("a second handle on a socket");
            let listener = std::net::TcpListener::from(listener);
            while listener.accept().is_ok() {}
        }
    }
}

impl Counted {
    fn new(cuts: u64, status: &Arc<watch::Sender<Status>>) -> Self {
        status.send_modify(|status| status.open.push(cuts));
        Self {
            cuts,
            status: Arc::clone(status),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.status.send_modify(|status| {
            let this = status.open.iter().position(|cuts| *cuts == self.cuts);
            status
                .open
                .swap_remove(this.expect("the connection was counted"));
        });
    }
}

// === one connection ===

/// `counted` is the first parameter, so that it is dropped last, after the sockets.
async fn serve(
    counted: Counted,
    mut client: TcpStream,
    target: SocketAddr,
    mut orders: watch::Receiver<Orders>,
) {
    let accepted_under = counted.cuts;
    let relayed_by = orders.clone();
    let ended = async {
        let ended = orders
            .wait_for(|orders| orders.mode == Mode::Reset || orders.cuts > accepted_under)
            .await;
        ended.is_ok_and(|orders| orders.mode == Mode::Reset)
    };
    let mut server = None;
    let reset = tokio::select! {
        biased;
        reset = ended => reset,
        relayed = relay(&mut client, &mut server, target, relayed_by, &counted.status) => {
            relayed.is_err()
        }
    };
    if reset {
        // This fails on a socket that is already reset.
        let _ = client.set_zero_linger();
        let _ = server.map(|server| server.set_zero_linger());
    }
}

async fn relay(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    target: SocketAddr,
    orders: watch::Receiver<Orders>,
    status: &watch::Sender<Status>,
) -> io::Result<()> {
    let source = client.peer_addr()?.ip();
    let server = server.insert(TcpStream::connect(target).await?);
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let pipe = |direction, from, to| Pipe {
        direction,
        from,
        to,
        source,
        orders: orders.clone(),
        status,
        held: VecDeque::new(),
    };
    let requests = pipe(Direction::Request, from_client, to_server);
    let answers = pipe(Direction::Answer, from_server, to_client);
    tokio::try_join!(requests.run(), answers.run())?;
    Ok(())
}

impl Pipe<'_> {
    async fn run(mut self) -> io::Result<()> {
        let mut is_open = true;
        while is_open || !self.held.is_empty() {
            let mode = self.orders.borrow_and_update().mode_for(self.source);
            if self.throws_away(mode) {
                self.held.retain(|(_, piece)| piece.is_empty());
            }
            let due = match (self.held.front(), mode) {
                (None, _) | (_, Mode::Blackhole | Mode::Reset) => Due::Never,
                (Some((arrived, _)), Mode::Delay(delay)) => Due::At(*arrived + delay),
                (Some(_), Mode::Pass | Mode::DropReplies) => Due::Now,
            };
            let mut piece = Vec::with_capacity(16 * 1024);
            tokio::select! {
                biased;
                changed = self.orders.changed() => changed.map_err(io::Error::other)?,
                () = due.moment() => self.deliver().await?,
                read = self.from.read_buf(&mut piece), if is_open => {
                    is_open = self.arrived(read, piece).await?;
                }
            }
        }
        Ok(())
    }

    /// Stores what was read; `false` at the end of the stream.
    async fn arrived(&mut self, read: io::Result<usize>, piece: Vec<u8>) -> io::Result<bool> {
        if let Err(error) = read {
            // A blackhole holds back a reset, too.
            let source = self.source;
            let _ = self
                .orders
                .wait_for(|orders| orders.mode_for(source) != Mode::Blackhole)
                .await;
            return Err(error);
        }
        let mode = self.orders.borrow().mode_for(self.source);
        if mode == Mode::Blackhole || self.throws_away(mode) {
            self.status
                .send_modify(|status| status.withheld += piece.len());
        }
        let is_open = !piece.is_empty();
        self.held.push_back((Instant::now(), piece));
        Ok(is_open)
    }

    async fn deliver(&mut self) -> io::Result<()> {
        match self.held.pop_front() {
            Some((_, piece)) if piece.is_empty() => self.to.shutdown().await,
            Some((_, piece)) => self.to.write_all(&piece).await,
            None => Ok(()),
        }
    }

    fn throws_away(&self, mode: Mode) -> bool {
        mode == Mode::DropReplies && self.direction == Direction::Answer
    }
}

impl Due {
    async fn moment(self) {
        match self {
            Self::Now => {}
            Self::At(moment) => sleep_until(moment).await,
            Self::Never => pending().await,
        }
    }
}
