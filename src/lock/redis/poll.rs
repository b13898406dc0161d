//! Asks servers about the topology, again and again: Sentinels for the master, cluster nodes for the slots.
//!
//! Each server is asked in a task of its own, so one that does not answer delays no other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, PushKind, RedisError, Value};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::address::RedisAddress;
use super::error::{not_executed, not_sent};
use super::login;
use super::node::{NodeRole, RedisNode};
use super::pipelined::PipelinedConnection;
use crate::lock::StoreError;

/// The servers that are asked. Dropping it ends the tasks.
pub(super) struct TopologyPoll {
    address: RedisAddress,
    question: TopologyQuestion,
    tasks: HashMap<RedisNode, AbortOnDropHandle<()>>,
    /// The servers whose last answer was an error.
    failing: HashSet<RedisNode>,
    wanted: watch::Receiver<()>,
    answers: mpsc::UnboundedSender<TopologyAnswer>,
}

/// What the servers are asked.
#[derive(Clone)]
pub(super) struct TopologyQuestion {
    /// Sent together, so that nothing changes between the replies.
    pub(super) commands: Pipeline,
    pub(super) role: NodeRole,
    /// A channel on which the server tells that the answer has changed.
    pub(super) channel: Option<&'static str>,
}

/// What a server answered.
pub(super) struct TopologyAnswer {
    pub(super) from: RedisNode,
    /// A reply for each command of the question.
    pub(super) replies: Result<Vec<Value>, StoreError>,
}

/// How often each server is asked: a failover has to be known before a pause of a second is over.
const INTERVAL: Duration = Duration::from_millis(500);

/// The pause after an answer, even if another one is wanted at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

// === impl TopologyPoll ===

impl TopologyPoll {
    /// Asks nobody yet. A change of `wanted` asks all servers at once.
    pub(super) fn new(
        address: &RedisAddress,
        question: TopologyQuestion,
        wanted: watch::Receiver<()>,
    ) -> (Self, mpsc::UnboundedReceiver<TopologyAnswer>) {
        let (answers, inbox) = mpsc::unbounded_channel();
        let poll = Self {
            address: address.clone(),
            question,
            tasks: HashMap::new(),
            failing: HashSet::new(),
            wanted,
            answers,
        };
        (poll, inbox)
    }

    /// Asks these servers from now on, and no others.
    pub(super) fn ask_only(&mut self, nodes: impl Iterator<Item = RedisNode>) {
        let mut before = std::mem::take(&mut self.tasks);
        for node in nodes {
            // A node of the URL may be a master, too.
            if self.tasks.contains_key(&node) {
                continue;
            }
            let task = before.remove(&node).unwrap_or_else(|| {
                let asking = PolledServer {
                    address: self.address.clone(),
                    node: node.clone(),
                    question: self.question.clone(),
                    wanted: self.wanted.clone(),
                    told: Arc::default(),
                };
                AbortOnDropHandle::new(tokio::spawn(asking.run(self.answers.clone())))
            });
            self.tasks.insert(node, task);
        }
        self.failing.retain(|node| self.tasks.contains_key(node));
    }

    /// Notes whether a server's last answer was one.
    pub(super) fn note(&mut self, from: &RedisNode, has_answered: bool) {
        match has_answered {
            true => self.failing.remove(from),
            false => self.tasks.contains_key(from) && self.failing.insert(from.clone()),
        };
    }

    /// How many servers are asked.
    pub(super) fn asked(&self) -> usize {
        self.tasks.len()
    }

    /// Whether a server is asked, and its last answer was no error.
    pub(super) fn has_answer_of(&self, node: &RedisNode) -> bool {
        self.tasks.contains_key(node) && !self.failing.contains(node)
    }

    /// Whether the last answer of each server was an error.
    pub(super) fn nobody_answers(&self) -> bool {
        self.failing.len() == self.tasks.len()
    }
}

// === the task ===

struct PolledServer {
    address: RedisAddress,
    node: RedisNode,
    question: TopologyQuestion,
    wanted: watch::Receiver<()>,
    /// Notified when the server says that something has changed.
    told: Arc<Notify>,
}

impl PolledServer {
    async fn run(mut self, answers: mpsc::UnboundedSender<TopologyAnswer>) {
        let mut connection = None;
        loop {
            let give_up = Instant::now() + self.address.timeout;
            let asked = timeout_at(give_up, self.ask(&mut connection, give_up)).await;
            let no_reply = |_| Err(not_sent(&self.node.label, "no reply"));
            let replies = asked.unwrap_or_else(no_reply);
            if replies.is_err() {
                connection = None;
            }
            let from = self.node.clone();
            if answers.send(TopologyAnswer { from, replies }).is_err() {
                return;
            }
            sleep(SHORTEST_PAUSE).await;
            tokio::select! {
                () = sleep(INTERVAL) => {}
                () = self.told.notified() => {}
                Ok(()) = self.wanted.changed() => {}
            }
        }
    }

    async fn ask(
        &self,
        connection: &mut Option<PipelinedConnection>,
        give_up: Instant,
    ) -> Result<Vec<Value>, StoreError> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.connect(give_up).await?),
        };
        let commands = &self.question.commands;
        let replies = connection.send_all(commands, give_up);
        let replies = replies.await.and_then(|replies| {
            let replies = replies.into_iter();
            replies.map(Value::extract_error).collect()
        });
        replies.map_err(|error: RedisError| not_executed(&self.node.label, &error))
    }

    async fn connect(&self, give_up: Instant) -> Result<PipelinedConnection, StoreError> {
        let told = Arc::clone(&self.told);
        let on_push = move |info: redis::PushInfo| {
            if info.kind == PushKind::Message {
                told.notify_one();
            }
        };
        let (address, node, role) = (&self.address, &self.node, self.question.role);
        let opened = login::open(address, node, role, on_push, give_up).await?;
        let connection = opened.connection;
        if let Some(channel) = self.question.channel.filter(|_| opened.has_messages) {
            // Without the right to subscribe, or without RESP3, the question alone has to do.
            if let Err(error) = connection.subscribe(channel, give_up).await {
                tracing::debug!(store = %node.label, %error, channel, "can't subscribe");
            }
        }
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::super::url::RedisEndpoint;
    use super::*;

    #[tokio::test]
    async fn a_server_that_is_named_twice_is_asked_by_one_task_that_goes_on() {
        crate::time_limit::limit_this_test();
        let address = RedisAddress::parse("redis://127.0.0.1:1", Duration::from_secs(60));
        let question = TopologyQuestion {
            commands: redis::pipe(),
            role: NodeRole::ClusterNode,
            channel: None,
        };
        let address = address.expect("a URL");
        let (mut poll, _inbox) = TopologyPoll::new(&address, question, watch::channel(()).1);
        let endpoint = RedisEndpoint::at("127.0.0.1".into(), 1, false).expect("an endpoint");
        let node = RedisNode::new(endpoint, 0);
        let mut tasks = Vec::new();
        for _ in 0..3 {
            poll.ask_only([node.clone(), node.clone()].into_iter());
            tasks.extend(poll.tasks.values().map(|task| task.abort_handle().id()));
        }
        assert_eq!(poll.asked(), 1, "one server");
        assert!(tasks.iter().all(|task| *task == tasks[0]), "{tasks:?}");
    }
}
