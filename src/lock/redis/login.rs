//! A new connection to a server: opens it, logs in, and checks which kind of server answers.
//!
//! The protocol is RESP3, and RESP2 with a server that has no RESP3. Such a server sends messages over a connection of
//! their own only, and does not tell of which kind it is.

use std::sync::Arc;

use redis::aio::{PubSub, PubSubStream};
use redis::{Cmd, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, RedisResult, Value};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::address::RedisAddress;
use super::error::{not_executed, not_sent, server_error};
use super::node::{NodeRole, RedisNode, ServerHello};
use super::pipelined::PipelinedConnection;
use super::reauth::LoginKeeper;
use super::stream;
use crate::lock::StoreError;

/// A connection that has logged in.
pub(super) struct NodeConnection {
    pub(super) connection: PipelinedConnection,
    /// The task that reads and writes. It ends when the connection is lost, and the connection with it.
    pub(super) driver: JoinHandle<()>,
    /// Whether the server sends messages over this connection. Otherwise they need a connection of their own.
    pub(super) has_messages: bool,
    /// What keeps the connection logged in; `None`: its password can't change.
    pub(super) keeper: Option<LoginKeeper>,
}

/// Connects to a server, logs in, and checks that the server can be used in this role. `on_push` gets what the
/// server sends without being asked.
///
/// # Errors
/// When there is no connection, the login fails, or the server is of another kind. The text says what to do.
pub(super) async fn open(
    address: &RedisAddress,
    node: &RedisNode,
    role: NodeRole,
    on_push: impl Fn(PushInfo) + Clone + Send + Unpin + 'static,
    give_up: Instant,
) -> Result<NodeConnection, StoreError> {
    let login = match role {
        NodeRole::Single | NodeRole::Master | NodeRole::ClusterNode => address.login().await,
        NodeRole::Sentinel => address.sentinel_login().await,
    };
    let login = login.map_err(|error| StoreError::NoPassword {
        store: Arc::clone(&node.label),
        option: password_option(role),
        reason: error.to_string().into(),
    })?;
    let failed = |error: RedisError| login_error(address, node, role, &error);
    let (mut connection, mut driver) = connect(address, node, on_push.clone(), give_up).await?;
    let said = log_in(&connection, &hello(&login), &login, true, give_up).await;
    let has_messages = !matches!(&said, Err(error) if lacks_resp3(error));
    if has_messages {
        let hello = ServerHello::from_reply(&said.map_err(failed)?);
        let checked = hello.check(role, node);
        checked.map_err(|reason| not_sent(&node.label, &reason))?;
    } else {
        tracing::debug!(store = %node.label, "the server has no RESP3: connecting with RESP2");
        // It may have closed the connection.
        (connection, driver) = connect(address, node, on_push, give_up).await?;
        // Proxies without HELLO may close a connection with another unknown command.
        let said = log_in(&connection, &auth(&login), &login, false, give_up).await;
        said.map_err(failed)?;
    }
    let keeper = match role {
        NodeRole::Sentinel => address.sentinel_login_keeper(&login, &node.label),
        _ => address.login_keeper(&login, &node.label),
    };
    Ok(NodeConnection {
        keeper,
        connection,
        driver,
        has_messages,
    })
}

/// Subscribes to a channel of a server that has no RESP3, over a new connection. The stream ends when the connection
/// is lost, and the connection ends with the stream.
///
/// # Errors
/// When there is no connection, or the server refuses the login or the channel.
pub(super) async fn subscribe(
    address: &RedisAddress,
    node: &RedisNode,
    channel: &str,
    give_up: Instant,
) -> Result<PubSubStream, StoreError> {
    let login = address.login().await;
    let login = login.map_err(|error| StoreError::NoPassword {
        store: Arc::clone(&node.label),
        option: password_option(NodeRole::Single),
        reason: error.to_string().into(),
    })?;
    let stream = stream::open(address, node, give_up).await?;
    let subscribed = async {
        // A channel belongs to no database. A server without RESP3 has no CLIENT SETINFO.
        let login = login.set_protocol(ProtocolVersion::RESP2).set_db(0);
        let login = login.set_skip_set_lib_name();
        let (mut sink, messages) = PubSub::new(&login, stream).await?.split();
        sink.subscribe(channel).await.map(|()| messages)
    };
    let subscribed = subscribed.await;
    subscribed.map_err(|error| not_executed(&node.label, &error))
}

async fn connect(
    address: &RedisAddress,
    node: &RedisNode,
    on_push: impl Fn(PushInfo) + Send + Unpin + 'static,
    give_up: Instant,
) -> Result<(PipelinedConnection, JoinHandle<()>), StoreError> {
    let stream = stream::open(address, node, give_up).await?;
    let (connection, driver) = PipelinedConnection::new(stream, on_push);
    Ok((connection, tokio::spawn(driver)))
}

/// Asks for RESP3, and logs in.
fn hello(login: &RedisConnectionInfo) -> Cmd {
    let mut hello = redis::cmd("HELLO");
    hello.arg("3");
    if let Some(password) = login.password() {
        let user = login.username().unwrap_or("default");
        hello.arg("AUTH").arg(user).arg(password);
    }
    hello
}

/// Logs in to a server that doesn't know HELLO. Without a password, only shows that the server is there.
fn auth(login: &RedisConnectionInfo) -> Cmd {
    let Some(password) = login.password() else {
        return redis::cmd("PING");
    };
    let mut auth = redis::cmd("AUTH");
    auth.arg(login.username()).arg(password);
    auth
}

/// Sends the first command, selects the database, and names the program for `CLIENT LIST` if it `has_name`. Gives the
/// first reply.
///
/// # Errors
/// When the server refuses the first command or the database, or doesn't reply until `give_up`.
async fn log_in(
    connection: &PipelinedConnection,
    first: &Cmd,
    login: &RedisConnectionInfo,
    has_name: bool,
    give_up: Instant,
) -> RedisResult<Value> {
    let mut commands = redis::pipe();
    let has_database = login.db() != 0;
    if has_database {
        commands.cmd("SELECT").arg(login.db());
    }
    // A server without this command does without it.
    let names = [
        ("LIB-NAME", env!("CARGO_PKG_NAME")),
        ("LIB-VER", env!("CARGO_PKG_VERSION")),
    ];
    for (name, value) in names.into_iter().filter(|_| has_name) {
        commands.cmd("CLIENT").arg("SETINFO").arg(name).arg(value);
    }
    // A server that refuses the connection replies once and closes it.
    let said = connection.send(first, give_up);
    let (said, replies) = tokio::join!(said, connection.send_all(&commands, give_up));
    let said = said?;
    let selected = replies?.into_iter().next().filter(|_| has_database);
    selected.unwrap_or(Value::Nil).extract_error()?;
    Ok(said)
}

/// Whether a server refused the login because it does not know HELLO, or not protocol 3. Proxies have their own words
/// for it.
fn lacks_resp3(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default().to_ascii_lowercase();
    let names_hello = || detail.contains("unknown command") || detail.contains("hello");
    error.code() == Some("NOPROTO") || error.code() == Some("ERR") && names_hello()
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
mod tests;
