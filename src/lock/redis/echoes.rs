//! Messages in a cluster, which arrive once for each master that the process is connected to.
//!
//! A node passes each message on to all other nodes, so that subscribers anywhere get it. The process subscribes at
//! every master all the same: a script offers a lock first to an instance that listens at its own node, and has to
//! find all of them there. Invariant: all messages may be lost or repeated, so one that is taken for an echo does no
//! harm.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::lock::{Message, MessageHandler};

/// Passes on the first of several equal messages that arrive together.
#[derive(Debug)]
pub(super) struct EchoFilter {
    handler: Arc<dyn MessageHandler>,
    /// The last messages, the oldest first.
    recent: Mutex<VecDeque<(Instant, Message)>>,
}

/// For how long an equal message counts as an echo: longer than nodes need to pass it on, and shorter than the time
/// after which any message is repeated.
const ECHO_TIME: Duration = Duration::from_millis(250);

// === impl EchoFilter ===

impl EchoFilter {
    pub(super) fn new(handler: Arc<dyn MessageHandler>) -> Self {
        Self {
            handler,
            recent: Mutex::default(),
        }
    }
}

impl MessageHandler for EchoFilter {
    fn on_message(&self, message: Message) {
        let now = Instant::now();
        let mut recent = self.recent.lock();
        let old = recent.partition_point(|(at, _)| *at + ECHO_TIME < now);
        recent.drain(..old);
        if recent.iter().any(|(_, known)| *known == message) {
            return;
        }
        recent.push_back((now, message.clone()));
        drop(recent);
        self.handler.on_message(message);
    }

    fn on_reconnect(&self) {
        self.handler.on_reconnect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{ClaimId, Epoch};

    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<Message>>);

    impl MessageHandler for Heard {
        fn on_message(&self, message: Message) {
            self.0.lock().push(message);
        }

        fn on_reconnect(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_counts_once_until_it_is_repeated_later() {
        crate::time_limit::limit_this_test();
        let heard = Arc::new(Heard::default());
        let filter = EchoFilter::new(Arc::clone(&heard) as Arc<dyn MessageHandler>);
        let id = ClaimId {
            epoch: Epoch(1),
            number: 1,
        };
        let (first, second) = (Message::Granted(id), Message::Superseded(id));
        for message in [&first, &second, &first, &second, &first] {
            filter.on_message(message.clone());
        }
        assert_eq!(
            *heard.0.lock(),
            [first.clone(), second],
            "each of them once"
        );
        tokio::time::advance(ECHO_TIME * 2).await;
        filter.on_message(first.clone());
        assert_eq!(heard.0.lock().last(), Some(&first), "once more");
        assert_eq!(heard.0.lock().len(), 3);
    }
}
