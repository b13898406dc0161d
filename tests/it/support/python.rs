//! Programs in Python that stand beside the proxy: a real backend, and a real user of the lock.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use std::io::{BufRead, BufReader, Write};

use super::client::Client;
use super::{unused_addr, wait_for_async};

/// A FastAPI agent under uvicorn (`tests/python/agent.py`, or one that takes its sessions' locks
/// itself: `tests/python/locked_agent.py`). Ends when it is dropped.
pub(crate) struct Agent {
    addr: SocketAddr,
    child: Child,
}

/// A holder of locks by `SET NX EX` (`tests/python/lock_client.py`). Ends when it is dropped.
pub(crate) struct LockClient {
    child: Child,
    orders: ChildStdin,
    words: BufReader<ChildStdout>,
}

/// The Python that `.ci/test` has prepared.
pub(crate) fn python() -> Command {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-venv/bin/python");
    let python = std::env::var_os("SERIATIM_TEST_PYTHON").map_or(own.into(), PathBuf::from);
    assert!(
        python.exists(),
        "{} is missing: run .ci/test, which makes it",
        python.display()
    );
    let mut command = Command::new(python);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

// === impl Agent ===

impl Agent {
    pub(crate) async fn start() -> Self {
        Self::of("agent:app", &[]).await
    }

    /// One that takes its sessions' locks itself, at this Redis, and works at this backend.
    pub(crate) async fn with_a_lock(redis_url: &str, backend_url: &str) -> Self {
        let variables = [("REDIS_URL", redis_url), ("BACKEND_URL", backend_url)];
        Self::of("locked_agent:app", &variables).await
    }

    async fn of(app: &str, variables: &[(&str, &str)]) -> Self {
        let addr = unused_addr();
        let port = addr.port().to_string();
        let child = python()
            .args([
                "-m",
                "uvicorn",
                app,
                "--log-level",
                "warning",
                "--port",
                &port,
            ])
            .envs(variables.iter().copied())
            .spawn()
            .expect("uvicorn starts");
        let agent = Self { addr, child };
        let listens = async || Client::try_connect(addr).await.is_ok();
        wait_for_async(listens, "uvicorn listens").await;
        agent
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What it has counted: `turns`, `running`, and under `most` the largest number of turns that
    /// each session had at once.
    pub(crate) async fn counts(&self) -> serde_json::Value {
        Client::connect(self.addr).await.get("/counts").await.json()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // An error is a child that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl LockClient ===

impl LockClient {
    pub(crate) fn start(redis_url: &str, key: &str) -> Self {
        let mut child = python()
            .args(["lock_client.py", redis_url, key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let orders = child.stdin.take().expect("it is piped");
        let words = BufReader::new(child.stdout.take().expect("it is piped"));
        Self {
            child,
            orders,
            words,
        }
    }

    /// Tries to take the lock: `taken` or `busy`.
    pub(crate) fn take(&mut self) -> String {
        self.order("take")
    }

    /// Frees the lock: `freed` or `not mine`.
    pub(crate) fn free(&mut self) -> String {
        self.order("free")
    }

    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").expect("it reads");
        let mut word = String::new();
        self.words.read_line(&mut word).expect("it answers");
        word.trim().to_owned()
    }
}

impl Drop for LockClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
