//! Decodes bodies with a content encoding (RFC 9110 §8.4), step by step and within limits.
//!
//! Invariant: the output of each stage is at most as long as a body may be, and at most [`MAX_RATIO`] times
//! as long as the body that came; the first [`FREE`] bytes are always allowed. A body is one encoded stream
//! from its first byte to its last. Readers differ on what follows the end of a stream (a second gzip member,
//! a second zstd frame, padding) and on `deflate` without its zlib header, so both are refused.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::bufread::GzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use http::header::CONTENT_ENCODING;
use http::request::Parts;
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use super::ambiguity::Ambiguity;
use super::error::SessionError;
use super::lookalike::alike;
use super::work_limit::SMALL;
use crate::http_syntax::list_items;

/// A content encoding that the proxy decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Gzip,
    /// `deflate` with the header of zlib (RFC 9110 §8.4.1.2).
    Deflate,
    Brotli,
    Zstd,
}

/// A body that is being decoded.
pub(super) struct Decoding<'b> {
    reader: Box<dyn BufRead + Send + 'b>,
    decoded: Vec<u8>,
    /// The error for a body that gets longer than it may be.
    too_long: SessionError,
}

/// The decoder of one encoding. Its output is limited, and nothing may follow the end of its stream.
struct DecoderStage<D> {
    decoder: D,
    /// How many bytes of output are still allowed.
    left: usize,
}

/// Reads from a reader step by step, and leaves in it what follows the end of the stream.
trait Decoder: Read {
    fn rest(&mut self) -> &mut dyn BufRead;
}

/// A [`Decoder`] that decodes with a [`Codec`].
struct PullDecoder<R, C> {
    reader: R,
    codec: C,
    is_over: bool,
}

/// Decodes bytes in memory.
trait Codec {
    /// Decodes some of `input` into some of `output`. Returns how many bytes of each, and whether the stream
    /// has ended.
    fn run(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize, bool)>;
}

struct Zlib(Decompress);
struct Brotli {
    state: Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>,
    /// The smallest window, as a power of two, that all that may come out fits into.
    window: u32,
    has_begun: bool,
}
struct Zstd(ZstdDecoder<'static>);

/// How many encodings a body may have: no client applies more, and each costs a window of memory.
const MAX_STAGES: usize = 2;

/// How much of an unknown encoding's name an error text shows, in bytes: more than any known name has. The
/// client's text goes into the response, the log and the journal.
const SHOWN: usize = 100;

/// The smallest window of brotli, as a power of two (RFC 7932 §9.1).
const BROTLI_LEAST_WINDOW: u32 = 10;

/// The largest window of zstd, as a power of two: 8 MiB (RFC 9659 §3).
const ZSTD_WINDOW: u32 = 23;

/// How many times as long a body may get when it is decoded. Chat histories get 3 to 50 times as long in any
/// encoding. Apache httpd has the same limit of 200 (`DeflateInflateRatioLimit`).
pub(super) const MAX_RATIO: usize = 200;

/// The length up to which a decoded body has no limit on its ratio, in bytes: short texts may be very
/// repetitive.
const FREE: usize = 64 << 10;

// === impl Encoding ===

impl Encoding {
    /// The encodings of a request's body, the outermost first. Empty for most requests.
    ///
    /// # Errors
    /// When the proxy doesn't decode one of them, there are too many, or the header is ambiguous.
    pub(super) fn all(head: &Parts) -> Result<Vec<Self>, SessionError> {
        let mut values = Vec::new();
        for (name, value) in alike(head, &CONTENT_ENCODING) {
            if name != CONTENT_ENCODING {
                return Err(SessionError::ambiguous_header(
                    "content-encoding",
                    Ambiguity::HeaderAlike,
                ));
            }
            values.push(value);
        }
        let unsupported = || {
            let texts = values.iter().map(|value| value.as_bytes());
            let text = texts.collect::<Vec<_>>().join(&b", "[..]);
            SessionError::Encoding {
                encoding: String::from_utf8_lossy(&text[..text.len().min(SHOWN)]).into_owned(),
            }
        };
        let mut all = Vec::new();
        for value in &values {
            for name in list_items(value.as_bytes()) {
                let encoding = match &*name.to_ascii_lowercase() {
                    b"" | b"identity" => continue,
                    b"gzip" | b"x-gzip" => Self::Gzip,
                    b"deflate" => Self::Deflate,
                    b"br" => Self::Brotli,
                    b"zstd" => Self::Zstd,
                    _ => return Err(unsupported()),
                };
                all.push(encoding);
            }
        }
        if all.len() > MAX_STAGES {
            return Err(unsupported());
        }
        // The header lists them in the order in which they were applied.
        all.reverse();
        Ok(all)
    }
}

// === impl Decoding ===

impl<'b> Decoding<'b> {
    /// Begins to decode a body to at most `max` bytes.
    ///
    /// # Errors
    /// When a decoder can't be made.
    pub(super) fn new(
        encodings: &[Encoding],
        body: &'b [u8],
        max: usize,
    ) -> Result<Self, SessionError> {
        let proportionate = FREE.saturating_add(body.len().saturating_mul(MAX_RATIO));
        let too_long = match proportionate < max {
            true => SessionError::TooDense {
                max_ratio: MAX_RATIO,
            },
            false => SessionError::TooLarge { max },
        };
        let max = max.min(proportionate);
        let mut reader: Box<dyn BufRead + Send + 'b> = Box::new(body);
        for encoding in encodings {
            reader = match encoding {
                Encoding::Gzip => DecoderStage::around(GzDecoder::new(reader), max),
                Encoding::Deflate => {
                    DecoderStage::around(PullDecoder::new(reader, Zlib(Decompress::new(true))), max)
                }
                Encoding::Brotli => {
                    DecoderStage::around(PullDecoder::new(reader, Brotli::new(max)), max)
                }
                Encoding::Zstd => {
                    let zstd = Zstd::new().map_err(|error| broken(&error))?;
                    DecoderStage::around(PullDecoder::new(reader, zstd), max)
                }
            };
        }
        Ok(Self {
            reader,
            decoded: Vec::new(),
            too_long,
        })
    }

    /// Decodes some more. Returns how many bytes have been decoded, and whether that is the whole body.
    ///
    /// # Errors
    /// When the encoding is broken, or the body gets longer than it may be.
    pub(super) fn step(&mut self) -> Result<(usize, bool), SessionError> {
        let mut some = self.reader.as_mut().take(SMALL as u64);
        match some.read_to_end(&mut self.decoded) {
            Ok(count) => Ok((self.decoded.len(), count < SMALL)),
            Err(error) if error.kind() == ErrorKind::FileTooLarge => Err(self.too_long.clone()),
            Err(error) => Err(broken(&error)),
        }
    }

    /// The decoded body.
    pub(super) fn finish(self) -> Vec<u8> {
        self.decoded
    }
}

fn broken(error: &io::Error) -> SessionError {
    SessionError::malformed(format!("its encoding is broken: {error}"))
}

// === impl DecoderStage ===

impl<'b, D: Decoder + Send + 'b> DecoderStage<D> {
    fn around(decoder: D, max: usize) -> Box<dyn BufRead + Send + 'b> {
        Box::new(BufReader::new(Self { decoder, left: max }))
    }
}

impl<D: Decoder> Read for DecoderStage<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        if count == 0 && !buffer.is_empty() && !self.decoder.rest().fill_buf()?.is_empty() {
            let reason = "something follows the end of the stream";
            return Err(io::Error::new(ErrorKind::InvalidData, reason));
        }
        let left = self.left.checked_sub(count);
        self.left = left.ok_or(ErrorKind::FileTooLarge)?;
        Ok(count)
    }
}

// === impl Decoder ===

impl<R: BufRead> Decoder for GzDecoder<R> {
    fn rest(&mut self) -> &mut dyn BufRead {
        self.get_mut()
    }
}

impl<R: BufRead, C: Codec> Decoder for PullDecoder<R, C> {
    fn rest(&mut self) -> &mut dyn BufRead {
        &mut self.reader
    }
}

impl<R, C> PullDecoder<R, C> {
    fn new(reader: R, codec: C) -> Self {
        Self {
            reader,
            codec,
            is_over: false,
        }
    }
}

impl<R: BufRead, C: Codec> Read for PullDecoder<R, C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.is_over || buffer.is_empty() {
                return Ok(0);
            }
            let input = self.reader.fill_buf()?;
            let is_last = input.is_empty();
            let (used, made, is_over) = self.codec.run(input, buffer)?;
            self.reader.consume(used);
            self.is_over = is_over;
            if made > 0 {
                return Ok(made);
            }
            if !is_over && is_last {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if !is_over && used == 0 {
                return Err(ErrorKind::InvalidData.into());
            }
        }
    }
}

// === impl Codec ===

impl Codec for Zlib {
    fn run(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize, bool)> {
        let before = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, output, FlushDecompress::None)?;
        // Neither is longer than a slice.
        let used = (self.0.total_in() - before.0) as usize;
        let made = (self.0.total_out() - before.1) as usize;
        Ok((used, made, status == Status::StreamEnd))
    }
}

impl Brotli {
    /// A decoder for an output of up to `max` bytes.
    fn new(max: usize) -> Self {
        let alloc = StandardAlloc::default;
        // Strict: without the windows of up to 1 GiB that aren't in RFC 7932.
        let state = BrotliState::new_strict(alloc(), alloc(), alloc());
        Self {
            state: Box::new(state),
            window: (usize::BITS - max.leading_zeros()).max(BROTLI_LEAST_WINDOW),
            has_begun: false,
        }
    }
}

impl Codec for Brotli {
    fn run(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize, bool)> {
        // The first byte says how large the window is.
        let input = match self.has_begun {
            true => input,
            false => &input[..input.len().min(1)],
        };
        let (mut input_left, mut used) = (input.len(), 0);
        let (mut output_left, mut made, mut total) = (output.len(), 0, 0);
        let result = BrotliDecompressStream(
            &mut input_left,
            &mut used,
            input,
            &mut output_left,
            &mut made,
            output,
            &mut total,
            &mut self.state,
        );
        if !self.has_begun && used > 0 {
            self.has_begun = true;
            // The decoder gives no output before its window is full, so a few bytes could make it fill
            // 16 MiB. Output longer than `max` is refused, so no reference reaches further back.
            self.state.window_bits = self.state.window_bits.min(self.window);
        }
        match result {
            BrotliResult::ResultFailure => {
                Err(io::Error::new(ErrorKind::InvalidData, "it isn't brotli"))
            }
            BrotliResult::ResultSuccess => Ok((used, made, true)),
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => Ok((used, made, false)),
        }
    }
}

impl Zstd {
    fn new() -> io::Result<Self> {
        let mut decoder = ZstdDecoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW))?;
        Ok(Self(decoder))
    }
}

impl Codec for Zstd {
    fn run(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<(usize, usize, bool)> {
        let mut input = InBuffer::around(input);
        let mut output = OutBuffer::around(output);
        let hint = self.0.run(&mut input, &mut output)?;
        Ok((input.pos(), output.pos(), hint == 0))
    }
}

#[cfg(test)]
mod tests;
