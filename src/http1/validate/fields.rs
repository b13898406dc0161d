//! The header fields that frame a request or name its host. HTTP/1 and HTTP/2 share the rules.

use memchr::memchr;

use crate::http_syntax::{byte_table, is_token, trim};
use crate::service::BadRequest;

/// The most header fields: Envoy's default, and as many as hyper reads without an extra allocation.
pub(super) const MAX_FIELDS: usize = 100;

/// What the header fields so far say about host, framing and upgrade.
#[derive(Debug, Default)]
pub(crate) struct HeaderFields {
    is_1_0: bool,
    count: usize,
    has_host: bool,
    length: Option<u64>,
    is_chunked: bool,
    has_upgrade: bool,
}

/// How a request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// By its length in bytes; 0 also without a `content-length`.
    Length(u64),
    /// By the transfer coding `chunked`.
    Chunked,
}

/// The bytes of a host name that no server takes for a delimiter.
static HOST_BYTES: [bool; 256] = byte_table(b"-._~!$&'()*+;=");

/// Backends behind WSGI or CGI take the name with an underscore for the framing header itself.
const UNDERSCORE: BadRequest =
    BadRequest::Malformed("content_length or transfer_encoding, with an underscore");

// === impl HeaderFields ===

impl HeaderFields {
    /// No fields yet. `is_1_0`: the request is in HTTP/1.0.
    pub(super) fn new(is_1_0: bool) -> Self {
        Self {
            is_1_0,
            ..Self::default()
        }
    }

    /// Adds a field; `value` has no white space around it.
    ///
    /// # Errors
    /// If the field makes the request malformed, or is one too many.
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadRequest> {
        self.count += 1;
        if self.count > MAX_FIELDS {
            return Err(BadRequest::HeadTooLarge);
        }
        // The length first: nearly every field is a different one.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                // The proxy refuses a second host, with a message of its own.
                self.add_host(value)?;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.has_upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content_length") => return Err(UNDERSCORE),
            17 if name.eq_ignore_ascii_case(b"transfer_encoding") => return Err(UNDERSCORE),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = parse_length(value)
                    .ok_or(BadRequest::Malformed("an invalid content-length"))?;
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

    /// Adds the host of the request, from `host` or `:authority`.
    ///
    /// # Errors
    /// If backends could disagree about the host.
    pub(crate) fn add_host(&mut self, value: &[u8]) -> Result<(), BadRequest> {
        self.has_host = true;
        match is_host(value) {
            true => Ok(()),
            false => Err(BadRequest::Malformed("an invalid host")),
        }
    }

    /// How the body is framed, once all fields are added.
    ///
    /// # Errors
    /// If the host is missing, or if there are two framings.
    pub(crate) fn framing(&self) -> Result<BodyFraming, BadRequest> {
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

    /// Whether the request asks for an upgrade (RFC 9110 §7.8).
    pub(super) fn has_upgrade(&self) -> bool {
        self.has_upgrade && !self.is_1_0
    }
}

// === values ===

/// The number of a `content-length`; `None`: it isn't only digits, or too large. Leading zeros are
/// refused, because C's `strtol` takes them for an octal number.
fn parse_length(value: &[u8]) -> Option<u64> {
    // hyper gives the two highest numbers a meaning of its own.
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
    let mut codings = value.rsplit(|b| *b == b',').map(trim);
    let is_last = codings.next().is_some_and(is_chunked);
    // With chunked last, the body's end is known, but its content can't be read.
    if is_last && codings.all(|coding| is_token(coding) && !is_chunked(coding)) {
        Err(BadRequest::TransferCoding)
    } else {
        Err(BadRequest::Malformed(
            "a transfer-encoding that doesn't end with chunked",
        ))
    }
}

/// Whether `value` is a host and a port (RFC 3986 §3.2.2), without the characters that servers disagree
/// about. An empty host is valid (RFC 9112 §3.2).
fn is_host(value: &[u8]) -> bool {
    let (is_good, port) = match value {
        [b'[', rest @ ..] => {
            let Some(end) = memchr(b']', rest) else {
                return false;
            };
            (is_ip_literal(&rest[..end]), &rest[end + 1..])
        }
        _ => {
            let end = memchr(b':', value).unwrap_or(value.len());
            let is_name = |b: &u8| HOST_BYTES[usize::from(*b)];
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

/// Whether `text` is what may stand in the brackets of a host: an IPv6 address, perhaps with a zone behind
/// `%25` (RFC 6874 §2).
fn is_ip_literal(text: &[u8]) -> bool {
    let end = memchr(b'%', text).unwrap_or(text.len());
    let (address, zone) = text.split_at(end);
    let is_address = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
    let is_unreserved = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    let is_zone = match zone {
        [] => true,
        [b'%', b'2', b'5', name @ ..] => !name.is_empty() && name.iter().all(is_unreserved),
        _ => false,
    };
    !address.is_empty() && address.iter().all(is_address) && is_zone
}
