//! A request's head: read line by line as it comes, each line once.

use http::Uri;
use http::uri::{Authority, PathAndQuery};
use memchr::memchr;

use super::BadRequest;
use super::field::{self, HeaderField};
use super::fields::{BodyFraming, HeaderFields};

/// The largest head, in bytes: what Python's h11 takes at most, and eight times what nginx does.
/// A backend that takes more is rare, and this much can be held back for each connection.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// The longest target, in bytes: four times what has to be taken at least (RFC 9112 §3), and less
/// than `http::Uri` can hold.
pub(in crate::listen) const MAX_TARGET: usize = 32 * 1024;

/// The head that is coming in.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    /// Where the line begins that isn't complete yet.
    line_start: usize,
    /// Up to where its end was looked for.
    searched: usize,
    /// Where method and target end, behind the first line's start; 0: it isn't there yet.
    line: HeadLine,
    fields: HeaderFields,
}

#[derive(Clone, Copy, Debug, Default)]
struct HeadLine {
    start: usize,
    method_end: usize,
    target_end: usize,
}

/// What is known of a head that is complete.
#[derive(Debug)]
pub(super) struct CompleteHead {
    pub(super) length: usize,
    pub(super) framing: BodyFraming,
    pub(super) may_upgrade: bool,
}

// === impl Head ===

impl HeadReader {
    /// Reads on in `bytes`, which open with the head's first byte. `None`: it isn't complete.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Option<CompleteHead>, BadRequest> {
        while let Some(found) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + found;
            let start = self.line_start;
            if end >= MAX_HEAD {
                return Err(self.too_large());
            }
            let [line @ .., b'\r'] = &bytes[start..end] else {
                return Err(BadRequest::Malformed(
                    "a line that ends without a carriage return",
                ));
            };
            self.line_start = end + 1;
            self.searched = end + 1;
            if self.line.target_end == 0 {
                // One empty line may stand before a request (RFC 9112 §2.2).
                if !line.is_empty() || start > 0 {
                    self.first_line(line, start)?;
                }
            } else if line.is_empty() {
                let whole = self.whole()?;
                *self = Self::default();
                return Ok(Some(whole));
            } else {
                let HeaderField { name, value } = field::read(line)?;
                self.fields.add(name, value)?;
            }
        }
        self.searched = bytes.len();
        // What isn't HTTP at all, as a TLS handshake, may never send a line's end.
        let first = bytes
            .get(self.line_start)
            .filter(|_| self.line.target_end == 0);
        if first.is_some_and(|byte| !field::is_token_byte(*byte) && *byte != b'\r') {
            return Err(BadRequest::Malformed("no HTTP request"));
        }
        if bytes.len() > MAX_HEAD {
            return Err(self.too_large());
        }
        Ok(None)
    }

    /// The method and the target, as far as they are there.
    pub(super) fn line(&self, bytes: &[u8]) -> Option<(Box<str>, Box<str>)> {
        let HeadLine {
            start,
            method_end,
            target_end,
            ..
        } = self.line;
        let method = bytes
            .get(start..method_end)
            .filter(|method| !method.is_empty())?;
        let target = bytes.get(method_end + 1..target_end)?;
        let text = |bytes| String::from_utf8_lossy(bytes).into();
        Some((text(method), text(target)))
    }

    fn too_large(&self) -> BadRequest {
        match self.line.target_end {
            0 => BadRequest::TargetTooLong,
            _ => BadRequest::HeadTooLarge,
        }
    }

    fn first_line(&mut self, line: &[u8], start: usize) -> Result<(), BadRequest> {
        let method_end =
            memchr(b' ', line).ok_or(BadRequest::Malformed("a first line of one word"))?;
        let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
        if !field::is_token(method) {
            return Err(BadRequest::Malformed("a method that is none"));
        }
        let target_end =
            memchr(b' ', rest).ok_or(BadRequest::Malformed("a request without a version"))?;
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
                    "a first line that doesn't end with a version",
                ));
            }
        };
        if target.len() > MAX_TARGET {
            return Err(BadRequest::TargetTooLong);
        }
        check_target(method, target)?;
        self.line = HeadLine {
            start,
            method_end: start + method_end,
            target_end: start + method_end + 1 + target_end,
        };
        self.fields = HeaderFields::new(is_1_0);
        Ok(())
    }

    fn whole(&self) -> Result<CompleteHead, BadRequest> {
        Ok(CompleteHead {
            length: self.line_start,
            framing: self.fields.framing()?,
            may_upgrade: self.fields.may_upgrade(),
        })
    }
}

// === the target ===

/// The bytes that hyper takes in a target by all means.
static PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'/' | b'?'
                    | b'&'
                    | b'='
                    | b'%'
                    | b'-'
                    | b'_'
                    | b'.'
                    | b'~'
                    | b':'
                    | b'+'
                    | b','
                    | b'!'
                    | b'*'
                    | b';'
                    | b'@'
            );
        byte += 1;
    }
    table
};

fn check_target(method: &[u8], target: &[u8]) -> Result<(), BadRequest> {
    const NO_TARGET: BadRequest = BadRequest::Malformed("a target that is none");
    // hyper would cut it off, and the backend would see another target than was sent.
    if memchr(b'#', target).is_some() {
        return Err(BadRequest::Malformed("a fragment in the target"));
    }
    let is_good = match (method, target) {
        (b"CONNECT", _) => {
            Uri::try_from(target).is_ok_and(|uri| uri.scheme().is_none() && uri.port().is_some())
        }
        (_, [b'/', ..]) => {
            target.iter().all(|b| PLAIN[usize::from(*b)]) || PathAndQuery::try_from(target).is_ok()
        }
        (b"OPTIONS", b"*") => true,
        _ => Uri::try_from(target).is_ok_and(|uri| {
            let scheme = uri.scheme_str();
            let authority = uri.authority().map(Authority::as_str);
            // A user before the host is a disguise (RFC 9110 §4.2.4).
            scheme.is_some_and(|scheme| matches!(scheme, "http" | "https"))
                && authority.is_some_and(|authority| !authority.contains('@'))
        }),
    };
    if is_good { Ok(()) } else { Err(NO_TARGET) }
}
