//! How long the last turns of each route held their locks, and the time after which a refused turn has a good
//! chance.
//!
//! Invariant: a route takes a fixed amount of memory, however many turns it has. A reload keeps what is known of a
//! route, by its name.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::Route;

/// What all workers know of the hold times of each route. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct HoldTimes(Arc<Mutex<HashMap<Box<str>, Arc<RouteHolds>>>>);

/// How long the last turns of a route held their locks.
#[derive(Debug)]
pub(in crate::proxy) struct RouteHolds {
    /// In milliseconds, at least 1; 0: there was no such turn yet.
    last: [AtomicU32; REMEMBERED],
    /// How many turns were noted.
    noted: AtomicUsize,
}

/// How many turns of a route count: enough for a median, and few enough that it soon follows a backend that has
/// become slower.
const REMEMBERED: usize = 64;

/// The shortest time after which a client is told to try again, so that a session that is nearly free isn't asked for
/// again and again.
const SHORTEST: Duration = Duration::from_secs(1);

/// The longest time after which a client is told to try again. The package `ai` takes a minute or more for a mistake,
/// and tries again after two seconds.
const LONGEST: Duration = Duration::from_secs(59);

// === impl HoldTimes ===

impl HoldTimes {
    /// What is known of these routes, in their order. Forgets all others.
    pub(super) fn adopt(&self, routes: &[Route]) -> Box<[Arc<RouteHolds>]> {
        let mut known = self.0.lock();
        let mut old = std::mem::take(&mut *known);
        let adopted = routes.iter().map(|route| {
            let holds = old.remove(&route.name).unwrap_or_default();
            known.insert(route.name.clone(), Arc::clone(&holds));
            holds
        });
        adopted.collect()
    }
}

// === impl RouteHolds ===

impl RouteHolds {
    /// Notes for how long a turn held its lock.
    pub(super) fn note(&self, hold: Duration) {
        let place = self.noted.fetch_add(1, Ordering::Relaxed) % REMEMBERED;
        let hold = u32::try_from(hold.as_millis()).unwrap_or(u32::MAX).max(1);
        self.last[place].store(hold, Ordering::Relaxed);
    }

    /// After which time a session is likely to be free: the rest of the turn that has held its lock for `age`, and
    /// the turns of all `waiters`. Between [`SHORTEST`] and [`LONGEST`]. A turn of unknown age (`None`) counts as one
    /// that begins.
    ///
    /// The rest is the median of those turns that took longer than `age`. A turn that has taken longer than all of
    /// them is expected to take as long again.
    pub(in crate::proxy) fn time_until_free(
        &self,
        age: Option<Duration>,
        waiters: usize,
    ) -> Duration {
        let holds = self.last.iter().map(|hold| hold.load(Ordering::Relaxed));
        let mut holds: Vec<_> = holds
            .filter(|hold| *hold > 0)
            .map(|hold| Duration::from_millis(hold.into()))
            .collect();
        holds.sort_unstable();
        let age = age.unwrap_or_default();
        let longer = &holds[holds.partition_point(|hold| *hold <= age)..];
        let rest = median(longer).map_or(age, |hold| hold - age);
        let turn = median(&holds).unwrap_or(rest);
        let waiting = turn.saturating_mul(u32::try_from(waiters).unwrap_or(u32::MAX));
        rest.saturating_add(waiting).clamp(SHORTEST, LONGEST)
    }
}

impl Default for RouteHolds {
    fn default() -> Self {
        Self {
            last: [const { AtomicU32::new(0) }; REMEMBERED],
            noted: AtomicUsize::new(0),
        }
    }
}

/// The middle one of sorted durations, or the larger one of two; `None`: there are none.
fn median(sorted: &[Duration]) -> Option<Duration> {
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A route whose turns held their locks for these numbers of seconds.
    fn after(holds: impl IntoIterator<Item = u64>) -> RouteHolds {
        let route = RouteHolds::default();
        for hold in holds {
            route.note(Duration::from_secs(hold));
        }
        route
    }

    /// In seconds; `age`, too.
    fn until_free(route: &RouteHolds, age: u64, waiters: usize) -> u64 {
        let age = Some(Duration::from_secs(age));
        route.time_until_free(age, waiters).as_secs()
    }

    #[test]
    fn the_time_is_the_rest_of_the_running_turn_and_the_turns_of_all_waiters() {
        let route = after([2, 8, 10, 12, 30]);
        for (age, waiters, expected, what) in [
            (0, 0, 10, "the median of all turns"),
            (4, 0, 8, "the median of the longer turns, 12, less the age"),
            (9, 0, 3, "a turn that is older has less to go"),
            (20, 0, 10, "and more if only long turns get as old"),
            (
                30,
                0,
                30,
                "a turn older than all of them may take as long again",
            ),
            (9, 2, 23, "each waiter takes a median turn"),
        ] {
            assert_eq!(until_free(&route, age, waiters), expected, "{what}");
        }
        assert_eq!(
            route.time_until_free(None, 1),
            Duration::from_secs(20),
            "a turn of unknown age counts as one that begins"
        );
    }

    #[test]
    fn the_time_has_bounds() {
        let route = after([1]);
        assert_eq!(until_free(&route, 0, 0), 1, "a second at least");
        assert_eq!(until_free(&RouteHolds::default(), 0, 0), 1, "nothing known");
        for (age, waiters) in [(0, 100), (600, 0), (0, usize::MAX), (u64::MAX, usize::MAX)] {
            let time = until_free(&route, age, waiters);
            assert_eq!(time, 59, "less than a minute: {age} s, {waiters} waiters");
        }
        let long = after([u64::MAX]);
        assert_eq!(until_free(&long, 0, usize::MAX), 59, "a very long turn");
    }

    #[test]
    fn only_the_last_turns_count() {
        let route = after((0..REMEMBERED).map(|_| 40));
        for _ in 0..REMEMBERED {
            assert!(until_free(&route, 0, 0) == 40 || until_free(&route, 0, 0) == 5);
            route.note(Duration::from_secs(5));
        }
        assert_eq!(until_free(&route, 0, 0), 5, "the old ones are forgotten");
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_a_route_that_stays() {
        let routes = |names: &[&str]| {
            let routes = names.iter().map(|name| {
                format!("[[routes]]\nname = {name:?}\npath = \"/{name}\"\nlock = false\n")
            });
            let text = format!(
                "upstream = \"http://127.0.0.1:1\"\n{}",
                routes.collect::<String>()
            );
            let config = crate::config::Config::read("test", &text, &Vec::new());
            config.expect("it is valid").routes
        };
        let times = HoldTimes::default();
        times.adopt(&routes(&["a", "b"]))[1].note(Duration::from_secs(7));
        let again = times.adopt(&routes(&["b", "c"]));
        assert_eq!(until_free(&again[0], 0, 0), 7, "the route has moved");
        assert_eq!(until_free(&again[1], 0, 0), 1, "the route is new");
        times.adopt(&routes(&["c"]));
        let back = times.adopt(&routes(&["b"]));
        assert_eq!(until_free(&back[0], 0, 0), 1, "it was gone in between");
    }
}
