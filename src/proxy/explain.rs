//! What the proxy would do with a request, and why, without sending it anywhere.
//!
//! Invariant: the request goes through the proxy's own code up to its lock, with a [`Recorder`] that
//! observes each decision. Left out is what depends on other requests and on time: the body is there
//! at once, and no other body takes room from it.

use std::convert::Infallible;

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http_body_util::combinators::MapErr;
use http_body_util::{BodyExt as _, Full};

use super::body_timer::BodyLimits;
use super::forward::headers;
use super::keep_alive::reads_events;
use super::refusal::Refusal;
use super::route::{Candidates, Router};
use super::session::{self, NeededLock, ReadBounds, UnreadBody};
use crate::budget::Budget;
use crate::config::{Config, LockConfig, Route, SessionAction, Unmatched};
use crate::listen::check_head;
use crate::outcome::Outcome;
use recorder::Recorder;

pub use report::{
    ExplainedOutcome, ExplainedRequest, ExplainedTemplate, KeptClient, SkippedRoute,
    TemplateResult, UnmetCondition,
};

mod recorder;
mod report;

/// The body of a request that is explained.
type GivenBody = MapErr<Full<Bytes>, fn(Infallible) -> hyper::Error>;

impl UnreadBody for GivenBody {
    fn is_withheld(&self) -> bool {
        false
    }
}

fn never(error: Infallible) -> hyper::Error {
    match error {}
}

/// Explains what the proxy would do with a request. An empty `body` is a request without a body.
///
/// # Panics
/// When the body is large, and this runs outside of a tokio runtime with a timer.
pub async fn explain(config: &Config, mut head: Parts, body: Bytes) -> ExplainedRequest {
    let valid = check_http(&head, body.len());
    headers::clean_request(&mut head.headers, config.forwarded);
    let router = Router::new(&config.routes);
    let has_body = !body.is_empty();
    let checked = valid.and_then(|()| Refusal::check_head(&head));
    let candidates =
        checked.and_then(|()| router.route(&head, has_body).map_err(Refusal::BadRequest));
    let mut explained = ExplainedRequest {
        route: None,
        skipped: Vec::new(),
        templates: Vec::new(),
        outcome: ExplainedOutcome::Passes,
        once: None,
        keeps_client: None,
        is_preflight: false,
        body_error: None,
        decoded: 0,
    };
    let candidates = match candidates {
        Ok(candidates) => candidates,
        Err(refusal) => {
            explained.outcome = refused(&refusal);
            return explained;
        }
    };
    let bounds = ReadBounds {
        limits: &config.limits,
        body: BodyLimits::for_holder(&config.timeouts, &config.limits),
        budget: &Budget::default(),
    };
    let body: GivenBody = Full::new(body).map_err(never);
    let mut recorder = Recorder::default();
    let lookup = session::read(&head, body, &candidates, &bounds, &mut recorder).await;
    explained.decoded = recorder.decoded;
    let position = lookup.index.unwrap_or(usize::MAX);
    explained.skipped = skipped(
        config,
        &head,
        has_body,
        &candidates,
        position,
        &mut recorder,
    );
    let matched = candidates.iter().nth(position);
    if let Some(matched) = matched {
        explained.route = Some(matched.route.name.clone());
        // The router gives a preflight a copy of the route that takes no lock.
        let configured = &config.routes[matched.index];
        explained.is_preflight = matched.route.turn.is_none() && configured.turn.is_some();
        let mut record = recorder.take(matched.index);
        if let Err(error) = &lookup.session {
            record.body_error.get_or_insert_with(|| error.to_string());
        }
        explained.body_error.clone_from(&record.body_error);
        if let Some(turn) = &matched.route.turn {
            explained.templates = record.templates(turn);
            explained.keeps_client = kept_client(&turn.lock, &head);
        }
    }
    let own = matched.and_then(|matched| matched.route.upstream.as_ref());
    let has_backend = own.or(config.upstream.as_ref()).is_some();
    let is_rejected = matched.is_none() && config.unmatched == Unmatched::Reject;
    if let Ok(session) = &lookup.session {
        explained.once.clone_from(&session.once);
    }
    let action = matched.and_then(|it| Some(it.route.turn.as_ref()?.action()));
    explained.outcome = match lookup.session {
        _ if is_rejected || !has_backend => refused(&Refusal::NoRoute),
        Err(error) => refused(&Refusal::Session(error)),
        Ok(session) => match session.lock {
            NeededLock::Session { key, .. } => match action {
                Some(SessionAction::Attach) => ExplainedOutcome::Attaches(key),
                Some(SessionAction::Stop) => ExplainedOutcome::Stops(key),
                Some(SessionAction::Turn) | None => ExplainedOutcome::Locks(key),
            },
            NeededLock::Unneeded => ExplainedOutcome::Passes,
            NeededLock::NoSession(error)
                if action.is_some_and(|action| action != SessionAction::Turn) =>
            {
                refused(&Refusal::Session(error))
            }
            NeededLock::NoSession(_) => ExplainedOutcome::NoSession {
                code: Outcome::NoSession.as_str(),
            },
        },
    };
    explained
}

/// Refuses what the listener refuses before a route is looked for. It sees the request as a client of HTTP/1
/// sends it; most of the rules are those of HTTP/2, too.
fn check_http(head: &Parts, body_len: usize) -> Result<(), Refusal> {
    let mut bytes = format!("{} {} HTTP/1.1\r\n", head.method, head.uri).into_bytes();
    let mut add = |name: &[u8], value: &[u8]| {
        bytes.extend([name, b": ", value, b"\r\n"].concat());
    };
    for (name, value) in &head.headers {
        add(name.as_str().as_bytes(), value.as_bytes());
    }
    let is_framed = [CONTENT_LENGTH, TRANSFER_ENCODING]
        .iter()
        .any(|name| head.headers.contains_key(name));
    if body_len > 0 && !is_framed {
        add(b"content-length", body_len.to_string().as_bytes());
    }
    bytes.extend(b"\r\n");
    check_head(&bytes).map_err(Refusal::BadRequest)
}

/// The routes that were compared before the candidate at `position`, and what decides against each.
fn skipped(
    config: &Config,
    head: &Parts,
    has_body: bool,
    candidates: &Candidates<'_>,
    position: usize,
    recorder: &mut Recorder,
) -> Vec<SkippedRoute> {
    let taken = candidates.iter().nth(position);
    let end = taken.map_or(config.routes.len(), |taken| taken.index);
    let is_before = |index: usize| {
        let mut before = candidates.iter().take(position);
        before.any(|candidate| candidate.index == index)
    };
    let mut skipped = Vec::new();
    for (index, route) in config.routes.iter().enumerate() {
        let unmet = match is_before(index) {
            true => recorder.take(index).unmet(),
            false => None,
        };
        let reason = match unmet {
            Some(unmet) => unmet,
            None if index < end => unmet_by_head(route, head, has_body),
            None => continue,
        };
        skipped.push(SkippedRoute {
            route: route.name.clone(),
            reason,
        });
    }
    skipped
}

/// Which condition on the head keeps a route from taking a request. It asks a router that has only this
/// route, with one kind of its conditions at a time.
fn unmet_by_head(route: &Route, head: &Parts, has_body: bool) -> UnmetCondition {
    let any = Route {
        host: Vec::new(),
        methods: Vec::new(),
        path: None,
        headers: Vec::new(),
        when: Vec::new(),
        ..route.clone()
    };
    let takes = |add: fn(&mut Route, &Route)| {
        let mut one = any.clone();
        add(&mut one, route);
        let router = Router::new(&[one]);
        let candidates = router.route(head, has_body);
        candidates.is_ok_and(|candidates| candidates.iter().next().is_some())
    };
    if !takes(|one, route| one.path.clone_from(&route.path)) {
        UnmetCondition::Path
    } else if !takes(|one, route| one.methods.clone_from(&route.methods)) {
        UnmetCondition::Methods
    } else if !takes(|one, route| one.host.clone_from(&route.host)) {
        UnmetCondition::Host
    } else if !takes(|one, route| one.headers.clone_from(&route.headers)) {
        UnmetCondition::Headers
    } else {
        UnmetCondition::Spelling
    }
}

/// Whether a turn with this head may get a response while it waits; `None`: no turn of its route waits for so long, or
/// the route has no `keep_alive`.
fn kept_client(lock: &LockConfig, head: &Parts) -> Option<KeptClient> {
    let is_kept = lock.keeps_waiting_clients() && lock.options.enforce;
    is_kept.then(|| {
        if head.method == Method::HEAD {
            KeptClient::HasNoBody
        } else if reads_events(lock.stream, &head.headers) {
            KeptClient::Kept
        } else {
            KeptClient::ReadsNoEvents
        }
    })
}

fn refused(refusal: &Refusal) -> ExplainedOutcome {
    let no_route = || "no route takes this method, host and path".into();
    ExplainedOutcome::Refused {
        status: refusal.status().as_u16(),
        code: refusal.outcome().as_str(),
        reason: refusal.log_detail().unwrap_or_else(no_route),
    }
}
