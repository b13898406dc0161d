//! The body of a response that is another turn's answer.
//!
//! Invariant: it ends as the answer does. One that isn't whole, or of which bytes are gone, ends as aborted, so that
//! no client takes it for a whole one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};

use crate::answer::{AnswerEnd, AnswerPart, AnswerReader};
use crate::metrics::ViewerGauge;
use crate::proxy::end::End;
use crate::proxy::record::RequestRecord;
use crate::proxy::silence::{COMMENT, SilenceFiller, SilentBackend};
use crate::proxy::stream::ResponseAborted;
use crate::wire::{Ended, FlushWait};

/// The answer of a turn on its way to another client.
pub struct ViewerBody {
    reader: AnswerReader,
    /// The request's record; `None` once it is finished.
    record: Option<Box<RequestRecord>>,
    /// Keeps the client while the answer's event stream is silent; `None`: it isn't kept.
    filler: Option<SilenceFiller>,
    /// Waits for what was handed to the connection, before the response is cut off.
    written: FlushWait,
    /// Why the response is cut off, as soon as what was sent before is written; `None`: it goes on.
    cut: Option<(End, ResponseAborted)>,
    /// How many bytes of the answer the client's connection took.
    bytes: u64,
    /// Counts the request as a viewer.
    viewer: Option<ViewerGauge>,
}

// === impl ViewerBody ===

impl ViewerBody {
    pub(super) fn new(
        reader: AnswerReader,
        viewer: ViewerGauge,
        mut record: Box<RequestRecord>,
        filler: Option<SilenceFiller>,
    ) -> Self {
        let answer = reader.answer();
        record.attached(answer.turn(), answer.end().is_some());
        Self {
            reader,
            record: Some(record),
            filler,
            written: FlushWait::default(),
            cut: None,
            bytes: 0,
            viewer: Some(viewer),
        }
    }

    fn finish(&mut self, end: End) {
        self.viewer = None;
        if let Some(record) = self.record.take() {
            let is_lost = end == End::Complete && record.client.is_unacknowledged();
            let end = match is_lost {
                true => End::Disconnected(Some(Ended::PeerGone)),
                false => end,
            };
            record.finish_turn(end, None, self.bytes);
        }
    }

    /// The frame for bytes of the answer.
    fn data(&mut self, data: Bytes) -> Frame<Bytes> {
        self.bytes += data.len() as u64;
        if let Some(filler) = &mut self.filler {
            filler.heard(&data);
            if let Some(record) = &self.record {
                record.client.touch();
            }
        }
        Frame::data(data)
    }
}

impl Body for ViewerBody {
    type Data = Bytes;
    type Error = ResponseAborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseAborted>>> {
        let this = &mut *self;
        let Some(record) = &this.record else {
            return Poll::Ready(None);
        };
        if this.cut.is_none() {
            match this.reader.poll_next(cx) {
                Poll::Ready(AnswerPart::Data(data)) => {
                    return Poll::Ready(Some(Ok(this.data(data))));
                }
                Poll::Ready(AnswerPart::End(AnswerEnd::Whole { trailers })) => {
                    this.finish(End::Complete);
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Poll::Ready(AnswerPart::End(AnswerEnd::Aborted)) => {
                    this.cut = Some((End::UpstreamAborted, ResponseAborted::Answer));
                }
                Poll::Ready(AnswerPart::Gone) => {
                    this.cut = Some((End::UpstreamAborted, ResponseAborted::AnswerGone));
                }
                Poll::Pending => {
                    let Some(filler) = &mut this.filler else {
                        return Poll::Pending;
                    };
                    match ready!(filler.poll_silent(cx)) {
                        SilentBackend::Comment => {
                            record.client.on_comment();
                            record.comments().sent();
                            return Poll::Ready(Some(Ok(Frame::data(COMMENT))));
                        }
                        SilentBackend::End => {
                            this.cut = Some((End::IdleTimeout, ResponseAborted::Silent));
                        }
                    }
                }
            }
        }
        // An error makes hyper and h2 drop what they have buffered.
        ready!(record.client.poll_flushed(&mut this.written, cx));
        let Some((end, aborted)) = this.cut.take() else {
            return Poll::Ready(None);
        };
        if let Some(record) = &mut this.record {
            record.note_error(aborted.to_string());
        }
        this.finish(end);
        Poll::Ready(Some(Err(aborted)))
    }

    fn is_end_stream(&self) -> bool {
        self.record.is_none()
    }
}

impl Drop for ViewerBody {
    fn drop(&mut self) {
        self.finish(End::Disconnected(None));
    }
}
