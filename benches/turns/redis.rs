//! The `redis-server` of this run, what it has done, and the round trip to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::process::{Process, free_port};
use super::statistics::{micros, quantile};
use crate::Failure;

const PING: &[u8] = b"PING\r\n";
const PONG: &[u8] = b"+PONG\r\n";

/// A Redis without persistence: a snapshot in the middle of a slice would be measured, too.
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) addr: SocketAddr,
    pub(crate) process: Process,
}

/// What Redis has done since its start.
pub(crate) struct RedisLoad {
    /// How many scripts clients have called.
    pub(crate) scripts: f64,
    /// How many times SET has been executed, also by scripts.
    pub(crate) sets: f64,
    /// The CPU time, in seconds.
    pub(crate) cpu: f64,
}

// === impl Redis ===

impl Redis {
    /// Starts Redis, and waits until it answers a PING.
    pub(crate) async fn start(directory: &Path) -> Result<Self, Failure> {
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = Process::spawn("redis-server", &mut command)?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let begun = Instant::now();
        loop {
            if round_trip(addr, Duration::ZERO).await.is_ok() {
                return Ok(Self { addr, process });
            }
            if let Some(status) = process.ended()? {
                return Err(format!("redis-server ended at its start: {status}").into());
            }
            if begun.elapsed() > Duration::from_secs(10) {
                return Err("redis-server does not answer within 10 s of its start".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

// === impl RedisLoad ===

impl RedisLoad {
    pub(crate) async fn read(connection: &mut MultiplexedConnection) -> Result<Self, Failure> {
        let mut command = ::redis::cmd("INFO");
        let info: String = command
            .arg("commandstats")
            .arg("cpu")
            .query_async(connection)
            .await?;
        let value = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            let digits = line.unwrap_or("0").split(',').next().unwrap_or("0");
            digits.parse::<f64>().unwrap_or(0.0)
        };
        Ok(Self {
            scripts: value("cmdstat_evalsha:calls="),
            sets: value("cmdstat_set:calls="),
            cpu: value("used_cpu_user:") + value("used_cpu_sys:"),
        })
    }
}

/// Opens a connection for this program's own commands.
pub(crate) async fn connect(addr: SocketAddr) -> Result<MultiplexedConnection, Failure> {
    let client = ::redis::Client::open(format!("redis://{addr}/0"))?;
    Ok(client.get_multiplexed_async_connection().await?)
}

/// Sends PINGs one after the other for `time`, one at least. Returns the median round trip in µs.
pub(crate) async fn round_trip(addr: SocketAddr, time: Duration) -> Result<f64, Failure> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut answer = [0; PONG.len()];
    let mut trips = Vec::new();
    let begun = Instant::now();
    while trips.is_empty() || begun.elapsed() < time {
        let sent = Instant::now();
        stream.write_all(PING).await?;
        stream.read_exact(&mut answer).await?;
        if answer != PONG {
            return Err("Redis answers a PING with something else than PONG".into());
        }
        trips.push(micros(sent.elapsed()));
    }
    Ok(quantile(&mut trips, 0.5))
}
