//! A secret that stands in a file of its own, as a mounted Kubernetes Secret does.
//!
//! It is read whenever it is needed, so that a new one is in force without a restart. Invariants: what
//! is in the file is shown by nothing here, neither by an error nor by a debugger; and however many need
//! it at once, one thread reads it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Where a secret stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile(PathBuf);

/// A secret's file that many need at once.
#[derive(Debug)]
pub struct SecretReader {
    file: SecretFile,
    /// Held while the file is read, by what reads it.
    last: Arc<Mutex<Option<PendingRead>>>,
}

#[derive(Debug)]
struct PendingRead {
    begun: Instant,
    result: Result<Secret, Arc<SecretError>>,
}

/// What stood there: its digest alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// Why there is no secret to be had. The text doesn't hold what is in the file.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file can't be read.
    #[error("{0} can't be read: {1}")]
    Unreadable(PathBuf, io::Error),
    /// There is nothing in it.
    #[error("{0} is empty: write the secret into it")]
    Empty(PathBuf),
    /// What is in it could never be sent.
    #[error(
        "{0} holds what can't be sent in a header: write one line of letters, digits and signs, without spaces, of at most {LONGEST} bytes"
    )]
    Unusable(PathBuf),
}

/// What a header may well have; a file that is larger is another one than was meant.
const LONGEST: usize = 4096;

/// How long the file may take to be read. A file system that hangs must not hold up whoever asks for ever.
const READ_LIMIT: Duration = Duration::from_secs(5);

// === impl SecretFile ===

impl SecretFile {
    /// The secret in the file at `path`, which isn't read yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Reads it; white space around it, such as the line break that an editor leaves, isn't part of it.
    /// Blocks for as long as the file system does.
    ///
    /// # Errors
    /// When the file can't be read, is empty, or holds what no header can.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let mut text = Vec::new();
        // A byte more than fits, and the white space of a few lines.
        let most = LONGEST as u64 + 64;
        File::open(&self.0)
            .and_then(|file| file.take(most).read_to_end(&mut text))
            .map_err(|error| SecretError::Unreadable(self.0.clone(), error))?;
        let secret = text.trim_ascii();
        if secret.is_empty() {
            return Err(SecretError::Empty(self.0.clone()));
        }
        if secret.len() > LONGEST || !secret.iter().all(u8::is_ascii_graphic) {
            return Err(SecretError::Unusable(self.0.clone()));
        }
        Ok(Secret::of(secret))
    }
}

// === impl SecretReader ===

impl SecretReader {
    /// Reads this file.
    pub fn new(file: SecretFile) -> Self {
        Self {
            file,
            last: Arc::default(),
        }
    }

    /// What stands in the file now: read after this was called, for all who wait at that time.
    ///
    /// # Errors
    /// As for [`SecretFile::read`], and when that takes more than five seconds.
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
        // It goes on when nobody waits for it any more, and holds the next one back.
        let reading = spawn_blocking(move || {
            let begun = Instant::now();
            let result = file.read().map_err(Arc::new);
            *last = Some(PendingRead {
                begun,
                result: result.clone(),
            });
            result
        });
        Ok(reading.await?)
    }
}

// === impl Secret ===

impl Secret {
    fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Whether this is it. How long that takes says nothing of the secret: digests are compared, and
    /// nobody can choose how much of one is right.
    pub fn is(&self, text: &[u8]) -> bool {
        *self == Self::of(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_file_is_the_secret_without_the_white_space_around_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let secret = SecretFile::at(file.path());
        std::fs::write(file.path(), " geheim-1\r\n").expect("written");
        let read = secret.read().expect("a secret");
        assert!(read.is(b"geheim-1"), "an editor's line break isn't meant");
        for wrong in [&b""[..], b"geheim", b"geheim-11", b"GEHEIM-1", b" geheim-1"] {
            assert!(!read.is(wrong), "nothing else is: {wrong:?}");
        }
        assert!(
            !format!("{read:?}{secret:?}").contains("geheim"),
            "it is not shown"
        );
        std::fs::write(file.path(), "geheim-2").expect("written again");
        let read = secret.read().expect("a secret");
        assert!(read.is(b"geheim-2"), "a new one is in force at once");
    }

    #[tokio::test]
    async fn what_many_get_at_once_is_what_stands_there_when_they_ask() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let reader = Arc::new(SecretReader::new(SecretFile::at(file.path())));
        for text in ["geheim-1", "geheim-2"] {
            std::fs::write(file.path(), text).expect("written");
            let all = (0..100).map(|_| {
                let reader = Arc::clone(&reader);
                tokio::spawn(async move { reader.read().await })
            });
            for read in all.collect::<Vec<_>>() {
                let read = read.await.expect("it doesn't panic").expect("a secret");
                assert!(read.is(text.as_bytes()), "a new one is in force at once");
            }
        }
        std::fs::write(file.path(), "").expect("written");
        let error = reader.read().await.expect_err("no secret").to_string();
        assert!(error.contains("is empty"), "and so is none: {error}");
    }

    #[test]
    fn a_file_without_a_usable_secret_is_told_of_and_not_shown() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let secret = SecretFile::at(file.path());
        let long = "x".repeat(LONGEST + 1);
        let beyond = "x".repeat(1 << 20);
        for (text, why) in [
            ("", "is empty"),
            (" \n\t\n", "is empty"),
            ("geheim 1", "can't be sent"),
            ("geheim\nzwei", "can't be sent"),
            ("gehéim", "can't be sent"),
            (&long, "can't be sent"),
            (&beyond, "can't be sent"),
        ] {
            std::fs::write(file.path(), text).expect("written");
            let error = secret.read().expect_err("no secret").to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("geh"), "what is in it isn't told: {error}");
        }
        let nowhere = SecretFile::at("/nowhere/token").read();
        let error = nowhere.expect_err("no file").to_string();
        assert!(error.starts_with("/nowhere/token can't be read"), "{error}");
    }
}
