//! Where clients connect, and the certificate that they are shown.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::reader::ConfigTable;
use super::upstream::LONGEST_PATH;
use crate::secret;

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A Unix socket's path.
    Unix(PathBuf),
}

/// What is shown to clients that speak TLS.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The certificate and those between it and its root, as PEM.
    pub cert_file: PathBuf,
    /// Its private key, as PEM.
    pub key_file: PathBuf,
    /// What the two held when they were read.
    pub certificate: Arc<CertifiedKey>,
}

/// Why a certificate can't be used.
#[derive(Debug, Error)]
#[error("{key}: {why}")]
pub struct CertificateError {
    /// The option that is at fault: `cert_file` or `key_file`.
    pub key: &'static str,
    /// What is wrong.
    pub why: String,
}

const WANTED: &str =
    "write an address and a port, as \"0.0.0.0:8080\" or \"[::]:8080\", or \"unix:/path\"";

// === impl Listen ===

impl ListenAddress {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        match text.strip_prefix("unix:") {
            Some(path) if path.len() > LONGEST_PATH => Err("a socket's path has 107 bytes at most"),
            Some("") => Err(WANTED),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| WANTED),
        }
    }

    /// Whether it is this address and port, a free one aside.
    pub(super) fn is(&self, address: SocketAddr) -> bool {
        address.port() != 0 && *self == Self::Tcp(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl Tls ===

impl TlsConfig {
    pub(super) fn read(table: &mut ConfigTable<'_>) -> Option<Self> {
        let cert = table.take("cert_file").map(|entry| entry.string());
        let key = table.take("key_file").map(|entry| entry.string());
        let (cert_file, key_file) = match (cert, key) {
            (None, None) => return None,
            (Some(_), None) => {
                table.note(
                    "key_file",
                    "missing: the certificate is of no use without its key",
                );
                return None;
            }
            (None, Some(_)) => {
                table.note(
                    "cert_file",
                    "missing: the key is of no use without its certificate",
                );
                return None;
            }
            (Some(cert), Some(key)) => (PathBuf::from(cert?), PathBuf::from(key?)),
        };
        match certificate(&cert_file, &key_file) {
            Ok(certificate) => Some(Self {
                cert_file,
                key_file,
                certificate: Arc::new(certificate),
            }),
            Err(error) => {
                table.note(error.key, error.why);
                None
            }
        }
    }

    /// Reads the two files anew; `None`: they hold what this does.
    ///
    /// # Errors
    /// When one of them can't be read, or the two don't belong together.
    pub fn renewed(&self) -> Result<Option<Self>, CertificateError> {
        let certificate = certificate(&self.cert_file, &self.key_file)?;
        if certificate.cert == self.certificate.cert {
            return Ok(None);
        }
        Ok(Some(Self {
            certificate: Arc::new(certificate),
            ..self.clone()
        }))
    }
}

fn certificate(cert_file: &Path, key_file: &Path) -> Result<CertifiedKey, CertificateError> {
    let at = |key, why: String| CertificateError { key, why };
    let read =
        |key, path: &Path| secret::read_file(path).map_err(|error| at(key, error.to_string()));
    let (cert, key) = (read("cert_file", cert_file), read("key_file", key_file));
    let (cert, key) = (cert?, key?);
    let no_cert = |why| {
        at(
            "cert_file",
            format!("{} holds no PEM certificate{why}", cert_file.display()),
        )
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert).collect();
    let chain = chain.map_err(|error| no_cert(format!(": {error}")))?;
    if chain.is_empty() {
        return Err(no_cert(String::new()));
    }
    // The error says nothing of what is in the file.
    let no_key = |_| {
        at(
            "key_file",
            format!("{} holds no PEM private key", key_file.display()),
        )
    };
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(no_key)?;
    let unusable = |error| at("key_file", format!("the key can't be used: {error}"));
    let key = ring::sign::any_supported_type(&key).map_err(unusable)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(_) => Err(at(
            "key_file",
            format!(
                "is not the key of the certificate in {}",
                cert_file.display()
            ),
        )),
    }
}
