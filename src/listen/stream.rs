//! The stream of a client's connection, with TLS or without.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::wire::Wire;

/// The protocol that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientProtocol {
    Http1,
    Http2,
}

/// A client's connection, decrypted if it uses TLS.
pub(super) enum ClientStream {
    Plain(Wire),
    Tls(Box<TlsStream<Wire>>),
}

/// Makes the same call on a stream of either kind.
macro_rules! either {
    ($stream:expr, $io:ident => $call:expr) => {
        match $stream.get_mut() {
            ClientStream::Plain(io) => {
                let $io = Pin::new(io);
                $call
            }
            ClientStream::Tls(io) => {
                let $io = Pin::new(&mut **io);
                $call
            }
        }
    };
}

// === impl ClientStream ===

impl ClientStream {
    /// The protocol that client and server agreed on in TLS (ALPN, RFC 7301); `None`: they agreed on none,
    /// or the connection is not encrypted.
    pub(super) fn negotiated(&self) -> Option<ClientProtocol> {
        let Self::Tls(stream) = self else {
            return None;
        };
        match stream.get_ref().1.alpn_protocol()? {
            b"h2" => Some(ClientProtocol::Http2),
            _ => Some(ClientProtocol::Http1),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_shutdown(cx))
    }
}
