//! A real `redis-server` that has TLS on a second port, and the authority of its certificate.
//!
//! The support's own commands take the first port, which is without TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use seriatim::lock::redis::{RedisAddress, RedisTls};
use tempfile::TempDir;

use super::Reserved;
use super::redis::Redis;

/// A certificate authority of a test, with the files that it has issued.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The files of a certificate and its key.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// A server with TLS. Its certificate's files may be replaced before a restart.
pub(crate) struct TlsRedis {
    pub(crate) redis: Arc<Redis>,
    pub(crate) authority: Authority,
    port: Reserved,
}

// === impl Authority ===

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("the authority")
    }

    /// An authority of another name. Two of the same name have different keys.
    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let folder = TempDir::new().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("a file in it");
        Self { folder, issuer }
    }

    /// The file with the authority's certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Issues a certificate for `name`. Its files are named after `file`.
    pub(crate) fn issue(&self, file: &str, name: &str) -> Pair {
        self.sign(file, name, |_| {})
    }

    /// Issues a certificate that has expired.
    pub(crate) fn issue_expired(&self, file: &str, name: &str) -> Pair {
        self.sign(file, name, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    fn sign(&self, file: &str, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |end: &str| self.folder.path().join(format!("{file}-{end}.pem"));
        let pair = Pair {
            cert: path("cert"),
            key: path("key"),
        };
        std::fs::write(&pair.cert, certificate.pem()).expect("a file");
        std::fs::write(&pair.key, key.serialize_pem()).expect("a file");
        pair
    }
}

// === impl Pair ===

impl Pair {
    /// The options of `[store]` that present this certificate.
    pub(crate) fn options(&self) -> String {
        format!("cert_file = {:?}\nkey_file = {:?}\n", self.cert, self.key)
    }
}

// === impl TlsRedis ===

impl TlsRedis {
    /// Starts a server with a certificate for `localhost`. Clients need none.
    pub(crate) async fn start() -> Self {
        let authority = Authority::new();
        let pair = authority.issue("redis", "localhost");
        Self::start_with(authority, &pair, "no").await
    }

    /// Starts a server with this certificate. `clients` says whether clients need one of `authority`: `yes` or
    /// `no`.
    pub(crate) async fn start_with(authority: Authority, pair: &Pair, clients: &str) -> Self {
        let port = Reserved::new();
        let text = |path: &Path| path.display().to_string();
        let (ca, cert, key) = (text(&authority.file()), text(&pair.cert), text(&pair.key));
        let number = port.addr().port().to_string();
        let options = [
            "--tls-port",
            &number,
            "--tls-ca-cert-file",
            &ca,
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-auth-clients",
            clients,
        ];
        Self {
            redis: Arc::new(Redis::start_with(&options).await),
            authority,
            port,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.addr().port()
    }

    /// `rediss://localhost:PORT/0`
    pub(crate) fn url(&self) -> String {
        format!("rediss://localhost:{}/0", self.port())
    }

    /// The option of `[store]` that trusts the authority.
    pub(crate) fn trusted(&self) -> String {
        format!("ca_file = {:?}\n", self.authority.file())
    }

    /// The address at which clients trust the authority, and present no certificate.
    pub(crate) fn address(&self) -> RedisAddress {
        let address = RedisAddress::parse(&self.url(), Duration::from_secs(1));
        address.expect("the server's URL").with_tls(RedisTls {
            ca_file: Some(self.authority.file()),
            ..RedisTls::default()
        })
    }
}
