//! The subjects: the proxies that are compared, and how each is started.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::peers;
use super::process::{Process, command, free_port};
use super::procfs::{CpuTime, family_resident_kib};
use super::stage::Stage;
use crate::Failure;

/// How long a start may take: under valgrind, with a thousand routes and on a busy machine, it takes many seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// The exit code of Seriatim when its configuration is invalid.
const BAD_CONFIGURATION: i32 = 78;

/// How many turns may wait in a queue, when a subject is started with queues.
const MAX_WAITERS: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bare,
    Naive,
    Memory,
    Redis,
    RedisQuiet,
    Nginx,
    Haproxy,
    Envoy,
}

/// A proxy that runs and answers.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) addr: SocketAddr,
    pub(crate) process: Process,
    /// The process of the Redis that it uses.
    pub(crate) redis: Option<u32>,
    /// The admin interface of Seriatim.
    pub(crate) admin: Option<SocketAddr>,
}

/// A proxy that has been started, and may not answer yet.
pub(crate) struct Starting {
    kind: Kind,
    pub(crate) addr: SocketAddr,
    admin: Option<SocketAddr>,
    pub(crate) process: Process,
    /// The command, to repeat a start that fails; `None`: the process is this program.
    command: Option<Command>,
}

/// What is special about the configuration of Seriatim in some cases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// The number of routes. The one that the turns match is the last.
    pub(crate) routes: usize,
    /// Whether a turn whose session is busy waits.
    pub(crate) queues: bool,
    pub(crate) backend: SocketAddr,
}

// === impl Kind ===

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Bare,
        Self::Naive,
        Self::Memory,
        Self::Redis,
        Self::RedisQuiet,
        Self::Nginx,
        Self::Haproxy,
        Self::Envoy,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Naive => "naive",
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::RedisQuiet => "redis-quiet",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
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
        matches!(self, Self::Naive | Self::Redis | Self::RedisQuiet)
    }

    pub(crate) fn locks(self) -> bool {
        self == Self::Naive || self.is_seriatim()
    }

    pub(crate) fn is_seriatim(self) -> bool {
        matches!(self, Self::Memory | Self::Redis | Self::RedisQuiet)
    }

    /// Whether it is a product that may be installed.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Nginx | Self::Haproxy | Self::Envoy)
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
        Self::start_with(stage, kind, &Setup::usual(stage), under).await
    }

    /// Starts a subject as [`Self::start`] does. Only Seriatim heeds the set-up.
    pub(crate) async fn start_with(
        stage: &Stage,
        kind: Kind,
        setup: &Setup,
        under: &[String],
    ) -> Result<Self, Failure> {
        // Each instance has its own port for the admin listener, because the default port serves only one.
        // An old build that has no such listener refuses the section; it is started without.
        let mut start = Starting::spawn(stage, kind, setup, under, true)?
            .ready(stage)
            .await?;
        if matches!(start, Start::Misconfigured(_)) {
            start = Starting::spawn(stage, kind, setup, under, false)?
                .ready(stage)
                .await?;
        }
        match start {
            Start::Ready(subject) => Ok(subject),
            Start::Misconfigured(output) => Err(output.into()),
        }
    }

    /// CPU time of all its processes.
    pub(crate) fn cpu(&self) -> Result<CpuTime, Failure> {
        CpuTime::of_family(self.process.id())
    }

    /// CPU time of its Redis; `None`: it has none.
    pub(crate) fn redis_cpu(&self) -> Result<Option<CpuTime>, Failure> {
        self.redis.map(CpuTime::of).transpose()
    }

    /// Resident memory of all its processes, KiB.
    pub(crate) fn resident_kib(&self) -> Result<f64, Failure> {
        family_resident_kib(self.process.id())
    }
}

// === impl Starting ===

impl Starting {
    /// Starts a process, and doesn't wait until it answers.
    pub(crate) fn spawn(
        stage: &Stage,
        kind: Kind,
        setup: &Setup,
        under: &[String],
        with_admin: bool,
    ) -> Result<Self, Failure> {
        if matches!(kind, Kind::Bare | Kind::Naive) {
            return Self::spawn_role(stage, kind, under);
        }
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut admin = None;
        let mut command = if kind.is_peer() {
            peers::prepare(stage, kind, addr, under)?
        } else {
            if with_admin {
                admin = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)));
            }
            seriatim(stage, kind, setup, under, (addr, admin))?
        };
        // The log goes to /dev/null: a disk would add noise. A start that fails is repeated with its output.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = if kind.is_peer() {
            Process::spawn_group(kind.name(), &mut command)?
        } else {
            Process::spawn(&format!("seriatim ({kind})"), &mut command)?
        };
        Ok(Self {
            kind,
            addr,
            admin,
            process,
            command: Some(command),
        })
    }

    fn spawn_role(stage: &Stage, kind: Kind, under: &[String]) -> Result<Self, Failure> {
        let (upstream, redis) = (stage.backend.to_string(), stage.redis_addr(kind)?);
        let redis = redis.map(|addr| addr.to_string());
        let mut arguments = vec!["--role", kind.name(), "--upstream", &upstream];
        if let Some(redis) = &redis {
            arguments.extend(["--redis", redis]);
        }
        let (process, addr) = Process::role(kind.name(), under, &arguments)?;
        Ok(Self {
            kind,
            addr,
            admin: None,
            process,
            command: None,
        })
    }

    /// Waits until the process answers.
    async fn ready(mut self, stage: &Stage) -> Result<Start, Failure> {
        let begun = Instant::now();
        let reason = loop {
            if answers(self.addr).await {
                return Ok(Start::Ready(Subject {
                    kind: self.kind,
                    addr: self.addr,
                    process: self.process,
                    redis: stage.redis_pid(self.kind),
                    admin: self.admin,
                }));
            }
            if let Some(status) = self.process.ended()? {
                break format!("it ended with {status}");
            }
            if begun.elapsed() > PATIENCE {
                break format!("no answer to GET / within {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let misconfigured = self
            .process
            .ended()?
            .is_some_and(|status| status.code() == Some(BAD_CONFIGURATION));
        drop(self.process);
        let mut text = format!("{} did not start: {reason}.", self.kind);
        if let Some(mut command) = self.command {
            let output = said(&mut command, &stage.directory.path().join("start.log")).await?;
            let program = command.get_program();
            text = format!("{text} {program:?} said:\n{output}");
        }
        if misconfigured && self.kind.is_seriatim() {
            Ok(Start::Misconfigured(text))
        } else {
            Err(text.into())
        }
    }
}

// === impl Setup ===

impl Setup {
    /// One route, no queue, and the backend of the stage.
    pub(crate) fn usual(stage: &Stage) -> Self {
        Self {
            routes: 1,
            queues: false,
            backend: stage.backend,
        }
    }
}

/// The command that starts Seriatim with a configuration of its own.
fn seriatim(
    stage: &Stage,
    kind: Kind,
    setup: &Setup,
    under: &[String],
    (addr, admin): (SocketAddr, Option<SocketAddr>),
) -> Result<Command, Failure> {
    // Two of a kind may run at once, so the file has the port in its name.
    let file = format!("{kind}-{}.toml", addr.port());
    let file = stage.directory.path().join(file);
    std::fs::write(&file, configuration(stage, kind, setup, addr, admin)?)?;
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
    Ok(command)
}

/// The result of a start that didn't fail for good.
enum Start {
    Ready(Subject),
    Misconfigured(String),
}

/// Repeats a start that failed, and returns its output.
async fn said(command: &mut Command, log: &Path) -> Result<String, Failure> {
    let output = std::fs::File::create(log)?;
    command.stdout(output.try_clone()?).stderr(output);
    let mut process = Process::spawn_group("the proxy", command)?;
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
    setup: &Setup,
    listen: SocketAddr,
    admin: Option<SocketAddr>,
) -> Result<String, Failure> {
    let store = match stage.redis_addr(kind)? {
        None => "url = \"memory:\"".to_owned(),
        // Under valgrind, on a busy machine, a command can take longer than the default of one second.
        Some(redis) => format!("url = \"redis://{redis}/0\"\ntimeout = \"5s\""),
    };
    let (upstream, queues) = (setup.backend, setup.queues);
    let mut text = format!(
        r#"listen = "{listen}"
upstream = "http://{upstream}"

[store]
{store}

[limits]
max_connections = 100000
"#
    );
    if queues {
        text.push_str(&format!(
            "\n[lock]\nblocking = true\nmax_waiters = {MAX_WAITERS}\n"
        ));
    }
    if kind == Kind::RedisQuiet {
        text.push_str("\n[log]\nlevel = \"warn\"\n");
    }
    if let Some(admin) = admin {
        text.push_str(&format!("\n[admin]\nlisten = \"{admin}\"\n"));
    }
    for n in 1..=setup.routes {
        let (name, path) = match n == setup.routes {
            true => ("chat".to_owned(), "/chat".to_owned()),
            false => (format!("agent-{n}"), format!("/agents/{n}/chat")),
        };
        text.push_str(&format!(
            r#"
[[routes]]
name = "{name}"
path = "{path}"
methods = ["POST"]
session_id = ["{{body:/session_id}}"]
user_id = ["{{body:/user_id}}", "unknown"]
"#
        ));
    }
    Ok(text)
}
