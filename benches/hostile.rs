//! What one client can cost the others: memory, CPU, and how long an honest turn waits meanwhile.
//!
//! ```text
//! cargo bench --bench hostile                                      # about a minute
//! cargo bench --bench hostile -- --seriatim target/old/seriatim    # another build: before and after
//! cargo bench --bench hostile -- --seconds 10 --connections 64
//! ```
//!
//! Each attack runs against a process of its own. Its clients send one kind of request as fast as they are answered, each on
//! a thread; the honest client sends a plain turn and one in gzip, again and again. A request is sent whole, so the benchmark
//! measures only the work that it causes. Memory is resident memory; `VmHWM` is its peak.
#![expect(
    clippy::print_stdout,
    reason = "tables on standard output are what a benchmark is for"
)]

/// The parts of `benches/turns/` that this benchmark uses.
mod turns {
    #![allow(dead_code, reason = "each benchmark uses what it needs")]
    pub(crate) mod backend;
    pub(crate) mod process;
    pub(crate) mod procfs;
    pub(crate) mod statistics;
}

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use turns::process::{Process, free_port};
use turns::procfs::{CpuTime, resident_kib, status_kib};
use turns::statistics::quantile;

type Failure = Box<dyn std::error::Error>;

struct Options {
    seriatim: PathBuf,
    seconds: u64,
    connections: usize,
}

/// A process under attack.
struct Subject {
    process: Process,
    addr: SocketAddr,
    _folder: TempDir,
}

/// The size of a decoded body, in bytes: a little less than `limits.max_body`.
const BODY: usize = (10 << 20) - 1024;

const HEAD: &str = "POST /chat HTTP/1.1\r\nhost: agent.example\r\n";
const FORM: &str = "content-type: application/x-www-form-urlencoded\r\n";
const PARTS: &str = "content-type: multipart/form-data; boundary=b\r\n";
const GZIP: &str = "content-encoding: gzip\r\n";

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options {
        seriatim: env!("CARGO_BIN_EXE_seriatim").into(),
        seconds: 4,
        connections: 32,
    };
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            // Cargo passes this.
            "--bench" => {}
            "--role" => return turns::backend::run().map(drop),
            "--seriatim" => options.seriatim = value()?.into(),
            "--seconds" => options.seconds = value()?.parse()?,
            "--connections" => options.connections = value()?.parse()?,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let (_backend, backend) = Process::role("backend", &[], &["--role", "backend"])?;
    memory(&options, backend)?;
    work(&options, backend)
}

// === memory ===

/// Holds connections of one kind open, and prints what each of them costs.
fn memory(options: &Options, backend: SocketAddr) -> Result<(), Failure> {
    let large = "a".repeat(60_000);
    println!("| connections that are held | KiB each | all of them, MiB | refused |");
    println!("| --- | --- | --- | --- |");
    type Open<'o> = &'o dyn Fn(&mut TcpStream, usize) -> std::io::Result<()>;
    let idle = |stream: &mut TcpStream, _: usize| stream.write_all(http1("/x", 0, "").as_bytes());
    let turn = |stream: &mut TcpStream, n| stream.write_all(http1("/head?hold", n, "").as_bytes());
    let head =
        |stream: &mut TcpStream, n| stream.write_all(http1("/head?hold", n, &large).as_bytes());
    let drip = |stream: &mut TcpStream, n| {
        let whole = http1("/head?hold", n, &large);
        stream.write_all(&whole.as_bytes()[..whole.len() - 2])
    };
    let many = |stream: &mut TcpStream, n| stream.write_all(&http2(n, ""));
    let heads = |stream: &mut TcpStream, n| stream.write_all(&http2(n, &large));
    let cases: [(&str, usize, Open<'_>); 6] = [
        ("HTTP/1, idle", 200, &idle),
        ("HTTP/1, a turn", 200, &turn),
        ("HTTP/1, a turn with a head of 60 KB", 200, &head),
        ("HTTP/1, a head of 60 KB that never ends", 200, &drip),
        ("HTTP/2, 100 turns", 30, &many),
        ("HTTP/2, 100 turns with heads of 60 KB", 30, &heads),
    ];
    for (case, count, open) in cases {
        let subject = Subject::start(options, backend)?;
        let before = resident_kib(subject.process.id())?;
        let (mut held, mut closed) = (Vec::new(), 0);
        for n in 0..count {
            let mut stream = TcpStream::connect(subject.addr)?;
            match open(&mut stream, n) {
                Ok(()) => held.push(stream),
                // The proxy closed the connection before the whole request was sent.
                Err(_) => closed += 1,
            }
        }
        sleep(Duration::from_secs(3));
        let after = resident_kib(subject.process.id())?;
        let refused = closed + refused(&mut held)?;
        let (each, all) = ((after - before) / count as f64, (after - before) / 1024.0);
        println!("| {case} | {each:.0} | {all:.0} | {refused} |");
    }
    println!();
    Ok(())
}

/// How many of the connections have received an error response.
fn refused(held: &mut [TcpStream]) -> Result<usize, Failure> {
    let mut count = 0;
    for stream in held {
        stream.set_nonblocking(true)?;
        let mut answer = vec![0; 1 << 16];
        let mut all = Vec::new();
        while let Ok(read @ 1..) = stream.read(&mut answer) {
            all.extend_from_slice(&answer[..read]);
        }
        // HTTP/1 and HTTP/2 have the same text in the body.
        let text = b"\"status_code\":503";
        count += usize::from(all.windows(text.len()).any(|window| window == text));
    }
    Ok(count)
}

fn http1(path: &str, session: usize, large: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: agent.example\r\nx-session: s{session}\r\nx-large: {large}\r\n\r\n"
    )
}

/// The frames of a hundred turns on one connection (RFC 9113, RFC 7541 §6.2.2).
fn http2(connection: usize, large: &str) -> Vec<u8> {
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for n in 0..100_u32 {
        let session = format!("s{connection}-{n}");
        let mut block = vec![0x82, 0x86, 0x04];
        text(&mut block, "/head?hold");
        block.push(0x01);
        text(&mut block, "agent.example");
        for (name, value) in [("x-session", &*session), ("x-large", large)] {
            block.push(0);
            text(&mut block, name);
            text(&mut block, value);
        }
        let mut frames = block.chunks(16 << 10).peekable();
        let mut kind = 1;
        while let Some(payload) = frames.next() {
            let length = payload.len() as u32;
            all.extend_from_slice(&length.to_be_bytes()[1..]);
            let end_stream = if kind == 1 { 1 } else { 0 };
            let end_headers = if frames.peek().is_none() { 4 } else { 0 };
            all.extend_from_slice(&[kind, end_stream | end_headers]);
            all.extend_from_slice(&(2 * n + 1).to_be_bytes());
            all.extend_from_slice(payload);
            kind = 9;
        }
    }
    all
}

/// Appends a string without Huffman coding (RFC 7541 §5.2).
fn text(block: &mut Vec<u8>, text: &str) {
    let length = text.len();
    if length < 127 {
        block.push(length as u8);
    } else {
        block.push(127);
        let mut rest = length - 127;
        while rest >= 128 {
            block.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(text.as_bytes());
}

// === work ===

/// Sends requests of one kind, and prints what they cost and how long an honest turn waits.
fn work(options: &Options, backend: SocketAddr) -> Result<(), Failure> {
    let blank = " ".repeat(BODY);
    let attacks = [
        ("nothing", Vec::new()),
        (
            "brotli of 10 MiB",
            request("content-encoding: br\r\n", &brotli(BODY)),
        ),
        (
            "zstd of 10 MiB",
            request(
                "content-encoding: zstd\r\n",
                &zstd::bulk::compress(blank.as_bytes(), 3)?,
            ),
        ),
        ("gzip of 10 MiB", request(GZIP, &gzip(blank.as_bytes())?)),
        ("JSON of 10 MiB, numbers", {
            let list = format!("{{\"a\":[{}0]}}", "1,".repeat(BODY / 2 - 10));
            request("", list.as_bytes())
        }),
        (
            "form of 10 MiB, fields",
            request(FORM, "a&".repeat(BODY / 2).as_bytes()),
        ),
        ("form of 10 MiB, one value", {
            request(FORM, format!("a={}", "x".repeat(BODY - 2)).as_bytes())
        }),
        ("multipart of 10 MiB, parameters", {
            let head = "--b\r\ncontent-disposition: form-data; name=\"a\"";
            let parameters = ";a=b".repeat(BODY / 4 - 50);
            request(
                PARTS,
                format!("{head}{parameters}\r\n\r\n1\r\n--b--\r\n").as_bytes(),
            )
        }),
    ];
    println!(
        "| {} connections send | bytes each | MB/s | CPU, ns per byte | memory at most, MiB | plain turn, ms: p50 / most | in gzip: p50 / most |",
        options.connections
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (attack, request) in attacks {
        let subject = Subject::start(options, backend)?;
        let (sent, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let begun = Instant::now();
        let before = CpuTime::of(subject.process.id())?;
        let waits = scope(|scope| {
            if !request.is_empty() {
                for _ in 0..options.connections {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            // An error: the proxy refused the request and closed the connection.
                            let _ = send(subject.addr, &request, &over, &sent);
                        }
                    });
                }
            }
            let waits = honest(subject.addr, Duration::from_secs(options.seconds));
            over.store(true, Ordering::Relaxed);
            waits
        });
        let (mut plain, mut encoded) = waits?;
        let cpu = CpuTime::of(subject.process.id())?.since(before);
        let bytes = sent.load(Ordering::Relaxed) as f64;
        println!(
            "| {attack} | {} | {:.2} | {:.1} | {:.0} | {:.1} / {:.0} | {:.1} / {:.0} |",
            request.len(),
            bytes / 1e6 / begun.elapsed().as_secs_f64(),
            cpu.as_nanos() as f64 / bytes,
            status_kib(subject.process.id(), "VmHWM:")? / 1024.0,
            quantile(&mut plain, 0.5),
            quantile(&mut plain, 1.0),
            quantile(&mut encoded, 0.5),
            quantile(&mut encoded, 1.0),
        );
    }
    Ok(())
}

/// Sends turns, plain and in gzip. Returns how long the plain ones waited, and those in gzip, in ms.
fn honest(addr: SocketAddr, time: Duration) -> Result<(Vec<f64>, Vec<f64>), Failure> {
    let text = "Is order 471 late? It was to come on Monday. ".repeat(400);
    let body = format!("{{\"session_id\":\"honest\",\"input\":\"{text}\"}}");
    let (plain, encoded) = (
        request("", body.as_bytes()),
        request(GZIP, &gzip(body.as_bytes())?),
    );
    let (mut waits, begun) = ([Vec::new(), Vec::new()], Instant::now());
    while begun.elapsed() < time {
        for (request, waits) in [&plain, &encoded].into_iter().zip(&mut waits) {
            let sent = Instant::now();
            let mut stream = TcpStream::connect(addr)?;
            stream.write_all(request)?;
            let status = answer(&mut stream)?;
            if status != *b"200" {
                return Err(
                    format!("an honest turn got {}", String::from_utf8_lossy(&status)).into(),
                );
            }
            waits.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        sleep(Duration::from_millis(10));
    }
    let [plain, encoded] = waits;
    Ok((plain, encoded))
}

/// Sends a request again and again on one connection.
fn send(
    addr: SocketAddr,
    request: &[u8],
    over: &AtomicBool,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    while !over.load(Ordering::Relaxed) {
        stream.write_all(request)?;
        sent.fetch_add(request.len() as u64, Ordering::Relaxed);
        answer(&mut stream)?;
    }
    Ok(())
}

/// Reads a response, and returns its status.
fn answer(stream: &mut TcpStream) -> std::io::Result<[u8; 3]> {
    let mut got = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece)?;
        got.extend_from_slice(&piece[..read]);
        let head = got.windows(4).position(|window| window == b"\r\n\r\n");
        let whole = head.is_some_and(|end| {
            let text = String::from_utf8_lossy(&got[..end]).to_ascii_lowercase();
            let length = text.split("content-length: ").nth(1);
            let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
            got.len() >= end + 4 + length.unwrap_or(0)
        });
        if whole {
            return got
                .get(9..12)
                .and_then(|status| status.try_into().ok())
                .ok_or_else(broken);
        }
        if read == 0 {
            return Err(broken());
        }
    }
}

fn broken() -> std::io::Error {
    std::io::ErrorKind::UnexpectedEof.into()
}

fn request(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{HEAD}{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// `length` spaces in Brotli (RFC 7932 §9, §10): one block with one command, which inserts one space and
/// copies it. Each prefix code has one symbol.
fn brotli(length: usize) -> Vec<u8> {
    let mut bits = Vec::new();
    let mut put = |value: usize, count: u32| bits.extend((0..count).map(|n| value >> n & 1 == 1));
    // A window of 24 bits; the last block, not empty, its length in six nibbles.
    for (value, count) in [(0xf, 4), (1, 1), (0, 1), (2, 2), (length - 1, 24)] {
        put(value, count);
    }
    // One type of block each, no postfix, no direct distances, one tree each.
    for (value, count) in [(0, 3), (0, 6), (0, 2), (0, 2)] {
        put(value, count);
    }
    // A space; insert 1, copy 2118 and more; distance 1.
    for (symbol, count) in [(0x20, 8), (399, 10), (16, 6)] {
        put(1, 2);
        put(0, 2);
        put(symbol, count);
    }
    put(length - 1 - 2118, 24);
    put(0, 1);
    let bytes = bits.chunks(8).map(|byte| {
        let bits = byte.iter().enumerate();
        bits.fold(0, |byte, (n, bit)| byte | u8::from(*bit) << n)
    });
    bytes.collect()
}

// === impl Subject ===

impl Subject {
    /// Starts a process, and waits until it accepts connections.
    fn start(options: &Options, backend: SocketAddr) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let file = folder.path().join("config.toml");
        let admin = free_port()?;
        let config = format!(
            r#"listen = "{addr}"
upstream = "http://{backend}"
[admin]
listen = "127.0.0.1:{admin}"
[store]
url = "memory:"
[log]
level = "error"
[[routes]]
path = "/chat"
session_id = ["{{body:/session_id}}", "{{form:session_id}}"]
[[routes]]
path = "/head"
session_id = ["{{header:x-session}}"]
"#
        );
        std::fs::write(&file, config)?;
        let mut command = Command::new(&options.seriatim);
        command.arg("run").arg("--config").arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = Process::spawn("seriatim", &mut command)?;
        let begun = Instant::now();
        while TcpStream::connect(addr).is_err() {
            if begun.elapsed() > Duration::from_secs(20) {
                return Err("seriatim did not start".into());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(Self {
            process,
            addr,
            _folder: folder,
        })
    }
}
