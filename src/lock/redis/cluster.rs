//! A Redis Cluster: which master has which slot, a connection to each master, and the road of a command there.
//!
//! The masters are asked for their view again and again, so a failover is known within half a second, even by a
//! process that sends no command. Invariant: a failover counts as another server before any command goes to the new
//! master.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::address::RedisAddress;
use super::clock::RedisClock;
use super::command::StoreCommand;
use super::connection::{ChannelListener, LinkError, LinkNumbers, RedisConnection};
use super::echoes::EchoFilter;
use super::error::{RedirectedTo, Redirection, not_sent, of_server};
use super::node::{NodeRole, RedisNode};
use super::poll::{TopologyAnswer, TopologyPoll, TopologyQuestion};
use super::reply;
use super::server::RedisServer;
use super::slots::{ClusterView, MapChange, SlotMap};
use super::target::LinkTarget;
use super::url::RedisEndpoint;
use crate::lock::StoreError;

/// The slots of a cluster. Clones share one task, which ends with the last of them.
#[derive(Clone)]
pub(super) struct ClusterWatch {
    known: watch::Receiver<KnownCluster>,
    wanted: watch::Sender<()>,
    _task: Arc<AbortOnDropHandle<()>>,
}

/// What the nodes said last.
#[derive(Clone, Debug, Default)]
struct KnownCluster {
    /// `None`: no node has answered yet.
    map: Option<Arc<SlotMap>>,
    /// Why no node has answered yet.
    error: Option<StoreError>,
}

/// The connections of one store to all masters. Dropping it ends them.
pub(super) struct ClusterLinks {
    address: RedisAddress,
    links: watch::Receiver<Arc<LinkTable>>,
    cluster: ClusterWatch,
    numbers: Arc<LinkNumbers>,
    _task: AbortOnDropHandle<()>,
}

/// A connection for each master of a map.
#[derive(Default)]
struct LinkTable {
    map: Arc<SlotMap>,
    /// At the index of its master.
    links: Vec<Arc<RedisConnection>>,
    /// Why there is no map.
    error: Option<StoreError>,
}

/// The pause before a command is sent again that no node executes for the moment.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// How many times a command is sent on at once: more than that means that two nodes contradict each other.
const MOST_REDIRECTIONS: u32 = 3;

/// How many masters are asked: more than can be cut off together, and few enough for a cluster of hundreds, where
/// each answer has some kilobytes.
const MOST_ASKED: usize = 5;

/// For how long the last view of a cluster counts before the nodes of the URL are asked again.
const SILENCE: Duration = Duration::from_secs(2);

// === impl ClusterWatch ===

impl ClusterWatch {
    /// Asks for the slots of the cluster that these nodes belong to, in tasks on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn start(address: &RedisAddress, nodes: &[RedisEndpoint]) -> Self {
        let mut commands = redis::pipe();
        commands.cmd("CLUSTER").arg("NODES");
        let question = TopologyQuestion {
            commands,
            role: NodeRole::ClusterNode,
            channel: None,
        };
        let (sender, known) = watch::channel(KnownCluster::default());
        let (wanted, wants) = watch::channel(());
        let (poll, inbox) = TopologyPoll::new(address, question, wants);
        let seeds = nodes.iter().map(|node| RedisNode::new(node.clone(), 0));
        let watcher = ClusterWatcher {
            server: address.server.clone(),
            label: Arc::clone(&address.label),
            seeds: seeds.collect(),
            map: SlotMap::default(),
            views: HashMap::new(),
            answered: None,
            known: sender,
            poll,
        };
        Self {
            known,
            wanted,
            _task: Arc::new(AbortOnDropHandle::new(tokio::spawn(watcher.run(inbox)))),
        }
    }

    /// Asks all masters at once.
    fn refresh(&self) {
        self.wanted.send_replace(());
    }
}

// === impl ClusterLinks ===

impl ClusterLinks {
    /// Connects to all masters in tasks on the current runtime, and passes messages to the listener.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn connect(
        address: &RedisAddress,
        cluster: ClusterWatch,
        listener: Option<ChannelListener>,
    ) -> Self {
        let numbers = Arc::<LinkNumbers>::default();
        let listener = listener.map(|listener| ChannelListener {
            handler: Arc::new(EchoFilter::new(listener.handler)),
            ..listener
        });
        let (sender, links) = watch::channel(Arc::<LinkTable>::default());
        let linker = Linker {
            address: address.clone(),
            listener,
            numbers: Arc::clone(&numbers),
            known: cluster.known.clone(),
            links: sender,
        };
        Self {
            address: address.clone(),
            links,
            cluster,
            numbers,
            _task: AbortOnDropHandle::new(tokio::spawn(linker.run())),
        }
    }

    /// The highest number of a connection that was usable.
    pub(super) fn number(&self) -> u64 {
        self.numbers.published()
    }

    /// When another server than before was last found to have the locks of a slot; `None`: never.
    pub(super) fn server_changed(&self, slot: u16) -> Option<Instant> {
        self.address.server.changed(self.link(slot)?.label())
    }

    /// The connection to the master of a slot; `None`: it is not known.
    pub(super) fn link(&self, slot: u16) -> Option<Arc<RedisConnection>> {
        self.links.borrow().link(slot)
    }

    /// The connection to the master with this index; `None`: there are fewer.
    pub(super) async fn link_at(
        &self,
        index: usize,
        give_up: Instant,
    ) -> Result<Option<Arc<RedisConnection>>, StoreError> {
        Ok(self.table(give_up).await?.links.get(index).cloned())
    }

    /// Whether there is a master with this index.
    pub(super) fn has_master(&self, index: usize) -> bool {
        index < self.links.borrow().links.len()
    }

    /// Sends a command about this slot, and follows the redirections of the nodes. Gives the reply, and the connection
    /// that it came over.
    ///
    /// # Errors
    /// As [`RedisConnection::exchange`].
    pub(super) async fn exchange<'c>(
        &self,
        slot: u16,
        command: StoreCommand,
        build: impl Fn(&RedisClock) -> Cow<'c, Cmd>,
        give_up: Instant,
    ) -> Result<(Value, Arc<RedisConnection>), StoreError> {
        let mut redirected = None;
        let mut redirections = 0;
        loop {
            let (link, is_asking) = match redirected.take() {
                Some(redirected) => redirected,
                None => (self.link_to(slot, give_up).await?, false),
            };
            let sent = link.exchange(command, &build, is_asking, give_up).await;
            let LinkError { error, redirection } = match sent {
                Ok(value) => return Ok((value, link)),
                Err(error) => error,
            };
            let Some(redirection) = redirection else {
                return Err(error);
            };
            self.cluster.refresh();
            let table = Arc::clone(&self.links.borrow());
            redirected = match &redirection {
                Redirection::Moved(to) => table.find(&link, to).map(|link| (link, false)),
                Redirection::Ask(to) => table.find(&link, to).map(|link| (link, true)),
                Redirection::Later => None,
            };
            redirections += 1;
            if redirected.is_none() || redirections > MOST_REDIRECTIONS {
                // Until the map has the node, or the node has the slot.
                sleep(RETRY_PAUSE).await;
            }
            if Instant::now() >= give_up {
                return Err(error);
            }
        }
    }

    /// The connection to the master of a slot, as soon as the masters are known.
    async fn link_to(
        &self,
        slot: u16,
        give_up: Instant,
    ) -> Result<Arc<RedisConnection>, StoreError> {
        if let Some(link) = self.link(slot) {
            return Ok(link);
        }
        let link = self.table(give_up).await?.link(slot);
        link.ok_or_else(|| {
            let reason = format!("no node of the cluster has slot {slot}");
            not_sent(&self.address.label, &reason)
        })
    }

    /// The connections, as soon as the masters are known.
    async fn table(&self, give_up: Instant) -> Result<Arc<LinkTable>, StoreError> {
        let is_known = |table: &Arc<LinkTable>| !table.links.is_empty() || table.error.is_some();
        if !is_known(&self.links.borrow()) {
            let mut links = self.links.clone();
            let known = links.wait_for(is_known);
            if !matches!(timeout_at(give_up, known).await, Ok(Ok(_))) {
                return Err(not_sent(
                    &self.address.label,
                    "no node has told the slots yet",
                ));
            }
        }
        let table = Arc::clone(&self.links.borrow());
        match &table.error {
            Some(error) if table.links.is_empty() => Err(error.clone()),
            _ => Ok(table),
        }
    }
}

// === impl LinkTable ===

impl LinkTable {
    fn link(&self, slot: u16) -> Option<Arc<RedisConnection>> {
        self.links.get(self.map.owner(slot)?).cloned()
    }

    /// The connection to the node that a redirection of `from` names.
    fn find(&self, from: &Arc<RedisConnection>, to: &RedirectedTo) -> Option<Arc<RedisConnection>> {
        let at = match &*to.host {
            "" => {
                let from = self.links.iter().position(|link| Arc::ptr_eq(link, from))?;
                self.map.find_beside(from, to.port)?
            }
            host => self.map.find(host, to.port)?,
        };
        self.links.get(at).cloned()
    }
}

// === the tasks ===

struct ClusterWatcher {
    server: RedisServer,
    /// The URL, for the log.
    label: Arc<str>,
    seeds: Vec<RedisNode>,
    map: SlotMap,
    /// The last view of each node.
    views: HashMap<RedisNode, ClusterView>,
    /// When a node answered last.
    answered: Option<Instant>,
    known: watch::Sender<KnownCluster>,
    poll: TopologyPoll,
}

impl ClusterWatcher {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<TopologyAnswer>) {
        self.poll.ask_only(self.seeds.iter().cloned());
        while let Some(TopologyAnswer { from, replies }) = inbox.recv().await {
            self.poll.note(&from, replies.is_ok());
            let view = replies.and_then(|replies| {
                let text = replies.first().and_then(reply::text).unwrap_or_default();
                ClusterView::parse(text, &from.endpoint)
                    .ok_or_else(|| not_sent(&from.label, "CLUSTER NODES can't be parsed"))
            });
            match view {
                Ok(view) => {
                    self.answered = Some(Instant::now());
                    self.merge(from, view);
                }
                Err(error) => self.failed(&error),
            }
        }
    }

    fn merge(&mut self, from: RedisNode, view: ClusterView) {
        if self.views.get(&from) == Some(&view) {
            return;
        }
        let change = self.map.merge(&view);
        self.views.insert(from, view);
        if change == MapChange::Nothing {
            return;
        }
        if let MapChange::FailedOver(masters) = change {
            for master in masters {
                let master = &*master.label;
                tracing::info!(store = %self.label, master, "a replica of the cluster has become a master");
                self.server.change(master);
            }
        }
        // A node that is asked again has to be heard again.
        self.views
            .retain(|node, _| self.map.masters().any(|master| master == node));
        self.poll
            .ask_only(self.map.masters().take(MOST_ASKED).cloned());
        self.known.send_replace(KnownCluster {
            map: Some(Arc::new(self.map.clone())),
            error: None,
        });
    }

    fn failed(&mut self, error: &StoreError) {
        let is_silent = self
            .answered
            .is_none_or(|answered| answered.elapsed() > SILENCE);
        if !is_silent {
            return;
        }
        let masters = self.map.masters().cloned();
        self.poll
            .ask_only(masters.chain(self.seeds.iter().cloned()));
        if !self.poll.nobody_answers() {
            return;
        }
        let reason = format!("no node of the cluster answers: {}", of_server(error));
        let error = not_sent(&self.label, &reason);
        self.known.send_if_modified(|known| {
            let told = known.error.as_ref().map(ToString::to_string);
            let is_news = known.map.is_none() && told.as_ref() != Some(&error.to_string());
            if is_news {
                if told.is_none() {
                    tracing::warn!(%error, "store not usable");
                }
                known.error = Some(error);
            }
            is_news
        });
    }
}

/// Keeps a connection to each master.
struct Linker {
    address: RedisAddress,
    listener: Option<ChannelListener>,
    numbers: Arc<LinkNumbers>,
    known: watch::Receiver<KnownCluster>,
    links: watch::Sender<Arc<LinkTable>>,
}

impl Linker {
    async fn run(mut self) {
        loop {
            let KnownCluster { map, error } = self.known.borrow_and_update().clone();
            if map.is_some() || error.is_some() {
                self.link(map.unwrap_or_default(), error);
            }
            if self.known.changed().await.is_err() {
                return;
            }
        }
    }

    fn link(&self, map: Arc<SlotMap>, error: Option<StoreError>) {
        if let Some(error) = &error {
            self.address.health.failed(error.clone());
        }
        let before = Arc::clone(&self.links.borrow());
        let known = before.map.masters().zip(&before.links);
        let known: HashMap<&RedisNode, &Arc<RedisConnection>> = known.collect();
        let links = map.masters().map(|master| match known.get(master) {
            Some(link) => Arc::clone(link),
            None => {
                let target = LinkTarget::Fixed(master.clone(), NodeRole::ClusterNode);
                let (listener, numbers) = (self.listener.clone(), Arc::clone(&self.numbers));
                Arc::new(RedisConnection::connect(
                    &self.address,
                    target,
                    listener,
                    numbers,
                ))
            }
        });
        let links = links.collect();
        self.links
            .send_replace(Arc::new(LinkTable { map, links, error }));
    }
}
