//! What the servers have done between two moments: commands, CPU time, bytes, and memory.

use std::collections::HashMap;
use std::time::Instant;

use super::servers::Servers;
use crate::Failure;
use crate::turns::procfs::CpuTime;
use crate::turns::statistics::micros;

/// The state of all servers at a moment.
pub(crate) struct Reading {
    at: Instant,
    nodes: Vec<NodeReading>,
}

struct NodeReading {
    cpu: CpuTime,
    info: HashMap<String, String>,
}

/// What the servers have done between two readings, all of them together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// The time between the readings, in seconds.
    pub(crate) seconds: f64,
    /// Scripts that clients called.
    pub(crate) scripts: f64,
    /// The time in which scripts ran, in µs.
    pub(crate) script_time: f64,
    /// Messages that were published, also by scripts.
    pub(crate) messages: f64,
    /// CPU time of all threads, in µs.
    pub(crate) cpu: f64,
    /// Bytes from clients, without the cluster's bus.
    pub(crate) received: f64,
    /// Bytes to clients, without the cluster's bus.
    pub(crate) sent: f64,
    /// Memory that is allocated now and was not before, in bytes.
    pub(crate) memory: f64,
    pub(crate) servers: f64,
}

const MEBIBYTE: f64 = (1 << 20) as f64;

// === impl Reading ===

impl Reading {
    pub(crate) async fn take(servers: &mut Servers) -> Result<Self, Failure> {
        let mut nodes = Vec::new();
        for node in &mut servers.nodes {
            let info = node.info().await?;
            let fields = info.lines().filter_map(|line| line.split_once(':'));
            nodes.push(NodeReading {
                cpu: CpuTime::of(node.pid())?,
                info: fields
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
            });
        }
        Ok(Self {
            at: Instant::now(),
            nodes,
        })
    }

    /// What has happened since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Usage {
        let sum = |value: &dyn Fn(&NodeReading) -> f64| {
            let all = |reading: &Self| reading.nodes.iter().map(value).sum::<f64>();
            all(self) - all(earlier)
        };
        let field = |name: &str| sum(&|node| node.number(name));
        let of_command = |name: &str, part: &str| sum(&|node| node.of_command(name, part));
        let cpu = self.nodes.iter().zip(&earlier.nodes);
        Usage {
            seconds: (self.at - earlier.at).as_secs_f64(),
            scripts: of_command("evalsha", "calls="),
            script_time: of_command("evalsha", "usec="),
            messages: of_command("publish", "calls="),
            cpu: cpu.map(|(now, then)| micros(now.cpu.since(then.cpu))).sum(),
            received: field("total_net_input_bytes"),
            sent: field("total_net_output_bytes"),
            memory: field("used_memory"),
            servers: self.nodes.len() as f64,
        }
    }

    /// How many clients are connected to each server, on average, without that of this program.
    pub(crate) fn clients(&self) -> f64 {
        self.total("connected_clients") / self.nodes.len() as f64 - 1.0
    }

    /// The memory that the servers have allocated.
    pub(crate) fn used_mebibytes(&self) -> f64 {
        self.total("used_memory") / MEBIBYTE
    }

    /// The memory that the servers have from the kernel.
    pub(crate) fn resident_mebibytes(&self) -> f64 {
        self.total("used_memory_rss") / MEBIBYTE
    }

    fn total(&self, name: &str) -> f64 {
        self.nodes.iter().map(|node| node.number(name)).sum()
    }
}

// === impl NodeReading ===

impl NodeReading {
    fn number(&self, name: &str) -> f64 {
        let value = self.info.get(name).and_then(|value| value.parse().ok());
        value.unwrap_or(0.0)
    }

    /// A part of `cmdstat_evalsha:calls=2,usec=40,usec_per_call=20.00`.
    fn of_command(&self, name: &str, part: &str) -> f64 {
        let line = self.info.get(&format!("cmdstat_{name}"));
        let mut parts = line.into_iter().flat_map(|line| line.split(','));
        let digits = parts.find_map(|text| text.strip_prefix(part));
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0.0)
    }
}

// === impl Usage ===

impl Usage {
    /// How busy a server was, in per cent of one core.
    pub(crate) fn busy(&self) -> f64 {
        self.cpu / self.seconds / 10_000.0 / self.servers
    }
}
