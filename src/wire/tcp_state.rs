//! What the kernel knows of a TCP connection's sending side, asked over netlink (sock_diag(7)).
//!
//! The kernel's own limit, `TCP_USER_TIMEOUT`, would be simpler. But since Linux 5.11 it also ends the
//! connection of a peer that answers every probe and only reads nothing for a while (a closed window).
//! This file tells the two apart. It takes no privileges, and asks only about the process' own network
//! namespace. `inet_diag_req_v2` and `tcp_info` are in the kernel's `linux/inet_diag.h` and
//! `linux/tcp.h`.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// How a connection's peer acknowledges what was sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcpState {
    /// How many bytes are to be sent, or were sent and are not acknowledged. With a closed window, nothing
    /// but probes is on the way, and these bytes wait.
    unacknowledged: u32,
    /// How often the oldest segment was sent again in vain, or a closed window was probed in vain.
    attempts: u8,
    /// How long ago the peer's last acknowledgement arrived.
    pub(super) last_ack: Duration,
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const IPPROTO_TCP: u8 = 6;
/// The attribute with the `tcp_info`.
const INET_DIAG_INFO: u16 = 2;

/// The length of `nlmsghdr`, in bytes.
const NETLINK_HEADER: usize = 16;
/// The length of `inet_diag_req_v2`, in bytes.
const REQUEST: usize = 56;
/// The length of `inet_diag_msg`, in bytes. The attributes follow it.
const MESSAGE: usize = 72;
/// Where `idiag_wqueue` begins in `inet_diag_msg`.
const WRITE_QUEUE: usize = 60;

// === impl TcpState ===

impl TcpState {
    /// Asks the kernel about the connection from `local` to `peer`. Doesn't block: the kernel answers
    /// within the call.
    ///
    /// # Errors
    /// If the connection is over, or the system doesn't answer such questions: its kernel has no
    /// `tcp_diag`, or a sandbox forbids netlink.
    pub(super) fn query(local: SocketAddr, peer: SocketAddr) -> io::Result<Self> {
        let kind = Type::DGRAM.nonblocking();
        let protocol = Protocol::from(NETLINK_SOCK_DIAG);
        let mut netlink = Socket::new(Domain::from(AF_NETLINK), kind, Some(protocol))?;
        netlink.send(&request(local, peer))?;
        // A reply has about 400 bytes.
        let mut reply = [0; 4096];
        let length = netlink.read(&mut reply)?;
        parse(&reply[..length])
    }

    /// Whether something that is to be sent has not been acknowledged.
    pub(super) fn is_unacknowledged(&self) -> bool {
        self.unacknowledged > 0
    }

    /// Whether the peer has left something unacknowledged for so long that it was sent again, or that its
    /// closed window was probed.
    pub(super) fn is_resending(&self) -> bool {
        self.is_unacknowledged() && self.attempts > 0
    }
}

/// A request for the `tcp_info` of one connection.
fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let length = NETLINK_HEADER + REQUEST;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&(length as u32).to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    // A number of the request and a port: not needed for one request.
    bytes.extend_from_slice(&[0; 8]);
    let family = match local {
        SocketAddr::V4(_) => AF_INET,
        SocketAddr::V6(_) => AF_INET6,
    };
    let extensions = 1 << (INET_DIAG_INFO - 1);
    bytes.extend_from_slice(&[family, IPPROTO_TCP, extensions, 0]);
    // In any state.
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    bytes.extend_from_slice(&local.port().to_be_bytes());
    bytes.extend_from_slice(&peer.port().to_be_bytes());
    let mut interface = 0;
    for address in [local, peer] {
        match address {
            SocketAddr::V4(address) => {
                bytes.extend_from_slice(&address.ip().octets());
                bytes.extend_from_slice(&[0; 12]);
            }
            SocketAddr::V6(address) => {
                bytes.extend_from_slice(&address.ip().octets());
                interface = address.scope_id();
            }
        }
    }
    bytes.extend_from_slice(&interface.to_ne_bytes());
    // No cookie: the addresses are enough.
    bytes.extend_from_slice(&[u8::MAX; 8]);
    bytes
}

fn parse(reply: &[u8]) -> io::Result<TcpState> {
    let unexpected = || io::Error::new(io::ErrorKind::InvalidData, "an unexpected netlink reply");
    let kind = reply.get(4..6).and_then(u16_at).ok_or_else(unexpected)?;
    let payload = reply.get(NETLINK_HEADER..).ok_or_else(unexpected)?;
    match kind {
        SOCK_DIAG_BY_FAMILY => parse_state(payload).ok_or_else(unexpected),
        NLMSG_ERROR => {
            let code = payload.get(..4).and_then(u32_at).ok_or_else(unexpected)?;
            // The kernel sends the negative number of the error.
            Err(io::Error::from_raw_os_error(
                code.wrapping_neg().cast_signed(),
            ))
        }
        _ => Err(unexpected()),
    }
}

/// Finds the `tcp_info` among attributes: each has its length, its type, and padding to four bytes.
fn tcp_info(mut attributes: &[u8]) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes.get(..2)?)?);
        let kind = u16_at(attributes.get(2..4)?)?;
        let value = attributes.get(4..length)?;
        if kind == INET_DIAG_INFO {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Reads an `inet_diag_msg` and the `tcp_info` after it.
fn parse_state(payload: &[u8]) -> Option<TcpState> {
    let info = tcp_info(payload.get(MESSAGE..)?)?;
    let (retransmits, probes) = (*info.get(2)?, *info.get(3)?);
    Some(TcpState {
        unacknowledged: u32_at(payload.get(WRITE_QUEUE..WRITE_QUEUE + 4)?)?,
        attempts: retransmits.max(probes),
        last_ack: Duration::from_millis(u32_at(info.get(56..60)?)?.into()),
    })
}

fn u16_at(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_tells_how_a_connection_is_acknowledged() {
        for any in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(any) else {
                // This machine has no IPv6.
                continue;
            };
            let port = listener.local_addr().expect("it is bound").port();
            let to = match any {
                "[::1]:0" => format!("[::1]:{port}"),
                _ => format!("127.0.0.1:{port}"),
            };
            let _client = TcpStream::connect(to).expect("it listens");
            let (served, peer) = listener.accept().expect("a client");
            let local = served.local_addr().expect("it is connected");
            let state = TcpState::query(local, peer).expect("the kernel answers");
            assert!(!state.is_resending(), "nothing was sent: {any}, {state:?}");
            assert!(
                state.last_ack < Duration::from_secs(60),
                "the handshake was acknowledged: {any}, {state:?}"
            );
        }
    }

    #[test]
    fn a_connection_that_is_not_there_is_an_error() {
        let nobody = ([127, 0, 0, 1], 9).into();
        let error = TcpState::query(nobody, nobody).expect_err("there is no such connection");
        assert_eq!(
            error.kind(),
            io::ErrorKind::NotFound,
            "and the error says so"
        );
    }

    #[test]
    fn a_reply_that_is_cut_off_is_an_error() {
        let mut reply = vec![0; NETLINK_HEADER];
        // The message is 1 in each byte, so that its numbers are told apart from those of the tcp_info.
        reply.resize(NETLINK_HEADER + MESSAGE, 1);
        reply[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        // An attribute of another type, and the tcp_info with 100 bytes.
        for (kind, length) in [(8_u16, 5_u16), (INET_DIAG_INFO, 104)] {
            reply.extend_from_slice(&length.to_ne_bytes());
            reply.extend_from_slice(&kind.to_ne_bytes());
            reply.resize(reply.len() + usize::from(length - 4).next_multiple_of(4), 7);
        }
        let state = parse(&reply).expect("all of it is there");
        assert_eq!(
            (state.attempts, state.unacknowledged),
            (7, 0x0101_0101),
            "the padding is skipped"
        );
        for length in 0..reply.len() {
            parse(&reply[..length]).expect_err("something is missing");
        }
    }
}
