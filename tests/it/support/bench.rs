//! The usual set-up of a test: a backend, replicas of Seriatim in front of it, and their store.
//!
//! [`Setup`] starts it. A test file that needs more has its own `impl Bench`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::app::{App, CHAT, wait_until_free, wait_until_no_keys};
use super::backend::{Backend, Recorded, event};
use super::client::{Answer, Client, Request, begin_turn, turn};
use super::fault::FaultProxy;
use super::process::Process;
use super::redis::Redis;

/// A backend, and replicas of Seriatim in front of it. `R` is their Redis, or `()` with the memory
/// store. `N` is a network between them and Redis that can fail, or `()`.
pub(crate) struct Bench<R = (), N = ()> {
    pub(crate) backend: Backend,
    pub(crate) redis: R,
    pub(crate) network: N,
    /// The first replica.
    pub(crate) app: App,
    /// The other replicas.
    pub(crate) others: Vec<App>,
    tags: AtomicUsize,
}

/// A backend and a Redis, for replicas that the test starts itself. `N` is a network between them and
/// Redis that can fail, or `()`.
pub(crate) struct Replicas<N = ()> {
    pub(crate) backend: Backend,
    pub(crate) redis: Redis,
    pub(crate) network: N,
    store_url: String,
    folder: TempDir,
}

/// How to start a [`Bench`].
pub(crate) struct Setup<'s> {
    config: &'s str,
    store: &'s str,
    replicas: usize,
}

/// A turn that runs until [`Bench::end`].
pub(crate) struct Open {
    client: Client,
    tag: String,
}

// === impl Setup ===

impl<'s> Setup<'s> {
    /// One replica with this configuration, which must set neither `upstream` nor the store's URL.
    pub(crate) fn new(config: &'s str) -> Self {
        Self {
            config,
            store: "",
            replicas: 1,
        }
    }

    /// Adds options to `[store]`.
    pub(crate) fn store(self, store: &'s str) -> Self {
        Self { store, ..self }
    }

    pub(crate) fn replicas(self, replicas: usize) -> Self {
        Self { replicas, ..self }
    }

    pub(crate) async fn in_memory(self) -> Bench {
        self.start("memory:", (), ()).await
    }

    pub(crate) async fn on_redis(self) -> Bench<Redis> {
        self.on(Redis::start().await).await
    }

    /// Starts it on this Redis.
    pub(crate) async fn on(self, redis: Redis) -> Bench<Redis> {
        self.start(&redis.url(), redis, ()).await
    }

    /// Starts it on a Redis behind a network that can fail.
    pub(crate) async fn on_faulty_network(self) -> Bench<Redis, FaultProxy> {
        let redis = Redis::start().await;
        let network = FaultProxy::start(redis.addr()).await;
        let url = format!("redis://{}/0", network.addr());
        self.start(&url, redis, network).await
    }

    async fn start<R, N>(self, url: &str, redis: R, network: N) -> Bench<R, N> {
        let backend = Backend::start("plain:ok").await;
        let start = |n: usize| {
            // Logs and the admin API show the name of a replica.
            let store = format!("instance = \"pod-{n}\"\n{}", self.store);
            App::start(&backend.url(), url, &store, self.config)
        };
        Bench {
            app: start(0),
            others: (1..self.replicas).map(start).collect(),
            backend,
            redis,
            network,
            tags: AtomicUsize::new(0),
        }
    }
}

// === impl Bench ===

impl Bench {
    /// Starts one replica with the memory store.
    pub(crate) async fn start(config: &str) -> Self {
        Setup::new(config).in_memory().await
    }
}

impl<R, N> Bench<R, N> {
    /// The address of replica `n`, counted from 0; after the last one the count starts again.
    pub(crate) fn replica(&self, n: usize) -> SocketAddr {
        match n % (1 + self.others.len()) {
            0 => self.app.addr(),
            n => self.others[n - 1].addr(),
        }
    }

    /// Begins a turn on the first replica and waits for its first event. The turn runs until its gate
    /// is opened.
    pub(crate) async fn hold(&self, session: &str) -> Client {
        hold(self.app.addr(), session).await
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.app.addr()).await
    }

    /// The response to a connection beyond `limits.max_connections = 1`, while a first one is served at the free path `/free`.
    pub(crate) async fn answer_beyond_the_limit(&self) -> Answer {
        let mut first = self.client().await;
        assert_eq!(first.get("/free").await.status, 200, "it is served");
        let mut second = self.client().await;
        second
            .send_raw(b"GET /free HTTP/1.1\r\nhost: a\r\n\r\n")
            .await;
        second.answer().await
    }

    pub(crate) async fn call(&self, request: &Request) -> Answer {
        self.client().await.call(request).await
    }

    /// Begins a turn, and waits until its response streams.
    pub(crate) async fn open(&self, request: &Request) -> Open {
        let tag = format!("turn {}", self.tags.fetch_add(1, Ordering::Relaxed));
        let request = request
            .clone()
            .header("x-test-session", &tag)
            .header("x-test-script", "gate");
        let mut client = self.client().await;
        client.send(&request).await;
        client.read_until(&event(0)).await;
        Open { client, tag }
    }

    /// Ends a turn of [`Bench::open`], and gives the request that the backend got.
    pub(crate) async fn end(&self, mut open: Open) -> Recorded {
        self.backend.open_gate(&open.tag);
        let answer = open.client.answer().await;
        assert!(answer.whole, "a turn comes to its end: {answer:?}");
        self.backend.turns(&open.tag).remove(0)
    }

    /// The key of the lock that a turn of this request holds; `None` without a lock.
    pub(crate) async fn key(&self, request: &Request) -> Option<String> {
        let open = self.open(request).await;
        let again = self
            .call(&request.clone().header("x-test-session", "-"))
            .await;
        let key = match again.status {
            200 => None,
            429 => {
                assert_error_response("the same request again", &again, 429, "session_busy");
                let detail = again.json()["detail"].as_str().map(str::to_owned);
                let key = detail.as_deref().and_then(|detail| {
                    let rest = detail.strip_prefix('[')?;
                    rest.strip_suffix("] 锁已被占用").map(str::to_owned)
                });
                Some(key.unwrap_or_else(|| panic!("the detail names the key: {again:?}")))
            }
            _ => panic!("the same request is served again, or finds its session busy: {again:?}"),
        };
        let got = self.end(open).await;
        assert_eq!(
            got.header("x-seriatim-fence").is_some(),
            key.is_some(),
            "a turn has a fence if and only if it has a lock ({key:?})"
        );
        key
    }

    /// Sends a request that must be refused and must not reach the backend.
    pub(crate) async fn refused(&self, case: &str, request: &Request, status: u16, reason: &str) {
        let before = self.backend.requests().len();
        let answer = self.call(request).await;
        assert_error_response(case, &answer, status, reason);
        assert_eq!(
            self.backend.requests().len(),
            before,
            "{case}: a refused request does not reach the backend"
        );
    }

    /// Asserts that an ordinary turn is still served.
    pub(crate) async fn assert_still_serves(&self) {
        let answer = turn(self.app.addr(), "the last one", "chunked:2:0").await;
        let served = answer.whole && answer.status == 200;
        assert!(served, "an ordinary turn is still served: {answer:?}");
    }
}

impl<N> Bench<Redis, N> {
    /// Waits until a turn of the session is served and no key is left, for turns whose end the client
    /// did not see.
    pub(crate) async fn wait_until_free(&self, session: &str, after: &str) {
        wait_until_free(&self.app, &self.backend, &self.redis, session, after).await;
    }

    /// Waits until no key is left, and asserts that turns never overlapped.
    pub(crate) async fn wait_until_no_keys(&self) {
        wait_until_no_keys(&self.redis).await;
        assert_eq!(self.backend.overlaps(), [], "turns never overlap");
    }
}

// === impl Replicas ===

impl Replicas {
    pub(crate) async fn on_redis() -> Self {
        let redis = Redis::start().await;
        Self::new(redis.url(), redis, ()).await
    }
}

impl Replicas<FaultProxy> {
    pub(crate) async fn on_faulty_network() -> Self {
        let redis = Redis::start().await;
        let network = FaultProxy::start(redis.addr()).await;
        let url = format!("redis://{}/0", network.addr());
        Self::new(url, redis, network).await
    }
}

impl<N> Replicas<N> {
    async fn new(store_url: String, redis: Redis, network: N) -> Self {
        Self {
            backend: Backend::start("plain:ok").await,
            redis,
            network,
            store_url,
            folder: TempDir::new().expect("a folder for configurations"),
        }
    }

    /// Starts a replica in this process, with these options of `[store]` and these tables.
    pub(crate) fn replica(&self, store: &str, tables: &str) -> App {
        let config = format!("{tables}{CHAT}");
        App::start(&self.backend.url(), &self.store_url, store, &config)
    }

    /// Starts a replica in this process on the Redis at `url`, with these options of `[store]`.
    pub(crate) fn replica_at(&self, url: &str, store: &str) -> App {
        App::start(&self.backend.url(), url, store, CHAT)
    }

    /// Starts a replica in its own process, which can be killed and has a log.
    pub(crate) fn process(&self, store: &str, tables: &str) -> Process {
        Process::start(&self.config(store, tables))
    }

    /// Writes the configuration file of such a process.
    pub(crate) fn config(&self, store: &str, tables: &str) -> PathBuf {
        self.config_at(&self.store_url, store, tables)
    }

    /// Writes the configuration file of a process on the Redis at `url`.
    pub(crate) fn config_at(&self, url: &str, store: &str, tables: &str) -> PathBuf {
        let text = format!(
            "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"{url}\"\n{store}\n{tables}{CHAT}",
            self.backend.url(),
        );
        let path = self.folder.path().join("config.toml");
        std::fs::write(&path, text).expect("the file can be written");
        path
    }

    /// Waits until no key is left, and asserts that turns never overlapped.
    pub(crate) async fn wait_until_no_keys(&self) {
        wait_until_no_keys(&self.redis).await;
        assert_eq!(self.backend.overlaps(), [], "turns never overlap");
    }
}

/// Begins a turn and waits for its first event. The turn runs until its gate is opened.
pub(crate) async fn hold(replica: SocketAddr, session: &str) -> Client {
    let mut holder = begin_turn(replica, session, "gate").await;
    holder.read_until(&event(0)).await;
    holder
}

/// The metric `seriatim_buffered_bytes`, as text.
pub(crate) async fn buffered<R, N>(bench: &Bench<R, N>) -> String {
    let answer = Client::connect(bench.app.admin())
        .await
        .get("/metrics")
        .await;
    let text = answer.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("seriatim_buffered_bytes "));
    line.expect("the metric exists").to_owned()
}

/// Asserts that this is an error response of the proxy, in the form of the contract.
#[track_caller]
pub(crate) fn assert_error_response(case: &str, answer: &Answer, status: u16, reason: &str) {
    assert_eq!(
        (answer.status, answer.header("x-seriatim-error")),
        (status, Some(reason)),
        "{case}: status and reason: {answer:?}"
    );
    assert_eq!(
        answer.headers_named("content-type"),
        ["application/json; charset=utf-8"],
        "{case}: an error response is JSON: {answer:?}"
    );
    let (json, text) = (answer.json(), answer.text());
    let mut members = vec!["success", "error", "detail", "status_code"];
    if [
        "session_busy",
        "queue_full",
        "wait_timeout",
        "duplicate_turn",
    ]
    .contains(&reason)
    {
        members.extend(["retry_after_ms", "busy_since", "queue"]);
    }
    // A quote within a value has a backslash before it, so this finds only member names.
    let places = members.iter();
    let places = places.map(|member| text.find(&format!("\"{member}\":")));
    let places: Vec<_> = places.collect();
    assert!(
        json.as_object()
            .is_some_and(|object| object.len() == members.len())
            && places.iter().all(Option::is_some)
            && places.is_sorted(),
        "{case}: the body has these members in this order, {members:?}: {text}"
    );
    assert!(
        json["success"] == false && json["error"].is_string() && json["detail"].is_string(),
        "{case}: `success` is false, `error` and `detail` are text: {text}"
    );
    assert_eq!(
        json["status_code"], status,
        "{case}: the body has the status, too: {text}"
    );
    assert!(answer.whole, "{case}: the response is complete: {answer:?}");
}

/// Posts this body to the usual route, with the content type of JSON.
pub(crate) fn chat(body: impl Into<Vec<u8>>) -> Request {
    Request::post("/chat")
        .header("content-type", "application/json")
        .body(body)
}
