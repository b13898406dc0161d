//! What the backend does on one connection: reads requests, plays their scripts, and tells the
//! record in time.
//!
//! Invariant: while a script waits or writes, the peer is watched, and its going ends the turn at
//! once. What the peer sends meanwhile is kept for the next request (pipelining). Counting turns is
//! the record's.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::super::wire::{self, Decoder, Framing, Head, Step};
use super::probe::Probed;
use super::{Ending, Record, Recorded, TRAILER, event};

/// One accepted connection.
pub(super) struct Connection {
    socket: TcpStream,
    /// The same socket once more, for the record to look at.
    probed: Probed,
    number: usize,
    inbox: Vec<u8>,
    record: Arc<watch::Sender<Record>>,
    default: Script,
}

/// One request on it.
struct Exchange {
    /// Its index in the record.
    id: usize,
    script: Script,
    session: Option<String>,
    /// Answered without a body.
    is_head: bool,
    is_last: bool,
    /// The lines of `x-test-answer`.
    extra: Vec<String>,
    /// What `upgrade` asked for.
    upgrade: String,
}

/// The peer closed or reset the connection, or what it sent can't be read: nothing more can be
/// said.
struct Over(Ending);

/// What becomes of the connection after an answer.
#[derive(PartialEq)]
enum After {
    Next,
    Close,
    Reset,
}

/// What a turn does. Written `name`, `name:ARGUMENT` or `name:ARGUMENT:ARGUMENT`. An event is an
/// SSE event, `data: {"n":0}` and an empty line; MS are milliseconds between two of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// `plain:BODY`: with a content-length, all at once.
    Plain(String),
    /// `plain-close:BODY`: the same, and then closes without having said so.
    PlainClose(String),
    /// `big:BYTES`: so many bytes `x` with a content-length, as fast as the peer takes them.
    Big(usize),
    /// `chunked:EVENTS:MS`
    Chunked(usize, Duration),
    /// `length:EVENTS:MS`: the same with a content-length.
    Length(usize, Duration),
    /// `empty`: 200 with content-length 0.
    Empty,
    /// `nocontent`: 204.
    NoContent,
    /// `status:CODE:BODY`
    Status(u16, String),
    /// `close`: reads the request and closes without an answer.
    Close,
    /// `reset`: reads the request and resets the connection.
    Reset,
    /// `garbage`: an answer that is no HTTP.
    Garbage,
    /// `break-length`: announces 1000 bytes, sends 10, closes.
    BreakLength,
    /// `break-chunked`: two chunks, then closes without the last one.
    BreakChunked,
    /// `hang`: reads the request and never answers.
    Hang,
    /// `hang-middle`: a head and one event, then silence.
    HangMiddle,
    /// `until-close`: two events with no framing; closing is the end.
    UntilClose,
    /// `early` or `early:BODY`: answers as soon as it has read the head. A turn only with
    /// `x-test-session`.
    Early(String),
    /// `trailers`: two events, chunked, and `TRAILER`.
    Trailers,
    /// `gate`: a head and one event, then waits for `Backend::open_gate`, then ends.
    Gate,
    /// `gate-head`: waits for the gate first, then answers as `plain:open`.
    GateHead,
    /// `stubborn`: as `gate`, but works on until its gate is opened when the peer goes, and counts as
    /// running until then.
    Stubborn,
    /// `upgrade`: 101, then sends back what it gets, until the peer closes or what it gets ends
    /// with `bye`.
    Upgrade,
}

// === impl Connection ===

const GONE: Over = Over(Ending::PeerGone);

impl Connection {
    pub(super) fn new(
        socket: TcpStream,
        record: Arc<watch::Sender<Record>>,
        default: Script,
    ) -> Self {
        socket
            .set_nodelay(true)
            .expect("TCP_NODELAY on an accepted socket");
        let probed = Probed::new(&socket);
        let mut number = 0;
        record.send_modify(|record| {
            number = record.connections;
            record.connections += 1;
        });
        Self {
            socket,
            probed,
            number,
            inbox: Vec::new(),
            record,
            default,
        }
    }

    pub(super) async fn serve(mut self) {
        while let Some(after) = self.exchange().await {
            match after {
                After::Next => {}
                After::Close => return,
                After::Reset => {
                    self.socket
                        .set_zero_linger()
                        .expect("SO_LINGER on an open socket");
                    return;
                }
            }
        }
    }

    /// One request and its answer; `None` when the connection is over.
    async fn exchange(&mut self) -> Option<After> {
        let head = loop {
            match Head::take(&mut self.inbox) {
                Some(head) => break head,
                None => self.read().await.ok()?,
            }
        };
        let (head, malformed) = match head {
            Ok(head) => (head, false),
            Err(_) => (Head::default(), true),
        };
        let id = self.note(&head);
        let result = match malformed {
            true => Err(Over(Ending::Malformed)),
            false => self.answer(id, &head).await,
        };
        match result {
            Ok(after) => Some(after),
            Err(Over(ending)) => {
                self.record.send_modify(|record| record.end(id, ending));
                None
            }
        }
    }

    fn note(&self, head: &Head) -> usize {
        let mut id = 0;
        self.record.send_modify(|record| {
            id = record.requests.len();
            record.requests.push(Recorded {
                method: head.word(0).to_owned(),
                target: head.word(1).to_owned(),
                headers: head.headers.clone(),
                raw_head: head.raw.clone(),
                body: Vec::new(),
                trailers: Vec::new(),
                session: None,
                connection: self.number,
                head_read: Instant::now(),
                began: None,
                ended: None,
                ending: None,
            });
        });
        id
    }

    async fn answer(&mut self, id: usize, head: &Head) -> Result<After, Over> {
        let script = match head.header("x-test-script") {
            None => self.default.clone(),
            Some(script) => script
                .parse()
                .unwrap_or_else(|error| Script::Status(500, error)),
        };
        let mut session = head.header("x-test-session").map(str::to_owned);
        let early = matches!(script, Script::Early(_));
        if !early {
            if head
                .header("expect")
                .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
            {
                self.say(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            self.read_body(id, head).await?;
            session = session.or_else(|| self.session_in_body(id));
        }
        session = session.filter(|session| session != "-");
        let probe = (script != Script::Stubborn).then(|| self.probed.probe());
        self.record
            .send_modify(|record| record.begin(id, session.as_deref(), probe));
        let is_last = head.connection_has("close")
            || head.word(2) == "HTTP/1.0" && !head.connection_has("keep-alive");
        let exchange = Exchange {
            id,
            script,
            session,
            is_head: head.word(0) == "HEAD",
            is_last,
            extra: wire::values(&head.headers, "x-test-answer")
                .map(str::to_owned)
                .collect(),
            upgrade: head.header("upgrade").unwrap_or("test").to_owned(),
        };
        let after = self.play(&exchange).await?;
        if early && after == After::Next {
            self.read_body(id, head).await?;
        }
        Ok(after)
    }

    async fn read_body(&mut self, id: usize, head: &Head) -> Result<(), Over> {
        let mut decoder = Decoder::new(head.framing().unwrap_or(Framing::Length(0)));
        loop {
            match decoder.next(&mut self.inbox) {
                Ok(Step::End) => break,
                Ok(Step::More) => self.read().await?,
                Ok(Step::Data(data)) => {
                    self.record
                        .send_modify(|record| record.requests[id].body.extend_from_slice(&data));
                }
                Err(_) => return Err(Over(Ending::Malformed)),
            }
        }
        self.record
            .send_modify(|record| record.requests[id].trailers = decoder.trailers);
        Ok(())
    }

    fn session_in_body(&self, id: usize) -> Option<String> {
        let record = self.record.borrow();
        let body: serde_json::Value = serde_json::from_slice(&record.requests[id].body).ok()?;
        match &body["session_id"] {
            serde_json::Value::String(session) => Some(session.clone()),
            serde_json::Value::Number(session) => Some(session.to_string()),
            _ => None,
        }
    }

    async fn play(&mut self, exchange: &Exchange) -> Result<After, Over> {
        match exchange.script {
            Script::Hang => return self.silence().await,
            Script::Close => return Ok(self.end(exchange, After::Close)),
            Script::Reset => return Ok(self.end(exchange, After::Reset)),
            Script::Garbage => {
                self.last(exchange, b"This is no HTTP.\r\n\r\n").await?;
                return Ok(After::Close);
            }
            Script::GateHead => self.gate(exchange).await?,
            _ => {}
        }
        let mut head = exchange.head();
        let after = if exchange.is_last || matches!(exchange.script, Script::PlainClose(_)) {
            After::Close
        } else {
            After::Next
        };
        if exchange.is_head {
            self.last(exchange, &head).await?;
            return Ok(after);
        }
        match &exchange.script {
            Script::Plain(body)
            | Script::PlainClose(body)
            | Script::Status(_, body)
            | Script::Early(body) => {
                head.extend_from_slice(body.as_bytes());
                self.last(exchange, &head).await?;
            }
            Script::GateHead => {
                head.extend_from_slice(OPEN.as_bytes());
                self.last(exchange, &head).await?;
            }
            Script::Big(size @ 1..) => {
                self.say(&head).await?;
                self.say(&vec![b'x'; size - 1]).await?;
                self.last(exchange, b"x").await?;
            }
            Script::Chunked(count, pause) => {
                self.say(&head).await?;
                for n in 0..*count {
                    self.pause(if n == 0 { Duration::ZERO } else { *pause })
                        .await?;
                    self.say(&chunk(n)).await?;
                }
                self.last(exchange, b"0\r\n\r\n").await?;
            }
            Script::Length(count @ 1.., pause) => {
                self.say(&head).await?;
                for n in 0..count - 1 {
                    self.say(event(n).as_bytes()).await?;
                    self.pause(*pause).await?;
                }
                self.last(exchange, event(count - 1).as_bytes()).await?;
            }
            Script::BreakLength => {
                self.say(&head).await?;
                self.say(b"0123456789").await?;
                return Ok(self.end(exchange, After::Close));
            }
            Script::BreakChunked => {
                self.say(&head).await?;
                self.say(&chunk(0)).await?;
                self.say(&chunk(1)).await?;
                return Ok(self.end(exchange, After::Close));
            }
            Script::HangMiddle => {
                self.say(&head).await?;
                self.say(&chunk(0)).await?;
                return self.silence().await;
            }
            Script::UntilClose => {
                self.say(&head).await?;
                self.say(event(0).as_bytes()).await?;
                self.say(event(1).as_bytes()).await?;
                return Ok(self.end(exchange, After::Close));
            }
            Script::Trailers => {
                self.say(&head).await?;
                self.say(&chunk(0)).await?;
                self.say(&chunk(1)).await?;
                self.last(
                    exchange,
                    format!("0\r\n{}: {}\r\n\r\n", TRAILER.0, TRAILER.1).as_bytes(),
                )
                .await?;
            }
            Script::Gate | Script::Stubborn => {
                self.say(&head).await?;
                self.say(&chunk(0)).await?;
                self.gate(exchange).await?;
                self.last(exchange, b"0\r\n\r\n").await?;
            }
            Script::Upgrade => {
                self.say(&head).await?;
                self.echo(exchange).await?;
                return Ok(After::Close);
            }
            // The head is all of the answer.
            _ => self.last(exchange, &head).await?,
        }
        Ok(after)
    }

    async fn echo(&mut self, exchange: &Exchange) -> Result<(), Over> {
        loop {
            let heard = std::mem::take(&mut self.inbox);
            if heard.ends_with(b"bye") {
                return self.last(exchange, &heard).await;
            }
            self.say(&heard).await?;
            // More may have come while that was being said.
            if self.inbox.is_empty() {
                self.read().await?;
            }
        }
    }

    async fn gate(&mut self, exchange: &Exchange) -> Result<(), Over> {
        let (id, session) = (exchange.id, exchange.session.as_deref().unwrap_or_default());
        self.record
            .send_modify(|record| record.session(session).at_gate.push_back(id));
        let mut changes = self.record.subscribe();
        let opened = async {
            changes
                .wait_for(|record| record.gate_is_open(session, id))
                .await
                .map(drop)
        };
        let passed = match exchange.script {
            Script::Stubborn => opened.await.is_ok(),
            _ => wire::unless_gone(&self.socket, &mut self.inbox, opened)
                .await
                .is_some(),
        };
        self.record.send_modify(|record| {
            let session = record.session(session);
            session.at_gate.retain(|waiting| *waiting != id);
            if passed {
                session.openings = session.openings.saturating_sub(1);
            }
        });
        if passed { Ok(()) } else { Err(GONE) }
    }

    /// Writes the last bytes of an answer, and has the turn ended before.
    async fn last(&mut self, exchange: &Exchange, bytes: &[u8]) -> Result<(), Over> {
        if self.probed.probe().heard_close() {
            return Err(GONE);
        }
        self.end(exchange, After::Next);
        let said = self.say(bytes).await;
        if said.is_err() {
            self.record
                .send_modify(|record| record.did_not_finish(exchange.id));
        }
        said
    }

    fn end(&self, exchange: &Exchange, after: After) -> After {
        self.record
            .send_modify(|record| record.end(exchange.id, Ending::Finished));
        after
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), Over> {
        let written = wire::write_all(&self.socket, bytes);
        match wire::unless_gone(&self.socket, &mut self.inbox, written).await {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => Err(GONE),
        }
    }

    async fn pause(&mut self, pause: Duration) -> Result<(), Over> {
        if pause.is_zero() {
            return Ok(());
        }
        let slept =
            wire::unless_gone(&self.socket, &mut self.inbox, tokio::time::sleep(pause)).await;
        slept.ok_or(GONE)
    }

    async fn silence(&mut self) -> Result<After, Over> {
        wire::peer_gone(&self.socket, &mut self.inbox).await;
        Err(GONE)
    }

    async fn read(&mut self) -> Result<(), Over> {
        match wire::read_some(&self.socket, &mut self.inbox).await {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(GONE),
        }
    }
}

/// What `gate-head` answers.
const OPEN: &str = "open";

fn chunk(n: usize) -> Vec<u8> {
    wire::chunk(event(n).as_bytes())
}

// === impl Exchange ===

impl Exchange {
    /// The head of the answer.
    fn head(&self) -> Vec<u8> {
        let length = |length: usize| format!("content-length: {length}\r\n");
        let plain = |body: &str| format!("content-type: text/plain\r\n{}", length(body.len()));
        let events = |framing: &str| format!("content-type: text/event-stream\r\n{framing}");
        let chunked = || events("transfer-encoding: chunked\r\n");
        let (status, headers) = match &self.script {
            Script::Plain(body) | Script::PlainClose(body) | Script::Early(body) => {
                (200, plain(body))
            }
            Script::Status(status, body) => (*status, plain(body)),
            Script::GateHead => (200, plain(OPEN)),
            Script::Big(size) => (
                200,
                format!("content-type: text/plain\r\n{}", length(*size)),
            ),
            Script::Length(count, _) => (200, events(&length(super::events(*count).len()))),
            Script::Empty => (200, length(0)),
            Script::NoContent => (204, String::new()),
            Script::BreakLength => (200, format!("content-type: text/plain\r\n{}", length(1000))),
            Script::UntilClose => (200, events("connection: close\r\n")),
            Script::Trailers => (200, format!("{}trailer: {}\r\n", chunked(), TRAILER.0)),
            Script::Upgrade => (
                101,
                format!("connection: upgrade\r\nupgrade: {}\r\n", self.upgrade),
            ),
            Script::Chunked(..)
            | Script::BreakChunked
            | Script::HangMiddle
            | Script::Gate
            | Script::Stubborn => (200, chunked()),
            Script::Close | Script::Reset | Script::Garbage | Script::Hang => {
                unreachable!("{:?} has no head", self.script)
            }
        };
        let mut head = format!("HTTP/1.1 {status} {}\r\n{headers}", reason(status));
        if self.is_last && self.script != Script::UntilClose {
            head.push_str("connection: close\r\n");
        }
        for line in &self.extra {
            head.push_str(line);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        404 => "Not Found",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "As The Script Says",
    }
}

// === impl Script ===

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, argument) = text.split_once(':').unwrap_or((text, ""));
        let (first, second) = argument.split_once(':').unwrap_or((argument, ""));
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|_| format!("no number in the script {text:?}"))
        };
        let size = |text: &str| number(text).map(|number| number as usize);
        let pause = |text: &str| number(text).map(Duration::from_millis);
        Ok(match name {
            "plain" => Self::Plain(argument.to_owned()),
            "plain-close" => Self::PlainClose(argument.to_owned()),
            "big" => Self::Big(size(argument)?),
            "chunked" => Self::Chunked(size(first)?, pause(second)?),
            "length" => Self::Length(size(first)?, pause(second)?),
            "empty" => Self::Empty,
            "nocontent" => Self::NoContent,
            "status" => Self::Status(number(first)? as u16, second.to_owned()),
            "close" => Self::Close,
            "reset" => Self::Reset,
            "garbage" => Self::Garbage,
            "break-length" => Self::BreakLength,
            "break-chunked" => Self::BreakChunked,
            "hang" => Self::Hang,
            "hang-middle" => Self::HangMiddle,
            "until-close" => Self::UntilClose,
            "early" => Self::Early(argument.to_owned()),
            "trailers" => Self::Trailers,
            "gate" => Self::Gate,
            "gate-head" => Self::GateHead,
            "stubborn" => Self::Stubborn,
            "upgrade" => Self::Upgrade,
            _ => return Err(format!("no script is called {text:?}")),
        })
    }
}
