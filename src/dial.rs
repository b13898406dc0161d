//! New TCP connections to a host, at whichever of its addresses answers first.
//!
//! Invariant: an address that doesn't answer delays a connection by [`ATTEMPT_DELAY`], and uses up no
//! other address's time. The attempts follow RFC 8305 (Happy Eyeballs) §4 and §5. How long all of them
//! may take is left to the caller.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// How long an attempt has before the next address is tried beside it: the delay that RFC 8305 §5
/// recommends.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to `host`, which is a name or an address without brackets. The name is resolved anew for
/// each connection. Dropping the future ends all attempts.
///
/// # Errors
/// When the name has no address, or no address accepts the connection: the first address's error. An
/// address that never answers gives no error, so the caller sets a time limit.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = lookup_host((host, port)).await?;
    first_of(interleaved(addresses), TcpStream::connect).await
}

/// The addresses in their order, with the two families in turn (RFC 8305 §4): one family may be
/// without a route.
fn interleaved(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = addresses.peekable();
    let starts_with_ipv6 = addresses.peek().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.partition(|address| address.is_ipv6() == starts_with_ipv6);
    let mut second = second.into_iter();
    let mut all = Vec::with_capacity(first.len() + second.len());
    for address in first {
        all.push(address);
        all.extend(second.next());
    }
    all.extend(second);
    all
}

/// The first attempt that succeeds. Each attempt begins when an earlier one has failed, or after
/// [`ATTEMPT_DELAY`].
async fn first_of<T, F>(
    addresses: Vec<SocketAddr>,
    attempt: impl Fn(SocketAddr) -> F,
) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut attempts = FuturesUnordered::new();
    let mut first_error = None;
    let mut addresses = addresses.into_iter();
    loop {
        let next = addresses.next();
        let is_last = next.is_none();
        attempts.extend(next.map(&attempt));
        let ended = match is_last {
            true => Ok(attempts.next().await),
            false => timeout(ATTEMPT_DELAY, attempts.next()).await,
        };
        match ended {
            Ok(Some(Ok(connected))) => return Ok(connected),
            Ok(Some(Err(error))) => {
                first_error.get_or_insert(error);
            }
            Ok(None) => {
                let no_address =
                    || io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                return Err(first_error.unwrap_or_else(no_address));
            }
            // It goes on beside the next one.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::net::TcpSocket;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Long after every address that answers has done so.
    const LIMIT: Duration = Duration::from_secs(10);

    fn addresses(all: &[&str]) -> Vec<SocketAddr> {
        let all = all.iter().map(|address| address.parse());
        all.collect::<Result<_, _>>().expect("addresses")
    }

    #[test]
    fn the_families_take_turns_and_keep_their_order() {
        for (found, tried) in [
            (
                &["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"][..],
                &["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"][..],
            ),
            (
                &["1.1.1.1:1", "2.2.2.2:1", "[::1]:1"],
                &["1.1.1.1:1", "[::1]:1", "2.2.2.2:1"],
            ),
            (&["1.1.1.1:1", "2.2.2.2:1"], &["1.1.1.1:1", "2.2.2.2:1"]),
            (&[], &[]),
        ] {
            let found = interleaved(addresses(found).into_iter());
            assert_eq!(found, addresses(tried), "RFC 8305 §4");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_address_that_is_silent_delays_the_next_one_by_a_quarter_of_a_second() {
        crate::time_limit::limit_this_test();
        let all = addresses(&["1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"]);
        let start = Instant::now();
        let attempt = |address: SocketAddr| async move {
            match address.ip().to_string().as_str() {
                "3.3.3.3" => Ok(address),
                _ => pending().await,
            }
        };
        let connected = timeout(LIMIT, first_of(all.clone(), attempt)).await;
        let connected = connected.expect("in time").expect("one answers");
        assert_eq!(connected, all[2], "the address that answers is used");
        assert_eq!(start.elapsed(), ATTEMPT_DELAY * 2, "two were silent");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_is_only_slow_goes_on_beside_the_next_one() {
        crate::time_limit::limit_this_test();
        let all = addresses(&["1.1.1.1:1", "2.2.2.2:1"]);
        let slow = ATTEMPT_DELAY * 5;
        let start = Instant::now();
        let attempt = |address: SocketAddr| async move {
            match address.ip().to_string().as_str() {
                "1.1.1.1" => sleep(slow).await,
                _ => pending().await,
            }
            Ok(address)
        };
        let connected = timeout(LIMIT, first_of(all.clone(), attempt)).await;
        let connected = connected.expect("in time").expect("one answers");
        assert_eq!(
            (connected, start.elapsed()),
            (all[0], slow),
            "it isn't cut off by the second address, which is dead"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_delays_nothing_and_the_first_error_is_told() {
        crate::time_limit::limit_this_test();
        let all = addresses(&["1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"]);
        let refuse = |address: SocketAddr| async move {
            Err::<(), _>(io::Error::other(format!("refused by {address}")))
        };
        let start = Instant::now();
        let error = first_of(all, refuse).await.expect_err("all refuse");
        assert_eq!(error.to_string(), "refused by 1.1.1.1:1");
        assert_eq!(
            start.elapsed(),
            Duration::ZERO,
            "the next one is tried at once"
        );
        let error = first_of(Vec::new(), refuse)
            .await
            .expect_err("nothing to try");
        assert_eq!(error.to_string(), "the host has no address");
    }

    #[tokio::test]
    async fn an_address_that_swallows_connections_does_not_hide_the_one_that_serves() {
        crate::time_limit::limit_this_test();
        // A listener that nobody accepts from, with a full queue, drops further SYNs.
        let hole = TcpSocket::new_v4().expect("a socket");
        hole.bind(addresses(&["127.0.0.2:0"])[0]).expect("a port");
        let hole = hole.listen(0).expect("a listener");
        let swallows = hole.local_addr().expect("its address");
        let mut queued = Vec::new();
        while let Ok(connected) = timeout(ATTEMPT_DELAY, TcpStream::connect(swallows)).await {
            queued.push(connected.expect("it is in the queue"));
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a listener");
        let serves = listener.local_addr().expect("its address");
        let connecting = first_of(vec![swallows, serves], TcpStream::connect);
        let connected = timeout(LIMIT, connecting).await;
        let connected = connected.expect("long before the first one's retries end");
        let connected = connected.expect("the second address accepts");
        assert_eq!(connected.peer_addr().expect("it is connected"), serves);
    }
}
