//! The values of templates in one request.
//!
//! Invariant: a value that two readers could understand in two ways is an error, and never a guess. What
//! another reader finds in another place is left to `elsewhere`.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::HeaderName;
use http::request::Parts;
use sha2::{Digest, Sha256};

use super::ambiguity::Ambiguity;
use super::content::{PickedFields, is_trimmed};
use super::error::SessionError;
use super::form::{self, Field};
use super::json::{self, JsonId, JsonMember};
use super::lookalike::{WantedName, header};
use crate::key::{Placeholder, Pointer, Source, Template, TemplatePart};
use crate::proxy::route::{Candidates, RouteMatch};

mod batch;
mod cookie;
mod elsewhere;

/// All that the values of templates are taken from.
pub(in crate::proxy) struct Sources<'r> {
    /// The request's head.
    pub(super) head: &'r Parts,
    /// The candidate route, and the path as it matched.
    pub(in crate::proxy) matched: &'r RouteMatch<'r>,
    /// All routes that may take the request; `matched` is one of them.
    pub(super) candidates: &'r Candidates<'r>,
    /// What the route wants of the body, as far as the body is known.
    pub(super) body: PickedFields<'r>,
}

/// The value of a template.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::proxy) enum TemplateValue<'r> {
    /// A text that isn't empty.
    Text(Cow<'r, str>),
    /// The request has no value there.
    Missing,
    /// The value can't be used. The reason.
    Unfit(String),
    /// The value depends on the body, which isn't known.
    NeedsBody,
}

/// Reads the JSON text of a member: as an id, or as a value that a condition is compared with.
type ReadMember = for<'t> fn(&'t str) -> JsonId<'t>;

// === impl Sources ===

impl<'r> Sources<'r> {
    /// The value of a template as an id.
    ///
    /// # Errors
    /// When two readers could find different values.
    pub(super) fn id_value<'s>(
        &'s self,
        template: &'s Template,
    ) -> Result<TemplateValue<'s>, SessionError> {
        fill(template, |placeholder| self.placeholder_value(placeholder))
    }

    /// The value of a condition's template. Its placeholders have no filters.
    ///
    /// # Errors
    /// When two readers could find different values.
    pub(in crate::proxy) fn condition_value<'s>(
        &'s self,
        template: &'s Template,
    ) -> Result<TemplateValue<'s>, SessionError> {
        fill(template, |placeholder| {
            self.source(&placeholder.source, json::scalar)
        })
    }

    /// The value of one placeholder of an id.
    ///
    /// # Errors
    /// When two readers could find different values.
    pub(in crate::proxy) fn placeholder_value<'s>(
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
        if let Some(what) = changed_by_some(&text) {
            return Ok(TemplateValue::Unfit(format!(
                "{{{placeholder}}} has {what}"
            )));
        }
        let text = match placeholder.filter {
            None => text,
            Some(filter) => match filter.apply(text) {
                Some(text) => text,
                None => {
                    let what = filter.what();
                    return Ok(TemplateValue::Unfit(format!(
                        "{{{placeholder}}} isn't a {what}"
                    )));
                }
            },
        };
        Ok(TemplateValue::Text(match placeholder.is_hashed {
            true => short_hash(text.as_bytes()).into(),
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

    /// The value of the member at any of the pointers.
    fn member<'s>(
        &'s self,
        source: &Source,
        pointers: &[Pointer],
        read: ReadMember,
    ) -> Result<TemplateValue<'s>, SessionError> {
        if self.body.members.is_none() {
            return Ok(TemplateValue::NeedsBody);
        }
        let members = pointers.iter().map(|pointer| self.at(pointer));
        Ok(match one_of(members, read) {
            Err(ambiguity) => return Err(SessionError::ambiguous(source, ambiguity)),
            Ok(JsonId::Missing) => TemplateValue::Missing,
            Ok(JsonId::Text(text)) => TemplateValue::Text(text),
            Ok(JsonId::Unfit(what)) => TemplateValue::Unfit(format!(
                "{{{source}}} is {what}; it takes text or a whole number"
            )),
        })
    }

    /// The member at a pointer.
    fn at(&self, pointer: &Pointer) -> JsonMember<'_> {
        let all = &self.matched.route.wanted.pointers;
        let index = all.iter().position(|wanted| wanted == pointer);
        let members = self.body.members.as_deref().unwrap_or_default();
        let member = index.and_then(|index| members.get(index));
        member.copied().unwrap_or(JsonMember::Missing)
    }

    /// The hash of a source's value. Of a member, it is the hash of its JSON text.
    fn hash(&self, source: &Source) -> Result<TemplateValue<'_>, SessionError> {
        let hashed = match source {
            Source::Body(pointers) => match self.member(source, pointers, json::raw)? {
                TemplateValue::Text(text) => Some(short_hash(text.as_bytes())),
                unresolved => return Ok(unresolved),
            },
            Source::Form(_) if self.body.fields.is_none() => return Ok(TemplateValue::NeedsBody),
            plain => self.bytes(plain)?.map(|bytes| short_hash(&bytes)),
        };
        Ok(hashed.map_or(TemplateValue::Missing, |digits| {
            TemplateValue::Text(digits.into())
        }))
    }

    /// The value of a source outside of JSON; `None` if it is missing or empty.
    fn bytes<'s>(&'s self, source: &'s Source) -> Result<Option<Cow<'s, [u8]>>, SessionError> {
        let field = match source {
            Source::Header(name) => self.in_header(name),
            Source::Cookie(name) => match cookie::value(self.head, name) {
                Ok(value) => value.map_or(Field::Missing, Field::Found),
                Err(ambiguity) => Field::Ambiguous(ambiguity),
            },
            // Some servers cut parameters off a path, and some read them as fields of the query.
            Source::Query(_) if self.has_parameters() => Field::Ambiguous(Ambiguity::QueryInPath),
            Source::Query(name) => self.in_query(WantedName::Field(name)),
            Source::Path(name) => self.in_path(name),
            Source::Form(name) => {
                let all = &self.matched.route.wanted.form_fields;
                let index = all.iter().position(|wanted| wanted == name);
                let fields = self.body.fields.as_deref().unwrap_or_default();
                match index.and_then(|index| fields.get(index)) {
                    Some(Field::Found(value)) => Field::Found(Cow::Borrowed(value)),
                    Some(Field::Ambiguous(ambiguity)) => Field::Ambiguous(*ambiguity),
                    Some(Field::Missing) | None => Field::Missing,
                }
            }
            Source::Body(_) => Field::Missing,
        };
        match field {
            Field::Missing => Ok(None),
            Field::Ambiguous(ambiguity) => Err(SessionError::ambiguous(source, ambiguity)),
            Field::Found(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        }
    }

    /// The header of this name.
    fn in_header(&self, name: &HeaderName) -> Field<'_> {
        match header(self.head, name) {
            Ok(Some(value)) => Field::Found(value.as_bytes().into()),
            Ok(None) => Field::Missing,
            Err(ambiguity) => Field::Ambiguous(ambiguity),
        }
    }

    /// The segment of the path with this name.
    fn in_path(&self, name: &str) -> Field<'_> {
        if let Some(ambiguity) = self.matched.ambiguity {
            return Field::Ambiguous(Ambiguity::Path(ambiguity));
        }
        match self.matched.segment(name) {
            // Some routers read `+` as a space, so that one id has two spellings.
            Some(value) if value.contains(&b' ') => Field::Ambiguous(Ambiguity::PathSpace),
            Some(value) => Field::Found(value),
            None => Field::Missing,
        }
    }

    /// The query's field of this name.
    fn in_query(&self, name: WantedName<'_>) -> Field<'_> {
        match self.head.uri.query() {
            Some(query) => form::in_query(query, name),
            None => Field::Missing,
        }
    }

    /// Whether the path has parameters (`;v=1`), percent-encoded or not.
    fn has_parameters(&self) -> bool {
        let path = self.head.uri.path();
        let is_encoded = |escape: &[u8]| escape.eq_ignore_ascii_case(b"%3b");
        path.contains(';') || path.contains('%') && path.as_bytes().windows(3).any(is_encoded)
    }
}

/// The member at any of several pointers; all that are there must be equal.
fn one_of<'b>(
    members: impl Iterator<Item = JsonMember<'b>>,
    read: ReadMember,
) -> Result<JsonId<'b>, Ambiguity> {
    let mut found = JsonId::Missing;
    for member in members {
        let text = match member {
            JsonMember::Missing => continue,
            JsonMember::Found(text) => text,
            JsonMember::Ambiguous(ambiguity) => return Err(ambiguity),
        };
        match (read(text), &found) {
            (JsonId::Missing, _) => {}
            (id, JsonId::Missing) => found = id,
            (id, first) if id == *first => {}
            // The backend may read the other one.
            _ => return Err(Ambiguity::MembersDiffer),
        }
    }
    Ok(found)
}

/// Fills a template with the values of its placeholders. The first placeholder without a text is the
/// result.
fn fill<'s>(
    template: &'s Template,
    value: impl Fn(&'s Placeholder) -> Result<TemplateValue<'s>, SessionError>,
) -> Result<TemplateValue<'s>, SessionError> {
    // The common case, a single placeholder, needs no allocation.
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

/// What in an id some readers change: many trim the ends of a text, and Tornado reads control characters
/// as spaces. `None`: nothing.
fn changed_by_some(id: &str) -> Option<&'static str> {
    // Nearly every id. Without an exit in the loop, the compiler vectorizes it.
    if id
        .bytes()
        .fold(true, |all, byte| all & byte.is_ascii_graphic())
    {
        return None;
    }
    if id.contains(char::is_control) {
        return Some("a control character, which some backends read as a space");
    }
    let is_padded = id.starts_with(is_trimmed) || id.ends_with(is_trimmed);
    is_padded.then_some("white space at an end, which some backends take off")
}

/// The first 32 hex digits of the SHA-256 of these bytes.
fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16]
        .iter()
        .fold(String::with_capacity(32), |mut digits, byte| {
            // Writing to a string can't fail.
            let _ = write!(digits, "{byte:02x}");
            digits
        })
}

/// The bytes as a text; `None`: they aren't UTF-8.
fn text(bytes: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match bytes {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}
