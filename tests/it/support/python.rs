//! Python programs for the tests: a real backend, and another user of the locks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use std::io::{BufRead, BufReader, Write};

use super::client::Client;
use super::{unused_addr, wait_for_async};

/// A FastAPI agent under uvicorn: `tests/python/agent.py`; `locked_agent.py`, which takes the locks of its
/// sessions itself; or `nested_agent.py`, which calls itself. Ends when dropped.
pub(crate) struct Agent {
    addr: SocketAddr,
    child: Child,
}

/// A program that takes a lock with `SET NX EX` (`tests/python/lock_client.py`). Ends when dropped.
pub(crate) struct LockClient {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// The Python that `.ci/test` installs.
pub(crate) fn python() -> Command {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-venv/bin/python");
    let python = std::env::var_os("SERIATIM_TEST_PYTHON").map_or(own.into(), PathBuf::from);
    assert!(
        python.exists(),
        "{} is missing: run .ci/test, which installs it",
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
        Self::launch("agent:app", &[]).await
    }

    /// Starts an agent that calls itself through proxies.
    pub(crate) async fn that_calls_itself() -> Self {
        Self::launch("nested_agent:app", &[]).await
    }

    /// Starts an agent that takes the locks of its sessions itself, in this Redis, and works on this
    /// backend.
    pub(crate) async fn with_a_lock(redis_url: &str, backend_url: &str) -> Self {
        let variables = [("REDIS_URL", redis_url), ("BACKEND_URL", backend_url)];
        Self::launch("locked_agent:app", &variables).await
    }

    async fn launch(app: &str, variables: &[(&str, &str)]) -> Self {
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

    /// The agent's counters: `turns`, `running`, and `most`, the largest number of concurrent turns of
    /// each session.
    pub(crate) async fn counts(&self) -> serde_json::Value {
        Client::connect(self.addr).await.get("/counts").await.json()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // An error means that the child has already ended.
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
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self {
            child,
            stdin,
            stdout,
        }
    }

    /// Tries to take the lock; gives `taken` or `busy`.
    pub(crate) fn take(&mut self) -> String {
        self.command("take")
    }

    /// Releases the lock; gives `freed` or `not mine`.
    pub(crate) fn free(&mut self) -> String {
        self.command("free")
    }

    fn command(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").expect("the program reads");
        let mut reply = String::new();
        self.stdout
            .read_line(&mut reply)
            .expect("the program replies");
        reply.trim().to_owned()
    }
}

impl Drop for LockClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
