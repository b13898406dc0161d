//! The store's commands by name, and how long each of them takes.

use std::time::Duration;

use crate::metrics::{DurationRecorder, Metrics};

/// An operation of the store, as the metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreCommand {
    Acquire,
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
}

/// The recorders of one connection for all commands, looked up once.
pub(super) struct CommandTimes([DurationRecorder; StoreCommand::COUNT]);

// === impl StoreCommand ===

impl StoreCommand {
    const COUNT: usize = Self::ForceRelease as usize + 1;

    /// All commands, each at its own index.
    const ALL: [Self; Self::COUNT] = [
        Self::Acquire,
        Self::Release,
        Self::Withdraw,
        Self::Extend,
        Self::Watch,
        Self::SendMessage,
        Self::Heartbeat,
        Self::Liveness,
        Self::Unregister,
        Self::Scan,
        Self::Inspect,
        Self::ForceRelease,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Release => "release",
            Self::Withdraw => "withdraw",
            Self::Extend => "extend",
            Self::Watch => "watch",
            Self::SendMessage => "send_message",
            Self::Heartbeat => "heartbeat",
            Self::Liveness => "liveness",
            Self::Unregister => "unregister",
            Self::Scan => "scan",
            Self::Inspect => "inspect",
            Self::ForceRelease => "force_release",
        }
    }
}

// === impl CommandTimes ===

impl CommandTimes {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self(StoreCommand::ALL.map(|command| metrics.store_command(command.as_str())))
    }

    /// Records how long one command took.
    pub(super) fn record(&self, command: StoreCommand, time: Duration) {
        self.0[command as usize].note(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_at_its_own_index() {
        for (index, command) in StoreCommand::ALL.into_iter().enumerate() {
            assert_eq!(command as usize, index, "{command:?} is counted as itself");
        }
    }
}
