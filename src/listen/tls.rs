//! TLS for a listener: the handshake, and a certificate that can be replaced while the listener serves.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::wire::Wire;

/// TLS 1.2 and 1.3 for a server, which offers HTTP/2 and HTTP/1.1. Cheap to clone; clones share the
/// certificate.
#[derive(Clone)]
pub struct TlsServer {
    acceptor: TlsAcceptor,
    current: Arc<CurrentCertificate>,
}

/// The certificate that new connections are presented.
#[derive(Debug)]
struct CurrentCertificate(ArcSwap<CertifiedKey>);

// === impl TlsServer ===

impl TlsServer {
    /// Makes a server that presents `certificate`.
    ///
    /// # Errors
    /// If ring doesn't support a default version of TLS, which never happens.
    pub fn new(certificate: Arc<CertifiedKey>) -> Result<Self, rustls::Error> {
        let current = Arc::new(CurrentCertificate(ArcSwap::new(certificate)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            current,
        })
    }

    /// Presents `certificate` to new connections from now on.
    pub fn replace(&self, certificate: Arc<CertifiedKey>) {
        self.current.0.store(certificate);
    }

    /// Does the handshake on `wire`.
    ///
    /// # Errors
    /// If the handshake fails, or the connection is lost.
    pub(super) async fn accept(&self, wire: Wire) -> io::Result<TlsStream<Wire>> {
        self.acceptor.accept(wire).await
    }
}

impl std::fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsServer").finish_non_exhaustive()
    }
}

// === impl CurrentCertificate ===

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}
