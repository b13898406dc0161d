//! A Redis without RESP3, as some managed ones and proxies are: the process connects with RESP2. Connections that are
//! lost are noticed at once there, too, and messages come over a connection of their own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seriatim::key::SessionKey;
use seriatim::lock::redis::{RedisAddress, RedisStore};
use seriatim::lock::{ClaimIssuer, Epoch, Message, MessageHandler, Store, StoreError};

use crate::support::app::CHAT;
use crate::support::bench::Setup;
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async};

/// Collects messages.
#[derive(Debug, Default)]
struct Inbox(Mutex<Vec<Message>>);

impl Inbox {
    fn messages(&self) -> Vec<Message> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl MessageHandler for Inbox {
    fn on_message(&self, message: Message) {
        let mut messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        messages.push(message);
    }

    fn on_reconnect(&self) {}
}

/// The kinds of connections that a server without RESP3 has from a process: for commands, and for messages.
const KINDS: [&str; 2] = ["normal", "pubsub"];

#[tokio::test]
async fn a_connection_that_redis_closes_is_replaced_although_no_command_is_sent() {
    // Otherwise the next heartbeat comes after ten minutes.
    let setup = Setup::new(CHAT).store("crash_recovery = \"30m\"");
    let bench = setup.on(Redis::start_without_hello(&[]).await).await;
    let is_alive = async || !bench.redis.instances().await.is_empty();
    wait_for_async(is_alive, "the first heartbeat").await;
    for kind in KINDS {
        for instance in bench.redis.instances().await {
            bench.redis.command(&["DEL", &instance]).await;
        }
        let kill = ["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"];
        let killed = bench.redis.command(&kill).await;
        assert!(
            matches!(killed, redis::Value::Int(1..)),
            "there is a connection of type {kind}: {killed:?}"
        );
        wait_for_async(is_alive, &format!("a heartbeat after {kind} was lost")).await;
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn messages_arrive_and_login_and_database_are_those_of_the_url() {
    let redis = Redis::start_without_hello(&[]).await;
    let rights = ["~*", "&*", "+@all", "on", ">geheim"];
    let user = [&["ACL", "SETUSER", "agent", "reset"][..], &rights].concat();
    redis.command(&user).await;
    let address = |password: &str| {
        let url = format!("redis://agent:{password}@{}/3", redis.addr());
        RedisAddress::parse(&url, Duration::from_secs(5)).expect("a URL")
    };
    let inbox = Arc::<Inbox>::default();
    let store = RedisStore::listen(address("geheim"), "a", Arc::clone(&inbox) as _);
    let issuer = ClaimIssuer::new("a", Epoch(1), true);
    let claim = issuer.issue(
        SessionKey::literal("k"),
        "",
        "request",
        Duration::from_secs(30),
    );
    let message = Message::Granted(claim.id);
    let received = store.send_message("a", message.clone()).await;
    assert!(received.expect("the store answers"), "somebody subscribes");
    wait_for(|| inbox.messages() == [message.clone()], "the message").await;
    let info = redis.command(&["CLIENT", "LIST", "TYPE", "normal"]).await;
    let info: String = redis::from_redis_value(info).expect("text");
    let is_own = |line: &&str| line.contains("user=agent");
    let own: Vec<_> = info.lines().filter(is_own).collect();
    assert!(
        !own.is_empty() && own.iter().all(|line| line.contains(" db=3 ")),
        "commands go to the database of the URL: {info}"
    );

    let refused = RedisStore::connect(address("another"));
    let error = refused.liveness("a").await.expect_err("no login");
    assert!(
        matches!(&error, StoreError::Refused { reason, .. } if reason.starts_with("WRONGPASS")),
        "the error of the login: {error}"
    );
}
