//! Reads `multipart/form-data`: parts between boundaries, each with its own head.
//!
//! Invariant: all readers agree on what the parts are. Some readers accept a boundary that isn't a line of its
//! own between two CRLFs; a body with such a boundary is refused.

use std::borrow::Cow;

use memchr::memmem::{self, Finder};

use super::{Fields, MAX_FIELDS, TOO_MANY};
use crate::http_syntax::{is_token, trim};
use crate::proxy::session::ambiguity::Ambiguity;
use crate::proxy::session::parameters::{ValueWithParameters, is_ascii_like, is_utf8};

/// The headers of a part that matter here.
#[derive(Default)]
struct PartHead<'b> {
    disposition: Option<ValueWithParameters<'b>>,
    content_type: Option<&'b [u8]>,
    transfer_encoding: Option<&'b [u8]>,
}

const CRLF: &[u8] = b"\r\n";

/// The longest head of a part, in bytes: many times the length of a field's name and a file's name. Readers
/// have limits of this size, too.
const MAX_HEAD: usize = 8 << 10;

/// Adds every field of a multipart body to `fields`.
pub(super) fn read<'b>(
    body: &'b [u8],
    boundary: &[u8],
    fields: &mut Fields<'_, 'b>,
) -> Result<(), &'static str> {
    const CUT: &str = "it ends before its last boundary";
    const ODD: &str = "a boundary isn't on a line of its own";
    let delimiter = [b"--", boundary].concat();
    let finder = Finder::new(&delimiter);
    // Where the part begins that the next boundary ends; `None` before the first part.
    let mut part = None;
    let (mut from, mut count) = (0, 0);
    loop {
        let at = from + finder.find(&body[from..]).ok_or(CUT)?;
        // The line break before a boundary belongs to the boundary.
        let end = match at {
            0 => 0,
            _ => at.checked_sub(2).filter(|end| *end >= from).ok_or(ODD)?,
        };
        if at > 0 && body[end..at] != *CRLF {
            return Err(ODD);
        }
        if let Some(start) = part {
            count += 1;
            if count > MAX_FIELDS {
                return Err(TOO_MANY);
            }
            read_part(&body[start..end], fields)?;
        }
        let behind = at + delimiter.len();
        match &body[behind..] {
            [b'\r', b'\n', ..] => from = behind + CRLF.len(),
            // Some readers search for more parts behind the last one.
            [b'-', b'-'] | [b'-', b'-', b'\r', b'\n'] => return Ok(()),
            _ => return Err(ODD),
        }
        part = Some(from);
    }
}

/// Adds the field of a part, if the part is a field.
fn read_part<'b>(part: &'b [u8], fields: &mut Fields<'_, 'b>) -> Result<(), &'static str> {
    let (head, content) = match part.strip_prefix(CRLF) {
        Some(content) => (&[][..], content),
        None => {
            let most = part.len().min(MAX_HEAD);
            let end = memmem::find(&part[..most], b"\r\n\r\n");
            let end = end.ok_or("a part's head has no end, or more than 8 KiB")?;
            (&part[..end], &part[end + 4..])
        }
    };
    let head = PartHead::read(head)?;
    let Some(name) = head.name()? else {
        return Ok(());
    };
    fields.add(&name, || head.text(content).map(Cow::Borrowed));
    Ok(())
}

// === impl PartHead ===

impl<'b> PartHead<'b> {
    fn read(head: &'b [u8]) -> Result<Self, &'static str> {
        const ODD: &str = "a part's head can be read in two ways";
        let mut part = Self::default();
        let mut rest = head;
        while !rest.is_empty() {
            let end = memmem::find(rest, CRLF);
            let line = &rest[..end.unwrap_or(rest.len())];
            rest = end.map_or(&[][..], |end| &rest[end + 2..]);
            // No control character, so no other line break; and a name in front, so no line that
            // continues the one before.
            let is_odd = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
            if line.iter().any(is_odd) {
                return Err(ODD);
            }
            let colon = line.iter().position(|byte| *byte == b':').ok_or(ODD)?;
            let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
            // Rack finds `content-disposition` anywhere in a line.
            if !is_token(name) || names_disposition(&line[1..]) {
                return Err(ODD);
            }
            let is_first = match &*name.to_ascii_lowercase() {
                b"content-disposition" => {
                    let described = ValueWithParameters::parse(value).ok_or(ODD)?;
                    part.disposition.replace(described).is_none()
                }
                b"content-type" => part.content_type.replace(value).is_none(),
                b"content-transfer-encoding" => part.transfer_encoding.replace(value).is_none(),
                _ => true,
            };
            if !is_first {
                return Err(ODD);
            }
        }
        // Some readers would search for more parts in the part.
        let is_nested = |kind: &[u8]| {
            let start = kind.get(..9);
            start.is_some_and(|start| start.eq_ignore_ascii_case(b"multipart"))
        };
        if part.content_type.is_some_and(is_nested) {
            return Err("one of its parts has parts");
        }
        Ok(part)
    }

    /// The field's name; `None`: the part has none.
    fn name(&self) -> Result<Option<Cow<'b, [u8]>>, &'static str> {
        const ODD: &str = "a part's name can be read in two ways";
        let Some(disposition) = &self.disposition else {
            return Ok(None);
        };
        if !disposition.first.eq_ignore_ascii_case(b"form-data") {
            return Err("one of its parts isn't form-data");
        }
        let (mut name, mut files) = (None, 0);
        for (parameter, value) in &disposition.parameters {
            match &*parameter.to_ascii_lowercase() {
                b"name" => {
                    // Neither escapes nor encoded words (RFC 2047).
                    let is_plain = !value.contains(&b'\\')
                        && !value.contains(&b'"')
                        && memmem::find(value, b"=?").is_none();
                    if name.replace(value.clone()).is_some() || !is_plain {
                        return Err(ODD);
                    }
                }
                b"filename" => files += 1,
                // Sent beside `filename`, for readers that know it (RFC 6266).
                b"filename*" => {}
                // Other encodings and continuations of a name (RFC 2231), which RFC 7578 forbids.
                other if other.contains(&b'*') => return Err(ODD),
                _ => {}
            }
        }
        match files {
            0 | 1 => Ok(name),
            _ => Err(ODD),
        }
    }

    /// Whether the part has a file's name, even an empty one: some readers tell files from fields by it.
    fn is_file(&self) -> bool {
        let parameters = self.disposition.iter().flat_map(|it| &it.parameters);
        let mut names = parameters.map(|(name, _)| name.strip_suffix(b"*").unwrap_or(name));
        names.any(|name| name.eq_ignore_ascii_case(b"filename"))
    }

    /// The part's content as a text.
    ///
    /// # Errors
    /// When some readers take it for another text, or for a file.
    fn text<'c>(&self, content: &'c [u8]) -> Result<&'c [u8], Ambiguity> {
        if self.is_file() {
            return Err(Ambiguity::FieldFile);
        }
        let is_plain = self.transfer_encoding.is_none_or(|encoding| {
            let is_it = |plain: &&str| encoding.eq_ignore_ascii_case(plain.as_bytes());
            ["7bit", "8bit", "binary"].iter().any(is_it)
        });
        let is_text = self.content_type.is_none_or(|kind| {
            let Some(described) = ValueWithParameters::parse(kind) else {
                return false;
            };
            let start = described.first.get(..5);
            let mut parameters = described.parameters.iter();
            start.is_some_and(|start| start.eq_ignore_ascii_case(b"text/"))
                && parameters.all(|(name, value)| {
                    !name.eq_ignore_ascii_case(b"charset")
                        || is_utf8(value)
                        || is_ascii_like(value) && content.is_ascii()
                })
        });
        if !is_plain {
            return Err(Ambiguity::FieldEncoded);
        }
        if !is_text {
            return Err(Ambiguity::FieldType);
        }
        // Some readers take it off.
        match content.starts_with(b"\xef\xbb\xbf") {
            true => Err(Ambiguity::FieldMark),
            false => Ok(content),
        }
    }
}

/// Whether a text contains the header name `content-disposition`.
fn names_disposition(text: &[u8]) -> bool {
    const NAME: &[u8] = b"content-disposition:";
    let mut pieces = text.windows(NAME.len());
    pieces.any(|piece| piece.eq_ignore_ascii_case(NAME))
}
