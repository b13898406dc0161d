//! Which server the Sentinels name as the master.
//!
//! All Sentinels are asked, and one that has been cut off may name an old master. Invariant: an older answer than
//! the one that counts replaces it only if more than half of the Sentinels answer, each of them with an older one.
//! Their config epoch rises with each failover; it falls when all of them were made anew.

use std::collections::HashMap;
use std::sync::Arc;

use redis::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::address::RedisAddress;
use super::error::{not_sent, of_server};
use super::node::{NodeRole, RedisNode};
use super::poll::{TopologyAnswer, TopologyPoll, TopologyQuestion};
use super::reply::{array, pairs, text};
use super::url::RedisEndpoint;
use crate::lock::StoreError;

/// The master that the Sentinels name. Clones share one task, which ends with the last of them.
#[derive(Clone)]
pub(super) struct MasterWatch {
    named: watch::Receiver<NamedMaster>,
    _task: Arc<AbortOnDropHandle<()>>,
}

/// What the Sentinels said last.
#[derive(Clone, Debug, Default)]
struct NamedMaster {
    /// `None`: none has named a master yet.
    master: Option<RedisNode>,
    /// Why no Sentinel names a master now; `None`: one does, or none has answered yet.
    error: Option<StoreError>,
}

/// A master, as one Sentinel names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MasterAnswer {
    epoch: u64,
    endpoint: RedisEndpoint,
}

/// The channel on which a Sentinel tells of a failover.
const CHANNEL: &str = "+switch-master";

// === impl MasterWatch ===

impl MasterWatch {
    /// Asks these Sentinels for the master with this name, in tasks on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn start(address: &RedisAddress, sentinels: &[RedisEndpoint], name: &str) -> Self {
        // In this order: for the time of a failover, the first reply may have the new epoch and the old address.
        let mut commands = redis::pipe();
        commands.cmd("SENTINEL").arg("MASTER").arg(name);
        commands
            .cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(name);
        let question = TopologyQuestion {
            commands,
            role: NodeRole::Sentinel,
            channel: Some(CHANNEL),
        };
        let (sender, named) = watch::channel(NamedMaster::default());
        // Sentinels tell of a failover themselves, and are asked often enough.
        let (_, wanted) = watch::channel(());
        let (mut poll, inbox) = TopologyPoll::new(address, question, wanted);
        poll.ask_only(
            sentinels
                .iter()
                .map(|sentinel| RedisNode::new(sentinel.clone(), 0)),
        );
        let watcher = MasterWatcher {
            has_tls: address.url.has_tls(),
            database: address.url.database,
            label: Arc::clone(&address.label),
            sentinels: sentinels.len(),
            answers: HashMap::new(),
            known: None,
            named: sender,
            poll,
        };
        Self {
            named,
            _task: Arc::new(AbortOnDropHandle::new(tokio::spawn(watcher.run(inbox)))),
        }
    }

    /// The master, as soon as a Sentinel has answered. Cancel-safe.
    ///
    /// # Errors
    /// When no Sentinel has named a master yet, and one has failed.
    pub(super) async fn master(&self) -> Result<RedisNode, StoreError> {
        let mut named = self.named.clone();
        let named = named
            .wait_for(|named| named.master.is_some() || named.error.is_some())
            .await;
        let named = named.map(|named| named.clone()).unwrap_or_default();
        match (named.master, named.error) {
            (Some(master), _) => Ok(master),
            (None, Some(error)) => Err(error),
            (None, None) => Err(not_sent(&"".into(), "the process is stopping")),
        }
    }

    /// Waits until another server than this one is the master. Cancel-safe.
    pub(super) async fn is_no_longer(&self, master: &RedisNode) {
        let mut named = self.named.clone();
        let is_another = |named: &NamedMaster| named.master.as_ref().is_some_and(|it| it != master);
        if named.wait_for(is_another).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

// === the task ===

struct MasterWatcher {
    has_tls: bool,
    database: i64,
    /// The URL, for the log.
    label: Arc<str>,
    /// How many Sentinels there are.
    sentinels: usize,
    /// The last answer of each Sentinel that answers.
    answers: HashMap<RedisNode, MasterAnswer>,
    known: Option<MasterAnswer>,
    named: watch::Sender<NamedMaster>,
    poll: TopologyPoll,
}

impl MasterWatcher {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<TopologyAnswer>) {
        while let Some(TopologyAnswer { from, replies }) = inbox.recv().await {
            let answer = replies
                .map_err(|error| self.explain(&error))
                .and_then(|replies| {
                    MasterAnswer::parse(&replies, self.has_tls).ok_or_else(|| {
                        not_sent(&self.label, &format!("{} names no master", from.label))
                    })
                });
            self.poll.note(&from, answer.is_ok());
            let error = match answer {
                Ok(answer) => {
                    self.answers.insert(from, answer);
                    None
                }
                Err(error) => {
                    self.answers.remove(&from);
                    Some(error).filter(|_| self.poll.nobody_answers())
                }
            };
            self.decide();
            self.publish(error);
        }
    }

    /// The error for a Sentinel that names no master.
    fn explain(&self, error: &StoreError) -> StoreError {
        let hint = match error {
            StoreError::Refused { reason, .. } if reason.contains("No such master") => {
                ": write the name that the Sentinels' configuration has for the master in store.url"
            }
            _ => "",
        };
        not_sent(
            &self.label,
            &format!("no Sentinel names a master: {}{hint}", of_server(error)),
        )
    }

    /// Chooses the master from the last answers.
    fn decide(&mut self) {
        let newest = self.answers.values().max_by_key(|answer| answer.epoch);
        let Some(newest) = newest else {
            return;
        };
        let is_older = self
            .known
            .as_ref()
            .is_some_and(|known| newest.epoch < known.epoch);
        // Answers that differ with the same epoch are given while a failover is under way.
        let is_known = |known: &MasterAnswer| {
            known.epoch == newest.epoch && self.answers.values().any(|answer| answer == known)
        };
        if self.known.as_ref().is_some_and(is_known) {
            return;
        }
        if !is_older || self.answers.len() * 2 > self.sentinels {
            self.known = Some(newest.clone());
        }
    }

    fn publish(&self, error: Option<StoreError>) {
        let known = self.known.as_ref();
        let master = known.map(|known| RedisNode::new(known.endpoint.clone(), self.database));
        self.named.send_if_modified(|named| {
            let is_changed = named.master != master;
            if is_changed && let Some(master) = &master {
                tracing::info!(store = %self.label, master = &*master.label, "the Sentinels name the master");
            }
            let is_news = is_changed || error.is_some() != named.error.is_some();
            *named = NamedMaster { master, error };
            is_news
        });
    }
}

// === impl MasterAnswer ===

impl MasterAnswer {
    /// Reads the replies of `SENTINEL MASTER` and `SENTINEL GET-MASTER-ADDR-BY-NAME`; `None` if they have no address.
    fn parse(replies: &[Value], has_tls: bool) -> Option<Self> {
        let [state, address] = replies else {
            return None;
        };
        let epoch = pairs(state)
            .into_iter()
            .find(|(name, _)| *name == "config-epoch");
        let [host, port] = array(address)? else {
            return None;
        };
        let (host, port) = (text(host)?.to_owned(), text(port)?.parse().ok()?);
        Some(Self {
            epoch: epoch.and_then(|(_, epoch)| epoch.parse().ok())?,
            endpoint: RedisEndpoint::at(host, port, has_tls)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(port: u16, epoch: u64) -> MasterAnswer {
        let endpoint = RedisEndpoint::at("h".into(), port, false).expect("an endpoint");
        MasterAnswer { epoch, endpoint }
    }

    fn sentinel(number: u16) -> RedisNode {
        RedisNode::new(answer(number, 0).endpoint, 0)
    }

    #[tokio::test]
    async fn the_newest_answer_counts_and_an_older_one_if_more_than_half_give_it() {
        crate::time_limit::limit_this_test();
        let url = "redis-sentinel://s1,s2,s3/mymaster";
        let address = RedisAddress::parse(url, std::time::Duration::from_secs(1));
        let address = address.expect("a URL");
        let question = TopologyQuestion {
            commands: redis::pipe(),
            role: NodeRole::Sentinel,
            channel: None,
        };
        let (poll, _inbox) = TopologyPoll::new(&address, question, watch::channel(()).1);
        let mut watcher = MasterWatcher {
            has_tls: false,
            database: 3,
            label: "redis-sentinel://s1".into(),
            sentinels: 3,
            answers: HashMap::new(),
            known: None,
            named: watch::channel(NamedMaster::default()).0,
            poll,
        };
        let mut decide = |answers: &[(u16, u64)]| {
            let answers = answers.iter().enumerate();
            let numbered = answers.map(|(n, (port, epoch))| {
                let n = u16::try_from(n).expect("a small number");
                (sentinel(n), answer(*port, *epoch))
            });
            watcher.answers = numbered.collect();
            watcher.decide();
            watcher.publish(None);
            let master = watcher.named.borrow().master.clone();
            master.map(|master| master.label.to_string())
        };
        assert_eq!(decide(&[]), None, "no Sentinel has answered");
        assert_eq!(decide(&[(1, 4), (1, 4), (1, 4)]).as_deref(), Some("h:1/3"));
        assert_eq!(
            decide(&[(1, 4), (2, 5), (1, 4)]).as_deref(),
            Some("h:2/3"),
            "a failover"
        );
        assert_eq!(
            decide(&[(1, 5), (2, 5), (1, 5)]).as_deref(),
            Some("h:2/3"),
            "a contradiction"
        );
        assert_eq!(decide(&[]).as_deref(), Some("h:2/3"), "none answers");
        assert_eq!(
            decide(&[(1, 4)]).as_deref(),
            Some("h:2/3"),
            "one that was cut off"
        );
        assert_eq!(
            decide(&[(1, 4), (3, 0)]).as_deref(),
            Some("h:1/3"),
            "most were made anew"
        );
    }

    #[test]
    fn replies_are_read_in_both_protocols() {
        let text = |text: &str| Value::BulkString(text.into());
        let fields = ["ip", "old", "port", "1", "config-epoch", "7"].map(text);
        let pairs = fields
            .chunks(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()));
        let address = Value::Array(vec![text("10.0.0.1"), text("6380")]);
        for state in [Value::Map(pairs.collect()), Value::Array(fields.to_vec())] {
            let read = MasterAnswer::parse(&[state.clone(), address.clone()], true);
            let read = read.expect("a master");
            assert_eq!(read.endpoint.label(0), "rediss://10.0.0.1:6380/0");
            assert_eq!(read.epoch, 7);
            assert_eq!(MasterAnswer::parse(&[state, Value::Nil], false), None);
        }
        assert_eq!(
            MasterAnswer::parse(&[Value::Nil, address], false),
            None,
            "no epoch"
        );
    }
}
