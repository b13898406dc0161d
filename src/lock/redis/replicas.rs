//! Lets replicas confirm locks before their turns begin.
//!
//! `WAIT` blocks its connection, so it has one of its own, which is opened for the first lock. It asks for what was
//! replicated when this connection wrote last: `WAIT` counts from there, and a connection that has written nothing is
//! told that all replicas are up to date. Invariants: a write that replicas get precedes each `WAIT`; a lock is
//! confirmed only by a `WAIT` that was sent after it was granted, to the server that granted it.
//!
//! Locks that are granted while one `WAIT` is in flight share the next one.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::address::RedisAddress;
use super::error::{not_executed, of_server, server_error, unconfirmed};
use super::node::{NodeRole, RedisNode};
use super::pipelined::PipelinedConnection;
use super::{login, scripts};
use crate::lock::StoreError;

/// Asks one server whether its replicas have the last locks. Dropping it ends its task and its connection.
pub(super) struct ReplicaWait {
    grants: mpsc::UnboundedSender<UnconfirmedGrant>,
    label: Arc<str>,
    wanted: u32,
    timeout: Duration,
    _task: AbortOnDropHandle<()>,
}

/// A lock whose turn waits for the replicas.
struct UnconfirmedGrant {
    /// A key that nobody uses, on the same server as the lock.
    key: String,
    give_up: Instant,
    /// Gets the reason if the lock isn't confirmed.
    confirmed: oneshot::Sender<Result<(), Arc<str>>>,
}

/// How much later than the server's own time limit its reply may arrive.
const REPLY_SLACK: Duration = Duration::from_millis(200);

/// How long the written key exists if its deletion gets lost.
const KEY_TTL: Duration = Duration::from_secs(1);

// === impl ReplicaWait ===

impl ReplicaWait {
    /// For locks on this server, which is known as `place`; `None`: they need no confirmation.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn start(
        address: &RedisAddress,
        node: &RedisNode,
        role: NodeRole,
        place: &Arc<str>,
    ) -> Option<Self> {
        let wanted = address.wait_replicas;
        if wanted == 0 {
            return None;
        }
        let (grants, inbox) = mpsc::unbounded_channel();
        let waiter = ReplicaWaiter {
            address: address.clone(),
            node: node.clone(),
            role,
            place: Arc::clone(place),
            connection: None,
        };
        Some(Self {
            grants,
            label: Arc::clone(&node.label),
            wanted,
            timeout: address.timeout,
            _task: AbortOnDropHandle::new(tokio::spawn(waiter.run(inbox))),
        })
    }

    /// Waits until enough replicas have all that the server wrote before this call. `key` is one that nobody uses, on
    /// the same server as the lock.
    ///
    /// # Errors
    /// When they don't have it at `give_up`, or the server can't be asked.
    pub(super) async fn confirm(&self, key: String, give_up: Instant) -> Result<(), StoreError> {
        let (confirmed, reply) = oneshot::channel();
        let grant = UnconfirmedGrant {
            key,
            give_up,
            confirmed,
        };
        // A task that has ended gives no reply.
        let _ = self.grants.send(grant);
        let reason = match timeout_at(give_up + REPLY_SLACK, reply).await {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(reason))) => reason,
            Ok(Err(_)) => "the connection to the server was lost".into(),
            Err(_) => missing(self.wanted, self.timeout),
        };
        Err(unconfirmed(&self.label, &reason))
    }
}

/// The reason when WAIT did not reply, or with too few replicas.
fn missing(wanted: u32, timeout: Duration) -> Arc<str> {
    let noun = match wanted {
        1 => "replica",
        _ => "replicas",
    };
    format!("{wanted} {noun} did not have it within {timeout:?}").into()
}

// === the task ===

struct ReplicaWaiter {
    address: RedisAddress,
    node: RedisNode,
    role: NodeRole,
    /// Under which name the server is known.
    place: Arc<str>,
    connection: Option<WaitConnection>,
}

/// The connection over which WAIT is sent.
struct WaitConnection {
    connection: PipelinedConnection,
    driver: AbortOnDropHandle<()>,
    /// What keeps the connection logged in. Ends when the connection has to be given up.
    login: Option<AbortOnDropHandle<Arc<str>>>,
}

impl ReplicaWaiter {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<UnconfirmedGrant>) {
        while let Some(first) = inbox.recv().await {
            let mut grants = vec![first];
            while let Ok(next) = inbox.try_recv() {
                grants.push(next);
            }
            grants.retain(|grant| !grant.confirmed.is_closed());
            let Some(give_up) = grants.iter().map(|grant| grant.give_up).max() else {
                continue;
            };
            let asked = self.ask(&grants[0].key, give_up);
            let result = match timeout_at(give_up + REPLY_SLACK, asked).await {
                Ok(result) => result,
                Err(_) => Err(missing(self.address.wait_replicas, self.address.timeout)),
            };
            for grant in grants {
                // A turn that is gone needs no reply.
                let _ = grant.confirmed.send(result.clone());
            }
        }
    }

    /// Asks the server once. Gives the reason if too few replicas confirm.
    async fn ask(&mut self, key: &str, give_up: Instant) -> Result<(), Arc<str>> {
        // Taken, so that a connection whose replies do not arrive is closed: they would count as those of the next
        // commands.
        let usable = self.connection.take();
        let connection = match usable.filter(|connection| !connection.has_ended()) {
            Some(connection) => connection,
            None => {
                let opened = open(&self.address, &self.node, self.role, &self.place, give_up).await;
                opened.map_err(|error| of_server(&error))?
            }
        };
        let left = give_up.saturating_duration_since(Instant::now());
        let wanted = self.address.wait_replicas;
        let mut commands = redis::pipe();
        // Without a write the offset that WAIT asks for is older than the lock, from Redis 7.2 on even after another
        // command. In a cluster, the slot may be on its way here.
        let is_cluster = self.role == NodeRole::ClusterNode;
        if is_cluster {
            commands.cmd("ASKING");
        }
        let ttl = KEY_TTL.as_millis() as u64;
        commands.cmd("SET").arg(key).arg("").arg("PX").arg(ttl);
        commands.cmd("DEL").arg(key);
        // 0 would be no limit.
        let limit = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        commands.cmd("WAIT").arg(wanted).arg(limit);
        let sent = connection
            .connection
            .send_all(&commands, give_up + REPLY_SLACK);
        let replies = sent.await.map_err(|error| error.to_string())?;
        self.connection = Some(connection);
        // The key that DEL leaves expires.
        let [.., written, _deleted, confirmed] = &*replies else {
            return Err("the replies can't be parsed".into());
        };
        for reply in [written, confirmed] {
            if let Err(error) = reply.clone().extract_error() {
                let reason = server_error(&error).unwrap_or_else(|| error.to_string());
                return Err(format!("the server answered: {reason}").into());
            }
        }
        match confirmed {
            Value::Int(confirmed) if *confirmed >= i64::from(wanted) => Ok(()),
            Value::Int(_) => Err(missing(wanted, self.address.timeout)),
            _ => Err("the reply of WAIT can't be parsed".into()),
        }
    }
}

/// Opens a connection for WAIT. Its server is noted: behind the same name it may be another one than that of the locks.
async fn open(
    address: &RedisAddress,
    node: &RedisNode,
    role: NodeRole,
    place: &str,
    give_up: Instant,
) -> Result<WaitConnection, StoreError> {
    let opened = login::open(address, node, role, |_| {}, give_up).await?;
    let connection = opened.connection;
    let noted = async {
        connection.execute(&scripts::load(), give_up).await?;
        address.server.note(place, node, &connection, give_up).await
    };
    let noted = noted.await;
    noted.map_err(|error| not_executed(&node.label, &error))?;
    let login = opened.keeper.map(|keeper| {
        let kept = keeper.keep(connection.clone());
        AbortOnDropHandle::new(tokio::spawn(kept))
    });
    Ok(WaitConnection {
        connection,
        driver: AbortOnDropHandle::new(opened.driver),
        login,
    })
}

// === impl WaitConnection ===

impl WaitConnection {
    fn has_ended(&self) -> bool {
        self.driver.is_finished() || self.login.as_ref().is_some_and(|login| login.is_finished())
    }
}
