//! Panics, which tell on standard error what went wrong, in words that may have an id in them: a text
//! that is cut in the middle of a character, for one, is shown as a whole.

use std::panic;

/// From now on, a panic that comes while `hides` says so is told of by its place alone; any other as
/// before.
pub fn hide_panics(hides: fn() -> bool) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| match hides() {
        false => before(info),
        true => {
            let place = info.location().map(tracing::field::display);
            tracing::error!(
                place,
                "a thread has panicked; its words may hold an id, and are hidden"
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

    /// Set in a process that is to panic.
    const PANICS: &str = "SERIATIM_TEST_PANICS";

    #[test]
    fn a_panic_says_where_and_nothing_else_while_ids_are_hidden() {
        if std::env::var_os(PANICS).is_some() {
            let told = LoggedEvents {
                level: tracing::Level::ERROR,
                own_only: true,
            };
            let _telemetry = init(LogStyle::Text, told).unwrap();
            hide_panics(|| true);
            let panicking = thread::spawn(|| panic!("session_123 is no number"));
            assert!(panicking.join().is_err(), "it has panicked");
            return;
        }
        // In a process of its own: a hook is for all threads, those of other tests, too.
        let own =
            "telemetry::panics::tests::a_panic_says_where_and_nothing_else_while_ids_are_hidden";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", own, "--nocapture"])
            .env(PANICS, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && told.contains("src/telemetry/panics.rs"),
            "the place is told: {told}"
        );
        assert!(!told.contains("session_123"), "the words are not: {told}");
    }
}
