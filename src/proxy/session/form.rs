//! Fields of forms and of the query: what stands under a name in them.
//!
//! Owns the proxy's whole notion of fields. Invariant: where a field is [`Field::Found`], every reader
//! that a backend may use finds this very value under that name, and where it is [`Field::Missing`],
//! none finds any. Readers differ on names that are spelt almost alike (`lookalike`), on which of two
//! values counts, on what divides fields, on charsets, and on parts of a form that are described twice;
//! so any of these about a wanted name makes it [`Field::Ambiguous`], and a body that falls into other
//! parts for another reader is refused whole.
//!
//! It leaves out: which bodies are a form (`kind`), and files. One under a wanted name is no value for
//! the field, and makes it ambiguous.

use std::borrow::Cow;

use memchr::memmem;

use super::lookalike::{NameMatch, WantedName};

pub(super) use urlencoded::decoded;

mod multipart;
mod urlencoded;

#[cfg(test)]
mod tests;

/// What stands under a name in a form or a query.
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
    names: &'n [WantedName<'n>],
    /// As long as the names.
    found: &'n mut [Field<'b>],
}

/// How many fields a form may have. Django, Starlette, Express and multer refuse more, and PHP sees no
/// more: what stands behind them is a field to some readers only.
const MOST_FIELDS: usize = 1000;

/// Why a form with more fields is refused.
pub(super) const TOO_MANY: &str = "it has more than 1000 fields";

/// What a query has under a name.
pub(super) fn in_query<'b>(query: &'b str, name: WantedName<'_>) -> Field<'b> {
    let mut found = [Field::Missing];
    urlencoded::read(
        query.as_bytes(),
        &mut Fields {
            names: &[name],
            found: &mut found,
        },
    );
    let [found] = found;
    found
}

/// What a urlencoded body has under each of the names, in their order.
pub(super) fn in_urlencoded<'b>(body: &'b [u8], names: &[WantedName<'_>]) -> Vec<Field<'b>> {
    let mut found = vec![Field::Missing; names.len()];
    urlencoded::read(
        body,
        &mut Fields {
            names,
            found: &mut found,
        },
    );
    found
}

/// Whether a urlencoded body has more fields than readers take.
pub(super) fn has_too_many(body: &[u8]) -> bool {
    memchr::memchr2_iter(b'&', b';', body)
        .nth(MOST_FIELDS - 1)
        .is_some()
}

/// What a multipart body has under each of the names, in their order.
///
/// # Errors
/// When the body isn't such a form, or is one that readers divide in different ways.
pub(super) fn in_multipart<'b>(
    body: &'b [u8],
    boundary: &[u8],
    names: &[WantedName<'_>],
) -> Result<Vec<Field<'b>>, &'static str> {
    let mut found = vec![Field::Missing; names.len()];
    multipart::read(
        body,
        boundary,
        &mut Fields {
            names,
            found: &mut found,
        },
    )?;
    Ok(found)
}

/// Whether a boundary stands anywhere in a body, as the loosest readers look for it.
pub(super) fn has_boundary(body: &[u8], boundary: &[u8]) -> bool {
    memmem::find(body, &[b"--", boundary].concat()).is_some()
}

// === impl Field ===

impl Field<'_> {
    /// What it is together with another one of its name. Readers take the first of two values, the last,
    /// a list of them or both as one text, even where they are equal.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Missing, only) | (only, Self::Missing) => only,
            _ => Self::Ambiguous,
        }
    }
}

// === impl Fields ===

impl<'b> Fields<'_, 'b> {
    /// Notes a field. `value` is asked for only if its name is wanted; `None`: readers would disagree
    /// about it.
    fn note(&mut self, name: &[u8], value: impl Fn() -> Option<Cow<'b, [u8]>>) {
        for (wanted, found) in self.names.iter().zip(&mut *self.found) {
            let value = match wanted.likeness(name) {
                NameMatch::Other => continue,
                NameMatch::Alike => None,
                NameMatch::Same => value(),
            };
            let value = value.map_or(Field::Ambiguous, Field::Found);
            *found = std::mem::replace(found, Field::Missing).and(value);
        }
    }
}
