//! The names of header fields in the letter case in which they were sent.
//!
//! hyper hands out names in lower case, and writes them so. It can keep the other names in a second map for each
//! head, which costs the same whatever the names look like. Here, a head in lower case costs nothing: who reads
//! its bytes keeps the names of other heads only, and [`NameRestorer`] puts them into the bytes that hyper writes.
//!
//! Invariant: only letters in names change, and only their case.

use std::io::{self, IoSlice};
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memmem};

/// The names of a head's header fields as they were sent, in their order. Only a head that has an upper-case
/// letter in a name has them. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OriginalNames(Bytes);

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

/// What hyper writes by itself before the head of a response.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

// === impl OriginalNames ===

impl OriginalNames {
    /// The names in `head`, a whole head with its first line.
    pub(crate) fn in_head(head: &[u8]) -> Self {
        let fields = head.split(|byte| *byte == b'\n').skip(1);
        let mut names = Vec::new();
        for field in fields {
            if let Some(end) = memchr(b':', field) {
                names.extend_from_slice(&field[..=end]);
            }
        }
        Self(names.into())
    }

    /// The names that [`OriginalNames::as_bytes`] gave.
    pub(crate) fn from_bytes(names: Bytes) -> Self {
        Self(names)
    }

    /// The names, each with a colon behind it.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Puts the names into `head`, a whole head. Of several fields with one name, each gets its own spelling. A
    /// name that was not sent stays.
    fn restore_in(&self, head: &mut [u8]) {
        let mut names: Vec<_> = self.0.split(|byte| *byte == b':').collect();
        // Nearly always, the fields are in the order of the names.
        let mut first = 0;
        for field in head.split_mut(|byte| *byte == b'\n').skip(1) {
            let Some(end) = memchr(b':', field) else {
                continue;
            };
            let field = &mut field[..end];
            let unused = names.iter_mut().skip(first);
            let mut same = unused.filter(|name| name.eq_ignore_ascii_case(field));
            if let Some(name) = same.next() {
                field.copy_from_slice(name);
                *name = &[];
            }
            while names.get(first).is_some_and(|name| name.is_empty()) {
                first += 1;
            }
        }
    }
}

// === impl NameRestorer ===

impl NameRestorer {
    /// Writes what hyper offers, with `write`. If hyper offers more than before, that begins with a head, if `names`
    /// gives the names of one.
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
        self.front.advance(count.min(self.front.len()));
        written
    }

    /// Restores the head that begins behind the unsent bytes of `buf`.
    fn add_head(&mut self, buf: &[u8], names: &OriginalNames) {
        let Some(added) = buf.get(self.unsent..) else {
            return;
        };
        let head = added.strip_prefix(CONTINUE).unwrap_or(added);
        let start = buf.len() - head.len();
        if let Some(length) = head_length(head)
            && let Some(before) = buf.get(self.front.len()..start)
        {
            self.front.extend_from_slice(before);
            self.front.extend_from_slice(&head[..length]);
            names.restore_in(&mut self.front[start..]);
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

/// The length of the head that `bytes` begin with, with the empty line at its end; `None`: they begin with no whole
/// head.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let line = &bytes[..memchr(b'\r', bytes)?];
    let is_head = line.starts_with(b"HTTP/1.") || line.ends_with(b" HTTP/1.1");
    let end = memmem::find(bytes, b"\r\n\r\n").filter(|_| is_head)?;
    Some(end + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &[u8] = b"POST / HTTP/1.1\r\nHost: A\r\nX-a: 1\r\nCOOKIE: X-A:b\r\nx-A: 2\r\n\r\n";
    const LOWER: &[u8] =
        b"POST / HTTP/1.1\r\nhost: A\r\nx-a: 1\r\nx-a: 2\r\ncookie: X-A:b\r\nx-own: 3\r\n\r\n";
    const RESTORED: &[u8] =
        b"POST / HTTP/1.1\r\nHost: A\r\nX-a: 1\r\nx-A: 2\r\nCOOKIE: X-A:b\r\nx-own: 3\r\n\r\n";

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
        let names = OriginalNames::in_head(SENT);
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
        let names = OriginalNames::in_head(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n");
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
        let names = OriginalNames::in_head(SENT);
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
