//! Error responses to what never became a request, and to clients that no worker serves.
//!
//! Invariant: each of them is recorded.

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::record::{RecordSinks, RouteSinks, record_rejected};
use super::refusal::{ErrorFormat, Refusal, SentenceLanguage};
use crate::config::ErrorsConfig;
use crate::listen::RejectedRequest;

/// Makes error responses for clients that no worker serves, and records each of them. `errors` gives `[errors]`.
pub fn refusing<E: Fn() -> ErrorsConfig>(
    sinks: &RecordSinks,
    errors: E,
) -> impl Fn(&RejectedRequest) -> Response<Bytes> + use<E> {
    let sinks = sinks.for_routes([].into_iter());
    move |rejected| reject(rejected, &errors(), &sinks)
}

/// Makes one such response.
pub(super) fn reject(
    rejected: &RejectedRequest,
    errors: &ErrorsConfig,
    sinks: &RouteSinks,
) -> Response<Bytes> {
    let refusal = Refusal::BadRequest(rejected.reason);
    // The caller's headers are not known.
    let language = SentenceLanguage::for_caller(errors.language, &HeaderMap::new());
    let response = refusal.response(&ErrorFormat::default(), language, errors.help_url.as_ref());
    let (status, bytes) = (response.status().as_u16(), response.body().len() as u64);
    record_rejected(sinks, rejected, refusal.outcome(), status, bytes);
    response
}
