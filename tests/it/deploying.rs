//! What an image without a shell needs from the binary: a health check, and a drain before the process
//! stops.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::app::CHAT;
use crate::support::backend::{Backend, event};
use crate::support::client::begin_turn;
use crate::support::process::{Process, seriatim};
use crate::support::wait_for;

/// Exit code and output of `seriatim health`.
struct HealthResult {
    code: Option<i32>,
    text: String,
}

fn health(arguments: &[&str], admin: &str, config: &str) -> HealthResult {
    let output = seriatim()
        .arg("health")
        .args(arguments)
        .args(["--config", config])
        .env("SERIATIM__ADMIN__LISTEN", admin)
        .output()
        .expect("the binary starts");
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    HealthResult {
        code: output.status.code(),
        text: texts.concat(),
    }
}

/// Sends this response to one admin request, and gives the request.
async fn respond_once(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("the listener's address");
    let request_task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = vec![0; 4096];
        let count = stream.read(&mut request).await.expect("a request");
        stream
            .write_all(answer.as_bytes())
            .await
            .expect("the response is read");
        String::from_utf8_lossy(&request[..count]).into_owned()
    });
    (address, request_task)
}

/// A copy of the binary that no other test runs. Another process makes the copy: a file that this
/// process has open for writing could be inherited by a program that another test starts, and could
/// then not be executed.
fn copy_program(folder: &TempDir) -> PathBuf {
    let own = folder.path().join("seriatim");
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_seriatim"))
        .arg(&own)
        .status();
    assert!(
        copied.expect("`cp` exists").success(),
        "the binary can be copied"
    );
    own
}

#[tokio::test(flavor = "multi_thread")]
async fn health_asks_readyz_and_with_live_livez() {
    for (arguments, path) in [
        (&[][..], "/readyz"),
        (&["--ready"], "/readyz"),
        (&["--live"], "/livez"),
    ] {
        let (address, request_task) = respond_once("HTTP/1.1 200 OK\r\n\r\nready\n").await;
        // As in a container: the process listens on all addresses, and the check connects over
        // loopback.
        let everywhere = format!("0.0.0.0:{}", address.port());
        let result = health(arguments, &everywhere, "/nowhere/config.toml");
        assert_eq!(
            (result.code, result.text.trim()),
            (Some(0), "ready"),
            "a healthy process is exit code 0, with its response printed"
        );
        let request = request_task.await.expect("a request was sent");
        let line = format!("GET {path} HTTP/1.1\r\n");
        assert!(
            request.starts_with(&line),
            "{arguments:?} asks {path}: {request}"
        );
    }
    let (address, _request_task) =
        respond_once("HTTP/1.1 503 Service Unavailable\r\n\r\ndraining\n").await;
    let result = health(&[], &address.to_string(), "/nowhere/config.toml");
    assert_eq!(result.code, Some(1), "an unhealthy process is exit code 1");
    assert!(
        result.text.contains("draining"),
        "the reason is printed: {}",
        result.text
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_exits_with_1_without_a_process_and_with_78_on_a_bad_address() {
    // A bound socket that does not listen: no other process can take the port meanwhile.
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    silent.bind(&any.into()).expect("a free port");
    let address = silent
        .local_addr()
        .expect("the socket's address")
        .as_socket();
    let address = address.expect("an IP address").to_string();
    let result = health(&[], &address, "/nowhere/config.toml");
    assert_eq!(result.code, Some(1), "no process listens there");
    assert!(
        result.text.contains(&address),
        "the error names the address: {}",
        result.text
    );
    for admin in ["nonsense", "127.0.0.1:0"] {
        let result = health(&[], admin, "/nowhere/config.toml");
        assert_eq!(result.code, Some(78), "the address is invalid: {admin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_ignores_a_file_that_has_become_invalid() {
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    for broken in [
        "upsteam = 1\n[admin]\nlisten = \"ADDRESS\"\n",
        "[admin]\nlisten = \"ADDRESS\"\n[lock]\nlock_timeout = -1\n",
    ] {
        let (address, _request_task) = respond_once("HTTP/1.1 200 OK\r\n\r\nalive\n").await;
        let text = broken.replace("ADDRESS", &address.to_string());
        std::fs::write(&path, text).expect("the file can be written");
        let output = seriatim()
            .args(["health", "--live", "--config"])
            .arg(&path)
            .output()
            .expect("the binary starts");
        assert_eq!(
            output.status.code(),
            Some(0),
            "the process keeps the configuration it has: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_printed_as_json() {
    let (address, _request_task) =
        respond_once("HTTP/1.1 503 Service Unavailable\r\n\r\ndraining\n").await;
    let result = health(&["--json"], &address.to_string(), "/nowhere");
    assert_eq!(result.code, Some(1), "{}", result.text);
    let printed: serde_json::Value = serde_json::from_str(&result.text).expect("JSON");
    let expected = serde_json::json!({
        "healthy": false, "path": "/readyz", "status": 503, "text": "draining",
    });
    assert_eq!(printed, expected, "status and text");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_process_lets_turns_end_even_after_sigterm() {
    let backend = Backend::start("plain:ok").await;
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n{CHAT}",
        backend.url(),
    );
    std::fs::write(&path, text).expect("the file can be written");
    let own = copy_program(&folder);
    let process = Process::start_program(&own, &path);
    let mut stream = begin_turn(process.addr(), "s1", "gate").await;
    stream.read_until(&event(0)).await;

    let drain = Command::new(&own)
        .args(["drain", "--after", "10ms"])
        .output()
        .expect("the binary starts");
    assert_eq!(
        drain.status.code(),
        Some(0),
        "the drain command exits with 0: {}",
        String::from_utf8_lossy(&drain.stderr)
    );
    wait_for(|| process.has_logged("draining"), "the drain is logged").await;
    process.signal("TERM");
    backend.open_gate("s1");
    assert!(
        stream.answer().await.whole,
        "a SIGTERM after the drain command aborts no turn"
    );
    let (status, _) = process.end();
    assert_eq!(status.code(), Some(0), "the process exits with 0");
}

#[test]
fn drain_without_a_process_exits_with_1() {
    let folder = TempDir::new().expect("a folder for the program");
    let own = copy_program(&folder);
    let output = Command::new(&own).arg("drain").output();
    let output = output.expect("the binary starts");
    assert_eq!(
        output.status.code(),
        Some(1),
        "a drain command that finds no process fails"
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("no other process"),
        "the error says why: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_with_a_file_drains_the_process_that_serves_this_file() {
    let backend = Backend::start("plain:ok").await;
    let folder = TempDir::new().expect("a folder for the configuration");
    let own = copy_program(&folder);
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n{CHAT}",
        backend.url(),
    );
    std::fs::write(&path, &text).expect("the file can be written");
    let processes = [(); 2].map(|()| Process::start_program(&own, &path));

    let drain = |file: &[&str]| {
        let output = Command::new(&own).arg("drain").args(file).output();
        output.expect("the binary starts")
    };
    let output = drain(&[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "two processes run: {error}");
    assert!(
        error.contains("--config"),
        "the error has the remedy: {error}"
    );

    for (at, process) in processes.iter().enumerate() {
        let file = folder.path().join(format!("{at}.toml"));
        let admin = format!("{text}\n[admin]\nlisten = \"{}\"\n", process.admin());
        std::fs::write(&file, admin).expect("the file can be written");
        let output = drain(&["--config", &file.to_string_lossy()]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(0),
            "the process is found: {error}"
        );
        wait_for(|| process.has_logged("draining"), "it drains").await;
        if at == 0 {
            assert!(
                !processes[1].has_logged("draining"),
                "the process that serves another file doesn't drain"
            );
        }
    }
    let broken = folder.path().join("broken.toml");
    let admin = format!("[admin]\nlisten = \"{}\"\nbroken = [", processes[0].admin());
    std::fs::write(&broken, admin).expect("the file can be written");
    for file in [&*broken, folder.path()] {
        let output = drain(&["--config", &file.to_string_lossy()]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(78),
            "a file that can't be read stands for no process: {error}"
        );
    }
    let nobody = folder.path().join("nobody.toml");
    std::fs::write(&nobody, "[admin]\nlisten = \"127.0.0.1:1\"").expect("the file can be written");
    let output = drain(&["--config", &nobody.to_string_lossy()]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "nobody serves it: {error}");
    assert!(
        error.contains("127.0.0.1:1"),
        "the error names admin.listen: {error}"
    );
    let output = drain(&["--config", "/nowhere/config.toml"]);
    assert_eq!(
        output.status.code(),
        Some(78),
        "a missing file exits with 78"
    );
    for process in processes {
        process.signal("TERM");
        assert_eq!(process.end().0.code(), Some(0), "the process exits with 0");
    }
}
