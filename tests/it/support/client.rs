//! A raw HTTP/1.1 client: it sends exactly the bytes that a test asks for, and records when each piece
//! of the response arrives.
//!
//! Invariants: it sends nothing by itself (no retry, no pool, no redirect); it reads while it writes,
//! so that an early response is not lost; no read lasts longer than [`LIMIT`]. The test chooses whether
//! a connection ends with a close or a reset. TLS and HTTP/2 are left out.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::{SockFilter, SockRef};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use super::wire::{self, Decoder, Framing, Head, Step};
use super::{LIMIT, within};

/// A request, built step by step. `host` is added if it is missing; a body adds the header for its
/// framing.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    chunked: bool,
}

/// A connection, for any number of requests.
pub(crate) struct Client {
    addr: SocketAddr,
    socket: TcpStream,
    inbox: Vec<u8>,
    /// One entry for each request without a response so far: whether it is a HEAD request.
    unanswered: VecDeque<bool>,
    current: Option<Reading>,
    write_error: Option<io::Error>,
}

/// The response that is being read.
struct Reading {
    answer: Answer,
    /// `None` after the end of the response.
    decoder: Option<Decoder>,
}

/// A response: all of it, or the part that arrived.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In the order and letter case in which they arrived.
    pub(crate) headers: Vec<(String, String)>,
    /// The bytes of the head, with the final empty line.
    pub(crate) raw_head: Vec<u8>,
    /// The statuses of the interim responses (1xx) before it.
    pub(crate) interim: Vec<u16>,
    pub(crate) body: Vec<u8>,
    /// The body in the pieces that arrived; a piece is never more than one chunk.
    pub(crate) pieces: Vec<(Instant, Vec<u8>)>,
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) head_at: Instant,
    /// When the response ended, complete or not.
    pub(crate) ended_at: Option<Instant>,
    /// Whether the response ended as its framing requires.
    pub(crate) whole: bool,
    /// Why the response is incomplete.
    pub(crate) broken: Option<String>,
}

/// A client that has vanished without a word. It can still send, and learns nothing.
pub(crate) struct Vanished(Client);

/// The connection ended before the head of a response.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// The bytes that arrived instead.
    pub(crate) bytes: Vec<u8>,
    /// The error that ended reading; `None` if the peer closed in order.
    pub(crate) read_error: Option<io::Error>,
    /// The error that ended writing before that, if there was one.
    pub(crate) write_error: Option<io::Error>,
}

/// Posts `{"session_id": SESSION, "user_id": "u1"}` to `/chat` with this script for the backend, and
/// reads the whole response.
pub(crate) async fn turn(addr: SocketAddr, session: &str, script: &str) -> Answer {
    begin_turn(addr, session, script).await.answer().await
}

/// Posts a turn as [`turn`] does, but reads nothing of the response.
pub(crate) async fn begin_turn(addr: SocketAddr, session: &str, script: &str) -> Client {
    let mut client = Client::connect(addr).await;
    client.send(&Request::turn(session, script)).await;
    client
}

// === impl Vanished ===

impl Vanished {
    /// Sends bytes that the socket has room for.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        let sent = self.0.socket.try_write(bytes);
        assert_eq!(sent.ok(), Some(bytes.len()), "the socket has room for it");
    }
}

/// Drops every packet that comes for this socket before TCP sees it, as a lost network does.
pub(crate) fn vanish(socket: &TcpStream) {
    /// Returns from the filter with the number of bytes to keep (`BPF_RET | BPF_K`).
    const KEEP: u16 = 6;
    SockRef::from(socket)
        .attach_filter(&[SockFilter::new(KEEP, 0, 0, 0)])
        .expect("any process may filter its own sockets");
}

// === impl Request ===

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            chunked: false,
        }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    /// The request that [`turn`] sends.
    pub(crate) fn turn(session: &str, script: &str) -> Self {
        let body = serde_json::json!({ "session_id": session, "user_id": "u1" });
        Self::post("/chat")
            .header("x-test-script", script)
            .json(&body.to_string())
    }

    /// Adds a header, even if there is one of that name.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets a body with a content-length.
    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.header("content-length", &length)
    }

    pub(crate) fn json(self, text: &str) -> Self {
        self.header("content-type", "application/json").body(text)
    }

    /// Sets a chunked body of these chunks.
    pub(crate) fn chunked(mut self, chunks: &[&[u8]]) -> Self {
        self.body = chunks.iter().flat_map(|data| wire::chunk(data)).collect();
        self.body.extend_from_slice(&wire::chunk(b""));
        self.body.extend_from_slice(b"\r\n");
        self.header("transfer-encoding", "chunked")
    }

    /// The bytes before the body.
    pub(crate) fn head_bytes(&self, host: SocketAddr) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            head.push_str(&format!("host: {host}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// All bytes of the request.
    pub(crate) fn bytes(&self, host: SocketAddr) -> Vec<u8> {
        let mut bytes = self.head_bytes(host);
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

// === impl Client ===

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        match Self::try_connect(addr).await {
            Ok(client) => client,
            Err(error) => panic!("no connection to {addr}: {error}"),
        }
    }

    pub(crate) async fn try_connect(addr: SocketAddr) -> io::Result<Self> {
        let socket = within("a connection", TcpStream::connect(addr)).await?;
        Self::new(addr, socket)
    }

    /// Connects with a receive buffer of about `bytes`, so that the peer soon has to wait.
    pub(crate) async fn connect_narrow(addr: SocketAddr, bytes: u32) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .set_recv_buffer_size(bytes)
            .expect("SO_RCVBUF on a new socket");
        let socket = within("a connection", socket.connect(addr))
            .await
            .expect("a connection");
        Self::new(addr, socket).expect("TCP_NODELAY on a connected socket")
    }

    fn new(addr: SocketAddr, socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let (inbox, unanswered) = (Vec::new(), VecDeque::new());
        Ok(Self {
            addr,
            socket,
            inbox,
            unanswered,
            current: None,
            write_error: None,
        })
    }

    /// The client's own address.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.socket
            .local_addr()
            .expect("a connected socket has an address")
    }

    /// Sends a request; several in a row are pipelined. A peer that no longer reads is not an error
    /// here: it may have responded already, and if not, reading the response fails.
    pub(crate) async fn send(&mut self, request: &Request) {
        self.unanswered.push_back(request.method == "HEAD");
        let bytes = request.bytes(self.addr);
        self.write(&bytes).await;
    }

    /// Sends only the head of a request; the body follows with [`Client::send_raw`].
    pub(crate) async fn send_head(&mut self, request: &Request) {
        self.unanswered.push_back(request.method == "HEAD");
        let bytes = request.head_bytes(self.addr);
        self.write(&bytes).await;
    }

    /// Sends raw bytes. They must not be a HEAD request, because the client would expect a body.
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.write(bytes).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        let (socket, inbox) = (&self.socket, &mut self.inbox);
        let written = async {
            let mut written = std::pin::pin!(wire::write_all(socket, bytes));
            tokio::select! {
                biased;
                written = &mut written => return written,
                () = wire::peer_gone(socket, inbox) => {}
            }
            // A peer that has closed only its sending half may still read.
            written.await
        };
        if let Err(error) = within("the peer to read what is sent", written).await {
            self.write_error = Some(error);
        }
    }

    /// Sends a request and reads the whole response.
    pub(crate) async fn call(&mut self, request: &Request) -> Answer {
        self.send(request).await;
        self.answer().await
    }

    pub(crate) async fn get(&mut self, target: &str) -> Answer {
        self.call(&Request::get(target)).await
    }

    pub(crate) async fn post_json(&mut self, target: &str, json: &str) -> Answer {
        self.call(&Request::post(target).json(json)).await
    }

    /// Sends the turn of [`turn`] on this connection.
    pub(crate) async fn turn(&mut self, session: &str, script: &str) -> Answer {
        self.call(&Request::turn(session, script)).await
    }

    /// Reads the head of the next response, if that has not been done; the body follows with
    /// [`Client::piece`].
    pub(crate) async fn head(&mut self) -> &Answer {
        if let Err(error) = self.begin().await {
            panic!("no response from {}: {error:?}", self.addr);
        }
        &self.reading().answer
    }

    /// Reads the next piece of the response's body; `None` at the end, complete or not.
    pub(crate) async fn piece(&mut self) -> Option<Vec<u8>> {
        self.head().await;
        loop {
            let reading = self.current.as_mut().expect("the head has been read");
            let step = reading.decoder.as_mut()?.next(&mut self.inbox);
            match step {
                Ok(Step::Data(data)) => {
                    reading.answer.body.extend_from_slice(&data);
                    reading.answer.pieces.push((Instant::now(), data.clone()));
                    return Some(data);
                }
                Ok(Step::End) => reading.end(Ok(())),
                Err(error) => reading.end(Err(error)),
                Ok(Step::More) => {
                    match limited(&self.socket, &mut self.inbox, &reading.answer).await {
                        Ok(0) => reading.close(),
                        Ok(_) => {}
                        Err(error) => reading.end(Err(error.to_string())),
                    }
                }
            }
        }
    }

    /// Reads until the received part of the body contains `text`.
    pub(crate) async fn read_until(&mut self, text: &str) {
        self.head().await;
        while !self.reading().answer.text().contains(text) {
            if self.piece().await.is_none() {
                panic!(
                    "the response ended without {text:?}: {:?}",
                    self.reading().answer
                );
            }
        }
    }

    /// Reads the response to its end, complete or not. Panics if not even a head arrives.
    pub(crate) async fn answer(&mut self) -> Answer {
        match self.try_answer().await {
            Ok(answer) => answer,
            Err(error) => panic!("no response from {}: {error:?}", self.addr),
        }
    }

    /// Reads the response to its end; `Err` if the connection ended before a head arrived.
    pub(crate) async fn try_answer(&mut self) -> Result<Answer, NoAnswer> {
        self.begin().await?;
        while self.piece().await.is_some() {}
        Ok(self.current.take().expect("the head has been read").answer)
    }

    /// Takes this number of raw bytes, before any response is read.
    pub(crate) async fn raw(&mut self, count: usize) -> Vec<u8> {
        while self.inbox.len() < count {
            let read = wire::read_some(&self.socket, &mut self.inbox);
            let read = within("bytes from the peer", read).await;
            assert!(matches!(read, Ok(1..)), "the peer closed: {read:?}");
        }
        self.inbox.drain(..count).collect()
    }

    /// How many bytes have arrived and have not been taken. Does not wait.
    pub(crate) fn arrived(&self) -> usize {
        /// More than a socket buffers by default.
        const PEEK_LIMIT: usize = 128 << 10;
        let mut bytes = vec![MaybeUninit::uninit(); PEEK_LIMIT];
        // An error means that nothing has arrived.
        let in_socket = SockRef::from(&self.socket).peek(&mut bytes).unwrap_or(0);
        assert!(
            in_socket < PEEK_LIMIT,
            "there may be more bytes than the limit"
        );
        self.inbox.len() + in_socket
    }

    /// Reads everything until the peer closes or resets the connection.
    pub(crate) async fn read_to_close(&mut self) -> Vec<u8> {
        within(
            "the peer to close",
            wire::peer_gone(&self.socket, &mut self.inbox),
        )
        .await;
        std::mem::take(&mut self.inbox)
    }

    /// Closes the sending half; the client can still read.
    pub(crate) async fn half_close(&mut self) {
        // A peer that is gone needs no close.
        let _ = self.socket.shutdown().await;
    }

    /// Closes the connection, whatever is still to come, as a browser tab does.
    pub(crate) fn close(self) {}

    /// Resets the connection (RST).
    pub(crate) fn reset(self) {
        self.socket
            .set_zero_linger()
            .expect("SO_LINGER on an open socket");
    }

    /// Vanishes without a word: from now on, no packet reaches the client's socket, so its system answers
    /// nothing, no data and no probes. The socket stays open as long as the result lives.
    pub(crate) fn vanish(self) -> Vanished {
        vanish(&self.socket);
        Vanished(self)
    }

    fn reading(&self) -> &Reading {
        self.current.as_ref().expect("the head has been read")
    }

    async fn begin(&mut self) -> Result<(), NoAnswer> {
        if self.current.is_some() {
            return Ok(());
        }
        let mut interim = Vec::new();
        loop {
            match Head::take(&mut self.inbox) {
                Some(Ok(head)) if head.start_line.starts_with("HTTP/1.") => {
                    let status = head.word(1).parse().unwrap_or_default();
                    if matches!(status, 100 | 102..200) {
                        interim.push(status);
                        continue;
                    }
                    let is_head = self.unanswered.pop_front().unwrap_or_default();
                    self.current = Some(Reading::new(status, head, is_head, interim));
                    return Ok(());
                }
                Some(Ok(head)) => return Err(self.no_answer(head.raw, None)),
                Some(Err(error)) => return Err(self.no_answer(error.into_bytes(), None)),
                None => {}
            }
            let read = within(
                "the head of a response",
                wire::read_some(&self.socket, &mut self.inbox),
            );
            match read.await {
                Ok(1..) => {}
                Ok(0) => return Err(self.no_answer(Vec::new(), None)),
                Err(error) => return Err(self.no_answer(Vec::new(), Some(error))),
            }
        }
    }

    fn no_answer(&mut self, mut bytes: Vec<u8>, read_error: Option<io::Error>) -> NoAnswer {
        bytes.append(&mut self.inbox);
        NoAnswer {
            bytes,
            read_error,
            write_error: self.write_error.take(),
        }
    }
}

async fn limited(socket: &TcpStream, inbox: &mut Vec<u8>, so_far: &Answer) -> io::Result<usize> {
    match tokio::time::timeout(LIMIT, wire::read_some(socket, inbox)).await {
        Ok(read) => read,
        Err(_) => panic!("waited {LIMIT:?} for the rest of {so_far:?}"),
    }
}

// === impl Reading ===

impl Reading {
    fn new(status: u16, head: Head, is_head: bool, interim: Vec<u16>) -> Self {
        // RFC 9112 §6.3: these responses end with their head, whatever their headers say.
        let framing = match is_head || matches!(status, 204 | 304) {
            true => Framing::Length(0),
            false => head.framing().unwrap_or(Framing::UntilClose),
        };
        let answer = Answer {
            status,
            headers: head.headers,
            raw_head: head.raw,
            interim,
            body: Vec::new(),
            pieces: Vec::new(),
            trailers: Vec::new(),
            head_at: Instant::now(),
            ended_at: None,
            whole: false,
            broken: None,
        };
        Self {
            answer,
            decoder: Some(Decoder::new(framing)),
        }
    }

    fn close(&mut self) {
        let closed = self.decoder.as_ref().map_or(Ok(()), Decoder::closed);
        self.end(closed.map_err(|missing| format!("closed, but {missing}")));
    }

    fn end(&mut self, result: Result<(), String>) {
        if let Some(decoder) = self.decoder.take() {
            self.answer.trailers = decoder.trailers;
        }
        self.answer.ended_at = Some(Instant::now());
        self.answer.whole = result.is_ok();
        self.answer.broken = result.err();
    }
}

// === impl Answer ===

impl Answer {
    /// The status, and the reason of an error response of the proxy.
    pub(crate) fn error(&self) -> (u16, &str) {
        let reason = self.header("x-seriatim-error");
        (self.status, reason.unwrap_or_default())
    }

    /// The first header of that name; letter case does not matter.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        wire::values(&self.headers, name).next()
    }

    /// The values of all headers of that name, in order.
    pub(crate) fn headers_named(&self, name: &str) -> Vec<&str> {
        wire::values(&self.headers, name).collect()
    }

    /// The body as text, with replacement characters for invalid UTF-8.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON. Panics with the response if it is not JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.body) {
            Ok(json) => json,
            Err(error) => panic!("not JSON ({error}): {self:?}"),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "response {} {:?}, body in {} pieces ",
            self.status,
            self.headers,
            self.pieces.len()
        )?;
        let text = self.text();
        match text.char_indices().nth(2000) {
            None => write!(f, "{text:?}")?,
            Some((end, _)) => write!(f, "{:?}... ({} bytes)", &text[..end], self.body.len())?,
        }
        write!(f, ", trailers {:?}, ", self.trailers)?;
        match (&self.broken, self.ended_at) {
            (Some(broken), _) => write!(f, "incomplete: {broken}"),
            (None, Some(_)) => write!(f, "complete"),
            (None, None) => write!(f, "not ended"),
        }
    }
}
