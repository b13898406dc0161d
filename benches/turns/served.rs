//! A backend in this process that records when the turns of waiters began and ended, and the clients that wait.
//!
//! Both are on one clock, so the gap between two turns can be measured. The body of a request is an object with no object in it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::statistics::micros;

/// The number of a turn that isn't recorded, and ends when [`Served::release`] is called.
pub(crate) const HOLDER: usize = usize::MAX;

/// A turn, as the backend sees it.
pub(crate) struct ServedTurn {
    /// The waiter that sent it.
    pub(crate) waiter: usize,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// The turns that the backend has served.
#[derive(Default)]
pub(crate) struct Served {
    turns: Mutex<Vec<ServedTurn>>,
    held: Notify,
    released: Notify,
}

// === impl Served ===

impl Served {
    /// Waits until the turn of the holder has begun.
    pub(crate) async fn holder(&self) {
        self.held.notified().await;
    }

    /// Ends the turn of the holder.
    pub(crate) fn release(&self) {
        self.released.notify_one();
    }

    /// Takes the recorded turns, in the order in which they began.
    pub(crate) fn take(&self) -> Vec<ServedTurn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let mut turns = std::mem::take(&mut *turns);
        turns.sort_by_key(|turn| turn.began);
        turns
    }
}

/// Whether each waiter was served once, in the order of arrival.
pub(crate) fn is_in_order(turns: &[ServedTurn], waiters: usize) -> bool {
    turns.iter().map(|turn| turn.waiter).eq(0..waiters)
}

/// The times between the end of a turn and the beginning of the next, in µs.
pub(crate) fn gaps(turns: &[ServedTurn]) -> Vec<f64> {
    turns
        .windows(2)
        .map(|pair| micros(pair[1].began.saturating_duration_since(pair[0].ended)))
        .collect()
}

/// Sends the turn of waiter `n`, and doesn't wait for its response.
pub(crate) async fn begin(addr: SocketAddr, session: &str, n: usize) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let body = format!(r#"{{"session_id":"{session}","user_id":"u"}}"#);
    let length = body.len();
    let request = format!(
        "POST /chat HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-n: {n}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// Serves one turn after the other on each connection, each for `turn`.
pub(crate) async fn serve(
    listener: TcpListener,
    turn: Duration,
    served: Arc<Served>,
) -> io::Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let served = Arc::clone(&served);
        tokio::spawn(async move {
            let mut request = Vec::new();
            loop {
                if stream.read_buf(&mut request).await? == 0 {
                    return Ok::<_, io::Error>(());
                }
                // A start is asked for with GET, which has no body.
                let is_turn = !request.starts_with(b"GET");
                let end: &[u8] = if is_turn { b"}" } else { b"\r\n\r\n" };
                if !request.ends_with(end) {
                    continue;
                }
                let began = Instant::now();
                let text = String::from_utf8_lossy(&request).into_owned();
                let waiter = text.lines().find_map(|line| line.strip_prefix("x-n: "));
                let waiter = waiter.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
                request.clear();
                if waiter == HOLDER {
                    served.held.notify_one();
                    served.released.notified().await;
                } else if is_turn {
                    sleep(turn).await;
                    let turn = ServedTurn {
                        waiter,
                        began,
                        ended: Instant::now(),
                    };
                    let mut turns = served.turns.lock().unwrap_or_else(PoisonError::into_inner);
                    turns.push(turn);
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone")
                    .await?;
            }
        });
    }
}
