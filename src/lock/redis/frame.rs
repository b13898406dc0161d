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
    /// The search for the end of the frame behind them.
    scan: FrameScan,
}

/// How far the beginning of a frame was searched for its end, so that what arrives in many pieces is searched once.
#[derive(Debug)]
struct FrameScan {
    /// Where the next header begins, from the beginning of the frame on.
    at: usize,
    /// How many values are missing from there on.
    missing: u64,
}

/// The longest header of a frame in bytes: a kind, a number and the end of the line. An error or another text in one
/// line may be longer.
const LONGEST_LINE: usize = 64 << 10;

/// How much memory is kept when everything is parsed, in bytes.
const LARGEST_KEPT: usize = 64 << 10;

// === impl FrameBuffer ===

impl FrameBuffer {
    /// Whether everything that was received is parsed.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds what was received.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next reply; `None`: it isn't whole yet.
    ///
    /// # Errors
    /// When the bytes are no reply of Redis. Nothing behind them can be parsed.
    pub(super) fn next(&mut self) -> RedisResult<Option<Value>> {
        let bytes = &self.bytes[self.parsed..];
        let Some(length) = self.scan.end(bytes)? else {
            self.forget_parsed();
            return Ok(None);
        };
        let frame = &bytes[..length];
        let value = match frame {
            [b':', number @ .., b'\r', b'\n'] => Value::Int(integer(number)?),
            frame => parse_redis_value(frame)?,
        };
        self.parsed += length;
        self.scan = FrameScan::default();
        Ok(Some(value))
    }

    fn forget_parsed(&mut self) {
        self.bytes.drain(..self.parsed);
        self.parsed = 0;
        if self.bytes.is_empty() {
            self.bytes.shrink_to(LARGEST_KEPT);
        }
    }
}

// === impl FrameScan ===

impl Default for FrameScan {
    fn default() -> Self {
        Self { at: 0, missing: 1 }
    }
}

impl FrameScan {
    /// Where the frame ends at whose beginning `bytes` begins; `None`: it isn't whole yet. Goes on where the last call
    /// ended.
    fn end(&mut self, bytes: &[u8]) -> RedisResult<Option<usize>> {
        while self.missing > 0 {
            let Some(line) = line(&bytes[self.at.min(bytes.len())..])? else {
                return Ok(None);
            };
            let (kind, header) = line.split_first().ok_or_else(malformed)?;
            // A negative length is that of a null.
            let length = || Ok::<_, RedisError>(u64::try_from(integer(header)?).unwrap_or(0));
            let (more, text) = match kind {
                b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => (0, 0),
                b'$' | b'!' | b'=' if header.starts_with(b"-") => (length()?, 0),
                b'$' | b'!' | b'=' => (0, length()?.checked_add(2).ok_or_else(malformed)?),
                b'*' | b'~' | b'>' => (length()?, 0),
                b'%' => (length()?.checked_mul(2).ok_or_else(malformed)?, 0),
                // The attributes of the value that follows.
                b'|' => (length()?.checked_mul(2).ok_or_else(malformed)? + 1, 0),
                _ => return Err(malformed()),
            };
            let text = usize::try_from(text).map_err(|_| malformed())?;
            let at = (self.at + line.len() + 2).checked_add(text);
            self.at = at.ok_or_else(malformed)?;
            self.missing = (self.missing - 1).checked_add(more).ok_or_else(malformed)?;
        }
        Ok((self.at <= bytes.len()).then_some(self.at))
    }
}

/// The number with which `bytes` begins, and what is behind it; `None`: they begin with another reply, or it isn't whole
/// yet.
///
/// # Errors
/// When they begin with no reply of Redis.
pub(super) fn whole_number(bytes: &[u8]) -> RedisResult<Option<(i64, &[u8])>> {
    let Some(b":") = bytes.get(..1) else {
        return Ok(None);
    };
    let Some(line) = line(bytes)? else {
        return Ok(None);
    };
    Ok(Some((integer(&line[1..])?, &bytes[line.len() + 2..])))
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
    use proptest::prelude::*;

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

    /// What a client may be sent in one value, but for pushes and attributes, which are never inside of another.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let sized = |kind: char, text: &[u8]| {
            [
                format!("{kind}{}\r\n", text.len()).as_bytes(),
                text,
                b"\r\n",
            ]
            .concat()
        };
        let leaf = prop_oneof![
            any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
            "[+-][A-Z]{0,3} ?[a-z$*:]{0,9}\r\n".prop_map(String::into_bytes),
            ",-?[0-9]{1,3}\\.[0-9]\r\n|[(]-?[0-9]{1,30}\r\n".prop_map(String::into_bytes),
            "_\r\n|#[tf]\r\n|[$*]-1\r\n".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(move |text| sized('$', &text)),
            "txt:[a-z\r\n]{0,9}".prop_map(move |text| sized('=', text.as_bytes())),
            "[A-Z]{1,3} [a-z]{0,9}".prop_map(move |text| sized('!', text.as_bytes())),
            "[$*\r\n:]{0,9}".prop_map(move |text| sized('$', text.as_bytes())),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let items = prop::collection::vec(inner, 0..6);
            ("[*~%]", items).prop_map(|(kind, mut items)| {
                let is_map = kind == "%";
                items.truncate(items.len() / 2 * 2 + usize::from(!is_map) * (items.len() % 2));
                let count = items.len() / if is_map { 2 } else { 1 };
                [format!("{kind}{count}\r\n").into_bytes(), items.concat()].concat()
            })
        })
    }

    /// A value, a push, or a value with attributes.
    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let push = |item: Vec<u8>| [b">2\r\n$7\r\nmessage\r\n", &*item].concat();
        let attributes =
            |(key, item): (Vec<u8>, Vec<u8>)| [b"|1\r\n", &*key, b":1\r\n", &*item].concat();
        prop_oneof![
            4 => frame(),
            1 => frame().prop_map(push),
            1 => (frame(), frame()).prop_map(attributes),
        ]
    }

    proptest! {
        #[test]
        fn any_replies_in_any_pieces_are_read_as_the_redis_crate_reads_them(
            replies in prop::collection::vec(reply(), 1..6),
            cuts in prop::collection::vec(1..30_usize, 1..20),
        ) {
            let all = replies.concat();
            let (mut buffer, mut read, mut at) = (FrameBuffer::default(), Vec::new(), 0);
            for cut in cuts.into_iter().cycle() {
                let piece = &all[at..all.len().min(at + cut)];
                buffer.extend(piece);
                at += piece.len();
                while let Some(value) = buffer.next().expect("replies only") {
                    read.push(value);
                }
                // As soon as the last byte is there, and not before.
                let ends = replies.iter().scan(0, |end, reply| {
                    *end += reply.len();
                    Some(*end)
                });
                prop_assert_eq!(read.len(), ends.filter(|end| *end <= at).count());
                if at == all.len() {
                    break;
                }
            }
            prop_assert!(buffer.bytes.is_empty(), "nothing is left");
            for (value, reply) in read.iter().zip(&replies) {
                prop_assert_eq!(value, &parse_redis_value(reply).expect("a reply"));
            }
        }

        #[test]
        fn any_bytes_are_replies_or_an_error(bytes in "[-+:$*%~>|=!_0-9a-c\r\n]{0,40}") {
            let mut buffer = FrameBuffer::default();
            buffer.extend(bytes.as_bytes());
            let mut read = 0;
            while let Ok(Some(_)) = buffer.next() {
                read += 1;
            }
            prop_assert!(read <= bytes.len() / 3, "each reply has a line");
        }
    }

    #[test]
    fn what_arrives_in_many_pieces_is_searched_once() {
        let mut buffer = FrameBuffer::default();
        buffer.extend(b"*3\r\n:1\r\n:2\r\n:");
        assert!(matches!(buffer.next(), Ok(None)), "one value is missing");
        let searched: Vec<_> = buffer.bytes.splice(..12, [b'\r'; 12]).collect();
        assert!(
            matches!(buffer.next(), Ok(None)),
            "it is not looked at again"
        );
        buffer.bytes.splice(..12, searched);
        buffer.extend(b"3\r\n");
        let value = buffer.next().expect("a reply");
        let expected = [1, 2, 3].map(Value::Int);
        assert_eq!(value, Some(Value::Array(expected.into())));
    }

    #[test]
    fn the_memory_of_a_large_reply_is_given_back() {
        let mut buffer = FrameBuffer::default();
        let text = "v".repeat(LARGEST_KEPT * 4);
        buffer.extend(format!("${}\r\n{text}\r\n", text.len()).as_bytes());
        buffer.next().expect("a reply").expect("it is whole");
        assert!(matches!(buffer.next(), Ok(None)), "there is no other");
        assert!(
            buffer.bytes.capacity() <= LARGEST_KEPT,
            "{}",
            buffer.bytes.capacity()
        );
    }
}
