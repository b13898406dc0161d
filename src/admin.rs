//! What operators ask, on a listener of its own. Whether the process lives, whether it is ready and
//! what it has counted names no session, and is open to whoever can reach it; so is the page, which
//! holds no data. The rest is for whom [`AccessPolicy`] lets.
//!
//! Invariant: what is refused has done nothing, and whatever changes a lock is told in the log.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;

use crate::drain::DrainWatch;
use crate::key;
use crate::lock::{Instance, Operator, StoreError};
use crate::metrics::ExpositionFormat;
use access::AccessDenied;
pub use access::AccessPolicy;
use answer::{AdminError, AdminResponse, TEXT, text};
pub use status::StatusSource;

mod access;
mod answer;
mod locks;
mod page;
mod status;

/// Answers on the operator's listener.
#[derive(Debug)]
pub struct AdminServer {
    instance: Arc<Instance>,
    needs_store: bool,
    status: StatusSource,
    drain: DrainWatch,
    access: AccessPolicy,
    operator: Operator,
}

/// What there is to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AdminResource<'p> {
    Live,
    Ready,
    Metrics,
    Page,
    Status,
    Locks,
    /// A user's and a session's id, still encoded.
    Lock(&'p str, &'p str),
    /// The same.
    Interrupt(&'p str, &'p str),
}

// === impl Resource ===

impl<'p> AdminResource<'p> {
    fn at(path: &'p str) -> Option<Self> {
        let found = match path {
            "/livez" => Self::Live,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/" => Self::Page,
            "/status" => Self::Status,
            "/locks" => Self::Locks,
            path => {
                let mut steps = path.strip_prefix("/locks/")?.split('/');
                let (user, session) = (steps.next()?, steps.next()?);
                match (steps.next(), steps.next()) {
                    (None, None) => Self::Lock(user, session),
                    (Some("interrupt"), None) => Self::Interrupt(user, session),
                    _ => return None,
                }
            }
        };
        Some(found)
    }

    /// What can be done with it, as the header `allow` has it.
    fn methods(self) -> &'static str {
        match self {
            Self::Page | Self::Live | Self::Ready | Self::Metrics | Self::Status | Self::Locks => {
                "GET, HEAD"
            }
            Self::Lock(..) => "GET, HEAD, DELETE",
            Self::Interrupt(..) => "POST",
        }
    }

    fn is_open(self) -> bool {
        matches!(self, Self::Page | Self::Live | Self::Ready | Self::Metrics)
    }
}

// === impl Admin ===

impl AdminServer {
    /// Answers for this process. `needs_store`: whether its turns are refused while the store is out of
    /// reach.
    pub fn new(
        instance: Arc<Instance>,
        needs_store: bool,
        status: StatusSource,
        drain: DrainWatch,
        access: AccessPolicy,
        operator: Operator,
    ) -> Self {
        Self {
            instance,
            needs_store,
            status,
            drain,
            access,
            operator,
        }
    }

    /// Answers one request, of a client at `peer`.
    pub async fn handle<B>(
        &self,
        peer: Option<IpAddr>,
        request: Request<B>,
    ) -> Response<Full<Bytes>> {
        let (head, _) = request.into_parts();
        let Some(resource) = AdminResource::at(head.uri.path()) else {
            return not_found();
        };
        let methods = resource.methods();
        if !methods.split(", ").any(|method| head.method == method) {
            return not_allowed(methods);
        }
        if !resource.is_open()
            && let Err(denied) = self.access.check(&head).await
        {
            tell_denied(&denied, &head, peer);
            return denied.answer();
        }
        match resource {
            AdminResource::Live => text(StatusCode::OK, TEXT, "alive\n"),
            AdminResource::Ready => self.ready().await,
            AdminResource::Metrics => {
                let accept = head.headers.get(ACCEPT);
                let format = ExpositionFormat::wanted(accept.and_then(|value| value.to_str().ok()));
                let all = self.status.metrics.text(format);
                text(StatusCode::OK, format.content_type(), all)
            }
            AdminResource::Page => page::answer(),
            AdminResource::Status => {
                let said = self.status.json(self.instance.name(), &self.drain);
                answer::written(StatusCode::OK, said)
            }
            AdminResource::Locks => locks::list(&self.operator, &head).await,
            AdminResource::Lock(user, session) => {
                let ids = (user, session);
                match head.method {
                    Method::DELETE => locks::release(&self.operator, &head, peer, ids).await,
                    _ => locks::show(&self.operator, &head, ids).await,
                }
            }
            AdminResource::Interrupt(user, session) => {
                locks::interrupt(&self.operator, &head, peer, (user, session)).await
            }
        }
    }

    async fn ready(&self) -> AdminResponse {
        let unready = |why: String| text(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n");
        if self.drain.is_draining() {
            return unready("draining".into());
        }
        // Without a sign of life to be given, nobody else would have noticed.
        if self.needs_store && !self.status.health.is_up() {
            let said = self.instance.last_error().map(|error| error.to_string());
            return unready(said.unwrap_or_else(|| "the store does not answer".into()));
        }
        match self.instance.wait_until_alive().await {
            Ok(()) => text(StatusCode::OK, TEXT, "ready\n"),
            // One whose name is another's now stays unready: it is not the store that is missing.
            Err(error) if !self.needs_store && !matches!(error, StoreError::NoHeartbeat { .. }) => {
                text(StatusCode::OK, TEXT, format!("ready, although {error}\n"))
            }
            Err(error) => unready(error.to_string()),
        }
    }
}

/// Whether a request asks how the process does, as Kubernetes does before it restarts one.
pub fn is_probe(path: &str) -> bool {
    matches!(
        AdminResource::at(path),
        Some(AdminResource::Live | AdminResource::Ready)
    )
}

/// What a call gets that comes while `most` of them are being answered.
pub fn overloaded(most: usize) -> Response<Full<Bytes>> {
    let fault = AdminError {
        status: StatusCode::SERVICE_UNAVAILABLE,
        reason: "overloaded",
        error: "Too many calls at once",
        detail: format!("no more than {most} are answered at once; /livez and /readyz always are"),
    };
    fault.answer()
}

fn not_found() -> AdminResponse {
    let fault = AdminError {
        status: StatusCode::NOT_FOUND,
        reason: "not_found",
        error: "Nothing is here",
        detail: "there are /livez, /readyz, /metrics, /status and /locks, and the page at /".into(),
    };
    fault.answer()
}

fn not_allowed(methods: &'static str) -> AdminResponse {
    let fault = AdminError {
        status: StatusCode::METHOD_NOT_ALLOWED,
        reason: "method_not_allowed",
        error: "This can't be done here",
        detail: format!("here can be done {methods}"),
    };
    let mut answer = fault.answer();
    let methods = HeaderValue::from_static(methods);
    answer.headers_mut().insert(ALLOW, methods);
    answer
}

fn tell_denied(denied: &AccessDenied, head: &Parts, peer: Option<IpAddr>) {
    let peer = peer.map(tracing::field::display);
    if let AccessDenied::NoToken(error) = denied {
        tracing::error!(target: "seriatim::audit", %error, "admin.token_file can't be used; whoever needs the token is refused");
    }
    tracing::warn!(
        target: "seriatim::audit",
        method = key::shown_method(head.method.as_str()),
        path = &*key::shown(head.uri.path()),
        by = peer,
        why = denied.word(),
        "operator refused"
    );
}
