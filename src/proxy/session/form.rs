//! Finds fields by name in forms and in the query.
//!
//! Invariant: where a field is [`Field::Found`], every reader that a backend may use finds this value under
//! that name, and where it is [`Field::Missing`], no reader finds any. Readers differ on names that are spelled
//! almost alike (`lookalike`), on which of two values counts, on what divides fields, on charsets, and on parts
//! of a form that are described twice. Each of these makes a wanted field [`Field::Ambiguous`]; a body that
//! readers divide into different parts is refused.
//!
//! Left out: which bodies are forms (`kind`), and files. A file under a wanted name makes the field ambiguous.

use std::borrow::Cow;

use memchr::memmem;

use super::ambiguity::Ambiguity;
use super::lookalike::{NameMatch, WantedName};

pub(super) use urlencoded::decoded;

mod multipart;
mod urlencoded;

#[cfg(test)]
mod tests;

/// The value of a name in a form or a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field<'b> {
    /// There is no field of this name.
    Missing,
    /// Readers could find different values.
    Ambiguous(Ambiguity),
    /// The field's value, decoded.
    Found(Cow<'b, [u8]>),
}

/// The wanted fields, and what has been found of them.
struct Fields<'n, 'b> {
    names: &'n [WantedName<'n>],
    /// The field for each of the names, in their order.
    found: &'n mut [Field<'b>],
}

/// How many fields a form may have. Django, Starlette, Express and multer refuse more, and PHP ignores the
/// rest: only some readers would find those fields.
const MAX_FIELDS: usize = 1000;

/// Why a form with more fields is refused.
pub(super) const TOO_MANY: &str = "it has more than 1000 fields";

/// Finds the field of this name in a query.
pub(super) fn in_query<'b>(query: &'b str, name: WantedName<'_>) -> Field<'b> {
    let mut found = [Field::Missing];
    urlencoded::read(query.as_bytes(), &mut Fields::new(&[name], &mut found));
    let [found] = found;
    found
}

/// Finds the field for each of the names, in their order, in a urlencoded body.
pub(super) fn in_urlencoded<'b>(body: &'b [u8], names: &[WantedName<'_>]) -> Vec<Field<'b>> {
    let mut found = vec![Field::Missing; names.len()];
    urlencoded::read(body, &mut Fields::new(names, &mut found));
    found
}

/// Whether a urlencoded body has more fields than all readers accept.
pub(super) fn has_too_many(body: &[u8]) -> bool {
    memchr::memchr2_iter(b'&', b';', body)
        .nth(MAX_FIELDS - 1)
        .is_some()
}

/// Finds the field for each of the names, in their order, in a multipart body.
///
/// # Errors
/// When the body isn't such a form, or readers would divide it in different ways.
pub(super) fn in_multipart<'b>(
    body: &'b [u8],
    boundary: &[u8],
    names: &[WantedName<'_>],
) -> Result<Vec<Field<'b>>, &'static str> {
    let mut found = vec![Field::Missing; names.len()];
    multipart::read(body, boundary, &mut Fields::new(names, &mut found))?;
    Ok(found)
}

/// Whether a boundary is anywhere in a body: the loosest readers don't need it on a line of its own.
pub(super) fn has_boundary(body: &[u8], boundary: &[u8]) -> bool {
    memmem::find(body, &[b"--", boundary].concat()).is_some()
}

// === impl Field ===

impl Field<'_> {
    /// Combines two fields of one name. Of two values, even equal ones, readers take the first, the last, a
    /// list of both, or both as one text.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Missing, only) | (only, Self::Missing) => only,
            (Self::Ambiguous(ambiguity), _) | (_, Self::Ambiguous(ambiguity)) => {
                Self::Ambiguous(ambiguity)
            }
            (Self::Found(_), Self::Found(_)) => Self::Ambiguous(Ambiguity::FieldTwice),
        }
    }
}

// === impl Fields ===

impl<'n, 'b> Fields<'n, 'b> {
    fn new(names: &'n [WantedName<'n>], found: &'n mut [Field<'b>]) -> Self {
        Self { names, found }
    }

    /// Adds a field of the body. `value` is called only if the name is wanted; it fails where readers would
    /// disagree about the value.
    fn add(&mut self, name: &[u8], value: impl Fn() -> Result<Cow<'b, [u8]>, Ambiguity>) {
        for (wanted, found) in self.names.iter().zip(&mut *self.found) {
            let value = match wanted.compare(name) {
                NameMatch::Other => continue,
                NameMatch::Alike => Err(Ambiguity::FieldAlike),
                NameMatch::Same => value(),
            };
            let value = value.map_or_else(Field::Ambiguous, Field::Found);
            *found = std::mem::replace(found, Field::Missing).and(value);
        }
    }
}
