//! What every subject needs: the backend, Redis if it is installed, and a directory that is removed after the run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::options::Options;
use super::peers;
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

    /// The wanted subjects that can run, and why the others can't. A product that isn't installed is left out.
    pub(crate) fn castable(&self, wanted: &[Kind]) -> (Vec<Kind>, Option<String>) {
        let (cast, missing): (Vec<_>, Vec<_>) = wanted
            .iter()
            .copied()
            .filter(|kind| !kind.is_peer() || peers::find(kind.name()).is_some())
            .partition(|kind| !kind.needs_redis() || self.redis.is_some());
        let names: Vec<_> = missing.iter().map(|kind| kind.name()).collect();
        let problem = format!(
            "skipped {}: no redis-server on PATH (Debian: apt-get install redis-server)",
            names.join(", ")
        );
        (cast, (!missing.is_empty()).then_some(problem))
    }

    /// A note about the wanted products that aren't installed.
    pub(crate) fn absent(&self, wanted: &[Kind]) -> Option<String> {
        let absent: Vec<_> = wanted
            .iter()
            .filter(|kind| kind.is_peer() && peers::find(kind.name()).is_none())
            .map(|kind| kind.name())
            .collect();
        (!absent.is_empty()).then(|| format!("Left out, not installed: {}.", absent.join(", ")))
    }

    /// The Redis that a subject uses; `None`: it needs none.
    pub(crate) fn redis_addr(&self, kind: Kind) -> Result<Option<SocketAddr>, Failure> {
        match (kind.needs_redis(), &self.redis) {
            (false, _) => Ok(None),
            (true, Some(redis)) => Ok(Some(redis.addr)),
            (true, None) => {
                Err(format!("{kind} needs a redis-server, and there is none on PATH").into())
            }
        }
    }

    pub(crate) fn redis_pid(&self, kind: Kind) -> Option<u32> {
        let redis = self.redis.as_ref().filter(|_| kind.needs_redis())?;
        Some(redis.process.id())
    }
}

/// Whether a program is installed.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| Path::new(&directory).join(program).is_file())
}
