//! Values that a backend may find in another place than the one that a route names: in the query, which
//! some frameworks read before the body (Rails, `$_REQUEST` in PHP, Servlets), or in a body that it reads
//! as the other kind.
//!
//! Invariant: such a value is a second value, and makes an id ambiguous even if both are equal, because some
//! readers join them. Except where a candidate route names the other place: then the configuration says
//! which of them counts.

use std::borrow::Cow;

use super::Sources;
use crate::key::{Pointer, Source, Template, TemplateFields};
use crate::proxy::session::ambiguity::Ambiguity;
use crate::proxy::session::error::SessionError;
use crate::proxy::session::form::{self, Field};
use crate::proxy::session::json::{self, JsonId, JsonMember};
use crate::proxy::session::lookalike::{NameMatch, WantedName};

// === impl Sources ===

impl Sources<'_> {
    /// Checks that no backend finds a value of a template in another place.
    ///
    /// # Errors
    /// When a backend might.
    pub(in crate::proxy::session) fn only_here(
        &self,
        template: &Template,
    ) -> Result<(), SessionError> {
        for source in template.sources() {
            if self.elsewhere(source) != Field::Missing {
                return Err(SessionError::ambiguous(source, self.why_elsewhere(source)));
            }
        }
        Ok(())
    }

    /// Checks that a condition holds, or doesn't, also for a backend that finds its value in another place.
    /// `is_meant` says whether the condition holds for a text.
    ///
    /// # Errors
    /// When the results could differ.
    pub(in crate::proxy::session) fn agrees_elsewhere(
        &self,
        template: &Template,
        holds: bool,
        is_meant: impl Fn(&[u8]) -> bool,
    ) -> Result<(), SessionError> {
        let is_bare = template.is_bare();
        for source in template.sources() {
            match self.elsewhere(source) {
                Field::Missing => {}
                Field::Found(text) if is_bare && is_meant(&text) == holds => {}
                _ => return Err(SessionError::ambiguous(source, self.why_elsewhere(source))),
            }
        }
        Ok(())
    }

    /// Checks that no reader of forms finds the members of a template in JSON that doesn't have them: Bottle
    /// looks for fields in any body. Only for the session id, without which a turn isn't locked: text that
    /// people send may look like any field.
    ///
    /// # Errors
    /// When a reader of forms might.
    pub(in crate::proxy::session) fn not_in_form(
        &self,
        template: &Template,
    ) -> Result<(), SessionError> {
        let Some(text) = self.body.json else {
            return Ok(());
        };
        for source in template.sources() {
            let Source::Body(pointers) = source else {
                continue;
            };
            let names: Vec<_> = pointers.iter().map(WantedName::Member).collect();
            let fields = form::in_urlencoded(text, &names);
            if fields.iter().any(|field| *field != Field::Missing) {
                return Err(SessionError::ambiguous(source, Ambiguity::OnlyInForm));
            }
        }
        Ok(())
    }

    /// What another reader finds instead of a source's value.
    fn elsewhere(&self, source: &Source) -> Field<'_> {
        match source {
            // Nothing is beside the body.
            Source::Body(_)
                if self.head.uri.query().is_none() && self.body.in_place_of_members.is_empty() =>
            {
                Field::Missing
            }
            Source::Body(pointers) => pointers.iter().fold(Field::Missing, |found, pointer| {
                found
                    .and(self.beside(WantedName::Member(pointer)))
                    .and(self.in_place_of_member(pointer))
            }),
            Source::Form(name) => {
                let beside = self.beside(WantedName::Field(name));
                beside.and(self.in_place_of_field(name))
            }
            _ => Field::Missing,
        }
    }

    /// Where the other value of a source is.
    fn why_elsewhere(&self, source: &Source) -> Ambiguity {
        let is_in_query = match source {
            Source::Body(pointers) => {
                let mut names = pointers.iter().map(WantedName::Member);
                names.any(|name| self.beside(name) != Field::Missing)
            }
            Source::Form(name) => self.beside(WantedName::Field(name)) != Field::Missing,
            _ => false,
        };
        match source {
            _ if is_in_query => Ambiguity::AlsoInQuery,
            Source::Form(_) => Ambiguity::JsonForForm,
            _ if self.body.is_json() => Ambiguity::AlsoInForm,
            _ => Ambiguity::FormForJson,
        }
    }

    /// The query's field of this name, unless a candidate route names that field itself.
    fn beside(&self, name: WantedName<'_>) -> Field<'_> {
        match self.in_query(name) {
            Field::Missing => Field::Missing,
            _ if self.is_named(|wanted| has(&wanted.query_fields, name)) => Field::Missing,
            found => found,
        }
    }

    /// What a reader of forms finds instead of a member.
    fn in_place_of_member(&self, pointer: &Pointer) -> Field<'_> {
        let all = self.matched.route.wanted.template_pointers();
        let mut found = all.iter().zip(&self.body.in_place_of_members);
        let found = found.find(|(asked, _)| *asked == pointer);
        let name = WantedName::Member(pointer);
        // In a form it is the very field that a route names; in JSON it is a second value.
        let is_named = || self.is_named(|wanted| has(&wanted.form_fields, name));
        match found.map(|(_, found)| found) {
            None | Some(Field::Missing) => Field::Missing,
            _ if !self.body.is_json() && is_named() => Field::Missing,
            Some(found) => found.clone(),
        }
    }

    /// What a reader of JSON finds instead of a field.
    fn in_place_of_field(&self, name: &str) -> Field<'_> {
        let pointer = Pointer::to_member(name);
        let all = &self.matched.route.wanted.pointers;
        let index = all.iter().position(|known| *known == pointer);
        let members = self.body.members.as_deref().unwrap_or_default();
        match index.and_then(|index| members.get(index)) {
            None | Some(JsonMember::Missing) => Field::Missing,
            _ if self.is_named(|wanted| wanted.template_pointers().contains(&pointer)) => {
                Field::Missing
            }
            Some(JsonMember::Ambiguous(ambiguity)) => Field::Ambiguous(*ambiguity),
            Some(JsonMember::Found(text)) => match json::scalar(text) {
                JsonId::Missing => Field::Missing,
                JsonId::Text(Cow::Borrowed(text)) => Field::Found(text.as_bytes().into()),
                JsonId::Text(Cow::Owned(text)) => Field::Found(text.into_bytes().into()),
                JsonId::Unfit(_) => Field::Ambiguous(Ambiguity::JsonForForm),
            },
        }
    }

    /// Whether one of the candidate routes names a place.
    fn is_named(&self, names: impl Fn(&TemplateFields) -> bool) -> bool {
        let mut candidates = self.candidates.iter();
        candidates.any(|candidate| names(&candidate.route.wanted))
    }
}

/// Whether some reader takes one of these fields for the wanted name.
fn has(fields: &[Box<str>], name: WantedName<'_>) -> bool {
    let mut compared = fields.iter().map(|field| name.compare(field.as_bytes()));
    compared.any(|found| found != NameMatch::Other)
}
