//! The road of a request, when nothing goes wrong: one turn at a time, streamed, unchanged.

use crate::support::app::{App, CHAT, key};
use crate::support::backend::{Backend, event, events};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;

/// The refusal of the contract, to the byte.
fn refusal(session: &str) -> String {
    let key = key(session);
    format!(
        r#"{{"success":false,"error":"AI 正在思考中，请稍后再试","detail":"[{key}] 锁已被占用","status_code":429}}"#
    )
}

async fn one_turn_at_a_time(backend: &Backend, app: &App) {
    let mut first = begin_turn(app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;

    let refused = turn(app.addr(), "s1", "plain:hello").await;
    assert_eq!(refused.status, 429, "a busy session is refused at once");
    assert_eq!(
        refused.text(),
        refusal("s1"),
        "with the four members of the contract"
    );
    assert_eq!(
        refused.header("x-seriatim-error"),
        Some("session_busy"),
        "and its reason"
    );
    assert_eq!(
        refused.header("retry-after"),
        Some("1"),
        "and when to come again"
    );
    let content_type = refused.header("content-type");
    assert_eq!(
        content_type,
        Some("application/json; charset=utf-8"),
        "as JSON"
    );

    let other = turn(app.addr(), "s2", "plain:hello").await;
    assert_eq!(other.text(), "hello", "another session isn't disturbed");

    backend.open_gate("s1");
    let first = first.answer().await;
    assert!(
        first.whole && first.text().starts_with(&event(0)),
        "the first turn runs to its end"
    );
    assert_eq!(
        turn(app.addr(), "s1", "plain:hello").await.status,
        200,
        "and the next one starts"
    );
    assert_eq!(
        backend.max_overlap("s1"),
        1,
        "the backend never sees two turns of a session"
    );
    assert_eq!(backend.turns("s1").len(), 2, "and never the refused one");
}

#[tokio::test]
async fn second_turn_is_refused_while_the_first_streams_and_served_after_it() {
    let backend = Backend::start("plain:ok").await;
    one_turn_at_a_time(&backend, &App::in_memory(&backend, CHAT)).await;
}

#[tokio::test]
async fn and_likewise_on_redis() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    one_turn_at_a_time(&backend, &App::on_redis(&backend, &redis, CHAT)).await;
    assert_eq!(
        redis.keys().await,
        [""; 0],
        "no key is left when all is quiet"
    );
}

#[tokio::test]
async fn a_client_that_has_read_the_last_byte_never_meets_its_own_lock() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let replicas = [(); 2].map(|()| App::on_redis(&backend, &redis, CHAT));
    let mut clients = [
        Client::connect(replicas[0].addr()).await,
        Client::connect(replicas[1].addr()).await,
    ];
    // With a content-length, chunked, and without a body: what the end looks like differs.
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
            "turn {number} ({script}) came after the last byte: {answer:?}"
        );
    }
    assert_eq!(backend.max_overlap("s1"), 1, "and they never overlapped");
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
            "two commands for a turn ({script}), no more: {lines:?}"
        );
    }
}

#[tokio::test]
async fn the_key_is_the_contracts_and_its_value_tells_who_holds_it() {
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
        .expect("the key of the convention");
    let value: serde_json::Value = serde_json::from_str(&value).expect("one line of JSON");
    assert_eq!(value["route"], "chat", "the value names the route");
    assert_eq!(value["request"], "req-7", "and the request");
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
async fn an_answer_streams_piece_by_piece_and_arrives_whole() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = begin_turn(app.addr(), "s1", "gate").await;
    // The backend writes nothing more before its gate is opened: what is here came at once.
    client.read_until(&event(0)).await;
    backend.open_gate("s1");
    assert!(
        client.answer().await.whole,
        "and the end comes when the backend ends"
    );
    for script in ["chunked:50:1", "length:50:1", "until-close", "big:3000000"] {
        let (direct, proxied) = (
            turn(backend.addr(), "s2", script).await,
            turn(app.addr(), "s2", script).await,
        );
        assert!(proxied.whole, "{script} arrives whole");
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
    assert_eq!(many.text(), events(50), "every event, in order");
}

#[tokio::test]
async fn the_heads_of_answers_pass_with_nothing_added_or_lost() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = Client::connect(app.addr()).await;
    let request = Request::turn("s1", "status:418:teapot")
        .header("x-test-answer", "set-cookie: a=1")
        .header("x-test-answer", "set-cookie: b=2")
        .header("x-test-answer", "x-seriatim-error: forged");
    let answer = client.call(&request).await;
    assert_eq!(answer.status, 418, "the backend's status, whatever it is");
    assert_eq!(answer.text(), "teapot", "and its body");
    assert_eq!(
        answer.headers_named("set-cookie"),
        ["a=1", "b=2"],
        "repeated headers, in order"
    );
    assert_eq!(
        answer.header("x-seriatim-error"),
        None,
        "the proxy's own headers aren't forged"
    );
    assert_eq!(
        answer.header("date"),
        None,
        "the backend sent no date, and none is added"
    );
    let head = client.call(&Request::new("HEAD", "/x")).await;
    assert_eq!(
        (head.status, head.body.len()),
        (200, 0),
        "HEAD has a head and no body"
    );
}

#[tokio::test]
async fn what_no_route_locks_passes_freely() {
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
        "a stop button reaches the backend while the turn runs"
    );
    assert_eq!(
        client.get("/anything").await.status,
        200,
        "so does what no route takes"
    );
    let without = client.post_json("/chat", r#"{"other": 1}"#).await;
    assert_eq!(
        without.status, 200,
        "and what names no session, with on_missing = \"pass\""
    );
    backend.open_gate("s1");
    running.answer().await;

    let strict = App::in_memory(&backend, &format!("unmatched = \"reject\"\n{CHAT}"));
    let refused = Client::connect(strict.addr()).await.get("/anything").await;
    assert_eq!(
        refused.status, 404,
        "with unmatched = \"reject\" it doesn't"
    );
    assert_eq!(
        refused.header("x-seriatim-error"),
        Some("no_route"),
        "and the reason is said"
    );
}

#[tokio::test]
async fn a_body_is_streamed_to_the_backend_when_no_alternative_needs_it() {
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
    // The backend has the head of a request whose body isn't over.
    backend.received(1).await;
    client.send_raw(b"56789").await;
    assert_eq!(
        client.answer().await.status,
        200,
        "and is answered when it is"
    );
    assert_eq!(backend.requests()[0].body, b"0123456789", "byte for byte");
}

#[tokio::test]
async fn a_request_that_met_a_closed_connection_is_sent_once_and_answered() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    for number in 0..20 {
        // The backend closes its connection after the answer, and doesn't say so; the next request
        // may find it kept.
        let answer = turn(app.addr(), "s1", "plain-close:x").await;
        assert_eq!(answer.status, 200, "request {number} is answered");
    }
    assert_eq!(backend.turns("s1").len(), 20, "and each was executed once");
}

#[tokio::test]
async fn the_longest_answer_is_held_in_no_buffer() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = Client::connect_narrow(app.addr(), 4096).await;
    client.send(&Request::turn("s1", "big:100000000")).await;
    client.piece().await;
    // Long enough for a backend that isn't held up to have written all of it.
    for n in 0..500 {
        let other = turn(app.addr(), "other", "plain:x").await;
        assert_eq!(other.status, 200, "turn {n} beside it");
    }
    assert_eq!(backend.running("s1"), 1, "the backend waits for its client");
    client.close();
    backend.gone("s1").await;
}
