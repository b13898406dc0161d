//! To which server a connection goes: always to the same one, or to the master that the Sentinels name.

use std::future::pending;

use super::node::{NodeRole, RedisNode};
use super::sentinel::MasterWatch;
use crate::lock::StoreError;

/// To which server a connection goes.
#[derive(Clone)]
pub(super) enum LinkTarget {
    /// Always to this one.
    Fixed(RedisNode, NodeRole),
    /// To the master that the Sentinels name, and to the next one when they name another.
    Master(MasterWatch),
}

// === impl LinkTarget ===

impl LinkTarget {
    /// The server to connect to now. Cancel-safe.
    pub(super) async fn server(&self) -> Result<(RedisNode, NodeRole), StoreError> {
        match self {
            Self::Fixed(node, role) => Ok((node.clone(), *role)),
            Self::Master(watch) => Ok((watch.master().await?, NodeRole::Master)),
        }
    }

    /// Waits until another server than this one is the target. Cancel-safe.
    pub(super) async fn is_no_longer(&self, node: Option<&RedisNode>) {
        match (self, node) {
            (Self::Master(watch), Some(node)) => watch.is_no_longer(node).await,
            _ => pending().await,
        }
    }
}
