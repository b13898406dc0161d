//! The road of a command: over the only connection, or in a cluster to the master of its key.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::AccessAttempt;
use super::address::RedisAddress;
use super::cluster::{ClusterLinks, ClusterWatch};
use super::command::StoreCommand;
use super::connection::{ChannelListener, LinkNumbers, RedisConnection, WriteCommand, packed};
use super::error::{not_sent, unreadable};
use super::node::{NodeRole, RedisNode};
use super::sentinel::MasterWatch;
use super::slots::slot_of;
use super::target::LinkTarget;
use super::url::RedisTopology;
use crate::lock::StoreError;
use crate::metrics::Metrics;

/// What is known of the servers, for all stores of a process: from the first connection on. Clones share it.
#[derive(Clone, Default)]
pub(super) struct SharedTopology(Arc<KnownTopology>);

#[derive(Default)]
struct KnownTopology {
    master: OnceLock<MasterWatch>,
    cluster: OnceLock<ClusterWatch>,
}

/// The connections of one store. Clones share them.
#[derive(Clone)]
pub(super) struct RedisRoutes(Arc<RoutesState>);

struct RoutesState {
    links: RedisLinks,
    /// The server or the servers, for errors.
    label: Arc<str>,
    /// The timeout of one command, including the wait for a connection.
    timeout: Duration,
    metrics: Metrics,
    server_changes: watch::Receiver<Option<Instant>>,
}

enum RedisLinks {
    /// One connection, whichever server it goes to.
    One(Arc<RedisConnection>, Arc<LinkNumbers>),
    /// One to each master.
    Cluster(Box<ClusterLinks>),
}

// === impl RedisRoutes ===

impl RedisRoutes {
    /// Connects in tasks on the current runtime, and passes messages to the listener. The tasks end with the last
    /// clone.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn connect(
        address: &RedisAddress,
        topology: &SharedTopology,
        listener: Option<ChannelListener>,
    ) -> Self {
        let one = |target, listener| {
            let numbers = Arc::<LinkNumbers>::default();
            let link = RedisConnection::connect(address, target, listener, Arc::clone(&numbers));
            RedisLinks::One(Arc::new(link), numbers)
        };
        let links = match &address.url.topology {
            RedisTopology::Single(endpoint) => {
                let node = RedisNode::new(endpoint.clone(), address.url.database);
                one(LinkTarget::Fixed(node, NodeRole::Single), listener)
            }
            RedisTopology::Sentinel { sentinels, master } => {
                let start = || MasterWatch::start(address, sentinels, master);
                let master = topology.0.master.get_or_init(start).clone();
                one(LinkTarget::Master(master), listener)
            }
            RedisTopology::Cluster(nodes) => {
                let start = || ClusterWatch::start(address, nodes);
                let cluster = topology.0.cluster.get_or_init(start).clone();
                let links = ClusterLinks::connect(address, cluster, listener);
                RedisLinks::Cluster(Box::new(links))
            }
        };
        Self(Arc::new(RoutesState {
            links,
            label: Arc::clone(&address.label),
            timeout: address.timeout,
            metrics: address.metrics.clone(),
            server_changes: address.server.changes(),
        }))
    }

    pub(super) fn timeout(&self) -> Duration {
        self.0.timeout
    }

    /// The number of the newest connection; 0 before the first.
    pub(super) fn number(&self) -> u64 {
        match &self.0.links {
            RedisLinks::One(_, numbers) => numbers.published(),
            RedisLinks::Cluster(links) => links.number(),
        }
    }

    /// When another server than before was last found to have the locks of a slot; `None`: never.
    pub(super) fn server_changed(&self, slot: u16) -> Option<Instant> {
        match &self.0.links {
            RedisLinks::One(..) => *self.0.server_changes.borrow(),
            RedisLinks::Cluster(links) => links.server_changed(slot),
        }
    }

    /// When this process last found another server behind its connections; `None`: never.
    pub(super) fn server_changes(&self) -> watch::Receiver<Option<Instant>> {
        self.0.server_changes.clone()
    }

    /// The time of the server that has this slot, at a moment of this process; `None`: not known.
    pub(super) fn time_at(&self, slot: u16, moment: Instant) -> Option<u64> {
        let time = |link: &RedisConnection| {
            let clock = link.clock();
            clock.is_set().then(|| clock.at(moment))
        };
        match &self.0.links {
            RedisLinks::One(link, _) => time(link),
            RedisLinks::Cluster(links) => time(&*links.link(slot)?),
        }
    }

    /// The slot of a key; 0 if it doesn't matter, because there is one server.
    pub(super) fn slot(&self, key: &str) -> u16 {
        match &self.0.links {
            RedisLinks::One(..) => 0,
            RedisLinks::Cluster(_) => slot_of(key),
        }
    }

    /// Sends the command about keys of this slot that `write` writes. Gives the reply, and the connection that it came
    /// over. Dropping the future does not cancel the command.
    ///
    /// # Errors
    /// When the store can't be reached, doesn't reply in time, or replies with an error.
    pub(super) async fn send(
        &self,
        slot: u16,
        command: StoreCommand,
        write: impl WriteCommand,
    ) -> Result<(Value, Arc<RedisConnection>), StoreError> {
        let reply = self.exchange(slot, command, write).await;
        if reply.is_err() {
            self.count_failure();
        }
        reply
    }

    /// Like [`RedisRoutes::send`], but counts no failure.
    ///
    /// # Errors
    /// As [`RedisRoutes::send`].
    pub(super) async fn exchange(
        &self,
        slot: u16,
        command: StoreCommand,
        write: impl WriteCommand,
    ) -> Result<(Value, Arc<RedisConnection>), StoreError> {
        let began = Instant::now();
        let give_up = began + self.0.timeout;
        match &self.0.links {
            RedisLinks::One(link, _) => {
                match link.exchange(command, write, false, began, give_up).await {
                    Ok(value) => Ok((value, Arc::clone(link))),
                    Err(error) => Err(error.error),
                }
            }
            RedisLinks::Cluster(links) => {
                // Boxed, because this future is larger and rarer than the other.
                let sent = Box::pin(links.exchange(slot, command, write, give_up));
                sent.await
            }
        }
    }

    /// Waits until enough replicas of the server behind `link` have what was written before. `key` is one that nobody
    /// uses, on the same server as the lock.
    ///
    /// # Errors
    /// When they don't have it in time, or the server can't be asked.
    pub(super) async fn confirm(
        &self,
        link: &RedisConnection,
        key: String,
    ) -> Result<(), StoreError> {
        let confirmed = link.confirm(key, Instant::now() + self.timeout()).await;
        if confirmed.is_err() {
            self.count_failure();
        }
        confirmed
    }

    /// Sends a command to the server with this index, in a fixed order; `None`: there are fewer servers.
    ///
    /// # Errors
    /// As [`RedisRoutes::send`].
    pub(super) async fn send_to(
        &self,
        index: usize,
        command: StoreCommand,
        cmd: &Cmd,
    ) -> Result<Option<Value>, StoreError> {
        let give_up = Instant::now() + self.0.timeout;
        let link = match &self.0.links {
            RedisLinks::One(link, _) => (index == 0).then(|| Arc::clone(link)),
            RedisLinks::Cluster(links) => links.link_at(index, give_up).await?,
        };
        let Some(link) = link else {
            return Ok(None);
        };
        match link
            .exchange(command, packed(cmd), false, Instant::now(), give_up)
            .await
        {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.count_failure();
                Err(error.error)
            }
        }
    }

    /// Tries commands that change nothing, one after the other.
    ///
    /// # Errors
    /// When one of them is denied, with its text.
    pub(super) async fn try_all(&self, attempts: Vec<AccessAttempt>) -> Result<(), StoreError> {
        for AccessAttempt { command, key, text } in attempts {
            let sent = self.exchange(self.slot(&key), StoreCommand::CheckAccess, packed(&command));
            let denied = |error| AccessAttempt::denied(&text, error);
            if let Some(error) = sent.await.err().and_then(denied) {
                self.count_failure();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether there is a server with this index.
    pub(super) fn has_server(&self, index: usize) -> bool {
        match &self.0.links {
            RedisLinks::One(..) => index == 0,
            RedisLinks::Cluster(links) => links.has_master(index),
        }
    }

    /// Divides keys into those that one command may have: all of them, or in a cluster those of one slot. Gives their
    /// indexes.
    pub(super) fn groups<'k>(&self, keys: impl Iterator<Item = &'k str>) -> Vec<Vec<usize>> {
        match &self.0.links {
            RedisLinks::One(..) => vec![keys.enumerate().map(|(index, _)| index).collect()],
            RedisLinks::Cluster(_) => {
                let mut groups = BTreeMap::<u16, Vec<usize>>::new();
                for (index, key) in keys.enumerate() {
                    groups.entry(slot_of(key)).or_default().push(index);
                }
                groups.into_values().collect()
            }
        }
    }

    /// Counts a command that failed.
    pub(super) fn count_failure(&self) {
        self.0.metrics.store_failed();
    }

    /// The error for a reply that can't be parsed. Logs the reply, unless ids are hidden.
    pub(super) fn unreadable(&self, reply: &Value) -> StoreError {
        unreadable(&self.0.label, reply)
    }

    /// The error for a command that was not sent, or not executed because it was late.
    pub(super) fn not_sent(&self, reason: &str) -> StoreError {
        not_sent(&self.0.label, reason)
    }
}

impl std::fmt::Debug for RedisRoutes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisRoutes")
            .field("store", &self.0.label)
            .finish_non_exhaustive()
    }
}
