//! The operators' listener: who has a place at it, and who makes way.
//!
//! Invariant: whoever comes is served, whatever others do. The connection that has had no call for the
//! longest makes way, and there is one, for fewer calls are answered at once than there are places. A
//! probe is no call: it is answered also when no more calls are.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::Request;
use tokio::task::AbortHandle;

use crate::admin::{self, Admin};
use crate::drain;
use crate::listen::{self, Answering, Client, Listener, Settings};

/// How many connections operators may have: more than all their probes, monitoring systems and browsers
/// need, and a quarter of the files that a process is allowed where nobody says otherwise (1024), so that
/// whoever can reach the listener doesn't take what turns need.
const MOST_CONNECTIONS: usize = 256;

/// How many of their calls are answered at once. The rest of the places is for those who come.
const MOST_CALLS: usize = MOST_CONNECTIONS / 4 * 3;

/// The connections of a listener. Clones are the same ones.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    places: HashMap<u64, Place>,
    /// Calls under way on all of them.
    calls: usize,
    /// Numbers what happens, in order.
    events: u64,
}

struct Place {
    /// `None` until it is spawned.
    task: Option<AbortHandle>,
    /// Calls under way on it.
    calls: usize,
    /// The event that concerned it last.
    last: u64,
}

/// One connection's place. Dropped, it is free.
struct Seat {
    places: Places,
    id: u64,
}

/// A call under way.
struct Call(Arc<Seat>);

/// Answers operators for as long as there is anything to ask about, also while turns are let end.
pub(super) async fn serve(listener: Listener, admin: Arc<Admin>) -> io::Result<()> {
    let (_never, watch) = drain::channel();
    let serving = watch.clone();
    let places = Places::default();
    let take = move |accepted| {
        let (admin, watch) = (Arc::clone(&admin), serving.clone());
        places.take(|seat| async move {
            let answering = Answering(move |client: Client, request: Request<_>| {
                let (admin, seat) = (Arc::clone(&admin), Arc::clone(&seat));
                async move {
                    let is_probe = admin::is_probe(request.uri().path());
                    let call = seat.begin(is_probe);
                    if call.is_none() && !is_probe {
                        return admin::overloaded(MOST_CALLS);
                    }
                    admin.handle(client.ip, request).await
                }
            });
            listen::serve(accepted, &Settings::default(), watch, answering).await;
        });
    };
    listener.accept(watch, take).await
}

// === impl Places ===

impl Places {
    /// Serves a connection in a task of its own. If there is no place for it, the idlest one is closed.
    fn take<F>(&self, serve: impl FnOnce(Arc<Seat>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let id = self.lock().add();
        let places = self.clone();
        let task = tokio::spawn(serve(Arc::new(Seat { places, id })));
        // It may be over already.
        if let Some(place) = self.lock().places.get_mut(&id) {
            place.task = Some(task.abort_handle());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing in here panics while holding it; a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Adds a place, and gives its number.
    fn add(&mut self) -> u64 {
        if self.places.len() >= MOST_CONNECTIONS {
            self.close_idlest();
        }
        let last = self.event();
        let (task, calls) = (None, 0);
        self.places.insert(last, Place { task, calls, last });
        last
    }

    fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// Something happens on a connection, which may have been closed meanwhile.
    fn touch(&mut self, id: u64, change: impl FnOnce(&mut Place)) {
        let last = self.event();
        if let Some(place) = self.places.get_mut(&id) {
            place.last = last;
            change(place);
        }
    }

    fn close_idlest(&mut self) {
        let idle = self.places.iter().filter(|(_, place)| place.calls == 0);
        let idlest = idle.min_by_key(|(_, place)| place.last).map(|(id, _)| *id);
        let closed = idlest.and_then(|id| self.places.remove(&id));
        if let Some(task) = closed.and_then(|place| place.task) {
            tracing::debug!("an idle connection to admin.listen makes way for a new one");
            task.abort();
        }
    }
}

// === impl Seat ===

impl Seat {
    /// A request has come. Gives the call that it begins, if one more may be under way.
    fn begin(self: &Arc<Self>, is_probe: bool) -> Option<Call> {
        let mut taken = self.places.lock();
        let is_call = !is_probe && taken.calls < MOST_CALLS;
        taken.calls += usize::from(is_call);
        taken.touch(self.id, |place| place.calls += usize::from(is_call));
        is_call.then(|| Call(Arc::clone(self)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.places.lock().places.remove(&self.id);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut taken = self.0.places.lock();
        taken.calls -= 1;
        taken.touch(self.0.id, |place| place.calls -= 1);
    }
}
