//! Conditions on a member of a body that is a batch: a list of requests (JSON-RPC 2.0 §6), of which a backend
//! handles each.
//!
//! Invariant: a batch passes a condition of a route that locks only if no reader could find a value of the
//! condition in any of its requests. A batch in which readers could differ is ambiguous, as is one with an
//! element that isn't an object.

use super::{Sources, one_of};
use crate::key::{Source, Template};
use crate::proxy::session::ambiguity::Ambiguity;
use crate::proxy::session::error::SessionError;
use crate::proxy::session::json::{self, JsonId, JsonMember};

// === impl Sources ===

impl Sources<'_> {
    /// Whether a condition holds for a batch. `None`: the body is no batch with a member of this template, or
    /// the template is more than a member.
    ///
    /// A route that locks doesn't take a batch: the condition doesn't hold, or the request is refused. A route
    /// that doesn't lock takes a batch if the condition holds for each request.
    ///
    /// # Errors
    /// When a request of the batch may be a turn, or two readers could find different values in it.
    pub(in crate::proxy::session) fn holds_in_batch(
        &self,
        template: &Template,
        is_meant: impl Fn(&[u8]) -> bool,
    ) -> Option<Result<bool, SessionError>> {
        let text = self.body.batch?;
        let source = template.sources().next().filter(|_| template.is_bare())?;
        let Source::Body(pointers) = source else {
            return None;
        };
        let in_batch = JsonMember::Ambiguous(Ambiguity::MemberInBatch);
        let is_in_batch = pointers.iter().any(|pointer| self.at(pointer) == in_batch);
        if !is_in_batch || pointers.iter().any(json::leads_to_element) {
            return None;
        }
        let locks = self.matched.route.turn.is_some();
        let mut holds = Ok(!locks);
        let is_list = json::in_each_request(text, pointers, |members| {
            let is_it = match one_of(members.iter().copied(), json::scalar) {
                Err(ambiguity) => {
                    holds = Err(ambiguity);
                    return false;
                }
                Ok(JsonId::Text(text)) => is_meant(text.as_bytes()),
                Ok(JsonId::Missing | JsonId::Unfit(_)) => false,
            };
            match (locks, is_it) {
                (true, true) => holds = Err(Ambiguity::TurnInBatch),
                (false, false) => holds = Ok(false),
                (true, false) | (false, true) => {}
            }
            holds.is_ok()
        });
        let holds = match is_list {
            Some(_) => holds,
            None => Err(Ambiguity::MemberInBatch),
        };
        Some(holds.map_err(|ambiguity| SessionError::ambiguous(source, ambiguity)))
    }
}
