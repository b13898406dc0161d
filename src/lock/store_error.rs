//! Why a store did not do what a caller asked for.
//!
//! Invariant: an error says whether the command may have been executed all the same. One that doesn't know says that
//! it may.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

/// Why a store did not do what a caller asked for. [`StoreError::was_not_executed`] says whether the
/// command may have been executed all the same.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// The command was not sent because there was no connection, or arrived too late to be executed.
    #[error("the store at {store} can't be reached: {reason}")]
    NotSent {
        /// The store's address, without the password.
        store: Arc<str>,
        /// Why there is no connection.
        reason: Arc<str>,
    },
    /// The command was not sent because the file with the password can't be used.
    #[error("can't log in to the store at {store}: {option}: {reason}")]
    NoPassword {
        /// The store's address, without the password.
        store: Arc<str>,
        /// The option that names the file: `store.password_file`.
        option: &'static str,
        /// What is wrong with the file. Has its path.
        reason: Arc<str>,
    },
    /// The connection broke after the command was sent.
    #[error("the store at {store} can't be reached: {reason}")]
    Unreachable {
        /// The store's address, without the password.
        store: Arc<str>,
        /// The error of the connection.
        reason: Arc<str>,
    },
    /// The store did not reply in time.
    #[error("the store at {store} did not reply within {timeout:?}")]
    TimedOut {
        /// The store's address, without the password.
        store: Arc<str>,
        /// The timeout of one command, `store.timeout`.
        timeout: Duration,
    },
    /// The store replied with an error. The claim holds nothing in the store.
    #[error("the store at {store} answered: {reason}")]
    Refused {
        /// The store's address, without the password.
        store: Arc<str>,
        /// The store's error in one line. The first word is the kind of error.
        reason: Arc<str>,
    },
    /// The store sent a reply that no command has.
    #[error("the store at {store} sent a reply that can't be parsed")]
    Unreadable {
        /// The store's address, without the password.
        store: Arc<str>,
    },
    /// The store granted the lock, but too few of its replicas confirmed it.
    #[error("the store at {store} granted the lock, but its replicas did not confirm it: {reason}")]
    Unconfirmed {
        /// The store's address, without the password.
        store: Arc<str>,
        /// How many replicas are missing, or why they can't be asked.
        reason: Arc<str>,
    },
    /// The store was not asked, because it has no heartbeat of this instance.
    #[error("this instance has no heartbeat in the store: {reason}")]
    NoHeartbeat {
        /// Why there is no heartbeat.
        reason: Arc<str>,
    },
    /// The store was not asked, because another process has taken this one's name.
    #[error(
        "another process uses the same store.instance, and no two running processes may: give each \
         process its own store.instance, and each environment on this Redis its own store.prefix"
    )]
    NameTaken,
}

// === impl StoreError ===

impl StoreError {
    /// Whether the command is known not to have been executed. Otherwise it may have been executed, or
    /// may still be.
    pub fn was_not_executed(&self) -> bool {
        match self {
            Self::NotSent { .. }
            | Self::NoPassword { .. }
            | Self::Refused { .. }
            | Self::NoHeartbeat { .. }
            | Self::NameTaken => true,
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Unreadable { .. }
            | Self::Unconfirmed { .. } => false,
        }
    }

    /// Whether the store answered, so that an operator has to change something.
    pub(super) fn was_answered(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. } | Self::Unreadable { .. } | Self::Unconfirmed { .. }
        )
    }

    /// Whether a turn may do without the store, if it is configured so. With the name of another process it may
    /// not: the store works, and other turns rely on its locks.
    pub(super) fn allows_fallback(&self) -> bool {
        !matches!(self, Self::NameTaken)
    }
}
