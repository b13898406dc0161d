//! A real Redis Cluster.
//!
//! Invariants: the index of a node and its shard never change; its role may. Node `n` with `n < shards` is the
//! first master of shard `n`, and the replicas of shard 0 come after the masters, then those of shard 1. Nodes
//! remember the cluster over a restart, and have no keys after it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use redis::Value;

use super::pool::{Pool, Pooled, Reusable};
use super::redis::Redis;
use super::{wait_for_async, within};

/// How long a node is silent until others take it for dead.
const NODE_TIMEOUT: Duration = Duration::from_millis(1000);

/// A timeout in milliseconds that no slow node reaches, for tests without failovers.
const NEVER: &str = "60000";

/// The number of slots of every cluster.
const SLOTS: usize = 16384;

/// A cluster, whose nodes may be killed and started again.
pub(crate) struct ClusterRedis {
    nodes: Vec<Redis>,
    /// The name of each node in the cluster.
    ids: Vec<String>,
    shards: usize,
    replicas_each: usize,
}

/// A node as another node, or the node itself, knows it: a line of CLUSTER NODES.
#[derive(Clone, Debug)]
pub(crate) struct ClusterNode {
    pub(crate) id: String,
    flags: Vec<String>,
    /// The id of the master of this replica.
    master: Option<String>,
    epoch: u64,
    is_connected: bool,
    /// First and last slot of each range.
    slots: Vec<(u16, u16)>,
}

/// A slot on its way from one node to another.
pub(crate) struct SlotMove<'a> {
    cluster: &'a ClusterRedis,
    slot: u16,
    from: usize,
    to: usize,
}

static OF_SIX: Pool<ClusterRedis> = Pool::new();

static OF_ONE_SHARD: Pool<ClusterRedis> = Pool::new();

// === impl ClusterRedis ===

impl ClusterRedis {
    /// Starts a cluster, and waits until it is ready. With one or two shards no replica takes over by itself, as
    /// the vote of most masters is needed: see [`ClusterRedis::take_over`].
    pub(crate) async fn start(shards: usize, replicas_each: usize) -> Self {
        let node_timeout = NODE_TIMEOUT.as_millis().to_string();
        let options = [
            "--cluster-node-timeout",
            &node_timeout,
            "--repl-diskless-sync-delay",
            "0",
            // A master that has given all its slots away stays where it is.
            "--cluster-allow-replica-migration",
            "no",
        ];
        let count = shards * (1 + replicas_each);
        let nodes = join_all((0..count).map(|_| Redis::start_cluster_node(&options))).await;
        let ids = nodes.iter().map(async |node| {
            let id = node.command(&["CLUSTER", "MYID"]).await;
            redis::from_redis_value(id).expect("an id")
        });
        let cluster = Self {
            ids: join_all(ids).await,
            nodes,
            shards,
            replicas_each,
        };
        cluster.introduce().await;
        cluster.wait_until_ok().await;
        cluster
    }

    /// Makes a cluster of nodes that know nothing.
    async fn introduce(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            // Two masters with one epoch would have to agree first.
            let epoch = (index + 1).to_string();
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await;
            if index < self.shards {
                let bound = |shard: usize| SLOTS * shard / self.shards;
                let (first, last) = (bound(index), bound(index + 1) - 1);
                let (first, last) = (first.to_string(), last.to_string());
                node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])
                    .await;
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for other in &self.nodes[index + 1..] {
                let (port, bus) = (other.port().to_string(), other.bus_port().to_string());
                node.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])
                    .await;
            }
        }
        let have_met = async || {
            let views = self.views().await;
            views.iter().all(|(_, view)| {
                let known = view.iter().filter(|node| !node.has_flag("handshake"));
                known.count() == self.nodes.len()
            })
        };
        wait_for_async(have_met, "the nodes of the cluster to have met").await;
        for (index, node) in self.nodes.iter().enumerate().skip(self.shards) {
            let master = &self.ids[self.shard(index)];
            node.command(&["CLUSTER", "REPLICATE", master]).await;
        }
    }

    /// A cluster of three shards with a replica each, empty, that a test before may have used. No node takes
    /// another for dead.
    pub(crate) async fn pooled_of_six() -> Pooled<Self> {
        OF_SIX.take(async || Self::start_patient(3).await).await
    }

    /// A cluster of one shard with a replica, empty, that a test before may have used. No node takes another for
    /// dead.
    pub(crate) async fn pooled_of_one_shard() -> Pooled<Self> {
        OF_ONE_SHARD
            .take(async || Self::start_patient(1).await)
            .await
    }

    async fn start_patient(shards: usize) -> Self {
        // The nodes get to know each other sooner with a short timeout.
        let cluster = Self::start(shards, 1).await;
        for node in &cluster.nodes {
            let patient = ["CONFIG", "SET", "cluster-node-timeout", NEVER];
            node.command(&patient).await;
        }
        cluster
    }

    /// `redis-cluster://127.0.0.1:PORT,...` with all nodes.
    pub(crate) fn url(&self) -> String {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.addr().to_string())
            .collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    pub(crate) fn node(&self, index: usize) -> &Redis {
        &self.nodes[index]
    }

    pub(crate) fn addr(&self, index: usize) -> SocketAddr {
        self.nodes[index].addr()
    }

    pub(crate) fn nodes(&self) -> std::ops::Range<usize> {
        0..self.nodes.len()
    }

    /// The shard of a node.
    pub(crate) fn shard(&self, node: usize) -> usize {
        match node.checked_sub(self.shards) {
            Some(replica) => replica / self.replicas_each,
            None => node,
        }
    }

    /// Runs a command on the node, which may refuse it with MOVED. Panics on an error.
    pub(crate) async fn command(&self, node: usize, command: &[&str]) -> Value {
        self.nodes[node].command(command).await
    }

    pub(crate) async fn slot_of(&self, key: &str) -> u16 {
        let running = self.nodes.iter().find(|node| node.is_running());
        let node = running.expect("a node that runs");
        let slot = node.command(&["CLUSTER", "KEYSLOT", key]).await;
        redis::from_redis_value(slot).expect("the number of a slot")
    }

    /// The running node that owns the slot. Waits for one.
    pub(crate) async fn owner(&self, slot: u16) -> usize {
        let has_slot = |node: &ClusterNode| {
            let mut ranges = node.slots.iter();
            !node.is_replica() && ranges.any(|(first, last)| (*first..=*last).contains(&slot))
        };
        self.newest(has_slot, "a node to own the slot").await
    }

    /// The running node that owns the slot of the key.
    pub(crate) async fn owner_of(&self, key: &str) -> &Redis {
        let slot = self.slot_of(key).await;
        self.node(self.owner(slot).await)
    }

    /// The running master of the shard. Waits for one.
    pub(crate) async fn master(&self, shard: usize) -> usize {
        let is_master = |node: &ClusterNode| {
            !node.is_replica()
                && self
                    .index(&node.id)
                    .is_some_and(|at| self.shard(at) == shard)
        };
        self.newest(is_master, "the shard to have a master").await
    }

    /// Among the running nodes that say this of themselves, the one with the largest epoch.
    async fn newest(&self, condition: impl Fn(&ClusterNode) -> bool, what: &str) -> usize {
        let mut found = None;
        let is_found = async || {
            let views = self.views().await;
            let own = views.iter().filter_map(|(index, view)| {
                let own = view.iter().find(|node| node.has_flag("myself"))?;
                condition(own).then_some((own.epoch, *index))
            });
            found = own.max();
            found.is_some()
        };
        wait_for_async(is_found, what).await;
        found.expect("the wait ended").1
    }

    /// Waits until each master has a subscriber of the channel whose name ends so.
    pub(crate) async fn wait_for_subscriber(&self, channel: &str) {
        for index in self.masters().await {
            let is_subscribed = async || {
                let list = ["PUBSUB", "CHANNELS", channel];
                let channels = self.command(index, &list).await;
                let channels: Vec<String> = redis::from_redis_value(channels).expect("names");
                !channels.is_empty()
            };
            wait_for_async(is_subscribed, "each master has a subscriber").await;
        }
    }

    /// Waits until every message that was published so far has reached all masters: nodes pass messages on in order.
    async fn wait_for_messages(&self) {
        let masters = self.masters().await;
        for at in &masters {
            let client = redis::Client::open(format!("redis://{}", self.addr(*at)));
            let connecting = client.expect("a URL");
            let mut messages = within("a subscription", connecting.get_async_pubsub())
                .await
                .expect("the node takes connections");
            messages.subscribe("last").await.expect("subscribed");
            for from in &masters {
                self.command(*from, &["PUBLISH", "last", "x"]).await;
            }
            let mut messages = messages.into_on_message();
            for _ in &masters {
                within("a message from each master", messages.next()).await;
            }
        }
    }

    /// All keys of the running masters except those of running instances and of self-tests, sorted. A key that
    /// is on its way is there once.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let mut keys = BTreeSet::new();
        for index in self.masters().await {
            keys.extend(self.nodes[index].keys().await);
        }
        keys.into_iter().collect()
    }

    /// The running nodes that are masters.
    async fn masters(&self) -> Vec<usize> {
        let views = self.views().await;
        let is_master = |view: &[ClusterNode]| {
            let own = view.iter().find(|node| node.has_flag("myself"));
            own.is_some_and(|own| !own.is_replica())
        };
        let masters = views.iter().filter(|(_, view)| is_master(view));
        masters.map(|(index, _)| *index).collect()
    }

    /// Lets a replica of the shard take over from its living master (CLUSTER FAILOVER), and waits until all
    /// running nodes know it. Gives the new master.
    pub(crate) async fn failover(&self, shard: usize) -> usize {
        let old = self.master(shard).await;
        let replica = self.replica(shard, old);
        let in_sync = async || self.is_in_sync(replica).await;
        wait_for_async(in_sync, "a replica of the shard to be in sync").await;
        self.promote(replica, &["CLUSTER", "FAILOVER"]).await;
        replica
    }

    /// Lets a replica of the shard take over without a vote (CLUSTER FAILOVER TAKEOVER), such as after the loss of
    /// most masters, and waits until all running nodes know it. Gives the new master.
    pub(crate) async fn take_over(&self, shard: usize, old: usize) -> usize {
        let replica = self.replica(shard, old);
        let takeover = ["CLUSTER", "FAILOVER", "TAKEOVER"];
        self.promote(replica, &takeover).await;
        replica
    }

    async fn promote(&self, replica: usize, command: &[&str]) {
        self.nodes[replica].command(command).await;
        self.wait_for_master(replica).await;
    }

    /// Waits until all running nodes know that this node is a master with slots.
    pub(crate) async fn wait_for_master(&self, index: usize) {
        let is_known = async || {
            let views = self.views().await;
            views.iter().all(|(_, view)| {
                let node = view.iter().find(|node| node.id == self.ids[index]);
                node.is_some_and(|node| !node.is_replica() && !node.slots.is_empty())
            })
        };
        wait_for_async(is_known, "the nodes to know the new master").await;
    }

    /// Waits until the shard has another master than the old one, and all running nodes know it. Gives the new one.
    pub(crate) async fn wait_for_another_master(&self, old: usize) -> usize {
        let shard = self.shard(old);
        let mut new = old;
        let is_another = async || {
            new = self.master(shard).await;
            new != old
        };
        wait_for_async(is_another, "a replica to take over").await;
        self.wait_for_master(new).await;
        new
    }

    fn replica(&self, shard: usize, master: usize) -> usize {
        let mut others = self.nodes().filter(|node| {
            self.shard(*node) == shard && *node != master && self.nodes[*node].is_running()
        });
        others.next().expect("a running replica of the shard")
    }

    /// Kills the node (SIGKILL).
    pub(crate) fn kill(&self, node: usize) {
        self.nodes[node].kill();
    }

    /// Kills the node if it runs, and starts it again without its keys.
    pub(crate) async fn restart(&self, node: usize) {
        self.nodes[node].restart().await;
    }

    /// Moves the slot with its keys to a master.
    pub(crate) async fn move_slot(&self, slot: u16, to: usize) {
        let moving = self.begin_move(slot, to).await;
        moving.move_keys().await;
        moving.finish().await;
    }

    /// Begins to move the slot: from now on its owner sends clients to the new owner for a key that it doesn't
    /// have (ASK).
    pub(crate) async fn begin_move(&self, slot: u16, to: usize) -> SlotMove<'_> {
        let from = self.owner(slot).await;
        let moving = SlotMove {
            cluster: self,
            slot,
            from,
            to,
        };
        moving.set(to, &["IMPORTING", &self.ids[from]]).await;
        moving.set(from, &["MIGRATING", &self.ids[to]]).await;
        moving
    }

    /// Waits until all running nodes are connected, agree on who owns which slot, and serve all slots, and until all
    /// running replicas are in sync.
    pub(crate) async fn wait_until_ok(&self) {
        let is_ok = async || {
            let views = self.views().await;
            let owners = |view: &[ClusterNode]| {
                let masters = view.iter().filter(|node| !node.slots.is_empty());
                let masters = masters.map(|node| (node.id.clone(), node.slots.clone()));
                masters.collect::<BTreeSet<_>>()
            };
            let agreed = views
                .windows(2)
                .all(|two| owners(&two[0].1) == owners(&two[1].1));
            let running: Vec<_> = views.iter().map(|(index, _)| *index).collect();
            let connected = views.iter().all(|(_, view)| self.reaches(view, &running));
            if !agreed || !connected {
                return false;
            }
            let serve = running.iter().map(async |&index| {
                let state = self.command(index, &["CLUSTER", "INFO"]).await;
                let state: String = redis::from_redis_value(state).expect("text");
                state.contains("cluster_state:ok") && self.is_in_sync(index).await
            });
            join_all(serve).await.into_iter().all(|serves| serves)
        };
        wait_for_async(is_ok, "the cluster to be in order").await;
    }

    /// Whether the node with this view reaches all running ones, and takes those in their shard for what they are.
    fn reaches(&self, view: &[ClusterNode], running: &[usize]) -> bool {
        running.iter().all(|index| {
            let node = view.iter().find(|node| node.id == self.ids[*index]);
            let fails = ["fail", "fail?", "handshake", "noaddr"];
            node.is_some_and(|node| {
                let is_reached = node.is_connected && !fails.iter().any(|flag| node.has_flag(flag));
                // A replica that is taken for a master has no slots.
                is_reached && node.is_replica() == node.slots.is_empty()
            })
        })
    }

    /// Whether the node is a master, or a replica with all that its master has.
    async fn is_in_sync(&self, index: usize) -> bool {
        let info = self.nodes[index].info("replication").await;
        info["role"] == "master" || info.get("master_link_status").map(String::as_str) == Some("up")
    }

    /// What each running node knows of all nodes.
    async fn views(&self) -> Vec<(usize, Vec<ClusterNode>)> {
        let running = self.nodes().filter(|index| self.nodes[*index].is_running());
        let views = running.map(async |index| (index, self.view(index).await));
        join_all(views).await
    }

    /// What the node knows of all nodes.
    pub(crate) async fn view(&self, index: usize) -> Vec<ClusterNode> {
        let lines = self.command(index, &["CLUSTER", "NODES"]).await;
        let lines: String = redis::from_redis_value(lines).expect("CLUSTER NODES gives text");
        lines.lines().map(ClusterNode::from_line).collect()
    }

    fn index(&self, id: &str) -> Option<usize> {
        self.ids.iter().position(|own| own == id)
    }
}

impl Reusable for ClusterRedis {
    async fn clear(&self) {
        // The connections of the test before may be there for a moment, and would count as receivers.
        for index in self.nodes() {
            for kind in ["pubsub", "normal"] {
                let kill = ["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"];
                self.command(index, &kill).await;
            }
        }
        for index in self.masters().await {
            self.nodes[index].clear().await;
        }
        self.wait_for_messages().await;
    }

    fn servers(&self) -> impl Iterator<Item = &Redis> {
        self.nodes.iter()
    }
}

// === impl ClusterNode ===

impl ClusterNode {
    /// Reads `ID ADDRESS FLAGS MASTER PING PONG EPOCH LINK SLOT...`.
    fn from_line(line: &str) -> Self {
        let fields: Vec<_> = line.split(' ').collect();
        let [id, _, flags, master, _, _, epoch, link, slots @ ..] = &fields[..] else {
            panic!("a line of CLUSTER NODES: {line:?}");
        };
        let number = |text: &str| text.parse().expect("the number of a slot");
        // A slot in brackets is on its way.
        let slots = slots.iter().filter(|slot| !slot.starts_with('['));
        let slots = slots.map(|slot| match slot.split_once('-') {
            Some((first, last)) => (number(first), number(last)),
            None => (number(slot), number(slot)),
        });
        Self {
            id: (*id).to_owned(),
            flags: flags.split(',').map(str::to_owned).collect(),
            master: (*master != "-").then(|| (*master).to_owned()),
            epoch: epoch.parse().expect("an epoch"),
            is_connected: *link == "connected",
            slots: slots.collect(),
        }
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }

    pub(crate) fn is_replica(&self) -> bool {
        self.master.is_some()
    }
}

// === impl SlotMove ===

impl SlotMove<'_> {
    /// Moves all keys that the slot has at the old owner, in one command.
    pub(crate) async fn move_keys(&self) {
        let from = self.cluster.node(self.from);
        let slot = self.slot.to_string();
        let keys = from
            .command(&["CLUSTER", "GETKEYSINSLOT", &slot, "10000"])
            .await;
        let keys: Vec<String> = redis::from_redis_value(keys).expect("keys");
        if keys.is_empty() {
            return;
        }
        let port = self.cluster.node(self.to).port().to_string();
        let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        command.extend(keys.iter().map(String::as_str));
        from.command(&command).await;
    }

    /// Makes the new master the owner, which the old one and all other running nodes learn. Its keys must have
    /// been moved.
    pub(crate) async fn finish(self) {
        let owner = ["NODE", &self.cluster.ids[self.to]];
        // The new owner first: so there is an owner at every moment.
        self.set(self.to, &owner).await;
        self.set(self.from, &owner).await;
        let knows = async || {
            let views = self.cluster.views().await;
            views.iter().all(|(_, view)| {
                let mut nodes = view.iter();
                let node = nodes.find(|node| node.id == self.cluster.ids[self.to]);
                node.is_some_and(|node| {
                    let mut ranges = node.slots.iter();
                    ranges.any(|(first, last)| (*first..=*last).contains(&self.slot))
                })
            })
        };
        wait_for_async(knows, "all nodes to know the slot's new owner").await;
    }

    async fn set(&self, node: usize, state: &[&str]) {
        let slot = self.slot.to_string();
        let command = [&["CLUSTER", "SETSLOT", &slot], state].concat();
        self.cluster.command(node, &command).await;
    }
}
