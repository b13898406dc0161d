//! Files with secrets, such as mounted Kubernetes Secrets: tokens, passwords, private keys.
//!
//! A file is read again at each use, so that a new secret takes effect without a restart.
//! Invariants: neither an error nor `Debug` shows what a file contains; and however many callers need a
//! secret at once, one thread reads its file.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

/// The path of a file that contains a token or a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile(PathBuf);

/// Reads a token's file for many concurrent callers, once for all of them.
#[derive(Debug)]
pub struct SecretReader {
    file: SecretFile,
    /// The last read; `None`: the file was never read. The thread that reads the file holds the lock.
    last: Arc<Mutex<Option<FinishedRead>>>,
}

/// Reads a password's file, at most once at a time. Clones take turns.
#[derive(Clone, Debug)]
pub struct PasswordReader {
    file: SecretFile,
    /// The last read; `None`: the file was never read. The thread that reads the file holds the lock.
    last: Arc<Mutex<Option<FinishedRead>>>,
}

/// A read of the file that has ended.
#[derive(Debug)]
struct FinishedRead {
    /// When the read began.
    begun: Instant,
    result: Result<Secret, Arc<SecretError>>,
}

/// The SHA-256 of a token or a password. The text itself is not kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// Why a secret can't be used. The text doesn't contain what is in the file.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file can't be read.
    #[error("{0} can't be read: {1}")]
    Unreadable(PathBuf, io::Error),
    /// The file is empty.
    #[error("{0} is empty: write the secret into it")]
    Empty(PathBuf),
    /// The file is not UTF-8.
    #[error("{0} is not UTF-8: write the password in UTF-8")]
    NotText(PathBuf),
    /// A header can't carry what is in the file, or the file is too long.
    #[error(
        "{0} has text that a header can't carry: write one line of at most {LONGEST} printable ASCII characters, without spaces"
    )]
    Unusable(PathBuf),
}

/// The longest token, in bytes. A file that is larger is not the one that was meant.
const LONGEST: usize = 4096;

/// The time limit for reading a file: a file system that hangs must not block callers for ever.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Reads a file that an option of the configuration names, such as a certificate or a password.
///
/// # Errors
/// When the file can't be read.
pub fn read_file(path: &Path) -> Result<Vec<u8>, SecretError> {
    fs::read(path).map_err(|error| SecretError::Unreadable(path.into(), error))
}

// === impl SecretFile ===

impl SecretFile {
    /// Names the file at `path`, without reading it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Reads the token. White space around it, such as the line break that an editor adds, is not part of
    /// the token. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// When the file can't be read, is empty, or has text that a header can't carry.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let mut text = Vec::new();
        // Enough to notice that the token is too long, with some white space around it.
        let max = LONGEST as u64 + 64;
        File::open(&self.0)
            .and_then(|file| file.take(max).read_to_end(&mut text))
            .map_err(|error| SecretError::Unreadable(self.0.clone(), error))?;
        let secret = text.trim_ascii();
        if secret.is_empty() {
            return Err(SecretError::Empty(self.0.clone()));
        }
        if secret.len() > LONGEST || !secret.iter().all(u8::is_ascii_graphic) {
            return Err(SecretError::Unusable(self.0.clone()));
        }
        Ok(Secret::new(secret))
    }

    /// Reads a password, which may have spaces. Line breaks at its end, such as an editor adds, are not part
    /// of the password. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// When the file can't be read, is empty, or is not UTF-8.
    pub fn read_password(&self) -> Result<String, SecretError> {
        let text = String::from_utf8(read_file(&self.0)?);
        let mut text = text.map_err(|_| SecretError::NotText(self.0.clone()))?;
        text.truncate(text.trim_end_matches(['\r', '\n']).len());
        match text.is_empty() {
            true => Err(SecretError::Empty(self.0.clone())),
            false => Ok(text),
        }
    }
}

impl fmt::Display for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

// === impl SecretReader ===

impl SecretReader {
    /// A reader of this file.
    pub fn new(file: SecretFile) -> Self {
        Self {
            file,
            last: Arc::default(),
        }
    }

    /// Reads the token as it is now: from a read of the file that begins after this call. Concurrent callers
    /// share one read. Cancel-safe.
    ///
    /// # Errors
    /// Those of [`SecretFile::read`], and a timeout after five seconds.
    pub async fn read(&self) -> Result<Secret, Arc<SecretError>> {
        let read = timeout(READ_LIMIT, self.read_since(Instant::now())).await;
        let failed = |error| SecretError::Unreadable(self.file.0.clone(), error);
        match read {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Arc::new(failed(error))),
            Err(_) => Err(Arc::new(failed(io::ErrorKind::TimedOut.into()))),
        }
    }

    async fn read_since(&self, asked: Instant) -> io::Result<Result<Secret, Arc<SecretError>>> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(reading) = last.as_ref().filter(|reading| reading.begun > asked) {
            return Ok(reading.result.clone());
        }
        let file = self.file.clone();
        // The read goes on if this future is dropped, and keeps the lock until it ends.
        let reading = spawn_blocking(move || {
            let begun = Instant::now();
            let result = file.read().map_err(Arc::new);
            *last = Some(FinishedRead {
                begun,
                result: result.clone(),
            });
            result
        });
        Ok(reading.await?)
    }
}

// === impl PasswordReader ===

impl PasswordReader {
    /// A reader of this file.
    pub fn new(file: SecretFile) -> Self {
        Self {
            file,
            last: Arc::default(),
        }
    }

    /// Reads the password as it is now: from a read of the file that begins after this call. Takes as long as
    /// the file system does. Cancel-safe: a read that has begun goes on, and the next caller waits for its end.
    ///
    /// # Errors
    /// Those of [`SecretFile::read_password`].
    pub async fn read(&self) -> Result<String, Arc<SecretError>> {
        let last = Arc::clone(&self.last).lock_owned().await;
        let reading = spawn_blocking(self.reading(last));
        reading.await.unwrap_or_else(|error| self.failed(error))
    }

    /// Which password is in the file, from a read that began less than `max_age` ago. Takes as long as the file
    /// system does. Cancel-safe, as [`PasswordReader::read`] is.
    ///
    /// # Errors
    /// Those of [`SecretFile::read_password`].
    pub async fn look(&self, max_age: Duration) -> Result<Secret, Arc<SecretError>> {
        let last = Arc::clone(&self.last).lock_owned().await;
        let is_recent = |reading: &&FinishedRead| reading.begun.elapsed() < max_age;
        if let Some(reading) = last.as_ref().filter(is_recent) {
            return reading.result.clone();
        }
        let reading = spawn_blocking(self.reading(last));
        let text = reading.await.unwrap_or_else(|error| self.failed(error))?;
        Ok(Secret::new(text.as_bytes()))
    }

    fn failed<T>(&self, error: JoinError) -> Result<T, Arc<SecretError>> {
        let error = SecretError::Unreadable(self.file.0.clone(), error.into());
        Err(Arc::new(error))
    }

    /// The read of the file for a thread that may block. The thread notes the result in `last`, and unlocks it at
    /// its end.
    fn reading(
        &self,
        mut last: OwnedMutexGuard<Option<FinishedRead>>,
    ) -> impl FnOnce() -> Result<String, Arc<SecretError>> + Send + 'static {
        let file = self.file.clone();
        move || {
            let begun = Instant::now();
            let text = file.read_password().map_err(Arc::new);
            let result = match &text {
                Ok(text) => Ok(Secret::new(text.as_bytes())),
                Err(error) => Err(Arc::clone(error)),
            };
            *last = Some(FinishedRead { begun, result });
            text
        }
    }
}

// === impl Secret ===

impl Secret {
    /// What identifies this text.
    pub fn new(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Whether `text` is this token. The time that this takes reveals nothing about the token: it compares
    /// digests, and a caller can't choose how many bytes of a digest are equal.
    pub fn matches(&self, text: &[u8]) -> bool {
        *self == Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn the_token_is_the_files_text_without_the_white_space_around_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let secret = SecretFile::new(file.path());
        std::fs::write(file.path(), " geheim-1\r\n").expect("written");
        let read = secret.read().expect("a secret");
        assert!(
            read.matches(b"geheim-1"),
            "an editor's line break is not part of it"
        );
        for wrong in [&b""[..], b"geheim", b"geheim-11", b"GEHEIM-1", b" geheim-1"] {
            assert!(!read.matches(wrong), "nothing else matches: {wrong:?}");
        }
        assert!(
            !format!("{read:?}{secret:?}").contains("geheim"),
            "neither shows the token"
        );
        std::fs::write(file.path(), "geheim-2").expect("written again");
        let read = secret.read().expect("a secret");
        assert!(
            read.matches(b"geheim-2"),
            "a new token takes effect at once"
        );
    }

    #[test]
    fn a_password_is_the_files_text_without_the_line_breaks_at_its_end() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let secret = SecretFile::new(file.path());
        for (text, password) in [
            ("00123", "00123"),
            ("00123\n", "00123"),
            ("00123\r\n\n", "00123"),
            (" p@ss:w/rd% \n", " p@ss:w/rd% "),
            ("geheim\nzwei\n", "geheim\nzwei"),
        ] {
            std::fs::write(file.path(), text).expect("written");
            assert_eq!(secret.read_password().expect("a password"), password);
        }
        for (text, why) in [
            (&b""[..], "is empty"),
            (b"\r\n", "is empty"),
            (b"geheim\xff", "is not UTF-8"),
        ] {
            std::fs::write(file.path(), text).expect("written");
            let error = secret.read_password().expect_err("none").to_string();
            assert!(error.contains(why) && !error.contains("geh"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_look_at_the_password_is_shared_for_as_long_as_it_is_recent() {
        crate::time_limit::limit_this_test();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let reader = PasswordReader::new(SecretFile::new(file.path()));
        let shared = reader.clone();
        let is = |seen: Result<Secret, _>, text: &str| {
            seen.is_ok_and(|it: Secret| it.matches(text.as_bytes()))
        };
        let hour = Duration::from_secs(3600);
        std::fs::write(file.path(), "geheim-1\n").expect("written");
        assert!(
            is(reader.look(hour).await, "geheim-1"),
            "the first look reads"
        );
        std::fs::write(file.path(), "geheim-2").expect("written");
        assert!(
            is(shared.look(hour).await, "geheim-1"),
            "a recent look is shared"
        );
        let now = shared.look(Duration::ZERO).await;
        assert!(is(now, "geheim-2"), "one that is too old is not");
        std::fs::write(file.path(), "geheim-3").expect("written");
        assert_eq!(reader.read().await.ok().as_deref(), Some("geheim-3"));
        assert!(
            is(shared.look(hour).await, "geheim-3"),
            "the last read counts"
        );
    }

    #[tokio::test]
    async fn concurrent_readers_get_the_token_that_is_in_the_file_when_they_ask() {
        crate::time_limit::limit_this_test();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let reader = Arc::new(SecretReader::new(SecretFile::new(file.path())));
        for text in ["geheim-1", "geheim-2"] {
            std::fs::write(file.path(), text).expect("written");
            let all = (0..100).map(|_| {
                let reader = Arc::clone(&reader);
                tokio::spawn(async move { reader.read().await })
            });
            for read in all.collect::<Vec<_>>() {
                let read = read.await.expect("it doesn't panic").expect("a secret");
                assert!(
                    read.matches(text.as_bytes()),
                    "a new token takes effect at once"
                );
            }
        }
        std::fs::write(file.path(), "").expect("written");
        let error = reader.read().await.expect_err("no secret").to_string();
        assert!(error.contains("is empty"), "and so is none: {error}");
    }

    #[test]
    fn a_file_system_that_hangs_gets_one_thread_however_often_the_password_is_needed() {
        crate::time_limit::limit_this_test();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(2)
            .build()
            .expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let (path, next) = (folder.path().join("password"), folder.path().join("next"));
        // Opening it for reading blocks until somebody opens it for writing.
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo is everywhere").success());
        std::fs::write(&next, "geheim").expect("written");
        let reader = PasswordReader::new(SecretFile::new(&path));
        let read = runtime.block_on(async {
            for _ in 0..5 {
                // A clone, because each worker has one. The caller gives up.
                let _ = reader.clone().read().now_or_never();
            }
            let other = timeout(Duration::from_secs(10), spawn_blocking(|| ())).await;
            other.ok()?.ok()?;
            // The file system works again.
            let hanging = File::options().write(true).open(&path).ok()?;
            fs::rename(&next, &path).ok()?;
            drop(hanging);
            reader.read().await.ok()
        });
        // It would wait for the threads that hang.
        runtime.shutdown_background();
        assert_eq!(
            read.as_deref(),
            Some("geheim"),
            "a thread is left for others, and the next caller gets the password"
        );
    }

    #[test]
    fn an_error_names_a_file_without_a_usable_token_and_does_not_show_its_text() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let secret = SecretFile::new(file.path());
        let long = "x".repeat(LONGEST + 1);
        let beyond = "x".repeat(1 << 20);
        for (text, why) in [
            ("", "is empty"),
            (" \n\t\n", "is empty"),
            ("geheim 1", "header can't carry"),
            ("geheim\nzwei", "header can't carry"),
            ("gehéim", "header can't carry"),
            (&long, "header can't carry"),
            (&beyond, "header can't carry"),
        ] {
            std::fs::write(file.path(), text).expect("written");
            let error = secret.read().expect_err("no secret").to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("geh"), "the text is not shown: {error}");
        }
        let nowhere = SecretFile::new("/nowhere/token").read();
        let error = nowhere.expect_err("no file").to_string();
        assert!(error.starts_with("/nowhere/token can't be read"), "{error}");
    }
}
