//! What the turns of one process have in common, whichever thread serves them: the name they claim
//! in, the sign of life, the ears, and the look at the lines in which they wait.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::line::{self, Board};
use super::pulse::Pulse;
use super::roll::Roll;
use super::{Claimant, Ears, Message, Store, StoreError};
use crate::metrics::Metrics;

/// One running process, as the lock sees it. Its tasks end when it is dropped.
#[derive(Debug)]
pub struct Instance {
    pub(super) claimant: Arc<Claimant>,
    pub(super) roll: Roll,
    pub(super) board: Board,
    pub(super) pulse: Arc<Pulse>,
    pub(super) metrics: Metrics,
    looking: AbortHandle,
}

/// Where what comes for an instance arrives. Made before its store, which has to know it.
#[derive(Clone)]
pub struct Switchboard {
    roll: Roll,
    board: Board,
    /// What the store knew may be lost.
    reconnected: Arc<Notify>,
}

// === impl Switchboard ===

impl Switchboard {
    /// One for the claims of this claimant.
    pub fn new(claimant: &Claimant) -> Self {
        Self {
            roll: Roll::new(claimant.epoch()),
            board: Board::default(),
            reconnected: Arc::default(),
        }
    }
}

impl Ears for Switchboard {
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

impl fmt::Debug for Switchboard {
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
        claimant: Arc<Claimant>,
        switchboard: Switchboard,
        recovery: Option<Duration>,
        metrics: Metrics,
    ) -> Self {
        let Switchboard {
            roll,
            board,
            reconnected,
        } = switchboard;
        let pulse = Arc::new(Pulse::start(
            Arc::clone(&store),
            Arc::clone(&claimant),
            recovery,
            (roll.clone(), reconnected),
            metrics.clone(),
        ));
        let looking = line::look_after(
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
