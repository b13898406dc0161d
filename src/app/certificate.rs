//! Picks up a renewed TLS certificate from disk while the process serves.
//!
//! Invariant: a certificate that can't be used never replaces one that can.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::config::listen;
use crate::listen::TlsServer;

/// How often the files are read. Their content is compared, because Kubernetes replaces a symbolic link
/// above them, and a new file may have an older time stamp.
const READ_INTERVAL: Duration = Duration::from_secs(2);

/// Replaces the certificate of new connections whenever its files have a new one. A pair of files that can't
/// be used is logged once, and the old certificate stays. Resolves when the runtime stops.
pub(super) async fn renew(mut files: listen::TlsConfig, tls: TlsServer) {
    let mut logged = None;
    loop {
        sleep(READ_INTERVAL).await;
        let now = files.clone();
        // Reading may block on a slow or missing disk.
        match spawn_blocking(move || now.renewed()).await {
            Ok(Ok(None)) => logged = None,
            Ok(Ok(Some(renewed))) => {
                logged = None;
                tls.replace(renewed.certificate.clone());
                files = renewed;
                tracing::info!("renewed certificate in use for new connections");
            }
            Ok(Err(error)) => {
                let error = error.to_string();
                if logged.as_ref() != Some(&error) {
                    tracing::error!(%error, "renewed certificate can't be used; the old one stays in use");
                }
                logged = Some(error);
            }
            // The runtime is shutting down.
            Err(_) => return,
        }
    }
}
