//! Logging in again on an open connection when the password's file changes: before the old password, or a token
//! of a cloud, ends.
//!
//! The file is read every second while a connection is open. AUTH goes over the connection like any other command,
//! so replies keep their order and no turn notices it. Invariants: a connection whose AUTH is refused stays in use,
//! for Redis keeps it logged in as it was; no text contains a password.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, RedisConnectionInfo, cmd};
use tokio::time::{Instant, sleep};

use super::error::server_error;
use super::pipelined::PipelinedConnection;
use crate::secret::{PasswordReader, Secret, SecretError, SecretFile};

/// The file with the password. Clones share what was logged about it.
#[derive(Clone)]
pub(super) struct PasswordSource {
    reader: PasswordReader,
    warned: Arc<Mutex<PasswordWarnings>>,
}

/// What was logged about the file, so that many connections log it once.
#[derive(Default)]
struct PasswordWarnings {
    /// The password that Redis refused.
    refused: Option<Secret>,
    /// Whether the file can't be read.
    is_unreadable: bool,
}

/// Keeps one connection logged in with the password that is in the file.
pub(super) struct LoginKeeper {
    source: PasswordSource,
    user: Option<String>,
    /// Host, port and database, for the log.
    store: Arc<str>,
    /// The password that this connection tried last: accepted or refused.
    tried: Secret,
    /// The timeout of AUTH.
    limit: Duration,
}

/// How often the file is read: old and new password have to be valid together for a few seconds only, and reading
/// a small file costs nothing measurable.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// The longest pause after an attempt that failed for another reason than the password. Services that ask a cloud
/// whether a token is valid want pauses that grow.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The pause before a changed file is read again. The password counts as changed if it is the same then: while the
/// file is written it is empty or cut for a moment.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

// === impl PasswordSource ===

impl PasswordSource {
    pub(super) fn new(file: SecretFile) -> Self {
        Self {
            reader: PasswordReader::new(file),
            warned: Arc::default(),
        }
    }

    /// Reads the password as it is now.
    ///
    /// # Errors
    /// When the file has no password. The text doesn't contain what is in it.
    pub(super) async fn read(&self) -> Result<String, Arc<SecretError>> {
        self.reader.read().await
    }

    /// Which password is in the file. If it is not `known`, waits until the file no longer changes.
    async fn look(&self, known: &Secret) -> Result<Secret, Arc<SecretError>> {
        // All connections of the process share one read.
        let mut first = self.reader.look(READ_INTERVAL / 2).await;
        loop {
            if matches!(&first, Ok(secret) if secret == known) {
                return first;
            }
            sleep(SETTLE_PAUSE).await;
            let second = self.reader.look(Duration::ZERO).await;
            if first.as_ref().ok() == second.as_ref().ok() {
                return second;
            }
            first = second;
        }
    }

    /// Whether this is the first connection whose AUTH with this password was refused.
    fn is_first_refusal(&self, secret: &Secret) -> bool {
        let refused = &mut self.warned.lock().refused;
        refused.replace(secret.clone()).as_ref() != Some(secret)
    }

    /// Notes whether the file can be read; gives whether it could before.
    fn was_readable(&self, is_readable: bool) -> bool {
        let is_unreadable = &mut self.warned.lock().is_unreadable;
        !std::mem::replace(is_unreadable, !is_readable)
    }
}

// === impl LoginKeeper ===

impl LoginKeeper {
    /// For a connection that has logged in this way.
    pub(super) fn new(
        source: PasswordSource,
        login: &RedisConnectionInfo,
        store: Arc<str>,
        limit: Duration,
    ) -> Self {
        Self {
            source,
            user: login.username().map(str::to_owned),
            store,
            tried: Secret::new(login.password().unwrap_or_default().as_bytes()),
            limit,
        }
    }

    /// Logs in again whenever the password in the file changes. Resolves with the reason when the connection has to
    /// be given up. Cancel-safe if the connection is given up then: an AUTH may have been sent.
    pub(super) async fn keep(mut self, connection: PipelinedConnection) -> Arc<str> {
        let store = Arc::clone(&self.store);
        let mut pause = READ_INTERVAL;
        loop {
            sleep(pause).await;
            let seen = self.source.look(&self.tried).await;
            let was_readable = self.source.was_readable(seen.is_ok());
            match seen {
                Ok(secret) if secret == self.tried => continue,
                Ok(_) => {}
                Err(error) => {
                    if was_readable {
                        tracing::warn!(%store, %error, "can't read the password of the store; open connections stay logged in");
                    }
                    continue;
                }
            }
            // It may have become unreadable since; then the next look tells.
            let Ok(password) = self.source.read().await else {
                continue;
            };
            let new = Secret::new(password.as_bytes());
            let auth = self.auth(&password);
            let give_up = Instant::now() + self.limit;
            let error = match connection.send(&auth, give_up).await {
                Ok(_) => {
                    (self.tried, pause) = (new, READ_INTERVAL);
                    self.source.warned.lock().refused = None;
                    tracing::debug!(%store, "logged in to the store with the new password");
                    continue;
                }
                Err(error) if error.is_timeout() => return "AUTH got no reply".into(),
                Err(error) => error,
            };
            let Some(error) = server_error(&error) else {
                return "the connection broke".into();
            };
            if self.source.is_first_refusal(&new) {
                tracing::warn!(
                    %store, %error,
                    "the store refuses the new password in the file; open connections stay logged in, new ones can't log in"
                );
            }
            if error.starts_with("WRONGPASS") {
                (self.tried, pause) = (new, READ_INTERVAL);
            } else {
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    fn auth(&self, password: &str) -> Cmd {
        let mut auth = cmd("AUTH");
        auth.arg(self.user.as_deref()).arg(password);
        auth
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_password_that_is_being_written_counts_when_it_is_whole() {
        crate::time_limit::limit_this_test();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let known = Secret::new(b"old");
        for (cut, whole) in [("", "new"), ("se", "second")] {
            fs::write(file.path(), cut).expect("written");
            let write = async {
                // The clock goes on when the first read has ended.
                sleep(SETTLE_PAUSE / 2).await;
                fs::write(file.path(), whole).expect("written");
            };
            // In a source of its own: a read of the last round may count as recent.
            let source = PasswordSource::new(SecretFile::new(file.path()));
            let (seen, ()) = tokio::join!(source.look(&known), write);
            let seen = seen.expect("a password");
            assert!(seen.matches(whole.as_bytes()), "{cut:?} does not count");
        }
        fs::remove_file(file.path()).expect("removed");
        let source = PasswordSource::new(SecretFile::new(file.path()));
        let missing = source.look(&known).await;
        missing.expect_err("a file that stays away is an error");
    }
}
