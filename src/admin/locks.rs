//! The paths below `/locks`: reads an operator's call, hands it to [`Operator`], and writes the result as
//! JSON.

use std::net::IpAddr;

use http::StatusCode;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Value, json};

use super::SessionPath;
use super::response::{self, AdminError, AdminResponse};
use crate::lock::operator::{LockTarget, OperatorError, OperatorRequest};
use crate::lock::{Operator, ScanCursor, StoreError};

/// The default of `limit`, in locks: a few screens.
const DEFAULT_LIMIT: usize = 100;
/// The largest `limit`, in locks: some hundred kilobytes of JSON.
const MAX_LIMIT: usize = 1000;

/// What stands in a path for an id that the query names.
const UNNAMED: &str = "-";

/// `GET /locks`
pub(super) async fn list(operator: &Operator, head: &Parts) -> AdminResponse {
    respond(async {
        let mut query = LocksQuery::parse(head, &["cursor", "limit", "search"])?;
        let cursor = query.take("cursor").filter(|cursor| !cursor.is_empty());
        let cursor = cursor
            .map(|cursor| cursor.parse::<ScanCursor>())
            .transpose();
        let cursor =
            cursor.map_err(|_| bad_request("cursor must be the `next` of an earlier page"))?;
        let limit = query
            .take("limit")
            .map_or(Ok(DEFAULT_LIMIT), |limit| limit.parse());
        let limit = limit.ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
        let limit = limit
            .ok_or_else(|| bad_request(&format!("limit must be a number from 1 to {MAX_LIMIT}")))?;
        let search = query.take("search");
        let page = operator.list(cursor, limit, search.as_deref()).await;
        page.map_err(|error| operator_error(&error.into()))
    })
    .await
}

/// `GET /locks/{user_id}/{session_id}`
pub(super) async fn show(operator: &Operator, head: &Parts, ids: SessionPath<'_>) -> AdminResponse {
    respond(async {
        let mut query = LocksQuery::parse(head, &["key"])?;
        let target = target(operator, ids, query.take("key"))?;
        operator
            .show(&target)
            .await
            .map_err(|error| operator_error(&error))
    })
    .await
}

/// `DELETE /locks/{user_id}/{session_id}`
pub(super) async fn release(
    operator: &Operator,
    head: &Parts,
    peer: Option<IpAddr>,
    ids: SessionPath<'_>,
) -> AdminResponse {
    act(operator, head, peer, ids, async |request| {
        Ok(json!(operator.force_release(request).await?))
    })
    .await
}

/// `POST /locks/{user_id}/{session_id}/interrupt`
pub(super) async fn interrupt(
    operator: &Operator,
    head: &Parts,
    peer: Option<IpAddr>,
    ids: SessionPath<'_>,
) -> AdminResponse {
    act(operator, head, peer, ids, async |request| {
        Ok(json!(operator.interrupt(request).await?))
    })
    .await
}

/// `DELETE /locks/{user_id}/{session_id}/queue/{request_id}`
pub(super) async fn dequeue(
    operator: &Operator,
    head: &Parts,
    peer: Option<IpAddr>,
    ids: SessionPath<'_>,
    request: &str,
) -> AdminResponse {
    respond(async {
        let mut query = LocksQuery::parse(head, &["key", "request_id"])?;
        let target = target(operator, ids, query.take("key"))?;
        let in_path = decoded_id(request)?;
        let request = query.take("request_id").unwrap_or_else(|| in_path.clone());
        if named(&in_path).is_some_and(|in_path| in_path != request) {
            return Err(bad_request(&format!(
                "the path names the request {in_path:?}, and request_id names {request:?}: write one of them, \
                 or `{UNNAMED}` in the path"
            )));
        }
        let dequeued = operator.dequeue(&target, &request, &caller(peer)).await;
        dequeued.map_err(|error| operator_error(&error))
    })
    .await
}

async fn act(
    operator: &Operator,
    head: &Parts,
    peer: Option<IpAddr>,
    ids: SessionPath<'_>,
    act: impl AsyncFnOnce(&OperatorRequest<'_>) -> Result<Value, OperatorError>,
) -> AdminResponse {
    respond(async {
        let mut query = LocksQuery::parse(head, &["key", "request_id"])?;
        let target = target(operator, ids, query.take("key"))?;
        let request_id = query.take("request_id");
        let by = caller(peer);
        let request = OperatorRequest {
            target: &target,
            request: request_id.as_deref(),
            by: &by,
        };
        act(&request).await.map_err(|error| operator_error(&error))
    })
    .await
}

/// The response to a call: its result as JSON, or its error.
async fn respond<T: Serialize>(call: impl Future<Output = Result<T, AdminError>>) -> AdminResponse {
    match call.await {
        Ok(value) => response::json(StatusCode::OK, &value),
        Err(error) => error.response(),
    }
}

/// The lock that a call names, by its key or by the ids in the path.
fn target(
    operator: &Operator,
    ids: SessionPath<'_>,
    key: Option<String>,
) -> Result<LockTarget, AdminError> {
    let (user, session) = (decoded_id(ids.user)?, decoded_id(ids.session)?);
    let Some(key) = key else {
        return Ok(LockTarget::Session { user, session });
    };
    if operator.is_of_others(&key, named(&user), named(&session)) {
        return Err(bad_request(&format!(
            "{key} is not the key of user {user:?} and session {session:?}: write one of them, or `{UNNAMED}` \
             for the ids"
        )));
    }
    Ok(LockTarget::Key(key))
}

/// An id in a path beside a query that may name it; `None`: the path leaves it to the query.
fn named(id: &str) -> Option<&str> {
    Some(id).filter(|id| *id != UNNAMED)
}

/// Who calls, for the audit log.
fn caller(peer: Option<IpAddr>) -> String {
    peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string())
}

fn decoded_id(text: &str) -> Result<String, AdminError> {
    decoded(text).ok_or_else(|| bad_request("ids must be percent-encoded UTF-8"))
}

fn decoded(text: &str) -> Option<String> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    Some(text.into_owned())
}

fn bad_request(detail: &str) -> AdminError {
    AdminError {
        status: StatusCode::BAD_REQUEST,
        code: "bad_request",
        error: "Bad request",
        detail: detail.to_owned(),
    }
}

fn operator_error(error: &OperatorError) -> AdminError {
    let (status, summary) = match error {
        OperatorError::Store(StoreError::Refused { .. }) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The lock store refuses the command",
        ),
        OperatorError::Store(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The lock store does not answer",
        ),
        OperatorError::InvalidKey(_) => (StatusCode::BAD_REQUEST, "Not the name of a lock"),
        OperatorError::AmbiguousKey(_) => (StatusCode::CONFLICT, "The session has several locks"),
        OperatorError::HolderChanged(_) => {
            (StatusCode::CONFLICT, "Another turn holds the lock now")
        }
        OperatorError::UnreadableHolder(_) => (
            StatusCode::CONFLICT,
            "Another program holds the lock, and its value can't be shown",
        ),
        OperatorError::NotLocked(_) => (StatusCode::NOT_FOUND, "The session is not locked"),
        OperatorError::NotWaiting { .. } => (StatusCode::NOT_FOUND, "The request no longer waits"),
        OperatorError::NotInterruptible(..) | OperatorError::ReplicaGone { .. } => {
            (StatusCode::CONFLICT, "The holder can't be interrupted")
        }
    };
    AdminError {
        status,
        code: error.code(),
        error: summary,
        detail: error.to_string(),
    }
}

// === query ===

/// The fields of a query, each at most once.
struct LocksQuery(Vec<(String, String)>);

impl LocksQuery {
    /// Reads a query that has no fields but the known ones: a misspelt `request_id` must not release the lock
    /// of another turn.
    fn parse(head: &Parts, known: &[&str]) -> Result<Self, AdminError> {
        let mut fields: Vec<(String, String)> = Vec::new();
        let query = head.uri.query().unwrap_or_default();
        for field in query.split('&').filter(|field| !field.is_empty()) {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            let plain = |text: &str| decoded(&text.replace('+', " "));
            let (Some(name), Some(value)) = (plain(name), plain(value)) else {
                return Err(bad_request("the query must be percent-encoded UTF-8"));
            };
            if !known.contains(&&*name) {
                let known = known.join(", ");
                return Err(bad_request(&format!(
                    "unknown query field {name:?}; write one of {known}"
                )));
            }
            if fields.iter().any(|(earlier, _)| *earlier == name) {
                return Err(bad_request(&format!("query field {name} is given twice")));
            }
            fields.push((name, value));
        }
        Ok(Self(fields))
    }

    /// Takes the field with this name. An empty value is a value: a caller whose `request_id` is empty by
    /// mistake must not release the lock of any turn.
    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(own, _)| own == name)?;
        Some(self.0.swap_remove(at).1)
    }
}
