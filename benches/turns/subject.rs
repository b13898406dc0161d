//! The subjects: the proxies that are compared, and how each is started.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::process::{Process, command, free_port};
use super::stage::Stage;
use crate::Failure;

/// How long a start may take: under valgrind it takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The exit code of Seriatim when its configuration is invalid.
const BAD_CONFIGURATION: i32 = 78;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bare,
    Memory,
    Redis,
    RedisQuiet,
}

/// A proxy that runs and answers.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) addr: SocketAddr,
    pub(crate) process: Process,
}

// === impl Kind ===

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Bare, Self::Memory, Self::Redis, Self::RedisQuiet];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::RedisQuiet => "redis-quiet",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Self, Failure> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or_else(|| {
            format!(
                "no subject {name:?}; there are {}",
                Self::ALL.map(Self::name).join(", ")
            )
            .into()
        })
    }

    pub(crate) fn needs_redis(self) -> bool {
        matches!(self, Self::Redis | Self::RedisQuiet)
    }

    pub(crate) fn locks(self) -> bool {
        self != Self::Bare
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

// === impl Subject ===

impl Subject {
    /// Starts a subject, with the command `under` if that isn't empty, and waits until it answers.
    pub(crate) async fn start(
        stage: &Stage,
        kind: Kind,
        under: &[String],
    ) -> Result<Self, Failure> {
        if kind == Kind::Bare {
            let upstream = stage.backend.to_string();
            let (process, addr) =
                Process::role("bare", under, &["--role", "bare", "--upstream", &upstream])?;
            return Ok(Self {
                kind,
                addr,
                process,
            });
        }
        // Each instance has its own port for the admin listener, because the default port serves only one.
        // An old build that has no such listener refuses the section; it is started without.
        let mut start = Self::start_seriatim(stage, kind, under, true).await?;
        if matches!(start, Start::Misconfigured(_)) {
            start = Self::start_seriatim(stage, kind, under, false).await?;
        }
        match start {
            Start::Ready(subject) => Ok(subject),
            Start::Misconfigured(output) => Err(output.into()),
        }
    }

    async fn start_seriatim(
        stage: &Stage,
        kind: Kind,
        under: &[String],
        admin: bool,
    ) -> Result<Start, Failure> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let file = stage.directory.path().join(format!("{kind}.toml"));
        std::fs::write(&file, configuration(stage, kind, addr, admin)?)?;
        // The log goes to /dev/null: a disk would add noise. A start that fails is repeated with its output.
        let mut command = command(under, &stage.seriatim);
        command
            .arg("run")
            .arg("--config")
            .arg(&file)
            .current_dir(stage.directory.path());
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SERIATIM__"))
        {
            command.env_remove(name);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = Process::spawn(&format!("seriatim ({kind})"), &mut command)?;
        let begun = Instant::now();
        let reason = loop {
            if answers(addr).await {
                return Ok(Start::Ready(Self {
                    kind,
                    addr,
                    process,
                }));
            }
            if let Some(status) = process.ended()? {
                break format!("it ended with {status}");
            }
            if begun.elapsed() > PATIENCE {
                break format!("no answer to GET / within {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let misconfigured = process
            .ended()?
            .is_some_and(|status| status.code() == Some(BAD_CONFIGURATION));
        drop(process);
        let output = said(&mut command, &stage.directory.path().join("start.log")).await?;
        let text = format!(
            "seriatim ({kind}) did not start: {reason}. {:?} said:\n{output}",
            command.get_program()
        );
        if misconfigured {
            Ok(Start::Misconfigured(text))
        } else {
            Err(text.into())
        }
    }
}

/// The result of a start that didn't fail for good.
enum Start {
    Ready(Subject),
    Misconfigured(String),
}

/// Repeats a start that failed, and returns its output.
async fn said(command: &mut std::process::Command, log: &Path) -> Result<String, Failure> {
    let output = std::fs::File::create(log)?;
    command.stdout(output.try_clone()?).stderr(output);
    let mut process = Process::spawn("seriatim", command)?;
    let begun = Instant::now();
    while process.ended()?.is_none() && begun.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(std::fs::read_to_string(log)?)
}

/// Whether a `GET /` gets any response.
async fn answers(addr: SocketAddr) -> bool {
    let attempt = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: agent.example\r\nconnection: close\r\n\r\n")
            .await?;
        stream.read_u8().await
    };
    // A process that listens but doesn't answer is asked again.
    matches!(
        tokio::time::timeout(Duration::from_secs(2), attempt).await,
        Ok(Ok(_))
    )
}

fn configuration(
    stage: &Stage,
    kind: Kind,
    listen: SocketAddr,
    admin: bool,
) -> Result<String, Failure> {
    let store = match (kind.needs_redis(), &stage.redis) {
        (false, _) => "url = \"memory:\"".to_owned(),
        // Under valgrind, on a busy machine, a command can take longer than the default of one second.
        (true, Some(redis)) => format!("url = \"redis://{}/0\"\ntimeout = \"5s\"", redis.addr),
        (true, None) => {
            return Err(format!("{kind} needs a redis-server, and there is none on PATH").into());
        }
    };
    let upstream = stage.backend;
    let mut text = format!(
        r#"listen = "{listen}"
upstream = "http://{upstream}"

[store]
{store}

[[routes]]
name = "chat"
path = "/chat"
methods = ["POST"]
session_id = ["{{body:/session_id}}"]
user_id = ["{{body:/user_id}}", "unknown"]
"#
    );
    if kind == Kind::RedisQuiet {
        text.push_str("\n[log]\nlevel = \"warn\"\n");
    }
    if admin {
        text.push_str(&format!(
            "\n[admin]\nlisten = \"127.0.0.1:{}\"\n",
            free_port()?
        ));
    }
    Ok(text)
}
