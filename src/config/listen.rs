//! `listen` and `[tls]`: where clients connect, and the certificate that Seriatim presents to them.
//!
//! Invariant: a [`TlsConfig`] holds a certificate and its own key. Accepting connections is left to
//! `crate::listen`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::sign::CertifiedKey;

use super::option::options;
use super::reader::ConfigTable;
use super::upstream::{LONGEST_PATH, UpstreamAddress};
use super::value_kind::{Optional, PATH};
use crate::pem_files::{self, CertificateError};

/// The address where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

options! {
    /// The files with the certificate that Seriatim presents to clients.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct TlsFiles in "tls" {
        /// A PEM file with the certificate, followed by its intermediate certificates.
        cert_file: Option<PathBuf> = None, Optional(PATH),
            unset "no TLS", example "\"/etc/seriatim/cert.pem\"", Restart;
        /// A PEM file with the private key of the certificate.
        key_file: Option<PathBuf> = None, Optional(PATH),
            unset "no TLS", example "\"/etc/seriatim/key.pem\"", Restart;
    }
}

/// The certificate that Seriatim presents to clients, and the files that it comes from.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The paths of the two files.
    pub files: TlsFiles,
    /// The certificate and its key, as the files had them when they were read last.
    pub certificate: Arc<CertifiedKey>,
}

const WANTED: &str =
    "write an address and a port, as \"0.0.0.0:8080\" or \"[::]:8080\", or \"unix:/path\"";

// === impl ListenAddress ===

impl ListenAddress {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        match text.strip_prefix("unix:") {
            Some(path) if path.len() > LONGEST_PATH => {
                Err("the path of a socket has at most 107 bytes: write a shorter one")
            }
            Some("") => Err(WANTED),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| WANTED),
        }
    }

    /// Whether clients connect to this very address. Two listeners on port 0 get different ports.
    pub(super) fn is(&self, address: SocketAddr) -> bool {
        address.port() != 0 && *self == Self::Tcp(address)
    }

    /// Whether a connection to this backend would come back to this address.
    pub(super) fn is_reached_at(&self, backend: &UpstreamAddress) -> bool {
        match (self, backend) {
            (Self::Unix(own), UpstreamAddress::Socket(path)) => **own == **path,
            (Self::Tcp(own), UpstreamAddress::Port(host, port)) => {
                own.port() != 0 && own.port() == *port && is_reached_by(own.ip(), host)
            }
            _ => false,
        }
    }
}

/// Whether a connection to `host` comes to a socket of this machine that is bound to `own`. Names other than
/// `localhost` may mean another address where the configuration is used.
fn is_reached_by(own: IpAddr, host: &str) -> bool {
    let own = own.to_canonical();
    if host.eq_ignore_ascii_case("localhost") {
        return own.is_unspecified() || own.is_loopback();
    }
    let Ok(ip) = host.parse::<IpAddr>() else {
        return false;
    };
    // The system connects to the loopback address in place of an unspecified one.
    let ip = match ip.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    // A socket that is bound to `::` takes connections over IPv4, too.
    let is_any = own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4());
    own == ip || is_any && ip.is_loopback()
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl TlsConfig ===

impl TlsConfig {
    /// Loads the files; `None` if none is written, or if there is a problem, which is reported.
    pub(super) fn load(files: TlsFiles, table: &ConfigTable<'_>) -> Option<Self> {
        let (cert, key) = (files.cert_file.as_deref(), files.key_file.as_deref());
        let certificate = Arc::new(certificate(cert, key, table)?);
        Some(Self { files, certificate })
    }

    /// Reads the two files again; `None` if the certificate is the same.
    ///
    /// # Errors
    /// When one of the files can't be read or used, or the key is not the key of the certificate.
    pub fn renewed(&self) -> Result<Option<Self>, CertificateError> {
        let (Some(cert), Some(key)) = (&self.files.cert_file, &self.files.key_file) else {
            return Ok(None);
        };
        let certificate =
            pem_files::certificate(cert, key).map_err(|mut errors| errors.remove(0))?;
        if certificate.cert == self.certificate.cert {
            return Ok(None);
        }
        Ok(Some(Self {
            certificate: Arc::new(certificate),
            ..self.clone()
        }))
    }
}

/// Reads the certificate and the key that `cert_file` and `key_file` of a table name; `None` if none is written,
/// or if there is a problem, which is reported.
pub(super) fn certificate(
    cert_file: Option<&Path>,
    key_file: Option<&Path>,
    table: &ConfigTable<'_>,
) -> Option<CertifiedKey> {
    let is_missing = |key| !table.wrote(key);
    match (is_missing("cert_file"), is_missing("key_file")) {
        (true, true) => return None,
        (false, true) => table.note(
            "key_file",
            "missing: write the file with the key of the certificate, or leave cert_file out",
        ),
        (true, false) => table.note(
            "cert_file",
            "missing: write the file with the certificate of the key, or leave key_file out",
        ),
        (false, false) => {}
    }
    let errors = match pem_files::certificate(cert_file?, key_file?) {
        Ok(certificate) => return Some(certificate),
        Err(errors) => errors,
    };
    for error in errors {
        table.note(error.key, error.why);
    }
    None
}
