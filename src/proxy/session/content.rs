//! What a body contains: members of JSON, and fields of a form.
//!
//! Invariant: a body is read as each kind that some backend may read it as. A body that may be JSON for some
//! reader is read as JSON, whatever it is declared as; any other body is read as a form, if the route wants
//! fields. What the other kind of reader would find is found, too, so that `sources` can refuse it.
//!
//! | declared as | readers of JSON | readers of forms |
//! | --- | --- | --- |
//! | JSON | yes | urlencoded (Bottle), where a route names fields, or no session is in it |
//! | urlencoded, or neither | yes | urlencoded |
//! | multipart | yes | multipart; JSON in which its boundary stands is refused |

use bytes::Bytes;
use memchr::memmem;

use super::ambiguity::Ambiguity;
use super::body_kind::BodyKind;
use super::error::SessionError;
use super::form::{self, Field};
use super::json::{self, JsonError, JsonMember};
use super::lookalike::WantedName;
use super::work_limit::SMALL;
use crate::key::{Pointer, TemplateFields};

/// The body of a request, as far as it is known.
#[derive(Debug)]
pub(in crate::proxy) enum BodyContent {
    /// The body has not been read.
    Unread,
    /// The request has no body.
    Empty,
    /// The whole body is there.
    Loaded(LoadedBody),
    /// The body has a content encoding that the proxy doesn't decode, or that is broken.
    Unreadable(SessionError),
}

/// A body that was read to its end and decoded.
#[derive(Debug)]
pub(in crate::proxy) struct LoadedBody {
    /// The body's bytes, without its content encodings.
    pub(super) text: Bytes,
    /// What the request's head declares the body as.
    pub(super) kind: BodyKind,
    /// Whether the body came with a content encoding.
    pub(super) is_encoded: bool,
}

/// What a route wants of a body, in the order of its [`TemplateFields`]. A list is empty where nothing was
/// found.
#[derive(Debug, Default)]
pub(in crate::proxy) struct PickedFields<'b> {
    /// What a reader of JSON finds. `None`: the body isn't known.
    pub(super) members: Option<Vec<JsonMember<'b>>>,
    /// What a reader of forms finds. `None`: the body isn't known.
    pub(super) fields: Option<Vec<Field<'b>>>,
    /// What a reader of forms finds in place of each wanted member.
    pub(super) in_place_of_members: Vec<Field<'b>>,
    /// The body's text, if it is a batch that has a wanted member in one of its requests.
    pub(super) batch: Option<&'b [u8]>,
    /// The body's text, if it is declared as JSON: then no reader of forms has been asked about the
    /// members.
    pub(super) json: Option<&'b [u8]>,
}

// === impl BodyContent ===

impl BodyContent {
    /// How many bytes of text there are to read.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Loaded(body) => body.text.len(),
            Self::Unread | Self::Empty | Self::Unreadable(_) => 0,
        }
    }

    /// How many bytes the body was decoded to. 0: it has no content encoding, or isn't there.
    pub(in crate::proxy) fn decoded_len(&self) -> usize {
        match self {
            Self::Loaded(body) if body.is_encoded => body.text.len(),
            _ => 0,
        }
    }

    /// The JSON text of a JSON-RPC request's id (JSON-RPC 2.0 §4); `None` if there is none, or two
    /// readers could take different ones.
    pub(super) fn call_id(&self) -> Option<Box<str>> {
        let Self::Loaded(body) = self else {
            return None;
        };
        match json::pick(&body.text, &[Pointer::to_member("id")])
            .ok()?
            .first()?
        {
            JsonMember::Found(text) => Some((*text).into()),
            JsonMember::Missing | JsonMember::Ambiguous(_) => None,
        }
    }

    /// Whether a backend might find JSON in the body, though the proxy can't read any.
    pub(super) fn may_be_json(&self) -> bool {
        match self {
            Self::Unread | Self::Empty => false,
            Self::Loaded(body) => body.kind.may_hide_json() || may_be_json(&body.text),
            // A backend that doesn't decode reads the body as it came.
            Self::Unreadable(_) => true,
        }
    }

    /// Whether the body is declared as a form, and doesn't look like JSON.
    pub(super) fn is_form(&self) -> bool {
        match self {
            Self::Loaded(body) => body.kind.is_form() && !may_be_json(&body.text),
            Self::Unread | Self::Empty | Self::Unreadable(_) => false,
        }
    }

    /// Finds what a route wants of the body.
    ///
    /// # Errors
    /// When the body isn't what the route reads.
    pub(super) fn pick(&self, wanted: &TemplateFields) -> Result<PickedFields<'_>, SessionError> {
        match self {
            Self::Unread => Ok(PickedFields::unknown()),
            Self::Empty => Ok(PickedFields::nothing()),
            _ if wanted.is_without_body() => Ok(PickedFields::nothing()),
            Self::Unreadable(error) => Err(error.clone()),
            Self::Loaded(body) => body.pick(wanted),
        }
    }

    /// Finds what a reader of forms would find in a body that isn't JSON.
    ///
    /// # Errors
    /// When such readers divide the form in different ways, or take it for different kinds of forms.
    pub(super) fn pick_form(
        &self,
        wanted: &TemplateFields,
    ) -> Result<PickedFields<'_>, SessionError> {
        match self {
            Self::Loaded(body) => match &body.kind {
                BodyKind::Unclear {
                    error,
                    may_be_form: true,
                    ..
                } => Err(error.clone()),
                kind => PickedFields::from_form(kind, &body.text, wanted),
            },
            Self::Unread | Self::Empty | Self::Unreadable(_) => Ok(PickedFields::nothing()),
        }
    }
}

// === impl LoadedBody ===

impl LoadedBody {
    fn pick(&self, wanted: &TemplateFields) -> Result<PickedFields<'_>, SessionError> {
        let (kind, text) = (&self.kind, &*self.text);
        if let BodyKind::Unclear { error, .. } = kind {
            return Err(error.clone());
        }
        let is_json = wanted.form_fields.is_empty()
            || may_be_json(text)
            || *kind == BodyKind::Json && wanted.template_pointer_count > 0;
        if self.is_encoded && (kind.is_form() || !is_json) {
            // A backend that doesn't decode finds other fields in the same bytes: to it, the text in a
            // gzip header is one.
            return Err(SessionError::EncodedForm);
        }
        if !is_json {
            return PickedFields::from_form(kind, text, wanted);
        }
        let members = json::pick(text, &wanted.pointers);
        let members = members.map_err(|error| SessionError::malformed(error.to_string()))?;
        let mut picked = PickedFields::nothing();
        if let BodyKind::Multipart { boundary } = kind {
            if form::has_boundary(text, boundary) {
                return malformed("it can be read as JSON and as a form");
            }
        } else if *kind != BodyKind::Json || !wanted.form_fields.is_empty() {
            let members = match kind {
                BodyKind::Json => &[],
                _ => wanted.template_pointers(),
            };
            picked.set_fields(wanted, form::in_urlencoded(text, &names(wanted, members)));
            for field in picked.fields.iter_mut().flatten() {
                // A field in the middle of JSON is nothing that a sender of forms puts there.
                if *field != Field::Missing {
                    *field = Field::Ambiguous(Ambiguity::FieldInJson);
                }
            }
        }
        let in_batch = JsonMember::Ambiguous(Ambiguity::MemberInBatch);
        picked.batch = members.contains(&in_batch).then_some(text);
        picked.members = Some(members);
        picked.json = (*kind == BodyKind::Json).then_some(text);
        Ok(picked)
    }
}

fn malformed<T>(reason: &str) -> Result<T, SessionError> {
    Err(SessionError::malformed(reason))
}

/// The names that a form is searched for: the wanted fields, and the fields in place of these members.
fn names<'w>(wanted: &'w TemplateFields, members: &'w [Pointer]) -> Vec<WantedName<'w>> {
    let fields = wanted.form_fields.iter();
    let fields = fields.map(|name| WantedName::Field(name));
    let members = members.iter().map(WantedName::Member);
    fields.chain(members).collect()
}

/// Whether an encoded body is JSON for a reader that doesn't decode it. Such a reader may stop behind the first
/// value (Go). A bracket alone isn't enough: much text in brotli begins with `[`.
pub(super) fn is_json_encoded(body: &[u8]) -> bool {
    let start = &body[..body.len().min(SMALL)];
    let is_cut = start.len() < body.len();
    // Readers put U+FFFD for bytes that aren't UTF-8.
    match json::first_value(&String::from_utf8_lossy(start)) {
        // A value with nothing in it has no session.
        Ok(value) => {
            value.starts_with(['{', '[']) && value.contains(|c: char| !"{[ \t\r\n]}".contains(c))
        }
        Err(JsonError::TooDeep { .. }) => true,
        Err(JsonError::Cut { .. }) => is_cut,
        Err(_) => false,
    }
}

/// Whether some reader may take a text for JSON, in any charset.
fn may_be_json(text: &[u8]) -> bool {
    // UTF-16 and UTF-32 have their own byte order marks, and zeros beside ASCII.
    let is_marked = |text: &[u8]| text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff");
    if text.iter().take(4).any(|byte| *byte == 0) {
        let start = text.iter().take(WIDE).filter(|byte| **byte != 0);
        let narrow: Vec<u8> = start.copied().collect();
        return is_marked(&narrow) || matches!(behind_comments(&narrow), [b'{' | b'[', ..]);
    }
    is_marked(text) || matches!(behind_comments(text), [b'{' | b'[', ..])
}

/// How much of a text with zeros between its characters is checked, in bytes.
const WIDE: usize = 4096;

/// A text from the first character that no reader skips. Ruby's reader skips comments, too.
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

/// A text from the first character that isn't blank.
fn behind_blanks(mut text: &[u8]) -> &[u8] {
    loop {
        let longest = &text[..text.len().min(char::MAX.len_utf8())];
        let valid = longest.utf8_chunks().next().map(|chunk| chunk.valid());
        let skipped = match (valid.and_then(|valid| valid.chars().next()), text) {
            (Some(first), _) if is_blank(first) => first.len_utf8(),
            // White space in Latin-1.
            (None, [0x85 | 0xa0, ..]) => 1,
            _ => return text,
        };
        text = &text[skipped..];
    }
}

/// Whether some reader skips a character before a text, or takes it for white space: trimmed characters and
/// control characters.
pub(super) fn is_blank(character: char) -> bool {
    is_trimmed(character) || character.is_control()
}

/// Whether some reader trims a character from the ends of a text: white space, U+FEFF (JavaScript), and what
/// old Unicode (before 6.3) or old .NET counts as white space.
pub(super) fn is_trimmed(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{feff}' | '\u{180e}' | '\u{200b}')
}

// === impl PickedFields ===

impl<'b> PickedFields<'b> {
    /// The fields of a body that isn't known.
    pub(super) fn unknown() -> Self {
        Self::default()
    }

    /// Whether the body was read as JSON.
    pub(super) fn is_json(&self) -> bool {
        matches!(&self.members, Some(members) if !members.is_empty())
    }

    /// The fields of a body in which nothing is wanted or found.
    pub(super) fn nothing() -> Self {
        Self {
            members: Some(Vec::new()),
            fields: Some(Vec::new()),
            ..Self::default()
        }
    }

    /// The wanted fields of a form.
    fn from_form(
        kind: &BodyKind,
        text: &'b [u8],
        wanted: &TemplateFields,
    ) -> Result<Self, SessionError> {
        // Some readers drop it, and for others it is a part of the first name.
        if kind.is_form() && text.starts_with(b"\xef\xbb\xbf") {
            return malformed("a byte order mark stands before the form");
        }
        if *kind == BodyKind::Urlencoded && form::has_too_many(text) {
            return malformed(form::TOO_MANY);
        }
        let names = names(wanted, wanted.template_pointers());
        let fields = match kind {
            BodyKind::Multipart { boundary } => form::in_multipart(text, boundary, &names),
            _ => Ok(form::in_urlencoded(text, &names)),
        };
        let mut picked = Self::nothing();
        picked.set_fields(wanted, fields.map_err(SessionError::malformed)?);
        Ok(picked)
    }

    /// Takes over the fields that were found for [`names`].
    fn set_fields(&mut self, wanted: &TemplateFields, mut fields: Vec<Field<'b>>) {
        self.in_place_of_members = fields.split_off(wanted.form_fields.len());
        self.fields = Some(fields);
    }
}

#[cfg(test)]
mod tests;
