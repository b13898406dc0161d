//! Reading of `upstream`: where a backend is, and what it speaks.

use std::fmt;
use std::path::Path;

use http::Uri;
use http::uri::{Authority, Scheme};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};

use super::Upstream;
use crate::secret;

/// Where a backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// At a port of a host, which is a name, or an address without brackets.
    Port(Box<str>, u16),
    /// At a socket of this machine.
    Socket(Box<Path>),
}

/// What a backend speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1 without encryption.
    Http1,
    /// HTTP/1.1 over TLS, the certificate being for this name.
    Https(ServerName<'static>),
    /// HTTP/2 without encryption, which it is known to speak (RFC 9113 §3.3).
    H2c,
}

/// Certificate authorities that are trusted besides the public ones.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustedCas {
    /// The file that they stand in.
    pub file: Box<str>,
    /// They themselves.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// The longest path of a socket that the system knows, which ends it with a zero (`sun_path`).
pub(super) const LONGEST_PATH: usize = 107;

// === impl Upstream ===

impl Upstream {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const WANTED: &str = "write \"http://host:port\", without a path; or \"https://host\", \
                              \"h2c://host:port\" or \"unix:/path/of/a.sock\"";
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::socket(path);
        }
        let uri: Uri = text.parse().map_err(|_| WANTED)?;
        let authority = uri.authority().cloned().ok_or(WANTED)?;
        if authority.as_str().contains('@') {
            return Err(
                "a user and a password are not sent to the backend: write its URL without them",
            );
        }
        let has_more = !matches!(uri.path(), "" | "/") || uri.query().is_some();
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let scheme = uri.scheme().filter(|_| !has_more).ok_or(WANTED)?;
        let (protocol, usual_port) = if *scheme == Scheme::HTTP {
            (UpstreamProtocol::Http1, 80)
        } else if *scheme == Scheme::HTTPS {
            let name = ServerName::try_from(host.to_owned());
            let name = name.map_err(|_| "no certificate can be for this host: write its name")?;
            (UpstreamProtocol::Https(name), 443)
        } else if scheme.as_str() == "h2c" {
            (UpstreamProtocol::H2c, 80)
        } else {
            return Err(WANTED);
        };
        Ok(Self {
            place: UpstreamAddress::Port(host.into(), authority.port_u16().unwrap_or(usual_port)),
            protocol,
            authority,
        })
    }

    fn socket(path: &str) -> Result<Self, &'static str> {
        if !path.starts_with('/') {
            return Err(
                "write a socket's whole path after `unix:`, as \"unix:/run/agent.sock\"; \
                        it is spoken to in HTTP/1.1",
            );
        }
        if path.len() > LONGEST_PATH {
            return Err("the system knows no socket whose path is longer than 107 bytes");
        }
        Ok(Self {
            place: UpstreamAddress::Socket(Path::new(path).into()),
            protocol: UpstreamProtocol::Http1,
            authority: Authority::from_static("localhost"),
        })
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (&self.place, &self.protocol) {
            (UpstreamAddress::Socket(path), _) => return write!(f, "unix:{}", path.display()),
            (UpstreamAddress::Port(..), UpstreamProtocol::Http1) => "http",
            (UpstreamAddress::Port(..), UpstreamProtocol::Https(_)) => "https",
            (UpstreamAddress::Port(..), UpstreamProtocol::H2c) => "h2c",
        };
        write!(f, "{scheme}://{}", self.authority)
    }
}

// === impl TrustedCas ===

impl TrustedCas {
    pub(super) fn read(file: &str) -> Result<Self, String> {
        let text = secret::read_file(file.as_ref()).map_err(|error| error.to_string())?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("is no file of certificates in PEM: {error}"))?;
        if certificates.is_empty() {
            return Err("has no certificate in it: write those of the authorities, in PEM".into());
        }
        let mut usable = RootCertStore::empty();
        for certificate in &certificates {
            usable
                .add(certificate.clone())
                .map_err(|error| format!("has a certificate that can't be used: {error}"))?;
        }
        Ok(Self {
            file: file.into(),
            certificates,
        })
    }
}

impl fmt::Debug for TrustedCas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TrustedCas").field(&self.file).finish()
    }
}
