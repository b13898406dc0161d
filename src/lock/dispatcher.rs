//! Passes the messages of other instances to the claims of this one, and so wakes waiters and stops
//! turns.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::claim_state::ClaimState;
use super::in_use::{Question, QuestionSender};
use super::queue::WaitQueue;
use super::registry::ClaimRegistry;
use super::stop_request::StopRequests;
use super::{ClaimIssuer, Message, MessageHandler, Operated, OperatorAction};

/// Passes messages to the claims of an instance. Made before the instance's store, which needs it.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    pub(super) registry: ClaimRegistry,
    pub(super) queue: WaitQueue,
    /// Notified after a reconnection: the store may have lost the heartbeat.
    pub(super) reconnected: Arc<Notify>,
    /// The clients' requests that wait until they know whether a turn stops.
    pub(super) stops: StopRequests,
    /// Questions that take a command to answer.
    pub(super) questions: QuestionSender,
    /// Where those questions arrive; `None` once the instance has started.
    received: Arc<Mutex<Option<mpsc::Receiver<Question>>>>,
}

// === impl Dispatcher ===

impl Dispatcher {
    /// A dispatcher for the claims of this issuer.
    pub fn new(issuer: &ClaimIssuer) -> Self {
        let (questions, received) = QuestionSender::channel();
        Self {
            registry: ClaimRegistry::new(issuer.epoch()),
            queue: WaitQueue::default(),
            stops: StopRequests::default(),
            reconnected: Arc::default(),
            questions,
            received: Arc::new(Mutex::new(Some(received))),
        }
    }

    /// Those questions, for the one task that answers them; `None` after the first
    /// call.
    pub(super) fn take_questions(&self) -> Option<mpsc::Receiver<Question>> {
        self.received.lock().take()
    }
}

impl MessageHandler for Dispatcher {
    fn on_message(&self, message: Message) {
        let act: fn(&ClaimState) = match message {
            Message::InUse(id, key) => {
                if self.registry.is_abandoned(id) {
                    self.questions.add(id, key);
                }
                return;
            }
            Message::Operated(id, action, operated) => {
                if self.registry.is_own(id) {
                    log_operated(action, &operated);
                }
                return;
            }
            Message::Stop(id, sender) => {
                if self.registry.is_own(id) {
                    let stops = self.registry.find(id).is_some_and(|state| state.stop());
                    self.questions.reply_to(sender, stops);
                }
                return;
            }
            Message::Stops(id) | Message::GoesOn(id) => {
                self.stops.reply(id, matches!(message, Message::Stops(_)));
                return;
            }
            Message::Granted(_) => ClaimState::request_retry,
            Message::Superseded(_) => ClaimState::supersede,
            Message::Dequeued(_) => ClaimState::dequeue,
            Message::Interrupt(_) => ClaimState::interrupt,
            Message::Taken(_) => ClaimState::force_release,
        };
        match self.registry.find(message.claim()) {
            Some(state) => act(&state),
            // The turn is over, and its release is on its way to the store. If the store has its claim for
            // another reason, whoever finds the session busy asks about it.
            None => tracing::debug!(%message, "message for a claim that is over"),
        }
    }

    fn on_reconnect(&self) {
        self.reconnected.notify_one();
        self.queue.retry_all();
    }
}

/// Logs who has acted on a turn of this instance: the operator's own audit event is in another process's log.
fn log_operated(action: OperatorAction, operated: &Operated) {
    let message = match action {
        OperatorAction::ForceRelease => "lock released by an operator",
        OperatorAction::Interrupt => "turn interrupted by an operator",
        OperatorAction::Dequeue => "waiting turn taken out of the queue by an operator",
    };
    tracing::info!(
        target: "seriatim::audit",
        by = &*operated.by,
        key = &*operated.key.redacted(),
        request_id = &*operated.request,
        "{message}"
    );
}
