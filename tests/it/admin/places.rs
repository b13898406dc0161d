//! Which connections the admin listener keeps: probes are answered whatever other connections are open.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::get;
use crate::support::app::{App, CHAT};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::process::Process;
use crate::support::within;

/// The limit of open connections, as docs/admin.md states it.
const MAX_CONNECTIONS: usize = 256;

const TOKEN: &str = "geheim-0123456789";

/// Each probe uses a new connection, as Kubernetes does.
async fn assert_probes_answered(admin: SocketAddr, during: &str) {
    for probe in ["/livez", "/readyz"] {
        let mut client = Client::connect(admin).await;
        client.send(&Request::get(probe)).await;
        match client.try_answer().await {
            Ok(answer) => assert_eq!(answer.status, 200, "{probe} during {during}"),
            Err(_) => panic!("{probe} is answered during {during}"),
        }
    }
}

#[tokio::test]
async fn probes_are_answered_with_any_other_connections_open() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut held = Vec::new();
    for (half, during) in [
        (&b""[..], "idle connections"),
        (b"GET /livez HTTP/1.1\r\nhost: a\r\n", "half-sent heads"),
        (
            b"POST /locks/u1/s1/interrupt HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n",
            "bodies that do not arrive",
        ),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "HTTP/2 without a request",
        ),
    ] {
        for _ in 0..MAX_CONNECTIONS + 50 {
            let mut client = Client::connect(app.admin()).await;
            if !half.is_empty() {
                client.send_raw(half).await;
            }
            held.push(client);
        }
        for _ in 0..3 {
            assert_probes_answered(app.admin(), during).await;
        }
    }
}

#[tokio::test]
async fn the_longest_idle_connection_is_closed_for_a_new_one() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut client = Client::connect(app.admin()).await;
        assert_eq!(
            client.get("/livez").await.status,
            200,
            "a connection is free"
        );
        open.push(client);
    }
    assert_eq!(
        open[0].get("/metrics").await.status,
        200,
        "the oldest connection is in use"
    );
    let mut newest = Client::connect(app.admin()).await;
    assert_eq!(
        newest.get("/livez").await.status,
        200,
        "one connection more is served"
    );
    within(
        "the longest idle connection to be closed",
        open[1].read_to_close(),
    )
    .await;
    for n in (2..MAX_CONNECTIONS).chain([0]) {
        let answer = open[n].get("/livez").await;
        assert_eq!(answer.status, 200, "connection {n} had a later request");
    }
}

/// Starts a process whose token file is a pipe without a writer, so that reading the token hangs.
fn process_that_waits_for_its_token(folder: &Path, upstream: &str) -> Process {
    let (path, token) = (folder.join("config.toml"), folder.join("token"));
    std::fs::write(&token, TOKEN).expect("a token");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{upstream}\"\n[admin]\ntoken_file = \"{}\"\n{CHAT}",
        token.display()
    );
    std::fs::write(&path, text).expect("a configuration");
    let process = Process::start(&path);
    std::fs::remove_file(&token).expect("the file existed");
    let made = Command::new("mkfifo").arg(&token).status();
    assert!(
        made.expect("mkfifo is everywhere").success(),
        "`mkfifo` exists"
    );
    process
}

#[tokio::test]
async fn hanging_calls_take_one_thread_and_leave_probes_alone() {
    let backend = Backend::start("plain:ok").await;
    let folder = tempfile::tempdir().expect("a folder");
    let process = process_that_waits_for_its_token(folder.path(), &backend.url());
    assert_eq!(
        get(process.admin(), "/livez").await.status,
        200,
        "the process lives"
    );
    let before = process.threads();
    let call = Request::get("/locks").header("authorization", &format!("Bearer {TOKEN}"));
    let mut calls = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 50 {
        let mut client = Client::connect(process.admin()).await;
        client.send(&call).await;
        calls.push(client);
    }
    for _ in 0..3 {
        assert_probes_answered(process.admin(), "calls that hang").await;
    }
    let more = process.threads().saturating_sub(before);
    assert!(
        more <= 1,
        "one thread reads the token for all calls, not {more}"
    );
    // All calls that the limit admits hang. Later ones get an error response, and are the first to be
    // closed.
    let last = calls.last_mut().expect("there are calls").answer().await;
    assert_eq!(
        last.error(),
        (503, "overloaded"),
        "a call beyond the limit is refused"
    );
}

#[tokio::test]
async fn a_process_raises_its_limit_of_open_files() {
    let backend = Backend::start("plain:ok").await;
    let folder = tempfile::tempdir().expect("a folder");
    let (path, program) = (
        folder.path().join("config.toml"),
        folder.path().join("limited"),
    );
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n{CHAT}",
        backend.url()
    );
    std::fs::write(&path, text).expect("a configuration");
    let text = format!(
        "#!/bin/sh\nulimit -Sn 100\nulimit -Hn 4000\nexec {} \"$@\"\n",
        env!("CARGO_BIN_EXE_seriatim")
    );
    std::fs::write(&program, text).expect("a program");
    let made = Command::new("chmod").arg("+x").arg(&program).status();
    assert!(
        made.expect("chmod is everywhere").success(),
        "`chmod` exists"
    );
    let process = Process::start_program(&program, &path);
    assert_eq!(
        process.allowed_files(),
        4000,
        "the soft limit is raised to the hard one"
    );
}
