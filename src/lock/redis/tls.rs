//! TLS towards Redis: what a connection trusts and presents, and what a failure of it means.
//!
//! Invariants: the files are read again for each connection, so that renewed certificates need no restart; and
//! no error shows what the key's file contains.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use redis::RedisError;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error as TlsError};

use crate::client_tls;
use crate::pem_files;

/// What connections with TLS trust and present beyond the defaults.
#[derive(Clone, Debug, Default)]
pub struct RedisTls {
    /// A PEM file of certificate authorities that are trusted in addition to the public ones.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the certificate that Redis gets, and of its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The name that Redis's certificate has to be for; `None`: the host of the URL.
    pub server_name: Option<ServerName<'static>>,
}

/// Reads the files of [`RedisTls`], at most once at a time. Clones take turns.
#[derive(Clone, Debug, Default)]
pub(super) struct TlsClient {
    tls: Arc<RedisTls>,
    /// The thread that reads the files holds the lock: a file system that hangs must not use up all threads.
    turn: Arc<Mutex<()>>,
}

/// The remedy for a server that doesn't speak TLS.
pub(super) const NO_TLS: &str =
    "if Redis has no TLS at this port, write redis:// in place of rediss://";

// === impl TlsClient ===

impl TlsClient {
    pub(super) fn new(tls: RedisTls) -> Self {
        Self {
            tls: Arc::new(tls),
            turn: Arc::default(),
        }
    }

    /// Does the handshake on `stream`, with the files as they are now. `host` is the host of the URL.
    ///
    /// # Errors
    /// When a file can't be used, or the handshake fails. The text says what to do.
    pub(super) async fn handshake(
        &self,
        host: &ServerName<'static>,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let config = self.config().await?;
        let name = self.tls.server_name.as_ref().unwrap_or(host);
        let connecting = TlsConnector::from(Arc::new(config)).connect(name.clone(), stream);
        connecting.await.map_err(|error| match tls_error(&error) {
            Some(error) => self.explain(error, name),
            None => format!("the TLS handshake failed: {error}; {NO_TLS}"),
        })
    }

    /// What the loss of a connection while it logs in means. With TLS 1.3, Redis refuses a client's certificate
    /// after the handshake, and closes the connection.
    pub(super) fn login_failure(&self, error: &RedisError, host: &ServerName<'static>) -> String {
        let name = self.tls.server_name.as_ref().unwrap_or(host);
        match io_error(error).and_then(tls_error) {
            Some(error) => self.explain(error, name),
            None => format!(
                "the connection was lost while logging in: {error}{}",
                self.certificate_hint()
            ),
        }
    }

    /// What may be missing if the server refuses a client without a certificate.
    fn certificate_hint(&self) -> &'static str {
        match self.tls.certificate {
            Some(_) => "",
            None => {
                "; if Redis requires a client certificate, set store.cert_file and store.key_file"
            }
        }
    }

    fn explain(&self, error: &TlsError, name: &ServerName<'_>) -> String {
        match failure(error, name) {
            Some(reason) => reason,
            None => format!("TLS failed: {error}{}", self.certificate_hint()),
        }
    }

    async fn config(&self) -> Result<ClientConfig, String> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let tls = Arc::clone(&self.tls);
        let reading = spawn_blocking(move || {
            let _turn = turn;
            tls.config()
        });
        reading.await.map_err(|error| error.to_string())?
    }
}

// === impl RedisTls ===

impl RedisTls {
    /// Reads the files. Blocks for as long as the file system does.
    fn config(&self) -> Result<ClientConfig, String> {
        let authorities = self.ca_file.as_deref().map(|file| {
            let certificates = pem_files::authorities(file);
            certificates.map_err(|why| format!("store.ca_file: {}: {why}", file.display()))
        });
        let authorities = authorities.transpose()?.unwrap_or_default();
        let mut config = client_tls::client_config(&authorities);
        if let Some((cert_file, key_file)) = &self.certificate {
            let certified = pem_files::certificate(cert_file, key_file);
            let certified = certified.map_err(|errors| {
                let errors = errors.iter().map(|error| format!("store.{error}"));
                errors.collect::<Vec<_>>().join("; ")
            })?;
            config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        }
        Ok(config)
    }
}

fn io_error(error: &RedisError) -> Option<&io::Error> {
    let cause = error.source()?;
    let cause = cause.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>()?;
    cause.downcast_ref()
}

fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

/// What a failure of TLS means, and what to do; `None`: no cause is known.
fn failure(error: &TlsError, name: &ServerName<'_>) -> Option<String> {
    use AlertDescription as Alert;
    use CertificateError as Cert;
    let name = name.to_str();
    Some(match error {
        TlsError::InvalidCertificate(Cert::UnknownIssuer | Cert::BadSignature) => {
            "the authority of its certificate is not trusted: set store.ca_file to a file with the \
             authority's certificate"
                .into()
        }
        TlsError::InvalidCertificate(Cert::NotValidForNameContext { presented, .. }) => {
            let presented = presented.join(", ");
            format!(
                "its certificate is for {presented}, not for {name}: set store.server_name to a name that \
                 the certificate has"
            )
        }
        TlsError::InvalidCertificate(Cert::Expired | Cert::ExpiredContext { .. }) => {
            "its certificate has expired: renew it, or set the clock of this machine".into()
        }
        TlsError::InvalidCertificate(Cert::NotValidYet | Cert::NotValidYetContext { .. }) => {
            "its certificate is not valid yet: set the clock of this machine, or issue another one"
                .into()
        }
        TlsError::AlertReceived(Alert::CertificateRequired) => {
            "it requires a client certificate: set store.cert_file and store.key_file".into()
        }
        TlsError::AlertReceived(
            alert @ (Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::AccessDenied
            | Alert::DecryptError),
        ) => format!(
            "it refuses the certificate of store.cert_file ({alert:?}): use one of an authority that it \
             trusts"
        ),
        TlsError::InvalidMessage(_) => format!("its answer is not TLS: {NO_TLS}"),
        _ => return None,
    })
}
