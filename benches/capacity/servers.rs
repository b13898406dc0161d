//! The servers under load: one `redis-server`, or the masters of a cluster, without persistence and replicas.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, cmd};
use seriatim::lock::redis::{RedisAddress, RedisStores};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::Failure;
use crate::turns::process::{Process, free_port};

/// Servers that this run has started. Dropping this ends them.
pub(crate) struct Servers {
    pub(crate) nodes: Vec<Server>,
    is_cluster: bool,
    _folder: TempDir,
}

/// A running `redis-server`.
pub(crate) struct Server {
    process: Process,
    addr: SocketAddr,
    bus_port: u16,
    connection: MultiplexedConnection,
}

/// How many slots a cluster has.
const SLOTS: usize = 16384;

/// The timeout of a command of the measured stores. No command may fail because the machine is busy.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long a server may take to start, and a cluster to agree.
const PATIENCE: Duration = Duration::from_secs(30);

// === impl Servers ===

impl Servers {
    /// Starts one server.
    pub(crate) async fn single(program: &Path) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        let nodes = vec![Server::start(program, folder.path(), None).await?];
        Ok(Self {
            nodes,
            is_cluster: false,
            _folder: folder,
        })
    }

    /// Starts a cluster of this many masters, each with the same number of slots.
    pub(crate) async fn cluster(program: &Path, masters: usize) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        let mut nodes = Vec::new();
        for _ in 0..masters {
            let bus_port = Some(free_port()?);
            nodes.push(Server::start(program, folder.path(), bus_port).await?);
        }
        let addresses: Vec<_> = nodes
            .iter()
            .map(|node| (node.addr, node.bus_port))
            .collect();
        for (index, node) in nodes.iter_mut().enumerate() {
            let mut range = cmd("CLUSTER");
            let (first, after) = (SLOTS * index / masters, SLOTS * (index + 1) / masters);
            range.arg("ADDSLOTSRANGE").arg(first).arg(after - 1);
            node.query::<()>(&range).await?;
            for (addr, bus_port) in &addresses[index + 1..] {
                let mut meet = cmd("CLUSTER");
                meet.arg("MEET").arg("127.0.0.1").arg(addr.port());
                node.query::<()>(meet.arg(bus_port)).await?;
            }
        }
        let began = Instant::now();
        for node in &mut nodes {
            loop {
                let info: String = node.query(cmd("CLUSTER").arg("INFO")).await?;
                let knows_all = format!("cluster_known_nodes:{masters}\r");
                if info.contains("cluster_state:ok") && info.contains(&knows_all) {
                    break;
                }
                if began.elapsed() > PATIENCE {
                    return Err("the nodes of the cluster don't agree".into());
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(Self {
            nodes,
            is_cluster: true,
            _folder: folder,
        })
    }

    /// A word for tables.
    pub(crate) fn kind(&self) -> String {
        match self.is_cluster {
            false => "one Redis".into(),
            true => format!("cluster of {}", self.nodes.len()),
        }
    }

    /// The stores of a new process.
    pub(crate) fn stores(&self) -> Result<RedisStores, Failure> {
        let addresses: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.addr.to_string())
            .collect();
        let url = match self.is_cluster {
            false => format!("redis://{}/0", addresses.join(",")),
            true => format!("redis-cluster://{}", addresses.join(",")),
        };
        Ok(RedisStores::new(RedisAddress::parse(&url, TIMEOUT)?))
    }

    /// Deletes all keys.
    pub(crate) async fn clear(&mut self) -> Result<(), Failure> {
        for node in &mut self.nodes {
            node.query::<()>(cmd("FLUSHALL").arg("SYNC")).await?;
        }
        Ok(())
    }

    /// The version of the servers.
    pub(crate) async fn version(&mut self) -> Result<String, Failure> {
        let info = self.nodes[0].info().await?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
        let valkey = field("valkey_version:").map(|version| format!("Valkey {version}"));
        let redis = || format!("Redis {}", field("redis_version:").unwrap_or("?"));
        Ok(valkey.unwrap_or_else(redis))
    }
}

// === impl Server ===

impl Server {
    /// Starts a server, as the node of a cluster if there is a port for the cluster's bus.
    async fn start(program: &Path, folder: &Path, bus_port: Option<u16>) -> Result<Self, Failure> {
        let port = free_port()?;
        let folder = folder.join(port.to_string());
        std::fs::create_dir(&folder)?;
        let mut command = Command::new(program);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no"]);
        if let Some(bus_port) = bus_port {
            command.args(["--cluster-enabled", "yes"]);
            command.args(["--cluster-port", &bus_port.to_string()]);
            // The load keeps a server from its cluster's bus at times.
            command.args(["--cluster-node-timeout", "60000"]);
        }
        command.current_dir(&folder).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::spawn("redis-server", &mut command)?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let client = redis::Client::open(format!("redis://{addr}/"))?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let began = Instant::now();
        loop {
            let opened = client.get_multiplexed_async_connection_with_config(&config);
            match opened.await {
                Ok(connection) => {
                    return Ok(Self {
                        process,
                        addr,
                        bus_port: bus_port.unwrap_or_default(),
                        connection,
                    });
                }
                Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => {}
            }
            if let Some(status) = process.ended()? {
                return Err(format!("redis-server ended at its start: {status}").into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends a command of this program, on a connection of its own.
    pub(crate) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, Failure> {
        Ok(command.query_async(&mut self.connection).await?)
    }

    pub(crate) async fn info(&mut self) -> Result<String, Failure> {
        self.query(cmd("INFO").arg("all")).await
    }
}
