//! Error responses to pages of other origins (Fetch, "CORS protocol"): they allow what the backend allows, or
//! what `[cors]` says. A page in Chromium can read them, and one that the backend doesn't allow can't.

use serde_json::{Value, json};
use seriatim::app;
use seriatim::config::Config;

use crate::clients;
use crate::support::app::{App, CHAT, wait_for_queue_length};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Bench, Open, Setup, assert_error_response};
use crate::support::client::{Answer, Client, Request};
use crate::support::{unused_addr, wait_for_async};

const PAGE: &str = "https://app.example.com";
const OTHER: &str = "https://other.example";
const ALLOW_ORIGIN: &str = "access-control-allow-origin";
const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";
const EXPOSE: &str = "access-control-expose-headers";

/// A route with its session in the query, which takes every method.
const ASK: &str = "\n[[routes]]\nname = \"ask\"\npath = \"/ask\"\nsession_id = [\"{query:s}\"]\n";

/// A turn that a page of this origin sends. The backend's response has these headers.
fn from(origin: &str, session: &str, answer: &[&str]) -> Request {
    let request = Request::turn(session, "plain:ok").header("origin", origin);
    let add = |request: Request, header: &&str| request.header("x-test-answer", header);
    answer.iter().fold(request, add)
}

/// What the backend gives an origin by its name.
fn naming(origin: &str) -> String {
    format!("{ALLOW_ORIGIN}: {origin}")
}

/// What an error response allows: the origin, the credentials and the exposed headers.
fn allowed(answer: &Answer) -> [Option<&str>; 3] {
    [ALLOW_ORIGIN, ALLOW_CREDENTIALS, EXPOSE].map(|name| answer.header(name))
}

const NOTHING: [Option<&str>; 3] = [None, None, None];
const ERRORS: Option<&str> = Some(
    "link, retry-after, retry-after-ms, x-seriatim-busy-since, x-seriatim-error, x-seriatim-queue",
);

/// A replica whose session `busy` is held by a request that no page has sent.
async fn bench(config: &str) -> (Bench, Open) {
    let bench = Bench::start(&format!("{config}{CHAT}{ASK}")).await;
    let body = r#"{"session_id":"busy","user_id":"u1"}"#;
    let open = bench.open(&Request::post("/chat").json(body)).await;
    (bench, open)
}

impl Bench {
    /// The refusal of a turn that a page of this origin sends to the busy session.
    async fn refusal(&self, origin: &str) -> Answer {
        let answer = self.call(&from(origin, "busy", &[])).await;
        assert_error_response(origin, &answer, 429, "session_busy");
        assert_eq!(
            answer.headers_named("vary"),
            ["origin"],
            "a cache must not give it to another origin"
        );
        answer
    }

    /// Lets the backend answer a page of this origin with these headers.
    async fn answered(&self, origin: &str, answer: &[&str]) {
        let answer = self.call(&from(origin, "free", answer)).await;
        assert_eq!(answer.status, 200, "the turn is served: {answer:?}");
    }
}

#[tokio::test]
async fn an_error_response_allows_what_the_backend_allowed_to_the_same_origin() {
    let (bench, open) = bench("").await;
    assert_eq!(
        allowed(&bench.refusal(PAGE).await),
        NOTHING,
        "nothing is allowed that the backend hasn't"
    );
    let expose = format!("{EXPOSE}: x-custom, Retry-After");
    let credentials = format!("{ALLOW_CREDENTIALS}: true");
    bench
        .answered(PAGE, &[&naming(PAGE), &credentials, &expose])
        .await;
    assert_eq!(
        allowed(&bench.refusal(PAGE).await),
        [
            Some(PAGE),
            Some("true"),
            Some(
                "x-custom, Retry-After, link, retry-after-ms, x-seriatim-busy-since, x-seriatim-error, \
                 x-seriatim-queue"
            )
        ],
        "what the backend allows and exposes, and the headers of an error"
    );
    assert_eq!(
        allowed(&bench.refusal(OTHER).await),
        NOTHING,
        "another origin isn't allowed"
    );
    let without = bench.call(&Request::turn("busy", "plain:ok")).await;
    assert_error_response("without an origin", &without, 429, "session_busy");
    assert_eq!(allowed(&without), NOTHING, "no page asks");
    assert_eq!(
        without.header("vary"),
        None,
        "such a response doesn't change"
    );
    bench.answered(PAGE, &[&naming(PAGE)]).await;
    assert_eq!(
        allowed(&bench.refusal(PAGE).await),
        [Some(PAGE), None, ERRORS],
        "the last response of the backend counts"
    );
    bench.end(open).await;
}

#[tokio::test]
async fn what_the_backend_no_longer_allows_is_forgotten() {
    let (bench, open) = bench("").await;
    bench.answered(PAGE, &[&naming(PAGE)]).await;
    let failed = Request::turn("free", "status:500:x").header("origin", PAGE);
    assert_eq!(bench.call(&failed).await.status, 500, "the backend fails");
    assert_eq!(
        allowed(&bench.refusal(PAGE).await)[0],
        Some(PAGE),
        "an error of the backend without the headers says nothing"
    );
    bench.answered(PAGE, &[]).await;
    assert_eq!(
        allowed(&bench.refusal(PAGE).await),
        NOTHING,
        "a success does"
    );
    bench.answered(PAGE, &[&naming(PAGE)]).await;
    bench.answered(PAGE, &[&naming(PAGE), &naming(PAGE)]).await;
    assert_eq!(
        allowed(&bench.refusal(PAGE).await),
        NOTHING,
        "a browser accepts no response with two values"
    );
    bench.end(open).await;
}

#[tokio::test]
async fn a_value_that_names_no_origin_or_another_one_is_repeated_as_it_is() {
    for constant in ["*", OTHER, "null"] {
        let (bench, open) = bench("").await;
        bench.answered(PAGE, &[&naming(constant)]).await;
        for origin in [PAGE, "https://third.example"] {
            assert_eq!(
                allowed(&bench.refusal(origin).await),
                [Some(constant), None, ERRORS],
                "{origin} gets what the backend says to everybody"
            );
        }
        bench.end(open).await;
    }
    // Starlette says `*` to a request without a cookie, and names the origin to one with a cookie.
    let (bench, open) = bench("").await;
    let credentials = format!("{ALLOW_CREDENTIALS}: true");
    bench.answered(PAGE, &[&naming(PAGE), &credentials]).await;
    bench.answered(PAGE, &[&naming("*"), &credentials]).await;
    assert_eq!(
        allowed(&bench.refusal(PAGE).await),
        [Some(PAGE), Some("true"), ERRORS],
        "a browser takes the name with credentials and without"
    );
    bench.answered(PAGE, &[&naming("*")]).await;
    assert_eq!(
        allowed(&bench.refusal(PAGE).await),
        [Some("*"), None, ERRORS],
        "a backend that allows no credentials any more"
    );
    bench.answered("null", &[&naming("null")]).await;
    assert_eq!(
        allowed(&bench.refusal("null").await)[0],
        Some("null"),
        "the origin of a sandboxed page is an origin like others"
    );
    bench.end(open).await;
}

#[tokio::test]
async fn an_origin_takes_nothing_away_from_others() {
    let (bench, open) = bench("").await;
    bench.answered(PAGE, &[&naming("*")]).await;
    // As a path of the same route that the backend's CORS middleware doesn't see.
    bench.answered("x", &[]).await;
    assert_eq!(
        allowed(&bench.refusal(PAGE).await)[0],
        Some("*"),
        "what the backend gives to all stays"
    );
    bench.answered(PAGE, &[&naming(OTHER)]).await;
    bench.answered("x", &[]).await;
    assert_eq!(
        allowed(&bench.refusal(OTHER).await)[0],
        Some(OTHER),
        "so does what it gives to one other origin"
    );
    bench.answered(OTHER, &[]).await;
    assert_eq!(
        allowed(&bench.refusal(OTHER).await),
        NOTHING,
        "until it gives this origin nothing any more"
    );
    bench.end(open).await;
}

#[tokio::test]
async fn a_preflight_speaks_for_every_route_that_may_take_the_request() {
    let more = "[[routes]]\nname = \"stop\"\npath = \"/chat\"\nmethods = [\"POST\"]\n\
                when = { \"{body:/kind}\" = \"stop\" }\nlock = false\n";
    let (bench, open) = bench(more).await;
    let preflight = Request::new("OPTIONS", "/chat")
        .header("origin", PAGE)
        .header("access-control-request-method", "POST")
        .header("x-test-session", "-")
        .header("x-test-answer", &naming(PAGE))
        .header("x-test-answer", &format!("{ALLOW_CREDENTIALS}: true"));
    assert_eq!(
        bench.call(&preflight).await.status,
        200,
        "the backend answers it"
    );
    assert_eq!(
        allowed(&bench.refusal(PAGE).await),
        [Some(PAGE), Some("true"), ERRORS],
        "the first response of the route may be an error"
    );
    let expose = format!("{EXPOSE}: x-custom");
    bench.answered(PAGE, &[&naming(PAGE), &expose]).await;
    bench.call(&preflight).await;
    assert_eq!(
        allowed(&bench.refusal(PAGE).await)[2],
        Some(&*format!("x-custom, {}", ERRORS.unwrap_or_default())),
        "a preflight says nothing of exposed headers"
    );
    let elsewhere = Request::get("/ask").header("origin", PAGE);
    let elsewhere = elsewhere.header("content-length", "x");
    assert_eq!(
        allowed(&bench.call(&elsewhere).await),
        NOTHING,
        "what is no HTTP has no origin"
    );
    bench.end(open).await;
}

#[tokio::test]
async fn each_route_has_its_own_and_a_refusal_before_the_route_takes_any() {
    let (bench, open) = bench("unmatched = \"reject\"\n").await;
    let elsewhere = |path: &str| Request::get(path).header("origin", PAGE);
    let no_route = bench.call(&elsewhere("/nowhere")).await;
    assert_error_response("no route", &no_route, 404, "no_route");
    assert_eq!(allowed(&no_route), NOTHING, "nothing is known yet");
    bench.answered(PAGE, &[&naming(PAGE)]).await;
    let no_route = bench.call(&elsewhere("/nowhere")).await;
    assert_eq!(
        allowed(&no_route),
        [Some(PAGE), None, ERRORS],
        "any route's backend counts"
    );

    let asking = Request::get("/ask?s=busy2");
    let asked = bench.open(&asking).await;
    let refused = asking.header("origin", PAGE).header("x-test-session", "-");
    let refused = bench.call(&refused).await;
    assert_error_response("another route", &refused, 429, "session_busy");
    assert_eq!(
        allowed(&refused),
        NOTHING,
        "its backend has allowed nothing"
    );
    bench.end(asked).await;
    bench.end(open).await;
}

#[tokio::test]
async fn responses_of_the_backend_never_change() {
    let (bench, open) = bench("[cors]\nallow_origins = \"*\"\n").await;
    for answer in [vec![], vec![naming(PAGE)]] {
        let headers: Vec<_> = answer.iter().map(String::as_str).collect();
        let got = bench.call(&from(PAGE, "free", &headers)).await;
        assert_eq!(got.status, 200, "the turn is served");
        let expected = (!answer.is_empty()).then_some(PAGE);
        assert_eq!(
            allowed(&got),
            [expected, None, None],
            "as the backend sent it"
        );
        assert_eq!(got.header("vary"), None, "nothing is added");
    }
    bench.end(open).await;
}

#[tokio::test]
async fn the_configuration_takes_the_place_of_what_the_backend_allows() {
    let config = format!("[cors]\nallow_origins = [\"{PAGE}/\", \"http://b.example\"]\n");
    let (bench, open) = bench(&format!("{config}allow_credentials = true\n")).await;
    for (origin, expected) in [
        (PAGE, [Some(PAGE), Some("true"), ERRORS]),
        (
            "http://b.example",
            [Some("http://b.example"), Some("true"), ERRORS],
        ),
        (OTHER, NOTHING),
    ] {
        assert_eq!(allowed(&bench.refusal(origin).await), expected, "{origin}");
    }
    bench.answered(OTHER, &[&naming(OTHER)]).await;
    assert_eq!(
        allowed(&bench.refusal(OTHER).await),
        NOTHING,
        "what the backend allows doesn't count beside it"
    );
    bench.end(open).await;
    let (bench, open) = self::bench("[cors]\nallow_origins = \"*\"\n").await;
    assert_eq!(
        allowed(&bench.refusal(OTHER).await),
        [Some("*"), None, ERRORS],
        "any origin, without credentials"
    );
    bench.end(open).await;
}

#[tokio::test]
async fn what_one_backend_allows_is_not_anothers() {
    let backend = Backend::start("plain:ok").await;
    let gone = format!("upstream = \"http://{}\"\n", unused_addr());
    let put = "[[routes]]\nname = \"put\"\npath = \"/chat\"\nmethods = [\"POST\", \"PUT\"]\n\
               session_id = [\"put\"]\n";
    let config = format!("{CHAT}{ASK}{gone}{put}{gone}");
    let app = App::in_memory(&backend, &config);
    let mut client = Client::connect(app.addr()).await;
    let preflight = Request::new("OPTIONS", "/chat")
        .header("origin", PAGE)
        .header("access-control-request-method", "POST")
        .header("x-test-answer", &naming(PAGE));
    assert_eq!(
        client.call(&preflight).await.status,
        200,
        "the backend answers"
    );
    for request in [Request::get("/ask?s=1"), Request::new("PUT", "/chat")] {
        let gone = client.call(&request.header("origin", PAGE)).await;
        assert_error_response("another backend", &gone, 502, "upstream_unreachable");
        assert_eq!(
            allowed(&gone),
            NOTHING,
            "what one backend allows isn't another's"
        );
    }
}

#[tokio::test]
async fn a_replica_that_stops_tells_the_page_to_try_again() {
    let config = format!("[lock]\nblocking = true\n{CHAT}");
    let bench = Setup::new(&config).on_redis().await;
    let request = from(PAGE, "free", &[&naming(PAGE)]);
    assert_eq!(bench.call(&request).await.status, 200, "the turn is served");
    let mut holder = bench.hold("busy").await;
    let mut waiter = bench.client().await;
    waiter.send(&from(PAGE, "busy", &[])).await;
    wait_for_queue_length(&bench.redis, "busy", 1).await;
    let stopping = tokio::spawn(bench.app.stop());
    let draining = waiter.answer().await;
    assert_error_response("a replica that stops", &draining, 503, "draining");
    assert_eq!(
        allowed(&draining),
        [Some(PAGE), None, ERRORS],
        "the page reads that another replica will serve it"
    );
    bench.backend.open_gate("busy");
    assert!(holder.answer().await.whole, "the running turn finishes");
    stopping.await.expect("it stops");
}

#[tokio::test]
async fn a_reload_forgets_routes_whose_backend_has_changed() {
    let [old, new] = [
        Backend::start("plain:ok").await,
        Backend::start("plain:ok").await,
    ];
    let config = |upstream: &str| {
        let text = format!(
            "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             {CHAT}{ASK}upstream = \"{upstream}\"\n",
            old.url()
        );
        Config::read("test", &text, &Vec::new()).expect("a valid configuration")
    };
    let running = app::start(config(&old.url())).expect("a free port and a few threads");
    let addr = running.proxy_addr().tcp().expect("it listens on TCP");
    let mut holders = Vec::new();
    for (path, session) in [("/chat", "chat"), ("/ask?s=ask", "ask")] {
        let body = format!(r#"{{"session_id":"{session}"}}"#);
        let turn = Request::post(path).json(&body).header("origin", PAGE);
        let mut holder = Client::connect(addr).await;
        let turn = turn.header("x-test-answer", &naming(PAGE));
        let turn = turn.header("x-test-session", session);
        holder.send(&turn.header("x-test-script", "gate")).await;
        holder.read_until(&event(0)).await;
        holders.push(holder);
    }
    let refused = async |path: &str, body: &str| {
        let request = Request::post(path).json(body).header("origin", PAGE);
        let answer = Client::connect(addr).await.call(&request).await;
        assert_error_response(path, &answer, 429, "session_busy");
        answer.header(ALLOW_ORIGIN).is_some()
    };
    let chat = r#"{"session_id":"chat"}"#;
    assert!(
        refused("/chat", chat).await,
        "the route's backend has allowed it"
    );
    assert!(refused("/ask?s=ask", "{}").await, "so has the other's");
    let swapped = running.reloader().swap(config(&new.url()));
    swapped.expect("the option can change");
    let is_forgotten = async || !refused("/ask?s=ask", "{}").await;
    wait_for_async(is_forgotten, "the other backend has allowed nothing").await;
    assert!(
        refused("/chat", chat).await,
        "the route with the same backend stays"
    );
    old.open_all_gates();
    for mut holder in holders {
        assert!(holder.answer().await.whole, "the turn is complete");
    }
}

// === in a browser ===

/// What a page reads of the refusal of a busy session: the status, the reason, which other headers, the text.
fn refused_in_a_browser() -> Value {
    json!([
        429,
        "session_busy",
        [
            "retry-after",
            "retry-after-ms",
            "x-seriatim-busy-since",
            "x-seriatim-queue"
        ],
        "AI 正在思考中，请稍后再试"
    ])
}

#[tokio::test]
async fn a_page_of_another_origin_reads_the_refusal_in_a_browser() {
    let (page, agent) = tokio::join!(
        clients::Backend::start("page_backend.py"),
        clients::Backend::start("cors_backend.py")
    );
    let app = App::start(&agent.url(), "memory:", "", clients::PAGE);
    let proxy = format!("http://{}", app.addr());
    let saw = clients::Client("cors_browser.js");
    let saw = saw.call(&page.url(), &[&proxy, "learned"]).await;
    let refused = refused_in_a_browser();
    for how in ["omit", "include"] {
        assert_eq!(
            saw[how],
            json!({"served": 200, "refused": refused}),
            "a page that the backend allows reads status, headers and body, credentials: {how}"
        );
    }
    assert_eq!(
        saw["first"], refused,
        "after a preflight, the first response of a route may be an error"
    );
    assert_eq!(
        saw["stranger"],
        json!(["TypeError", "TypeError"]),
        "a page that the backend doesn't allow reads neither a response nor a refusal"
    );
}

#[tokio::test]
async fn a_configured_origin_reads_the_refusal_in_a_browser() {
    let (page, agent) = tokio::join!(
        clients::Backend::start("page_backend.py"),
        clients::Backend::start("cors_backend.py")
    );
    let config = format!(
        "[cors]\nallow_origins = [\"{}\"]\nallow_credentials = true\n{}",
        page.url(),
        clients::PAGE
    );
    let app = App::start(&agent.url(), "memory:", "", &config);
    let proxy = format!("http://{}", app.addr());
    let saw = clients::Client("cors_browser.js");
    let saw: Value = saw.call(&page.url(), &[&proxy, "configured"]).await;
    assert_eq!(
        saw["cold"],
        refused_in_a_browser(),
        "the first response of all may be an error"
    );
    assert_eq!(
        saw["stranger"],
        json!("TypeError"),
        "another origin reads nothing"
    );
}
