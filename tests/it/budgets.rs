//! Limits on what one client may take from all: memory for heads, and requests.

use std::pin::Pin;

use http::{HeaderValue, Response};
use hyper::body::Incoming;

use crate::support::bench::{Bench, assert_error_response};
use crate::support::client::Request;
use crate::support::h2_client::{H2, full, get};
use crate::support::{wait_for_async, within};

/// A route on which any number of turns wait for one session.
const QUEUE: &str = r#"
[[routes]]
name = "line"
path = "/line"
session_id = ["{header:x-session}"]
blocking = true
max_waiters = 10000

[limits]
max_connections = 1000

[timeouts]
request_head = "60s"
"#;

/// The memory for heads with this number of connections.
const ROOM: usize = 128 << 20;

/// More than half of the largest head.
const LARGE: usize = 40 << 10;

/// Little more than a head that needs no room.
const MIDDLING: usize = 9 << 10;

fn large(length: usize) -> HeaderValue {
    HeaderValue::try_from("a".repeat(length)).expect("a value")
}

/// A turn that waits.
type Waiting = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

/// Turns that wait with large heads, until there is no room for another one.
struct FullRoom {
    clients: Vec<H2>,
    waiting: Vec<Waiting>,
    /// The response to the first turn without room.
    refused: Response<Incoming>,
}

// === impl FullRoom ===

impl FullRoom {
    /// Fills the room with large heads. The session must be busy.
    async fn with_large_heads(bench: &Bench) -> Self {
        Self::with_heads(bench, LARGE, 99).await
    }

    /// Fills the room with heads of this length, this number on each connection.
    async fn with_heads(bench: &Bench, length: usize, requests: usize) -> Self {
        let (mut clients, mut waiting) = (Vec::new(), Vec::<Waiting>::new());
        loop {
            assert!(clients.len() < 100, "the room is finite");
            let mut client = H2::connect(bench.app.addr()).await;
            for _ in 0..requests {
                let request = get("/line")
                    .header("x-session", "s")
                    .header("x-large", large(length));
                let mut answer = Box::pin(client.begin(request.body(full("")).expect("a request")));
                // By now the proxy has refused the request, if it does.
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
                    refused: answer.expect("a response"),
                };
            }
            clients.push(client);
        }
    }

    /// Asserts that the waiting turns take all of the room.
    fn assert_all_taken(&self) {
        let first = LARGE * 3;
        let further = first + (32 << 10);
        let firsts = self.clients.len();
        let taken = firsts * first + (self.waiting.len() - firsts) * further;
        assert!(
            (ROOM - 2 * further..=ROOM).contains(&taken),
            "all of the room is taken, except for less than two heads: {taken} of {ROOM}"
        );
    }
}

#[tokio::test]
async fn large_heads_share_a_bounded_room_and_give_it_back() {
    let bench = Bench::start(QUEUE).await;
    let open = bench
        .open(&Request::new("GET", "/line").header("x-session", "s"))
        .await;
    let full = FullRoom::with_large_heads(&bench).await;
    assert_eq!(
        (
            full.refused.status().as_u16(),
            &full.refused.headers()["x-seriatim-error"]
        ),
        (503, &HeaderValue::from_static("overloaded")),
        "without room a further head is refused"
    );
    full.assert_all_taken();
    // This head needs more room than the refused one.
    let request = Request::new("GET", "/x").header("x-large", &"a".repeat(60 << 10));
    let answer = bench.call(&request).await;
    assert_error_response("over HTTP/1", &answer, 503, "overloaded");
    assert_eq!(
        answer.header("retry-after"),
        Some("1"),
        "`retry-after` says when to retry"
    );
    bench.assert_still_serves().await;
    drop(full.waiting);
    full.clients.into_iter().for_each(H2::lose);
    let fits = async || bench.call(&request).await.status == 200;
    wait_for_async(fits, "the room is given back").await;
    bench.end(open).await;
}

#[tokio::test]
async fn idle_connections_give_up_their_room_for_others() {
    let bench = Bench::start(QUEUE).await;
    let open = bench
        .open(&Request::new("GET", "/line").header("x-session", "s"))
        .await;
    let request = Request::new("GET", "/x").header("x-large", &"a".repeat(LARGE));
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut client = bench.client().await;
        for _ in 0..2 {
            let answer = client.call(&request).await;
            assert_eq!(
                answer.status, 200,
                "large heads are served one after another"
            );
        }
        idle.push(client);
    }
    let mut half = bench.client().await;
    let head = request.head_bytes(bench.app.addr());
    half.send_raw(&head[..LARGE]).await;
    let full = FullRoom::with_large_heads(&bench).await;
    full.assert_all_taken();
    // A connection gives up its room only if that helps. The rest of the room is too small for a large
    // head, but not for these.
    let rest = FullRoom::with_heads(&bench, MIDDLING, 1).await;
    for client in &mut idle {
        let rest = within("an idle connection to be closed", client.read_to_close()).await;
        assert!(
            rest.is_empty(),
            "an idle connection is closed without a response"
        );
    }
    let answer = within("half a head to be refused", half.answer()).await;
    assert_error_response("a head that does not arrive", &answer, 503, "overloaded");
    drop((full, rest));
    bench.end(open).await;
}

#[tokio::test]
async fn http_2_has_the_same_limit_of_header_fields_as_http_1() {
    let bench = Bench::start(QUEUE).await;
    let mut client = H2::connect(bench.app.addr()).await;
    let request = |count: usize| {
        let mut request = get("/x");
        for n in 0..count {
            request = request.header(format!("x-{n}"), "1");
        }
        request.body(full("")).expect("a request")
    };
    let most = client.call(request(100)).await;
    assert_eq!(most.status(), 200, "a hundred fields are served");
    let more = client.call(request(101)).await;
    assert_eq!(more.error(), (431, "head_too_large"), "one more is refused");
    let mut crumbs = get("/x");
    for n in 0..200 {
        crumbs = crumbs.header("cookie", format!("c{n}=1"));
    }
    let crumbs = client.call(crumbs.body(full("")).expect("a request")).await;
    assert_eq!(crumbs.status(), 200, "split cookies count as one field");
}
