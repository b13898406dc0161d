//! Malformed and hostile requests, each with what it gets: refused, or forwarded as exactly one request
//! that nobody can read in two ways. None crashes the proxy, none leaves a lock.
//!
//! What the backend got is judged by rules of the tests' own (`oracle`), not by the proxy's.

mod oracle;
mod table;

use std::rc::Rc;

use tempfile::TempDir;
use tokio::task::LocalSet;

use crate::support::app::{CHAT, becomes_free, is_quiet};
use crate::support::backend::Backend;
use crate::support::bench::{Bench, Setup};
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

// === impl Bench ===

async fn start() -> Bench<Redis> {
    let config = format!("{LIMITS}{CHAT}{ROUTES}");
    Setup::new(&config).on_redis().await
}

impl Bench<Redis> {
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
                let rest = client.read_to_close().await;
                assert!(
                    !rest.starts_with(b"HTTP/"),
                    "the connection is closed without an answer: {what}"
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
            let trailers = request.trailers.iter().map(|(name, _)| &**name);
            let judged = oracle::is_unambiguous(&request.raw_head, request.body.len(), trailers);
            if let Err(why) = judged {
                panic!("{what}: {why}: {request:#?}");
            }
        }
        let quiet = async || self.redis.keys().await.is_empty();
        wait_for_async(quiet, &format!("no lock is left: {what}")).await;
    }
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
            // What it gets is another test's; here more may come of a body before it is too large.
            if !matches!(case.gets, Gets::Refused(413, _)) {
                let _ = client.try_answer().await;
            }
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
    let bench = Rc::new(start().await);
    let local = LocalSet::new();
    let mut failed = Vec::new();
    for case in cases {
        // Each by itself, so that all that fail are told of.
        let what = case.what;
        let (bench, case) = (Rc::clone(&bench), case);
        let run = local.spawn_local(async move { bench.run(&case).await });
        if local.run_until(run).await.is_err() {
            failed.push(what);
        }
    }
    assert_eq!(failed, Vec::<&str>::new(), "each gets what the table says");
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
