//! `/locks` and what is below it: an operator's calls, read, and what becomes of them as JSON.

use std::net::IpAddr;

use http::StatusCode;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::answer::{self, AdminError, AdminResponse};
use crate::lock::operator::{
    ForcedRelease, InterruptResult, LockTarget, OperatorError, OperatorRequest,
};
use crate::lock::{Operator, StoreError};

/// How many locks a page has if nobody says: what fits a screen a few times.
const USUAL: usize = 100;
/// And at most: some hundred kilobytes.
const MOST: usize = 1000;

/// `GET /locks`
pub(super) async fn list(operator: &Operator, head: &Parts) -> AdminResponse {
    let page = async {
        let mut query = LocksQuery::of(head, &["cursor", "limit", "search"])?;
        let cursor = query.take("cursor").filter(|cursor| !cursor.is_empty());
        let cursor = cursor.map(|cursor| cursor.parse::<u64>()).transpose();
        let cursor =
            cursor.map_err(|_| wrong("cursor: write what `next` of an earlier page says"))?;
        let limit = query.take("limit").map_or(Ok(USUAL), |limit| limit.parse());
        let limit = limit.ok().filter(|limit| (1..=MOST).contains(limit));
        let limit =
            limit.ok_or_else(|| wrong(&format!("limit: write a number from 1 to {MOST}")))?;
        let search = query.take("search");
        let page = operator.list(cursor, limit, search.as_deref()).await;
        page.map_err(|error| thwarted(&error.into()))
    };
    match page.await {
        Ok(page) => answer::json(StatusCode::OK, &page),
        Err(fault) => fault.answer(),
    }
}

/// `GET /locks/{user_id}/{session_id}`
pub(super) async fn show(operator: &Operator, head: &Parts, ids: (&str, &str)) -> AdminResponse {
    let shown = async {
        let mut query = LocksQuery::of(head, &["key"])?;
        let target = target(ids, query.take("key"))?;
        let showing = operator.show(&target).await;
        showing.map_err(|error| thwarted(&error))
    };
    match shown.await {
        Ok(showing) => answer::json(StatusCode::OK, &showing),
        Err(fault) => fault.answer(),
    }
}

/// `DELETE /locks/{user_id}/{session_id}`
pub(super) async fn release(
    operator: &Operator,
    head: &Parts,
    peer: Option<IpAddr>,
    ids: (&str, &str),
) -> AdminResponse {
    act(head, peer, ids, async |order| {
        let ForcedRelease { key, fence } = operator.force_release(order).await?;
        Ok(match fence {
            Some(fence) => json!({ "released": true, "key": key.as_str(), "fence": fence }),
            None => json!({ "released": false, "key": key.as_str() }),
        })
    })
    .await
}

/// `POST /locks/{user_id}/{session_id}/interrupt`
pub(super) async fn interrupt(
    operator: &Operator,
    head: &Parts,
    peer: Option<IpAddr>,
    ids: (&str, &str),
) -> AdminResponse {
    act(head, peer, ids, async |order| {
        let InterruptResult { key, released } = operator.interrupt(order).await?;
        Ok(json!({ "interrupted": true, "released": released, "key": key.as_str() }))
    })
    .await
}

async fn act(
    head: &Parts,
    peer: Option<IpAddr>,
    ids: (&str, &str),
    act: impl AsyncFnOnce(&OperatorRequest<'_>) -> Result<Value, OperatorError>,
) -> AdminResponse {
    let done = async {
        let mut query = LocksQuery::of(head, &["key", "request_id"])?;
        let target = target(ids, query.take("key"))?;
        let request = query.take("request_id");
        let by = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
        let order = OperatorRequest {
            target: &target,
            request: request.as_deref(),
            by: &by,
        };
        act(&order).await.map_err(|error| thwarted(&error))
    };
    match done.await {
        Ok(value) => answer::json(StatusCode::OK, &value),
        Err(fault) => fault.answer(),
    }
}

fn target((user, session): (&str, &str), key: Option<String>) -> Result<LockTarget, AdminError> {
    if let Some(key) = key {
        return Ok(LockTarget::Key(key));
    }
    let id = |text| decoded(text).ok_or_else(|| wrong("an id is UTF-8, percent-encoded"));
    Ok(LockTarget::Session {
        user: id(user)?,
        session: id(session)?,
    })
}

fn decoded(text: &str) -> Option<String> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    Some(text.into_owned())
}

fn wrong(what: &str) -> AdminError {
    AdminError {
        status: StatusCode::BAD_REQUEST,
        reason: "bad_request",
        error: "This can't be read",
        detail: what.to_owned(),
    }
}

fn thwarted(thwarted: &OperatorError) -> AdminError {
    let (status, error) = match thwarted {
        OperatorError::Store(StoreError::Refused { .. }) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The lock store refuses this",
        ),
        OperatorError::Store(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The lock store gives no answer",
        ),
        OperatorError::InvalidKey(_) => (StatusCode::BAD_REQUEST, "This is no lock's name"),
        OperatorError::AmbiguousKey(_) => (StatusCode::CONFLICT, "The session has several locks"),
        OperatorError::HolderChanged(_) => {
            (StatusCode::CONFLICT, "Another turn holds the lock by now")
        }
        OperatorError::NotLocked(_) => (StatusCode::NOT_FOUND, "The session is not locked"),
        OperatorError::NotInterruptible(..) => {
            (StatusCode::CONFLICT, "The holder can't be told to stop")
        }
    };
    AdminError {
        status,
        reason: thwarted.code(),
        error,
        detail: thwarted.to_string(),
    }
}

// === query ===

/// The fields of a query, each once.
struct LocksQuery(Vec<(String, String)>);

impl LocksQuery {
    /// Reads the query, in which nothing else may stand: a misspelt `request_id` must not free the
    /// lock of another turn.
    fn of(head: &Parts, known: &[&str]) -> Result<Self, AdminError> {
        let mut fields: Vec<(String, String)> = Vec::new();
        let query = head.uri.query().unwrap_or_default();
        for field in query.split('&').filter(|field| !field.is_empty()) {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            let plain = |text: &str| decoded(&text.replace('+', " "));
            let (Some(name), Some(value)) = (plain(name), plain(value)) else {
                return Err(wrong("the query is UTF-8, percent-encoded"));
            };
            if !known.contains(&&*name) {
                let known = known.join(", ");
                return Err(wrong(&format!(
                    "{name:?} is no field of this query; it has {known}"
                )));
            }
            if fields.iter().any(|(earlier, _)| *earlier == name) {
                return Err(wrong(&format!("{name} is there twice")));
            }
            fields.push((name, value));
        }
        Ok(Self(fields))
    }

    /// The field of this name. An empty one is one: whoever frees the lock of a request, and has no id to
    /// put there, doesn't mean any turn.
    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(own, _)| own == name)?;
        Some(self.0.swap_remove(at).1)
    }
}
