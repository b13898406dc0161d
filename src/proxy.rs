//! The road of a request: route, session, lock, forward, guarded stream; nothing else.
//!
//! What happens when something goes wrong on it is in the types: whatever is dropped on the way
//! lets go by itself, so that there is one road and no list of ways off it.

use std::future::{pending, poll_fn};
use std::mem::replace;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderValue, Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::config::{Config, OnDisconnect, TurnConfig, Unmatched};
use crate::drain::DrainWatch;
use crate::key::SessionKey;
use crate::listen::{ClientConnection, RejectedRequest as Unserved, Serve};
use crate::lock::{AcquireError, LockGuard, LockLoss, Locks};
use access::RequestRecord;
use body_timer::BodyLimits;
use books::RouteSinks;
use forward::headers::{self, ForwardedInfo};
use forward::upgrade::{self, UpgradeRequest};
use forward::{
    Backend, BackendBody, Backends, ExpiredTimeout, ForwardError, OutgoingBody, ReadAheadLimit,
    ResponseTimeout, Upload,
};
use orphan::Orphans;
use record::{EndRecorder, tell_of, tell_of_tunnel};
use refusal::{BusyReason, ErrorFormat, Refusal};
use request_ids::RequestIds;
use route::Router;
use session::{RequestBody, SessionLookup};
use stream::GuardedBody;
use tunnel::{TunnelEndpoints, Tunnels};

pub use body::ProxyBody;
pub use books::RecordSinks;
pub use explain::{
    ExplainedOutcome, ExplainedRequest, ExplainedTemplate, SkippedRoute, TemplateResult,
    UnmetCondition, explain,
};
pub use stream::ResponseAborted;

mod access;
mod body;
mod body_timer;
mod books;
mod explain;
mod forward;
mod orphan;
mod record;
mod refusal;
mod request_ids;
mod route;
mod session;
mod stream;
mod tunnel;

/// Carries requests to the backend. One for each worker: connections are the worker's own.
pub struct Proxy {
    config: Arc<Config>,
    router: Router,
    backends: Backends,
    orphans: Arc<Orphans>,
    tunnels: Tunnels,
    books: Arc<RouteSinks>,
    common: WorkerShared,
}

/// What a worker's proxies have in common, whichever configuration they are by.
#[derive(Clone)]
struct WorkerShared {
    locks: Arc<Locks>,
    budget: Budget,
    request_ids: Arc<RequestIds>,
    serving: TaskTracker,
    drain: DrainWatch,
    tally: RecordSinks,
}

/// After how long a turn counts as one that waits, and its body is read ahead or may be taken back:
/// longer than taking a free lock takes.
const WAITS_AFTER: Duration = Duration::from_millis(100);

/// The head of the backend's answer, and what it stands under.
struct AnsweredTurn {
    response: Response<BackendBody>,
    held: Option<LockGuard>,
    orphans: Option<Arc<Orphans>>,
    /// Its connection leaves HTTP behind this answer.
    leaving: Option<OnUpgrade>,
}

/// A turn that goes on when its client is gone, until its answer begins. Dropping it hands it over.
struct DetachableRequest<'a> {
    sending: SendFuture,
    /// The backend may have got something of the request.
    begun: Arc<AtomicBool>,
    due: &'a ResponseTimeout,
    held: Option<LockGuard>,
    orphans: &'a Orphans,
    access: &'a mut RequestRecord,
}

type SendFuture = Pin<Box<dyn Future<Output = Result<Response<BackendBody>, ForwardError>> + Send>>;

// === impl Proxy ===

impl Proxy {
    /// A proxy that locks with `locks`, and holds on to bodies out of `budget`. `process` is a random
    /// number of this worker's own; turns that go on without a client are tasks among `serving`. How
    /// each request ended is noted in `tally`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(
        config: Arc<Config>,
        locks: Arc<Locks>,
        budget: Budget,
        process: u64,
        drain: DrainWatch,
        serving: TaskTracker,
        tally: RecordSinks,
    ) -> Self {
        let common = WorkerShared {
            locks,
            budget,
            request_ids: Arc::new(RequestIds::new(process)),
            serving,
            drain,
            tally,
        };
        Self::with(config, common)
    }

    /// The same proxy by another configuration. Whoever has this one goes on as it was begun.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn renewed(&self, config: Arc<Config>) -> Self {
        Self::with(config, self.common.clone())
    }

    fn with(config: Arc<Config>, common: WorkerShared) -> Self {
        let (serving, drain) = (&common.serving, &common.drain);
        let idle_stream = config.timeouts.idle_stream;
        let orphans = Orphans::new(serving.clone(), drain.clone(), idle_stream);
        Self {
            router: Router::new(&config.routes),
            backends: Backends::new(&config),
            orphans: Arc::new(orphans),
            tunnels: Tunnels::new(serving.clone(), drain.clone()),
            books: Arc::new(common.tally.books(&config)),
            config,
            common,
        }
    }

    /// Answers one request. Dropping the future lets go of everything: the backend's connection,
    /// the lock, the record; or hands them over, where a turn goes on without its client.
    pub async fn handle(
        &self,
        client: &ClientConnection,
        request: Request<Incoming>,
    ) -> Response<ProxyBody> {
        // The silence after the answer before, which kept the connection, is over.
        client.bounds.lift();
        let (mut head, body) = request.into_parts();
        client
            .bounds
            .set_close_is_end(head.version < Version::HTTP_11);
        let version = head.version;
        let wish = UpgradeRequest::of(&mut head);
        headers::clean_request(&mut head.headers, self.config.forwarded);
        let request_id = headers::request_id(&head.headers, || self.common.request_ids.next());
        let mut access =
            RequestRecord::begin(&head, request_id, client.bounds.clone(), &self.books);
        let mut form = ErrorFormat::default();
        // In a box, because hyper moves what serves a request several times before it is polled.
        let turn = Box::pin(self.turn(client, head, body, wish, &mut access, &mut form));
        match turn.await {
            Ok(answered) => self.answer(client, answered, access).await,
            Err(refusal) => {
                let mut response = refusal.response(&form);
                if refusal.closes_connection() && version < Version::HTTP_2 {
                    let headers = response.headers_mut();
                    headers.insert(CONNECTION, HeaderValue::from_static("close"));
                }
                access.status = Some(response.status().as_u16());
                access.error = refusal.for_the_log();
                if let Refusal::LockLost(loss) = refusal {
                    access.lost(loss);
                }
                access.finish(refusal.outcome(), response.body().len() as u64);
                // The connection waits for the next request, and not for ever.
                client
                    .bounds
                    .end_when_silent(self.config.timeouts.idle_stream);
                response.map(ProxyBody::own)
            }
        }
    }

    /// From the request to the head of the backend's answer, and the lock that it stands under.
    async fn turn(
        &self,
        client: &ClientConnection,
        mut head: Parts,
        body: Incoming,
        wish: Option<UpgradeRequest>,
        access: &mut RequestRecord,
        form: &mut ErrorFormat,
    ) -> Result<AnsweredTurn, Refusal> {
        if self.common.drain.is_draining() {
            return Err(Refusal::Draining);
        }
        Refusal::whatever_the_route(&head)?;
        let candidates = self.router.route(&head, !body.is_end_stream());
        let candidates = candidates.map_err(Refusal::Unfit)?;
        let held_limits = BodyLimits::of_holder(&self.config.timeouts, &self.config.limits);
        let bounds = session::ReadBounds {
            limits: &self.config.limits,
            body: held_limits,
            budget: &self.common.budget,
        };
        let mut call = None;
        let read = session::read(&head, body, &candidates, &bounds, &mut call).await;
        let (index, read) = match read {
            Ok(read) => (read.taken, Ok(read)),
            Err((index, error)) => (Some(index), Err(error)),
        };
        let matched = index.and_then(|index| candidates.iter().nth(index));
        if matched.is_none() && self.config.unmatched == Unmatched::Reject {
            return Err(Refusal::NoRoute);
        }
        let own = matched.and_then(|matched| matched.route.upstream.as_ref());
        // What no route takes is rejected if that has no backend.
        let backend = Arc::clone(self.backends.of(own).ok_or(Refusal::NoRoute)?);
        access.route = matched.map(|matched| (Arc::clone(&matched.route), matched.index));
        let locked = matched.and_then(|taken| Some((taken, taken.route.turn.as_ref()?)));
        if let Some((_, turn)) = locked {
            *form = ErrorFormat::of(&turn.busy, call.as_deref());
        }
        let SessionLookup { key, body, .. } = read.map_err(Refusal::Session)?;
        let lock = locked.map(|(_, turn)| &turn.lock);
        let goes_on = lock.is_some_and(|lock| lock.on_disconnect == OnDisconnect::Continue);
        let is_enforced = lock.is_some_and(|lock| lock.options.enforce);
        let passes_trailers = headers::passes_trailers(&head.headers, backend.upstream());
        let trailers = passes_trailers.then(|| Arc::clone(self.router.read_headers()));
        let mut body = match body {
            RequestBody::Read(whole) => OutgoingBody::Read(Some(whole)),
            RequestBody::Unread(body) => {
                OutgoingBody::Streamed(Upload::new(body, &client.bounds, trailers))
            }
        };
        access.key.clone_from(&key);
        let mut held = match (locked, key) {
            (Some((taken, turn)), Some(key)) => Some(
                self.lock(key, &taken.route.name, turn, (&head, &mut body), access)
                    .await?,
            ),
            _ => None,
        };
        drop(candidates);
        let told = ForwardedInfo {
            client: client.ip_value.as_ref(),
            scheme: &client.scheme,
            request_id: access.request_id(),
            fence: held.as_ref().and_then(LockGuard::fence),
            trailers: passes_trailers,
        };
        let version = head.version;
        headers::to_backend(&mut head, &body, backend.upstream(), &told);
        // HTTP/1.0 knows none.
        let interim = client
            .interim()
            .filter(|_| version == Version::HTTP_11 && backend.can_switch());
        access.sends(backend.upstream(), &mut head.headers);
        let wish = wish.filter(|_| backend.can_switch());
        if let Some(wish) = &wish {
            wish.tell(&mut head.headers);
        }
        let deadline = held.as_ref().and_then(LockGuard::deadline).cloned();
        let timeouts = &self.config.timeouts;
        // Without a lock a body keeps nobody waiting, and what is only observed is never refused.
        let limits = match &held {
            Some(_) if is_enforced => held_limits,
            _ => BodyLimits::of_stream(timeouts),
        };
        let due = &ResponseTimeout::within(timeouts.response_head, limits, &mut body);
        let mut request = Request::from_parts(head, body);
        if let Some(interim) = interim {
            forward::pass_interim(&mut request, move |status, headers| {
                interim.send(status, headers)
            })
            .await;
        }
        let orphans = (goes_on && held.is_some()).then(|| Arc::clone(&self.orphans));
        let sent = match &orphans {
            None => {
                let sending = pin!(backend.send(request, deadline.as_ref(), None));
                self.head_of_answer(&backend, sending, due, &mut held).await
                // Here the backend's connection is closed, unless it has answered.
            }
            Some(orphans) => {
                let (sender, begun) = (Arc::clone(&backend), Arc::default());
                let mut asked = DetachableRequest {
                    begun: Arc::clone(&begun),
                    sending: Box::pin(async move {
                        let begun = Some(&*begun);
                        sender.send(request, deadline.as_ref(), begun).await
                    }),
                    due,
                    held: held.take(),
                    orphans,
                    access,
                };
                let sending = asked.sending.as_mut();
                let sent = self.head_of_answer(&backend, sending, due, &mut asked.held);
                let sent = sent.await;
                // The client is still there: nothing is handed over.
                held = asked.held.take();
                sent
            }
        };
        let mut response = match sent {
            Ok(response) => response,
            Err(refusal) => {
                // What looks like the backend's fault may be that its request was cut off.
                let refusal = match client.bad_body() {
                    Some(unfit) if matches!(refusal, Refusal::Backend(_)) => Refusal::Unfit(unfit),
                    _ => refusal,
                };
                access.hold = held.as_ref().map(LockGuard::age);
                give_back(held, &refusal).await;
                return Err(refusal);
            }
        };
        access.answered(response.status().as_u16());
        let leaving = upgrade::clean(&mut response, wish);
        if let Some(waited) = held.as_ref().and_then(LockGuard::waited) {
            headers::say_waited(response.headers_mut(), waited);
        }
        // Whatever the backend's was: by 1.0, an answer of unknown length would end with the
        // connection, and one that is aborted would look whole.
        *response.version_mut() = Version::HTTP_11;
        Ok(AnsweredTurn {
            response,
            held,
            orphans,
            leaving,
        })
    }

    /// Takes the session's lock, or waits for it, as its route says.
    async fn lock(
        &self,
        key: SessionKey,
        route: &str,
        turn: &TurnConfig,
        (head, body): (&Parts, &mut OutgoingBody),
        access: &mut RequestRecord,
    ) -> Result<LockGuard, Refusal> {
        let limits = &self.config.limits;
        let room = ReadAheadLimit {
            budget: &self.common.budget,
            // What isn't read ahead streams, and what is read for its session has no other way.
            most: limits.max_buffered / 2,
        };
        // Turns that are only observed are never delayed.
        if turn.lock.options.enforce {
            let of_body = BodyLimits::of_holder(&self.config.timeouts, limits);
            let small = limits.read_before_lock;
            let read = body.read_if_small(small, room, of_body).await;
            read.map_err(|unread| Refusal::Session(unread.into()))?;
        }
        access.asks();
        let acquiring = self
            .common
            .locks
            .acquire(key, route, access.request_id(), &turn.lock.options);
        let acquired = if turn.lock.options.blocking {
            let mut drain = self.common.drain.clone();
            let waiting = async {
                sleep(WAITS_AFTER).await;
                body.wait(limits.max_body, room).await
            };
            tokio::select! {
                biased;
                acquired = acquiring => acquired,
                // Another replica has time to wait. Dropped, it is out of the line.
                () = drain.draining() => return Err(Refusal::Draining),
                // So that its client is seen to leave, and its body keeps out nobody's.
                unread = waiting => {
                    access.waited();
                    return Err(Refusal::Session(unread.into()));
                }
            }
        } else {
            acquiring.await
        };
        let busy = |why, key| Refusal::busy(why, key, &turn.busy, &head.headers);
        match acquired {
            Ok(held) => {
                access.granted(&held);
                Ok(held)
            }
            Err(refused) => {
                access.waited();
                Err(match refused {
                    AcquireError::Busy(key, _) => busy(BusyReason::NoWaiting, key),
                    AcquireError::QueueFull(key) => busy(BusyReason::QueueFull, key),
                    AcquireError::TimedOut(key, _) => busy(BusyReason::TimedOut, key),
                    AcquireError::Superseded(_) => Refusal::Superseded,
                    AcquireError::Taken(_) => Refusal::LockLost(LockLoss::Taken),
                    AcquireError::Store(error) => Refusal::Store(error),
                })
            }
        }
    }

    /// Waits for the head of the backend's answer, within its time and while the lock is held.
    async fn head_of_answer(
        &self,
        backend: &Backend,
        mut sending: Pin<
            &mut (impl Future<Output = Result<Response<BackendBody>, ForwardError>> + ?Sized),
        >,
        due: &ResponseTimeout,
        held: &mut Option<LockGuard>,
    ) -> Result<Response<BackendBody>, Refusal> {
        // An extension moves the lease's end, a piece of the request the others: the moment to look
        // again.
        let next = |held: &Option<LockGuard>| {
            let lease = held.as_ref().and_then(|held| held.deadline()?.get());
            lease.map_or(due.next(), |lease| lease.min(due.next()))
        };
        let mut timer = pin!(sleep_until(next(held)));
        poll_fn(|cx| {
            loop {
                if let Some(loss) = held.as_mut().and_then(|held| held.poll_must_stop(cx)) {
                    return Poll::Ready(Err(Refusal::LockLost(loss)));
                }
                // The connection is woken to be aborted, and asks here first.
                if self.common.drain.is_aborting() {
                    return Poll::Ready(Err(Refusal::Draining));
                }
                if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                    return Poll::Ready(sent.map_err(Refusal::Backend));
                }
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                match due.overdue(Instant::now()) {
                    None => timer.as_mut().reset(next(held)),
                    Some(ExpiredTimeout::Answer) => {
                        let limit = self.config.timeouts.response_head;
                        let late = backend.no_head_within(limit);
                        return Poll::Ready(Err(Refusal::Backend(late)));
                    }
                    Some(ExpiredTimeout::Body(limit)) => {
                        return Poll::Ready(Err(Refusal::Session(limit.into())));
                    }
                }
            }
        })
        .await
    }

    /// Puts the turn into the answer's body, and the answer under its bounds.
    async fn answer(
        &self,
        client: &ClientConnection,
        answered: AnsweredTurn,
        access: RequestRecord,
    ) -> Response<ProxyBody> {
        let AnsweredTurn {
            mut response,
            held,
            orphans,
            leaving,
        } = answered;
        if let Some(deadline) = held.as_ref().and_then(LockGuard::deadline) {
            client.bounds.stop_at(deadline.clone());
        }
        client
            .bounds
            .end_when_silent(self.config.timeouts.idle_stream);
        let backend = leaving.is_some().then(|| hyper::upgrade::on(&mut response));
        let (head, body) = response.into_parts();
        if let (Some(leaving), Some(backend)) = (leaving, backend) {
            let ends = TunnelEndpoints {
                client: leaving,
                bounds: client.bounds.clone(),
                backend,
                connection: body,
                is_websocket: upgrade::is_websocket(&head.headers),
            };
            self.tunnels.run(ends, held, tell_of_tunnel(access));
            return Response::from_parts(head, ProxyBody::own(Bytes::new()));
        }
        let record = EndRecorder {
            access,
            client: client.bounds.clone(),
            orphans,
        };
        let mut body = GuardedBody::new(body, held, record);
        body.settle_if_empty().await;
        Response::from_parts(head, ProxyBody::backend(body))
    }
}

/// What answers clients that come before anybody serves them; each is noted as every request is.
pub fn refusing(tally: &RecordSinks) -> impl Fn(&Unserved) -> Response<Bytes> + use<> {
    let books = tally.open([].into_iter());
    move |unserved| refuse(unserved, &books)
}

fn refuse(unserved: &Unserved, books: &RouteSinks) -> Response<Bytes> {
    let refusal = Refusal::Unfit(unserved.reason);
    let response = refusal.response(&ErrorFormat::default());
    let (status, length) = (response.status().as_u16(), response.body().len() as u64);
    access::refused(books, refusal.outcome(), status, unserved, length);
    response
}

/// By the configuration that is in force when a request begins.
impl Serve for Arc<ArcSwap<Proxy>> {
    type Body = ProxyBody;

    fn serve(
        self,
        client: ClientConnection,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<ProxyBody>> + Send + 'static {
        let proxy = self.load_full();
        async move { proxy.handle(&client, request).await }
    }

    fn refuse(&self, _: Option<IpAddr>, unserved: &Unserved) -> Response<Bytes> {
        refuse(unserved, &self.load().books)
    }
}

/// Gives the lock back of a turn that got no answer of the backend's.
async fn give_back(held: Option<LockGuard>, refusal: &Refusal) {
    // A refusal is an answer, whose end shows that the session is free. A lock that was lost has
    // nothing to show, and a process that stops no time to wait: theirs is given back in the
    // background.
    if let Some(held) = held
        && !matches!(refusal, Refusal::LockLost(_) | Refusal::Draining)
    {
        // The backend's connection is closed by its task, which comes first.
        tokio::task::yield_now().await;
        held.release().await;
    }
}

// === impl Asked ===

impl Drop for DetachableRequest<'_> {
    fn drop(&mut self) {
        let Some(mut held) = self.held.take() else {
            return;
        };
        // An empty future takes no allocation.
        let sending = replace(&mut self.sending, Box::pin(pending()));
        let begun = self.begun.load(Ordering::Relaxed);
        if begun && held.must_stop().is_none() && self.orphans.may_adopt(None) {
            let tell = tell_of(self.access.take(), 0);
            let give_up = self.due.at();
            self.orphans.adopt_request(sending, give_up, held, tell);
        } else {
            // The backend is left before the lock is.
            drop(sending);
            drop(held);
        }
    }
}
