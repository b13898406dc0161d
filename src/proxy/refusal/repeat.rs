//! The refusals of a request that repeats another one of its session, or that takes another one's once id.
//!
//! Invariant: only a repeat of a turn that still waits or runs may be sent again by itself. A client library that
//! repeats the others by itself would get the same again.

use super::{BusyNotice, ErrorContent, SentenceLanguage};
use crate::key::SessionKey;
use crate::lock::{RepeatedState, RepeatedTurn};
use crate::outcome::Outcome;

/// Why a request with a once id that its session has seen gets no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum RepeatReason {
    /// The turn that it repeats waits or runs.
    Running(BusyNotice),
    /// The turn that it repeats has ended, and its answer isn't kept.
    Answered,
    /// Nobody knows whether the turn that it repeats was run to its end.
    InDoubt,
    /// The once id is that of another request.
    KeyReused,
}

// === impl RepeatReason ===

impl RepeatReason {
    /// The reason for a request that repeats this turn. `notice` is for one that still waits or runs.
    pub(in crate::proxy) fn new(first: &RepeatedTurn, notice: BusyNotice) -> Self {
        match first.state {
            RepeatedState::Waits | RepeatedState::Runs => Self::Running(notice),
            RepeatedState::Ended => Self::Answered,
            RepeatedState::InDoubt => Self::InDoubt,
        }
    }

    /// The outcome under which the request is recorded.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Running(_) => Outcome::DuplicateTurn,
            Self::Answered => Outcome::AlreadyAnswered,
            Self::InDoubt => Outcome::InDoubt,
            Self::KeyReused => Outcome::KeyReused,
        }
    }

    /// Whether the same request may succeed later.
    pub(super) fn may_pass(self) -> bool {
        matches!(self, Self::Running(_))
    }

    /// What the error response says.
    pub(super) fn content(self, key: &SessionKey, language: SentenceLanguage) -> ErrorContent {
        let say = |chinese, english| language.pick(chinese, english);
        let (text, detail) = match self {
            Self::Running(_) => (
                say("同一请求正在处理中", "The same request is being worked on"),
                "a turn with the same once id waits or runs; this request was not sent to the agent",
            ),
            Self::Answered => (
                say(
                    "同一请求已处理完毕",
                    "The same request was answered already",
                ),
                "a turn with the same once id has ended; this request was not sent to the agent",
            ),
            Self::InDoubt => (
                say(
                    "无法确定同一请求是否已处理",
                    "The same request may have been worked on",
                ),
                "a turn with the same once id was cut off, and nobody knows what the agent did with it; look at \
                 the conversation, and use a new id to send it again",
            ),
            Self::KeyReused => (
                say(
                    "该请求标识已用于另一个请求",
                    "The once id belongs to another request",
                ),
                "another request of this session has the same once id; use a new id for each request",
            ),
        };
        let detail = format!("[{}] {detail}", key.as_str());
        let mut content = ErrorContent::new(text, detail, None);
        if let Self::Running(notice) = self {
            content.notice = Some(notice);
        }
        content
    }
}
