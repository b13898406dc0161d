//! What waiting costs: many turns of one session, waiting in line on three replicas.
//!
//! ```text
//! cargo bench --bench line                                          # about half a minute
//! cargo bench --bench line -- --waiters 8 --turn-ms 20
//! cargo bench --bench line -- --python target/test-venv/bin/python  # beside redis-py's Lock (pip install redis)
//! ```
//!
//! A backend in this process answers each turn after `--turn-ms` and notes when it began and ended. The gap from one turn's
//! end to the next one's beginning, both as the backend sees them, is what the line costs: the release, the hand-over, and
//! the waiter's own command. Beside it stands the round trip to Redis (a PING). The peer waits as its users do: one thread for
//! each waiter, each polling every 100 ms (`Lock(sleep=0.1)`, the default), with the lock alone and no proxy.
//!
//! Then the same number waits for a session that nobody frees, and Redis says what that costs it: commands and CPU per second,
//! with nobody in the line and with everybody.
#![expect(
    clippy::print_stdout,
    reason = "tables on standard output are what a benchmark is for"
)]

/// What this benchmark shares with the other one, from `benches/turns/`.
mod turns {
    #![allow(dead_code, reason = "each benchmark uses what it needs")]
    pub(crate) mod process;
    pub(crate) mod redis;
    pub(crate) mod statistics;
}

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use turns::process::Process;
use turns::redis::{Redis, round_trip};
use turns::statistics::{micros, quantile};

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Options {
    waiters: usize,
    turn: Duration,
    seriatim: PathBuf,
    python: Option<PathBuf>,
}

/// When turns began and ended at the backend.
type Spans = Arc<Mutex<Vec<(usize, Instant, Instant)>>>;

const REPLICAS: usize = 3;
/// For how long an idle line is watched.
const IDLE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Failure> {
    let options = options()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(&options))
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        waiters: 200,
        turn: Duration::from_millis(20),
        seriatim: env!("CARGO_BIN_EXE_seriatim").into(),
        python: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--waiters" => options.waiters = value()?.parse()?,
            "--turn-ms" => options.turn = Duration::from_millis(value()?.parse()?),
            "--seriatim" => options.seriatim = value()?.into(),
            "--python" => options.python = Some(value()?.into()),
            other => return Err(format!("there is no {other}").into()),
        }
    }
    Ok(options)
}

async fn run(options: &Options) -> Result<(), Failure> {
    let folder = TempDir::new()?;
    let redis = Redis::start(folder.path()).await?;
    let spans = Spans::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let backend = listener.local_addr()?;
    tokio::spawn(serve(listener, options.turn, Arc::clone(&spans)));
    let mut replicas = Vec::new();
    for n in 0..REPLICAS {
        replicas.push(replica(options, &folder, n, backend, redis.addr).await?);
    }
    let url = format!("redis://{}/0", redis.addr);
    let client = ::redis::Client::open(url.as_str())?;
    let mut connection = client.get_multiplexed_async_connection().await?;

    println!(
        "{} waiters of one session on {REPLICAS} replicas, turns of {:?}",
        options.waiters, options.turn
    );
    let trip = round_trip(redis.addr, Duration::from_secs(1)).await?;
    println!("round trip to Redis (PING, median): {trip:.0} µs\n");

    let order = line(options, &replicas, &mut connection).await?;
    let mut spans = std::mem::take(&mut *spans.lock().unwrap_or_else(PoisonError::into_inner));
    spans.retain(|(n, ..)| order.contains(n));
    spans.sort_by_key(|(_, began, _)| *began);
    let served: Vec<_> = spans.iter().map(|(n, ..)| *n).collect();
    let mut gaps: Vec<_> = spans
        .windows(2)
        .map(|pair| micros(pair[1].1.saturating_duration_since(pair[0].2)))
        .collect();
    let in_order = served == order;
    println!("| gap between turns | p50 µs | p99 µs | most µs | in order |");
    println!("| --- | --- | --- | --- | --- |");
    row("seriatim", &mut gaps, if in_order { "yes" } else { "NO" });
    if let Some(python) = &options.python {
        let mut gaps = peer(python, options, redis.addr, &folder)?;
        row("redis-py Lock, sleep 0.1", &mut gaps, "no order");
    }

    println!("\n| waiting for nothing | commands/s | CPU of Redis, ms/s |");
    println!("| --- | --- | --- |");
    for waiters in [0, options.waiters] {
        set_foreign(&mut connection).await?;
        let mut waiting = Vec::new();
        for n in 0..waiters {
            waiting.push(begin(replicas[n % REPLICAS].1, "idle", n).await?);
            is_waiting(&mut connection, "idle", n + 1).await?;
        }
        let before = load(&mut connection).await?;
        sleep(IDLE).await;
        let after = load(&mut connection).await?;
        println!(
            "| {waiters} in the line | {:.1} | {:.2} |",
            (after.0 - before.0) / IDLE.as_secs_f64(),
            (after.1 - before.1) * 1000.0 / IDLE.as_secs_f64()
        );
    }
    if in_order {
        Ok(())
    } else {
        Err("turns were not served in the order of their arrival".into())
    }
}

fn row(name: &str, gaps: &mut [f64], order: &str) {
    println!(
        "| {name} | {:.0} | {:.0} | {:.0} | {order} |",
        quantile(gaps, 0.5),
        quantile(gaps, 0.99),
        quantile(gaps, 1.0)
    );
}

/// Has everybody wait, frees the session, and gives the order of their arrival.
async fn line(
    options: &Options,
    replicas: &[(Process, SocketAddr)],
    connection: &mut MultiplexedConnection,
) -> Result<Vec<usize>, Failure> {
    set_foreign(connection).await?;
    let mut answers = JoinSet::new();
    for n in 0..options.waiters {
        let mut stream = begin(replicas[n % REPLICAS].1, "idle", n).await?;
        is_waiting(connection, "idle", n + 1).await?;
        answers.spawn(async move {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            let whole = answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"done");
            whole
                .then_some(())
                .ok_or_else(|| std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()))
        });
    }
    ::redis::cmd("DEL").arg(KEY).exec_async(connection).await?;
    while let Some(answer) = answers.join_next().await {
        answer??;
    }
    Ok((0..options.waiters).collect())
}

const KEY: &str = "lock:session:u:idle";

/// Takes the lock as a plain holder does, who tells nobody when it is gone.
async fn set_foreign(connection: &mut MultiplexedConnection) -> Result<(), Failure> {
    ::redis::cmd("SET")
        .arg(KEY)
        .arg("nobody")
        .arg("EX")
        .arg(600)
        .exec_async(connection)
        .await?;
    Ok(())
}

async fn is_waiting(
    connection: &mut MultiplexedConnection,
    session: &str,
    count: usize,
) -> Result<(), Failure> {
    let line = format!("{{lock:session:u:{session}}}:queue");
    loop {
        let waiting: usize = ::redis::cmd("ZCARD")
            .arg(&line)
            .query_async(connection)
            .await?;
        if waiting >= count {
            return Ok(());
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// How many scripts clients have called so far, and the CPU that Redis has used, in seconds.
async fn load(connection: &mut MultiplexedConnection) -> Result<(f64, f64), Failure> {
    let info: String = ::redis::cmd("INFO")
        .arg("commandstats")
        .arg("cpu")
        .query_async(connection)
        .await?;
    let value = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        let digits = line.unwrap_or("0").split(',').next().unwrap_or("0");
        digits.parse::<f64>().unwrap_or(0.0)
    };
    let commands = value("cmdstat_evalsha:calls=");
    Ok((commands, value("used_cpu_user:") + value("used_cpu_sys:")))
}

async fn begin(addr: SocketAddr, session: &str, n: usize) -> Result<TcpStream, Failure> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let body = format!("{{\"session_id\":\"{session}\",\"user_id\":\"u\"}}");
    let mut request =
        format!("POST /chat HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-n: {n}\r\n");
    write!(
        request,
        "content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

async fn replica(
    options: &Options,
    folder: &TempDir,
    n: usize,
    backend: SocketAddr,
    redis: SocketAddr,
) -> Result<(Process, SocketAddr), Failure> {
    let port = turns::process::free_port()?;
    let file = folder.path().join(format!("replica-{n}.toml"));
    std::fs::write(
        &file,
        format!(
            "listen = \"127.0.0.1:{port}\"\nupstream = \"http://{backend}\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n[store]\nurl = \"redis://{redis}/0\"\n\
             [lock]\nblocking = true\nmax_waiters = 10000\n[log]\nlevel = \"warn\"\n\
             [[routes]]\npath = \"/chat\"\nsession_id = [\"{{body:/session_id}}\"]\n\
             user_id = [\"{{body:/user_id}}\"]\n"
        ),
    )?;
    let mut command = Command::new(&options.seriatim);
    command.arg("--config").arg(&file).stdin(Stdio::null());
    let process = Process::spawn("seriatim", &mut command)?;
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    while TcpStream::connect(addr).await.is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    Ok((process, addr))
}

/// The backend: one turn after the other on each connection, each of the same length.
async fn serve(listener: TcpListener, turn: Duration, spans: Spans) -> Result<(), std::io::Error> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let spans = Arc::clone(&spans);
        tokio::spawn(async move {
            let mut request = Vec::new();
            loop {
                if stream.read_buf(&mut request).await? == 0 {
                    return Ok::<_, std::io::Error>(());
                }
                // Each body is one object without another in it.
                if !request.ends_with(b"}") {
                    continue;
                }
                let began = Instant::now();
                let text = String::from_utf8_lossy(&request).into_owned();
                let number = text.lines().find_map(|line| line.strip_prefix("x-n: "));
                let number = number.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
                request.clear();
                sleep(turn).await;
                spans.lock().unwrap_or_else(PoisonError::into_inner).push((
                    number,
                    began,
                    Instant::now(),
                ));
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone")
                    .await?;
            }
        });
    }
}

/// The same with redis-py: gaps in µs.
fn peer(
    python: &PathBuf,
    options: &Options,
    redis: SocketAddr,
    folder: &TempDir,
) -> Result<Vec<f64>, Failure> {
    const PROGRAM: &str = r#"
import sys, threading, time, redis
port, waiters, turn = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
spans, guard = [], threading.Lock()
pool = redis.ConnectionPool(port=port, max_connections=waiters + 10)
def wait():
    client = redis.Redis(connection_pool=pool)
    lock = client.lock("peer", timeout=600, blocking=True)
    lock.acquire()
    began = time.monotonic()
    time.sleep(turn)
    with guard:
        spans.append((began, time.monotonic()))
    lock.release()
threads = [threading.Thread(target=wait) for _ in range(waiters)]
first = redis.Redis(connection_pool=pool).lock("peer", timeout=600)
first.acquire()
for thread in threads: thread.start()
time.sleep(2)
first.release()
for thread in threads: thread.join()
spans.sort()
for (_, end), (began, _) in zip(spans, spans[1:]): print((began - end) * 1e6)
"#;
    let program = folder.path().join("peer.py");
    std::fs::write(&program, PROGRAM)?;
    let output = Command::new(python)
        .arg(&program)
        .arg(redis.port().to_string())
        .arg(options.waiters.to_string())
        .arg(options.turn.as_secs_f64().to_string())
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(str::parse).collect::<Result<_, _>>()?)
}
