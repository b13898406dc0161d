//! A turn that is cut off after its backend's response has begun: its client gets the response's head, and
//! not a closed connection without a byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::poll;
use hyper::{Request, Response};
use seriatim::answer::Answers;
use seriatim::budget::Budget;
use seriatim::config::Config;
use seriatim::drain;
use seriatim::journal::Journal;
use seriatim::key::SessionKey;
use seriatim::listen::{
    self, ClientBody, ClientConnection, ListenEndpoint, Listener, RejectedRequest, Serve,
    ServeSettings,
};
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{
    CallChain, ClaimIssuer, Dispatcher, Epoch, Fallback, Instance, LockOptions, LockRequest, Locks,
    OnLost, Store, StoreHealth,
};
use seriatim::metrics::Metrics;
use seriatim::proxy::{CorsMemory, ProcessShared, Proxy, ProxyBody, RecordSinks};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, yield_now};
use tokio_util::task::TaskTracker;

use crate::support::app::CHAT;
use crate::support::backend::Backend;
use crate::support::client::begin_turn;
use crate::support::h2_client::{self, H2};
use crate::support::{client, wire, within};

/// Serves requests with a proxy, and interrupts every turn when the head of its response is there, before
/// the client's connection has it.
#[derive(Clone)]
struct Interrupting {
    proxy: Arc<ArcSwap<Proxy>>,
    locks: Arc<Locks>,
}

// === impl Interrupting ===

impl Interrupting {
    /// A proxy for this backend, and the address at which it listens. It serves until the second result is
    /// dropped.
    fn start(backend: &Backend) -> (SocketAddr, drain::Drain) {
        let text = format!("upstream = \"{}\"\n{CHAT}", backend.url());
        let config = Config::read("test", &text, &Vec::new()).expect("it is valid");
        let (drain, watch) = drain::channel();
        let issuer = Arc::new(ClaimIssuer::new("test", Epoch(1), false));
        let dispatcher = Dispatcher::new(&issuer);
        let store = Arc::new(MemoryStore::new());
        store.listen(issuer.instance(), Arc::new(dispatcher.clone()));
        let (store, metrics): (Arc<dyn Store>, _) = (store, Metrics::new());
        let process = ProcessShared {
            answers: Answers::new(&metrics),
            budget: Budget::new(metrics.buffered()),
            cors: CorsMemory::default(),
            sinks: RecordSinks::new(metrics.clone(), Journal::default(), None),
        };
        let health = StoreHealth::new(true, &metrics);
        let shared = Arc::clone(&store);
        let instance = Instance::start(shared, issuer, dispatcher, None, metrics, health);
        let locks = Arc::new(Locks::new(store, Arc::new(instance), Fallback::Reject));
        let (own, tasks) = (Arc::clone(&locks), TaskTracker::new());
        let proxy = Proxy::new(Arc::new(config), own, process, 1, watch.clone(), tasks);
        let handler = Self {
            proxy: Arc::new(ArcSwap::from_pointee(proxy)),
            locks,
        };
        let any = ListenEndpoint::Tcp(([127, 0, 0, 1], 0).into());
        let listener = Listener::bind(&any).expect("a free port");
        let addr = listener.address().tcp().expect("TCP");
        let serving = watch.clone();
        tokio::spawn(listener.accept(watch, move |accepted| {
            let (handler, watch) = (handler.clone(), serving.clone());
            tokio::spawn(async move {
                listen::serve(accepted, &ServeSettings::default(), watch, handler).await;
            });
        }));
        (addr, drain)
    }

    /// Interrupts the turn of the session `s1`.
    async fn interrupt(&self) {
        let options = LockOptions {
            lock_timeout: Duration::from_secs(60),
            extend_lock_interval: None,
            blocking: true,
            blocking_timeout: None,
            interrupt: true,
            max_waiters: 1,
            on_lost: OnLost::Abort,
            settle: Duration::ZERO,
            settle_cancelled: None,
            enforce: true,
        };
        let key = SessionKey::literal("lock:session:u1:s1");
        let locks = Arc::clone(&self.locks);
        let mut newest = Box::pin(async move {
            let nobody = CallChain::default();
            let request = LockRequest::new("newest", "r", &nobody);
            drop(locks.acquire(key, request, &options).await);
        });
        let asked = poll!(newest.as_mut());
        assert_eq!(asked, Poll::Pending, "the turn still has its lock");
        tokio::spawn(newest);
    }
}

impl Serve for Interrupting {
    type Body = ProxyBody;

    fn serve(
        self,
        client: ClientConnection,
        request: Request<ClientBody>,
    ) -> impl Future<Output = Response<ProxyBody>> + Send + 'static {
        let responding = Arc::clone(&self.proxy).serve(client, request);
        async move {
            let response = responding.await;
            self.interrupt().await;
            response
        }
    }

    fn refuse(&self, ip: Option<std::net::IpAddr>, refused: &RejectedRequest) -> Response<Bytes> {
        self.proxy.refuse(ip, refused)
    }
}

#[tokio::test]
async fn a_turn_that_is_interrupted_as_its_response_begins_has_a_head() {
    let backend = Backend::start("gate").await;
    let (addr, _drain) = Interrupting::start(&backend);
    let mut client = begin_turn(addr, "s1", "gate").await;
    let answer = client.try_answer().await.expect("not a closed connection");
    assert!(
        answer.status == 200 && !answer.whole,
        "the response is truncated: {answer:?}"
    );
    backend.gone("s1").await;
}

#[tokio::test]
async fn over_http_2_too() {
    let backend = Backend::start("gate").await;
    let (addr, _drain) = Interrupting::start(&backend);
    let mut client = H2::connect(addr).await;
    let answer = client.send(h2_client::turn("s1", "gate")).await;
    let mut answer = answer.expect("a head, and not only a reset");
    assert_eq!(answer.status(), 200, "it is the backend's");
    answer.rest().await.expect_err("the response is truncated");
    backend.gone("s1").await;
}

/// A backend that breaks off each response right behind its head.
async fn start_breaking() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("it is bound");
    let serving = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let read = wire::read_some(&socket, &mut request).await;
                assert!(matches!(read, Ok(1..)), "a request");
            }
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n";
            wire::write_all(&socket, head).await.expect("it is read");
        }
    });
    (addr, serving)
}

#[tokio::test]
async fn a_response_that_its_backend_breaks_off_at_once_has_a_head() {
    let (backend, serving) = start_breaking().await;
    let config = "[[routes]]\nname = \"free\"\npath = \"/free\"\nlock = false\n";
    let app = crate::support::app::App::start(&format!("http://{backend}"), "memory:", "", config);
    for n in 0..200 {
        let mut client = client::Client::connect(app.addr()).await;
        client.send(&client::Request::get("/free")).await;
        let answer = within("the end of a response", client.try_answer()).await;
        let answer = answer.unwrap_or_else(|none| panic!("no head in round {n}: {none:?}"));
        assert!(
            answer.status == 200 && !answer.whole,
            "the response is truncated: {answer:?}"
        );
        yield_now().await;
    }
    serving.abort();
}
