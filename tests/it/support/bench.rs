//! A backend behind the proxy, and what of a request's session can be seen from outside.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::app::App;
use super::backend::{Backend, Recorded, event};
use super::client::{Answer, Client, Request, turn};

/// A backend behind the proxy.
pub(crate) struct Bench {
    pub(crate) backend: Backend,
    pub(crate) app: App,
    tags: AtomicUsize,
}

/// A turn that is held open until [`Open::end`].
pub(crate) struct Open {
    client: Client,
    tag: String,
}

// === impl Bench ===

impl Bench {
    pub(crate) async fn start(config: &str) -> Self {
        let backend = Backend::start("plain:ok").await;
        let app = App::in_memory(&backend, config);
        Self {
            backend,
            app,
            tags: AtomicUsize::new(0),
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.app.addr()).await
    }

    pub(crate) async fn call(&self, request: &Request) -> Answer {
        self.client().await.call(request).await
    }

    /// Begins a turn, and waits until its answer streams.
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

    /// Ends such a turn, and gives what the backend got of it.
    pub(crate) async fn end(&self, mut open: Open) -> Recorded {
        self.backend.open_gate(&open.tag);
        let answer = open.client.answer().await;
        assert!(answer.whole, "a turn runs to its end: {answer:?}");
        self.backend.turns(&open.tag).remove(0)
    }

    /// The name of the lock under which a turn of this request runs; `None`: it runs without one.
    pub(crate) async fn key(&self, request: &Request) -> Option<String> {
        let open = self.open(request).await;
        let again = self
            .call(&request.clone().header("x-test-session", "-"))
            .await;
        let key = match again.status {
            200 => None,
            429 => {
                is_made_up("the same again", &again, 429, "session_busy");
                let detail = again.json()["detail"].as_str().map(str::to_owned);
                let key = detail.as_deref().and_then(|detail| {
                    let rest = detail.strip_prefix('[')?;
                    rest.strip_suffix("] 锁已被占用").map(str::to_owned)
                });
                Some(key.unwrap_or_else(|| panic!("the detail names the lock: {again:?}")))
            }
            _ => panic!("a turn that began once begins again or meets its own lock: {again:?}"),
        };
        let got = self.end(open).await;
        assert_eq!(
            got.header("x-seriatim-fence").is_some(),
            key.is_some(),
            "a turn has a fence exactly if it has a lock ({key:?})"
        );
        key
    }

    /// Sends a request that must not reach the backend.
    pub(crate) async fn refused(&self, case: &str, request: &Request, status: u16, reason: &str) {
        let before = self.backend.requests().len();
        let answer = self.call(request).await;
        is_made_up(case, &answer, status, reason);
        assert_eq!(
            self.backend.requests().len(),
            before,
            "{case}: what is refused never reaches the backend"
        );
    }

    /// Whatever came before, the next turn is an ordinary one.
    pub(crate) async fn still_serves(&self) {
        let answer = turn(self.app.addr(), "the last one", "chunked:2:0").await;
        let served = answer.whole && answer.status == 200;
        assert!(
            served,
            "after all of it a normal turn is served: {answer:?}"
        );
    }
}

/// How many bytes of bodies are held on to, as the metrics say.
pub(crate) async fn buffered(bench: &Bench) -> String {
    let answer = Client::connect(bench.app.admin())
        .await
        .get("/metrics")
        .await;
    let text = answer.text();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("seriatim_buffered_bytes "));
    line.expect("the metric is there").to_owned()
}

/// Checks that the proxy has made up this answer, as the contract says it does.
#[track_caller]
pub(crate) fn is_made_up(case: &str, answer: &Answer, status: u16, reason: &str) {
    assert_eq!(
        (answer.status, answer.header("x-seriatim-error")),
        (status, Some(reason)),
        "{case}: the status and the reason belong together: {answer:?}"
    );
    assert_eq!(
        answer.headers_named("content-type"),
        ["application/json; charset=utf-8"],
        "{case}: an answer that the proxy makes up is JSON: {answer:?}"
    );
    let (json, text) = (answer.json(), answer.text());
    let members = ["success", "error", "detail", "status_code"];
    // In a value a quote has a backslash before it, so these are the names.
    let places = members.map(|member| text.find(&format!("\"{member}\":")));
    assert!(
        json.as_object().is_some_and(|object| object.len() == 4)
            && places.iter().all(Option::is_some)
            && places.is_sorted(),
        "{case}: it has these four members in this order: {text}"
    );
    assert!(
        json["success"] == false && json["error"].is_string() && json["detail"].is_string(),
        "{case}: they say that it failed, and why in two texts: {text}"
    );
    assert_eq!(
        json["status_code"], status,
        "{case}: its status is in the body too: {text}"
    );
    assert!(answer.whole, "{case}: and it is whole: {answer:?}");
}

/// Posts this JSON, or what should be JSON, to the usual route.
pub(crate) fn chat(body: impl Into<Vec<u8>>) -> Request {
    Request::post("/chat")
        .header("content-type", "application/json")
        .body(body)
}
