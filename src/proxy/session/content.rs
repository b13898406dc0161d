//! A request's body as what it says: members of JSON, or fields of a form, and never both.
//!
//! Which of the two, the content type says, and is asked only for a route that names a field of a
//! form. Any other route reads JSON, whatever it is called.

use http::request::Parts;

use super::SessionError;
use super::form::{self, Field, Form};
use super::json::{self, Member};
use crate::key::Wanted;

/// The body of a request, as far as it is known.
#[derive(Debug)]
pub(super) enum Content<'b> {
    /// Nobody has looked at it.
    Unread,
    /// There is none.
    Empty,
    /// The whole of it, decoded.
    Text(&'b [u8]),
    /// It is encoded in a way that can't be read, or the encoding is broken.
    Unreadable(SessionError),
}

/// What a route asks of a body, in the order of its [`Wanted`]; of what isn't there at all, the
/// list is empty.
#[derive(Debug)]
pub(super) struct Picked<'b> {
    /// `None`: that depends on the body.
    pub(super) members: Option<Vec<Member<'b>>>,
    /// `None`: that depends on the body.
    pub(super) fields: Option<Vec<Field<'b>>>,
}

// === impl Content ===

impl<'b> Content<'b> {
    /// What is wanted of it.
    ///
    /// # Errors
    /// When it isn't what it should be.
    pub(super) fn pick(&self, head: &Parts, wanted: &Wanted) -> Result<Picked<'b>, SessionError> {
        let text = match self {
            Self::Unread => return Ok(Picked::by_head(head, wanted)),
            Self::Empty => return Ok(Picked::nothing()),
            Self::Unreadable(error) => return Err(error.clone()),
            Self::Text(text) => *text,
        };
        let form = match wanted.fields.is_empty() {
            true => None,
            false => form::declared(head)?,
        };
        let mut picked = Picked::nothing();
        match form {
            Some(form) => picked.fields = Some(form.pick(text, &wanted.fields)?),
            None if wanted.pointers.is_empty() => {}
            None => {
                let members = json::pick(text, &wanted.pointers);
                let members = members.map_err(|malformed| SessionError::Malformed {
                    why: malformed.to_string(),
                })?;
                picked.members = Some(members);
            }
        }
        Ok(picked)
    }
}

// === impl Picked ===

impl Picked<'_> {
    /// What can be said of a body by the request's head: a form has no members, and what is none
    /// has no fields.
    pub(super) fn by_head(head: &Parts, wanted: &Wanted) -> Self {
        let (mut members, mut fields) = (None, None);
        if !wanted.fields.is_empty() {
            match form::declared(head) {
                Ok(Some(Form::Multipart { .. } | Form::Urlencoded)) => members = Some(Vec::new()),
                Ok(None) => fields = Some(Vec::new()),
                // Nothing is known of it before it is refused.
                Err(_) => {}
            }
        }
        Self { members, fields }
    }

    /// Nothing of it.
    pub(super) fn nothing() -> Self {
        Self {
            members: Some(Vec::new()),
            fields: Some(Vec::new()),
        }
    }
}
