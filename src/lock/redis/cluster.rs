//! A Redis Cluster: which master has which slot, a connection to each master, and the road of a command there.
//!
//! The masters are asked for their view again and again, so a failover is known within half a second, even by a
//! process that sends no command. Invariant: a failover counts as another server before any command goes to the new
//! master.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::address::RedisAddress;
use super::command::StoreCommand;
use super::connection::{ChannelListener, LinkError, LinkNumbers, RedisConnection, WriteCommand};
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
/// Short at first, because a slot moves within milliseconds, then long enough that many commands are no load.
const RETRY_PAUSE: Range<Duration> = Duration::from_millis(25)..Duration::from_millis(200);

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
            is_partial: false,
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

    /// The masters and their slots; `None`: no node has answered yet.
    fn map(&self) -> Option<Arc<SlotMap>> {
        self.known.borrow().map.clone()
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
        let map = self.cluster.map()?;
        let master = map.masters().nth(map.owner(slot)?)?;
        self.address.server.changed(&master.label)
    }

    /// The connection to the master of a slot; `None`: it is not known, or there is no connection to it yet.
    pub(super) fn link(&self, slot: u16) -> Option<Arc<RedisConnection>> {
        let table = Arc::clone(&self.links.borrow());
        self.is_current(&table).then(|| table.link(slot)).flatten()
    }

    /// Whether these are the connections to the masters that are known now. For a moment after a failover, they are
    /// those of before.
    fn is_current(&self, table: &LinkTable) -> bool {
        let map = self.cluster.map();
        map.is_none_or(|map| Arc::ptr_eq(&map, &table.map))
    }

    /// The connection to the master with this index; `None`: there are fewer.
    ///
    /// # Errors
    /// When some slots have no master, so that those that are there don't have all locks.
    pub(super) async fn link_at(
        &self,
        index: usize,
        give_up: Instant,
    ) -> Result<Option<Arc<RedisConnection>>, StoreError> {
        let table = self.table(give_up).await?;
        match table.map.first_unowned() {
            Some(slot) => Err(self.unowned(slot)),
            None => Ok(table.links.get(index).cloned()),
        }
    }

    /// The error for a slot that no master has.
    fn unowned(&self, slot: u16) -> StoreError {
        let reason = format!(
            "no node of the cluster has slot {slot}: see what redis-cli --cluster check says"
        );
        not_sent(&self.address.label, &reason)
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
    pub(super) async fn exchange(
        &self,
        slot: u16,
        command: StoreCommand,
        write: impl WriteCommand,
        give_up: Instant,
    ) -> Result<(Value, Arc<RedisConnection>), StoreError> {
        let mut redirected = None;
        let (mut redirections, mut pause) = (0, RETRY_PAUSE.start);
        loop {
            let (link, is_asking) = match redirected.take() {
                Some(redirected) => redirected,
                None => (self.link_to(slot, give_up).await?, false),
            };
            let sent = link
                .exchange(command, &write, is_asking, Instant::now(), give_up)
                .await;
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
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE.end);
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
        link.ok_or_else(|| self.unowned(slot))
    }

    /// The connections, as soon as the masters are known.
    async fn table(&self, give_up: Instant) -> Result<Arc<LinkTable>, StoreError> {
        let mut links = self.links.clone();
        let known = links.wait_for(|table| {
            (!table.links.is_empty() || table.error.is_some()) && self.is_current(table)
        });
        let table = match timeout_at(give_up, known).await {
            Ok(Ok(table)) => Arc::clone(&table),
            _ => {
                let reason = "no node has told the slots yet";
                return Err(not_sent(&self.address.label, reason));
            }
        };
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
    /// Whether some slots have no node.
    is_partial: bool,
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
            let view = replies.and_then(|replies| {
                let text = replies.first().and_then(reply::text).unwrap_or_default();
                ClusterView::parse(text, &from.endpoint)
                    .ok_or_else(|| not_sent(&from.label, "CLUSTER NODES can't be parsed"))
            });
            self.poll.note(&from, view.is_ok());
            match view {
                Ok(view) => {
                    self.answered = Some(Instant::now());
                    self.merge(from, view);
                    self.ask_fewer();
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
        let unowned = self.map.first_unowned();
        if let (Some(slot), false) = (unowned, self.is_partial) {
            tracing::warn!(
                store = %self.label,
                slot,
                "the cluster has slots without a node: their sessions can't be locked"
            );
        }
        self.is_partial = unowned.is_some();
        let map = Arc::new(self.map.clone());
        // Together: whoever hears of a change then asks the new master, and nobody asks it before.
        self.known.send_modify(|known| {
            if let MapChange::FailedOver(masters) = &change {
                for master in masters {
                    let master = &*master.label;
                    tracing::info!(store = %self.label, master, "a master of the cluster may lack the last writes");
                    self.server.change(master);
                }
            }
            *known = KnownCluster {
                map: Some(map),
                error: None,
            };
        });
        // A node that is asked again has to be heard again.
        self.views
            .retain(|node, _| self.map.masters().any(|master| master == node));
        self.poll
            .ask_only(self.map.masters().take(MOST_ASKED).cloned());
    }

    /// Asks some masters only, as before a silence, when these answer again.
    fn ask_fewer(&mut self) {
        let few: Vec<_> = self.map.masters().take(MOST_ASKED).cloned().collect();
        let can_do = few.iter().all(|master| self.poll.has_answer_of(master));
        if !few.is_empty() && can_do && self.poll.asked() > few.len() {
            self.poll.ask_only(few.into_iter());
        }
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

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn after_a_silence_all_nodes_are_asked_until_the_few_answer_again() {
        crate::time_limit::limit_this_test();
        let address = RedisAddress::parse("redis-cluster://h", Duration::from_secs(60));
        let address = address.expect("a URL");
        let question = TopologyQuestion {
            commands: redis::pipe(),
            role: NodeRole::ClusterNode,
            channel: None,
        };
        let (poll, _inbox) = TopologyPoll::new(&address, question, watch::channel(()).1);
        let seed = RedisEndpoint::at("h".into(), 1, false).expect("an endpoint");
        let seed = RedisNode::new(seed, 0);
        let mut watcher = ClusterWatcher {
            server: RedisServer::default(),
            label: Arc::clone(&address.label),
            seeds: vec![seed.clone()],
            map: SlotMap::default(),
            is_partial: false,
            views: HashMap::new(),
            answered: None,
            known: watch::Sender::default(),
            poll,
        };
        let line = |n| format!("{n} 127.0.0.1:{n}@1 master - 0 0 {n} connected {n}\n");
        let masters: String = (1..=MOST_ASKED + 1).map(line).collect();
        let view = ClusterView::parse(&masters, &seed.endpoint).expect("a view");
        watcher.merge(seed, view);
        assert_eq!(watcher.poll.asked(), MOST_ASKED, "at first");
        let few: Vec<_> = watcher.map.masters().take(MOST_ASKED).cloned().collect();
        for master in &few {
            watcher.poll.note(master, false);
        }
        watcher.failed(&not_sent(&address.label, "no reply"));
        assert_eq!(watcher.poll.asked(), MOST_ASKED + 2, "and the seed");
        for master in &few {
            watcher.ask_fewer();
            assert_eq!(watcher.poll.asked(), MOST_ASKED + 2, "one is silent");
            watcher.poll.note(master, true);
        }
        watcher.ask_fewer();
        assert_eq!(watcher.poll.asked(), MOST_ASKED, "all of the few answer");
    }

    #[tokio::test]
    async fn after_a_failover_no_command_goes_to_the_old_master() {
        crate::time_limit::limit_this_test();
        let give_up = Instant::now() + Duration::from_secs(60);
        let address = RedisAddress::parse("redis-cluster://h", Duration::from_secs(60));
        let address = address.expect("a URL");
        let known = |port: u16| {
            let master = format!("{port} 127.0.0.1:{port}@1 master - 0 0 {port} connected 0-16383");
            let seed = RedisEndpoint::at("h".into(), 1, false).expect("an endpoint");
            let view = ClusterView::parse(&master, &seed).expect("a view");
            let mut map = SlotMap::default();
            map.merge(&view);
            KnownCluster {
                map: Some(Arc::new(map)),
                error: None,
            }
        };
        let (sender, receiver) = watch::channel(known(1));
        let cluster = ClusterWatch {
            known: receiver,
            wanted: watch::Sender::default(),
            _task: Arc::new(AbortOnDropHandle::new(tokio::spawn(pending()))),
        };
        let links = ClusterLinks::connect(&address, cluster, None);
        let old = links.link_to(0, give_up).await.expect("a connection");
        address.server.change("127.0.0.1:2/0");
        sender.send_replace(known(2));
        // The task that makes the connections has not run since.
        assert!(links.link(0).is_none(), "none to the new master yet");
        assert!(links.server_changed(0).is_some(), "the change counts");
        let new = links.link_to(0, give_up).await.expect("a connection");
        assert!(
            !Arc::ptr_eq(&old, &new),
            "the command waits for the new one"
        );
    }
}
