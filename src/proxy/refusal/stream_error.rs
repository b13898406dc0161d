//! Responses of the backend that can't follow the head of an event stream, which their client has got already, and what
//! the client is told in their place.
//!
//! Invariant: what the client is told and what the request's record says come from one match.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, StatusCode};

use super::format::ErrorFormat;
use super::language::SentenceLanguage;
use super::{ErrorContent, Refusal, status_of};
use crate::lock::LockLoss;
use crate::outcome::{ErrorCode, Outcome};

/// Why a response of the backend can't follow the head of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum UnfitResponse {
    /// It has this status, which is an error.
    Failed(StatusCode),
    /// It has this status, which is neither 200 nor an error.
    OtherStatus(StatusCode),
    /// Its content type isn't that of an event stream.
    OtherType,
    /// It is an event stream with a content encoding.
    Encoded,
}

/// What the client is told in place of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum StreamError {
    /// The backend gave another response, to its end.
    Unfit(UnfitResponse),
    /// Another response broke off.
    BrokeOff,
    /// The backend fell silent in another response.
    Silent,
    /// The turn lost its lock during another response.
    LockLost(LockLoss),
}

/// How many characters of a backend's header the log has.
const LONGEST_VALUE: usize = 100;

// === impl UnfitResponse ===

impl UnfitResponse {
    /// What the operator should know beyond outcome and status; `None`: there is nothing more.
    pub(in crate::proxy) fn log_detail(self, headers: &HeaderMap) -> Option<String> {
        let value = |name: HeaderName| {
            let value = headers.get(name)?.to_str().ok()?;
            Some(value.chars().take(LONGEST_VALUE).collect::<String>())
        };
        match self {
            Self::Failed(_) => None,
            Self::OtherStatus(status) => Some(format!("status {}", status.as_u16())),
            Self::OtherType => Some(match value(CONTENT_TYPE) {
                Some(kind) => format!("content type {kind}"),
                None => "no content type".into(),
            }),
            Self::Encoded => {
                let encoding = value(CONTENT_ENCODING).unwrap_or_default();
                Some(format!("content encoding {encoding}"))
            }
        }
    }
}

// === impl StreamError ===

impl StreamError {
    /// The outcome under which the turn is recorded.
    pub(in crate::proxy) fn outcome(self) -> Outcome {
        match self {
            // The client gets what the backend said, with its status. So would one that had not waited.
            Self::Unfit(UnfitResponse::Failed(_)) => Outcome::Complete,
            Self::Unfit(
                UnfitResponse::OtherStatus(_) | UnfitResponse::OtherType | UnfitResponse::Encoded,
            ) => Outcome::NotAnEventStream,
            Self::BrokeOff => Outcome::UpstreamAborted,
            Self::Silent => Outcome::IdleTimeout,
            Self::LockLost(loss) => loss.into(),
        }
    }

    /// The status that the client is told.
    pub(in crate::proxy) fn status(self) -> StatusCode {
        match self {
            Self::Unfit(UnfitResponse::Failed(status)) => status,
            _ => status_of(self.outcome()),
        }
    }

    /// The event for the client. `text` is the beginning of the response's body; empty: it has none that can be read.
    pub(in crate::proxy) fn event(
        self,
        text: &str,
        format: &ErrorFormat,
        language: SentenceLanguage,
    ) -> Bytes {
        let reason = match self.outcome() {
            Outcome::Complete => ErrorCode::UPSTREAM_ERROR.word,
            outcome => outcome.as_str(),
        };
        let content = self.content(text, language);
        content.event(format, self.status(), reason)
    }

    fn content(self, text: &str, language: SentenceLanguage) -> ErrorContent {
        let say = |chinese, english| language.pick(chinese, english);
        let no_stream = say("智能体没有返回事件流", "The agent gave no event stream");
        let told_status = |status: StatusCode| match text {
            "" => format!("the backend answered with status {}", status.as_u16()),
            text => text.to_owned(),
        };
        let (error, detail) = match self {
            Self::Unfit(UnfitResponse::Failed(status)) if status.is_client_error() => (
                say("智能体拒绝了请求", "The agent refused the request"),
                told_status(status),
            ),
            Self::Unfit(UnfitResponse::Failed(status)) => {
                (say("智能体出错了", "The agent failed"), told_status(status))
            }
            Self::Unfit(UnfitResponse::OtherStatus(status)) => (no_stream, told_status(status)),
            Self::Unfit(UnfitResponse::OtherType) => (no_stream, told_status(StatusCode::OK)),
            Self::Unfit(UnfitResponse::Encoded) => (
                say(
                    "智能体返回了压缩的事件流",
                    "The agent compressed its event stream",
                ),
                "the backend's event stream has a content encoding".into(),
            ),
            Self::BrokeOff => (
                say(
                    "智能体中断了响应",
                    "The agent broke off in the middle of its response",
                ),
                "the backend broke off".into(),
            ),
            Self::Silent => (
                say("智能体响应超时", "The agent takes too long"),
                "the backend was silent for too long".into(),
            ),
            Self::LockLost(loss) => return Refusal::LockLost(loss).content(language),
        };
        ErrorContent::new(error, detail, None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn each_failure_of_the_backend_has_plain_words_in_both_languages() {
        let unfit = StreamError::Unfit;
        for (error, status, reason, chinese, english) in [
            (
                unfit(UnfitResponse::Failed(StatusCode::NOT_FOUND)),
                404,
                "upstream_error",
                "智能体拒绝了请求",
                "The agent refused the request",
            ),
            (
                unfit(UnfitResponse::Failed(StatusCode::SERVICE_UNAVAILABLE)),
                503,
                "upstream_error",
                "智能体出错了",
                "The agent failed",
            ),
            (
                unfit(UnfitResponse::OtherStatus(StatusCode::FOUND)),
                502,
                "not_an_event_stream",
                "智能体没有返回事件流",
                "The agent gave no event stream",
            ),
            (
                unfit(UnfitResponse::OtherType),
                502,
                "not_an_event_stream",
                "智能体没有返回事件流",
                "The agent gave no event stream",
            ),
            (
                unfit(UnfitResponse::Encoded),
                502,
                "not_an_event_stream",
                "智能体返回了压缩的事件流",
                "The agent compressed its event stream",
            ),
            (
                StreamError::BrokeOff,
                502,
                "upstream_aborted",
                "智能体中断了响应",
                "The agent broke off in the middle of its response",
            ),
            (
                StreamError::Silent,
                504,
                "idle_timeout",
                "智能体响应超时",
                "The agent takes too long",
            ),
        ] {
            for (language, sentence) in [
                (SentenceLanguage::Chinese, chinese),
                (SentenceLanguage::English, english),
            ] {
                let event = error.event("", &ErrorFormat::default(), language);
                let event = String::from_utf8(event.into()).unwrap();
                let data = event.strip_prefix("event: error\ndata: ").unwrap();
                let data: Value = serde_json::from_str(data).unwrap();
                assert_eq!(
                    [&data["error"], &data["reason"], &data["status_code"]],
                    [
                        &Value::from(sentence),
                        &Value::from(reason),
                        &Value::from(status)
                    ],
                    "{error:?}"
                );
                assert_eq!(
                    error.status().as_u16(),
                    status,
                    "{error:?}: the record has the same status"
                );
            }
        }
    }
}
