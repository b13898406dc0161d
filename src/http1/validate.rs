//! Validates what a client sends over HTTP/1, before hyper reads it.
//!
//! Invariant: hyper gets only complete and valid heads, and bodies with valid framing. What could be
//! read in two ways (RFC 9112 §11.2) is refused; hyper's own parser accepts bare line feeds, two
//! framings at once and lists of lengths, and responds to errors by itself. The validator knows bytes and
//! the memory of large heads, and neither a socket nor the time. Of a head's meaning it knows only the
//! framing.

use crate::header_names::OriginalNames;
use crate::service::{
    BadRequest, HEAD_BUDGET_EXCEEDED, HeadBudget, HeadReservation, RejectedRequest,
};
use chunked::ChunkedReader;
use fields::BodyFraming;
use head::{CompleteHead, HeadReader};

pub(crate) use fields::HeaderFields;
pub(crate) use head::MAX_TARGET;
pub(super) use head::OptionsTarget;

mod chunked;
mod field;
mod fields;
mod head;
#[cfg(test)]
mod tests;

/// Follows the requests of one connection.
#[cfg_attr(test, derive(Default))]
pub(super) struct RequestValidator {
    state: ValidatorState,
    /// The memory for the connection's largest head: hyper keeps the buffer that the head was in.
    pub(super) memory: HeadReservation,
    head: HeadReader,
    /// How many heads have passed.
    heads: u64,
    /// The request that is being received asks for an upgrade.
    has_upgrade: bool,
    /// The targets of requests that have passed since the last [`RequestValidator::take_options_targets`].
    options_targets: Vec<OptionsTarget>,
    /// The names of heads that have passed since the last [`RequestValidator::take_names`], with the request's number.
    names: Vec<(u64, OriginalNames)>,
}

#[derive(Debug, Default)]
enum ValidatorState {
    /// A request's head is expected, or is being received.
    #[default]
    Head,
    /// A body of which this many bytes are left.
    Length(u64),
    Chunked(ChunkedReader),
    /// A request asks for an upgrade, and its response has not begun.
    UpgradePending,
    /// The connection is a tunnel: the bytes aren't HTTP any more.
    Tunnel,
    /// Something was refused: nothing passes any more.
    Rejected,
}

/// How many of the offered bytes may pass.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Validated {
    /// The number of bytes that may pass. Offer the others again, together with the bytes that have
    /// arrived by then.
    pub(super) bytes: usize,
    /// Why the bytes behind them must never pass; `None`: nothing is refused so far.
    pub(super) rejected: Option<RejectedRequest>,
}

/// Validates one request's head as a connection does, without its connection. `bytes` are the whole head.
///
/// # Errors
/// If the head is malformed or too large.
pub(crate) fn check_head(bytes: &[u8]) -> Result<(), BadRequest> {
    let mut validator = RequestValidator::new(&HeadBudget::default());
    let rejected = validator.validate(bytes).rejected;
    rejected.map_or(Ok(()), |rejected| Err(rejected.reason))
}

// === impl RequestValidator ===

impl RequestValidator {
    /// A validator for a connection that has sent nothing yet. Large heads reserve memory of `heads`.
    pub(super) fn new(heads: &HeadBudget) -> Self {
        Self {
            state: ValidatorState::default(),
            memory: heads.reserve(),
            head: HeadReader::default(),
            heads: 0,
            has_upgrade: false,
            options_targets: Vec::new(),
            names: Vec::new(),
        }
    }

    /// Validates `bytes`: everything that has arrived and not passed yet.
    pub(super) fn validate(&mut self, bytes: &[u8]) -> Validated {
        let mut at = 0;
        let rejected = loop {
            let rest = &bytes[at..];
            match &mut self.state {
                ValidatorState::Head => match self.head.read(rest) {
                    Ok(head) if !self.memory.reserve_head(head_length(&head, rest)) => {
                        break Some(HEAD_BUDGET_EXCEEDED.into());
                    }
                    Ok(None) => break None,
                    Ok(Some(head)) => {
                        at += head.length;
                        self.heads += 1;
                        self.has_upgrade = head.has_upgrade;
                        self.options_targets.extend(head.options_target);
                        self.names
                            .extend(head.names.map(|names| (self.heads, names)));
                        self.state = match head.framing {
                            BodyFraming::Length(0) => self.after_body(),
                            BodyFraming::Length(length) => ValidatorState::Length(length),
                            BodyFraming::Chunked => ValidatorState::Chunked(ChunkedReader::new()),
                        };
                    }
                    Err(reason) => {
                        break Some(RejectedRequest {
                            line: self.head.request_line(rest),
                            ..reason.into()
                        });
                    }
                },
                ValidatorState::Length(left) => {
                    let count = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= count as u64;
                    at += count;
                    if *left > 0 {
                        break None;
                    }
                    self.state = self.after_body();
                }
                ValidatorState::Chunked(chunked) => match chunked.read(rest) {
                    Ok(read) => {
                        at += read.bytes;
                        if !read.is_end {
                            break None;
                        }
                        self.state = self.after_body();
                    }
                    Err(reason) => {
                        break Some(RejectedRequest {
                            is_in_body: true,
                            ..reason.into()
                        });
                    }
                },
                ValidatorState::UpgradePending | ValidatorState::Rejected => break None,
                ValidatorState::Tunnel => {
                    at = bytes.len();
                    break None;
                }
            }
            if at == bytes.len() {
                break None;
            }
        };
        if rejected.is_some() {
            self.state = ValidatorState::Rejected;
        }
        Validated {
            bytes: at,
            rejected,
        }
    }

    /// Takes the targets of the OPTIONS requests that have passed and that hyper hands out without telling
    /// them apart, in their order.
    pub(super) fn take_options_targets(&mut self) -> Vec<OptionsTarget> {
        std::mem::take(&mut self.options_targets)
    }

    /// Takes the names of the heads that have passed and are not in lower case, each with the request's number, counted
    /// from 1, in their order.
    pub(super) fn take_names(&mut self) -> Vec<(u64, OriginalNames)> {
        std::mem::take(&mut self.names)
    }

    /// Whether a head is expected or being received.
    pub(super) fn is_at_head(&self) -> bool {
        matches!(self.state, ValidatorState::Head)
    }

    /// Whether the next bytes wait for [`RequestValidator::on_upgrade_answer`].
    pub(super) fn is_upgrade_pending(&self) -> bool {
        matches!(self.state, ValidatorState::UpgradePending)
    }

    /// Whether the head of a request that asks for an upgrade has passed, and its response has not begun.
    pub(super) fn has_upgrade_request(&self) -> bool {
        self.is_upgrade_pending() || self.is_in_body() && self.has_upgrade
    }

    /// Notes that the response to a request that asks for an upgrade has begun, and whether it made the
    /// connection a tunnel.
    pub(super) fn on_upgrade_answer(&mut self, is_tunnel: bool) {
        if is_tunnel {
            self.state = ValidatorState::Tunnel;
        } else if self.is_upgrade_pending() {
            self.state = ValidatorState::Head;
        } else {
            // The response began before the request's end.
            self.has_upgrade = false;
        }
    }

    /// Whether a request's body is being received.
    pub(super) fn is_in_body(&self) -> bool {
        matches!(
            self.state,
            ValidatorState::Length(_) | ValidatorState::Chunked(_)
        )
    }

    /// The number of the request whose head has passed last, counted from 1; 0: none has.
    pub(super) fn request(&self) -> u64 {
        self.heads
    }

    /// How many bytes of that request's body have still to come; `None`: it has no length.
    pub(super) fn body_rest(&self) -> Option<u64> {
        match self.state {
            ValidatorState::Length(left) => Some(left),
            ValidatorState::Chunked(_) => None,
            _ => Some(0),
        }
    }

    fn after_body(&self) -> ValidatorState {
        match self.has_upgrade {
            true => ValidatorState::UpgradePending,
            false => ValidatorState::Head,
        }
    }
}

/// The length of a head in bytes, as far as it has arrived.
fn head_length(head: &Option<CompleteHead>, bytes: &[u8]) -> usize {
    head.as_ref().map_or(bytes.len(), |head| head.length)
}
