//! A limit on real time for tests whose subject may wait or loop for ever.
//!
//! A test that takes longer ends its process, and the last line of the output names it. No timeout of
//! tokio can do that: under paused time it may never come, and a loop that never awaits isn't interrupted.
//! The unit tests use this file, too.

use std::cell::OnceCell;
use std::io::Write as _;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

/// The longest time for one test: many times what the slowest one takes on two slow cores.
const LIMIT: Duration = Duration::from_secs(600);

thread_local! {
    /// Each test runs on a thread of its own. Dropping the sender, at the thread's end, ends the limit.
    static RESTART: OnceCell<Sender<()>> = const { OnceCell::new() };
}

/// Gives the test on this thread [`LIMIT`], unless it has a limit already. Other threads have none: those
/// of a test's runtime, and the main thread, which runs all tests with `--test-threads=1`.
pub(crate) fn limit_this_test() {
    RESTART.with(|restart| {
        restart.get_or_init(watch_this_thread);
    });
}

/// Gives the test on this thread [`LIMIT`] from now on: for a test whose caller says how long it takes.
#[allow(dead_code, reason = "the unit tests have no such test")]
pub(crate) fn restart_limit() {
    RESTART.with(|restart| {
        // The receiver is gone only when there is no limit.
        let _ = restart.get_or_init(watch_this_thread).send(());
    });
}

fn watch_this_thread() -> Sender<()> {
    let (restart, restarts) = mpsc::channel();
    let thread = thread::current();
    // The thread of a test has the test's path as its name.
    if let Some(test) = thread.name().filter(|name| name.contains("::")) {
        let test = test.to_owned();
        thread::spawn(move || {
            loop {
                match restarts.recv_timeout(LIMIT) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
            // One write, past the capture of the test's output, which ends with the process.
            let why = format!(
                "\n{test}: waits or loops without an end, and was stopped after {LIMIT:?}\n"
            );
            let _ = std::io::stderr().write_all(why.as_bytes());
            std::process::abort();
        });
    }
    restart
}
