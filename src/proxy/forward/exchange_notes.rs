//! What the sender of a request and the stream of its connection tell each other about the two heads, because hyper
//! doesn't: the letter case of names both ways, reason phrases beyond ASCII, and interim responses (RFC 9110 §15.2).
//! For those, hyper has a callback, but it costs up to four allocations for each request.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use hyper::ext::ReasonPhrase;
use memchr::memchr;
use parking_lot::Mutex;

use super::headers::clean_response_headers;
use crate::header_names::{NameCollector, OriginalNames};
use crate::http_syntax::trim;
use crate::listen::InterimResponses;

/// What is noted of the request that was sent last on a connection, and of its response. Clones share it.
#[derive(Clone, Default)]
pub(super) struct ExchangeNotes(Arc<NotesState>);

#[derive(Default)]
struct NotesState {
    /// A byte of the response has arrived.
    has_begun: AtomicBool,
    /// The head of the final response has arrived.
    has_head: AtomicBool,
    has_request_names: AtomicBool,
    request_names: Mutex<Option<OriginalNames>>,
    has_lost: AtomicBool,
    lost: Mutex<LostParts>,
    /// Where interim responses go, until the final one; `None`: they are left out.
    interim: Mutex<Option<InterimTarget>>,
}

/// Where the interim responses to a request go.
pub(super) struct InterimTarget {
    responses: InterimResponses,
    /// Wakes the task that writes them.
    waker: Waker,
}

/// What hyper loses of the head of a response.
#[derive(Default)]
struct LostParts {
    /// The first line, if it isn't in ASCII; else empty.
    line: Vec<u8>,
    /// `None`: all names are in lower case.
    names: Option<OriginalNames>,
}

/// Finds the heads of an HTTP/1 response in the bytes that arrive: interim ones (RFC 9110 §15.2), and the final one.
#[derive(Default)]
pub(super) struct ResponseHeadReader {
    /// The beginning of a head that comes in pieces.
    begun: Vec<u8>,
    /// Where its last line begins.
    line_start: usize,
    /// How far the end of that line was searched.
    searched: usize,
    /// Where the lines of its fields begin.
    fields_start: usize,
    names: NameCollector,
}

/// How many header lines a response may have: more than any real one has, and few enough for the memory
/// that reading a head takes (8 KiB). A response with more is an error (502).
pub(super) const MAX_HEADERS: usize = 256;

/// How much of a head that comes in pieces is kept, in bytes: twice as much as hyper reads of one (408 KiB), because the
/// last piece may bring as much again of the body.
const MAX_HEAD: usize = 1 << 20;

// === impl ExchangeNotes ===

impl ExchangeNotes {
    /// Forgets the last exchange, before a request is sent whose names these are; `None`: they are in lower case.
    /// Interim responses go to `interim`; `None`: they are left out.
    pub(super) fn begin(&self, names: Option<&OriginalNames>, interim: Option<InterimTarget>) {
        let notes = &*self.0;
        notes.has_begun.store(false, Ordering::Relaxed);
        notes.has_head.store(false, Ordering::Relaxed);
        notes.has_lost.store(false, Ordering::Relaxed);
        if let Some(names) = names {
            *notes.request_names.lock() = Some(names.clone());
        }
        let has_names = names.is_some();
        notes.has_request_names.store(has_names, Ordering::Relaxed);
        *notes.interim.lock() = interim;
    }

    /// Takes the names of the request; `None`: they are in lower case.
    pub(super) fn take_request_names(&self) -> Option<OriginalNames> {
        if !self.0.has_request_names.load(Ordering::Relaxed) {
            return None;
        }
        self.0.has_request_names.store(false, Ordering::Relaxed);
        self.0.request_names.lock().take()
    }

    /// Whether a byte of the response has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.0.has_begun.load(Ordering::Relaxed)
    }

    /// Adds to a response of HTTP/1 what hyper has lost of its head: the names of its fields as they were sent, and its
    /// reason phrase (RFC 9112 §4), for hyper keeps phrases in ASCII only.
    pub(super) fn complete<B>(&self, response: &mut Response<B>) {
        self.0.interim.lock().take();
        if !self.0.has_lost.load(Ordering::Relaxed) {
            return;
        }
        let LostParts { line, names } = std::mem::take(&mut *self.0.lost.lock());
        if let Some(reason) = reason(&line, response.status()) {
            response.extensions_mut().insert(reason);
        }
        if let Some(names) = names {
            response.extensions_mut().insert(names);
        }
    }

    /// Notes bytes that have arrived, whose heads `reader` reads.
    pub(super) fn on_read(&self, arrived: &[u8], reader: Option<&mut ResponseHeadReader>) {
        let notes = &*self.0;
        if arrived.is_empty() || notes.has_head.load(Ordering::Relaxed) {
            return;
        }
        notes.has_begun.store(true, Ordering::Relaxed);
        let Some(reader) = reader else {
            return;
        };
        let on_interim = |line: &[u8], fields: &[u8]| {
            if let Some(target) = &*notes.interim.lock() {
                target.pass(line, fields);
            }
        };
        if let Some(lost) = reader.read(arrived, on_interim) {
            notes.has_head.store(true, Ordering::Relaxed);
            if !lost.line.is_empty() || lost.names.is_some() {
                *notes.lost.lock() = lost;
                notes.has_lost.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// The reason phrase in the first line of a response with this status.
fn reason(line: &[u8], status: StatusCode) -> Option<ReasonPhrase> {
    let (version, rest) = (line.get(..9)?, line.get(9..)?);
    let reason = rest.strip_prefix(status.as_str().as_bytes())?;
    let reason = reason.strip_prefix(b" ")?;
    // It fails for control characters alone, which hyper has refused.
    let reason = ReasonPhrase::try_from(Bytes::copy_from_slice(reason)).ok();
    reason.filter(|_| version.starts_with(b"HTTP/1."))
}

// === impl ResponseHeadReader ===

impl ResponseHeadReader {
    /// Reads on in bytes that have arrived, and hands the heads of interim responses to `on_interim`: the first line, and
    /// the lines of the fields. `None`: the final response's head isn't complete.
    fn read(&mut self, arrived: &[u8], on_interim: impl Fn(&[u8], &[u8])) -> Option<LostParts> {
        if self.begun.is_empty() {
            let (lost, rest) = self.read_heads(arrived, on_interim);
            if lost.is_none() {
                self.begun.extend_from_slice(rest);
            }
            return lost;
        }
        let mut begun = std::mem::take(&mut self.begun);
        if begun.len() + arrived.len() > MAX_HEAD {
            // hyper refuses it.
            *self = Self::default();
            return Some(LostParts::default());
        }
        begun.extend_from_slice(arrived);
        let (lost, rest) = self.read_heads(&begun, on_interim);
        if lost.is_none() {
            let read = begun.len() - rest.len();
            begun.drain(..read);
            self.begun = begun;
        }
        lost
    }

    /// Reads `bytes`, which begin with a head. Gives what the final head has that hyper loses, and else the beginning of
    /// a head that isn't complete.
    fn read_heads<'b>(
        &mut self,
        mut bytes: &'b [u8],
        on_interim: impl Fn(&[u8], &[u8]),
    ) -> (Option<LostParts>, &'b [u8]) {
        while let Some(found) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + found;
            let start = self.line_start;
            let line = without_end(&bytes[start..=end]);
            let is_first = start == 0;
            self.line_start = end + 1;
            self.searched = end + 1;
            if !line.is_empty() {
                if is_first {
                    self.fields_start = self.line_start;
                } else {
                    let (name, has_upper) = name_in(line);
                    self.names
                        .add(name, has_upper, &bytes[self.fields_start..start]);
                }
                continue;
            }
            let (head, rest) = bytes.split_at(end + 1);
            let (line, fields) = head.split_at(self.fields_start);
            let names = self.names.take();
            *self = Self::default();
            bytes = rest;
            // hyper, too, skips empty lines before the first one.
            if is_first {
                continue;
            }
            let line = without_end(line);
            if is_interim(line) {
                on_interim(line, fields);
                continue;
            }
            let lost = LostParts {
                line: match line.is_ascii() {
                    true => Vec::new(),
                    false => line.to_vec(),
                },
                names,
            };
            return (Some(lost), rest);
        }
        self.searched = bytes.len();
        (None, bytes)
    }
}

/// The name in a field's line, and whether it has an upper-case letter.
fn name_in(line: &[u8]) -> (&[u8], bool) {
    let mut has_upper = false;
    let end = line.iter().position(|byte| {
        has_upper |= byte.is_ascii_uppercase();
        *byte == b':'
    });
    (&line[..end.unwrap_or(0)], has_upper)
}

/// A line without the end that it may have.
fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Whether HTTP goes on after a response with this first line, and the final response follows.
fn is_interim(line: &[u8]) -> bool {
    let status = line.get(9..12).unwrap_or_default();
    status.starts_with(b"1") && status != b"101"
}

// === impl InterimTarget ===

impl InterimTarget {
    /// A target whose task is the one that awaits this.
    pub(super) async fn new(responses: InterimResponses) -> Self {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        Self { responses, waker }
    }

    /// Passes on an interim response with this first line and these fields. A 100 is left out, because the proxy itself
    /// asks the client for the body; so is a head that hyper refuses.
    fn pass(&self, line: &[u8], fields: &[u8]) {
        if let Some((status, mut headers)) = parse_interim(line, fields)
            && status != StatusCode::CONTINUE
        {
            clean_response_headers(&mut headers);
            self.responses.send(status, &headers);
            self.waker.wake_by_ref();
        }
    }
}

/// The status and the fields of an interim response; `None`: its head is malformed, or has too many fields.
fn parse_interim(line: &[u8], fields: &[u8]) -> Option<(StatusCode, HeaderMap)> {
    let status = line
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (status, reason) = status.split_at_checked(3)?;
    let status = StatusCode::from_bytes(status).ok()?;
    if !matches!(reason, [] | [b' ', ..]) {
        return None;
    }
    let mut headers = HeaderMap::new();
    let lines = fields.split(|byte| *byte == b'\n').map(without_end);
    for (count, field) in lines.filter(|field| !field.is_empty()).enumerate() {
        let end = memchr(b':', field).filter(|_| count < MAX_HEADERS)?;
        let name = HeaderName::from_bytes(&field[..end]).ok()?;
        let value = HeaderValue::from_bytes(trim(&field[end + 1..])).ok()?;
        headers.try_append(name, value).ok()?;
    }
    Some((status, headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What hyper would lose of a response that arrives in these pieces.
    fn lost(pieces: &[&[u8]], status: u16) -> Response<()> {
        let notes = ExchangeNotes::default();
        let mut reader = ResponseHeadReader::default();
        for piece in pieces {
            notes.on_read(piece, Some(&mut reader));
        }
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        notes.complete(&mut response);
        notes.begin(None, None);
        assert!(!notes.has_begun(), "the next response has not begun");
        let mut next = Response::new(());
        notes.complete(&mut next);
        assert!(next.extensions().is_empty(), "and nothing of it is lost");
        response
    }

    #[test]
    fn a_final_head_keeps_its_names_and_its_reason_however_it_arrives() {
        let sent = "\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 200 成功\r\nX-a: B\nx-A: \r\nb: C\r\n\r\n\
                    HTTP/1.1 201 Body\r\nD: e\r\n\r\n";
        let mut expected = NameCollector::default();
        for name in [&b"X-a"[..], b"x-A", b"b"] {
            expected.add(name, true, b"");
        }
        let expected = expected.take();
        let check = |pieces: &[&[u8]]| {
            let response = lost(pieces, 200);
            let lengths: Vec<_> = pieces.iter().map(|piece| piece.len()).collect();
            let reason = response.extensions().get::<ReasonPhrase>();
            let reason = reason.map(ReasonPhrase::as_bytes);
            assert_eq!(reason, Some("成功".as_bytes()), "pieces of {lengths:?}");
            let names = response.extensions().get();
            assert_eq!(names, expected.as_ref(), "pieces of {lengths:?}");
        };
        for at in 0..sent.len() {
            let (first, second) = sent.as_bytes().split_at(at);
            check(&[first, second]);
        }
        let single: Vec<_> = sent.as_bytes().chunks(1).collect();
        check(&single);
    }

    #[test]
    fn nothing_is_lost_of_a_head_in_lower_case_and_ascii() {
        let head = b"HTTP/1.1 200 OK\r\nx-a: B\r\n\r\nBody: b\r\n";
        assert!(lost(&[head], 200).extensions().is_empty());
    }

    #[test]
    fn an_interim_head_that_hyper_refuses_does_not_pass() {
        let parse = |head: &str| {
            let (line, fields) = head.split_once('\n').expect("a first line");
            parse_interim(without_end(line.as_bytes()), fields.as_bytes())
        };
        let parsed = parse("HTTP/1.1 103 Early\r\nLink: a\r\nlink:\t b \r\n\r\n");
        let (status, headers) = parsed.expect("it is valid");
        assert_eq!(status, StatusCode::EARLY_HINTS);
        let links: Vec<_> = headers.get_all("link").iter().collect();
        assert_eq!(links, ["a", "b"], "without white space around them");
        for head in [
            "HTTP/1.1 103\r\na : b\r\n\r\n",
            "HTTP/1.1 103\r\n a: b\r\n\r\n",
            "HTTP/1.1 103\r\na: b\x01\r\n\r\n",
            "HTTP/1.1 103\r\na\r\n\r\n",
            "HTTP/1.1 103\r\n: a\r\n\r\n",
            "HTTP/1.1 1030\r\n\r\n",
            "HTTP/2.0 103\r\n\r\n",
        ] {
            assert!(parse(head).is_none(), "{head:?}");
        }
        for (fields, passes) in [(255, true), (257, false), (30_000, false)] {
            let fields: String = (0..fields).map(|n| format!("a{n}:\n")).collect();
            let parsed = parse(&format!("HTTP/1.1 103\r\n{fields}\r\n"));
            assert_eq!(parsed.is_some(), passes, "no more than hyper takes");
        }
    }

    #[test]
    fn a_reason_belongs_to_its_own_status() {
        let head = "HTTP/1.1 200 成功\r\n\r\n".as_bytes();
        assert!(lost(&[head], 202).extensions().is_empty());
    }

    #[test]
    fn a_head_without_an_end_is_kept_up_to_a_limit() {
        let mut reader = ResponseHeadReader::default();
        let piece = [0xff; MAX_HEAD / 4];
        for _ in 0..4 {
            let lost = reader.read(&piece, |_, _| {});
            assert!(lost.is_none(), "it has no end");
        }
        let lost = reader.read(&piece, |_, _| {});
        assert!(lost.is_some(), "nothing more of this exchange is read");
        assert!(reader.begun.is_empty(), "and nothing of it is kept");
    }
}
