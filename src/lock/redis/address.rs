//! Where Redis is, and how to log in.
//!
//! Invariant: neither the label nor an error text contains the password.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::{ProtocolVersion, RedisConnectionInfo};

use super::keys::KeyNames;
use super::reauth::{LoginKeeper, PasswordSource};
use super::server::RedisServer;
use super::tls::{RedisTls, TlsClient};
use super::url::{RedisUrl, RedisUrlError};
use crate::lock::StoreHealth;
use crate::metrics::Metrics;
use crate::secret::{SecretError, SecretFile};

/// The address of a Redis, and the timeout of one command.
#[derive(Clone)]
pub struct RedisAddress {
    pub(super) url: RedisUrl,
    /// The file with the password, in place of one in the URL.
    password_file: Option<PasswordSource>,
    /// How connections to Sentinels log in.
    sentinel_login: SentinelLogin,
    /// How many replicas of Redis must confirm a lock before its turn begins.
    pub(super) wait_replicas: u32,
    /// What connections with TLS trust and present.
    pub(super) tls: TlsClient,
    /// The server and the database, for the log.
    pub(super) label: Arc<str>,
    pub(super) timeout: Duration,
    pub(super) names: KeyNames,
    pub(super) metrics: Metrics,
    pub(super) health: StoreHealth,
    /// The servers that answer at this address.
    pub(super) server: RedisServer,
}

/// How connections to Sentinels log in. The servers that the Sentinels name have another login.
#[derive(Clone, Default)]
struct SentinelLogin {
    /// `None`: the user `default`.
    user: Option<String>,
    /// The file with the password; `None`: no login.
    password_file: Option<PasswordSource>,
}

// === impl RedisAddress ===

impl RedisAddress {
    /// The address at this URL. `timeout` limits one command, including the wait for a connection.
    pub fn new(url: &RedisUrl, timeout: Duration) -> Self {
        let metrics = Metrics::new();
        Self {
            label: url.label().into(),
            url: url.clone(),
            password_file: None,
            sentinel_login: SentinelLogin::default(),
            wait_replicas: 0,
            tls: TlsClient::default(),
            timeout,
            names: KeyNames::default(),
            health: StoreHealth::new(false, &metrics),
            server: RedisServer::default(),
            metrics,
        }
    }

    /// Reads the URL of a Redis. `timeout` limits one command, including the wait for a connection.
    ///
    /// # Errors
    /// When the URL can't be read. The text doesn't contain the password.
    pub fn parse(url: &str, timeout: Duration) -> Result<Self, RedisUrlError> {
        Ok(Self::new(&RedisUrl::parse(url)?, timeout))
    }

    /// Takes the password from `file`, if there is one. The file is read again for each connection, and while
    /// the connection is open, so that a new password needs no restart.
    #[must_use]
    pub fn with_password_file(self, file: Option<SecretFile>) -> Self {
        Self {
            password_file: file.map(PasswordSource::new),
            ..self
        }
    }

    /// Logs in to Sentinels as `user` (`None`: `default`) with the password in `file`, which is read as that of
    /// [`RedisAddress::with_password_file`] is. Without a file, there is no login to Sentinels.
    #[must_use]
    pub fn with_sentinel_login(self, user: Option<String>, file: Option<SecretFile>) -> Self {
        Self {
            sentinel_login: SentinelLogin {
                user,
                password_file: file.map(PasswordSource::new),
            },
            ..self
        }
    }

    /// Sets how many replicas of Redis must confirm a lock before its turn begins.
    #[must_use]
    pub fn with_wait_replicas(self, wait_replicas: u32) -> Self {
        Self {
            wait_replicas,
            ..self
        }
    }

    /// Sets what connections with TLS trust and present. The files are read again for each connection.
    #[must_use]
    pub fn with_tls(self, tls: RedisTls) -> Self {
        Self {
            tls: TlsClient::new(tls),
            ..self
        }
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

    /// How a new connection logs in to a server with locks. Reads the password's file.
    ///
    /// # Errors
    /// When the file has no password. The text doesn't contain what is in it.
    pub(super) async fn login(&self) -> Result<RedisConnectionInfo, Arc<SecretError>> {
        let (url, file) = (&self.url, self.password_file.as_ref());
        let login = login_as(url.user.as_deref(), url.password.as_deref(), file).await?;
        Ok(login.set_db(url.database))
    }

    /// How a new connection logs in to a Sentinel. Reads the file of the Sentinels' password.
    ///
    /// # Errors
    /// When the file has no password. The text doesn't contain what is in it.
    pub(super) async fn sentinel_login(&self) -> Result<RedisConnectionInfo, Arc<SecretError>> {
        let SentinelLogin {
            user,
            password_file,
        } = &self.sentinel_login;
        login_as(user.as_deref(), None, password_file.as_ref()).await
    }

    /// What keeps a connection to a server with locks logged in that has logged in this way; `None`: its password
    /// can't change.
    pub(super) fn login_keeper(
        &self,
        login: &RedisConnectionInfo,
        label: &Arc<str>,
    ) -> Option<LoginKeeper> {
        self.keeper(self.password_file.as_ref(), login, label)
    }

    /// What keeps a connection to a Sentinel logged in that has logged in this way; `None`: its password can't
    /// change.
    pub(super) fn sentinel_login_keeper(
        &self,
        login: &RedisConnectionInfo,
        label: &Arc<str>,
    ) -> Option<LoginKeeper> {
        self.keeper(self.sentinel_login.password_file.as_ref(), login, label)
    }

    fn keeper(
        &self,
        source: Option<&PasswordSource>,
        login: &RedisConnectionInfo,
        label: &Arc<str>,
    ) -> Option<LoginKeeper> {
        let (source, label) = (source?.clone(), Arc::clone(label));
        Some(LoginKeeper::new(source, login, label, self.timeout))
    }
}

/// A login to database 0. The password is that in the file, if there is one.
async fn login_as(
    user: Option<&str>,
    password: Option<&str>,
    file: Option<&PasswordSource>,
) -> Result<RedisConnectionInfo, Arc<SecretError>> {
    // RESP3, because its connections carry messages as well.
    let mut login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_skip_set_lib_name();
    if let Some(user) = user {
        // Without a password the crate would log in as `default`, and Redis accepts any for a user with `nopass`.
        login = login.set_username(user).set_password("");
    }
    if let Some(password) = password {
        login = login.set_password(password);
    }
    if let Some(file) = file {
        let password = file.read().await?;
        login = login.set_password(password);
    }
    Ok(login)
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisAddress").field(&self.label).finish()
    }
}
