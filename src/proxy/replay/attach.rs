//! Finds the answer for a request that attaches, and where in it the request begins to read.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};

use super::ViewedAnswer;
use crate::answer::{AnswerReader, SharedAnswers, SharingOptions};
use crate::config::OverLimit;
use crate::drain::DrainWatch;
use crate::key::SessionKey;
use crate::lock::ClaimId;
use crate::proxy::record::RequestRecord;
use crate::proxy::refusal::Refusal;

/// A request for the answer of a turn of its session.
pub(super) struct AttachRequest<'t> {
    pub(super) answers: &'t SharedAnswers,
    pub(super) sharing: SharingOptions,
    pub(super) key: &'t SessionKey,
    pub(super) headers: &'t HeaderMap,
    /// What it gets of an answer whose beginning isn't kept.
    pub(super) over_limit: OverLimit,
    /// Whether it also gets an answer that has ended.
    pub(super) takes_ended: bool,
    pub(super) drain: DrainWatch,
}

/// What a request gets that asks for an answer.
pub(super) enum FoundAnswer {
    /// The answer.
    Answer(ViewedAnswer),
    /// Nothing of the answer follows the event that the request names.
    Seen,
    /// There is no answer.
    None,
}

/// The header in which an `EventSource` names the last event that it got.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

// === impl AttachRequest ===

impl AttachRequest<'_> {
    /// Finds the answer of the turn that runs, or the last that is kept, and waits for its head. Cancel-safe.
    ///
    /// # Errors
    /// When the process begins to stop, or the answer is too long to be read from its beginning.
    pub(super) async fn find(self, record: &RequestRecord) -> Result<FoundAnswer, Refusal> {
        let (answers, takes_ended) = (self.answers, self.takes_ended);
        let found = answers.find(self.key, takes_ended, &self.sharing).await;
        match found {
            Some(reader) => self.read(reader, record).await,
            None => Ok(FoundAnswer::None),
        }
    }

    /// Finds the answer of one turn, as [`Self::find`].
    ///
    /// # Errors
    /// As [`Self::find`].
    pub(super) async fn find_turn(
        self,
        turn: ClaimId,
        record: &RequestRecord,
    ) -> Result<FoundAnswer, Refusal> {
        match self.answers.find_turn(self.key, turn, &self.sharing) {
            Some(reader) => self.read(reader, record).await,
            None => Ok(FoundAnswer::None),
        }
    }

    /// Waits for the head of an answer, and finds where to begin.
    async fn read(
        mut self,
        mut reader: AnswerReader,
        record: &RequestRecord,
    ) -> Result<FoundAnswer, Refusal> {
        let (answer, viewer) = (Arc::clone(reader.answer()), record.viewing());
        let head = tokio::select! {
            biased;
            head = reader.head() => head,
            // Another replica has the time to wait.
            () = self.drain.draining() => return Err(Refusal::Draining),
        };
        let Some(head) = head else {
            // The turn was refused, or its backend gave no response.
            return Ok(FoundAnswer::None);
        };
        let mut viewed = ViewedAnswer::new(head, reader, viewer);
        let last_event = self.headers.get(LAST_EVENT_ID);
        if let Some(id) = last_event.filter(|id| viewed.unfit.is_none() && !id.is_empty()) {
            match answer.reader_behind(id.as_bytes()) {
                Some(reader) => viewed.reader = reader,
                None => return Ok(FoundAnswer::Seen),
            }
        }
        if viewed.reader.at() < answer.start() {
            let live = match self.over_limit {
                // Nothing comes of an answer that has ended.
                OverLimit::Live if viewed.unfit.is_none() && answer.end().is_none() => {
                    answer.live_reader()
                }
                OverLimit::Live | OverLimit::Reject => None,
            };
            viewed.reader = live.ok_or(Refusal::AnswerTooLong)?;
        }
        Ok(FoundAnswer::Answer(viewed))
    }
}
