//! A reader of request heads, line by line as they arrive. It reads each line once.

use http::Uri;
use http::uri::{Authority, PathAndQuery};
use memchr::memchr;

use super::field::{self, HeaderField};
use super::fields::{BodyFraming, HeaderFields};
use crate::header_names::{NameCollector, OriginalNames};
use crate::http_syntax::{byte_table, is_token, is_token_byte};
use crate::service::{BadRequest, RequestLine};

/// The largest head, in bytes: the limit of Python's h11, and eight times that of nginx. Few backends
/// accept more, and this much can be held back for each connection.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// The longest target, in bytes: four times what a server should accept at least (RFC 9112 §3), and
/// less than `http::Uri` can hold.
pub(crate) const MAX_TARGET: usize = 32 * 1024;

/// The position in a head that is being received.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    /// Where the incomplete line begins.
    line_start: usize,
    /// How far the end of that line was searched.
    searched: usize,
    /// The first line; all 0: it isn't complete.
    line: HeadLine,
    options_target: Option<OptionsTarget>,
    fields: HeaderFields,
    /// Where the lines of the fields begin.
    fields_start: usize,
    names: NameCollector,
}

/// Positions in the first line, in bytes from the head's start.
#[derive(Clone, Copy, Debug, Default)]
struct HeadLine {
    start: usize,
    method_end: usize,
    target_end: usize,
}

/// A complete head.
#[derive(Debug)]
pub(super) struct CompleteHead {
    /// The length in bytes, with the empty line at the end.
    pub(super) length: usize,
    /// How the body is framed.
    pub(super) framing: BodyFraming,
    /// The request asks for an upgrade.
    pub(super) has_upgrade: bool,
    /// `None` unless this is an OPTIONS request whose target has a scheme and a host, and no path but `/`.
    pub(super) options_target: Option<OptionsTarget>,
    /// The names of the fields; `None`: they are in lower case.
    pub(super) names: Option<OriginalNames>,
}

/// What an OPTIONS request asks about whose target is only a scheme and a host, perhaps with a `/`. hyper hands
/// out both alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http1) enum OptionsTarget {
    /// The server as a whole: the target has no path (RFC 9112 §3.2.4).
    Server,
    /// The resource at `/`.
    Root,
}

// === impl HeadReader ===

impl HeadReader {
    /// Reads on in `bytes`, which begin with the head's first byte. `None`: the head isn't complete.
    ///
    /// # Errors
    /// If the head is malformed or too large.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Option<CompleteHead>, BadRequest> {
        while let Some(found) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + found;
            let start = self.line_start;
            if end >= MAX_HEAD {
                return Err(self.too_large());
            }
            let [line @ .., b'\r'] = &bytes[start..end] else {
                return Err(BadRequest::Malformed(
                    "a header line without a carriage return",
                ));
            };
            self.line_start = end + 1;
            self.searched = end + 1;
            if self.line.target_end == 0 {
                // One empty line may precede a request (RFC 9112 §2.2).
                if !line.is_empty() || start > 0 {
                    self.read_first_line(line, start)?;
                    self.fields_start = end + 1;
                }
            } else if line.is_empty() {
                let head = CompleteHead {
                    length: self.line_start,
                    framing: self.fields.framing()?,
                    has_upgrade: self.fields.has_upgrade(),
                    options_target: self.options_target,
                    names: self.names.take(),
                };
                *self = Self::default();
                return Ok(Some(head));
            } else {
                let HeaderField {
                    name,
                    value,
                    has_upper,
                } = field::parse(line)?;
                let before = &bytes[self.fields_start..start];
                self.names.add(name, has_upper, before);
                self.fields.add(name, value)?;
            }
        }
        self.searched = bytes.len();
        // A client that doesn't speak HTTP, but TLS for example, may never send a line end.
        let first = bytes
            .get(self.line_start)
            .filter(|_| self.line.target_end == 0);
        if first.is_some_and(|byte| !is_token_byte(*byte) && *byte != b'\r') {
            return Err(BadRequest::Malformed("not an HTTP request"));
        }
        if bytes.len() > MAX_HEAD {
            return Err(self.too_large());
        }
        Ok(None)
    }

    /// The method and the target; `None`: the first line isn't complete. `bytes` are those of
    /// [`HeadReader::read`].
    pub(super) fn request_line(&self, bytes: &[u8]) -> Option<RequestLine> {
        let line = self.line;
        let method = bytes.get(line.start..line.method_end)?;
        let target = bytes.get(line.method_end + 1..line.target_end)?;
        Some(RequestLine {
            method: String::from_utf8_lossy(method).into(),
            target: String::from_utf8_lossy(target).into(),
        })
    }

    fn too_large(&self) -> BadRequest {
        match self.line.target_end {
            0 => BadRequest::TargetTooLong,
            _ => BadRequest::HeadTooLarge,
        }
    }

    fn read_first_line(&mut self, line: &[u8], start: usize) -> Result<(), BadRequest> {
        let method_end =
            memchr(b' ', line).ok_or(BadRequest::Malformed("a first line without a target"))?;
        let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
        if !is_token(method) {
            return Err(BadRequest::Malformed("an invalid method"));
        }
        let target_end =
            memchr(b' ', rest).ok_or(BadRequest::Malformed("a first line without a version"))?;
        let (target, version) = (&rest[..target_end], &rest[target_end + 1..]);
        let is_1_0 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', a, b'.', b]
                if a.is_ascii_digit() && b.is_ascii_digit() =>
            {
                return Err(BadRequest::Version);
            }
            _ => {
                return Err(BadRequest::Malformed(
                    "an invalid version in the first line",
                ));
            }
        };
        if target.len() > MAX_TARGET {
            return Err(BadRequest::TargetTooLong);
        }
        check_target(method, target)?;
        self.options_target = OptionsTarget::read(method, target);
        self.line = HeadLine {
            start,
            method_end: start + method_end,
            target_end: start + method_end + 1 + target_end,
        };
        self.fields = HeaderFields::new(is_1_0);
        Ok(())
    }
}

// === the target ===

impl OptionsTarget {
    fn read(method: &[u8], target: &[u8]) -> Option<Self> {
        if method != b"OPTIONS" || target.starts_with(b"/") {
            return None;
        }
        let host = memchr::memmem::find(target, b"://")? + 3;
        let end = target[host..].iter().position(|b| matches!(b, b'/' | b'?'));
        match end.map(|end| &target[host + end..]) {
            None => Some(Self::Server),
            Some(b"/") => Some(Self::Root),
            Some(_) => None,
        }
    }
}

/// The bytes that hyper always accepts in a target.
static TARGET_BYTES: [bool; 256] = byte_table(b"/?&=%-_.~:+,!*;@");

fn check_target(method: &[u8], target: &[u8]) -> Result<(), BadRequest> {
    const INVALID_TARGET: BadRequest = BadRequest::Malformed("an invalid target");
    const UNENCODED: BadRequest = BadRequest::Malformed(
        "an invalid target: the characters \" < > ` must be percent-encoded in it, as %22 %3C %3E %60",
    );
    // hyper would remove the fragment, and the backend would see another target than was sent.
    if memchr(b'#', target).is_some() {
        return Err(BadRequest::Malformed("a fragment in the target"));
    }
    let is_good = match (method, target) {
        (b"CONNECT", _) => {
            Uri::try_from(target).is_ok_and(|uri| uri.scheme().is_none() && uri.port().is_some())
        }
        (_, [b'/', ..]) => {
            target.iter().all(|b| TARGET_BYTES[usize::from(*b)])
                || PathAndQuery::try_from(target).is_ok()
        }
        (b"OPTIONS", b"*") => true,
        _ => Uri::try_from(target).is_ok_and(|uri| {
            let scheme = uri.scheme_str();
            let authority = uri.authority().map(Authority::as_str);
            // A user name before the host disguises the host (RFC 9110 §4.2.4).
            scheme.is_some_and(|scheme| matches!(scheme, "http" | "https"))
                && authority.is_some_and(|authority| !authority.contains('@'))
        }),
    };
    let is_bare = |b: &u8| matches!(b, b'"' | b'<' | b'>' | b'`');
    match is_good {
        true => Ok(()),
        // Each of them may be why it is invalid, and what to write instead is the same.
        false if target.iter().any(is_bare) => Err(UNENCODED),
        false => Err(INVALID_TARGET),
    }
}
