//! `upstream`: the address of a backend and its protocol.
//!
//! Connecting is left to `proxy::forward`.

use std::fmt;
use std::path::Path;

use http::Uri;
use http::uri::{Authority, Scheme};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};

use super::value_kind::words;
use crate::pem_files;

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where the backend listens.
    pub address: UpstreamAddress,
    /// The protocol that it speaks.
    pub protocol: UpstreamProtocol,
    /// Its host and port as written: what `host` says if the request names none, or with
    /// [`UpstreamHost::Upstream`].
    pub authority: Authority,
    /// Which host its requests name.
    pub host: UpstreamHost,
}

words! {
    /// Which host the requests for a backend name in `host` (RFC 9110 §7.2).
    pub enum UpstreamHost {
        /// The host that the client named.
        Client = "client",
        /// The backend's own host, as `upstream` names it.
        Upstream = "upstream",
    }
}

/// The address at which a backend listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// A host (a name, or an address without brackets) and a port.
    Port(Box<str>, u16),
    /// The path of a Unix socket.
    Socket(Box<Path>),
}

/// The protocol that a backend speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1 without encryption.
    Http1,
    /// HTTP/1.1 over TLS, with a certificate for this name.
    Https(ServerName<'static>),
    /// HTTP/2 without encryption and with prior knowledge (RFC 9113 §3.3).
    H2c,
}

/// Certificate authorities that are trusted in addition to the public ones.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustedCas {
    /// The path of their PEM file.
    pub file: Box<str>,
    /// Their certificates.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// The longest path of a Unix socket, in bytes: `sun_path` has 108, one of them for the zero at the end.
pub(super) const LONGEST_PATH: usize = 107;

/// The host of an authority; an IPv6 address without its brackets.
pub(super) fn bare_host(authority: &Authority) -> &str {
    authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']')
}

/// A URL, or an origin.
pub(super) struct ParsedUrl {
    pub(super) uri: Uri,
    pub(super) authority: Authority,
    /// The port as written.
    pub(super) port: Option<u16>,
}

/// Parses a URL that has a host. `wanted` is the error for a text that is none. A fragment and a wrong port
/// are errors: [`Uri`] takes both, and the URL would mean another one than written.
pub(super) fn parse_url(text: &str, wanted: &'static str) -> Result<ParsedUrl, &'static str> {
    if text.contains('#') {
        return Err("can't have a fragment: write it without the # and what follows");
    }
    let uri: Uri = text.parse().map_err(|_| wanted)?;
    let authority = uri.authority().cloned().ok_or(wanted)?;
    let address = authority.as_str();
    let address = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let after_host = address.strip_prefix(authority.host());
    let port = match after_host.ok_or(wanted)? {
        "" => None,
        port => Some(port_number(port).ok_or("the port must be a number from 1 to 65535")?),
    };
    Ok(ParsedUrl {
        uri,
        authority,
        port,
    })
}

/// Reads `:8080`.
fn port_number(text: &str) -> Option<u16> {
    let digits = text.strip_prefix(':')?;
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.parse().ok().filter(|_| is_number)?;
    (port > 0).then_some(port)
}

/// The name that the certificate of a server at `host` has to be for.
pub(super) fn certificate_name(host: &str) -> Result<ServerName<'static>, &'static str> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| "no certificate can be issued for this host: write a valid host name")
}

// === impl Upstream ===

impl Upstream {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const WANTED: &str = "write \"http://host:port\", without a path; or \"https://host\", \
                              \"h2c://host:port\" or \"unix:/path/of/a.sock\"";
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::socket(path);
        }
        let ParsedUrl {
            uri,
            authority,
            port,
        } = parse_url(text, WANTED)?;
        if authority.as_str().contains('@') {
            return Err(
                "can't have a user and a password, since they are not sent to the backend: write the URL without them",
            );
        }
        let has_more = !matches!(uri.path(), "" | "/") || uri.query().is_some();
        let host = bare_host(&authority);
        let scheme = uri.scheme().filter(|_| !has_more).ok_or(WANTED)?;
        let (protocol, usual_port) = if *scheme == Scheme::HTTP {
            (UpstreamProtocol::Http1, 80)
        } else if *scheme == Scheme::HTTPS {
            (UpstreamProtocol::Https(certificate_name(host)?), 443)
        } else if scheme.as_str() == "h2c" {
            (UpstreamProtocol::H2c, 80)
        } else {
            return Err(WANTED);
        };
        Ok(Self {
            address: UpstreamAddress::Port(host.into(), port.unwrap_or(usual_port)),
            protocol,
            authority,
            host: UpstreamHost::Client,
        })
    }

    fn socket(path: &str) -> Result<Self, &'static str> {
        if !path.starts_with('/') {
            return Err(
                "write the absolute path of a socket after `unix:`, as \"unix:/run/agent.sock\"",
            );
        }
        if path.len() > LONGEST_PATH {
            return Err("the path of a socket has at most 107 bytes: write a shorter one");
        }
        Ok(Self {
            address: UpstreamAddress::Socket(Path::new(path).into()),
            protocol: UpstreamProtocol::Http1,
            authority: Authority::from_static("localhost"),
            host: UpstreamHost::Client,
        })
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (&self.address, &self.protocol) {
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
        Ok(Self {
            file: file.into(),
            certificates: pem_files::authorities(file.as_ref())?,
        })
    }
}

impl fmt::Display for TrustedCas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)
    }
}

impl fmt::Debug for TrustedCas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TrustedCas").field(&self.file).finish()
    }
}
