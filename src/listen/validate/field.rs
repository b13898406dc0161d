//! One field line (RFC 9110 §5), of a head or of a trailer section.

use super::BadRequest;

/// A field: its name, and its value without the whitespace around it.
pub(super) struct HeaderField<'l> {
    pub(super) name: &'l [u8],
    pub(super) value: &'l [u8],
}

/// The bytes that a token is made of (RFC 9110 §5.6.2).
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric() || is_mark(b);
        byte += 1;
    }
    table
};

/// Fields that mean something before the body only (RFC 9110 §6.5.1), or say who may do what, where a
/// request comes from, or what it is.
const NOT_IN_TRAILERS: [&[u8]; 26] = [
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
    b"x-method-override",
    b"x-real-ip",
    b"x-request-id",
];

/// How the names of such fields begin, of which there are many.
const FAMILIES: [&[u8]; 5] = [
    b"x-forwarded-",
    b"x-http-method",
    b"x-original-",
    b"x-rewrite-",
    b"x-seriatim-",
];

const fn is_mark(b: u8) -> bool {
    matches!(
        b,
        b'!' | b'#'
            | b'$'
            | b'%'
            | b'&'
            | b'\''
            | b'*'
            | b'+'
            | b'-'
            | b'.'
            | b'^'
            | b'_'
            | b'`'
            | b'|'
            | b'~'
    )
}

pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| TOKEN[usize::from(*b)])
}

pub(super) fn is_token_byte(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Reads a line, without its end.
pub(super) fn read(line: &[u8]) -> Result<HeaderField<'_>, BadRequest> {
    let name = line.iter().position(|b| !TOKEN[usize::from(*b)]);
    let (name, rest) = match name {
        Some(end) if end > 0 && line[end] == b':' => (&line[..end], &line[end + 1..]),
        Some(0) if matches!(line[0], b' ' | b'\t') => {
            return Err(BadRequest::Malformed("a folded line (RFC 9112 §5.2)"));
        }
        Some(end) if matches!(line[end], b' ' | b'\t') => {
            return Err(BadRequest::Malformed(
                "whitespace in or behind a field's name",
            ));
        }
        Some(_) => return Err(BadRequest::Malformed("a field's name that is none")),
        None => return Err(BadRequest::Malformed("a field without a colon")),
    };
    // No branch in the loop, so that it becomes one over vectors.
    let bad = rest.iter().fold(false, |bad, b| {
        bad | ((*b < b' ') & (*b != b'\t')) | (*b == 0x7f)
    });
    if bad {
        return Err(BadRequest::Malformed(
            "a control character in a field's value",
        ));
    }
    Ok(HeaderField {
        name,
        value: trim(rest),
    })
}

/// Without the whitespace around it: spaces and tabs, and nothing else.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether a field of this name may stand in a head only, and in no trailer section.
pub fn is_head_only(name: &[u8]) -> bool {
    NOT_IN_TRAILERS.iter().any(|field| is_alike(name, field))
        || FAMILIES.iter().any(|family| {
            let start = name.get(..family.len());
            start.is_some_and(|start| is_alike(start, family))
        })
}

/// Whether some backend takes one field's name for the other: behind WSGI, CGI and PHP all but letters
/// and digits is `_` in a name (`x_session.id` is `x-session-id`), and case counts nowhere.
pub fn is_alike(name: &[u8], other: &[u8]) -> bool {
    let is_alike = |(a, b): (&u8, &u8)| {
        a.eq_ignore_ascii_case(b) || !a.is_ascii_alphanumeric() && !b.is_ascii_alphanumeric()
    };
    name.len() == other.len() && name.iter().zip(other).all(is_alike)
}
