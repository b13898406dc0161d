//! What every subject needs: the backend, Redis if it is installed, and a directory that is removed after the run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::options::Options;
use super::process::Process;
use super::redis::Redis;
use super::subject::Kind;
use crate::Failure;

#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) backend: SocketAddr,
    /// `None`: no `redis-server` is installed.
    pub(crate) redis: Option<Redis>,
    pub(crate) seriatim: PathBuf,
    pub(crate) directory: TempDir,
    _backend: Process,
}

// === impl Stage ===

impl Stage {
    pub(crate) async fn set(options: &Options) -> Result<Self, Failure> {
        let directory = TempDir::with_prefix("turns-")?;
        let (process, backend) = Process::role("backend", &[], &["--role", "backend"])?;
        let redis = if on_path("redis-server") {
            Some(Redis::start(directory.path()).await?)
        } else {
            None
        };
        // A child starts in the directory above, so a relative path would be wrong there.
        let seriatim = options.seriatim.canonicalize();
        let seriatim = seriatim
            .map_err(|error| format!("no proxy at {}: {error}", options.seriatim.display()))?;
        Ok(Self {
            backend,
            redis,
            seriatim,
            directory,
            _backend: process,
        })
    }

    /// The wanted subjects that can run, and why the others can't.
    pub(crate) fn castable(&self, wanted: &[Kind]) -> (Vec<Kind>, Option<String>) {
        let (cast, missing): (Vec<_>, Vec<_>) = wanted
            .iter()
            .copied()
            .partition(|kind| !kind.needs_redis() || self.redis.is_some());
        let names: Vec<_> = missing.iter().map(|kind| kind.name()).collect();
        let problem = format!(
            "skipped {}: no redis-server on PATH (Debian: apt-get install redis-server)",
            names.join(", ")
        );
        (cast, (!missing.is_empty()).then_some(problem))
    }
}

/// Whether a program is installed.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| Path::new(&directory).join(program).is_file())
}
