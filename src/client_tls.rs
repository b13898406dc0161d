//! TLS for connections that the proxy opens: to backends and to the collector of spans.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// TLS 1.2 and 1.3 for a client that trusts the public certificate authorities and the `extra` ones.
/// An `extra` certificate that can't be used is skipped: reading the configuration has reported it.
pub fn client_config<'c>(
    extra: impl IntoIterator<Item = &'c CertificateDer<'static>>,
) -> ClientConfig {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    roots.add_parsable_certificates(extra.into_iter().cloned());
    let provider = Arc::new(ring::default_provider());
    let versions =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    match versions {
        Ok(builder) => builder.with_root_certificates(roots).with_no_client_auth(),
        Err(error) => unreachable!("ring has the cipher suites of TLS 1.2 and 1.3: {error}"),
    }
}
