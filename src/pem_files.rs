//! PEM files of certificates and keys, for every side of TLS: clients, backends, the store, the collector.
//!
//! Invariant: a certificate is given only together with its own key, and no error shows what a key's file
//! contains.

use std::path::Path;
use std::sync::Arc;

use thiserror::Error;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::{CertifiedKey, SigningKey};

use crate::secret;

/// Why a certificate can't be used.
#[derive(Debug, Error)]
#[error("{key}: {why}")]
pub struct CertificateError {
    /// The option with the problem: `cert_file` or `key_file`.
    pub key: &'static str,
    /// What is wrong.
    pub why: String,
}

/// Reads the certificates of authorities, each of which can be trusted. There is at least one.
///
/// # Errors
/// When the file can't be read, or holds anything else. The text has the file's path only if it can't be read.
pub fn authorities(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = secret::read_file(file).map_err(|error| error.to_string())?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is not a PEM file of certificates: {error}"))?;
    if certificates.is_empty() {
        return Err(
            "holds no certificate: write the certificates of the authorities into it, in PEM"
                .into(),
        );
    }
    let mut usable = RootCertStore::empty();
    for certificate in &certificates {
        usable
            .add(certificate.clone())
            .map_err(|error| format!("holds a certificate that can't be used: {error}"))?;
    }
    Ok(certificates)
}

/// Reads a certificate, with its intermediate certificates, and its key.
///
/// # Errors
/// When one of the files can't be read or used, or the key is not the key of the certificate. There is at
/// least one error.
pub fn certificate(
    cert_file: &Path,
    key_file: &Path,
) -> Result<CertifiedKey, Vec<CertificateError>> {
    let wrong = |key, why| CertificateError { key, why };
    let chain = chain(cert_file).map_err(|why| wrong("cert_file", why));
    let key = private_key(key_file).map_err(|why| wrong("key_file", why));
    match (chain, key) {
        (Ok(chain), Ok(key)) => {
            let certified = CertifiedKey::new(chain, key);
            if certified.keys_match().is_err() {
                let cert_file = cert_file.display();
                let why = format!("is not the key of the certificate in {cert_file}");
                return Err(vec![wrong("key_file", why)]);
            }
            Ok(certified)
        }
        (chain, key) => Err(chain.err().into_iter().chain(key.err()).collect()),
    }
}

fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = secret::read_file(file).map_err(|error| error.to_string())?;
    let file = file.display();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(format!("{file} holds no PEM certificate")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("{file} holds no PEM certificate: {error}")),
    }
}

fn private_key(file: &Path) -> Result<Arc<dyn SigningKey>, String> {
    let text = secret::read_file(file).map_err(|error| error.to_string())?;
    let file = file.display();
    // The error shows nothing of the file.
    let key = PrivateKeyDer::from_pem_slice(&text);
    let key = key.map_err(|_| format!("{file} holds no PEM private key"))?;
    ring::sign::any_supported_type(&key)
        .map_err(|error| format!("{file} holds a key that can't be used: {error}"))
}
