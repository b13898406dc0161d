//! Kept answers: turns write theirs, and requests that are no turns read them, or stop the turn that runs.
//!
//! Invariant: such a request takes no lock, and no backend gets it. It needs a session, as a turn does: who may read
//! an answer is who could have sent the turn. How answers are kept is left to `crate::answer`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use tokio::time::sleep;

use super::acquire::{RefusedLock, TurnLock};
use super::cors::RequestOrigin;
use super::end::End;
use super::forward::OutgoingBody;
use super::keep_alive::unfit_response;
use super::record::RequestRecord;
use super::refusal::{Refusal, UnfitResponse};
use super::silence::{FilledResponse, SilenceFiller};
use super::{Proxy, SentBody, TurnBody};
use crate::answer::{AnswerHead, AnswerLimits, AnswerReader, AnswerWriter, SharingOptions};
use crate::config::{Config, OnRepeat, SessionAction, TurnConfig};
use crate::key::SessionKey;
use crate::listen::ClientConnection;
use crate::lock::{LockGuard, RepeatedState};
use crate::metrics::ViewerGauge;
use attach::{AttachRequest, FoundAnswer};

pub use viewer::ViewerBody;

mod attach;
mod viewer;

/// The response to a request that is no turn.
pub(super) enum AsideResponse {
    /// The answer of a turn.
    Answer(ViewedAnswer),
    /// The proxy's own, which is no error.
    Own(Response<Bytes>),
}

/// What a turn gets that asks for its lock.
pub(super) enum TurnStart {
    /// The lock.
    Locked(LockGuard),
    /// The answer of the turn that it repeats, or what is left of it.
    Repeats(AsideResponse),
}

/// A turn's answer, for another request.
pub(super) struct ViewedAnswer {
    head: Arc<AnswerHead>,
    reader: AnswerReader,
    /// Counts the request as a viewer.
    viewer: ViewerGauge,
    /// Why it is no event stream, into which comments can be written; `None`: it is one.
    unfit: Option<UnfitResponse>,
}

/// The pause before a repeat asks again what became of the turn before it, at first and at most.
const JOIN_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// How long the answer of a silent process is kept where `store.crash_recovery` is off.
const DEFAULT_RUN_TTL: Duration = Duration::from_secs(30);

// === impl Proxy ===

impl Proxy {
    /// Begins to keep the answer of a turn; `None`: its route doesn't.
    pub(super) fn begin_answer(
        &self,
        turn: &TurnConfig,
        held: &LockGuard,
    ) -> Option<Box<AnswerWriter>> {
        turn.lock.replay.then(|| {
            let (answers, sharing) = (&self.shared.answers, sharing(&self.config));
            Box::new(answers.begin(held.key(), held.turn(), sharing))
        })
    }

    /// Takes the lock for a turn. A repeat of another turn gets that turn's answer, if the route keeps answers: of a
    /// turn that has ended, or, with `on_repeat = "attach"`, of one that waits or runs. It waits until that one has an
    /// answer; if that one leaves before it has run, the repeat is the turn.
    ///
    /// # Errors
    /// As [`TurnLock::acquire`].
    pub(super) async fn start_turn(
        &self,
        lock: &TurnLock<'_>,
        key: SessionKey,
        body: &mut OutgoingBody,
        record: &mut RequestRecord,
    ) -> Result<TurnStart, Refusal> {
        let options = &lock.turn.lock;
        let joins = options.replay && options.on_repeat == OnRepeat::Attach;
        let (mut pause, longest) = JOIN_PAUSES;
        loop {
            let RefusedLock { refusal, repeats } =
                match lock.acquire(key.clone(), body, record).await {
                    Ok(held) => return Ok(TurnStart::Locked(held)),
                    Err(refused) => refused,
                };
            let Some((first, state)) = repeats else {
                return Err(refusal);
            };
            let is_under_way = matches!(state, RepeatedState::Waits | RepeatedState::Runs);
            let may_read = match state {
                RepeatedState::Runs => joins,
                RepeatedState::Ended => options.replay,
                RepeatedState::Waits | RepeatedState::InDoubt => false,
            };
            let waits = state == RepeatedState::Waits;
            if !waits {
                lock.wait_ended();
            }
            let mut drain = self.shared.drain.clone();
            let (request, asking) = (self.attach_request(&key, lock.headers, true), &*record);
            let joining = async {
                if may_read {
                    match request.find_turn(first, asking).await? {
                        FoundAnswer::Answer(answer) => {
                            return Ok(Some(AsideResponse::Answer(answer)));
                        }
                        FoundAnswer::Seen => return Ok(Some(AsideResponse::Own(no_answer()))),
                        FoundAnswer::None => {}
                    }
                }
                if !(joins && is_under_way) {
                    return Err(refusal);
                }
                tokio::select! {
                    () = drain.draining() => Err(Refusal::Draining),
                    () = sleep(pause) => Ok(None),
                }
            };
            let joined = tokio::select! {
                biased;
                joined = joining => joined?,
                // The repeat waits as a turn does, also where no turn waits.
                never = lock.keep_client(waits, asking) => match never {},
            };
            if let Some(answer) = joined {
                return Ok(TurnStart::Repeats(answer));
            }
            pause = (pause * 2).min(longest);
        }
    }

    fn attach_request<'t>(
        &'t self,
        key: &'t SessionKey,
        headers: &'t HeaderMap,
        takes_ended: bool,
    ) -> AttachRequest<'t> {
        AttachRequest {
            answers: &self.shared.answers,
            sharing: sharing(&self.config),
            key,
            headers,
            over_limit: self.config.replay.over_limit,
            takes_ended,
            drain: self.shared.drain.clone(),
        }
    }

    /// Answers a request that is no turn: it reads the answer of its session's turn, or stops that turn.
    ///
    /// # Errors
    /// When the answer is too long to be read from its beginning, the process begins to stop, or the store fails.
    pub(super) async fn aside(
        &self,
        turn: &TurnConfig,
        key: &SessionKey,
        headers: &HeaderMap,
        record: &RequestRecord,
    ) -> Result<AsideResponse, Refusal> {
        if turn.action() == SessionAction::Stop {
            let by = format!("client of request {}", record.request_id);
            let stopped = self.shared.locks.stop_turn(key, &by).await;
            let stopped = stopped.map_err(Refusal::Store)?;
            return Ok(AsideResponse::Own(stop_response(stopped)));
        }
        let request = self.attach_request(key, headers, turn.attach_ended);
        Ok(match request.find(record).await? {
            FoundAnswer::Answer(answer) => AsideResponse::Answer(answer),
            FoundAnswer::Seen | FoundAnswer::None => AsideResponse::Own(no_answer()),
        })
    }

    /// Sends the response to a request that is no turn.
    pub(super) fn respond_aside(
        &self,
        client: &ClientConnection,
        response: AsideResponse,
        origin: Option<&RequestOrigin>,
        mut record: Box<RequestRecord>,
    ) -> Response<TurnBody> {
        let idle_stream = self.config.timeouts.idle_stream;
        client.bounds.end_when_silent(idle_stream);
        let answer = match response {
            AsideResponse::Answer(answer) => answer,
            AsideResponse::Own(mut response) => {
                self.allow_origin(response.headers_mut(), origin, &record);
                record.response_began(response.status().as_u16());
                let bytes = response.body().len() as u64;
                record.finish_turn(End::Complete, None, bytes);
                return response.map(|body| Either::Left(Full::new(body)));
            }
        };
        let mut headers = answer.head.headers.clone();
        self.allow_origin(&mut headers, origin, &record);
        record.response_began(answer.head.status.as_u16());
        let is_early = record.is_early();
        if let Some(unfit) = answer.unfit.filter(|_| is_early) {
            record.note_unfit(unfit, &headers);
        }
        let filled = FilledResponse {
            is_stream: answer.unfit.is_none(),
            is_early,
            has_length: false,
        };
        let filler = SilenceFiller::for_response(filled, record.keep_alive(), idle_stream);
        let body = ViewerBody::new(answer.reader, answer.viewer, record, filler);
        let mut response = Response::new(Either::Right(SentBody::Viewed(Box::new(body))));
        *response.status_mut() = answer.head.status;
        *response.headers_mut() = headers;
        response
    }

    /// Lets a page of the origin read a response. What the backend allowed to the origin of the turn's client stays if
    /// it is the same, or any.
    fn allow_origin(
        &self,
        headers: &mut HeaderMap,
        origin: Option<&RequestOrigin>,
        record: &RequestRecord,
    ) {
        let allowed = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN);
        let stays = allowed.is_some_and(|allowed| {
            allowed == "*" || origin.is_some_and(|origin| origin.value == *allowed)
        });
        if stays {
            return;
        }
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            headers.remove(name);
        }
        if let Some(origin) = origin {
            self.cors.add_to(headers, origin, record.route_name());
        }
    }
}

// === impl ViewedAnswer ===

impl ViewedAnswer {
    fn new(head: Arc<AnswerHead>, reader: AnswerReader, viewer: ViewerGauge) -> Self {
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        response.headers_mut().clone_from(&head.headers);
        let unfit = unfit_response(&response);
        Self {
            head,
            reader,
            viewer,
            unfit,
        }
    }
}

/// How answers are kept, here and for other replicas.
fn sharing(config: &Config) -> SharingOptions {
    let replay = &config.replay;
    SharingOptions {
        limits: AnswerLimits {
            max_turn: replay.max_turn as u64,
            max_total: replay.max_total as u64,
            keep: replay.keep,
        },
        run_ttl: config.store.crash_recovery.unwrap_or(DEFAULT_RUN_TTL),
        keys: replay.key_file.clone(),
    }
}

/// The response when there is no answer to read. An `EventSource` stops at it (WHATWG HTML, "Server-sent events").
fn no_answer() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The response to a request that stops a turn. `stopped`: there was one.
fn stop_response(stopped: bool) -> Response<Bytes> {
    let body = match stopped {
        true => "{\"stopped\":true}",
        false => "{\"stopped\":false}",
    };
    let mut response = Response::new(Bytes::from_static(body.as_bytes()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
