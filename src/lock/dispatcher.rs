//! Passes the messages of other instances to the claims of this one, and so wakes waiters and stops
//! turns.

use std::sync::Arc;

use tokio::sync::Notify;

use super::queue::WaitQueue;
use super::registry::ClaimRegistry;
use super::{ClaimIssuer, Message, MessageHandler};

/// Passes messages to the claims of an instance. Made before the instance's store, which needs it.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    pub(super) registry: ClaimRegistry,
    pub(super) queue: WaitQueue,
    /// Notified after a reconnection: the store may have lost the heartbeat.
    pub(super) reconnected: Arc<Notify>,
}

// === impl Dispatcher ===

impl Dispatcher {
    /// A dispatcher for the claims of this issuer.
    pub fn new(issuer: &ClaimIssuer) -> Self {
        Self {
            registry: ClaimRegistry::new(issuer.epoch()),
            queue: WaitQueue::default(),
            reconnected: Arc::default(),
        }
    }
}

impl MessageHandler for Dispatcher {
    fn on_message(&self, message: Message) {
        let Some(state) = self.registry.find(message.claim()) else {
            // The turn is over, and its release is on its way to the store.
            return tracing::debug!(%message, "message for a claim that is over");
        };
        match message {
            Message::Granted(_) => state.request_retry(),
            Message::Superseded(_) => state.supersede(),
            Message::Interrupt(_) => state.interrupt(),
            Message::Taken(_) => state.force_release(),
        }
    }

    fn on_reconnect(&self) {
        self.reconnected.notify_one();
        self.queue.retry_all();
    }
}
