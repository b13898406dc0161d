//! Sends any bytes on a client's connection to the whole proxy: validation, hyper, routes, locks in
//! memory, and a backend that panics at an ambiguous request. At the end no lock is left, and at most
//! one request more has reached the backend than was answered.
//!
//! The clock is paused and jumps to the next timer, so waiting for a timeout takes no time. The first
//! byte says how the rest is sent.

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
use seriatim::lock::{
    ClaimIssuer, Dispatcher, Epoch, Fallback, Instance, Locks, Store, StoreHealth,
};
use seriatim::metrics::Metrics;
use seriatim::answer::Answers;
use seriatim::proxy::{CorsMemory, ProcessShared, Proxy, RecordSinks};
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
name = "anywhere"
path = "/{*mount}/sessions/{session}/{turn}"
session_id = ["{path:session}"]
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

/// How long a turn may last after its client has finished: more than any timeout of the configuration.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// The proxy and its backend, which serve all inputs.
struct World {
    runtime: Runtime,
    local: LocalSet,
    proxy: PathBuf,
    store: Arc<MemoryStore>,
    /// How many requests the backend has received.
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
            // Rust's own `main` ignores SIGPIPE; libFuzzer's doesn't.
            let _ = signal(SignalKind::pipe()).expect("a handler for broken pipes");
            let listener = UnixListener::bind(&backend).expect("a socket");
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::task::spawn_local(answer(stream, Rc::clone(&count)));
                }
            });
            let service = Arc::new(ArcSwap::from_pointee(proxy_with(
                config,
                memory,
                watch.clone(),
            )));
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
            // Requests without a lock end too, so that they aren't counted for the next input.
            sleep(GONE_WITHIN).await;
            let Some(answers) = answers else { return };
            if !answers.starts_with(b"HTTP/1.1 ") {
                // HTTP/2, or no response.
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

/// A proxy with its locks in memory.
fn proxy_with(config: Arc<Config>, store: Arc<MemoryStore>, drain: drain::DrainWatch) -> Proxy {
    let issuer = Arc::new(ClaimIssuer::new("fuzz", Epoch(1), false));
    let dispatcher = Dispatcher::new(&issuer);
    store.listen(issuer.instance(), Arc::new(dispatcher.clone()));
    let (store, metrics): (Arc<dyn Store>, _) = (store, Metrics::new());
    let budget = Budget::new(metrics.buffered());
    let sinks = RecordSinks::new(metrics.clone(), Journal::default(), None);
    let health = StoreHealth::new(true, &metrics);
    let instance = Instance::start(
        Arc::clone(&store),
        issuer,
        dispatcher,
        None,
        metrics,
        health,
    );
    let locks = Arc::new(Locks::new(store, Arc::new(instance), Fallback::Reject));
    let shared = ProcessShared {
        answers: Answers::default(),
        budget,
        cors: CorsMemory::default(),
        sinks,
    };
    Proxy::new(config, locks, shared, 1, drain, TaskTracker::new())
}

/// Sends the bytes, and returns the responses; `None`: the client left without waiting for them.
async fn send(proxy: &Path, how: u8, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut client = UnixStream::connect(proxy).await.expect("the proxy accepts");
    // In one piece, or in pieces of 16 to 112 bytes.
    let size = match how & 0b111 {
        0 => bytes.len().max(1),
        pieces => usize::from(pieces) * 16,
    };
    for piece in bytes.chunks(size) {
        // An error: the proxy reads no more.
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

/// Answers each request of a connection.
///
/// # Panics
/// If a request is ambiguous.
async fn answer(mut stream: UnixStream, requests: Rc<Cell<usize>>) -> io::Result<()> {
    let mut inbox = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = find(&inbox, b"\r\n\r\n") {
                break inbox.drain(..end + 4).collect::<Vec<u8>>();
            }
            if stream.read_buf(&mut inbox).await? == 0 {
                // A request whose client left may be incomplete.
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
        let body: &[u8] = match head.starts_with(b"HEAD ") {
            true => b"",
            false => b"ok",
        };
        stream.write_all(&[SERVED, body].concat()).await?;
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Reads a line, without its end; `None`: the connection ended.
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

/// Reads `count` bytes; `false`: the connection ended before.
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
    // Leaked: at the thread's end, tokio's own thread locals are gone, and dropping the runtime needs them.
    static WORLD: &'static World = Box::leak(Box::new(World::start()));
}

fuzz_target!(|bytes: &[u8]| {
    if let Some((how, bytes)) = bytes.split_first() {
        WORLD.with(|world| world.run(*how, bytes));
    }
});
