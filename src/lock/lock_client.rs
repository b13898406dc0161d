//! One worker's access to one store: what acquiring, holding and releasing a lock have in common.

use std::sync::Arc;

use super::extender::Extender;
use super::instance::Instance;
use super::releaser::Releaser;
use super::{LockHolder, Store};

/// A store, and what this worker and its process do in it in the background.
#[derive(Debug)]
pub(super) struct LockClient {
    pub(super) store: Arc<dyn Store>,
    pub(super) releaser: Releaser,
    pub(super) extender: Extender,
    pub(super) instance: Arc<Instance>,
}

/// The turn that asks for a lock, as its token names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requester<'r> {
    /// The name of the turn's route.
    pub(super) route: &'r str,
    /// The id of the turn's request.
    pub(super) request: &'r str,
}

// === impl LockClient ===

impl LockClient {
    /// A client whose background work runs on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(store: Arc<dyn Store>, instance: Arc<Instance>) -> Self {
        Self {
            releaser: Releaser::new(Arc::clone(&store)),
            extender: Extender::new(Arc::clone(&store)),
            store,
            instance,
        }
    }

    /// Whether the holder is a claim of this process whose turn is over and whose release is on its way.
    pub(super) fn is_abandoned(&self, holder: &LockHolder) -> bool {
        let turn = holder.turn();
        turn.is_some_and(|turn| self.instance.registry.is_abandoned(turn.id))
    }
}
