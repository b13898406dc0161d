//! Messages from one instance to another about a claim.
//!
//! Invariant: a message is a hint. It may get lost, so whoever receives one asks the store; only
//! `interrupt`, `stop` and `taken` end a turn, `superseded` and `dequeued` end its waiting, and `operated` is for the log. An
//! instance ignores a message that it can't parse, because a newer version may have sent it.

use std::fmt;
use std::str::FromStr;

use super::format::INSTANCE_FORMAT;
use super::{ClaimId, ForeignText};
use crate::key::SessionKey;

/// A message from one instance to another about a claim of the receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The lock was offered to the claim.
    Granted(ClaimId),
    /// A newer turn has replaced the claim in the queue.
    Superseded(ClaimId),
    /// An operator has taken the claim out of the queue.
    Dequeued(ClaimId),
    /// The turn has to stop: a newer turn replaces it, or an operator stops it.
    Interrupt(ClaimId),
    /// The turn has to stop, and its instance tells the sender whether it does.
    Stop(ClaimId, StopSender),
    /// The reply to [`Message::Stop`], about the sender's own claim: the turn stops.
    Stops(ClaimId),
    /// The reply to [`Message::Stop`]: the turn is over, or can't be stopped.
    GoesOn(ClaimId),
    /// An operator has taken the lock away.
    Taken(ClaimId),
    /// The claim holds this session's lock, and the sender asks whether a turn still runs under it.
    InUse(ClaimId, SessionKey),
    /// An operator has released this session's lock, or interrupts its turn: for the log of the holder's instance.
    Operated(ClaimId, OperatorAction, Operated),
}

/// Who asks for a turn to stop, and wants to know whether it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopSender {
    /// The id that the replies are about. No turn has it.
    pub id: ClaimId,
    /// The name of the instance that gets the replies.
    pub instance: Box<str>,
}

/// What an operator does to a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorAction {
    /// Takes the lock away.
    ForceRelease,
    /// Stops the turn.
    Interrupt,
    /// Takes the waiting turn out of the queue.
    Dequeue,
}

/// Who acts as an operator, and on which lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operated {
    /// The address of the caller, or user and host of the command; without white space.
    pub by: Box<str>,
    /// The id of the turn's request, without white space.
    pub request: Box<str>,
    /// The session of the lock.
    pub key: SessionKey,
}

/// Receives the messages for an instance.
pub trait MessageHandler: fmt::Debug + Send + Sync {
    /// Handles a message. Must not block.
    fn on_message(&self, message: Message);

    /// Handles a new connection to the store. Messages may have been lost before it.
    fn on_reconnect(&self);
}

// === impl Message ===

impl Message {
    /// The claim that the message is about.
    pub(super) fn claim(&self) -> ClaimId {
        match self {
            Self::Granted(id)
            | Self::Superseded(id)
            | Self::Dequeued(id)
            | Self::Interrupt(id)
            | Self::Taken(id)
            | Self::Stop(id, _)
            | Self::Stops(id)
            | Self::GoesOn(id)
            | Self::InUse(id, _)
            | Self::Operated(id, ..) => *id,
        }
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{INSTANCE_FORMAT} ")?;
        match self {
            Self::Granted(id) => write!(f, "granted {id}"),
            Self::Superseded(id) => write!(f, "superseded {id}"),
            Self::Dequeued(id) => write!(f, "dequeued {id}"),
            Self::Interrupt(id) => write!(f, "interrupt {id}"),
            Self::Taken(id) => write!(f, "taken {id}"),
            Self::Stop(id, sender) => write!(f, "stop {id} {} {}", sender.id, sender.instance),
            Self::Stops(id) => write!(f, "stops {id}"),
            Self::GoesOn(id) => write!(f, "goes_on {id}"),
            Self::InUse(id, key) => write!(f, "in_use {id} {}", key.as_str()),
            Self::Operated(id, action, Operated { by, request, key }) => {
                let (action, key) = (action.word(), key.as_str());
                write!(f, "operated {id} {action} {by} {request} {key}")
            }
        }
    }
}

impl FromStr for Message {
    type Err = ForeignText;

    fn from_str(text: &str) -> Result<Self, ForeignText> {
        let (format, text) = text.split_once(' ').ok_or(ForeignText)?;
        if format.parse() != Ok(INSTANCE_FORMAT) {
            return Err(ForeignText);
        }
        let (kind, rest) = text.split_once(' ').ok_or(ForeignText)?;
        if kind == "in_use" {
            let (id, key) = rest.split_once(' ').ok_or(ForeignText)?;
            return Ok(Self::InUse(id.parse()?, SessionKey::literal(key)));
        }
        if kind == "stop" {
            let (id, sender) = rest.split_once(' ').ok_or(ForeignText)?;
            let (sender, instance) = sender.split_once(' ').ok_or(ForeignText)?;
            let sender = StopSender {
                id: sender.parse()?,
                instance: instance.into(),
            };
            return Ok(Self::Stop(id.parse()?, sender));
        }
        if kind == "operated" {
            let mut parts = rest.splitn(5, ' ');
            let mut next = || {
                parts
                    .next()
                    .filter(|part| !part.is_empty())
                    .ok_or(ForeignText)
            };
            let (id, action, by, request, key) = (next()?, next()?, next()?, next()?, next()?);
            let operated = Operated {
                by: by.into(),
                request: request.into(),
                key: SessionKey::literal(key),
            };
            return Ok(Self::Operated(id.parse()?, action.parse()?, operated));
        }
        let id = rest.parse()?;
        match kind {
            "granted" => Ok(Self::Granted(id)),
            "superseded" => Ok(Self::Superseded(id)),
            "dequeued" => Ok(Self::Dequeued(id)),
            "interrupt" => Ok(Self::Interrupt(id)),
            "taken" => Ok(Self::Taken(id)),
            "stops" => Ok(Self::Stops(id)),
            "goes_on" => Ok(Self::GoesOn(id)),
            _ => Err(ForeignText),
        }
    }
}

// === impl OperatorAction ===

impl OperatorAction {
    fn word(self) -> &'static str {
        match self {
            Self::ForceRelease => "release",
            Self::Interrupt => "interrupt",
            Self::Dequeue => "dequeue",
        }
    }
}

impl FromStr for OperatorAction {
    type Err = ForeignText;

    fn from_str(text: &str) -> Result<Self, ForeignText> {
        [Self::ForceRelease, Self::Interrupt, Self::Dequeue]
            .into_iter()
            .find(|action| action.word() == text)
            .ok_or(ForeignText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Epoch;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let id = ClaimId {
            epoch: Epoch(u64::MAX),
            number: 0x1f,
        };
        let key = SessionKey::literal("lock:session:u1:a b");
        let operated = Operated {
            by: "root@host".into(),
            request: "r-1".into(),
            key: key.clone(),
        };
        let sender = StopSender {
            id,
            instance: "pod 1".into(),
        };
        let texts = [
            ("granted ID", Message::Granted(id)),
            ("superseded ID", Message::Superseded(id)),
            ("dequeued ID", Message::Dequeued(id)),
            ("interrupt ID", Message::Interrupt(id)),
            ("taken ID", Message::Taken(id)),
            ("stop ID ID pod 1", Message::Stop(id, sender)),
            ("stops ID", Message::Stops(id)),
            ("goes_on ID", Message::GoesOn(id)),
            ("in_use ID lock:session:u1:a b", Message::InUse(id, key)),
            (
                "operated ID release root@host r-1 lock:session:u1:a b",
                Message::Operated(id, OperatorAction::ForceRelease, operated),
            ),
        ];
        for (text, message) in texts {
            // Other versions write and read it like this.
            let text = format!("1 {}", text.replace("ID", "ffffffffffffffff-1f"));
            assert_eq!(message.to_string(), text, "as it is written");
            assert_eq!(text.parse(), Ok(message), "as it is read");
        }
        for odd in [
            "",
            "granted 1-1",
            "2 granted 1-1",
            "1 granted",
            "1 granted x-1",
            "1 granted 1",
            "1 granted 1-1 k",
            "1 in_use 1-1",
            "1 stop 1-1",
            "1 stop 1-1 1-1",
            "1 operated 1-1 steal a r k",
            "1 operated 1-1 release a r",
            "1 operated 1-1 release a r ",
            "1 sing 1-1",
        ] {
            assert_eq!(odd.parse::<Message>(), Err(ForeignText), "{odd:?} is none");
        }
    }
}
