//! A new connection to a server: opens it, logs in, and checks which kind of server answers.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushInfo, RedisError, Value};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::address::RedisAddress;
use super::error::{not_executed, not_sent, server_error};
use super::node::{NodeRole, RedisNode, ServerHello};
use super::reauth::LoginKeeper;
use super::stream;
use super::write_buffer::WriteBuffer;
use crate::lock::StoreError;

/// A connection that has logged in.
pub(super) struct NodeConnection {
    pub(super) connection: MultiplexedConnection,
    /// The task that reads and writes. The connection ends with it.
    pub(super) driver: AbortHandle,
    /// What keeps the connection logged in; `None`: its password can't change.
    pub(super) keeper: Option<LoginKeeper>,
}

/// Connects to a server, logs in, and checks that the server can be used in this role. `on_push` gets what the
/// server sends without being asked; it gives whether anybody wants it.
///
/// # Errors
/// When there is no connection, the login fails, or the server is of another kind. The text says what to do.
pub(super) async fn open(
    address: &RedisAddress,
    node: &RedisNode,
    role: NodeRole,
    on_push: impl Fn(PushInfo) -> bool + Send + Sync + 'static,
    give_up: Instant,
) -> Result<NodeConnection, StoreError> {
    let config = AsyncConnectionConfig::new()
        // Each caller has its own timeout, which includes the wait for a connection.
        .set_response_timeout(None)
        .set_connection_timeout(None)
        .set_push_sender(move |info| match on_push(info) {
            true => Ok(()),
            false => Err(redis::aio::SendError),
        });
    let login = match role {
        NodeRole::Single | NodeRole::Master | NodeRole::ClusterNode => address.login().await,
        NodeRole::Sentinel => address.sentinel_login().await,
    };
    let login = login.map_err(|error| StoreError::NoPassword {
        store: Arc::clone(&node.label),
        option: password_option(role),
        reason: error.to_string().into(),
    })?;
    let stream = WriteBuffer::new(stream::open(address, node, give_up).await?);
    let connected = MultiplexedConnection::new_with_config(&login, stream, config).await;
    let (mut connection, driver) =
        connected.map_err(|error| login_error(address, node, role, &error))?;
    let driver = tokio::spawn(driver).abort_handle();
    let hello = connection.send_packed_command(&redis::cmd("HELLO")).await;
    let hello = hello.and_then(Value::extract_error);
    let hello = hello.map_err(|error| not_executed(&node.label, &error))?;
    let checked = ServerHello::from_reply(&hello).check(role, node);
    checked.map_err(|reason| not_sent(&node.label, &reason))?;
    let keeper = match role {
        NodeRole::Sentinel => address.sentinel_login_keeper(&login, &node.label),
        _ => address.login_keeper(&login, &node.label),
    };
    Ok(NodeConnection {
        keeper,
        connection,
        driver,
    })
}

/// The option that names the file with the password for a server in this role.
fn password_option(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Sentinel => "store.sentinel_password_file",
        NodeRole::Single | NodeRole::Master | NodeRole::ClusterNode => "store.password_file",
    }
}

/// The error for a login that failed. That of a Sentinel names the options of its login, which are not those of
/// the servers with locks.
fn login_error(
    address: &RedisAddress,
    node: &RedisNode,
    role: NodeRole,
    error: &RedisError,
) -> StoreError {
    let refused = server_error(error).filter(|_| role == NodeRole::Sentinel);
    let Some(refused) = refused else {
        return stream::login_error(address, node, error);
    };
    let remedy = match refused.split(' ').next() {
        Some("NOAUTH") => {
            ": the Sentinels have a login of their own: set store.sentinel_password_file"
        }
        Some("WRONGPASS") => {
            ": correct store.sentinel_user or the file of store.sentinel_password_file"
        }
        _ => "",
    };
    StoreError::Refused {
        store: Arc::clone(&node.label),
        reason: format!("{}{remedy}", refused.trim_end_matches('.')).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::url::{RedisEndpoint, RedisUrl};
    use super::*;
    use crate::secret::SecretFile;

    /// Logs in to a server that gives this reply to each command. Gives the commands that it got first, and the error.
    async fn log_in(
        address: &RedisAddress,
        role: NodeRole,
        reply: &'static str,
    ) -> (String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let endpoint = RedisEndpoint::at("127.0.0.1".into(), port, false).expect("an endpoint");
        let node = RedisNode::new(endpoint, 0);
        let give_up = Instant::now() + address.timeout;
        let opening = open(address, &node, role, |_| false, give_up);
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
            let opened = open(&address, &node, role, |_| false, Instant::now()).await;
            let error = opened.err().expect("no login").to_string();
            assert!(error.contains(option), "{error}");
        }
    }
}
