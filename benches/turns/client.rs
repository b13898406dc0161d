//! The client of a turn, written by hand to use little CPU: requests are built once, and of a response only the status and
//! the length are read.
//!
//! It leaves out responses to HEAD, trailers and interim responses.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::backend::EVENT_END;

/// The size of the buffer in bytes: larger than any head here, and than most whole responses.
const BUFFER: usize = 16 * 1024;

/// A keep-alive connection, which serves one turn at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Box<[u8]>,
}

/// The parts of a response's head that are used here.
struct Head {
    status: u16,
    /// The length of the body in bytes; `None`: the body is chunked.
    length: Option<usize>,
    /// The position of the body in the buffer.
    end: usize,
}

/// The bytes of one turn: its JSON body of exactly `size` bytes names a session and has a history of messages.
///
/// The ids come first, as in most clients' bodies. The rest is many short messages, as in a long chat.
pub(crate) fn request(target: &str, session: &str, size: usize) -> Vec<u8> {
    let body = body(session, size);
    let length = body.len();
    let head = format!(
        "POST {target} HTTP/1.1\r\nhost: agent.example\r\naccept: */*\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

/// Messages of 400 bytes, with an escape in every twenty bytes, as in lists and code. `serde_json` takes as long for this body as
/// for the bodies of the project's earlier figures (16 KiB: 18 µs as a `Value`, 8 µs for two ids alone).
fn body(session: &str, size: usize) -> String {
    const END: &str = "]}";
    const MESSAGE: [&str; 2] = [r#"{"role":"user","content":""#, r#""}"#];
    const WRAPPED: usize = MESSAGE[0].len() + MESSAGE[1].len();
    const CONTENT: usize = 400;
    const LINE: &str = r"Is order 471 late?\n";

    let mut body = format!(r#"{{"session_id":"{session}","user_id":"u-1","messages":["#);
    loop {
        let left = size.saturating_sub(body.len() + END.len() + WRAPPED);
        // What would not be enough for another message after this one goes into this one.
        let content = if left > CONTENT + 1 + WRAPPED {
            CONTENT
        } else {
            left
        };
        body.push_str(MESSAGE[0]);
        body.push_str(&LINE.repeat(content / LINE.len()));
        body.push_str(&".".repeat(content % LINE.len()));
        body.push_str(MESSAGE[1]);
        if content == left {
            body.push_str(END);
            return body;
        }
        body.push(',');
    }
}

// === impl Connection ===

impl Connection {
    pub(crate) async fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: vec![0; BUFFER].into_boxed_slice(),
        })
    }

    /// Sends a request and reads the response to its end. Returns the status.
    pub(crate) async fn turn(&mut self, request: &[u8]) -> io::Result<u16> {
        self.stream.write_all(request).await?;
        let (head, filled) = self.head().await?;
        let length = head
            .length
            .ok_or_else(|| broken("an answer without a content-length where one was expected"))?;
        let mut missing = (head.end + length).saturating_sub(filled);
        while missing > 0 {
            missing = missing.saturating_sub(self.read(0).await?);
        }
        Ok(head.status)
    }

    /// Sends a request, and returns when the head of the response and its first event have arrived.
    pub(crate) async fn begin_stream(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request).await?;
        let (head, filled) = self.head().await?;
        if head.status != 200 {
            return Err(broken(&format!(
                "a stream was refused with {}",
                head.status
            )));
        }
        if count_events(&self.buffer[head.end..filled]) == 0 {
            while self.events().await? == 0 {}
        }
        Ok(())
    }

    /// Waits for more bytes of a stream. Returns how many events end in these bytes.
    pub(crate) async fn events(&mut self) -> io::Result<usize> {
        let read = self.read(0).await?;
        Ok(count_events(&self.buffer[..read]))
    }

    /// Reads until the head is complete. Returns the head, and how many bytes of the buffer are filled.
    async fn head(&mut self) -> io::Result<(Head, usize)> {
        let mut filled = 0;
        loop {
            filled += self.read(filled).await?;
            if let Some(head) = Head::parse(&self.buffer[..filled])? {
                return Ok((head, filled));
            }
        }
    }

    async fn read(&mut self, from: usize) -> io::Result<usize> {
        if from == self.buffer.len() {
            return Err(broken("an answer's head fills the whole buffer"));
        }
        match self.stream.read(&mut self.buffer[from..]).await? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the proxy closed the connection",
            )),
            read => Ok(read),
        }
    }
}

// === impl Head ===

impl Head {
    /// Parses a head; `None`: it isn't complete.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        const LENGTH: &[u8] = b"content-length:";
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(None);
        };
        let mut lines = bytes[..end]
            .split(|&byte| byte == b'\n')
            .map(<[u8]>::trim_ascii);
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix(b"HTTP/1.1 "))
            .and_then(|rest| number(rest.get(..3)?));
        let status = status.ok_or_else(|| broken("an answer that isn't HTTP/1.1"))?;
        let length = lines.find(|line| {
            line.get(..LENGTH.len())
                .is_some_and(|name| name.eq_ignore_ascii_case(LENGTH))
        });
        let length = length.and_then(|line| number(line[LENGTH.len()..].trim_ascii()));
        let status =
            u16::try_from(status).map_err(|_| broken("a status of more than three digits"))?;
        Ok(Some(Self {
            status,
            length,
            end: end + 4,
        }))
    }
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn count_events(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == EVENT_END).count()
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
