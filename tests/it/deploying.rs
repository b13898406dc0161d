//! What an image without a shell asks of the binary: a health check, and to be told to drain before
//! the process is to end.

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

/// What `seriatim health` says of a process that answers operators there.
struct Said {
    code: Option<i32>,
    text: String,
}

fn health(arguments: &[&str], admin: &str, config: &str) -> Said {
    let output = seriatim()
        .arg("health")
        .args(arguments)
        .args(["--config", config])
        .env("SERIATIM__ADMIN__LISTEN", admin)
        .output()
        .expect("the binary starts");
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    Said {
        code: output.status.code(),
        text: texts.concat(),
    }
}

/// Answers one operator's request with this, and gives what was asked.
async fn answering(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = vec![0; 4096];
        let count = stream.read(&mut request).await.expect("a request");
        stream
            .write_all(answer.as_bytes())
            .await
            .expect("it is read");
        String::from_utf8_lossy(&request[..count]).into_owned()
    });
    (address, asked)
}

/// A copy of the binary, which no other test runs. Made by another process: a file that this one has
/// open for writing could be inherited by what another test starts at this moment, and not be run.
fn own_program(folder: &TempDir) -> PathBuf {
    let own = folder.path().join("seriatim");
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_seriatim"))
        .arg(&own)
        .status();
    assert!(
        copied.expect("cp is everywhere").success(),
        "it can be copied"
    );
    own
}

#[tokio::test(flavor = "multi_thread")]
async fn health_asks_whether_it_is_ready_or_with_live_whether_it_lives() {
    for (arguments, path) in [
        (&[][..], "/readyz"),
        (&["--ready"], "/readyz"),
        (&["--live"], "/livez"),
    ] {
        let (address, asked) = answering("HTTP/1.1 200 OK\r\n\r\nready\n").await;
        // As in a container: it listens everywhere, and is asked over the loopback.
        let everywhere = format!("0.0.0.0:{}", address.port());
        let said = health(arguments, &everywhere, "/nowhere/config.toml");
        assert_eq!(
            (said.code, said.text.trim()),
            (Some(0), "ready"),
            "what is well is exit code 0 and what it says of itself"
        );
        let asked = asked.await.expect("it was asked");
        let line = format!("GET {path} HTTP/1.1\r\n");
        assert!(
            asked.starts_with(&line),
            "{arguments:?} asks {path}: {asked}"
        );
    }
    let (address, _asked) = answering("HTTP/1.1 503 Service Unavailable\r\n\r\ndraining\n").await;
    let said = health(&[], &address.to_string(), "/nowhere/config.toml");
    assert_eq!(said.code, Some(1), "what isn't well is exit code 1");
    assert!(
        said.text.contains("draining"),
        "and says why: {}",
        said.text
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_of_nobody_is_exit_code_1_and_of_an_address_that_is_none_78() {
    // Bound and not listening: nobody else can be there meanwhile.
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    silent.bind(&any.into()).expect("a free port");
    let address = silent.local_addr().expect("its address").as_socket();
    let address = address.expect("an IP address").to_string();
    let said = health(&[], &address, "/nowhere/config.toml");
    assert_eq!(said.code, Some(1), "nobody is there");
    assert!(
        said.text.contains(&address),
        "and it is said where: {}",
        said.text
    );
    for admin in ["nonsense", "127.0.0.1:0"] {
        let said = health(&[], admin, "/nowhere/config.toml");
        assert_eq!(said.code, Some(78), "nobody can be asked there: {admin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_wrong_by_now_does_not_make_the_process_ill() {
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    for broken in [
        "upsteam = 1\n[admin]\nlisten = \"ADDRESS\"\n",
        "[admin]\nlisten = \"ADDRESS\"\n[lock]\nlock_timeout = -1\n",
    ] {
        let (address, _asked) = answering("HTTP/1.1 200 OK\r\n\r\nalive\n").await;
        let text = broken.replace("ADDRESS", &address.to_string());
        std::fs::write(&path, text).expect("it can be written");
        let output = seriatim()
            .args(["health", "--live", "--config"])
            .arg(&path)
            .output()
            .expect("the binary starts");
        assert_eq!(
            output.status.code(),
            Some(0),
            "the process goes on with the configuration it has: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_drain_it_lets_turns_end_also_when_the_signal_to_stop_comes_then() {
    let backend = Backend::start("plain:ok").await;
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n{CHAT}",
        backend.url(),
    );
    std::fs::write(&path, text).expect("it can be written");
    let own = own_program(&folder);
    let process = Process::start_program(&own, &path);
    let mut stream = begin_turn(process.addr(), "s1", "gate").await;
    stream.read_until(&event(0)).await;

    let told = Command::new(&own)
        .args(["drain", "--after", "10ms"])
        .output()
        .expect("the binary starts");
    assert_eq!(
        told.status.code(),
        Some(0),
        "a hook that has told is done: {}",
        String::from_utf8_lossy(&told.stderr)
    );
    wait_for(|| process.told("draining"), "it says that it drains").await;
    process.signal("TERM");
    backend.open_gate("s1");
    assert!(
        stream.answer().await.whole,
        "the signal that follows the hook aborts nothing"
    );
    let (status, _) = process.end();
    assert_eq!(status.code(), Some(0), "and the process ends well");
}

#[test]
fn told_to_drain_where_nobody_serves_is_exit_code_1() {
    let folder = TempDir::new().expect("a folder for the program");
    let own = own_program(&folder);
    let output = Command::new(&own).arg("drain").output();
    let output = output.expect("the binary starts");
    assert_eq!(
        output.status.code(),
        Some(1),
        "a hook that told nobody has failed"
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("no other process"), "and says so: {text}");
}
