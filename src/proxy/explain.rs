//! What the proxy would make of a request, and why, without sending it anywhere.
//!
//! It goes the road of a request up to its lock, by the same code; what it leaves out is time: a body
//! is there, or there is none.

use http::request::Parts;

use super::forward::headers;
use super::refusal::Refusal;
use super::route::Router;
use super::session;
use crate::config::{Config, Unmatched};
use crate::key::SessionKey;

/// A request, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The name of the route that takes it, or at which it is refused.
    pub route: Option<Box<str>>,
    /// That route's alternatives: those for the session first, in their order.
    pub alternatives: Vec<Alternative>,
    /// What becomes of it.
    pub outcome: Outcome,
    /// How many bytes its body was decoded to; 0 for one that wasn't encoded, or couldn't be decoded.
    pub decoded: usize,
}

/// One place in which an id is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// The option that it stands in: `session_id` or `user_id`.
    pub option: &'static str,
    /// Its text, as `{body:/session_id}`.
    pub template: String,
    /// What it comes to.
    pub came_to: CameTo,
}

/// What an alternative comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CameTo {
    /// This id, before it is encoded for the key.
    Id(String),
    /// There is nothing.
    Missing,
    /// It can't be used, or be told. Why not.
    Refused(String),
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It needs this lock.
    Locks(SessionKey),
    /// It passes without a lock.
    Passes,
    /// It is refused.
    Refused {
        /// The word in `x-seriatim-error`.
        reason: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Explains a request by a configuration. A body without a byte is none.
pub fn explain(config: &Config, mut head: Parts, body: &[u8]) -> Explained {
    headers::clean_request(&mut head.headers, config.forwarded);
    let mut explained = Explained {
        route: None,
        alternatives: Vec::new(),
        outcome: Outcome::Passes,
        decoded: 0,
    };
    if let Err(refusal) = Refusal::whatever_the_route(&head) {
        explained.outcome = refused(&refusal);
        return explained;
    }
    let router = Router::new(&config.routes);
    let candidates = router.route(&head);
    let session = session::explain(&head, body, &candidates, &config.limits);
    let index = match &session.chosen {
        Ok((index, _)) => *index,
        Err((index, _)) => Some(*index),
    };
    let matched = index.and_then(|index| candidates.iter().nth(index));
    explained.route = matched.map(|matched| matched.route.name.clone());
    explained.decoded = session.decoded;
    let alternatives = session.alternatives.into_iter();
    let alternative = |(option, template, came_to)| Alternative {
        option,
        template,
        came_to: match came_to {
            Ok(Some(id)) => CameTo::Id(id),
            Ok(None) => CameTo::Missing,
            Err(why) => CameTo::Refused(why),
        },
    };
    explained.alternatives = alternatives.map(alternative).collect();
    let own = matched.and_then(|matched| matched.route.upstream.as_ref());
    let has_backend = own.or(config.upstream.as_ref()).is_some();
    let is_rejected = matched.is_none() && config.unmatched == Unmatched::Reject;
    explained.outcome = match session.chosen {
        Err((_, error)) => refused(&Refusal::Session(error)),
        Ok(_) if is_rejected || !has_backend => refused(&Refusal::NoRoute),
        Ok((_, Some(key))) => Outcome::Locks(key),
        Ok((_, None)) => Outcome::Passes,
    };
    explained
}

fn refused(refusal: &Refusal) -> Outcome {
    let nothing = || "no route takes this method, host and path".into();
    Outcome::Refused {
        reason: refusal.reason(),
        why: refusal.for_the_log().unwrap_or_else(nothing),
    }
}
