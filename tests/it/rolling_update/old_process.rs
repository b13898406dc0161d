//! A process of an older version: the scripts, keys, values and messages of format 1, as they were kept.
//!
//! Nothing here comes from the current sources, so a change of those is seen.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use redis::Value;
use tokio::task::JoinHandle;

use crate::support::app::key;
use crate::support::redis::Redis;
use crate::support::wait_for;

/// A script that was kept.
macro_rules! kept {
    ($name:literal) => {
        include_str!(concat!("../../kept/format-1/", $name, ".lua"))
    };
}

/// A process of format 1, which other processes take for alive.
pub(super) struct OldProcess<'r> {
    redis: &'r Redis,
    name: &'static str,
    epoch: u64,
    issued: Cell<u64>,
    messages: Arc<Mutex<Vec<String>>>,
    receiving: JoinHandle<()>,
}

/// A claim of an old process.
pub(super) struct OldClaim {
    pub(super) session: &'static str,
    pub(super) id: String,
    pub(super) token: String,
}

/// How a claim waits.
#[derive(Clone, Copy)]
pub(super) struct OldWait {
    /// 0: the claim has no place yet.
    pub(super) ticket: u64,
    pub(super) interrupts: bool,
}

/// What `acquire` replied.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OldReply {
    /// The lock, with this fence.
    Fence(u64),
    /// A place in the queue, behind this holder.
    Place(u64, String),
    /// The lock of a dead holder, with this fence.
    TookOver(u64),
}

/// A place at the end of the queue.
pub(super) const JOIN: OldWait = OldWait {
    ticket: 0,
    interrupts: false,
};

/// The lease of the old process, in ms: far longer than any test.
const LEASE_MS: &str = "3600000";

/// A moment that no test reaches, in µs since 1970.
const NEVER: &str = "9000000000000000";

// === impl OldProcess ===

impl<'r> OldProcess<'r> {
    /// Starts a process with this name: with a heartbeat that lasts as long as the test, and with its channel.
    pub(super) async fn start(redis: &'r Redis, name: &'static str) -> Self {
        let epoch = name.bytes().fold(7, |epoch, byte| {
            u64::from(byte).wrapping_add(u64::wrapping_mul(epoch, 31))
        });
        let client = redis::Client::open(redis.url()).expect("a URL");
        let mut listener = client.get_async_pubsub().await.expect("a connection");
        let channel = format!("seriatim:instance:1:{name}");
        listener.subscribe(&channel).await.expect("its channel");
        let messages = Arc::<Mutex<Vec<String>>>::default();
        let received = Arc::clone(&messages);
        let receiving = tokio::spawn(async move {
            let mut stream = listener.into_on_message();
            while let Some(message) = stream.next().await {
                let text = message.get_payload().expect("a message is text");
                let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
                received.push(text);
            }
        });
        let process = Self {
            redis,
            name,
            epoch,
            issued: Cell::new(0),
            messages,
            receiving,
        };
        let heartbeat = kept!("heartbeat");
        let epoch = process.epoch_text();
        let registered = process
            .run(heartbeat, &[&process.channel()], &[&epoch, "600000", "1"])
            .await;
        assert_eq!(registered, Value::Int(2), "the name is free");
        process
    }

    /// The name of the heartbeat and of the channel.
    fn channel(&self) -> String {
        format!("seriatim:instance:1:{}", self.name)
    }

    fn epoch_text(&self) -> String {
        format!("{:016x}", self.epoch)
    }

    async fn run(&self, script: &str, keys: &[&str], arguments: &[&str]) -> Value {
        let count = keys.len().to_string();
        let command = [&["EVAL", script, &count], keys, arguments].concat();
        self.redis.command(&command).await
    }

    /// Runs a script with the four keys of a session.
    async fn run_for(&self, script: &str, session: &str, arguments: &[&str]) -> Value {
        let keys = session_keys(session);
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        self.run(script, &keys, arguments).await
    }

    pub(super) fn claim(&self, session: &'static str) -> OldClaim {
        let number = self.issued.replace(self.issued.get() + 1);
        let id = format!("{}-{number:x}", self.epoch_text());
        let token = format!(
            "{{\"format\":1,\"claim\":\"{id}\",\"instance\":\"{}\",\"heartbeat\":true,\"route\":\"chat\",\
             \"request\":\"r{number}\",\"since\":\"2026-12-01T00:00:00.000Z\"}}",
            self.name
        );
        OldClaim { session, id, token }
    }

    /// Asks for the lock without waiting, and gets it.
    pub(super) async fn hold(&self, session: &'static str) -> OldClaim {
        let claim = self.claim(session);
        let reply = self.acquire(&claim, "", None).await;
        assert!(matches!(reply, OldReply::Fence(_)), "it is free: {reply:?}");
        claim
    }

    /// Waits for the lock; gives the claim and its ticket.
    pub(super) async fn join(&self, session: &'static str) -> (OldClaim, u64) {
        let claim = self.claim(session);
        match self.acquire(&claim, "", Some(JOIN)).await {
            OldReply::Place(ticket, _) => (claim, ticket),
            other => panic!("the session is busy: {other:?}"),
        }
    }

    /// Asks for the lock. `dead` is the token of a holder that is known to be dead.
    pub(super) async fn acquire(
        &self,
        claim: &OldClaim,
        dead: &str,
        wait: Option<OldWait>,
    ) -> OldReply {
        let (channel, ticket) = (self.channel(), wait.map_or(0, |wait| wait.ticket));
        let ticket = ticket.to_string();
        let mut arguments = vec![&*claim.token, LEASE_MS, NEVER, dead, "0"];
        if let Some(wait) = wait {
            let interrupts = if wait.interrupts { "1" } else { "0" };
            arguments.extend([&*claim.id, &channel, &ticket, "1000", interrupts]);
        }
        let reply = self
            .run_for(kept!("acquire"), claim.session, &arguments)
            .await;
        match &reply {
            Value::Int(fence) if *fence > 0 => OldReply::Fence(fence.unsigned_abs()),
            Value::Array(items) => match &**items {
                [Value::Int(ticket), holder] => {
                    OldReply::Place(ticket.unsigned_abs(), text(holder))
                }
                [Value::BulkString(_), Value::Int(fence)] => {
                    OldReply::TookOver(fence.unsigned_abs())
                }
                _ => panic!("the old process can't read this: {reply:?}"),
            },
            _ => panic!("the old process can't read this: {reply:?}"),
        }
    }

    /// Releases the lock, and gives whether it had it.
    pub(super) async fn release(&self, claim: &OldClaim) -> bool {
        let arguments = [&*claim.token, NEVER, &claim.id];
        let reply = self
            .run_for(kept!("release"), claim.session, &arguments)
            .await;
        reply == Value::Int(1)
    }

    /// Starts a new lease, and gives whether the claim has the lock.
    pub(super) async fn extend(&self, claim: &OldClaim, lease_ms: &str) -> bool {
        let [lock, fence, ..] = session_keys(claim.session);
        let reply = self
            .run(kept!("extend"), &[&lock, &fence], &[&claim.token, lease_ms])
            .await;
        reply == Value::Array(vec![Value::Int(1)])
    }

    /// Watches the queue in which this claim waits; gives whether it has its place, and the holder.
    pub(super) async fn watch(&self, claim: &OldClaim, dead: &str) -> (bool, String) {
        let arguments = [&*self.channel(), dead, "0", "1", &claim.id];
        let reply = self
            .run_for(kept!("watch"), claim.session, &arguments)
            .await;
        let Value::Array(queues) = &reply else {
            panic!("the old process can't read this: {reply:?}");
        };
        match queues.first() {
            Some(Value::Array(items)) if items.len() == 3 => {
                (items[0] == Value::Int(1), text(&items[1]))
            }
            _ => panic!("the old process can't read this: {reply:?}"),
        }
    }

    /// The holder of the session's lock, and the tokens of its waiters, as an operator sees them.
    pub(super) async fn inspect(&self, session: &str) -> (String, Vec<String>) {
        let reply = self.run_for(kept!("inspect"), session, &["100"]).await;
        let Value::Array(items) = &reply else {
            panic!("the old process can't read this: {reply:?}");
        };
        match items.first() {
            Some(Value::Array(lock)) if lock.len() == 6 => match &lock[5] {
                Value::Array(waiters) => (text(&lock[1]), waiters.iter().map(text).collect()),
                _ => panic!("the old process can't read this: {reply:?}"),
            },
            _ => panic!("the old process can't read this: {reply:?}"),
        }
    }

    /// Takes the lock away from the holder with this token, as an operator.
    pub(super) async fn force_release(&self, session: &str, token: &str) {
        let turn = OldView::new(token);
        let arguments = [token, &*turn.channel, &turn.id];
        let reply = self
            .run_for(kept!("force_release"), session, &arguments)
            .await;
        assert!(
            matches!(reply, Value::Int(1..)),
            "the holder had it: {reply:?}"
        );
    }

    /// Whether the instance that holds a lock with this token is alive.
    pub(super) async fn sees_alive(&self, token: &str) -> bool {
        let turn = OldView::new(token);
        let reply = self.run(kept!("liveness"), &[&turn.channel], &[]).await;
        match &reply {
            Value::Nil => false,
            Value::Array(items) if items.len() == 2 => turn.id.starts_with(&text(&items[0])),
            _ => panic!("the old process can't read this: {reply:?}"),
        }
    }

    /// Sends a message to the instance that holds a lock with this token.
    pub(super) async fn send(&self, kind: &str, token: &str, rest: &str) {
        let turn = OldView::new(token);
        let message = format!("1 {kind} {}{rest}", turn.id);
        let publish = ["PUBLISH", &*turn.channel, &message];
        let receivers = self.redis.command(&publish).await;
        assert_eq!(receivers, Value::Int(1), "the instance listens");
    }

    /// Waits for a message about this claim.
    pub(super) async fn wait_for_message(&self, kind: &str, claim: &OldClaim, rest: &str) {
        let wanted = format!("1 {kind} {}{rest}", claim.id);
        let received = || {
            let messages = self.messages.lock();
            let messages = messages.unwrap_or_else(PoisonError::into_inner);
            messages.contains(&wanted)
        };
        wait_for(received, &format!("the message {wanted:?}")).await;
    }

    /// Deletes the heartbeat, as a process does at its end. Its channel stays.
    pub(super) async fn unregister(&self) {
        let epoch = self.epoch_text();
        self.run(kept!("unregister"), &[&self.channel()], &[&epoch])
            .await;
        let left = self.redis.get(&self.channel()).await;
        assert_eq!(left, None, "the heartbeat is deleted");
    }

    /// The `run_id` of the server.
    pub(super) async fn server(&self) -> String {
        text(&self.run(kept!("server"), &[], &[]).await)
    }
}

impl Drop for OldProcess<'_> {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}

/// What an old process reads in the value of a lock.
struct OldView {
    id: String,
    channel: String,
}

impl OldView {
    fn new(token: &str) -> Self {
        let value: serde_json::Value = serde_json::from_str(token).expect("a value is JSON");
        assert_eq!(
            (&value["format"], &value["heartbeat"]),
            (&1.into(), &true.into()),
            "an old process reads no other value: {token}"
        );
        let member = |name: &str| value[name].as_str().expect("a text").to_owned();
        Self {
            id: member("claim"),
            channel: format!("seriatim:instance:1:{}", member("instance")),
        }
    }
}

/// The keys of a session.
fn session_keys(session: &str) -> [String; 4] {
    let lock = key(session);
    let fence = format!("{{{lock}}}:fence");
    let [queue, waiters] = ["queue", "waiters"].map(|name| format!("{{{lock}}}:1:{name}"));
    [lock, fence, queue, waiters]
}

/// The text of a reply.
fn text(value: &Value) -> String {
    redis::from_redis_value(value.clone()).expect("a text")
}
