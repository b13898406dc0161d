//! What the sources of a template come to in one request.
//!
//! A value that two readers could understand in two ways is refused here, never guessed.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::request::Parts;
use sha2::{Digest, Sha256};

use super::content::{PickedFields, is_trimmed};
use super::form::{self, Field};
use super::json::{self, JsonId, JsonMember};
use super::lookalike::{WantedName, has_twin};
use super::{SessionError, TWO_HEADERS};
use crate::key::{Placeholder, Pointer, Source, Template, TemplatePart};
use crate::proxy::route::{Candidates, RouteMatch};

mod cookie;
mod elsewhere;

/// All that values are taken from.
pub(super) struct Sources<'r> {
    pub(super) head: &'r Parts,
    pub(super) matched: &'r RouteMatch<'r>,
    /// All routes that may take the request, of which that is one.
    pub(super) candidates: &'r Candidates<'r>,
    /// What the route asks of the body, as far as it is known.
    pub(super) body: PickedFields<'r>,
}

/// What a template comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TemplateValue<'r> {
    Text(Cow<'r, str>),
    Missing,
    /// It is there, and is no text. Why not.
    Unfit(String),
    /// It can't be said before the body is read.
    NeedsBody,
}

/// How the JSON text of a member is read: as an id, or as what a condition asks for.
type ReadMember = for<'t> fn(&'t str) -> JsonId<'t>;

// === impl Sources ===

impl<'r> Sources<'r> {
    /// What a template comes to as an id.
    ///
    /// # Errors
    /// When something could be read in two ways.
    pub(super) fn as_id<'s>(
        &'s self,
        template: &'s Template,
    ) -> Result<TemplateValue<'s>, SessionError> {
        fill(template, |placeholder| self.part_of_id(placeholder))
    }

    /// What a template comes to as what a condition asks for: a placeholder there has no filters.
    ///
    /// # Errors
    /// When something could be read in two ways.
    pub(super) fn as_asked<'s>(
        &'s self,
        template: &'s Template,
    ) -> Result<TemplateValue<'s>, SessionError> {
        fill(template, |placeholder| {
            self.source(&placeholder.source, json::scalar)
        })
    }

    /// What a placeholder comes to in an id.
    ///
    /// # Errors
    /// When something could be read in two ways.
    pub(super) fn part_of_id<'s>(
        &'s self,
        placeholder: &'s Placeholder,
    ) -> Result<TemplateValue<'s>, SessionError> {
        let source = &placeholder.source;
        if placeholder.is_hashed && placeholder.filter.is_none() {
            return self.hash(source);
        }
        let text = match self.source(source, json::id)? {
            TemplateValue::Text(text) => text,
            unresolved => return Ok(unresolved),
        };
        if let Some(why) = unfit(&text) {
            return Ok(TemplateValue::Unfit(format!("{{{placeholder}}} has {why}")));
        }
        let text = match placeholder.filter {
            None => text,
            Some(filter) => match filter.apply(text) {
                Some(text) => text,
                None => {
                    let what = filter.what();
                    return Ok(TemplateValue::Unfit(format!(
                        "{{{placeholder}}} is no {what}"
                    )));
                }
            },
        };
        Ok(TemplateValue::Text(match placeholder.is_hashed {
            true => first_digits(text.as_bytes()).into(),
            false => text,
        }))
    }

    fn source<'s>(
        &'s self,
        source: &'s Source,
        read: ReadMember,
    ) -> Result<TemplateValue<'s>, SessionError> {
        match source {
            Source::Body(pointers) => self.member(source, pointers, read),
            Source::Form(_) if self.body.fields.is_none() => Ok(TemplateValue::NeedsBody),
            plain => Ok(match self.bytes(plain)? {
                None => TemplateValue::Missing,
                Some(bytes) => match text(bytes) {
                    Some(text) => TemplateValue::Text(text),
                    None => TemplateValue::Unfit(format!("{{{plain}}} is not UTF-8")),
                },
            }),
        }
    }

    /// The member at whichever of the pointers it stands.
    fn member<'s>(
        &'s self,
        source: &Source,
        pointers: &[Pointer],
        read: ReadMember,
    ) -> Result<TemplateValue<'s>, SessionError> {
        let Some(members) = &self.body.members else {
            return Ok(TemplateValue::NeedsBody);
        };
        let mut found = JsonId::Missing;
        for pointer in pointers {
            let Some(text) = self.at(members, source, pointer)? else {
                continue;
            };
            match (read(text), &found) {
                (JsonId::Missing, _) => {}
                (id, JsonId::Missing) => found = id,
                (id, first) if id == *first => {}
                // The backend may take the other one.
                _ => return Err(ambiguous(source, "its places have different values")),
            }
        }
        Ok(match found {
            JsonId::Missing => TemplateValue::Missing,
            JsonId::Text(text) => TemplateValue::Text(text),
            JsonId::Unfit(what) => TemplateValue::Unfit(format!(
                "{{{source}}} is {what}; it takes text or a whole number"
            )),
        })
    }

    /// The raw text at a pointer.
    fn at<'s>(
        &self,
        members: &'s [JsonMember<'r>],
        source: &Source,
        pointer: &Pointer,
    ) -> Result<Option<&'s str>, SessionError> {
        let all = &self.matched.route.wanted.pointers;
        let index = all.iter().position(|wanted| wanted == pointer);
        match index.and_then(|index| members.get(index)) {
            None | Some(JsonMember::Missing) => Ok(None),
            Some(JsonMember::Found(text)) => Ok(Some(text)),
            Some(JsonMember::Ambiguous) => Err(ambiguous(
                source,
                "the member, or one on the way to it, is there twice, in another case, or in each request of \
                 a list",
            )),
        }
    }

    /// The hash of what a source gives: of a member, of its JSON text.
    fn hash(&self, source: &Source) -> Result<TemplateValue<'_>, SessionError> {
        let hashed = match source {
            Source::Body(pointers) => match self.member(source, pointers, json::raw)? {
                TemplateValue::Text(text) => Some(first_digits(text.as_bytes())),
                unresolved => return Ok(unresolved),
            },
            Source::Form(_) if self.body.fields.is_none() => return Ok(TemplateValue::NeedsBody),
            plain => self.bytes(plain)?.map(|bytes| first_digits(&bytes)),
        };
        Ok(hashed.map_or(TemplateValue::Missing, |digits| {
            TemplateValue::Text(digits.into())
        }))
    }

    /// What a source gives that is no JSON; `None` if it is missing or empty.
    fn bytes<'s>(&'s self, source: &'s Source) -> Result<Option<Cow<'s, [u8]>>, SessionError> {
        let field = match source {
            Source::Header(name) if has_twin(self.head, name) => Field::Ambiguous,
            Source::Header(name) => {
                let values = self.head.headers.get_all(name).iter();
                let values = values.map(|value| Field::Found(value.as_bytes().into()));
                values.fold(Field::Missing, Field::and)
            }
            Source::Cookie(name) => match cookie::value(self.head, name) {
                Ok(value) => value.map_or(Field::Missing, Field::Found),
                Err(cookie::AmbiguousCookie) => Field::Ambiguous,
            },
            // Some servers cut parameters off a path, and some take them for the query's.
            Source::Query(_) if self.has_parameters() => Field::Ambiguous,
            Source::Query(name) => self.in_query(WantedName::Field(name)),
            Source::Path(_) if self.matched.is_ambiguous() => Field::Ambiguous,
            Source::Path(name) => match self.matched.segment(name) {
                // Some routers take a `+` for it, and then there are two spellings of one id.
                Some(value) if value.contains(&b' ') => Field::Ambiguous,
                Some(value) => Field::Found(value),
                None => Field::Missing,
            },
            Source::Form(name) => {
                let all = &self.matched.route.wanted.form_fields;
                let index = all.iter().position(|wanted| wanted == name);
                let fields = self.body.fields.as_deref().unwrap_or_default();
                match index.and_then(|index| fields.get(index)) {
                    Some(Field::Found(value)) => Field::Found(Cow::Borrowed(value)),
                    Some(Field::Ambiguous) => Field::Ambiguous,
                    Some(Field::Missing) | None => Field::Missing,
                }
            }
            Source::Body(_) => Field::Missing,
        };
        match field {
            Field::Missing => Ok(None),
            Field::Ambiguous => Err(ambiguous(source, self.why_ambiguous(source))),
            Field::Found(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        }
    }

    /// Why a source that is no member of JSON is ambiguous.
    fn why_ambiguous(&self, source: &Source) -> &'static str {
        match source {
            Source::Header(_) => TWO_HEADERS,
            Source::Cookie(_) => {
                "the cookie is there more than once, under a name that some servers take for it, inside \
                 another one, beside a second cookie line, or with a value that servers read differently"
            }
            Source::Query(_) if self.has_parameters() => {
                "the path has parameters (a semicolon), which some servers take for the query's"
            }
            Source::Path(_) => {
                "the path has dots, doubled slashes, parameters, an encoded slash or a space, which servers \
                 read differently"
            }
            Source::Query(_) | Source::Form(_) | Source::Body(_) => {
                "the field is there more than once, under a name that some servers take for it, in JSON or a \
                 file, or with a value that servers decode differently"
            }
        }
    }

    /// What the query has under a name.
    fn in_query(&self, name: WantedName<'_>) -> Field<'_> {
        match self.head.uri.query() {
            Some(query) => form::in_query(query, name),
            None => Field::Missing,
        }
    }

    /// Whether the path has parameters (`;v=1`), encoded or not.
    fn has_parameters(&self) -> bool {
        let path = self.head.uri.path();
        let is_encoded = |escape: &[u8]| escape.eq_ignore_ascii_case(b"%3b");
        path.contains(';') || path.contains('%') && path.as_bytes().windows(3).any(is_encoded)
    }
}

/// What a template comes to with these values; the first of its placeholders that doesn't resolve
/// decides.
fn fill<'s>(
    template: &'s Template,
    value: impl Fn(&'s Placeholder) -> Result<TemplateValue<'s>, SessionError>,
) -> Result<TemplateValue<'s>, SessionError> {
    // A template that is one placeholder and nothing else is its value: the common case.
    if let [TemplatePart::Placeholder(placeholder)] = template.parts() {
        return value(placeholder);
    }
    let mut text = String::new();
    for part in template.parts() {
        match part {
            TemplatePart::Literal(literal) => text.push_str(literal),
            TemplatePart::Placeholder(placeholder) => match value(placeholder)? {
                TemplateValue::Text(value) => text.push_str(&value),
                unresolved => return Ok(unresolved),
            },
        }
    }
    Ok(TemplateValue::Text(text.into()))
}

/// What some reader of an id takes for something else: the ends of a text are trimmed by many, and
/// Tornado reads control characters within it as spaces.
fn unfit(id: &str) -> Option<&'static str> {
    if id.contains(char::is_control) {
        return Some("a control character, which backends may take for a space");
    }
    let is_padded = id.starts_with(is_trimmed) || id.ends_with(is_trimmed);
    is_padded.then_some("white space at an end, which backends may take off")
}

pub(super) fn ambiguous(source: &Source, why: &'static str) -> SessionError {
    SessionError::Ambiguous {
        source_name: format!("{{{source}}}"),
        why,
    }
}

/// The first 32 hex digits of the SHA-256.
fn first_digits(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16]
        .iter()
        .fold(String::with_capacity(32), |mut digits, byte| {
            // Writing to a string can't fail.
            let _ = write!(digits, "{byte:02x}");
            digits
        })
}

fn text(bytes: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match bytes {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}
