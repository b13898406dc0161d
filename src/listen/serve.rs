//! Serves one connection: opens it, with TLS or without, finds out its protocol, and hands it over to
//! [`http1`] or [`http2`].

use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::Either;
use http::HeaderValue;
use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use super::accept::AcceptedConnection;
use super::stream::{ClientProtocol, ClientStream};
use super::tls::TlsServer;
use crate::drain::DrainWatch;
use crate::http2::PREFACE;
use crate::service::{ClientConnection, HeadBudget, Serve, ServedConnection};
use crate::wire::{Bounds, Wire};
use crate::{http1, http2};

/// The settings that all connections of a listener share.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// How long a request head may take, from its first byte. The first head of a connection, and TLS
    /// before it, have this time from accepting.
    pub request_head: Duration,
    /// How long a connection without a request is kept.
    pub idle: Duration,
    /// How long a client's machine may answer nothing before the client counts as gone; 0: as long as the
    /// system's own limits allow. The listener needs it too
    /// ([`Listener::probe_idle_clients`](super::Listener::probe_idle_clients)).
    pub unreachable: Duration,
    /// TLS for the listener; `None`: the connections are not encrypted.
    pub tls: Option<TlsServer>,
    /// The memory for large request heads and for concurrent HTTP/2 requests.
    pub heads: HeadBudget,
}

/// A connection whose protocol is known.
struct OpenedConnection {
    stream: ClientStream,
    protocol: ClientProtocol,
    /// The bytes that have been read from the stream already.
    early: BytesMut,
}

// === impl ServeSettings ===

impl Default for ServeSettings {
    /// The defaults of the configuration, without TLS.
    fn default() -> Self {
        Self {
            request_head: Duration::from_secs(10),
            idle: Duration::from_secs(620),
            unreachable: Duration::from_secs(30),
            tls: None,
            heads: HeadBudget::default(),
        }
    }
}

// === connections ===

/// Serves one connection until it is over, and then drops everything that served it. Dropping this
/// future ends the connection.
pub async fn serve<H: Serve>(
    accepted: AcceptedConnection,
    settings: &ServeSettings,
    drain: DrainWatch,
    handler: H,
) {
    let first_head_due = Instant::now() + settings.request_head;
    let ip = accepted.ip;
    let bounds = Bounds::default();
    let wire = accepted
        .into_socket()
        .and_then(|socket| Wire::new(socket, bounds.clone()));
    let wire = match wire {
        Ok(wire) => wire,
        Err(error) => return tracing::debug!(?ip, %error, "connection lost after accept"),
    };
    let mut gone = pin!(wire.peer_gone());
    let mut unreachable = pin!(wire.peer_unreachable(settings.unreachable));
    let (reset, sever, abandon) = (wire.resetter(), wire.severer(), wire.severer());
    let opened = {
        let mut drain = drain.clone();
        tokio::select! {
            biased;
            opened = open(wire, settings.tls.as_ref(), first_head_due) => opened,
            // The client has sent no request yet.
            () = drain.draining() => None,
            () = &mut gone => None,
        }
    };
    let Some(opened) = opened else {
        return;
    };
    let connection = ServedConnection {
        handler,
        client: ClientConnection {
            ip,
            ip_value: ip.and_then(|ip| HeaderValue::try_from(ip.to_string()).ok()),
            scheme: match settings.tls {
                Some(_) => Scheme::HTTPS,
                None => Scheme::HTTP,
            },
            bounds,
            link: None,
        },
        request_head: settings.request_head,
        idle: settings.idle,
        unreachable: settings.unreachable,
        heads: &settings.heads,
        first_head_due,
        drain,
        early: opened.early,
    };
    let mut served = pin!(match opened.protocol {
        ClientProtocol::Http1 => {
            Either::Left(http1::serve(opened.stream, connection, gone, sever))
        }
        // Boxed, because this future is rarer and larger than the other.
        ClientProtocol::Http2 => {
            Either::Right(Box::pin(http2::serve(opened.stream, connection, gone)))
        }
    });
    let is_orderly = tokio::select! {
        biased;
        is_orderly = &mut served => is_orderly,
        () = &mut unreachable => {
            tracing::debug!(?ip, "the client's machine acknowledges nothing any more");
            // Everything that serves the connection now finds that the client has closed it.
            abandon();
            served.await
        }
    };
    if !is_orderly {
        reset();
    }
}

/// Does the TLS handshake if there is `tls`, and finds out the protocol. `None`: the client closed,
/// failed the handshake, or sent nothing until `due`.
async fn open(wire: Wire, tls: Option<&TlsServer>, due: Instant) -> Option<OpenedConnection> {
    let mut stream = match tls {
        None => ClientStream::Plain(wire),
        Some(tls) => {
            let opened = tokio::time::timeout_at(due, Box::pin(tls.accept(wire))).await;
            match opened {
                Ok(Ok(stream)) => ClientStream::Tls(Box::new(stream)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "TLS handshake failed");
                    return None;
                }
                Err(_) => return None,
            }
        }
    };
    let mut early = BytesMut::new();
    let protocol = match stream.negotiated() {
        Some(protocol) => protocol,
        None => {
            let detected = tokio::time::timeout_at(due, detect(&mut stream, &mut early)).await;
            match detected {
                Ok(protocol) => protocol?,
                // The beginning of a head has arrived, and the head is late.
                Err(_) if !early.is_empty() => ClientProtocol::Http1,
                Err(_) => return None,
            }
        }
    };
    Some(OpenedConnection {
        stream,
        protocol,
        early,
    })
}

/// Reads into `early` until it is clear whether the client speaks HTTP/2; `None`: the client has closed
/// before.
async fn detect<IO: AsyncRead + Unpin>(
    stream: &mut IO,
    early: &mut BytesMut,
) -> Option<ClientProtocol> {
    loop {
        // As long as most heads.
        early.reserve(1024);
        match stream.read_buf(early).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return None,
        }
        let common = early.len().min(PREFACE.len());
        if early[..common] != PREFACE[..common] {
            return Some(ClientProtocol::Http1);
        }
        if common == PREFACE.len() {
            return Some(ClientProtocol::Http2);
        }
    }
}
