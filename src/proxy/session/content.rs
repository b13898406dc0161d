//! A request's body as what it says: members of JSON, and fields of a form.
//!
//! Owns which readers have to be reckoned with. A body that may be JSON to some reader is read as JSON,
//! whatever it is declared as, and any other as a form, where a route names fields of one. What the other
//! kind of reader would find in its place is found, too: `sources` refuses where it is something.
//!
//! | declared as | readers of JSON | readers of forms |
//! | --- | --- | --- |
//! | JSON | yes | urlencoded (Bottle), where a route names fields, or no session is in it |
//! | urlencoded, or neither | yes | urlencoded |
//! | multipart | yes | multipart; JSON in which its boundary stands is refused |

use memchr::memmem;

use super::SessionError;
use super::form::{self, Field};
use super::json::{self, JsonError, JsonMember};
use super::kind::BodyKind;
use super::large::SMALL;
use super::lookalike::WantedName;
use crate::key::{Pointer, TemplateFields};

/// The body of a request, as far as it is known.
#[derive(Debug)]
pub(super) enum BodyContent<'b> {
    /// Nobody has looked at it.
    Unread,
    /// There is none.
    Empty,
    /// The whole of it, as it came.
    Text(&'b [u8]),
    /// The whole of it, decoded.
    Decoded(&'b [u8]),
    /// It is encoded in a way that can't be read, or the encoding is broken.
    Unreadable(SessionError),
}

/// What a route asks of a body, in the order of its [`TemplateFields`]; of what isn't there at all, the
/// list is empty.
#[derive(Debug)]
pub(super) struct PickedFields<'b> {
    /// What a reader of JSON finds. `None`: that depends on the body.
    pub(super) members: Option<Vec<JsonMember<'b>>>,
    /// What a reader of forms finds. `None`: that depends on the body.
    pub(super) fields: Option<Vec<Field<'b>>>,
    /// What a reader of forms finds in the place of each member that is asked for.
    pub(super) in_place_of_members: Vec<Field<'b>>,
    /// Its text, if it is declared as JSON: no reader of forms has been asked about the members.
    pub(super) json: Option<&'b [u8]>,
}

// === impl Content ===

impl<'b> BodyContent<'b> {
    /// Whether a backend might find JSON in it, though it can't be read here.
    pub(super) fn may_be_json(&self, kind: &BodyKind) -> bool {
        match self {
            Self::Unread | Self::Empty => false,
            Self::Text(text) | Self::Decoded(text) => kind.may_hide_json() || may_be_json(text),
            // A backend that knows nothing of encodings reads it as it came.
            Self::Unreadable(_) => true,
        }
    }

    /// Whether it is declared as a form, and doesn't look like JSON.
    pub(super) fn is_form(&self, kind: &BodyKind) -> bool {
        match self {
            Self::Text(text) | Self::Decoded(text) => kind.is_form() && !may_be_json(text),
            Self::Unread | Self::Empty | Self::Unreadable(_) => false,
        }
    }

    /// What is wanted of it.
    ///
    /// # Errors
    /// When it isn't what it should be.
    pub(super) fn pick(
        &self,
        kind: &BodyKind,
        wanted: &TemplateFields,
    ) -> Result<PickedFields<'b>, SessionError> {
        let text = match self {
            Self::Unread => return Ok(PickedFields::unknown()),
            Self::Empty => return Ok(PickedFields::nothing()),
            _ if wanted.is_without_body() => return Ok(PickedFields::nothing()),
            Self::Unreadable(error) => return Err(error.clone()),
            Self::Text(text) | Self::Decoded(text) => *text,
        };
        if let BodyKind::Unclear { error, .. } = kind {
            return Err(error.clone());
        }
        let is_json = wanted.form_fields.is_empty()
            || may_be_json(text)
            || *kind == BodyKind::Json && wanted.template_pointer_count > 0;
        if matches!(self, Self::Decoded(_)) && (kind.is_form() || !is_json) {
            // A backend that doesn't decode finds other fields in the same bytes: what stands in a
            // gzip header is one to it.
            return Err(SessionError::Encoding {
                encoding: "something, and a form".into(),
            });
        }
        if !is_json {
            return PickedFields::of_form(kind, text, wanted);
        }
        let members = json::pick(text, &wanted.pointers);
        let members = members.map_err(|malformed| SessionError::Malformed {
            why: malformed.to_string(),
        })?;
        let mut picked = PickedFields::nothing();
        if let BodyKind::Multipart { boundary } = kind {
            if form::has_boundary(text, boundary) {
                let why = "it can be read as JSON and as a form".into();
                return Err(SessionError::Malformed { why });
            }
        } else if *kind != BodyKind::Json || !wanted.form_fields.is_empty() {
            let members = match kind {
                BodyKind::Json => &[],
                _ => wanted.template_pointers(),
            };
            picked.set_fields(wanted, form::in_urlencoded(text, &names(wanted, members)));
            for field in picked.fields.iter_mut().flatten() {
                // One stands in the middle of JSON, and nobody who sends forms has it there.
                if *field != Field::Missing {
                    *field = Field::Ambiguous;
                }
            }
        }
        picked.members = Some(members);
        picked.json = (*kind == BodyKind::Json).then_some(text);
        Ok(picked)
    }

    /// What a reader of forms finds in it where it isn't JSON.
    ///
    /// # Errors
    /// When it is a form that such readers divide in different ways, or take for different kinds.
    pub(super) fn pick_form(
        &self,
        kind: &BodyKind,
        wanted: &TemplateFields,
    ) -> Result<PickedFields<'b>, SessionError> {
        match (self, kind) {
            (
                _,
                BodyKind::Unclear {
                    error,
                    may_be_form: true,
                    ..
                },
            ) => Err(error.clone()),
            (Self::Text(text) | Self::Decoded(text), _) => {
                PickedFields::of_form(kind, text, wanted)
            }
            _ => Ok(PickedFields::nothing()),
        }
    }
}

/// What a form is looked through for.
fn names<'w>(wanted: &'w TemplateFields, members: &'w [Pointer]) -> Vec<WantedName<'w>> {
    let fields = wanted
        .form_fields
        .iter()
        .map(|name| WantedName::Field(name));
    fields
        .chain(members.iter().map(WantedName::Member))
        .collect()
}

/// Whether an encoded body is JSON as it came, too, to a reader that doesn't decode it. That reader may
/// stop behind the first value (Go). A bracket alone says nothing: much text in brotli begins with `[`.
pub(super) fn is_json_encoded(body: &[u8]) -> bool {
    let start = &body[..body.len().min(SMALL)];
    let is_cut = start.len() < body.len();
    // Readers put U+FFFD for what isn't UTF-8.
    match json::first_value(&String::from_utf8_lossy(start)) {
        // One in which nothing is holds no session.
        Ok(value) => {
            value.starts_with(['{', '[']) && value.contains(|c: char| !"{[ \t\r\n]}".contains(c))
        }
        Err(JsonError::TooDeep { .. }) => true,
        Err(JsonError::Cut { .. }) => is_cut,
        Err(_) => false,
    }
}

/// Whether some reader may take it for JSON, whatever the characters are encoded in.
fn may_be_json(text: &[u8]) -> bool {
    // UTF-16 and UTF-32 have a mark of their own, and zeros beside what is ASCII.
    let is_marked = |text: &[u8]| text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff");
    if text.iter().take(4).any(|byte| *byte == 0) {
        let start = text.iter().take(WIDE).filter(|byte| **byte != 0);
        let narrow: Vec<u8> = start.copied().collect();
        return is_marked(&narrow) || matches!(behind_comments(&narrow), [b'{' | b'[', ..]);
    }
    is_marked(text) || matches!(behind_comments(text), [b'{' | b'[', ..])
}

/// How much is looked at of a text that has zeros between its characters, in bytes.
const WIDE: usize = 4096;

/// A text from the first character on that no reader skips: Ruby's skips comments, too.
fn behind_comments(mut text: &[u8]) -> &[u8] {
    loop {
        text = behind_blanks(text);
        let end: &[u8] = match text {
            [b'/', b'*', ..] => b"*/",
            [b'/', b'/', ..] => b"\n",
            _ => return text,
        };
        match memmem::find(&text[2..], end) {
            Some(at) => text = &text[2 + at + end.len()..],
            None => return &[],
        }
    }
}

/// A text from the first character on that isn't blank.
fn behind_blanks(mut text: &[u8]) -> &[u8] {
    loop {
        let longest = &text[..text.len().min(char::MAX.len_utf8())];
        let valid = longest
            .utf8_chunks()
            .next()
            .map_or("", |chunk| chunk.valid());
        let skipped = match (valid.chars().next(), text) {
            (Some(first), _) if is_blank(first) => first.len_utf8(),
            // White space in Latin-1.
            (None, [0x85 | 0xa0, ..]) => 1,
            _ => return text,
        };
        text = &text[skipped..];
    }
}

/// Whether some reader skips it before a text, or takes it for white space: what is trimmed, and control
/// characters.
pub(super) fn is_blank(character: char) -> bool {
    is_trimmed(character) || character.is_control()
}

/// Whether some reader takes it off the ends of a text: white space, U+FEFF (JavaScript), and what was
/// white space in Unicode before 6.3 or is to old .NET.
pub(super) fn is_trimmed(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{feff}' | '\u{180e}' | '\u{200b}')
}

// === impl Picked ===

impl<'b> PickedFields<'b> {
    /// What can be said of a body before it is read.
    pub(super) fn unknown() -> Self {
        Self {
            members: None,
            fields: None,
            in_place_of_members: Vec::new(),
            json: None,
        }
    }

    /// Whether it was read as JSON.
    pub(super) fn is_json(&self) -> bool {
        self.members
            .as_ref()
            .is_some_and(|members| !members.is_empty())
    }

    /// Nothing of it.
    pub(super) fn nothing() -> Self {
        Self {
            members: Some(Vec::new()),
            fields: Some(Vec::new()),
            in_place_of_members: Vec::new(),
            json: None,
        }
    }

    /// What is wanted of a form.
    fn of_form(
        kind: &BodyKind,
        text: &'b [u8],
        wanted: &TemplateFields,
    ) -> Result<Self, SessionError> {
        let malformed = |why: &str| SessionError::Malformed { why: why.into() };
        // Some take it off, and to the others it is a part of the first name.
        if kind.is_form() && text.starts_with(b"\xef\xbb\xbf") {
            return Err(malformed("a byte order mark stands before the form"));
        }
        if *kind == BodyKind::Urlencoded && form::has_too_many(text) {
            return Err(malformed(form::TOO_MANY));
        }
        let names = names(wanted, wanted.template_pointers());
        let fields = match kind {
            BodyKind::Multipart { boundary } => form::in_multipart(text, boundary, &names),
            _ => Ok(form::in_urlencoded(text, &names)),
        };
        let mut picked = Self::nothing();
        picked.set_fields(wanted, fields.map_err(malformed)?);
        Ok(picked)
    }

    /// Takes what was found by [`names`].
    fn set_fields(&mut self, wanted: &TemplateFields, mut fields: Vec<Field<'b>>) {
        self.in_place_of_members = fields.split_off(wanted.form_fields.len());
        self.fields = Some(fields);
    }
}

#[cfg(test)]
mod tests;
