//! Any bytes as a client's connection, with the whole proxy behind it: the screen, hyper, routes, locks
//! in memory, and a backend that takes nothing which could be read in two ways. When all is over no lock
//! is left, and no more requests have reached the backend than were answered.
//!
//! Time stands still while anything happens and jumps when nothing does, so that a connection which
//! waits for its time-outs costs none. The first byte says how the rest is sent.

#![no_main]

#[path = "../../tests/it/hostile/oracle.rs"]
mod oracle;

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use libfuzzer_sys::fuzz_target;
use seriatim::budget::Budget;
use seriatim::config::Config;
use seriatim::drain;
use seriatim::journal::Journal;
use seriatim::listen::{self, ListenEndpoint, Listener, ServeSettings};
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{ClaimIssuer, Epoch, Fallback, Instance, Locks, Store, Dispatcher};
use seriatim::metrics::Metrics;
use seriatim::proxy::{Proxy, RecordSinks};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

const ROUTES: &str = r#"
[limits]
max_body = 4096
max_buffered = 8192
[timeouts]
request_head = 2
request_body = 2
response_head = 2
idle_stream = 5
[[routes]]
name = "chat"
path = "/chat"
session_id = ["{body:/session_id|/sessionId}", "{form:session}", "{header:x-session}"]
user_id = ["{cookie:user}", "unknown"]
[[routes]]
name = "thread"
path = "/threads/{thread}/{*rest}"
session_id = ["{path:thread}"]
blocking = true
[[routes]]
name = "goes on"
path = "/on"
session_id = ["{query:s}"]
on_disconnect = "continue"
[[routes]]
name = "free"
path = "/free"
lock = false
"#;

/// How much longer than any time-out of the configuration a turn may take to be gone, on a clock that
/// jumps.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// What runs for all inputs.
struct World {
    runtime: Runtime,
    local: LocalSet,
    proxy: PathBuf,
    store: Arc<MemoryStore>,
    /// How many requests the backend has got.
    requests: Rc<Cell<usize>>,
    _folder: TempDir,
    _drain: drain::Drain,
}

impl World {
    fn start() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        let (runtime, local) = (runtime.expect("a runtime"), LocalSet::new());
        let folder = TempDir::new().expect("a folder");
        let (proxy, backend) = (folder.path().join("proxy"), folder.path().join("backend"));
        let text = format!("upstream = \"unix:{}\"\n{ROUTES}", backend.display());
        let config = match Config::read("fuzz", &text, &Vec::new()) {
            Ok(config) => Arc::new(config),
            Err(problems) => panic!("{problems}"),
        };
        let settings = ServeSettings {
            request_head: config.timeouts.request_head,
            idle: config.timeouts.idle_stream,
            ..ServeSettings::default()
        };
        let (drain, watch) = drain::channel();
        let requests = Rc::<Cell<usize>>::default();
        let store = Arc::new(MemoryStore::new());
        let (path, count, memory) = (proxy.clone(), Rc::clone(&requests), Arc::clone(&store));
        let ready = async move {
            // As every process of Rust's own has it, but not one whose main function is libFuzzer's.
            signal(SignalKind::pipe()).expect("a handler for broken pipes");
            let listener = UnixListener::bind(&backend).expect("a socket");
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::task::spawn_local(answer(stream, Rc::clone(&count)));
                }
            });
            let service = Arc::new(ArcSwap::from_pointee(made(config, memory, watch.clone())));
            let (settings, serving) = (Arc::new(settings), watch.clone());
            let listener = Listener::bind(&ListenEndpoint::Unix(path)).expect("a socket");
            tokio::task::spawn_local(listener.accept(watch, move |accepted| {
                let (settings, drain) = (Arc::clone(&settings), serving.clone());
                let service = Arc::clone(&service);
                tokio::task::spawn_local(async move {
                    listen::serve(accepted, &settings, drain, service).await;
                });
            }));
        };
        local.block_on(&runtime, ready);
        Self {
            runtime,
            local,
            proxy,
            store,
            requests,
            _folder: folder,
            _drain: drain,
        }
    }

    fn run(&self, how: u8, bytes: &[u8]) {
        let before = self.requests.get();
        self.local.block_on(&self.runtime, async {
            let answers = send(&self.proxy, how, bytes).await;
            let is_quiet = async {
                while !self.store.is_empty() {
                    sleep(Duration::from_millis(100)).await;
                }
            };
            let is_quiet = tokio::time::timeout(GONE_WITHIN, is_quiet).await;
            assert!(is_quiet.is_ok(), "no lock outlives its turn");
            // What is under way without a lock is over, too: the next input is not to be judged by it.
            sleep(GONE_WITHIN).await;
            let Some(answers) = answers else { return };
            if !answers.starts_with(b"HTTP/1.1 ") {
                // HTTP/2, or nothing at all.
                return;
            }
            let served = answers
                .windows(SERVED.len())
                .filter(|window| *window == SERVED)
                .count();
            let arrived = self.requests.get() - before;
            assert!(
                arrived <= served + 1,
                "{arrived} requests arrived, {served} were answered"
            );
        });
    }
}

/// The proxy, its locks in memory.
fn made(config: Arc<Config>, store: Arc<MemoryStore>, drain: drain::DrainWatch) -> Proxy {
    let issuer = Arc::new(ClaimIssuer::new("fuzz", Epoch(1), false));
    let switchboard = Dispatcher::new(&issuer);
    store.listen(issuer.instance(), Arc::new(switchboard.clone()));
    let (store, metrics): (Arc<dyn Store>, _) = (store, Metrics::new());
    let budget = Budget::new(metrics.buffered());
    let tally = RecordSinks {
        metrics: metrics.clone(),
        journal: Journal::default(),
        tracer: None,
    };
    let instance = Instance::start(Arc::clone(&store), issuer, switchboard, None, metrics);
    let locks = Arc::new(Locks::new(store, Arc::new(instance), Fallback::Reject));
    Proxy::new(config, locks, budget, 1, drain, TaskTracker::new(), tally)
}

/// Sends the bytes, and gives what came back; `None` if the client left without waiting for it.
async fn send(proxy: &Path, how: u8, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut client = UnixStream::connect(proxy).await.expect("the proxy accepts");
    // In one piece, or in pieces of some bytes.
    let size = match how & 0b111 {
        0 => bytes.len().max(1),
        pieces => usize::from(pieces) * 16,
    };
    for piece in bytes.chunks(size) {
        // An error is a proxy that has heard enough.
        if client.write_all(piece).await.is_err() {
            break;
        }
        if size < bytes.len() {
            tokio::task::yield_now().await;
        }
    }
    if how & 0b1000 != 0 {
        return None;
    }
    let mut answers = Vec::new();
    let _ = client.read_to_end(&mut answers).await;
    Some(answers)
}

// === the backend ===

const SERVED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ";

/// Answers each request of a connection, and breaks down where one is ambiguous.
async fn answer(mut stream: UnixStream, requests: Rc<Cell<usize>>) -> io::Result<()> {
    let mut inbox = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = find(&inbox, b"\r\n\r\n") {
                break inbox.drain(..end + 4).collect::<Vec<u8>>();
            }
            if stream.read_buf(&mut inbox).await? == 0 {
                // One whose client left may break off anywhere.
                return Ok(());
            }
        };
        requests.set(requests.get() + 1);
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let field = |name: &str| {
            let mut lines = text.split("\r\n");
            lines.find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(": ")
                    .map(str::to_owned)
            })
        };
        let mut trailers = Vec::new();
        let mut length = 0;
        if field("transfer-encoding").is_some() {
            loop {
                let Some(line) = line(&mut stream, &mut inbox).await? else {
                    return Ok(());
                };
                let size = usize::from_str_radix(&line, 16).expect("hyper's own chunks");
                if size == 0 {
                    break;
                }
                length += size;
                if !skip(&mut stream, &mut inbox, size + 2).await? {
                    return Ok(());
                }
            }
            loop {
                match line(&mut stream, &mut inbox).await? {
                    None => return Ok(()),
                    Some(line) if line.is_empty() => break,
                    Some(line) => {
                        let name = line.split(':').next().unwrap_or_default();
                        trailers.push(name.to_ascii_lowercase());
                    }
                }
            }
        } else if let Some(announced) = field("content-length") {
            length = announced.parse().expect("a number");
            if !skip(&mut stream, &mut inbox, length).await? {
                return Ok(());
            }
        }
        let trailers = trailers.iter().map(|name| &**name);
        if let Err(why) = oracle::is_unambiguous(&head, length, trailers) {
            panic!("{why}: {:?}", String::from_utf8_lossy(&head));
        }
        if let Some(protocol) = field("upgrade") {
            stream
                .write_all(&[SWITCHED, protocol.as_bytes(), b"\r\n\r\n"].concat())
                .await?;
            let mut echoed = vec![0; 64];
            let count = stream.read(&mut echoed).await?;
            return stream.write_all(&echoed[..count]).await;
        }
        let body: &[u8] = if head.starts_with(b"HEAD ") {
            b""
        } else {
            b"ok"
        };
        stream.write_all(&[SERVED, body].concat()).await?;
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A line, without its end; `None` if the connection ends.
async fn line(stream: &mut UnixStream, inbox: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = find(inbox, b"\r\n") {
            let line: Vec<u8> = inbox.drain(..end + 2).collect();
            return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
        }
        if stream.read_buf(inbox).await? == 0 {
            return Ok(None);
        }
    }
}

/// Whether so many bytes came.
async fn skip(stream: &mut UnixStream, inbox: &mut Vec<u8>, count: usize) -> io::Result<bool> {
    while inbox.len() < count {
        if stream.read_buf(inbox).await? == 0 {
            return Ok(false);
        }
    }
    inbox.drain(..count);
    Ok(true)
}

thread_local! {
    // Never dropped: at the thread's end, what it would need for that is gone.
    static WORLD: &'static World = Box::leak(Box::new(World::start()));
}

fuzz_target!(|bytes: &[u8]| {
    if let Some((how, bytes)) = bytes.split_first() {
        WORLD.with(|world| world.run(*how, bytes));
    }
});
