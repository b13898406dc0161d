//! A chunked body (RFC 9112 §7.1), read strictly.

use memchr::memchr;

use super::BadRequest;
use super::field::{self, HeaderField};

/// A chunked body that is coming in.
#[derive(Debug)]
pub(super) struct ChunkedReader {
    state: ChunkedState,
    /// Of chunk extensions so far, in bytes.
    extensions: usize,
}

#[derive(Debug)]
enum ChunkedState {
    /// A chunk's size, so far, and of how many digits.
    Size {
        size: u64,
        digits: u8,
    },
    /// What may stand behind the size.
    Extension {
        size: u64,
    },
    /// The carriage return behind the size has come.
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataEnd {
        has_cr: bool,
    },
    /// Field lines behind the last chunk.
    Trailers {
        line_start: usize,
        searched: usize,
        fields: usize,
    },
}

/// How far a body was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BodyProgress {
    pub(super) bytes: usize,
    pub(super) is_end: bool,
}

/// Of all extensions of a body, in bytes; as hyper has it. Nobody uses them.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Of all trailers of a body, in bytes; as hyper has it.
const MAX_TRAILERS: usize = 16 * 1024;

/// The most trailers: more than any protocol has, gRPC's two or three included.
const MAX_TRAILER_FIELDS: usize = 64;

/// Digits of a chunk's size: more than any body has bytes, and no more than every backend can count.
const MAX_DIGITS: u8 = 15;

// === impl Chunked ===

impl ChunkedReader {
    pub(super) fn new() -> Self {
        Self {
            state: ChunkedState::Size { size: 0, digits: 0 },
            extensions: 0,
        }
    }

    /// Reads on in `bytes`. What isn't read is to be offered again.
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
                let taken = rest.min(usize::try_from(*left).unwrap_or(usize::MAX));
                at += taken;
                *left -= taken as u64;
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

    /// One byte outside of the data.
    fn step(&mut self, byte: u8) -> Result<ChunkedState, BadRequest> {
        const BAD_SIZE: BadRequest = BadRequest::Malformed("a chunk's size that is none");
        const BAD_END: BadRequest =
            BadRequest::Malformed("a chunk that doesn't end where it should");
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

    /// Looks at the trailers line by line, and lets them pass when all are there.
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
                    "a trailer that ends without a carriage return",
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
            let HeaderField { name, .. } = field::read(line)?;
            if field::is_head_only(name) {
                return Err(BadRequest::Malformed(
                    "a trailer that belongs into the head",
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
