//! A real `redis-server` for one test: on a free port, in its own folder, without persistence.
//!
//! Invariants: the server that replies is the one started here (another process may have taken the port
//! first), and it is killed and reaped with its value. The support sends its own commands on one
//! connection, which [`Monitor`] leaves out. [`super::tls_redis`] adds TLS. [`super::sentinel_redis`] and
//! [`super::cluster_redis`] have several of them.

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisResult, Value};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{POLL, Reserved, wait_for, wait_for_async, wire, within};

/// How often a start is tried when another process takes the port first.
const ATTEMPTS: usize = 20;

/// A running server, or one that was killed and can be started again.
pub(crate) struct Redis {
    program: PathBuf,
    kind: Kind,
    /// Reserves the port as long as the value lives, so that a restart can use it.
    port: Reserved,
    extra: Vec<String>,
    folder: TempDir,
    child: Mutex<Option<Child>>,
    connection: Mutex<Option<MultiplexedConnection>>,
    /// The addresses of the support's own connections, over all restarts.
    own: Arc<Mutex<HashSet<String>>>,
}

/// What a server is for.
enum Kind {
    Standalone,
    /// A Sentinel, which keeps what it knows in a file, over restarts.
    Sentinel,
    /// A node of a cluster, which keeps the cluster's topology in a file, over restarts.
    ClusterNode {
        /// Reserves the port of the cluster's bus.
        bus: Reserved,
    },
}

/// The program that is started where a test names none.
const PROGRAM: &str = "redis-server";

/// The prefix of the keys of running instances.
const INSTANCE: &str = "seriatim:instance:";

/// A part of the keys of a replica's self-test, which is there for a moment after the start.
const SELF_TEST: &str = "seriatim-self-test";

/// The commands that the server executes, from the call of [`Redis::monitor`] on.
pub(crate) struct Monitor<'a> {
    redis: &'a Redis,
    lines: Arc<Mutex<Vec<String>>>,
    collecting: JoinHandle<()>,
}

// === impl Redis ===

impl Redis {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with further arguments, such as `["--maxclients", "10"]`.
    pub(crate) async fn start_with(extra: &[&str]) -> Self {
        Self::start_as(Kind::Standalone, Path::new(PROGRAM), extra).await
    }

    /// Starts a server of another version or make, by its program's path.
    pub(crate) async fn start_with_program(program: &Path) -> Self {
        Self::start_as(Kind::Standalone, program, &[]).await
    }

    /// Starts a Sentinel that watches nothing yet.
    pub(crate) async fn start_sentinel(extra: &[&str]) -> Self {
        Self::start_as(Kind::Sentinel, Path::new(PROGRAM), extra).await
    }

    /// Starts a node that knows no other node of a cluster yet.
    pub(crate) async fn start_cluster_node(extra: &[&str]) -> Self {
        let kind = Kind::ClusterNode {
            bus: Reserved::new(),
        };
        Self::start_as(kind, Path::new(PROGRAM), extra).await
    }

    async fn start_as(kind: Kind, program: &Path, extra: &[&str]) -> Self {
        let mut redis = Self {
            program: program.to_owned(),
            kind,
            port: Reserved::new(),
            extra: extra.iter().map(|&argument| argument.to_owned()).collect(),
            folder: TempDir::new().expect("a folder for redis-server"),
            child: Mutex::new(None),
            connection: Mutex::new(None),
            own: Arc::default(),
        };
        for _ in 0..ATTEMPTS {
            if redis.launch().await {
                return redis;
            }
            redis.port = Reserved::new();
            if let Kind::ClusterNode { bus } = &mut redis.kind {
                *bus = Reserved::new();
            }
        }
        panic!(
            "redis-server does not start, tried {ATTEMPTS} ports; its log:\n{}",
            redis.log()
        );
    }

    /// Starts a server that does not know HELLO, and so has no RESP3, with further arguments.
    pub(crate) async fn start_without_hello(extra: &[&str]) -> Self {
        Self::start_with(&[&["--rename-command", "HELLO", ""], extra].concat()).await
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    pub(crate) fn port(&self) -> u16 {
        self.addr().port()
    }

    /// `redis://127.0.0.1:PORT/0`
    pub(crate) fn url(&self) -> String {
        format!("redis://{}/0", self.addr())
    }

    /// The port of the cluster's bus.
    pub(crate) fn bus_port(&self) -> u16 {
        match &self.kind {
            Kind::ClusterNode { bus } => bus.addr().port(),
            Kind::Standalone | Kind::Sentinel => panic!("only a cluster's node has a bus"),
        }
    }

    /// The id of the running process.
    pub(crate) fn id(&self) -> u32 {
        let child = lock(&self.child);
        child.as_ref().expect("redis-server runs").id()
    }

    pub(crate) fn is_running(&self) -> bool {
        lock(&self.child).is_some()
    }

    /// The folder of the server's files, which is removed with the value.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills the server (SIGKILL), even a stopped one, and reaps it. Its data is lost.
    pub(crate) fn kill(&self) {
        lock(&self.connection).take();
        let child = lock(&self.child).take();
        if let Some(mut child) = child {
            // This fails only if the process has already ended, which is fine.
            let _ = child.kill();
            child.wait().expect("redis-server can be reaped");
        }
    }

    /// Kills the server if it runs, and starts an empty one on the same port.
    pub(crate) async fn restart(&self) {
        self.kill();
        for _ in 0..ATTEMPTS {
            if self.launch().await {
                return;
            }
            // Another process may have the port for a moment.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!(
            "redis-server does not start on {} again; its log:\n{}",
            self.addr(),
            self.log()
        );
    }

    /// `true` stops the process (SIGSTOP), which keeps its connections and sends no reply; `false`
    /// continues it. Returns when it has stopped.
    pub(crate) async fn stop_cont(&self, stop: bool) {
        let id = self.id().to_string();
        let signal = if stop { "-STOP" } else { "-CONT" };
        let status = Command::new("kill")
            .args([signal, &id])
            .status()
            .expect("the kill command");
        assert!(status.success(), "kill {signal} {id}: {status}");
        if stop {
            wait_for(|| is_stopped(&id), "redis-server to stop").await;
        }
    }

    /// Runs a command, such as `["GET", "k"]`. Panics on an error.
    pub(crate) async fn command(&self, command: &[&str]) -> Value {
        match self.try_command(command).await {
            Ok(value) => value,
            Err(error) => panic!("{command:?}: {error}"),
        }
    }

    /// Runs a command. Sends it once more if the connection turns out to be dead.
    pub(crate) async fn try_command(&self, command: &[&str]) -> RedisResult<Value> {
        let what = format!("the reply of redis-server to {command:?}");
        within(&what, async {
            match self.ask(command).await {
                Err(error) if error.is_io_error() || error.is_connection_dropped() => {
                    lock(&self.connection).take();
                    self.ask(command).await
                }
                result => result,
            }
        })
        .await
    }

    /// All keys except those of running instances and of self-tests, sorted.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let mut keys = self.all_keys().await;
        keys.retain(|key| !key.contains(INSTANCE) && !key.contains(SELF_TEST));
        keys
    }

    /// The keys of running instances, which their heartbeats keep alive.
    pub(crate) async fn instances(&self) -> Vec<String> {
        let mut keys = self.all_keys().await;
        keys.retain(|key| key.contains(INSTANCE));
        keys
    }

    /// Waits until a replica in this process has all its connections: one for each worker and one for
    /// the instance. A monitor started after that sees no command of a connection's setup.
    pub(crate) async fn is_connected(&self) {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = workers.min(16) + 1;
        let connected = async || {
            let list = self.command(&["CLIENT", "LIST"]).await;
            let list: String = redis::from_redis_value(list).expect("CLIENT LIST gives text");
            let own = lock(&self.own);
            let field = |line: &str, name: &str| {
                let mut fields = line.split(' ');
                let value = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
                value.unwrap_or_default().to_owned()
            };
            // The setup of a connection ends with TIME, and with SUBSCRIBE if it is for messages. After that it sends
            // scripts, and GET in a self-test, which in a cluster may be a node's last command for long.
            let is_set_up = |line: &&str| {
                !own.contains(&field(line, "addr"))
                    && !line.contains(" name=sentinel-")
                    && matches!(
                        &*field(line, "cmd"),
                        "time" | "subscribe" | "evalsha" | "get"
                    )
            };
            list.lines().filter(is_set_up).count() >= wanted
        };
        wait_for_async(connected, "the replica has all its connections to Redis").await;
    }

    async fn all_keys(&self) -> Vec<String> {
        let keys = self.command(&["KEYS", "*"]).await;
        let mut keys: Vec<String> = redis::from_redis_value(keys).expect("KEYS gives strings");
        keys.sort();
        keys
    }

    /// A section of INFO, by the names of its fields.
    pub(crate) async fn info(&self, section: &str) -> HashMap<String, String> {
        let info = self.command(&["INFO", section]).await;
        let info: String = redis::from_redis_value(info).expect("INFO gives text");
        let fields = info.lines().filter_map(|line| line.split_once(':'));
        fields
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// Waits until all other clients than the support, Sentinels and replicas have gone, and removes all keys.
    pub(crate) async fn clear(&self) {
        let has_no_clients = async || {
            let list = self.command(&["CLIENT", "LIST", "TYPE", "normal"]).await;
            let list: String = redis::from_redis_value(list).expect("CLIENT LIST gives text");
            let own = lock(&self.own);
            let is_own = |line: &str| {
                let mut fields = line.split(' ');
                let is_sentinel = line.contains(" name=sentinel-");
                let addr = fields.find_map(|field| field.strip_prefix("addr="));
                is_sentinel || addr.is_some_and(|addr| own.contains(addr))
            };
            list.lines().all(is_own)
        };
        wait_for_async(has_no_clients, "the clients of redis-server have gone").await;
        self.command(&["FLUSHALL"]).await;
    }

    /// The value of a string key.
    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        let value = self.command(&["GET", key]).await;
        redis::from_redis_value(value).expect("GET gives a string or nothing")
    }

    /// Milliseconds; -1 if the key never expires, -2 if it does not exist.
    pub(crate) async fn pttl(&self, key: &str) -> i64 {
        let value = self.command(&["PTTL", key]).await;
        redis::from_redis_value(value).expect("PTTL gives a number")
    }

    /// Collects the commands that the server executes from now on.
    pub(crate) async fn monitor(&self) -> Monitor<'_> {
        let socket = self.dial().await.expect("redis-server accepts");
        let mut inbox = Vec::new();
        wire::write_all(&socket, b"MONITOR\r\n")
            .await
            .expect("redis-server takes MONITOR");
        while !inbox.starts_with(b"+OK\r\n") {
            let read = within(
                "redis-server to confirm MONITOR",
                wire::read_some(&socket, &mut inbox),
            );
            let read = read.await.expect("redis-server confirms MONITOR");
            assert!(
                read > 0 && b"+OK\r\n".starts_with(&inbox[..inbox.len().min(5)]),
                "MONITOR: {inbox:?}"
            );
        }
        inbox.drain(..5);
        let lines = Arc::default();
        let collecting = tokio::spawn(collect(socket, inbox, Arc::clone(&lines)));
        Monitor {
            redis: self,
            lines,
            collecting,
        }
    }

    /// Tries once to start the server; `false` if it ended because the port was taken.
    async fn launch(&self) -> bool {
        let child = match self.command_line().spawn() {
            Ok(child) => child,
            Err(error) => panic!(
                "no {} ({error}); install it with: apt-get install redis-server",
                self.program.display()
            ),
        };
        let id = child.id();
        *lock(&self.child) = Some(child);
        let ended = within("redis-server to answer PING", async {
            loop {
                if self.has_ended() {
                    return true;
                }
                if self.answers_as(id).await {
                    return false;
                }
                tokio::time::sleep(POLL).await;
            }
        })
        .await;
        if ended {
            self.kill();
        }
        !ended
    }

    fn command_line(&self) -> Command {
        let folder = self.folder.path();
        let mut command = Command::new(&self.program);
        if let Kind::Sentinel = self.kind {
            // A Sentinel starts only with a file that it can write to, which is the first argument.
            let file = folder.join("sentinel.conf");
            let opened = std::fs::File::options()
                .create(true)
                .append(true)
                .open(&file);
            opened.expect("a file in the folder");
            command.arg(file).arg("--sentinel");
        }
        let no_persistence = ["--save", "", "--appendonly", "no"];
        command.args(["--bind", "127.0.0.1", "--daemonize", "no"]);
        command.args(no_persistence);
        command.arg("--port").arg(self.port().to_string());
        command.arg("--dir").arg(folder);
        command.arg("--logfile").arg(folder.join("log"));
        if let Kind::ClusterNode { bus } = &self.kind {
            command.args(["--cluster-enabled", "yes"]);
            command.args(["--cluster-config-file", "nodes.conf"]);
            command
                .arg("--cluster-port")
                .arg(bus.addr().port().to_string());
        }
        command
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn has_ended(&self) -> bool {
        let mut child = lock(&self.child);
        let child = child.as_mut().expect("redis-server was started");
        child.try_wait().expect("redis-server's state").is_some()
    }

    async fn answers_as(&self, id: u32) -> bool {
        if !matches!(self.ask(&["PING"]).await, Ok(Value::SimpleString(pong)) if pong == "PONG") {
            lock(&self.connection).take();
            return false;
        }
        let info: RedisResult<String> = match self.ask(&["INFO", "server"]).await {
            Ok(info) => redis::from_redis_value(info).map_err(Into::into),
            Err(error) => Err(error),
        };
        let is_ours =
            info.is_ok_and(|info| info.lines().any(|line| line == format!("process_id:{id}")));
        if !is_ours {
            lock(&self.connection).take();
        }
        is_ours
    }

    async fn ask(&self, command: &[&str]) -> RedisResult<Value> {
        let known = lock(&self.connection).clone();
        let mut connection = match known {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut packed = redis::Cmd::new();
        for argument in command {
            packed.arg(argument);
        }
        packed.query_async(&mut connection).await
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let socket = self.dial().await?;
        // By default the crate gives up after half a second, and a test may stop the server for longer.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&info, socket, config).await?;
        tokio::spawn(driver);
        *lock(&self.connection) = Some(connection.clone());
        Ok(connection)
    }

    async fn dial(&self) -> std::io::Result<TcpStream> {
        let socket = TcpStream::connect(self.addr()).await?;
        socket.set_nodelay(true)?;
        lock(&self.own).insert(socket.local_addr()?.to_string());
        Ok(socket)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether the process is stopped (state T). Without /proc the answer is yes.
fn is_stopped(id: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{id}/stat")) {
        // The state follows the command's name, which is in parentheses.
        Ok(stat) => stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T')),
        Err(_) => true,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Monitor ===

impl Monitor<'_> {
    /// All commands that the server has executed so far, sent by clients or called by scripts, as
    /// MONITOR prints them.
    pub(crate) async fn lines(&self) -> Vec<String> {
        static MARKS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let mark = MARKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mark = format!("seriatim-test-mark-{mark}");
        self.redis.command(&["ECHO", &mark]).await;
        let marked = format!("\"ECHO\" \"{mark}\"");
        let is_there = || lock(&self.lines).iter().any(|line| line.ends_with(&marked));
        wait_for(is_there, "MONITOR to show the mark").await;
        let lines = lock(&self.lines);
        lines
            .iter()
            .filter(|line| !line.contains("seriatim-test-mark-"))
            .cloned()
            .collect()
    }

    /// The commands that the application sent, one line each: without calls of scripts, and without the
    /// support's own commands, heartbeats and self-tests.
    pub(crate) async fn lines_from_clients(&self) -> Vec<String> {
        let lines = self.lines().await;
        let own = lock(&self.redis.own);
        let is_client = |line: &String| {
            let is_heartbeat = line.contains(&format!("\"1\" \"{INSTANCE}"));
            // Turns send no such message themselves: their scripts do.
            let is_offer = line.contains("\"PUBLISH\"") && line.contains("\"1 granted ");
            // Of a self-test: whether the heartbeat's key and the channel may be used.
            let is_attempt = ["GET", "SUBSCRIBE"]
                .iter()
                .any(|command| line.contains(&format!("\"{command}\" \"{INSTANCE}")));
            let is_test = line.contains(SELF_TEST) || line.ends_with("\"TIME\"") || is_offer;
            client_of(line).is_some_and(|client| {
                let is_left_out = is_heartbeat || is_attempt || is_test;
                client != "lua" && !own.contains(client) && !is_left_out
            })
        };
        lines.into_iter().filter(is_client).collect()
    }

    /// Forgets the commands collected so far.
    pub(crate) async fn clear(&self) {
        self.lines().await;
        lock(&self.lines).clear();
    }
}

impl Drop for Monitor<'_> {
    fn drop(&mut self) {
        self.collecting.abort();
    }
}

/// Gives `127.0.0.1:50000` from `1339518083.107412 [0 127.0.0.1:50000] "keys" "*"`.
fn client_of(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once('[')?;
    let (source, _) = rest.split_once(']')?;
    source.split_once(' ').map(|(_, client)| client)
}

async fn collect(socket: TcpStream, mut inbox: Vec<u8>, lines: Arc<Mutex<Vec<String>>>) {
    loop {
        while let Some(end) = inbox.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = inbox.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            lock(&lines).push(line.trim_end().trim_start_matches('+').to_owned());
        }
        if !matches!(wire::read_some(&socket, &mut inbox).await, Ok(1..)) {
            return;
        }
    }
}
