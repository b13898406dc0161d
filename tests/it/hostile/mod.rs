//! Malformed and hostile requests, each with what it gets: refused, or forwarded as exactly one request
//! that nobody can read in two ways. None crashes the proxy, none leaves a lock.
//!
//! What the backend got is judged by rules of this file's own (`is_unambiguous`), not by the proxy's.

mod table;

use tempfile::TempDir;

use crate::support::app::{App, CHAT, becomes_free, is_quiet};
use crate::support::backend::{Backend, Recorded};
use crate::support::client::{Client, Request};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::wait_for_async;
use table::{Case, Gets, cases};

/// The route that every case aims at, and two that are keyed by something else than the body.
const ROUTES: &str = r#"
[[routes]]
name = "header"
path = "/header"
session_id = ["{header:x-session}"]

[[routes]]
name = "thread"
path = "/threads/{thread}/runs"
session_id = ["{path:thread}"]

[[routes]]
name = "query"
path = "/query"
session_id = ["{query:session}"]
"#;

const LIMITS: &str = "\n[limits]\nmax_body = 2000\n";

struct Bench {
    backend: Backend,
    redis: Redis,
    app: App,
}

// === impl Bench ===

impl Bench {
    async fn start() -> Self {
        let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
        let config = format!("{LIMITS}{CHAT}{ROUTES}");
        let app = App::on_redis(&backend, &redis, &config);
        Self {
            backend,
            redis,
            app,
        }
    }

    /// Sends the case's bytes, and gives the answers to them up to the one that closes the connection
    /// or to as many as are expected.
    async fn run(&self, case: &Case) {
        let what = case.what;
        let before = self.backend.requests().len();
        let mut client = Client::connect(self.app.addr()).await;
        client.send_raw(&case.bytes).await;
        match &case.gets {
            Gets::Refused(status, reason) => {
                let answer = client.answer().await;
                assert_eq!(
                    answer.error(),
                    (*status, *reason),
                    "it is refused with its reason: {what}"
                );
                assert_eq!(
                    answer.json()["status_code"],
                    *status,
                    "with the body of the contract: {what}"
                );
            }
            Gets::Closed => {
                assert_eq!(
                    client.read_to_close().await,
                    b"",
                    "the connection is closed: {what}"
                );
            }
            Gets::Forwarded(count) => {
                for n in 0..*count {
                    let answer = client.answer().await;
                    assert_eq!(answer.status, 200, "it is served, as number {n}: {what}");
                }
            }
            Gets::ThenRefused(count, status, reason) => {
                for n in 0..*count {
                    let answer = client.answer().await;
                    assert_eq!(answer.status, 200, "it is served, as number {n}: {what}");
                }
                let answer = client.answer().await;
                assert_eq!(
                    answer.error(),
                    (*status, *reason),
                    "what follows is refused: {what}"
                );
            }
        }
        let forwarded = match &case.gets {
            Gets::Refused(..) | Gets::Closed => 0,
            Gets::Forwarded(count) | Gets::ThenRefused(count, ..) => *count,
        };
        drop(client);
        let requests = self.backend.requests();
        assert_eq!(
            requests.len() - before,
            forwarded,
            "the backend gets exactly as many requests as were answered: {what}: {:#?}",
            &requests[before..]
        );
        for request in &requests[before..] {
            if let Err(why) = is_unambiguous(request) {
                panic!("{what}: {why}: {request:#?}");
            }
        }
        let quiet = async || self.redis.keys().await.is_empty();
        wait_for_async(quiet, &format!("no lock is left: {what}")).await;
    }
}

/// Whether every reader would take the request for the same one: strict line ends, one host, one
/// framing with one value, no folded line, no name with white space, nothing in the proxy's name that
/// it hasn't set itself.
fn is_unambiguous(request: &Recorded) -> Result<(), String> {
    let head = &request.raw_head;
    let lines = head
        .strip_suffix(b"\r\n\r\n")
        .ok_or("the head ends in an empty line")?;
    let text = String::from_utf8_lossy(lines);
    let mut lines = text.split("\r\n");
    let first: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = first[..] else {
        return Err(format!("three words in the first line: {first:?}"));
    };
    if method.is_empty()
        || !method
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Err("a method is a word".into());
    }
    if !(target.starts_with('/') || target == "*") || target.bytes().any(|byte| byte <= b' ') {
        return Err("a target is a path".into());
    }
    let mut named = Vec::new();
    for line in lines {
        if line.contains(['\r', '\n', '\0']) {
            return Err(format!("line ends are CR LF: {line:?}"));
        }
        let (name, value) = line
            .split_once(':')
            .ok_or("a name and a value in each line")?;
        if name.is_empty() || name.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(format!("a name has no white space: {name:?}"));
        }
        named.push((
            name.to_ascii_lowercase().replace('_', "-"),
            value.trim().to_owned(),
        ));
    }
    let values = |wanted: &str| {
        let found = named.iter().filter(|(name, _)| name == wanted);
        found.map(|(_, value)| &**value).collect::<Vec<_>>()
    };
    if values("host").len() != 1 {
        return Err("one host".into());
    }
    match (
        &values("content-length")[..],
        &values("transfer-encoding")[..],
    ) {
        ([], []) | ([], ["chunked"]) => {}
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            if *length != request.body.len().to_string() {
                return Err("as long as it says".into());
            }
        }
        other => return Err(format!("one framing with one value: {other:?}")),
    }
    let own: Vec<_> = named
        .iter()
        .filter(|(name, _)| name.starts_with("x-seriatim-"))
        .collect();
    match &own[..] {
        [] => {}
        [(name, value)]
            if name == "x-seriatim-fence" && value.parse::<u64>().is_ok_and(|n| n > 9999) => {}
        other => return Err(format!("the proxy's own name: {other:?}")),
    }
    for hop in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "expect",
    ] {
        if !values(hop).is_empty() {
            return Err(format!("{hop} is for one hop"));
        }
    }
    if values("te").iter().any(|value| *value != "trailers") {
        return Err("te is for one hop".into());
    }
    if !request
        .trailers
        .iter()
        .all(|(name, _)| name.starts_with("x-"))
    {
        return Err("a trailer that means something".into());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_within_the_limits_and_64_mib() {
    const BUFFERED: u64 = 8 << 20;
    const BODY: usize = 1 << 20;
    let backend = Backend::start("plain:ok").await;
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n\
         [limits]\nmax_body = {BODY}\nmax_buffered = {BUFFERED}\n{CHAT}{ROUTES}",
        backend.url()
    );
    std::fs::write(&path, text).expect("it can be written");
    let process = Process::start(&path);
    let addr = process.addr();
    // All of the table at once, several times over.
    let clients = (0..4).flat_map(|_| cases()).map(|case| {
        tokio::spawn(async move {
            let mut client = Client::connect(addr).await;
            client.send_raw(&case.bytes).await;
            // What it gets is another test's.
            let _ = client.try_answer().await;
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("a client asserts nothing");
    }
    // Bodies of more than may be held, each without its last byte, so that they stay.
    let mut refused = 0;
    let mut open = Vec::new();
    for n in 0..40 {
        let body = format!(
            "{{\"session_id\":\"big-{n}\",\"x\":\"{}\"}}",
            "y".repeat(BODY - 60)
        );
        let request = Request::post("/chat").body(body);
        let mut bytes = request.bytes(addr);
        bytes.pop();
        let mut client = Client::connect(addr).await;
        client.send_raw(&bytes).await;
        open.push(client);
    }
    for client in &mut open {
        // Those that are not refused get their last byte, and are served.
        client.send_raw(b"}").await;
        match client.answer().await.error() {
            (503, "overloaded") => refused += 1,
            (status, _) => assert_eq!(status, 200, "it is served if there is room for it"),
        }
    }
    assert!(refused > 0, "more was sent than may be held");
    let (peak, most) = (process.peak_kib(), (BUFFERED >> 10) + (64 << 10));
    assert!(peak <= most, "{peak} KiB of {most} at the most");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gets_what_the_table_says_and_leaves_no_lock() {
    let cases = cases();
    assert!(cases.len() >= 150, "there are {} cases", cases.len());
    let bench = Bench::start().await;
    for case in &cases {
        bench.run(case).await;
    }
    becomes_free(
        &bench.app,
        &bench.backend,
        &bench.redis,
        "s1",
        "all of them",
    )
    .await;
    is_quiet(&bench.redis).await;
}
