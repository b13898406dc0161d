//! Every answer that the proxy makes up: one exhaustive match from reason to status, text, header.
//!
//! The bodies hold what a client may know. What only the operator should know, as the backend's
//! address, goes to the log.

use bytes::Bytes;
use http::header::{ACCEPT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::forward::ForwardError;
use super::session::SessionError;
use crate::config::BusyConfig;
use crate::key::{self, SessionKey};
use crate::listen::BadRequest;
use crate::lock::{LockLoss, StoreError};
use crate::metrics::Outcome;
use format::ContractBody;

pub(super) use format::ErrorFormat;

mod format;

/// Why the proxy answers by itself.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The session has a turn already, and this one doesn't wait, or no longer.
    Busy {
        why: BusyReason,
        key: SessionKey,
        sentence: String,
        status: StatusCode,
        retry_after: u64,
    },
    /// A newer turn of the session is to run in this one's place, or an operator has stopped it.
    Superseded,
    /// The session can't be told.
    Session(SessionError),
    /// No route takes the request.
    NoRoute,
    /// The backend gave no answer.
    Backend(ForwardError),
    /// Redis did not give the lock.
    Store(StoreError),
    /// The process is stopping.
    Draining,
    /// The lease was lost before the answer began.
    LockLost(LockLoss),
    /// What the client sent is no request that is served.
    Unfit(BadRequest),
}

/// Why a busy session isn't waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BusyReason {
    /// Its route says so.
    NoWaiting,
    /// Too many do already.
    QueueFull,
    /// It took too long.
    TimedOut,
}

/// What an answer of the proxy's own says.
struct ErrorContent {
    status: StatusCode,
    reason: &'static str,
    error: String,
    detail: String,
    retry_after: Option<u64>,
}

/// The reason, in a word, for programs.
const REASON: HeaderName = HeaderName::from_static("x-seriatim-error");

/// When a client may come again after a fault that passes by itself, in seconds: a store or a
/// replica that restarts needs about as long.
const COME_AGAIN: u64 = 1;

// === impl Refusal ===

impl Refusal {
    /// A busy session, in the caller's language.
    pub(super) fn busy(
        why: BusyReason,
        key: SessionKey,
        busy: &BusyConfig,
        caller: &HeaderMap,
    ) -> Self {
        // 200 is what the answer goes under, and no refusal's own.
        let status = match busy.status {
            StatusCode::OK => StatusCode::TOO_MANY_REQUESTS,
            own => own,
        };
        Self::Busy {
            why,
            key,
            sentence: sentence(busy, caller).to_owned(),
            status,
            retry_after: busy.retry_after,
        }
    }

    /// What is refused by its head alone, whatever the routes are.
    pub(super) fn whatever_the_route(head: &Parts) -> Result<(), Self> {
        // A reverse proxy is no tunnel: a CONNECT names no resource of the backend's.
        if head.method == Method::CONNECT {
            return Err(Self::NoRoute);
        }
        // One that the backend could take for another host's than the route is for.
        if head.headers.get_all(HOST).iter().nth(1).is_some() {
            return Err(Self::Session(SessionError::two_hosts()));
        }
        Ok(())
    }

    /// The reason in a word, as the header and the log have it.
    pub(super) fn reason(&self) -> &'static str {
        self.outcome().as_str()
    }

    /// The same, as it is counted.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Busy { why, .. } => match why {
                BusyReason::NoWaiting => Outcome::SessionBusy,
                BusyReason::QueueFull => Outcome::QueueFull,
                BusyReason::TimedOut => Outcome::WaitTimeout,
            },
            Self::Superseded | Self::LockLost(LockLoss::Interrupted) => Outcome::Superseded,
            Self::Session(error) => match error {
                SessionError::TooLarge { .. } | SessionError::TooDense => Outcome::BodyTooLarge,
                SessionError::Late(_) => Outcome::RequestTimeout,
                SessionError::Overloaded => Outcome::Overloaded,
                SessionError::Encoding { .. } => Outcome::UnsupportedEncoding,
                SessionError::Malformed { .. } => Outcome::MalformedBody,
                SessionError::Ambiguous { .. } => Outcome::AmbiguousKey,
                SessionError::BadId { .. } => Outcome::BadSessionId,
                SessionError::Missing { .. } => Outcome::MissingSession,
            },
            Self::NoRoute => Outcome::NoRoute,
            Self::Backend(ForwardError::TimedOut { .. }) => Outcome::UpstreamTimeout,
            Self::Backend(ForwardError::Unreachable { .. } | ForwardError::Broken { .. }) => {
                Outcome::UpstreamUnreachable
            }
            Self::Store(_) => Outcome::StoreUnavailable,
            Self::Draining => Outcome::Draining,
            Self::LockLost(LockLoss::Expired | LockLoss::Taken) => Outcome::LockLost,
            Self::Unfit(unfit) => match unfit {
                BadRequest::Malformed(_) => Outcome::BadRequest,
                BadRequest::TooSlow => Outcome::RequestTimeout,
                BadRequest::TargetTooLong => Outcome::UriTooLong,
                BadRequest::HeadTooLarge => Outcome::HeadTooLarge,
                BadRequest::TransferCoding => Outcome::TransferCoding,
                BadRequest::Version => Outcome::HttpVersion,
                BadRequest::Overloaded(_) => Outcome::Overloaded,
            },
        }
    }

    /// Its status.
    pub(super) fn status(&self) -> StatusCode {
        self.face().status
    }

    /// Whether the client is one to be rid of: what it began to send may never end.
    pub(super) fn closes_connection(&self) -> bool {
        matches!(self, Self::Session(SessionError::Late(_)) | Self::Unfit(_))
    }

    /// What the operator should know beyond the reason.
    pub(super) fn for_the_log(&self) -> Option<String> {
        match self {
            // The one of them that repeats what the client has sent.
            Self::Session(SessionError::Encoding { .. }) if key::ids_are_hidden() => None,
            Self::Session(error) => Some(error.to_string()),
            Self::Backend(error) => Some(error.to_string()),
            Self::Store(error) => Some(error.to_string()),
            Self::LockLost(loss) => Some(loss.to_string()),
            Self::Unfit(unfit) => Some(unfit.to_string()),
            Self::Busy { .. } | Self::Superseded | Self::NoRoute | Self::Draining => None,
        }
    }

    /// The answer in this form, its body whole.
    pub(super) fn response(&self, form: &ErrorFormat) -> Response<Bytes> {
        let ErrorContent {
            status,
            reason,
            error,
            detail,
            retry_after,
        } = self.face();
        let said = ContractBody {
            success: false,
            error: &error,
            detail: &detail,
            status_code: status.as_u16(),
        };
        let mut response = Response::new(Bytes::from(form.body(&said, reason)));
        *response.status_mut() = form.status(status);
        let length = response.body().len();
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(REASON, HeaderValue::from_static(reason));
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    fn face(&self) -> ErrorContent {
        let reason = self.reason();
        let face = |status, error: &str, detail: String, retry_after| ErrorContent {
            status,
            reason,
            error: error.into(),
            detail,
            retry_after,
        };
        match self {
            Self::Busy {
                why: _,
                key,
                sentence,
                status,
                retry_after,
            } => face(
                *status,
                sentence,
                format!("[{}] 锁已被占用", key.as_str()),
                Some(*retry_after),
            ),
            Self::Superseded | Self::LockLost(LockLoss::Interrupted) => face(
                StatusCode::CONFLICT,
                "The turn was stopped to make way",
                "a newer turn of this session came after it, or an operator has stopped it".into(),
                None,
            ),
            Self::Session(error) => {
                let (status, text) = match error {
                    SessionError::TooLarge { .. } | SessionError::TooDense => (
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "The request's body is too large",
                    ),
                    SessionError::Encoding { .. } => (
                        StatusCode::UNSUPPORTED_MEDIA_TYPE,
                        "The body's encoding can't be read",
                    ),
                    SessionError::Late(_) => (
                        StatusCode::REQUEST_TIMEOUT,
                        "The request's body didn't come in time",
                    ),
                    SessionError::Overloaded => (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "This server has too much to do at the moment",
                    ),
                    SessionError::Malformed { .. } => {
                        (StatusCode::BAD_REQUEST, "The request's body can't be read")
                    }
                    SessionError::Ambiguous { .. } => (
                        StatusCode::BAD_REQUEST,
                        "The session can be read in two ways",
                    ),
                    SessionError::BadId { .. } => {
                        (StatusCode::BAD_REQUEST, "The session can't be used")
                    }
                    SessionError::Missing { .. } => {
                        (StatusCode::BAD_REQUEST, "The request names no session")
                    }
                };
                let retry_after = matches!(error, SessionError::Overloaded).then_some(COME_AGAIN);
                face(status, text, error.to_string(), retry_after)
            }
            Self::NoRoute => face(
                StatusCode::NOT_FOUND,
                "Nothing is served here",
                "no route takes this method, host and path".into(),
                None,
            ),
            Self::Backend(error) => match error {
                ForwardError::Unreachable { .. } => face(
                    StatusCode::BAD_GATEWAY,
                    "The agent can't be reached",
                    "the backend took no connection".into(),
                    Some(COME_AGAIN),
                ),
                ForwardError::Broken { .. } => face(
                    StatusCode::BAD_GATEWAY,
                    "The agent gave no answer",
                    "the backend broke off before its answer began".into(),
                    None,
                ),
                ForwardError::TimedOut { what, .. } => face(
                    StatusCode::GATEWAY_TIMEOUT,
                    "The agent takes too long",
                    format!("no {what} from the backend in time"),
                    None,
                ),
            },
            Self::Store(error) => face(
                StatusCode::SERVICE_UNAVAILABLE,
                "The session can't be locked at the moment",
                store_said(error),
                Some(COME_AGAIN),
            ),
            Self::Draining => face(
                StatusCode::SERVICE_UNAVAILABLE,
                "This server is about to stop",
                "another replica will take the request; send it again".into(),
                Some(COME_AGAIN),
            ),
            Self::LockLost(loss @ (LockLoss::Expired | LockLoss::Taken)) => face(
                StatusCode::SERVICE_UNAVAILABLE,
                "The turn was stopped",
                format!("{loss}, so another turn may have begun"),
                Some(COME_AGAIN),
            ),
            Self::Unfit(unfit) => {
                let (text, retry_after) = match unfit {
                    BadRequest::Overloaded(_) => (
                        "There are too many connections or requests",
                        Some(COME_AGAIN),
                    ),
                    BadRequest::TooSlow => ("The request took too long to come", None),
                    BadRequest::TargetTooLong | BadRequest::HeadTooLarge => {
                        ("The request is too large", None)
                    }
                    BadRequest::Malformed(_) | BadRequest::TransferCoding | BadRequest::Version => {
                        ("The request can't be read", None)
                    }
                };
                face(unfit.status(), text, unfit.to_string(), retry_after)
            }
        }
    }
}

/// What a client is told of the lock store: neither where it is, nor under which name it was asked.
fn store_said(error: &StoreError) -> String {
    match error {
        StoreError::Refused { reason, .. } => {
            let kind = reason.split(' ').next().unwrap_or_default();
            format!("the lock store answered: {kind}")
        }
        StoreError::Unreadable { .. } => "the lock store's answer can't be read".into(),
        StoreError::NoHeartbeat { .. } => "the lock store doesn't know this server to be alive".into(),
        StoreError::NotSent { .. }
        | StoreError::Unreachable { .. }
        | StoreError::TimedOut { .. } => "the lock store gave no answer".into(),
    }
}

/// The sentence in the language that the caller likes best (RFC 9110 §12.5.4); where none of them
/// is to be had, in Chinese if there is that, or in the first by the alphabet.
fn sentence<'b>(busy: &'b BusyConfig, caller: &HeaderMap) -> &'b str {
    let wanted = caller
        .get(ACCEPT_LANGUAGE)
        .and_then(|value| value.to_str().ok());
    let mut ranges: Vec<_> = wanted
        .unwrap_or_default()
        .split(',')
        .filter_map(weighted)
        .collect();
    // Stable: of two that are liked equally, the first one wins.
    ranges.sort_by(|a, b| b.1.total_cmp(&a.1));
    let spoken = ranges.iter().find_map(|(range, _)| {
        // `zh-CN` is served by `zh`, as lookup has it (RFC 4647 §3.4).
        let mut range = range.as_str();
        loop {
            if let Some(sentence) = busy.error.get(range) {
                return Some(sentence);
            }
            range = range.rsplit_once('-')?.0;
        }
    });
    let fallback = || busy.error.get("").or_else(|| busy.error.get("zh"));
    spoken
        .or_else(fallback)
        .or_else(|| busy.error.values().next())
        .map_or("", String::as_str)
}

/// A language range and its weight; `None` if it isn't wanted at all.
fn weighted(item: &str) -> Option<(String, f32)> {
    let mut parts = item.split(';').map(str::trim);
    let range = parts
        .next()
        .filter(|range| !range.is_empty())?
        .to_lowercase();
    let weight = parts
        .find_map(|part| part.strip_prefix("q="))
        .map_or(Some(1.0), |q| q.parse().ok());
    weight
        .filter(|weight| *weight > 0.0)
        .map(|weight| (range, weight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_busy_session_gets_the_answer_of_the_contract() {
        let key = SessionKey::literal("lock:session:user:session_123");
        let why = BusyReason::NoWaiting;
        let refusal = Refusal::busy(why, key, &BusyConfig::default(), &HeaderMap::new());
        let response = refusal.response(&ErrorFormat::default());
        assert_eq!(response.status(), 429, "the status of [busy]");
        assert_eq!(
            response.headers()["x-seriatim-error"],
            "session_busy",
            "the reason in a header"
        );
        assert_eq!(response.headers()["retry-after"], "1", "when to come again");
        assert_eq!(
            response.headers()["content-type"],
            "application/json; charset=utf-8",
            "the type of every answer of the proxy's own"
        );
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        let expected = json!({
            "success": false,
            "error": "AI 正在思考中，请稍后再试",
            "detail": "[lock:session:user:session_123] 锁已被占用",
            "status_code": 429,
        });
        assert_eq!(body, expected, "these four members and no other");
    }

    #[test]
    fn the_sentence_is_in_the_callers_language() {
        let texts = [("zh", "忙"), ("en", "busy"), ("de", "besetzt")];
        let error = texts
            .map(|(language, text)| (language.to_owned(), text.to_owned()))
            .into();
        let busy = BusyConfig {
            error,
            ..BusyConfig::default()
        };
        for (accepted, text) in [
            ("en-GB,en;q=0.9", "busy"),
            ("fr, de;q=0.3, en;q=0.5", "busy"),
            ("de-AT-1996", "besetzt"),
            ("fr", "忙"),
            ("en;q=0, de", "besetzt"),
            ("", "忙"),
            (";;;q=x,,", "忙"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_LANGUAGE, accepted.parse().unwrap());
            assert_eq!(
                sentence(&busy, &headers),
                text,
                "the best match for {accepted:?}"
            );
        }
    }
}
