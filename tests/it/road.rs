//! The path of a request without faults: one turn at a time, streamed, unchanged.

use crate::support::app::{App, CHAT, key};
use crate::support::backend::{Backend, event, events};
use crate::support::client::{Answer, Client, Request, begin_turn, turn};
use crate::support::redis::Redis;

/// The error response of the contract, byte for byte, and behind it what the headers say, too.
fn refusal(session: &str, answer: &Answer) -> String {
    let key = key(session);
    let header = |name| answer.header(name).unwrap_or("no header");
    let time = header("retry-after-ms");
    let since = header("x-seriatim-busy-since");
    let queue = header("x-seriatim-queue");
    format!(
        r#"{{"success":false,"error":"AI 正在思考中，请稍后再试","detail":"[{key}] 锁已被占用","status_code":429,"#
    ) + &format!(r#""retry_after_ms":{time},"busy_since":"{since}","queue":{queue}}}"#)
}

async fn one_turn_at_a_time(backend: &Backend, app: &App) {
    let mut first = begin_turn(app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;

    let refused = turn(app.addr(), "s1", "plain:hello").await;
    assert_eq!(refused.status, 429, "a busy session is refused at once");
    assert_eq!(
        refused.text(),
        refusal("s1", &refused),
        "the body has the four members of the contract, and three that explain"
    );
    assert_eq!(
        refused.header("x-seriatim-error"),
        Some("session_busy"),
        "the error response has its reason"
    );
    assert_eq!(
        refused.header("x-seriatim-queue"),
        Some("0"),
        "nobody waits"
    );
    let number = |name| {
        let value = refused.header(name).and_then(|value| value.parse().ok());
        value.unwrap_or(0_u64)
    };
    let (seconds, millis) = (number("retry-after"), number("retry-after-ms"));
    assert!(
        (1..=59).contains(&seconds) && millis.div_ceil(1000) == seconds,
        "the client may try again after a second at least: {refused:?}"
    );
    let content_type = refused.header("content-type");
    assert_eq!(
        content_type,
        Some("application/json; charset=utf-8"),
        "the error response is JSON"
    );

    let other = turn(app.addr(), "s2", "plain:hello").await;
    assert_eq!(other.text(), "hello", "another session isn't affected");

    backend.open_gate("s1");
    let first = first.answer().await;
    assert!(
        first.whole && first.text().starts_with(&event(0)),
        "the first turn is complete"
    );
    assert_eq!(
        turn(app.addr(), "s1", "plain:hello").await.status,
        200,
        "the next turn starts after it"
    );
    assert_eq!(
        backend.max_overlap("s1"),
        1,
        "the backend never sees two turns of a session"
    );
    assert_eq!(
        backend.turns("s1").len(),
        2,
        "the backend never sees the refused turn"
    );
}

#[tokio::test]
async fn a_second_turn_is_refused_while_the_first_streams() {
    let backend = Backend::start("plain:ok").await;
    one_turn_at_a_time(&backend, &App::in_memory(&backend, CHAT)).await;
}

#[tokio::test]
async fn a_second_turn_is_refused_while_the_first_streams_on_redis() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    one_turn_at_a_time(&backend, &App::on_redis(&backend, &redis, CHAT)).await;
    assert_eq!(
        redis.keys().await,
        [""; 0],
        "no key is left after all turns"
    );
}

#[tokio::test]
async fn the_session_is_free_when_the_client_has_the_last_byte() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let replicas = [(); 2].map(|()| App::on_redis(&backend, &redis, CHAT));
    let mut clients = [
        Client::connect(replicas[0].addr()).await,
        Client::connect(replicas[1].addr()).await,
    ];
    // With a content-length, chunked, and without a body: each ends in another way.
    let scripts = [
        "plain:hello",
        "chunked:2:0",
        "length:2:0",
        "empty",
        "nocontent",
    ];
    for number in 0..2_000 {
        let script = scripts[number / 2 % scripts.len()];
        let answer = clients[number % 2].turn("s1", script).await;
        let ok = answer.whole && matches!(answer.status, 200 | 204);
        assert!(
            ok,
            "turn {number} ({script}) finds the session free: {answer:?}"
        );
    }
    assert_eq!(backend.max_overlap("s1"), 1, "turns never overlapped");
}

#[tokio::test]
async fn an_uncontended_turn_costs_one_command_to_acquire_and_one_to_release() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, CHAT);
    redis.is_connected().await;
    let monitor = redis.monitor().await;
    for script in ["plain:x", "chunked:3:1", "empty"] {
        monitor.clear().await;
        assert_eq!(
            turn(app.addr(), "s1", script).await.status,
            200,
            "a turn is served"
        );
        let lines = monitor.lines_from_clients().await;
        assert_eq!(
            lines.len(),
            2,
            "a turn ({script}) takes two commands: {lines:?}"
        );
    }
}

#[tokio::test]
async fn the_lock_key_follows_the_contract_and_its_value_names_the_holder() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, CHAT);
    let mut client = Client::connect(app.addr()).await;
    client
        .send(&Request::turn("s1", "gate").header("x-request-id", "req-7"))
        .await;
    backend.started("s1", 1).await;
    let value = redis
        .get("lock:session:u1:s1")
        .await
        .expect("the lock has the key of the contract");
    let value: serde_json::Value = serde_json::from_str(&value).expect("the value is JSON");
    assert_eq!(value["route"], "chat", "the value names the route");
    assert_eq!(value["request"], "req-7", "the value names the request");
    let left = redis.pttl("lock:session:u1:s1").await;
    assert!(
        (290_000..=300_000).contains(&left),
        "the TTL is lock_timeout: {left} ms"
    );
    assert_eq!(
        redis.command(&["TYPE", "lock:session:u1:s1"]).await,
        redis_string("string")
    );
    backend.open_gate("s1");
    client.answer().await;
}

fn redis_string(text: &str) -> redis::Value {
    redis::Value::SimpleString(text.to_owned())
}

#[tokio::test]
async fn a_response_streams_in_pieces_and_arrives_complete() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = begin_turn(app.addr(), "s1", "gate").await;
    // The backend writes nothing more before its gate is opened, so this event came at once.
    client.read_until(&event(0)).await;
    backend.open_gate("s1");
    assert!(
        client.answer().await.whole,
        "the response ends when the backend ends"
    );
    for script in ["chunked:50:1", "length:50:1", "until-close", "big:3000000"] {
        let (direct, proxied) = (
            turn(backend.addr(), "s2", script).await,
            turn(app.addr(), "s2", script).await,
        );
        assert!(proxied.whole, "{script} arrives complete");
        assert_eq!(
            proxied.status, direct.status,
            "{script} has the backend's status"
        );
        assert!(
            proxied.body == direct.body,
            "{script} arrives byte for byte"
        );
    }
    let many = turn(app.addr(), "s2", "chunked:50:1").await;
    assert_eq!(many.text(), events(50), "every event arrives, in order");
}

#[tokio::test]
async fn response_heads_are_forwarded_unchanged() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = Client::connect(app.addr()).await;
    let request = Request::turn("s1", "status:418:teapot")
        .header("x-test-answer", "set-cookie: a=1")
        .header("x-test-answer", "set-cookie: b=2")
        .header("x-test-answer", "x-seriatim-error: forged");
    let answer = client.call(&request).await;
    assert_eq!(answer.status, 418, "any status of the backend is forwarded");
    assert_eq!(answer.text(), "teapot", "the body is forwarded");
    assert_eq!(
        answer.headers_named("set-cookie"),
        ["a=1", "b=2"],
        "repeated headers keep their order"
    );
    assert_eq!(
        answer.header("x-seriatim-error"),
        None,
        "a backend can't send the proxy's own headers"
    );
    assert_eq!(answer.header("date"), None, "no date is added");
    let head = client.call(&Request::new("HEAD", "/x")).await;
    assert_eq!(
        (head.status, head.body.len()),
        (200, 0),
        "a response to HEAD has no body"
    );
}

#[tokio::test]
async fn requests_without_a_locking_route_are_forwarded() {
    let backend = Backend::start("plain:ok").await;
    let stop = "[[routes]]\nname = \"stop\"\npath = \"/chat/stop\"\nlock = false\n";
    let app = App::in_memory(&backend, &format!("{stop}{CHAT}"));
    let mut running = begin_turn(app.addr(), "s1", "gate").await;
    running.read_until(&event(0)).await;
    let mut client = Client::connect(app.addr()).await;
    let stop = client
        .post_json("/chat/stop", r#"{"session_id": "s1"}"#)
        .await;
    assert_eq!(
        stop.status, 200,
        "a stop request reaches the backend while the turn runs"
    );
    assert_eq!(
        client.get("/anything").await.status,
        200,
        "a request without a route is forwarded"
    );
    let without = client.post_json("/chat", r#"{"other": 1}"#).await;
    assert_eq!(
        without.status, 200,
        "a request without a session is forwarded with on_missing = \"pass\""
    );
    backend.open_gate("s1");
    running.answer().await;

    let strict = App::in_memory(&backend, &format!("unmatched = \"reject\"\n{CHAT}"));
    let refused = Client::connect(strict.addr()).await.get("/anything").await;
    assert_eq!(
        refused.status, 404,
        "unmatched = \"reject\" refuses a request without a route"
    );
    assert_eq!(
        refused.header("x-seriatim-error"),
        Some("no_route"),
        "the error response has its reason"
    );
}

#[tokio::test]
async fn a_body_that_no_template_needs_is_streamed_to_the_backend() {
    let backend = Backend::start("plain:ok").await;
    let route =
        "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-session}\"]\n";
    let app = App::in_memory(
        &backend,
        &format!("[limits]\nread_before_lock = 0\n{route}"),
    );
    let mut client = Client::connect(app.addr()).await;
    let request = Request::post("/up")
        .header("x-session", "s1")
        .header("content-length", "10");
    client.send_head(&request).await;
    client.send_raw(b"01234").await;
    // The backend has the head of a request whose body isn't complete.
    backend.received(1).await;
    client.send_raw(b"56789").await;
    assert_eq!(
        client.answer().await.status,
        200,
        "the request is answered when its body is complete"
    );
    assert_eq!(
        backend.requests()[0].body,
        b"0123456789",
        "the body arrives byte for byte"
    );
}

#[tokio::test]
async fn a_request_on_a_closed_connection_is_sent_again_and_executed_once() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    for number in 0..20 {
        // The backend closes its connection after the response without announcing it; the next
        // request may find it in the pool.
        let answer = turn(app.addr(), "s1", "plain-close:x").await;
        assert_eq!(answer.status, 200, "request {number} is answered");
    }
    assert_eq!(
        backend.turns("s1").len(),
        20,
        "each request is executed once"
    );
}

#[tokio::test]
async fn a_large_response_is_not_buffered() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = Client::connect_narrow(app.addr(), 4096).await;
    client.send(&Request::turn("s1", "big:100000000")).await;
    client.piece().await;
    // Long enough for a backend without backpressure to write all of it.
    for n in 0..500 {
        let other = turn(app.addr(), "other", "plain:x").await;
        assert_eq!(other.status, 200, "turn {n} of another session is served");
    }
    assert_eq!(backend.running("s1"), 1, "the backend waits for the client");
    client.close();
    backend.gone("s1").await;
}
