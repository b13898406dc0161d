//! What all turns of one process share, on whichever thread they are served: the name and epoch of
//! the instance, its heartbeat, its messages, and the task that watches the queues.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::dispatcher::Dispatcher;
use super::heartbeat::{Heartbeat, LOSS_PAUSE};
use super::in_use::{UseInquiry, answer_questions};
use super::queue::{self, QueueWatcher, WaitQueue};
use super::registry::ClaimRegistry;
use super::stop_request::StopRequests;
use super::{ClaimIssuer, Store, StoreError, StoreHealth};
use crate::metrics::Metrics;

/// One running process. Dropping it ends its tasks.
#[derive(Debug)]
pub struct Instance {
    pub(super) issuer: Arc<ClaimIssuer>,
    pub(super) registry: ClaimRegistry,
    pub(super) queue: WaitQueue,
    pub(super) stops: StopRequests,
    pub(super) heartbeat: Arc<Heartbeat>,
    pub(super) inquiry: Arc<UseInquiry>,
    pub(super) metrics: Metrics,
    /// Whether the store answers this process.
    pub(super) health: StoreHealth,
    /// The instance's own access to the store.
    pub(super) store: Arc<dyn Store>,
    /// For how long no turn begins after another server of the store has answered.
    pub(super) failover_grace: Duration,
    watcher: AbortOnDropHandle<()>,
    _answers: Option<AbortOnDropHandle<()>>,
}

// === impl Instance ===

impl Instance {
    /// Starts the instance's tasks on the current runtime. `store` has to pass messages to `dispatcher`.
    /// `crash_recovery` is how long the instance counts as alive after a heartbeat; `None`: it sends none.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        store: Arc<dyn Store>,
        issuer: Arc<ClaimIssuer>,
        dispatcher: Dispatcher,
        crash_recovery: Option<Duration>,
        metrics: Metrics,
        health: StoreHealth,
    ) -> Self {
        let heartbeat = Arc::new(Heartbeat::start(
            Arc::clone(&store),
            Arc::clone(&issuer),
            crash_recovery,
            dispatcher.registry.clone(),
            Arc::clone(&dispatcher.reconnected),
            metrics.clone(),
            health.clone(),
        ));
        let inquiry = Arc::new(UseInquiry::new(
            Arc::clone(&store),
            Arc::clone(&issuer),
            dispatcher.registry.clone(),
            dispatcher.questions.clone(),
        ));
        let answers = dispatcher.take_questions().map(|questions| {
            let (issuer, registry) = (Arc::clone(&issuer), dispatcher.registry.clone());
            let answering = answer_questions(Arc::clone(&store), issuer, registry, questions);
            AbortOnDropHandle::new(tokio::spawn(answering))
        });
        let watching = queue::watch_queues(QueueWatcher::new(
            dispatcher.queue.clone(),
            Arc::clone(&store),
            Arc::clone(&issuer),
            Arc::clone(&heartbeat),
            Arc::clone(&inquiry),
        ));
        let registry = dispatcher.registry.clone();
        metrics.show_lock_ages(move || registry.ages());
        Self {
            issuer,
            registry: dispatcher.registry,
            queue: dispatcher.queue,
            stops: dispatcher.stops,
            heartbeat,
            inquiry,
            metrics,
            health,
            _answers: answers,
            store,
            failover_grace: LOSS_PAUSE,
            watcher: AbortOnDropHandle::new(tokio::spawn(watching)),
        }
    }

    /// Sets for how long no turn begins after another server of the store has answered, such as a replica that a
    /// failover made the master. It may lack the locks of turns that run. Zero: turns begin at once.
    #[must_use]
    pub fn with_failover_grace(self, failover_grace: Duration) -> Self {
        Self {
            failover_grace,
            ..self
        }
    }

    /// The instance's name, `store.instance`.
    pub fn name(&self) -> &str {
        self.issuer.instance()
    }

    /// Makes the claims of this instance.
    pub fn issuer(&self) -> &Arc<ClaimIssuer> {
        &self.issuer
    }

    /// Waits until the store has a valid heartbeat of this instance, so that turns can be served.
    /// Cancel-safe.
    ///
    /// # Errors
    /// When the last heartbeat failed.
    pub async fn wait_until_alive(&self) -> Result<(), StoreError> {
        self.heartbeat.wait_until_alive().await
    }

    /// The error of this instance's last heartbeat; `None` if it succeeded.
    pub fn last_error(&self) -> Option<StoreError> {
        self.heartbeat.last_error()
    }

    /// Ends the tasks and deletes the heartbeat. To be called when no turn of the instance holds a lock
    /// or waits for one. Waits for the store for `limit` at most.
    pub async fn stop(&self, limit: Duration) {
        self.watcher.abort();
        self.heartbeat.stop(limit).await;
    }
}
