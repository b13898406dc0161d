//! Where Redis is.
//!
//! Invariant: neither the label nor an error text contains the password of the URL.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

use super::keys::KeyNames;
use crate::lock::StoreHealth;
use crate::metrics::Metrics;

/// The address of a Redis, and the timeout of one command.
#[derive(Clone)]
pub struct RedisAddress {
    pub(super) info: ConnectionInfo,
    /// Host, port and database, for the log.
    pub(super) label: Arc<str>,
    pub(super) timeout: Duration,
    pub(super) names: KeyNames,
    pub(super) metrics: Metrics,
    pub(super) health: StoreHealth,
}

// === impl RedisAddress ===

impl RedisAddress {
    /// Parses a `redis://` URL. `timeout` limits one command, including the wait for a connection.
    ///
    /// # Errors
    /// When the URL can't be parsed. The text doesn't contain the password.
    pub fn parse(url: &str, timeout: Duration) -> Result<Self, String> {
        let info = url
            .into_connection_info()
            .map_err(|error| match error.detail() {
                Some(detail) => detail.to_owned(),
                None => error.to_string(),
            })?;
        // RESP3, because its connections report when they are lost.
        let redis = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let redis = redis.set_skip_set_lib_name();
        let label = format!("{}/{}", info.addr(), redis.db()).into();
        let info = info.set_redis_settings(redis);
        let metrics = Metrics::new();
        Ok(Self {
            info,
            label,
            timeout,
            names: KeyNames::default(),
            health: StoreHealth::new(false, &metrics),
            metrics,
        })
    }

    /// Puts `prefix`, which contains no braces, before every key and channel but the locks.
    #[must_use]
    pub fn with_prefix(self, prefix: &str) -> Self {
        Self {
            names: KeyNames::new(prefix),
            ..self
        }
    }

    /// Lets `metrics` count the commands to this address, and `health` follow its connections.
    #[must_use]
    pub fn observed_by(self, metrics: &Metrics, health: &StoreHealth) -> Self {
        Self {
            metrics: metrics.clone(),
            health: health.clone(),
            ..self
        }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisAddress").field(&self.label).finish()
    }
}
