//! Malformed and hostile requests. Each is refused, or forwarded as exactly one request that no parser
//! can read differently. None crashes the proxy, and none leaves a lock.
//!
//! The tests check what the backend got with their own rules (`oracle`), not with those of the proxy.

mod oracle;
mod table;

use std::rc::Rc;

use tempfile::TempDir;
use tokio::task::LocalSet;

use crate::support::app::{CHAT, wait_until_free, wait_until_no_keys};
use crate::support::backend::Backend;
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::wait_for_async;
use table::{Case, Expected, cases};

/// The route that most cases use, and three whose session is not in the body.
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

/// The number of requests in the table, which the security policy tells.
pub(crate) fn number_of_cases() -> usize {
    cases().len()
}

// === impl Bench ===

async fn start() -> Bench<Redis> {
    let config = format!("{LIMITS}{CHAT}{ROUTES}");
    Setup::new(&config).on_redis().await
}

impl Bench<Redis> {
    /// Sends the bytes of a case, and checks the responses and what the backend got.
    async fn run(&self, case: &Case) {
        let what = case.what;
        let before = self.backend.requests().len();
        let mut client = Client::connect(self.app.addr()).await;
        client.send_raw(&case.bytes).await;
        match &case.expected {
            Expected::Refused(status, reason) => {
                let answer = client.answer().await;
                assert_eq!(
                    answer.error(),
                    (*status, *reason),
                    "the request is refused with this reason: {what}"
                );
                assert_eq!(
                    answer.json()["status_code"],
                    *status,
                    "the JSON body has the status: {what}"
                );
            }
            Expected::Closed => {
                let rest = client.read_to_close().await;
                assert!(
                    !rest.starts_with(b"HTTP/"),
                    "the connection is closed without a response: {what}"
                );
            }
            Expected::Forwarded(count) => {
                for n in 0..*count {
                    let answer = client.answer().await;
                    assert_eq!(answer.status, 200, "request {n} is served: {what}");
                }
            }
            Expected::ThenRefused(count, status, reason) => {
                for n in 0..*count {
                    let answer = client.answer().await;
                    assert_eq!(answer.status, 200, "request {n} is served: {what}");
                }
                let answer = client.answer().await;
                assert_eq!(
                    answer.error(),
                    (*status, *reason),
                    "the next request is refused: {what}"
                );
            }
        }
        let forwarded = match &case.expected {
            Expected::Refused(..) | Expected::Closed => 0,
            Expected::Forwarded(count) | Expected::ThenRefused(count, ..) => *count,
        };
        drop(client);
        let requests = self.backend.requests();
        assert_eq!(
            requests.len() - before,
            forwarded,
            "the backend gets exactly the requests that were served: {what}: {:#?}",
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
    std::fs::write(&path, text).expect("the file can be written");
    let process = Process::start(&path);
    let addr = process.addr();
    // All cases of the table at once, four times.
    let clients = (0..4).flat_map(|_| cases()).map(|case| {
        tokio::spawn(async move {
            let mut client = Client::connect(addr).await;
            client.send_raw(&case.bytes).await;
            // Another test checks the responses. With this larger limit, a 413 of the table would wait
            // for more of its body.
            if !matches!(case.expected, Expected::Refused(413, _)) {
                let _ = client.try_answer().await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no client fails");
    }
    // More bodies than `max_buffered` allows. Each lacks its last byte, so that it stays buffered.
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
        // Bodies that were not refused are served when their last byte arrives.
        client.send_raw(b"}").await;
        match client.answer().await.error() {
            (503, "overloaded") => refused += 1,
            (status, _) => assert_eq!(status, 200, "a body is served if there is room for it"),
        }
    }
    assert!(refused > 0, "more was sent than may be buffered");
    let (peak, limit) = (process.peak_kib(), (BUFFERED >> 10) + (64 << 10));
    assert!(peak <= limit, "{peak} KiB, the limit is {limit} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_hostile_request_is_handled_as_the_table_says_and_leaves_no_lock() {
    let cases = cases();
    assert!(cases.len() >= 150, "there are {} cases", cases.len());
    let bench = Rc::new(start().await);
    let local = LocalSet::new();
    let mut failed = Vec::new();
    for case in cases {
        // Each case runs in its own task, so that the test lists all that fail.
        let what = case.what;
        let (bench, case) = (Rc::clone(&bench), case);
        let run = local.spawn_local(async move { bench.run(&case).await });
        if local.run_until(run).await.is_err() {
            failed.push(what);
        }
    }
    assert_eq!(
        failed,
        Vec::<&str>::new(),
        "each case is handled as the table says"
    );
    wait_until_free(&bench.app, &bench.backend, &bench.redis, "s1", "all cases").await;
    wait_until_no_keys(&bench.redis).await;
}
