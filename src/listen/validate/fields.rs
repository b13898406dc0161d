//! The fields of a head that frame a request or say for whom it is, by one rule for HTTP/1 and HTTP/2.

use memchr::memchr;

use super::BadRequest;
use super::field;

/// The most fields: Envoy's default, and what hyper reads without an allocation for it.
pub(super) const MAX_FIELDS: usize = 100;

/// What the fields of a head come to, so far.
#[derive(Debug, Default)]
pub(in crate::listen) struct HeaderFields {
    is_1_0: bool,
    count: usize,
    has_host: bool,
    length: Option<u64>,
    is_chunked: bool,
    has_upgrade: bool,
}

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::listen) enum BodyFraming {
    Length(u64),
    Chunked,
}

/// Backends behind WSGI or CGI read it as the header that frames the body.
const TWIN: BadRequest = BadRequest::Malformed("the name of a framing with an underscore");

// === impl Fields ===

impl HeaderFields {
    /// Of a head that has none yet, in HTTP/1.0 or a later version.
    pub(super) fn new(is_1_0: bool) -> Self {
        Self {
            is_1_0,
            ..Self::default()
        }
    }

    /// Takes one more field into account, its value without the whitespace around it.
    pub(in crate::listen) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadRequest> {
        self.count += 1;
        if self.count > MAX_FIELDS {
            return Err(BadRequest::HeadTooLarge);
        }
        // By its length first: nearly every field is another one.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                // That there is only one, the proxy sees to: it refuses two in its own words.
                self.add_host(value)?;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.has_upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content_length") => return Err(TWIN),
            17 if name.eq_ignore_ascii_case(b"transfer_encoding") => return Err(TWIN),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = length(value)
                    .ok_or(BadRequest::Malformed("a content-length that is no number"))?;
                if self.length.replace(length).is_some() {
                    return Err(BadRequest::Malformed("more than one content-length"));
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.is_1_0 {
                    return Err(BadRequest::Malformed("a transfer-encoding in HTTP/1.0"));
                }
                if self.is_chunked {
                    return Err(BadRequest::Malformed("more than one transfer-encoding"));
                }
                check_coding(value)?;
                self.is_chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes into account for which host the request is, as `host` or `:authority` says it.
    pub(in crate::listen) fn add_host(&mut self, value: &[u8]) -> Result<(), BadRequest> {
        self.has_host = true;
        match is_host(value) {
            true => Ok(()),
            false => Err(BadRequest::Malformed("a host that is none")),
        }
    }

    /// How the body is framed, if the head is in order as a whole.
    pub(in crate::listen) fn framing(&self) -> Result<BodyFraming, BadRequest> {
        if !self.has_host && !self.is_1_0 {
            return Err(BadRequest::Malformed("no host"));
        }
        match (self.length, self.is_chunked) {
            (Some(_), true) => Err(BadRequest::Malformed(
                "a content-length and a transfer-encoding (RFC 9112 §6.1)",
            )),
            (None, true) => Ok(BodyFraming::Chunked),
            (length, false) => Ok(BodyFraming::Length(length.unwrap_or(0))),
        }
    }

    pub(super) fn may_upgrade(&self) -> bool {
        self.has_upgrade && !self.is_1_0
    }
}

// === values ===

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

fn check_coding(value: &[u8]) -> Result<(), BadRequest> {
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    if is_chunked(value) {
        return Ok(());
    }
    let mut codings = value.rsplit(|b| *b == b',').map(field::trim);
    let is_last = codings.next().is_some_and(is_chunked);
    let mut others = codings;
    // Where chunked comes last, the body's end can be told; what is in it can't be read.
    if is_last && others.all(|coding| field::is_token(coding) && !is_chunked(coding)) {
        Err(BadRequest::TransferCoding)
    } else {
        Err(BadRequest::Malformed(
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
