//! Where a reply of Redis ends, and what it says.
//!
//! Two replies of a turn are numbers, which are read here. Every other reply is parsed by the redis crate, as soon as
//! it is whole. Source: Redis docs, "Redis serialization protocol specification".

use redis::{RedisError, RedisResult, Value, parse_redis_value};

/// What was received of a connection and isn't parsed yet.
#[derive(Debug, Default)]
pub(super) struct FrameBuffer {
    bytes: Vec<u8>,
    /// How many of the bytes are parsed.
    parsed: usize,
}

/// The longest header of a frame in bytes: a kind, a number and the end of the line. An error or another text in one
/// line may be longer.
const LONGEST_LINE: usize = 64 << 10;

// === impl FrameBuffer ===

impl FrameBuffer {
    /// Adds what was received.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        if self.parsed == self.bytes.len() {
            self.bytes.clear();
        } else {
            self.bytes.drain(..self.parsed);
        }
        self.parsed = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next reply; `None`: it isn't whole yet.
    ///
    /// # Errors
    /// When the bytes are no reply of Redis. Nothing behind them can be parsed.
    pub(super) fn next(&mut self) -> RedisResult<Option<Value>> {
        let bytes = &self.bytes[self.parsed..];
        let Some(length) = length(bytes)? else {
            return Ok(None);
        };
        let frame = &bytes[..length];
        let value = match frame {
            [b':', number @ .., b'\r', b'\n'] => Value::Int(integer(number)?),
            frame => parse_redis_value(frame)?,
        };
        self.parsed += length;
        Ok(Some(value))
    }
}

/// The length of the frame at the beginning of `bytes`; `None`: it isn't whole yet.
fn length(bytes: &[u8]) -> RedisResult<Option<usize>> {
    let (mut at, mut missing) = (0_usize, 1_u64);
    while missing > 0 {
        let Some(line) = line(&bytes[at.min(bytes.len())..])? else {
            return Ok(None);
        };
        missing -= 1;
        at += line.len() + 2;
        let (kind, header) = line.split_first().ok_or_else(malformed)?;
        // A negative length is that of a null.
        let count = || Ok::<_, RedisError>(u64::try_from(integer(header)?).unwrap_or(0));
        let more = match kind {
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => 0,
            b'$' | b'!' | b'=' => {
                let length = integer(header)?;
                if let Ok(length) = usize::try_from(length) {
                    at = at.checked_add(length + 2).ok_or_else(malformed)?;
                }
                0
            }
            b'*' | b'~' | b'>' => count()?,
            b'%' => count()?.checked_mul(2).ok_or_else(malformed)?,
            // The attributes of the value that follows.
            b'|' => count()?.checked_mul(2).ok_or_else(malformed)? + 1,
            _ => return Err(malformed()),
        };
        missing = missing.checked_add(more).ok_or_else(malformed)?;
    }
    Ok((at <= bytes.len()).then_some(at))
}

/// The first line without its end; `None`: it isn't whole yet.
fn line(bytes: &[u8]) -> RedisResult<Option<&[u8]>> {
    match memchr::memchr(b'\r', bytes) {
        Some(end) if end + 1 < bytes.len() => match bytes[end + 1] {
            b'\n' => Ok(Some(&bytes[..end])),
            _ => Err(malformed()),
        },
        None if bytes.len() > LONGEST_LINE => Err(malformed()),
        _ => Ok(None),
    }
}

fn integer(digits: &[u8]) -> RedisResult<i64> {
    let text = std::str::from_utf8(digits).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(malformed)
}

fn malformed() -> RedisError {
    let reason = "what the server sent is no reply of Redis";
    RedisError::from(std::io::Error::new(std::io::ErrorKind::InvalidData, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLIES: &[&str] = &[
        ":1765432100123456\r\n",
        ":-1\r\n",
        "+OK\r\n",
        "-NOSCRIPT No matching script.\r\n",
        "$5\r\nhe\r\no\r\n",
        "$0\r\n\r\n",
        "$-1\r\n",
        "_\r\n",
        "*-1\r\n",
        "*0\r\n",
        "*3\r\n:1\r\n$2\r\nab\r\n*2\r\n+x\r\n_\r\n",
        "%2\r\n+server\r\n$5\r\nredis\r\n+proto\r\n:3\r\n",
        "~1\r\n#t\r\n",
        ",1.5\r\n",
        ">3\r\n+message\r\n$1\r\nc\r\n$2\r\nhi\r\n",
        "=9\r\ntxt:hello\r\n",
        "!5\r\nERR x\r\n",
        "(3492890328409238509324850943850943825024385\r\n",
    ];

    #[test]
    fn a_reply_is_read_as_the_redis_crate_reads_it_however_it_arrives() {
        let all = REPLIES.concat();
        let expected: Vec<_> = REPLIES
            .iter()
            .map(|reply| parse_redis_value(reply.as_bytes()).expect("a reply"))
            .collect();
        for piece in [1, 2, 3, 7, 64, all.len()] {
            let (mut buffer, mut read) = (FrameBuffer::default(), Vec::new());
            for bytes in all.as_bytes().chunks(piece) {
                buffer.extend(bytes);
                while let Some(value) = buffer.next().expect("replies only") {
                    read.push(value);
                }
            }
            assert_eq!(read, expected, "in pieces of {piece} bytes");
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error_and_not_waited_for() {
        for text in [
            "HTTP/1.1 400 Bad Request\r\n",
            ":12a\r\n",
            ":\r\n",
            "\r\n",
            "*x\r\n",
            "+OK\rx",
            "%9223372036854775807\r\n",
            "$9223372036854775807\r\n",
        ] {
            let mut buffer = FrameBuffer::default();
            buffer.extend(text.as_bytes());
            let read = buffer.next();
            let waits_for_more = text.starts_with(['%', '$']);
            assert!(
                read.is_err() || waits_for_more && matches!(read, Ok(None)),
                "{text:?}: {read:?}"
            );
        }
        let mut buffer = FrameBuffer::default();
        buffer.extend(&vec![b'+'; LONGEST_LINE + 1]);
        buffer.next().expect_err("a line has a bound");
    }
}
