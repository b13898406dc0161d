//! The names of header fields in the letter case in which they were sent.
//!
//! hyper hands out names in lower case, and writes them so. It can keep the other names in a second map for each
//! head, which costs the same whatever the names look like. Here, a head in lower case costs nothing: who reads
//! its bytes keeps the names of other heads only, and [`NameRestorer`] puts them into the bytes that hyper writes.
//!
//! Invariant: only letters in names change, and only their case.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::Poll;

use bytes::{Buf, BytesMut};
use memchr::memchr;

/// The names of a head's header fields as they were sent, in their order. Only a head that has an upper-case
/// letter in a name has them. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OriginalNames(Arc<[u8]>);

/// Collects the names of a head that is being read.
#[derive(Debug, Default)]
pub(crate) struct NameCollector {
    /// Each name behind its length. Empty while all names are in lower case.
    names: Vec<u8>,
}

/// The names of a head, one after the other.
#[derive(Clone)]
struct Names<'n>(&'n [u8]);

/// Puts names into the heads among the bytes that hyper writes to a stream.
#[derive(Debug, Default)]
pub(crate) struct NameRestorer {
    /// What is written in place of the first bytes that hyper offers. It is as long as they are.
    front: BytesMut,
    /// How many bytes hyper has offered that the stream has not taken.
    unsent: usize,
}

/// How many pieces are written at once that begin with a head: the rest of its buffer and pieces of the body follow.
const PIECES: usize = 4;

/// The room for the names of a usual head, in bytes.
const USUAL_NAMES: usize = 256;

/// What hyper writes by itself before the head of a response.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

// === impl NameCollector ===

impl NameCollector {
    /// Adds the name of the next field. `before` are the lines of the fields before it.
    pub(crate) fn add(&mut self, name: &[u8], has_upper: bool, before: &[u8]) {
        if self.names.is_empty() {
            if !has_upper {
                return;
            }
            self.names.reserve(USUAL_NAMES);
            for line in before.split(|byte| *byte == b'\n') {
                if let Some(end) = memchr(b':', line) {
                    self.push(&line[..end]);
                }
            }
        }
        self.push(name);
    }

    fn push(&mut self, name: &[u8]) {
        // hyper refuses a longer one.
        if let Ok(length) = u16::try_from(name.len()) {
            self.names.extend_from_slice(&length.to_be_bytes());
            self.names.extend_from_slice(name);
        }
    }

    /// Takes the names of the head; `None`: they are all in lower case.
    pub(crate) fn take(&mut self) -> Option<OriginalNames> {
        let names = std::mem::take(&mut self.names);
        (!names.is_empty()).then(|| OriginalNames(names.into()))
    }
}

// === impl OriginalNames ===

impl OriginalNames {
    /// The names that [`OriginalNames::as_bytes`] gave.
    pub(crate) fn from_bytes(names: &[u8]) -> Self {
        Self(names.into())
    }

    /// The names in a form that is shorter than their head.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Puts the names into the head that `bytes` begin with, and gives the head's length; `None`: they begin with no
    /// whole head. Of several fields with one name, each gets its own spelling. A name that was not sent stays.
    fn restore_in(&self, bytes: &mut [u8]) -> Option<usize> {
        let mut names = Names(&self.0);
        // Names of fields that were removed, or that stand elsewhere now.
        let mut skipped = Vec::new();
        let mut start = memchr(b'\n', bytes)? + 1;
        let first = &bytes[..start];
        if !first.starts_with(b"HTTP/1.") && !first.ends_with(b" HTTP/1.1\r\n") {
            return None;
        }
        loop {
            let line = &mut bytes[start..];
            let length = memchr(b'\n', line)? + 1;
            let line = &mut line[..length];
            start += length;
            if line == b"\r\n" {
                return Some(start);
            }
            // The length first: it rules out nearly every name.
            let is_its_name = |name: &&[u8]| {
                line.get(name.len()) == Some(&b':') && is_lower_case_of(&line[..name.len()], name)
            };
            if let Some(at) = skipped.iter().position(is_its_name) {
                let name: &[u8] = skipped.remove(at);
                line[..name.len()].copy_from_slice(name);
            } else if let Some(at) = names.clone().position(|name| is_its_name(&name)) {
                // Nearly always the next one: the fields are in the order of the names.
                skipped.extend(names.by_ref().take(at));
                if let Some(name) = names.next() {
                    line[..name.len()].copy_from_slice(name);
                }
            }
        }
    }
}

/// Whether `lower`, which is as long as `name`, is `name` in lower case. hyper writes all names so.
fn is_lower_case_of(lower: &[u8], name: &[u8]) -> bool {
    let pairs = lower.iter().zip(name);
    // Without a branch in the loop, the compiler unrolls it.
    pairs.fold(true, |is, (lower, byte)| {
        is & (*lower == byte.to_ascii_lowercase())
    })
}

// === impl Names ===

impl<'n> Iterator for Names<'n> {
    type Item = &'n [u8];

    fn next(&mut self) -> Option<&'n [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        self.0 = rest;
        Some(name)
    }
}

// === impl NameRestorer ===

impl NameRestorer {
    /// Writes what hyper offers, with `write`. `names` gives the names of a head that hyper has added since its last offer.
    ///
    /// The head must be the first that was added: hyper has to offer all that it buffered before it buffers a head. It does,
    /// because it flushes behind each message, and `pipeline_flush` is off.
    pub(crate) fn poll_write(
        &mut self,
        bufs: &[IoSlice<'_>],
        names: impl FnOnce() -> Option<OriginalNames>,
        write: impl FnOnce(&[IoSlice<'_>]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let offered: usize = bufs.iter().map(|buf| buf.len()).sum();
        if offered > self.unsent
            && let Some(names) = names()
            && let Some(first) = bufs.first()
        {
            self.add_head(first, &names);
        }
        let written = match self.front.is_empty() {
            true => write(bufs),
            false => write(&self.in_place_of(bufs)),
        };
        let count = match written {
            Poll::Ready(Ok(count)) => count,
            _ => 0,
        };
        self.unsent = offered.saturating_sub(count);
        if count >= self.front.len() {
            // Frees the buffer, which may have had a large head.
            self.front = BytesMut::new();
        } else {
            self.front.advance(count);
        }
        written
    }

    /// Restores the head that begins behind the unsent bytes of `buf`.
    fn add_head(&mut self, buf: &[u8], names: &OriginalNames) {
        let Some(added) = buf.get(self.unsent..) else {
            return;
        };
        let head = added.strip_prefix(CONTINUE).unwrap_or(added);
        let start = buf.len() - head.len();
        let known = self.front.len();
        if let Some(new) = buf.get(known..) {
            self.front.extend_from_slice(new);
            let length = names.restore_in(&mut self.front[start..]);
            self.front
                .truncate(length.map_or(known, |length| start + length));
        }
    }

    /// What is written in place of `bufs`, from their beginning.
    fn in_place_of<'b>(&'b self, bufs: &'b [IoSlice<'b>]) -> [IoSlice<'b>; PIECES] {
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let (first, others) = bufs
            .split_first()
            .map_or((&[][..], bufs), |(first, others)| {
                (first.get(self.front.len()..).unwrap_or_default(), others)
            });
        pieces[0] = IoSlice::new(&self.front);
        pieces[1] = IoSlice::new(first);
        for (piece, buf) in pieces[2..].iter_mut().zip(others) {
            *piece = IoSlice::new(buf);
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &[u8] = b"POST / HTTP/1.1\r\nHost: A\r\nX-a: 1\r\nCOOKIE: X-A:b\r\nx-A: 2\r\n\r\n";
    const LOWER: &[u8] =
        b"POST / HTTP/1.1\r\nhost: A\r\nx-a: 1\r\nx-a: 2\r\ncookie: X-A:b\r\nx-own: 3\r\n\r\n";
    const RESTORED: &[u8] =
        b"POST / HTTP/1.1\r\nHost: A\r\nX-a: 1\r\nx-A: 2\r\nCOOKIE: X-A:b\r\nx-own: 3\r\n\r\n";

    fn names_in(head: &[u8]) -> OriginalNames {
        let mut names = NameCollector::default();
        let mut before = 0;
        for line in head.split_inclusive(|byte| *byte == b'\n').skip(1) {
            if let Some(end) = memchr(b':', line) {
                let name = &line[..end];
                let has_upper = name.iter().any(u8::is_ascii_uppercase);
                let start = line.as_ptr() as usize - head.as_ptr() as usize;
                before = if before == 0 { start } else { before };
                names.add(name, has_upper, &head[before..start]);
            }
        }
        names.take().expect("a name with an upper-case letter")
    }

    /// Writes `offers` as hyper does, to a stream that takes `most` bytes at a time, and gives what arrives. Before an
    /// offer with names, the bytes of the earlier ones were offered once.
    fn written(offers: &[(&[u8], Option<&OriginalNames>)], body: &[u8], most: usize) -> Vec<u8> {
        let mut restorer = NameRestorer::default();
        let (mut arrived, mut buffer) = (Vec::new(), Vec::new());
        let mut write = |buffer: &mut Vec<u8>, body: &mut &[u8], names: Option<_>, most| {
            let bufs = [IoSlice::new(buffer), IoSlice::new(body)];
            let taken = restorer.poll_write(
                &bufs,
                || names,
                |pieces| {
                    let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
                    let count = all.len().min(most);
                    arrived.extend_from_slice(&all[..count]);
                    match count {
                        0 => Poll::Pending,
                        _ => Poll::Ready(Ok(count)),
                    }
                },
            );
            let Poll::Ready(taken) = taken else { return };
            let taken = taken.expect("the stream takes everything");
            let of_buffer = taken.min(buffer.len());
            buffer.drain(..of_buffer);
            *body = &body[taken - of_buffer..];
        };
        for (bytes, names) in offers {
            buffer.extend_from_slice(bytes);
            write(&mut buffer, &mut &[][..], names.cloned(), most.min(7));
        }
        let mut body = body;
        while !buffer.is_empty() || !body.is_empty() {
            write(&mut buffer, &mut body, None, most);
        }
        arrived
    }

    #[test]
    fn names_come_back_however_little_the_stream_takes_at_a_time() {
        let names = names_in(SENT);
        let body = b"HTTP/1.1 200 OK\r\nhost: x-a: cookie:\r\n\r\n";
        let all = [RESTORED, body].concat();
        for most in 1..all.len() {
            let arrived = written(&[(LOWER, Some(&names))], body, most);
            let text = String::from_utf8_lossy(&arrived);
            assert_eq!(arrived, all, "{most} bytes at a time: {text}");
        }
    }

    #[test]
    fn a_head_behind_unsent_bytes_gets_its_own_names() {
        let names = names_in(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n");
        let (lower, own) = (
            b"HTTP/1.1 204 No Content\r\nx-a: 2\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nX-A: 2\r\n\r\n",
        );
        for most in 0..30 {
            let offers = [
                (&lower[..], None),
                (&lower[..], Some(&names)),
                (CONTINUE, None),
                (&[CONTINUE, lower].concat(), Some(&names)),
                (&lower[..], None),
            ];
            let arrived = written(&offers, b"x-a: 3", most.max(1));
            let text = String::from_utf8_lossy(&arrived);
            let all = [lower, own, CONTINUE, CONTINUE, own, lower, &b"x-a: 3"[..]].concat();
            assert_eq!(arrived, all, "{most} bytes at a time: {text}");
        }
    }

    #[test]
    fn what_is_no_head_is_written_as_it_is() {
        let names = names_in(SENT);
        for bytes in [
            &b"host: a\r\n\r\n"[..],
            b"POST / HTTP/1.1\r\nhost: a\r\n",
            b"\n",
            b"\r",
        ] {
            let arrived = written(&[(bytes, Some(&names))], b"", 100);
            assert_eq!(arrived, bytes, "nothing is sure about it");
        }
    }
}
