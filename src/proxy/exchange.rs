//! Sends a request to its backend and waits for the head of the response, as long as the turn has its
//! lock and its time.
//!
//! Invariant: whoever drops the exchange leaves the backend, and then the lock. A turn that goes on
//! without its client is handed over to [`Orphans`] instead.

use std::future::{pending, poll_fn};
use std::mem::replace;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, RETRY_AFTER};
use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use tokio::time::Instant;

use super::end::{End, leave};
use super::forward::headers::{self, ForwardedInfo};
use super::forward::upgrade::UpgradeRequest;
use super::forward::{
    Backend, BackendBody, ExpiredTimeout, ForwardError, OutgoingBody, ResponseTimeout, SendFuture,
};
use super::orphan::Orphans;
use super::record::RequestRecord;
use super::refusal::Refusal;
use crate::answer::AnswerWriter;
use crate::deadline::{Alarm, Deadline};
use crate::drain::DrainWatch;
use crate::listen::{ClientConnection, InterimResponses};
use crate::lock::{LockGuard, SentFlag};

/// A request on its way to its backend.
pub(super) struct Exchange<'t> {
    pub(super) client: &'t ClientConnection,
    pub(super) backend: &'t Arc<Backend>,
    pub(super) drain: &'t DrainWatch,
    /// `timeouts.response_head`, for the error.
    pub(super) limit: Duration,
    pub(super) timeout: &'t ResponseTimeout,
    /// Where interim responses of the backend go; `None`: they are left out.
    pub(super) interim: Option<InterimResponses>,
}

/// A turn that goes on when its client is gone before the response began. Dropping it hands it over.
struct DetachableRequest<'t> {
    sending: SendFuture,
    /// Whether the backend may have got a byte of the request.
    has_begun: SentFlag,
    timeout: &'t ResponseTimeout,
    held: Option<LockGuard>,
    orphans: &'t Orphans,
    record: &'t mut RequestRecord,
    /// Writes the turn's answer for other requests; `None`: it isn't kept.
    answer: &'t mut Option<Box<AnswerWriter>>,
}

/// Turns the head and the body of a client's request into a request for `backend`. `held` is the turn's lock,
/// and `upgrade` the protocol to which the connection is to switch. Boxed, because each future on its way has room
/// for it.
pub(super) fn for_backend(
    mut head: Parts,
    body: OutgoingBody,
    client: &ClientConnection,
    backend: &Backend,
    held: Option<&LockGuard>,
    upgrade: Option<&UpgradeRequest>,
    record: &mut RequestRecord,
) -> Box<Request<OutgoingBody>> {
    let info = ForwardedInfo {
        client: client.ip_value.as_ref(),
        scheme: &client.scheme,
        request_id: &record.request_id,
        fence: held.and_then(LockGuard::fence),
        turn: held.map(LockGuard::tag),
    };
    if record.is_early() {
        // What the client got says nothing of an encoding.
        head.headers.remove(ACCEPT_ENCODING);
    }
    headers::to_backend(&mut head, &body, backend.upstream(), &info);
    record.sent_to(backend.upstream(), &mut head.headers);
    if let Some(upgrade) = upgrade {
        upgrade.add_to(&mut head.headers);
    }
    Box::new(Request::from_parts(head, body))
}

/// Where interim responses to a request of this version go; `None`: they are left out. HTTP/1.0 has none, none may
/// follow the head of the response, and from HTTP/2 none are read.
pub(super) fn interim_for(
    client: &ClientConnection,
    version: Version,
    backend: &Backend,
    record: &RequestRecord,
) -> Option<InterimResponses> {
    let can_pass = version == Version::HTTP_11 && backend.can_upgrade() && !record.is_early();
    client.interim().filter(|_| can_pass)
}

/// Notes in the flag of a turn whether the backend says by its status that it has not run the turn: 425 (RFC 8470 §5.2),
/// 429 (RFC 6585 §4), or 503 with `retry-after` (RFC 9110 §15.6.4). A proxy before the backend also responds with 503 if
/// the backend broke off in the middle of a request, and names no time then.
fn note_refusal(response: &Response<BackendBody>, flag: Option<&SentFlag>) {
    let is_refused = match response.status() {
        StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::SERVICE_UNAVAILABLE => response.headers().contains_key(RETRY_AFTER),
        _ => false,
    };
    if let Some(flag) = flag.filter(|_| is_refused) {
        flag.note_refused();
    }
}

// === impl Exchange ===

impl Exchange<'_> {
    /// Sends the request. When this returns an error, or is dropped, the backend's connection is
    /// closed.
    ///
    /// # Errors
    /// When the backend gives no response, a timeout passes, the lock is lost, or the process has no
    /// more time.
    pub(super) async fn send(
        &self,
        request: Box<Request<OutgoingBody>>,
        held: &mut Option<LockGuard>,
    ) -> Result<Response<BackendBody>, Refusal> {
        let deadline = held.as_ref().and_then(LockGuard::deadline).cloned();
        let is_turn = held.is_some();
        let flag = held.as_ref().and_then(LockGuard::sent_flag).cloned();
        let sending = pin!(async {
            let has_begun = flag.as_ref().map(SentFlag::as_bool);
            let sending = self.backend.send(
                request,
                is_turn,
                deadline.as_ref(),
                has_begun,
                self.interim.as_ref(),
            );
            sending
                .await
                .inspect(|response| note_refusal(response, flag.as_ref()))
        });
        self.response_head(sending, held).await
    }

    /// Sends the request of a turn that goes on in `orphans`, with `answer`, when its client leaves, which drops this
    /// future.
    ///
    /// # Errors
    /// As [`Exchange::send`].
    pub(super) async fn send_detachable(
        &self,
        request: Box<Request<OutgoingBody>>,
        held: &mut Option<LockGuard>,
        orphans: &Orphans,
        record: &mut RequestRecord,
        answer: &mut Option<Box<AnswerWriter>>,
    ) -> Result<Response<BackendBody>, Refusal> {
        let deadline = held.as_ref().and_then(LockGuard::deadline).cloned();
        let flag = held.as_ref().and_then(LockGuard::sent_flag).cloned();
        let (backend, flag) = (Arc::clone(self.backend), flag.unwrap_or_default());
        let interim = self.interim.clone();
        let mut detachable = DetachableRequest {
            has_begun: flag.clone(),
            sending: Box::pin(async move {
                let (is_turn, has_begun) = (true, Some(flag.as_bool()));
                let sending = backend.send(
                    request,
                    is_turn,
                    deadline.as_ref(),
                    has_begun,
                    interim.as_ref(),
                );
                sending
                    .await
                    .inspect(|response| note_refusal(response, Some(&flag)))
            }),
            timeout: self.timeout,
            held: held.take(),
            orphans,
            record,
            answer,
        };
        let sending = detachable.sending.as_mut();
        let sent = self.response_head(sending, &mut detachable.held).await;
        // The client is still there, so nothing is handed over.
        *held = detachable.held.take();
        sent
    }

    /// Waits for the head of the response, within its timeouts and while the lock is held.
    async fn response_head(
        &self,
        mut sending: Pin<
            &mut (impl Future<Output = Result<Response<BackendBody>, ForwardError>> + ?Sized),
        >,
        held: &mut Option<LockGuard>,
    ) -> Result<Response<BackendBody>, Refusal> {
        let timeout = self.timeout;
        let mut alarm = Alarm::default();
        poll_fn(|cx| {
            loop {
                if let Some(loss) = held.as_mut().and_then(|held| held.poll_must_stop(cx)) {
                    return Poll::Ready(Err(Refusal::LockLost(loss)));
                }
                // The client's connection is woken to be aborted, and polls this first.
                if self.drain.is_aborting() {
                    return Poll::Ready(Err(Refusal::Draining));
                }
                if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                    return Poll::Ready(sent.map_err(Refusal::Backend));
                }
                // An extension moves the lease's end, and a piece of the request moves the timeouts.
                let lease = held.as_ref().and_then(LockGuard::deadline);
                let next = || {
                    let lease = lease.and_then(Deadline::get);
                    lease.into_iter().chain([timeout.next()]).min()
                };
                ready!(self.client.poll_alarm(&mut alarm, cx, next));
                match timeout.expired(Instant::now()) {
                    // The lease is over, or a timeout has moved.
                    None => {}
                    Some(ExpiredTimeout::Response) => {
                        let error = self.backend.response_timed_out(self.limit);
                        return Poll::Ready(Err(Refusal::Backend(error)));
                    }
                    Some(ExpiredTimeout::Body(limit)) => {
                        return Poll::Ready(Err(Refusal::Session(limit.into())));
                    }
                }
            }
        })
        .await
    }
}

// === impl DetachableRequest ===

impl Drop for DetachableRequest<'_> {
    fn drop(&mut self) {
        let Some(mut held) = self.held.take() else {
            return;
        };
        // An empty future takes no allocation.
        let sending = replace(&mut self.sending, Box::pin(pending()));
        if self.has_begun.is_set() && held.must_stop().is_none() && self.orphans.may_adopt(None) {
            let (give_up, record) = (self.timeout.response_due(), self.record.take());
            let answer = self.answer.take();
            self.orphans
                .adopt_request(sending, give_up, held, record, answer);
        } else {
            drop(leave(sending, Some(held), End::Disconnected(None)));
        }
    }
}
