//! The admin interface: an HTTP API and a page for operators, on a listener of its own.
//!
//! `/livez`, `/readyz`, `/metrics` and the page contain no session data and are open to everyone who can
//! reach the listener. [`AccessPolicy`] decides who may call the rest. Invariant: a refused call changes
//! nothing, and every call that can change a lock is logged. The listener itself is in `app::admin_listener`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;

use crate::drain::DrainWatch;
use crate::lock::{Instance, Operator, StoreError};
use crate::metrics::ExpositionFormat;
use crate::redact;
use access::AccessDenied;
pub use access::AccessPolicy;
use response::{AdminError, AdminResponse, TEXT, text};
pub use status::StatusSource;

mod access;
mod locks;
mod page;
mod response;
mod status;

/// Handles requests to the admin interface.
#[derive(Debug)]
pub struct AdminServer {
    /// This process's instance.
    pub instance: Arc<Instance>,
    /// Whether turns are refused while the store is unreachable: then the process isn't ready without it.
    pub needs_store: bool,
    /// How long the store of a process that was ready may fail until the process isn't ready.
    pub unready_after: Duration,
    /// Where the status is read.
    pub status: StatusSource,
    /// Whether the process drains.
    pub drain: DrainWatch,
    /// Who may call what isn't open to everyone.
    pub access: AccessPolicy,
    /// Shows and changes the locks.
    pub operator: Operator,
}

/// What a path of the admin interface leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AdminResource<'p> {
    Live,
    Ready,
    Metrics,
    Page,
    Status,
    Locks,
    Lock(SessionPath<'p>),
    Interrupt(SessionPath<'p>),
    /// A request in the queue of a session; its id is still percent-encoded.
    Waiter(SessionPath<'p>, &'p str),
}

/// The ids in a path below `/locks`, still percent-encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SessionPath<'p> {
    user: &'p str,
    session: &'p str,
}

// === impl AdminResource ===

impl<'p> AdminResource<'p> {
    fn from_path(path: &'p str) -> Option<Self> {
        let found = match path {
            "/livez" => Self::Live,
            "/readyz" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/" => Self::Page,
            "/status" => Self::Status,
            "/locks" => Self::Locks,
            path => {
                let mut steps = path.strip_prefix("/locks/")?.split('/');
                let ids = SessionPath {
                    user: steps.next()?,
                    session: steps.next()?,
                };
                match (steps.next(), steps.next(), steps.next()) {
                    (None, None, None) => Self::Lock(ids),
                    (Some("interrupt"), None, None) => Self::Interrupt(ids),
                    (Some("queue"), Some(request), None) => Self::Waiter(ids, request),
                    _ => return None,
                }
            }
        };
        Some(found)
    }

    /// The methods that are allowed, in the form of the header `allow`.
    fn methods(self) -> &'static str {
        match self {
            Self::Lock(_) => "GET, HEAD, DELETE",
            Self::Interrupt(_) => "POST",
            Self::Waiter(..) => "DELETE",
            _ => "GET, HEAD",
        }
    }

    fn is_open(self) -> bool {
        matches!(self, Self::Page | Self::Live | Self::Ready | Self::Metrics)
    }
}

// === impl AdminServer ===

impl AdminServer {
    /// Handles one request from a client with the address `peer` (`None` over a Unix socket).
    pub async fn handle<B>(
        &self,
        peer: Option<IpAddr>,
        request: Request<B>,
    ) -> Response<Full<Bytes>> {
        let (head, _) = request.into_parts();
        let Some(resource) = AdminResource::from_path(head.uri.path()) else {
            return not_found();
        };
        let methods = resource.methods();
        if !methods.split(", ").any(|method| head.method == method) {
            return not_allowed(methods);
        }
        if !resource.is_open()
            && let Err(denied) = self.access.check(&head).await
        {
            log_denied(&denied, &head, peer);
            return denied.response();
        }
        match resource {
            AdminResource::Live => text(StatusCode::OK, TEXT, "alive\n"),
            AdminResource::Ready => self.ready().await,
            AdminResource::Metrics => {
                let accept = head.headers.get(ACCEPT);
                let format = ExpositionFormat::wanted(accept.and_then(|value| value.to_str().ok()));
                let metrics = self.status.metrics.text(format);
                text(StatusCode::OK, format.content_type(), metrics)
            }
            AdminResource::Page => page::response(),
            AdminResource::Status => {
                let status = self.status.json(self.instance.name(), &self.drain);
                response::json_text(StatusCode::OK, status)
            }
            AdminResource::Locks => locks::list(&self.operator, &head).await,
            AdminResource::Lock(ids) if head.method == Method::DELETE => {
                locks::release(&self.operator, &head, peer, ids).await
            }
            AdminResource::Lock(ids) => locks::show(&self.operator, &head, ids).await,
            AdminResource::Interrupt(ids) => {
                locks::interrupt(&self.operator, &head, peer, ids).await
            }
            AdminResource::Waiter(ids, request) => {
                locks::dequeue(&self.operator, &head, peer, ids, request).await
            }
        }
    }

    async fn ready(&self) -> AdminResponse {
        let (ready, unready) = (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE);
        let say = |status, line: String| text(status, TEXT, line + "\n");
        if self.drain.is_draining() {
            return say(unready, "draining".into());
        }
        let health = &self.status.health;
        if self.needs_store {
            health.wait_until_tested().await;
        }
        let heartbeat = match self.instance.last_error() {
            None if health.is_up() => self.instance.wait_until_alive().await.err(),
            // While the store is down, nothing is waited for.
            last => last,
        };
        // Other processes can serve, so this is no failure of the store.
        if let Some(error @ StoreError::NameTaken) = &heartbeat {
            let name = self.instance.name();
            return say(unready, format!("store.instance = {name:?}: {error}"));
        }
        let Some(problem) = health.problem(heartbeat.as_ref()) else {
            return say(ready, "ready".into());
        };
        let (error, limit) = (problem.error, self.unready_after);
        match problem.lasts {
            _ if !self.needs_store => say(ready, format!("ready, although {error}")),
            Some(lasts) if lasts < limit => {
                let seconds = lasts.as_secs();
                let since = format!("for {seconds} s; not ready after {limit:?}");
                say(ready, format!("ready, although {error} ({since})"))
            }
            _ => say(unready, error),
        }
    }
}

/// Whether a path is that of a probe, `/livez` or `/readyz`.
pub fn is_probe(path: &str) -> bool {
    matches!(
        AdminResource::from_path(path),
        Some(AdminResource::Live | AdminResource::Ready)
    )
}

/// The response to a call beyond `limit` concurrent calls.
pub fn overloaded(limit: usize) -> Response<Full<Bytes>> {
    let error = AdminError {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "overloaded",
        error: "Too many concurrent calls",
        detail: format!(
            "at most {limit} calls are answered at once; /livez and /readyz are always answered"
        ),
    };
    error.response()
}

fn not_found() -> AdminResponse {
    let error = AdminError {
        status: StatusCode::NOT_FOUND,
        code: "not_found",
        error: "Not found",
        detail: "the paths are /livez, /readyz, /metrics, /status, /locks, and / for the page"
            .into(),
    };
    error.response()
}

fn not_allowed(methods: &'static str) -> AdminResponse {
    let error = AdminError {
        status: StatusCode::METHOD_NOT_ALLOWED,
        code: "method_not_allowed",
        error: "Method not allowed",
        detail: format!("this path allows {methods}"),
    };
    let mut response = error.response();
    let methods = HeaderValue::from_static(methods);
    response.headers_mut().insert(ALLOW, methods);
    response
}

fn log_denied(denied: &AccessDenied, head: &Parts, peer: Option<IpAddr>) {
    let peer = peer.map(tracing::field::display);
    if let AccessDenied::NoToken(error) = denied {
        tracing::error!(target: "seriatim::audit", %error, "admin.token_file can't be used; calls that need the token are refused");
    }
    tracing::warn!(
        target: "seriatim::audit",
        method = redact::method(head.method.as_str()),
        path = &*redact::text(head.uri.path()),
        by = peer,
        reason = denied.code(),
        "access denied"
    );
}
