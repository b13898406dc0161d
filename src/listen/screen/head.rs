//! A request's head: read line by line as it comes, each line once.

use http::Uri;
use http::uri::{Authority, PathAndQuery};
use memchr::memchr;

use super::Unfit;
use super::field::{self, Field};

/// The largest head, in bytes: what Python's h11 takes at most, and eight times what nginx does.
/// A backend that takes more is rare, and this much can be held back for each connection.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// The longest target, in bytes: four times what has to be taken at least (RFC 9112 §3), and less
/// than `http::Uri` can hold.
pub(super) const MAX_TARGET: usize = 32 * 1024;

/// The most fields: Envoy's default, and what hyper reads without an allocation for it.
pub(in crate::listen) const MAX_FIELDS: usize = 100;

/// The head that is coming in.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Where the line begins that isn't complete yet.
    line_start: usize,
    /// Up to where its end was looked for.
    searched: usize,
    /// Where method and target end, behind the first line's start; 0: it isn't there yet.
    line: Line,
    fields: usize,
    has_host: bool,
    length: Option<u64>,
    is_chunked: bool,
    may_upgrade: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    start: usize,
    method_end: usize,
    target_end: usize,
    is_1_0: bool,
}

/// What is known of a head that is complete.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) length: usize,
    pub(super) framing: Framing,
    pub(super) may_upgrade: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

// === impl Head ===

impl Head {
    /// Reads on in `bytes`, which open with the head's first byte. `None`: it isn't complete.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Option<Whole>, Unfit> {
        while let Some(found) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + found;
            let start = self.line_start;
            if end >= MAX_HEAD {
                return Err(self.too_large());
            }
            let [line @ .., b'\r'] = &bytes[start..end] else {
                return Err(Unfit::Malformed(
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
                self.field(line)?;
            }
        }
        self.searched = bytes.len();
        // What isn't HTTP at all, as a TLS handshake, may never send a line's end.
        let first = bytes
            .get(self.line_start)
            .filter(|_| self.line.target_end == 0);
        if first.is_some_and(|byte| !field::is_token_byte(*byte) && *byte != b'\r') {
            return Err(Unfit::Malformed("no HTTP request"));
        }
        if bytes.len() > MAX_HEAD {
            return Err(self.too_large());
        }
        Ok(None)
    }

    /// The method and the target, as far as they are there.
    pub(super) fn line(&self, bytes: &[u8]) -> Option<(Box<str>, Box<str>)> {
        let Line {
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

    fn too_large(&self) -> Unfit {
        match self.line.target_end {
            0 => Unfit::TargetTooLong,
            _ => Unfit::HeadTooLarge,
        }
    }

    fn first_line(&mut self, line: &[u8], start: usize) -> Result<(), Unfit> {
        let method_end = memchr(b' ', line).ok_or(Unfit::Malformed("a first line of one word"))?;
        let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
        if !field::is_token(method) {
            return Err(Unfit::Malformed("a method that is none"));
        }
        let target_end =
            memchr(b' ', rest).ok_or(Unfit::Malformed("a request without a version"))?;
        let (target, version) = (&rest[..target_end], &rest[target_end + 1..]);
        let is_1_0 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', a, b'.', b]
                if a.is_ascii_digit() && b.is_ascii_digit() =>
            {
                return Err(Unfit::Version);
            }
            _ => {
                return Err(Unfit::Malformed(
                    "a first line that doesn't end with a version",
                ));
            }
        };
        if target.len() > MAX_TARGET {
            return Err(Unfit::TargetTooLong);
        }
        check_target(method, target)?;
        self.line = Line {
            start,
            method_end: start + method_end,
            target_end: start + method_end + 1 + target_end,
            is_1_0,
        };
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Unfit> {
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(Unfit::HeadTooLarge);
        }
        let Field { name, value } = field::read(line)?;
        // By its length first: nearly every field is another one.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                // That there is only one, the proxy sees to: it refuses two in its own words.
                self.has_host = true;
                if !is_host(value) {
                    return Err(Unfit::Malformed("a host that is none"));
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.may_upgrade = !self.line.is_1_0;
            }
            14 if name.eq_ignore_ascii_case(b"content_length") => return Err(TWIN),
            17 if name.eq_ignore_ascii_case(b"transfer_encoding") => return Err(TWIN),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length =
                    length(value).ok_or(Unfit::Malformed("a content-length that is no number"))?;
                if self.length.replace(length).is_some() {
                    return Err(Unfit::Malformed("more than one content-length"));
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.line.is_1_0 {
                    return Err(Unfit::Malformed("a transfer-encoding in HTTP/1.0"));
                }
                if self.is_chunked {
                    return Err(Unfit::Malformed("more than one transfer-encoding"));
                }
                check_coding(value)?;
                self.is_chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn whole(&self) -> Result<Whole, Unfit> {
        let framing = match (self.length, self.is_chunked) {
            (Some(_), true) => {
                return Err(Unfit::Malformed(
                    "a content-length and a transfer-encoding (RFC 9112 §6.1)",
                ));
            }
            (None, true) => Framing::Chunked,
            (length, false) => Framing::Length(length.unwrap_or(0)),
        };
        if !self.has_host && !self.line.is_1_0 {
            return Err(Unfit::Malformed("no host"));
        }
        Ok(Whole {
            length: self.line_start,
            framing,
            may_upgrade: self.may_upgrade,
        })
    }
}

// === the parts of a head ===

/// Backends behind WSGI or CGI read it as the header that frames the body.
const TWIN: Unfit = Unfit::Malformed("the name of a framing with an underscore");

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

fn check_target(method: &[u8], target: &[u8]) -> Result<(), Unfit> {
    const NO_TARGET: Unfit = Unfit::Malformed("a target that is none");
    // hyper would cut it off, and the backend would see another target than was sent.
    if memchr(b'#', target).is_some() {
        return Err(Unfit::Malformed("a fragment in the target"));
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

/// A `content-length` is digits, and no more than can be counted. With zeros before them, it is a
/// number to the base of eight for who reads it as C does.
fn length(value: &[u8]) -> Option<u64> {
    // The two highest numbers are hyper's own.
    const MOST: u64 = u64::MAX - 2;
    let is_padded = value.len() > 1 && value[0] == b'0';
    if value.is_empty() || is_padded || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = value.iter().try_fold(0u64, |number, digit| {
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    });
    number.filter(|number| *number <= MOST)
}

fn check_coding(value: &[u8]) -> Result<(), Unfit> {
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    if is_chunked(value) {
        return Ok(());
    }
    let mut codings = value.rsplit(|b| *b == b',').map(field::trim);
    let is_last = codings.next().is_some_and(is_chunked);
    let mut others = codings;
    // Where chunked comes last, the body's end can be told; what is in it can't be read.
    if is_last && others.all(|coding| field::is_token(coding) && !is_chunked(coding)) {
        Err(Unfit::TransferCoding)
    } else {
        Err(Unfit::Malformed(
            "a transfer-encoding whose end can't be told",
        ))
    }
}

/// Host and port, as they can stand in a URI (RFC 3986 §3.2.2), without the marks that servers
/// disagree about. An empty one is a host too (RFC 9112 §3.2).
fn is_host(value: &[u8]) -> bool {
    let (is_good, port) = match value {
        [b'[', rest @ ..] => {
            let Some(end) = memchr(b']', rest) else {
                return false;
            };
            let address = &rest[..end];
            let is_address = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
            let is_good = !address.is_empty() && address.iter().all(is_address);
            (is_good, &rest[end + 1..])
        }
        _ => {
            let end = memchr(b':', value).unwrap_or(value.len());
            let is_name = |b: &u8| {
                b.is_ascii_alphanumeric()
                    || matches!(
                        b,
                        b'-' | b'.'
                            | b'_'
                            | b'~'
                            | b'!'
                            | b'$'
                            | b'&'
                            | b'\''
                            | b'('
                            | b')'
                            | b'*'
                            | b'+'
                            | b';'
                            | b'='
                    )
            };
            (value[..end].iter().all(is_name), &value[end..])
        }
    };
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    is_good && is_port
}
