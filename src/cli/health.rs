//! `seriatim health`: asks the process that serves by the same configuration how it does.
//!
//! For a container's health check in an image that holds nothing but this program. It speaks just
//! enough HTTP/1.1 to read a status and a sentence, and never waits for longer than [`LIMIT`].

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{BAD_CONFIGURATION, OK, complain, say};
use crate::config::admin;

/// Options of `seriatim health`.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Whether it lives, rather than whether it should get requests
    #[arg(long, conflicts_with = "ready")]
    live: bool,
    /// Whether it should get requests (the default): not while it drains, nor without its store
    #[arg(long)]
    ready: bool,
}

/// It isn't as it should be.
const UNWELL: u8 = 1;

/// The process answers in milliseconds; what takes a thousand times that is as good as silence. Below
/// the five seconds that container engines are told to wait.
const LIMIT: Duration = Duration::from_secs(3);

/// More than any of the answers has.
const LONGEST: u64 = 16 << 10;

// === impl Health ===

impl HealthArgs {
    /// Asks, prints the answer's first line, and gives the exit code.
    pub(super) async fn ask(&self, config: &Path) -> u8 {
        let addresses = match admin::addresses(config) {
            Ok(addresses) => addresses,
            Err(problems) => {
                complain(problems.to_string().trim_end());
                return BAD_CONFIGURATION;
            }
        };
        let path = if self.live { "/livez" } else { "/readyz" };
        let asked = timeout(LIMIT, first_answer(&addresses, path));
        let asked = asked.await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        match asked {
            Ok((200, text)) => {
                say(text);
                OK
            }
            Ok((status, text)) => {
                complain(format!("{path} answers {status}: {text}"));
                UNWELL
            }
            Err(error) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                complain(format!(
                    "nobody answers at {}: {error}; is seriatim running with this admin.listen?",
                    addresses.join(" or ")
                ));
                UNWELL
            }
        }
    }
}

/// The status and the first line of what the first address that can be connected to says.
async fn first_answer(addresses: &[SocketAddr], path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addresses).await?;
    let host = stream.peer_addr()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    read(&answer).ok_or_else(|| io::Error::other("what it says isn't HTTP/1.1"))
}

fn read(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, body.lines().next().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_status_and_a_sentence_or_nothing() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\ndraining\nx";
        assert_eq!(read(answer), Some((503, "draining".into())), "both");
        let empty = "HTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(read(empty), Some((200, String::new())), "no sentence");
        for broken in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 20",
            "HTTP/1.1 abc\r\n\r\n",
        ] {
            assert_eq!(read(broken), None, "not an answer: {broken:?}");
        }
    }
}
