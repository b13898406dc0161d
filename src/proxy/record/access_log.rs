//! The access log: one event for each request, and for what never became one.

use std::borrow::Cow;
use std::time::Duration;

use super::{CommentCounter, RequestRecord};
use crate::config::Route;
use crate::key::SessionKey;
use crate::listen::RejectedRequest;
use crate::logging::{fields, log_access};
use crate::metrics::RequestTimes;
use crate::outcome::Outcome;
use crate::proxy::session::SessionError;
use crate::redact;

impl RequestRecord {
    /// Writes the record to the access log.
    pub(super) fn log(&self, outcome: Outcome, times: RequestTimes, total: Duration, bytes: u64) {
        log_access(|line| {
            let micros = |duration: Option<Duration>| duration.map(|d| d.as_micros() as u64);
            let route = self.route.as_deref();
            let key = self.key.as_ref().map(SessionKey::redacted);
            let unprotected = self.unprotected.as_ref();
            let no_session = self.no_session.as_ref().and_then(SessionError::log_detail);
            let error = match (&no_session, &self.error) {
                (Some(no_session), Some(error)) => Some(format!("{no_session}; {error}").into()),
                (no_session, error) => no_session.as_ref().or(error.as_ref()).map(Cow::from),
            };
            fields!(
                line,
                outcome = outcome.as_str(),
                continued = self.continued.map(Outcome::as_str),
                status = self.told_status(),
                early = self.is_early().then_some(true),
                comments = self
                    .comments
                    .get()
                    .map(CommentCounter::count)
                    .filter(|count| *count > 0),
                method = redact::method(self.method.as_str()),
                path = &*shown_path(&self.path, route),
                route = route.map(|route| &*route.name),
                key = key.as_deref(),
                fence = self.fence.map(|fence| fence.0),
                unprotected = unprotected.map(|turn| turn.reason.as_str()),
                overlap = unprotected.map(|turn| turn.has_overlapped()),
                request_id = &*self.request_id,
                attached_to = self.attached_to.map(|turn| turn.to_string()).as_deref(),
                bytes = bytes,
                wait_us = micros(times.wait),
                hold_us = micros(times.hold),
                head_us = micros(times.first_byte),
                total_us = micros(Some(total)),
                error = error.as_deref(),
            );
        });
    }
}

/// Writes what a client sent that never became a request: as much as could be read of it.
pub(super) fn rejected(rejected: &RejectedRequest, outcome: Outcome, status: u16, bytes: u64) {
    log_access(|line| {
        let first = rejected.line.as_ref();
        let path = first.and_then(|first| Some(shown_path(first.target.split('?').next()?, None)));
        fields!(
            line,
            outcome = outcome.as_str(),
            status = status,
            method = first.map(|first| redact::method(&first.method)),
            path = path.as_deref(),
            bytes = bytes,
            error = format_args!("{}", rejected.reason),
        );
    });
}

/// A path as the log shows it. The query is left out, for it may hold secrets. While ids are hidden,
/// which may be any part of a path, the route's pattern stands for it.
fn shown_path<'p>(path: &'p str, route: Option<&Route>) -> Cow<'p, str> {
    match route.and_then(|route| route.path.as_ref()) {
        Some(pattern) if redact::is_enabled() => pattern.to_string().into(),
        _ => redact::text(path),
    }
}
