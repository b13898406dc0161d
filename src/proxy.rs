//! The way of a request: route, session, lock, backend, guarded response.
//!
//! Each step owns what it needs, and gives it back when it is dropped. So a request that ends early, in
//! whatever way, needs no code of its own here. What this file leaves out: how each step works.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONNECTION};
use http::request::Parts;
use http::{HeaderValue, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use tokio_util::task::TaskTracker;

use crate::answer::{Answers, SharedAnswers};
use crate::budget::Budget;
use crate::config::{
    Config, NestedCalls, OnDisconnect, Route, SessionAction, StreamKind, Unmatched,
};
use crate::drain::DrainWatch;
use crate::key::{OnceKey, SessionKey};
use crate::listen::{ClientBody, ClientConnection, RejectedRequest, Serve};
use crate::lock::Locks;
use acquire::{EarlyClient, TurnLock};
use body_timer::BodyLimits;
use cors::{CorsPolicy, RequestOrigin};
use forward::headers::{self, RequestIds};
use forward::upgrade::UpgradeRequest;
use forward::{Backend, Backends, OutgoingBody, Upload};
use keep_alive::EarlyResponse;
use orphan::Orphans;
use record::{RequestRecord, RouteSinks};
use refusal::{ErrorFormat, Refusal, SentenceLanguage};
use rejected::reject;
use replay::{AsideResponse, TurnStart};
use respond::{AnsweredTurn, StartedTurn};
use route::Router;
use session::{NeededLock, RequestBody, RequestSession};
use tunnel::Tunnels;

pub use cors::CorsMemory;
pub use explain::{
    ExplainedOutcome, ExplainedRequest, ExplainedTemplate, KeptClient, SkippedRoute,
    TemplateResult, UnmetCondition, explain,
};
pub use keep_alive::WaitingBody;
pub use record::RecordSinks;
pub use rejected::refusing;
pub use replay::ViewerBody;
pub use stream::{GuardedBody, ResponseAborted};

mod acquire;
mod body_timer;
mod cors;
mod end;
mod exchange;
mod explain;
mod forward;
mod keep_alive;
mod orphan;
mod record;
mod refusal;
mod rejected;
mod replay;
mod respond;
mod route;
mod session;
mod silence;
mod stream;
mod tunnel;

/// The body of a turn's own response: of an error response, or of the backend's response with the turn's lock.
/// Or, for a request that reads the answer of another turn, of that.
pub type TurnBody = Either<Full<Bytes>, SentBody>;

/// The body of a response that a backend has sent. Boxed, because hyper moves a response several times before it
/// reads its body.
pub enum SentBody {
    /// To this request.
    Own(Box<GuardedBody>),
    /// To another request, whose turn it was.
    Viewed(Box<ViewerBody>),
}

/// The body of a response: of a turn's own response, or of one that began before it.
pub type ProxyBody = Either<TurnBody, Box<WaitingBody>>;

/// Serves requests by one configuration. Each worker has its own, for its connections to the backends
/// belong to its runtime.
pub struct Proxy {
    config: Arc<Config>,
    router: Router,
    backends: Backends,
    orphans: Arc<Orphans>,
    tunnels: Tunnels,
    sinks: Arc<RouteSinks>,
    cors: CorsPolicy,
    /// Which requests may get a response before their turn; `None`: no route keeps its waiting clients.
    keeps_alive: Option<StreamKind>,
    shared: WorkerShared,
}

/// What all workers of a process share. Cheap to clone.
#[derive(Clone)]
pub struct ProcessShared {
    /// The answers of turns that are kept.
    pub answers: Answers,
    /// Counts the bytes of buffered bodies.
    pub budget: Budget,
    /// What the backends have allowed to pages of other origins.
    pub cors: CorsMemory,
    /// Where every request is recorded.
    pub sinks: RecordSinks,
}

/// What a worker keeps when its configuration changes.
#[derive(Clone)]
struct WorkerShared {
    locks: Arc<Locks>,
    /// The answers of turns that are kept, here or on other replicas.
    answers: SharedAnswers,
    process: ProcessShared,
    request_ids: Arc<RequestIds>,
    /// The tasks of turns that the worker waits for before it ends.
    tasks: TaskTracker,
    drain: DrainWatch,
}

/// A request that was just read.
struct AskedTurn<'t> {
    client: &'t ClientConnection,
    head: Parts,
    upgrade: Option<UpgradeRequest>,
    early: Option<&'t EarlyResponse>,
    /// The page that sent it; `None`: no page of a browser did, as far as is known.
    origin: Option<&'t RequestOrigin>,
    /// The language of an error.
    language: SentenceLanguage,
}

/// A request whose route and session are known.
struct RoutedRequest {
    backend: Arc<Backend>,
    /// `None`: no route takes the request, and it passes without a lock.
    route: Option<Arc<Route>>,
    /// `None`: the request takes no lock.
    key: Option<SessionKey>,
    /// What tells whether the request repeats another one of its session; `None`: it has no once id.
    once: Option<OnceKey>,
    body: RequestBody<ClientBody>,
}

/// What a request gets that is not refused.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every request gets the large one, and a box would be an allocation for each"
)]
enum RequestResponse {
    /// The backend's response.
    Backend(AnsweredTurn),
    /// A response without a backend, to a request that is no turn.
    Aside(AsideResponse),
}

// === impl Proxy ===

impl Proxy {
    /// A proxy by `config` that locks with `locks`. Its request ids begin with `number`, which is random
    /// and unique to this worker. Turns that outlive their connection run as tasks among `tasks`.
    pub fn new(
        config: Arc<Config>,
        locks: Arc<Locks>,
        process: ProcessShared,
        number: u64,
        drain: DrainWatch,
        tasks: TaskTracker,
    ) -> Self {
        let shared = WorkerShared {
            locks,
            answers: SharedAnswers::in_memory(process.answers.clone()),
            process,
            request_ids: Arc::new(RequestIds::new(number)),
            tasks,
            drain,
        };
        Self::with_shared(config, shared)
    }

    /// This proxy with answers that other replicas can read.
    #[must_use]
    pub fn sharing_answers(mut self, answers: SharedAnswers) -> Self {
        self.shared.answers = answers;
        self
    }

    /// This proxy by another configuration. Requests that have begun go on by the old one.
    pub fn with_config(&self, config: Arc<Config>) -> Self {
        Self::with_shared(config, self.shared.clone())
    }

    fn with_shared(config: Arc<Config>, shared: WorkerShared) -> Self {
        let (tasks, drain) = (&shared.tasks, &shared.drain);
        let idle_stream = config.timeouts.idle_stream;
        let orphans = Orphans::new(tasks.clone(), drain.clone(), idle_stream);
        Self {
            router: Router::new(&config.routes),
            backends: Backends::new(&config),
            orphans: Arc::new(orphans),
            tunnels: Tunnels::new(tasks.clone(), drain.clone()),
            sinks: Arc::new(shared.process.sinks.for_config(&config)),
            cors: CorsPolicy::new(Arc::clone(&config), shared.process.cors.clone()),
            keeps_alive: config.keeps_clients(),
            config,
            shared,
        }
    }

    /// Serves one request. Dropping the future leaves the backend, gives back the lock and finishes the
    /// record, or hands them over if the turn goes on without its client.
    pub async fn handle(
        self: Arc<Self>,
        client: ClientConnection,
        request: Request<ClientBody>,
    ) -> Response<ProxyBody> {
        let early = self.keeps_alive;
        let early = early.and_then(|kind| EarlyResponse::for_request(kind, &request));
        let Some(early) = early else {
            let response = self.answer(&client, request, None).await;
            return response.map(Either::Left);
        };
        let origin = RequestOrigin::from_head(request.method(), request.headers());
        let (proxy, asked) = (Arc::clone(&self), early.clone());
        let turn = Box::pin(async move { proxy.answer(&client, request, Some(&asked)).await });
        match early.response(turn).await {
            Ok(response) => response.map(Either::Left),
            Err(waiting) => {
                let mut headers = WaitingBody::headers();
                if let Some(origin) = &origin {
                    self.cors
                        .add_to(&mut headers, origin, Some(waiting.route()));
                }
                let mut response = Response::new(Either::Right(Box::new(waiting)));
                *response.headers_mut() = headers;
                response
            }
        }
    }

    /// Serves one request, for which `early` may ask for a response before its own; `None`: it may not.
    async fn answer(
        &self,
        client: &ClientConnection,
        request: Request<ClientBody>,
        early: Option<&EarlyResponse>,
    ) -> Response<TurnBody> {
        // The idle timeout after the response before this request no longer applies.
        client.bounds.lift();
        let (mut head, body) = request.into_parts();
        let version = head.version;
        client.bounds.set_close_is_end(version < Version::HTTP_11);
        let upgrade = UpgradeRequest::take_from(&mut head);
        let callers = headers::clean_request(&mut head.headers, self.config.forwarded);
        if let Some(callers) = callers {
            head.extensions.insert(callers);
        }
        let language = SentenceLanguage::for_caller(self.config.errors.language, &head.headers);
        let origin = RequestOrigin::from_head(&head.method, &head.headers);
        let preflight = origin.as_ref().filter(|origin| origin.is_preflight);
        let announced = preflight.map(|_| self.router.announced_to(&head));
        let request_id = self.shared.request_ids.get(&head.headers);
        let mut record =
            RequestRecord::begin(&head, request_id, client.bounds.clone(), &self.sinks);
        let mut format = ErrorFormat::default();
        let asked = AskedTurn {
            client,
            head,
            upgrade,
            early,
            origin: origin.as_ref(),
            language,
        };
        match self.request(asked, body, &mut record, &mut format).await {
            Ok(RequestResponse::Aside(response)) => {
                self.respond_aside(client, response, origin.as_ref(), record)
            }
            Ok(RequestResponse::Backend(answered)) => {
                if let Some(origin) = &origin {
                    self.learn_origin(origin, announced.as_deref(), &record, &answered.response);
                }
                self.respond(client, answered, record).await
            }
            Err(refusal) => {
                let mut response = match record.is_early() {
                    true => Response::new(refusal.event(&format, language)),
                    false => {
                        let help = self.config.errors.help_url.as_ref();
                        refusal.response(&format, language, help)
                    }
                };
                if let Some(origin) = &origin {
                    let headers = response.headers_mut();
                    self.cors.add_to(headers, origin, record.route_name());
                }
                if refusal.closes_connection() && version < Version::HTTP_2 {
                    let headers = response.headers_mut();
                    headers.insert(CONNECTION, HeaderValue::from_static("close"));
                }
                let bytes = response.body().len() as u64;
                record.finish_refused(&refusal, response.status().as_u16(), bytes);
                // The client has time to read the response, but not for ever.
                let idle_stream = self.config.timeouts.idle_stream;
                client.bounds.end_when_silent(idle_stream);
                response.map(|body| Either::Left(Full::new(body)))
            }
        }
    }

    /// From the request to what it gets, unless it is refused: a turn goes to its backend.
    async fn request(
        &self,
        asked: AskedTurn<'_>,
        body: ClientBody,
        record: &mut RequestRecord,
        format: &mut ErrorFormat,
    ) -> Result<RequestResponse, Refusal> {
        if self.shared.drain.is_draining() {
            return Err(Refusal::Draining);
        }
        Refusal::check_head(&asked.head)?;
        let routed = self.route(&asked.head, body, record, format).await?;
        let turn = routed.route.as_ref().and_then(|it| it.turn.as_ref());
        let turn = turn.filter(|turn| turn.action() != SessionAction::Turn);
        if let (Some(turn), Some(key)) = (turn, &routed.key) {
            let aside = self.aside(turn, key, &asked.head.headers, record).await;
            return aside.map(RequestResponse::Aside);
        }
        self.turn(asked, routed, record, format).await
    }

    /// From a turn, or a request that passes without a lock, to the head of the backend's response; or to the answer
    /// of the turn that it repeats.
    async fn turn(
        &self,
        asked: AskedTurn<'_>,
        routed: RoutedRequest,
        record: &mut RequestRecord,
        format: &mut ErrorFormat,
    ) -> Result<RequestResponse, Refusal> {
        let AskedTurn {
            client,
            mut head,
            upgrade,
            early,
            origin,
            language,
        } = asked;
        let RoutedRequest {
            backend,
            route,
            key,
            once,
            body,
        } = routed;
        let locked = route.as_ref();
        let locked = locked.and_then(|route| Some((route, route.turn.as_ref()?)));
        let mut body = self.outgoing_body(client, &head, body, &backend);
        let (mut held, mut answer) = (None, None);
        if let (Some((route, turn)), Some(key)) = (locked, key) {
            if turn.lock.nested_calls == NestedCalls::Traceparent {
                headers::keep_traced_callers(&mut head);
            }
            let lock = TurnLock {
                client,
                locks: &self.shared.locks,
                budget: &self.shared.process.budget,
                config: &self.config,
                drain: &self.shared.drain,
                route: &route.name,
                turn,
                headers: &head.headers,
                callers: head.extensions.get(),
                once: once.as_ref(),
                early: early
                    .filter(|_| upgrade.is_none() && self.keeps_client(&head, origin, route))
                    .zip(turn.lock.keep_alive)
                    .map(|(early, interval)| EarlyClient::new(early, interval)),
                format,
                language,
            };
            let granted = match self.start_turn(&lock, key, &mut body, record).await? {
                TurnStart::Locked(granted) => granted,
                TurnStart::Repeats(response) => {
                    return Ok(RequestResponse::Aside(response));
                }
            };
            answer = self.begin_answer(turn, &granted);
            if answer.is_some() {
                // Those who read the answer later may not know the encoding.
                head.headers.remove(ACCEPT_ENCODING);
            }
            held = Some(granted);
        }
        let lock = locked.filter(|_| held.is_some());
        let lock = lock.map(|(_, turn)| &turn.lock);
        let goes_on = lock.is_some_and(|lock| lock.on_disconnect() == OnDisconnect::Continue);
        let started = StartedTurn {
            backend,
            head,
            body,
            upgrade,
            held,
            answer,
            // An observed turn is never refused.
            is_enforced: lock.is_some_and(|lock| lock.options.enforce),
            goes_on,
        };
        let answered = self.send(client, started, record).await?;
        Ok(RequestResponse::Backend(answered))
    }

    /// Whether the client of a turn may get a response while the turn waits. A page that can't read that response would
    /// not get the backend's, either.
    fn keeps_client(&self, head: &Parts, origin: Option<&RequestOrigin>, route: &Route) -> bool {
        let lock = route.turn.as_ref().map(|turn| &turn.lock);
        let lock = lock.filter(|lock| lock.keep_alive.is_some());
        lock.is_some_and(|lock| keep_alive::reads_events(lock.stream, &head.headers))
            && origin.is_none_or(|it| self.cors.can_read(it, &head.headers, &route.name))
    }

    /// Finds the route of a request, its backend and its session.
    async fn route(
        &self,
        head: &Parts,
        body: ClientBody,
        record: &mut RequestRecord,
        format: &mut ErrorFormat,
    ) -> Result<RoutedRequest, Refusal> {
        let candidates = self.router.route(head, !body.is_end_stream());
        let candidates = candidates.map_err(Refusal::BadRequest)?;
        let bounds = session::ReadBounds {
            limits: &self.config.limits,
            body: self.holder_limits(),
            budget: &self.shared.process.budget,
        };
        let lookup = session::read(head, body, &candidates, &bounds, &mut ()).await;
        let matched = lookup.index.and_then(|index| candidates.iter().nth(index));
        if matched.is_none() && self.config.unmatched == Unmatched::Reject {
            return Err(Refusal::NoRoute);
        }
        let upstream = matched.and_then(|matched| matched.route.upstream.as_ref());
        // Without a default backend, a request that no route takes has none.
        let backend = self.backends.find(upstream).ok_or(Refusal::NoRoute)?;
        if let Some(matched) = matched {
            record.routed(&matched.route, matched.index);
            if let Some(turn) = &matched.route.turn {
                *format = ErrorFormat::new(&turn.busy, lookup.call_id.as_deref());
            }
        }
        let RequestSession { lock, once, body } = lookup.session.map_err(Refusal::Session)?;
        let turn = matched.and_then(|matched| matched.route.turn.as_ref());
        let lock = match lock {
            // What has no session has no turn to read or to stop.
            NeededLock::NoSession(error)
                if turn.is_some_and(|turn| turn.action() != SessionAction::Turn) =>
            {
                return Err(Refusal::Session(error));
            }
            lock => lock,
        };
        Ok(RoutedRequest {
            backend: Arc::clone(backend),
            route: matched.map(|matched| Arc::clone(&matched.route)),
            key: record.needs_lock(lock),
            once,
            body,
        })
    }

    /// The body for the backend, whether it was read for its session or not.
    fn outgoing_body(
        &self,
        client: &ClientConnection,
        head: &Parts,
        body: RequestBody<ClientBody>,
        backend: &Backend,
    ) -> OutgoingBody {
        match body {
            RequestBody::Read(whole) => OutgoingBody::Read(Some(whole)),
            RequestBody::Unread(body) => {
                let passes_trailers = headers::passes_trailers(&head.headers, backend.upstream());
                let trailers = passes_trailers.then(|| Arc::clone(&self.router.read_headers));
                let upload = Upload::new(body, &client.bounds, trailers);
                OutgoingBody::Streamed(Box::new(upload))
            }
        }
    }

    /// The limits of a body that takes memory, or that holds a lock.
    fn holder_limits(&self) -> BodyLimits {
        BodyLimits::for_holder(&self.config.timeouts, &self.config.limits)
    }
}

impl Body for SentBody {
    type Data = Bytes;
    type Error = ResponseAborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseAborted>>> {
        match &mut *self {
            Self::Own(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Viewed(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Viewed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Viewed(body) => body.size_hint(),
        }
    }
}

/// Serves each request by the configuration that is in force when it begins.
impl Serve for Arc<ArcSwap<Proxy>> {
    type Body = ProxyBody;

    fn serve(
        self,
        client: ClientConnection,
        request: Request<ClientBody>,
    ) -> impl Future<Output = Response<ProxyBody>> + Send + 'static {
        let proxy = self.load_full();
        proxy.handle(client, request)
    }

    fn refuse(&self, _: Option<IpAddr>, rejected: &RejectedRequest) -> Response<Bytes> {
        let proxy = self.load();
        reject(rejected, &proxy.config.errors, &proxy.sinks)
    }
}
