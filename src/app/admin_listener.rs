//! The listener of the admin interface, with a limit on its connections.
//!
//! Invariant: a new connection is always served. If there are too many, the one that has been idle for the
//! longest is closed. There always is an idle one, because the limits of concurrent calls and probes
//! together are below the limit of connections. A probe beyond its limit is answered too, but its connection
//! counts as idle.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use http::Request;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::admin::{self, AdminServer};
use crate::drain;
use crate::listen::{self, ClientConnection, FnService, Listener, ServeSettings};

/// The largest number of connections: more than probes, monitoring systems and browsers need, and a quarter of
/// the usual limit of open files (1024), so that the admin interface doesn't take the files that turns need.
const MAX_CONNECTIONS: usize = 256;

/// The largest number of concurrent calls. The other connections are for new clients.
const MAX_CALLS: usize = MAX_CONNECTIONS / 4 * 3;

/// The largest number of concurrent probes whose connections are not closed as idle. A probe may wait for the
/// store.
const MAX_PROBES: usize = MAX_CONNECTIONS / 8;

/// The open connections of the listener. Clones share them.
#[derive(Clone, Default)]
struct AdminSlots(Arc<Mutex<SlotTable>>);

#[derive(Default)]
struct SlotTable {
    slots: HashMap<u64, AdminSlot>,
    /// Calls that are being answered, on all connections.
    calls: usize,
    /// Probes that are being answered within their limit, on all connections.
    probes: usize,
    /// A clock that ticks at each event of a connection.
    events: u64,
}

struct AdminSlot {
    /// The connection's task; `None` until it is spawned.
    task: Option<AbortHandle>,
    /// Calls and counted probes that are being answered on this connection.
    active: usize,
    /// The number of the connection's last event.
    last_event: u64,
}

/// One connection's slot, which is freed when this is dropped.
struct SlotGuard {
    slots: AdminSlots,
    id: u64,
}

/// A call or a counted probe, until it is answered.
struct AdminCall {
    slot: Arc<SlotGuard>,
    is_probe: bool,
}

/// Serves the admin interface until it is dropped, also while the process drains.
pub(super) async fn serve(
    listener: Listener,
    admin: Arc<AdminServer>,
    settings: ServeSettings,
) -> io::Result<()> {
    let (_never_drains, watch) = drain::channel();
    let serving = watch.clone();
    let slots = AdminSlots::default();
    let settings = Arc::new(settings);
    let take = move |accepted| {
        let (admin, watch) = (Arc::clone(&admin), serving.clone());
        let settings = Arc::clone(&settings);
        slots.serve(|slot| async move {
            let service = FnService(move |client: ClientConnection, request: Request<_>| {
                let (admin, slot) = (Arc::clone(&admin), Arc::clone(&slot));
                async move {
                    let is_probe = admin::is_probe(request.uri().path());
                    let call = slot.begin(is_probe);
                    if call.is_none() && !is_probe {
                        return admin::overloaded(MAX_CALLS);
                    }
                    admin.handle(client.ip, request).await
                }
            });
            listen::serve(accepted, &settings, watch, service).await;
        });
    };
    listener.accept(watch, take).await
}

// === impl AdminSlots ===

impl AdminSlots {
    /// Serves a connection in a task of its own. If there are too many, closes the one that is idle for the
    /// longest.
    fn serve<F>(&self, serve: impl FnOnce(Arc<SlotGuard>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let id = self.0.lock().add();
        let slots = self.clone();
        let task = tokio::spawn(serve(Arc::new(SlotGuard { slots, id })));
        // The connection may have ended already.
        if let Some(slot) = self.0.lock().slots.get_mut(&id) {
            slot.task = Some(task.abort_handle());
        }
    }
}

// === impl SlotTable ===

impl SlotTable {
    /// Adds a slot and returns its number.
    fn add(&mut self) -> u64 {
        if self.slots.len() >= MAX_CONNECTIONS {
            self.close_idlest();
        }
        let id = self.next_event();
        let slot = AdminSlot {
            task: None,
            active: 0,
            last_event: id,
        };
        self.slots.insert(id, slot);
        id
    }

    fn next_event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// Records an event of a connection, unless the connection is closed already.
    fn touch(&mut self, id: u64, change: impl FnOnce(&mut AdminSlot)) {
        let last_event = self.next_event();
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.last_event = last_event;
            change(slot);
        }
    }

    /// The number of calls, or of counted probes, and its limit.
    fn active(&mut self, is_probe: bool) -> (&mut usize, usize) {
        match is_probe {
            true => (&mut self.probes, MAX_PROBES),
            false => (&mut self.calls, MAX_CALLS),
        }
    }

    fn close_idlest(&mut self) {
        let idle = self.slots.iter().filter(|(_, slot)| slot.active == 0);
        let idlest = idle
            .min_by_key(|(_, slot)| slot.last_event)
            .map(|(id, _)| *id);
        let closed = idlest.and_then(|id| self.slots.remove(&id));
        if let Some(task) = closed.and_then(|slot| slot.task) {
            tracing::debug!("too many connections to admin.listen; closed an idle one");
            task.abort();
        }
    }
}

// === impl SlotGuard ===

impl SlotGuard {
    /// Begins a call or a probe; `None` if its limit is reached.
    fn begin(self: &Arc<Self>, is_probe: bool) -> Option<AdminCall> {
        let mut table = self.slots.0.lock();
        let (active, max) = table.active(is_probe);
        let fits = *active < max;
        *active += usize::from(fits);
        table.touch(self.id, |slot| slot.active += usize::from(fits));
        fits.then(|| AdminCall {
            slot: Arc::clone(self),
            is_probe,
        })
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.slots.0.lock().slots.remove(&self.id);
    }
}

// === impl AdminCall ===

impl Drop for AdminCall {
    fn drop(&mut self) {
        let mut table = self.slot.slots.0.lock();
        *table.active(self.is_probe).0 -= 1;
        table.touch(self.slot.id, |slot| slot.active -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_with_an_unanswered_probe_is_not_closed_as_idle() {
        let slots = AdminSlots::default();
        let id = slots.0.lock().add();
        let slot = Arc::new(SlotGuard {
            slots: slots.clone(),
            id,
        });
        let come = || {
            for _ in 0..MAX_CONNECTIONS {
                slots.0.lock().add();
            }
            slots.0.lock().slots.contains_key(&id)
        };
        let mut probes: Vec<_> = (0..MAX_PROBES).map(|_| slot.begin(true)).collect();
        assert!(
            probes.iter().all(Option::is_some),
            "probes within the limit are counted"
        );
        assert!(slot.begin(true).is_none(), "the next one is not");
        assert!(
            slot.begin(false).is_some(),
            "calls have a limit of their own"
        );
        assert!(come(), "it stays while new connections come");
        probes.truncate(1);
        assert!(come(), "until its last probe is answered");
        drop(probes);
        assert!(!come(), "then it is closed as idle");
    }
}
