//! Fields of a form: which bodies are one, and what stands under a name in it.
//!
//! Owns the proxy's whole notion of forms. Invariant: where a field is [`Field::Found`], every reader
//! of forms that a backend may use finds this very value under that name, and where it is
//! [`Field::Missing`], none finds any. Readers differ on names that are spelt almost alike (PHP, qs
//! and ASP.NET fold them), on what divides fields, on charsets, and on parts of a form that are
//! described twice; so any of these about a wanted name makes it [`Field::Ambiguous`], and a body
//! that falls into other parts for another reader is refused whole.
//!
//! It leaves out: files. One under a wanted name is no value for the field, and makes it ambiguous.

use std::borrow::Cow;

use http::header::CONTENT_TYPE;
use http::request::Parts;

use super::SessionError;
use super::sources::has_twin;
use head::{Described, is_ascii_like, is_utf8};

pub(super) use head::is_token;

mod head;
mod multipart;
mod urlencoded;

#[cfg(test)]
mod tests;

/// The two kinds of form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `application/x-www-form-urlencoded` (WHATWG URL §5).
    Urlencoded,
    /// `multipart/form-data` (RFC 7578), and the line that divides it.
    Multipart { boundary: Box<[u8]> },
}

/// What stands under a name in a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field<'b> {
    /// Nothing.
    Missing,
    /// Readers would disagree.
    Ambiguous,
    /// This value, decoded.
    Found(Cow<'b, [u8]>),
}

/// The fields that are wanted, as they are found.
struct Fields<'n, 'b> {
    names: &'n [Box<str>],
    found: Vec<Field<'b>>,
}

/// How many fields a form may have. Django, Starlette, Express and multer refuse more, and PHP sees no
/// more: what stands behind them is a field to some readers only.
const MOST_FIELDS: usize = 1000;

const TOO_MANY: &str = "it has more than 1000 fields";

/// How a name in the body compares with a wanted one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Likeness {
    Same,
    /// Not the same, but some readers would take it for the same.
    Alike,
    Other,
}

/// The form that a request's head declares; `None`: its body is something else.
///
/// # Errors
/// When some readers would take the body for a form and others not, or for another form.
pub(super) fn declared(head: &Parts) -> Result<Option<Form>, SessionError> {
    let mut values = head.headers.get_all(CONTENT_TYPE).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    // Which of two counts, or whether they are joined, depends on the server.
    if values.next().is_some() || has_twin(head, &CONTENT_TYPE) {
        return Err(SessionError::Ambiguous {
            source_name: "{header:content-type}".into(),
        });
    }
    form(value.as_bytes()).map_err(|why| SessionError::Malformed { why: why.into() })
}

/// Whether a content type names no charset but UTF-8, and nothing that readers differ on.
pub(super) fn is_in_utf8(value: &[u8]) -> bool {
    Described::parse(value).is_some_and(|described| {
        let parameters = described.parameters.iter();
        let mut charsets = parameters.filter(|(name, _)| name.eq_ignore_ascii_case(b"charset"));
        charsets.all(|(_, charset)| is_utf8(charset))
    })
}

/// The form that a content type names.
fn form(value: &[u8]) -> Result<Option<Form>, &'static str> {
    let lower = value.to_ascii_lowercase();
    // As the loosest readers look at it.
    let may_be_form = [&b"urlencoded"[..], b"multipart"]
        .iter()
        .any(|word| memchr::memmem::find(&lower, word).is_some());
    if !may_be_form {
        return Ok(None);
    }
    const ODD: &str = "its content type can be read in two ways";
    let described = Described::parse(value).ok_or(ODD)?;
    let is = |name: &str| described.first.eq_ignore_ascii_case(name.as_bytes());
    let (is_urlencoded, is_multipart) = (
        is("application/x-www-form-urlencoded"),
        is("multipart/form-data"),
    );
    if !is_urlencoded && !is_multipart {
        return Err("its content type is a kind of form that backends read in different ways");
    }
    let (mut boundary, mut charset) = (None, None);
    for (name, value) in described.parameters {
        let slot = match &*name.to_ascii_lowercase() {
            b"charset" => &mut charset,
            b"boundary" if is_multipart => &mut boundary,
            // Some look for the word `boundary` anywhere.
            _ => return Err(ODD),
        };
        if slot.replace(value).is_some() {
            return Err(ODD);
        }
    }
    if charset.is_some_and(|charset| !is_utf8(&charset)) {
        return Err("its charset isn't UTF-8");
    }
    if is_urlencoded {
        return Ok(Some(Form::Urlencoded));
    }
    let boundary = boundary.ok_or("its content type names no boundary")?;
    // RFC 2046 §5.1.1.
    let may_stand = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
    if boundary.is_empty()
        || boundary.len() > 70
        || boundary.ends_with(b" ")
        || !boundary.iter().all(may_stand)
    {
        return Err("its boundary isn't 1 to 70 of the characters that may stand in one");
    }
    Ok(Some(Form::Multipart {
        boundary: boundary.into_owned().into(),
    }))
}

// === impl Form ===

impl Form {
    /// Picks what stands under each of the names, in their order.
    ///
    /// # Errors
    /// When the body isn't such a form, or is one that readers divide in different ways.
    pub(super) fn pick<'b>(
        &self,
        body: &'b [u8],
        names: &[Box<str>],
    ) -> Result<Vec<Field<'b>>, SessionError> {
        // Some take it off, and to the others it is a part of the first name.
        if body.starts_with(b"\xef\xbb\xbf") {
            let why = "a byte order mark stands before the form".into();
            return Err(SessionError::Malformed { why });
        }
        let mut fields = Fields {
            names,
            found: vec![Field::Missing; names.len()],
        };
        let read = match self {
            Self::Urlencoded => urlencoded::read(body, &mut fields),
            Self::Multipart { boundary } => multipart::read(body, boundary, &mut fields),
        };
        match read {
            Ok(()) => Ok(fields.found),
            Err(why) => Err(SessionError::Malformed { why: why.into() }),
        }
    }
}

// === impl Fields ===

impl<'b> Fields<'_, 'b> {
    /// Notes a field. `value` is asked for only if its name is wanted; `None`: readers would disagree
    /// about it.
    fn note(&mut self, name: &[u8], value: impl Fn() -> Option<Cow<'b, [u8]>>) {
        for (wanted, found) in self.names.iter().zip(&mut self.found) {
            let value = match likeness(name, wanted.as_bytes()) {
                Likeness::Other => continue,
                Likeness::Alike => None,
                Likeness::Same => value(),
            };
            let value = value.map_or(Field::Ambiguous, Field::Found);
            // Twice the same is one value; of two, the backend may take the other one.
            match found {
                Field::Missing => *found = value,
                first if *first == value => {}
                _ => *found = Field::Ambiguous,
            }
        }
    }
}

/// Compares a name in a body with a wanted one as the loosest readers do.
fn likeness(name: &[u8], wanted: &[u8]) -> Likeness {
    if name == wanted {
        return Likeness::Same;
    }
    let has_brackets = wanted.contains(&b'[');
    match folded(name, has_brackets).eq(folded(wanted, has_brackets)) {
        true => Likeness::Alike,
        false => Likeness::Other,
    }
}

/// What names have in common that some reader takes for one: PHP trims spaces before a name, ends it
/// at a NUL, and has `_` in the place of dots and spaces; PHP, Rails and qs make `name[]` and
/// `name[x]` values in `name`, qs `[name]` too; ASP.NET looks names up whatever their case.
fn folded(name: &[u8], keeps_brackets: bool) -> impl Iterator<Item = u8> {
    let name = name.trim_ascii_start();
    let name = name
        .strip_prefix(b"[")
        .filter(|_| !keeps_brackets)
        .unwrap_or(name);
    let ends = move |byte: &u8| *byte == 0 || !keeps_brackets && matches!(byte, b'[' | b']');
    name.iter()
        .take_while(move |byte| !ends(byte))
        .map(|byte| match byte {
            b'.' | b' ' => b'_',
            other => other.to_ascii_lowercase(),
        })
}
