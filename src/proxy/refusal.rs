//! Every error response of the proxy: one exhaustive match from the reason to status, text and headers.
//!
//! Invariant: a response says only what a client may know. What only the operator should know, for
//! example the backend's address, goes to the log.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LINK, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::forward::ForwardError;
use super::session::SessionError;
use crate::config::{BusyConfig, HelpUrl};
use crate::key::SessionKey;
use crate::listen::BadRequest;
use crate::lock::{LockLoss, StoreError};
use crate::outcome::Outcome;
use busy::number_value;
use format::ContractBody;
use language::text_for_caller;

pub(super) use busy::BusyNotice;
pub(super) use format::ErrorFormat;
pub(super) use language::SentenceLanguage;
pub(super) use repeat::RepeatReason;
pub(super) use stream_error::{StreamError, UnfitResponse};

mod busy;
mod format;
mod language;
mod repeat;
mod stream_error;

/// Why the proxy refuses a request.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Another turn of the session runs.
    Busy {
        reason: BusyReason,
        key: SessionKey,
        /// The text of `busy.error` in the caller's language.
        text: String,
        status: StatusCode,
        notice: BusyNotice,
    },
    /// The session's turn waits for this request, because its backend sent it.
    WouldDeadlock(SessionKey),
    /// A newer turn of the session is to run instead, or an operator stopped this one.
    Superseded,
    /// An operator took the waiting turn out of the queue.
    Dequeued,
    /// The session has seen a turn with the request's once id.
    Repeat(SessionKey, RepeatReason),
    /// The session can't be read from the request.
    Session(SessionError),
    /// The beginning of the answer that the request would read isn't kept.
    AnswerTooLong,
    /// No route takes the request.
    NoRoute,
    /// The backend gave no response.
    Backend(ForwardError),
    /// The store did not grant the lock, because it failed.
    Store(StoreError),
    /// The process is stopping.
    Draining,
    /// The lock was lost before the response began.
    LockLost(LockLoss),
    /// The client sent no valid request, or one that is over a limit.
    BadRequest(BadRequest),
}

/// Why a turn does not wait, or no longer waits, for a busy session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BusyReason {
    /// The route doesn't wait (`blocking = false`).
    NoWaiting,
    /// The session's queue is full.
    QueueFull,
    /// The turn waited for `blocking_timeout`.
    TimedOut,
}

/// What an error response says.
struct ErrorContent {
    /// What happened, for a person.
    error: String,
    /// The details, for a person.
    detail: String,
    /// The value of `retry-after`, in seconds; `None`: there is no such header.
    retry_after: Option<u64>,
    /// What the client of a busy session is told; `None`: the session isn't busy.
    notice: Option<BusyNotice>,
}

/// The header with the error code, which is the [`Outcome`]'s word.
const REASON: HeaderName = HeaderName::from_static("x-seriatim-error");

/// The header that keeps the clients of OpenAI and Anthropic, which retry after 409, from coming back at once.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The `retry-after` of an error that passes by itself, in seconds: a store or a replica that restarts
/// needs about as long.
const RETRY_SOON: u64 = 1;

// === impl Refusal ===

impl Refusal {
    /// The refusal of a turn whose session is busy. `caller` has the request's headers, which name the
    /// language of the text.
    pub(super) fn busy(
        reason: BusyReason,
        key: SessionKey,
        notice: BusyNotice,
        busy: &BusyConfig,
        caller: &HeaderMap,
    ) -> Self {
        // With `busy.status = 200` only the body has the error's own status.
        let status = match busy.status {
            StatusCode::OK => StatusCode::TOO_MANY_REQUESTS,
            status => status,
        };
        Self::Busy {
            reason,
            key,
            text: text_for_caller(busy, caller).to_owned(),
            status,
            notice,
        }
    }

    /// Refuses what its head makes wrong for every route.
    ///
    /// # Errors
    /// For a CONNECT request, and for one with several `host` headers.
    pub(super) fn check_head(head: &Parts) -> Result<(), Self> {
        // CONNECT asks for a tunnel to any host (RFC 9110 §9.3.6), which is a forward proxy's work.
        if head.method == Method::CONNECT {
            return Err(Self::NoRoute);
        }
        // The backend could pick another of the hosts than the route did.
        if head.headers.get_all(HOST).iter().nth(1).is_some() {
            return Err(Self::Session(SessionError::two_hosts()));
        }
        Ok(())
    }

    /// The outcome under which the request is recorded, and whose word the `x-seriatim-error` header has.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Busy { reason, .. } => match reason {
                BusyReason::NoWaiting => Outcome::SessionBusy,
                BusyReason::QueueFull => Outcome::QueueFull,
                BusyReason::TimedOut => Outcome::WaitTimeout,
            },
            Self::WouldDeadlock(_) => Outcome::WouldDeadlock,
            Self::Superseded | Self::LockLost(LockLoss::Interrupted) => Outcome::Superseded,
            Self::Dequeued => Outcome::Dequeued,
            Self::Repeat(_, reason) => reason.outcome(),
            Self::Session(error) => match error {
                SessionError::TooLarge { .. } | SessionError::TooDense { .. } => {
                    Outcome::BodyTooLarge
                }
                SessionError::Late(_) => Outcome::RequestTimeout,
                SessionError::Overloaded => Outcome::Overloaded,
                SessionError::Encoding { .. } | SessionError::EncodedForm => {
                    Outcome::UnsupportedEncoding
                }
                SessionError::Malformed { .. } => Outcome::MalformedBody,
                SessionError::Ambiguous { .. } => Outcome::AmbiguousKey,
                SessionError::BadId { .. } => Outcome::BadSessionId,
                SessionError::Missing { .. } => Outcome::MissingSession,
            },
            Self::AnswerTooLong => Outcome::AnswerTooLong,
            Self::NoRoute => Outcome::NoRoute,
            Self::Backend(ForwardError::TimedOut { .. }) => Outcome::UpstreamTimeout,
            Self::Backend(ForwardError::Unreachable { .. } | ForwardError::Broken { .. }) => {
                Outcome::UpstreamUnreachable
            }
            Self::Backend(ForwardError::Malformed { .. }) => Outcome::UpstreamMalformed,
            Self::Store(_) => Outcome::StoreUnavailable,
            Self::Draining => Outcome::Draining,
            Self::LockLost(
                LockLoss::Expired | LockLoss::NoHeartbeat | LockLoss::Taken | LockLoss::NameTaken,
            ) => Outcome::LockLost,
            Self::BadRequest(bad) => match bad {
                BadRequest::Malformed(_) => Outcome::BadRequest,
                BadRequest::TooSlow => Outcome::RequestTimeout,
                BadRequest::TargetTooLong => Outcome::UriTooLong,
                BadRequest::HeadTooLarge => Outcome::HeadTooLarge,
                BadRequest::TransferCoding => Outcome::UnsupportedTransferCoding,
                BadRequest::Version => Outcome::UnsupportedHttpVersion,
                BadRequest::Overloaded(_) => Outcome::Overloaded,
            },
        }
    }

    /// The status of the error.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Busy { status, .. } => *status,
            _ => status_of(self.outcome()),
        }
    }

    /// Whether the connection is closed after the response, because the rest of the request may never
    /// arrive.
    pub(super) fn closes_connection(&self) -> bool {
        matches!(
            self,
            Self::Session(SessionError::Late(_)) | Self::BadRequest(_)
        )
    }

    /// What the operator should know beyond the outcome; `None`: there is nothing more.
    pub(super) fn log_detail(&self) -> Option<String> {
        match self {
            Self::Session(error) => error.log_detail(),
            Self::Backend(error) => Some(error.to_string()),
            Self::Store(error) => Some(error.to_string()),
            Self::LockLost(loss) => Some(loss.to_string()),
            Self::BadRequest(bad) => Some(bad.to_string()),
            Self::Busy { .. }
            | Self::WouldDeadlock(_)
            | Self::Superseded
            | Self::Dequeued
            | Self::Repeat(..)
            | Self::AnswerTooLong
            | Self::NoRoute
            | Self::Draining => None,
        }
    }

    /// The error response in this format and this language, with a link to the page `help`; `None`: without one.
    pub(super) fn response(
        &self,
        format: &ErrorFormat,
        language: SentenceLanguage,
        help: Option<&HelpUrl>,
    ) -> Response<Bytes> {
        let content = self.content(language);
        let reason = self.outcome().as_str();
        let status = self.status();
        let mut response = Response::new(content.body(format, status, reason));
        *response.status_mut() = format.status(status);
        let length = response.body().len();
        // Room for the headers below and those of CORS, so that the map grows once.
        *response.headers_mut() = HeaderMap::with_capacity(10);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        );
        headers.insert(CONTENT_LENGTH, number_value(length as u64));
        headers.insert(REASON, HeaderValue::from_static(reason));
        if let Some(seconds) = content.retry_after {
            headers.insert(RETRY_AFTER, number_value(seconds));
        }
        if let Some(notice) = content.notice {
            notice.add_to(headers);
        }
        if self.is_final() {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(link) = help.and_then(|help| help.link_to(reason)) {
            headers.insert(LINK, link);
        }
        response
    }

    /// The error for a client that has got the head of an event stream: an event.
    pub(super) fn event(&self, format: &ErrorFormat, language: SentenceLanguage) -> Bytes {
        let content = self.content(language);
        content.event(format, self.status(), self.outcome().as_str())
    }

    /// Whether the same request gets the same response again.
    fn is_final(&self) -> bool {
        match self {
            Self::Dequeued | Self::AnswerTooLong => true,
            Self::Repeat(_, reason) => !reason.may_pass(),
            _ => false,
        }
    }

    fn content(&self, language: SentenceLanguage) -> ErrorContent {
        let say = |chinese, english| language.pick(chinese, english);
        match self {
            Self::Busy {
                key, text, notice, ..
            } => ErrorContent {
                notice: Some(*notice),
                ..ErrorContent::new(
                    text,
                    format!(
                        "[{}] {}",
                        key.as_str(),
                        say("锁已被占用", "the lock is taken")
                    ),
                    None,
                )
            },
            Self::WouldDeadlock(key) => ErrorContent::new(
                say(
                    "智能体调用了自己的会话",
                    "The agent has called its own session",
                ),
                format!(
                    "the running turn of [{}] sent this request and waits for it, so this request would \
                     wait forever; use another session, or don't call through this proxy",
                    key.as_str()
                ),
                None,
            ),
            Self::Superseded | Self::LockLost(LockLoss::Interrupted) => ErrorContent::new(
                say(
                    "本轮对话已被新的一轮取代",
                    "The turn was stopped for a newer one",
                ),
                "a newer turn of this session has begun, or an operator stopped this one".into(),
                None,
            ),
            Self::Dequeued => ErrorContent::new(
                say(
                    "本轮对话已被管理员移出队列",
                    "The turn was taken out of the queue",
                ),
                "an operator took this turn out of the session's queue before it began".into(),
                None,
            ),
            Self::Repeat(key, reason) => reason.content(key, language),
            Self::Session(error) => session_content(error, language),
            Self::AnswerTooLong => answer_too_long_content(language),
            Self::NoRoute => ErrorContent::new(
                say("此处没有服务", "Nothing is served here"),
                "no route takes this method, host and path".into(),
                None,
            ),
            Self::Backend(error) => backend_content(error, language),
            Self::Store(error) => ErrorContent::new(
                say(
                    "暂时无法锁定会话，请稍后再试",
                    "The session can't be locked at the moment",
                ),
                store_detail(error),
                Some(RETRY_SOON),
            ),
            Self::Draining => ErrorContent::new(
                say("服务正在停止，请重试", "This server is stopping"),
                "another replica will take the request; send it again".into(),
                Some(RETRY_SOON),
            ),
            Self::LockLost(
                loss @ (LockLoss::Expired
                | LockLoss::NoHeartbeat
                | LockLoss::Taken
                | LockLoss::NameTaken),
            ) => ErrorContent::new(
                say("本轮对话已中止，请重试", "The turn was stopped"),
                format!("{loss}, so another turn may run"),
                Some(RETRY_SOON),
            ),
            Self::BadRequest(bad) => bad_request_content(*bad, language),
        }
    }
}

// === impl ErrorContent ===

impl ErrorContent {
    fn new(error: &str, detail: String, retry_after: Option<u64>) -> Self {
        Self {
            error: error.into(),
            detail,
            retry_after,
            notice: None,
        }
    }

    /// The body of an error response. Its headers have the reason, and when to try again.
    fn body(&self, format: &ErrorFormat, status: StatusCode, reason: &str) -> Bytes {
        let body = self.contract_body(format, status);
        format.body(&body, reason).into()
    }

    /// The error as an event, which has no headers.
    fn event(&self, format: &ErrorFormat, status: StatusCode, reason: &str) -> Bytes {
        let body = self.contract_body(format, status);
        let retry_after = self.retry_after.filter(|_| format.explains());
        let body = ContractBody {
            reason: Some(reason),
            retry_after_ms: body
                .retry_after_ms
                .or(retry_after.map(|seconds| seconds * 1000)),
            ..body
        };
        format.event(&body, reason)
    }

    fn contract_body(&self, format: &ErrorFormat, status: StatusCode) -> ContractBody<'_> {
        let notice = self.notice.filter(|_| format.explains());
        ContractBody {
            success: false,
            error: &self.error,
            detail: &self.detail,
            status_code: status.as_u16(),
            reason: None,
            retry_after_ms: notice.map(BusyNotice::millis),
            busy: notice.map(Into::into),
        }
    }
}

/// The status of an error with this outcome.
fn status_of(outcome: Outcome) -> StatusCode {
    // Every error has one; a test keeps it so.
    outcome
        .error_status()
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn answer_too_long_content(language: SentenceLanguage) -> ErrorContent {
    let text = language.pick(
        "回答过长，无法从头读取",
        "The answer is too long to be read from its beginning",
    );
    let detail = "the turn's answer is over replay.max_turn, or replay.max_total is reached; read the session's \
                  history when the turn is over";
    ErrorContent::new(text, detail.into(), None)
}

fn session_content(error: &SessionError, language: SentenceLanguage) -> ErrorContent {
    let say = |chinese, english| language.pick(chinese, english);
    let text = match error {
        SessionError::TooLarge { .. } | SessionError::TooDense { .. } => {
            say("请求体过大", "The request's body is too large")
        }
        SessionError::Encoding { .. } | SessionError::EncodedForm => {
            say("不支持请求体的编码", "The body's encoding is not supported")
        }
        SessionError::Late(_) => say(
            "请求体未能按时到达",
            "The request's body did not arrive in time",
        ),
        SessionError::Overloaded => say("服务繁忙，请稍后再试", "This server is overloaded"),
        SessionError::Malformed { .. } => say("无法读取请求体", "The request's body can't be read"),
        SessionError::Ambiguous { .. } => say("请求有歧义", "The request can be read in two ways"),
        SessionError::BadId { .. } => say("请求中的标识无效", "An id in the request can't be used"),
        SessionError::Missing { .. } => say("请求中没有会话标识", "The request names no session"),
    };
    let retry_after = matches!(error, SessionError::Overloaded).then_some(RETRY_SOON);
    ErrorContent::new(text, error.to_string(), retry_after)
}

fn backend_content(error: &ForwardError, language: SentenceLanguage) -> ErrorContent {
    let say = |chinese, english| language.pick(chinese, english);
    match error {
        ForwardError::Unreachable { .. } => ErrorContent::new(
            say("无法连接到智能体", "The agent can't be reached"),
            "no connection to the backend".into(),
            Some(RETRY_SOON),
        ),
        ForwardError::Broken { .. } => ErrorContent::new(
            say("智能体没有响应", "The agent gave no response"),
            "the backend broke off before its response began".into(),
            None,
        ),
        ForwardError::Malformed { .. } => ErrorContent::new(
            say("无法读取智能体的响应", "The agent's response can't be read"),
            "the backend's response is not valid HTTP".into(),
            None,
        ),
        ForwardError::TimedOut { what, .. } => ErrorContent::new(
            say("智能体响应超时", "The agent takes too long"),
            format!("no {what} from the backend in time"),
            None,
        ),
    }
}

fn bad_request_content(bad: BadRequest, language: SentenceLanguage) -> ErrorContent {
    let say = |chinese, english| language.pick(chinese, english);
    let (text, retry_after) = match bad {
        BadRequest::Overloaded(_) => (
            say(
                "连接或请求过多，请稍后再试",
                "There are too many connections or requests",
            ),
            Some(RETRY_SOON),
        ),
        BadRequest::TooSlow => (
            say("请求未能按时到达", "The request did not arrive in time"),
            None,
        ),
        BadRequest::TargetTooLong | BadRequest::HeadTooLarge => {
            (say("请求过大", "The request is too large"), None)
        }
        BadRequest::Malformed(_) | BadRequest::TransferCoding | BadRequest::Version => {
            (say("无法读取请求", "The request can't be read"), None)
        }
    };
    ErrorContent::new(text, bad.to_string(), retry_after)
}

/// What a client may know of a failure of the store: neither its address nor its user.
fn store_detail(error: &StoreError) -> String {
    match error {
        StoreError::Refused { reason, .. } => {
            let kind = reason.split(' ').next().unwrap_or_default();
            format!("the lock store answered: {kind}")
        }
        StoreError::Unreadable { .. } => "the lock store's reply can't be read".into(),
        StoreError::Unconfirmed { .. } => {
            "the replicas of the lock store did not confirm the lock".into()
        }
        StoreError::NoHeartbeat { .. } => {
            "the lock store does not take this server for alive".into()
        }
        StoreError::NameTaken => "another process uses the store.instance of this one".into(),
        StoreError::NotSent { .. }
        | StoreError::NoPassword { .. }
        | StoreError::Unreachable { .. }
        | StoreError::TimedOut { .. } => "the lock store gave no reply".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::lock::BusySession;
    use serde_json::json;

    #[test]
    fn an_invalid_request_gets_the_status_that_its_reason_has() {
        for bad in [
            BadRequest::Malformed("a bare line feed"),
            BadRequest::TooSlow,
            BadRequest::TargetTooLong,
            BadRequest::HeadTooLarge,
            BadRequest::TransferCoding,
            BadRequest::Version,
            BadRequest::TOO_MANY_CONNECTIONS,
        ] {
            assert_eq!(Refusal::BadRequest(bad).status(), bad.status(), "{bad:?}");
        }
    }

    #[test]
    fn a_busy_session_gets_the_error_response_of_the_contract() {
        let key = SessionKey::literal("lock:session:user:session_123");
        let reason = BusyReason::NoWaiting;
        let (config, caller) = (BusyConfig::default(), HeaderMap::new());
        let since = UNIX_EPOCH + Duration::from_micros(1_765_432_100_123_456);
        let notice = BusyNotice {
            retry_after: Duration::from_millis(4_001),
            session: Some(BusySession {
                since: Some(since),
                age: Some(Duration::from_secs(3)),
                waiters: 2,
            }),
        };
        let refusal = Refusal::busy(reason, key, notice, &config, &caller);
        let response = refusal.response(
            &ErrorFormat::new(&config, None),
            SentenceLanguage::default(),
            None,
        );
        assert_eq!(response.status(), 429, "the status of [busy]");
        for (name, value) in [
            ("x-seriatim-error", "session_busy"),
            ("retry-after", "5"),
            ("retry-after-ms", "4001"),
            ("x-seriatim-busy-since", "2025-12-11T05:48:20.123Z"),
            ("x-seriatim-queue", "2"),
            ("content-type", "application/json; charset=utf-8"),
        ] {
            assert_eq!(response.headers()[name], value, "the header {name}");
        }
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        let expected = json!({
            "success": false,
            "error": "AI 正在思考中，请稍后再试",
            "detail": "[lock:session:user:session_123] 锁已被占用",
            "status_code": 429,
            "retry_after_ms": 4001,
            "busy_since": "2025-12-11T05:48:20.123Z",
            "queue": 2,
        });
        assert_eq!(
            body, expected,
            "the contract's four members, and three that explain"
        );
    }
}
