//! Servers that start slowly, for tests that only need them empty: each test takes some that an earlier test
//! has left, or starts its own.
//!
//! Invariants: only one test uses them at a time, and it gets them empty. A test that fails leaves none. No
//! value of a `static` is ever dropped, so a [`Watchdog`] ends the servers with the process.

use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::redis::Redis;

/// Servers that can be used again.
pub(crate) trait Reusable {
    /// Removes all that the test before has left.
    async fn clear(&self);

    fn servers(&self) -> impl Iterator<Item = &Redis>;
}

/// The servers that no test uses at present.
pub(crate) struct Pool<T>(Mutex<Vec<Lent<T>>>);

/// Servers of a pool that one test uses. They go back when this is dropped.
pub(crate) struct Pooled<T: 'static> {
    /// `None` only while this is dropped.
    lent: Option<Lent<T>>,
    pool: &'static Pool<T>,
}

struct Lent<T> {
    /// The first field, so that it is dropped first and kills no process that has another's id.
    _watchdog: Watchdog,
    servers: T,
}

/// A shell that waits for the end of this process, and then kills the servers and removes their folders.
pub(crate) struct Watchdog(Child);

// === impl Pool ===

impl<T: Reusable> Pool<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Takes empty servers, which `start` starts if none are idle.
    pub(crate) async fn take(&'static self, start: impl AsyncFnOnce() -> T) -> Pooled<T> {
        let idle = self.lock().pop();
        let lent = match idle {
            Some(lent) => lent,
            None => {
                let servers = start().await;
                Lent {
                    _watchdog: Watchdog::new(servers.servers()),
                    servers,
                }
            }
        };
        let pooled = Pooled {
            lent: Some(lent),
            pool: self,
        };
        pooled.clear().await;
        pooled
    }
}

impl<T> Pool<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Lent<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for Pooled<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let lent = self.lent.as_ref();
        &lent.expect("the servers are lent until the drop").servers
    }
}

impl<T> Drop for Pooled<T> {
    fn drop(&mut self) {
        // What a test that fails leaves may be in any state.
        if !thread::panicking() {
            self.pool.lock().extend(self.lent.take());
        }
    }
}

// === impl Watchdog ===

impl Watchdog {
    pub(crate) fn new<'a>(servers: impl Iterator<Item = &'a Redis>) -> Self {
        let servers: Vec<_> = servers.collect();
        let ids: Vec<_> = servers.iter().map(|redis| redis.id().to_string()).collect();
        // The end of this process closes the pipe, however it ends.
        let shell = Command::new("sh")
            .args(["-c", "read -r _; kill -9 $ids; rm -rf -- \"$@\"", "sh"])
            .args(servers.iter().map(|redis| redis.folder()))
            .env("ids", ids.join(" "))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(shell.expect("a shell"))
    }

    /// Closes the pipe, as the end of this process does, and waits for the shell to end.
    pub(crate) fn bite(&mut self) {
        // The wait closes it first.
        let ended = self.0.wait();
        ended.expect("the shell can be reaped");
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // An error means that the shell has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
