//! What one client may take of what is there for all: room for heads and for requests.

use http::HeaderValue;

use crate::support::bench::{Bench, is_made_up};
use crate::support::client::Request;
use crate::support::h2_client::{H2, full, get};
use crate::support::wait_for_async;

/// Any number of turns wait for one session.
const LINE: &str = r#"
[[routes]]
name = "line"
path = "/line"
session_id = ["{header:x-session}"]
blocking = true
max_waiters = 10000
"#;

/// More than half of what a head may be.
const LARGE: usize = 40 << 10;

fn large() -> HeaderValue {
    HeaderValue::try_from("a".repeat(LARGE)).expect("a value")
}

#[tokio::test]
async fn large_heads_take_room_that_is_bounded_and_given_back() {
    let bench = Bench::start(LINE).await;
    let open = bench
        .open(&Request::new("GET", "/line").header("x-session", "s"))
        .await;
    let (mut clients, mut waiting) = (Vec::new(), Vec::new());
    let refused = 'full: loop {
        assert!(clients.len() < 100, "there is an end to it");
        let mut client = H2::connect(bench.app.addr()).await;
        for _ in 0..99 {
            let request = get("/line")
                .header("x-session", "s")
                .header("x-large", large());
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
            match first {
                Some(answer) => break 'full answer.expect("an answer"),
                None => waiting.push(answer),
            }
        }
        clients.push(client);
    };
    assert_eq!(
        (
            refused.status().as_u16(),
            &refused.headers()["x-seriatim-error"]
        ),
        (503, &HeaderValue::from_static("overloaded")),
        "when there is no room for more heads"
    );
    let room = (waiting.len() + 1) * LARGE * 3;
    assert!(
        (64 << 20..256 << 20).contains(&room),
        "it is bounded for all connections together: {room}"
    );
    let request = Request::new("GET", "/x").header("x-large", &"a".repeat(LARGE));
    let answer = bench.call(&request).await;
    is_made_up("over HTTP/1, too", &answer, 503, "overloaded");
    assert_eq!(
        answer.header("retry-after"),
        Some("1"),
        "and when to come again"
    );
    bench.still_serves().await;
    drop(waiting);
    clients.into_iter().for_each(H2::lose);
    let fits = async || bench.call(&request).await.status == 200;
    wait_for_async(fits, "the room is given back").await;
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
