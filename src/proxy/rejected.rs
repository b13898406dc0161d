//! Error responses to what never became a request, and to clients that no worker serves.
//!
//! Invariant: each of them is recorded.

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::record::{RecordSinks, RouteSinks, record_rejected};
use super::refusal::{ErrorFormat, Refusal, SentenceLanguage};
use crate::config::ErrorLanguage;
use crate::listen::RejectedRequest;

/// Makes error responses for clients that no worker serves, and records each of them. `language` gives
/// `errors.language`.
pub fn refusing<L: Fn() -> ErrorLanguage>(
    sinks: &RecordSinks,
    language: L,
) -> impl Fn(&RejectedRequest) -> Response<Bytes> + use<L> {
    let sinks = sinks.for_routes([].into_iter());
    move |rejected| reject(rejected, language(), &sinks)
}

/// Makes one such response, in this language.
pub(super) fn reject(
    rejected: &RejectedRequest,
    language: ErrorLanguage,
    sinks: &RouteSinks,
) -> Response<Bytes> {
    let refusal = Refusal::BadRequest(rejected.reason);
    // The caller's headers are not known.
    let language = SentenceLanguage::for_caller(language, &HeaderMap::new());
    let response = refusal.response(&ErrorFormat::default(), language);
    let (status, bytes) = (response.status().as_u16(), response.body().len() as u64);
    record_rejected(sinks, rejected, refusal.outcome(), status, bytes);
    response
}
