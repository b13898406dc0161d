//! `seriatim health`: checks the serving process by a request to `/livez` or `/readyz`.
//!
//! It is for a container's health check, because the image has no other program. It speaks just enough
//! HTTP/1.1 to read a status and one line of text. Invariant: it never takes longer than [`TIMEOUT`].

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{BAD_CONFIGURATION, ConfigOption, OK, print, print_error, print_json};
use crate::config::admin;

/// Options of `seriatim health`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 healthy; 1 not healthy, or no response within three seconds; 2 wrong arguments; \
                  78 admin.listen is wrong."
)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    pub(super) config: ConfigOption,
    /// Check /livez: fails only if the process does not respond
    #[arg(long, conflicts_with = "ready")]
    live: bool,
    /// Check /readyz (default): fails also while the process drains or its store is unreachable
    #[arg(long)]
    ready: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// The process is not alive, or not ready.
const UNHEALTHY: u8 = 1;

/// How long the check may take: a thousand times as long as a healthy process needs, and less than the five
/// seconds that the docs set for container engines.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The largest response that is read, in bytes: larger than any real one.
const MAX_RESPONSE: u64 = 16 << 10;

// === impl HealthArgs ===

impl HealthArgs {
    /// Sends the request, prints the first line of the response, and returns the exit code.
    pub(super) async fn run(&self) -> u8 {
        let addresses = match admin::addresses(self.config.path()) {
            Ok(addresses) => addresses,
            Err(problems) => {
                print_error(problems.to_string().trim_end());
                return BAD_CONFIGURATION;
            }
        };
        let path = if self.live { "/livez" } else { "/readyz" };
        let response = timeout(TIMEOUT, first_response(&addresses, path)).await;
        let (status, text) = match response.unwrap_or(Err(io::ErrorKind::TimedOut.into())) {
            Ok((status, text)) => (Some(status), text),
            Err(error) => {
                let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                let error = format!(
                    "no response from {}: {error}; is seriatim running with this admin.listen?",
                    addresses.join(" or ")
                );
                (None, error)
            }
        };
        let is_healthy = status == Some(200);
        match status {
            _ if self.json => print_json(&json!({
                "healthy": is_healthy, "path": path, "status": status, "text": text,
            })),
            Some(200) => print(text),
            Some(status) => print_error(format!("{path} returned {status}: {text}")),
            None => print_error(text),
        }
        if is_healthy { OK } else { UNHEALTHY }
    }
}

/// The status and the first line of the body, from the first address that accepts a connection.
async fn first_response(addresses: &[SocketAddr], path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addresses).await?;
    let host = stream.peer_addr()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    let mut stream = stream.take(MAX_RESPONSE);
    stream.read_to_end(&mut response).await?;
    let response = String::from_utf8_lossy(&response);
    parse(&response).ok_or_else(|| io::Error::other("the response is not HTTP/1.1"))
}

fn parse(response: &str) -> Option<(u16, String)> {
    let (head, body) = response.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, body.lines().next().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_has_a_status_and_a_line_of_text_or_is_not_http() {
        let response = "HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\ndraining\nx";
        assert_eq!(parse(response), Some((503, "draining".into())), "both");
        let empty = "HTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(parse(empty), Some((200, String::new())), "no text");
        for broken in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 20",
            "HTTP/1.1 abc\r\n\r\n",
        ] {
            assert_eq!(parse(broken), None, "not a response: {broken:?}");
        }
    }
}
