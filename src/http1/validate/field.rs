//! One field line of a head or of a trailer section (RFC 9110 §5).

use crate::http_syntax::{is_token_byte, trim};
use crate::service::BadRequest;

/// A header or trailer field.
pub(super) struct HeaderField<'l> {
    pub(super) name: &'l [u8],
    /// The value, without the white space around it.
    pub(super) value: &'l [u8],
    /// The name has an upper-case letter.
    pub(super) has_upper: bool,
}

/// Parses a field line without its line end.
///
/// # Errors
/// If the line is not a header field, or if servers could read it in different ways.
pub(super) fn parse(line: &[u8]) -> Result<HeaderField<'_>, BadRequest> {
    let mut has_upper = false;
    let name = line.iter().position(|b| {
        has_upper |= b.is_ascii_uppercase();
        !is_token_byte(*b)
    });
    let (name, rest) = match name {
        Some(end) if end > 0 && line[end] == b':' => (&line[..end], &line[end + 1..]),
        Some(0) if matches!(line[0], b' ' | b'\t') => {
            return Err(BadRequest::Malformed(
                "a folded header line (RFC 9112 §5.2)",
            ));
        }
        Some(end) if matches!(line[end], b' ' | b'\t') => {
            return Err(BadRequest::Malformed(
                "white space in or after a header name",
            ));
        }
        Some(_) => return Err(BadRequest::Malformed("an invalid header name")),
        None => return Err(BadRequest::Malformed("a header line without a colon")),
    };
    // Without a branch in the loop, the compiler vectorises it.
    let has_control = rest.iter().fold(false, |has, b| {
        has | ((*b < b' ') & (*b != b'\t')) | (*b == 0x7f)
    });
    if has_control {
        return Err(BadRequest::Malformed(
            "a control character in a header value",
        ));
    }
    Ok(HeaderField {
        name,
        value: trim(rest),
        has_upper,
    })
}
