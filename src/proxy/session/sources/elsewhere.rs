//! What a backend may find in another place than the one that a route names: in the query, which some
//! frameworks read before the body (Rails, `$_REQUEST` in PHP, Servlets), or in a body that it reads as
//! the other kind.
//!
//! A route that names both places says itself which of them counts; so does a route that would take the
//! request otherwise. Anywhere else, what stands elsewhere is a second value: for an id, ambiguous even
//! where it is equal, as some readers join the two.

use std::borrow::Cow;

use super::{Sources, ambiguous};
use crate::key::{Pointer, Source, Template, TemplateFields};
use crate::proxy::session::SessionError;
use crate::proxy::session::form::{self, Field};
use crate::proxy::session::json::{self, JsonId, JsonMember};
use crate::proxy::session::lookalike::{NameMatch, WantedName};

/// Why a member of JSON can be read in two ways.
const IN_FORM: &str = "a server that reads the body as a form finds a field of its name in it; JSON is best \
                       sent as content-type: application/json";

// === impl Sources ===

impl Sources<'_> {
    /// Makes sure that no backend finds the value of a template elsewhere.
    ///
    /// # Errors
    /// When one might.
    pub(in crate::proxy::session) fn only_here(
        &self,
        template: &Template,
    ) -> Result<(), SessionError> {
        for source in template.sources() {
            if self.elsewhere(source) != Field::Missing {
                return Err(ambiguous(source, self.where_else(source)));
            }
        }
        Ok(())
    }

    /// Makes sure that a condition which `holds`, or doesn't, is no other one to a backend that finds its
    /// value elsewhere. `is_meant` says whether a text is a value that it asks for.
    ///
    /// # Errors
    /// When it might be.
    pub(in crate::proxy::session) fn agrees_elsewhere(
        &self,
        template: &Template,
        holds: bool,
        is_meant: impl Fn(&[u8]) -> bool,
    ) -> Result<(), SessionError> {
        let is_all = template.is_bare();
        for source in template.sources() {
            match self.elsewhere(source) {
                Field::Missing => {}
                Field::Found(text) if is_all && is_meant(&text) == holds => {}
                _ => return Err(ambiguous(source, self.where_else(source))),
            }
        }
        Ok(())
    }

    /// Makes sure that no reader of forms finds the members of a template in JSON that doesn't have them:
    /// Bottle looks for fields in any body. For the session alone, without which a turn isn't locked:
    /// text that people send has all kinds of fields in it.
    ///
    /// # Errors
    /// When one might.
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
                return Err(ambiguous(source, IN_FORM));
            }
        }
        Ok(())
    }

    /// What another reader finds in place of a source.
    fn elsewhere(&self, source: &Source) -> Field<'_> {
        match source {
            Source::Body(pointers) => pointers.iter().fold(Field::Missing, |found, pointer| {
                found
                    .and(self.beside(WantedName::Member(pointer)))
                    .and(self.in_place_of_member(pointer))
            }),
            Source::Form(name) => self
                .beside(WantedName::Field(name))
                .and(self.in_place_of_field(name)),
            _ => Field::Missing,
        }
    }

    /// Where a source stands elsewhere, and what to do about it.
    fn where_else(&self, source: &Source) -> &'static str {
        let is_in_query = match source {
            Source::Body(pointers) => {
                let mut names = pointers.iter().map(WantedName::Member);
                names.any(|name| self.beside(name) != Field::Missing)
            }
            Source::Form(name) => self.beside(WantedName::Field(name)) != Field::Missing,
            _ => false,
        };
        match source {
            _ if is_in_query => "the query has a field of its name, which some servers read first",
            Source::Form(_) => "the body is JSON with a member of its name",
            _ => IN_FORM,
        }
    }

    /// What the query has beside a body.
    fn beside(&self, name: WantedName<'_>) -> Field<'_> {
        match self.in_query(name) {
            Field::Missing => Field::Missing,
            _ if self.is_named(|wanted| has(&wanted.query_fields, name)) => Field::Missing,
            found => found,
        }
    }

    /// What a reader of forms finds in place of a member.
    fn in_place_of_member(&self, pointer: &Pointer) -> Field<'_> {
        let all = self.matched.route.wanted.template_pointers();
        let mut found = all.iter().zip(&self.body.in_place_of_members);
        match found
            .find(|(asked, _)| *asked == pointer)
            .map(|(_, found)| found)
        {
            None | Some(Field::Missing) => Field::Missing,
            // In a form it is the field that the route names, too; in JSON it is a second value.
            _ if !self.body.is_json()
                && self
                    .is_named(|wanted| has(&wanted.form_fields, WantedName::Member(pointer))) =>
            {
                Field::Missing
            }
            Some(found) => found.clone(),
        }
    }

    /// What a reader of JSON finds in place of a field.
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
            Some(JsonMember::Ambiguous) => Field::Ambiguous,
            Some(JsonMember::Found(text)) => match json::scalar(text) {
                JsonId::Missing => Field::Missing,
                JsonId::Text(Cow::Borrowed(text)) => Field::Found(text.as_bytes().into()),
                JsonId::Text(Cow::Owned(text)) => Field::Found(text.into_bytes().into()),
                JsonId::Unfit(_) => Field::Ambiguous,
            },
        }
    }

    /// Whether one of the routes that may take the request asks for it there.
    fn is_named(&self, asks: impl Fn(&TemplateFields) -> bool) -> bool {
        self.candidates
            .iter()
            .any(|candidate| asks(&candidate.route.wanted))
    }
}

/// Whether one of these fields is what a name is for.
fn has(fields: &[Box<str>], name: WantedName<'_>) -> bool {
    fields
        .iter()
        .any(|field| name.likeness(field.as_bytes()) != NameMatch::Other)
}
