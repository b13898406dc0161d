//! The backend's work on one connection: it reads requests, plays their scripts, and updates the
//! record.
//!
//! Invariant: while a script waits or writes, the connection is watched, and a close by the peer ends
//! the turn at once. Bytes that the peer sends meanwhile are kept for the next request (pipelining).
//! The record counts the turns.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::super::wire::{self, Decoder, Framing, Head, Step};
use super::probe::Probed;
use super::{Ending, Record, Recorded, TRAILER, event};

/// An accepted connection.
pub(super) struct Connection {
    socket: TcpStream,
    /// A second handle on the same socket, for the record's checks.
    probed: Probed,
    number: usize,
    inbox: Vec<u8>,
    record: Arc<watch::Sender<Record>>,
    default: Script,
}

/// A request on the connection.
struct Exchange {
    /// The request's index in the record.
    id: usize,
    script: Script,
    session: Option<String>,
    /// Whether the request is a HEAD, so that the response has no body.
    is_head: bool,
    is_last: bool,
    /// The values of `x-test-answer`.
    extra: Vec<String>,
    /// The value of `upgrade`.
    upgrade: String,
}

/// The peer closed or reset the connection, or sent something that is not HTTP: no response is
/// possible.
struct Over(Ending);

/// What happens to the connection after a response.
#[derive(PartialEq)]
enum After {
    Next,
    Close,
    Reset,
}

/// What a turn does, written `name`, `name:ARGUMENT` or `name:ARGUMENT:ARGUMENT`. An event is an SSE
/// event, `data: {"n":0}` and an empty line. MS is the pause between two events in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// `plain:BODY`: a body with a content-length, all at once.
    Plain(String),
    /// `plain-close:BODY`: as `plain`, then closes without `connection: close`.
    PlainClose(String),
    /// `big:BYTES`: a body of that many `x` with a content-length, as fast as the peer reads.
    Big(usize),
    /// `chunked:EVENTS:MS`: events, chunked.
    Chunked(usize, Duration),
    /// `length:EVENTS:MS`: events with a content-length.
    Length(usize, Duration),
    /// `empty`: 200 with content-length 0.
    Empty,
    /// `nocontent`: 204.
    NoContent,
    /// `status:CODE:BODY`: a body with this status.
    Status(u16, String),
    /// `close`: reads the request and closes without a response.
    Close,
    /// `reset`: reads the request and resets the connection.
    Reset,
    /// `garbage`: a response that is not HTTP.
    Garbage,
    /// `break-length`: announces 1000 bytes, sends 10, closes.
    BreakLength,
    /// `break-chunked`: two chunks, then closes without the last one.
    BreakChunked,
    /// `hang`: reads the request and never responds.
    Hang,
    /// `hang-middle`: a head and one event, then nothing more.
    HangMiddle,
    /// `hang-text`: the head of a text and its first words, then nothing more.
    HangText,
    /// `cut:BYTES:EOL`: as many bytes of `stream_with(EOL)`, chunked, then waits for the gate, then the rest. EOL is
    /// `lf` or `crlf`.
    Cut(usize, String),
    /// `cut-length:BYTES:EOL`: the same with a `content-length`.
    CutLength(usize, String),
    /// `until-close`: two events without framing; the close is the end.
    UntilClose,
    /// `early` or `early:BODY`: responds as soon as it has read the head. A turn only with
    /// `x-test-session`.
    Early(String),
    /// `trailers`: two events, chunked, and `TRAILER`.
    Trailers,
    /// `gate`: a head and one event, then waits for `Backend::open_gate`, then ends.
    Gate,
    /// `gate-head`: waits for the gate first, then responds as `plain:open`.
    GateHead,
    /// `stubborn`: as `gate`, but ignores a close by the peer, and counts as running until its gate is
    /// opened.
    Stubborn,
    /// `upgrade`: 101, then sends back what it gets, until the peer closes or sends `bye` at the end.
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

    /// Serves one request; `None` at the end of the connection.
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
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
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
            Script::Hang => return self.hang().await,
            Script::Close => return Ok(self.end(exchange, After::Close)),
            Script::Reset => return Ok(self.end(exchange, After::Reset)),
            Script::Garbage => {
                self.last(exchange, b"This is not HTTP.\r\n\r\n").await?;
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
                self.send(&head).await?;
                self.send(&vec![b'x'; size - 1]).await?;
                self.last(exchange, b"x").await?;
            }
            Script::Chunked(count, pause) => {
                self.send(&head).await?;
                for n in 0..*count {
                    self.pause(if n == 0 { Duration::ZERO } else { *pause })
                        .await?;
                    self.send(&chunk(n)).await?;
                }
                self.last(exchange, b"0\r\n\r\n").await?;
            }
            Script::Length(count @ 1.., pause) => {
                self.send(&head).await?;
                for n in 0..count - 1 {
                    self.send(event(n).as_bytes()).await?;
                    self.pause(*pause).await?;
                }
                self.last(exchange, event(count - 1).as_bytes()).await?;
            }
            Script::BreakLength => {
                self.send(&head).await?;
                self.send(b"0123456789").await?;
                return Ok(self.end(exchange, After::Close));
            }
            Script::BreakChunked => {
                self.send(&head).await?;
                self.send(&chunk(0)).await?;
                self.send(&chunk(1)).await?;
                return Ok(self.end(exchange, After::Close));
            }
            Script::HangMiddle => {
                self.send(&head).await?;
                self.send(&chunk(0)).await?;
                return self.hang().await;
            }
            Script::HangText => {
                self.send(&head).await?;
                self.send(&wire::chunk(b"first words")).await?;
                return self.hang().await;
            }
            Script::Cut(at, stream) | Script::CutLength(at, stream) => {
                let is_chunked = matches!(exchange.script, Script::Cut(..));
                let (first, rest) = stream.as_bytes().split_at(*at);
                let part = |part: &[u8]| match part {
                    [] => Vec::new(),
                    part if is_chunked => wire::chunk(part),
                    part => part.to_vec(),
                };
                let end: &[u8] = if is_chunked { b"0\r\n\r\n" } else { b"" };
                self.send(&head).await?;
                self.send(&part(first)).await?;
                self.gate(exchange).await?;
                self.last(exchange, &[&part(rest), end].concat()).await?;
            }
            Script::UntilClose => {
                self.send(&head).await?;
                self.send(event(0).as_bytes()).await?;
                self.send(event(1).as_bytes()).await?;
                return Ok(self.end(exchange, After::Close));
            }
            Script::Trailers => {
                self.send(&head).await?;
                self.send(&chunk(0)).await?;
                self.send(&chunk(1)).await?;
                self.last(
                    exchange,
                    format!("0\r\n{}: {}\r\n\r\n", TRAILER.0, TRAILER.1).as_bytes(),
                )
                .await?;
            }
            Script::Gate | Script::Stubborn => {
                self.send(&head).await?;
                self.send(&chunk(0)).await?;
                self.gate(exchange).await?;
                self.last(exchange, b"0\r\n\r\n").await?;
            }
            Script::Upgrade => {
                self.send(&head).await?;
                self.echo(exchange).await?;
                return Ok(After::Close);
            }
            // The response is only a head.
            _ => self.last(exchange, &head).await?,
        }
        Ok(after)
    }

    async fn echo(&mut self, exchange: &Exchange) -> Result<(), Over> {
        loop {
            let received = std::mem::take(&mut self.inbox);
            if received.ends_with(b"bye") {
                return self.last(exchange, &received).await;
            }
            self.send(&received).await?;
            // More bytes may have arrived during the write.
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

    /// Writes the last bytes of a response. The turn ends in the record before that.
    async fn last(&mut self, exchange: &Exchange, bytes: &[u8]) -> Result<(), Over> {
        if self.probed.probe().has_received_close() {
            return Err(GONE);
        }
        self.end(exchange, After::Next);
        let written = self.send(bytes).await;
        if written.is_err() {
            self.record
                .send_modify(|record| record.did_not_finish(exchange.id));
        }
        written
    }

    fn end(&self, exchange: &Exchange, after: After) -> After {
        self.record
            .send_modify(|record| record.end(exchange.id, Ending::Finished));
        after
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Over> {
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

    async fn hang(&mut self) -> Result<After, Over> {
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

/// The body of `gate-head`.
const OPEN: &str = "open";

fn chunk(n: usize) -> Vec<u8> {
    wire::chunk(event(n).as_bytes())
}

// === impl Exchange ===

impl Exchange {
    /// The head of the response.
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
            Script::HangText => (
                200,
                "content-type: text/plain\r\ntransfer-encoding: chunked\r\n".into(),
            ),
            Script::Length(count, _) => (200, events(&length(super::events(*count).len()))),
            Script::CutLength(_, stream) => (200, events(&length(stream.len()))),
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
            | Script::Cut(..)
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
                .map_err(|_| format!("not a number in the script {text:?}"))
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
            "hang-text" => Self::HangText,
            "cut" => Self::Cut(size(first)?, super::stream_with(super::eol(second))),
            "cut-length" => Self::CutLength(size(first)?, super::stream_with(super::eol(second))),
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
            _ => return Err(format!("unknown script {text:?}")),
        })
    }
}
