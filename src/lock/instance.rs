//! What the turns of one process have in common, whichever thread serves them: the name they claim
//! in, the sign of life, the ears, and the look at the lines in which they wait.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::heartbeat::Heartbeat;
use super::queue::{self, WaitQueue};
use super::registry::ClaimRegistry;
use super::{ClaimIssuer, Message, MessageHandler, Store, StoreError, StoreHealth};
use crate::metrics::Metrics;

/// One running process, as the lock sees it. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Instance {
    pub(super) claimant: Arc<ClaimIssuer>,
    pub(super) roll: ClaimRegistry,
    pub(super) board: WaitQueue,
    pub(super) pulse: Arc<Heartbeat>,
    pub(super) metrics: Metrics,
    looking: AbortHandle,
}

/// Where what comes for an instance arrives. Made before its store, which has to know it.
#[derive(Clone)]
pub struct Dispatcher {
    roll: ClaimRegistry,
    board: WaitQueue,
    /// What the store knew may be lost.
    reconnected: Arc<Notify>,
}

// === impl Switchboard ===

impl Dispatcher {
    /// One for the claims of this claimant.
    pub fn new(claimant: &ClaimIssuer) -> Self {
        Self {
            roll: ClaimRegistry::new(claimant.epoch()),
            board: WaitQueue::default(),
            reconnected: Arc::default(),
        }
    }
}

impl MessageHandler for Dispatcher {
    fn hear(&self, message: Message) {
        let (Message::Granted(id)
        | Message::Superseded(id)
        | Message::Interrupt(id)
        | Message::Taken(id)) = message;
        let Some(standing) = self.roll.find(id) else {
            // It is over, and what there was to do is on its way to the store.
            return tracing::debug!(said = %message, "message for nobody");
        };
        match message {
            Message::Granted(_) => standing.call(),
            Message::Superseded(_) => standing.supersede(),
            Message::Interrupt(_) => standing.interrupt(),
            Message::Taken(_) => standing.lose_by_force(),
        }
    }

    fn was_deaf(&self) {
        self.reconnected.notify_one();
        self.board.call_all();
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switchboard").finish_non_exhaustive()
    }
}

// === impl Instance ===

impl Instance {
    /// Begins to beat and to look, in tasks on the current runtime. `store` is the one that tells
    /// `switchboard` what comes; `recovery` is for how long the instance is taken for alive without a
    /// sign of life, and `None` if it gives none.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        store: Arc<dyn Store>,
        claimant: Arc<ClaimIssuer>,
        switchboard: Dispatcher,
        recovery: Option<Duration>,
        metrics: Metrics,
        health: StoreHealth,
    ) -> Self {
        let Dispatcher {
            roll,
            board,
            reconnected,
        } = switchboard;
        let pulse = Arc::new(Heartbeat::start(
            Arc::clone(&store),
            Arc::clone(&claimant),
            recovery,
            (roll.clone(), reconnected),
            metrics.clone(),
            health,
        ));
        let looking = queue::look_after(
            board.clone(),
            store,
            Arc::clone(&pulse),
            Arc::clone(claimant.instance()),
        );
        Self {
            claimant,
            roll,
            board,
            pulse,
            metrics,
            looking: tokio::spawn(looking).abort_handle(),
        }
    }

    /// The instance's name.
    pub fn name(&self) -> &str {
        self.claimant.instance()
    }

    /// Resolves when the store knows this instance to be alive, so that turns can be served.
    /// Cancel-safe.
    ///
    /// # Errors
    /// With what the store said last.
    pub async fn is_known(&self) -> Result<(), StoreError> {
        self.pulse.is_felt().await
    }

    /// What the store said to this instance's last sign of life, if that was an error.
    pub fn trouble(&self) -> Option<StoreError> {
        self.pulse.trouble()
    }

    /// Says that this instance is gone, within `longest`. To be called when nothing of it holds or
    /// waits any more.
    pub async fn stop(&self, longest: Duration) {
        self.looking.abort();
        self.pulse.stop(longest).await;
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.looking.abort();
    }
}
