//! What is asked of Redis, by name, and how long it takes.

use std::time::Duration;

use crate::metrics::{DurationRecorder, Metrics};

/// What a command is for: an operation of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreCommand {
    Acquire,
    Release,
    Withdraw,
    Extend,
    Watch,
    Tell,
    Beat,
    Sign,
    Stop,
    Scan,
    Look,
    Force,
}

/// How long each took, of one connection; found once, when it is made.
pub(super) struct CommandTimes([DurationRecorder; StoreCommand::COUNT]);

// === impl Command ===

impl StoreCommand {
    const COUNT: usize = Self::Force as usize + 1;

    /// Each at the place that it has as a number.
    const ALL: [Self; Self::COUNT] = [
        Self::Acquire,
        Self::Release,
        Self::Withdraw,
        Self::Extend,
        Self::Watch,
        Self::Tell,
        Self::Beat,
        Self::Sign,
        Self::Stop,
        Self::Scan,
        Self::Look,
        Self::Force,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Release => "release",
            Self::Withdraw => "withdraw",
            Self::Extend => "extend",
            Self::Watch => "watch",
            Self::Tell => "tell",
            Self::Beat => "beat",
            Self::Sign => "sign",
            Self::Stop => "stop",
            Self::Scan => "scan",
            Self::Look => "look",
            Self::Force => "force",
        }
    }
}

// === impl Times ===

impl CommandTimes {
    pub(super) fn of(metrics: &Metrics) -> Self {
        Self(StoreCommand::ALL.map(|command| metrics.store_command(command.as_str())))
    }

    pub(super) fn note(&self, command: StoreCommand, time: Duration) {
        self.0[command as usize].note(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_at_its_own_number() {
        for (index, command) in StoreCommand::ALL.into_iter().enumerate() {
            assert_eq!(command as usize, index, "{command:?} counts under its own");
        }
    }
}
