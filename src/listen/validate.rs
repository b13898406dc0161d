//! What a client sends over HTTP/1, looked at before hyper sees it.
//!
//! Invariant: hyper gets heads that are complete and in order, and bodies whose framing is; whatever
//! could be read in two ways (RFC 9112 §11.2) goes no further. hyper's own parser takes bare line
//! feeds, two framings at once and lists of lengths, and answers what it doesn't take by itself.
//! In here there are bytes and the count of what large heads take, and nothing else: no socket, no time.
//! [`Screen::pass`] says how many bytes may go on; what a head means is not known here, except for its
//! framing.

use super::bad_request::{BadRequest, RejectedRequest};
use super::room::{FULL, HeadReservation, HeadRoom};
use chunked::ChunkedReader;
use fields::BodyFraming;
use head::{CompleteHead, HeadReader};

pub use field::{is_alike, is_head_only};
pub(super) use fields::HeaderFields;
pub(super) use head::MAX_TARGET;

mod chunked;
mod field;
mod fields;
mod head;
#[cfg(test)]
mod tests;

/// Follows the requests of one connection. Made once for each.
#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
pub struct Screen {
    state: State,
    /// What its largest head takes: hyper keeps the buffer that it was in.
    pub(super) room: HeadReservation,
    head: HeadReader,
    /// What follows the body that is under way.
    then: Then,
}

#[derive(Debug, Default)]
enum State {
    /// A request's head, from its first byte on.
    #[default]
    Head,
    /// A body of which so many bytes are to come.
    Length(u64),
    Chunked(ChunkedReader),
    /// Behind a request that may turn the connection into a tunnel.
    Undecided,
    /// Nothing in here is HTTP any more.
    Tunnel,
    /// What has come was refused: nothing passes any more.
    Refused,
}

#[derive(Clone, Copy, Debug, Default)]
enum Then {
    #[default]
    Head,
    Undecided,
}

/// How much of what was offered may pass.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// So many bytes; the rest is to be offered again, with what has come by then.
    pub bytes: usize,
    /// What comes behind them must not pass, now and ever.
    pub refused: Option<RejectedRequest>,
}

// === impl Screen ===

impl Screen {
    /// For a connection that has sent nothing yet, and takes what it needs of this room.
    pub fn within(room: &HeadRoom) -> Self {
        Self {
            state: State::default(),
            room: room.take(),
            head: HeadReader::default(),
            then: Then::default(),
        }
    }

    /// Looks at `bytes`: all that has come and not passed yet.
    pub fn pass(&mut self, bytes: &[u8]) -> Passed {
        let mut at = 0;
        let refused = loop {
            let rest = &bytes[at..];
            match &mut self.state {
                State::Head => match self.head.read(rest) {
                    Ok(read) if !self.room.fits_head(length(&read, rest)) => {
                        break Some(FULL.into());
                    }
                    Ok(None) => break None,
                    Ok(Some(whole)) => {
                        at += whole.length;
                        self.then = match whole.may_upgrade {
                            true => Then::Undecided,
                            false => Then::Head,
                        };
                        self.state = match whole.framing {
                            BodyFraming::Length(0) => self.behind_the_body(),
                            BodyFraming::Length(length) => State::Length(length),
                            BodyFraming::Chunked => State::Chunked(ChunkedReader::new()),
                        };
                    }
                    Err(why) => {
                        let line = self.head.line(rest);
                        break Some(RejectedRequest {
                            why,
                            line,
                            in_body: false,
                        });
                    }
                },
                State::Length(left) => {
                    let taken = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    at += taken;
                    if *left > 0 {
                        break None;
                    }
                    self.state = self.behind_the_body();
                }
                State::Chunked(chunked) => match chunked.read(rest) {
                    Ok(read) => {
                        at += read.bytes;
                        if !read.is_end {
                            break None;
                        }
                        self.state = self.behind_the_body();
                    }
                    Err(why) => {
                        break Some(RejectedRequest {
                            why,
                            line: None,
                            in_body: true,
                        });
                    }
                },
                State::Undecided | State::Refused => break None,
                State::Tunnel => {
                    at = bytes.len();
                    break None;
                }
            }
            if at == bytes.len() {
                break None;
            }
        };
        if refused.is_some() {
            self.state = State::Refused;
        }
        Passed { bytes: at, refused }
    }

    /// Whether what is to come next is a head, or the rest of one.
    pub fn is_at_a_head(&self) -> bool {
        matches!(self.state, State::Head)
    }

    /// Whether what is to come next waits for [`Screen::decide`].
    pub fn is_undecided(&self) -> bool {
        matches!(self.state, State::Undecided)
    }

    /// Whether a request has passed, or its head, whose answer is to be told by [`Screen::decide`].
    pub fn awaits_decision(&self) -> bool {
        self.is_undecided() || self.is_in_a_body() && matches!(self.then, Then::Undecided)
    }

    /// The request that could turn the connection into a tunnel was answered, and did or didn't.
    pub fn decide(&mut self, is_tunnel: bool) {
        if is_tunnel {
            self.state = State::Tunnel;
        } else if self.is_undecided() {
            self.state = State::Head;
        } else {
            // The answer came before the request's end.
            self.then = Then::Head;
        }
    }

    /// Whether the body of a request is under way.
    pub fn is_in_a_body(&self) -> bool {
        matches!(self.state, State::Length(_) | State::Chunked(_))
    }

    fn behind_the_body(&mut self) -> State {
        match self.then {
            Then::Head => State::Head,
            Then::Undecided => State::Undecided,
        }
    }
}

/// How long a head is, as far as it has come.
fn length(read: &Option<CompleteHead>, bytes: &[u8]) -> usize {
    read.as_ref().map_or(bytes.len(), |whole| whole.length)
}
