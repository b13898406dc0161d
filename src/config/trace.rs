//! `[tracing]`: where spans are sent.
//!
//! Invariant: options that are of use only with a collector are refused without one. Sending is left to
//! `crate::trace`.

use std::fmt;

use http::Uri;
use http::uri::{PathAndQuery, Scheme};
use tokio_rustls::rustls::pki_types::ServerName;

use super::option::options;
use super::reader::ConfigTable;
use super::upstream::{ParsedUrl, TrustedCas, bare_host, certificate_name, parse_url};
use super::value_kind::{Masked, Optional, text};

options! {
    /// Where spans are sent.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct TracingConfig in "tracing" {
        /// The URL of the collector, which takes OTLP over HTTP. Headers that it requires are in the
        /// environment variable `OTEL_EXPORTER_OTLP_HEADERS`.
        otlp: Option<CollectorAddress> = None, Optional(Masked(text("URL", CollectorAddress::parse))),
            unset "nothing is sent", example "\"http://127.0.0.1:4318\"", Restart;
        /// A PEM file of certificate authorities that are trusted for a collector with https, in
        /// addition to the public ones.
        ca_file: Option<TrustedCas> = None, Optional(text("path", TrustedCas::read)),
            unset "only the public ones", example "\"/etc/seriatim/ca.pem\"", Restart;
        /// The service name of the spans. Used with `otlp`.
        service: Box<str> = "seriatim".into(), text("name", service_name),
            example "\"chat-proxy\"", Restart;
    }
}

/// The URL of a collector that takes OTLP over HTTP.
#[derive(Clone, PartialEq, Eq)]
pub struct CollectorAddress {
    /// The URL to which spans are posted. It has a scheme, a host and a path.
    pub uri: Uri,
    /// The host: a name, or an address without brackets.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
    /// The name that the collector's certificate has to be for; `None`: without TLS.
    pub tls: Option<ServerName<'static>>,
}

/// The path for traces below a collector's base URL (OpenTelemetry Protocol Exporter, "Endpoint URLs
/// for OTLP/HTTP").
const TRACES: &str = "/v1/traces";

// === impl TracingConfig ===

impl TracingConfig {
    /// Reports options that are of no use without a collector, or without one that has TLS.
    pub(super) fn check(&self, table: &ConfigTable<'_>) {
        let is_plain = self.otlp.as_ref().is_some_and(|otlp| otlp.tls.is_none());
        if table.wrote("ca_file") && (is_plain || !table.wrote("otlp")) {
            let why = "is used only with a collector that has TLS: write otlp = \"https://...\" too, \
                       or leave ca_file out";
            table.note("ca_file", why);
        }
        if table.wrote("service") && !table.wrote("otlp") {
            let why = "is used only with otlp: write otlp = \"http://127.0.0.1:4318\" too, or leave service out";
            table.note("service", why);
        }
    }
}

fn service_name(name: &str) -> Result<Box<str>, &'static str> {
    match name.trim() {
        "" => Err("is empty: write a name, as \"seriatim\", or leave it out"),
        name => Ok(name.into()),
    }
}

// === impl CollectorAddress ===

impl CollectorAddress {
    /// Parses the base URL of a collector, as other exporters take it, or the whole URL for traces.
    fn parse(text: &str) -> Result<Self, &'static str> {
        const WANTED: &str = "write \"http://host:4318\" or \"https://host\"; a path may follow";
        let ParsedUrl {
            uri,
            authority,
            port,
        } = parse_url(text, WANTED)?;
        if authority.as_str().contains('@') {
            return Err(
                "can't have a user and a password: write the headers that the collector requires into \
                 the environment variable OTEL_EXPORTER_OTLP_HEADERS",
            );
        }
        if uri.query().is_some() {
            return Err(WANTED);
        }
        let host = bare_host(&authority);
        let (tls, usual_port) = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => (None, 80),
            Some(scheme) if *scheme == Scheme::HTTPS => (Some(certificate_name(host)?), 443),
            _ => return Err(WANTED),
        };
        let base = uri.path().trim_end_matches('/');
        let path = match base.ends_with(TRACES) {
            true => base.to_owned(),
            false => format!("{base}{TRACES}"),
        };
        let (host, port) = (host.into(), port.unwrap_or(usual_port));
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
