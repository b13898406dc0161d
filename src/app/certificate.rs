//! A certificate that was renewed on disk, taken up while the process serves.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::config::listen;
use crate::listen::TlsServer;

/// How often the files are looked at. By content: Kubernetes swaps a symlink above them, and a time
/// stamp may be older than the file before.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Replaces the certificate when its files hold another one, as long as it is awaited. A pair that
/// can't be used is told of once, and the one before stays.
pub(super) async fn renew(mut files: listen::TlsConfig, tls: TlsServer) {
    let mut told = None;
    loop {
        sleep(LOOK_EVERY).await;
        let now = files.clone();
        // Files may be on a disk that is slow, or gone.
        match spawn_blocking(move || now.renewed()).await {
            Ok(Ok(None)) => told = None,
            Ok(Ok(Some(renewed))) => {
                told = None;
                tls.replace(renewed.certificate.clone());
                files = renewed;
                tracing::info!("new connections get the renewed certificate");
            }
            Ok(Err(error)) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::error!(%error, "the renewed certificate can't be used; the one before stays");
                }
                told = Some(error);
            }
            // The runtime goes down.
            Err(_) => return,
        }
    }
}
