//! Warns once of a route that locks and whose requests name no session, so that its locks protect nothing.
//!
//! Invariant: one warning for each route of a process, however many requests follow. A route that has once
//! found a session is never warned of, because a first message often has none. A reload that changes a route
//! begins anew with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::config::Route;

/// What all workers know of the sessions of each route. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionWatch(Arc<Mutex<HashMap<Box<str>, WatchedRoute>>>);

#[derive(Debug)]
struct WatchedRoute {
    route: Route,
    sessions: Arc<RouteSessions>,
}

/// How many requests of a route have named no session, until one has, or until the warning: then
/// [`SETTLED`].
#[derive(Debug, Default)]
pub(super) struct RouteSessions(AtomicU32);

/// After how many requests without a session the warning is logged. Fewer may be the first messages of new
/// sessions.
const WARNS_AFTER: u32 = 20;

/// Beyond every count of [`RouteSessions`].
const SETTLED: u32 = u32::MAX;

// === impl SessionWatch ===

impl SessionWatch {
    /// What is known of these routes, in their order. Forgets the routes that differ from before.
    pub(super) fn adopt(&self, routes: &[Route]) -> Box<[Arc<RouteSessions>]> {
        let mut watched = self.0.lock();
        let mut old = std::mem::take(&mut *watched);
        let mut adopted = Vec::with_capacity(routes.len());
        for route in routes {
            let known = old.remove(&route.name);
            let known = known.filter(|known| known.route == *route);
            let known = known.unwrap_or_else(|| WatchedRoute {
                route: route.clone(),
                sessions: Arc::default(),
            });
            adopted.push(Arc::clone(&known.sessions));
            watched.insert(route.name.clone(), known);
        }
        adopted.into()
    }
}

// === impl RouteSessions ===

impl RouteSessions {
    /// Notes a request that names its session.
    pub(super) fn named(&self) {
        // All workers share the value: most requests only read it.
        if self.0.load(Ordering::Relaxed) != SETTLED {
            self.0.store(SETTLED, Ordering::Relaxed);
        }
    }

    /// Notes a request that passes without naming a session, for this reason.
    pub(super) fn unnamed(&self, route: &str, reason: Option<&str>) {
        let next = |count| match count {
            SETTLED => None,
            count if count + 1 == WARNS_AFTER => Some(SETTLED),
            count => Some(count + 1),
        };
        let relaxed = Ordering::Relaxed;
        let before = self.0.fetch_update(relaxed, relaxed, next);
        if before == Ok(WARNS_AFTER - 1) {
            tracing::warn!(
                route,
                reason,
                "no request of this route has named a session, and {WARNS_AFTER} were forwarded without a lock: \
                 correct its session_id (`seriatim explain` shows what it finds in a request), or write lock = false"
            );
        }
    }
}
