//! HTTP/1.1 as bytes: heads, framing and a body decoder, for the scripted backend and the raw client.
//!
//! It is written by hand, so that a bug of hyper cannot hide by being on both sides. It keeps what it
//! reads as it was sent (letter case, order, raw bytes) and never reads past the end of a message.
//! HTTP/2 is left out.

use std::io;
use std::pin::pin;
use tokio::net::TcpStream;

/// The first line and the headers of a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    /// The request line or the status line, without CR LF.
    pub(crate) start_line: String,
    /// In the original letter case and order; values without surrounding white space. Bytes that are
    /// not UTF-8 are read as Latin-1.
    pub(crate) headers: Vec<(String, String)>,
    /// All bytes of the head, with the final empty line.
    pub(crate) raw: Vec<u8>,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Takes a body from the bytes that have arrived so far.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    /// The trailers of a chunked body; complete at [`Step::End`].
    pub(crate) trailers: Vec<(String, String)>,
}

#[derive(Debug)]
enum State {
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
    Done,
}

/// The result of [`Decoder::next`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A piece of the body; never more than one chunk.
    Data(Vec<u8>),
    /// More bytes have to arrive first.
    More,
    /// The end of the body. The rest of the inbox belongs to the next message.
    End,
}

// === impl Head ===

impl Head {
    /// Takes a head from `inbox`; `None` if it is not complete yet.
    pub(crate) fn take(inbox: &mut Vec<u8>) -> Option<Result<Self, String>> {
        let end = inbox.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let raw: Vec<u8> = inbox.drain(..end).collect();
        Some(Self::parse(raw))
    }

    fn parse(raw: Vec<u8>) -> Result<Self, String> {
        let text = text(&raw);
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let start_line = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(field).collect::<Result<_, _>>()?;
        Ok(Self {
            start_line,
            headers,
            raw,
        })
    }

    /// The first header of that name; letter case does not matter.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        values(&self.headers, name).next()
    }

    /// The `index`th word of the first line.
    pub(crate) fn word(&self, index: usize) -> &str {
        self.start_line.split(' ').nth(index).unwrap_or_default()
    }

    /// The framing in the headers (RFC 9112 §6.3), if there is one.
    pub(crate) fn framing(&self) -> Option<Framing> {
        if self
            .header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            return Some(Framing::Chunked);
        }
        self.header("content-length")?
            .parse()
            .ok()
            .map(Framing::Length)
    }

    /// Whether one of the `connection` headers has this option.
    pub(crate) fn connection_has(&self, option: &str) -> bool {
        values(&self.headers, "connection")
            .flat_map(|value| value.split(','))
            .any(|word| word.trim().eq_ignore_ascii_case(option))
    }
}

/// The values of all headers of that name; letter case does not matter.
pub(crate) fn values<'a>(
    headers: &'a [(String, String)],
    name: &str,
) -> impl Iterator<Item = &'a str> {
    headers
        .iter()
        .filter(move |(other, _)| other.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

fn field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line
        .split_once(':')
        .ok_or_else(|| format!("a header line without a colon: {line:?}"))?;
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

fn text(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

// === impl Decoder ===

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkSize,
            Framing::UntilClose => State::UntilClose,
        };
        Self {
            state,
            trailers: Vec::new(),
        }
    }

    /// Takes the next piece from `inbox`; `Err` if the bytes are not a valid chunk.
    pub(crate) fn next(&mut self, inbox: &mut Vec<u8>) -> Result<Step, String> {
        loop {
            match self.state {
                State::Done => return Ok(Step::End),
                State::Length(_) | State::ChunkData(_) | State::UntilClose if inbox.is_empty() => {
                    return Ok(Step::More);
                }
                State::UntilClose => return Ok(Step::Data(std::mem::take(inbox))),
                State::Length(left) => {
                    let data = take_up_to(inbox, left);
                    self.state = match left - data.len() as u64 {
                        0 => State::Done,
                        left => State::Length(left),
                    };
                    return Ok(Step::Data(data));
                }
                State::ChunkData(left) => {
                    let data = take_up_to(inbox, left);
                    self.state = match left - data.len() as u64 {
                        0 => State::ChunkEnd,
                        left => State::ChunkData(left),
                    };
                    return Ok(Step::Data(data));
                }
                State::ChunkSize | State::ChunkEnd | State::Trailers => {
                    let Some(line) = take_line(inbox) else {
                        return Ok(Step::More);
                    };
                    self.line(&line)?;
                }
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        self.state = match self.state {
            State::ChunkSize => {
                let digits = line.split(';').next().unwrap_or_default().trim();
                match u64::from_str_radix(digits, 16) {
                    Ok(0) => State::Trailers,
                    Ok(size) => State::ChunkData(size),
                    Err(_) => return Err(format!("not a chunk size: {line:?}")),
                }
            }
            State::ChunkEnd if line.is_empty() => State::ChunkSize,
            State::ChunkEnd => return Err(format!("no line end after a chunk, but {line:?}")),
            _ if line.is_empty() => State::Done,
            _ => {
                self.trailers.push(field(line)?);
                State::Trailers
            }
        };
        Ok(())
    }

    /// Whether a close of the connection ends the body now; `Err` says what is missing.
    pub(crate) fn closed(&self) -> Result<(), String> {
        match self.state {
            State::Done | State::UntilClose => Ok(()),
            State::Length(left) => Err(format!("{left} bytes of its content-length are missing")),
            State::ChunkData(left) => Err(format!("{left} bytes of a chunk are missing")),
            State::ChunkSize | State::ChunkEnd | State::Trailers => {
                Err("the last chunk is missing".to_owned())
            }
        }
    }
}

fn take_up_to(inbox: &mut Vec<u8>, limit: u64) -> Vec<u8> {
    let size = usize::try_from(limit)
        .unwrap_or(usize::MAX)
        .min(inbox.len());
    inbox.drain(..size).collect()
}

fn take_line(inbox: &mut Vec<u8>) -> Option<String> {
    let end = inbox.windows(2).position(|window| window == b"\r\n")?;
    let line: Vec<u8> = inbox.drain(..end + 2).collect();
    Some(text(&line[..end]))
}

/// One chunk of a chunked body. Empty data gives the last chunk; the caller adds the trailers and the
/// empty line.
pub(crate) fn chunk(data: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    if !data.is_empty() {
        chunk.extend_from_slice(data);
        chunk.extend_from_slice(b"\r\n");
    }
    chunk
}

// === the socket, by shared reference, for concurrent reads and writes ===

/// Reads the bytes that have arrived into `inbox`, or waits for some; 0 at the end of the stream.
/// Cancel-safe.
pub(crate) async fn read_some(socket: &TcpStream, inbox: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        // A full Vec would offer only 64 bytes.
        inbox.reserve(16 * 1024);
        match socket.try_read_buf(inbox) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// Writes all of `bytes`. Not cancel-safe: after a drop, the caller does not know how many bytes were
/// written.
pub(crate) async fn write_all(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await?;
        match socket.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(written) => bytes = &bytes[written..],
        }
    }
    Ok(())
}

/// Waits until the peer has closed or reset the connection, and keeps in `inbox` what it sends before.
/// Cancel-safe.
pub(crate) async fn peer_gone(socket: &TcpStream, inbox: &mut Vec<u8>) {
    while matches!(read_some(socket, inbox).await, Ok(1..)) {}
}

/// Runs `future` while watching the peer; `None` if the peer closes first.
pub(crate) async fn unless_gone<F: Future>(
    socket: &TcpStream,
    inbox: &mut Vec<u8>,
    future: F,
) -> Option<F::Output> {
    let (future, gone) = (pin!(future), pin!(peer_gone(socket, inbox)));
    tokio::select! {
        biased;
        () = gone => None,
        output = future => Some(output),
    }
}
