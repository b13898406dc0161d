//! A real master with two replicas, and three Sentinels that watch them.
//!
//! Invariant: all of them listen on 127.0.0.1, but a server or a Sentinel connects to others from
//! [`SERVERS`], and a client from 127.0.0.1. So a [`FaultProxy`] before each server can cut the server off
//! from the other servers and the Sentinels, and clients still reach it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use redis::Value;

use super::fault::{FaultProxy, Mode};
use super::pool::{Pool, Pooled, Reusable};
use super::redis::Redis;
use super::wait_for_async;

/// The name of the master in the Sentinels' configuration.
const MASTER: &str = "mymaster";

/// The address from which servers and Sentinels connect to servers.
pub(crate) const SERVERS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// How long a master is silent until a Sentinel takes it for dead.
const DOWN_AFTER: Duration = Duration::from_millis(500);

/// A time after which no Sentinel takes a slow server for dead, for tests without failovers.
const NEVER_DOWN_AFTER: Duration = Duration::from_secs(60);

/// What makes Sentinels faster than they are by default, in milliseconds.
const HASTE: [&str; 16] = [
    "info-period",
    "400",
    // A replica is promoted only if it has answered within five of them.
    "ping-period",
    "400",
    "ask-period",
    "100",
    "publish-period",
    "200",
    "slave-reconf-timeout",
    "1000",
    "min-link-reconnect-period",
    "1000",
    "tilt-period",
    "1000",
    "election-timeout",
    "1500",
];

/// A master, its replicas, and Sentinels, which may change their roles. The index of a server never changes.
pub(crate) struct SentinelRedis {
    servers: Vec<Server>,
    sentinels: Vec<Redis>,
    down_after: Duration,
}

struct Server {
    redis: Redis,
    /// What clients, replicas and Sentinels connect to in place of the server.
    proxy: Option<FaultProxy>,
}

/// What a Sentinel knows of a server or of another Sentinel.
type Fields = HashMap<String, String>;

static POOL: Pool<SentinelRedis> = Pool::new();

// === impl SentinelRedis ===

impl SentinelRedis {
    /// Starts all of them, and waits until they are ready. The master has the index 0.
    pub(crate) async fn start() -> Self {
        Self::start_with(false, DOWN_AFTER).await
    }

    /// Starts all of them with a fault proxy before each server.
    pub(crate) async fn start_behind_proxies() -> Self {
        Self::start_with(true, DOWN_AFTER).await
    }

    /// Empty servers that a test before may have used. No server takes another for dead.
    pub(crate) async fn pooled() -> Pooled<Self> {
        POOL.take(async || Self::start_with(false, NEVER_DOWN_AFTER).await)
            .await
    }

    async fn start_with(has_proxies: bool, down_after: Duration) -> Self {
        let options = ["--repl-diskless-sync-delay", "0"];
        // It refuses other loopback addresses than 127.0.0.1.
        let open = ["--protected-mode", "no"];
        let source = ["--bind-source-addr", &SERVERS.to_string()];
        let server_options = [options, open, source].concat();
        let starting = (0..3).map(|_| async {
            let redis = Redis::start_with(&server_options).await;
            let proxy = match has_proxies {
                true => Some(FaultProxy::start(redis.addr()).await),
                false => None,
            };
            Server { redis, proxy }
        });
        let sentinels = join_all((0..3).map(|_| Redis::start_sentinel(&source)));
        let (servers, sentinels) = tokio::join!(join_all(starting), sentinels);
        let all = Self {
            servers,
            sentinels,
            down_after,
        };
        let master = all.servers[0].addr();
        for server in &all.servers {
            server.announce().await;
        }
        for replica in &all.servers[1..] {
            let port = master.port().to_string();
            replica
                .redis
                .command(&["REPLICAOF", "127.0.0.1", &port])
                .await;
        }
        let is_replicated = async || {
            let info = all.servers[0].redis.info("replication").await;
            let is_online = |name| {
                let replica = info.get(name);
                replica.is_some_and(|replica: &String| replica.contains("state=online"))
            };
            is_online("slave0") && is_online("slave1")
        };
        wait_for_async(is_replicated, "the master to have two replicas").await;
        join_all(all.sentinels.iter().map(|one| all.hurry(one))).await;
        join_all(all.sentinels.iter().map(|one| all.watch(one, master))).await;
        all.wait_until_ready().await;
        all
    }

    /// `redis-sentinel://127.0.0.1:PORT,127.0.0.1:PORT,127.0.0.1:PORT/mymaster/0`
    pub(crate) fn url(&self) -> String {
        let sentinels = self.sentinels.iter().map(|one| one.addr().to_string());
        let sentinels: Vec<_> = sentinels.collect();
        format!("redis-sentinel://{}/{MASTER}/0", sentinels.join(","))
    }

    pub(crate) fn server(&self, index: usize) -> &Redis {
        &self.servers[index].redis
    }

    /// The address at which clients reach the server.
    pub(crate) fn addr(&self, index: usize) -> SocketAddr {
        self.servers[index].addr()
    }

    pub(crate) fn sentinel(&self, index: usize) -> &Redis {
        &self.sentinels[index]
    }

    /// The index of the master that the Sentinel with the newest configuration names.
    pub(crate) async fn master(&self) -> usize {
        let named = join_all(self.sentinels.iter().map(master_of)).await;
        let newest = named.into_iter().flatten().max_by_key(|(epoch, _)| *epoch);
        let (_, port) = newest.expect("a Sentinel that answers");
        let mut servers = self.servers.iter();
        let at = servers.position(|server| server.addr().port() == port);
        at.expect("the Sentinels name one of the servers")
    }

    /// Runs a command on the server, such as `["GET", "k"]`. Panics on an error.
    pub(crate) async fn command(&self, index: usize, command: &[&str]) -> Value {
        self.server(index).command(command).await
    }

    /// All keys of the present master except those of running instances and of self-tests, sorted.
    pub(crate) async fn keys(&self) -> Vec<String> {
        self.server(self.master().await).keys().await
    }

    /// Asks a Sentinel for a failover, and waits until all of them name the new master. Gives its index. The
    /// old master may not know yet that it is a replica.
    pub(crate) async fn failover(&self) -> usize {
        let old = self.master().await;
        let is_over = async || {
            let asked = &self.sentinels[0];
            let port = self.addr(old).port();
            let named = master_of(asked).await;
            if named.is_some_and(|(_, named)| named == port) {
                let command = ["SENTINEL", "FAILOVER", MASTER];
                match asked.try_command(&command).await {
                    Ok(_) => {}
                    // One is under way, or the Sentinel has heard too little of the replicas lately. Then it also
                    // gives up a failover that it has begun.
                    Err(error) if matches!(error.code(), Some("INPROG" | "NOGOODSLAVE")) => {}
                    Err(error) => panic!("{command:?}: {error}"),
                }
            }
            self.names_another_master(old).await
        };
        wait_for_async(is_over, "the Sentinels to fail over").await;
        self.master().await
    }

    /// Waits until all running Sentinels name another master than the old one. Gives its index.
    pub(crate) async fn wait_for_another_master(&self, old: usize) -> usize {
        let is_over = async || self.names_another_master(old).await;
        wait_for_async(is_over, "the Sentinels to name another master").await;
        self.master().await
    }

    /// Whether all running Sentinels name the same master, and another one than this.
    async fn names_another_master(&self, old: usize) -> bool {
        let old = self.addr(old).port();
        let named = join_all(self.sentinels.iter().map(master_of)).await;
        let named: Vec<_> = named.into_iter().flatten().collect();
        let agreed = named.windows(2).all(|two| two[0].1 == two[1].1);
        agreed && named.first().is_some_and(|(_, port)| *port != old)
    }

    /// Kills the master (SIGKILL). Gives its index.
    pub(crate) async fn kill_master(&self) -> usize {
        let master = self.master().await;
        self.servers[master].redis.kill();
        master
    }

    /// Kills the server if it runs, and starts an empty one in its place. It is a master until a Sentinel makes
    /// it a replica again.
    pub(crate) async fn restart(&self, index: usize) {
        self.servers[index].redis.restart().await;
        self.servers[index].announce().await;
    }

    /// Starts a Sentinel again, which knows what it knew before.
    pub(crate) async fn restart_sentinel(&self, index: usize) {
        let sentinel = &self.sentinels[index];
        sentinel.restart().await;
        self.hurry(sentinel).await;
    }

    /// Cuts the server off from the other servers and the Sentinels, and keeps its clients: nothing arrives, and
    /// no connection closes. Needs [`SentinelRedis::start_behind_proxies`].
    pub(crate) fn cut_off(&self, index: usize) {
        let proxy = self.proxy(index);
        proxy.set_for(SERVERS, Some(Mode::Blackhole));
    }

    /// Reconnects a server that was cut off.
    pub(crate) fn reconnect(&self, index: usize) {
        self.proxy(index).set_for(SERVERS, None);
    }

    /// The proxy before the server, whose mode is that of clients, too.
    pub(crate) fn proxy(&self, index: usize) -> &FaultProxy {
        let proxy = self.servers[index].proxy.as_ref();
        proxy.expect("the servers were started behind proxies")
    }

    /// Waits until one server is the master and all other running ones are its replicas, in sync, and until all
    /// running Sentinels know that and each other.
    pub(crate) async fn wait_until_ready(&self) {
        let is_ready = async || {
            let master = self.master().await;
            self.is_replicated(master).await && self.is_watched(master).await
        };
        wait_for_async(is_ready, "the servers and the Sentinels to be ready").await;
    }

    /// Whether each running server has the role that belongs to this master.
    async fn is_replicated(&self, master: usize) -> bool {
        let port = self.addr(master).port().to_string();
        let running = self.servers.iter().enumerate();
        let running = running.filter(|(_, server)| server.redis.is_running());
        let follow = running.map(async |(index, server)| {
            let info = server.redis.info("replication").await;
            let field = |name| info.get(name).map_or("", String::as_str);
            match field("role") {
                "master" => index == master,
                _ => {
                    index != master
                        && field("master_link_status") == "up"
                        && field("master_port") == port
                }
            }
        });
        join_all(follow).await.into_iter().all(|follows| follows)
    }

    /// Whether all running Sentinels see this master, its replicas and each other.
    async fn is_watched(&self, master: usize) -> bool {
        let port = self.addr(master).port().to_string();
        let running = |redis: &&Redis| redis.is_running();
        let servers = self.servers.iter().map(|server| &server.redis);
        let replicas = servers.filter(running).count() - 1;
        let sentinels: Vec<_> = self.sentinels.iter().filter(running).collect();
        let others = sentinels.len() - 1;
        let watch = sentinels.into_iter().map(async |sentinel| {
            let list = async |what| {
                let list = sentinel.command(&["SENTINEL", what, MASTER]).await;
                let list: Vec<Fields> = redis::from_redis_value(list).expect("a list of maps");
                list
            };
            let is_up = |fields: &&Fields| !is_down(&fields["flags"]);
            let is_in_sync = |fields: &&Fields| {
                is_up(fields)
                    && fields["master-link-status"] == "ok"
                    && fields["master-port"] == port
            };
            let master = sentinel.command(&["SENTINEL", "MASTER", MASTER]).await;
            let master: Fields = redis::from_redis_value(master).expect("a map");
            master["port"] == port
                && master["flags"] == "master"
                && list("REPLICAS").await.iter().filter(is_in_sync).count() == replicas
                && list("SENTINELS").await.iter().filter(is_up).count() == others
        });
        join_all(watch).await.into_iter().all(|watches| watches)
    }

    /// Lets a Sentinel that has just started notice sooner what happens.
    async fn hurry(&self, sentinel: &Redis) {
        sentinel
            .command(&[&["SENTINEL", "DEBUG"], &HASTE[..]].concat())
            .await;
        // It listens there, but connects from elsewhere.
        let announce = ["SENTINEL", "CONFIG", "SET", "announce-ip", "127.0.0.1"];
        sentinel.command(&announce).await;
    }

    /// Lets a Sentinel watch the master.
    async fn watch(&self, sentinel: &Redis, master: SocketAddr) {
        let port = master.port().to_string();
        let down_after = self.down_after.as_millis().to_string();
        let monitor = ["SENTINEL", "MONITOR", MASTER, "127.0.0.1", &port, "2"];
        sentinel.command(&monitor).await;
        for (option, value) in [
            ("down-after-milliseconds", &*down_after),
            ("failover-timeout", "1500"),
            ("parallel-syncs", "2"),
        ] {
            let set = ["SENTINEL", "SET", MASTER, option, value];
            sentinel.command(&set).await;
        }
    }
}

impl Reusable for SentinelRedis {
    async fn clear(&self) {
        self.server(self.master().await).clear().await;
    }

    fn servers(&self) -> impl Iterator<Item = &Redis> {
        let servers = self.servers.iter().map(|server| &server.redis);
        servers.chain(&self.sentinels)
    }
}

// === impl Server ===

impl Server {
    fn addr(&self) -> SocketAddr {
        match &self.proxy {
            Some(proxy) => proxy.addr(),
            None => self.redis.addr(),
        }
    }

    /// Lets the server tell the others the address at which it is reached.
    async fn announce(&self) {
        let port = self.addr().port().to_string();
        for (option, value) in [
            ("replica-announce-ip", "127.0.0.1"),
            ("replica-announce-port", &*port),
        ] {
            self.redis.command(&["CONFIG", "SET", option, value]).await;
        }
    }
}

/// The epoch of a Sentinel's configuration, and the port of the master in it; `None` if the Sentinel doesn't run.
async fn master_of(sentinel: &Redis) -> Option<(u64, u16)> {
    if !sentinel.is_running() {
        return None;
    }
    let fields = sentinel.try_command(&["SENTINEL", "MASTER", MASTER]).await;
    let fields: Fields = redis::from_redis_value(fields.ok()?).ok()?;
    let epoch = fields.get("config-epoch")?.parse().ok()?;
    // The Sentinel that runs a failover has the new epoch beside the old address in that map, until the failover
    // is over. The address comes second, so that it is never older than the epoch.
    let address = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER];
    let address = sentinel.try_command(&address).await.ok()?;
    let (_, port): (String, String) = redis::from_redis_value(address).ok()?;
    Some((epoch, port.parse().ok()?))
}

/// Whether the flags of a server say that a Sentinel doesn't reach it.
fn is_down(flags: &str) -> bool {
    let mut flags = flags.split(',');
    flags.any(|flag| matches!(flag, "s_down" | "o_down" | "disconnected"))
}
