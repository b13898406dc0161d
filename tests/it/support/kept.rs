//! Kept answers: routes, requests and a backend for tests of clients that come back to a turn.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::app::App;
use super::client::{Answer, Client, Request};
use super::raw::{RawBackend, read_head};
use super::wait_for_async;

/// Turns are kept, and their sessions have a path each to attach and to stop.
pub(crate) const RESUME: &str = r#"
[lock]
replay = true
[[routes]]
name = "attach"
path = "/chat/{id}/stream"
methods = ["GET"]
session_id = ["{path:id}"]
user_id = ["u1"]
attach = true
[[routes]]
name = "stop"
path = "/chat/{id}/stream"
methods = ["DELETE"]
session_id = ["{path:id}"]
user_id = ["u1"]
stop = true
"#;

/// A request that reads the answer of the session's turn.
pub(crate) fn attach(session: &str) -> Request {
    Request::get(&format!("/chat/{session}/stream"))
}

/// A client that attaches on this replica, and reads nothing yet.
pub(crate) async fn attached(replica: SocketAddr, session: &str) -> Client {
    let mut client = Client::connect(replica).await;
    client.send(&attach(session)).await;
    client
}

pub(crate) async fn wait_for_viewers(app: &App, count: usize) {
    let count = count.to_string();
    let reached = async || app.metric("seriatim_viewers").await == count;
    wait_for_async(reached, &format!("{count} viewers")).await;
}

pub(crate) fn assert_whole(case: &str, answer: &Answer, text: &str) {
    assert!(
        answer.whole && answer.status == 200,
        "{case}: the whole answer: {answer:?}"
    );
    assert_eq!(answer.text(), text, "{case}: every byte of it, once");
}

/// A backend that responds to each turn with an event stream: with this text at once, and with the rest when `more` has it.
pub(crate) async fn streaming(text: String, more: watch::Receiver<Option<String>>) -> RawBackend {
    RawBackend::start(move |mut socket, _| {
        let (text, mut more) = (text.clone(), more.clone());
        async move {
            if read_head(&mut socket).await.is_none() {
                return;
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
            let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
            let first = format!("{head}{}", chunk(&text));
            // A proxy that leaves is no failure.
            let _ = socket.write_all(first.as_bytes()).await;
            let rest = more.wait_for(Option::is_some).await;
            let rest = rest.ok().and_then(|rest| rest.clone()).unwrap_or_default();
            let rest = format!("{}0\r\n\r\n", chunk(&rest));
            let _ = socket.write_all(rest.as_bytes()).await;
            // Closing a connection with unread bytes resets it, and what was sent may get lost.
            let _ = socket.shutdown().await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    })
    .await
}
