//! Panic messages, which may contain an id: slicing a string inside a character, for example, panics with
//! the whole string in its message.

use std::panic;

/// Installs a panic hook. While `is_hidden` returns true, it logs only where a thread has panicked;
/// otherwise panics are printed as before.
pub fn hide_panics(is_hidden: fn() -> bool) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| match is_hidden() {
        false => before(info),
        true => {
            let location = info.location().map(tracing::field::display);
            tracing::error!(
                location,
                "a thread panicked; the message is hidden because it may contain an id"
            );
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;
    use crate::logging::{LogStyle, LoggedEvents, init};

    /// The environment variable that makes the test process panic.
    const PANICS: &str = "SERIATIM_TEST_PANICS";

    #[test]
    fn a_panic_is_logged_without_its_message_while_ids_are_hidden() {
        if std::env::var_os(PANICS).is_some() {
            let events = LoggedEvents {
                level: tracing::Level::ERROR,
                own_only: true,
            };
            let _logging = init(LogStyle::Text, events).unwrap();
            hide_panics(|| true);
            let panicking = thread::spawn(|| panic!("session_123 is not a number"));
            assert!(panicking.join().is_err(), "it has panicked");
            return;
        }
        // In a process of its own, because a hook applies to the threads of other tests too.
        let own =
            "logging::panics::tests::a_panic_is_logged_without_its_message_while_ids_are_hidden";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", own, "--nocapture"])
            .env(PANICS, "1")
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && log.contains("src/logging/panics.rs"),
            "the location is logged: {log}"
        );
        assert!(!log.contains("session_123"), "the message is not: {log}");
    }
}
