//! A backend whose every byte and close a test decides.

use std::net::SocketAddr;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A listener that hands each connection to the test's function. Ends when dropped.
pub(crate) struct RawBackend {
    addr: SocketAddr,
    accepting: JoinHandle<()>,
}

// === impl RawBackend ===

impl RawBackend {
    /// Starts a listener on a free port. `serve` gets each connection and its number, from 0 on.
    pub(crate) async fn start<F>(serve: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("the listener's address");
        let accepting = tokio::spawn(async move {
            for number in 0.. {
                let (socket, _) = listener.accept().await.expect("the backend accepts");
                tokio::spawn(serve(socket, number));
            }
        });
        Self { addr, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for RawBackend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Reads the head of a request, and nothing behind it; `None` at the end of the connection.
pub(crate) async fn read_head(socket: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}
