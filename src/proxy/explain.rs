//! What the proxy would make of a request, and why, without sending it anywhere.
//!
//! It goes the road of a request up to its lock, by the same code; what it leaves out is time: a body
//! is there, or there is none. Why a route was passed over is asked of that code, too: by a router
//! that knows this route alone, with one kind of its conditions.

use http::request::Parts;

use super::forward::headers;
use super::refusal::Refusal;
use super::route::Router;
use super::session;
use crate::config::{Config, Route, Unmatched};
use crate::key::SessionKey;

/// A request, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedRequest {
    /// The name of the route that takes it, or at which it is refused.
    pub route: Option<Box<str>>,
    /// The routes that were asked before it, in the file's order; all of them, if none takes it.
    pub passed_over: Vec<SkippedRoute>,
    /// That route's alternatives: those for the session first, in their order.
    pub alternatives: Vec<ExplainedTemplate>,
    /// What becomes of it.
    pub outcome: ExplainedOutcome,
    /// It is a CORS preflight, which takes no lock.
    pub is_preflight: bool,
    /// How many bytes its body was decoded to; 0 for one that wasn't encoded, or couldn't be decoded.
    pub decoded: usize,
}

/// A route that doesn't take the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedRoute {
    /// Its name.
    pub route: Box<str>,
    /// The first of its conditions that doesn't hold.
    pub why: UnmetCondition,
}

/// A condition of a route that doesn't hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnmetCondition {
    /// Its `path`.
    Path,
    /// Its `methods`.
    Methods,
    /// Its `host`.
    Host,
    /// Its `headers`.
    Headers,
    /// An entry of its `when`.
    When {
        /// Its text, as `{body:/method}`.
        template: String,
        /// What it may be.
        wanted: Vec<Box<str>>,
        /// What it comes to.
        came_to: TemplateResult,
    },
    /// It takes no lock, and the path isn't spelt as its own: another route comes first then.
    Spelling,
}

/// One place in which an id is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedTemplate {
    /// The option that it stands in: `session_id` or `user_id`.
    pub option: &'static str,
    /// Its text, as `{body:/session_id}`.
    pub template: String,
    /// What it comes to.
    pub came_to: TemplateResult,
    /// Which filter it may need, by the look of its id; `None`: none, or it has one.
    pub hint: Option<String>,
}

/// What an alternative comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateResult {
    /// This id, before it is encoded for the key.
    Id(String),
    /// There is nothing.
    Missing,
    /// It can't be used, or be told. Why not.
    Refused(String),
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExplainedOutcome {
    /// It needs this lock.
    Locks(SessionKey),
    /// It passes without a lock.
    Passes,
    /// It is refused.
    Refused {
        /// The status, where the route's `busy.status` isn't 200.
        status: u16,
        /// The word in `x-seriatim-error`.
        reason: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Explains a request by a configuration. A body without a byte is none.
pub fn explain(config: &Config, mut head: Parts, body: &[u8]) -> ExplainedRequest {
    headers::clean_request(&mut head.headers, config.forwarded);
    let mut explained = ExplainedRequest {
        route: None,
        passed_over: Vec::new(),
        alternatives: Vec::new(),
        outcome: ExplainedOutcome::Passes,
        is_preflight: false,
        decoded: 0,
    };
    if let Err(refusal) = Refusal::check_head(&head) {
        explained.outcome = refused(&refusal);
        return explained;
    }
    let router = Router::new(&config.routes);
    let has_body = !body.is_empty();
    let candidates = match router.route(&head, has_body) {
        Ok(candidates) => candidates,
        Err(unfit) => {
            explained.outcome = refused(&Refusal::BadRequest(unfit));
            return explained;
        }
    };
    let session = session::explain(&head, body, &candidates, &config.limits);
    let index = match &session.chosen {
        Ok((index, _)) => *index,
        Err((index, _)) => Some(*index),
    };
    let matched = index.and_then(|index| candidates.iter().nth(index));
    explained.route = matched.map(|matched| matched.route.name.clone());
    // A preflight is given its route without the route's lock.
    explained.is_preflight = matched.is_some_and(|matched| {
        matched.route.turn.is_none() && config.routes[matched.index].turn.is_some()
    });
    explained.decoded = session.decoded;
    explained.passed_over = passed_over(
        config,
        (&head, has_body),
        &explained.route,
        session.declined,
    );
    let alternatives = session.alternatives.into_iter();
    let alternative = |one: session::TriedTemplate| ExplainedTemplate {
        option: one.option,
        template: one.template,
        came_to: TemplateResult::from(one.came_to),
        hint: one.hint,
    };
    explained.alternatives = alternatives.map(alternative).collect();
    let own = matched.and_then(|matched| matched.route.upstream.as_ref());
    let has_backend = own.or(config.upstream.as_ref()).is_some();
    let is_rejected = matched.is_none() && config.unmatched == Unmatched::Reject;
    explained.outcome = match session.chosen {
        Err((_, error)) => refused(&Refusal::Session(error)),
        Ok(_) if is_rejected || !has_backend => refused(&Refusal::NoRoute),
        Ok((_, Some(key))) => ExplainedOutcome::Locks(key),
        Ok((_, None)) => ExplainedOutcome::Passes,
    };
    explained
}

impl From<Result<Option<String>, String>> for TemplateResult {
    fn from(came_to: Result<Option<String>, String>) -> Self {
        match came_to {
            Ok(Some(id)) => Self::Id(id),
            Ok(None) => Self::Missing,
            Err(why) => Self::Refused(why),
        }
    }
}

/// The routes before the one that takes a request, and those that came into question and declined.
fn passed_over(
    config: &Config,
    (head, has_body): (&Parts, bool),
    taken: &Option<Box<str>>,
    mut declined: Vec<session::DeclinedCandidate>,
) -> Vec<SkippedRoute> {
    let is_taken = |route: &Route| taken.as_ref() == Some(&route.name);
    let end = config.routes.iter().position(is_taken);
    let end = end.unwrap_or(config.routes.len());
    let mut all = Vec::new();
    for (index, route) in config.routes.iter().enumerate() {
        let position = declined.iter().position(|one| one.route == route.name);
        let why = match position.map(|position| declined.swap_remove(position)) {
            Some(session::DeclinedCandidate {
                template,
                wanted,
                came_to,
                ..
            }) => UnmetCondition::When {
                template,
                wanted,
                came_to: TemplateResult::from(came_to),
            },
            None if index < end => why_not(route, head, has_body),
            None => continue,
        };
        all.push(SkippedRoute {
            route: route.name.clone(),
            why,
        });
    }
    all
}

/// Why a route doesn't take a request by its head.
fn why_not(route: &Route, head: &Parts, has_body: bool) -> UnmetCondition {
    let any = Route {
        host: Vec::new(),
        methods: Vec::new(),
        path: None,
        headers: Vec::new(),
        when: Vec::new(),
        ..route.clone()
    };
    let takes = |part: Route| {
        let router = Router::new(&[part]);
        router
            .route(head, has_body)
            .is_ok_and(|candidates| candidates.iter().next().is_some())
    };
    let path = route.path.clone();
    if !takes(Route {
        path,
        ..any.clone()
    }) {
        return UnmetCondition::Path;
    }
    let methods = route.methods.clone();
    if !takes(Route {
        methods,
        ..any.clone()
    }) {
        return UnmetCondition::Methods;
    }
    let host = route.host.clone();
    if !takes(Route {
        host,
        ..any.clone()
    }) {
        return UnmetCondition::Host;
    }
    let headers = route.headers.clone();
    if !takes(Route { headers, ..any }) {
        return UnmetCondition::Headers;
    }
    UnmetCondition::Spelling
}

fn refused(refusal: &Refusal) -> ExplainedOutcome {
    let nothing = || "no route takes this method, host and path".into();
    ExplainedOutcome::Refused {
        status: refusal.status().as_u16(),
        reason: refusal.outcome().as_str(),
        why: refusal.log_detail().unwrap_or_else(nothing),
    }
}
