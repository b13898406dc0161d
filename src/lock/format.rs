//! The format numbers, by which two versions on one Redis know what they can read of each other.
//!
//! The lock and its fence have no number: every version uses them in the same way, so two versions always exclude
//! each other, and the fence never falls. A value or message of another format is ignored; a lock with such a value
//! is held, and its holder never counts as dead.
//!
//! A change that an older version can work with, such as another kind of message, leaves the number as it is.
//! `tests/kept` has what older versions run, and `tests/it/rolling_update.rs` runs it beside this version.

/// The format of a session's queue: of its keys, and of what the scripts write into them. Versions of different
/// formats have separate queues.
pub(super) const QUEUE_FORMAT: u32 = 1;

/// The format of what an instance tells others: a lock's value, the heartbeat, and the messages. Versions of
/// different formats don't take over each other's locks, and don't get each other's messages.
pub(super) const INSTANCE_FORMAT: u32 = 1;

/// The format of kept answers: of their keys, of their entries, and of what is in an entry. Versions of different
/// formats don't read each other's answers.
pub(super) const ANSWER_FORMAT: u32 = 1;
