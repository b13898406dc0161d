//! Two replicas, one Redis and an unchanged backend: the main use case.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::app::{App, CHAT, key};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::python::{Agent, LockClient};
use crate::support::redis::Redis;

const CLIENTS: usize = 30;
const SESSIONS: usize = 5;
/// For how long the clients send turns.
const LOAD: Duration = Duration::from_secs(20);

#[tokio::test]
async fn turns_of_thirty_clients_never_overlap_at_a_fastapi_backend() {
    let (agent, redis) = (Agent::start().await, Redis::start().await);
    let replicas = [(); 2].map(|()| App::start(&agent.url(), &redis.url(), "", CHAT));
    let end = Instant::now() + LOAD;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let addr = replicas[n % replicas.len()].addr();
            tokio::spawn(async move {
                let mut client = Client::connect(addr).await;
                let body = format!(r#"{{"session_id": "s{}", "user_id": "u"}}"#, n % SESSIONS);
                let (mut served, mut refused) = (0, 0);
                while Instant::now() < end {
                    let answer = client.call(&Request::post("/chat").json(&body)).await;
                    if answer.status == 429 {
                        refused += 1;
                        // A shorter form of `retry-after`: the session is busy for 100 ms.
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    }
                    assert_eq!(answer.status, 200, "served or refused: {answer:?}");
                    assert!(answer.whole, "every stream is complete");
                    assert!(
                        answer.text().ends_with("data: [DONE]\n\n"),
                        "every stream has its last event"
                    );
                    assert!(answer.pieces.len() > 1, "every stream arrives in pieces");
                    served += 1;
                }
                (served, refused)
            })
        })
        .collect();
    let (mut served, mut refused) = (0, 0);
    for client in clients {
        let (own, others) = client.await.expect("no answer was wrong");
        served += own;
        refused += others;
    }
    let counts = agent.counts().await;
    let most = counts["most"]
        .as_object()
        .expect("a count for each session");
    assert_eq!(most.len(), SESSIONS, "every session had turns: {counts}");
    assert!(
        most.values().all(|most| *most == 1),
        "turns of a session never overlap: {counts}"
    );
    assert_eq!(
        counts["turns"], served,
        "each served turn was one turn at the backend"
    );
    assert!(refused > 0, "some turns were refused");
    assert_eq!(
        redis.keys().await,
        [""; 0],
        "no key is left after all turns"
    );
}

#[tokio::test]
async fn python_code_and_the_proxy_exclude_each_other_on_one_key() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, CHAT);
    let mut python = LockClient::start(&redis.url(), &key("s1"));

    assert_eq!(python.take(), "taken", "Python can take a free lock");
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        429,
        "the proxy refuses a session that Python holds"
    );
    assert_eq!(
        python.free(),
        "freed",
        "the proxy doesn't take Python's lock"
    );
    let mut held = begin_turn(app.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    assert_eq!(
        python.take(),
        "busy",
        "Python can't take a lock that the proxy holds"
    );
    assert_eq!(
        python.free(),
        "not mine",
        "Python can't release a lock that the proxy holds"
    );
    backend.open_gate("s1");
    assert!(held.answer().await.whole, "the turn is complete");
    assert_eq!(python.take(), "taken", "the turn released its lock");
    assert_eq!(python.free(), "freed", "Python releases its own lock");
    assert_eq!(redis.keys().await, [""; 0], "no key is left");
}
