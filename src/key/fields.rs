//! What the templates of a route read from a request's body and query.

use super::source::{Pointer, Source};
use super::template::Template;

/// The fields of a request's body and query that some templates read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateFields {
    /// Members of a JSON body, each once: first those that templates read, then those that have the name
    /// of a form field, because a backend that reads JSON would find them in the field's place.
    pub pointers: Vec<Pointer>,
    /// How many of `pointers` templates read.
    pub template_pointer_count: usize,
    /// Names of form fields, each once.
    pub form_fields: Vec<Box<str>>,
    /// Names of query fields, each once.
    pub query_fields: Vec<Box<str>>,
}

// === impl TemplateFields ===

impl TemplateFields {
    /// Collects the fields that these templates read.
    pub fn from_templates<'t>(templates: impl IntoIterator<Item = &'t Template>) -> Self {
        let mut fields = Self::default();
        for source in templates.into_iter().flat_map(Template::sources) {
            match source {
                Source::Body(pointers) => {
                    pointers
                        .iter()
                        .for_each(|pointer| add_once(&mut fields.pointers, pointer));
                }
                Source::Form(name) => add_once(&mut fields.form_fields, name),
                Source::Query(name) => add_once(&mut fields.query_fields, name),
                Source::Header(_) | Source::Cookie(_) | Source::Path(_) => {}
            }
        }
        fields.template_pointer_count = fields.pointers.len();
        for name in &fields.form_fields {
            add_once(&mut fields.pointers, &Pointer::to_member(name));
        }
        fields
    }

    /// The members of a JSON body that templates read.
    pub fn template_pointers(&self) -> &[Pointer] {
        &self.pointers[..self.template_pointer_count]
    }

    /// Whether no template reads the body.
    pub fn is_without_body(&self) -> bool {
        self.pointers.is_empty()
    }
}

fn add_once<T: Clone + PartialEq>(list: &mut Vec<T>, item: &T) {
    if !list.contains(item) {
        list.push(item.clone());
    }
}
