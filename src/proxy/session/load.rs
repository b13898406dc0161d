//! Loads the body that a decision asks for: reads it to its end and decodes it.
//!
//! Invariant: no more than `limits.max_body` bytes are held of one body, as it came or decoded, and every
//! byte that is held is counted in the budget. What the head alone rules out is refused before the body
//! is read, where a client may still wait to be asked for it (`expect: 100-continue`).

use bytes::Bytes;
use http::request::Parts;
use http_body::Body;
use tokio::task::yield_now;

use super::body_kind::BodyKind;
use super::content::{BodyContent, LoadedBody, is_json_encoded};
use super::encoding::{Decoding, Encoding};
use super::error::SessionError;
use super::work_limit::{BodySize, SMALL};
use crate::budget::{Budget, Reservation, ReservedBytes};
use crate::config::Limits;
use crate::listen::ClientBody;
use crate::proxy::body_timer::{BodyLimits, BodyReadError, BodyTimer};

/// A request's body that is still to be received. The proxy's is [`ClientBody`].
pub(in crate::proxy) trait UnreadBody:
    Body<Data = Bytes, Error = hyper::Error> + Send + Unpin + 'static
{
    /// Whether the client waits to be asked for the body (`expect: 100-continue`).
    fn is_withheld(&self) -> bool;
}

impl UnreadBody for ClientBody {
    fn is_withheld(&self) -> bool {
        self.is_withheld()
    }
}

/// A request's body, read or not.
#[derive(Debug)]
pub(in crate::proxy) enum RequestBody<B> {
    /// Nothing of the body has been read.
    Unread(B),
    /// The body has been read to its end.
    Read(ReservedBytes),
}

/// The limits within which a body is read.
pub(in crate::proxy) struct ReadBounds<'c> {
    /// The limits on bytes: `max_body` for one body, `max_buffered` for all of them.
    pub(in crate::proxy) limits: &'c Limits,
    /// How long the body may take to come.
    pub(in crate::proxy) body: BodyLimits,
    /// Counts the bytes of all bodies that are held.
    pub(in crate::proxy) budget: &'c Budget,
}

/// Appends to a body that has at most `longest` bytes. Makes room for twice what has come: a client that
/// announces much and sends little takes little memory.
fn append(whole: &mut Vec<u8>, data: &[u8], longest: usize) {
    let needed = whole.len() + data.len();
    if needed > whole.capacity() {
        let room = (2 * whole.len()).min(longest).max(needed);
        whole.reserve_exact(room - whole.len());
    }
    whole.extend_from_slice(data);
}

// === impl RequestBody ===

impl<B> RequestBody<B> {
    /// The bytes of the body as they were sent; `None`: they haven't been read.
    pub(super) fn read(&self) -> Option<&Bytes> {
        match self {
            Self::Unread(_) => None,
            Self::Read(whole) => Some(whole.body()),
        }
    }
}

// === impl ReadBounds ===

impl ReadBounds<'_> {
    /// Loads a body for a decision that depends on it.
    ///
    /// Dropping the future drops the body.
    ///
    /// # Errors
    /// When the body is too large, doesn't come, or there is no room for it.
    pub(super) async fn load<B: UnreadBody>(
        &self,
        head: &Parts,
        body: B,
    ) -> Result<(BodyContent, RequestBody<B>), SessionError> {
        if body.is_end_stream() {
            return Ok((BodyContent::Empty, RequestBody::Unread(body)));
        }
        let encodings = match Encoding::all(head) {
            Ok(encodings) => encodings,
            Err(error) if error.is_unreadable() => {
                return Ok((BodyContent::Unreadable(error), RequestBody::Unread(body)));
            }
            Err(error) => return Err(error),
        };
        let whole = self.buffer(body).await?;
        let content = self.content(head, &encodings, whole.body()).await?;
        Ok((content, RequestBody::Read(whole)))
    }

    /// Reads a body that is needed as it was sent, unless that has been done.
    ///
    /// Dropping the future drops the body.
    ///
    /// # Errors
    /// When the body is too large, doesn't come, or there is no room for it.
    pub(super) async fn load_as_sent<B: UnreadBody>(
        &self,
        body: RequestBody<B>,
    ) -> Result<RequestBody<B>, SessionError> {
        match body {
            RequestBody::Unread(body) if !body.is_end_stream() => {
                Ok(RequestBody::Read(self.buffer(body).await?))
            }
            known => Ok(known),
        }
    }

    /// Loads the body of a request whose session is known, for the id of the call in it. Unless the body
    /// `is_needed` anyway, it stays unread if it doesn't announce a length for which there is room: a request isn't
    /// refused for what only an error response needs.
    ///
    /// Dropping the future drops the body.
    ///
    /// # Errors
    /// When the body doesn't come.
    pub(super) async fn load_for_call_id<B: UnreadBody>(
        &self,
        head: &Parts,
        body: B,
        is_needed: bool,
    ) -> Result<(BodyContent, RequestBody<B>), SessionError> {
        let is_read = match is_needed {
            true => !body.is_end_stream(),
            false => self.has_room(&body, self.limits.max_body),
        };
        if !is_read {
            return Ok((BodyContent::Unread, RequestBody::Unread(body)));
        }
        let whole = self.buffer(body).await?;
        let content = match Encoding::all(head) {
            Ok(encodings) => self.content(head, &encodings, whole.body()).await,
            Err(error) => Err(error),
        };
        let content = content.unwrap_or_else(BodyContent::Unreadable);
        Ok((content, RequestBody::Read(whole)))
    }

    /// Loads the body of a request that its head rules out, for the id of the call in it. `None`: it isn't
    /// small, doesn't come, or its client waits to be asked for it.
    ///
    /// Dropping the future drops the body.
    pub(super) async fn load_for_refusal<B: UnreadBody>(
        &self,
        head: &Parts,
        body: B,
    ) -> Option<BodyContent> {
        let longest = SMALL.min(self.limits.max_body);
        if body.is_withheld() || !self.has_room(&body, longest) {
            return None;
        }
        let (content, _) = self.load_for_call_id(head, body, false).await.ok()?;
        Some(content)
    }

    /// Whether a body announces a length, and there is room for it.
    fn has_room(&self, body: &impl UnreadBody, longest: usize) -> bool {
        let announced = body.size_hint().exact().map(usize::try_from);
        match announced {
            Some(Ok(length)) if length > 0 && length <= longest => {
                let mut reserved = self.budget.reserve();
                reserved.grow(length, self.limits.max_buffered)
            }
            _ => false,
        }
    }

    /// The content of a body that has been read.
    async fn content(
        &self,
        head: &Parts,
        encodings: &[Encoding],
        body: &Bytes,
    ) -> Result<BodyContent, SessionError> {
        let is_encoded = !encodings.is_empty();
        let text = match is_encoded {
            false => Ok(body.clone()),
            true => self.decode(encodings, body).await,
        };
        match text {
            // Decoded it says one thing, and as it came perhaps another.
            Ok(_) if is_encoded && is_json_encoded(body) => Ok(BodyContent::Unreadable(
                SessionError::malformed("it has a content-encoding, and is JSON without decoding"),
            )),
            Ok(text) => Ok(BodyContent::Loaded(LoadedBody {
                text,
                kind: BodyKind::new(head),
                is_encoded,
            })),
            Err(error) if error.is_unreadable() => Ok(BodyContent::Unreadable(error)),
            Err(error) => Err(error),
        }
    }

    /// Reads a body to its end.
    async fn buffer(&self, mut body: impl UnreadBody) -> Result<ReservedBytes, SessionError> {
        let max = self.limits.max_body;
        let announced = body.size_hint().exact().map(usize::try_from);
        let longest = match announced {
            None => max,
            Some(Ok(length)) if length <= max => length,
            Some(_) => return Err(SessionError::TooLarge { max }),
        };
        let mut reserved = self.budget.reserve();
        let mut whole = Vec::new();
        let mut timer = BodyTimer::new(self.body);
        loop {
            let frame = reserved.reclaimable_until(timer.frame(&mut body)).await;
            let Some(frame) = frame.ok_or(BodyReadError::TakenBack)?? else {
                return Ok(reserved.with(whole.into()));
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if whole.len() + data.len() > max {
                return Err(SessionError::TooLarge { max });
            }
            self.grow(&mut reserved, data.len())?;
            if whole.is_empty() && body.is_end_stream() {
                // It came in one piece, and isn't copied.
                return Ok(reserved.with(data));
            }
            append(&mut whole, &data, longest);
        }
    }

    /// Decodes a body, and lets other turns go on meanwhile.
    async fn decode(&self, encodings: &[Encoding], body: &[u8]) -> Result<Bytes, SessionError> {
        let mut decoding = Decoding::new(encodings, body, self.limits.max_body)?;
        let mut reserved = self.budget.reserve();
        // Each stage keeps a window of what came out of it.
        let copies = 1 + encodings.len();
        let (mut size, mut permit) = (BodySize::Small, None);
        let mut before = 0;
        loop {
            let (now, is_all) = decoding.step()?;
            self.grow(&mut reserved, copies * (now - before))?;
            if is_all {
                reserved.shrink(encodings.len() * now);
                return Ok(reserved.with(decoding.finish().into()).into_bytes());
            }
            if size != BodySize::new(now) {
                size = BodySize::new(now);
                drop(permit);
                permit = size.permit().await?;
            }
            before = now;
            yield_now().await;
        }
    }

    fn grow(&self, reserved: &mut Reservation, bytes: usize) -> Result<(), SessionError> {
        let has_room = reserved.grow(bytes, self.limits.max_buffered);
        has_room.then_some(()).ok_or(SessionError::Overloaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_takes_room_for_what_has_come_of_it() {
        const LONGEST: usize = 10 << 20;
        let mut whole = Vec::new();
        append(&mut whole, b"x", LONGEST);
        assert_eq!(whole.capacity(), 1, "a byte, whatever is announced");
        let mut moves = 0;
        while whole.len() < LONGEST {
            let (before, capacity) = (whole.len(), whole.capacity());
            let data = vec![b'x'; (8 << 10).min(LONGEST - before)];
            append(&mut whole, &data, LONGEST);
            moves += usize::from(whole.capacity() > capacity);
            assert!(
                whole.capacity() <= whole.len().max(2 * before),
                "never more than twice what came before"
            );
        }
        assert_eq!(whole.capacity(), LONGEST, "nor more than was announced");
        assert!(
            moves < 20,
            "and yet it isn't copied again and again: {moves}"
        );
    }
}
