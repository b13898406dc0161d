//! `[tracing]`: where spans are sent.

use std::fmt;

use http::Uri;
use http::uri::{PathAndQuery, Scheme};
use tokio_rustls::rustls::pki_types::ServerName;

use super::reader::ConfigTable;
use super::upstream::TrustedCas;

/// Where spans are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracingConfig {
    /// The collector; `None`: there are no spans.
    pub otlp: Option<CollectorAddress>,
    /// Whom its certificate may come from, besides the public authorities.
    pub cas: Option<TrustedCas>,
    /// The name of the service that they are of.
    pub service: Box<str>,
}

/// Who takes spans by OTLP over HTTP.
#[derive(Clone, PartialEq, Eq)]
pub struct CollectorAddress {
    /// Where they are posted to. It has a scheme, a host and a path.
    pub uri: Uri,
    /// Its host, a name or an address without brackets.
    pub host: Box<str>,
    /// Its port.
    pub port: u16,
    /// The name that its certificate is for; `None`: it speaks without encryption.
    pub tls: Option<ServerName<'static>>,
}

/// Where a collector takes spans below its base (OpenTelemetry Protocol Exporter, "Endpoint URLs for
/// OTLP/HTTP").
const TRACES: &str = "/v1/traces";

// === impl Telemetry ===

impl TracingConfig {
    pub(super) fn read(table: &mut ConfigTable<'_>) -> Self {
        let wrote_otlp = table.take("otlp");
        let names_otlp = wrote_otlp.is_some();
        let otlp = wrote_otlp.and_then(|entry| entry.parsed_secret(CollectorAddress::parse));
        let cas = table
            .take("ca_file")
            .and_then(|entry| entry.parsed(TrustedCas::read));
        let is_plain = otlp.as_ref().is_some_and(|otlp| otlp.tls.is_none());
        if table.wrote("ca_file") && (is_plain || !names_otlp) {
            let why =
                "is for a collector with TLS: write otlp = \"https://...\" too, or leave it out";
            table.note("ca_file", why);
        }
        let service = table
            .take("service")
            .and_then(|entry| entry.parsed(service_name));
        if service.is_some() && !names_otlp {
            let why = "without otlp it is of no use: write otlp = \"http://127.0.0.1:4318\" too";
            table.note("service", why);
        }
        Self {
            otlp,
            cas,
            service: service.unwrap_or_else(|| "seriatim".into()),
        }
    }
}

fn service_name(name: &str) -> Result<Box<str>, &'static str> {
    match name.trim() {
        "" => Err("write a name, as \"seriatim\", or leave it out"),
        name => Ok(name.into()),
    }
}

// === impl Collector ===

impl CollectorAddress {
    /// A collector's base, as other exporters take it, or the whole URL of its traces.
    fn parse(text: &str) -> Result<Self, &'static str> {
        const WANTED: &str = "write \"http://host:4318\" or \"https://host\"; a path may follow";
        let uri: Uri = text.parse().map_err(|_| WANTED)?;
        let authority = uri.authority().cloned().ok_or(WANTED)?;
        if authority.as_str().contains('@') {
            return Err(
                "write it without a user and a password: what a collector wants to have in a header \
                 stands in the variable OTEL_EXPORTER_OTLP_HEADERS",
            );
        }
        if uri.query().is_some() {
            return Err(WANTED);
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let (tls, usual_port) = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => (None, 80),
            Some(scheme) if *scheme == Scheme::HTTPS => {
                let name = ServerName::try_from(host.to_owned());
                let name =
                    name.map_err(|_| "no certificate can be for this host: write its name")?;
                (Some(name), 443)
            }
            _ => return Err(WANTED),
        };
        let base = uri.path().trim_end_matches('/');
        let path = match base.ends_with(TRACES) {
            true => base.to_owned(),
            false => format!("{base}{TRACES}"),
        };
        let (host, port) = (host.into(), authority.port_u16().unwrap_or(usual_port));
        let mut parts = uri.into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(path).map_err(|_| WANTED)?);
        let uri = Uri::from_parts(parts).map_err(|_| WANTED)?;
        Ok(Self {
            uri,
            host,
            port,
            tls,
        })
    }
}

impl fmt::Display for CollectorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl fmt::Debug for CollectorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}
