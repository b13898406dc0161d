//! A strict reader of chunked bodies (RFC 9112 §7.1).

use memchr::memchr;

use super::field::{self, HeaderField};
use crate::http_syntax::is_head_only;
use crate::service::BadRequest;

/// The position in a chunked body that is being received.
#[derive(Debug)]
pub(super) struct ChunkedReader {
    state: ChunkedState,
    /// The length of all chunk extensions so far, in bytes.
    extensions: usize,
}

#[derive(Debug)]
enum ChunkedState {
    /// In a chunk's size: its value so far, and its number of digits.
    Size { size: u64, digits: u8 },
    /// In the extension that may follow the size.
    Extension { size: u64 },
    /// After the carriage return that follows the size.
    SizeEnd { size: u64 },
    /// In the chunk's data, of which this many bytes are left.
    Data { left: u64 },
    /// After the chunk's data; `has_cr`: the carriage return was read.
    DataEnd { has_cr: bool },
    /// In the trailer section after the last chunk.
    Trailers(TrailerReader),
}

/// The position in a trailer section that is being received, in bytes from the section's start.
#[derive(Debug, Default)]
struct TrailerReader {
    /// Where the incomplete line begins.
    line_start: usize,
    /// How far the end of that line was searched.
    searched: usize,
    /// How many fields were read.
    fields: usize,
}

/// How much of a body was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BodyProgress {
    /// The number of bytes that were read.
    pub(super) bytes: usize,
    /// The body is complete.
    pub(super) is_end: bool,
}

/// The most bytes of chunk extensions in a body: hyper's limit. Nobody uses extensions.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// The most bytes of trailers in a body: hyper's limit.
const MAX_TRAILERS: usize = 16 * 1024;

/// The most trailer fields: more than any protocol sends; gRPC sends two or three.
const MAX_TRAILER_FIELDS: usize = 64;

/// The most digits of a chunk's size: enough for any body, and not too many for any backend.
const MAX_DIGITS: u8 = 15;

// === impl ChunkedReader ===

impl ChunkedReader {
    pub(super) fn new() -> Self {
        Self {
            state: ChunkedState::Size { size: 0, digits: 0 },
            extensions: 0,
        }
    }

    /// Reads on in `bytes`. Offer the bytes that aren't read again.
    ///
    /// # Errors
    /// If the body is malformed.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<BodyProgress, BadRequest> {
        let mut at = 0;
        loop {
            match &mut self.state {
                ChunkedState::Trailers(trailers) => {
                    let length = trailers.read(&bytes[at..])?;
                    return Ok(BodyProgress {
                        bytes: at + length.unwrap_or(0),
                        is_end: length.is_some(),
                    });
                }
                ChunkedState::Data { left } => {
                    let rest = bytes.len() - at;
                    let count = rest.min(usize::try_from(*left).unwrap_or(usize::MAX));
                    at += count;
                    *left -= count as u64;
                    if *left > 0 {
                        break;
                    }
                    self.state = ChunkedState::DataEnd { has_cr: false };
                }
                _ => {
                    let Some(byte) = bytes.get(at) else { break };
                    self.state = self.step(*byte)?;
                    at += 1;
                }
            }
        }
        Ok(BodyProgress {
            bytes: at,
            is_end: false,
        })
    }

    /// The state after one byte outside of a chunk's data.
    fn step(&mut self, byte: u8) -> Result<ChunkedState, BadRequest> {
        const BAD_SIZE: BadRequest = BadRequest::Malformed("an invalid chunk size");
        const BAD_END: BadRequest =
            BadRequest::Malformed("a chunk that is longer or shorter than its size");
        Ok(match (&self.state, byte) {
            (&ChunkedState::Size { size, digits }, digit) if digit.is_ascii_hexdigit() => {
                if digits == MAX_DIGITS {
                    return Err(BAD_SIZE);
                }
                let value = char::from(digit).to_digit(16).unwrap_or(0);
                ChunkedState::Size {
                    size: size << 4 | u64::from(value),
                    digits: digits + 1,
                }
            }
            (&ChunkedState::Size { digits: 0, .. }, _) => return Err(BAD_SIZE),
            (&ChunkedState::Size { size, .. }, b'\r') => ChunkedState::SizeEnd { size },
            (&ChunkedState::Size { size, .. }, b';') => ChunkedState::Extension { size },
            (&ChunkedState::Extension { size }, b'\r') => ChunkedState::SizeEnd { size },
            (&ChunkedState::Extension { size }, byte)
                if byte == b'\t' || (byte >= b' ' && byte != 0x7f) =>
            {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS {
                    return Err(BadRequest::Malformed("too many chunk extensions"));
                }
                ChunkedState::Extension { size }
            }
            (&ChunkedState::SizeEnd { size: 0 }, b'\n') => {
                ChunkedState::Trailers(TrailerReader::default())
            }
            (&ChunkedState::SizeEnd { size: left }, b'\n') => ChunkedState::Data { left },
            (&ChunkedState::DataEnd { has_cr: false }, b'\r') => {
                ChunkedState::DataEnd { has_cr: true }
            }
            (&ChunkedState::DataEnd { has_cr: true }, b'\n') => {
                ChunkedState::Size { size: 0, digits: 0 }
            }
            (ChunkedState::DataEnd { .. } | ChunkedState::SizeEnd { .. }, _) => {
                return Err(BAD_END);
            }
            _ => return Err(BAD_SIZE),
        })
    }
}

// === impl TrailerReader ===

impl TrailerReader {
    /// Reads on in `bytes`, which begin with the section's first byte. Returns the section's length in
    /// bytes; `None`: the section isn't complete.
    fn read(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadRequest> {
        const TOO_MANY: BadRequest = BadRequest::Malformed("too many trailers");
        while let Some(found) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + found;
            let [line @ .., b'\r'] = &bytes[self.line_start..end] else {
                return Err(BadRequest::Malformed(
                    "a trailer line without a carriage return",
                ));
            };
            self.line_start = end + 1;
            self.searched = end + 1;
            if line.is_empty() {
                return Ok(Some(end + 1));
            }
            self.fields += 1;
            let HeaderField { name, .. } = field::parse(line)?;
            if is_head_only(name) {
                return Err(BadRequest::Malformed(
                    "a trailer that is allowed only in the head",
                ));
            }
            if end > MAX_TRAILERS || self.fields > MAX_TRAILER_FIELDS {
                return Err(TOO_MANY);
            }
        }
        self.searched = bytes.len();
        match bytes.len() > MAX_TRAILERS {
            true => Err(TOO_MANY),
            false => Ok(None),
        }
    }
}
