//! From a request and its candidate routes to the route that takes it, and its session key.
//!
//! Invariant: the proxy never finds another session than the backend does. What two readers could
//! understand in two ways is refused and not interpreted: a member that is there twice or in another
//! case, a header with two values, a body that is JSON and a form.
//!
//! `decide` decides, and `load` loads the body if the decision depends on it. Below them: `sources` has
//! the values of templates, `content` picks what a route wants of a body, `body_kind` says what the body is
//! declared as, `json` and `form` read it, `lookalike` compares names, `ambiguity` has the reasons. Routes are
//! matched in `route`.

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;

use super::route::Candidates;
use crate::config::Limits;
use crate::key::{OnceId, OnceKey};
use decide::{Decision, decide};
use work_limit::BodySize;

pub(super) use content::BodyContent;
pub(super) use decide::NeededLock;
pub(super) use error::SessionError;
pub(super) use load::{ReadBounds, RequestBody, UnreadBody};
pub(super) use observer::{IdKind, Observer};
pub(super) use sources::{Sources, TemplateValue};

mod ambiguity;
mod body_kind;
mod content;
mod decide;
mod encoding;
mod error;
mod form;
mod json;
mod load;
mod lookalike;
mod observer;
mod parameters;
mod sources;
mod work_limit;

/// The result of [`read`].
#[derive(Debug)]
pub(super) struct SessionLookup<B> {
    /// The index of the candidate that takes or refuses the request. `None`: no candidate takes it.
    pub(super) index: Option<usize>,
    /// The id of the JSON-RPC call, as JSON text. `None`: there is none, or the route's error responses
    /// don't refer to it.
    pub(super) call_id: Option<Box<str>>,
    /// Why the request is refused, or what goes on to the backend.
    pub(super) session: Result<RequestSession<B>, SessionError>,
}

/// The session of a request that isn't refused, and the request's body.
#[derive(Debug)]
pub(super) struct RequestSession<B> {
    pub(super) lock: NeededLock,
    /// What tells whether the request repeats another one of its session; `None`: it takes no lock, or has no
    /// once id.
    pub(super) once: Option<OnceKey>,
    pub(super) body: RequestBody<B>,
}

/// Finds the candidate that takes a request, the request's session, and its once id. Reads the body only if that
/// depends on it, if the request has a once id, or if the route's error responses refer to the id of a call in it.
///
/// Dropping the future drops the body, and gives back what was counted for it.
pub(super) async fn read<B: UnreadBody, O: Observer>(
    head: &Parts,
    body: B,
    candidates: &Candidates<'_>,
    bounds: &ReadBounds<'_>,
    observer: &mut O,
) -> SessionLookup<B> {
    let lookup = find(head, body, candidates, bounds, observer).await;
    match lookup.once() {
        // Nearly every request: nothing is moved once more.
        None => lookup,
        // Boxed, as all that is rare here: every request's future would have room for it.
        Some(id) => {
            let id = id.clone();
            Box::pin(lookup.with_fingerprint(id, head, bounds)).await
        }
    }
}

/// Finds all that [`read`] finds but the fingerprint of the request.
async fn find<B: UnreadBody, O: Observer>(
    head: &Parts,
    body: B,
    candidates: &Candidates<'_>,
    bounds: &ReadBounds<'_>,
    observer: &mut O,
) -> SessionLookup<B> {
    let limits = bounds.limits;
    let decision = decide(
        head,
        &BodyContent::Unread,
        None,
        candidates,
        limits,
        observer,
    );
    let names_call = decision.names_call(candidates);
    match decision {
        Decision::NeedsBody { index } => {
            let lookup = match bounds.load(head, body).await {
                Ok((content, body)) => {
                    let asked = Some(index);
                    decide_with_body(head, content, asked, body, candidates, limits, observer).await
                }
                Err(error) => Err(error),
            };
            lookup.unwrap_or_else(|error| SessionLookup::refused(index, None, error))
        }
        Decision::NeedsCallId { index, lock } => {
            // The whole body is read anyway.
            let is_once = lock.once().is_some();
            let loading = Box::pin(bounds.load_for_call_id(head, body, is_once));
            match loading.await {
                Ok((content, body)) => {
                    let call_id = call_id(content).await;
                    SessionLookup::new(Decision::Taken { index, lock }, call_id, body)
                }
                Err(error) => SessionLookup::refused(index, None, error),
            }
        }
        Decision::Refused { index, error } if names_call => {
            let call_id = match Box::pin(bounds.load_for_refusal(head, body)).await {
                Some(content) => call_id(content).await,
                None => None,
            };
            SessionLookup::refused(index, call_id, error)
        }
        decision => SessionLookup::new(decision, None, RequestBody::Unread(body)),
    }
}

/// The id of the JSON-RPC call in a body. `None`: there is none, or too many large bodies are read at the
/// moment.
async fn call_id(content: BodyContent) -> Option<Box<str>> {
    match BodySize::new(content.len()) {
        BodySize::Small => content.call_id(),
        size => {
            let reading = size.run(move || content.call_id());
            Box::pin(reading).await.ok().flatten()
        }
    }
}

/// Decides with what was loaded of the body for the candidate `asked`: a large body on a thread where no other
/// turn waits.
///
/// # Errors
/// When too many large bodies are read at the moment.
async fn decide_with_body<B: UnreadBody, O: Observer>(
    head: &Parts,
    content: BodyContent,
    asked: Option<usize>,
    body: RequestBody<B>,
    candidates: &Candidates<'_>,
    limits: &Limits,
    observer: &mut O,
) -> Result<SessionLookup<B>, SessionError> {
    let size = BodySize::new(content.len());
    if size == BodySize::Small {
        let decision = decide(head, &content, asked, candidates, limits, observer);
        let call_id = decision.names_call(candidates).then(|| content.call_id());
        return Ok(SessionLookup::new(decision, call_id.flatten(), body));
    }
    let (head, limits, candidates) = (head.clone(), *limits, candidates.to_static());
    let mut taken = std::mem::take(observer);
    // The body goes along: it counts for as long as it is read, even if its client has left.
    let work = move || {
        let decision = decide(&head, &content, asked, &candidates, &limits, &mut taken);
        let call_id = decision.names_call(&candidates).then(|| content.call_id());
        (SessionLookup::new(decision, call_id.flatten(), body), taken)
    };
    let (lookup, taken) = Box::pin(size.run(work)).await?;
    *observer = taken;
    Ok(lookup)
}

// === impl SessionLookup ===

impl<B: UnreadBody> SessionLookup<B> {
    /// Adds the fingerprint of a request with this once id. Reads its body, if that hasn't been done.
    async fn with_fingerprint(mut self, id: OnceId, head: &Parts, bounds: &ReadBounds<'_>) -> Self {
        if let Ok(session) = self.session {
            self.session = session.with_fingerprint(id, head, bounds).await;
        }
        self
    }
}

impl<B> SessionLookup<B> {
    /// The id by which a repeat of the request is recognised; `None`: it has none, or is refused.
    fn once(&self) -> Option<&OnceId> {
        self.session.as_ref().ok()?.lock.once()
    }

    fn new(decision: Decision, call_id: Option<Box<str>>, body: RequestBody<B>) -> Self {
        let (index, lock) = match decision {
            Decision::Taken { index, lock } | Decision::NeedsCallId { index, lock } => {
                (Some(index), lock)
            }
            Decision::Unmatched => (None, NeededLock::Unneeded),
            Decision::Refused { index, error } => return Self::refused(index, call_id, error),
            // `decide` asks for the body only where it isn't known.
            Decision::NeedsBody { index } => {
                let error = SessionError::malformed("it was not loaded");
                return Self::refused(index, call_id, error);
            }
        };
        Self {
            index,
            call_id,
            session: Ok(RequestSession {
                lock,
                once: None,
                body,
            }),
        }
    }

    fn refused(index: usize, call_id: Option<Box<str>>, error: SessionError) -> Self {
        Self {
            index: Some(index),
            call_id,
            session: Err(error),
        }
    }
}

// === impl RequestSession ===

impl<B: UnreadBody> RequestSession<B> {
    async fn with_fingerprint(
        mut self,
        id: OnceId,
        head: &Parts,
        bounds: &ReadBounds<'_>,
    ) -> Result<Self, SessionError> {
        self.body = bounds.load_as_sent(self.body).await?;
        let body = self.body.read().cloned().unwrap_or_default();
        self.once = Some(fingerprinted(id, head, body).await?);
        Ok(self)
    }
}

/// A once id with the fingerprint of its request, whose body as it was sent is `body`.
///
/// # Errors
/// When too many large bodies are read at the moment.
async fn fingerprinted(id: OnceId, head: &Parts, body: Bytes) -> Result<OnceKey, SessionError> {
    let size = BodySize::new(body.len());
    let (method, uri) = (head.method.clone(), head.uri.clone());
    let work = move || {
        let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
        id.with_request(method.as_str(), target, &body)
    };
    match size {
        BodySize::Small => Ok(work()),
        size => size.run(work).await,
    }
}
