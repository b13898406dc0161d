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
    /// In the trailer section after the last chunk. The positions count from the section's first byte.
    Trailers {
        line_start: usize,
        searched: usize,
        fields: usize,
    },
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
            if let ChunkedState::Trailers { .. } = self.state {
                let read = self.trailers(&bytes[at..])?;
                return Ok(BodyProgress {
                    bytes: at + read.bytes,
                    is_end: read.is_end,
                });
            }
            if let ChunkedState::Data { left } = &mut self.state {
                let rest = bytes.len() - at;
                let count = rest.min(usize::try_from(*left).unwrap_or(usize::MAX));
                at += count;
                *left -= count as u64;
                if *left == 0 {
                    self.state = ChunkedState::DataEnd { has_cr: false };
                }
            }
            let Some(byte) = bytes.get(at) else {
                return Ok(BodyProgress {
                    bytes: at,
                    is_end: false,
                });
            };
            if !matches!(self.state, ChunkedState::Data { .. }) {
                self.state = self.step(*byte)?;
                at += 1;
            }
        }
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
            (&ChunkedState::SizeEnd { size: 0 }, b'\n') => ChunkedState::Trailers {
                line_start: 0,
                searched: 0,
                fields: 0,
            },
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

    /// Reads the trailers line by line; they pass when all are complete.
    fn trailers(&mut self, bytes: &[u8]) -> Result<BodyProgress, BadRequest> {
        let ChunkedState::Trailers {
            line_start,
            searched,
            fields,
        } = &mut self.state
        else {
            return Ok(BodyProgress {
                bytes: 0,
                is_end: false,
            });
        };
        while let Some(found) = memchr(b'\n', &bytes[*searched..]) {
            let end = *searched + found;
            let [line @ .., b'\r'] = &bytes[*line_start..end] else {
                return Err(BadRequest::Malformed(
                    "a trailer line without a carriage return",
                ));
            };
            *line_start = end + 1;
            *searched = end + 1;
            if line.is_empty() {
                return Ok(BodyProgress {
                    bytes: end + 1,
                    is_end: true,
                });
            }
            *fields += 1;
            let HeaderField { name, .. } = field::parse(line)?;
            if is_head_only(name) {
                return Err(BadRequest::Malformed(
                    "a trailer that is allowed only in the head",
                ));
            }
            if end > MAX_TRAILERS || *fields > MAX_TRAILER_FIELDS {
                return Err(BadRequest::Malformed("too many trailers"));
            }
        }
        *searched = bytes.len();
        if bytes.len() > MAX_TRAILERS {
            return Err(BadRequest::Malformed("too many trailers"));
        }
        Ok(BodyProgress {
            bytes: 0,
            is_end: false,
        })
    }
}
