//! A new connection to a server: opens it, logs in, and checks which kind of server answers.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushInfo, Value};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::address::RedisAddress;
use super::error::{not_executed, not_sent};
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
    let login = address.login().await;
    let login = login.map_err(|error| StoreError::NoPassword {
        store: Arc::clone(&node.label),
        reason: error.to_string().into(),
    })?;
    let login = match role {
        NodeRole::Single | NodeRole::Master => login,
        NodeRole::ClusterNode | NodeRole::Sentinel => login.set_db(0),
    };
    let stream = WriteBuffer::new(stream::open(address, node, give_up).await?);
    let connected = MultiplexedConnection::new_with_config(&login, stream, config).await;
    let (mut connection, driver) =
        connected.map_err(|error| stream::login_error(address, node, &error))?;
    let driver = tokio::spawn(driver).abort_handle();
    let hello = connection.send_packed_command(&redis::cmd("HELLO")).await;
    let hello = hello.and_then(Value::extract_error);
    let hello = hello.map_err(|error| not_executed(&node.label, &error))?;
    let checked = ServerHello::from_reply(&hello).check(role, node);
    checked.map_err(|reason| not_sent(&node.label, &reason))?;
    Ok(NodeConnection {
        keeper: address.login_keeper(&login, &node.label),
        connection,
        driver,
    })
}
