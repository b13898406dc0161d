//! A scripted backend: it speaks HTTP/1.1 on a bare socket, misbehaves on demand, and records every
//! turn of every session.
//!
//! Invariants: a turn begins in the record when its request has been read to its end, and ends *before*
//! the last bytes of its response are written. So a client that has seen the end of a response cannot
//! begin a turn that counts as overlapping. A turn whose peer has closed by the time another one begins
//! counts as ended, even if its task has not noticed (see `probe`). A peer that closes only its sending
//! half counts as gone. TLS and HTTP/2 are left out.
//!
//! Request headers that control the backend:
//!
//! | header | meaning |
//! | --- | --- |
//! | `x-test-script` | what the turn does, see [`Script`]; the default is set at start |
//! | `x-test-session` | the session; `-`: no turn. Default: `/session_id` of the JSON body |
//! | `x-test-answer` | `name: value`, a header of the response; may be repeated |

mod probe;
mod script;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::panic::Location;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use self::probe::Probe;
use self::script::{Connection, Script};
use super::{LIMIT, wire};

/// The trailer that the script `trailers` sends.
pub(crate) const TRAILER: (&str, &str) = ("x-checksum", "abc");

/// A running backend. It ends with all its connections when dropped.
pub(crate) struct Backend {
    addr: SocketAddr,
    record: Arc<watch::Sender<Record>>,
    accepting: JoinHandle<()>,
}

/// A request as it arrived, and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) method: String,
    /// Path and query as the peer sent them.
    pub(crate) target: String,
    /// In the order and letter case in which the peer sent them.
    pub(crate) headers: Vec<(String, String)>,
    /// The bytes of the head, with the final empty line.
    pub(crate) raw_head: Vec<u8>,
    /// Grows while the request is read.
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// The turn's session; `None` if this is not a turn, or its body has not been read yet.
    pub(crate) session: Option<String>,
    /// The number of its connection, counted from 0.
    pub(crate) connection: usize,
    pub(crate) head_read: Instant,
    /// When the request had been read and its script began; for `early` when the head had been read.
    pub(crate) began: Option<Instant>,
    pub(crate) ended: Option<Instant>,
    pub(crate) ending: Option<Ending>,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The script came to its end, even if its end is a broken response.
    Finished,
    /// The peer closed or reset the connection before the end.
    PeerGone,
    /// The peer's bytes were not HTTP/1.1.
    Malformed,
}

/// Everything that has happened. It lives in a watch channel, so a change wakes every waiting test.
struct Record {
    start: Instant,
    requests: Vec<Recorded>,
    sessions: BTreeMap<String, Session>,
    connections: usize,
    all_gates_open: bool,
}

#[derive(Default)]
struct Session {
    /// The probe finds turns whose peer has closed.
    running: Vec<(usize, Option<Probe>)>,
    begun: usize,
    ended: usize,
    gone: usize,
    max_overlap: usize,
    /// The turns at the gate, in order of arrival: one opening lets the first one pass.
    at_gate: VecDeque<usize>,
    openings: usize,
}

// === impl Backend ===

impl Backend {
    /// Starts a backend on a free port. `script` is the default for requests that name no script.
    pub(crate) async fn start(script: &str) -> Self {
        let script: Script = script.parse().expect("the backend's default script");
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port for the backend");
        let addr = listener.local_addr().expect("the backend's address");
        let record = Arc::new(watch::Sender::new(Record::new()));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&record), script));
        Self {
            addr,
            record,
            accepting,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The largest number of concurrent turns of this session; 0 without turns.
    pub(crate) fn max_overlap(&self, session: &str) -> usize {
        self.of_session(session, |session| session.max_overlap)
    }

    /// All sessions with more than one concurrent turn, and their number.
    pub(crate) fn overlaps(&self) -> Vec<(String, usize)> {
        let record = self.record.borrow();
        let overlaps = record
            .sessions
            .iter()
            .map(|(name, session)| (name.clone(), session.max_overlap));
        overlaps.filter(|(_, turns)| *turns > 1).collect()
    }

    /// The turns of this session that have begun, in the order of arrival.
    pub(crate) fn turns(&self, session: &str) -> Vec<Recorded> {
        let record = self.record.borrow();
        let turns = record
            .requests
            .iter()
            .filter(|request| request.is_turn_of(session));
        turns.cloned().collect()
    }

    /// How many turns of this session are running.
    pub(crate) fn running(&self, session: &str) -> usize {
        self.of_session(session, |session| session.running.len())
    }

    /// All requests whose head has been read, in that order.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.record.borrow().requests.clone()
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.record.borrow().connections
    }

    /// Lets one turn pass that waits at this session's gate, now or later: an opening is kept until a
    /// turn uses it. A turn whose peer has gone uses none.
    pub(crate) fn open_gate(&self, session: &str) {
        self.record
            .send_modify(|record| record.session(session).openings += 1);
    }

    /// Opens the gates of all sessions permanently.
    pub(crate) fn open_all_gates(&self) {
        self.record
            .send_modify(|record| record.all_gates_open = true);
    }

    /// Waits until `count` turns of this session have begun.
    #[track_caller]
    pub(crate) fn started(&self, session: &str, count: usize) -> impl Future<Output = ()> {
        let what = format!("{count} turns of {session:?} to begin");
        self.wait(what, move |record| {
            record
                .sessions
                .get(session)
                .is_some_and(|session| session.begun >= count)
        })
    }

    /// Waits until `count` turns of this session have ended in any way.
    #[track_caller]
    pub(crate) fn ended(&self, session: &str, count: usize) -> impl Future<Output = ()> {
        let what = format!("{count} turns of {session:?} to end");
        self.wait(what, move |record| {
            record
                .sessions
                .get(session)
                .is_some_and(|session| session.ended >= count)
        })
    }

    /// Waits until a turn of this session has ended because its peer closed.
    #[track_caller]
    pub(crate) fn gone(&self, session: &str) -> impl Future<Output = ()> {
        let what = format!("the peer of a turn of {session:?} to close");
        self.wait(what, move |record| {
            record
                .sessions
                .get(session)
                .is_some_and(|session| session.gone > 0)
        })
    }

    /// Waits until the heads of `count` requests have been read, whether they are turns or not.
    #[track_caller]
    pub(crate) fn received(&self, count: usize) -> impl Future<Output = ()> {
        self.wait(format!("{count} requests"), move |record| {
            record.requests.len() >= count
        })
    }

    #[track_caller]
    fn wait(&self, what: String, condition: impl Fn(&Record) -> bool) -> impl Future<Output = ()> {
        let caller = Location::caller();
        let mut changes = self.record.subscribe();
        async move {
            let met = async { changes.wait_for(|record| condition(record)).await.map(drop) };
            if tokio::time::timeout(LIMIT, met).await.is_err() {
                panic!("waited {LIMIT:?} for {what} (at {caller})\n{self:?}");
            }
        }
    }

    fn of_session(&self, session: &str, read: impl Fn(&Session) -> usize) -> usize {
        self.record.borrow().sessions.get(session).map_or(0, read)
    }
}

async fn accept(listener: TcpListener, record: Arc<watch::Sender<Record>>, script: Script) {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.expect("the backend accepts");
        let connection = Connection::new(socket, Arc::clone(&record), script.clone());
        connections.spawn(connection.serve());
        while connections.try_join_next().is_some() {}
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the backend at {} recorded:", self.addr)?;
        write!(f, "{}", *self.record.borrow())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The SSE event number `n` of a response.
pub(crate) fn event(n: usize) -> String {
    format!("data: {{\"n\":{n}}}\n\n")
}

/// The body of a response with this number of events.
pub(crate) fn events(count: usize) -> String {
    (0..count).map(event).collect()
}

/// An event stream of every kind of line, whose lines end with `eol`.
pub(crate) fn stream_with(eol: &str) -> String {
    let lines = "event: a\nid: 1\ndata: {\"n\":0}\ndata\n\n: a comment\n\nretry: 5\ndata: é\n\n";
    lines.replace('\n', eol)
}

/// The end of a line that has this name in a script.
fn eol(name: &str) -> &'static str {
    match name {
        "crlf" => "\r\n",
        _ => "\n",
    }
}

// === impl Record ===

impl Record {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            requests: Vec::new(),
            sessions: BTreeMap::new(),
            connections: 0,
            all_gates_open: false,
        }
    }

    fn session(&mut self, session: &str) -> &mut Session {
        self.sessions.entry(session.to_owned()).or_default()
    }

    fn begin(&mut self, id: usize, session: Option<&str>, probe: Option<Probe>) {
        let request = &mut self.requests[id];
        request.began = Some(Instant::now());
        request.session = session.map(str::to_owned);
        let Some(session) = session else { return };
        let running = self.session(session).running.iter();
        let gone: Vec<usize> = running
            .filter(|(_, probe)| probe.as_ref().is_some_and(Probe::peer_closed))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.end(id, Ending::PeerGone);
        }
        let session = self.session(session);
        session.running.push((id, probe));
        session.begun += 1;
        session.max_overlap = session.max_overlap.max(session.running.len());
    }

    /// The first ending counts, with one exception: a response whose last bytes could not be written
    /// has not finished.
    fn end(&mut self, id: usize, ending: Ending) {
        let request = &mut self.requests[id];
        if request.ending.is_some() {
            return;
        }
        request.ending = Some(ending);
        request.ended = Some(Instant::now());
        if request.began.is_none() {
            return;
        }
        let Some(session) = request.session.clone() else {
            return;
        };
        let session = self.session(&session);
        session.running.retain(|(running, _)| *running != id);
        session.ended += 1;
        session.gone += usize::from(ending == Ending::PeerGone);
    }

    fn did_not_finish(&mut self, id: usize) {
        let request = &mut self.requests[id];
        if request.ending.replace(Ending::PeerGone) == Some(Ending::Finished)
            && let Some(session) = request.session.clone()
        {
            self.session(&session).gone += 1;
        }
    }

    fn gate_is_open(&self, session: &str, id: usize) -> bool {
        let session = &self.sessions[session];
        self.all_gates_open || (session.openings > 0 && session.at_gate.front() == Some(&id))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = |at: Instant| format!("{:.1} ms", (at - self.start).as_secs_f64() * 1e3);
        for (id, request) in self.requests.iter().enumerate() {
            let Recorded {
                method,
                target,
                connection,
                body,
                ending,
                ..
            } = request;
            write!(
                f,
                "  #{id} {method} {target}, connection {connection}, {} bytes of body, ",
                body.len()
            )?;
            write!(
                f,
                "session {:?}, head read at {}, ",
                request.session,
                since(request.head_read)
            )?;
            writeln!(
                f,
                "began {:?}, ended {:?}, {ending:?}",
                request.began.map(since),
                request.ended.map(since)
            )?;
        }
        for (name, session) in &self.sessions {
            let Session {
                running,
                begun,
                ended,
                gone,
                max_overlap,
                at_gate,
                openings,
            } = session;
            let running: Vec<usize> = running.iter().map(|(id, _)| *id).collect();
            write!(
                f,
                "  session {name:?}: {begun} begun, {ended} ended, {gone} of them gone, "
            )?;
            write!(f, "running {running:?}, at most {max_overlap} at once, ")?;
            writeln!(f, "at the gate {at_gate:?}, {openings} openings unused")?;
        }
        write!(f, "  {} connections accepted", self.connections)
    }
}

impl Recorded {
    /// The first header of that name; letter case does not matter.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        wire::values(&self.headers, name).next()
    }

    /// The body as text, with replacement characters for invalid UTF-8.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn is_turn_of(&self, session: &str) -> bool {
        self.began.is_some() && self.session.as_deref() == Some(session)
    }
}
