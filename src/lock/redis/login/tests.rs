//! The login against a scripted server.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::super::url::{RedisEndpoint, RedisUrl};
use super::*;
use crate::secret::SecretFile;

#[test]
fn only_a_server_that_does_not_know_hello_gets_resp2() {
    for (reply, expected) in [
        (
            "ERR unknown command 'HELLO', with args beginning with: '3' ",
            true,
        ),
        (
            "ERR unknown command `HELLO`, with args beginning with: `3`, ",
            true,
        ),
        ("ERR unsupported command 'hello'", true),
        ("NOPROTO unsupported protocol version", true),
        (
            "NOPROTO sorry, this protocol version is not supported",
            true,
        ),
        (
            "WRONGPASS invalid username-password pair or user is disabled.",
            false,
        ),
        (
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH \
             <user> <pass> option can be used to authenticate the client",
            false,
        ),
        ("ERR max number of clients reached", false),
        ("ERR DB index is out of range", false),
        ("LOADING Redis is loading the dataset in memory", false),
    ] {
        let reply_line = format!("-{reply}\r\n");
        let parsed = redis::parse_redis_value(reply_line.as_bytes());
        let error = parsed.and_then(Value::extract_error);
        let error = error.expect_err("the reply is an error");
        assert_eq!(lacks_resp3(&error), expected, "{reply}");
    }
}

/// Logs in to a server that gives this reply to each command. Gives the commands that it got first, and the error.
async fn log_in(address: &RedisAddress, role: NodeRole, reply: &'static str) -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let endpoint = RedisEndpoint::at("127.0.0.1".into(), port, false).expect("an endpoint");
    let node = RedisNode::new(endpoint, 0);
    let give_up = Instant::now() + address.timeout;
    let opening = open(address, &node, role, |_| {}, give_up);
    let mut first = String::new();
    let serving = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut command = [0; 1024];
        loop {
            let read = stream.read(&mut command).await.expect("a command");
            let text = String::from_utf8_lossy(&command[..read]);
            for _ in text.lines().filter(|line| line.starts_with('*')) {
                stream.write_all(reply.as_bytes()).await.expect("sent");
            }
            if first.is_empty() {
                first = text.into_owned();
            }
        }
    };
    let error = tokio::select! {
        opened = opening => opened.err().expect("no login"),
        () = serving => unreachable!("the server serves for ever"),
    };
    (first, error.to_string())
}

#[tokio::test]
async fn a_sentinel_gets_its_own_login_and_never_that_of_the_store() {
    crate::time_limit::limit_this_test();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let secret = || Some(SecretFile::new(file.path()));
    std::fs::write(file.path(), "geheim-2\n").expect("written");
    let url = RedisUrl::parse("redis-sentinel://agent:geheim-1@h/m/3").expect("a URL");
    let plain = RedisAddress::new(&url, Duration::from_secs(60));
    let as_default = plain.clone().with_sentinel_login(None, secret());
    let as_user = (plain.clone()).with_sentinel_login(Some("watcher".into()), secret());
    let noauth = "-NOAUTH HELLO must be called with the client already authenticated\r\n";
    let wrongpass = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    let master = NodeRole::Master;
    for (address, role, reply, login, remedy) in [
        (
            &plain,
            NodeRole::Sentinel,
            noauth,
            "",
            "set store.sentinel_password_file",
        ),
        (
            &as_default,
            NodeRole::Sentinel,
            wrongpass,
            "default geheim-2",
            "correct store.sentinel_user",
        ),
        (
            &as_user,
            NodeRole::Sentinel,
            wrongpass,
            "watcher geheim-2",
            "correct store.sentinel_user",
        ),
        (&as_user, master, wrongpass, "agent geheim-1", ""),
    ] {
        let (command, error) = log_in(address, role, reply).await;
        let words = command
            .split("\r\n")
            .filter(|word| !word.starts_with(['*', '$']));
        let words: Vec<_> = words.collect();
        let words = words.join(" ");
        assert_eq!(words.contains("AUTH"), !login.is_empty(), "{words}");
        assert!(words.contains(login), "{words} has {login}");
        assert_eq!(words.contains("SELECT"), role == master, "{words}");
        let others = ["geheim-1", "geheim-2"]
            .into_iter()
            .filter(|one| !login.contains(one));
        for other in others {
            assert!(
                !words.contains(other),
                "{role:?} gets no other password: {words}"
            );
        }
        assert!(error.contains(remedy), "{error}");
        assert_eq!(
            error.contains("store.sentinel"),
            role == NodeRole::Sentinel,
            "{error}"
        );
        assert!(!error.contains("geheim"), "{error}");
    }
}

/// Opens connections to a server that replies this to the commands of each connection and closes it. Gives what it
/// got over each, and the result.
async fn open_to(replies: &[&str], url: &str) -> (Vec<String>, Result<NodeConnection, StoreError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let endpoint = RedisEndpoint::at("127.0.0.1".into(), port, false).expect("an endpoint");
    let node = RedisNode::new(endpoint, 3);
    let address = RedisAddress::parse(url, Duration::from_secs(60)).expect("a URL");
    let give_up = Instant::now() + address.timeout;
    let opening = open(&address, &node, NodeRole::Single, |_| {}, give_up);
    let serving = async {
        let mut got = Vec::new();
        for reply in replies {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut commands = [0; 1024];
            let read = stream.read(&mut commands).await.expect("commands");
            got.push(String::from_utf8_lossy(&commands[..read]).into_owned());
            stream.write_all(reply.as_bytes()).await.expect("sent");
        }
        got
    };
    let (got, opened) = tokio::join!(serving, opening);
    (got, opened)
}

#[tokio::test]
async fn a_server_that_refuses_the_connection_is_quoted() {
    crate::time_limit::limit_this_test();
    for reason in [
        "ERR max number of clients reached",
        "DENIED Redis is running in protected mode",
    ] {
        let reply = format!("-{reason}\r\n");
        let (got, opened) = open_to(&[&reply], "redis://127.0.0.1/3").await;
        assert!(
            got[0].contains("SELECT"),
            "it replies to one of several commands"
        );
        let error = opened.err().expect("refused").to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_server_without_hello_may_close_the_connection_and_gets_no_command_that_it_cannot_know() {
    crate::time_limit::limit_this_test();
    let replies = ["-ERR unknown command 'HELLO'\r\n", "+PONG\r\n+OK\r\n"];
    let (got, opened) = open_to(&replies, "redis://127.0.0.1/3").await;
    assert!(!opened.expect("logged in").has_messages, "it has no RESP3");
    assert!(
        got[0].contains("HELLO") && got[0].contains("LIB-NAME"),
        "{}",
        got[0]
    );
    assert!(
        got[1].contains("PING") && got[1].contains("SELECT"),
        "{}",
        got[1]
    );
    assert!(
        !got[1].contains("CLIENT"),
        "it has no CLIENT SETINFO: {}",
        got[1]
    );
}

#[tokio::test]
async fn a_file_without_a_password_is_named_by_its_option() {
    crate::time_limit::limit_this_test();
    let url = RedisUrl::parse("redis-sentinel://h/m").expect("a URL");
    let file = || Some(SecretFile::new("/nowhere/password"));
    let address = RedisAddress::new(&url, Duration::from_secs(60));
    let address = address
        .with_password_file(file())
        .with_sentinel_login(None, file());
    let node = RedisNode::new(RedisEndpoint::Socket("/nowhere/redis".into()), 0);
    for (role, option) in [
        (
            NodeRole::Sentinel,
            "store.sentinel_password_file: /nowhere/password ",
        ),
        (NodeRole::Master, "store.password_file: /nowhere/password "),
    ] {
        let opened = open(&address, &node, role, |_| {}, Instant::now()).await;
        let error = opened.err().expect("no login").to_string();
        assert!(error.contains(option), "{error}");
    }
}
