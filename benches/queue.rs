//! What waiting costs: many turns of one session wait in the queue, on three replicas.
//!
//! ```text
//! cargo bench --bench queue                                          # about half a minute
//! cargo bench --bench queue -- --waiters 8 --turn-ms 20
//! cargo bench --bench queue -- --python target/test-venv/bin/python  # also redis-py's Lock (pip install redis)
//! ```
//!
//! A backend in this process answers each turn after `--turn-ms`, and records when the turn began and ended. The queue
//! costs the gap between the end of one turn and the beginning of the next: the release, the handover, and the waiter's
//! own command. For comparison, the benchmark prints the round trip to Redis (a PING). redis-py waits as its users do:
//! one thread for each waiter, each polling every 100 ms (`Lock(sleep=0.1)`, the default), with the lock alone and no proxy.
//!
//! Then as many turns wait for a session that nobody releases. Redis reports its commands and CPU per second, with an empty
//! queue and with a full one.
#![expect(
    clippy::print_stdout,
    reason = "tables on standard output are what a benchmark is for"
)]

/// The parts of `benches/turns/` that this benchmark uses.
mod turns {
    #![allow(dead_code, reason = "each benchmark uses what it needs")]
    pub(crate) mod process;
    pub(crate) mod redis;
    pub(crate) mod served;
    pub(crate) mod statistics;
}

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use turns::process::Process;
use turns::redis::{Redis, RedisLoad, connect, round_trip};
use turns::served::{Served, begin, gaps, is_in_order, serve};
use turns::statistics::quantile;

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Options {
    waiters: usize,
    turn: Duration,
    seriatim: PathBuf,
    python: Option<PathBuf>,
}

const REPLICAS: usize = 3;
/// How long an idle queue is measured.
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
            // Cargo passes this.
            "--bench" => {}
            "--waiters" => options.waiters = value()?.parse()?,
            "--turn-ms" => options.turn = Duration::from_millis(value()?.parse()?),
            "--seriatim" => options.seriatim = value()?.into(),
            "--python" => options.python = Some(value()?.into()),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(options)
}

async fn run(options: &Options) -> Result<(), Failure> {
    let folder = TempDir::new()?;
    let redis = Redis::start(folder.path()).await?;
    let served = Arc::new(Served::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let backend = listener.local_addr()?;
    tokio::spawn(serve(listener, options.turn, Arc::clone(&served)));
    let mut replicas = Vec::new();
    for n in 0..REPLICAS {
        replicas.push(replica(options, &folder, n, backend, redis.addr).await?);
    }
    let mut connection = connect(redis.addr).await?;

    println!(
        "{} waiters of one session on {REPLICAS} replicas, turns of {:?}",
        options.waiters, options.turn
    );
    let trip = round_trip(redis.addr, Duration::from_secs(1)).await?;
    println!("round trip to Redis (PING, median): {trip:.0} µs\n");

    serve_queue(options, &replicas, &mut connection).await?;
    let turns = served.take();
    let is_in_order = is_in_order(&turns, options.waiters);
    let mut gaps = gaps(&turns);
    println!("| gap between turns | p50 µs | p99 µs | most µs | in order |");
    println!("| --- | --- | --- | --- | --- |");
    row(
        "seriatim",
        &mut gaps,
        if is_in_order { "yes" } else { "NO" },
    );
    if let Some(python) = &options.python {
        let mut gaps = redis_py_gaps(python, options, redis.addr, &folder)?;
        row("redis-py Lock, sleep 0.1", &mut gaps, "no order");
    }

    println!("\n| waiting turns | commands/s | CPU of Redis, ms/s |");
    println!("| --- | --- | --- |");
    for waiters in [0, options.waiters] {
        set_foreign(&mut connection).await?;
        let mut waiting = Vec::new();
        for n in 0..waiters {
            waiting.push(begin(replicas[n % REPLICAS].1, SESSION, n).await?);
            await_waiters(&mut connection, n + 1).await?;
        }
        let before = RedisLoad::read(&mut connection).await?;
        sleep(IDLE).await;
        let after = RedisLoad::read(&mut connection).await?;
        println!(
            "| {waiters} | {:.1} | {:.2} |",
            (after.scripts - before.scripts) / IDLE.as_secs_f64(),
            (after.cpu - before.cpu) * 1000.0 / IDLE.as_secs_f64()
        );
    }
    match is_in_order {
        true => Ok(()),
        false => Err("turns were not served in the order of their arrival".into()),
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

/// Queues all waiters one after the other, releases the session, and waits until all are served.
async fn serve_queue(
    options: &Options,
    replicas: &[(Process, SocketAddr)],
    connection: &mut MultiplexedConnection,
) -> Result<(), Failure> {
    set_foreign(connection).await?;
    let mut answers = JoinSet::new();
    for n in 0..options.waiters {
        let mut stream = begin(replicas[n % REPLICAS].1, SESSION, n).await?;
        await_waiters(connection, n + 1).await?;
        answers.spawn(async move {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            match answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"done") {
                true => Ok(()),
                false => Err(std::io::Error::other(
                    String::from_utf8_lossy(&answer).into_owned(),
                )),
            }
        });
    }
    ::redis::cmd("DEL").arg(KEY).exec_async(connection).await?;
    while let Some(answer) = answers.join_next().await {
        answer??;
    }
    Ok(())
}

const SESSION: &str = "idle";
const KEY: &str = "lock:session:u:idle";

/// Takes the lock for a holder that isn't Seriatim, and doesn't announce its release.
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

/// Waits until the queue has `count` waiters.
async fn await_waiters(
    connection: &mut MultiplexedConnection,
    count: usize,
) -> Result<(), Failure> {
    let queue = format!("{{{KEY}}}:1:queue");
    loop {
        let waiting: usize = ::redis::cmd("ZCARD")
            .arg(&queue)
            .query_async(connection)
            .await?;
        if waiting >= count {
            return Ok(());
        }
        sleep(Duration::from_millis(1)).await;
    }
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

/// The gaps between turns with redis-py's `Lock`, in µs.
fn redis_py_gaps(
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
