//! Templates, `session_{hash:body:/input}`: how an id is put together from parts of a request.

use std::fmt;

use super::error::TemplateError;
use super::filter::Placeholder;
use super::source::Source;

/// Literal text and sources in braces, such as `session_{hash:body:/input}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Box<[TemplatePart]>,
}

/// One part of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Text that is copied as it is.
    Literal(Box<str>),
    /// A source in braces, whose value is inserted.
    Placeholder(Placeholder),
}

/// One part of a template's text: what is outside of braces, or what is inside.
pub(super) enum Piece<'t> {
    Literal(&'t str),
    Braced(&'t str),
}

// === impl Template ===

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// When braces don't match, or a source is unknown or incomplete.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let parts = split(text)?
            .into_iter()
            .map(|piece| match piece {
                Piece::Literal(text) => Ok(TemplatePart::Literal(text.into())),
                Piece::Braced(text) => Placeholder::parse(text).map(TemplatePart::Placeholder),
            })
            .collect::<Result<Box<[_]>, _>>()?;
        if parts.is_empty() {
            return Err(TemplateError::Empty);
        }
        Ok(Self { parts })
    }

    /// The parts, in the template's order.
    pub fn parts(&self) -> &[TemplatePart] {
        &self.parts
    }

    /// Whether the template is a single source, with neither literal text nor filters.
    pub fn is_bare(&self) -> bool {
        matches!(&*self.parts, [TemplatePart::Placeholder(placeholder)] if placeholder.is_plain())
    }

    /// The sources with their filters, without the literal text.
    pub fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.parts.iter().filter_map(|part| match part {
            TemplatePart::Literal(_) => None,
            TemplatePart::Placeholder(placeholder) => Some(placeholder),
        })
    }

    /// The sources without their filters, and without the literal text.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.placeholders().map(|placeholder| &placeholder.source)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                TemplatePart::Literal(text) => f.write_str(text)?,
                TemplatePart::Placeholder(placeholder) => write!(f, "{{{placeholder}}}")?,
            }
        }
        Ok(())
    }
}

/// Splits a template's text at its braces.
pub(super) fn split(text: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(['{', '}']) else {
            pieces.push(Piece::Literal(rest));
            break;
        };
        if rest.as_bytes()[at] == b'}' {
            return Err(TemplateError::Stray);
        }
        if at > 0 {
            pieces.push(Piece::Literal(&rest[..at]));
        }
        let end = rest[at..].find('}').ok_or(TemplateError::Unclosed)? + at;
        pieces.push(Piece::Braced(&rest[at + 1..end]));
        rest = &rest[end + 1..];
    }
    Ok(pieces)
}
