//! The store's commands by name, and the recorders of how long each of them takes.

use crate::metrics::{DurationRecorder, Metrics};

/// An operation of the store, as the metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreCommand {
    Acquire,
    Confirm,
    Release,
    Withdraw,
    Extend,
    Watch,
    SendMessage,
    Heartbeat,
    Liveness,
    Unregister,
    Scan,
    Inspect,
    ForceRelease,
    Dequeue,
    CheckAccess,
    WriteAnswer,
    FindAnswer,
    ReadAnswer,
}

// === impl StoreCommand ===

impl StoreCommand {
    /// How many commands there are.
    pub(super) const COUNT: usize = Self::ReadAnswer as usize + 1;

    /// All commands with their names, each at its own index.
    const NAMES: [(Self, &'static str); Self::COUNT] = [
        (Self::Acquire, "acquire"),
        (Self::Confirm, "confirm"),
        (Self::Release, "release"),
        (Self::Withdraw, "withdraw"),
        (Self::Extend, "extend"),
        (Self::Watch, "watch"),
        (Self::SendMessage, "send_message"),
        (Self::Heartbeat, "heartbeat"),
        (Self::Liveness, "liveness"),
        (Self::Unregister, "unregister"),
        (Self::Scan, "scan"),
        (Self::Inspect, "inspect"),
        (Self::ForceRelease, "force_release"),
        (Self::Dequeue, "dequeue"),
        (Self::CheckAccess, "check_access"),
        (Self::WriteAnswer, "write_answer"),
        (Self::FindAnswer, "find_answer"),
        (Self::ReadAnswer, "read_answer"),
    ];

    /// The recorders of all commands, each at the index of its command.
    pub(super) fn recorders(metrics: &Metrics) -> [DurationRecorder; Self::COUNT] {
        Self::NAMES.map(|(_, name)| metrics.store_command(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_at_its_own_index() {
        for (index, (command, _)) in StoreCommand::NAMES.into_iter().enumerate() {
            assert_eq!(command as usize, index, "{command:?} is counted as itself");
        }
    }
}
