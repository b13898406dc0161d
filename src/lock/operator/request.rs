//! What an operator asks for: which lock, and under which condition.

/// The lock that an operator means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockTarget {
    /// The lock of a session, under any of the routes' `lock.key`.
    Session {
        /// The user's id, as the client sends it.
        user: String,
        /// The session's id, as the client sends it.
        session: String,
    },
    /// The lock with this key.
    Key(String),
}

/// An operator's request to change a lock.
#[derive(Clone, Debug)]
pub struct OperatorRequest<'o> {
    /// The lock to change.
    pub target: &'o LockTarget,
    /// The id of the request that has to hold the lock, or that waits for it; `None`: any holder.
    pub request: Option<&'o str>,
    /// Who asks, for the audit log: an address, or user and host of a command.
    pub by: &'o str,
}
