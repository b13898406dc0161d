//! What one client may take of what is there for all: room for heads and for requests.

use std::pin::Pin;

use http::{HeaderValue, Response};
use hyper::body::Incoming;

use crate::support::bench::{Bench, is_made_up};
use crate::support::client::Request;
use crate::support::h2_client::{H2, full, get};
use crate::support::{wait_for_async, within};

/// Any number of turns wait for one session.
const LINE: &str = r#"
[[routes]]
name = "line"
path = "/line"
session_id = ["{header:x-session}"]
blocking = true
max_waiters = 10000

[limits]
max_connections = 1000

[timeouts]
request_head = "10m"
"#;

/// How much there is for so many connections.
const ROOM: usize = 128 << 20;

/// More than half of what a head may be.
const LARGE: usize = 40 << 10;

/// Hardly more than what needs no room.
const MIDDLING: usize = 9 << 10;

fn large(length: usize) -> HeaderValue {
    HeaderValue::try_from("a".repeat(length)).expect("a value")
}

/// A turn that waits.
type Waiting = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

/// Turns that wait with large heads, until there is no room for one more.
struct Full {
    clients: Vec<H2>,
    waiting: Vec<Waiting>,
    /// What the next one got.
    refused: Response<Incoming>,
}

// === impl Full ===

impl Full {
    /// Fills the room; the session is busy.
    async fn of(bench: &Bench) -> Self {
        Self::by(bench, LARGE, 99).await
    }

    /// Fills it by heads of such a length, so many on each connection.
    async fn by(bench: &Bench, length: usize, requests: usize) -> Self {
        let (mut clients, mut waiting) = (Vec::new(), Vec::<Waiting>::new());
        loop {
            assert!(clients.len() < 100, "there is an end to it");
            let mut client = H2::connect(bench.app.addr()).await;
            for _ in 0..requests {
                let request = get("/line")
                    .header("x-session", "s")
                    .header("x-large", large(length));
                let mut answer = Box::pin(client.begin(request.body(full("")).expect("a request")));
                // By now the proxy has said no, if it does.
                let small = client.call(get("/x").body(full("")).expect("a request"));
                let first = tokio::select! {
                    biased;
                    answer = &mut answer => Some(answer),
                    small = small => {
                        assert!(matches!(small.status(), 200 | 503), "the next request is answered");
                        None
                    }
                };
                let Some(answer) = first else {
                    waiting.push(answer);
                    continue;
                };
                clients.push(client);
                return Self {
                    clients,
                    waiting,
                    refused: answer.expect("an answer"),
                };
            }
            clients.push(client);
        }
    }

    /// Sees that all of the room is taken by those who wait.
    fn takes_all(&self) {
        let first = LARGE * 3;
        let further = first + (32 << 10);
        let firsts = self.clients.len();
        let taken = firsts * first + (self.waiting.len() - firsts) * further;
        assert!(
            (ROOM - 2 * further..=ROOM).contains(&taken),
            "all of it, up to one head: {taken} of {ROOM}"
        );
    }
}

#[tokio::test]
async fn large_heads_take_room_that_is_bounded_and_given_back() {
    let bench = Bench::start(LINE).await;
    let open = bench
        .open(&Request::new("GET", "/line").header("x-session", "s"))
        .await;
    let full = Full::of(&bench).await;
    assert_eq!(
        (
            full.refused.status().as_u16(),
            &full.refused.headers()["x-seriatim-error"]
        ),
        (503, &HeaderValue::from_static("overloaded")),
        "when there is no room for more heads"
    );
    full.takes_all();
    // It needs more than what was refused.
    let request = Request::new("GET", "/x").header("x-large", &"a".repeat(60 << 10));
    let answer = bench.call(&request).await;
    is_made_up("over HTTP/1, too", &answer, 503, "overloaded");
    assert_eq!(
        answer.header("retry-after"),
        Some("1"),
        "and when to come again"
    );
    bench.still_serves().await;
    drop(full.waiting);
    full.clients.into_iter().for_each(H2::lose);
    let fits = async || bench.call(&request).await.status == 200;
    wait_for_async(fits, "the room is given back").await;
    bench.end(open).await;
}

#[tokio::test]
async fn connections_without_a_request_keep_no_room_from_others() {
    let bench = Bench::start(LINE).await;
    let open = bench
        .open(&Request::new("GET", "/line").header("x-session", "s"))
        .await;
    let request = Request::new("GET", "/x").header("x-large", &"a".repeat(LARGE));
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut client = bench.client().await;
        for _ in 0..2 {
            let answer = client.call(&request).await;
            assert_eq!(answer.status, 200, "a large head is served, and the next");
        }
        idle.push(client);
    }
    let mut half = bench.client().await;
    let head = request.head_bytes(bench.app.addr());
    half.send_raw(&head[..LARGE]).await;
    let full = Full::of(&bench).await;
    full.takes_all();
    // Nobody makes way in vain: what is left of the room is too small for a large head, and not for these.
    let rest = Full::by(&bench, MIDDLING, 1).await;
    for client in &mut idle {
        let rest = within("an idle one to make way", client.read_to_close()).await;
        assert!(rest.is_empty(), "it is closed without a word");
    }
    let answer = within("half a head to make way", half.answer()).await;
    is_made_up("a head that doesn't come", &answer, 503, "overloaded");
    drop((full, rest));
    bench.end(open).await;
}

#[tokio::test]
async fn a_head_has_as_many_fields_over_http_2_as_over_http_1() {
    let bench = Bench::start(LINE).await;
    let mut client = H2::connect(bench.app.addr()).await;
    let request = |count: usize| {
        let mut request = get("/x");
        for n in 0..count {
            request = request.header(format!("x-{n}"), "1");
        }
        request.body(full("")).expect("a request")
    };
    let most = client.call(request(100)).await;
    assert_eq!(most.status(), 200, "a hundred");
    let more = client.call(request(101)).await;
    assert_eq!(more.error(), (431, "head_too_large"), "and no more");
    let mut crumbs = get("/x");
    for n in 0..200 {
        crumbs = crumbs.header("cookie", format!("c{n}=1"));
    }
    let crumbs = client.call(crumbs.body(full("")).expect("a request")).await;
    assert_eq!(
        crumbs.status(),
        200,
        "cookies are one, however they are split"
    );
}
