//! The operators' listener: who has a place at it, and who makes way.
//!
//! Invariant: whoever comes is served, whatever others do. The connection that has answered nothing for
//! the longest makes way, and there is one: calls and probes have limits of their own, which together are
//! below the number of places. A probe is answered also beyond its limit; its connection may make way then.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use http::Request;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::admin::{self, AdminServer};
use crate::drain;
use crate::listen::{self, ClientConnection, FnService, Listener, ServeSettings};

/// How many connections operators may have: more than all their probes, monitoring systems and browsers
/// need, and a quarter of the files that a process is allowed where nobody says otherwise (1024), so that
/// whoever can reach the listener doesn't take what turns need.
const MOST_CONNECTIONS: usize = 256;

/// How many of their calls are answered at once. The rest of the places is for those who come.
const MOST_CALLS: usize = MOST_CONNECTIONS / 4 * 3;

/// How many probes, whose connections don't make way, are answered at once: one may wait for the store.
const MOST_PROBES: usize = MOST_CONNECTIONS / 8;

/// The connections of a listener. Clones are the same ones.
#[derive(Clone, Default)]
struct AdminSlots(Arc<Mutex<SlotTable>>);

#[derive(Default)]
struct SlotTable {
    slots: HashMap<u64, AdminSlot>,
    /// Calls under way on all of them.
    calls: usize,
    /// Probes under way on all of them, of those that are counted.
    probes: usize,
    /// Numbers what happens, in order.
    events: u64,
}

struct AdminSlot {
    /// `None` until it is spawned.
    task: Option<AbortHandle>,
    /// Calls and counted probes under way on it.
    under_way: usize,
    /// The event that concerned it last.
    last: u64,
}

/// One connection's slot. Dropped, it is free.
struct SlotGuard {
    slots: AdminSlots,
    id: u64,
}

/// A call or a probe under way.
struct AdminCall {
    slot: Arc<SlotGuard>,
    is_probe: bool,
}

/// Answers operators for as long as there is anything to ask about, also while turns are let end.
pub(super) async fn serve(listener: Listener, admin: Arc<AdminServer>) -> io::Result<()> {
    let (_never, watch) = drain::channel();
    let serving = watch.clone();
    let slots = AdminSlots::default();
    let settings = Arc::new(ServeSettings::default());
    let take = move |accepted| {
        let (admin, watch) = (Arc::clone(&admin), serving.clone());
        let settings = Arc::clone(&settings);
        slots.take(|slot| async move {
            let answering = FnService(move |client: ClientConnection, request: Request<_>| {
                let (admin, slot) = (Arc::clone(&admin), Arc::clone(&slot));
                async move {
                    let is_probe = admin::is_probe(request.uri().path());
                    let call = slot.begin(is_probe);
                    if call.is_none() && !is_probe {
                        return admin::overloaded(MOST_CALLS);
                    }
                    admin.handle(client.ip, request).await
                }
            });
            listen::serve(accepted, &settings, watch, answering).await;
        });
    };
    listener.accept(watch, take).await
}

// === impl AdminSlots ===

impl AdminSlots {
    /// Serves a connection in a task of its own. If there is no slot for it, the idlest one is closed.
    fn take<F>(&self, serve: impl FnOnce(Arc<SlotGuard>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let id = self.0.lock().add();
        let slots = self.clone();
        let task = tokio::spawn(serve(Arc::new(SlotGuard { slots, id })));
        // It may be over already.
        if let Some(slot) = self.0.lock().slots.get_mut(&id) {
            slot.task = Some(task.abort_handle());
        }
    }
}

// === impl SlotTable ===

impl SlotTable {
    /// Adds a slot, and gives its number.
    fn add(&mut self) -> u64 {
        if self.slots.len() >= MOST_CONNECTIONS {
            self.close_idlest();
        }
        let last = self.event();
        let slot = AdminSlot {
            task: None,
            under_way: 0,
            last,
        };
        self.slots.insert(last, slot);
        last
    }

    fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// Something happens on a connection, which may have been closed meanwhile.
    fn touch(&mut self, id: u64, change: impl FnOnce(&mut AdminSlot)) {
        let last = self.event();
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.last = last;
            change(slot);
        }
    }

    /// How many calls, or counted probes, are under way, and how many may be.
    fn under_way(&mut self, is_probe: bool) -> (&mut usize, usize) {
        match is_probe {
            true => (&mut self.probes, MOST_PROBES),
            false => (&mut self.calls, MOST_CALLS),
        }
    }

    fn close_idlest(&mut self) {
        let idle = self.slots.iter().filter(|(_, slot)| slot.under_way == 0);
        let idlest = idle.min_by_key(|(_, slot)| slot.last).map(|(id, _)| *id);
        let closed = idlest.and_then(|id| self.slots.remove(&id));
        if let Some(task) = closed.and_then(|slot| slot.task) {
            tracing::debug!("an idle connection to admin.listen makes way for a new one");
            task.abort();
        }
    }
}

// === impl SlotGuard ===

impl SlotGuard {
    /// A request has come. Gives the call or the probe that it begins, if one more may be under way.
    fn begin(self: &Arc<Self>, is_probe: bool) -> Option<AdminCall> {
        let mut table = self.slots.0.lock();
        let (under_way, most) = table.under_way(is_probe);
        let fits = *under_way < most;
        *under_way += usize::from(fits);
        table.touch(self.id, |slot| slot.under_way += usize::from(fits));
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

// === impl Call ===

impl Drop for AdminCall {
    fn drop(&mut self) {
        let mut table = self.slot.slots.0.lock();
        *table.under_way(self.is_probe).0 -= 1;
        table.touch(self.slot.id, |slot| slot.under_way -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_is_being_answered_doesnt_make_way() {
        let slots = AdminSlots::default();
        let id = slots.0.lock().add();
        let slot = Arc::new(SlotGuard {
            slots: slots.clone(),
            id,
        });
        let come = || {
            for _ in 0..MOST_CONNECTIONS {
                slots.0.lock().add();
            }
            slots.0.lock().slots.contains_key(&id)
        };
        let mut probes: Vec<_> = (0..MOST_PROBES).map(|_| slot.begin(true)).collect();
        assert!(probes.iter().all(Option::is_some), "they are counted");
        assert!(slot.begin(true).is_none(), "up to their limit");
        assert!(slot.begin(false).is_some(), "which isn't that of calls");
        assert!(come(), "it stays, whoever comes");
        probes.truncate(1);
        assert!(come(), "until the last one is answered");
        drop(probes);
        assert!(!come(), "then it makes way");
    }
}
