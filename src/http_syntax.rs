//! The parts of HTTP's syntax that several modules read or write: tokens, white space, names of
//! fields, and the head of a response in HTTP/1.1.
//!
//! Pure functions over bytes. What a field means to a route or to a session is not known here.

use bytes::BufMut;
use http::{HeaderMap, StatusCode};

/// The header fields in which frameworks look for another method than the request's own.
pub const METHOD_OVERRIDES: [&[u8]; 3] = [
    b"x-http-method-override",
    b"x-method-override",
    b"x-http-method",
];

/// The header fields that IIS and PHP frameworks take for the path before it was rewritten.
pub const PATH_OVERRIDES: [&[u8]; 2] = [b"x-original-url", b"x-rewrite-url"];

/// The bytes that a token is made of (RFC 9110 §5.6.2).
static TOKEN: [bool; 256] = byte_table(b"!#$%&'*+-.^_`|~");

/// Fields that mean something only before the body (RFC 9110 §6.5.1), or that say who may do what,
/// where a request comes from, or what it is.
const HEAD_ONLY: [&[u8]; 25] = [
    b"authorization",
    b"cf-connecting-ip",
    b"client-ip",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"max-forwards",
    b"proxy-authorization",
    b"range",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"true-client-ip",
    b"upgrade",
    b"via",
    b"x-client-ip",
    b"x-cluster-client-ip",
    b"x-real-ip",
    b"x-request-id",
];

/// The items of a header field's value as a list (RFC 9110 §5.6.1), without white space around them.
pub fn list_items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let items = value.split(|byte| *byte == b',');
    items.map(<[u8]>::trim_ascii)
}

/// The items of a header field that says what a client prefers, each with its weight (RFC 9110 §12.4.2). Left out is
/// what the client excludes with a weight of 0, and what has a weight that is no number.
pub fn weighted_items(value: &str) -> impl Iterator<Item = (&str, f32)> {
    value.split(',').filter_map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty())?;
        let weight = parts.find_map(|part| {
            let (parameter, weight) = part.split_once('=')?;
            parameter.eq_ignore_ascii_case("q").then_some(weight)
        });
        let weight = weight.map_or(Ok(1.0), str::parse).ok()?;
        (weight > 0.0).then_some((name, weight))
    })
}

/// How the names of further such fields begin. Each of these families has many members.
const HEAD_ONLY_PREFIXES: [&[u8]; 5] = [
    b"x-forwarded-",
    b"x-http-method",
    b"x-original-",
    b"x-rewrite-",
    b"x-seriatim-",
];

// === tokens and white space ===

/// A table of ASCII's letters and digits, and of the bytes in `others`: indexed by a byte, it says
/// whether the byte is one of them.
pub const fn byte_table(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
}

/// Whether `bytes` are a token (RFC 9110 §5.6.2): one character at least, and only those of a token.
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_token_byte(*byte))
}

/// Whether a token may contain `byte` (RFC 9110 §5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// The value without spaces and tabs around it. Other white space stays (RFC 9110 §5.6.3).
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

// === names of fields ===

/// Whether a field of this name may stand only in a head, and in no trailer section.
pub fn is_head_only(name: &[u8]) -> bool {
    HEAD_ONLY
        .iter()
        .chain(&METHOD_OVERRIDES)
        .any(|field| is_alike(name, field))
        || HEAD_ONLY_PREFIXES.iter().any(|prefix| {
            let start = name.get(..prefix.len());
            start.is_some_and(|start| is_alike(start, prefix))
        })
}

/// Whether some backend takes the one field name for the other. WSGI, CGI and PHP read all characters
/// but letters and digits as `_` (so `x_session.id` is `x-session-id`) and ignore case.
pub fn is_alike(name: &[u8], other: &[u8]) -> bool {
    let is_alike = |(a, b): (&u8, &u8)| {
        a.eq_ignore_ascii_case(b) || !a.is_ascii_alphanumeric() && !b.is_ascii_alphanumeric()
    };
    name.len() == other.len() && name.iter().zip(other).all(is_alike)
}

// === responses ===

/// Writes the status line and the header fields of a response in HTTP/1.1 (RFC 9112 §4), without the
/// empty line that ends the head.
pub fn write_head(status: StatusCode, headers: &HeaderMap, out: &mut impl BufMut) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
    for (name, value) in headers {
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_overrides_method_or_path_stands_only_in_a_head() {
        for name in METHOD_OVERRIDES.iter().chain(&PATH_OVERRIDES) {
            let text = String::from_utf8_lossy(name);
            assert!(is_head_only(name), "no trailer may be named {text}");
        }
    }

    #[test]
    fn an_item_with_weight_0_is_none() {
        for (value, expected) in [
            ("a, b;q=0.5", &[("a", 1.0), ("b", 0.5)][..]),
            ("a;Q=0,b;q=0.000;x=y, c;x=y; q=0", &[]),
            ("a;q=0, a;x=y ; q=0.001", &[("a", 0.001)]),
            ("a;q=x, b;q=NaN, c;q=, d;q", &[("d", 1.0)]),
            ("", &[]),
            (";q=1,,", &[]),
        ] {
            let items: Vec<_> = weighted_items(value).collect();
            assert_eq!(items, expected, "{value:?}");
        }
    }

    #[test]
    fn a_response_head_is_a_status_line_and_its_fields() {
        let headers = [("retry-after", "1"), ("x-a", "b")].map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, http::HeaderValue::from_static(value))
        });
        let mut head = Vec::new();
        write_head(
            StatusCode::SERVICE_UNAVAILABLE,
            &headers.into_iter().collect(),
            &mut head,
        );
        assert_eq!(
            String::from_utf8_lossy(&head),
            "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nx-a: b\r\n",
            "the caller ends it, and may add fields before"
        );
    }
}
